//! Which route the bulk takes: what the program says is compared with what the kernel counted.

use anyhow::{Context, Result};
use backlane_e2e::{Job, Sector, Setup, System, Wire, plant, ready, same};

const MIB: u64 = 1 << 20;

/// What control and events may cost at the start and the end of a session, however little the job moves.
const CONTROL_BYTES_MAX: u64 = 256 << 10;

#[test]
fn wire_carries_less_than_two_percent_of_what_storage_carries() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (source, target) = (system.path("source"), system.path("target"));
    plant(&source, 192 * MIB, 1)?;
    for job in ["backup", "restore"] {
        let done = match job {
            "backup" => system.backup(&client, &source, &["--route", "prefer-storage"])?,
            _ => system.restore(&client, &source, &target, &["--route", "prefer-storage"])?,
        }
        .success()?;
        let storage = done.number("bytes_storage")?;
        assert!(storage > 192 * MIB * 99 / 100, "{}", done.ended);
        // Written by one side and read by the other.
        assert!(
            done.device_bytes > 2 * storage,
            "{} of {storage}",
            done.device_bytes
        );
        assert!(
            done.wire_bytes * 50 < storage,
            "{} on the wire, {storage} by storage",
            done.wire_bytes
        );
        assert_reasons_add_up(&done)?;
        report(job, Wire::GIGABIT, &done)?;
    }
    same(&source, &target)
}

#[test]
fn jobs_are_far_faster_than_the_wire_could_carry_them() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    for sector in [Sector::B512, Sector::B4096] {
        let setup = Setup {
            wire: Wire::SLOW,
            sector,
            ..Setup::default()
        };
        let system = System::new(&setup)?;
        let client = system.client("alpha")?;
        let (source, target) = (system.path("source"), system.path("target"));
        plant(&source, 128 * MIB, 2)?;
        let backup = system
            .backup(&client, &source, &["--route", "require-storage"])?
            .success()?;
        let restore = system
            .restore(&client, &source, &target, &["--route", "require-storage"])?
            .success()?;
        for (job, done) in [("backup", backup), ("restore", restore)] {
            let ratio = report(job, Wire::SLOW, &done)?;
            assert!(
                ratio > 2.0,
                "the bulk can't have taken another way than the wire: {ratio}"
            );
            assert_eq!(done.number("bytes_network")?, 0);
        }
        same(&source, &target)?;
    }
    Ok(())
}

#[test]
fn network_policy_keeps_to_the_wire_and_needs_no_pool() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let token = system.token("alpha", &[])?;
    let (client, joined) = system.join("alpha", &token, None)?;
    joined.success()?;
    let (source, target) = (system.path("source"), system.path("target"));
    plant(&source, 32 * MIB, 3)?;
    let backup = system
        .backup(&client, &source, &["--route", "network"])?
        .success()?;
    let restore = system
        .restore(&client, &source, &target, &["--route", "network"])?
        .success()?;
    for (job, done) in [("backup", backup), ("restore", restore)] {
        assert!(done.wire_bytes > 32 * MIB, "{}", done.wire_bytes);
        assert_eq!(done.number("bytes_storage")?, 0);
        assert_reasons_add_up(&done)?;
        report(job, Wire::GIGABIT, &done)?;
    }
    same(&source, &target)
}

#[test]
fn prefer_storage_without_a_pool_takes_the_wire_and_says_why() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    system.device.detach_client()?;
    let (source, target) = (system.path("source"), system.path("target"));
    plant(&source, 16 * MIB, 4)?;
    let backup = system
        .backup(&client, &source, &["--route", "prefer-storage"])?
        .success()?;
    assert_reasons_add_up(&backup)?;
    assert!(
        backup.number("bytes_network")? > 16 * MIB * 99 / 100,
        "{}",
        backup.ended
    );
    system.restore(&client, &source, &target, &[])?.success()?;
    same(&source, &target)
}

#[test]
fn require_storage_without_a_pool_fails_and_puts_no_body_on_the_wire() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (source, target) = (system.path("source"), system.path("target"));
    plant(&source, 16 * MIB, 5)?;
    system
        .backup(&client, &source, &["--route", "require-storage"])?
        .success()?;
    system.device.detach_client()?;
    plant(&source, 16 * MIB, 6)?;
    let backup = system.backup(&client, &source, &["--route", "require-storage"])?;
    let restore = system.restore(&client, &source, &target, &["--route", "require-storage"])?;
    for refused in [backup, restore] {
        assert_eq!(refused.ended.code(), 1, "{}", refused.ended);
        let device = system.device.at_client.display().to_string();
        assert!(
            refused.ended.text().contains(&device),
            "{} does not name {device}",
            refused.ended
        );
        assert!(
            refused.wire_bytes < CONTROL_BYTES_MAX,
            "{} on the wire",
            refused.wire_bytes
        );
    }
    Ok(())
}

/// Every byte of a body that took the network has a reason, by the job's own document.
fn assert_reasons_add_up(job: &Job) -> Result<()> {
    let document = job.ended.json()?;
    let reasons = document["network_reasons"]
        .as_array()
        .context("no network_reasons")?;
    for count in ["bytes", "objects"] {
        let sum: u64 = reasons
            .iter()
            .filter_map(|reason| reason[count].as_u64())
            .sum();
        assert_eq!(sum, job.number(&format!("{count}_network"))?, "{document}");
    }
    Ok(())
}

/// Prints a job's throughput, and returns it as a multiple of what the wire can carry.
fn report(job: &str, wire: Wire, done: &Job) -> Result<f64> {
    let bytes = done.number("bytes_storage")? + done.number("bytes_network")?;
    let rate = bytes as f64 / done.ended.elapsed.as_secs_f64();
    let ratio = rate / wire.bytes_per_second().context("the wire is limited")? as f64;
    println!(
        "{job}: {:.1} MB/s, {ratio:.2} times what the wire carries; {} bytes on the wire, {} on the disk",
        rate / 1e6,
        done.wire_bytes,
        done.device_bytes,
    );
    Ok(ratio)
}
