//! What the replica is, and what it ought to be: records applied in order, beside what a reader of the source could have seen.

use super::disk::{Tags, sectors, tags_of};
use cdp_core::frame::{Note, Part, RawFrame, RecordKind};
use cdp_core::types::{DiskId, Extent, FRAME_PLAIN_MAX, FRAME_RECORDS_MAX, Lsn, SECTOR, WRITE_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// One thing that changed what a reader sees, in the order in which it happened.
#[derive(Clone, Debug)]
pub struct Change {
    /// The number of the call to the filter in which it happened.
    pub call: u64,
    pub disk: usize,
    pub extent: Extent,
    pub tags: Tags,
    /// Of the op, when its record came.
    pub lsn: Option<Lsn>,
    /// A failed op left this behind; it has no place of its own in the order.
    pub torn: bool,
}

/// Two sets of disks and how many sectors of them differ.
#[derive(Clone)]
struct Pair {
    replica: Vec<Tags>,
    source: Vec<Tags>,
    /// Of each disk: its sectors, whether it is there and complete, and how many sectors differ.
    sizes: Vec<usize>,
    shown: Vec<bool>,
    differing: Vec<usize>,
}

impl Pair {
    fn new(replica: Vec<Tags>, source: Vec<Tags>, sizes: Vec<usize>, hidden: &BTreeSet<usize>) -> Self {
        let is_shown = |(disk, size): (usize, &usize)| *size > 0 && !hidden.contains(&disk);
        let (shown, differing) = (sizes.iter().enumerate().map(is_shown).collect(), vec![0; sizes.len()]);
        let mut pair = Self { replica, source, sizes, shown, differing };
        (0..pair.sizes.len()).for_each(|disk| pair.count(disk));
        pair
    }

    fn count(&mut self, disk: usize) {
        let inside = ..self.sizes[disk];
        let both = self.replica[disk][inside].iter().zip(&self.source[disk][inside]);
        self.differing[disk] = both.filter(|(a, b)| a != b).count();
    }

    fn first_difference(&self) -> Option<(usize, usize)> {
        let disk = (0..self.sizes.len()).find(|disk| self.shown[*disk] && self.differing[*disk] > 0)?;
        let sector = (0..self.sizes[disk]).find(|at| self.replica[disk][*at] != self.source[disk][*at])?;
        Some((disk, sector))
    }

    fn set(&mut self, is_source: bool, disk: usize, extent: Extent, tags: &Tags) {
        for (at, sector) in sectors(extent).enumerate() {
            let counts = sector < self.sizes[disk];
            let (replica, source) = (&mut self.replica[disk][sector], &mut self.source[disk][sector]);
            self.differing[disk] -= usize::from(counts && replica != source);
            *(if is_source { &mut *source } else { &mut *replica }) = tags.get(at).copied().unwrap_or(0);
            self.differing[disk] += usize::from(counts && replica != source);
        }
    }

    /// What a record says of a disk as a whole.
    fn change(&mut self, disk: usize, part: &Part) {
        match part.note.as_deref() {
            Some(Note::Resize { to, .. }) => {
                let to = (to / SECTOR) as usize;
                for content in [&mut self.replica[disk], &mut self.source[disk]] {
                    content[to.min(self.sizes[disk])..self.sizes[disk]].fill(0);
                }
                self.sizes[disk] = to;
                self.count(disk);
            }
            Some(Note::DiskAdded { size, .. }) => {
                self.sizes[disk] = (size / SECTOR) as usize;
                self.count(disk);
            }
            Some(Note::ResyncBegin { .. }) => self.shown[disk] = false,
            Some(Note::ResyncEnd { .. }) => {
                self.shown[disk] = true;
                self.count(disk);
            }
            _ if part.kind == RecordKind::DiskRemoved => self.shown[disk] = false,
            _ => {}
        }
    }
}

/// Where the replica is not what a reader of the source could have seen.
#[derive(Debug)]
pub struct Wrong {
    pub lsn: Lsn,
    pub disk: usize,
    pub sector: usize,
}

/// LSNs that cannot be restored, by the records alone.
pub fn windows(frames: &[RawFrame]) -> Vec<(Lsn, Lsn)> {
    let mut windows = periods(frames);
    let mut open: Option<Lsn> = None;
    // What is said of one disk takes nothing from the others.
    let of_group = |part: &&Part| part.disk.is_none();
    for part in frames.iter().flat_map(|frame| &frame.parts).filter(of_group) {
        match part.note.as_deref() {
            Some(Note::GapBegin { from, .. } | Note::ResyncBegin { from, .. }) => {
                open = Some(open.map_or(*from, |begun: Lsn| begun.min(*from)));
            }
            Some(Note::ResyncEnd { .. }) => windows.push((open.take().expect("an open resync"), part.lsn)),
            _ => {}
        }
    }
    windows.extend(open.map(|from| (from, Lsn(u64::MAX))));
    windows
}

/// Periods of per-point restore: from the LSN of the first record to that of the one that ended it.
pub fn periods(frames: &[RawFrame]) -> Vec<(Lsn, Lsn)> {
    let mut periods = Vec::new();
    let mut open: Option<Lsn> = None;
    for part in frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.disk.is_none()) {
        match part.kind {
            RecordKind::PeriodBegin => {
                assert_eq!(part.note.as_deref(), Some(&Note::PeriodBegin { from: part.lsn }));
                assert_eq!(open.replace(part.lsn), None, "one period at a time");
            }
            RecordKind::Mark | RecordKind::PeriodEnd | RecordKind::GapBegin | RecordKind::ResyncBegin => {
                periods.extend(open.take().map(|from| (from, part.lsn)));
            }
            _ => {}
        }
    }
    periods.extend(open.map(|from| (from, Lsn(u64::MAX))));
    periods
}

