//! Every figure of docs/performance.md about storage sockets, in one run: on a file, a loop device, a loop device in
//! memory, and a pair of devices of which one is slow.
//!
//! Needs root. Whatever is made for it (files, loop devices, a tmpfs, a FUSE export, huge pages) is taken away again.

use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Where documents and plots go, in a directory for each device.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Where files are made that stand in for devices; it must be on a file system that takes direct I/O.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Measure on these alone [default: all of them].
    #[arg(long, value_delimiter = ',')]
    on: Vec<String>,
    /// Use this binary instead of building one.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Given to `backlane bench socket`.
    #[arg(last = true)]
    rest: Vec<String>,
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
const HUGE_PAGES_WANTED: u64 = 128;
const DEVICE_BYTES: u64 = 1 << 30;
/// Bits a second of the slow device, in each direction.
const SLOW_RATE: &str = "2400M";
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the bench on each kind of device.
///
/// # Errors
/// When a device can't be made, or the bench fails.
pub(crate) fn run(root: &Path, args: &BenchArgs) -> Result<ExitCode> {
    let bin = match &args.bin {
        Some(bin) => bin.clone(),
        None => build(root)?,
    };
    let _pages = HugePages::reserve()?;
    let work = args
        .dir
        .join(format!("backlane-bench-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let mut undo = Undo::default();
    undo.remove(&work);
    for kind in ["file", "loop", "ram", "stripe"] {
        if !args.on.is_empty() && !args.on.iter().any(|on| on == kind) {
            continue;
        }
        println!("== {kind}");
        let mut made = Undo::default();
        let devices = match kind {
            "file" => vec![image(&work, "file.img")?],
            "loop" => vec![made.loop_over(&image(&work, "loop.img")?)?],
            "ram" => vec![made.ram(&work)?],
            _ => {
                let fast = made.loop_over(&image(&work, "fast.img")?)?;
                vec![fast, made.slow(&work)?]
            }
        };
        let mut command = Command::new(&bin);
        command.args(["bench", "socket", "--force", "--plot"]);
        command.arg(args.out.join(kind)).args(&devices);
        if kind == "stripe" {
            command.args(["--only", "stripe"]);
        }
        must(command.args(&args.rest))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn build(root: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    let arguments = ["build", "--release", "--locked", "--package", "backlane"];
    must(cargo.args(arguments).current_dir(root))?;
    Ok(root.join("target/release/backlane"))
}

/// A file whose blocks are there.
fn image(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    let mut command = Command::new("fallocate");
    must(
        command
            .arg("--length")
            .arg(DEVICE_BYTES.to_string())
            .arg(&path),
    )?;
    Ok(path)
}

fn must(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// What has to be taken away again, the last first.
#[derive(Default)]
struct Undo {
    commands: Vec<Command>,
    children: Vec<Child>,
}

impl Undo {
    fn by(&mut self, program: &str, argument: &str, path: &Path) {
        let mut command = Command::new(program);
        command.arg(argument).arg(path);
        self.commands.push(command);
    }

    fn remove(&mut self, path: &Path) {
        self.by("rm", "-rf", path);
    }

    fn loop_over(&mut self, path: &Path) -> Result<PathBuf> {
        let mut command = Command::new("losetup");
        command
            .args(["--direct-io=on", "--find", "--show"])
            .arg(path);
        let output = command.output().context("cannot start losetup")?;
        ensure!(
            output.status.success(),
            "losetup over {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let device = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        self.by("losetup", "--detach", &device);
        Ok(device)
    }

    fn ram(&mut self, work: &Path) -> Result<PathBuf> {
        let mount = work.join("ram");
        fs::create_dir_all(&mount)?;
        let mut command = Command::new("mount");
        must(
            command
                .args(["-t", "tmpfs", "-o", "size=2G", "tmpfs"])
                .arg(&mount),
        )?;
        self.by("umount", "--lazy", &mount);
        self.loop_over(&image(&mount, "ram.img")?)
    }

    /// A device of a bounded rate: a file, served by nbdkit with its rate filter, as a file of FUSE, as a loop device.
    fn slow(&mut self, work: &Path) -> Result<PathBuf> {
        let behind = image(work, "slow.img")?;
        let (socket, export) = (work.join("nbd.sock"), work.join("slow"));
        fs::write(&export, [])?;
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["--foreground", "--unix"]).arg(&socket);
        nbdkit.args(["--filter=rate", "file"]).arg(&behind);
        self.start(nbdkit.arg(format!("rate={SLOW_RATE}")))?;
        wait_for("nbdkit's socket", || socket.exists())?;
        let mut storage = Command::new("qemu-storage-daemon");
        storage.arg("--blockdev").arg(format!(
            "driver=nbd,node-name=slow,server.type=unix,server.path={}",
            socket.display()
        ));
        self.start(storage.arg("--export").arg(format!(
            "type=fuse,id=slow,node-name=slow,mountpoint={},writable=on",
            export.display()
        )))?;
        let is_there = || fs::metadata(&export).is_ok_and(|export| export.len() == DEVICE_BYTES);
        wait_for("the FUSE export", is_there)?;
        self.loop_over(&export)
    }

    fn start(&mut self, command: &mut Command) -> Result<()> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        self.children.push(child);
        Ok(())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for mut command in self.commands.drain(..).rev() {
            if let Err(error) = must(&mut command) {
                eprintln!("left behind: {error:#}");
            }
        }
        for mut child in self.children.drain(..).rev() {
            // Asked, not killed: the export has to be unmounted.
            let mut command = Command::new("kill");
            if let Err(error) = must(command.arg(child.id().to_string())) {
                eprintln!("left behind: {error:#}");
            }
            let _ended = child.wait();
        }
    }
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_there() {
        ensure!(start.elapsed() < PATIENCE, "{what} does not appear");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Huge pages for fio's buffers, as many as there were before when it is dropped.
struct HugePages {
    before: String,
}

impl HugePages {
    fn reserve() -> Result<Self> {
        let before = fs::read_to_string(HUGE_PAGES).context("cannot read the huge pages")?;
        if before.trim().parse().unwrap_or(0) < HUGE_PAGES_WANTED {
            fs::write(HUGE_PAGES, HUGE_PAGES_WANTED.to_string())
                .context("cannot reserve huge pages: this needs root")?;
        }
        Ok(Self { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _refused = fs::write(HUGE_PAGES, self.before.trim());
    }
}
