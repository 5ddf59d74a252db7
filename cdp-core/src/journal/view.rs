//! A disk as it was at one moment: base below, journals above, found by index, verified byte by byte.
//!
//! A view is opened on a *path*: for each timeline from the root to the moment, the journal that holds it and the LSN up to
//! which it counts. Opening reads nothing. What 8 MiB of a disk read as is worked out at the first touch, newest
//! first, from runs of the levelled index where there are any and from segments else, and kept within a bound. Many threads may read at once.

mod ahead;
mod part;

use super::cache::Cache;
use super::index::{ActiveIndex, Entry, IndexRun};
use super::level::{RunInfo, Tables};
use super::reader::{ReadError, Reader};
use super::region::{Data, Found, MAP, MAP_BYTES, Place, REGION, RegionBuilder, RegionMap};
use super::snapshot::{Content, SegmentView, Snapshot};
use super::writer::Appended;
use crate::media::File;
use crate::types::{DiskId, Extent, Lsn, SECTOR, SegmentId, Timeline};
use ahead::Ahead;
use part::{Chunk, Cursor, Part, Together};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock, PoisonError, RwLock};

/// Places of a segment that are so near to each other, in bytes, are fetched together with what lies between.
const NEAR: u64 = 64 << 10;

/// One timeline of a path.
#[derive(Clone, Debug)]
pub struct PathElement {
    /// Reads the journal that holds it.
    pub reader: Arc<Reader>,
    /// That journal.
    pub snapshot: Snapshot,
    /// The timeline.
    pub timeline: Timeline,
    /// Its last LSN that counts.
    pub upto: Lsn,
}

/// What lies below all journals of a view: base images.
pub trait Below {
    /// Fills `out` with the disk's bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read or do not verify: a view never makes bytes up.
    fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Nothing lies below: everything never written reads as zeros.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Below for Nothing {
    fn read(&self, _: DiskId, _: u64, out: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        out.fill(0);
        Ok(())
    }
}

/// Where the bytes of a piece come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The journal, as written by this record.
    Data {
        /// The record's branch of history.
        timeline: Timeline,
        /// The record.
        lsn: Lsn,
    },
    /// Zeros.
    Zero {
        /// The record that says so.
        lsn: Lsn,
        /// It was a discard: the range need not be allocated.
        discarded: bool,
    },
    /// What lies below the journals.
    Below,
}

/// A run of a disk with one origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Which bytes of the disk.
    pub extent: Extent,
    /// Where they come from.
    pub origin: Origin,
}

/// A run of the levelled index and the parts whose entries it holds.
#[derive(Debug)]
struct Run {
    reader: Arc<Reader>,
    info: Arc<RunInfo>,
    /// The first of its parts; neighbours follow, in the order of their numbers.
    first: usize,
    parts: Vec<(u64, SegmentId)>,
    /// Of each segment of its table the place among the view's parts, once that was asked; none where it was dropped.
    places: OnceLock<Vec<Option<u32>>>,
    upto: Lsn,
    /// Keeps its file open: what a later merge replaces is removed, and read on by those who have it open.
    file: OnceLock<Arc<dyn File>>,
    /// It cannot be read: the segments say the same.
    unsound: AtomicBool,
}

/// A map and the lock under which it is made and kept up to date.
type Region = Arc<RwLock<Option<RegionMap>>>;

/// The segments of a view; readers share the list, however long it is.
type Parts = Arc<Vec<Arc<RwLock<Part>>>>;

/// The disks of a group as they were at one moment.
#[derive(Debug)]
pub struct View {
    /// From the oldest to the newest.
    parts: RwLock<Parts>,
    /// By the place after the last of their parts.
    runs: RwLock<BTreeMap<usize, Arc<Run>>>,
    /// Runs are opened when the first region is made, all of them.
    opened: Once,
    regions: Cache<(u16, u64), Region>,
    ahead: Ahead,
}

