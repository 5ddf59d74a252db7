//! The bytes of records' parts: found in a segment's file, read, verified. Nothing leaves here that was not.

use crate::buffer::PooledBuffer;
use crate::frame::FrameError;
use crate::journal::cache::Used;
use crate::journal::index::{ActiveIndex, ChunkRow};
use crate::journal::reader::{ReadError, Reader, SCRATCH_BYTES, dangling};
use crate::journal::region::{Data, Place};
use crate::journal::snapshot::SegmentView;
use crate::media::File;
use crate::trust::FileKey;
use crate::types::{Extent, Lsn};
use std::io::IoSliceMut;
use std::sync::{Arc, PoisonError, RwLock, Weak};

/// A segment of the view.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) reader: Arc<Reader>,
    pub(super) segment: Arc<SegmentView>,
    /// Frames that were added to it since the snapshot.
    pub(super) live: ActiveIndex,
    pub(super) upto: Lsn,
    /// Its segment's file, as long as the reader has it open: who reads it often does not look for it each time.
    pub(super) file: Option<(Weak<dyn File>, Used)>,
}

impl Part {
    /// What a chunk is found and read by. What takes long is done with that, and nobody waits meanwhile for this segment's lock.
    pub(super) fn chunk(&self, chunk: u32) -> Chunk {
        let live = self.live.runs();
        let run = live.iter().rev().find(|run| run.first_chunk <= chunk && !run.chunks.is_empty());
        let row = run.and_then(|run| run.chunks.get((chunk - run.first_chunk) as usize)).copied();
        Chunk { reader: Arc::clone(&self.reader), segment: Arc::clone(&self.segment), row }
    }

    /// Opens what its plain parts are read and verified with.
    pub(super) fn plain(of: &RwLock<Self>) -> Result<Plain, ReadError> {
        let part = of.read().unwrap_or_else(PoisonError::into_inner);
        let segment = part.segment.number;
        let key = part.reader.file_key(&part.segment)?;
        let known = part.file.as_ref().and_then(|(file, used)| Some((file.upgrade()?, used)));
        if let Some((file, used)) = known {
            // The reader closes those first that nobody reads.
            used.set();
            return Ok(Plain { segment, file, key });
        }
        let file = part.reader.file(segment, part.segment.id)?;
        let used = part.reader.files.used(part.segment.id);
        drop(part);
        // Nobody waits for what the next read can do as well.
        if let (Some(used), Ok(mut part)) = (used, of.try_write()) {
            part.file = Some((Arc::downgrade(&file), used));
        }
        Ok(Plain { segment, file, key })
    }

    /// Memory for bytes that are read along.
    pub(super) fn scratch(of: &RwLock<Self>) -> PooledBuffer {
        of.read().unwrap_or_else(PoisonError::into_inner).reader.scratch.take()
    }
}

/// A chunk of a segment of the view.
pub(super) struct Chunk {
    reader: Arc<Reader>,
    segment: Arc<SegmentView>,
    /// Its row, if it was added since the snapshot.
    row: Option<ChunkRow>,
}

impl Chunk {
    /// Where a part's bytes are, as its span knows it or by its chunk's row.
    pub(super) fn place(&self, data: &Data) -> Result<Place, ReadError> {
        match data.place {
            Place::Unknown => self.locate(data).map(|(place, _)| place),
            place => Ok(place),
        }
    }

    /// Where a part's bytes are, and its chunk.
    pub(super) fn locate(&self, data: &Data) -> Result<(Place, ChunkRow), ReadError> {
        let row = self.row.map_or_else(|| self.reader.chunk_row(&self.segment, data.chunk), Ok)?;
        let at = u64::from(data.at);
        if row.notes || at + data.whole.length > u64::from(row.plain_length) {
            return Err(dangling(&self.segment, "chunk", u64::from(data.chunk)));
        }
        let packed = row.compressed || row.sealed;
        Ok((if packed { Place::Packed } else { Place::At(row.offset + at) }, row))
    }

