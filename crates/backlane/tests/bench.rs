//! `backlane bench socket` with its two processes and its yardsticks, for moments: that it prints, not what.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use serde_json::Value;
use std::{path::Path, process::Command};

fn bench(devices: &[&Path], slice: &str, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_backlane"))
        .args([
            "--json", "bench", "socket", "--size", "256M", "--rounds", "1",
        ])
        .args(["--slice", slice])
        .args(arguments)
        .args(devices)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Where direct I/O works, unlike in a tmpfs.
fn directory() -> tempfile::TempDir {
    let root = std::env::var_os("BACKLANE_E2E_DIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::tempdir_in(root).unwrap()
}

#[test]
fn bench_prints_parts_with_their_yardsticks_and_draws_them() {
    let directory = directory();
    let devices = [directory.path().join("one"), directory.path().join("two")];
    let plots = directory.path().join("plots");
    let document = bench(
        &[&devices[0], &devices[1]],
        "20ms",
        &[
            "--only",
            "cpu,latency,memory,stripe,frames",
            "--plot",
            plots.to_str().unwrap(),
        ],
    );
    assert_eq!(document["schema"], 1);
    let figures = document["figures"].as_array().unwrap();
    for part in ["cpu", "latency", "memory", "stripe", "frames"] {
        assert!(
            figures.iter().any(|figure| figure["part"] == part),
            "{part}"
        );
    }
    for figure in figures {
        assert!(figure["value"].is_number(), "{figure}");
        let is_compared = figure["yardstick"]["value"].is_number();
        assert_eq!(
            is_compared,
            figure["ratio"]["median"].is_number(),
            "{figure}"
        );
    }
    for name in ["throughput.svg", "latency.svg"] {
        let drawn = std::fs::read_to_string(plots.join(name)).unwrap();
        assert!(drawn.contains("</svg>"), "{name}");
    }
    let kept: Value =
        serde_json::from_slice(&std::fs::read(plots.join("bench.json")).unwrap()).unwrap();
    assert_eq!(kept["figures"], document["figures"]);
    // Files that were made for it are gone.
    assert!(devices.iter().all(|device| !device.exists()));
}

#[test]
fn bench_of_one_device_says_that_striping_takes_two() {
    let directory = directory();
    let device = directory.path().join("one");
    let document = bench(&[&device], "20ms", &["--only", "stripe"]);
    assert_eq!(document["figures"].as_array().unwrap().len(), 0);
    let notes = document["notes"].to_string();
    assert!(notes.contains("two devices"), "{notes}");
}

#[test]
fn a_slice_in_which_nothing_can_come_lasts_until_something_has() {
    let directory = directory();
    let device = directory.path().join("one");
    let document = bench(&[&device], "1us", &["--only", "cpu"]);
    let figures = document["figures"].as_array().unwrap();
    assert!(!figures.is_empty());
    for figure in figures {
        assert!(figure["value"].is_number(), "{figure}");
    }
}