impl View {
    /// A view of the moment that the path ends at. Region maps take at most `regions_bytes` of memory.
    ///
    /// # Errors
    /// When a journal was not written as far as the path says.
    pub fn open(path: &[PathElement], regions_bytes: u64) -> Result<Self, ReadError> {
        let (mut parts, mut runs) = (Vec::new(), BTreeMap::new());
        for element in path {
            let (wanted, written, timeline) = (element.upto, element.snapshot.written(), element.timeline);
            // A timeline without records may be named up to anywhere: nothing of it is shown.
            if wanted > written && element.snapshot.span(timeline).is_some() {
                return Err(ReadError::NotWritten { timeline, wanted, written });
            }
            let segments = element.snapshot.of(timeline).filter(|segment| segment.first_lsn <= element.upto);
            let segments: Vec<_> = segments.collect();
            for info in element.snapshot.runs().iter().filter(|run| run.timeline == timeline) {
                let before = segments.partition_point(|segment| segment.number < info.first_segment);
                let end = segments.partition_point(|segment| segment.number <= info.last_segment);
                let numbers: Vec<_> = segments[before..end].iter().map(|of| (of.number, of.id)).collect();
                if !numbers.is_empty() {
                    let (reader, info, upto) = (Arc::clone(&element.reader), Arc::clone(info), element.upto);
                    let (first, end) = (parts.len() + before, parts.len() + end);
                    runs.insert(end, Arc::new(Run::new(reader, info, first, numbers, upto)));
                }
            }
            parts.reserve(segments.len());
            for segment in segments {
                parts.push(Arc::new(RwLock::new(Part {
                    reader: Arc::clone(&element.reader),
                    segment: Arc::clone(segment),
                    live: ActiveIndex::default(),
                    upto: element.upto,
                    file: None,
                })));
            }
        }
        let (parts, runs) = (RwLock::new(Arc::new(parts)), RwLock::new(runs));
        Ok(Self { parts, runs, opened: Once::new(), regions: Cache::new(regions_bytes), ahead: Ahead::default() })
    }

    /// Shows a frame that was appended after the view was opened: the view now is of that frame's last record. For writable
    /// sessions; the frame must be written, need not be durable, and `reader` is the session's.
    pub fn advance(&self, reader: &Arc<Reader>, appended: &Appended) {
        let source = self.live_part(reader, appended);
        for ((disk, number), region) in self.touched(&appended.run) {
            let mut held = region.write().unwrap_or_else(PoisonError::into_inner);
            let (Some(map), Some(of)) = (held.as_mut(), DiskId::new(disk)) else { continue };
            let range = Extent::new(number * MAP, MAP);
            let mut entries = Vec::new();
            appended.run.overlapping(of, range, |entry| entries.push(*entry));
            entries.sort_by_key(|entry| entry.lsn);
            let before = map.bytes();
            entries.iter().for_each(|entry| map.cover(number, source, entry));
            let bytes = map.bytes();
            drop(held);
            if bytes != before {
                self.regions.recount((disk, number), bytes);
            }
        }
    }

    /// The maps of what a frame's records touch, as far as they are there: a view of a large disk has many more.
    fn touched(&self, run: &IndexRun) -> BTreeMap<(u16, u64), Region> {
        let (mut touched, mut last) = (BTreeMap::new(), None);
        for entry in run.narrow.iter().chain(&run.wide) {
            let first = entry.sector * SECTOR / MAP;
            let end = (entry.end() * SECTOR).div_ceil(MAP).max(first + 1);
            let maps = (entry.disk, first)..(entry.disk, end);
            // Entries are sorted: mostly the next one is in the same map.
            if last.as_ref() != Some(&maps) {
                touched.extend(self.regions.range(maps.clone()));
                last = Some(maps);
            }
        }
        touched
    }

