//! The fault matrix: every fault, at each moment of each job, under each policy, and what has to come of it.
//!
//! A cell is one system of its own, one job, and one fault in its middle. What has to come of it is computed by
//! [`expected`] alone, before anything runs; what came of it is measured from outside, or read in the job's own document
//! where nothing else knows it.

mod rule;
mod run;
mod table;

use std::fmt;

pub use rule::{Bounds, Expected, expected};
pub use run::{Ground, Seen, run};
pub use table::{Row, table};

use crate::fault::Fault;

/// One experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cell {
    /// What goes wrong.
    pub fault: Fault,
    /// For how long.
    pub span: Span,
    /// When.
    pub moment: Moment,
    /// In the middle of what.
    pub work: Work,
    /// Which routes the job may take.
    pub policy: Policy,
}

/// How long a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// A few seconds, or a moment.
    Passing,
    /// Until the job has ended.
    Lasting,
}

/// How much of the job is done when the fault begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// A twentieth.
    Early,
    /// Half.
    Middle,
    /// Nine tenths.
    Late,
}

/// A job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// Of a tree that the repository doesn't have.
    Backup,
    /// To an empty place.
    Restore,
}

/// A route policy, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// `prefer-storage`.
    Prefer,
    /// `require-storage`.
    Require,
    /// `storage-only`.
    Only,
}

impl Moment {
    /// Every one, in the order of time.
    pub const ALL: [Self; 3] = [Self::Early, Self::Middle, Self::Late];

    /// So many bytes of `all` are done.
    fn bytes(self, all: u64) -> u64 {
        match self {
            Self::Early => all / 20,
            Self::Middle => all / 2,
            Self::Late => all / 10 * 9,
        }
    }
}

impl Work {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Backup, Self::Restore];
}

impl Policy {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Prefer, Self::Require, Self::Only];
}

impl Cell {
    /// The whole matrix.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for fault in Fault::ALL {
            for work in Work::ALL {
                for policy in Policy::ALL {
                    for span in rule::spans(fault, policy) {
                        cells.extend(Moment::ALL.map(|moment| Self {
                            fault,
                            span: *span,
                            moment,
                            work,
                            policy,
                        }));
                    }
                }
            }
        }
        cells
    }

    /// So many different cells of the matrix, which follow from the seed.
    #[must_use]
    pub fn sample(seed: u64, count: usize) -> Vec<Self> {
        let mut random = fidelity::Random::new(seed);
        let mut cells = Self::all();
        cells.sort_by_cached_key(|_| random.next_u64());
        cells.truncate(count);
        cells
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fault,
            span,
            moment,
            work,
            policy,
        } = self;
        write!(f, "{fault}{span}, {moment} in a {work}, {policy}")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passing => "",
            Self::Lasting => " for good",
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Early => "early",
            Self::Middle => "middle",
            Self::Late => "late",
        })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefer => "prefer-storage",
            Self::Require => "require-storage",
            Self::Only => "storage-only",
        })
    }
}
