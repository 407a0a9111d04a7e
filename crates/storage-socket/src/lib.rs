//! Reliable, ordered, two-way byte streams through a block device that two hosts share.
