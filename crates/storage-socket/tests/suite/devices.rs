//! Loop devices, a file system that can be frozen, and a device that is pulled; they go away with the test, even if it
//! is killed.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A loop device over a file.
pub(crate) struct Loop {
    pub(crate) path: PathBuf,
    /// Detached already, a loop device lives as long as it is open.
    _device: std::fs::File,
}

impl Loop {
    /// A loop device over a new file; `None`, loudly, where loop devices can't be made.
    pub(crate) fn new(directory: &Path, name: &str, bytes: u64, block_bytes: u32) -> Option<Self> {
        let file = directory.join(name);
        std::fs::File::create(&file)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(format!("--sector-size={block_bytes}"))
            .arg(file)
            .output();
        let path: PathBuf = match made {
            Ok(output) if output.status.success() => {
                String::from_utf8(output.stdout).unwrap().trim().into()
            }
            other => {
                eprintln!("SKIPPED: no loop device of {block_bytes} bytes: {other:?}");
                return None;
            }
        };
        let device = std::fs::File::open(&path).unwrap();
        let detached = Command::new("losetup").arg("-d").arg(&path).status();
        assert!(detached.unwrap().success());
        Some(Self {
            path,
            _device: device,
        })
    }
}

/// A file system of its own that can be frozen: writes to it then hang until it is thawed.
pub(crate) struct Freezer {
    pub(crate) mount: PathBuf,
    _device: Loop,
}

impl Freezer {
    pub(crate) fn new(directory: &Path) -> Option<Self> {
        let device = Loop::new(directory, "file-system", 200 << 20, 512)?;
        let mount = directory.join("mount");
        std::fs::create_dir(&mount).unwrap();
        let ran = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        let made = ran(Command::new("mkfs.ext4").arg("-q").arg(&device.path))
            && ran(Command::new("mount").arg(&device.path).arg(&mount));
        if !made {
            eprintln!("SKIPPED: no file system can be made and mounted");
            return None;
        }
        Some(Self {
            mount,
            _device: device,
        })
    }

    /// `--freeze` or `--unfreeze`.
    pub(crate) fn set(&self, how: &str) {
        let done = Command::new("fsfreeze").arg(how).arg(&self.mount).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _not_frozen = Command::new("fsfreeze")
            .arg("--unfreeze")
            .arg(&self.mount)
            .status();
        // Transfers that hung hold their files open until the kernel has ended them: it goes when they do.
        let done = Command::new("umount")
            .arg("--lazy")
            .arg(&self.mount)
            .status();
        assert!(done.unwrap().success());
    }
}

/// A device whose open descriptors are dead: they lead to a file that loses its bytes again and again, also those that
/// are written by who has not noticed yet.
pub(crate) struct Pulled {
    is_over: Arc<AtomicBool>,
    emptying: Option<thread::JoinHandle<()>>,
}

impl Pulled {
    pub(crate) fn new(path: &Path) -> Self {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let emptying = thread::spawn({
            let is_over = is_over.clone();
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    file.set_len(0).unwrap();
                    thread::sleep(Duration::from_micros(200));
                }
            }
        });
        Self {
            is_over,
            emptying: Some(emptying),
        }
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let emptied = self.emptying.take().map(thread::JoinHandle::join);
        assert!(emptied.is_none_or(|emptied| emptied.is_ok()));
    }
}
