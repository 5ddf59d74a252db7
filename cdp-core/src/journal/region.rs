//! What 8 MiB of a disk read as at one moment: spans that follow each other without a gap, found newest first.
//!
//! A map is read far more often than it is made or changed, and there is one for every 8 MiB that somebody reads. So it is one
//! array, and a lookup in it mostly touches one line of memory.

use super::index::{Entry, NARROW_SECTORS, What};
use super::layout::SEGMENT_MAX;
use crate::types::{Extent, SECTOR};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a disk that the manifest says of a run whether it has anything in them.
pub(super) const REGION: u64 = 64 << 20;
/// Bytes of a disk that one map stands for: so few that the first read does not wait for what the others need.
pub(super) const MAP: u64 = 8 << 20;
/// Sectors of a map.
const SECTORS: u64 = MAP / SECTOR;
/// What one span takes in memory, in bytes.
pub(super) const SPAN_BYTES: u64 = 32;
/// What an empty map takes, about, with what holds it.
pub(super) const MAP_BYTES: u64 = 256;

const _: () = assert!(REGION.is_multiple_of(MAP));
const _: () = assert!(size_of::<Span>() as u64 == SPAN_BYTES);
const _: () = assert!(SECTORS <= 1 << 16);

/// Where the bytes of a record's part are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Nobody asked yet.
    Unknown,
    /// In a chunk that has to be unpacked.
    Packed,
    /// Plain, from this byte of the segment's file on.
    At(u64),
}

impl Place {
    /// As one number: no part stands in the first bytes of a file.
    fn number(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Packed => 1,
            Self::At(offset) => offset,
        }
    }

    fn of(number: u64) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::Packed,
            offset => Self::At(offset),
        }
    }
}

/// A part of a record, whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Data {
    /// Which of the view's segments.
    pub(super) source: u32,
    pub(super) lsn: u64,
    /// The bytes of the disk that it stands for.
    pub(super) whole: Extent,
    /// Of its plain bytes, masked in a segment that is sealed at rest.
    pub(super) crc: u32,
    /// Number of its chunk in the segment.
    pub(super) chunk: u32,
    /// Where in the chunk's plain bytes.
    pub(super) at: u32,
    pub(super) place: Place,
}

/// What a run of sectors reads as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// What lies below the journals.
    Below,
    /// Zeros.
    Zero {
        /// The record that says so.
        lsn: u64,
        /// It was a discard.
        discarded: bool,
    },
    /// Bytes of a part.
    Data(Data),
}

/// Where a span's facts begin in its word; below is the place.
const FACTS: u32 = 40;
const _: () = assert!(SEGMENT_MAX < 1 << FACTS);

/// Sectors up to the next span, and what they read as: an entry of the index and where its bytes are, in half a line of memory.
#[derive(Debug)]
#[repr(align(32))]
struct Span {
    lsn: u64,
    /// 40 bits [`Place`], worked out at the first read and kept; then what never changes: 6 bits sectors of the part before the
    /// span's first, 6 bits sectors of the part less one, 7 bits place in the chunk, 2 bits what (0: what lies below).
    word: AtomicU64,
    source: u32,
    crc: u32,
    chunk: u32,
    /// First sector, from the map's start.
    start: u16,
}

impl Clone for Span {
    fn clone(&self) -> Self {
        let word = AtomicU64::new(self.word.load(Ordering::Relaxed));
        Self { word, ..*self }
    }
}

impl Span {
    fn below() -> Self {
        Self { lsn: 0, word: AtomicU64::new(0), source: 0, crc: 0, chunk: 0, start: 0 }
    }

    /// An entry's, from a sector of the map on.
    fn new(region: u64, source: u32, entry: &Entry, start: u32) -> Self {
        let Entry { lsn, crc, chunk, at, what, .. } = *entry;
        let mut facts = (what as u64) << 19;
        // Only parts are verified as a whole, and none is longer than a narrow entry.
        if what == What::Data {
            let lead = (region * SECTORS + u64::from(start)).saturating_sub(entry.sector).min(NARROW_SECTORS - 1);
            facts |= lead | (entry.sectors.clamp(1, NARROW_SECTORS) - 1) << 6 | u64::from(at & 127) << 12;
        }
        Self { lsn, word: AtomicU64::new(facts << FACTS), source, crc, chunk, start: start as u16 }
    }

    /// What is left of it from a later sector on.
    fn from(&self, start: u32) -> Self {
        let mut rest = self.clone();
        let (word, ahead) = (rest.word.get_mut(), u64::from(start - u32::from(self.start)));
        if *word >> (FACTS + 19) == What::Data as u64 {
            *word += ahead << FACTS;
        }
        rest.start = start as u16;
        rest
    }

