//! The server's own small certificate authority.
//!
//! It signs two kinds of certificates: the server's own, once, and hosts', at enrolment. Of a host's request it takes
//! the public key and nothing else; the name comes from the join token. Files are written once and never overwritten.

use crate::{HostName, ServerError, db, db::Timestamp, error::io_error, store};
use aws_lc_rs::digest::{SHA256, digest};
use backlane_net::identity::{SERVER_NAME, read_secret};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKey, PublicKeyData, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use uuid::Uuid;

/// How long the server's own certificate is valid; it is renewed when the server starts.
pub const SERVER_VALIDITY_DAYS: u64 = 10 * 365;
/// How long the authority itself is valid.
pub const AUTHORITY_VALIDITY_DAYS: u64 = 20 * 365;
/// How far a host's clock may be behind the server's without taking a new certificate for one of the future.
pub const CLOCK_SKEW_DAYS: u64 = 1;

const DAY_SECONDS: u64 = 24 * 60 * 60;
const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// Where the authority's and the server's keys and certificates are.
#[derive(Clone, Debug)]
pub struct AuthorityPaths {
    /// The authority's private key.
    pub ca_key: PathBuf,
    /// The authority's certificate.
    pub ca_certificate: PathBuf,
    /// The server's private key.
    pub server_key: PathBuf,
    /// The server's certificate, with the authority's behind it: a host that enrols knows only the latter's hash.
    pub server_certificate: PathBuf,
}

/// The authority, able to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    fingerprint: [u8; 32],
}

/// A certificate request whose own signature was verified.
pub struct HostRequest {
    key: PublicKey,
}

/// A certificate that was signed for a host.
#[derive(Clone, Debug)]
pub struct HostCertificate {
    /// The certificate, PEM.
    pub pem: String,
    serial: Vec<u8>,
    expires_at: Timestamp,
}

impl AuthorityPaths {
    /// The files in a state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self {
            ca_key: state.join("ca.key"),
            ca_certificate: state.join("ca.pem"),
            server_key: state.join("server.key"),
            server_certificate: state.join("server.pem"),
        }
    }

    fn all(&self) -> [&Path; 4] {
        [
            &self.ca_key,
            &self.ca_certificate,
            &self.server_key,
            &self.server_certificate,
        ]
    }
}

impl Authority {
    /// Makes an authority and the server's own certificate, and keeps them in `state`. The certificate is for
    /// [`SERVER_NAME`], which hosts check, and for `names` (DNS names or IP addresses), which other tools may.
    ///
    /// # Errors
    /// [`ServerError::AlreadyInitialised`] when any of the files exists.
    pub fn create(state: &Path, names: &[String]) -> Result<Self, ServerError> {
        let paths = AuthorityPaths::new(state);
        if let Some(path) = paths.all().into_iter().find(|path| path.exists()) {
            return Err(ServerError::AlreadyInitialised { path: path.into() });
        }
        let now = Timestamp::now();
        let failed = |error: rcgen::Error| ServerError::Authority {
            path: state.into(),
            why: error.to_string(),
        };
        let ca_key = KeyPair::generate().map_err(failed)?;
        let ca_key_pem = ca_key.serialize_pem();
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Backlane authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, days(AUTHORITY_VALIDITY_DAYS)).map_err(failed)?;
        let authority = CertifiedIssuer::self_signed(params, ca_key).map_err(failed)?;

        let server_key = KeyPair::generate().map_err(failed)?;
        let server = server_params(names)
            .and_then(|params| params.signed_by(&server_key, &authority))
            .map_err(failed)?;

