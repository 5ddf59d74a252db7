//! One window's work: unpack and verify, leave out, drop zeros, pack again. It runs on any thread.

use super::window::{Place, coalesce};
use super::{PrepareError, Stats};
use crate::frame::{
    Compression, EncodedFrame, Encoder, FrameError, FrameHead, FrameInfo, NOTES_MAX, Part, RawFrame, RecordKind,
};
use crate::types::{ClockEpoch, FRAME_PLAIN_MAX, FRAME_RECORDS_MAX, FRAME_SPAN_NS_MAX, Lsn, Position};
use bytes::Bytes;

/// How far LSNs of one frame may lie apart: the format has 32 bits for it.
const LSN_SPAN: u64 = 1 << 31;

/// A frame that is to be prepared.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) head: FrameHead,
    pub(super) frame: EncodedFrame,
}

/// Frames to prepare together.
#[derive(Clone, Debug)]
#[must_use = "what is not prepared is not sent"]
pub struct Work {
    pub(super) number: u64,
    pub(super) items: Vec<Item>,
    /// Before the first of them.
    pub(super) place: Place,
    pub(super) settled: Lsn,
    pub(super) keep: Lsn,
    pub(super) compression: Compression,
    /// The far side takes compressed chunks.
    pub(super) zstd: bool,
    /// Nothing is left out.
    pub(super) whole: bool,
}

/// What became of a [`Work`].
#[derive(Debug)]
#[must_use = "it goes back to where its work came from"]
pub struct Done {
    pub(super) number: u64,
    pub(super) frames: Result<Vec<EncodedFrame>, PrepareError>,
    pub(super) stats: Stats,
}

impl Work {
    /// Does it; may take some tens of milliseconds.
    pub fn run(self, encoder: &mut Encoder) -> Done {
        let mut stats = Stats::default();
        let number = self.number;
        let frames = self.prepare(encoder, &mut stats);
        if let Ok(frames) = &frames {
            stats.frames_out = frames.len() as u64;
            stats.bytes_out = frames.iter().map(EncodedFrame::len).sum();
        }
        Done { number, frames, stats }
    }

    fn prepare(self, encoder: &mut Encoder, stats: &mut Stats) -> Result<Vec<EncodedFrame>, PrepareError> {
        if let Some(lsn) = self.not_for_us() {
            return Err(FrameError::Field { field: "kind", value: lsn.0 }.into());
        }
        if self.passes() {
            return Ok(self.items.into_iter().map(|item| item.frame).collect());
        }
        let Some(first) = self.items.first() else { return Ok(Vec::new()) };
        let FrameInfo { timeline, group, prev_lsn, .. } = first.head.info;
        let mut parts = Vec::new();
        // Where each frame ended, what it said and of which clock epoch it was.
        let mut ends = Vec::with_capacity(self.items.len());
        for Item { head, frame } in &self.items {
            let RawFrame { parts: found, settled, epoch, .. } = head.unpack_pieces(&frame.body)?;
            parts.extend(found);
            ends.push((head.info.end(), settled, epoch));
        }
        let said = Said { ends: &ends };
        let may_coalesce = self.place.in_period || parts.iter().any(|part: &Part| part.kind == RecordKind::PeriodBegin);
        if may_coalesce && !self.whole {
            (stats.records_coalesced, stats.bytes_coalesced) = coalesce(&mut parts, self.place, self.keep);
        }
        stats.bytes_zero = parts.iter_mut().map(drop_zeros).sum();
        if stats.bytes_coalesced + stats.bytes_zero > 0 {
            self.copy_rests(&mut parts, &said);
        }
        let mut frames = Vec::new();
        let (mut rest, mut prev_lsn, mut settled) = (parts.into_iter().peekable(), prev_lsn, self.settled);
        while rest.peek().is_some() {
            let mut raw =
                RawFrame { timeline, prev_lsn, settled, epoch: ClockEpoch(1), parts: Vec::new(), plain_bytes: 0 };
            let mut notes = 0;
            while let Some(part) = rest.next_if(|part| fits(&raw, notes, part, said.of(part))) {
                raw.epoch = said.of(&part);
                notes += usize::from(part.note.is_some());
                raw.plain_bytes += part.data.len() as u64;
                raw.parts.push(part);
            }
            // What a frame said holds from where it ended on, and not before: what it knew may be in a later record of it.
            settled = settled.max(said.settled_at(&raw));
            raw.settled = settled;
            prev_lsn = raw.last_lsn();
            frames.push(encoder.encode(raw, group, self.compression));
        }
        Ok(frames)
    }

