//! The activity log in memory: which 4 MiB extents a crash now would leave in doubt.
//!
//! Two bits per extent. `want`: it is to be marked. `safe`: the log on disk marks it, whatever happens. An op runs only when
//! the extents it touches are safe. Bits are set ahead of sequential writers, and cleared lazily, when all that was written is
//! restorable at the replica and flushed at the source, and nothing has touched the extent for a while. `ACTIVITY.md` has the
//! bytes and the argument why a crash at any moment is safe.
//!
//! Memory: 24 bytes and two bits per extent, about 6 MiB per TiB, touched only where something was written.

mod codec;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod writer;

pub use codec::{FACTS_MAX, HeaderFault, LogContents, LogDisk, LogError, LogState};
pub(super) use writer::Facts;

#[cfg(test)]
mod codec_tests;
#[cfg(test)]
mod tests;

use super::mend::Mend;
use super::order::Order;
use super::output::LogWrite;
use crate::types::{ACTIVITY_EXTENT, DiskId, Extent, GroupId, Lsn, MonoTime, Timeline};
use codec::{SECTOR_BITS, SECTOR_WORDS, extents_of, sectors_of};
use writer::Writer;

/// How many extents ahead of a sequential writer are marked: 32 MiB.
pub const LOOKAHEAD: u64 = 8;
/// How many extents around it are marked with one that a writer at random finds unmarked, at most: 256 MiB. A power of two.
const AROUND_MAX: u64 = 64;
/// So many unmarked extents, each found within this time after the one before, make a writer at random: until then each is marked alone.
const ALONE: u32 = 4;
const AROUND_NS: u64 = 1_000_000_000;
/// How often one sector of the bitmap (16 GiB of disk) is looked over for extents to clear, in nanoseconds.
pub const CLEAN_SLICE_NS: u64 = 50_000_000;
/// The shortest time between two passes over all disks that clear bits, and so between two log writes nobody waits for.
pub const CLEAN_PASS_NS: u64 = 3_000_000_000;

/// What happened last in an extent.
#[derive(Clone, Copy, Debug)]
struct Touch {
    /// The last LSN that touched it; 0: marked ahead, or since the start, and not yet used.
    lsn: u64,
    /// When, by the steady clock.
    mono: u64,
    /// The disk's flush generation when the last op completed: flushed once that generation has ended.
    flush: u64,
}

/// The flush generation of an extent that a failed flush may have lost.
const NEVER_FLUSHED: u64 = u64::MAX;

/// `vec!` of integer arrays is allocated zeroed, so that memory is used only where something was written.
type PackedTouch = [u64; 3];

impl Touch {
    fn unpack([lsn, mono, flush]: PackedTouch) -> Self {
        Self { lsn, mono, flush }
    }
    fn pack(self) -> PackedTouch {
        [self.lsn, self.mono, self.flush]
    }
}

/// One disk's bits.
#[derive(Debug)]
struct Region {
    disk: DiskId,
    size: u64,
    extents: u64,
    first_sector: u64,
    want: Vec<u64>,
    safe: Vec<u64>,
    touches: Vec<PackedTouch>,
    /// One flag per sector whose content on disk may not be `want`.
    stale: Vec<bool>,
    wanted: u64,
    /// When an op last found an extent unmarked, and how many did one soon after the other.
    missed: MonoTime,
    misses: u32,
    /// Grows when a flush begins; a completion belongs to the generation it falls into.
    flush: u64,
    /// Completions of generations below this one are flushed.
    flushed: u64,
    last_completion: u64,
    flush_wanted: bool,
    flush_asked: bool,
    /// The disk is gone: the log does not list it.
    gone: bool,
}

fn bit_of(extent: u64) -> (usize, u64) {
    let (sector, bit) = (extent / SECTOR_BITS, extent % SECTOR_BITS);
    ((sector * SECTOR_WORDS as u64 + bit / 64) as usize, 1 << (bit % 64))
}

impl Region {
    fn new(disk: DiskId, size: u64, first_sector: u64) -> Self {
        let sectors = sectors_of(size) as usize;
        Self {
            disk,
            size,
            extents: extents_of(size),
            first_sector,
            want: vec![0; sectors * SECTOR_WORDS],
            safe: vec![0; sectors * SECTOR_WORDS],
            touches: vec![[0; 3]; extents_of(size) as usize],
            stale: vec![true; sectors],
            wanted: 0,
            missed: MonoTime(0),
            misses: 0,
            flush: 1,
            flushed: 1,
            // Whoever wrote before us may not have flushed.
            last_completion: 1,
            flush_wanted: false,
            flush_asked: false,
            gone: false,
        }
    }

