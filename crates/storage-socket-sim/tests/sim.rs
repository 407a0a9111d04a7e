//! Seeds of the simulator. `SIM_SEED=N SIM_SEEDS=M` picks others.

use storage_socket_sim::{Scenario, World, run, run_scenario};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

#[test]
fn a_calm_run_delivers_everything_without_a_resend() {
    let report = run_scenario(1, Scenario::calm()).unwrap();
    assert_eq!(report.finished, 1);
    assert!(report.frames > 40, "{report:?}");
    assert_eq!((report.resends, report.damaged), (0, 0), "{report:?}");
    assert!(
        report.reset.is_empty() && report.refused.is_empty(),
        "{report:?}"
    );
}

#[test]
fn seeds_keep_every_promise() {
    let first = number("SIM_SEED", 0);
    for seed in first..first + number("SIM_SEEDS", 120) {
        if let Err(what) = run(seed) {
            panic!("{what}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 17] {
        let again = || {
            let mut world = World::new(seed, Scenario::from_seed(seed));
            world.run().map(|()| world.report)
        };
        assert_eq!(again(), again());
    }
}
