//! What gets backed up and restored besides plain files.
//!
//! Each module knows one program's data: how to have it stand still, which of its files belong into a backup and how to
//! tell that they are right, and what brings them back to life. What this leaves to others: reading and storing files.

pub mod mariadb;
pub mod postgres;