/// What a proxy may leave out of the records after `after`, up to `last`: what later ones of the same period, as far as it has them,
/// cover wholly. `wants` says whether it does.
pub fn left_out(frames: &[RawFrame], (after, last): (Lsn, Lsn), mut wants: impl FnMut() -> bool) -> Vec<Lsn> {
    let mut out = Vec::new();
    for (from, end) in periods(frames).into_iter().filter(|(_, end)| *end > after) {
        let inside = frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.lsn > from && part.lsn < end);
        // Whole records: disk, extent and LSN.
        let mut records: Vec<(Lsn, Option<DiskId>, Extent)> = Vec::new();
        let mut open: Option<Extent> = None;
        for part in inside {
            let begun = open.get_or_insert(part.extent);
            begun.length = part.extent.end() - begun.offset;
            if part.is_last() {
                let extent = open.take().expect("it was begun");
                match part.kind.changes_disk() {
                    true => records.push((part.lsn, part.disk, extent)),
                    // What changes a disk's size ends a window.
                    false if part.note.is_some() && part.kind != RecordKind::Time => records.clear(),
                    false => {}
                }
            }
        }
        for (at, (lsn, disk, extent)) in
            records.iter().enumerate().filter(|(_, (lsn, ..))| *lsn > after && *lsn <= last)
        {
            let covers = |(_, other, later): &(Lsn, Option<DiskId>, Extent)| other == disk && later.contains(extent);
            if records[at + 1..].iter().any(covers) && wants() {
                out.push(*lsn);
            }
        }
    }
    out
}

/// The last LSN that has all its parts in these frames.
pub fn whole(frames: &[RawFrame]) -> Lsn {
    let last = frames.iter().rev().flat_map(|frame| frame.parts.last()).next();
    last.map_or(Lsn::ZERO, |part| if part.is_last() { part.lsn } else { part.lsn.prev() })
}

/// The last LSN that a reader of these frames may restore.
pub fn restorable(frames: &[RawFrame]) -> Lsn {
    let settled = frames.last().map_or(Lsn::ZERO, |frame| frame.settled).min(whole(frames));
    let windows = windows(frames);
    let mut lsn = settled;
    // What lies before a window may lie in another one.
    while let Some((from, _)) = windows.iter().find(|(from, end)| *from <= lsn && lsn < *end) {
        lsn = from.prev();
    }
    lsn
}

/// Applies what records up to `last` say, but for those that a proxy left out.
pub fn apply(
    disks: &mut [Tags],
    frames: &[RawFrame],
    (after, last): (Lsn, Lsn),
    left_out: &BTreeSet<Lsn>,
    index: impl Fn(DiskId) -> usize,
) {
    let there = |part: &&Part| part.lsn > after && part.lsn <= last && !left_out.contains(&part.lsn);
    for part in frames.iter().flat_map(|frame| &frame.parts).filter(there) {
        if let (Some(disk), Some(Note::Resize { from, to })) = (part.disk, part.note.as_deref()) {
            let (from, to) = ((from / SECTOR) as usize, (to / SECTOR) as usize);
            disks[index(disk)][to.min(from)..from].fill(0);
        }
        if part.kind.changes_disk() {
            let disk = &mut disks[index(part.disk.expect("a disk"))];
            let tags = tags_of(&part.data);
            for (at, sector) in sectors(part.extent).enumerate() {
                disk[sector] = tags.get(at).copied().unwrap_or(0);
            }
        }
    }
}

/// The shape of a timeline's frames, one after the other.
#[derive(Default)]
pub struct Shape {
    last: Option<(Lsn, Lsn, cdp_core::types::Stamp)>,
    /// The part before: (LSN, index, count, end of its extent).
    before: Option<(Lsn, u16, u16, u64)>,
}

