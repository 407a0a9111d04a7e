//! Every figure of docs/performance.md about storage sockets, in one run: on a file, a loop device, a loop device in
//! memory, and a pair of devices of which one is slow.
//!
//! Needs root. Whatever is made for it (files, loop devices, a tmpfs, a control group, huge pages) is taken away again.

use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Where tables, documents and plots go, in a directory for each device.
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
/// Bytes a second that the slow device reads, and writes.
const SLOW_RATE: u64 = 300 << 20;

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
                let slow = made.loop_over(&image(&work, "slow.img")?)?;
                made.throttle(&slow)?;
                vec![fast, slow]
            }
        };
        let mut command = Command::new(&bin);
        command.args(["bench", "socket", "--force", "--plot"]);
        command.arg(args.out.join(kind)).args(&devices);
        if kind == "stripe" {
            command.args(["--only", "stripe"]);
        }
        let output = command.args(&args.rest).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("cannot start {}", bin.display()))?;
        ensure!(
            output.status.success(),
            "the bench on {kind}: {}",
            output.status
        );
        print!("{}", String::from_utf8_lossy(&output.stdout));
        fs::write(args.out.join(kind).join("bench.txt"), &output.stdout)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the binary that is measured.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
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

/// Runs a command, which has to succeed.
pub(crate) fn must(command: &mut Command) -> Result<()> {
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
    /// Control groups, and where their processes go.
    groups: Vec<(PathBuf, PathBuf)>,
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

    /// Bounds what this process and its children read from and write to a device, by a control group of either version.
    fn throttle(&mut self, device: &Path) -> Result<()> {
        let name = device.file_name().context("a device has a name")?;
        let number = Path::new("/sys/block").join(name).join("dev");
        let number = fs::read_to_string(&number).context("cannot read the device's number")?;
        let number = number.trim();
        let name = format!("backlane-bench-{}", std::process::id());
        let of_version_1 = Path::new("/sys/fs/cgroup/blkio");
        let (root, limits) = if of_version_1.exists() {
            let limit = format!("{number} {SLOW_RATE}");
            let files = ["read", "write"].map(|what| format!("blkio.throttle.{what}_bps_device"));
            (
                of_version_1,
                files.map(|file| (file, limit.clone())).to_vec(),
            )
        } else {
            let root = Path::new("/sys/fs/cgroup");
            fs::write(root.join("cgroup.subtree_control"), "+io")
                .context("cannot have control groups bound I/O")?;
            let limit = format!("{number} rbps={SLOW_RATE} wbps={SLOW_RATE}");
            (root, vec![("io.max".to_owned(), limit)])
        };
        let group = root.join(name);
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        self.groups.push((group.clone(), root.join("cgroup.procs")));
        for (file, limit) in limits {
            fs::write(group.join(file), limit).context("cannot bound the slow device")?;
        }
        let process = std::process::id().to_string();
        fs::write(group.join("cgroup.procs"), process).context("cannot join a control group")
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for mut command in self.commands.drain(..).rev() {
            if let Err(error) = must(&mut command) {
                eprintln!("left behind: {error:#}");
            }
        }
        for (group, processes) in self.groups.drain(..) {
            let left = fs::write(processes, std::process::id().to_string());
            if let Err(error) = left.and_then(|()| fs::remove_dir(&group)) {
                eprintln!("left behind: {}: {error}", group.display());
            }
        }
    }
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
