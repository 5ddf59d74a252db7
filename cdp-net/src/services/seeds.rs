//! Pieces of first copies as a link carries them: each seed is a frame of one record.

use bytes::Bytes;
use cdp_core::frame::{Compression, EncodedFrame, Encoder, FrameError, FrameHead, Part, Payload, RawFrame, RecordKind};
use cdp_core::types::{ClockEpoch, DiskId, Extent, FRAME_PLAIN_MAX, GroupId, Lsn, Timeline, WallTime};

/// Bytes of a disk in one seed, at most.
pub(super) const SEED_BYTES: u64 = FRAME_PLAIN_MAX;

/// What a seed brings.
pub(super) enum Piece {
    /// Bytes, as they were when the order had reached the LSN, in the pieces that were sent.
    Data(Vec<Bytes>),
    /// So many zeros.
    Zeros(u64),
}

/// A seed that was read.
pub(super) struct Seed {
    pub(super) disk: DiskId,
    /// Where on the disk it belongs.
    pub(super) offset: u64,
    pub(super) lsn: Lsn,
    pub(super) piece: Piece,
}

/// Whose first copy.
#[derive(Clone, Copy)]
pub(super) struct Home {
    pub(super) group: GroupId,
    pub(super) timeline: Timeline,
    pub(super) disk: DiskId,
}

/// Bytes at `offset`, at most [`SEED_BYTES`] and in whole sectors. `None` for any other.
pub(super) fn of_data(encoder: &mut Encoder, home: Home, offset: u64, data: Bytes, lsn: Lsn) -> Option<EncodedFrame> {
    let payload = Payload::new(offset, data).ok()?;
    let parts = payload.into_parts(RecordKind::Repair, home.disk, placed(lsn), WallTime(0)).collect();
    Some(encode(encoder, home, parts))
}

/// Zeros at `offset`.
pub(super) fn of_zeros(encoder: &mut Encoder, home: Home, offset: u64, length: u64, lsn: Lsn) -> EncodedFrame {
    let part = Part::plain(RecordKind::Zero, Some(home.disk), Extent::new(offset, length), placed(lsn), WallTime(0));
    encode(encoder, home, vec![part])
}

/// A frame has no LSN 0. The first record of a group begins its timeline and touches no disk: who has nothing has that too.
fn placed(lsn: Lsn) -> Lsn {
    lsn.max(Lsn(1))
}

fn encode(encoder: &mut Encoder, home: Home, parts: Vec<Part>) -> EncodedFrame {
    let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
    let (timeline, prev_lsn, settled, epoch) = (home.timeline, Lsn::ZERO, Lsn::ZERO, ClockEpoch(1));
    let raw = RawFrame { timeline, prev_lsn, settled, epoch, parts, plain_bytes };
    encoder.encode(raw, home.group, Compression::None)
}

/// Reads a seed of a timeline; everything is verified. `None`: it is a frame, and not one of a first copy there. Another timeline's filter
/// has another disk in mind, or the same as it no longer is.
pub(super) fn read(frame: &EncodedFrame, timeline: Timeline) -> Result<Option<Seed>, FrameError> {
    let raw = FrameHead::parse(&frame.head)?.unpack_pieces(&frame.body)?;
    if raw.timeline != timeline {
        return Ok(None);
    }
    let Some(first) = raw.parts.first() else { return Ok(None) };
    let (Some(disk), lsn) = (first.disk, first.lsn) else { return Ok(None) };
    let is_one = raw.parts.iter().all(|part| part.disk == Some(disk) && part.kind == first.kind && part.lsn == lsn);
    let is_one = is_one && raw.parts.windows(2).all(|pair| pair[0].extent.end() == pair[1].extent.offset);
    let piece = match first.kind {
        RecordKind::Zero if raw.parts.len() == 1 => Piece::Zeros(first.extent.length),
        RecordKind::Repair => Piece::Data(raw.parts.iter().map(|part| part.data.clone()).collect()),
        _ => return Ok(None),
    };
    Ok(is_one.then_some(Seed { disk, offset: first.extent.offset, lsn, piece }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        let (group, timeline) = (GroupId::new([1; 16]).unwrap(), Timeline::new([2; 16]).unwrap());
        Home { group, timeline, disk: DiskId::new(3).unwrap() }
    }

    #[test]
    fn what_is_sent_is_read() {
        let bytes: Bytes = (0..SEED_BYTES).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
        let encoder = &mut Encoder::new();
        let read = |frame| read(&frame, home().timeline).unwrap();
        let seed = read(of_data(encoder, home(), 1 << 40, bytes.clone(), Lsn(0)).unwrap()).unwrap();
        assert_eq!((seed.disk, seed.offset, seed.lsn), (home().disk, 1 << 40, Lsn(1)));
        assert!(matches!(seed.piece, Piece::Data(data) if data.concat() == bytes));
        let seed = read(of_zeros(encoder, home(), 4096, 3 << 40, Lsn(9))).unwrap();
        assert!(matches!((seed.lsn, seed.piece), (Lsn(9), Piece::Zeros(length)) if length == 3 << 40));
        assert!(of_data(encoder, home(), 1, bytes, Lsn(0)).is_none(), "not in whole sectors");
    }
}
