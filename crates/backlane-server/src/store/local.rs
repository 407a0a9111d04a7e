//! A repository in a directory, laid out as restic's local backend has it, so that stock tools can open it.
//!
//! An object is written to `tmp/` (which stock tools don't look at), synced, renamed without replacing, and its
//! directory synced (§2). Paths are made of hexadecimal digits of an id alone, so no name leads elsewhere. A lock on
//! `backlane.lock` is held as long as the store is open: shared by sessions, exclusive by maintenance (§3).
//!
//! The file of a pack has an extended attribute which says what the pack holds, so that the directory is whole without the
//! state database.

use super::{
    ByteSink, ByteSource, ByteStore, LaidAside, Origin, Placed, Shelf, sink::LocalSink,
    source::LocalSource, wal,
};
use crate::{
    HostName, ServerError,
    db::{Arrival, Timestamp},
    error::io_error,
};
use backlane_proto::{ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents, WalName};
use rustix::{
    fs::{
        CWD, FallocateFlags, FlockOperation, RenameFlags, XattrFlags, fallocate, flock, fsetxattr,
        lgetxattr, renameat_with,
    },
    io::Errno,
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use uuid::Uuid;

const LOCK_FILE: &str = "backlane.lock";
const TEMPORARY_DIRECTORY: &str = "tmp";
/// How often another temporary file is made when a sweep has just taken the last one.
const TEMPORARY_NAMES_MAX: u32 = 100;
/// The attribute of a pack that says what it holds, and its values.
const CONTENTS_ATTRIBUTE: &str = "user.backlane.contents";
const DATA: &[u8] = b"data";
const TREES: &[u8] = b"trees";
const OBJECT_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// How a repository is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Together with other sessions; nothing is removed.
    Shared,
    /// Not at all, beside whoever holds it: for archived WAL alone (`wal.md` §3).
    Beside,
    /// Alone; objects may be removed.
    Exclusive,
}

/// The objects of one repository, in a directory.
#[derive(Debug)]
pub(crate) struct LocalStore {
    root: PathBuf,
    hold: Hold,
    /// Keeps the lock; it is released when the file is closed.
    _lock: File,
    /// Keeps the lock of the one session that may make this repository, once it began to.
    founding: Mutex<Option<File>>,
}

