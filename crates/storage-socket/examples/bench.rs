//! Measures a storage socket on devices that may be overwritten: `bench DEVICE…`, with `SIZE_MIB` for files.

use std::{env, path::PathBuf, process::Command};
use storage_socket::bench::{BenchOptions, Errand, child, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = BenchOptions::new();
    options.format.force = true;
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    options.format.file_bytes = number("SIZE_MIB").map(|size| size << 20);
    options.sealed = number("CHECKSUM").is_none();
    if number("THREADS").is_some() {
        options.engine = storage_socket::EngineChoice::ThreadPool;
    }
    if let Some(window) = number("WINDOW_MIB") {
        options.window_bytes = window << 20;
    }
    if let Some(depth) = number("DEPTH") {
        options.depth = usize::try_from(depth)?;
    }
    let lock_dir = env::temp_dir().join("storage-socket-bench");
    let devices: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    if let Some(port) = number("BENCH_PORT") {
        let port = u16::try_from(port)?;
        let errand = Errand {
            devices,
            lock_dir,
            port,
        };
        return Ok(child(&errand, &options)?);
    }
    let report = run(&devices, &lock_dir, &options, |errand| {
        Command::new(env::current_exe()?)
            .args(&errand.devices)
            .env("BENCH_PORT", errand.port.to_string())
            .spawn()
    })?;
    println!("{report:#?} ratio {:.2}", report.ratio());
    Ok(())
}
