//! Reading segments: files, footer blocks, chunks, frames; each verified where it is read, some kept in bounded caches.

use super::bytes::{FormatError, Take};
use super::cache::Cache;
use super::event::{self, Event};
use super::footer::{self, FENCE_BYTES, Fence, per_block};
use super::index::{CHUNK_ROW_BYTES, ChunkRow, Entry, FRAME_ROW_BYTES, FrameRow, IndexRun};
use super::layout::{
    BLOCK_BYTES, BlockKind, ENVELOPE_BYTES, Envelope, FIXED_BYTES, SegmentHeader, Summary, decode_block, foreign,
};
use super::level::{SegmentRow, Tables, Top};
use super::manifest::segment_name;
use super::snapshot::{Content, SegmentView, Snapshot};
use crate::buffer::BufferPool;
use crate::frame::{self, FrameError, FrameHead, RawFrame};
use crate::media::{self, File, MediaError, Storage};
use crate::trust::{FileKey, KeyError, Keyring};
use crate::types::{DiskId, Extent, Lsn, SECTOR, SegmentId, Timeline};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

/// Why something of a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The media did not give it.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// A block of ours is damaged or belongs elsewhere.
    #[error("segment {segment} at byte {offset}: {source}")]
    Format {
        /// Number of the segment.
        segment: u64,
        /// Where in its file.
        offset: u64,
        /// What is wrong.
        source: FormatError,
    },
    /// A frame, a chunk or a part is damaged.
    #[error("segment {segment} at byte {offset}: {source}")]
    Frame {
        /// Number of the segment.
        segment: u64,
        /// Where in its file.
        offset: u64,
        /// What is wrong.
        source: FrameError,
    },
    /// A run of the levelled index is damaged or another one.
    #[error("index run {run} at byte {offset}: {source}")]
    Index {
        /// Number of the run.
        run: u64,
        /// Where in its file.
        offset: u64,
        /// What is wrong.
        source: FormatError,
    },
    /// It is sealed at rest, and the key is not there: nothing is wrong with it.
    #[error("segment {segment}: {source}")]
    AtRest {
        /// Number of the segment.
        segment: u64,
        /// Why it does not open.
        source: KeyError,
    },
    /// The index names something that the segment does not have.
    #[error("segment {segment}: the index names {what} {number}, which is not there")]
    Dangling {
        /// Number of the segment.
        segment: u64,
        /// What it names.
        what: &'static str,
        /// Which.
        number: u64,
    },
    /// A view was asked for beyond what the journal has.
    #[error("timeline {timeline} is written up to LSN {written}, not up to {wanted}")]
    NotWritten {
        /// The branch of history.
        timeline: Timeline,
        /// What was asked for.
        wanted: Lsn,
        /// What there is.
        written: Lsn,
    },
    /// The moment was given up while it was read: what kept it took too much room.
    #[error("LSN {lsn} of timeline {timeline} is not kept any more: it was given up to make room")]
    GivenUp {
        /// The branch of history.
        timeline: Timeline,
        /// The moment.
        lsn: Lsn,
    },
    /// What lies below the journal could not be read.
    #[error("disk {disk} at byte {offset}: cannot read what lies below the journal: {source}")]
    Below {
        /// Which disk.
        disk: DiskId,
        /// First byte.
        offset: u64,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ReadError {
    /// Where in its file, in bytes, if that is known.
    pub(super) fn offset(&self) -> Option<u64> {
        match self {
            Self::Format { offset, .. } | Self::Frame { offset, .. } | Self::Index { offset, .. } => Some(*offset),
            Self::Media(error) => Some(error.offset),
            _ => None,
        }
    }
}

/// Which block of which segment; ids, because they are never used again.
type BlockKey = (SegmentId, u32);

/// Reads the segments of one journal. Shared by all views on it; all methods may be called from several threads at once.
#[derive(Debug)]
pub struct Reader {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) directory: String,
    /// Shared by readers of several stores.
    pub(super) files: Arc<Cache<SegmentId, Arc<dyn File>>>,
    /// Files of runs that somebody reads: as many as the runs of the views that there are.
    pub(super) run_files: Mutex<BTreeMap<SegmentId, Weak<dyn File>>>,
    pub(super) tables: Cache<SegmentId, Arc<Tables>>,
    pub(super) tops: Cache<SegmentId, Arc<Vec<Top>>>,
    /// Indexes that footers do not have.
    pub(super) rebuilt: Cache<SegmentId, Arc<IndexRun>>,
    fences: Cache<SegmentId, Arc<Vec<Fence>>>,
    /// Blocks of rows as they stand in footers, verified.
    rows: Cache<BlockKey, Bytes>,
    chunks: Cache<BlockKey, Bytes>,
    keys: Arc<Keyring>,
    file_keys: Cache<SegmentId, Arc<FileKey>>,
    /// For bytes that are looked at and not kept.
    pub(super) scratch: BufferPool,
}