impl LocalStore {
    /// Opens the repository in `root`, makes what is missing of its directories, and holds it.
    ///
    /// What killed processes left in `tmp/` is removed on the way.
    ///
    /// # Errors
    /// [`ServerError::Busy`] when somebody holds the repository in a way that excludes this.
    pub(crate) fn open(root: &Path, host: &HostName, hold: Hold) -> Result<Self, ServerError> {
        let lock_path = root.join(LOCK_FILE);
        if !lock_path.exists() {
            create_layout(root)?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        let lock_as = match hold {
            Hold::Shared => Some((
                FlockOperation::NonBlockingLockShared,
                "maintenance is running",
            )),
            Hold::Exclusive => Some((
                FlockOperation::NonBlockingLockExclusive,
                "sessions are open, or other maintenance is running",
            )),
            Hold::Beside => None,
        };
        if let Some((operation, why)) = lock_as
            && !try_lock(&lock, &lock_path, operation)?
        {
            let host = host.to_string();
            return Err(ServerError::Busy { host, why });
        }
        if hold == Hold::Exclusive {
            refuse_stock_locks(root)?;
        }
        sweep(&root.join(TEMPORARY_DIRECTORY))?;
        Ok(Self {
            root: root.to_owned(),
            hold,
            _lock: lock,
            founding: Mutex::new(None),
        })
    }

    /// Lets this session put a key, which it may only while it makes the repository.
    ///
    /// A key that doesn't fit the config would be taken by stock tools, which try one key, and keep them out. So one
    /// session at a time makes a repository, it begins without the keys that an earlier one left before it wrote a
    /// config, and nobody adds keys afterwards.
    fn found(&self, key: &Path) -> Result<(), ServerError> {
        let mut founding = self.founding.lock().unwrap_or_else(PoisonError::into_inner);
        if founding.is_some() || key.exists() {
            return Ok(());
        }
        let keys = self.root.join("keys");
        let lock = File::open(&keys).map_err(io_error("open", &keys))?;
        if !try_lock(&lock, &keys, FlockOperation::NonBlockingLockExclusive)? {
            return Err(ServerError::Denied(
                "another job of this host is making the repository just now",
            ));
        }
        if !self.list(ObjectKind::Config)?.is_empty() {
            return Err(ServerError::Denied(
                "the repository is made, only an administrator may add keys to it",
            ));
        }
        let kinds = [
            ObjectKind::Snapshot,
            ObjectKind::Index,
            ObjectKind::Pack,
            ObjectKind::Wal,
        ];
        for kind in kinds {
            if !self.list(kind)?.is_empty() {
                // To begin anew would take the keys away that open what is there.
                return Err(foreign(
                    self.root.join("config"),
                    "it is missing, and the repository isn't empty: put it back from a copy of the directory",
                ));
            }
        }
        for stale in self.list(ObjectKind::Key)? {
            let path = self.path(ObjectName {
                kind: ObjectKind::Key,
                id: stale.id,
            });
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            sync_parent(&path)?;
        }
        *founding = Some(lock);
        Ok(())
    }

    /// Refuses a first config from a session that doesn't make the repository, for it is sealed under what is in another
    /// key. A job that goes on by another connection is another session.
    fn check_founding(&self) -> Result<(), ServerError> {
        let founding = self.founding.lock().unwrap_or_else(PoisonError::into_inner);
        if founding.is_some() || !self.list(ObjectKind::Config)?.is_empty() {
            return Ok(());
        }
        Err(ServerError::Denied(
            "the config comes from the session that makes the repository, behind its key",
        ))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, name: ObjectName) -> PathBuf {
        let directory = match name.kind {
            ObjectKind::Config => return self.root.join("config"),
            ObjectKind::Key => "keys".into(),
            ObjectKind::Index => "index".into(),
            ObjectKind::Snapshot => "snapshots".into(),
            ObjectKind::Pack => format!("data/{:02x}", name.id.0[0]),
            ObjectKind::Wal => match WalName::from_id(name.id) {
                Some(name) => return self.root.join(name.to_string()),
                // Where nothing ever is: names are checked where they enter.
                None => "wal".into(),
            },
        };
        self.root.join(directory).join(name.id.to_string())
    }

    fn check_alone(&self) -> Result<(), ServerError> {
        match self.hold {
            Hold::Exclusive => Ok(()),
            Hold::Shared | Hold::Beside => Err(ServerError::Denied(
                "objects are removed by maintenance alone",
            )),
        }
    }

    /// Makes a temporary file and locks it, which tells the sweep of another session that somebody is writing it.
    fn temporary(&self) -> Result<(PathBuf, File), ServerError> {
        let directory = self.root.join(TEMPORARY_DIRECTORY);
        for _ in 0..TEMPORARY_NAMES_MAX {
            let path = directory.join(Uuid::new_v4().to_string());
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(OBJECT_MODE)
                .open(&path)
                .map_err(io_error("create", &path))?;
            // A sweep may have come between the two; then it has removed, or will remove, the file.
            let locked = try_lock(&file, &path, FlockOperation::NonBlockingLockExclusive)?;
            let metadata = file.metadata().map_err(io_error("look at", &path))?;
            if locked && metadata.nlink() > 0 {
                return Ok((path, file));
            }
        }
        Err(io_error("keep a temporary file in", directory)(
            io::ErrorKind::ResourceBusy.into(),
        ))
    }
}

impl ByteStore for LocalStore {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, ServerError> {
        let mut objects = Vec::new();
        match kind {
            ObjectKind::Config => {
                let path = self.root.join("config");
                match fs::symlink_metadata(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_error("look at", path)(error)),
                    Ok(metadata) if metadata.is_file() => objects.push(ObjectInfo {
                        id: ObjectId::NONE,
                        bytes: metadata.len(),
                    }),
                    Ok(_) => return Err(foreign(path, NOT_A_FILE)),
                }
            }
            ObjectKind::Key => list_directory(&self.root.join("keys"), None, &mut objects)?,
            ObjectKind::Index => list_directory(&self.root.join("index"), None, &mut objects)?,
            ObjectKind::Snapshot => {
                list_directory(&self.root.join("snapshots"), None, &mut objects)?;
            }
            ObjectKind::Pack => list_packs(&self.root.join("data"), &mut objects)?,
            ObjectKind::Wal => wal::list(&self.root, Path::new("wal"), 0, &mut objects)?,
        }
        objects.sort_unstable_by_key(|object| object.id);
        Ok(objects)
    }

