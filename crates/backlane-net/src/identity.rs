//! Who a host is: its key, its certificate, and the authority that both sides trust.
//!
//! Private keys stand in files that their owner alone may read; any other mode, and another owner, is refused. Server and hosts have
//! certificates of the same authority, kept apart by their extended key usage and by [`SERVER_NAME`], so that no host
//! can stand in for the server.

use crate::service::VerifiedHost;
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fs::File,
    io::{Read, Write},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// The DNS name that the server's certificate carries (beside any other), whatever address clients reach it by.
///
/// The certificate has the extended key usage `serverAuth`; those of hosts have `clientAuth`, never `serverAuth`.
pub const SERVER_NAME: &str = "backlane-server";

/// Largest PEM file that is read.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// A key and the certificate chain for it, ready for TLS. The key is erased when dropped, and not shown by `Debug`.
#[derive(Debug)]
pub struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Zeroizing<PrivateKeyDer<'static>>,
    host: VerifiedHost,
}

/// The certificate of the authority that signs server and hosts.
#[derive(Clone, Debug)]
pub struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
}

/// A new private key and the request for its certificate.
#[derive(Clone)]
pub struct KeyRequest {
    /// The private key, PKCS #8 in PEM, erased when dropped.
    pub key_pem: Zeroizing<String>,
    /// The certificate request, PEM.
    pub csr_pem: String,
}

/// Why a key, a certificate or an authority can't be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file can't be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Others than the owner may read a secret.
    #[error("{} holds a secret and has mode {mode:03o}; it must be 600 or 400", path.display())]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret belongs to somebody else, who can read and replace it.
    #[error("{} holds a secret and belongs to user {owner}; it must belong to user {reader}, who reads it", path.display())]
    KeyForeign {
        /// The file.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// The number of the user who reads it.
        reader: u32,
    },
    /// A file or text is no PEM of the expected kind, or what is in it can't be used.
    #[error("{what}: {why}")]
    Invalid {
        /// The file, or what the text was meant to be.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A certificate names no host.
    #[error("the certificate names no host")]
    Nameless,
}

impl Identity {
    /// Reads certificate chain and private key from PEM files; the key's file must be its owner's alone.
    ///
    /// # Errors
    /// When a file can't be read, has the wrong mode, or holds no such thing.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let chain_pem = read(certificate)?;
        let key_pem = read_secret(key)?;
        Self::parse(
            &chain_pem,
            &key_pem,
            &certificate.display().to_string(),
            &key.display().to_string(),
        )
    }

    /// Takes certificate chain and private key from PEM texts.
    ///
    /// # Errors
    /// When they hold no such thing.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let (chain, key) = (chain_pem.as_bytes(), key_pem.as_bytes());
        Self::parse(chain, key, "certificate", "private key")
    }

    fn parse(
        chain_pem: &[u8],
        key_pem: &[u8],
        chain_from: &str,
        key_from: &str,
    ) -> Result<Self, IdentityError> {
        let invalid = |what: &str, why: &dyn ToString| IdentityError::Invalid {
            what: what.to_owned(),
            why: why.to_string(),
        };
        let chain = CertificateDer::pem_slice_iter(chain_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| invalid(chain_from, &error))?;
        let first = chain
            .first()
            .ok_or_else(|| invalid(chain_from, &"no certificate in it"))?;
        let host = verified(first)?;
        let key =
            PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| invalid(key_from, &error))?;
        let key = Zeroizing::new(key);
        Ok(Self { chain, key, host })
    }

    /// When the certificate expires, if less than a third of its time is left: then another is asked for.
    #[must_use]
    pub fn expires_soon(&self, now: SystemTime) -> Option<SystemTime> {
        let (_, parsed) = X509Certificate::from_der(self.chain.first()?).ok()?;
        let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let from = seconds(parsed.validity().not_before);
        let to = seconds(parsed.validity().not_after);
        let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let is_soon = to.saturating_sub(now) < to.saturating_sub(from) / 3;
        is_soon.then_some(SystemTime::UNIX_EPOCH + Duration::from_secs(to))
    }

    /// Every DNS name and address that the certificate is for.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let parsed = self.chain.first().map(|it| X509Certificate::from_der(it));
        let Some(Ok((_, parsed))) = parsed else {
            return Vec::new();
        };
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|names| &*names.value.general_names);
        let name = |name: &GeneralName<'_>| match *name {
            GeneralName::DNSName(name) => Some(name.to_owned()),
            GeneralName::IPAddress(address) => match address.len() {
                4 => <[u8; 4]>::try_from(address)
                    .ok()
                    .map(|it| IpAddr::from(it).to_string()),
                _ => <[u8; 16]>::try_from(address)
                    .ok()
                    .map(|it| IpAddr::from(it).to_string()),
            },
            _ => None,
        };
        names.unwrap_or_default().iter().filter_map(name).collect()
    }

    /// A request, PEM, for another certificate of the same name and key.
    ///
    /// # Errors
    /// When the key can't sign.
    pub fn request(&self) -> Result<String, IdentityError> {
        let request =
            KeyPair::try_from(&*self.key).and_then(|key| request_pem(&self.host.name, &key));
        request.map_err(|error| IdentityError::Invalid {
            what: format!("certificate request for {}", self.host.name),
            why: error.to_string(),
        })
    }

    /// The name in the certificate.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// Whom the certificate is of, as its reader sees it.
    #[must_use]
    pub fn host(&self) -> &VerifiedHost {
        &self.host
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: Zeroizing::new(self.key.clone_key()),
            host: self.host.clone(),
        }
    }
}

