//! A seeded simulator for storage sockets: faulty devices, rough hosts, checkers.
//!
//! One seed gives one run, for ever: the scenario and every choice within it follow from it. First a time of faults, in
//! which nothing wrong may happen; then a time without, in which everything has to finish. `docs/simulation.md` tells
//! what is simulated and what is checked.

pub mod broken;
mod clock;
pub mod coverage;
pub mod device;
mod endpoint;
pub mod fleet;
mod host;
mod pairs;
pub mod report;
pub mod rng;
pub mod scenario;
pub mod shrink;
pub mod stream;
mod world;

pub use broken::{Broken, Promise};
pub use coverage::Coverage;
pub use report::Report;
pub use scenario::Scenario;
pub use world::World;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a run came to, and what it hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// What was counted.
    pub report: Report,
    /// What was hit.
    pub hit: Coverage,
}

/// Runs the scenario of a seed.
///
/// # Errors
/// The broken promise.
pub fn run(seed: u64) -> Result<Run, Broken> {
    run_scenario(seed, Scenario::from_seed(seed))
}

/// Runs a scenario with a seed for its choices.
///
/// # Errors
/// The broken promise.
pub fn run_scenario(seed: u64, scenario: Scenario) -> Result<Run, Broken> {
    run_world(&mut World::new(seed, scenario))
}

/// Runs a world to its end.
///
/// # Errors
/// The broken promise; a panic of a machine is one.
pub fn run_world(world: &mut World) -> Result<Run, Broken> {
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    ended.unwrap_or_else(|_| Err(Promise::NoPanic.broken("a machine panicked")))?;
    Ok(Run {
        report: world.report.clone(),
        hit: world.hit.clone(),
    })
}