    fn open(&self, name: ObjectName) -> Result<Box<dyn ByteSource>, ServerError> {
        Ok(Box::new(LocalSource::open(self.path(name), name)?))
    }

    fn create(&self, arrival: Arrival) -> Result<Box<dyn ByteSink>, ServerError> {
        let Arrival {
            name,
            contents,
            bytes,
        } = arrival;
        if self.hold == Hold::Shared {
            match name.kind {
                ObjectKind::Key => self.found(&self.path(name))?,
                ObjectKind::Config => self.check_founding()?,
                _ => {}
            }
        }
        let (temporary, file) = self.temporary()?;
        let sink = LocalSink {
            file,
            temporary,
            target: self.path(name),
            makes_directories: name.kind == ObjectKind::Wal,
            written: 0,
            stays_in_memory: name.kind != ObjectKind::Pack || contents == PackContents::Trees,
            placed: false,
        };
        if bytes > 0 {
            // Full disks are found before the body travels. Where this can't be done, writing finds them.
            match fallocate(&sink.file, FallocateFlags::KEEP_SIZE, 0, bytes) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(errno) => {
                    return Err(io_error("allocate", &sink.temporary)(errno.into()));
                }
            }
        }
        if name.kind == ObjectKind::Pack {
            let label = match contents {
                PackContents::Data => DATA,
                PackContents::Trees => TREES,
            };
            match fsetxattr(&sink.file, CONTENTS_ATTRIBUTE, label, XattrFlags::CREATE) {
                // The state database has it; whoever loses that needs the repository's key to learn it anew.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(errno) => return Err(io_error("label", &sink.temporary)(errno.into())),
            }
        }
        Ok(Box::new(sink))
    }

    fn origin(&self, name: ObjectName) -> Result<Origin, ServerError> {
        origin_of(&self.path(name)).map_err(|error| match error {
            ServerError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ServerError::NotFound { name }
            }
            error => error,
        })
    }

    fn lay_aside(&self, name: ObjectName, shelf: Shelf, at: Timestamp) -> Result<(), ServerError> {
        // What is damaged is of no use to a session that runs.
        if shelf == Shelf::Removed {
            self.check_alone()?;
        }
        self.lay_aside_file(name, shelf, at)
    }

    fn shelf(&self, shelf: Shelf) -> Result<Vec<LaidAside>, ServerError> {
        self.list_shelf(shelf)
    }

    fn shelf_origin(&self, shelf: Shelf, aside: &LaidAside) -> Result<Origin, ServerError> {
        LocalStore::shelf_origin(self, shelf, aside)
    }

    fn open_aside(
        &self,
        shelf: Shelf,
        aside: &LaidAside,
    ) -> Result<Box<dyn ByteSource>, ServerError> {
        let path = self.aside_path(shelf, aside);
        Ok(Box::new(LocalSource::open(path, aside.name)?))
    }

    fn put_back(&self, shelf: Shelf, aside: &LaidAside) -> Result<Placed, ServerError> {
        self.check_alone()?;
        self.put_back_file(shelf, aside)
    }

    fn discard(&self, shelf: Shelf, aside: &LaidAside) -> Result<(), ServerError> {
        self.check_alone()?;
        self.discard_file(shelf, aside)
    }

    fn remove(&self, name: ObjectName) -> Result<(), ServerError> {
        self.check_alone()?;
        let path = self.path(name);
        fs::remove_file(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ServerError::NotFound { name },
            _ => io_error("remove", &path)(error),
        })?;
        sync_parent(&path)
    }
}

