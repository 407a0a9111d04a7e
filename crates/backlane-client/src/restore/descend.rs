//! Goes through the trees of a snapshot: makes directories and what has no content, plans files and links.
//!
//! Invariants: a name is checked before it is used; a directory's own metadata is set after all that is in it; nothing
//! is deleted outside of what was backed up, but for what SQLite left beside a database that is restored. A batch runs
//! while the next one is planned; memory is bounded by the two, apart from the directories on the way.

use super::{
    batch::{Batch, LinkTarget, PlannedLink, Whole},
    content::Piece,
    files::{PlannedFile, TemporaryNames},
    job::{Job, add},
    metadata::{Subject, set_mode},
    places::PlaceId,
    remove::remove_tree,
    unfinished,
};
use crate::{
    carry,
    error::Error,
    fs::{self, Facts, Inode},
    progress::WarningKind,
    source::sqlite::COMPANIONS,
};
use backlane_repo::{BlobKind, FileKind, Metadata, Node, RepoError, Tree, name_is_plain};
use rustix::fs::{AtFlags, FileType, Mode, mkdirat, mknodat, symlinkat, unlinkat};
use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, ErrorKind},
    mem,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::{self, ScopedJoinHandle},
    vec,
};

/// Where a directory is in relation to what was backed up.
#[derive(Clone, Debug)]
pub(crate) enum Reach {
    /// Above it; this is its path in the snapshot. There is more on disk than the snapshot knows.
    Above(PathBuf),
    /// In it: the snapshot knows all that belongs there.
    Inside {
        /// The device that the first directory of it is on; `None` until that was looked at. What is on another one is
        /// mounted there, and the snapshot may know nothing of it.
        device: Option<u64>,
    },
    /// In it, where the backup could not or should not look: what belongs there, nobody knows.
    Unlisted,
    /// It looks as if in it, by a path that is not text and is shown as others are too.
    Unclear,
}

impl Reach {
    /// That of the directory with this path in the snapshot. `roots` are what was backed up, as text.
    pub(crate) fn of(path: PathBuf, roots: &[String]) -> Self {
        let text = path.to_string_lossy().into_owned();
        let mut roots = roots.iter();
        match roots.find(|root| Path::new(&text).starts_with(root)) {
            None => Self::Above(path),
            Some(root) if root.contains(char::REPLACEMENT_CHARACTER) => Self::Unclear,
            Some(_) => Self::Inside { device: None },
        }
    }
}

/// The way through the trees.
pub(crate) struct Descender<'a> {
    job: &'a Job<'a>,
    /// What was backed up, as text.
    roots: &'a [String],
    frames: Vec<Frame>,
    batch: Batch,
    /// The first of each group of hard links.
    links: HashMap<(u64, u64), LinkTarget>,
}

/// A directory whose entries are being gone through.
struct Frame {
    /// `None` in a dry run, when it doesn't exist.
    place: Option<PlaceId>,
    nodes: vec::IntoIter<Node>,
    /// What is to be set at the end; `None` for a target that the snapshot doesn't know.
    meta: Option<Metadata>,
    found: Found,
    reach: Reach,
    /// What an interrupted run has begun here, by its temporary names. `None` where the snapshot has such names itself:
    /// nothing is gone on with there, and new names are taken.
    unfinished: Option<HashSet<OsString>>,
}

/// Whether something was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Existing,
    New,
}

/// An entry on its way, with what was there before.
struct Arrival<'n> {
    place: PlaceId,
    dir: Arc<OwnedFd>,
    name: &'n OsStr,
    path: PathBuf,
    before: Option<Facts>,
}

impl<'a> Descender<'a> {
    pub(crate) fn new(job: &'a Job<'a>, roots: &'a [String]) -> Self {
        Self {
            job,
            roots,
            frames: Vec::new(),
            batch: Batch::default(),
            links: HashMap::new(),
        }
    }

