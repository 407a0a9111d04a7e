//! Each rule of the design's section on the medium, in virtual time, on machines that a test drives by hand.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, where a panic is the finding"
)]

mod bells;
mod bench;
mod claim;
mod connection;
mod found;
mod ghosts;
mod grants;
mod parted;
mod polling;
mod rivals;
mod slots;
mod stall;
mod trust;