/// What a block of rows takes in memory beside its bytes, about.
const ROWS_BYTES: u64 = 128;
/// Files of segments held open at once, of all readers that are beside each other.
const FILES_MAX: u64 = 256;
/// The longest that is read without being kept: the stored bytes of a chunk.
pub(super) const SCRATCH_BYTES: usize = 2 << 16;
/// So many reads at once find memory ready for that.
const SCRATCH_RETAINED: usize = 8;

impl Reader {
    /// A reader of the journal in `directory` of `storage`. Decoded chunks take at most `cache_bytes` of memory, tables
    /// half as much more, and as much again what is made from frames because a footer and its run are lost; buffers that wait for
    /// the next read take at most 1 MiB. At most 256 files of segments are open, and those of the runs that its views read.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, directory: &str, cache_bytes: u64) -> Self {
        Self {
            storage,
            directory: directory.to_owned(),
            files: Arc::new(Cache::new(FILES_MAX)),
            run_files: Mutex::default(),
            tables: Cache::new(cache_bytes / 8),
            tops: Cache::new(cache_bytes / 8),
            rebuilt: Cache::new(cache_bytes),
            fences: Cache::new(cache_bytes / 8),
            rows: Cache::new(cache_bytes / 8),
            chunks: Cache::new(cache_bytes),
            keys: Arc::default(),
            file_keys: Cache::new(FILES_MAX),
            scratch: BufferPool::new(SCRATCH_BYTES, SCRATCH_RETAINED),
        }
    }

    /// The same, of a store that is sealed at rest.
    #[must_use]
    pub fn with_keys(self, keys: Arc<Keyring>) -> Self {
        Self { keys, ..self }
    }

    /// The same for a store beside another one: both together hold open as many files of segments, and have as many buffers wait, as
    /// one alone would.
    #[must_use]
    pub fn beside(self, other: &Self) -> Self {
        Self { files: Arc::clone(&other.files), scratch: other.scratch.clone(), ..self }
    }

    /// The keys of a segment that is sealed at rest; none of one that is not.
    pub(super) fn file_key(&self, segment: &SegmentView) -> Result<Option<Arc<FileKey>>, ReadError> {
        if segment.key == 0 {
            return Ok(None);
        }
        let failed = |source| ReadError::AtRest { segment: segment.number, source };
        let derive = || self.keys.segment(segment.key, segment.id).map(|key| (Arc::new(key), 1)).map_err(failed);
        self.file_keys.get_or(segment.id, derive).map(Some)
    }

    /// Opens a segment's file and checks that it is the one meant.
    pub(super) fn file(&self, number: u64, id: SegmentId) -> Result<Arc<dyn File>, ReadError> {
        self.files.get_or(id, || {
            let file = self.storage.open(&media::join(&self.directory, &segment_name(number)), false)?;
            let mut bytes = [0; FIXED_BYTES];
            file.read_exact_at(0, &mut bytes)?;
            let failed = |source| ReadError::Format { segment: number, offset: 0, source };
            let header = SegmentHeader::decode(&bytes).map_err(failed)?;
            if header.id != id {
                return Err(failed(foreign("segment header", "segment", id, header.id)));
            }
            Ok((file, 1))
        })
    }

    /// Closes the files of segments that are gone: as long as one is open its room is not free.
    pub fn close(&self, gone: impl IntoIterator<Item = SegmentId>) {
        gone.into_iter().for_each(|id| self.files.remove(id));
    }

    fn read(&self, segment: &SegmentView, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; length];
        self.file(segment.number, segment.id)?.read_exact_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads neighbouring footer blocks of one kind and gives what `decode` makes of each.
    pub(super) fn blocks<T>(
        &self,
        segment: &SegmentView,
        summary: &Summary,
        kind: BlockKind,
        range: std::ops::Range<u32>,
        decode: impl Fn(&[u8], u32) -> Result<Vec<T>, FormatError>,
    ) -> Result<Vec<T>, ReadError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (start, number) = summary.block_at(kind, range.start);
        let bytes = self.read(segment, start, range.len() * BLOCK_BYTES)?;
        let mut all = Vec::new();
        for (at, bytes) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let offset = start + (at * BLOCK_BYTES) as u64;
            let failed = |source| ReadError::Format { segment: segment.number, offset, source };
            all.extend(decode(bytes, number + at as u32).map_err(failed)?);
        }
        Ok(all)
    }

    pub(super) fn fences(&self, segment: &SegmentView, summary: &Summary) -> Result<Arc<Vec<Fence>>, ReadError> {
        self.fences.get_or(segment.id, || {
            let range = 0..summary.blocks[BlockKind::Fences as usize - 1];
            let fences = self.blocks(segment, summary, BlockKind::Fences, range, |bytes, number| {
                footer::decode_rows(bytes, segment.id, number, BlockKind::Fences, FENCE_BYTES, Fence::take)
            })?;
            let expected = summary.blocks[0] + summary.blocks[1];
            if fences.len() as u32 != expected {
                return Err(dangling(segment, "index block", u64::from(expected)));
            }
            let bytes = (fences.len() * size_of::<Fence>()) as u64 + 64;
            Ok((Arc::new(fences), bytes))
        })
    }

    /// Every index entry of the disk that shares a byte with `range`, as the segment's own index says it.
    pub(super) fn overlapping(
        &self,
        segment: &SegmentView,
        disk: DiskId,
        range: Extent,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut found = Vec::new();
        let summary = match &segment.content {
            Content::Active(runs) => {
                runs.iter().for_each(|run| run.overlapping(disk, range, |entry| found.push(*entry)));
                return Ok(found);
            }
            Content::Sealed(summary) => summary,
        };
        let (start, end) = (range.offset / SECTOR, range.end().div_ceil(SECTOR));
        let fences = self.fences(segment, summary)?;
        let narrow = summary.blocks[0];
        let wanted = |fence: &Fence| fence.disk == disk.get() && fence.first < end && fence.end > start;
        let mut index = 0;
        while index < fences.len() {
            let run = fences[index..].iter().take_while(|fence| wanted(fence)).count();
            if run == 0 {
                index += 1;
                continue;
            }
            // Neighbours are read at once; narrow and wide blocks lie apart only by their numbers.
            let wide = index as u32 >= narrow;
            let stop = if wide { index + run } else { (index + run).min(narrow as usize) };
            let (kind, first) = if wide { (BlockKind::Wide, narrow) } else { (BlockKind::Narrow, 0) };
            let blocks = index as u32 - first..stop as u32 - first;
            let base = summary.first_lsn.0;
            let entries = self.blocks(segment, summary, kind, blocks, |bytes, number| {
                footer::decode_entries(bytes, segment.id, number, wide, base)
            })?;
            found.extend(entries.into_iter().filter(|entry| entry.sector < end && entry.end() > start));
            index = stop;
        }
        Ok(found)
    }

    /// The same from the segment's frames.
    pub(super) fn rebuilt_overlapping(
        &self,
        segment: &SegmentView,
        disk: DiskId,
        range: Extent,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut found = Vec::new();
        self.rebuilt(segment)?.overlapping(disk, range, |entry| found.push(*entry));
        Ok(found)
    }

    /// Where a chunk is.
    pub(super) fn chunk_row(&self, segment: &SegmentView, chunk: u32) -> Result<ChunkRow, ReadError> {
        let missing = || dangling(segment, "chunk", u64::from(chunk));
        match &segment.content {
            Content::Active(runs) => {
                let at = runs.partition_point(|run| run.first_chunk <= chunk);
                // A frame without chunks has the number of the next one's first: look back for the one that holds it.
                let holds = runs[..at].iter().rev().find(|run| !run.chunks.is_empty()).ok_or_else(missing)?;
                holds.chunks.get((chunk - holds.first_chunk) as usize).copied().ok_or_else(missing)
            }
            Content::Sealed(summary) => {
                let per_block = per_block(CHUNK_ROW_BYTES) as u32;
                let block = chunk / per_block;
                if block >= summary.blocks[BlockKind::Chunks as usize - 1] {
                    return Err(missing());
                }
                let (offset, number) = summary.block_at(BlockKind::Chunks, block);
                let failed = |source| ReadError::Format { segment: segment.number, offset, source };
                let rows = self.rows.get_or((segment.id, block), || {
                    let bytes = Bytes::from(self.read(segment, offset, BLOCK_BYTES)?);
                    let rows = decode_block(&bytes, segment.id, number, BlockKind::Chunks, CHUNK_ROW_BYTES);
                    let (_, rows) = rows.map_err(failed)?;
                    Ok::<_, ReadError>((bytes.slice_ref(rows), BLOCK_BYTES as u64 + ROWS_BYTES))
                })?;
                let at = (chunk % per_block) as usize * CHUNK_ROW_BYTES;
                let row = rows.get(at..at + CHUNK_ROW_BYTES).ok_or_else(missing)?;
                ChunkRow::take(&mut Take::new("footer rows", row)).map_err(failed)
            }
        }
    }

    /// A chunk's plain bytes.
    pub(super) fn chunk(&self, segment: &SegmentView, chunk: u32, row: &ChunkRow) -> Result<Bytes, ReadError> {
        self.chunks.get_or((segment.id, chunk), || {
            let length = row.stored_length as usize;
            // What is inflated is not kept: only its plain bytes are.
            let stored = if row.compressed && !row.sealed && length <= SCRATCH_BYTES {
                let mut stored = self.scratch.take();
                self.file(segment.number, segment.id)?.read_exact_at(row.offset, &mut stored[..length])?;
                stored.freeze(length)
            } else {
                Bytes::from(self.read(segment, row.offset, length)?)
            };
            let failed = |source| ReadError::Frame { segment: segment.number, offset: row.offset, source };
            let plain = match self.file_key(segment)? {
                Some(key) => frame::open_chunk(&row.info(), chunk, stored, &key),
                None => frame::decode_chunk(&row.info(), &stored),
            };
            let plain = plain.map_err(failed)?;
            let bytes = plain.len() as u64;
            Ok((plain, bytes))
        })
    }

    /// The frames of a segment.
    pub(super) fn frame_rows(&self, segment: &SegmentView) -> Result<Vec<FrameRow>, ReadError> {
        match &segment.content {
            Content::Active(runs) => Ok(runs.iter().flat_map(|run| run.frames.iter().copied()).collect()),
            Content::Sealed(summary) => {
                let range = 0..summary.blocks[BlockKind::Frames as usize - 1];
                self.blocks(segment, summary, BlockKind::Frames, range, |bytes, number| {
                    footer::decode_rows(bytes, segment.id, number, BlockKind::Frames, FRAME_ROW_BYTES, FrameRow::take)
                })
            }
        }
    }

    /// A frame's head, verified against its envelope.
    pub(super) fn frame_head(&self, segment: &SegmentView, row: &FrameRow) -> Result<(Envelope, FrameHead), ReadError> {
        let length = (ENVELOPE_BYTES + frame::HEAD_BYTES_MAX).min(ENVELOPE_BYTES + row.frame_bytes as usize);
        let bytes = self.read(segment, row.offset, length)?;
        parse_head(segment.number, segment.id, row.offset, &bytes)
    }

    /// A frame with all its records, every checksum verified.
    pub(super) fn frame(&self, segment: &SegmentView, row: &FrameRow) -> Result<RawFrame, ReadError> {
        let broken = |source| ReadError::Format { segment: segment.number, offset: row.offset, source };
        let envelope = Envelope::decode(&self.read(segment, row.offset, ENVELOPE_BYTES)?).map_err(broken)?;
        let bytes = Bytes::from(self.read(segment, row.offset, envelope.stride(row.offset) as usize)?);
        let (envelope, head) = parse_head(segment.number, segment.id, row.offset, &bytes)?;
        let failed = |source| ReadError::Frame { segment: segment.number, offset: row.offset, source };
        let at = envelope.body_at(row.offset) as usize;
        let expected = head.info.body_bytes as usize;
        if bytes.len() < at + expected {
            return Err(failed(FrameError::Short { expected, found: bytes.len().saturating_sub(at) }));
        }
        self.unpack(segment, &envelope, &head, &bytes.slice(at..at + expected))?.map_err(failed)
    }

    /// Unpacks a frame's body as it stands in its segment.
    pub(super) fn unpack(
        &self,
        segment: &SegmentView,
        envelope: &Envelope,
        head: &FrameHead,
        body: &Bytes,
    ) -> Result<Result<RawFrame, FrameError>, ReadError> {
        let Some(key) = self.file_key(segment)? else { return Ok(head.unpack(body)) };
        let opened = head.unsealed(body, &key, envelope.first_chunk);
        Ok(opened.and_then(|(head, body)| head.unpack(&body)))
    }

    /// The events of one segment.
    pub(super) fn segment_events(&self, segment: &SegmentView) -> Result<Vec<Event>, ReadError> {
        match &segment.content {
            Content::Active(runs) => Ok(runs.iter().flat_map(|run| run.events.iter().cloned()).collect()),
            Content::Sealed(summary) => match self.footer_events(segment, summary) {
                Ok((_, events)) => Ok(events),
                // Without its key the frames say no more than the footer.
                Err(error @ ReadError::AtRest { .. }) => Err(error),
                Err(_) => {
                    let mut events = self.rebuilt(segment)?.events.clone();
                    events.sort_by_key(|event| event.lsn);
                    Ok(events)
                }
            },
        }
    }

    /// The events of a sealed segment's footer, as bytes too.
    pub(super) fn footer_events(
        &self,
        segment: &SegmentView,
        summary: &Summary,
    ) -> Result<(Vec<u8>, Vec<Event>), ReadError> {
        let offset = summary.events_at();
        let key = self.file_key(segment)?;
        let bytes = self.read(segment, offset, summary.events_bytes as usize)?;
        let events = event::decode_stored(&bytes, segment.timeline, key.as_deref());
        let events = events.map_err(|source| ReadError::Frame { segment: segment.number, offset, source })?;
        Ok((bytes, events))
    }

    /// The bytes of a sealed segment's events, as its footer has them.
    pub(super) fn event_bytes(&self, segment: &SegmentView, summary: &Summary) -> Result<Vec<u8>, ReadError> {
        match self.footer_events(segment, summary) {
            Ok((bytes, _)) => Ok(bytes),
            // What is sealed at rest is not written again in plain.
            Err(error) if segment.key != 0 => Err(error),
            Err(_) => Ok(event::encode(summary.group, &self.rebuilt(segment)?.events)),
        }
    }

    /// Marks, gaps, resyncs, clock epochs, changes of disks and starts of timelines, in the order of segments and LSNs: what
    /// a catalogue is made of. Reads no data: runs, and the footers of segments that are in none.
    ///
    /// # Errors
    /// When a segment's events cannot be read.
    pub fn events(&self, snapshot: &Snapshot) -> Result<Vec<Event>, ReadError> {
        let mut events = Vec::new();
        let mut segments = snapshot.segments();
        let alone = |segments: &[Arc<SegmentView>], events: &mut Vec<Event>| -> Result<(), ReadError> {
            segments.iter().try_for_each(|segment| {
                events.extend(self.segment_events(segment)?);
                Ok(())
            })
        };
        for run in snapshot.runs() {
            let (before, rest) = segments.split_at(segments.partition_point(|s| s.number < run.first_segment));
            let (of_run, rest) = rest.split_at(rest.partition_point(|segment| segment.number <= run.last_segment));
            segments = rest;
            alone(before, &mut events)?;
            let there =
                |row: &SegmentRow| of_run.binary_search_by_key(&row.number, |s| s.number).ok().map(|at| &*of_run[at]);
            match self.run_events(run, there) {
                Ok(found) => events.extend(found),
                Err(_) => alone(of_run, &mut events)?,
            }
        }
        alone(segments, &mut events)?;
        Ok(events)
    }
}

