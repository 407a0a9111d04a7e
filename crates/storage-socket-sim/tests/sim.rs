//! Seeds of the simulator. `SIM_SEED=N SIM_SEEDS=M` picks others; `cargo xtask sim` runs many.

use storage_socket_sim::{
    Run, Scenario,
    coverage::{Fault, Transition},
    run, run_scenario,
};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn passed(run: &Run, transition: Transition) -> u64 {
    run.hit.transitions.0[transition.index()]
}

#[test]
fn a_calm_run_delivers_everything_without_a_resend() {
    let Run { report, hit } = run_scenario(1, Scenario::calm()).unwrap();
    assert!(report.finished >= 1, "{report:?}");
    assert!(report.frames > 40, "{report:?}");
    assert_eq!((report.resends, report.damaged), (0, 0), "{report:?}");
    assert!(
        report.reset.is_empty() && report.refused.is_empty(),
        "{report:?}"
    );
    let faults = Fault::ALL.iter().filter(|fault| **fault != Fault::AnyOrder);
    for fault in faults {
        assert_eq!(hit.faults.0[fault.index()], 0, "{}", fault.name());
    }
}

#[test]
fn every_ring_is_wrapped_three_times_at_both_ends() {
    let run = run_scenario(1, Scenario::calm()).unwrap();
    let finished = run.report.finished;
    assert_eq!(passed(&run, Transition::RingWrapped), 2 * finished);
}

#[test]
fn seeds_keep_every_promise() {
    let first = number("SIM_SEED", 0);
    for seed in first..first + number("SIM_SEEDS", 120) {
        if let Err(broken) = run(seed) {
            panic!("seed {seed}: {broken}; replay: cargo xtask sim --seed {seed} --seeds 1");
        }
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 17, 40] {
        assert_eq!(run(seed), run(seed));
    }
}

#[test]
fn two_hundred_and_fifty_six_members_get_their_streams() {
    let run = run_scenario(5, Scenario::crowd(256)).unwrap();
    assert!(run.report.finished >= 256, "{:?}", run.report);
    assert!(run.report.reset.is_empty(), "{:?}", run.report);
    assert!(passed(&run, Transition::RingWrapped) >= 512);
}