    fn found(&self, region: u64) -> Found {
        let word = self.word.load(Ordering::Relaxed);
        let (facts, lsn) = (word >> FACTS, self.lsn);
        match facts >> 19 {
            0 => Found::Below,
            what if what != What::Data as u64 => Found::Zero { lsn, discarded: what == What::Discard as u64 },
            _ => {
                let first = (region * SECTORS + u64::from(self.start)).saturating_sub(facts & 63);
                let whole = Extent::new(first * SECTOR, ((facts >> 6 & 63) + 1) * SECTOR);
                let at = (facts >> 12 & 127) as u32 * SECTOR as u32;
                let place = Place::of(word & ((1 << FACTS) - 1));
                let Self { source, crc, chunk, .. } = *self;
                Found::Data(Data { source, lsn, whole, crc, chunk, at, place })
            }
        }
    }

    fn keep_place(&self, place: Place) {
        let facts = self.word.load(Ordering::Relaxed) >> FACTS << FACTS;
        // Whoever else does this now has found the same.
        self.word.store(facts | place.number(), Ordering::Relaxed);
    }
}

/// A stretch of a disk at one moment.
#[derive(Debug)]
pub(super) struct RegionMap {
    /// Ascending from sector 0; each ends where the next one begins.
    spans: Vec<Span>,
}

impl Default for RegionMap {
    fn default() -> Self {
        Self { spans: vec![Span::below()] }
    }
}

impl RegionMap {
    /// What the map takes in memory, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        MAP_BYTES + self.spans.capacity() as u64 * SPAN_BYTES
    }

    /// Which span a sector is in. They are mostly of one length: the search begins where it would then be, and widens from
    /// there, so that it rarely touches memory that is far apart.
    fn span(&self, sector: u32) -> usize {
        let behind = |at: usize| self.spans.get(at).is_none_or(|span| u32::from(span.start) > sector);
        let count = self.spans.len();
        let guess = (sector as usize * count / SECTORS as usize).min(count - 1);
        let (mut first, mut end, mut step) = (guess, guess + 1, 1);
        if behind(guess) {
            while behind(first) {
                (first, end) = (first.saturating_sub(step), first);
                step *= 2;
            }
        } else {
            while !behind(end) {
                (first, end) = (end, end + step);
                step *= 2;
            }
        }
        let wanted = &self.spans[first..end.min(count)];
        first + wanted.partition_point(|span| u32::from(span.start) <= sector).saturating_sub(1)
    }

    /// The sector after a span.
    fn end(&self, at: usize) -> u32 {
        self.spans.get(at + 1).map_or(SECTORS as u32, |next| u32::from(next.start))
    }

    /// Lays an entry over everything that is there.
    pub(super) fn cover(&mut self, region: u64, source: u32, entry: &Entry) {
        let Some((start, end)) = clip(region, entry) else { return };
        let (first, last) = (self.span(start), self.span(end - 1));
        let own = Span::new(region, source, entry, start);
        let before = u32::from(self.spans[first].start) < start;
        let behind = (end < self.end(last)).then(|| self.spans[last].from(end));
        // What has the place of one is laid there; else those behind move.
        match (first == last && !before, behind) {
            (true, None) => self.spans[first] = own,
            (_, behind) => {
                let from = first + usize::from(before);
                drop(self.spans.splice(from..=last, [own].into_iter().chain(behind)));
            }
        }
    }

    /// Calls `each` for the runs inside `range` (bytes of the disk, inside the region) in order, gaps too.
    pub(super) fn pieces(&self, region: u64, range: Extent, mut each: impl FnMut(Extent, Found)) {
        let base = region * MAP;
        let (from, to) = (((range.offset - base) / SECTOR) as u32, (range.end() - base).div_ceil(SECTOR) as u32);
        let (mut at, mut span) = (from, self.span(from));
        while at < to {
            let end = self.end(span).min(to);
            let whole = Extent::new(base + u64::from(at) * SECTOR, u64::from(end - at) * SECTOR);
            whole.intersect(&range).into_iter().for_each(|extent| each(extent, self.spans[span].found(region)));
            (at, span) = (end, span + 1);
        }
    }

    /// What a range reads as that lies in one run.
    pub(super) fn alone(&self, region: u64, range: Extent) -> Option<Found> {
        let base = region * MAP;
        let (from, to) = ((range.offset - base) / SECTOR, (range.end() - base).div_ceil(SECTOR));
        let span = self.span(from as u32);
        (to <= u64::from(self.end(span))).then(|| self.spans[span].found(region))
    }

    /// Keeps where the bytes of a part are, for those who read it next; `offset` is a byte of the disk that shows it.
    pub(super) fn keep_place(&self, region: u64, offset: u64, of: &Data, place: Place) {
        let span = &self.spans[self.span(((offset - region * MAP) / SECTOR) as u32)];
        // Something newer may cover it by now.
        if span.found(region) == Found::Data(*of) {
            span.keep_place(place);
        }
    }
}

