//! Which moments of which disks go with what is damaged, and which stay: what a restore would find.
//!
//! What a view needs is asked of the index, and not of the data, for all moments above the bases at once. A kept moment is one: what
//! is damaged is read there.

use super::{EXTENTS_MAX, LostExtent, Verified};
use crate::host::document;
use crate::report::{Range, RangeKind};
use cdp_core::journal::{DiskInfo, KeptInfo};
use cdp_core::replica::{Lost, Needed, Replica, ReplicaView, ViewDisk};
use cdp_core::types::{DISK_MAX, DiskId, Extent, Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// How much of a disk is looked at at once, in bytes.
const STRIDE: u64 = 64 << 20;
/// Bytes of one read.
const PIECE: u64 = 1 << 20;

/// Something that cannot be read, and what it is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Which damage takes it, if that is known.
    pub(super) damage: Option<usize>,
    /// It lies in the store of this kept moment, and moments that were kept before go through it; none: in the journal or a base.
    pub(super) store: Option<u64>,
    /// Only moments kept before the bases need it: for all others the journal lies over it.
    pub(super) kept_only: bool,
    pub(super) lost: Lost,
}

impl Taken {
    fn is_of(&self, disk: DiskId) -> bool {
        self.lost.disk.is_none_or(|of| of == disk)
    }
}

/// First and last LSN.
type Span = (Lsn, Lsn);

/// Works out what damage takes.
pub(super) struct Judge<'a> {
    replica: &'a Replica,
    taken: &'a [Taken],
    /// The moments above the bases that need each of them.
    needed: Vec<Vec<Needed>>,
    /// What each damage takes.
    by_damage: BTreeMap<usize, BTreeMap<Timeline, Vec<Span>>>,
    /// What all together take.
    by_any: BTreeMap<Timeline, Vec<Span>>,
    /// Whether to go on.
    go_on: &'a mut dyn FnMut() -> bool,
    stopped: bool,
}

impl<'a> Judge<'a> {
    /// Asks `go_on` again and again: there may be much to be looked up.
    pub(super) fn new(replica: &'a Replica, taken: &'a [Taken], go_on: &'a mut dyn FnMut() -> bool) -> Self {
        let (by_damage, by_any) = (BTreeMap::new(), BTreeMap::new());
        Self { replica, taken, needed: Vec::new(), by_damage, by_any, go_on, stopped: false }
    }

    /// Whether nobody stopped it.
    fn goes_on(&mut self) -> bool {
        self.stopped = self.stopped || !(self.go_on)();
        !self.stopped
    }

    /// Whether it came to its end: else nothing is said.
    pub(super) fn judge(mut self, out: &mut Verified) -> bool {
        let ranges: Vec<(Timeline, Vec<Range>)> = self.ranges();
        if out.ok {
            out.good = ranges.into_iter().flat_map(|(_, ranges)| ranges).collect();
            return true;
        }
        for taken in self.taken {
            let above = taken.store.is_none() && !taken.kept_only;
            self.needed.push(if above { self.replica.moments_that_need(&taken.lost) } else { Vec::new() });
            if !self.goes_on() {
                return false;
            }
        }
        let (mut disks, mut good_of_all) = (Vec::new(), Vec::new());
        for disk in &self.replica.manifest().disks {
            let mut verified = super::DiskVerified { disk: disk.name.clone(), ..Default::default() };
            // What is not there any more at the end of the journal is lost of every disk.
            let ends = out.damage.iter().filter(|damage| damage.disks.contains(&disk.name));
            verified.lost.extend(ends.flat_map(|damage| damage.lost.clone()));
            for (timeline, ranges) in &ranges {
                for range in ranges {
                    let (lost, there) = self.lost_of(disk, *timeline, range);
                    if !self.goes_on() {
                        return false;
                    }
                    self.by_any.entry(*timeline).or_default().extend(&lost);
                    let good = there.iter().flat_map(|there| without(*there, &lost)).collect();
                    verified.lost.extend(self.shown(*timeline, range, lost));
                    verified.good.extend(self.shown(*timeline, range, good));
                }
            }
            disks.push(verified);
        }
        let mut by_damage = std::mem::take(&mut self.by_damage);
        let mut lost_by: Vec<(usize, Vec<Range>)> = Vec::new();
        for (timeline, ranges) in &ranges {
            let lost = union(self.by_any.remove(timeline).unwrap_or_default());
            for range in ranges {
                let good = without((range.from_lsn, range.to_lsn), &lost);
                good_of_all.extend(self.shown(*timeline, range, good));
            }
            for (damage, spans) in &mut by_damage {
                if !self.goes_on() {
                    return false;
                }
                let spans = union(spans.remove(timeline).unwrap_or_default());
                for range in ranges {
                    let inside = spans.iter().filter_map(|span| both(*span, (range.from_lsn, range.to_lsn))).collect();
                    lost_by.push((*damage, self.shown(*timeline, range, inside)));
                }
            }
        }
        (out.disks, out.good) = (disks, good_of_all);
        lost_by.into_iter().for_each(|(damage, lost)| out.damage[damage].lost.extend(lost));
        self.name_extents(out);
        true
    }

