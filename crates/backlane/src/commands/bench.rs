//! `backlane bench socket`: a storage socket between two processes, beside the raw limit of its devices.
//!
//! The devices are formatted for it, and given back without a pool; files that were made for it are removed. Raw is
//! taken by fio with huge-page buffers where fio can run like that, since fio is nobody's friend here; otherwise by
//! our own engine, and the result says which it was.

use crate::{
    Context,
    cli::{BenchCommand, BenchSocketArgs, ChildArgs, EngineArg},
    failure::Advise,
    output::{Outcome, bytes},
};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use storage_socket::{
    EngineKind, FormatOptions,
    bench::{self, BenchOptions, BenchReport, Errand},
};

/// Beyond the fixed areas of a pool of a few slots.
const DATA_OFFSET: u64 = 2 << 20;

/// Runs a bench.
///
/// # Errors
/// When the devices can't be used.
pub(crate) fn run(command: &BenchCommand, context: &Context) -> Result<Outcome> {
    match command {
        BenchCommand::Socket(args) => socket(args, context),
        BenchCommand::SocketChild(args) => child(args),
    }
}

/// What the sending process is told.
#[derive(Debug, Serialize, Deserialize)]
struct ChildErrand {
    devices: Vec<PathBuf>,
    lock_dir: PathBuf,
    port: u16,
    how: How,
}

/// The figures of a bench that both processes must share.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct How {
    engine: EngineArg,
    sealed: bool,
    frame_bytes: usize,
    depth: usize,
    seconds: u64,
}

impl How {
    fn options(&self) -> BenchOptions {
        BenchOptions {
            engine: self.engine.into(),
            sealed: self.sealed,
            frame_bytes: self.frame_bytes,
            depth: self.depth,
            duration: Duration::from_secs(self.seconds),
            ..BenchOptions::new()
        }
    }
}

#[derive(Serialize)]
struct BenchDocument {
    throughput_bytes_per_s: f64,
    raw_bytes_per_s: f64,
    ratio: f64,
    /// `fio` with huge-page buffers, or `engine`: our own.
    raw_by: &'static str,
    raw_engine_bytes_per_s: f64,
    raw_fio_bytes_per_s: Option<f64>,
    cpu_seconds_per_gib_sender: f64,
    cpu_seconds_per_gib_receiver: f64,
    /// Read and written by both processes; two would be ideal.
    device_bytes_per_byte: f64,
    latency_us_p50: f64,
    latency_us_p99: f64,
    engine: &'static str,
    sealed: bool,
    frame_bytes: usize,
    depth: usize,
    seconds: u64,
}

fn socket(args: &BenchSocketArgs, context: &Context) -> Result<Outcome> {
    let how = How {
        engine: args.engine,
        sealed: !args.unsealed,
        frame_bytes: usize::try_from(args.frame)?,
        depth: usize::from(args.depth),
        seconds: args.seconds,
    };
    let mut options = how.options();
    options.format = FormatOptions {
        file_bytes: args.size,
        force: args.force,
        ..options.format
    };
    let devices = &args.devices.devices;
    let made: Vec<_> = devices.iter().filter(|path| !path.exists()).collect();
    let locks = tempfile::tempdir().context("cannot make a directory for locks")?;
    let measured = measure(devices, locks.path(), &options, &how);
    let fio = match &measured {
        Ok(_) => raw_by_fio(devices, &how, options.window_bytes),
        Err(_) => Ok(None),
    };
    let cleaned = clean(devices, &made);
    let (report, fio) = (measured?, fio?);
    cleaned?;
    if fio.is_none() {
        context.output.note(
            "raw was measured by our own engine: fio with huge-page buffers can't run here \
             (is fio installed, and vm.nr_hugepages at least 32?)",
        );
    }
    let document = BenchDocument::new(&report, fio, &how);
    context.output.result(&document, BenchDocument::text)?;
    Ok(Outcome::Done)
}

fn measure(
    devices: &[PathBuf],
    locks: &Path,
    options: &BenchOptions,
    how: &How,
) -> Result<BenchReport> {
    let spawn = |errand: &Errand| {
        let errand = ChildErrand {
            devices: errand.devices.clone(),
            lock_dir: errand.lock_dir.clone(),
            port: errand.port,
            how: how.clone(),
        };
        Command::new(std::env::current_exe()?)
            .args(["bench", "socket-child"])
            .arg(serde_json::to_string(&errand)?)
            .stdin(Stdio::null())
            .spawn()
    };
    bench::run(devices, locks, options, spawn)
        .context("the bench failed")
        .advise("the devices are formatted for it: name blank ones, or use --force; --size 1G makes files")
}

fn child(args: &ChildArgs) -> Result<Outcome> {
    let ChildErrand {
        devices,
        lock_dir,
        port,
        how,
    } = serde_json::from_str(&args.errand).context("this command is for the bench alone")?;
    let errand = Errand {
        devices,
        lock_dir,
        port,
    };
    bench::child(&errand, &how.options()).context("the sending process of the bench")?;
    Ok(Outcome::Done)
}

