//! What devices do raw, by fio: nobody can say that the yardstick was bent.
//!
//! With huge-page buffers, for otherwise fio is at half of its speed, and comparing with that would flatter.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// Beyond the fixed areas of a pool of a few slots.
const DATA_OFFSET: u64 = 2 << 20;

/// How devices are read and written at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawShape {
    pub(super) frame_bytes: usize,
    pub(super) depth: usize,
    /// Bytes of a device that each job goes round.
    pub(super) window_bytes: u64,
    /// Jobs that read, and as many that write.
    pub(super) jobs: u64,
}

/// Microseconds that a transfer of 4 KiB takes alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawLatency {
    pub(super) write: f64,
    pub(super) read: f64,
}

/// fio, which was seen to run here.
#[derive(Debug)]
pub(super) struct Fio {
    devices: Vec<PathBuf>,
    /// Of the smallest device.
    bytes: u64,
    slice: Duration,
}

impl Fio {
    /// Says why not, where fio can't be the yardstick.
    pub(super) fn find(devices: &[PathBuf], bytes: u64, slice: Duration) -> Result<Self, String> {
        let version = Command::new("fio").arg("--version").output();
        if !version.is_ok_and(|output| output.status.success()) {
            return Err("fio is not installed (apt install fio)".to_owned());
        }
        let fio = Self {
            devices: devices.to_vec(),
            bytes,
            slice,
        };
        // No measurement takes more memory.
        let shape = RawShape {
            frame_bytes: 16 << 20,
            depth: 4,
            window_bytes: 64 << 20,
            jobs: 1,
        };
        match fio.with_slice(Duration::from_millis(10)).raw(&shape) {
            Ok(_) => Ok(fio),
            Err(error) => Err(format!(
                "fio can't run with huge-page buffers here (sysctl vm.nr_hugepages=128 gives it some): {error:#}"
            )),
        }
    }

    /// The same for one of the devices alone.
    pub(super) fn on(&self, device: &Path) -> Self {
        Self {
            devices: vec![device.to_owned()],
            ..*self
        }
    }

    fn with_slice(&self, slice: Duration) -> Self {
        Self {
            devices: self.devices.clone(),
            slice,
            ..*self
        }
    }

    /// Half of the sum of what is read and written at once, in bytes a second: a byte of a stream is written once and
    /// read once.
    pub(super) fn raw(&self, shape: &RawShape) -> Result<f64> {
        let frame = shape.frame_bytes as u64;
        let window = shape.window_bytes.min(self.bytes / (4 * shape.jobs)) / frame * frame;
        let half = (self.bytes / 2).next_multiple_of(frame);
        let mut jobs = Vec::new();
        for job in 0..shape.jobs {
            for (operation, base) in [("read", DATA_OFFSET), ("write", half)] {
                jobs.push(format!("--name={operation}{job}"));
                jobs.push(format!("--rw={operation}"));
                jobs.push(format!("--offset={}", base + job * window));
            }
        }
        let global = [
            "--iomem=mmaphuge".to_owned(),
            "--hugepage-size=2M".to_owned(),
            format!("--bs={frame}"),
            format!("--iodepth={}", shape.depth),
            format!("--size={window}"),
        ];
        let report = self.run(global.into_iter().chain(jobs))?;
        let mut sum = 0.0;
        for job in report["jobs"].as_array().into_iter().flatten() {
            for operation in ["read", "write"] {
                sum += job[operation]["bw_bytes"].as_f64().unwrap_or(0.0);
            }
        }
        if sum > 0.0 {
            Ok(sum / 2.0)
        } else {
            bail!("fio ran, and its report says nothing of what it read and wrote")
        }
    }

    /// The medians of writes and of reads of 4 KiB, one at a time.
    pub(super) fn latency(&self) -> Result<RawLatency> {
        let median = |operation: &str| {
            let arguments = [
                "--lat_percentiles=1".to_owned(),
                "--bs=4096".to_owned(),
                "--iodepth=1".to_owned(),
                format!("--size={}", 64 << 20),
                format!("--offset={DATA_OFFSET}"),
                format!("--name={operation}"),
                format!("--rw={operation}"),
            ];
            let report = self.run(arguments)?;
            let nanoseconds = &report["jobs"][0][operation]["lat_ns"]["percentile"]["50.000000"];
            let nanoseconds = nanoseconds
                .as_f64()
                .context("fio ran, and reports no median")?;
            anyhow::Ok(nanoseconds / 1000.0)
        };
        Ok(RawLatency {
            write: median("write")?,
            read: median("read")?,
        })
    }

    fn run(&self, arguments: impl IntoIterator<Item = String>) -> Result<Value> {
        let mut filename = OsString::from("--filename=");
        for (index, device) in self.devices.iter().enumerate() {
            if index > 0 {
                filename.push(":");
            }
            filename.push(device);
        }
        let output = Command::new("fio")
            .args(["--output-format=json", "--direct=1", "--ioengine=io_uring"])
            .args(["--time_based=1", "--allow_file_create=0"])
            .arg(format!("--runtime={}ms", self.slice.as_millis()))
            .arg(&filename)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot start fio")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "fio failed: {}",
                said.lines().next().unwrap_or("it doesn't say why")
            );
        }
        serde_json::from_slice(&output.stdout).context("fio's report can't be read")
    }
}