    /// Nothing beyond `size` is marked any more.
    fn cut(&mut self, size: u64) {
        let (sectors, kept) = (sectors_of(size) as usize, extents_of(size));
        for extent in kept..self.extents {
            if Self::is(&self.want, extent) {
                self.clear(extent);
            }
        }
        (self.size, self.extents) = (size, kept);
        self.want.truncate(sectors * SECTOR_WORDS);
        self.safe.truncate(sectors * SECTOR_WORDS);
        self.touches.truncate(kept as usize);
        self.stale.truncate(sectors);
    }

    fn grow(&mut self, size: u64) {
        let sectors = sectors_of(size) as usize;
        (self.size, self.extents) = (size, extents_of(size));
        self.want.resize(sectors * SECTOR_WORDS, 0);
        self.safe.resize(sectors * SECTOR_WORDS, 0);
        self.touches.resize(self.extents as usize, [0; 3]);
        self.stale.resize(sectors, true);
    }

    fn is(bits: &[u64], extent: u64) -> bool {
        let (word, bit) = bit_of(extent);
        bits[word] & bit != 0
    }

    /// Marks an extent; says whether it was not yet.
    fn mark(&mut self, extent: u64, mono: MonoTime) -> bool {
        let (word, bit) = bit_of(extent);
        if self.want[word] & bit != 0 {
            return false;
        }
        self.want[word] |= bit;
        self.wanted += 1;
        if self.safe[word] & bit == 0 {
            self.stale[word / SECTOR_WORDS] = true;
        }
        self.touches[extent as usize] = Touch { lsn: 0, mono: mono.0, flush: 0 }.pack();
        true
    }

    /// Marks an extent that an op found unmarked, and those around it if that happens often.
    fn mark_around(&mut self, extent: u64, now: MonoTime) {
        let again = now.since(self.missed) < AROUND_NS;
        self.misses = if again { self.misses.saturating_add(1) } else { 1 };
        self.missed = now;
        let around = 4_u64.saturating_pow(self.misses.saturating_sub(ALONE)).min(AROUND_MAX);
        let first = extent / around * around;
        for near in first..(first + around).min(self.extents) {
            self.mark(near, now);
        }
    }

    fn clear(&mut self, extent: u64) {
        let (word, bit) = bit_of(extent);
        self.want[word] &= !bit;
        self.wanted -= 1;
        self.stale[word / SECTOR_WORDS] = true;
    }
}

fn range_of(extent: Extent) -> std::ops::RangeInclusive<u64> {
    extent.offset / ACTIVITY_EXTENT..=(extent.end() - 1) / ACTIVITY_EXTENT
}

/// The extents of all disks, and the log on disk.
#[derive(Debug)]
pub(super) struct Activity {
    regions: Vec<Region>,
    writer: Writer,
    hot_ns_min: u64,
    slice: (usize, u64),
    slice_due: MonoTime,
    cleared_in_pass: bool,
    /// Sectors that nobody waits for are to be written now.
    flush_lazy: bool,
    /// The end of the last resync, durable: what was read again has no LSN of its own and is no younger.
    resynced: Lsn,
}

impl Activity {
    pub(super) fn new(
        group: GroupId,
        timeline: Timeline,
        found: Option<&LogContents>,
        limits: Limits,
        now: MonoTime,
    ) -> Self {
        Self {
            regions: Vec::new(),
            writer: Writer::new(group, timeline, found, limits),
            hot_ns_min: limits.hot_ns_min,
            slice: (0, 0),
            slice_due: now.after(CLEAN_PASS_NS),
            cleared_in_pass: false,
            flush_lazy: true,
            resynced: Lsn::ZERO,
        }
    }

    pub(super) fn writer(&self) -> &Writer {
        &self.writer
    }

