//! The whole size: a file of 5 GiB and 100,000 small ones. Takes minutes and 20 GiB of disk, so it runs only where
//! `BACKLANE_E2E_FULL=1` is set (CONTRIBUTING.md tells when to do that).

use anyhow::{Result, ensure};
use backlane_e2e::{Setup, System, ready, same};
use fidelity::{TreeOptions, make_tree};

/// What a client may hold at most, for 100,000 files.
const CLIENT_BYTES_MAX: u64 = 400 << 20;

#[test]
fn whole_size_comes_back_within_the_memory_that_a_client_may_take() -> Result<()> {
    if std::env::var_os("BACKLANE_E2E_FULL").is_none() {
        eprintln!("******** SKIPPED: BACKLANE_E2E_FULL is not set ********");
        return Ok(());
    }
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup {
        pool_bytes: 1 << 30,
        ..Setup::default()
    })?;
    let client = system.client("alpha")?;
    let (source, target) = (system.path("source"), system.path("target"));
    std::fs::create_dir(&source)?;
    let options = TreeOptions {
        xattr_names_not_utf8: true,
        written_zeros: true,
        ..TreeOptions::full()
    };
    let left_out = make_tree(&source, &options)?.left_out;
    ensure!(
        left_out.is_empty(),
        "this file system can't hold it all: {left_out:?}"
    );
    let backup = system.backup(&client, &source, &[])?.success()?;
    let again = system.backup(&client, &source, &[])?.success()?;
    let restore = system.restore(&client, &source, &target, &[])?.success()?;
    for (name, job) in [
        ("backup", &backup),
        ("second backup", &again),
        ("restore", &restore),
    ] {
        let memory = job.ended.peak_memory_bytes;
        println!(
            "{name}: {:.1?}, {} MiB of memory",
            job.ended.elapsed,
            memory >> 20
        );
        assert!(
            memory < CLIENT_BYTES_MAX,
            "{name} took {memory} bytes of memory"
        );
    }
    same(&source, &target)
}
