//! What an archive holds, and what it lacks (`docs/design/wal.md` §5).
//!
//! Invariant: what can't be read is an error, never a shorter answer.

use super::pieces::Around;
use crate::Error;
use backlane_proto::{
    ByteRange, ObjectInfo, ObjectKind, ObjectName, WalFile, WalHeader, WalName,
    wal::{HEADER_BYTES, SegmentPlace},
};
use backlane_repo::{ObjectStore, RepoError, WalKey};
use backlane_source::postgres::Lsn;
use std::collections::BTreeMap;

/// What is archived of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedSystem {
    /// Its system identifier.
    pub system: u64,
    /// Size of its segments; unknown where there is none.
    pub segment_bytes: Option<u64>,
    /// How many files there are, of every kind.
    pub files: u64,
    /// What they take at the server.
    pub stored_bytes: u64,
    /// Its timelines, in their order.
    pub timelines: Vec<ArchivedTimeline>,
}

/// What is archived of one timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchivedTimeline {
    /// Its number.
    pub timeline: u32,
    /// Segments without a gap between them, in their order.
    pub ranges: Vec<SegmentRange>,
    /// What there is in pieces of the segment behind them all.
    pub tail: Option<Tail>,
    /// Where it comes from, as its history says.
    pub origin: Option<Origin>,
}

/// A segment of which pieces are archived, and not the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Its number.
    pub number: u64,
    /// The last piece to which all of them follow each other from its beginning on; none where the first is missing.
    pub last: Option<WalName>,
    /// Up to which offset.
    pub end: u32,
    /// Whether there are pieces behind one that is missing.
    pub is_broken: bool,
}

/// Segments that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRange {
    /// The number of the first.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// What they take at the server.
    pub stored_bytes: u64,
}

/// Where a timeline left its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The parent.
    pub parent: u32,
    /// The address.
    pub address: u64,
}

/// What recovery would miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first file that is missing.
    pub first: WalName,
    /// The last one in a row with it.
    pub last: WalName,
    /// How many there are.
    pub files: u64,
}

/// Reads what an archive holds.
///
/// # Errors
/// When a part of that can't be read.
pub fn read(store: &dyn ObjectStore, key: &WalKey) -> Result<Vec<ArchivedSystem>, Error> {
    let objects = store.list(ObjectKind::Wal).map_err(RepoError::from)?;
    let mut systems: BTreeMap<u64, Vec<(WalName, ObjectInfo)>> = BTreeMap::new();
    for object in objects {
        // The server lists nothing else.
        if let Some(name) = WalName::from_id(object.id) {
            systems.entry(name.system).or_default().push((name, object));
        }
    }
    let systems = systems.into_iter();
    systems
        .map(|(system, files)| read_system(store, key, system, &files))
        .collect()
}

fn read_system(
    store: &dyn ObjectStore,
    key: &WalKey,
    system: u64,
    files: &[(WalName, ObjectInfo)],
) -> Result<ArchivedSystem, Error> {
    let is_segment = |file: &&(WalName, ObjectInfo)| matches!(file.0.file, WalFile::Segment(_));
    let newest = files.iter().rev().find(is_segment);
    let segment_bytes = newest
        .map(|file| segment_bytes(store, file.0))
        .transpose()?;
    let mut timelines: BTreeMap<u32, ArchivedTimeline> = BTreeMap::new();
    for (name, object) in files {
        let timeline = timelines.entry(name.timeline).or_default();
        timeline.timeline = name.timeline;
        match (name.file, segment_bytes) {
            (WalFile::Segment(place), Some(size)) => {
                timeline.tail = None;
                timeline.add(number(place, size), object.bytes);
            }
            // They come behind their segment, if that is there whole.
            (WalFile::Piece(place, _), Some(size)) => {
                let number = number(place, size);
                let is_whole = timeline.ranges.last().is_some_and(|it| it.last >= number);
                if !is_whole && timeline.tail.is_none_or(|tail| tail.number < number) {
                    let segment = WalName {
                        file: WalFile::Segment(place),
                        ..*name
                    };
                    timeline.tail = Some(tail(store, segment, number, files)?);
                }
            }
            (WalFile::History, _) => {
                let body = store.read(wal(*name), None).map_err(RepoError::from)?;
                let history = key.open(*name, &body)?;
                timeline.origin = Some(origin(&history).ok_or_else(|| Error::WalFile {
                    path: name.to_string().into(),
                    why: "it is no timeline history".to_owned(),
                })?);
            }
            _ => {}
        }
    }
    Ok(ArchivedSystem {
        system,
        segment_bytes,
        files: files.len() as u64,
        stored_bytes: files.iter().map(|file| file.1.bytes).sum(),
        timelines: timelines.into_values().collect(),
    })
}

