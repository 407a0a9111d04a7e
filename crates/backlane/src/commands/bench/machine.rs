//! On what a bench ran: figures say nothing without it.

use rustix::fs::{major, minor, statfs};
use serde::Serialize;
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// The machine.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
}

/// A device.
#[derive(Debug, Serialize)]
pub(super) struct DeviceFacts {
    path: PathBuf,
    pub(super) bytes: u64,
    /// `file on ext4`, say.
    kind: String,
    /// Whether its blocks are in memory.
    pub(super) is_ram: bool,
}

impl Machine {
    pub(super) fn look() -> Self {
        let value = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key).map(str::to_owned));
            line.unwrap_or_default()
                .trim_matches([' ', '\t', ':'])
                .to_owned()
        };
        let memory = value("/proc/meminfo", "MemTotal");
        let kibibytes = memory.trim_end_matches(" kB").parse().unwrap_or(0_u64);
        Self {
            cpu: value("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kibibytes * 1024,
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        }
    }

    pub(super) fn text(&self) -> String {
        let memory = crate::output::bytes(self.memory_bytes);
        format!(
            "{}, {} cores, {memory}, Linux {}",
            self.cpu, self.cores, self.kernel
        )
    }
}

impl DeviceFacts {
    pub(super) fn look(path: &Path) -> std::io::Result<Self> {
        let mut file = fs::File::open(path)?;
        let bytes = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
        let metadata = file.metadata()?;
        let (kind, is_ram) = if metadata.file_type().is_block_device() {
            block_device(metadata.rdev())
        } else {
            let system = file_system(path);
            (format!("file on {system}"), system == "tmpfs")
        };
        Ok(Self {
            path: path.to_owned(),
            bytes,
            kind,
            is_ram,
        })
    }

    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    pub(super) fn text(&self) -> String {
        let size = crate::output::bytes(self.bytes);
        format!("{}: {}, {size}", self.path.display(), self.kind)
    }
}

fn block_device(number: u64) -> (String, bool) {
    let node = PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        major(number),
        minor(number)
    ));
    let read = |name: &str| {
        let text = fs::read_to_string(node.join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    if let Some(behind) = read("loop/backing_file") {
        let system = file_system(Path::new(&behind));
        let direct = if read("loop/dio").as_deref() == Some("1") {
            "on"
        } else {
            "off"
        };
        let kind = format!("loop device over a file on {system}, direct I/O {direct}");
        return (kind, system == "tmpfs");
    }
    let name = fs::read_link(&node).ok().and_then(|link| {
        let name = link.file_name()?;
        Some(name.to_string_lossy().into_owned())
    });
    let name = name.unwrap_or_default();
    let is_ram = ["ram", "zram", "pmem"]
        .iter()
        .any(|kind| name.starts_with(kind));
    (format!("block device {name}"), is_ram)
}

fn file_system(path: &Path) -> String {
    // Numbers from statfs(2).
    match statfs(path).map(|system| system.f_type) {
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0xef53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "xfs".to_owned(),
        Ok(0x9123_683e) => "btrfs".to_owned(),
        Ok(0x6573_5546) => "FUSE".to_owned(),
        Ok(other) => format!("a file system of type {other:#x}"),
        Err(_) => "an unknown file system".to_owned(),
    }
}
