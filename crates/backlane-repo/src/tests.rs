//! Whole jobs over real stores.

mod compression;
mod jobs;
mod keys;
mod maintenance;
mod missing;
mod pipeline;
mod poisoned;
mod resume;
mod stock;
pub(crate) mod support;