pub(super) const NOT_A_FILE: &str = "it is not a regular file";

pub(super) fn foreign(path: PathBuf, why: &'static str) -> ServerError {
    ServerError::Foreign { path, why }
}

/// Lists the objects of one directory. `first` is the first byte that every id has to have.
fn list_directory(
    directory: &Path,
    first: Option<u8>,
    objects: &mut Vec<ObjectInfo>,
) -> Result<(), ServerError> {
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let entry = entry.map_err(io_error("list", directory))?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if is_stock_temporary(name) {
            tracing::debug!(path = %path.display(), "left out of the list: a stock tool's temporary file");
            continue;
        }
        let Some(id) = ObjectId::from_hex(name) else {
            return Err(foreign(path, "its name is not the name of an object"));
        };
        if first.is_some_and(|first| first != id.0[0]) {
            return Err(foreign(path, "it is in another pack's directory"));
        }
        // Does not follow symbolic links.
        let metadata = entry.metadata().map_err(io_error("look at", &path))?;
        if !metadata.is_file() {
            return Err(foreign(path, NOT_A_FILE));
        }
        objects.push(ObjectInfo {
            id,
            bytes: metadata.len(),
        });
    }
    Ok(())
}

fn list_packs(data: &Path, objects: &mut Vec<ObjectInfo>) -> Result<(), ServerError> {
    for entry in fs::read_dir(data).map_err(io_error("list", data))? {
        let entry = entry.map_err(io_error("list", data))?;
        let name = entry.file_name();
        let ours = name
            .to_str()
            .is_some_and(|name| (0..=u8::MAX).any(|first| name == format!("{first:02x}")));
        if !ours {
            return Err(foreign(
                entry.path(),
                "only directories named 00 to ff belong here",
            ));
        }
    }
    // A directory that is missing fails here: its packs may have been lost with it.
    for first in 0..=u8::MAX {
        list_directory(&data.join(format!("{first:02x}")), Some(first), objects)?;
    }
    Ok(())
}

/// Whether a stock restic was killed while it wrote this: it writes to `ID-tmp-DIGITS` beside the final name.
fn is_stock_temporary(name: &str) -> bool {
    name.split_once("-tmp-").is_some_and(|(id, digits)| {
        ObjectId::from_hex(id).is_some()
            && !digits.is_empty()
            && digits.bytes().all(|digit| digit.is_ascii_digit())
    })
}

fn create_layout(root: &Path) -> Result<(), ServerError> {
    make_directory(root)?;
    for name in [
        "keys",
        "index",
        "snapshots",
        "locks",
        "data",
        TEMPORARY_DIRECTORY,
    ] {
        make_directory(&root.join(name))?;
    }
    let data = root.join("data");
    for first in 0..=u8::MAX {
        make_directory(&data.join(format!("{first:02x}")))?;
    }
    sync_directory(&data)?;
    sync_directory(root)?;
    sync_parent(root)
}

/// Makes a directory below one that exists: a disk that isn't mounted must not be replaced by its mount point.
pub(super) fn make_directory(path: &Path) -> Result<(), ServerError> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(io_error("create the directory", path)),
    }
}

/// Removes the temporary files that no live process holds locked.
fn sweep(directory: &Path) -> Result<(), ServerError> {
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let path = entry.map_err(io_error("list", directory))?.path();
        let file = match OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(io_error("open", &path))?,
        };
        if !try_lock(&file, &path, FlockOperation::NonBlockingLockExclusive)? {
            continue;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => {
                removed.map_err(io_error("remove", &path))?;
                tracing::info!(path = %path.display(), "removed what an interrupted put had left");
            }
        }
    }
    Ok(())
}

fn try_lock(file: &File, path: &Path, operation: FlockOperation) -> Result<bool, ServerError> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(io_error("lock", path)(errno.into())),
    }
}

