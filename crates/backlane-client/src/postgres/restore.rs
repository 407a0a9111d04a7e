//! Brings a cluster back.
//!
//! Invariants: nothing is written but below the target and the directories that the user names for tablespaces, whatever
//! the snapshot says; and nothing below one on which a server runs, that is another cluster's, or that another cluster
//! may use as a tablespace. Until everything else is in place there is no `pg_control`, without which no server starts.

use crate::{
    error::Error,
    fs::{self, Facts},
    progress::Progress,
    restore::{RestoreOptions, RestoreSummary, restore},
};
use backlane_repo::{Cancel, Reader, SnapshotInfo};
use backlane_source::postgres::{
    BaseBackup, Control, Recovery, Tablespace, Target, WalMode, running_postmaster, settings,
};
use rustix::{
    fs::{
        AtFlags, Gid, Mode, OFlags, Uid, chown, chownat, fchown, fsync, openat, symlinkat, unlinkat,
    },
    io::Errno,
};
use std::{
    ffi::OsStr,
    fs::{File, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file of settings that the server keeps itself.
const SETTINGS: &str = "postgresql.auto.conf";

/// How to restore a cluster.
#[derive(Clone, Debug, Default)]
pub struct PostgresRestore {
    /// Whether it goes over what is left of the same cluster: only what differs is fetched, and what the backup doesn't
    /// have is removed.
    pub is_delta: bool,
    /// Where each tablespace goes, known by its name, number or old directory.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// How the cluster recovers. A backup that has its WAL recovers with that alone where nothing is said.
    pub recovery: Recovery,
    /// Whether files are read again.
    pub verify: bool,
}

/// Restores a base backup into `target`.
///
/// # Errors
/// As [`restore`](crate::restore); [`Error::NoBaseBackup`], [`Error::TargetNotEmpty`], [`Error::PostgresRuns`],
/// [`Error::TargetOfAnother`], [`Error::TablespaceNotEmpty`], [`Error::Tablespace`] or [`Error::TargetTooEarly`] before
/// anything is written; [`Error::ClusterIncomplete`].
pub fn restore_postgres(
    reader: &Reader,
    snapshot: &SnapshotInfo,
    target: &Path,
    postgres: &PostgresRestore,
    progress: &Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<RestoreSummary, Error> {
    let description = snapshot.description.as_deref();
    let backup = description.and_then(BaseBackup::from_description);
    let backup = backup.ok_or_else(|| Error::NoBaseBackup {
        snapshot: snapshot.id.to_string(),
    })?;
    if let Some(Target::Lsn(target)) = postgres.recovery.target
        && target < backup.stop_lsn
    {
        let stop = backup.stop_lsn;
        return Err(Error::TargetTooEarly { target, stop });
    }
    let places = places(&backup.tablespaces, &postgres.tablespaces)?;
    check_target(target, &backup, postgres)?;
    let parts = Parts {
        reader,
        snapshot,
        root: BaseBackup::root(backup.system),
        postgres,
        progress,
        cancel,
    };
    let tablespaces = parts.tablespaces(target, &places)?;

    // First, so that an interrupted restore is known by it.
    let mut done = parts.restore("data/PG_VERSION", target, Removal::No)?;
    let directory = OwnedFd::from(File::open(target).map_err(|source| at(target, source))?);
    // Before anything is overwritten that it belongs to.
    forget_control(&directory).map_err(|source| at(&target.join("global"), source))?;
    add(
        &mut done,
        parts.restore("data", target, Removal::OfTheRest)?,
    );
    let owner = owner(&directory).map_err(|source| at(target, source))?;
    // Before there is anything in them, so that what an interrupted restore leaves there is known for its own.
    link(&directory, &places, &tablespaces, owner).map_err(|source| at(target, source))?;
    for (_, from, to) in &tablespaces {
        add(&mut done, parts.restore(from, to, Removal::OfTheRest)?);
    }
    for file in ["top/backup_label", "top/backup_manifest"] {
        add(&mut done, parts.restore(file, target, Removal::No)?);
    }
    let has_wal = backup.wal == WalMode::Include;
    if has_wal {
        add(
            &mut done,
            parts.restore_below("top/pg_wal", (&directory, "pg_wal"))?,
        );
    }
    let is_alone = has_wal && postgres.recovery.is_default();
    let recovery = Some(&postgres.recovery).filter(|_| !is_alone);
    configure(&directory, recovery, owner).map_err(|source| at(target, source))?;
    if done.failed > 0 {
        return Err(Error::ClusterIncomplete {
            path: target.to_owned(),
            failed: done.failed,
        });
    }
    let control = parts.restore_below("top/global/pg_control", (&directory, "global"))?;
    add(&mut done, control);
    Ok(done)
}

/// Whether a restore removes what the snapshot doesn't have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// Where the restore goes over what is left of a cluster.
    OfTheRest,
    No,
}

/// What the restores of all parts share.
struct Parts<'a> {
    reader: &'a Reader,
    snapshot: &'a SnapshotInfo,
    root: PathBuf,
    postgres: &'a PostgresRestore,
    progress: &'a Arc<dyn Progress>,
    cancel: &'a Cancel,
}

impl Parts<'_> {
    fn restore(
        &self,
        part: impl AsRef<Path>,
        to: &Path,
        removal: Removal,
    ) -> Result<RestoreSummary, Error> {
        let options = RestoreOptions {
            delete: self.postgres.is_delta && removal == Removal::OfTheRest,
            // What a base backup could not read is an error, and no warning.
            delete_despite_warnings: true,
            verify: self.postgres.verify,
            ..RestoreOptions::default()
        };
        restore(
            self.reader,
            self.snapshot,
            Some(&self.root.join(part)),
            to,
            &options,
            Arc::clone(self.progress),
            self.cancel.clone(),
        )
    }

    /// Restores into the directory `name` in `directory`, which the snapshot may have put there: no link is followed.
    fn restore_below(
        &self,
        part: &str,
        (directory, name): (&OwnedFd, &str),
    ) -> Result<RestoreSummary, Error> {
        let opened = fs::open_dir(directory, OsStr::new(name));
        let opened = opened.map_err(|source| at(Path::new(name), source))?;
        // The very directory, whatever its name leads to by now.
        let path = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        self.restore(part, &path, Removal::No)
    }

    /// What of each tablespace goes where, after a look whether it may.
    fn tablespaces(
        &self,
        target: &Path,
        places: &[(Tablespace, PathBuf)],
    ) -> Result<Vec<(u32, PathBuf, PathBuf)>, Error> {
        let mut found = Vec::new();
        for (tablespace, place) in places {
            let oid = tablespace.oid.to_string();
            let from = Path::new("tablespaces").join(&oid);
            // Other versions' clusters may have directories beside this one's.
            for version in self.names(&from)? {
                let to = place.join(&version);
                let is_own = || {
                    let link = std::fs::read_link(target.join("pg_tblspc").join(&oid));
                    self.postgres.is_delta && link.is_ok_and(|link| link == *place)
                };
                if !is_empty(&to)? && !is_own() {
                    return Err(Error::TablespaceNotEmpty {
                        name: tablespace.name.clone(),
                        path: to,
                    });
                }
                found.push((tablespace.oid, from.join(version), to));
            }
        }
        Ok(found)
    }

    /// The names in a directory of the snapshot; none where there is no such directory.
    fn names(&self, path: &Path) -> Result<Vec<String>, Error> {
        let mut tree = self.reader.tree(self.snapshot.tree)?;
        for part in self.root.join(path).iter().skip(1) {
            let mut nodes = tree.nodes.into_iter();
            let node = nodes.find(|node| node.name == part.as_encoded_bytes());
            let Some(subtree) = node.and_then(|node| node.subtree) else {
                return Ok(Vec::new());
            };
            tree = self.reader.tree(subtree)?;
        }
        let names = tree.nodes.into_iter();
        let names = names.filter(|node| backlane_repo::name_is_plain(&node.name));
        Ok(names
            .filter_map(|node| String::from_utf8(node.name).ok())
            .collect())
    }
}

