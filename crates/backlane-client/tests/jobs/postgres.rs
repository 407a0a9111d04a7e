//! Restores of clusters from snapshots that nobody can trust.

use crate::support::World;
use backlane_client::{Cancel, Error, PostgresRestore, Progress, restore_postgres};
use backlane_repo::{ArchiveOptions, Closing, Entries, Entry, FileKind, Metadata, Source, Warning};
use backlane_source::postgres::{BaseBackup, Recovery, Target};
use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A base backup that has a symbolic link where something else belongs.
struct Hostile {
    link: &'static str,
    leads_to: PathBuf,
}

const DESCRIPTION: &str = r#"PostgreSQL {"system":"7","version":"15.1","origin":"primary","timeline":1,
 "start_lsn":"0/100","stop_lsn":"0/200","start_wal":"000000010000000000000000","stop_wal":"000000010000000000000000",
 "wal":"include","began":"2026-01-01T00:00:00Z","ended":"2026-01-01T00:00:00Z","data_directory":"/srv/pg",
 "tablespaces":[{"oid":5,"name":"fast","location":"/srv/fast"}]}"#;

impl Source for Hostile {
    fn entries(&self) -> Entries {
        let entry = |path: &str| {
            let path = format!("/postgresql/7{path}");
            let name = path.rsplit('/').next().unwrap_or_default();
            let is_file = matches!(
                name,
                "PG_VERSION"
                    | "backup_label"
                    | "backup_manifest"
                    | "pg_control"
                    | "segment"
                    | "1259"
                    | "1"
            );
            let kind = if path.ends_with(&format!("data/{}", self.link)) {
                let target = self.leads_to.as_os_str().as_bytes().to_vec();
                FileKind::Symlink { target }
            } else if is_file {
                FileKind::File
            } else {
                FileKind::Directory
            };
            Ok(Entry {
                path: path.into_bytes(),
                kind,
                meta: Metadata {
                    mode: Some(0o700),
                    ..Metadata::default()
                },
                open: Some(Box::new(|| Ok(Box::new(&b"content"[..]) as _))),
            })
        };
        let mut all = vec![
            "",
            "/data",
            "/data/PG_VERSION",
            "/data/base",
            "/data/base/1",
            "/data/global",
            "/data/pg_tblspc",
            "/data/pg_wal",
            "/tablespaces",
            "/tablespaces/5",
            "/tablespaces/5/PG_15",
            "/tablespaces/5/PG_15/1259",
            "/top",
            "/top/backup_label",
            "/top/backup_manifest",
            "/top/global",
            "/top/global/pg_control",
            "/top/pg_wal",
            "/top/pg_wal/segment",
        ];
        if self.link.ends_with(".conf") {
            all.insert(8, "/data/postgresql.auto.conf");
        }
        Box::new(all.into_iter().map(entry).collect::<Vec<_>>().into_iter())
    }

    fn warn(&self, _: &Warning) {}

    fn closing(&self) -> Closing {
        Closing {
            tags: Vec::new(),
            description: Some(DESCRIPTION.to_owned()),
        }
    }
}

fn restored(world: &World, hostile: Hostile, tablespace: Option<&Path>) -> Result<(), Error> {
    let how = PostgresRestore {
        tablespaces: tablespace
            .map(|place| ("fast".to_owned(), place.to_owned()))
            .into_iter()
            .collect(),
        recovery: Recovery {
            target: Some(Target::Latest),
            ..Recovery::default()
        },
        ..PostgresRestore::default()
    };
    let cancel = Cancel::default();
    restored_so(world, hostile, &how, (Arc::new(()), &cancel))
}

