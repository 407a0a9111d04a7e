//! Whole jobs over real stores.
