//! What has to be read again from the source, and the re-reads that are under way.
//!
//! Two sources of work: blocks of the dirty map (64 KiB; gaps, unclean stops, full checks) and exact ranges of failed writes,
//! which a later successful write supersedes byte for byte. A re-read is optimistic: it never holds a guest's op. Sectors that
//! any op touched since the read began (or was touching then) are left out of the repair, because that op has its own record;
//! if it has none, or fails, it makes its range dirty again.
//!
//! Work goes in passes over all that is dirty. What fails goes back and waits for the next pass, which begins after a pause
//! (doubling to [`RETRY_NS_MAX`]) and reads in single blocks, so that one bad sector keeps only its own block from being mended.

use super::dirty::{DIRTY_BLOCK, DirtyMap};
use super::options::REREAD_BYTES_MAX;
use super::output::RereadToken;
use crate::types::{DISK_MAX, Extent, MonoTime, SECTOR};
use std::collections::BTreeMap;

/// The first pause after a pass in which re-reads failed, in nanoseconds.
pub const RETRY_NS_MIN: u64 = 100_000_000;
/// The longest pause between two such passes, in nanoseconds.
pub const RETRY_NS_MAX: u64 = 5_000_000_000;
/// Exact ranges of failed writes that are kept; beyond, whole 64 KiB blocks are marked instead.
pub const EXACT_MAX: usize = 1024;

const TOUCH_WORDS: usize = (REREAD_BYTES_MAX / SECTOR / 64) as usize;

/// A re-read under way.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub(super) token: RereadToken,
    pub(super) disk: usize,
    pub(super) extent: Extent,
    exact: bool,
    /// One bit per sector of `extent` that an op touched since the read began.
    touched: [u64; TOUCH_WORDS],
    any_touched: bool,
}

impl Active {
    fn touch(&mut self, extent: Extent) {
        let Some(shared) = self.extent.intersect(&extent) else { return };
        self.any_touched = true;
        let first = (shared.offset - self.extent.offset) / SECTOR;
        let end = (shared.end() - self.extent.offset).div_ceil(SECTOR);
        for sector in first..end {
            self.touched[(sector / 64) as usize] |= 1 << (sector % 64);
        }
    }

    fn is_touched(&self, sector: u64) -> bool {
        self.touched[(sector / 64) as usize] >> (sector % 64) & 1 == 1
    }

    /// The runs of `within` that no op touched.
    pub(super) fn untouched(&self, within: Extent) -> Vec<Extent> {
        if !self.any_touched {
            return vec![within];
        }
        let mut runs: Vec<Extent> = Vec::new();
        let mut offset = within.offset;
        while offset < within.end() {
            if !self.is_touched((offset - self.extent.offset) / SECTOR) {
                match runs.last_mut() {
                    Some(run) if run.end() == offset => run.length += SECTOR,
                    _ => runs.push(Extent::new(offset, SECTOR)),
                }
            }
            offset += SECTOR;
        }
        runs
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// Exact ranges come first, then the maps.
    in_maps: bool,
    disk: usize,
    offset: u64,
}

/// Everything that has to be read again.
#[derive(Debug, Default)]
pub(super) struct Mend {
    maps: Vec<DirtyMap>,
    /// (disk, first byte) to the byte after the last; disjoint. At most [`EXACT_MAX`] while growing.
    exact: BTreeMap<(usize, u64), u64>,
    active: Vec<Active>,
    cursor: Cursor,
    failures_in_pass: u64,
    failures_in_last_pass: u64,
    careful: bool,
    pause_ns: u64,
    resume_at: Option<MonoTime>,
    tokens: u64,
}

impl Mend {
    pub(super) fn add_disk(&mut self, size: u64) {
        self.maps.push(DirtyMap::new(size));
    }

    pub(super) fn grow(&mut self, disk: usize, size: u64) {
        self.maps[disk].grow(size);
    }

    /// Nothing beyond `size` has to be read again. What is being read there counts as touched.
    pub(super) fn cut(&mut self, disk: usize, size: u64) {
        let beyond = Extent::new(size, DISK_MAX - size);
        self.subtract(disk, beyond);
        self.maps[disk].cut(size);
        self.touch(disk, beyond);
    }

    /// The blocks of this range may differ.
    pub(super) fn mark(&mut self, disk: usize, extent: Extent) {
        self.maps[disk].mark(extent);
    }

    /// A write of this range failed.
    pub(super) fn fail(&mut self, disk: usize, extent: Extent) {
        if self.exact.len() >= EXACT_MAX {
            self.maps[disk].mark(extent);
            return;
        }
        self.subtract(disk, extent);
        self.exact.insert((disk, extent.offset), extent.end());
    }