    /// Fills `out` with the bytes of `extent`, which lies inside a part of it; it is a packed one.
    pub(super) fn read(&self, extent: Extent, data: &Data, out: &mut [u8]) -> Result<(), ReadError> {
        let front = data.front(extent, out, self.segment.number)?;
        let (_, row) = self.locate(data)?;
        let plain = self.reader.chunk(&self.segment, data.chunk, &row)?;
        let part = &plain[data.at as usize..][..data.whole.length as usize];
        let key = self.reader.file_key(&self.segment)?;
        data.verify(crc32c::crc32c(part), key.as_deref(), (self.segment.number, row.offset))?;
        out.copy_from_slice(&part[front..][..out.len()]);
        Ok(())
    }
}

impl Data {
    /// Checks the CRC32C of its bytes, which stand in a segment at an offset, or in a chunk there.
    fn verify(&self, found: u32, key: Option<&FileKey>, (segment, offset): (u64, u64)) -> Result<(), ReadError> {
        let expected = key.map_or(self.crc, |key| key.mask(self.chunk, self.at, self.crc));
        if found == expected {
            return Ok(());
        }
        let source = FrameError::PartChecksum { lsn: Lsn(self.lsn), expected, found };
        Err(ReadError::Frame { segment, offset, source })
    }

    /// How many of its bytes come before those of `extent`, all of which `out` is for.
    fn front(&self, extent: Extent, out: &[u8], segment: u64) -> Result<usize, ReadError> {
        if self.whole.contains(&extent) && extent.length == out.len() as u64 {
            return Ok((extent.offset - self.whole.offset) as usize);
        }
        Err(ReadError::Dangling { segment, what: "chunk", number: u64::from(self.chunk) })
    }
}

/// A segment's file, for parts whose stored bytes are plain ones: the part's own checksum is enough, and nothing else of the
/// chunk is read.
pub(super) struct Plain {
    segment: u64,
    file: Arc<dyn File>,
    key: Option<Arc<FileKey>>,
}

impl Plain {
    /// Fills `out` with the bytes of `extent`. The whole part is read, because all of it is what its checksum is of, but only
    /// what is wanted to where it is wanted, and the rest into what `scratch` gives.
    pub(super) fn read(
        &self,
        extent: Extent,
        data: &Data,
        offset: u64,
        out: &mut [u8],
        scratch: impl FnOnce() -> PooledBuffer,
    ) -> Result<(), ReadError> {
        let front = data.front(extent, out, self.segment)?;
        let beside = data.whole.length as usize - out.len();
        let found = if beside == 0 {
            self.file.read_exact_at(offset, out)?;
            crc32c::crc32c(out)
        } else {
            let mut scratch = scratch();
            let (before, behind) = scratch[..beside].split_at_mut(front);
            let mut slices = [&mut *before, &mut *out, &mut *behind].map(IoSliceMut::new);
            self.file.read_exact_vectored_at(offset, &mut slices)?;
            crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), out), behind)
        };
        data.verify(found, self.key.as_deref(), (self.segment, offset))
    }
}

/// Behind a part, in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    source: u32,
    offset: u64,
}

/// Bytes between two parts in a file that are read along, so that the system sees one long read and not two short ones: the head of a
/// frame, and some.
const GAP: u64 = 16 << 10;

impl Cursor {
    /// How many bytes lie before a place, if they are few.
    fn gap(&self, source: u32, offset: u64) -> Option<u64> {
        offset.checked_sub(self.offset).filter(|gap| self.source == source && *gap <= GAP)
    }

    /// Goes behind a part; whether that was a jump.
    pub(super) fn follow(cursor: &mut Option<Self>, data: &Data, offset: u64) -> bool {
        let jumps = cursor.and_then(|cursor| cursor.gap(data.source, offset)).is_none();
        *cursor = Some(Self { source: data.source, offset: offset + data.whole.length });
        jumps
    }
}

/// Whole plain parts that follow each other on the disk and nearly so in a segment's file: they are read at once, with what lies
/// between, and each is verified.
#[derive(Debug, Default)]
pub(super) struct Together {
    /// Where they begin in what is read into.
    at: usize,
    length: usize,
    /// With the bytes before it in the file that nobody wants.
    parts: Vec<(Data, usize)>,
    /// Bytes of the file that nobody wants.
    gaps: usize,
    /// Behind the last one.
    pub(super) cursor: Option<Cursor>,
    /// How often the next one was somewhere else.
    pub(super) jumps: u64,
}

