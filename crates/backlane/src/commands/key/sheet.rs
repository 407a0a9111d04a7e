//! A key on paper: lines of groups of letters and digits, each line with a check of its own.
//!
//! The letters are Crockford's base 32: 32 digits without I, L, O and U, in which a 1 typed as I or L, or a 0 as O, is
//! still read right. The bytes in it are a form, a length, the key, and the beginning of the SHA-256 of all that; they
//! are cut into lines of [`LINE_BYTES`], and each line ends with the beginning of the SHA-256 of its number and its bytes.
//! A mistyped line, or one in another's place, is found by its check in all but one of 65,536 cases, and by the check of
//! the whole in all but one of four thousand million of those.

use anyhow::{Result, anyhow, bail, ensure};
use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::{Encoding, Specification};
use std::sync::LazyLock;
use zeroize::Zeroizing;

/// Bytes of the key in a line.
const LINE_BYTES: usize = 8;
/// Bytes of a line's check.
const LINE_CHECK_BYTES: usize = 2;
/// Bytes of the check of all lines.
const CHECK_BYTES: usize = 4;
/// Letters of a group.
const GROUP_LETTERS: usize = 4;
/// Form and length.
const HEAD_BYTES: usize = 2;

/// The key's letters are hexadecimal digits, of which the sheet has the bytes: all that `join` has ever made.
const FORM_HEX: u8 = 1;
/// The key is any text.
const FORM_TEXT: u8 = 2;

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("0123456789ABCDEFGHJKMNPQRSTVWXYZ");
    specification
        .translate
        .from
        .push_str("abcdefghjkmnpqrstvwxyzIiLlOo");
    specification
        .translate
        .to
        .push_str("ABCDEFGHJKMNPQRSTVWXYZ111100");
    specification.ignore.push_str(" -\t\r\n");
    specification.encoding().expect("the digits are distinct")
});

/// A key as lines for a sheet.
///
/// # Errors
/// When the key is too long for one.
pub(super) fn lines(key: &str) -> Result<Vec<Zeroizing<String>>> {
    let (form, secret) = match hex::decode(key) {
        // Capital letters would come back small.
        Ok(bytes) if !key.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            (FORM_HEX, Zeroizing::new(bytes))
        }
        _ => (FORM_TEXT, Zeroizing::new(key.as_bytes().to_vec())),
    };
    let length = u8::try_from(secret.len())
        .map_err(|_| anyhow!("the key is too long for a sheet: keep a copy of its file"))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_BYTES + secret.len() + CHECK_BYTES));
    bytes.extend_from_slice(&[form, length]);
    bytes.extend_from_slice(&secret);
    let check = check::<CHECK_BYTES>(&[&bytes]);
    bytes.extend_from_slice(&check);
    let lines = bytes.chunks(LINE_BYTES).zip(1..);
    Ok(lines.map(|(part, number)| line(part, number)).collect())
}

fn line(part: &[u8], number: u8) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(part.to_vec());
    bytes.extend_from_slice(&check::<LINE_CHECK_BYTES>(&[&[number], part]));
    let letters = Zeroizing::new(BASE32.encode(&bytes));
    let mut grouped = Zeroizing::new(String::with_capacity(letters.len() * 2));
    for (at, letter) in letters.chars().enumerate() {
        if at > 0 && at % GROUP_LETTERS == 0 {
            grouped.push('-');
        }
        grouped.push(letter);
    }
    grouped
}

/// What was read of a sheet so far, line by line.
#[derive(Default)]
pub(super) struct Reading {
    bytes: Zeroizing<Vec<u8>>,
    lines: u8,
}

impl Reading {
    /// The number of the line that comes next; `None` when all were read.
    pub(super) fn next(&self) -> Option<u8> {
        let whole = self.bytes.get(1).map(|length| {
            let bytes = HEAD_BYTES + usize::from(*length) + CHECK_BYTES;
            bytes <= self.bytes.len()
        });
        (whole != Some(true)).then_some(self.lines + 1)
    }

    /// Takes the next line.
    ///
    /// # Errors
    /// When it has a mistake; nothing of it is taken.
    pub(super) fn take(&mut self, text: &str) -> Result<()> {
        let number = self.lines + 1;
        let mistake = |what: &str| anyhow!("line {number} of the key has a mistake: {what}");
        let bytes = BASE32.decode(text.as_bytes()).map_err(|error| {
            // It tells the place, and not the letter.
            match error.kind {
                data_encoding::DecodeKind::Symbol => mistake(&format!(
                    "character {} is none that a key has",
                    error.position + 1
                )),
                _ => mistake("a letter is wrong or missing, or one is too many"),
            }
        })?;
        let bytes = Zeroizing::new(bytes);
        let Some((part, found)) = bytes.split_last_chunk::<LINE_CHECK_BYTES>() else {
            return Err(mistake("it is too short"));
        };
        if part.len() > LINE_BYTES || *found != check(&[&[number], part]) {
            return Err(mistake("its check does not fit"));
        }
        let is_last = part.len() < LINE_BYTES;
        self.bytes.extend_from_slice(part);
        self.lines += 1;
        ensure!(
            !is_last || self.next().is_none(),
            "lines of the key are missing before line {number}"
        );
        Ok(())
    }

