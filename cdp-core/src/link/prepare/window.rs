//! What may be left out: records that later ones of the same run cover wholly.

use crate::frame::{Part, RecordKind};
use crate::types::{DiskId, Extent, Lsn};
use std::collections::BTreeMap;

/// Where in the order somebody is: inside a period of per-point restore, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Place {
    pub(super) in_period: bool,
}

/// What a record does to the run of records that may be coalesced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// It is one more of them, or of none.
    Stays,
    /// No run goes over it.
    Cuts,
    /// The same, and a moment that is waited for ends here, or there is none to wait for.
    Ends,
}

impl Place {
    /// Goes over a record. `kind`: none where it is not known.
    pub(super) fn step(&mut self, kind: Option<RecordKind>, disk: Option<DiskId>) -> Step {
        use RecordKind as Kind;
        match (kind, disk) {
            (Some(Kind::PeriodBegin), _) => {
                self.in_period = true;
                Step::Cuts
            }
            (Some(Kind::Mark | Kind::PeriodEnd | Kind::TimelineStart), _)
            | (Some(Kind::GapBegin | Kind::ResyncBegin), None) => {
                self.in_period = false;
                Step::Ends
            }
            (Some(kind), _) if kind.changes_disk() || matches!(kind, Kind::Barrier | Kind::Time) => Step::Stays,
            // Sizes of disks, copies of single ones, and what is not known.
            _ => Step::Cuts,
        }
    }
}

/// Ranges of disks, joined where they touch.
#[derive(Debug, Default)]
struct Covered(BTreeMap<(Option<DiskId>, u64), u64>);

impl Covered {
    fn holds(&self, disk: Option<DiskId>, extent: Extent) -> bool {
        let before = self.0.range(..=(disk, extent.offset)).next_back();
        before.is_some_and(|((of, _), end)| *of == disk && *end >= extent.end())
    }

    fn add(&mut self, disk: Option<DiskId>, extent: Extent) {
        let (mut from, mut to) = (extent.offset, extent.end());
        while let Some((&(of, begin), &end)) = self.0.range(..=(disk, to)).next_back() {
            if of != disk || end < from {
                break;
            }
            (from, to) = (from.min(begin), to.max(end));
            self.0.remove(&(of, begin));
        }
        self.0.insert((disk, from), to);
    }
}

/// Takes out of `parts` every whole record that later ones of its run cover. `place` is that before the first of them; the record at
/// `keep` stays. Gives how many records and bytes went.
pub(super) fn coalesce(parts: &mut Vec<Part>, mut place: Place, keep: Lsn) -> (u64, u64) {
    // Whether each may be coalesced, and whether a run ends before it.
    let mut steps = Vec::with_capacity(parts.len());
    for part in parts.iter() {
        let step = place.step(Some(part.kind), part.disk);
        steps.push((step == Step::Stays && place.in_period, step != Step::Stays));
    }
    let mut covered = Covered::default();
    let mut goes = vec![false; parts.len()];
    let (mut records, mut bytes) = (0, 0);
    let mut end = parts.len();
    while let Some(last) = end.checked_sub(1) {
        let begin = parts[..end].iter().rposition(|part| part.lsn != parts[last].lsn).map_or(0, |before| before + 1);
        let record = &parts[begin..end];
        let (inside, cuts) = steps[last];
        if cuts {
            covered.0.clear();
        }
        if inside && record[0].kind.changes_disk() {
            let whole = record[0].index == 0 && parts[last].is_last() && record[0].lsn != keep;
            if whole && record.iter().all(|part| covered.holds(part.disk, part.extent)) {
                goes[begin..end].fill(true);
                records += 1;
                bytes += record.iter().map(|part| part.data.len() as u64).sum::<u64>();
            } else {
                record.iter().for_each(|part| covered.add(part.disk, part.extent));
            }
        }
        end = begin;
    }
    let mut at = 0;
    parts.retain(|_| {
        at += 1;
        !goes[at - 1]
    });
    (records, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_what_a_bitmap_says(ranges in prop::collection::vec((0u16..2, 0u64..60, 1u64..12), 0..40), asked in (0u16..2, 0u64..60, 1u64..12)) {
            let mut covered = Covered::default();
            let mut bits = [[false; 80]; 2];
            for (disk, offset, length) in ranges {
                covered.add(DiskId::new(disk + 1), Extent::new(offset, length));
                bits[usize::from(disk)][offset as usize..(offset + length) as usize].fill(true);
            }
            let (disk, offset, length) = asked;
            let all = bits[usize::from(disk)][offset as usize..(offset + length) as usize].iter().all(|bit| *bit);
            prop_assert_eq!(covered.holds(DiskId::new(disk + 1), Extent::new(offset, length)), all);
        }
    }
}
