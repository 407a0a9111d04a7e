//! Versions of the session protocol and the features beside them.

use std::fmt;

/// A version of the session protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

/// The versions that a side speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub oldest: Version,
    /// The newest.
    pub newest: Version,
}

/// Optional abilities, one bit each; a session has those that both sides name. None is defined yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features(pub u64);

/// Two sides speak no version in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no common protocol version: one side speaks {ours}, the other {theirs}")]
pub struct NoCommonVersion {
    /// What the side that found it speaks.
    pub ours: VersionRange,
    /// What the other side speaks.
    pub theirs: VersionRange,
}

impl VersionRange {
    /// What this code speaks.
    pub const SPOKEN: Self = Self {
        oldest: Version(1),
        newest: Version(1),
    };

    /// The newest version that both speak.
    ///
    /// # Errors
    /// When there is none.
    pub fn common(self, theirs: Self) -> Result<Version, NoCommonVersion> {
        let newest = self.newest.min(theirs.newest);
        if newest < self.oldest || newest < theirs.oldest {
            return Err(NoCommonVersion { ours: self, theirs });
        }
        Ok(newest)
    }

    /// Whether a version is one of these.
    #[must_use]
    pub fn contains(self, version: Version) -> bool {
        self.oldest <= version && version <= self.newest
    }
}

impl Features {
    /// What both have.
    #[must_use]
    pub const fn common(self, theirs: Self) -> Self {
        Self(self.0 & theirs.0)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.newest.0)
        } else {
            write!(f, "versions {} to {}", self.oldest.0, self.newest.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(oldest: u32, newest: u32) -> VersionRange {
        VersionRange {
            oldest: Version(oldest),
            newest: Version(newest),
        }
    }

    proptest! {
        #[test]
        fn the_newest_common_version_is_chosen(a in 0..6_u32, b in 0..6_u32, c in 0..6_u32, d in 0..6_u32) {
            let (ours, theirs) = (range(a, b), range(c, d));
            let best = (0..6).rev().map(Version).find(|v| ours.contains(*v) && theirs.contains(*v));
            prop_assert_eq!(ours.common(theirs).ok(), best);
        }
    }
}
