//! The rest of a frame of which the first parts are there already.

use super::decode::{FrameError, FrameHead};
use super::encode::{Compression, EncodedFrame, Encoder};
use super::record::RawFrame;
use crate::types::Position;

impl RawFrame {
    /// The frame without what lies before `position`; `None` if nothing is left. Of a frame that begins there or later, all is.
    #[must_use]
    pub fn after(mut self, position: Position) -> Option<Self> {
        let first =
            self.parts.iter().position(|part| Position { lsn: part.lsn, parts: part.index.into() } >= position)?;
        self.prev_lsn = match self.parts[first].index {
            // What lies between was left out by whoever coalesced: the rest continues the position all the same.
            0 if position.parts == Position::WHOLE => self.prev_lsn.max(position.lsn),
            0 => self.prev_lsn,
            _ => self.parts[first].lsn,
        };
        self.parts.drain(..first);
        self.plain_bytes = self.parts.iter().map(|part| part.data.len() as u64).sum();
        Some(self)
    }
}

impl EncodedFrame {
    /// The frame without what lies before `position`; `None` if nothing is left. It is unpacked, verified and packed again without
    /// compression: for what is rare, the first frame after a cut.
    ///
    /// # Errors
    /// Whatever does not verify.
    pub fn after(&self, position: Position) -> Result<Option<Self>, FrameError> {
        if self.info.end() <= position {
            return Ok(None);
        }
        let raw = FrameHead::parse(&self.head)?.unpack_pieces(&self.body)?;
        let rest = raw.after(position);
        Ok(rest.map(|rest| Encoder::new().encode(rest, self.info.group, Compression::None)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Part, Payload, RecordKind};
    use super::*;
    use crate::types::{ClockEpoch, DiskId, Extent, GroupId, Lsn, PART_MAX, Timeline, WallTime};
    use bytes::Bytes;

    fn frame() -> EncodedFrame {
        let disk = DiskId::new(1).unwrap();
        let mut parts = Vec::new();
        for (lsn, count) in [(10, 1), (12, 3), (15, 2)] {
            let data = Bytes::from(vec![lsn as u8; count * PART_MAX as usize]);
            let payload = Payload::new(0, data).unwrap();
            parts.extend(payload.into_parts(RecordKind::Write, disk, Lsn(lsn), WallTime(lsn)));
        }
        parts.push(Part::plain(RecordKind::Barrier, None, Extent::new(0, 0), Lsn(16), WallTime(16)));
        let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
        let timeline = Timeline::new([2; 16]).unwrap();
        let raw = RawFrame { timeline, prev_lsn: Lsn(9), settled: Lsn(9), epoch: ClockEpoch(1), parts, plain_bytes };
        Encoder::new().encode(raw, GroupId::new([1; 16]).unwrap(), Compression::Zstd(1))
    }

    fn unpacked(frame: &EncodedFrame) -> RawFrame {
        FrameHead::parse(&frame.head).unwrap().unpack(&frame.body.concat().into()).unwrap()
    }

    /// At every place of a frame: the rest continues it, ends where the whole ends, and holds the same parts.
    #[test]
    fn the_rest_of_a_frame_continues_where_it_was_cut() {
        let whole = frame();
        let parts = unpacked(&whole).parts;
        for first in 1..parts.len() {
            let before = &parts[first - 1];
            let parts_before = if before.is_last() { Position::WHOLE } else { u32::from(before.index) + 1 };
            let position = Position { lsn: before.lsn, parts: parts_before };
            let rest = whole.after(position).unwrap().unwrap();
            assert_eq!(rest.info.begin(), position);
            assert_eq!(rest.info.end(), whole.info.end());
            assert_eq!(unpacked(&rest).parts, parts[first..]);
            assert_eq!(FrameHead::parse(&rest.head).unwrap().info, rest.info);
        }
        assert!(whole.after(whole.info.end()).unwrap().is_none());
        assert_eq!(whole.after(whole.info.begin()).unwrap().unwrap().info.begin(), whole.info.begin());
    }

    /// Another proxy left other records out: no part of the frame is where the far side's last one is.
    #[test]
    fn the_rest_continues_a_position_at_which_the_frame_has_no_record() {
        let whole = frame();
        for (lsn, first) in [(9, 10), (11, 12), (13, 15), (14, 15)] {
            let rest = whole.after(Position::whole(Lsn(lsn))).unwrap().unwrap();
            assert_eq!((rest.info.begin(), rest.info.first_lsn), (Position::whole(Lsn(lsn)), Lsn(first)));
            assert_eq!(rest.info.end(), whole.info.end());
        }
        // Of a record of which a part is there the next one has to come.
        let rest = whole.after(Position { lsn: Lsn(11), parts: 1 }).unwrap().unwrap();
        assert_ne!(rest.info.begin(), Position { lsn: Lsn(11), parts: 1 });
    }

    #[test]
    fn a_damaged_frame_is_not_cut() {
        let mut damaged = frame();
        let mut bytes = damaged.body.concat();
        bytes[3] ^= 1;
        damaged.body = vec![bytes.into()];
        let found = damaged.after(Position::whole(Lsn(12))).unwrap_err();
        assert!(matches!(found, FrameError::ChunkChecksum { chunk: 1, .. }), "{found}");
    }
}
