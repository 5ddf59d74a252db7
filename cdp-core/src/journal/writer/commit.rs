//! Group commit: which frames are written, which are synced, when to sync, and what is durable.

use super::segments::Segment;
use super::{Effect, IndexRun, Purpose, Writer};
use crate::types::{DurableLsn, Lsn, MonoTime};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A frame that is not durable yet.
#[derive(Debug)]
struct Frame {
    segment: u64,
    /// The last LSN that is whole with it.
    whole: Lsn,
    settled: Lsn,
    bytes: u64,
    appended: MonoTime,
    /// Its write, until that is through: where there is no room it is issued again.
    write: Option<Effect>,
    /// Its index, until it is written and shown.
    run: Option<Arc<IndexRun>>,
    written: bool,
    synced: bool,
}

/// Frames from append to durability, in order. Sequence numbers run from 1 through the writer's life.
#[derive(Debug)]
pub(super) struct Commit {
    frames: VecDeque<Frame>,
    /// Sequence of the first of `frames`.
    first: u64,
    /// All up to here are written.
    shown: u64,
    /// Somebody waits for this one.
    wanted: u64,
    in_flight_bytes: u64,
    unsynced_bytes: u64,
    /// By segment: a sync that is under way.
    syncing: BTreeMap<u64, u64>,
    /// Frames whose write found no room, and those of them that are to be written again when it is time.
    starved: BTreeSet<u64>,
    parked: BTreeSet<u64>,
    retry_at: Option<MonoTime>,
    durable: DurableLsn,
    written: Lsn,
    settled: Lsn,
}

impl Commit {
    pub(super) fn new(durable: DurableLsn) -> Self {
        Self {
            frames: VecDeque::new(),
            first: 1,
            shown: 0,
            wanted: 0,
            in_flight_bytes: 0,
            unsynced_bytes: 0,
            syncing: BTreeMap::new(),
            starved: BTreeSet::new(),
            parked: BTreeSet::new(),
            retry_at: None,
            durable,
            written: durable.lsn(),
            settled: Lsn::ZERO,
        }
    }

