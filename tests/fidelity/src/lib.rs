//! Trees that are hard to back up, and a witness that compares two of them.
//!
//! [`make_tree`] builds, from a seed, a directory with everything that a file system can hold and a backup can lose;
//! [`compare`] says in what two directories differ. Neither shares a line with the programs that they test: the
//! witness must not be wrong in the same way as what it watches. Both work by open directory handles, so paths longer
//! than `PATH_MAX` are as good as any.
//!
//! Left to others: what the two trees are compared for. A caller that accepts a kind of [`Difference`] filters it out
//! by name, and says why.

mod compare;
mod handle;
mod make;
mod random;
mod tree;

pub use compare::{Difference, Kind, compare};
pub use random::Random;
pub use tree::{Made, TreeOptions, make_tree};
