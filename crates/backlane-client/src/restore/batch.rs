//! A part of a restore that is done as one: files, the links to them, and the directories that are complete with them.
//!
//! Phases, in this order: files that stand there already are read and, if they are right, kept; what an interrupted run
//! has begun is read and, where it is right, gone on with; what is right of a file that stands there is taken from it; the
//! blobs of all else are read pack by pack, checked, and written; written files are verified if that was asked for; links
//! are made; directories get their metadata. Memory: [`FILES_MAX`] files, about [`PIECES_MAX`] pieces, and for each worker
//! one read of [`READ_BYTES_MAX`] and one blob, or before that one piece of a file that stands there. As much again is
//! planned while a batch runs.

use super::{
    content::{Piece, consists_of, has_holes},
    files::{FileWriter, PlannedFile, Stage, open_regular},
    job::{Job, add, is_local_damage},
    metadata::Subject,
    places::PlaceId,
    standing::Standing,
    unfinished,
};
use crate::{
    error::Error,
    fs::{self, Facts, Inode},
    progress::WarningKind,
};
use backlane_proto::{ByteRange, ObjectId};
use backlane_repo::{BlobId, BlobKind, BlobPlace, FileKind, Metadata};
use rustix::fs::{Advice, AtFlags, fadvise, fdatasync, linkat, unlinkat};
use std::{
    collections::{HashMap, VecDeque},
    ffi::{OsStr, OsString},
    io,
    ops::Range,
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// How many files are planned before they are restored.
const FILES_MAX: usize = 8 * 1024;

/// How many pieces of files are planned before they are restored; one file may have more.
const PIECES_MAX: usize = 64 * 1024;

/// Blobs no further apart than this are read together: about what a round trip costs in bytes.
const READ_GAP_BYTES_MAX: u32 = 128 * 1024;

/// Blobs are read together up to this size; a single blob may be larger.
const READ_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// How many bytes of files that stand there already are planned before they are restored: old and new ones take room side
/// by side until then.
const STANDING_BYTES_MAX: u64 = 1 << 30;

/// What is restored together.
#[derive(Default)]
pub(crate) struct Batch {
    files: Vec<PlannedFile>,
    /// Those of `files` that may stand there already.
    candidates: Vec<usize>,
    pieces: usize,
    standing_bytes: u64,
    pub(crate) links: Vec<PlannedLink>,
    /// Those that are complete, what is in a directory before the directory.
    pub(crate) directories: Vec<(PlaceId, Option<Metadata>)>,
}

/// The first name of a file with several.
pub(crate) struct LinkTarget {
    pub(crate) place: PlaceId,
    pub(crate) name: OsString,
    /// Tells apart what has the same numbers.
    pub(crate) fingerprint: u64,
    /// How many more names are expected.
    pub(crate) left: u64,
    pub(crate) whole: Whole,
}

/// Whether what stands under the first name of a file with several is what the snapshot has: it was restored, or found
/// right. All who have to do with the file share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whole(Arc<AtomicBool>);

impl Whole {
    /// It is.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A further name of a file.
pub(crate) struct PlannedLink {
    pub(crate) first_place: PlaceId,
    pub(crate) first_name: OsString,
    /// Whether there is what to link to.
    pub(crate) first_whole: Whole,
    pub(crate) place: PlaceId,
    pub(crate) name: OsString,
    /// Whether nothing stands under that.
    pub(crate) is_free: bool,
}

/// A blob and all places that want it.
struct WantedBlob {
    place: BlobPlace,
    /// File and offset in it.
    destinations: Vec<(usize, u64)>,
}

/// Blobs that are read together.
struct PlannedRead {
    pack: ObjectId,
    range: ByteRange,
    blobs: Range<usize>,
}

impl Batch {
    /// Plans a file, which may stand there already.
    pub(crate) fn add(&mut self, file: PlannedFile, candidate: bool) {
        if candidate {
            self.candidates.push(self.files.len());
        }
        self.pieces += file.pieces.len();
        self.standing_bytes += if file.stands { file.size } else { 0 };
        self.files.push(file);
    }

    /// Whether it should be run before more is planned.
    pub(crate) fn is_full(&self) -> bool {
        self.files.len() >= FILES_MAX
            || self.pieces >= PIECES_MAX
            || self.standing_bytes >= STANDING_BYTES_MAX
            || self.links.len() >= FILES_MAX
            || self.directories.len() >= FILES_MAX
    }

    /// Does all that was planned.
    pub(crate) fn run(self, job: &Job<'_>) -> Result<(), Error> {
        let writer = FileWriter {
            places: job.places,
            reporter: job.reporter,
            holes: job.options.holes,
            open: Mutex::new(VecDeque::new()),
        };
        let kept = self.keep_what_is_right(job);
        let begun = kept.and_then(|()| self.go_on(job));
        let begun = begun.and_then(|()| self.take_what_stands(job, &writer));
        let done = begun.and_then(|()| {
            if job.options.dry_run {
                self.count_planned(job);
                return Ok(());
            }
            self.write_files(job, &writer)?;
            if job.options.verify {
                self.verify(job)?;
            }
            self.make_links(job)?;
            self.finish_directories(job)
        });
        // The next run goes on with the others. Here they would be in the way of whoever makes room.
        if matches!(done, Err(Error::NoSpace { .. })) {
            for file in &self.files {
                writer.abandon(file);
            }
        }
        for place in self.held() {
            job.places.release(place);
        }
        done
    }

    fn held(&self) -> impl Iterator<Item = PlaceId> + '_ {
        let files = self.files.iter().map(|file| file.place);
        let links = self.links.iter();
        files
            .chain(links.flat_map(|link| [link.first_place, link.place]))
            .chain(self.directories.iter().map(|(place, _)| *place))
    }

    fn count_planned(&self, job: &Job<'_>) {
        for file in &self.files {
            let stage = file.state().stage;
            if matches!(stage, Stage::Planned | Stage::Begun) {
                count_restored(job, file);
            }
        }
    }

    /// Reads what stands there already, and keeps it if it is right.
    fn keep_what_is_right(&self, job: &Job<'_>) -> Result<(), Error> {
        job.in_parallel(self.candidates.len(), |at| {
            let file = &self.files[self.candidates[at]];
            // Whatever prevents reading it, it is restored then.
            let right = job.places.handle(file.place).and_then(|dir| {
                let mut open = open_regular(&*dir, &file.name)?;
                let right = has_holes(&open, file.size, file.extents.as_deref())?
                    && consists_of(&mut open, &file.pieces)?
                    && (file.meta.links < 2 || job.keeps_alone(Facts::of_open(&open)?.identity));
                Ok((open, right))
            });
            let Ok((open, true)) = right else {
                return Ok(());
            };
            file.state().stage = Stage::Kept;
            file.whole.set();
            add(&job.counts.files_kept, 1);
            add(&job.counts.bytes_kept, file.size);
            job.reporter.progress.advanced(1, file.size);
            if !job.options.dry_run {
                Subject {
                    inode: Inode::Open(open.as_fd()),
                    path: &file.path(job.places),
                    reporter: job.reporter,
                }
                .apply(&FileKind::File, &file.meta);
            }
            Ok(())
        })
    }

    /// Goes on with what an interrupted run has begun, and removes what is of no use.
    fn go_on(&self, job: &Job<'_>) -> Result<(), Error> {
        let begun: Vec<_> = self.files.iter().filter(|file| file.begun).collect();
        job.in_parallel(begun.len(), |at| {
            let file = begun[at];
            // Whatever prevents it, the file is begun anew then.
            let Ok(dir) = job.places.handle(file.place) else {
                return Ok(());
            };
            if file.state().stage == Stage::Planned
                && let Ok(Some(there)) = unfinished::go_on(&dir, file, job.options)
            {
                file.go_on(there);
                job.reporter.progress.advanced(0, file.bytes_there());
            } else if !job.options.dry_run {
                // If it stays, that the file can't be made says so.
                let _ = unlinkat(&*dir, &file.temporary, AtFlags::empty());
            }
            Ok(())
        })
    }

    /// Takes what is right of the files that stand there and aren't kept.
    fn take_what_stands(&self, job: &Job<'_>, writer: &FileWriter<'_>) -> Result<(), Error> {
        let stands = |index: &usize| {
            let file = &self.files[*index];
            file.stands && file.state().stage != Stage::Kept
        };
        let standing: Vec<_> = (0..self.files.len()).filter(stands).collect();
        job.in_parallel(standing.len(), |at| {
            let file = &self.files[standing[at]];
            let opened = job.places.handle(file.place);
            let Ok(Some(mut opened)) = opened.and_then(|dir| Standing::open(&*dir, file)) else {
                return Ok(());
            };
            let mut there = file.there();
            let mut end = 0;
            for (piece, is_there) in file.pieces.iter().zip(&mut there) {
                let start = end;
                end += piece.length;
                if *is_there {
                    continue;
                }
                job.check_cancelled()?;
                let Some(bytes) = opened.piece(piece, start) else {
                    continue;
                };
                if !job.options.dry_run
                    && let Err(error) = writer.write(&self.files, standing[at], start, bytes)
                {
                    writer.abandon(file);
                    return job.fail(file.path(job.places), "it can't be written", error);
                }
                *is_there = true;
                job.reporter.progress.advanced(0, piece.length);
            }
            if there.contains(&true) {
                file.go_on(there);
            }
            Ok(())
        })
    }

    fn write_files(&self, job: &Job<'_>, writer: &FileWriter<'_>) -> Result<(), Error> {
        let blobs = self.wanted(job);
        let reads = plan_reads(&blobs);
        let whole: Vec<usize> = (0..self.files.len())
            .filter(|index| self.files[*index].remaining.load(Ordering::Acquire) == 0)
            .filter(|index| self.files[*index].state().stage != Stage::Kept)
            .collect();
        job.in_parallel(whole.len(), |at| self.finish_file(job, writer, whole[at]))?;
        job.in_parallel(reads.len(), |at| {
            let read = &reads[at];
            self.read(job, writer, read, &blobs[read.blobs.clone()])
        })
    }

    /// The blobs of all files that are to be written, in the order of packs.
    fn wanted(&self, job: &Job<'_>) -> Vec<WantedBlob> {
        let mut blobs: Vec<WantedBlob> = Vec::new();
        let mut known: HashMap<BlobId, usize> = HashMap::new();
        for (index, file) in self.files.iter().enumerate() {
            for (Piece { id, .. }, offset) in file.wanted() {
                let at = *known.entry(id).or_insert_with(|| {
                    let place = job.reader.index().find(BlobKind::Data, id);
                    blobs.push(WantedBlob {
                        place: place.expect("it was found when the file was planned"),
                        destinations: Vec::new(),
                    });
                    blobs.len() - 1
                });
                blobs[at].destinations.push((index, offset));
            }
        }
        blobs.sort_unstable_by_key(|blob| (blob.place.pack, blob.place.offset));
        blobs
    }

    fn read(
        &self,
        job: &Job<'_>,
        writer: &FileWriter<'_>,
        read: &PlannedRead,
        blobs: &[WantedBlob],
    ) -> Result<(), Error> {
        let sealed = match job.reader.read_pack(read.pack, read.range) {
            Ok(sealed) => sealed,
            Err(error) if is_local_damage(&error) => {
                for blob in blobs {
                    self.lose(job, writer, blob, &error.to_string());
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        add(&job.counts.bytes_fetched, read.range.length);
        for blob in blobs {
            job.check_cancelled()?;
            let start = u64::from(blob.place.offset) - read.range.offset;
            let start = usize::try_from(start).expect("within what was read");
            let part = &sealed[start..start + blob.place.length as usize];
            match job.reader.open_blob(&blob.place, part) {
                Ok(bytes) => self.write(job, writer, blob, &bytes)?,
                Err(error) => self.lose(job, writer, blob, &error.to_string()),
            }
        }
        Ok(())
    }

    /// Writes a blob wherever it belongs.
    fn write(
        &self,
        job: &Job<'_>,
        writer: &FileWriter<'_>,
        blob: &WantedBlob,
        bytes: &[u8],
    ) -> Result<(), Error> {
        for (index, offset) in &blob.destinations {
            let file = &self.files[*index];
            if let Err(error) = writer.write(&self.files, *index, *offset, bytes) {
                writer.abandon(file);
                job.fail(file.path(job.places), "it can't be written", error)?;
            }
            job.reporter.progress.advanced(0, bytes.len() as u64);
            if file.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish_file(job, writer, *index)?;
            }
        }
        Ok(())
    }

    fn finish_file(
        &self,
        job: &Job<'_>,
        writer: &FileWriter<'_>,
        index: usize,
    ) -> Result<(), Error> {
        let file = &self.files[index];
        if let Err(error) = writer.finish(&self.files, index) {
            writer.abandon(file);
            job.fail(file.path(job.places), "it can't be written", error)?;
        }
        if file.state().stage == Stage::Done {
            file.whole.set();
            count_restored(job, file);
        }
        job.reporter.progress.advanced(1, 0);
        Ok(())
    }

    /// Gives up every file that needs a blob which can't be had.
    fn lose(&self, job: &Job<'_>, writer: &FileWriter<'_>, blob: &WantedBlob, why: &str) {
        for (index, _) in &blob.destinations {
            let file = &self.files[*index];
            if file.state().stage != Stage::Failed {
                let what = format!("its data blob {} can't be had: {why}", blob.place.id);
                job.warn(&file.path(job.places), what);
            }
            writer.abandon(file);
        }
    }

    /// Reads again what was written, from the device where the system allows.
    fn verify(&self, job: &Job<'_>) -> Result<(), Error> {
        job.in_parallel(self.files.len(), |index| {
            let file = &self.files[index];
            if file.state().stage != Stage::Done {
                return Ok(());
            }
            let right = job.places.handle(file.place).and_then(|dir| {
                let mut open = open_regular(&*dir, &file.name)?;
                fdatasync(&open)?;
                // Only advice: what stays in memory is read from there.
                let _ = fadvise(&open, 0, None, Advice::DontNeed);
                consists_of(&mut open, &file.pieces)
            });
            let what = match right {
                Ok(true) => {
                    add(&job.counts.files_verified, 1);
                    return Ok(());
                }
                Ok(false) => "it has another content than was written".to_owned(),
                Err(error) => format!("it can't be read again: {error}"),
            };
            let path = file.path(job.places);
            job.reporter.warn(WarningKind::Differs, &path, what);
            Ok(())
        })
    }

    fn make_links(&self, job: &Job<'_>) -> Result<(), Error> {
        for link in &self.links {
            job.check_cancelled()?;
            let path = || job.path(link.place, &link.name);
            let first = || job.path(link.first_place, &link.first_name);
            if !link.first_whole.is_set() {
                let what = format!("it is another name of {}, which", first().display());
                job.warn(&path(), format!("{what} could not be restored"));
            } else if let Err(error) = link.make(job) {
                let (path, first) = (path(), first());
                let what = format!("it can't be linked to {}", first.display());
                job.fail(path, &what, error)?;
            }
            job.reporter.progress.advanced(1, 0);
        }
        Ok(())
    }

    fn finish_directories(&self, job: &Job<'_>) -> Result<(), Error> {
        for (place, meta) in &self.directories {
            job.check_cancelled()?;
            let Some(meta) = meta else { continue };
            let path = job.path(*place, OsStr::new(""));
            match job.places.handle(*place) {
                Ok(dir) => Subject {
                    inode: Inode::Open(dir.as_fd()),
                    path: &path,
                    reporter: job.reporter,
                }
                .apply(&FileKind::Directory, meta),
                Err(error) => job.fail(path, "its metadata can't be set", error)?,
            }
        }
        Ok(())
    }
}

impl PlannedLink {
    fn make(&self, job: &Job<'_>) -> io::Result<()> {
        let first_dir = job.places.handle(self.first_place)?;
        let dir = job.places.handle(self.place)?;
        let first = Facts::of(&*first_dir, &self.first_name)?;
        if let Ok(there) = Facts::of(&*dir, &self.name)
            && there.identity == first.identity
        {
            return Ok(());
        }
        let temporary = job.names.next();
        let flags = AtFlags::empty();
        linkat(&*first_dir, &self.first_name, &*dir, &temporary, flags)?;
        fs::rename(&*dir, &temporary, &self.name, self.is_free).inspect_err(|_| {
            // Nothing can be done about a second failure.
            let _ = unlinkat(&*dir, &temporary, flags);
        })
    }
}

fn count_restored(job: &Job<'_>, file: &PlannedFile) {
    let there = file.bytes_there();
    add(&job.counts.files_restored, 1);
    add(&job.counts.bytes_restored, file.size - there);
    add(&job.counts.bytes_kept, there);
}

/// Groups neighbours; `blobs` are in the order of packs.
fn plan_reads(blobs: &[WantedBlob]) -> Vec<PlannedRead> {
    let mut reads: Vec<PlannedRead> = Vec::new();
    for (index, WantedBlob { place, .. }) in blobs.iter().enumerate() {
        let start = u64::from(place.offset);
        let end = start + u64::from(place.length);
        if let Some(last) = reads.last_mut() {
            let last_end = last.range.offset + last.range.length;
            if last.pack == place.pack
                && start.saturating_sub(last_end) <= u64::from(READ_GAP_BYTES_MAX)
                && end - last.range.offset <= u64::from(READ_BYTES_MAX)
            {
                last.range.length = end.max(last_end) - last.range.offset;
                last.blobs.end = index + 1;
                continue;
            }
        }
        reads.push(PlannedRead {
            pack: place.pack,
            range: ByteRange {
                offset: start,
                length: end - start,
            },
            blobs: index..index + 1,
        });
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together_within_bounds() {
        let blob = |pack: u8, offset, length| WantedBlob {
            place: BlobPlace {
                id: BlobId([0; 32]),
                kind: BlobKind::Data,
                pack: ObjectId([pack; 32]),
                offset,
                length,
                plain_length: length,
                compressed: false,
            },
            destinations: Vec::new(),
        };
        let far = 200 + READ_GAP_BYTES_MAX + 1;
        let blobs = [
            blob(1, 0, 100),
            blob(1, 100, 100),
            blob(1, far, READ_BYTES_MAX - 5),
            blob(1, far + READ_BYTES_MAX, 6),
            blob(2, far + READ_BYTES_MAX + 6, 6),
        ];
        let reads = plan_reads(&blobs);
        let groups: Vec<_> = reads.iter().map(|read| read.blobs.clone()).collect();
        assert_eq!(groups, [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(reads[0].range.length, 200);
    }
}