fn refuse_stock_locks(root: &Path) -> Result<(), ServerError> {
    let locks = root.join("locks");
    match fs::read_dir(&locks)
        .map_err(io_error("list", &locks))?
        .next()
    {
        None => Ok(()),
        Some(entry) => Err(foreign(
            entry.map_err(io_error("list", &locks))?.path(),
            "a stock tool holds the repository, or was killed while it did (`restic unlock` removes the lock)",
        )),
    }
}

/// What the file of an object says of how it came. A rename changes none of it.
pub(super) fn origin_of(path: &Path) -> Result<Origin, ServerError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let mut value = [0; TREES.len()];
    let contents = match lgetxattr(path, CONTENTS_ATTRIBUTE, &mut value) {
        Ok(length) => match &value[..length] {
            DATA => Some(PackContents::Data),
            TREES => Some(PackContents::Trees),
            _ => None,
        },
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP | Errno::NOSYS) => None,
        Err(errno) => return Err(io_error("read the label of", path)(errno.into())),
    };
    let milliseconds = metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000;
    Ok(Origin {
        written_at: Timestamp(milliseconds),
        contents,
    })
}

pub(super) fn rename_without_replacing(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems (NFS) don't know the flag. A link never replaces either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::link(from, to)?;
            rustix::fs::unlink(from)
        }
        done => done,
    }
}

pub(super) fn sync_parent(path: &Path) -> Result<(), ServerError> {
    sync_directory(path.parent().expect("what is synced lies in a directory"))
}

