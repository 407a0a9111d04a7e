//! What the tests of whole jobs share: a repository in a directory, jobs with defaults, and the judge.

use backlane_client::{
    BackupOptions, BackupSummary, Cancel, Error, RestoreOptions, RestoreSummary, backup, restore,
};
use backlane_proto::{ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents};
use backlane_repo::{InitOptions, ObjectStore, Repository, StoreError};
use bytes::Bytes;
use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

pub(crate) const PASSWORD: &str = "open sesame";

/// Objects in a directory, as stock restic lays them out.
pub(crate) struct DirStore(pub(crate) PathBuf);

impl DirStore {
    pub(crate) fn path(&self, name: ObjectName) -> PathBuf {
        let id = name.id.to_string();
        match name.kind {
            ObjectKind::Config => self.0.join("config"),
            ObjectKind::Pack => self.0.join("data").join(&id[..2]).join(id),
            kind => self.dir(kind).join(id),
        }
    }

    fn dir(&self, kind: ObjectKind) -> PathBuf {
        self.0.join(match kind {
            ObjectKind::Config => "",
            ObjectKind::Key => "keys",
            ObjectKind::Index => "index",
            ObjectKind::Snapshot => "snapshots",
            ObjectKind::Pack => "data",
            ObjectKind::Wal => "wal",
        })
    }
}

fn failed(error: io::Error, name: ObjectName) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound { name },
        // What the server says of a pack that is shorter than the index has it.
        io::ErrorKind::UnexpectedEof => StoreError::Damaged {
            name,
            what: error.to_string(),
        },
        _ => StoreError::Failed(error.into()),
    }
}

impl ObjectStore for DirStore {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        if kind == ObjectKind::Config {
            let there = fs::metadata(self.0.join("config")).ok();
            return Ok(there
                .map(|there| ObjectInfo {
                    id: ObjectId::NONE,
                    bytes: there.len(),
                })
                .into_iter()
                .collect());
        }
        let mut dirs = vec![self.dir(kind)];
        let mut found = Vec::new();
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let entry = entry.map_err(|error| StoreError::Failed(error.into()))?;
                let meta = entry.metadata().unwrap();
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else {
                    let id = ObjectId::from_hex(entry.file_name().to_str().unwrap()).unwrap();
                    let bytes = meta.len();
                    found.push(ObjectInfo { id, bytes });
                }
            }
        }
        Ok(found)
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        let path = self.path(name);
        let Some(range) = range else {
            let all = fs::read(path).map_err(|error| failed(error, name))?;
            return Ok(all.into());
        };
        let file = fs::File::open(path).map_err(|error| failed(error, name))?;
        let mut bytes = vec![0; usize::try_from(range.length).unwrap()];
        file.read_exact_at(&mut bytes, range.offset)
            .map_err(|error| failed(error, name))?;
        Ok(bytes.into())
    }

    fn write(&self, name: ObjectName, _: PackContents, body: Bytes) -> Result<(), StoreError> {
        let path = self.path(name);
        let result =
            fs::create_dir_all(path.parent().unwrap()).and_then(|()| fs::write(path, body));
        result.map_err(|error| failed(error, name))
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        fs::remove_file(self.path(name)).map_err(|error| failed(error, name))
    }
}

/// A fresh repository, a source and a place to restore to, all in a temporary directory.
pub(crate) struct World {
    pub(crate) repository: Repository,
    pub(crate) store: Arc<DirStore>,
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        // The witness needs a real path.
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let store = Arc::new(DirStore(base.join("repository")));
        let options = InitOptions::default();
        let as_store: Arc<dyn ObjectStore> = store.clone();
        let repository = Repository::init(as_store, PASSWORD, &options).unwrap();
        let source = base.join("source");
        fs::create_dir(&source).unwrap();
        Self {
            repository,
            store,
            target: base.join("target"),
            source,
            dir,
        }
    }

    pub(crate) fn options(&self) -> BackupOptions {
        BackupOptions {
            paths: vec![self.source.clone()],
            host: "test".to_owned(),
            ..BackupOptions::default()
        }
    }

    pub(crate) fn back_up(&self) -> BackupSummary {
        self.back_up_with(&self.options()).unwrap()
    }

    pub(crate) fn back_up_with(&self, options: &BackupOptions) -> Result<BackupSummary, Error> {
        backup(&self.repository, options, Arc::new(()), Cancel::default())
    }

    /// Restores what was backed up from `source` into the target itself.
    pub(crate) fn restore(&self) -> RestoreSummary {
        self.restore_with(&RestoreOptions::default()).unwrap()
    }

    pub(crate) fn restore_with(&self, options: &RestoreOptions) -> Result<RestoreSummary, Error> {
        self.restore_path(Some(&self.source), options)
    }

    pub(crate) fn restore_path(
        &self,
        path: Option<&Path>,
        options: &RestoreOptions,
    ) -> Result<RestoreSummary, Error> {
        restore(
            &self.repository.reader().unwrap(),
            &self.repository.resolve("latest").unwrap(),
            path,
            &self.target,
            options,
            Arc::new(()),
            Cancel::default(),
        )
    }

    /// rsync finds no difference between source and target.
    pub(crate) fn assert_same(&self) {
        let said = rsync_differences(&self.source, &self.target);
        assert_eq!(said, "");
    }
}

/// What rsync would change to make `target` the same as `source`.
pub(crate) fn rsync_differences(source: &Path, target: &Path) -> String {
    let output = Command::new("rsync")
        .args([
            "-aHAXn",
            "--checksum",
            "--modify-window=-1",
            "--delete",
            "--itemize-changes",
        ])
        .arg(format!("{}/", source.display()))
        .arg(format!("{}/", target.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

const NOBODY_DIR: &str = "BACKLANE_TEST_NOBODY_DIR";

/// Runs one test of this binary as a user without any rights, if this is root.
pub(crate) fn as_nobody(base: &Path, test: &str) {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    let output = command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(NOBODY_DIR, base)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{output:?}"
    );
}

/// The directory that [`as_nobody`] gives; `None` when this process was not started by it.
pub(crate) fn base_of_nobody() -> Option<PathBuf> {
    std::env::var_os(NOBODY_DIR).map(PathBuf::from)
}