    /// The key.
    ///
    /// # Errors
    /// When lines are missing, or it is none.
    pub(super) fn key(&self) -> Result<Zeroizing<String>> {
        if let Some(number) = self.next() {
            bail!("line {number} of the key is missing");
        }
        let all = self.bytes.split_last_chunk::<CHECK_BYTES>();
        let fits = all.filter(|(bytes, found)| **found == check(&[bytes]));
        let Some(([form, _, secret @ ..], _)) = fits else {
            bail!("the lines of the key don't fit together: are all of them from one sheet?");
        };
        match *form {
            FORM_HEX => Ok(Zeroizing::new(hex::encode(secret))),
            FORM_TEXT => Ok(Zeroizing::new(str::from_utf8(secret)?.to_owned())),
            other => bail!("the sheet is of a later version of Backlane (form {other})"),
        }
    }
}

/// The first bytes of a SHA-256.
fn check<const BYTES: usize>(parts: &[&[u8]]) -> [u8; BYTES] {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(part);
    }
    let hash = hash.finish();
    let mut first = [0; BYTES];
    first.copy_from_slice(&hash.as_ref()[..BYTES]);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00ff17c4a2e8d3b591f0465b7c8e9d2a3f6b1c0d5e4f7a8b9c0d1e2f3a4b5c6d";

    fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut reading = Reading::default();
        for line in lines {
            reading.take(line)?;
        }
        Ok(reading.key()?.to_string())
    }

    fn written(key: &str) -> Vec<String> {
        lines(key)
            .unwrap()
            .iter()
            .map(|line| line.to_string())
            .collect()
    }

    #[test]
    fn a_key_of_any_form_comes_back() {
        let long = "x".repeat(255);
        for key in [
            KEY,
            "0",
            "correct horse battery staple",
            "ABCD",
            "schlüssel",
            &long,
        ] {
            let lines = written(key);
            assert_eq!(read(lines.iter().map(String::as_str)).unwrap(), key);
        }
        // What join makes has five lines.
        assert_eq!(written(KEY).len(), 5);
        assert!(lines(&"x".repeat(256)).is_err());
    }

    #[test]
    fn a_sheet_of_this_version_is_read_for_ever() {
        // As another program makes it.
        let sheet = [
            "04G0-1ZRQ-RJHE-GQJA",
            "TETS-3W26-BDY8-XAGB",
            "KMN3-YTRW-1NF4-ZZFA",
            "FA5S-R38Y-5WX4-PX84",
            "BHPY-ZJ11-VQY6-J",
        ];
        assert_eq!(written(KEY), sheet);
    }

    #[test]
    fn how_it_is_typed_does_not_matter() {
        let lines = written(KEY);
        let typed: Vec<String> = lines
            .iter()
            .map(|line| {
                format!(
                    " {} ",
                    line.to_lowercase()
                        .replace('-', " ")
                        .replace('0', "o")
                        .replace('1', "l")
                )
            })
            .collect();
        assert_eq!(read(typed.iter().map(String::as_str)).unwrap(), KEY);
    }

    #[test]
    fn a_mistake_is_named_by_its_line() {
        let good = written(KEY);
        for (at, line) in good.iter().enumerate() {
            let named = format!("line {} ", at + 1);
            for place in 0..line.len() {
                let old = line.as_bytes()[place];
                let mut wrong = line.clone();
                if old == b'-' {
                    continue;
                }
                // Another letter, none that a key has, one missing, one too many, and two that changed places.
                for new in ["", "U", if old == b'7' { "8" } else { "7" }] {
                    wrong.replace_range(place..=place, new);
                    assert_named(&good, at, &wrong, &named);
                    wrong.clone_from(line);
                }
                wrong.insert(place, '3');
                assert_named(&good, at, &wrong, &named);
                let mut letters: Vec<u8> = line.bytes().filter(|letter| *letter != b'-').collect();
                let other = (place + 1) % letters.len();
                let place = place % letters.len();
                if letters[place] != letters[other] {
                    letters.swap(place, other);
                    assert_named(&good, at, str::from_utf8(&letters).unwrap(), &named);
                }
            }
        }
        let swapped = [&good[1], &good[0]].map(String::as_str);
        let error = read(swapped).unwrap_err().to_string();
        assert!(error.contains("line 1 "), "{error}");
    }

    fn assert_named(good: &[String], at: usize, wrong: &str, named: &str) {
        let mut lines: Vec<&str> = good.iter().map(String::as_str).collect();
        lines[at] = wrong;
        let error = read(lines).unwrap_err().to_string();
        assert!(error.contains(named), "{wrong}: {error}");
        assert!(!error.contains(wrong), "the key is shown: {error}");
    }

    #[test]
    fn missing_lines_and_those_of_another_sheet_are_refused() {
        let good = written(KEY);
        let error = read(good[..4].iter().map(String::as_str)).unwrap_err();
        assert!(error.to_string().contains("line 5 "), "{error}");
        let other = written(&KEY.replace('a', "b"));
        let mixed = [&good[..4], &other[4..]].concat();
        let error = read(mixed.iter().map(String::as_str)).unwrap_err();
        assert!(error.to_string().contains("fit together"), "{error}");
    }
}