pub(crate) fn sync_directory(path: &Path) -> Result<(), ServerError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(root: &Path) -> LocalStore {
        LocalStore::open(root, &"web1".parse().unwrap(), Hold::Shared).unwrap()
    }

    fn put(store: &LocalStore, name: ObjectName, body: &[u8]) -> Placed {
        let mut sink = store.create(arrival(name, body.len() as u64)).unwrap();
        sink.write(body).unwrap();
        sink.sync().unwrap();
        sink.place().unwrap()
    }

    fn arrival(name: ObjectName, bytes: u64) -> Arrival {
        Arrival {
            name,
            contents: PackContents::Data,
            bytes,
        }
    }

    fn pack(byte: u8) -> ObjectName {
        ObjectName {
            kind: ObjectKind::Pack,
            id: ObjectId([byte; 32]),
        }
    }

    #[test]
    fn placed_object_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        assert_eq!(put(&store, pack(1), b"first"), Placed::Created);
        assert_eq!(put(&store, pack(1), b"second"), Placed::Existed);
        let source = store.open(pack(1)).unwrap();
        assert_eq!(source.read(0, 5).unwrap(), "first");
        assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn dropped_sink_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let mut sink = store.create(arrival(pack(1), 3)).unwrap();
        sink.write(b"abc").unwrap();
        drop(sink);
        assert_eq!(store.list(ObjectKind::Pack).unwrap(), []);
        assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn one_session_at_a_time_makes_a_repository_and_nobody_adds_keys_to_it() {
        let root = tempfile::tempdir().unwrap();
        let key = |byte| ObjectName {
            kind: ObjectKind::Key,
            ..pack(byte)
        };
        let config = ObjectName {
            kind: ObjectKind::Config,
            id: ObjectId::NONE,
        };
        let first = store(root.path());
        put(&first, key(1), b"first");
        let second = store(root.path());
        assert!(matches!(
            second.create(arrival(key(2), 3)),
            Err(ServerError::Denied(_))
        ));
        // The first ends before it wrote a config: its key fits nothing.
        drop(first);
        assert!(matches!(
            second.create(arrival(config, 6)),
            Err(ServerError::Denied(_))
        ));
        put(&second, key(2), b"second");
        put(&second, key(3), b"third");
        put(&second, config, b"config");
        drop(second);
        let third = store(root.path());
        assert!(matches!(
            third.create(arrival(key(4), 3)),
            Err(ServerError::Denied(_))
        ));
        assert_eq!(put(&third, key(2), b"second"), Placed::Existed);
        assert_eq!(put(&third, config, b"config"), Placed::Existed);
        let keys: Vec<_> = third.list(ObjectKind::Key).unwrap();
        assert_eq!(
            keys.iter().map(|k| k.id).collect::<Vec<_>>(),
            [key(2).id, key(3).id]
        );
    }

    #[test]
    fn list_fails_on_what_is_foreign_and_names_it() {
        let id = pack(0xab).id.to_string();
        for (place, what) in [
            (format!("data/ab/{}", &id[1..]), "short name"),
            (format!("data/ab/{}", id.to_uppercase()), "capital letters"),
            (format!("data/aa/{id}"), "wrong directory"),
            (format!("data/ab/{id}-tmp-x"), "almost a temporary name"),
            (format!("data/{id}"), "beside the directories"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let store = store(root.path());
            fs::write(root.path().join(&place), b"x").unwrap();
            let error = store.list(ObjectKind::Pack).unwrap_err().to_string();
            assert!(error.contains(&place), "{what}: {error}");
        }
    }

    #[test]
    fn list_fails_on_links_directories_and_a_missing_directory() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let key = root.path().join("keys").join(pack(1).id.to_string());
        std::os::unix::fs::symlink("/etc/passwd", &key).unwrap();
        assert!(store.list(ObjectKind::Key).is_err());
        fs::remove_file(&key).unwrap();
        fs::create_dir(&key).unwrap();
        assert!(store.list(ObjectKind::Key).is_err());
        fs::remove_dir(root.path().join("data/7f")).unwrap();
        let error = store.list(ObjectKind::Pack).unwrap_err().to_string();
        assert!(error.contains("data/7f"), "{error}");
    }

    #[test]
    fn list_leaves_out_what_a_killed_stock_tool_left() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        put(&store, pack(0xab), b"abc");
        let name = format!("data/ab/{}-tmp-123456", pack(0xab).id);
        fs::write(root.path().join(name), b"x").unwrap();
        let id = pack(0xab).id;
        let want = [ObjectInfo { id, bytes: 3 }];
        assert_eq!(store.list(ObjectKind::Pack).unwrap(), want);
    }

    #[test]
    fn sessions_and_maintenance_exclude_each_other() {
        let root = tempfile::tempdir().unwrap();
        let host: HostName = "web1".parse().unwrap();
        let (first, second) = (store(root.path()), store(root.path()));
        let open = |hold| LocalStore::open(root.path(), &host, hold);
        let is_busy = |found| matches!(found, Err(ServerError::Busy { .. }));
        assert!(is_busy(open(Hold::Exclusive)));
        drop((first, second));
        let alone = open(Hold::Exclusive).unwrap();
        assert!(is_busy(open(Hold::Shared)));
        assert!(is_busy(open(Hold::Exclusive)));
        drop(alone);
        assert!(open(Hold::Shared).is_ok());
    }

    #[test]
    fn maintenance_waits_for_stock_tools() {
        let root = tempfile::tempdir().unwrap();
        let host: HostName = "web1".parse().unwrap();
        drop(store(root.path()));
        fs::write(root.path().join("locks/some"), b"x").unwrap();
        let error = LocalStore::open(root.path(), &host, Hold::Exclusive).unwrap_err();
        assert!(error.to_string().contains("locks/some"), "{error}");
    }

    #[test]
    fn sweep_takes_what_the_dead_left_and_spares_what_is_being_written() {
        let root = tempfile::tempdir().unwrap();
        let first = store(root.path());
        let mut sink = first.create(arrival(pack(1), 3)).unwrap();
        sink.write(b"abc").unwrap();
        let left = root.path().join("tmp/left");
        fs::write(&left, b"x").unwrap();
        drop(store(root.path()));
        assert!(!left.exists());
        assert_eq!(sink.place().unwrap(), Placed::Created);
        assert!(first.open(pack(1)).is_ok());
    }

    #[test]
    fn sessions_remove_nothing() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        put(&store, pack(1), b"abc");
        assert!(matches!(store.remove(pack(1)), Err(ServerError::Denied(_))));
        assert!(store.open(pack(1)).is_ok());
    }
}
