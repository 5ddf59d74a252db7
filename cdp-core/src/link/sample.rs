//! Frames for tests of the machines.

use super::message::{Features, Welcome};
use crate::frame::{Compression, EncodedFrame, Encoder, Part, RawFrame, RecordKind};
use crate::types::{ClockEpoch, DiskId, Extent, GroupId, Lsn, Timeline, WallTime};
use bytes::Bytes;

pub(super) fn group() -> GroupId {
    GroupId::new([7; 16]).unwrap()
}

pub(super) fn timeline() -> Timeline {
    Timeline::new([1; 16]).unwrap()
}

/// A frame with one write of one part of so many bytes at each of these LSNs, after `prev`.
pub(super) fn frame(prev: u64, lsns: impl IntoIterator<Item = u64>, bytes: usize) -> EncodedFrame {
    parts(prev, lsns.into_iter().map(|lsn| (lsn, 0, 1)), bytes)
}

/// A frame with these parts: LSN, index, count.
pub(super) fn parts(prev: u64, parts: impl IntoIterator<Item = (u64, u16, u16)>, bytes: usize) -> EncodedFrame {
    let part = |(lsn, index, count)| {
        let data = Bytes::from(vec![lsn as u8; bytes]);
        let extent = Extent::new(0, data.len() as u64);
        let part = Part::plain(RecordKind::Write, DiskId::new(1), extent, Lsn(lsn), WallTime(lsn));
        Part { index, count, crc: crc32c::crc32c(&data), data, ..part }
    };
    let parts: Vec<Part> = parts.into_iter().map(part).collect();
    let plain_bytes = (parts.len() * bytes) as u64;
    let (timeline, prev_lsn, settled) = (timeline(), Lsn(prev), Lsn::ZERO);
    let raw = RawFrame { timeline, prev_lsn, settled, epoch: ClockEpoch(1), parts, plain_bytes };
    Encoder::new().encode(raw, group(), Compression::None)
}

/// A welcome that grants a mebibyte and nothing else, to a source end of whose timeline nothing is there.
pub(super) fn welcome() -> Welcome {
    Welcome {
        version: super::message::VERSION,
        connections: 0,
        data_key: None,
        features: Features::ALL,
        credit: 1 << 20,
        have: None,
        durable: Lsn::ZERO,
        lost: None,
        silence_ms: 3_000,
    }
}
