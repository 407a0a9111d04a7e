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
    /// The median of the rounds' ratios, which need not be the ratio of the medians.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    /// `fio` with huge-page buffers, or `engine`: our own.
    raw_by: &'static str,
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
    rounds: usize,
}

/// The stream and its yardstick, one right after the other.
struct Round {
    raw: f64,
    report: BenchReport,
}

/// What is measured on which devices.
struct Bench<'a> {
    devices: &'a [PathBuf],
    locks: &'a Path,
    options: BenchOptions,
    how: How,
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
    let bench = Bench {
        devices,
        locks: locks.path(),
        options,
        how,
    };
    let measured = bench.rounds(usize::from(args.rounds));
    let cleaned = clean(devices, &made);
    let (rounds, is_fio) = measured?;
    cleaned?;
    if !is_fio {
        context.output.note(
            "raw was measured by our own engine: fio with huge-page buffers can't run here \
             (is fio installed, and vm.nr_hugepages at least 32?)",
        );
    }
    let document = BenchDocument::new(&rounds, is_fio, &bench.how);
    context.output.result(&document, BenchDocument::text)?;
    Ok(Outcome::Done)
}

impl Bench<'_> {
    /// Measures in turns; says as well whether fio was the yardstick.
    fn rounds(&self, count: usize) -> Result<(Vec<Round>, bool)> {
        bench::prepare(self.devices, &self.options)
            .context("the bench failed")
            .advise("the devices are formatted for it: name blank ones, or use --force; --size 1G makes files")?;
        let window = self.options.window_bytes;
        let mut rounds = Vec::with_capacity(count);
        let is_fio = raw_by_fio(self.devices, &self.how, window)?.is_some();
        for _ in 0..count {
            let raw = if is_fio {
                raw_by_fio(self.devices, &self.how, window)?
                    .context("fio ran before, and now it can't")?
            } else {
                bench::raw(self.devices, &self.options).context("the bench failed")?
            };
            let report = self.stream().context("the bench failed")?;
            rounds.push(Round { raw, report });
        }
        Ok((rounds, is_fio))
    }

    fn stream(&self) -> Result<BenchReport> {
        let spawn = |errand: &Errand| {
            let errand = ChildErrand {
                devices: errand.devices.clone(),
                lock_dir: errand.lock_dir.clone(),
                port: errand.port,
                how: self.how.clone(),
            };
            Command::new(std::env::current_exe()?)
                .args(["bench", "socket-child"])
                .arg(serde_json::to_string(&errand)?)
                .stdin(Stdio::null())
                .spawn()
        };
        Ok(bench::run(self.devices, self.locks, &self.options, spawn)?)
    }
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

/// The value in the middle, or the mean of the two there.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        at(half)
    } else {
        f64::midpoint(at(half.saturating_sub(1)), at(half))
    }
}

impl BenchDocument {
    fn new(rounds: &[Round], is_fio: bool, how: &How) -> Self {
        let of = |fact: &dyn Fn(&Round) -> f64| median(rounds.iter().map(fact).collect());
        let ratio = |round: &Round| round.report.throughput_bytes_per_s / round.raw;
        let ratios = || rounds.iter().map(ratio);
        let engine = rounds.first().map(|round| round.report.engine);
        Self {
            throughput_bytes_per_s: of(&|round| round.report.throughput_bytes_per_s),
            raw_bytes_per_s: of(&|round| round.raw),
            ratio: of(&ratio),
            ratio_min: ratios().fold(f64::INFINITY, f64::min),
            ratio_max: ratios().fold(0.0, f64::max),
            raw_by: if is_fio { "fio" } else { "engine" },
            cpu_seconds_per_gib_sender: of(&|round| round.report.cpu_seconds_per_gib_sender),
            cpu_seconds_per_gib_receiver: of(&|round| round.report.cpu_seconds_per_gib_receiver),
            device_bytes_per_byte: of(&|round| round.report.device_bytes_per_byte),
            latency_us_p50: of(&|round| round.report.latency_us_p50),
            latency_us_p99: of(&|round| round.report.latency_us_p99),
            engine: match engine {
                Some(EngineKind::IoUring) => "io_uring",
                Some(EngineKind::ThreadPool) => "threads",
                None => "none",
            },
            sealed: how.sealed,
            frame_bytes: how.frame_bytes,
            depth: how.depth,
            seconds: how.seconds,
            rounds: rounds.len(),
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
             ratio       {:.2} ({:.2} to {:.2}; {} rounds of {} s each, medians)\n\
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
            self.ratio_min,
            self.ratio_max,
            self.rounds,
            self.seconds,
            self.cpu_seconds_per_gib_sender,
            self.cpu_seconds_per_gib_receiver,
            self.device_bytes_per_byte,
            self.latency_us_p50,
            self.latency_us_p99,
        )
    }
}
