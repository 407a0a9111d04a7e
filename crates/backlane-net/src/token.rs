//! Join tokens: what an administrator hands to a host so that it can enrol.
//!
//! A token names the server's address, pins its authority, and carries a one-time secret and the host's name. It is
//! one word of text. A checksum tells a mistyped token from one that the server refuses; it protects nothing else,
//! since the server decides by the secret alone.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fmt, str::FromStr};
use zeroize::Zeroize;

/// What every join token begins with.
pub const TOKEN_PREFIX: &str = "backlane-join-";

/// Longest text that is considered at all.
pub const TOKEN_CHARS_MAX: usize = 1024;

const TOKEN_VERSION: u8 = 1;
const HASH_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;

/// A join token, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Where the server listens: `host:port`.
    pub server: String,
    /// SHA-256 of the DER form of the certificate of the server's authority.
    pub authority: [u8; 32],
    /// The part that the server redeems.
    pub secret: JoinSecret,
    /// The name that the host is to be enrolled under.
    pub host: String,
}

/// The one-time secret of a join token; not shown by `Debug`, erased when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret([u8; HASH_BYTES]);

/// Why a text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The text does not begin as join tokens do.
    #[error("not a join token: it does not begin with {TOKEN_PREFIX:?}")]
    Foreign,
    /// A character is missing, added or wrong.
    #[error("the join token was mistyped or cut off: its checksum does not fit")]
    Mistyped,
    /// The token was made by a later version.
    #[error("the join token has version {0}, this program knows version {TOKEN_VERSION}")]
    Version(u8),
    /// A name or an address is too long for a token.
    #[error("{what} has {bytes} bytes, a join token has room for 255")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
}

impl JoinToken {
    /// Writes the token as one word of text.
    ///
    /// # Errors
    /// When the host's name or the server's address is longer than 255 bytes.
    pub fn encode(&self) -> Result<String, TokenError> {
        let mut payload = vec![TOKEN_VERSION];
        payload.extend_from_slice(&self.authority);
        payload.extend_from_slice(&self.secret.0);
        push_text(&mut payload, "the host's name", &self.host)?;
        push_text(&mut payload, "the server's address", &self.server)?;
        let check = checksum(&payload);
        payload.extend_from_slice(&check);
        let text = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(&payload));
        payload.zeroize();
        Ok(text)
    }

    /// Reads a token; white space around it is ignored.
    ///
    /// # Errors
    /// When the text is no token, was mistyped, or has an unknown version.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let word = text
            .trim()
            .strip_prefix(TOKEN_PREFIX)
            .ok_or(TokenError::Foreign)?;
        if word.len() > TOKEN_CHARS_MAX {
            return Err(TokenError::Mistyped);
        }
        let mut payload = URL_SAFE_NO_PAD
            .decode(word)
            .map_err(|_| TokenError::Mistyped)?;
        let token = parse(&payload);
        payload.zeroize();
        token
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::decode(text)
    }
}

impl JoinSecret {
    /// Makes a secret from 32 random bytes.
    #[must_use]
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The form in which the secret travels in an enrolment request.
    #[must_use]
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads what [`JoinSecret::to_text`] wrote; `None` if it is anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// What a server keeps instead of the secret. A plain hash is enough, as the secret has 256 random bits.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0)
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(..)")
    }
}

impl Drop for JoinSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

fn push_text(payload: &mut Vec<u8>, what: &'static str, text: &str) -> Result<(), TokenError> {
    let bytes = text.len();
    let length = u8::try_from(bytes).map_err(|_| TokenError::TooLong { what, bytes })?;
    payload.push(length);
    payload.extend_from_slice(text.as_bytes());
    Ok(())
}

fn parse(payload: &[u8]) -> Result<JoinToken, TokenError> {
    let (mut rest, check) = payload
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or(TokenError::Mistyped)?;
    if checksum(rest) != *check {
        return Err(TokenError::Mistyped);
    }
    let [version] = take(&mut rest)?;
    if version != TOKEN_VERSION {
        return Err(TokenError::Version(version));
    }
    let authority = take(&mut rest)?;
    let secret = JoinSecret(take(&mut rest)?);
    let host = take_text(&mut rest)?;
    let server = take_text(&mut rest)?;
    if !rest.is_empty() {
        return Err(TokenError::Mistyped);
    }
    Ok(JoinToken {
        server,
        authority,
        secret,
        host,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], TokenError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(TokenError::Mistyped)?;
    *rest = tail;
    Ok(*head)
}

fn take_text(rest: &mut &[u8]) -> Result<String, TokenError> {
    let [length] = take(rest)?;
    let (text, tail) = rest
        .split_at_checked(usize::from(length))
        .ok_or(TokenError::Mistyped)?;
    *rest = tail;
    String::from_utf8(text.to_vec()).map_err(|_| TokenError::Mistyped)
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = sha256(payload);
    [hash[0], hash[1], hash[2], hash[3]]
}

fn sha256(bytes: &[u8]) -> [u8; HASH_BYTES] {
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken {
            server: "backup.example:4870".into(),
            authority: [7; 32],
            secret: JoinSecret::new([9; 32]),
            host: "web1".into(),
        }
    }

    #[test]
    fn token_survives_its_text_and_white_space_around_it() {
        let text = token().encode().unwrap();
        assert!(text.starts_with(TOKEN_PREFIX));
        assert_eq!(JoinToken::decode(&format!(" {text}\n")), Ok(token()));
    }

    #[test]
    fn any_changed_or_missing_character_is_called_mistyped() {
        let text = token().encode().unwrap();
        for at in TOKEN_PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(JoinToken::decode(&changed), Err(TokenError::Mistyped));
            assert_eq!(JoinToken::decode(&text[..at]), Err(TokenError::Mistyped));
        }
        assert_eq!(JoinToken::decode("hello"), Err(TokenError::Foreign));
    }

    #[test]
    fn later_version_is_named() {
        let mut payload = vec![2, 1, 2, 3];
        let check = checksum(&payload);
        payload.extend_from_slice(&check);
        let text = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(payload));
        assert_eq!(JoinToken::decode(&text), Err(TokenError::Version(2)));
    }

    #[test]
    fn secret_survives_its_text_and_stays_out_of_debug() {
        let secret = token().secret;
        assert_eq!(JoinSecret::from_text(&secret.to_text()), Some(secret));
        assert_eq!(JoinSecret::from_text("c2hvcnQ"), None);
        assert!(format!("{:?}", token()).contains("JoinSecret(..)"));
    }

    #[test]
    fn name_that_does_not_fit_is_refused() {
        let long = JoinToken {
            host: "h".repeat(256),
            ..token()
        };
        let what = "the host's name";
        assert_eq!(long.encode(), Err(TokenError::TooLong { what, bytes: 256 }));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = JoinToken::decode(&text);
            let _ = JoinToken::decode(&format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes)));
            let _ = parse(&bytes);
        }
    }
}