/// Makes a map from entries, the newest first: each fills only what none before it has.
#[derive(Debug)]
pub(super) struct RegionBuilder {
    number: u64,
    entries: Vec<(u32, Entry)>,
    /// By sector: which of `entries` has it, counted from 1.
    owner: Vec<u32>,
    /// By sector: one that is not behind the next free sector. Keeps long entries under others from costing their length.
    next: Vec<u32>,
    left: u64,
}

impl RegionBuilder {
    pub(super) fn new(number: u64) -> Self {
        let (owner, next) = (vec![0; SECTORS as usize], (0..=SECTORS as u32).collect());
        Self { number, entries: Vec::new(), owner, next, left: SECTORS }
    }

    /// Whether older entries have nothing left to say.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// The first free sector from `at` on.
    fn free(&mut self, mut at: u32) -> u32 {
        while self.next[at as usize] != at {
            let over = self.next[self.next[at as usize] as usize];
            self.next[at as usize] = over;
            at = over;
        }
        at
    }

    /// Lays an entry under everything that is there.
    pub(super) fn fill(&mut self, source: u32, entry: &Entry) {
        let Some((start, end)) = clip(self.number, entry) else { return };
        let mut at = self.free(start);
        if at >= end {
            return;
        }
        self.entries.push((source, *entry));
        let owner = self.entries.len() as u32;
        while at < end {
            self.owner[at as usize] = owner;
            self.next[at as usize] = at + 1;
            self.left -= 1;
            at = self.free(at + 1);
        }
    }

    /// Lays entries of any order under everything that is there, the newest of them on top.
    pub(super) fn fill_all(&mut self, entries: &[(u32, Entry)]) {
        // Places are sorted, not entries: they are a quarter as long.
        let mut newest: Vec<_> = entries.iter().zip(0u32..).map(|((_, entry), at)| (entry.lsn, at)).collect();
        newest.sort_unstable_by_key(|(lsn, _)| std::cmp::Reverse(*lsn));
        for (_, at) in newest {
            let (source, entry) = &entries[at as usize];
            self.fill(*source, entry);
        }
    }

    /// The map.
    pub(super) fn finish(self) -> RegionMap {
        let runs = || self.owner.chunk_by(|a, b| a == b);
        let mut spans = Vec::with_capacity(runs().count());
        let mut at = 0;
        for run in runs() {
            let entry = (run[0] as usize).checked_sub(1).map(|place| &self.entries[place]);
            let below = || Span { start: at as u16, ..Span::below() };
            spans.push(entry.map_or_else(below, |(source, entry)| Span::new(self.number, *source, entry, at as u32)));
            at += run.len();
        }
        RegionMap { spans }
    }
}