/// Envelope and head at the beginning of `bytes`, which stand at `offset` of the segment.
pub(super) fn parse_head(
    number: u64,
    id: SegmentId,
    offset: u64,
    bytes: &[u8],
) -> Result<(Envelope, FrameHead), ReadError> {
    let broken = |source| ReadError::Format { segment: number, offset, source };
    let envelope = Envelope::decode(bytes).map_err(broken)?;
    if envelope.id != id {
        return Err(broken(foreign("frame envelope", "segment", id, envelope.id)));
    }
    let rest = &bytes[ENVELOPE_BYTES..];
    let found = rest.len();
    let expected = envelope.head_bytes as usize;
    let short = ReadError::Frame { segment: number, offset, source: FrameError::Short { expected, found } };
    let head_bytes = rest.get(..expected).ok_or(short)?;
    let found = crc32c::crc32c(head_bytes);
    if found != envelope.head_crc {
        let expected = envelope.head_crc;
        return Err(broken(FormatError::Checksum { what: "frame head", expected, found }));
    }
    let head = FrameHead::parse(head_bytes).map_err(|source| ReadError::Frame { segment: number, offset, source })?;
    let says = head.info.head_bytes + head.info.body_bytes;
    if says != envelope.frame_bytes {
        return Err(broken(foreign("frame envelope", "frame_bytes", envelope.frame_bytes, says)));
    }
    Ok((envelope, head))
}

pub(super) fn dangling(segment: &SegmentView, what: &'static str, number: u64) -> ReadError {
    ReadError::Dangling { segment: segment.number, what, number }
}

pub(super) fn dangling_run(run: u64, segment: u64) -> ReadError {
    let source = FormatError::Field { what: "index run", field: "segment", value: segment };
    ReadError::Index { run, offset: 0, source }
}
