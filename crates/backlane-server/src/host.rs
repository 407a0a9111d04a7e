//! Names of hosts: parsed once, where they enter.

use crate::ServerError;
use backlane_net::identity::SERVER_NAME;
use std::{fmt, str::FromStr};

/// Longest name of a host, as in the DNS.
pub const HOST_NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// The name of a host: DNS labels in lower case, so that it is also safe as the name of a directory.
///
/// Names are compared as the DNS does: capital letters are folded when a name is parsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let refused = |why| ServerError::HostName {
            name: text.chars().take(HOST_NAME_BYTES_MAX).collect(),
            why,
        };
        if text.is_empty() {
            return Err(refused("it is empty"));
        }
        if text.len() > HOST_NAME_BYTES_MAX {
            return Err(refused("it is longer than 253 bytes"));
        }
        for label in text.split('.') {
            if label.is_empty() {
                return Err(refused("a part between dots is empty"));
            }
            if label.len() > LABEL_BYTES_MAX {
                return Err(refused("a part between dots is longer than 63 bytes"));
            }
            if !label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
            {
                return Err(refused(
                    "it may have letters of ASCII, digits, hyphens and dots alone",
                ));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(refused("a part begins or ends with a hyphen"));
            }
        }
        let name = text.to_ascii_lowercase();
        if name == SERVER_NAME {
            return Err(refused("servers have this name in their certificates"));
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn names_of_the_dns_pass_and_fold_case() {
        for (text, want) in [("web1", "web1"), ("Db-2.Example.ORG", "db-2.example.org")] {
            assert_eq!(text.parse::<HostName>().unwrap().as_str(), want);
        }
        let long = vec!["a".repeat(63); 3].join(".") + "." + &"b".repeat(61);
        assert_eq!(long.parse::<HostName>().unwrap().as_str().len(), 253);
    }

    #[test]
    fn what_could_leave_a_directory_is_refused() {
        let long = "a".repeat(254);
        for bad in [
            SERVER_NAME,
            "",
            ".",
            "..",
            "a/b",
            "../a",
            "a..b",
            "a\0b",
            "-a",
            "a-",
            "a b",
            "ä",
            "a_b",
            "a.",
            &long,
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_one_plain_path_component(text in "[-a-zA-Z0-9./\\\\_~]{0,12}") {
            if let Ok(name) = text.parse::<HostName>() {
                let mut components = Path::new(name.as_str()).components();
                prop_assert!(matches!(components.next(), Some(Component::Normal(_))));
                prop_assert_eq!(components.next(), None);
            }
        }
    }
}