/// The sectors of an entry inside a region, counted from its start.
fn clip(region: u64, entry: &Entry) -> Option<(u32, u32)> {
    let base = region * SECTORS;
    let (start, end) = (entry.sector.max(base), entry.end().min(base + SECTORS));
    (start < end).then(|| ((start - base) as u32, (end - base) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(sector: u64, sectors: u64, lsn: u64) -> Entry {
        Entry { disk: 1, sector, lsn, sectors, crc: 0, chunk: 0, at: 0, what: What::Data }
    }

    fn flat(map: &RegionMap) -> Vec<u64> {
        let mut lsns = Vec::new();
        map.pieces(1, Extent::new(MAP, 64 * SECTOR), |run, found| {
            assert_eq!(map.alone(1, run), Some(found));
            lsns.extend(std::iter::repeat_n(lsn(found), (run.length / SECTOR) as usize));
        });
        lsns
    }

    fn lsn(found: Found) -> u64 {
        match found {
            Found::Below => 0,
            Found::Zero { lsn, .. } => lsn,
            Found::Data(data) => data.lsn,
        }
    }

    /// Sector, sectors, kind, and checksum, chunk and place.
    type Written = (u64, u64, u8, (u32, u32, u8));

    proptest! {
        /// Newest first from below and oldest first from above give the same, which is what an array gives.
        #[test]
        fn filling_and_covering_agree(writes in prop::collection::vec((0u64..70, 1u64..40), 1..40)) {
            let at = |(lsn, (sector, sectors)): (usize, &(u64, u64))| entry(SECTORS - 5 + sector, *sectors, lsn as u64 + 1);
            let entries: Vec<_> = writes.iter().enumerate().map(at).collect();
            let (mut under, mut over) = (RegionBuilder::new(1), RegionMap::default());
            // In two halves, the newer first, as from two runs.
            let (older, newer) = entries.split_at(entries.len() / 2);
            for half in [newer, older] {
                under.fill_all(&half.iter().map(|entry| (0, *entry)).collect::<Vec<_>>());
            }
            let under = under.finish();
            entries.iter().for_each(|entry| over.cover(1, 0, entry));
            let mut array = vec![0u64; 256];
            for entry in &entries {
                (entry.sector..entry.end()).filter_map(|s| s.checked_sub(SECTORS)).for_each(|s| array[s as usize] = entry.lsn);
            }
            prop_assert_eq!(flat(&under), &array[..64]);
            prop_assert_eq!(flat(&over), &array[..64]);
        }

        /// A map that is made and then lived on, as a session's is: everything about every part stays with it, wherever it was cut
        /// and however much was dropped; a place that was kept is found again, and never under another record.
        #[test]
        fn parts_keep_all_that_is_said_of_them(
            writes in prop::collection::vec((0u64..SECTORS + 70, 1u64..=NARROW_SECTORS, 1u8..=3, any::<(u32, u32, u8)>()), 1..600),
            made in 0usize..600,
            dense in any::<bool>(),
        ) {
            let what = [What::Data, What::Zero, What::Discard];
            let entry_of = |(number, write): (usize, &Written)| {
                let (sector, sectors, kind, (crc, chunk, at)) = *write;
                let sector = SECTORS - 65 + if dense { SECTORS - 200 + sector % 250 } else { sector };
                let (lsn, at, what) = (number as u64 + 1, at & 127, what[usize::from(kind) - 1]);
                let sectors = if what == What::Data { sectors } else { sectors * 90 };
                Entry { disk: 1, sector, lsn, sectors, crc, chunk, at, what }
            };
            let entries: Vec<_> = writes.iter().enumerate().map(entry_of).collect();
            let (older, newer) = entries.split_at(made.min(entries.len()));
            let mut builder = RegionBuilder::new(1);
            builder.fill_all(&older.iter().map(|entry| (entry.chunk ^ 7, *entry)).collect::<Vec<_>>());
            let mut map = builder.finish();
            for (number, entry) in newer.iter().enumerate() {
                map.cover(1, entry.chunk ^ 7, entry);
                prop_assert!(map.bytes() >= map.spans.len() as u64 * SPAN_BYTES);
                // Somebody reads meanwhile and keeps the place.
                let sector = entries[number * 7 % entries.len()].sector.clamp(SECTORS, 2 * SECTORS - 1);
                if let Some(Found::Data(data)) = map.alone(1, Extent::new(sector * SECTOR, 1)) {
                    map.keep_place(1, sector * SECTOR, &data, Place::At(4096 + data.lsn));
                }
            }
            let mut owner = vec![None; SECTORS as usize];
            for entry in &entries {
                let inside = (entry.sector..entry.end()).filter(|s| (SECTORS..2 * SECTORS).contains(s));
                inside.for_each(|s| owner[(s - SECTORS) as usize] = Some(entry));
            }
            let mut at = MAP;
            map.pieces(1, Extent::new(MAP, MAP), |run, found| {
                assert_eq!(run.offset, at);
                at = run.end();
                for sector in run.offset / SECTOR..run.end() / SECTOR {
                    let expected = match owner[(sector - SECTORS) as usize] {
                        None => Found::Below,
                        Some(&Entry { lsn, what: What::Data, crc, chunk, at, sector, sectors, .. }) => {
                            let place = match found {
                                Found::Data(Data { place: Place::At(place), .. }) if place == 4096 + lsn => Place::At(place),
                                _ => Place::Unknown,
                            };
                            let whole = Extent::new(sector * SECTOR, sectors * SECTOR);
                            let (at, source) = (u32::from(at) * SECTOR as u32, chunk ^ 7);
                            Found::Data(Data { source, lsn, whole, crc, chunk, at, place })
                        }
                        Some(entry) => Found::Zero { lsn: entry.lsn, discarded: entry.what == What::Discard },
                    };
                    assert_eq!(found, expected);
                }
            });
            prop_assert_eq!(at, 2 * MAP);
        }
    }
}