/// Where each tablespace goes.
fn places(
    tablespaces: &[Tablespace],
    wanted: &[(String, PathBuf)],
) -> Result<Vec<(Tablespace, PathBuf)>, Error> {
    let is_named = |tablespace: &Tablespace, key: &str| {
        tablespace.name == key
            || tablespace.oid.to_string() == key
            || tablespace.location == Path::new(key)
    };
    for (key, place) in wanted {
        if !tablespaces
            .iter()
            .any(|tablespace| is_named(tablespace, key))
        {
            let names: Vec<_> = tablespaces.iter().map(|it| it.name.as_str()).collect();
            let what = format!(
                "`{key}` is not in the backup, which has: {}",
                names.join(", ")
            );
            return Err(Error::Tablespace { what });
        }
        if !place.is_absolute() {
            let what = format!("`{key}` needs an absolute path: {}", place.display());
            return Err(Error::Tablespace { what });
        }
    }
    let place = |tablespace: &Tablespace| {
        let (name, location) = (&tablespace.name, tablespace.location.display());
        let named = wanted.iter().find(|(key, _)| is_named(tablespace, key));
        // Where it was is the snapshot's word.
        let (_, place) = named.ok_or_else(|| Error::Tablespace {
            what: format!("`{name}`, which was in {location}, has no place to go to"),
        })?;
        Ok((tablespace.clone(), place.clone()))
    };
    tablespaces.iter().map(place).collect()
}