/// Takes the pool off the devices, and removes the files that were made.
fn clean(devices: &[PathBuf], made: &[&PathBuf]) -> Result<()> {
    if devices.iter().all(|path| made.contains(&path)) {
        for path in made.iter().filter(|path| path.exists()) {
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        return Ok(());
    }
    match storage_socket::destroy(devices, true) {
        Ok(_) | Err(storage_socket::Error::NotAPool { .. }) => Ok(()),
        Err(error) => Err(error).context("cannot take the bench's pool off the devices"),
    }
}

/// What fio reads and writes at once, half of the sum; `None` when it can't run with huge-page buffers.
fn raw_by_fio(devices: &[PathBuf], how: &How, window_bytes: u64) -> Result<Option<f64>> {
    let sizes = devices
        .iter()
        .map(|path| {
            Ok(std::fs::File::open(path)
                .and_then(|mut file| std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)))?)
        })
        .collect::<Result<Vec<u64>>>()?;
    let smallest = sizes.into_iter().min().unwrap_or(0);
    let window = window_bytes.min(smallest / 4);
    let mut names = OsString::new();
    for device in devices {
        if !names.is_empty() {
            names.push(":");
        }
        names.push(device);
    }
    let mut filename = OsString::from("--filename=");
    filename.push(names);
    let output = Command::new("fio")
        .args([
            "--output-format=json",
            "--direct=1",
            "--ioengine=io_uring",
            "--iomem=mmaphuge",
        ])
        .args([
            "--hugepage-size=2M",
            "--time_based=1",
            "--allow_file_create=0",
        ])
        .arg(format!("--runtime={}", how.seconds))
        .arg(format!("--bs={}", how.frame_bytes))
        .arg(format!("--iodepth={}", how.depth))
        .arg(format!("--size={window}"))
        .arg(&filename)
        .args(["--name=read", "--rw=read"])
        .arg(format!("--offset={DATA_OFFSET}"))
        .args(["--name=write", "--rw=write"])
        .arg(format!(
            "--offset={}",
            (smallest / 2).next_multiple_of(how.frame_bytes as u64)
        ))
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else {
        return Ok(None);
    };
    if !output.status.success() {
        return Ok(None);
    }
    let Ok(report) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        return Ok(None);
    };
    let bandwidth =
        |job: usize, direction: &str| report["jobs"][job][direction]["bw_bytes"].as_f64();
    match (bandwidth(0, "read"), bandwidth(1, "write")) {
        (Some(read), Some(written)) if read > 0.0 && written > 0.0 => {
            Ok(Some((read + written) / 2.0))
        }
        _ => bail!("fio ran, and its report says nothing of what it read and wrote"),
    }
}

impl BenchDocument {
    fn new(report: &BenchReport, fio: Option<f64>, how: &How) -> Self {
        let raw = fio.unwrap_or(report.raw_bytes_per_s);
        Self {
            throughput_bytes_per_s: report.throughput_bytes_per_s,
            raw_bytes_per_s: raw,
            ratio: report.throughput_bytes_per_s / raw,
            raw_by: if fio.is_some() { "fio" } else { "engine" },
            raw_engine_bytes_per_s: report.raw_bytes_per_s,
            raw_fio_bytes_per_s: fio,
            cpu_seconds_per_gib_sender: report.cpu_seconds_per_gib_sender,
            cpu_seconds_per_gib_receiver: report.cpu_seconds_per_gib_receiver,
            device_bytes_per_byte: report.device_bytes_per_byte,
            latency_us_p50: report.latency_us_p50,
            latency_us_p99: report.latency_us_p99,
            engine: match report.engine {
                EngineKind::IoUring => "io_uring",
                EngineKind::ThreadPool => "threads",
            },
            sealed: how.sealed,
            frame_bytes: how.frame_bytes,
            depth: how.depth,
            seconds: how.seconds,
        }
    }

    fn text(&self) -> String {
        let mib = |rate: f64| format!("{:.0} MiB/s", rate / f64::from(1 << 20));
        let seal = if self.sealed {
            "sealed"
        } else {
            "checksum only"
        };
        format!(
            "socket      {} ({seal}, frames of {}, depth {}, {})\n\
             raw         {} (reads and writes at once, half of the sum, by {})\n\
             ratio       {:.2}\n\
             CPU         {:.3} s/GiB sending, {:.3} s/GiB receiving\n\
             devices     {:.2} bytes for each (2 would be ideal)\n\
             latency     {:.0} µs median, {:.0} µs 99th percentile (4 KiB, one way)\n",
            mib(self.throughput_bytes_per_s),
            bytes(self.frame_bytes as u64),
            self.depth,
            self.engine,
            mib(self.raw_bytes_per_s),
            self.raw_by,
            self.ratio,
            self.cpu_seconds_per_gib_sender,
            self.cpu_seconds_per_gib_receiver,
            self.device_bytes_per_byte,
            self.latency_us_p50,
            self.latency_us_p99,
        )
    }
}