    pub(super) fn writer_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }

    pub(super) fn add_disk(&mut self, disk: DiskId, size: u64) {
        let first_sector = self.regions.last().map_or(0, |last| last.first_sector + last.stale.len() as u64);
        self.regions.push(Region::new(disk, size, first_sector));
        self.writer.renew_header();
    }

    /// Lets a disk grow.
    pub(super) fn grow(&mut self, disk: usize, size: u64) {
        self.regions[disk].grow(size);
        self.lay_out(None);
    }

    /// A disk was cut: what is cut off is in no doubt.
    pub(super) fn cut(&mut self, disk: usize, size: u64) {
        let region = &mut self.regions[disk];
        region.cut(size);
        // A write of the log that is under way may mark more of its last sector than there is.
        region.safe.fill(0);
        region.stale.fill(true);
        self.slice = (0, 0);
        let id = region.disk;
        self.lay_out(Some(id));
    }

    /// A disk is gone; whatever is still asked about it has an answer that keeps nobody waiting.
    pub(super) fn remove_disk(&mut self, disk: usize) {
        self.cut(disk, 0);
        let region = &mut self.regions[disk];
        (region.flush_wanted, region.last_completion, region.flushed) = (false, 0, u64::MAX);
        region.gone = true;
        self.writer.renew_header();
    }

    /// Where the disks' sectors lie. Those that move are written again; until then their old sectors do not pass for them,
    /// which is safe: they count as damaged.
    fn lay_out(&mut self, changed: Option<DiskId>) {
        let mut first_sector = 0;
        let mut moved: Vec<_> = changed.into_iter().collect();
        for region in &mut self.regions {
            if region.first_sector != first_sector {
                moved.push(region.disk);
                region.first_sector = first_sector;
                region.safe.fill(0);
                region.stale.fill(true);
            }
            first_sector += region.stale.len() as u64;
        }
        let regions = &self.regions;
        self.writer.forget(|at| moved.contains(&regions[at].disk));
        self.writer.renew_header();
    }

    /// Marks what an op touches, and ahead of it if it writes in sequence. Whether the op is covered: the log on disk marks it.
    pub(super) fn prepare(&mut self, disk: usize, extent: Extent, now: MonoTime) -> bool {
        let region = &mut self.regions[disk];
        let (mut covered, mut missed) = (true, false);
        for index in range_of(extent) {
            let known = Region::is(&region.want, index);
            covered &= Region::is(&region.safe, index);
            if known && region.touches[index as usize][0] != 0 {
                continue;
            }
            if known || missed {
                region.mark(index, now);
            } else {
                region.mark_around(index, now);
                missed = true;
            }
            let in_sequence = index > 0 && Region::is(&region.want, index - 1);
            if in_sequence {
                for ahead in index + 1..(index + 1 + LOOKAHEAD).min(region.extents) {
                    self.flush_lazy |= region.mark(ahead, now);
                }
            }
        }
        covered
    }

    /// Whether the log on disk marks all that an op touches.
    pub(super) fn covers(&self, disk: usize, extent: Extent) -> bool {
        range_of(extent).all(|index| Region::is(&self.regions[disk].safe, index))
    }

    /// An op with this LSN goes to the disk.
    pub(super) fn touched(&mut self, disk: usize, extent: Extent, lsn: Lsn, now: MonoTime) {
        let region = &mut self.regions[disk];
        for index in range_of(extent) {
            let touch = &mut region.touches[index as usize];
            *touch = Touch { lsn: lsn.0, mono: now.0, flush: touch[2] }.pack();
        }
    }

    /// An op completed, well or not.
    pub(super) fn completed(&mut self, disk: usize, extent: Extent, now: MonoTime) {
        let region = &mut self.regions[disk];
        region.last_completion = region.last_completion.max(region.flush);
        for index in range_of(extent) {
            let touch = &mut region.touches[index as usize];
            *touch = Touch { lsn: touch[0], mono: now.0, flush: touch[2].max(region.flush) }.pack();
        }
    }

    /// These extents may differ from the replica, by writes that may not be flushed.
    pub(super) fn mark_hot(&mut self, disk: usize, extent: Extent, now: MonoTime) {
        let region = &mut self.regions[disk];
        for index in range_of(extent) {
            region.mark(index, now);
            region.touches[index as usize][2] = region.touches[index as usize][2].max(region.flush);
        }
    }

    /// The last LSN that touched any of these extents; zero if none did since the start.
    pub(super) fn last_touch(&self, disk: usize, extent: Extent) -> Lsn {
        Lsn(range_of(extent).map(|index| self.regions[disk].touches[index as usize][0]).max().unwrap_or(0))
    }

    /// What is marked, in bytes (whole extents).
    pub(super) fn hot_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.wanted * ACTIVITY_EXTENT).sum()
    }

    /// A flush of a disk begins; returns its generation.
    pub(super) fn flush_begins(&mut self, disk: usize) -> u64 {
        self.regions[disk].flush += 1;
        self.regions[disk].flush
    }

    /// Completions of generations below this one are flushed.
    pub(super) fn flushed(&self, disk: usize) -> u64 {
        self.regions[disk].flushed
    }

    /// A flush ended well: what completed before it began is on the disk.
    pub(super) fn flush_ended(&mut self, disk: usize, generation: u64) {
        let region = &mut self.regions[disk];
        region.flushed = region.flushed.max(generation);
        region.flush_asked = false;
    }

    /// A flush failed that began when `flushed` was. Returns the extents whose last op was not flushed by then, or is still
    /// running: the source may have lost it.
    ///
    /// An operating system may forget the failure and call the next flush good without having written those pages. So these
    /// extents stay marked, and the disk unflushed, for as long as this filter lives: the next start compares them.
    pub(super) fn flush_failed(
        &mut self,
        disk: usize,
        flushed: u64,
        running: impl Iterator<Item = Extent>,
    ) -> Vec<Extent> {
        let region = &mut self.regions[disk];
        region.flush_asked = false;
        for index in running.flat_map(range_of) {
            region.touches[index as usize][2] = NEVER_FLUSHED;
        }
        let unflushed = |index: &u64| Region::is(&region.want, *index) && region.touches[*index as usize][2] >= flushed;
        let lost: Vec<u64> = (0..region.extents).filter(unflushed).collect();
        for index in &lost {
            region.touches[*index as usize][2] = NEVER_FLUSHED;
        }
        region.last_completion = NEVER_FLUSHED;
        lost.into_iter().map(|index| Extent::new(index * ACTIVITY_EXTENT, ACTIVITY_EXTENT)).collect()
    }

    /// Whether everything that completed at the disk is flushed.
    pub(super) fn is_flushed(&self, disk: usize) -> bool {
        self.regions[disk].last_completion < self.regions[disk].flushed
    }

    /// Whether a flush would help what completed at the disk: not after one that failed.
    pub(super) fn awaits_flush(&self, disk: usize) -> bool {
        !self.is_flushed(disk) && !self.has_lost(disk)
    }

    /// Whether a flush of the disk failed.
    pub(super) fn has_lost(&self, disk: usize) -> bool {
        self.regions[disk].last_completion == NEVER_FLUSHED
    }

    /// The disk's source is to be flushed, so that bits can be cleared.
    pub(super) fn want_flush(&mut self, disk: usize) {
        self.regions[disk].flush_wanted = true;
    }

    /// Asks for a flush that begins from now on. Returns what [`Activity::flushed_beyond`] is to be asked with.
    pub(super) fn demand_flush(&mut self, disk: usize) -> u64 {
        self.regions[disk].flush_wanted = true;
        self.regions[disk].flush
    }

    /// Whether a flush that was demanded has ended well.
    pub(super) fn flushed_beyond(&self, demands: &[u64]) -> bool {
        self.regions.iter().zip(demands).all(|(region, demand)| region.flushed > *demand)
    }

    /// A disk to flush now, if any. One flush of ours at a time for each.
    pub(super) fn next_flush(&mut self) -> Option<usize> {
        let disk = self.regions.iter().position(|region| region.flush_wanted && !region.flush_asked && !region.gone)?;
        (self.regions[disk].flush_wanted, self.regions[disk].flush_asked) = (false, true);
        Some(disk)
    }

    /// When the next slice is looked over.
    pub(super) fn clean_due(&self) -> MonoTime {
        self.slice_due
    }

    /// Looks over one sector's extents and clears what is no longer in doubt.
    pub(super) fn clean(&mut self, now: MonoTime, restorable: Lsn, order: &Order, mend: &Mend) {
        let (disk, sector) = self.slice;
        let Some(region) = self.regions.get_mut(disk) else { return };
        let first = sector * SECTOR_BITS;
        let end = (first + SECTOR_BITS).min(region.extents);
        let here = Extent::new(first * ACTIVITY_EXTENT, (end - first) * ACTIVITY_EXTENT);
        for open in order.open_on(disk).filter_map(|open| open.intersect(&here)) {
            range_of(open).for_each(|index| region.touches[index as usize][1] = now.0);
        }
        let witnessed = self.writer.witnessed();
        let mut wants_witness = false;
        for word in (first..end).step_by(64).map(|extent| bit_of(extent).0) {
            let mut bits = region.want[word];
            while bits != 0 {
                let index = first + (word % SECTOR_WORDS) as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                let touch = Touch::unpack(region.touches[index as usize]);
                let quiet = now.0.saturating_sub(touch.mono) >= self.hot_ns_min;
                let extent = Extent::new(index * ACTIVITY_EXTENT, ACTIVITY_EXTENT);
                if !quiet || touch.lsn > restorable.0 || mend.concerns(disk, extent) {
                    continue;
                }
                // Nobody compares what is not marked: that the replica has it must be known even if the replica forgets.
                let is_witnessed = touch.lsn.max(self.resynced.0) <= witnessed.0;
                wants_witness |= !is_witnessed;
                if touch.flush >= region.flushed {
                    region.flush_wanted |= touch.flush != NEVER_FLUSHED;
                } else if is_witnessed {
                    region.clear(index);
                    self.cleared_in_pass = true;
                }
            }
        }
        // One that is being written is waited for: with a new one at each look none would ever be whole.
        if wants_witness && self.writer.header_is_written() {
            self.writer.renew_header();
        }
        self.next_slice(now);
    }

    /// A resync has ended durably, at `end`.
    pub(super) fn resynced(&mut self, end: Lsn) {
        self.resynced = end;
    }

    /// Nothing can be cleared now: looks again after a while.
    pub(super) fn put_off_cleaning(&mut self, now: MonoTime) {
        self.slice_due = now.after(CLEAN_PASS_NS);
    }

    fn next_slice(&mut self, now: MonoTime) {
        let (disk, sector) = self.slice;
        self.slice = (disk, sector + 1);
        self.slice_due = now.after(CLEAN_SLICE_NS);
        if sector + 1 >= self.regions[disk].stale.len() as u64 {
            self.slice = (disk + 1, 0);
        }
        if self.slice.0 == self.regions.len() {
            self.slice = (0, 0);
            self.slice_due = now.after(CLEAN_PASS_NS);
            self.flush_lazy |= std::mem::take(&mut self.cleared_in_pass);
        }
    }

    /// Everything is durable, flushed and equal: no extent is in doubt.
    pub(super) fn clear_all(&mut self) {
        for region in &mut self.regions {
            region.want.fill(0);
            region.wanted = 0;
            region.stale.fill(true);
        }
        self.flush_lazy = true;
    }

    /// The next write of the log, if one is due. `waiting`: an op waits for a bit.
    pub(super) fn next_write(&mut self, now: MonoTime, durable: Lsn, waiting: bool) -> Option<LogWrite> {
        let lazy = self.flush_lazy;
        let write = self.writer.next_write(&mut self.regions, now, durable, waiting || lazy)?;
        self.flush_lazy = false;
        Some(write)
    }

    /// A write of the log ended. `None`: no such write is under way.
    pub(super) fn written(
        &mut self,
        now: MonoTime,
        token: super::LogToken,
        result: Result<(), super::Failed>,
    ) -> Option<()> {
        self.writer.written(&mut self.regions, now, token, result)
    }

    /// The log cannot be trusted from now on, or its removal has been waited for long enough.
    pub(super) fn lose(&mut self, now: MonoTime) {
        self.writer.lose(&mut self.regions, now, None);
    }

    /// Nobody waits for the log any more, whatever becomes of its file.
    pub(super) fn give_up(&mut self, now: MonoTime) {
        self.writer.give_up(&mut self.regions, now);
    }

    /// Extents that were touched after `lsn`, or all that are marked.
    pub(super) fn hot_after(&self, disk: usize, lsn: Option<Lsn>) -> Vec<Extent> {
        let region = &self.regions[disk];
        let after = |index: &u64| lsn.is_none_or(|lsn| region.touches[*index as usize][0] > lsn.0);
        let hot = (0..region.extents).filter(|index| Region::is(&region.want, *index)).filter(after);
        hot.map(|index| Extent::new(index * ACTIVITY_EXTENT, ACTIVITY_EXTENT)).collect()
    }

    /// The removal of the log's file ended. `None`: none is under way.
    pub(super) fn removed(&mut self, now: MonoTime) -> Option<()> {
        self.writer.removed(&mut self.regions, now)
    }
}

/// The log's limits of time, and what the replica knows of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) wait_ns_max: u64,
    pub(super) remove_ns_max: u64,
    pub(super) hot_ns_min: u64,
    pub(super) generation_least: u64,
    /// Up to where the replica is known to be durable.
    pub(super) durable: Lsn,
}
