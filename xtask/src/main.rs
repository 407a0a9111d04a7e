//! Tasks of the Backlane developers.
fn main() {}