impl Together {
    /// Goes on where another read ended.
    pub(super) fn after(cursor: Option<Cursor>) -> Self {
        Self { cursor, ..Self::default() }
    }

    /// Adds a part that stands at `offset` and is wanted at `at` of `out`; what does not go on is read first.
    pub(super) fn add(
        &mut self,
        segments: &[Arc<RwLock<Part>>],
        data: Data,
        (offset, at): (u64, usize),
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let gap = self.cursor.and_then(|cursor| cursor.gap(data.source, offset)).map(|gap| gap as usize);
        let room = gap.is_some_and(|gap| self.gaps + gap <= SCRATCH_BYTES);
        if !room || self.at + self.length != at {
            self.read(segments, out)?;
            self.at = at;
        }
        self.jumps += u64::from(Cursor::follow(&mut self.cursor, &data, offset));
        self.length += data.whole.length as usize;
        self.gaps += gap.unwrap_or(0);
        self.parts.push((data, gap.unwrap_or(0)));
        Ok(())
    }

    /// Reads what was added.
    pub(super) fn read(&mut self, segments: &[Arc<RwLock<Part>>], out: &mut [u8]) -> Result<(), ReadError> {
        let (Some(cursor), false) = (self.cursor, self.parts.is_empty()) else { return Ok(()) };
        let segment = &segments[cursor.source as usize];
        let plain = Part::plain(segment)?;
        let out = &mut out[self.at..self.at + self.length];
        let mut offset = cursor.offset - (self.length + self.gaps) as u64;
        if self.gaps == 0 {
            plain.file.read_exact_at(offset, out)?;
        } else {
            let mut scratch = Part::scratch(segment);
            let (mut left, mut unwanted) = (&mut *out, &mut scratch[..]);
            let mut slices = Vec::new();
            for run in self.parts.chunk_by(|_, (_, gap)| *gap == 0) {
                let (before, rest) = std::mem::take(&mut unwanted).split_at_mut(run[0].1);
                let length: usize = run.iter().map(|(data, _)| data.whole.length as usize).sum();
                let (own, behind) = std::mem::take(&mut left).split_at_mut(length);
                slices.extend([before, own].map(IoSliceMut::new));
                (left, unwanted) = (behind, rest);
            }
            plain.file.read_exact_vectored_at(offset, &mut slices)?;
        }
        let mut left = out;
        for (data, gap) in self.parts.drain(..) {
            offset += gap as u64;
            let (own, behind) = left.split_at_mut(data.whole.length as usize);
            data.verify(crc32c::crc32c(own), plain.key.as_deref(), (plain.segment, offset))?;
            offset += own.len() as u64;
            left = behind;
        }
        (self.length, self.gaps) = (0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::layout::SegmentHeader;
    use crate::journal::segment_name;
    use crate::media::{Memory, Storage};
    use crate::types::{ReplicaId, SegmentId, Timeline};

    /// A segment's part; its file is there and has a header.
    fn part(reader: &Arc<Reader>, number: u64) -> RwLock<Part> {
        let (replica, key) = (ReplicaId::new([1; 16]).unwrap(), 0);
        let id = SegmentId::new(u128::from(number).to_le_bytes()).unwrap();
        let file = reader.storage.create(&segment_name(number)).unwrap();
        file.write_all_at(0, &SegmentHeader { replica, id, number, key }.encode()).unwrap();
        let timeline = Timeline::new([1; 16]).unwrap();
        let segment = Arc::new(SegmentView::active((number, id, key), timeline, Lsn::ZERO, Vec::new()));
        RwLock::new(Part {
            reader: Arc::clone(reader),
            segment,
            live: ActiveIndex::default(),
            upto: Lsn(0),
            file: None,
        })
    }

    #[test]
    fn a_file_that_is_read_all_the_time_stays_open_while_many_others_are_read_once() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let reader = Arc::new(Reader::new(storage, "", 1 << 20));
        let often = part(&reader, 1);
        Part::plain(&often).unwrap();
        let id = often.read().unwrap().segment.id;
        for number in 2..2000 {
            Part::plain(&part(&reader, number)).unwrap();
            Part::plain(&often).unwrap();
            assert!(reader.files.used(id).is_some(), "it is let go of after {number} segments");
        }
    }
}