fn tail(
    store: &dyn ObjectStore,
    segment: WalName,
    number: u64,
    files: &[(WalName, ObjectInfo)],
) -> Result<Tail, Error> {
    let around = Around::of(segment, files.iter().map(|file| file.0));
    let reached = around.reach(store, segment);
    let reached = reached.map_err(|why| Error::WalFile {
        path: segment.to_string().into(),
        why,
    })?;
    Ok(Tail {
        number,
        last: reached.last,
        end: reached.end,
        is_broken: reached.broken.is_some(),
    })
}

/// The size of a segment, from its header.
fn segment_bytes(store: &dyn ObjectStore, name: WalName) -> Result<u64, Error> {
    let header = ByteRange {
        offset: 0,
        length: HEADER_BYTES as u64,
    };
    let body = store
        .read(wal(name), Some(header))
        .map_err(RepoError::from)?;
    let refused = |why: String| Error::WalFile {
        path: name.to_string().into(),
        why,
    };
    let header = WalHeader::decode(&body).map_err(|bad| refused(bad.to_string()))?;
    let bytes = header.plain_bytes;
    match bytes.is_power_of_two() && bytes <= 1 << 30 {
        true => Ok(bytes),
        false => Err(refused(format!("{bytes} bytes are no segment"))),
    }
}

/// The last line of a history: it is of the parent.
fn origin(history: &[u8]) -> Option<Origin> {
    let text = String::from_utf8_lossy(history);
    let mut lines = text.lines().map(str::trim);
    let last = lines.rfind(|line| !line.is_empty() && !line.starts_with('#'))?;
    let mut fields = last.split_ascii_whitespace();
    let parent = fields.next()?.parse().ok()?;
    let Lsn(address) = fields.next()?.parse().ok()?;
    Some(Origin { parent, address })
}

impl ArchivedSystem {
    /// What is missing between what is there.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for timeline in &self.timelines {
            self.gaps_before(timeline, &mut gaps);
            for pair in timeline.ranges.windows(2) {
                let (first, last) = (pair[0].last + 1, pair[1].first - 1);
                gaps.extend(self.gap(timeline.timeline, first, last));
            }
            let Some(tail) = timeline.tail else { continue };
            let last = timeline.ranges.last();
            if let Some(last) = last.filter(|last| last.last + 1 < tail.number) {
                gaps.extend(self.gap(timeline.timeline, last.last + 1, tail.number - 1));
            }
            if tail.is_broken {
                gaps.extend(self.gap(timeline.timeline, tail.number, tail.number));
            }
        }
        gaps
    }

    /// What is missing between a timeline and its parent.
    fn gaps_before(&self, timeline: &ArchivedTimeline, gaps: &mut Vec<Gap>) {
        let (Some(origin), Some(size)) = (timeline.origin, self.segment_bytes) else {
            if timeline.timeline > 1 && !timeline.ranges.is_empty() {
                let name = self.name(timeline.timeline, WalFile::History);
                gaps.push(Gap {
                    first: name,
                    last: name,
                    files: 1,
                });
            }
            return;
        };
        let fork = origin.address / size;
        let mut parents = self.timelines.iter();
        let parent = parents.find(|parent| parent.timeline == origin.parent);
        let before = parent.and_then(|parent| parent.last_before(fork));
        // Without anything before the fork, the archive begins on this timeline, wherever that is.
        let Some(before) = before else { return };
        if before + 1 < fork {
            gaps.extend(self.gap(origin.parent, before + 1, fork - 1));
        }
        if let Some(range) = timeline.ranges.first()
            && range.first > fork
        {
            gaps.extend(self.gap(timeline.timeline, fork, range.first - 1));
        }
    }

    fn gap(&self, timeline: u32, first: u64, last: u64) -> Option<Gap> {
        Some(Gap {
            first: self.segment(timeline, first)?,
            last: self.segment(timeline, last)?,
            files: last - first + 1,
        })
    }

    /// The address up to which WAL is archived on the newest timeline that has any.
    #[must_use]
    pub fn newest_address(&self) -> Option<u64> {
        let size = self.segment_bytes?;
        self.timelines.iter().rev().find_map(|timeline| {
            let whole = timeline.ranges.last().map(|it| (it.last + 1) * size);
            let tail = timeline.tail.filter(|tail| tail.last.is_some());
            tail.map(|tail| tail.address(size)).or(whole)
        })
    }

    /// The name of a segment by its number.
    #[must_use]
    pub fn segment(&self, timeline: u32, number: u64) -> Option<WalName> {
        let in_a_log = (1 << 32) / self.segment_bytes?;
        let place = SegmentPlace {
            log: u32::try_from(number / in_a_log).ok()?,
            segment: u32::try_from(number % in_a_log).ok()?,
        };
        Some(self.name(timeline, WalFile::Segment(place)))
    }

    fn name(&self, timeline: u32, file: WalFile) -> WalName {
        WalName {
            system: self.system,
            timeline,
            file,
        }
    }
}