impl Authority {
    /// Reads the authority's certificate from a PEM file.
    ///
    /// # Errors
    /// When the file can't be read or holds no certificate.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        Self::parse(&read(path)?, &path.display().to_string())
    }

    /// Takes the authority's certificate from PEM text.
    ///
    /// # Errors
    /// When it holds no certificate.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        Self::parse(pem.as_bytes(), "authority")
    }

    fn parse(pem: &[u8], what: &str) -> Result<Self, IdentityError> {
        let certificate =
            CertificateDer::from_pem_slice(pem).map_err(|error| IdentityError::Invalid {
                what: what.to_owned(),
                why: error.to_string(),
            })?;
        Ok(Self { certificate })
    }

    /// SHA-256 of the certificate in DER: what join tokens pin.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }
}

/// Makes a private key and a request for a certificate that names `host`.
///
/// # Errors
/// When `host` can't stand in a certificate.
pub fn request_for(host: &str) -> Result<KeyRequest, IdentityError> {
    let invalid = |error: rcgen::Error| IdentityError::Invalid {
        what: format!("certificate request for {host}"),
        why: error.to_string(),
    };
    let key = KeyPair::generate().map_err(invalid)?;
    Ok(KeyRequest {
        key_pem: Zeroizing::new(key.serialize_pem()),
        csr_pem: request_pem(host, &key).map_err(invalid)?,
    })
}

fn request_pem(host: &str, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.serialize_request(key)?.pem()
}

/// Writes a private key to a new file that its owner alone may read, synced.
///
/// # Errors
/// When the file exists or can't be written.
pub fn write_private(path: &Path, pem: &str) -> Result<(), IdentityError> {
    let failed = failed(path);
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(&failed)?;
    file.write_all(pem.as_bytes()).map_err(&failed)?;
    file.sync_all().map_err(&failed)
}

/// The host that a certificate names, its first DNS name or else its common name; and the certificate's serial number.
pub(crate) fn verified(certificate: &CertificateDer<'_>) -> Result<VerifiedHost, IdentityError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| IdentityError::Invalid {
            what: "certificate".to_owned(),
            why: error.to_string(),
        })?;
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let dns = alternative.and_then(|names| {
        names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
    });
    let common = || {
        let name = parsed.subject().iter_common_name().next()?;
        name.as_str().ok().map(ToOwned::to_owned)
    };
    let name = dns.or_else(common);
    let name = name
        .filter(|name| !name.is_empty())
        .ok_or(IdentityError::Nameless)?;
    Ok(VerifiedHost {
        name,
        serial: parsed.serial.to_bytes_be(),
        key: parsed.public_key().raw.to_vec(),
    })
}

pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, certificate).as_ref());
    out
}

/// The certificate as PEM text.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(certificate);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// Reads a file that holds a secret: it must be its reader's own, with mode 600 or 400. A symbolic link is followed; what
/// counts is the file that was opened.
///
/// # Errors
/// When it can't be read, has another mode, or belongs to another user.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let failed = failed(path);
    let file = File::open(path).map_err(&failed)?;
    let meta = file.metadata().map_err(&failed)?;
    let mode = meta.permissions().mode() & 0o7777;
    if ![0o600, 0o400].contains(&mode) {
        let path = path.to_owned();
        return Err(IdentityError::KeyExposed { path, mode });
    }
    let (owner, reader) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != reader {
        let path = path.to_owned();
        return Err(IdentityError::KeyForeign {
            path,
            owner,
            reader,
        });
    }
    // As large as the file from the beginning: a buffer that grows leaves pieces of the secret behind.
    let bytes = meta.len().min(PEM_BYTES_MAX);
    let mut secret = Zeroizing::new(Vec::with_capacity(usize::try_from(bytes).unwrap_or(0) + 1));
    file.take(PEM_BYTES_MAX)
        .read_to_end(&mut secret)
        .map_err(&failed)?;
    Ok(secret)
}

/// Reads a file of bounded size.
fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = failed(path);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(&failed)?;
    Ok(bytes)
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> IdentityError {
    move |error| IdentityError::File {
        path: path.to_owned(),
        why: error.to_string(),
    }
}
