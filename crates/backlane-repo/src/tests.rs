//! Whole jobs over real stores.

mod jobs;
mod keys;
mod maintenance;
mod missing;
mod poisoned;
mod resume;
mod stock;
mod support;