    /// A recorded op over this range completed well: what it covers needs no mending.
    pub(super) fn supersede(&mut self, disk: usize, extent: Extent) {
        self.subtract(disk, extent);
        self.maps[disk].clear_covered(extent);
    }

    fn subtract(&mut self, disk: usize, extent: Extent) {
        if self.exact.is_empty() {
            return;
        }
        while let Some((&(at_disk, begin), &end)) = self.exact.range(..(disk, extent.end())).next_back() {
            if at_disk != disk || end <= extent.offset {
                return;
            }
            self.exact.remove(&(disk, begin));
            if end > extent.end() {
                self.exact.insert((disk, extent.end()), end);
            }
            if begin < extent.offset {
                self.exact.insert((disk, begin), extent.offset);
            }
        }
    }

    /// An op over this range goes to the disk.
    pub(super) fn touch(&mut self, disk: usize, extent: Extent) {
        for active in self.active.iter_mut().filter(|active| active.disk == disk) {
            active.touch(extent);
        }
    }

    /// Whether nothing is dirty and no re-read is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.is_clean()
    }

    /// Whether nothing is dirty (re-reads may be under way).
    pub(super) fn is_clean(&self) -> bool {
        self.exact.is_empty() && self.maps.iter().all(DirtyMap::is_clean)
    }

    /// Whether anything of this range is dirty or being read again.
    pub(super) fn concerns(&self, disk: usize, extent: Extent) -> bool {
        let exact = || {
            let before = self.exact.range(..(disk, extent.end())).next_back();
            before.is_some_and(|(&(at_disk, _), &end)| at_disk == disk && end > extent.offset)
        };
        self.maps[disk].overlaps(extent)
            || self.active.iter().any(|active| active.disk == disk && active.extent.overlaps(&extent))
            || exact()
    }

    pub(super) fn dirty_bytes(&self) -> u64 {
        let exact: u64 = self.exact.iter().map(|((_, begin), end)| end - begin).sum();
        self.maps.iter().map(DirtyMap::dirty_bytes).sum::<u64>() + exact + self.active_bytes()
    }

    pub(super) fn active_bytes(&self) -> u64 {
        self.active.iter().map(|active| active.extent.length).sum()
    }

    pub(super) fn failing(&self) -> u64 {
        self.failures_in_pass.max(self.failures_in_last_pass)
    }

    /// When the pause after failed re-reads ends.
    pub(super) fn resume_at(&self) -> Option<MonoTime> {
        self.resume_at
    }

    /// Begins the next re-read, if there is work and fewer than `rereads_max` are under way.
    pub(super) fn begin(&mut self, now: MonoTime, rereads_max: usize) -> Option<(RereadToken, usize, Extent)> {
        if self.active.len() >= rereads_max || self.is_clean() {
            return None;
        }
        if let Some(at) = self.resume_at {
            if now < at {
                return None;
            }
            self.resume_at = None;
        }
        let (disk, extent, exact) = self.take_next().or_else(|| self.next_pass(now))?;
        self.tokens += 1;
        let token = RereadToken(self.tokens);
        self.active.push(Active { token, disk, extent, exact, touched: [0; TOUCH_WORDS], any_touched: false });
        Some((token, disk, extent))
    }

    /// The pass is over: the next begins now, or after a pause when something failed.
    fn next_pass(&mut self, now: MonoTime) -> Option<(usize, Extent, bool)> {
        if !self.active.is_empty() {
            return None;
        }
        self.cursor = Cursor::default();
        self.failures_in_last_pass = std::mem::take(&mut self.failures_in_pass);
        self.careful = self.failures_in_last_pass > 0;
        if self.careful {
            self.pause_ns = (self.pause_ns * 2).clamp(RETRY_NS_MIN, RETRY_NS_MAX);
            self.resume_at = Some(now.after(self.pause_ns));
            return None;
        }
        self.pause_ns = 0;
        self.take_next()
    }

    /// Takes the next dirty range after the cursor out of what is dirty.
    fn take_next(&mut self) -> Option<(usize, Extent, bool)> {
        let bytes_max = if self.careful { DIRTY_BLOCK } else { REREAD_BYTES_MAX };
        if !self.cursor.in_maps {
            if let Some((disk, extent)) = self.take_exact(bytes_max) {
                return Some((disk, extent, true));
            }
            self.cursor = Cursor { in_maps: true, ..Cursor::default() };
        }
        while self.cursor.disk < self.maps.len() {
            let disk = self.cursor.disk;
            let Some(run) = self.maps[disk].next_run(self.cursor.offset, bytes_max) else {
                self.cursor = Cursor { in_maps: true, disk: disk + 1, offset: 0 };
                continue;
            };
            self.cursor.offset = run.end().next_multiple_of(DIRTY_BLOCK);
            if self.active.iter().any(|active| active.disk == disk && active.extent.overlaps(&run)) {
                continue;
            }
            self.maps[disk].clear_covered(run);
            return Some((disk, run, false));
        }
        None
    }

