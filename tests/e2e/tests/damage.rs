//! Objects that rot on the server's disk: they are named, what hangs on them is named, and the rest comes back.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Scene, Setup, same};
use fidelity::Kind;

const MIB: u64 = 1 << 20;

/// A pack of file contents, as it was.
struct Pack {
    path: PathBuf,
    /// The name of the object.
    id: String,
    content: Vec<u8>,
}

/// Packs that hold file contents, in the order of their names. Those of trees are far smaller here.
fn packs(repository: &Path) -> Result<Vec<Pack>> {
    let mut packs = Vec::new();
    for dir in std::fs::read_dir(repository.join("data"))? {
        for entry in std::fs::read_dir(dir?.path())? {
            let path = entry?.path();
            let content = std::fs::read(&path)?;
            if content.len() as u64 > 8 * MIB {
                let name = path.file_name().context("an object has a name")?;
                let id = name.to_string_lossy().into_owned();
                packs.push(Pack { path, id, content });
            }
        }
    }
    packs.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(packs)
}

/// The files that a restore named, below the source, and the warnings' words.
fn named(scene: &Scene, document: &serde_json::Value) -> Result<BTreeSet<Vec<u8>>> {
    let warnings = document["warnings"]["first"].as_array();
    let warnings = warnings.with_context(|| format!("no warnings in {document}"))?;
    warnings
        .iter()
        .map(|warning| {
            let path = Path::new(warning["path"].as_str().context("a warning has a path")?);
            let below = path
                .strip_prefix(&scene.target)
                .or_else(|_| path.strip_prefix(&scene.source));
            let below = below.unwrap_or(path);
            Ok(below.as_os_str().as_bytes().to_vec())
        })
        .collect()
}

#[test]
fn damaged_packs_are_named_with_their_files_and_all_others_come_back() -> Result<()> {
    let Some(scene) = Scene::new(&Setup::default(), 160 * MIB)? else {
        return Ok(());
    };
    scene.backup("require-storage")?.success()?;
    let packs = packs(&scene.system.repository(&scene.client)?)?;
    ensure!(packs.len() > 4, "{} packs", packs.len());
    let (cut, rotten) = (&packs[0], &packs[1]);
    let half = cut.content.len() / 2;
    File::options()
        .write(true)
        .open(&cut.path)?
        .set_len(half as u64)?;
    let middle = rotten.content.len() / 2;
    File::options()
        .write(true)
        .open(&rotten.path)?
        .write_all_at(&[rotten.content[middle] ^ 1], middle as u64)?;

    let checked = scene
        .system
        .run(&scene.client, ["check", "--read-data"])?
        .ended;
    println!("{checked}");
    assert_eq!(checked.code(), 1, "{checked}");
    let document = checked.json()?;
    assert_eq!(document["clean"], false, "{document}");
    let errors = document["errors"].to_string();
    for pack in &packs {
        let is_damaged = [&cut.id, &rotten.id].contains(&&pack.id);
        assert_eq!(
            errors.contains(&pack.id[..8]),
            is_damaged,
            "{} in {errors}",
            pack.id
        );
    }

    let restored = scene.restore("require-storage")?.ended;
    println!("{restored}");
    assert_eq!(restored.code(), 3, "{restored}");
    let named = named(&scene, &restored.json()?)?;
    let files = std::fs::read_dir(&scene.source)?.count();
    assert!(
        (2..files).contains(&named.len()),
        "{named:?} of {files} files"
    );
    let mut missing = BTreeSet::new();
    for difference in fidelity::compare(&scene.source, &scene.target)? {
        assert!(matches!(difference.kind, Kind::Missing), "{difference}");
        missing.insert(difference.path);
    }
    assert_eq!(missing, named, "what is missing, and what was named");

    // Mended from a copy, the repository is as good as before.
    for pack in [cut, rotten] {
        std::fs::write(&pack.path, &pack.content)?;
    }
    scene.restore("require-storage")?.success()?;
    same(&scene.source, &scene.target)?;
    scene.next_one_works()
}