fn restored_so(
    world: &World,
    hostile: Hostile,
    how: &PostgresRestore,
    (progress, cancel): (Arc<dyn Progress>, &Cancel),
) -> Result<(), Error> {
    let options = ArchiveOptions {
        paths: vec![BaseBackup::root(7).as_os_str().as_bytes().to_vec()],
        ..ArchiveOptions::default()
    };
    let repository = &world.repository;
    let archived = repository.archive(&options, Arc::new(hostile)).unwrap();
    let snapshot = archived.snapshot.unwrap().to_string();
    let reader = repository.reader().unwrap();
    let snapshot = repository.resolve(&snapshot).unwrap();
    let target = &world.target;
    restore_postgres(&reader, &snapshot, target, how, &progress, cancel).map(drop)
}

#[test]
fn no_snapshot_leads_the_restore_of_a_cluster_out_of_its_target() {
    for link in ["pg_wal", "global", "pg_tblspc", "postgresql.auto.conf"] {
        let world = World::new();
        let outside = world.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        let leads_to = match link {
            "postgresql.auto.conf" => outside.join("secret"),
            _ => outside.clone(),
        };
        let place = world.dir.path().join("fast");
        restored(&world, Hostile { link, leads_to }, Some(&place)).unwrap_err();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{link}");
        assert_eq!(
            fs::read_to_string(outside.join("secret")).unwrap(),
            "secret"
        );
        assert!(!world.target.join("global/pg_control").exists(), "{link}");
    }
}

/// Cancels a restore at the first file that the watched name ends.
struct CancelAt(&'static str, Cancel);

impl Progress for CancelAt {
    fn current(&self, path: &Path) {
        if path.ends_with(self.0) {
            self.1.cancel();
        }
    }
}

#[test]
fn an_interrupted_restore_leaves_nothing_to_start_on_and_can_be_gone_on_with() {
    let plain = || Hostile {
        link: "none",
        leads_to: PathBuf::new(),
    };
    let world = World::new();
    let place = world.dir.path().join("fast");
    let delta = PostgresRestore {
        is_delta: true,
        tablespaces: vec![("fast".to_owned(), place.clone())],
        ..PostgresRestore::default()
    };
    let control = world.target.join("global/pg_control");
    fs::create_dir_all(world.target.join("global")).unwrap();
    fs::write(world.target.join("PG_VERSION"), "15").unwrap();
    for at in ["base/1", "PG_15/1259"] {
        // It begins with the number of the cluster that was there.
        fs::write(&control, [&7_u64.to_le_bytes()[..], &[0; 500]].concat()).unwrap();
        let cancel = Cancel::default();
        let watch = Arc::new(CancelAt(at, cancel.clone()));
        let ended = restored_so(&world, plain(), &delta, (watch, &cancel)).unwrap_err();
        assert!(matches!(ended, Error::Cancelled), "{ended}");
        assert!(!control.exists(), "{at}");
    }
    // As it is where the next file's turn had come.
    fs::create_dir_all(place.join("PG_15")).unwrap();
    fs::write(place.join("PG_15/1259"), "half").unwrap();
    let (nobody, cancel) = (Arc::new(()), Cancel::default());
    restored_so(&world, plain(), &delta, (nobody, &cancel)).unwrap();
    assert!(control.exists());
    assert_eq!(
        fs::read_to_string(place.join("PG_15/1259")).unwrap(),
        "content"
    );
}

#[test]
fn a_tablespace_goes_nowhere_but_where_the_user_says() {
    let world = World::new();
    let hostile = || Hostile {
        link: "none",
        leads_to: PathBuf::new(),
    };
    let error = restored(&world, hostile(), None).unwrap_err();
    assert!(matches!(error, Error::Tablespace { .. }), "{error}");
    assert!(!world.target.exists() && !Path::new("/srv/fast").exists());
    let place = world.dir.path().join("fast");
    restored(&world, hostile(), Some(&place)).unwrap();
    assert_eq!(
        fs::read_to_string(place.join("PG_15/1259")).unwrap(),
        "content"
    );
    assert_eq!(
        fs::read_link(world.target.join("pg_tblspc/5")).unwrap(),
        place
    );
    assert!(world.target.join("global/pg_control").exists());
}
