//! Whole jobs over real stores.

mod jobs;
mod keys;
mod maintenance;
mod missing;
mod resume;
mod stock;
mod support;
