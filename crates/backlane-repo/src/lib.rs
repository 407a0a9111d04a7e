//! The repository: rustic_core behind one crate, and its backend over a blocking trait.

pub mod store;

pub use store::{ObjectStore, StoreError};
