//! The directories of archived WAL: `wal/SYSTEM/TIMELINE/FILE` (`wal.md` §1), made when a file is placed there.

use super::local::{foreign, make_directory, sync_parent};
use crate::{ServerError, error::io_error};
use backlane_proto::{ObjectInfo, WalName};
use std::{fs, io, path::Path};

/// How many directories there are above a file, below the repository's.
const DIRECTORIES: usize = 3;

/// Makes the directories of a file, durably. One that is there may have been made by somebody who hasn't synced it yet, or
/// was killed before.
pub(super) fn make_directories(file: &Path) -> Result<(), ServerError> {
    let above: Vec<_> = file.ancestors().skip(1).take(DIRECTORIES).collect();
    for directory in above.into_iter().rev() {
        make_directory(directory)?;
        sync_parent(directory)?;
    }
    Ok(())
}

/// Lists the WAL files below a directory, which is `depth` below `wal`; nothing else may be there.
pub(super) fn list(
    root: &Path,
    directory: &Path,
    depth: u32,
    objects: &mut Vec<ObjectInfo>,
) -> Result<(), ServerError> {
    let path = root.join(directory);
    let entries = match fs::read_dir(&path) {
        Err(error) if depth == 0 && error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io_error("list", &path))?,
    };
    for entry in entries {
        let entry = entry.map_err(io_error("list", &path))?;
        let below = directory.join(entry.file_name());
        // Does not follow symbolic links.
        let metadata = entry
            .metadata()
            .map_err(io_error("look at", entry.path()))?;
        if metadata.is_dir() && depth < 2 {
            list(root, &below, depth + 1, objects)?;
            continue;
        }
        let name = below.to_str().and_then(|name| name.parse::<WalName>().ok());
        let name = name.filter(|_| metadata.is_file());
        let why = "it is not archived WAL under its own name";
        let name = name.ok_or_else(|| foreign(entry.path(), why))?;
        objects.push(ObjectInfo {
            id: name.id(),
            bytes: metadata.len(),
        });
    }
    Ok(())
}