    /// Gives what is left of a frame memory of its own where that is little: the rest of what it came in does not wait with it for its way.
    fn copy_rests(&self, parts: &mut [Part], said: &Said<'_>) {
        for left in parts.chunk_by_mut(|one, next| said.frame_of(one) == said.frame_of(next)) {
            let came = self.items.get(said.frame_of(&left[0])).map_or(0, |item| item.head.info.plain_bytes);
            let bytes: usize = left.iter().map(|part| part.data.len()).sum();
            if bytes < came as usize / 2 {
                left.iter_mut().for_each(|part| part.data = Bytes::copy_from_slice(&part.data));
            }
        }
    }

    /// A record of a newer version in a frame that would have to be unpacked all the same.
    fn not_for_us(&self) -> Option<Lsn> {
        let packed =
            self.items.iter().filter(|item| !self.zstd && item.head.chunks.iter().any(|chunk| chunk.compressed));
        let mut records = packed.flat_map(|item| &item.head.records);
        records.find(|record| record.kind.is_none()).map(|record| record.lsn)
    }

    /// Whether the frames go on as they are: they are packed already, nothing can be left out, and who takes them takes them so. A frame with
    /// records that this version does not know is never unpacked.
    fn passes(&self) -> bool {
        let unknown = |item: &Item| item.head.records.iter().any(|record| record.kind.is_none());
        let packed = |item: &Item| {
            let mut data = item.head.chunks.iter().filter(|chunk| !chunk.notes).peekable();
            data.peek().is_some() && data.all(|chunk| chunk.compressed)
        };
        let alone = self.items.len() == 1 && !self.place.in_period;
        self.items.iter().any(unknown) || (self.zstd && alone && self.items.iter().all(packed))
    }
}

/// What the frames said from which the parts came.
struct Said<'a> {
    ends: &'a [(Position, Lsn, ClockEpoch)],
}

impl Said<'_> {
    /// The number of the frame that a part came in.
    fn frame_of(&self, part: &Part) -> usize {
        let at = behind(part);
        self.ends.partition_point(|(end, ..)| *end < at)
    }

    fn of(&self, part: &Part) -> ClockEpoch {
        self.ends.get(self.frame_of(part)).map_or(ClockEpoch(1), |(.., epoch)| *epoch)
    }

    fn settled_at(&self, raw: &RawFrame) -> Lsn {
        let Some(last) = raw.parts.last() else { return Lsn::ZERO };
        let at = behind(last);
        let frames = self.ends.partition_point(|(end, ..)| *end <= at);
        frames.checked_sub(1).map_or(Lsn::ZERO, |last| self.ends[last].1)
    }
}

/// The place behind a part.
fn behind(part: &Part) -> Position {
    if part.is_last() {
        return Position::whole(part.lsn);
    }
    Position { lsn: part.lsn, parts: u32::from(part.index) + 1 }
}

/// Whether a part may be the next one of a frame.
fn fits(raw: &RawFrame, notes: usize, part: &Part, epoch: ClockEpoch) -> bool {
    let Some(first) = raw.parts.first() else { return true };
    epoch == raw.epoch
        && raw.plain_bytes + part.data.len() as u64 <= FRAME_PLAIN_MAX
        && raw.parts.len() < FRAME_RECORDS_MAX
        && notes + usize::from(part.note.is_some()) <= NOTES_MAX
        && part.time.0.saturating_sub(first.time.0) <= FRAME_SPAN_NS_MAX
        && part.lsn.0 - first.lsn.0 < LSN_SPAN
}

/// Makes a part whose bytes are all zeros one that says so; its bytes were verified. Gives how many went.
fn drop_zeros(part: &mut Part) -> u64 {
    if part.data.is_empty() || !part.kind.has_data() || !is_zero(&part.data) {
        return 0;
    }
    let bytes = part.data.len() as u64;
    (part.kind, part.crc, part.data) = (RecordKind::Zero, 0, Bytes::new());
    bytes
}

/// Most data shows in its first bytes that it is not.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}
