//! What the fuzz targets do with their input: plain functions, so that a test can call them as well.
//!
//! A tag stands before every parser of the pool, which no random input would ever pass: the targets put the right one in,
//! and try the bytes as they are besides.

pub mod blocks;
pub mod connection;
pub mod session;
