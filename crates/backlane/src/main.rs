//! LAN-free backup and restore through a block device that both hosts share.
fn main() {}