    /// Restorable ranges by timeline, the newest first.
    fn ranges(&self) -> Vec<(Timeline, Vec<Range>)> {
        let branches = self.replica.catalogue().branches().into_iter().rev();
        branches.map(|branch| (branch.timeline, document::ranges_of(branch))).collect()
    }

    /// What of a range of a disk is lost, and at which of its moments the disk was complete.
    fn lost_of(&mut self, disk: &DiskInfo, timeline: Timeline, range: &Range) -> (Vec<Span>, Vec<Span>) {
        if let Some(kept) = self.kept_before_bases(timeline, range) {
            return self.lost_of_kept(disk, timeline, kept);
        }
        let (mut lost, mut there) = (Vec::new(), Vec::new());
        for span in self.unchanged(disk, timeline, (range.from_lsn, range.to_lsn)) {
            let disks = self.replica.complete_disks(timeline, span.0);
            let Some(found) = disks.iter().find(|found| found.id == disk.id) else { continue };
            there.push(span);
            for (taken, needed) in self.taken.iter().zip(&self.needed) {
                // What a disk had behind its end nobody reads.
                if !taken.is_of(disk.id) || taken.lost.extent.offset >= found.size {
                    continue;
                }
                for (_, first, last) in needed.iter().filter(|(on, ..)| *on == timeline) {
                    let Some(both) = both(span, (*first, last.unwrap_or(Lsn(u64::MAX)))) else { continue };
                    lost.push(both);
                    let by_damage = taken.damage.map(|damage| self.by_damage.entry(damage).or_default());
                    by_damage.into_iter().for_each(|by| by.entry(timeline).or_default().push(both));
                }
            }
            lost = union(lost);
        }
        (lost, there)
    }

    fn kept_before_bases(&self, timeline: Timeline, range: &Range) -> Option<&'a KeptInfo> {
        let manifest = self.replica.manifest();
        let before = manifest.oldest().is_some_and(|oldest| range.to_lsn < oldest.lsn);
        manifest.kept_at(timeline, range.to_lsn).filter(|_| before && range.kind == RangeKind::Only)
    }

    fn lost_of_kept(&mut self, disk: &DiskInfo, timeline: Timeline, kept: &KeptInfo) -> (Vec<Span>, Vec<Span>) {
        let span = (kept.moment.lsn, kept.moment.lsn);
        if !kept.disks.iter().any(|(id, _)| *id == disk.id) {
            return (Vec::new(), Vec::new());
        }
        let below = |taken: &&Taken| match taken.store {
            Some(number) => number >= kept.number,
            None => taken.lost.written.is_none(),
        };
        let taken: Vec<&Taken> = self.taken.iter().filter(below).filter(|taken| taken.is_of(disk.id)).collect();
        if taken.is_empty() {
            return (Vec::new(), vec![span]);
        }
        let view = self.replica.view(timeline, kept.moment.lsn).ok();
        let there = view.as_ref().and_then(|view| Some((view, view.disks().iter().find(|found| found.id == disk.id)?)));
        let mut lost: Vec<&Taken> = Vec::new();
        for taken in taken {
            let extent = taken.lost.extent;
            let readable = there.is_some_and(|(view, disk)| is_readable(view, disk, extent, &mut || self.goes_on()));
            if !readable && !self.stopped {
                lost.push(taken);
            }
        }
        for damage in lost.iter().filter_map(|taken| taken.damage).collect::<BTreeSet<_>>() {
            self.by_damage.entry(damage).or_default().entry(timeline).or_default().push(span);
        }
        (lost.first().map(|_| span).into_iter().collect(), vec![span])
    }

    /// The parts of a range within which a disk stays as large and as complete as it is.
    fn unchanged(&self, disk: &DiskInfo, timeline: Timeline, (from, to): Span) -> Vec<Span> {
        let branch = self.replica.catalogue().branch(timeline);
        let changes = branch.map(|branch| branch.disk_changes()).unwrap_or_default();
        let of_disk = changes.iter().filter(|change| change.disk == disk.id).map(|change| change.lsn);
        let mut begins: BTreeSet<Lsn> = of_disk.chain([disk.added]).chain(disk.removed).collect();
        begins.retain(|lsn| *lsn > from && *lsn <= to);
        let ends: Vec<Lsn> = begins.iter().map(|lsn| lsn.prev()).chain([to]).collect();
        std::iter::once(from).chain(begins).zip(ends).collect()
    }

    fn shown(&self, timeline: Timeline, range: &Range, spans: Vec<Span>) -> Vec<Range> {
        shown(self.replica, timeline, range, spans)
    }

    /// Says of each damage what it takes.
    fn name_extents(&self, out: &mut Verified) {
        let name = |id: DiskId| self.replica.manifest().disk(id).map(|disk| disk.name.clone());
        for (taken, damage) in self.taken.iter().filter_map(|taken| Some((taken, taken.damage?))) {
            let Some(damage) = out.damage.get_mut(damage) else { continue };
            let Lost { written, disk, extent } = taken.lost;
            let disk = disk.and_then(name);
            damage.disks.extend(disk.iter().filter(|name| !damage.disks.contains(name)).cloned().collect::<Vec<_>>());
            if damage.extents.len() == EXTENTS_MAX {
                damage.more += 1;
                continue;
            }
            let length = (extent.length < DISK_MAX).then_some(extent.length);
            let lsn = written.map_or(Lsn::ZERO, |(_, lsn)| lsn);
            damage.extents.push(LostExtent { disk, lsn, offset: extent.offset, length });
        }
    }
}