/// Looks whether the backup may go into the target.
fn check_target(
    target: &Path,
    backup: &BaseBackup,
    postgres: &PostgresRestore,
) -> Result<(), Error> {
    if let Some(process) = running_postmaster(target) {
        let path = target.to_owned();
        return Err(Error::PostgresRuns { path, process });
    }
    if is_empty(target)? {
        return Ok(());
    }
    let path = target.to_owned();
    if !postgres.is_delta {
        return Err(Error::TargetNotEmpty { path });
    }
    let what = match Control::read(target) {
        Ok(control) if control.system == backup.system => return Ok(()),
        Ok(control) => format!(
            "its system identifier is {}, that of the backup {}",
            control.system, backup.system
        ),
        // What an interrupted restore left: nothing that a server could start on.
        Err(_) if target.join("PG_VERSION").exists() => return Ok(()),
        Err(_) => "no cluster is there".to_owned(),
    };
    Err(Error::TargetOfAnother { path, what })
}

fn is_empty(directory: &Path) -> Result<bool, Error> {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(source) => Err(at(directory, source)),
    }
}

/// Whose the cluster is.
#[derive(Clone, Copy)]
struct Owner(Option<Uid>, Option<Gid>);

fn owner(directory: &OwnedFd) -> io::Result<Owner> {
    let facts = Facts::of_open(directory)?;
    let (uid, gid) = (Uid::from_raw(facts.uid), Gid::from_raw(facts.gid));
    Ok(Owner(Some(uid), Some(gid)))
}

/// Takes away what the cluster that was there would start on.
fn forget_control(directory: &OwnedFd) -> io::Result<()> {
    match fs::open_dir(directory, OsStr::new("global")) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        global => {
            let global = global?;
            remove(&global, "pg_control")?;
            Ok(fsync(&global)?)
        }
    }
}

/// Makes the directories of tablespaces, gives those to the cluster's owner that have nothing of others in them, and links
/// them.
fn link(
    directory: &OwnedFd,
    places: &[(Tablespace, PathBuf)],
    restored: &[(u32, PathBuf, PathBuf)],
    Owner(uid, gid): Owner,
) -> io::Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let links = fs::open_dir(directory, OsStr::new("pg_tblspc"))?;
    for (tablespace, place) in places {
        std::fs::create_dir_all(place)?;
        let is_ours = |path: PathBuf| restored.iter().any(|(_, _, to)| *to == path);
        if std::fs::read_dir(place)?.all(|entry| entry.is_ok_and(|entry| is_ours(entry.path()))) {
            std::fs::set_permissions(place, Permissions::from_mode(0o700))?;
            chown(place, uid, gid)?;
        }
        let name = tablespace.oid.to_string();
        remove(&links, &name)?;
        symlinkat(place, &links, &name)?;
        chownat(&links, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(fsync(&links)?)
}

/// Says how the cluster is to recover.
fn configure(directory: &OwnedFd, recovery: Option<&Recovery>, owner: Owner) -> io::Result<()> {
    let mut before = String::new();
    match fs::open_file(directory, OsStr::new(SETTINGS)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => {
            File::from(opened?).read_to_string(&mut before)?;
        }
    }
    write(directory, SETTINGS, &settings(&before, recovery), owner)?;
    if let Some(recovery) = recovery {
        write(directory, recovery.signal_file(), "", owner)?;
    }
    Ok(fsync(directory)?)
}

/// Writes a file anew.
fn write(directory: &OwnedFd, name: &str, content: &str, Owner(uid, gid): Owner) -> io::Result<()> {
    remove(directory, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(content.as_bytes())?;
    fchown(&file, uid, gid)?;
    file.sync_all()
}

fn remove(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

fn at(path: &Path, source: io::Error) -> Error {
    Error::Target {
        path: path.to_owned(),
        source,
    }
}

/// Adds what the restore of a part did to what the others did.
fn add(sum: &mut RestoreSummary, part: RestoreSummary) {
    sum.files_restored += part.files_restored;
    sum.files_kept += part.files_kept;
    sum.files_verified += part.files_verified;
    sum.directories += part.directories;
    sum.others += part.others;
    sum.hard_links += part.hard_links;
    sum.deleted += part.deleted;
    sum.bytes_restored += part.bytes_restored;
    sum.bytes_kept += part.bytes_kept;
    sum.bytes_fetched += part.bytes_fetched;
    sum.failed += part.failed;
    for (kind, count) in part.warnings.counts {
        *sum.warnings.counts.entry(kind).or_default() += count;
    }
    sum.warnings.first.extend(part.warnings.first);
    sum.seconds += part.seconds;
}
