//! Brings a server's files back, and has mariadb-backup prepare them.
//!
//! Invariants: nothing is written but below the target, whatever the snapshot says, and mariadb-backup is given no setting
//! of the snapshot's that could have it do so. Until the files are prepared they are in a directory of their own in the
//! target, so that no server starts on them.

use super::mark::Mark;
use crate::{
    error::Error,
    progress::{Progress, Reporter, WarningKind},
    restore::{RestoreSummary, hold_target},
};
use backlane_repo::{Cancel, Reader, SnapshotInfo, name_is_plain};
use backlane_source::mariadb::{
    self, KeyPlugin, LAST, PhysicalBackup, Sink, Stream, Tool, is_key_setting, loaded,
    provider_directory,
};
use rustix::fs::syncfs;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Where files are until they are prepared.
const UNFINISHED: &str = ".backlane-mariadb";

/// The names of what is being put in its place, each with a zero byte behind it.
const PUBLISHING: &str = ".backlane-mariadb-names";

/// What is put in its place last: no server starts without.
const LAST_OF_ALL: &str = "ibdata1";

/// What the files are prepared by.
pub(super) const SETTINGS: &str = "backup-my.cnf";

/// The settings in it that say nothing but how the files are written.
const HARMLESS: &[&str] = &[
    "innodb_checksum_algorithm",
    "innodb_compression_level",
    "innodb_encrypt_log",
    "innodb_encrypt_tables",
    "innodb_log_block_size",
    "innodb_log_file_size",
    "innodb_log_files_in_group",
    "innodb_page_size",
    "innodb_undo_tablespaces",
];