    fn take_exact(&mut self, bytes_max: u64) -> Option<(usize, Extent)> {
        loop {
            let from = (self.cursor.disk, self.cursor.offset);
            let (&(disk, begin), &end) = self.exact.range(from..).next()?;
            let extent = Extent::new(begin, (end - begin).min(bytes_max));
            self.cursor = Cursor { in_maps: false, disk, offset: extent.end() };
            if self.active.iter().any(|active| active.disk == disk && active.extent.overlaps(&extent)) {
                continue;
            }
            self.subtract(disk, extent);
            return Some((disk, extent));
        }
    }

    /// A re-read came back; it is no longer under way.
    pub(super) fn end(&mut self, token: RereadToken) -> Option<Active> {
        let at = self.active.iter().position(|active| active.token == token)?;
        Some(self.active.swap_remove(at))
    }

    /// What a re-read was for is dirty again, but for what ops touched meanwhile (they record or mark it themselves).
    pub(super) fn put_back(&mut self, active: &Active) {
        for run in active.untouched(active.extent) {
            if active.exact {
                self.fail(active.disk, run);
            } else {
                self.mark(active.disk, run);
            }
        }
    }

    /// A re-read failed.
    pub(super) fn failed(&mut self, active: &Active) {
        self.failures_in_pass += 1;
        self.put_back(active);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mend(size: u64) -> Mend {
        let mut mend = Mend::default();
        mend.add_disk(size);
        mend
    }

    const NOW: MonoTime = MonoTime(1);

    #[test]
    fn a_later_write_supersedes_exactly_what_it_covers() {
        let mut mend = mend(1 << 30);
        mend.fail(0, Extent::new(4096, 8192));
        mend.supersede(0, Extent::new(8192, 512));
        let (_, _, first) = mend.begin(NOW, 4).expect("left part");
        let (_, _, second) = mend.begin(NOW, 4).expect("right part");
        assert_eq!((first, second), (Extent::new(4096, 4096), Extent::new(8704, 3584)));
        assert!(mend.begin(NOW, 4).is_none());
    }

    #[test]
    fn touched_sectors_are_left_out_and_do_not_come_back() {
        let mut mend = mend(1 << 30);
        mend.mark(0, Extent::new(0, DIRTY_BLOCK));
        let (token, disk, extent) = mend.begin(NOW, 4).expect("work");
        mend.touch(disk, Extent::new(0, 512));
        mend.touch(disk, Extent::new(1024, 63 << 10));
        let active = mend.end(token).expect("under way");
        assert_eq!(active.untouched(extent), [Extent::new(512, 512)]);
        mend.failed(&active);
        assert_eq!(mend.dirty_bytes(), DIRTY_BLOCK);
    }

    #[test]
    fn what_fails_waits_for_the_next_pass_which_is_careful_and_pauses() {
        let mut mend = mend(1 << 30);
        mend.mark(0, Extent::new(0, 2 * DIRTY_BLOCK));
        mend.mark(0, Extent::new(1 << 20, DIRTY_BLOCK));
        let (bad, _, extent) = mend.begin(NOW, 4).expect("work");
        assert_eq!(extent.length, 2 * DIRTY_BLOCK);
        let active = mend.end(bad).expect("under way");
        mend.failed(&active);
        let (good, _, extent) = mend.begin(NOW, 4).expect("the rest of the pass goes on");
        assert_eq!(extent.offset, 1 << 20);
        mend.end(good).expect("under way");
        assert!(mend.begin(NOW, 4).is_none(), "the next pass waits");
        assert_eq!(mend.resume_at(), Some(NOW.after(RETRY_NS_MIN)));
        let (_, _, extent) = mend.begin(NOW.after(RETRY_NS_MIN), 4).expect("again");
        assert_eq!(extent, Extent::new(0, DIRTY_BLOCK), "in single blocks");
    }

    #[test]
    fn more_failed_ranges_than_are_kept_become_blocks() {
        let mut mend = mend(1 << 40);
        for at in 0..=EXACT_MAX as u64 {
            mend.fail(0, Extent::new(at << 20, 512));
        }
        assert_eq!(mend.dirty_bytes(), EXACT_MAX as u64 * 512 + DIRTY_BLOCK);
    }
}