        let ca_pem = authority.pem();
        let chain = format!("{}{ca_pem}", server.pem());
        write_new(&paths.ca_key, &ca_key_pem, KEY_MODE)?;
        write_new(&paths.ca_certificate, &ca_pem, CERTIFICATE_MODE)?;
        write_new(&paths.server_key, &server_key.serialize_pem(), KEY_MODE)?;
        write_new(&paths.server_certificate, &chain, CERTIFICATE_MODE)?;
        store::sync_directory(state)?;
        Self::open(state)
    }

    /// Opens the authority that [`Authority::create`] made in `state`.
    ///
    /// # Errors
    /// When a file is missing, can't be read, or holds something else.
    pub fn open(state: &Path) -> Result<Self, ServerError> {
        let paths = AuthorityPaths::new(state);
        if let Some(path) = paths.all().into_iter().find(|path| !path.exists()) {
            return Err(ServerError::NotInitialised { path: path.into() });
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(io_error("read", path));
        let bad = |path: &Path| {
            let path = path.to_owned();
            move |error: rcgen::Error| ServerError::Authority {
                path,
                why: error.to_string(),
            }
        };
        let key = read_key(&paths.ca_key)?;
        let certificate_pem = read(&paths.ca_certificate)?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| {
            ServerError::Authority {
                path: paths.ca_certificate.clone(),
                why: error.to_string(),
            }
        })?;
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, &der).as_ref());
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(bad(&paths.ca_certificate))?;
        Ok(Self {
            issuer,
            certificate_pem,
            fingerprint,
        })
    }

    /// Signs another certificate of the server's own, for the key and the names that it has.
    ///
    /// # Errors
    /// When the key can't be read, or the file can't be written.
    pub fn renew_server(
        &self,
        names: &[String],
        paths: &AuthorityPaths,
    ) -> Result<(), ServerError> {
        let failed = |error: rcgen::Error| ServerError::Authority {
            path: paths.server_key.clone(),
            why: error.to_string(),
        };
        let key = read_key(&paths.server_key)?;
        let server = server_params(names)
            .and_then(|params| params.signed_by(&key, &self.issuer))
            .map_err(failed)?;
        let chain = format!("{}{}", server.pem(), self.certificate_pem);
        let new = paths.server_certificate.with_extension("pem.new");
        let _ = fs::remove_file(&new);
        write_new(&new, &chain, CERTIFICATE_MODE)?;
        fs::rename(&new, &paths.server_certificate)
            .map_err(io_error("replace", &paths.server_certificate))
    }

    /// SHA-256 of the authority's certificate in DER form: what join tokens pin.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Signs a certificate for a host: its name from its join token, its key from its request, all else from here.
    ///
    /// # Errors
    /// When the name or the key can't stand in a certificate.
    pub fn sign(
        &self,
        request: &HostRequest,
        host: &HostName,
        validity: Duration,
    ) -> Result<HostCertificate, ServerError> {
        let refused = |error: rcgen::Error| ServerError::Request {
            why: error.to_string(),
        };
        let now = Timestamp::now();
        let mut serial = Uuid::new_v4().into_bytes().to_vec();
        // A positive number of sixteen bytes, so that whoever reads it sees the bytes that are recorded.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::new([host.to_string()]).map_err(refused)?;
        params.distinguished_name = common_name(host.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        leaf(&mut params, now, validity).map_err(refused)?;
        let certificate = params
            .signed_by(&request.key, &self.issuer)
            .map_err(refused)?;
        Ok(HostCertificate {
            pem: certificate.pem(),
            serial,
            expires_at: Timestamp(now.0.saturating_add(db::milliseconds(validity))),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &hex::encode(self.fingerprint))
            .finish_non_exhaustive()
    }
}

impl HostRequest {
    /// Reads a PEM request and checks that its sender has the private key.
    ///
    /// # Errors
    /// When the text is no request, or its signature doesn't fit.
    pub fn parse(pem: &str) -> Result<Self, ServerError> {
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(|error| {
            ServerError::Request {
                why: error.to_string(),
            }
        })?;
        Ok(Self {
            key: request.public_key,
        })
    }
}

impl HostRequest {
    /// Whether it asks for this key, SubjectPublicKeyInfo in DER.
    pub(crate) fn is_of(&self, key: &[u8]) -> bool {
        self.key.subject_public_key_info() == key
    }
}

impl db::Issued for HostCertificate {
    fn serial(&self) -> &[u8] {
        &self.serial
    }

    fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Reads a private key, which has to be this user's alone.
fn read_key(path: &Path) -> Result<KeyPair, ServerError> {
    let unusable = |why: String| ServerError::Authority {
        path: path.into(),
        why,
    };
    let key = read_secret(path).map_err(|error| unusable(error.to_string()))?;
    let key = str::from_utf8(&key).map_err(|error| unusable(error.to_string()))?;
    KeyPair::from_pem(key).map_err(|error| unusable(error.to_string()))
}

fn server_params(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut all_names = vec![SERVER_NAME.to_owned()];
    all_names.extend(names.iter().filter(|name| *name != SERVER_NAME).cloned());
    let mut params = CertificateParams::new(all_names)?;
    params.distinguished_name = common_name("Backlane server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf(&mut params, Timestamp::now(), days(SERVER_VALIDITY_DAYS))?;
    Ok(params)
}

fn days(days: u64) -> Duration {
    Duration::from_secs(days * DAY_SECONDS)
}

fn leaf(
    params: &mut CertificateParams,
    now: Timestamp,
    validity: Duration,
) -> Result<(), rcgen::Error> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    set_validity(params, now, validity)
}

fn set_validity(
    params: &mut CertificateParams,
    now: Timestamp,
    validity: Duration,
) -> Result<(), rcgen::Error> {
    let seconds = u64::try_from(now.0).unwrap_or(0) / 1000;
    let start = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    // The calendar ends with the year 9999.
    let validity = validity.try_into().ok();
    let end = validity.and_then(|validity| start.checked_add(validity));
    params.not_before = start - days(CLOCK_SKEW_DAYS);
    params.not_after = end.ok_or(rcgen::Error::Time)?;
    Ok(())
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), ServerError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                ServerError::AlreadyInitialised { path: path.into() }
            }
            _ => io_error("create", path)(error),
        })?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", path))
}