    /// Restores a tree into the target, which takes on `meta`.
    pub(crate) fn run(
        mut self,
        tree: Tree,
        meta: Option<Metadata>,
        place: Option<PlaceId>,
        mut reach: Reach,
    ) -> Result<(), Error> {
        let meta = meta.map(|mut meta| {
            if carry::unpack(&mut meta, 0).unlisted {
                reach = Reach::Unlisted;
            }
            meta
        });
        self.enter(tree, meta, place, Found::Existing, reach)?;
        thread::scope(|scope| {
            let mut running = None;
            loop {
                let planned = self.plan();
                // If the batch has failed, nothing more was planned for that.
                end(running.take())?;
                let batch = mem::take(&mut self.batch);
                if !planned? {
                    return batch.run(self.job);
                }
                running = Some(scope.spawn(|| {
                    let ran = batch.run(self.job);
                    self.job.has_failed.store(ran.is_err(), Ordering::Relaxed);
                    ran
                }));
            }
        })
    }

    /// Goes on until the batch is full. Whether it is; otherwise all is planned.
    fn plan(&mut self) -> Result<bool, Error> {
        while let Some(frame) = self.frames.last_mut() {
            self.job.check_cancelled()?;
            if let Some(node) = frame.nodes.next() {
                let (place, found) = (frame.place, frame.found);
                self.node(node, place, found)?;
            } else if let Some(frame) = self.frames.pop()
                && let Some(place) = frame.place
            {
                self.remove_unfinished(place, frame.unfinished)?;
                self.batch.directories.push((place, frame.meta));
            }
            if self.batch.is_full() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a directory the current one, after a look at its names and at what else is there.
    fn enter(
        &mut self,
        mut tree: Tree,
        meta: Option<Metadata>,
        place: Option<PlaceId>,
        found: Found,
        mut reach: Reach,
    ) -> Result<(), Error> {
        let shown = place.unwrap_or(PlaceId::TARGET);
        let mut names = HashSet::new();
        tree.nodes.retain(|node| {
            let problem = if !name_is_plain(&node.name) {
                "the snapshot gives it a name that leads elsewhere"
            } else if !names.insert(node.name.clone()) {
                "the snapshot has another entry of the same name"
            } else {
                return true;
            };
            let what = format!("an entry `{}`: {problem}", node.name.escape_ascii());
            self.job.warn(&self.job.path(shown, OsStr::new("")), what);
            false
        });
        let has_temporary = names
            .iter()
            .any(|n| TemporaryNames::is_one(OsStr::from_bytes(n)));
        let mut unfinished = (!has_temporary).then(HashSet::new);
        if let Some(place) = place.filter(|_| found == Found::Existing) {
            let companions = companions(&tree.nodes);
            self.tidy(place, &names, &companions, &mut reach, &mut unfinished)?;
        }
        self.frames.push(Frame {
            place,
            nodes: tree.nodes.into_iter(),
            meta,
            found,
            reach,
            unfinished,
        });
        Ok(())
    }

    /// Looks for what an interrupted run left in a directory, and removes what can't be gone on with and, if asked, all
    /// that the snapshot doesn't have; of `companions` also where there is more than the snapshot knows.
    fn tidy(
        &self,
        place: PlaceId,
        names: &HashSet<Vec<u8>>,
        companions: &HashSet<OsString>,
        reach: &mut Reach,
        unfinished: &mut Option<HashSet<OsString>>,
    ) -> Result<(), Error> {
        let job = self.job;
        let path = |name: &OsStr| job.path(place, name);
        // A handle of its own: a listing moves its position.
        let listed = job.places.handle(place).and_then(|dir| {
            let listing = fs::open_dir(&*dir, OsStr::new("."))?;
            let device = Facts::of_open(&listing)?.identity.device;
            Ok((dir, device, fs::names(&listing)?))
        });
        let (dir, device, present) = match listed {
            Ok(listed) => listed,
            Err(error) => return job.fail(path(OsStr::new("")), "it can't be listed", error),
        };
        let mounted = "it is on another file system than what is restored";
        let unclear = "its path is not text, and others look the same";
        let (deletes, spares) = match reach {
            Reach::Inside { device: first } => match *first.get_or_insert(device) == device {
                true => (job.options.delete, None),
                false => (false, Some(mounted)),
            },
            Reach::Unclear => (false, Some(unclear)),
            Reach::Above(_) | Reach::Unlisted => (false, None),
        };
        // Most directories have none.
        let any_temporary = present.iter().any(|name| TemporaryNames::is_one(name));
        let temporary: HashSet<_> = match any_temporary {
            true => names
                .iter()
                .map(|name| TemporaryNames::of(OsStr::from_bytes(name)))
                .collect(),
            false => HashSet::new(),
        };
        let mut spared = 0;
        // Where names of two directories lead to one, a file of the other's may be written just now.
        let is_shared = any_temporary && job.places.has_twin(place);
        for name in present {
            job.check_cancelled()?;
            if names.contains(name.as_bytes()) {
                continue;
            }
            let left_over = TemporaryNames::is_one(&name);
            if let Some(unfinished) = unfinished
                && temporary.contains(&name)
                && Facts::of(&*dir, &name).is_ok_and(|facts| unfinished::is_ours(&facts))
            {
                unfinished.insert(name);
                continue;
            }
            if left_over && is_shared {
                continue;
            }
            let is_stale = companions.contains(&name) && is_file(&dir, &name);
            if is_stale && !job.options.delete {
                let what = "SQLite would apply it to the database that is restored beside it: remove it before any program opens that";
                job.reporter
                    .warn(WarningKind::NotDeleted, &path(&name), what);
            }
            let goes = deletes || (is_stale && job.options.delete);
            if (!left_over && !goes) || job.options.dry_run {
                add(&job.counts.deleted, u64::from(goes));
                spared += u64::from(!left_over && !goes);
                continue;
            }
            self.remove(&dir, &name, device, place);
        }
        if let Some(why) = spares.filter(|_| job.options.delete && spared > 0) {
            let what = format!("{why}: {spared} in it, which the snapshot doesn't have, stay");
            let path = path(OsStr::new(""));
            job.reporter.warn(WarningKind::NotDeleted, &path, what);
        }
        Ok(())
    }

    /// Removes what an interrupted run has begun and no file of this snapshot goes on with.
    fn remove_unfinished(
        &self,
        place: PlaceId,
        unfinished: Option<HashSet<OsString>>,
    ) -> Result<(), Error> {
        let job = self.job;
        for name in unfinished.into_iter().flatten() {
            if job.options.dry_run {
                continue;
            }
            let removed = job
                .places
                .handle(place)
                .and_then(|dir| Ok(unlinkat(&*dir, &name, AtFlags::empty())?));
            match removed {
                Ok(()) => add(&job.counts.deleted, 1),
                Err(error) => job.fail(job.path(place, &name), "it can't be deleted", error)?,
            }
        }
        Ok(())
    }

    fn remove(&self, dir: &OwnedFd, name: &OsStr, device: u64, place: PlaceId) {
        let job = self.job;
        let removed = remove_tree(dir, name, device);
        add(&job.counts.deleted, removed.count);
        let base = job.path(place, OsStr::new(""));
        for (below, error) in removed.stayed {
            let what = format!("it can't be deleted: {error}");
            job.reporter
                .warn(WarningKind::NotDeleted, &base.join(below), what);
        }
    }

    fn node(&mut self, node: Node, place: Option<PlaceId>, found: Found) -> Result<(), Error> {
        let name = OsString::from_vec(node.name.clone());
        let path = self.job.path(place.unwrap_or(PlaceId::TARGET), &name);
        self.job.reporter.progress.current(&path);
        if let FileKind::Unknown { kind } = &node.kind {
            let what = "it is of a kind that this version does not know";
            let what = format!("{what} (`{kind}`); what stands there is left as it is");
            self.job.warn(&path, what);
            return Ok(());
        }
        let arrival = match place {
            None => None,
            Some(place) => {
                let dir = match self.job.places.handle(place) {
                    Ok(dir) => dir,
                    Err(error) => {
                        return self.job.fail(path, "its directory can't be opened", error);
                    }
                };
                let there = (found == Found::Existing).then(|| Facts::of(&*dir, &name));
                let before = match there.transpose() {
                    Ok(facts) => facts,
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => {
                        return self
                            .job
                            .fail(path, "what is there can't be examined", error);
                    }
                };
                Some(Arrival {
                    place,
                    dir,
                    name: &name,
                    path,
                    before,
                })
            }
        };
        if node.kind == FileKind::Directory {
            return self.directory(node, arrival);
        }
        if let Some(arrival) = &arrival
            && !self.clear_way(arrival)?
        {
            return Ok(());
        }
        let whole = Whole::default();
        if self.is_later_link(&node, arrival.as_ref(), &whole) {
            return Ok(());
        }
        match node.kind {
            FileKind::File => self.file(node, arrival, whole),
            _ => self.other(node, arrival, &whole),
        }
    }

    /// Gets a directory out of the way of something else. Whether the way is clear.
    fn clear_way(&self, arrival: &Arrival<'_>) -> Result<bool, Error> {
        let Some(before) = &arrival.before else {
            return Ok(true);
        };
        if before.file_type != FileType::Directory || self.job.options.dry_run {
            return Ok(true);
        }
        if self.job.options.delete {
            let device = Facts::of_open(&*arrival.dir)
                .map_or(before.identity.device, |facts| facts.identity.device);
            self.remove(&arrival.dir, arrival.name, device, arrival.place);
            return Ok(true);
        }
        let Err(error) = unlinkat(&*arrival.dir, arrival.name, AtFlags::REMOVEDIR) else {
            return Ok(true);
        };
        let what = "a directory is in its way";
        self.job.fail(arrival.path.clone(), what, error.into())?;
        Ok(false)
    }

    /// Whether the node is a further name of a file that has been planned or made, which is then planned as a link.
    /// Otherwise it may be the first of several, and `whole` is what the others will ask.
    fn is_later_link(&mut self, node: &Node, arrival: Option<&Arrival<'_>>, whole: &Whole) -> bool {
        if node.meta.links < 2 || node.meta.inode == 0 {
            return false;
        }
        let places = self.job.places;
        let key = (node.meta.device, node.meta.inode);
        let mut hasher = DefaultHasher::new();
        (format!("{:?}", node.kind), node.meta.size).hash(&mut hasher);
        node.content.hash(&mut hasher);
        let fingerprint = hasher.finish();
        if let Some(first) = self.links.get_mut(&key)
            // Numbers may be used again while a backup runs: what differs is another file.
            && first.fingerprint == fingerprint
        {
            add(&self.job.counts.hard_links, 1);
            if let Some(arrival) = arrival.filter(|_| !self.job.options.dry_run) {
                places.hold(first.place);
                places.hold(arrival.place);
                self.batch.links.push(PlannedLink {
                    first_place: first.place,
                    first_name: first.name.clone(),
                    first_whole: first.whole.clone(),
                    place: arrival.place,
                    name: arrival.name.to_owned(),
                    is_free: arrival.before.is_none(),
                });
            }
            first.left -= 1;
            if first.left == 0 {
                places.release(first.place);
                self.links.remove(&key);
            }
            return true;
        }
        let place = arrival.map_or(PlaceId::TARGET, |arrival| arrival.place);
        places.hold(place);
        let target = LinkTarget {
            place,
            name: OsString::from_vec(node.name.clone()),
            fingerprint,
            left: node.meta.links - 1,
            whole: whole.clone(),
        };
        if let Some(old) = self.links.insert(key, target) {
            places.release(old.place);
        }
        false
    }

    fn file(
        &mut self,
        node: Node,
        arrival: Option<Arrival<'_>>,
        whole: Whole,
    ) -> Result<(), Error> {
        let job = self.job;
        let mut pieces = Vec::with_capacity(node.content.len());
        for id in &node.content {
            let Some(place) = job.reader.index().find(BlobKind::Data, *id) else {
                let kind = BlobKind::Data;
                let error = RepoError::BlobNotIndexed { kind, id: *id };
                let name = OsStr::from_bytes(&node.name);
                let path = arrival.map_or_else(|| job.path(PlaceId::TARGET, name), |a| a.path);
                return job.fail_by_repository(&path, error);
            };
            pieces.push(Piece {
                id: *id,
                length: u64::from(place.plain_length),
            });
        }
        let size = pieces.iter().map(|piece| piece.length).sum();
        let mut meta = node.meta;
        let extents = carry::unpack(&mut meta, size).holes;
        let Some(arrival) = arrival else {
            // A dry run, in a directory that doesn't exist.
            add(&job.counts.files_restored, 1);
            add(&job.counts.bytes_restored, size);
            return Ok(());
        };
        // Not by its time, which a file system may have rounded: to read it costs less than to fetch it.
        let regular = |before: &&Facts| before.file_type == FileType::RegularFile;
        let standing = arrival.before.as_ref().filter(regular);
        let may_be_there =
            standing.is_some_and(|before| before.size == size && before.links <= meta.links.max(1));
        let frame = self.frames.last_mut();
        let (temporary, begun) = match frame.and_then(|frame| frame.unfinished.as_mut()) {
            None => (job.names.next(), false),
            Some(unfinished) => {
                let temporary = TemporaryNames::of(arrival.name);
                let begun = unfinished.remove(&temporary);
                (temporary, begun)
            }
        };
        job.places.hold(arrival.place);
        self.batch.add(
            PlannedFile {
                place: arrival.place,
                name: arrival.name.to_owned(),
                temporary,
                begun,
                stands: standing.is_some(),
                is_free: arrival.before.is_none(),
                remaining: pieces.len().into(),
                pieces,
                size,
                extents,
                state: std::sync::Mutex::default(),
                whole,
                meta,
            },
            may_be_there,
        );
        Ok(())
    }

    /// Links, devices, fifos and sockets.
    fn other(
        &mut self,
        node: Node,
        arrival: Option<Arrival<'_>>,
        whole: &Whole,
    ) -> Result<(), Error> {
        let job = self.job;
        add(&job.counts.others, 1);
        job.reporter.progress.advanced(1, 0);
        let Some(arrival) = arrival.filter(|_| !job.options.dry_run) else {
            return Ok(());
        };
        let mut meta = node.meta;
        carry::unpack(&mut meta, 0);
        let apply = |name: &OsStr| {
            Subject {
                inode: Inode::Named(arrival.dir.as_fd(), name),
                path: &arrival.path,
                reporter: job.reporter,
            }
            .apply(&node.kind, &meta);
        };
        let keeps = |before: &Facts| before.links <= meta.links.max(1);
        if arrival.before.as_ref().is_some_and(keeps) && arrival.is_already(&node.kind) {
            apply(arrival.name);
            whole.set();
            return Ok(());
        }
        let temporary = job.names.next();
        let made = make_other(&arrival.dir, &temporary, &node.kind).and_then(|()| {
            apply(&temporary);
            let is_free = arrival.before.is_none();
            fs::rename(&*arrival.dir, &temporary, arrival.name, is_free).inspect_err(|_| {
                // Nothing can be done about a second failure.
                let _ = unlinkat(&*arrival.dir, &temporary, AtFlags::empty());
            })
        });
        match made {
            Ok(()) => {
                whole.set();
                Ok(())
            }
            Err(error) => job.fail(arrival.path, "it can't be made", error),
        }
    }

    fn directory(&mut self, node: Node, arrival: Option<Arrival<'_>>) -> Result<(), Error> {
        let job = self.job;
        let name = OsStr::from_bytes(&node.name);
        let path = match &arrival {
            Some(arrival) => arrival.path.clone(),
            None => job.path(PlaceId::TARGET, name),
        };
        let above = self.frames.last().map(|frame| frame.reach.clone());
        let mut reach = match above {
            Some(Reach::Above(path)) => Reach::of(path.join(name), self.roots),
            Some(reach) => reach,
            None => Reach::Unlisted,
        };
        let (place, mut found) = match &arrival {
            None => (None, Found::New),
            Some(arrival) => match open_or_make(arrival, job.options.dry_run) {
                Ok(None) => (None, Found::New),
                Ok(Some((handle, found))) => match job.places.add(arrival.place, name, handle) {
                    Ok(place) => (Some(place), found),
                    Err(error) => return job.fail(path, "it can't be opened", error),
                },
                Err(error) => {
                    let what = "neither it nor anything in it is restored";
                    return job.fail(path, what, error);
                }
            },
        };
        add(&job.counts.directories, 1);
        job.reporter.progress.advanced(1, 0);
        let tree = match node.subtree {
            Some(subtree) => job.reader.tree(subtree),
            None => Ok(Tree::default()),
        };
        let tree = match tree {
            Ok(tree) => tree,
            Err(error) => {
                job.fail_by_repository(&path, error)?;
                // Nobody knows what belongs into it: nothing in it may be deleted.
                found = Found::New;
                Tree::default()
            }
        };
        let mut meta = node.meta;
        if carry::unpack(&mut meta, 0).unlisted {
            reach = Reach::Unlisted;
        }
        self.enter(tree, Some(meta), place, found, reach)
    }
}

/// Waits for the batch that runs.
fn end(running: Option<ScopedJoinHandle<'_, Result<(), Error>>>) -> Result<(), Error> {
    let ended = running.map(|running| running.join().unwrap_or_else(|panic| resume_unwind(panic)));
    ended.unwrap_or(Ok(()))
}

/// What SQLite may have left beside the databases of a tree: it is of what stood there before them.
fn companions(nodes: &[Node]) -> HashSet<OsString> {
    let databases = nodes.iter().filter(|node| carry::is_sqlite(&node.meta));
    let beside = |node: &Node| {
        let name = node.name.as_slice();
        COMPANIONS.map(|end| OsString::from_vec([name, end.as_bytes()].concat()))
    };
    databases.flat_map(beside).collect()
}

fn is_file(dir: &OwnedFd, name: &OsStr) -> bool {
    let facts = Facts::of(dir, name);
    facts.is_ok_and(|facts| facts.file_type == FileType::RegularFile)
}

impl Arrival<'_> {
    /// Whether what is there is of that kind, with the same target or device.
    fn is_already(&self, kind: &FileKind) -> bool {
        let Some(before) = &self.before else {
            return false;
        };
        match (kind, before.file_type) {
            (FileKind::Symlink { target }, FileType::Symlink) => {
                fs::link_target(&*self.dir, self.name).is_ok_and(|found| found == *target)
            }
            (FileKind::BlockDevice { rdev }, FileType::BlockDevice)
            | (FileKind::CharDevice { rdev }, FileType::CharacterDevice) => before.rdev == *rdev,
            (FileKind::Fifo, FileType::Fifo) | (FileKind::Socket, FileType::Socket) => true,
            _ => false,
        }
    }
}

fn make_other(dir: &OwnedFd, name: &OsStr, kind: &FileKind) -> io::Result<()> {
    let node = |file_type, rdev| mknodat(dir, name, file_type, Mode::RUSR | Mode::WUSR, rdev);
    match kind {
        FileKind::Symlink { target } => symlinkat(OsStr::from_bytes(target), dir, name),
        FileKind::BlockDevice { rdev } => node(FileType::BlockDevice, *rdev),
        FileKind::CharDevice { rdev } => node(FileType::CharacterDevice, *rdev),
        FileKind::Fifo => node(FileType::Fifo, 0),
        FileKind::Socket => node(FileType::Socket, 0),
        FileKind::File | FileKind::Directory | FileKind::Unknown { .. } => {
            return Err(ErrorKind::InvalidInput.into());
        }
    }?;
    Ok(())
}

/// Opens a directory, or makes it where there is none. What else is in its way is replaced. `None` is a dry run that
/// finds none.
fn open_or_make(arrival: &Arrival<'_>, dry_run: bool) -> io::Result<Option<(OwnedFd, Found)>> {
    let (dir, name) = (&*arrival.dir, arrival.name);
    if let Some(before) = &arrival.before {
        if before.file_type == FileType::Directory {
            let lacks = before.mode & 0o700 != 0o700;
            if lacks && !dry_run && !rustix::process::geteuid().is_root() {
                set_mode(Inode::Named(dir.as_fd(), name), before.mode | 0o700)?;
            }
            return Ok(Some((fs::open_dir(dir, name)?, Found::Existing)));
        }
        if !dry_run {
            unlinkat(dir, name, AtFlags::empty())?;
        }
    }
    if dry_run {
        return Ok(None);
    }
    mkdirat(dir, name, Mode::RWXU)?;
    Ok(Some((fs::open_dir(dir, name)?, Found::New)))
}