/// Spans of a range as they are shown, the newest first.
fn shown(replica: &Replica, timeline: Timeline, range: &Range, spans: Vec<Span>) -> Vec<Range> {
    let time = |lsn: Lsn, known| replica.exact(timeline, lsn).map_or(known, |moment| moment.stamp.time);
    let cut = |(from_lsn, to_lsn): Span| {
        let from_time = if from_lsn == range.from_lsn { range.from_time } else { time(from_lsn, range.from_time) };
        let to_time = if to_lsn == range.to_lsn { range.to_time } else { time(to_lsn, range.to_time) };
        Range { from_lsn, to_lsn, from_time, to_time, ..range.clone() }
    };
    spans.into_iter().rev().map(cut).collect()
}

/// What two spans have both.
fn both(one: Span, other: Span) -> Option<Span> {
    let (from, to) = (one.0.max(other.0), one.1.min(other.1));
    (from <= to).then_some((from, to))
}

/// The same moments in ascending spans that do not touch.
fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut all: Vec<Span> = Vec::with_capacity(spans.len());
    for (from, to) in spans {
        match all.last_mut().filter(|last| from <= last.1.next()) {
            Some(last) => last.1 = last.1.max(to),
            None => all.push((from, to)),
        }
    }
    all
}

/// What ascending spans leave of one.
fn without(span: Span, taken: &[Span]) -> Vec<Span> {
    let ((mut from, to), mut left) = (span, Vec::new());
    for (first, last) in taken.iter().filter(|taken| both(**taken, span).is_some()) {
        if *first > from {
            left.push((from, first.prev()));
        }
        if *last >= to {
            return left;
        }
        from = last.next();
    }
    left.push((from, to));
    left
}

/// Whether a run of a disk can be read as a restore reads it, as far as `go_on` lets it look.
fn is_readable(view: &ReplicaView, disk: &ViewDisk, extent: Extent, go_on: &mut dyn FnMut() -> bool) -> bool {
    let Some(extent) = extent.intersect(&Extent::new(0, disk.size)) else { return true };
    let mut buffer = vec![0; PIECE as usize];
    let mut at = extent.offset;
    while at < extent.end() {
        let stride = Extent::new(at, STRIDE.min(extent.end() - at));
        let Ok(runs) = view.runs(disk.id, stride) else { return false };
        for run in runs.iter().filter(|run| !run.zero) {
            for from in (run.extent.offset..run.extent.end()).step_by(PIECE as usize) {
                let length = PIECE.min(run.extent.end() - from) as usize;
                if !go_on() {
                    return true;
                }
                if view.read(disk.id, from, &mut buffer[..length]).is_err() {
                    return false;
                }
            }
        }
        at = stride.end();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(of: &[(u64, u64)]) -> Vec<Span> {
        of.iter().map(|(from, to)| (Lsn(*from), Lsn(*to))).collect()
    }

    #[test]
    fn spans_are_joined_and_taken_away() {
        let all = union(spans(&[(7, 9), (1, 3), (4, 4), (8, 20)]));
        assert_eq!(all, spans(&[(1, 4), (7, 20)]));
        assert_eq!(without((Lsn(0), Lsn(30)), &all), spans(&[(0, 0), (5, 6), (21, 30)]));
        assert_eq!(without((Lsn(2), Lsn(8)), &all), spans(&[(5, 6)]));
        assert_eq!(without((Lsn(8), Lsn(9)), &all), []);
        let open = spans(&[(5, u64::MAX)]);
        assert_eq!(without((Lsn(1), Lsn(u64::MAX)), &open), spans(&[(1, 4)]));
    }
}
