//! Whole jobs over real stores.

mod jobs;
mod maintenance;
mod resume;
mod stock;
mod support;