    pub(super) fn durable(&self) -> DurableLsn {
        self.durable
    }
    pub(super) fn written(&self) -> Lsn {
        self.written
    }
    pub(super) fn settled(&self) -> Lsn {
        self.settled
    }
    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }
    pub(super) fn request(&mut self) {
        self.wanted = self.last();
    }

    fn last(&self) -> u64 {
        self.first + self.frames.len() as u64 - 1
    }

    pub(super) fn add(
        &mut self,
        now: MonoTime,
        segment: u64,
        whole: Lsn,
        settled: Lsn,
        write: Effect,
        run: Arc<IndexRun>,
    ) -> u64 {
        let bytes = write.bytes();
        self.in_flight_bytes += bytes;
        self.frames.push_back(Frame {
            segment,
            whole,
            settled,
            bytes,
            appended: now,
            write: Some(write),
            run: Some(run),
            written: false,
            synced: false,
        });
        self.last()
    }

    /// The write of a frame found no room: the same bytes go to the same place when there is some. Nothing was synced that
    /// could have been dropped, and nothing behind it is shown before it is there.
    pub(super) fn park(&mut self, sequence: u64, until: MonoTime) {
        self.starved.insert(sequence);
        self.parked.insert(sequence);
        self.retry_at = Some(until);
    }

    /// Whether a frame that was taken finds no room.
    pub(super) fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// When to write those again that found no room.
    pub(super) fn retry_at(&self) -> Option<MonoTime> {
        self.retry_at
    }

    /// The writes to be issued again now.
    fn unpark(&mut self, now: MonoTime) -> Vec<(u64, Effect)> {
        if self.retry_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.retry_at = None;
        let write = |sequence: u64| self.frames.get((sequence - self.first) as usize)?.write.clone();
        std::mem::take(&mut self.parked).into_iter().filter_map(|at| Some((at, write(at)?))).collect()
    }

    /// A frame is written: gives those that can be shown now, in order, with their segments.
    pub(super) fn written_frame(&mut self, sequence: u64) -> Vec<(u64, Arc<IndexRun>)> {
        let at = (sequence - self.first) as usize;
        let Some(frame) = self.frames.get_mut(at) else { return Vec::new() };
        frame.written = true;
        frame.write = None;
        self.starved.remove(&sequence);
        self.in_flight_bytes -= frame.bytes;
        self.unsynced_bytes += frame.bytes;
        let mut shown = Vec::new();
        while let Some(frame) =
            self.frames.get_mut((self.shown + 1 - self.first) as usize).filter(|frame| frame.written)
        {
            self.shown += 1;
            self.written = frame.whole;
            self.settled = frame.settled;
            shown.extend(frame.run.take().map(|run| (frame.segment, run)));
        }
        shown
    }

    /// A sync of a segment's file is through that was issued when all frames up to `covers` were written.
    pub(super) fn synced(&mut self, segment: u64, covers: u64) {
        self.syncing.remove(&segment);
        for (sequence, frame) in (self.first..).zip(&mut self.frames) {
            if sequence > covers {
                break;
            }
            if frame.segment == segment && !frame.synced {
                frame.synced = true;
                self.unsynced_bytes -= frame.bytes;
            }
        }
        while let Some(frame) = self.frames.front().filter(|frame| frame.synced) {
            self.durable = DurableLsn::mint(frame.whole);
            self.frames.pop_front();
            self.first += 1;
        }
    }

    /// Whether every frame of a segment is written.
    pub(super) fn all_written(&self, segment: u64) -> bool {
        self.frames.iter().all(|frame| frame.segment != segment || frame.written)
    }

    /// Whether a sync of this segment is under way.
    pub(super) fn is_syncing(&self, segment: u64) -> bool {
        self.syncing.contains_key(&segment)
    }

    /// The last frame that a sync of this segment would cover now; every frame before it is written.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    /// When a sync of the segment is due by time. Frames that are not written yet, and segments that are being sealed,
    /// wait for completions, not for time.
    pub(super) fn deadline(&self, segment: u64, commit_ns: u64) -> Option<MonoTime> {
        if self.is_syncing(segment) {
            return None;
        }
        let first = self.shown_frames().find(|frame| frame.segment == segment && !frame.synced)?;
        Some(first.appended.after(commit_ns))
    }

    fn shown_frames(&self) -> impl Iterator<Item = &Frame> {
        let shown = (self.shown + 1).saturating_sub(self.first) as usize;
        self.frames.iter().take(shown)
    }

    /// Whether the active segment is to be synced now.
    fn is_due(&self, segment: u64, now: MonoTime, commit_bytes: u64, commit_ns: u64) -> bool {
        let shown = self.shown >= self.first && !self.is_syncing(segment);
        let by_wish = self.wanted >= self.first && self.shown >= self.wanted;
        let by_bytes = self.unsynced_bytes >= commit_bytes;
        let deadline = || self.deadline(segment, commit_ns);
        shown && deadline().is_some_and(|deadline| by_wish || by_bytes || deadline <= now)
    }
}

impl Writer {
    /// Syncs the active segment when it is time. Those being sealed are synced by that.
    pub(super) fn advance_commit(&mut self, now: MonoTime) {
        for (sequence, write) in self.commit.unpark(now) {
            self.issue(write, Purpose::Frame(sequence));
        }
        let Some(Segment { number, file, .. }) = self.active else { return };
        if self.commit.is_due(number, now, self.options.commit_bytes, self.options.commit_ns) {
            let covers = self.commit.shown;
            self.commit.syncing.insert(number, covers);
            self.issue(Effect::Sync { file }, Purpose::CommitSync { segment: number, covers });
        }
    }
}
