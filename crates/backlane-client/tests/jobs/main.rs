//! Whole jobs on real directories.

#[cfg(test)]
mod damage;
#[cfg(test)]
mod fidelity;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod mounts;
#[cfg(test)]
mod postgres;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod sqlite;
#[cfg(test)]
mod support;
