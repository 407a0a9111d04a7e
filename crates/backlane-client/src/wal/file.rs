//! Files as PostgreSQL has them: which cluster one is of, and whether it is the segment that its name says.

use crate::Error;
use backlane_proto::{WalFile, WalName, wal::SegmentPlace};
use backlane_source::postgres::Control;
use std::{fs::File, io::Read, path::Path};

/// Of the header of a segment's first page.
pub(super) const LONG_HEADER_BYTES: usize = 40;
/// In its flags: it is such a header.
const LONG_HEADER_FLAG: u16 = 2;

/// A file to archive.
pub(super) struct ReadyFile {
    pub(super) name: WalName,
    pub(super) bytes: Vec<u8>,
}

/// The header of a segment's first page (`XLogLongPageHeaderData`).
pub(super) struct FirstPage {
    timeline: u32,
    address: u64,
    pub(super) system: u64,
    pub(super) segment_bytes: u32,
}

/// Reads a file that PostgreSQL wants archived.
///
/// # Errors
/// When it can't be read, has no such name, or is a segment whose header says that it is another.
pub(super) fn read(path: &Path) -> Result<ReadyFile, Error> {
    let refused = |why: String| Error::WalFile {
        path: path.to_owned(),
        why,
    };
    let file_name = path.file_name().and_then(|name| name.to_str());
    let of_system = |system| WalName::from_file_name(system, file_name?);
    let unnamed = || refused("its name is none of PostgreSQL's write-ahead log".to_owned());
    let any = of_system(1).ok_or_else(unnamed)?;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|error| refused(error.to_string()))?;
    let system = match any.file {
        WalFile::Segment(place) | WalFile::Partial(place) => {
            let page = first_page(&bytes)
                .ok_or_else(|| refused("it does not begin as a segment does".to_owned()))?;
            page.check(any.timeline, place, bytes.len())
                .map_err(refused)?;
            page.system
        }
        WalFile::Piece(..) => return Err(unnamed()),
        WalFile::Backup(..) | WalFile::History => {
            // By its path and not by links: a pg_wal elsewhere has no pg_control beside it.
            let data = path.parent().and_then(Path::parent);
            Control::read(data.unwrap_or(Path::new("")))?.system
        }
    };
    let name = of_system(system).ok_or_else(unnamed)?;
    Ok(ReadyFile { name, bytes })
}

#[expect(
    clippy::host_endian_bytes,
    reason = "PostgreSQL writes its files in the order of its machine, which is this one"
)]
pub(super) fn first_page(segment: &[u8]) -> Option<FirstPage> {
    fn field<const N: usize>(header: &[u8; LONG_HEADER_BYTES], at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&header[at..at + N]);
        field
    }
    let header = segment.first_chunk::<LONG_HEADER_BYTES>()?;
    let flags = u16::from_ne_bytes(field(header, 2));
    (flags & LONG_HEADER_FLAG != 0).then(|| FirstPage {
        timeline: u32::from_ne_bytes(field(header, 4)),
        address: u64::from_ne_bytes(field(header, 8)),
        system: u64::from_ne_bytes(field(header, 24)),
        segment_bytes: u32::from_ne_bytes(field(header, 32)),
    })
}

impl FirstPage {
    /// Whether a file of so many bytes with this beginning is the segment of a timeline and a place.
    pub(super) fn check(
        &self,
        timeline: u32,
        place: SegmentPlace,
        bytes: usize,
    ) -> Result<(), String> {
        let size = self.segment_bytes;
        if !size.is_power_of_two() || bytes != size as usize {
            return Err(format!(
                "it has {bytes} bytes, and its segments have {size}"
            ));
        }
        let address = (u64::from(place.log) << 32) + u64::from(place.segment) * u64::from(size);
        if self.address != address {
            return Err(format!(
                "it is the segment of address {:X}, and its name says {address:X}",
                self.address
            ));
        }
        // The first segment of a timeline begins as its parent's did.
        if self.timeline > timeline {
            return Err(format!(
                "it is of timeline {}, and its name says {timeline}",
                self.timeline
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::{fs, path::PathBuf};

    pub(crate) const SYSTEM: u64 = 7_000_000_000_000_000_001;
    pub(crate) const SEGMENT_BYTES: u32 = 1 << 20;

    /// A segment as PostgreSQL writes it, with something in it.
    #[expect(clippy::host_endian_bytes, reason = "as PostgreSQL does")]
    pub(crate) fn segment(timeline: u32, number: u64, content: u8) -> Vec<u8> {
        let mut bytes = vec![content; SEGMENT_BYTES as usize];
        bytes[2..4].copy_from_slice(&LONG_HEADER_FLAG.to_ne_bytes());
        bytes[4..8].copy_from_slice(&timeline.to_ne_bytes());
        let address = number * u64::from(SEGMENT_BYTES);
        bytes[8..16].copy_from_slice(&address.to_ne_bytes());
        bytes[24..32].copy_from_slice(&SYSTEM.to_ne_bytes());
        bytes[32..36].copy_from_slice(&SEGMENT_BYTES.to_ne_bytes());
        bytes
    }

    /// A data directory with nothing but its identity and an empty `pg_wal`.
    #[expect(clippy::host_endian_bytes, reason = "as PostgreSQL does")]
    pub(crate) fn data_directory(root: &Path) -> PathBuf {
        for name in ["global", "pg_wal/archive_status"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        let control = [SYSTEM.to_ne_bytes(), [0; 8]].concat();
        fs::write(root.join("global/pg_control"), control).unwrap();
        root.join("pg_wal")
    }

    fn refused(path: &Path, bytes: &[u8], why: &str) {
        fs::write(path, bytes).unwrap();
        let error = read(path).map(|file| file.name).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }

    #[test]
    fn a_segment_names_its_cluster_and_may_begin_on_its_timelines_parent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("00000003000000010000000F");
        fs::write(&path, segment(2, 0x100F, 1)).unwrap();
        let file = read(&path).unwrap();
        assert_eq!(file.name.system, SYSTEM);
        assert_eq!(file.name.file_name(), "00000003000000010000000F");
    }

    #[test]
    fn a_segment_that_is_not_what_its_name_says_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("00000002000000000000000F");
        let good = segment(2, 15, 1);
        refused(&path, &segment(2, 16, 1), "its name says F00000");
        refused(&path, &segment(3, 15, 1), "of timeline 3");
        refused(&path, &good[..1 << 19], "has 524288 bytes");
        refused(&path, &[&good[..], &good[..]].concat(), "has 2097152 bytes");
        refused(&path, &vec![0; 1 << 20], "does not begin");
        refused(&path, b"", "does not begin");
        refused(&directory.path().join("xlogtemp.17"), &good, "its name");
    }

    #[test]
    fn history_files_are_of_the_cluster_whose_directory_they_are_in() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let wal = data_directory(directory.path());
        // A pg_wal on a disk of its own.
        fs::remove_dir_all(&wal).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &wal).unwrap();
        let path = wal.join("00000002.history");
        fs::write(&path, b"1\t0/F00028\tno recovery target specified\n").unwrap();
        assert_eq!(read(&path).unwrap().name.system, SYSTEM);
        fs::remove_file(directory.path().join("global/pg_control")).unwrap();
        let error = read(&path).map(|file| file.name).unwrap_err().to_string();
        assert!(error.contains("global/pg_control"), "{error}");
    }
}
