//! Whole jobs over real stores.

mod jobs;
mod maintenance;
mod stock;
mod support;
