//! `backlane bench socket`: storage sockets between two processes, beside what their devices and the network do.
//!
//! The devices are formatted for it, and given back without a pool; files that were made for it are removed. What a
//! machine can do changes from second to second, so every figure takes turns with its yardstick; ratios are medians of
//! neighbours. Raw is taken by fio with huge-page buffers where fio can run like that; otherwise by our own engine, and
//! the result says which it was.

mod crowd;
mod figure;
mod fio;
mod machine;
mod parts;
mod plot;
mod series;
mod tls;
mod units;

use crate::{
    Context,
    cli::{BenchCommand, BenchPart, BenchSocketArgs},
    failure::Advise,
    output::Outcome,
};
use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use figure::Figure;
use fio::{Fio, RawLatency, RawShape};
use machine::{DeviceFacts, Machine};
use serde::Serialize;
use series::{Distribution, FramePoint};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use storage_socket::{
    EngineKind, FormatOptions,
    bench::{self, BenchOptions, News, Pair, RawOptions},
    format,
};

/// Runs a bench.
///
/// # Errors
/// When the devices can't be used.
pub(crate) fn run(command: &BenchCommand, context: &Context) -> Result<Outcome> {
    match command {
        BenchCommand::Socket(args) => socket(args, context)?,
        BenchCommand::SocketChild => bench::child().context("the other process of the bench")?,
        BenchCommand::FleetChild => bench::fleet_child().context("members of the bench")?,
        BenchCommand::TlsChild => tls::child().context("the other process of the bench")?,
    }
    Ok(Outcome::Done)
}

/// A bench under way.
struct Bench<'a> {
    context: &'a Context,
    options: BenchOptions,
    facts: Vec<DeviceFacts>,
    slice: Duration,
    rounds: usize,
    fio: Option<Fio>,
    engine: Option<EngineKind>,
    figures: Vec<Figure>,
    frames: Vec<FramePoint>,
    latencies: Vec<Distribution>,
    /// A raw write and read of 4 KiB.
    raw_us: Option<f64>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct BenchDocument<'a> {
    machine: Machine,
    devices: &'a [DeviceFacts],
    engine: &'static str,
    /// `fio` with huge-page buffers, or `engine`: our own.
    raw_by: &'static str,
    rounds: usize,
    slice_seconds: f64,
    figures: &'a [Figure],
    /// Medians, for the plot.
    throughput_by_frame: &'a [FramePoint],
    /// Of all rounds, for the plot.
    latency: &'a [Distribution],
    /// The median of raw writes of 4 KiB, and that of reads, together; for the plot.
    raw_write_and_read_us: Option<f64>,
    notes: &'a [String],
}

fn socket(args: &BenchSocketArgs, context: &Context) -> Result<()> {
    let devices = &args.devices.devices;
    let made: Vec<_> = devices.iter().filter(|path| !path.exists()).collect();
    let locks = tempfile::tempdir().context("cannot make a directory for locks")?;
    if let Some(directory) = &args.plot {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut options = BenchOptions::new(devices.clone(), locks.path().to_owned());
    options.engine = args.engine.into();
    options.format = FormatOptions {
        file_bytes: args.size,
        force: args.force,
        ..options.format
    };
    let measured = measure(args, options, context);
    let cleaned = clean(devices, &made);
    let bench = measured?;
    cleaned?;
    bench.tell(args.plot.as_deref())
}

fn measure<'a>(
    args: &BenchSocketArgs,
    options: BenchOptions,
    context: &'a Context,
) -> Result<Bench<'a>> {
    let parts = if args.only.is_empty() {
        BenchPart::value_variants()
    } else {
        &args.only
    };
    let mut bench = Bench::prepare(args, options, context)?;
    for part in parts {
        context.check_cancelled()?;
        let name = part.to_possible_value();
        let name = name.as_ref().map_or("", |name| name.get_name());
        if context.output.shows_progress() {
            context.output.note(format!("measuring {name} …"));
        }
        match part {
            BenchPart::Throughput => parts::throughput(&mut bench),
            BenchPart::Cpu => parts::cpu(&mut bench),
            BenchPart::Latency => parts::latency(&mut bench),
            BenchPart::Idle => crowd::idle(&mut bench),
            BenchPart::Share => crowd::share(&mut bench),
            BenchPart::Memory => parts::memory(&mut bench),
            BenchPart::Stripe if bench.facts.len() < 2 => {
                bench.note("striping was not measured: it takes two devices or more");
                Ok(())
            }
            BenchPart::Stripe => parts::stripe(&mut bench),
            BenchPart::Frames => parts::frames(&mut bench),
        }
        .with_context(|| format!("measuring {name} failed"))?;
    }
    Ok(bench)
}

impl<'a> Bench<'a> {
    fn prepare(
        args: &BenchSocketArgs,
        options: BenchOptions,
        context: &'a Context,
    ) -> Result<Self> {
        let devices = &options.devices;
        format(devices, &options.format)
            .context("the bench failed")
            .advise("the devices are formatted for it: name blank ones, or use --force; --size 1G makes files")?;
        let facts = devices
            .iter()
            .map(|path| DeviceFacts::look(path))
            .collect::<std::io::Result<Vec<_>>>()?;
        let bytes = facts.iter().map(|facts| facts.bytes).min().unwrap_or(0);
        ensure!(
            bytes >= DEVICE_BYTES_MIN,
            "a device of the bench has {bytes} bytes, and it takes {DEVICE_BYTES_MIN}"
        );
        let mut bench = Self {
            context,
            facts,
            slice: args.slice,
            rounds: usize::from(args.rounds),
            fio: None,
            engine: None,
            figures: Vec::new(),
            frames: Vec::new(),
            latencies: Vec::new(),
            raw_us: None,
            notes: Vec::new(),
            options,
        };
        // Blocks that were never written are read from no medium.
        bench::fill(&bench.options.devices, &bench.raw_options(&FILLED))?;
        match Fio::find(&bench.options.devices, bytes, bench.slice) {
            Ok(fio) => bench.fio = Some(fio),
            Err(why) => bench.note(format!(
                "raw was measured by our own engine, and latency has no yardstick: {why}"
            )),
        }
        Ok(bench)
    }

    fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.context.output.note(&text);
        self.notes.push(text);
    }

    /// Two processes over the devices, which are formatted again.
    fn pair(&mut self, news: News) -> Result<Pair> {
        let pair = Pair::start(&self.options, news, &mut self.command("socket-child"))?;
        self.engine = Some(pair.engine());
        Ok(pair)
    }

    /// This program as another process of the bench.
    fn command(&self, name: &str) -> Command {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("backlane"));
        let mut command = Command::new(program);
        command.args(["bench", name]);
        command
    }

    fn raw_options(&self, shape: &RawShape) -> RawOptions {
        RawOptions {
            engine: self.options.engine,
            frame_bytes: shape.frame_bytes,
            depth: shape.depth * usize::try_from(shape.jobs).unwrap_or(1),
            window_bytes: shape.window_bytes,
            duration: self.slice,
        }
    }

    fn raw(&self, shape: &RawShape) -> Result<f64> {
        match &self.fio {
            Some(fio) => fio.raw(shape),
            None => Ok(bench::raw(&self.options.devices, &self.raw_options(shape))?),
        }
    }

    /// Raw of one of the devices.
    fn raw_of(&self, device: &PathBuf, shape: &RawShape) -> Result<f64> {
        match &self.fio {
            Some(fio) => fio.on(device).raw(shape),
            None => Ok(bench::raw(
                std::slice::from_ref(device),
                &self.raw_options(shape),
            )?),
        }
    }

    fn raw_latency(&self) -> Result<Option<RawLatency>> {
        self.fio.as_ref().map(Fio::latency).transpose()
    }

    fn raw_name(&self) -> &'static str {
        if self.has_fio() {
            "raw (fio)"
        } else {
            "raw (own engine)"
        }
    }

    fn has_fio(&self) -> bool {
        self.fio.is_some()
    }

    fn is_ram(&self) -> bool {
        self.facts.iter().all(|facts| facts.is_ram)
    }

    /// Messages of a round: about as many as fit into a slice.
    fn messages(&self) -> usize {
        usize::try_from(self.slice.as_millis())
            .unwrap_or(usize::MAX)
            .clamp(50, 5000)
    }

    fn tell(&self, plots: Option<&Path>) -> Result<()> {
        let document = BenchDocument {
            machine: Machine::look(),
            devices: &self.facts,
            engine: match self.engine {
                Some(EngineKind::IoUring) => "io_uring",
                Some(EngineKind::ThreadPool) => "threads",
                None => "unknown",
            },
            raw_by: if self.has_fio() { "fio" } else { "engine" },
            rounds: self.rounds,
            slice_seconds: self.slice.as_secs_f64(),
            figures: &self.figures,
            throughput_by_frame: &self.frames,
            latency: &self.latencies,
            raw_write_and_read_us: self.raw_us,
            notes: &self.notes,
        };
        if let Some(directory) = plots {
            let path = directory.join("bench.json");
            fs::write(&path, serde_json::to_vec_pretty(&document)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
            let kinds: Vec<_> = self.facts.iter().map(DeviceFacts::kind).collect();
            let devices = kinds.join(", ");
            if !self.frames.is_empty() {
                plot::frames(&directory.join("throughput.svg"), &self.frames, &devices)?;
            }
            if !self.latencies.is_empty() {
                plot::latency(
                    &directory.join("latency.svg"),
                    &self.latencies,
                    self.raw_us,
                    &devices,
                )?;
            }
        }
        self.context.output.result(&document, BenchDocument::text)
    }
}

impl BenchDocument<'_> {
    fn text(&self) -> String {
        let mut text = format!("machine  {}\n", self.machine.text());
        for device in self.devices {
            text.push_str(&format!("device   {}\n", device.text()));
        }
        text.push_str(&format!(
            "run      {} rounds of {} s, engine {}; medians, ratios of neighbours (least to greatest)\n\n",
            self.rounds, self.slice_seconds, self.engine
        ));
        text.push_str(&figure::text(self.figures));
        text
    }
}

/// Takes the pool off the devices, and removes the files that were made.
fn clean(devices: &[PathBuf], made: &[&PathBuf]) -> Result<()> {
    if devices.iter().all(|path| made.contains(&path)) {
        for path in made.iter().filter(|path| path.exists()) {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        return Ok(());
    }
    match storage_socket::destroy(devices, true) {
        Ok(_) | Err(storage_socket::Error::NotAPool { .. }) => Ok(()),
        Err(error) => Err(error).context("cannot take the bench's pool off the devices"),
    }
}

/// Raw reads and writes need room beside each other.
const DEVICE_BYTES_MIN: u64 = 256 << 20;

/// What is written once before anything is measured.
const FILLED: RawShape = RawShape {
    frame_bytes: 1 << 20,
    depth: 8,
    window_bytes: u64::MAX,
    jobs: 1,
};