impl Tail {
    /// The address up to which it comes, where segments have so many bytes.
    pub(super) fn address(&self, segment_bytes: u64) -> u64 {
        self.number * segment_bytes + u64::from(self.end)
    }
}

impl ArchivedTimeline {
    /// Adds a segment behind all that are there.
    fn add(&mut self, number: u64, stored_bytes: u64) {
        match self.ranges.last_mut() {
            Some(range) if range.last + 1 == number => {
                range.last = number;
                range.stored_bytes += stored_bytes;
            }
            _ => self.ranges.push(SegmentRange {
                first: number,
                last: number,
                stored_bytes,
            }),
        }
    }

    /// The last segment before one.
    fn last_before(&self, number: u64) -> Option<u64> {
        let mut before = self.ranges.iter().rev().filter(|it| it.first < number);
        before.next().map(|range| range.last.min(number - 1))
    }
}

fn number(place: SegmentPlace, segment_bytes: u64) -> u64 {
    u64::from(place.log) * ((1 << 32) / segment_bytes) + u64::from(place.segment)
}

fn wal(name: WalName) -> ObjectName {
    ObjectName {
        kind: ObjectKind::Wal,
        id: name.id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn system(timelines: Vec<ArchivedTimeline>) -> ArchivedSystem {
        ArchivedSystem {
            system: 7,
            segment_bytes: Some(SIZE),
            files: 0,
            stored_bytes: 0,
            timelines,
        }
    }

    fn timeline(timeline: u32, segments: &[u64], origin: Option<(u32, u64)>) -> ArchivedTimeline {
        let mut it = ArchivedTimeline {
            timeline,
            origin: origin.map(|(parent, segment)| Origin {
                parent,
                address: segment * SIZE + 40,
            }),
            ..ArchivedTimeline::default()
        };
        for segment in segments {
            it.add(*segment, 1);
        }
        it
    }

    fn check(timelines: Vec<ArchivedTimeline>, missing: &[(&str, &str)]) {
        let gaps = system(timelines).gaps();
        let gaps: Vec<_> = gaps
            .iter()
            .map(|gap| (gap.first.file_name(), gap.last.file_name()))
            .collect();
        let wanted: Vec<_> = missing
            .iter()
            .map(|(first, last)| ((*first).to_owned(), (*last).to_owned()))
            .collect();
        assert_eq!(gaps, wanted);
    }

    #[test]
    fn a_missing_segment_is_named() {
        check(vec![timeline(1, &[3, 4, 5], None)], &[]);
        check(
            vec![timeline(1, &[3, 5, 255, 258], None)],
            &[
                ("000000010000000000000004", "000000010000000000000004"),
                ("000000010000000000000006", "0000000100000000000000FE"),
                ("000000010000000100000000", "000000010000000100000001"),
            ],
        );
    }

    #[test]
    fn what_is_missing_before_pieces_or_of_them_is_named() {
        let growing = |number, is_broken| {
            let mut it = timeline(1, &[3, 4], None);
            it.tail = Some(Tail {
                number,
                last: None,
                end: 100,
                is_broken,
            });
            it
        };
        check(vec![growing(5, false)], &[]);
        let [five, six] = ["000000010000000000000005", "000000010000000000000006"];
        check(vec![growing(6, false)], &[(five, five)]);
        check(vec![growing(5, true)], &[(five, five)]);
        check(vec![growing(7, false)], &[(five, six)]);
    }

    #[test]
    fn a_timeline_begins_where_its_history_says() {
        let parent = || timeline(1, &[3, 4, 5], None);
        check(vec![parent(), timeline(2, &[6, 7], Some((1, 6)))], &[]);
        // What the parent did after the fork is its own.
        check(vec![parent(), timeline(2, &[4, 5], Some((1, 4)))], &[]);
        check(
            vec![parent(), timeline(2, &[8], Some((1, 8)))],
            &[("000000010000000000000006", "000000010000000000000007")],
        );
        check(
            vec![parent(), timeline(2, &[8], Some((1, 6)))],
            &[("000000020000000000000006", "000000020000000000000007")],
        );
        // What lies before the oldest is no gap, on whatever timeline that is.
        check(vec![timeline(2, &[8], Some((1, 6)))], &[]);
        // Promoted, and nothing archived since.
        check(
            vec![parent(), timeline(2, &[], Some((1, 7)))],
            &[("000000010000000000000006", "000000010000000000000006")],
        );
        check(
            vec![parent(), timeline(2, &[6], None)],
            &[("00000002.history", "00000002.history")],
        );
    }

    #[test]
    fn the_last_line_of_a_history_is_of_the_parent() {
        let history = b"1\t0/3000028\tno recovery target specified\n\n2\t1/F00000\tat restore point \"x\"\n\n";
        let found = origin(history).unwrap();
        assert_eq!((found.parent, found.address), (2, 0x1_00F0_0000));
        for bad in ["", "# nothing\n", "1\n", "1\t0-3\n", "x\t0/3\n"] {
            assert_eq!(origin(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