    /// The newest part, with the frame added; a new part when the frame went to another segment.
    fn live_part(&self, reader: &Arc<Reader>, appended: &Appended) -> u32 {
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        let same =
            |part: &Arc<RwLock<Part>>| part.read().unwrap_or_else(PoisonError::into_inner).segment.id == appended.id;
        if !parts.last().is_some_and(same) {
            let Appended { segment, id, key, timeline, prev_lsn, .. } = *appended;
            let segment = Arc::new(SegmentView::active((segment, id, key), timeline, prev_lsn, Vec::new()));
            let (reader, live) = (Arc::clone(reader), ActiveIndex::default());
            let part = Part { reader, segment, live, upto: Lsn(u64::MAX), file: None };
            Arc::make_mut(&mut parts).push(Arc::new(RwLock::new(part)));
        }
        let source = parts.len() - 1;
        let mut part = parts[source].write().unwrap_or_else(PoisonError::into_inner);
        part.live.push(Arc::clone(&appended.run));
        part.upto = Lsn(u64::MAX);
        source as u32
    }

    /// Lets go of what a newer snapshot of the last journal of the path has in its files: call it now and then on a live
    /// view, so that the index of sealed segments leaves memory.
    pub fn refresh(&self, snapshot: &Snapshot) {
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        for part in parts.iter() {
            let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
            let sealed = snapshot.segments().iter().find(|segment| segment.id == part.segment.id);
            let Some(sealed) = sealed.filter(|segment| matches!(segment.content, Content::Sealed(_))) else { continue };
            part.segment = Arc::clone(sealed);
            part.live = ActiveIndex::default();
        }
    }

    /// What the bytes of `range` come from, in order, without a gap.
    ///
    /// # Errors
    /// When an index cannot be read or does not verify.
    pub fn resolve(&self, disk: DiskId, range: Extent) -> Result<Vec<Piece>, ReadError> {
        let mut runs = Vec::new();
        self.runs(disk, range, |extent, found| runs.push((extent, found)))?;
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        let timeline =
            |source: u32| parts[source as usize].read().unwrap_or_else(PoisonError::into_inner).segment.timeline;
        let mut pieces: Vec<Piece> = Vec::new();
        for (extent, found) in runs {
            let origin = match found {
                Found::Below => Origin::Below,
                Found::Data(Data { source, lsn, .. }) => Origin::Data { timeline: timeline(source), lsn: Lsn(lsn) },
                Found::Zero { lsn, discarded } => Origin::Zero { lsn: Lsn(lsn), discarded },
            };
            match pieces.last_mut().filter(|last| last.origin == origin && last.extent.end() == extent.offset) {
                Some(last) => last.extent.length += extent.length,
                None => pieces.push(Piece { extent, origin }),
            }
        }
        Ok(pieces)
    }

    /// Fills `out` with the disk's bytes from `offset` on; any alignment.
    ///
    /// # Errors
    /// When anything that is needed cannot be read or does not verify; what `out` holds then means nothing.
    pub fn read(&self, disk: DiskId, offset: u64, out: &mut [u8], below: &dyn Below) -> Result<(), ReadError> {
        let range = Extent::new(offset, out.len() as u64);
        let known = self.ahead.begin(disk, range);
        if let Some(next) = known.tell {
            // What is wrong there finds who reads it.
            let _ = self.tell(disk, next);
        }
        // Most small reads are of one run: they take no memory.
        if let Some(found) = self.alone(disk, range)?.filter(|_| !known.watched) {
            return self.read_run(disk, range, found, out, below);
        }
        let mut runs = Vec::new();
        self.runs(disk, range, |extent, found| runs.push((extent, found)))?;
        let parts = self.parts();
        let mut together = Together::after(known.cursor);
        for (extent, found) in runs {
            let at = (extent.offset - offset) as usize;
            let mut found = found;
            if let Found::Data(data) = &mut found {
                data.place = self.place(disk, extent.offset, data)?;
                match data.place {
                    Place::At(place) if data.whole == extent => {
                        together.add(&parts, *data, (place, at), out)?;
                        continue;
                    }
                    Place::At(place) => {
                        together.read(&parts, out)?;
                        together.jumps += u64::from(Cursor::follow(&mut together.cursor, data, place));
                    }
                    _ => {}
                }
            }
            self.read_run(disk, extent, found, &mut out[at..][..extent.length as usize], below)?;
        }
        together.read(&parts, out)?;
        if known.watched {
            self.ahead.end(disk, range, together.cursor, together.jumps);
        }
        Ok(())
    }