impl Shape {
    pub fn check(&mut self, frame: &RawFrame, chain_start: Lsn) {
        let (last, settled, stamp) = self.last.unwrap_or((
            chain_start,
            chain_start,
            cdp_core::types::Stamp { epoch: frame.epoch, time: frame.parts[0].time },
        ));
        assert_eq!(frame.prev_lsn, last, "frames chain");
        assert!(frame.settled >= settled, "settled falls from {settled} to {}", frame.settled);
        assert!(frame.parts.len() <= FRAME_RECORDS_MAX && frame.plain_bytes <= FRAME_PLAIN_MAX);
        assert_eq!(frame.plain_bytes, frame.parts.iter().map(|part| part.data.len() as u64).sum::<u64>());
        assert!(frame.epoch >= stamp.epoch);
        if frame.epoch > stamp.epoch {
            assert_eq!(frame.parts[0].kind, RecordKind::Time, "an epoch begins with a time record");
        }
        let mut time = if frame.epoch == stamp.epoch { stamp.time } else { frame.parts[0].time };
        for part in &frame.parts {
            assert!(part.time >= time, "stamps fall inside an epoch");
            time = part.time;
            self.part(part);
        }
        let (lsn, index, count, _) = self.before.expect("a part");
        let whole = if index + 1 == count { lsn } else { lsn.prev() };
        assert!(frame.settled <= whole, "settled {} beyond what is whole, {whole}", frame.settled);
        self.last = Some((frame.last_lsn(), frame.settled, cdp_core::types::Stamp { epoch: frame.epoch, time }));
    }

    fn part(&mut self, part: &Part) {
        if let Some((lsn, index, count, end)) = self.before {
            if part.index == 0 {
                assert!(index + 1 == count && part.lsn > lsn, "{lsn} is whole before {} begins", part.lsn);
            } else {
                assert_eq!((part.lsn, part.index, part.count, part.extent.offset), (lsn, index + 1, count, end));
            }
        }
        assert!(part.kind != RecordKind::Write || u64::from(part.count) <= WRITE_MAX / (32 << 10));
        if part.kind.has_data() {
            assert_eq!(part.extent.length, part.data.len() as u64);
            assert_eq!(part.crc, crc32c::crc32c(&part.data), "the checksum is that of the data");
        }
        assert!(part.extent.is_aligned(SECTOR));
        self.before = Some((part.lsn, part.index, part.count, part.extent.end()));
    }
}

/// Compares the replica with the source at every LSN that can be restored from these frames. Returns how many those are.
///
/// The disks are given with the sizes that they had at the start, in sectors: 0 for those that came later; `hidden` are not
/// complete yet.
/// `lsn_after_call[c]` is the last LSN that was given when call `c` returned: it places what has no record of its own.
pub fn check_every_lsn(
    (base, source, sizes, hidden): (Vec<Tags>, Vec<Tags>, Vec<usize>, &BTreeSet<usize>),
    changes: &[Change],
    frames: &[RawFrame],
    lsn_after_call: &[Lsn],
    index: impl Fn(DiskId) -> usize + Copy,
) -> Result<u64, Wrong> {
    let mut pair = Pair::new(base, source, sizes, hidden);
    let windows = windows(frames);
    let limit = frames.last().map_or(Lsn::ZERO, |frame| frame.settled).min(whole(frames));
    let mut records: BTreeMap<Lsn, Vec<&Part>> = BTreeMap::new();
    for part in frames.iter().flat_map(|frame| &frame.parts) {
        records.entry(part.lsn).or_default().push(part);
    }
    let mut changes = changes.iter().peekable();
    let mut checked = 0;
    for (lsn, parts) in records.range(..=limit) {
        let call = lsn_after_call.partition_point(|last| last < lsn) as u64;
        let happened = |change: &&Change| match change.lsn {
            Some(own) => own <= *lsn,
            // What went unrecorded in a call went after the records of that call: it begins with the gap's.
            None => change.call < call,
        };
        while let Some(change) = changes.next_if(happened) {
            pair.set(true, change.disk, change.extent, &change.tags);
        }
        for part in parts.iter().filter(|part| part.kind.changes_disk()) {
            pair.set(false, index(part.disk.expect("a disk")), part.extent, &tags_of(&part.data));
        }
        for part in parts {
            part.disk.into_iter().for_each(|disk| pair.change(index(disk), part));
        }
        if !windows.iter().any(|(from, end)| from <= lsn && lsn < end) {
            checked += 1;
            if let Some((disk, sector)) = pair.first_difference() {
                return Err(Wrong { lsn: *lsn, disk, sector });
            }
        }
    }
    Ok(checked)
}
