//! The bytes of records' parts: found in a segment's file, read, verified. Nothing leaves here that was not.

use crate::frame::FrameError;
use crate::journal::index::{ActiveIndex, ChunkRow};
use crate::journal::reader::{ReadError, Reader, dangling};
use crate::journal::region::{Data, Place};
use crate::journal::snapshot::SegmentView;
use crate::types::{Extent, Lsn};
use std::io::IoSliceMut;
use std::sync::{Arc, PoisonError, RwLock};

/// A segment of the view.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) reader: Arc<Reader>,
    pub(super) segment: Arc<SegmentView>,
    /// Frames that were added to it since the snapshot.
    pub(super) live: ActiveIndex,
    pub(super) upto: Lsn,
}

impl Part {
    /// Where a part's bytes are, as its span knows it or by its chunk's row.
    pub(super) fn place(&self, data: &Data) -> Result<Place, ReadError> {
        match data.place {
            Place::Unknown => self.locate(data).map(|(place, _)| place),
            place => Ok(place),
        }
    }

    /// Where a part's bytes are, and its chunk.
    pub(super) fn locate(&self, data: &Data) -> Result<(Place, ChunkRow), ReadError> {
        let row = self.chunk_row(data.chunk)?;
        let at = u64::from(data.at);
        if row.notes || at + data.whole.length > u64::from(row.plain_length) {
            return Err(dangling(&self.segment, "chunk", u64::from(data.chunk)));
        }
        let packed = row.compressed || row.sealed;
        Ok((if packed { Place::Packed } else { Place::At(row.offset + at) }, row))
    }

    /// Checks the CRC32C of a part's bytes, which stand at `offset` or in a chunk there.
    fn verify(&self, data: &Data, found: u32, offset: u64) -> Result<(), ReadError> {
        let key = self.reader.file_key(&self.segment)?;
        let expected = key.map_or(data.crc, |key| key.mask(data.chunk, data.at, data.crc));
        if found == expected {
            return Ok(());
        }
        let source = FrameError::PartChecksum { lsn: Lsn(data.lsn), expected, found };
        Err(ReadError::Frame { segment: self.segment.number, offset, source })
    }

    /// Fills `out` with the bytes of `extent`, which lies inside the part's.
    pub(super) fn read(&self, extent: Extent, data: &Data, place: Place, out: &mut [u8]) -> Result<(), ReadError> {
        if !data.whole.contains(&extent) || extent.length != out.len() as u64 {
            return Err(dangling(&self.segment, "chunk", u64::from(data.chunk)));
        }
        let front = (extent.offset - data.whole.offset) as usize;
        match place {
            // Stored bytes are plain ones: the part's own checksum is enough, and nothing else of the chunk is read.
            Place::At(offset) => self.read_plain(data, offset, front, out),
            _ => {
                let (_, row) = self.locate(data)?;
                let plain = self.reader.chunk(&self.segment, data.chunk, &row)?;
                let part = &plain[data.at as usize..][..data.whole.length as usize];
                self.verify(data, crc32c::crc32c(part), row.offset)?;
                out.copy_from_slice(&part[front..][..out.len()]);
                Ok(())
            }
        }
    }

    /// Reads the whole part, because all of it is what its checksum is of, but only what is wanted to where it is wanted.
    fn read_plain(&self, data: &Data, offset: u64, front: usize, out: &mut [u8]) -> Result<(), ReadError> {
        let file = self.reader.file(self.segment.number, self.segment.id)?;
        let beside = data.whole.length as usize - out.len();
        if beside == 0 {
            file.read_exact_at(offset, out)?;
            return self.verify(data, crc32c::crc32c(out), offset);
        }
        let mut scratch = self.reader.scratch.take();
        let (before, behind) = scratch[..beside].split_at_mut(front);
        file.read_exact_vectored_at(offset, &mut [&mut *before, &mut *out, &mut *behind].map(IoSliceMut::new))?;
        let found = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), out), behind);
        self.verify(data, found, offset)
    }

    fn chunk_row(&self, chunk: u32) -> Result<ChunkRow, ReadError> {
        if self.live.is_empty() {
            return self.reader.chunk_row(&self.segment, chunk);
        }
        let runs = self.live.runs();
        let live = runs.iter().rev().find(|run| run.first_chunk <= chunk && !run.chunks.is_empty());
        match live.and_then(|run| run.chunks.get((chunk - run.first_chunk) as usize)) {
            Some(row) => Ok(*row),
            None => self.reader.chunk_row(&self.segment, chunk),
        }
    }
}

/// Whole plain parts that follow each other on the disk and in a segment's file: they are read at once, and each is verified.
#[derive(Debug, Default)]
pub(super) struct Together {
    source: u32,
    /// Where they begin in the file.
    offset: u64,
    /// Where they begin in what is read into.
    at: usize,
    length: usize,
    parts: Vec<Data>,
}

impl Together {
    /// Adds a part that stands at `offset` and is wanted at `at` of `out`; what does not go on is read first.
    pub(super) fn add(
        &mut self,
        segments: &[Arc<RwLock<Part>>],
        data: Data,
        (offset, at): (u64, usize),
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let end = (self.source, self.offset + self.length as u64, self.at + self.length);
        if end != (data.source, offset, at) {
            self.read(segments, out)?;
            (self.source, self.offset, self.at) = (data.source, offset, at);
        }
        self.length += data.whole.length as usize;
        self.parts.push(data);
        Ok(())
    }

    /// Reads what was added.
    pub(super) fn read(&mut self, segments: &[Arc<RwLock<Part>>], out: &mut [u8]) -> Result<(), ReadError> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let segment = segments[self.source as usize].read().unwrap_or_else(PoisonError::into_inner);
        let mut left = &mut out[self.at..self.at + self.length];
        let mut offset = self.offset;
        let file = segment.reader.file(segment.segment.number, segment.segment.id)?;
        file.read_exact_at(offset, left)?;
        for data in self.parts.drain(..) {
            let (own, behind) = left.split_at_mut(data.whole.length as usize);
            segment.verify(&data, crc32c::crc32c(own), offset)?;
            offset += own.len() as u64;
            left = behind;
        }
        self.length = 0;
        Ok(())
    }
}
