//! A source of frames, and what records make of a disk.

use super::super::*;
use crate::frame::{Compression, Encoder, Mark, Note, Part, Payload, RawFrame, RecordKind, ResyncReason};
use crate::types::{ClockEpoch, DiskId, Extent, FRAME_PLAIN_MAX, WallTime};
use bytes::Bytes;

/// Bytes of the disk.
pub(super) const DISK: usize = 8 << 20;

pub(super) fn group() -> GroupId {
    GroupId::new([1; 16]).unwrap()
}

pub(super) fn timeline() -> Timeline {
    Timeline::new([2; 16]).unwrap()
}

fn disk() -> DiskId {
    DiskId::new(1).unwrap()
}

/// Makes records and frames as a filter does.
pub(super) struct Source {
    pub(super) lsn: Lsn,
    prev: Lsn,
    whole: Lsn,
    pub(super) epoch: ClockEpoch,
    open: Vec<Part>,
    plain: u64,
    /// Frames that closed because they were full.
    full: Vec<EncodedFrame>,
    encoder: Encoder,
}

impl Source {
    pub(super) fn new() -> Self {
        Self {
            lsn: Lsn::ZERO,
            prev: Lsn::ZERO,
            whole: Lsn::ZERO,
            epoch: ClockEpoch(1),
            open: Vec::new(),
            plain: 0,
            full: Vec::new(),
            encoder: Encoder::new(),
        }
    }

    fn time(&self) -> WallTime {
        WallTime(1_000_000 + self.lsn.0 * 1000)
    }

    fn push(&mut self, part: Part) {
        if self.plain + part.data.len() as u64 > FRAME_PLAIN_MAX {
            let full = self.close();
            self.full.push(full);
        }
        self.whole = if part.is_last() { part.lsn } else { self.whole };
        self.plain += part.data.len() as u64;
        self.open.push(part);
    }

    fn next(&mut self) -> (Lsn, WallTime) {
        self.lsn = self.lsn.next();
        (self.lsn, self.time())
    }

    pub(super) fn write(&mut self, offset: u64, data: Vec<u8>) {
        let payload = Payload::new(offset, Bytes::from(data)).unwrap();
        let (lsn, time) = self.next();
        payload.into_parts(RecordKind::Write, disk(), lsn, time).for_each(|part| self.push(part));
    }

    pub(super) fn zero(&mut self, kind: RecordKind, extent: Extent) {
        let (lsn, time) = self.next();
        self.push(Part::plain(kind, Some(disk()), extent, lsn, time));
    }

    pub(super) fn barrier(&mut self) {
        let (lsn, time) = self.next();
        self.push(Part::plain(RecordKind::Barrier, Some(disk()), Extent::new(0, 0), lsn, time));
    }

    pub(super) fn plain(&mut self, kind: RecordKind) {
        let (lsn, time) = self.next();
        self.push(Part::plain(kind, None, Extent::new(0, 0), lsn, time));
    }

    pub(super) fn note(&mut self, kind: RecordKind, of: Option<DiskId>, note: Note) {
        let (lsn, time) = self.next();
        self.push(Part::noted(kind, of, lsn, time, note));
    }

    pub(super) fn mark(&mut self) {
        self.note(RecordKind::Mark, None, Note::Mark(Mark::default()));
    }

    pub(super) fn begin_period(&mut self) {
        let from = self.lsn.next();
        self.note(RecordKind::PeriodBegin, None, Note::PeriodBegin { from });
    }

    pub(super) fn resync_begin(&mut self) {
        let from = self.lsn.next();
        self.note(RecordKind::ResyncBegin, None, Note::ResyncBegin { from, reason: ResyncReason::WriteFailed });
    }

    /// The size of the disk changes to what it was: nothing is coalesced over it.
    pub(super) fn resize(&mut self) {
        self.note(RecordKind::Resize, Some(disk()), Note::Resize { from: DISK as u64, to: DISK as u64 });
    }

    pub(super) fn step_clock(&mut self) -> Option<EncodedFrame> {
        let closed = (!self.open.is_empty()).then(|| self.close());
        self.epoch = ClockEpoch(self.epoch.0 + 1);
        self.note(RecordKind::Time, None, Note::Time { mono: MonoTime(1) });
        closed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Frames that became full since the last call.
    pub(super) fn take_full(&mut self) -> Vec<EncodedFrame> {
        std::mem::take(&mut self.full)
    }

    /// What was recorded since the last frame, as one.
    pub(super) fn close(&mut self) -> EncodedFrame {
        let raw = RawFrame {
            timeline: timeline(),
            prev_lsn: self.prev,
            settled: self.whole,
            epoch: self.epoch,
            parts: std::mem::take(&mut self.open),
            plain_bytes: std::mem::take(&mut self.plain),
        };
        self.prev = raw.last_lsn();
        self.encoder.encode(raw, group(), Compression::None)
    }
}

/// Does all there is to do, the last first, and gives what comes out.
pub(super) fn run_all(prepare: &mut Prepare, now: MonoTime) -> Vec<EncodedFrame> {
    let mut encoder = Encoder::new();
    let mut works: Vec<_> = std::iter::from_fn(|| prepare.poll(now)).collect();
    while let Some(work) = works.pop() {
        prepare.done(work.run(&mut encoder)).unwrap();
    }
    std::iter::from_fn(|| prepare.next()).collect()
}

/// What one preparation makes of frames.
pub(super) fn prepared(options: Options, frames: &[EncodedFrame]) -> Vec<EncodedFrame> {
    let mut prepare = Prepare::new(options);
    frames.iter().for_each(|frame| prepare.push(MonoTime(1), frame.clone()).unwrap());
    prepare.flush();
    let out = run_all(&mut prepare, MonoTime(1));
    assert!(prepare.is_empty());
    out
}

pub(super) fn unpacked(frame: &EncodedFrame) -> RawFrame {
    FrameHead::parse(&frame.head).unwrap().unpack(&frame.body.concat().into()).unwrap()
}

/// All parts of frames in their order; each verified.
pub(super) fn raw_parts(frames: &[EncodedFrame]) -> Vec<Part> {
    frames.iter().flat_map(|frame| unpacked(frame).parts).collect()
}

/// Applies a part to a disk.
pub(super) fn apply(disk: &mut [u8], part: &Part) {
    if part.kind.changes_disk() {
        let range = part.extent.offset as usize..part.extent.end() as usize;
        match part.data.is_empty() {
            true => disk[range].fill(0),
            false => disk[range].copy_from_slice(&part.data),
        }
    }
}

/// The disk after all of them.
pub(super) fn image(parts: &[Part]) -> Vec<u8> {
    let mut disk = vec![0xee; DISK];
    parts.iter().for_each(|part| apply(&mut disk, part));
    disk
}