    /// Fills `out` with the bytes of `extent`, all of which `found` says.
    fn read_run(
        &self,
        disk: DiskId,
        extent: Extent,
        found: Found,
        out: &mut [u8],
        below: &dyn Below,
    ) -> Result<(), ReadError> {
        match found {
            Found::Below => {
                let failed = |source| ReadError::Below { disk, offset: extent.offset, source };
                below.read(disk, extent.offset, out).map_err(failed)
            }
            Found::Zero { .. } => {
                out.fill(0);
                Ok(())
            }
            Found::Data(data) => {
                let Place::At(at) = self.place(disk, extent.offset, &data)? else {
                    return self.chunk(&data).read(extent, &data, out);
                };
                let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
                let plain = Part::plain(&parts[data.source as usize])?;
                // Nobody waits for the media because of this read.
                drop(parts);
                plain.read(extent, &data, at, out, || Part::scratch(&self.part(data.source)))
            }
        }
    }

    /// Where a part's bytes are that the disk shows at `offset`, looked up once and then kept with its span.
    fn place(&self, disk: DiskId, offset: u64, data: &Data) -> Result<Place, ReadError> {
        if data.place != Place::Unknown {
            return Ok(data.place);
        }
        let place = self.chunk(data).place(data)?;
        let number = offset / MAP;
        self.with_map(disk, number, |map| map.keep_place(number, offset, data, place))?;
        Ok(place)
    }

