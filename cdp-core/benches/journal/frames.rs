//! Frames as a filter and an encoder make them.

use bytes::Bytes;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, Mark, Note, Part, Payload, RawFrame, RecordKind};
use cdp_core::types::*;

/// Records of a frame of 4 KiB writes.
pub(crate) const RECORDS: usize = 64;
/// Bytes of a small write.
pub(crate) const WRITE: u64 = 4096;

pub(crate) fn group() -> GroupId {
    GroupId::new([7; 16]).expect("not 0")
}

pub(crate) fn timeline() -> Timeline {
    Timeline::new([1; 16]).expect("not 0")
}

pub(crate) fn disk() -> DiskId {
    DiskId::new(1).expect("not 0")
}

/// A small, good enough and repeatable source of numbers.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Bytes that do not compress.
pub(crate) fn noise(length: u64) -> Bytes {
    let mut dice = Dice(5);
    (0..length / 8).flat_map(|_| dice.next().to_le_bytes()).collect::<Vec<_>>().into()
}

/// Bytes of real programs: this one and the libraries around it, again and again.
pub(crate) fn real(length: u64) -> Result<Bytes, crate::Failure> {
    let program = std::fs::read(std::env::current_exe()?)?;
    Ok(program.iter().copied().cycle().take(length as usize).collect::<Vec<_>>().into())
}

/// Gives records their places and packs them.
pub(crate) struct Frames {
    encoder: Encoder,
    compression: Compression,
    pub(crate) lsn: Lsn,
    prev: Lsn,
    time: u64,
}

impl Frames {
    pub(crate) fn new(compression: Compression) -> Self {
        Self { encoder: Encoder::new(), compression, lsn: Lsn(0), prev: Lsn(0), time: 1_700_000_000_000_000_000 }
    }

    /// A payload that was copied and checksummed at capture.
    pub(crate) fn payload(offset: u64, data: Bytes) -> Result<Payload, crate::Failure> {
        Ok(Payload::new(offset, data)?)
    }

    /// A frame of writes; their checksums are there already.
    pub(crate) fn writes(&mut self, payloads: impl IntoIterator<Item = Payload>) -> EncodedFrame {
        let mut parts = Vec::with_capacity(RECORDS);
        for payload in payloads {
            let (lsn, time) = self.stamp();
            parts.extend(payload.into_parts(RecordKind::Write, disk(), lsn, time));
        }
        self.frame(parts)
    }

    /// A frame of writes of the same bytes to other places.
    pub(crate) fn copies(&mut self, of: &Part, offsets: impl IntoIterator<Item = u64>) -> EncodedFrame {
        let mut parts = Vec::with_capacity(RECORDS);
        for offset in offsets {
            let (lsn, time) = self.stamp();
            parts.push(Part { lsn, time, extent: Extent::new(offset, of.extent.length), ..of.clone() });
        }
        self.frame(parts)
    }

    /// A frame of writes of the same bytes to other places, and a mark after them; gives the mark's LSN too.
    pub(crate) fn point(
        &mut self,
        of: &Part,
        offsets: impl IntoIterator<Item = u64>,
        mark: Mark,
    ) -> (EncodedFrame, Lsn) {
        let mut parts = Vec::with_capacity(RECORDS);
        for offset in offsets {
            let (lsn, time) = self.stamp();
            parts.push(Part { lsn, time, extent: Extent::new(offset, of.extent.length), ..of.clone() });
        }
        let (lsn, time) = self.stamp();
        parts.push(Part::noted(RecordKind::Mark, None, lsn, time, Note::Mark(mark)));
        (self.frame(parts), lsn)
    }

    /// Nothing is written for so long.
    pub(crate) fn rest(&mut self, ns: u64) {
        self.time += ns;
    }

    /// When the last record was.
    pub(crate) fn time(&self) -> WallTime {
        WallTime(self.time)
    }

    fn stamp(&mut self) -> (Lsn, WallTime) {
        self.lsn = self.lsn.next();
        self.time += 10_000;
        (self.lsn, WallTime(self.time))
    }

    fn frame(&mut self, parts: Vec<Part>) -> EncodedFrame {
        let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
        let (prev_lsn, epoch) = (self.prev, ClockEpoch(1));
        self.prev = self.lsn;
        let raw = RawFrame { timeline: timeline(), prev_lsn, settled: self.lsn, epoch, parts, plain_bytes };
        self.encoder.encode(raw, group(), self.compression)
    }
}
