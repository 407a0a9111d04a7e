//! The pipeline without a disk and a network: `cargo bench -p backlane-repo --bench pipeline [-- FILES]`.
//!
//! First large files of noise and of words, by one thread and by two; the packs go nowhere. Then a tree of ten million
//! empty files (or of `FILES`), which is made up as it is walked: once as new, once unchanged. Its packs of trees are
//! kept in files, so that what the process has in memory is the pipeline's own.

use backlane_proto::{ByteRange, ObjectInfo, ObjectKind, ObjectName, PackContents};
use backlane_repo::{
    ArchiveOptions, Entries, Entry, FileKind, InitOptions, Metadata, ObjectStore, Repository,
    Source, StoreError, Time, Warning,
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    num::NonZero,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
    time::Instant,
};

const FILE_BYTES: u64 = 256 << 20;
const LARGE_FILES: u64 = 4;
const IN_DIRECTORY: u64 = 1000;

/// Keeps everything but packs of data, in files.
struct Store {
    directory: tempfile::TempDir,
    names: Mutex<BTreeMap<ObjectName, u64>>,
}

/// A tree that is made up.
#[derive(Clone, Copy)]
enum Tree {
    Large { words: bool },
    Empty { files: u64 },
}

/// Blocks of bytes, no two alike.
struct Content {
    block: Vec<u8>,
    next: u64,
    rest: u64,
}

impl Store {
    fn path(&self, name: ObjectName) -> std::path::PathBuf {
        self.directory
            .path()
            .join(format!("{:?}-{}", name.kind, name.id))
    }
}

impl ObjectStore for Store {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        let names = self.names.lock().expect("no panic");
        let of_kind = names.iter().filter(|(name, _)| name.kind == kind);
        Ok(of_kind
            .map(|(name, bytes)| ObjectInfo {
                id: name.id,
                bytes: *bytes,
            })
            .collect())
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        let read = || -> io::Result<Vec<u8>> {
            let file = File::open(self.path(name))?;
            let (offset, length) = match range {
                Some(range) => (range.offset, range.length),
                None => (0, file.metadata()?.len()),
            };
            let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        };
        Ok(read().map_err(failed)?.into())
    }

    fn write(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: Bytes,
    ) -> Result<(), StoreError> {
        if name.kind != ObjectKind::Pack || contents == PackContents::Trees {
            fs::write(self.path(name), &body).map_err(failed)?;
        }
        let bytes = body.len() as u64;
        self.names.lock().expect("no panic").insert(name, bytes);
        Ok(())
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.names.lock().expect("no panic").remove(&name);
        Ok(())
    }
}

fn failed(error: io::Error) -> StoreError {
    StoreError::Failed(Box::new(error))
}

impl Source for Tree {
    fn entries(&self) -> Entries {
        match *self {
            Self::Large { words } => Box::new((0..LARGE_FILES).map(move |number| {
                let open = move || -> io::Result<Box<dyn Read + Send>> {
                    Ok(Box::new(Content::new(words, number)))
                };
                Ok(entry(
                    format!("/{number}"),
                    FileKind::File,
                    FILE_BYTES,
                    Some(Box::new(open)),
                ))
            })),
            Self::Empty { files } => Box::new((0..files).flat_map(|number| {
                let directory = format!("/d{:06}", number / IN_DIRECTORY);
                let open = || -> io::Result<Box<dyn Read + Send>> { Ok(Box::new(io::empty())) };
                let file = format!("{directory}/f{:03}", number % IN_DIRECTORY);
                let file = Ok(entry(file, FileKind::File, 0, Some(Box::new(open))));
                let begins = number % IN_DIRECTORY == 0;
                let directory = begins.then(|| Ok(entry(directory, FileKind::Directory, 0, None)));
                directory.into_iter().chain([file])
            })),
        }
    }

    fn warn(&self, warning: &Warning) {
        panic!("{warning:?}");
    }
}

