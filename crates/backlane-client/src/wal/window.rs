//! How far a base backup can be brought by what is archived (`docs/design/wal.md` §5).
//!
//! Invariant: what is called reached has every segment from the backup's start on, on the timelines that lead there.

use super::archive::{ArchivedSystem, ArchivedTimeline};
use backlane_proto::WalName;

/// The WAL that a base backup needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its timeline.
    pub timeline: u32,
    /// The address at which recovery begins.
    pub start: u64,
    /// The one that it has to come to.
    pub stop: u64,
}

impl ArchivedSystem {
    /// The last segment or piece to which recovery from a base backup comes without a gap, on the newest timeline that
    /// leaves its own behind its end, as recovery to the latest timeline does. `None` if it doesn't come to the backup's
    /// end.
    #[must_use]
    pub fn reach(&self, backup: Span) -> Option<WalName> {
        let size = self.segment_bytes?;
        let (mut timeline, mut at, mut floor) = (backup.timeline, backup.start / size, backup.stop);
        let mut reached = None;
        loop {
            let here = self.timelines.iter().find(|it| it.timeline == timeline);
            let last = here.and_then(|here| here.without_gap_from(at));
            let behind = last.map_or(at, |last| last + 1);
            let tail = here.and_then(|here| here.tail);
            let tail = tail.filter(|tail| tail.number == behind && tail.last.is_some());
            let end = tail.map_or(behind * size, |tail| tail.address(size));
            // A stop at the very beginning of a segment needs nothing of it.
            let comes_to_the_end = reached.is_some() || end >= backup.stop;
            let last = last.filter(|_| comes_to_the_end);
            let piece = tail.filter(|_| comes_to_the_end);
            reached = piece
                .and_then(|tail| tail.last)
                .or_else(|| last.and_then(|last| self.segment(timeline, last)))
                .or(reached);
            let next = self.timelines.iter().rev().find_map(|next| {
                let origin = next.origin?;
                let fork = origin.address / size;
                let is_reached = fork <= last.map_or(at, |last| last + 1);
                let follows = origin.parent == timeline && origin.address >= floor && is_reached;
                (follows && next.without_gap_from(fork).is_some()).then_some((next, origin.address))
            });
            let Some((next, address)) = next else {
                return reached;
            };
            (timeline, at, floor) = (next.timeline, address / size, address);
            // Its first segment has what the parent wrote of it before.
            reached = self.segment(timeline, at);
        }
    }
}

impl ArchivedTimeline {
    fn without_gap_from(&self, number: u64) -> Option<u64> {
        let mut ranges = self.ranges.iter();
        let range = ranges.find(|range| range.first <= number && number <= range.last);
        range.map(|range| range.last)
    }
}

#[cfg(test)]
mod tests {
    use super::super::archive::{Origin, SegmentRange, Tail};
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn timeline(
        timeline: u32,
        ranges: &[(u64, u64)],
        origin: Option<(u32, u64)>,
    ) -> ArchivedTimeline {
        let range = |&(first, last): &(u64, u64)| SegmentRange {
            first,
            last,
            stored_bytes: 1,
        };
        ArchivedTimeline {
            timeline,
            ranges: ranges.iter().map(range).collect(),
            tail: None,
            origin: origin.map(|(parent, segment)| Origin {
                parent,
                address: segment * SIZE + 40,
            }),
        }
    }

    /// Where a backup from segment 3 to the middle of segment 4 of timeline 1 comes to.
    fn reach(timelines: Vec<ArchivedTimeline>) -> Option<String> {
        let system = ArchivedSystem {
            system: 7,
            segment_bytes: Some(SIZE),
            files: 0,
            stored_bytes: 0,
            timelines,
        };
        let backup = Span {
            timeline: 1,
            start: 3 * SIZE + 40,
            stop: 4 * SIZE + 500,
        };
        system.reach(backup).map(WalName::file_name)
    }

    #[test]
    fn recovery_comes_as_far_as_there_is_no_gap() {
        let last = |segment: &str| Some(format!("0000000100000000{segment}"));
        assert_eq!(reach(vec![timeline(1, &[(3, 9)], None)]), last("00000009"));
        let gap = vec![timeline(1, &[(1, 5), (7, 9)], None)];
        assert_eq!(reach(gap), last("00000005"));
        assert_eq!(reach(vec![timeline(1, &[(3, 4)], None)]), last("00000004"));
        for short in [&[(3, 3)][..], &[(4, 9)], &[(1, 2), (4, 9)], &[]] {
            assert_eq!(reach(vec![timeline(1, short, None)]), None, "{short:?}");
        }
    }

    #[test]
    fn recovery_comes_as_far_as_pieces_do() {
        let growing = |ranges: &[(u64, u64)], number: u64, end: u32| {
            let piece = format!("00000001{number:016X}.{end:08X}.piece");
            let mut one = timeline(1, ranges, None);
            one.tail = Some(Tail {
                number,
                last: WalName::from_file_name(7, &piece),
                end,
                is_broken: false,
            });
            reach(vec![one])
        };
        let piece = |text: &str| Some(format!("0000000100000000{text}.piece"));
        assert_eq!(growing(&[(3, 6)], 7, 9), piece("00000007.00000009"));
        assert_eq!(growing(&[(3, 3)], 4, 500), piece("00000004.000001F4"));
        // Not to the backup's end, and behind a gap.
        assert_eq!(growing(&[(3, 3)], 4, 499), None);
        let last = Some("000000010000000000000006".to_owned());
        assert_eq!(growing(&[(3, 6)], 8, 9), last);
    }

    #[test]
    fn recovery_follows_the_newest_timeline_that_it_comes_to() {
        let one = || timeline(1, &[(3, 6)], None);
        let last = |name: &str| Some(name.to_owned());
        let two = timeline(2, &[(6, 8)], Some((1, 6)));
        let three = timeline(3, &[(5, 5)], Some((1, 5)));
        assert_eq!(
            reach(vec![one(), two.clone()]),
            last("000000020000000000000008")
        );
        assert_eq!(
            reach(vec![one(), two.clone(), three]),
            last("000000030000000000000005")
        );
        let grandchild = timeline(4, &[(8, 11)], Some((2, 8)));
        assert_eq!(
            reach(vec![one(), two, grandchild]),
            last("00000004000000000000000B")
        );
        // One that left before the backup's end, one behind a gap, and one of which nothing was archived yet.
        for other in [
            timeline(2, &[(4, 8)], Some((1, 4))),
            timeline(2, &[(9, 10)], Some((1, 9))),
            timeline(2, &[], Some((1, 6))),
        ] {
            assert_eq!(
                reach(vec![one(), other.clone()]),
                last("000000010000000000000006"),
                "{other:?}"
            );
        }
    }
}
