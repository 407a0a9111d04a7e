//! Which units of the data area are granted or rest.
//!
//! Invariants: no unit of a device is held twice; a hold covers the same units on each of its devices. The search goes
//! round the area, so that units that were given back are used again as late as possible.

use crate::{
    geometry::{Geometry, Segment},
    types::{DeviceMask, UnitCount, UnitIndex},
};
use std::{collections::BTreeMap, sync::Arc};

/// Names a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HoldId(u64);

#[derive(Clone, Copy, Debug)]
struct Hold {
    devices: DeviceMask,
    segments: [Segment; 2],
}

#[derive(Debug)]
pub(crate) struct Allocator {
    geometry: Arc<Geometry>,
    holds: BTreeMap<HoldId, Hold>,
    next: u64,
    /// Where the next search begins.
    cursor: u64,
}

impl Allocator {
    pub(crate) fn new(geometry: Arc<Geometry>) -> Self {
        Self {
            cursor: u64::from(geometry.data_start().0),
            geometry,
            holds: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes two segments of free units on all of `devices`.
    pub(crate) fn grant(
        &mut self,
        devices: DeviceMask,
        units: [UnitCount; 2],
    ) -> Option<(HoldId, [Segment; 2])> {
        let cursor = self.cursor;
        let first = self.find(devices, units[0], None)?;
        self.cursor = first.end();
        let Some(second) = self.find(devices, units[1], Some(first)) else {
            self.cursor = cursor;
            return None;
        };
        self.cursor = second.end();
        let segments = [first, second];
        Some((self.insert(devices, segments), segments))
    }

    /// Holds segments that were granted by an earlier epoch; they may overlap others that rest.
    pub(crate) fn rest(&mut self, devices: DeviceMask, segments: [Segment; 2]) -> HoldId {
        self.insert(devices, segments)
    }

    /// Holds everything.
    pub(crate) fn rest_all(&mut self) -> HoldId {
        let all = Segment {
            first: UnitIndex(0),
            units: UnitCount(u32::MAX),
        };
        self.insert(DeviceMask(u32::MAX), [all, Segment::default()])
    }

    pub(crate) fn release(&mut self, id: HoldId) {
        self.holds.remove(&id);
    }

    /// Units that are free on all of `devices`.
    pub(crate) fn free_units(&self, devices: DeviceMask) -> u64 {
        self.gaps(devices, None)
            .iter()
            .map(|(start, end)| end - start)
            .sum()
    }

    fn insert(&mut self, devices: DeviceMask, segments: [Segment; 2]) -> HoldId {
        self.next += 1;
        let id = HoldId(self.next);
        self.holds.insert(id, Hold { devices, segments });
        id
    }

    fn find(
        &self,
        devices: DeviceMask,
        units: UnitCount,
        besides: Option<Segment>,
    ) -> Option<Segment> {
        let want = u64::from(units.0);
        if want == 0 || devices.is_empty() {
            return None;
        }
        let gaps = self.gaps(devices, besides);
        let after = gaps
            .iter()
            .map(|&(start, end)| (start.max(self.cursor), end));
        let start = after
            .chain(gaps.iter().copied())
            .find(|&(start, end)| start.saturating_add(want) <= end)
            .map(|(start, _)| start)?;
        Some(Segment {
            first: UnitIndex(u32::try_from(start).ok()?),
            units,
        })
    }

    /// The free ranges on all of `devices`, in order.
    fn gaps(&self, devices: DeviceMask, besides: Option<Segment>) -> Vec<(u64, u64)> {
        let mut taken: Vec<(u64, u64)> = self
            .holds
            .values()
            .filter(|hold| !hold.devices.and(devices).is_empty())
            .flat_map(|hold| hold.segments)
            .chain(besides)
            .filter(|segment| segment.units.0 > 0)
            .map(|segment| (u64::from(segment.first.0), segment.end()))
            .collect();
        taken.sort_unstable();
        let mut gaps = Vec::new();
        let mut at = u64::from(self.geometry.data_start().0);
        let end = u64::from(self.geometry.data_end(devices).0);
        for (from, to) in taken {
            if from.min(end) > at {
                gaps.push((at, from.min(end)));
            }
            at = at.max(to);
        }
        if end > at {
            gaps.push((at, end));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        geometry::{DeviceSize, Timeouts},
        types::PoolId,
    };
    use proptest::prelude::*;

    fn allocator() -> Allocator {
        let size = |blocks| DeviceSize {
            blocks,
            logical_block: 512,
        };
        let sizes = [size(4096), size(8192), size(5000)];
        let geometry = Geometry::new(PoolId::default(), 4, &sizes, Timeouts::default());
        Allocator::new(Arc::new(geometry.unwrap()))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grant(u32, u32, u32),
        Rest(u32, u32, u32),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..8_u32, 1..40_u32, 1..40_u32).prop_map(|(m, a, b)| Step::Grant(m, a, b)),
            1 => (1..8_u32, 16..300_u32, 1..40_u32).prop_map(|(m, a, b)| Step::Rest(m, a, b)),
            2 => any::<usize>().prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn no_unit_is_held_twice_and_what_is_released_can_be_granted_again(
            steps in proptest::collection::vec(step(), 1..120)
        ) {
            let mut allocator = allocator();
            let mut held: Vec<(HoldId, DeviceMask, [Segment; 2])> = Vec::new();
            for step in steps {
                match step {
                    Step::Grant(mask, a, b) => {
                        let mask = DeviceMask(mask);
                        let Some((id, segments)) =
                            allocator.grant(mask, [UnitCount(a), UnitCount(b)]) else { continue };
                        prop_assert!(!segments[0].overlaps(segments[1]));
                        for segment in segments {
                            prop_assert!(segment.first >= allocator.geometry.data_start());
                            prop_assert!(segment.end() <= u64::from(allocator.geometry.data_end(mask).0));
                            for (_, other, theirs) in &held {
                                if !other.and(mask).is_empty() {
                                    prop_assert!(!theirs.iter().any(|s| s.overlaps(segment)));
                                }
                            }
                        }
                        held.push((id, mask, segments));
                    }
                    Step::Rest(mask, first, units) => {
                        let segment = Segment { first: UnitIndex(first), units: UnitCount(units) };
                        let segments = [segment, Segment::default()];
                        held.push((allocator.rest(DeviceMask(mask), segments), DeviceMask(mask), segments));
                    }
                    Step::Release(index) if !held.is_empty() => {
                        let (id, ..) = held.swap_remove(index % held.len());
                        allocator.release(id);
                    }
                    Step::Release(_) => {}
                }
            }
            for (id, ..) in held {
                allocator.release(id);
            }
            let all = allocator.geometry.all_devices();
            let whole = allocator.geometry.data_end(all).0 - allocator.geometry.data_start().0;
            prop_assert_eq!(allocator.free_units(all), u64::from(whole));
        }
    }

    #[test]
    fn released_units_are_used_again_as_late_as_possible() {
        let mut allocator = allocator();
        let mask = DeviceMask(1);
        let (first, a) = allocator
            .grant(mask, [UnitCount(10), UnitCount(10)])
            .unwrap();
        allocator.release(first);
        let (_, b) = allocator
            .grant(mask, [UnitCount(10), UnitCount(10)])
            .unwrap();
        assert!(b[0].first.0 >= u32::try_from(a[1].end()).unwrap());
    }

    #[test]
    fn nothing_is_granted_while_everything_rests() {
        let mut allocator = allocator();
        let rest = allocator.rest_all();
        assert!(
            allocator
                .grant(DeviceMask(1), [UnitCount(1), UnitCount(1)])
                .is_none()
        );
        allocator.release(rest);
        assert!(
            allocator
                .grant(DeviceMask(1), [UnitCount(1), UnitCount(1)])
                .is_some()
        );
    }
}