fn entry(
    path: String,
    kind: FileKind,
    size: u64,
    open: Option<Box<dyn backlane_repo::OpenFile>>,
) -> Entry {
    let time = Some(Time {
        seconds: 1_700_000_000,
        nanoseconds: 5,
    });
    Entry {
        path: path.into_bytes(),
        kind,
        meta: Metadata {
            mode: Some(0o644),
            uid: Some(0),
            gid: Some(0),
            modified: time,
            accessed: time,
            changed: time,
            inode: 7,
            device: 1,
            links: 1,
            size,
            ..Metadata::default()
        },
        open,
    }
}

impl Content {
    fn new(words: bool, seed: u64) -> Self {
        let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut block = Vec::new();
        while block.len() < 4 << 20 {
            match words {
                false => block.extend(next().to_le_bytes()),
                true => block.extend(format!("{:x} ", (next() % 1000) * 7919).bytes()),
            }
        }
        Self {
            block,
            next: 0,
            rest: FILE_BYTES,
        }
    }
}

impl Read for Content {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let into = self.next % self.block.len() as u64;
        let at = usize::try_from(into).map_err(io::Error::other)?;
        if at == 0 {
            // Another block, cheaply: some of its bytes are new, in every part that could be a chunk.
            let turn = self.next.to_le_bytes();
            for place in self.block.chunks_mut(64 << 10) {
                for (to, from) in place.iter_mut().zip(turn) {
                    *to ^= from;
                }
            }
        }
        let count = out
            .len()
            .min(self.block.len() - at)
            .min(usize::try_from(self.rest).unwrap_or(usize::MAX));
        out[..count].copy_from_slice(&self.block[at..at + count]);
        self.next += count as u64;
        self.rest -= count as u64;
        Ok(count)
    }
}

/// Backs the tree up; seconds, and MiB that the process had in memory at most.
fn run(repository: &Repository, tree: Tree, threads: usize) -> (f64, u64) {
    // Its greatest size counts from here.
    fs::write("/proc/self/clear_refs", "5").expect("Linux");
    let options = ArchiveOptions {
        host: "bench".to_owned(),
        paths: vec![b"/".to_vec()],
        threads: NonZero::new(threads),
        ..ArchiveOptions::default()
    };
    let began = Instant::now();
    repository
        .archive(&options, Arc::new(tree))
        .expect("a backup");
    let seconds = began.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok());
    (seconds, peak.expect("Linux") >> 10)
}

fn new_repository() -> Repository {
    let store = Store {
        directory: tempfile::tempdir().expect("a directory"),
        names: Mutex::default(),
    };
    let password = "a password of more than forty characters, as join makes them";
    Repository::init(Arc::new(store), password, &InitOptions::default()).expect("a repository")
}

fn main() {
    let files = std::env::args().find_map(|argument| argument.parse().ok());
    let files = files.unwrap_or(10_000_000);
    println!("| what | threads | seconds | rate | times one thread's | peak MiB |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for words in [false, true] {
        let name = if words { "words" } else { "noise" };
        // In turns, and medians of both: other work on the machine comes upon either.
        let mut seconds = [Vec::new(), Vec::new()];
        let mut peaks = [0; 2];
        for _ in 0..3 {
            for threads in [1, 2] {
                let (took, peak) = run(&new_repository(), Tree::Large { words }, threads);
                seconds[threads - 1].push(took);
                peaks[threads - 1] = peak.max(peaks[threads - 1]);
            }
        }
        let [one, two] = seconds.map(|mut all| {
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        });
        for (threads, took) in [(1, one), (2, two)] {
            let rate = ((FILE_BYTES * LARGE_FILES) >> 20) as f64 / took;
            let (times, peak) = (one / took, peaks[threads - 1]);
            println!("| {name} | {threads} | {took:.2} | {rate:.0} MiB/s | {times:.2} | {peak} |");
        }
    }
    let repository = new_repository();
    for name in ["new", "unchanged"] {
        let (took, peak) = run(&repository, Tree::Empty { files }, 2);
        let rate = files as f64 / took;
        println!("| {files} empty files, {name} | 2 | {took:.1} | {rate:.0} files/s | | {peak} |");
    }
}
