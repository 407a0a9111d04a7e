//! Each rule of the design's section on the medium, in virtual time, on machines that a test drives by hand.

mod bench;
mod claim;
mod connection;
mod grants;
mod slots;
