//! The walk of a cluster, from its beginning to the files that only its end brings.
//!
//! Invariants: entries come in the order of trees; every file is open before its entry is given out, so that one which
//! vanishes in between is not missed; the control file is read after every other file was, and the backup ended after
//! that.

use super::{
    Run,
    read::{Listing, Reader},
};
use crate::{
    error::Error,
    fs::{
        self, Facts,
        descent::{Descent, Step},
    },
    progress::WarningKind,
    source::{AccessTimes, examine::metadata},
};
use backlane_repo::{Entry, FileKind, Metadata, Time, Warning};
use backlane_source::postgres::{
    BaseBackup, Begun, Content, Control, Kept, Session, Stopped, Tablespace, WalMode, kept,
    version_directory, wal_segments,
};
use jiff::Timestamp;
use rustix::fs::FileType;
use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::File,
    io::{self, Cursor, ErrorKind, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// How often the control file is read until two readings are alike.
const CONTROL_READINGS_MAX: u32 = 100;

/// Where the WAL is in a cluster.
const WAL: &str = "pg_wal";

/// The walk under way.
pub(super) struct Walk {
    run: Arc<Run>,
    session: Session,
    begun: Begun,
    /// The directory in each tablespace that is this cluster's.
    version_directory: String,
    /// The cluster's directory.
    data: Arc<OwnedFd>,
    /// What its owner's new files are like.
    own: Metadata,
    /// What comes next.
    parts: VecDeque<Part>,
    queue: VecDeque<Entry>,
    descent: Descent,
    /// The current directory, below the cluster's.
    path: PathBuf,
    /// The part of that which stands for `top`.
    base: PathBuf,
    /// Where the current part is in the snapshot.
    top: PathBuf,
}

/// A part of a backup.
enum Part {
    Configuration,
    Data,
    Tablespace(Tablespace),
    /// The directory of what belongs over the rest.
    Top,
    End,
    /// A file of the WAL.
    Wal(String),
    /// A file of our own making.
    Made(&'static str, String),
}

impl Walk {
    pub(super) fn new(
        run: Arc<Run>,
        session: Session,
        begun: Begun,
        control: Control,
    ) -> Result<Self, Error> {
        let read = |source| backlane_source::postgres::Error::Read {
            path: run.directory.clone(),
            source,
        };
        // The path is the user's or the server's word, and may lead through links.
        let data: OwnedFd = File::open(&run.directory).map_err(read)?.into();
        let facts = Facts::of_open(&data).map_err(read)?;
        let mut tablespaces = begun.tablespaces.clone();
        // In the order of trees.
        tablespaces.sort_by_key(|tablespace| tablespace.oid.to_string());
        let tablespaces = tablespaces.into_iter().map(Part::Tablespace);
        let mut parts = VecDeque::from([Part::Configuration, Part::Data]);
        parts.extend(tablespaces);
        parts.extend([Part::Top, Part::End]);
        Ok(Self {
            version_directory: version_directory(run.cluster.major(), control.catalogue),
            own: Metadata {
                mode: Some(0o600),
                uid: Some(facts.uid),
                gid: Some(facts.gid),
                links: 1,
                ..Metadata::default()
            },
            run,
            session,
            begun,
            data: Arc::new(data),
            parts,
            queue: VecDeque::new(),
            descent: Descent::default(),
            path: PathBuf::new(),
            base: PathBuf::new(),
            top: PathBuf::new(),
        })
    }

    fn root(&self) -> PathBuf {
        BaseBackup::root(self.run.cluster.system)
    }

    fn push(
        &mut self,
        path: &Path,
        kind: FileKind,
        meta: Metadata,
        content: Option<Box<dyn Read + Send>>,
    ) {
        self.queue.push_back(Entry {
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            meta,
            open: content.map(|content| Box::new(move || Ok(content)) as _),
        });
    }

    fn push_directory(&mut self, path: &Path, facts: Option<&Facts>) {
        let meta = match facts {
            Some(facts) => metadata(facts, AccessTimes::AsModified),
            None => Metadata {
                mode: Some(0o700),
                links: 0,
                modified: Some(Time::from(SystemTime::UNIX_EPOCH)),
                ..self.own.clone()
            },
        };
        self.push(path, FileKind::Directory, meta, None);
        self.run.reporter.progress.advanced(1, 0);
    }

    /// A file that is open. `path` is below the cluster's directory.
    fn push_file(
        &mut self,
        file: OwnedFd,
        (path, shown): (&Path, &Path),
        is_listed: bool,
    ) -> io::Result<()> {
        let facts = Facts::of_open(&file)?;
        if facts.file_type != FileType::RegularFile {
            return Err(io::Error::other(
                "it was replaced by something that is no file",
            ));
        }
        let listing = match is_listed {
            true => Listing::Listed {
                modified_seconds: facts.mtime.seconds,
            },
            false => Listing::Not,
        };
        let reader = Reader::new(&self.run, file.into(), path, facts.size, listing);
        let meta = metadata(&facts, AccessTimes::AsModified);
        self.push(shown, FileKind::File, meta, Some(Box::new(reader)));
        Ok(())
    }

    /// A file of our own making, in `top`.
    fn push_made(&mut self, name: &str, content: Vec<u8>) {
        let meta = Metadata {
            size: content.len() as u64,
            modified: Some(Time::from(SystemTime::now())),
            ..self.own.clone()
        };
        let path = self.root().join("top").join(name);
        self.push(
            &path,
            FileKind::File,
            meta,
            Some(Box::new(Cursor::new(content))),
        );
    }

    fn begin(&mut self, part: Part) -> Result<(), Error> {
        let root = self.root();
        match part {
            Part::Configuration => {
                self.push_directory(Path::new("/postgresql"), None);
                self.push_directory(&root, None);
                self.configuration();
            }
            Part::Data => {
                let data = Arc::clone(&self.data);
                self.part("", root.join("data"));
                self.enter(&data, OsStr::new("."))?;
            }
            Part::Tablespace(tablespace) => {
                let top = root.join("tablespaces");
                let oid = tablespace.oid.to_string();
                let link = Path::new("pg_tblspc").join(&oid);
                let directory = self.run.directory.join(&link);
                let opened = File::open(&directory).and_then(|directory| {
                    let facts = Facts::of_open(&directory)?;
                    Ok((OwnedFd::from(directory), facts))
                });
                let (directory, facts) = match opened {
                    Ok(opened) => opened,
                    // It was dropped.
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(self.unread(&link, error)),
                };
                if self.base.as_os_str().is_empty() {
                    // The first of them.
                    self.push_directory(&top, None);
                }
                self.push_directory(&top.join(&oid), Some(&facts));
                self.part(link, top.join(oid));
                let name = self.version_directory.clone();
                self.path.push(&name);
                self.enter(&directory, OsStr::new(&name))?;
            }
            Part::Top => {
                let facts = Facts::of_open(&*self.data);
                let facts = facts.map_err(|error| self.unread(Path::new(""), error))?;
                self.push_directory(&root.join("top"), Some(&facts));
            }
            Part::End => self.end()?,
            Part::Wal(name) => {
                let path = Path::new(WAL).join(&name);
                let shown = root.join("top").join(&path);
                let directory = self.wal_directory();
                let file = directory.and_then(|wal| fs::open_file(&wal, OsStr::new(&name)));
                file.and_then(|file| self.push_file(file, (&path, &shown), false))
                    .map_err(|error| self.unread(&path, error))?;
            }
            Part::Made(name, content) => self.push_made(name, content.into_bytes()),
        }
        Ok(())
    }

    fn part(&mut self, base: impl Into<PathBuf>, top: PathBuf) {
        self.base = base.into();
        self.path.clone_from(&self.base);
        self.top = top;
    }

    /// Where `path`, below the cluster's directory, is in the snapshot.
    fn shown(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix(&self.base).unwrap_or(path);
        match below.as_os_str().is_empty() {
            true => self.top.clone(),
            false => self.top.join(below),
        }
    }

    fn unread(&self, path: &Path, source: io::Error) -> Error {
        let path = self.run.directory.join(path);
        backlane_source::postgres::Error::Read { path, source }.into()
    }

    /// The configuration files that are outside of the cluster's directory.
    fn configuration(&mut self) {
        let inside = &self.run.cluster.data_directory;
        let outside = |file: &&PathBuf| !file.starts_with(inside) && !file.as_os_str().is_empty();
        let files = self.run.cluster.config_files.iter().filter(outside);
        let mut files: Vec<_> = files.cloned().collect();
        files.sort_by_key(|file| file.file_name().map(OsStr::to_owned));
        files.dedup_by_key(|file| file.file_name().map(OsStr::to_owned));
        let directory = self.root().join("config");
        if !files.is_empty() {
            self.push_directory(&directory, None);
        }
        for file in files {
            let shown = directory.join(file.file_name().unwrap_or_default());
            let pushed = File::open(&file)
                .and_then(|open| self.push_file(open.into(), (&file, &shown), false));
            if let Err(error) = pushed {
                let what = format!("it can't be read: {error}");
                self.run.reporter.warn(WarningKind::LeftOut, &file, what);
            }
        }
    }

    /// Makes `name` in `dir` the current directory, whose path is set already. One that has vanished is none.
    fn enter(&mut self, dir: &OwnedFd, name: &OsStr) -> Result<(), Error> {
        let opened = fs::open_dir(dir, name).and_then(|handle| {
            let facts = Facts::of_open(&handle)?;
            let names = fs::names(&handle)?;
            Ok((handle, facts, names))
        });
        match opened {
            Ok((handle, facts, names)) => {
                let shown = self.shown(&self.path);
                self.push_directory(&shown, Some(&facts));
                self.descent.enter(handle, facts.identity, names);
                Ok(())
            }
            Err(error)
                if error.kind() == ErrorKind::NotFound && !self.path.as_os_str().is_empty() =>
            {
                self.path.pop();
                Ok(())
            }
            Err(error) => Err(self.unread(&self.path, error)),
        }
    }

    /// Looks at a name in the current directory.
    fn visit(&mut self, dir: &OwnedFd, name: &OsStr) -> Result<(), Error> {
        let has = |name: &str| Facts::of(dir, OsStr::new(name)).is_ok();
        let kept = kept(&self.path.to_string_lossy(), &name.to_string_lossy(), has);
        let path = self.path.join(name);
        let facts = match Facts::of(dir, name) {
            _ if kept == Kept::Not => return Ok(()),
            Ok(facts) => facts,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.unread(&path, error)),
        };
        let is_directory = facts.file_type == FileType::Directory;
        match facts.file_type {
            _ if kept == Kept::Empty => {
                // A link becomes a directory.
                let shown = self.shown(&path);
                self.push_directory(&shown, Some(&facts).filter(|_| is_directory));
            }
            FileType::Directory => {
                self.path = path;
                self.enter(dir, name)?;
            }
            FileType::RegularFile => {
                let shown = self.shown(&path);
                let opened = fs::open_file(dir, name);
                match opened.and_then(|file| self.push_file(file, (&path, &shown), true)) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(self.unread(&path, error)),
                    Ok(()) => {}
                }
            }
            // Tablespaces come later, and their links when they are restored.
            FileType::Symlink if self.path == Path::new("pg_tblspc") => {}
            FileType::Socket => {}
            _ => {
                let what = "it is neither a file nor a directory, and no part of a base backup";
                let path = self.run.directory.join(&path);
                self.run.reporter.warn(WarningKind::LeftOut, &path, what);
            }
        }
        Ok(())
    }

    /// Ends the backup, and queues what belongs over the rest.
    fn end(&mut self) -> Result<(), Error> {
        self.run.wait_for_readers()?;
        let run = Arc::clone(&self.run);
        let (global, control, facts) = self
            .control()
            .map_err(|error| self.unread(Path::new(Control::PATH), error))?;
        let mut content = Content::default();
        content.update(&control);
        run.enter(Path::new(Control::PATH), facts.mtime.seconds, content);
        let is_cancelled = || run.reporter.cancel.is_cancelled();
        let stopped = Stopped::stop(&mut self.session, &run.cluster, run.wal, &is_cancelled)?;
        let backup = self.backup(&stopped)?;
        let label = stopped.label.into_bytes();
        let mut content = Content::default();
        content.update(&label);
        let now = Timestamp::now().as_second();
        run.enter(Path::new("backup_label"), now, content);
        let wal = (backup.timeline, backup.start_lsn, backup.stop_lsn);
        let manifest = run.state().manifest.text(&run.cluster, wal);

        let top = self.root().join("top");
        self.push_made("backup_label", label);
        self.push_made("backup_manifest", manifest.into_bytes());
        self.push_directory(&top.join("global"), Some(&global));
        let mut meta = metadata(&facts, AccessTimes::AsModified);
        meta.size = control.len() as u64;
        let control = Box::new(Cursor::new(control));
        self.push(
            &top.join(Control::PATH),
            FileKind::File,
            meta,
            Some(control),
        );
        if run.wal == WalMode::Include {
            self.wal(&top.join(WAL), &backup)
                .map_err(|error| self.unread(Path::new(WAL), error))?;
        }
        if !stopped.map.is_empty() {
            self.parts
                .push_back(Part::Made("tablespace_map", stopped.map));
        }
        run.state().backup = Some(backup);
        Ok(())
    }

    fn backup(&self, stopped: &Stopped) -> Result<BaseBackup, Error> {
        let cluster = &self.run.cluster;
        let timeline = stopped.timeline()?;
        let (start, stop) = (self.begun.start, stopped.stop);
        let mut segments = wal_segments(timeline, start, stop, cluster.wal_segment_bytes);
        let start_wal = segments.first().cloned().unwrap_or_default();
        Ok(BaseBackup {
            system: cluster.system,
            version: cluster.version.clone(),
            origin: cluster.origin(),
            timeline,
            start_lsn: start,
            stop_lsn: stop,
            start_wal,
            stop_wal: segments.pop().unwrap_or_default(),
            wal: self.run.wal,
            began: self.run.began,
            ended: Timestamp::now(),
            data_directory: cluster.data_directory.clone(),
            tablespaces: self.begun.tablespaces.clone(),
        })
    }

    /// The control file, which the server may be writing, with the facts of its directory and its own.
    fn control(&self) -> io::Result<(Facts, Vec<u8>, Facts)> {
        let global = fs::open_dir(&*self.data, OsStr::new("global"))?;
        let name = OsStr::new("pg_control");
        let read = || -> io::Result<Vec<u8>> {
            let mut content = Vec::new();
            File::from(fs::open_file(&global, name)?).read_to_end(&mut content)?;
            Ok(content)
        };
        let mut content = read()?;
        for _ in 0..CONTROL_READINGS_MAX {
            let again = read()?;
            if again == content {
                return Ok((Facts::of_open(&global)?, content, Facts::of(&global, name)?));
            }
            content = again;
        }
        Err(io::Error::other("it changes all the time"))
    }

    /// The directory of the WAL, which may be elsewhere.
    fn wal_directory(&self) -> io::Result<OwnedFd> {
        Ok(File::open(self.run.directory.join(WAL))?.into())
    }

    /// Plans the segments of the WAL that the backup needs, and the file that says how its timeline came about.
    fn wal(&mut self, top: &Path, backup: &BaseBackup) -> io::Result<()> {
        let directory = self.wal_directory()?;
        let facts = Facts::of_open(&directory)?;
        self.push_directory(top, Some(&facts));
        let bytes = self.run.cluster.wal_segment_bytes;
        let (start, stop) = (backup.start_lsn, backup.stop_lsn);
        let mut names = wal_segments(backup.timeline, start, stop, bytes);
        let history = format!("{:08X}.history", backup.timeline);
        if Facts::of(&directory, OsStr::new(&history)).is_ok() {
            names.push(history);
        }
        // In the order of trees.
        names.sort_unstable();
        self.parts.extend(names.into_iter().map(Part::Wal));
        Ok(())
    }

    fn step(&mut self) -> Result<bool, Error> {
        match self.descent.step() {
            Step::Name(dir, name) => self.visit(&dir, &name)?,
            Step::Up { lost: Some(error) } => return Err(self.unread(&self.path, error)),
            Step::Up { lost: None } => {
                self.path.pop();
            }
            Step::End => match self.parts.pop_front() {
                Some(part) => self.begin(part)?,
                None => return Ok(false),
            },
        }
        Ok(true)
    }
}

impl Iterator for Walk {
    type Item = Result<Entry, Warning>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.run.reporter.cancel.is_cancelled() {
                return None;
            }
            if let Some(entry) = self.queue.pop_front() {
                return Some(Ok(entry));
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.run.fail(error);
                    return None;
                }
            }
        }
    }
}