    fn parts(&self) -> Parts {
        Arc::clone(&self.parts.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn part(&self, source: u32) -> Arc<RwLock<Part>> {
        Arc::clone(&self.parts.read().unwrap_or_else(PoisonError::into_inner)[source as usize])
    }

    /// The chunk that a part is in. No lock is held while it is found or read.
    fn chunk(&self, data: &Data) -> Chunk {
        self.part(data.source).read().unwrap_or_else(PoisonError::into_inner).chunk(data.chunk)
    }

    /// Tells the media what of the journal a read of the range will ask for, in the order of its places there. Who reads one range
    /// after another need not: that is noticed.
    ///
    /// # Errors
    /// When an index cannot be read or does not verify.
    pub fn will_need(&self, disk: DiskId, range: Extent) -> Result<(), ReadError> {
        self.ahead.told(disk, range);
        self.tell(disk, range)
    }

    fn tell(&self, disk: DiskId, range: Extent) -> Result<(), ReadError> {
        let mut wanted = Vec::new();
        self.runs(disk, range, |extent, found| match found {
            Found::Data(data) => wanted.push((extent.offset, data)),
            Found::Below | Found::Zero { .. } => {}
        })?;
        let mut places: Vec<(u32, Extent)> = Vec::with_capacity(wanted.len());
        let mut packed = None;
        for (offset, data) in wanted {
            let (source, chunk) = (data.source, data.chunk);
            match self.place(disk, offset, &data)? {
                Place::At(at) => places.push((source, Extent::new(at, data.whole.length))),
                // Neighbours mostly lie in one.
                _ if packed == Some((source, chunk)) => {}
                _ => {
                    packed = Some((source, chunk));
                    let (_, row) = self.chunk(&data).locate(&data)?;
                    places.push((source, Extent::new(row.offset, row.stored_length.into())));
                }
            }
        }
        places.sort_unstable_by_key(|(source, extent)| (*source, extent.offset));
        let mut wanted: Vec<(u32, Extent)> = Vec::new();
        for (source, place) in places {
            match wanted.last_mut().filter(|(last, extent)| *last == source && extent.end() + NEAR >= place.offset) {
                Some((_, extent)) => extent.length = extent.length.max(place.end() - extent.offset),
                None => wanted.push((source, place)),
            }
        }
        for (source, extent) in wanted {
            let part = self.part(source);
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            part.reader.file(part.segment.number, part.segment.id)?.will_need(extent);
        }
        Ok(())
    }

    /// Calls `each` for the runs of `range` in order.
    fn runs(&self, disk: DiskId, range: Extent, mut each: impl FnMut(Extent, Found)) -> Result<(), ReadError> {
        let mut rest = range;
        while !rest.is_empty() {
            let number = rest.offset / MAP;
            let end = ((number + 1) * MAP).min(rest.end());
            let here = Extent::new(rest.offset, end - rest.offset);
            self.with_map(disk, number, |map| map.pieces(number, here, &mut each))?;
            rest = Extent::new(end, rest.end() - end);
        }
        Ok(())
    }

    /// What a range reads as that lies in one run of one map.
    fn alone(&self, disk: DiskId, range: Extent) -> Result<Option<Found>, ReadError> {
        let number = range.offset / MAP;
        if range.is_empty() || range.end() > (number + 1) * MAP {
            return Ok(None);
        }
        self.with_map(disk, number, |map| map.alone(number, range))
    }

    /// Shows the map of a stretch of the disk, made if it is not there.
    fn with_map<T>(&self, disk: DiskId, number: u64, mut look: impl FnMut(&RegionMap) -> T) -> Result<T, ReadError> {
        let key = (disk.get(), number);
        // Without waiting: whoever makes a map asks this cache.
        let at_once = |region: &Region, look: &mut dyn FnMut(&RegionMap) -> T| {
            let held = region.try_read().ok()?;
            held.as_ref().map(look)
        };
        if let Some(Some(found)) = self.regions.with(key, |region| at_once(region, &mut look)) {
            return Ok(found);
        }
        let region = self.regions.get_or(key, || Ok::<_, ReadError>((Region::default(), MAP_BYTES)))?;
        let held = region.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = held.as_ref() {
            return Ok(look(map));
        }
        drop(held);
        let mut held = region.write().unwrap_or_else(PoisonError::into_inner);
        let map = match &mut *held {
            Some(map) => map,
            none => none.insert(self.build(disk, number)?),
        };
        let (found, bytes) = (look(map), map.bytes());
        drop(held);
        self.regions.recount(key, bytes);
        Ok(found)
    }

    fn build(&self, disk: DiskId, number: u64) -> Result<RegionMap, ReadError> {
        let parts = self.parts();
        let range = Extent::new(number * MAP, MAP);
        let mut map = RegionBuilder::new(number);
        let runs = || self.runs.read().unwrap_or_else(PoisonError::into_inner);
        self.opened.call_once(|| runs().values().for_each(|run| run.open()));
        let mut at = parts.len();
        while at > 0 && !map.is_full() {
            let run = runs().get(&at).cloned();
            if let Some(run) = run.filter(|run| run.fill(disk, number, &mut map)) {
                at = run.first;
                continue;
            }
            let part = parts[at - 1].read().unwrap_or_else(PoisonError::into_inner);
            let found = part.reader.overlapping(&part.segment, disk, range);
            let (segment, live) = (Arc::clone(&part.segment), part.live.runs());
            let (reader, upto) = (Arc::clone(&part.reader), part.upto.0);
            drop(part);
            let mut entries = match found {
                Ok(entries) => entries,
                // Its footer was emptied since, or is damaged: a run that was made in between has it, or its frames do.
                Err(_) => match self.adopt(&parts, at - 1).filter(|run| run.fill(disk, number, &mut map)) {
                    Some(run) => {
                        at = run.first;
                        continue;
                    }
                    None => reader.rebuilt_overlapping(&segment, disk, range)?,
                },
            };
            at -= 1;
            live.iter().for_each(|run: &Arc<IndexRun>| run.overlapping(disk, range, |entry| entries.push(*entry)));
            let counts = entries.iter().filter(|entry| entry.lsn <= upto);
            map.fill_all(&counts.map(|entry| (at as u32, *entry)).collect::<Vec<_>>());
        }
        Ok(map.finish())
    }

    /// Looks for a run that was made after the view was opened and holds a part's index, and reads it from now on. It may hold
    /// more: what lies behind the view's moment is passed over, what lies before is laid under what is there.
    fn adopt(&self, parts: &[Arc<RwLock<Part>>], at: usize) -> Option<Arc<Run>> {
        let of = |at: usize| {
            let part = parts[at].read().unwrap_or_else(PoisonError::into_inner);
            (Arc::clone(&part.reader), part.segment.number, part.segment.id, part.segment.timeline, part.upto)
        };
        let (reader, number, _, timeline, upto) = of(at);
        let info = reader.run_of_now(number).filter(|run| run.timeline == timeline)?;
        let holds = |at: &usize| {
            let (other, number, _, on, to) = of(*at);
            Arc::ptr_eq(&other, &reader) && (on, to) == (timeline, upto) && info.covers(number)
        };
        let first = (0..at).rev().take_while(holds).last().unwrap_or(at);
        let end = (at..parts.len()).take_while(holds).last().unwrap_or(at) + 1;
        let numbers = (first..end).map(|at| (of(at).1, of(at).2)).collect();
        let run = Arc::new(Run::new(reader, info, first, numbers, upto));
        run.open();
        if run.unsound.load(Ordering::Relaxed) {
            return None;
        }
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        runs.retain(|_, other| other.first < first || other.first >= end);
        runs.insert(end, Arc::clone(&run));
        Some(run)
    }
}

impl Run {
    fn new(reader: Arc<Reader>, info: Arc<RunInfo>, first: usize, parts: Vec<(u64, SegmentId)>, upto: Lsn) -> Self {
        let (places, file, unsound) = (OnceLock::new(), OnceLock::new(), AtomicBool::new(false));
        Self { reader, info, first, parts, places, upto, file, unsound }
    }

    /// Opens it for good.
    fn open(&self) {
        let tables = || self.reader.run_tables(&self.info).and_then(|_| self.reader.run_tops(&self.info));
        match self.reader.run_file(&self.info).and_then(|file| tables().map(|_| file)) {
            Ok(file) => drop(self.file.set(file)),
            Err(_) => self.unsound.store(true, Ordering::Relaxed),
        }
    }

    /// Lays what it has of a region under what is there; whether it could be read.
    fn fill(&self, disk: DiskId, number: u64, map: &mut RegionBuilder) -> bool {
        if !self.info.touches(disk, number * MAP / REGION) {
            return true;
        }
        if self.unsound.load(Ordering::Relaxed) {
            return false;
        }
        // A damaged block says nothing about the others.
        let Ok(entries) = self.entries(disk, Extent::new(number * MAP, MAP)) else { return false };
        map.fill_all(&entries);
        true
    }

    /// What it has of a range, each entry as its segment has it, with that segment's place.
    fn entries(&self, disk: DiskId, range: Extent) -> Result<Vec<(u32, Entry)>, ReadError> {
        let tables = self.reader.run_tables(&self.info)?;
        let places = self.places(&tables)?;
        let (mut entries, mut wrong) = (Vec::new(), None);
        self.reader.run_overlapping(&self.info, disk, range, |entry| {
            if entry.lsn > self.upto.0 {
                return;
            }
            match tables.segment_of(entry) {
                // What was dropped is below the base; only that is here and has no part.
                Some((row, chunk)) => entries.extend(places[row].map(|source| (source, Entry { chunk, ..*entry }))),
                None => wrong = Some(entry.lsn),
            }
        })?;
        wrong.map_or(Ok(entries), |lsn| Err(self.foreign(lsn)))
    }

    /// Worked out at the first region and kept: a run has many segments, and a view many regions.
    fn places(&self, tables: &Tables) -> Result<&[Option<u32>], ReadError> {
        if let Some(places) = self.places.get() {
            return Ok(places);
        }
        let mut places = Vec::with_capacity(tables.segments.len());
        for row in &tables.segments {
            let at = self.parts.binary_search_by_key(&row.number, |(number, _)| *number).ok();
            if at.is_some_and(|at| self.parts[at].1 != row.id) {
                return Err(self.foreign(row.number));
            }
            places.push(at.map(|at| (self.first + at) as u32));
        }
        Ok(self.places.get_or_init(|| places))
    }

    fn foreign(&self, number: u64) -> ReadError {
        super::reader::dangling_run(self.info.number, number)
    }
}
