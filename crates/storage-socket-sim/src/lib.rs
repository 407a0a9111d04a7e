//! A seeded simulator for storage sockets: faulty devices, crashes, checkers.
//!
//! One seed gives one run, for ever: the scenario and every choice within it follow from it. First a time of faults, in
//! which nothing wrong may happen; then a time without, in which everything has to finish.

pub mod device;
pub mod host;
pub mod rng;
pub mod scenario;
pub mod stream;
pub mod world;

pub use scenario::Scenario;
pub use world::{Report, World};

/// Runs the scenario of a seed.
///
/// # Errors
/// The broken promise and the last things that happened before it, with the seed.
pub fn run(seed: u64) -> Result<Report, String> {
    run_scenario(seed, Scenario::from_seed(seed))
}

/// Runs a scenario with a seed for its choices.
///
/// # Errors
/// As [`run`].
pub fn run_scenario(seed: u64, scenario: Scenario) -> Result<Report, String> {
    let mut world = World::new(seed, scenario);
    match world.run() {
        Ok(()) => Ok(world.report),
        Err(what) => Err(failure(seed, &world, &what)),
    }
}

/// What is printed of a run that failed: enough to run it again.
#[must_use]
pub fn failure(seed: u64, world: &World, what: &str) -> String {
    let trace: Vec<&str> = world.trace.iter().map(String::as_str).collect();
    format!(
        "seed {seed} at {}: {what}\n{}\n{:?}\nreplay: storage-socket-sim --seed {seed} --seeds 1",
        world.now,
        trace.join("\n"),
        world.scenario
    )
}