/// Restores a physical backup into `target`, which is empty or isn't there, and prepares it: a server can be started on it.
/// Where tables are encrypted `keys` says how mariadb-backup comes by their keys.
///
/// # Errors
/// As [`restore`](crate::restore); [`Error::NoPhysicalBackup`], [`Error::TargetBusy`] or [`Error::MariadbTargetNotEmpty`]
/// before anything is written; [`Error::Mariadb`] when the files can't be prepared.
pub fn restore_mariadb(
    reader: &Reader,
    snapshot: &SnapshotInfo,
    (target, keys): (&Path, Option<&KeyPlugin>),
    progress: &Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<(RestoreSummary, PhysicalBackup), Error> {
    let began = Instant::now();
    let description = snapshot.description.as_deref();
    let backup = description.and_then(PhysicalBackup::from_description);
    let (Some(backup), Some(path)) = (backup, snapshot.paths.first()) else {
        return Err(Error::NoPhysicalBackup {
            snapshot: snapshot.id.to_string(),
        });
    };
    let node = reader.node_at(snapshot.tree, path.as_bytes())?;
    let at = |source| Error::Target {
        path: target.to_owned(),
        source,
    };
    Tool::Backup.find()?;
    let _held = prepare_target(target)?;
    let unfinished = target.join(UNFINISHED);
    let reporter = Reporter::new(Arc::clone(progress), cancel.clone());
    let mut unpacking = Unpacking {
        stream: Stream::default(),
        files: Files::new(unfinished.clone(), &reporter),
        failure: None,
    };
    let dumped = reader.dump(&node, &mut unpacking);
    if let Some(error) = unpacking.failure.take() {
        return Err(error);
    }
    dumped?;
    unpacking.stream.end(LAST).map_err(mariadb::Error::from)?;
    let files = unpacking.files;
    let plugins = settle_settings(&unfinished.join(SETTINGS), keys)?;
    prepare(&unfinished, plugins.as_deref())?;
    let mark = Mark {
        snapshot: snapshot.id.to_string(),
        replay: None,
    };
    mark.write(&unfinished)?;
    publish(&unfinished, target).map_err(at)?;
    let summary = RestoreSummary {
        snapshot: snapshot.id.to_string(),
        dry_run: false,
        files_restored: files.files,
        files_kept: 0,
        files_verified: 0,
        directories: files.directories,
        others: 0,
        hard_links: 0,
        deleted: 0,
        bytes_restored: files.bytes,
        bytes_kept: 0,
        bytes_fetched: files.bytes,
        failed: 0,
        warnings: reporter.warnings(),
        seconds: began.elapsed().as_secs_f64(),
    };
    Ok((summary, backup))
}

/// Makes the target, or removes what an interrupted restore left in it; no other restores into it as long as the handle
/// is open.
fn prepare_target(target: &Path) -> Result<File, Error> {
    let at = |source| Error::Target {
        path: target.to_owned(),
        source,
    };
    make_directory(target, Parents::Too).map_err(at)?;
    let held = File::open(target).map_err(at)?;
    hold_target(&held, target)?;
    unpublish(target).map_err(at)?;
    let unfinished = target.join(UNFINISHED);
    for entry in fs::read_dir(target).map_err(at)? {
        if entry.map_err(at)?.file_name() != UNFINISHED {
            let path = target.to_owned();
            return Err(Error::MariadbTargetNotEmpty { path });
        }
    }
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    make_directory(&unfinished, Parents::No).map_err(at)?;
    Ok(held)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parents {
    Too,
    No,
}

fn make_directory(path: &Path, parents: Parents) -> io::Result<()> {
    let mut make = DirBuilder::new();
    make.mode(0o700).recursive(parents == Parents::Too);
    make.create(path)
}

/// The stream on its way into files.
struct Unpacking<'a> {
    stream: Stream,
    files: Files<'a>,
    failure: Option<Error>,
}

impl Write for Unpacking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fed = match self.files.reporter.cancel.is_cancelled() {
            true => Err(Error::Cancelled),
            false => self
                .stream
                .feed(bytes, &mut self.files)
                .map_err(|error| mariadb::Error::from(error).into()),
        };
        fed.map_err(|error| {
            let said = io::Error::other(error.to_string());
            self.failure = Some(error);
            said
        })?;
        self.files.reporter.progress.advanced(0, bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The files of a stream, below a directory of our own in which nobody else writes.
struct Files<'a> {
    directory: PathBuf,
    reporter: &'a Reporter,
    open: BTreeMap<PathBuf, File>,
    files: u64,
    directories: u64,
    bytes: u64,
}

impl<'a> Files<'a> {
    fn new(directory: PathBuf, reporter: &'a Reporter) -> Self {
        Self {
            directory,
            reporter,
            open: BTreeMap::new(),
            files: 0,
            directories: 0,
            bytes: 0,
        }
    }

    fn make_parents(&mut self, path: &Path) -> io::Result<()> {
        let mut directory = self.directory.clone();
        for name in path.parent().into_iter().flatten() {
            directory.push(name);
            match make_directory(&directory, Parents::No) {
                Ok(()) => self.directories += 1,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Sink for Files<'_> {
    fn data(&mut self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.open.contains_key(path) {
            self.make_parents(path)?;
            let mut make = OpenOptions::new();
            make.write(true).create_new(true).mode(0o600);
            let file = make.open(self.directory.join(path))?;
            self.open.insert(path.to_owned(), file);
            self.reporter.progress.current(path);
        }
        if let Some(file) = self.open.get(path) {
            file.write_all_at(bytes, at)?;
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn closed(&mut self, path: &Path) -> io::Result<()> {
        self.open.remove(path);
        self.files += 1;
        self.reporter.progress.advanced(1, 0);
        if path.extension() == Some(OsStr::new("isl")) {
            // It says where the table was: where another server may have it still. The table itself is in the backup.
            fs::remove_file(self.directory.join(path))?;
            let what = "the table that it belongs to was outside of the server's directory, and is in it now";
            self.reporter.warn(WarningKind::NotRestored, path, what);
        }
        Ok(())
    }

    fn renamed(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.make_parents(to)?;
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn removed(&mut self, path: &Path) -> io::Result<()> {
        self.files -= 1;
        fs::remove_file(self.directory.join(path))
    }
}

/// Looks whether the settings that the files are prepared by are harmless, and writes down what is done instead of those
/// that are not: mariadb-backup would take any, those that name plugins and other directories too. The settings of a
/// plugin for keys are replaced by this machine's. Returns the directory of plugins, if any are loaded.
fn settle_settings(path: &Path, keys: Option<&KeyPlugin>) -> Result<Option<PathBuf>, Error> {
    let at = |source| Error::Target {
        path: path.to_owned(),
        source,
    };
    let text = String::from_utf8_lossy(&fs::read(path).map_err(at)?).into_owned();
    let mut kept = Vec::new();
    let mut plugins = Vec::new();
    for line in text.lines().map(str::trim) {
        match meaning(line) {
            Meaning::Harmless => kept.push(line.to_owned()),
            Meaning::Placed => {}
            Meaning::Keys if keys.is_some() => {}
            Meaning::Plugins => {
                let (providers, others) = loaded(line);
                if others > 0 && keys.is_none() {
                    let line = line.to_owned();
                    return Err(Error::Mariadb(mariadb::Error::Keys { line }));
                }
                plugins.extend(providers);
            }
            Meaning::Keys => {
                // Without its value, which may be a password.
                let line = name(line).to_owned();
                return Err(Error::Mariadb(mariadb::Error::Keys { line }));
            }
            Meaning::Foreign => {
                return Err(Error::Mariadb(mariadb::Error::Setting {
                    path: path.to_owned(),
                    line: line.to_owned(),
                }));
            }
        }
    }
    let directory = provider_directory(&plugins, keys)?;
    plugins.extend(keys.map(|keys| keys.name.as_str()));
    if !plugins.is_empty() {
        kept.push(format!("plugin_load={}", plugins.join(";")));
    }
    kept.extend(
        keys.into_iter()
            .flat_map(|keys| keys.settings.iter().cloned()),
    );
    kept.push(String::new());
    fs::write(path, kept.join("\n")).map_err(at)?;
    Ok(directory)
}

/// The first of a backup's settings that a restore doesn't take, whatever keys there are.
pub(super) fn foreign_setting(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(str::trim);
    lines
        .find(|line| meaning(line) == Meaning::Foreign)
        .map(str::to_owned)
}

/// What a setting of a backup is.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// How its files are written.
    Harmless,
    /// Where something was. It is in the backup's own directory now.
    Placed,
    /// What the server had loaded.
    Plugins,
    /// How it came by its keys.
    Keys,
    /// Anything else.
    Foreign,
}

fn name(line: &str) -> &str {
    line.split('=').next().unwrap_or_default().trim()
}

fn meaning(line: &str) -> Meaning {
    if line.is_empty() || line.starts_with('#') || line == "[mysqld]" {
        return Meaning::Harmless;
    }
    let Some((_, value)) = line.split_once('=') else {
        return Meaning::Foreign;
    };
    match name(line).replace('-', "_").as_str() {
        // Files of the backup itself.
        "innodb_data_file_path" if value.contains('/') || value.contains("..") => Meaning::Foreign,
        "innodb_data_file_path" => Meaning::Harmless,
        "innodb_undo_directory" | "innodb_buffer_pool_filename" | "plugin_dir" => Meaning::Placed,
        "plugin_load" => Meaning::Plugins,
        name if HARMLESS.contains(&name) => Meaning::Harmless,
        name if is_key_setting(name) => Meaning::Keys,
        _ => Meaning::Foreign,
    }
}

/// Makes the files consistent. The program ends with this job: what it wrote later would be in the next one's way.
fn prepare(directory: &Path, plugins: Option<&Path>) -> Result<(), Error> {
    let mut command = Tool::Backup.bound();
    command.arg("--prepare");
    command.arg("--target-dir").arg(directory);
    if let Some(plugins) = plugins {
        command.arg("--plugin-dir").arg(plugins);
    }
    let output = command.output().map_err(|source| {
        let program = "setpriv";
        mariadb::Error::NoProgram { program, source }
    })?;
    let said = Tool::Backup.listen(&output.stderr[..]);
    match output.status.success() {
        true => Ok(()),
        false => Err(Tool::Backup.failed(output.status, said).into()),
    }
}

/// Puts prepared files in their place, the one last without which no server starts.
fn publish(unfinished: &Path, target: &Path) -> io::Result<()> {
    syncfs(File::open(unfinished)?)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(unfinished)? {
        names.push(entry?.file_name());
    }
    names.sort_by_key(|name| name == LAST_OF_ALL);
    let list = target.join(PUBLISHING);
    let mut file = File::create_new(&list)?;
    for name in &names {
        file.write_all(name.as_bytes())?;
        file.write_all(&[0])?;
    }
    syncfs(&file)?;
    for name in names {
        fs::rename(unfinished.join(&name), target.join(&name))?;
    }
    fs::remove_dir(unfinished)?;
    fs::remove_file(list)?;
    syncfs(File::open(target)?)?;
    Ok(())
}

/// Removes what an interrupted restore has put in its place, unless that was all.
fn unpublish(target: &Path) -> io::Result<()> {
    let list = target.join(PUBLISHING);
    let names = match fs::read(&list) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    // Without the directory all of them are in their place.
    if fs::exists(target.join(UNFINISHED))? && !fs::exists(target.join(LAST_OF_ALL))? {
        let names = names.split(|byte| *byte == 0);
        for name in names.filter(|name| name_is_plain(name)) {
            let path = target.join(OsStr::from_bytes(name));
            let removed = match fs::symlink_metadata(&path) {
                Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
                Ok(_) => fs::remove_file(path),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    fs::remove_file(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_snapshot_lead_nowhere() {
        for line in [
            "",
            "# a word",
            "[mysqld]",
            "innodb_page_size=16384",
            "innodb_data_file_path=ibdata1:12M:autoextend",
        ] {
            assert_eq!(meaning(line), Meaning::Harmless, "{line}");
        }
        for line in [
            "innodb_undo_directory=./",
            "innodb_undo_directory=/srv/undo",
            "plugin_dir=/tmp",
        ] {
            assert_eq!(meaning(line), Meaning::Placed, "{line}");
        }
        for line in [
            "plugin-load-add=x",
            "!include /etc/x",
            "[client]",
            "datadir=/var/lib/mysql",
            "innodb_data_file_path=/var/lib/mysql/ibdata1:12M",
            "innodb_data_file_path=../ibdata1:12M",
        ] {
            assert_eq!(meaning(line), Meaning::Foreign, "{line}");
            let text = format!("[mysqld]\nplugin_load=x\nx_key_management_y=z\n{line}\n");
            assert_eq!(foreign_setting(text.as_bytes()).as_deref(), Some(line));
        }
        assert_eq!(
            foreign_setting(b"[mysqld]\nplugin_dir=/p\nplugin_load=x\n"),
            None
        );
    }

    fn open() -> (tempfile::TempDir, Reporter) {
        let directory = tempfile::tempdir().unwrap();
        let reporter = Reporter::new(Arc::new(()), Cancel::default());
        (directory, reporter)
    }

    #[test]
    fn a_link_to_a_table_elsewhere_does_not_come_back() {
        let (directory, reporter) = open();
        let mut files = Files::new(directory.path().to_owned(), &reporter);
        for (path, content) in [("app/t.isl", "/srv/app/t.ibd"), ("app/t.ibd", "page")] {
            let path = Path::new(path);
            files.data(path, 0, content.as_bytes()).unwrap();
            files.closed(path).unwrap();
        }
        assert!(directory.path().join("app/t.ibd").exists());
        assert!(!directory.path().join("app/t.isl").exists());
        assert_eq!(reporter.warnings().count(WarningKind::NotRestored), 1);
    }

    #[test]
    fn only_an_interrupted_restore_is_begun_again() {
        let (directory, _) = open();
        let target = directory.path().join("new");
        prepare_target(&target).unwrap();
        fs::write(target.join(UNFINISHED).join("ibdata1"), "half").unwrap();
        prepare_target(&target).unwrap();
        assert_eq!(fs::read_dir(target.join(UNFINISHED)).unwrap().count(), 0);
        fs::write(target.join("ibdata1"), "precious").unwrap();
        let refused = prepare_target(&target).unwrap_err();
        assert!(
            matches!(refused, Error::MariadbTargetNotEmpty { .. }),
            "{refused}"
        );
        assert_eq!(fs::read(target.join("ibdata1")).unwrap(), b"precious");
    }

    #[test]
    fn what_another_restore_is_at_stays() {
        let (directory, _) = open();
        let target = directory.path().join("new");
        let held = prepare_target(&target).unwrap();
        let half = target.join(UNFINISHED).join("ibdata1");
        fs::write(&half, "half").unwrap();
        let refused = prepare_target(&target).unwrap_err();
        assert!(matches!(refused, Error::TargetBusy { .. }), "{refused}");
        assert!(half.exists());
        drop(held);
        prepare_target(&target).unwrap();
        assert!(!half.exists());
    }

    #[test]
    fn files_that_an_interrupted_restore_has_put_in_their_place_are_removed() {
        let (directory, _) = open();
        let target = directory.path().join("new");
        prepare_target(&target).unwrap();
        let unfinished = target.join(UNFINISHED);
        fs::create_dir(unfinished.join("app")).unwrap();
        for name in ["app/t.ibd", "ib_logfile0", "ibdata1"] {
            fs::write(unfinished.join(name), name).unwrap();
        }
        // The last of them can't be put in its place.
        fs::create_dir(target.join("ibdata1")).unwrap();
        publish(&unfinished, &target).unwrap_err();
        fs::remove_dir(target.join("ibdata1")).unwrap();
        assert!(target.join("app/t.ibd").exists());
        fs::write(target.join("mine"), "mine").unwrap();
        let refused = prepare_target(&target).unwrap_err();
        assert!(matches!(refused, Error::MariadbTargetNotEmpty { .. }));
        assert!(!target.join("app").exists() && target.join("mine").exists());
        fs::remove_file(target.join("mine")).unwrap();
        prepare_target(&target).unwrap();

        // What is whole stays, also if the list of it was not removed any more.
        fs::write(unfinished.join("ibdata1"), "whole").unwrap();
        publish(&unfinished, &target).unwrap();
        fs::write(target.join(PUBLISHING), "ibdata1\0").unwrap();
        prepare_target(&target).unwrap_err();
        assert_eq!(fs::read(target.join("ibdata1")).unwrap(), b"whole");
    }

    #[test]
    fn keys_come_from_where_this_machine_says() {
        let (directory, _) = open();
        let path = directory.path().join(SETTINGS);
        let theirs = "[mysqld]\ninnodb_page_size=16384\ninnodb_undo_directory=/srv/undo\n\nplugin_dir=\"/usr/lib/mysql/plugin/\"\n\
            plugin_load=file_key_management=file_key_management\nfile_key_management_filekey=secret\n";
        fs::write(&path, theirs).unwrap();
        let refused = settle_settings(&path, None).unwrap_err().to_string();
        assert!(refused.contains("(plugin_load=file_key") && !refused.contains("secret"));
        let keys = KeyPlugin {
            name: "file_key_management".to_owned(),
            directory: "/plugins".into(),
            settings: vec!["file_key_management_filename=/keys".to_owned()],
        };
        let plugins = settle_settings(&path, Some(&keys)).unwrap();
        assert_eq!(plugins.as_deref(), Some(Path::new("/plugins")));
        let ours = "[mysqld]\ninnodb_page_size=16384\n\nplugin_load=file_key_management\n\
            file_key_management_filename=/keys\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), ours);
        fs::write(&path, format!("{theirs}datadir=/var/lib/mysql\n")).unwrap();
        let refused = settle_settings(&path, Some(&keys)).unwrap_err();
        assert!(matches!(
            refused,
            Error::Mariadb(mariadb::Error::Setting { .. })
        ));
    }
}
