//! What can be told of a cluster from its directory alone: whose it is, and whether a server runs on it.

use super::Error;
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// The part of `global/pg_control` that is laid out alike in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The number that a cluster gets when it is made and that its standbys share.
    pub system: u64,
    /// The version of its catalogue, which names directories in tablespaces.
    pub catalogue: u32,
}

impl Control {
    /// Where it is in a cluster's directory.
    pub const PATH: &'static str = "global/pg_control";

    /// Reads that of the cluster in a directory.
    ///
    /// # Errors
    /// [`Error::Read`]
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(Self::PATH);
        let mut head = [0; 16];
        let read = File::open(&path).and_then(|mut file| file.read_exact(&mut head));
        read.map_err(|source| Error::Read { path, source })?;
        Ok(Self::parse(head))
    }

    fn parse(head: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, _, _, _, _, i, j, k, l] = head;
        Self {
            system: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            catalogue: u32::from_le_bytes([i, j, k, l]),
        }
    }
}

/// The process of the server that runs on a directory. Where it isn't clear whether one runs, one does.
#[must_use]
pub fn running_postmaster(directory: &Path) -> Option<u32> {
    let text = fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    // A server that runs alone, for one user, has its number negative there.
    let line = text.lines().next()?.trim().trim_start_matches('-');
    let process: u32 = line.parse().ok()?;
    let proc = PathBuf::from(format!("/proc/{process}"));
    if !proc.exists() {
        return None;
    }
    // Numbers are used again; a server's working directory is that of its cluster.
    match (
        fs::canonicalize(proc.join("cwd")),
        fs::canonicalize(directory),
    ) {
        (Ok(works_in), Ok(directory)) if works_in != directory => None,
        _ => Some(process),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_number_and_its_directory() {
        let base = std::env::temp_dir().join(format!("postmaster-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let running = |pid: &str, directory: &Path| {
            fs::write(directory.join("postmaster.pid"), format!("{pid}\n/x\n")).unwrap();
            let running = running_postmaster(directory);
            fs::remove_file(directory.join("postmaster.pid")).unwrap();
            running
        };
        assert_eq!(running_postmaster(&base), None);
        let mut child = std::process::Command::new("sleep");
        let mut child = child.arg("60").current_dir(&base).spawn().unwrap();
        let id = child.id();
        assert_eq!(running(&id.to_string(), &base), Some(id));
        assert_eq!(running(&format!("-{id}"), &base), Some(id));
        // Another program that has the number now.
        assert_eq!(running(&std::process::id().to_string(), &base), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(running(&id.to_string(), &base), None);
        fs::remove_dir_all(&base).unwrap();
    }
}
