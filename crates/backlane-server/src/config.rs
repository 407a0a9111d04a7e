//! The server's configuration file.

use crate::{ServerError, authority::AUTHORITY_VALIDITY_DAYS, error::io_error};
use backlane_proto::RoutePolicy;
use serde::{Deserialize, Deserializer, de};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use uuid::Uuid;

/// Where the configuration is unless somebody says otherwise.
pub const CONFIG_PATH: &str = "/etc/backlane/server.toml";
/// The designated TCP port.
pub const DESIGNATED_PORT: u16 = 4870;
/// How long what was removed stays recoverable unless somebody says otherwise.
pub const KEEP_REMOVED: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How long hosts' certificates are valid unless somebody says otherwise.
pub const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Longest time for which they may be valid: none is, once the authority's own isn't.
const CERTIFICATE_VALIDITY_MAX: Duration =
    Duration::from_secs(AUTHORITY_VALIDITY_DAYS * 24 * 60 * 60);
/// How many slots `pool create` gives a pool unless somebody says otherwise.
pub const POOL_SLOTS: u32 = 64;

/// What the configuration file holds; every field has a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ServerConfig {
    /// Address and designated port to listen at.
    pub listen: SocketAddr,
    /// What join tokens tell hosts to connect to, `host:port`; the machine's name and the designated port if absent.
    pub address: Option<String>,
    /// Which TCP ports the network data pairs may use.
    pub data_ports: DataPorts,
    /// Directory of keys, certificates and the state database.
    pub state: PathBuf,
    /// Directory under which `repositories/` is.
    pub data: PathBuf,
    /// The pool that this server coordinates, if any.
    pub pool: Option<PoolConfig>,
    /// How long hosts' certificates are valid; jobs renew them when a third of that is left.
    #[serde(deserialize_with = "duration_from_text")]
    pub certificate_validity: Duration,
    /// How long what maintenance removes stays recoverable.
    #[serde(deserialize_with = "duration_from_text")]
    pub keep_removed: Duration,
    /// Which routes sessions may use: of each session's policy that is left which this one allows as well.
    #[serde(deserialize_with = "policy_from_text")]
    pub route_ceiling: RoutePolicy,
}

/// The pool that a server coordinates.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PoolConfig {
    /// The pool's UUID: what it is known by.
    #[serde(deserialize_with = "uuid_from_text")]
    pub uuid: Uuid,
    /// The pool's name, for people.
    pub name: Option<String>,
    /// Where its devices were seen; what is found there is checked against the UUID.
    pub devices: Vec<PathBuf>,
    /// How many slots the pool has.
    #[serde(default = "pool_slots")]
    pub slots: u32,
}

/// Which TCP ports network data pairs may use: `"any"`, `"designated"`, or a range like `"40000-40099"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DataPorts {
    /// Whatever port the system gives.
    #[default]
    Any,
    /// The designated port alone.
    Designated,
    /// A port from `first` to `last`, both included.
    Range {
        /// Lowest port.
        first: u16,
        /// Highest port.
        last: u16,
    },
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0; 16], DESIGNATED_PORT)),
            address: None,
            data_ports: DataPorts::Any,
            state: "/var/lib/backlane".into(),
            data: "/var/lib/backlane".into(),
            pool: None,
            certificate_validity: CERTIFICATE_VALIDITY,
            keep_removed: KEEP_REMOVED,
            route_ceiling: RoutePolicy::default(),
        }
    }
}

impl ServerConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When it can't be read, or has a field that is unknown or can't be used; the message names the place.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        let text = fs::read_to_string(path).map_err(io_error("read", path))?;
        Self::parse(&text, path)
    }

    /// Parses the text of a configuration file; `path` is for messages.
    ///
    /// # Errors
    /// As for [`ServerConfig::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ServerError> {
        let refused = |why| ServerError::Config {
            path: path.into(),
            why,
        };
        let config: Self =
            toml::from_str(text).map_err(|error| refused(error.to_string().trim_end().into()))?;
        if config.certificate_validity > CERTIFICATE_VALIDITY_MAX {
            return Err(refused(format!(
                "certificate-validity exceeds the authority's, {AUTHORITY_VALIDITY_DAYS} days"
            )));
        }
        if let Some(pool) = &config.pool {
            if pool.devices.is_empty() {
                return Err(refused("section [pool] names no devices".into()));
            }
            if pool.slots == 0 {
                return Err(refused("section [pool] has no slots".into()));
            }
        }
        Ok(config)
    }

    /// Where the repositories are.
    #[must_use]
    pub fn repositories(&self) -> PathBuf {
        self.data.join("repositories")
    }
}

impl<'de> Deserialize<'de> for DataPorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_ports(&text).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is neither \"any\" nor \"designated\" nor a range of ports like \"40000-40099\""
            ))
        })
    }
}

fn parse_ports(text: &str) -> Option<DataPorts> {
    match text {
        "any" => return Some(DataPorts::Any),
        "designated" => return Some(DataPorts::Designated),
        _ => {}
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some(DataPorts::Range { first, last })
}

fn policy_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RoutePolicy, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(de::Error::custom)
}

fn duration_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match humantime::parse_duration(&text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err(de::Error::custom(format!("{text:?} is no time at all"))),
        Err(error) => Err(de::Error::custom(format!("{text:?}: {error}"))),
    }
}

fn uuid_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = String::deserialize(deserializer)?;
    Uuid::parse_str(&text).map_err(|error| de::Error::custom(format!("{text:?}: {error}")))
}

fn pool_slots() -> u32 {
    POOL_SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServerConfig, String> {
        ServerConfig::parse(text, Path::new("server.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_file_is_the_defaults() {
        assert_eq!(parse("").unwrap(), ServerConfig::default());
    }

    #[test]
    fn every_field_is_read() {
        let text = r#"
            listen = "127.0.0.1:4000"
            address = "backup.example:4000"
            data-ports = "40000-40099"
            route-ceiling = "require-storage"
            certificate-validity = "90d"
            keep-removed = "4w"
            state = "/s"
            data = "/d"
            [pool]
            uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8"
            name = "p"
            devices = ["/dev/sdx"]
            slots = 8
        "#;
        let config = parse(text).unwrap();
        let (first, last) = (40_000, 40_099);
        assert_eq!(config.data_ports, DataPorts::Range { first, last });
        assert_eq!(config.route_ceiling, RoutePolicy::RequireStorage);
        assert_eq!(config.certificate_validity.as_secs(), 90 * 86_400);
        assert_eq!(config.keep_removed.as_secs(), 28 * 86_400);
        assert_eq!(config.repositories(), Path::new("/d/repositories"));
        assert_eq!(config.pool.unwrap().slots, 8);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let pool = "[pool]\nuuid = \"67e55044-10b1-426f-9247-bb680e5fe0c8\"\n";
        for (text, part) in [
            ("listne = \"x\"", "listne"),
            ("data-ports = \"9-1\"", "9-1"),
            ("data-ports = \"0\"", "\"0\""),
            ("listen = \"nowhere\"", "listen"),
            ("certificate-validity = \"0s\"", "0s"),
            ("certificate-validity = \"9999y\"", "7300 days"),
            ("route-ceiling = \"lan\"", "require-storage"),
            ("[pool]\nuuid = \"x\"\ndevices = []", "\"x\""),
            (&format!("{pool}devices = []"), "no devices"),
            (&format!("{pool}devices = [\"a\"]\nslots = 0"), "no slots"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains(part) && error.contains("server.toml"),
                "{error}"
            );
        }
    }
}
