//! A segment's life: prepared ahead of need, opened by its first frame, filled, sealed in the background.

use super::{Effect, IndexRun, Options, Purpose, Writer};
use crate::frame::{EncodedFrame, FrameError, FrameHead};
use crate::journal::effect::FileId;
use crate::journal::event::{self, Event};
use crate::journal::footer;
use crate::journal::index::{ActiveIndex, LSN_SPAN, Place};
use crate::journal::layout::{ENVELOPE_BYTES, Envelope, FRAMES_AT, OPENING_AT, Opening, SegmentHeader, stride};
use crate::journal::manifest::{Generation, SegmentInfo, SegmentState, segment_name};
use crate::journal::snapshot::SegmentView;
use crate::media;
use crate::mistakes::{self, Mistake};
use crate::trust::{FileKey, TAG_BYTES};
use crate::types::{ClockEpoch, GroupId, Lsn, MonoTime, SECTOR, SegmentId, Timeline};
use bytes::Bytes;
use std::sync::Arc;

/// What frames are padded with.
static ZEROS: [u8; FRAMES_AT as usize] = [0; FRAMES_AT as usize];

/// A segment that frames go to.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) id: SegmentId,
    pub(super) file: FileId,
    /// The generation of the replica key that it is sealed by at rest, and its own keys; 0 and none: it is not.
    pub(super) key: u32,
    file_key: Option<Arc<FileKey>>,
    pub(super) timeline: Option<Timeline>,
    /// The last LSN before this segment.
    pub(super) prev_lsn: Lsn,
    first_lsn: Option<Lsn>,
    whole: Lsn,
    offset: u64,
    frames: u32,
    chunks: u32,
    entries: u64,
    events: u64,
    plain_bytes: u64,
    epoch: Option<ClockEpoch>,
    /// What is written of it.
    index: ActiveIndex,
}

/// What the writer knows at an append.
pub(super) struct Before {
    pub(super) group: GroupId,
    pub(super) durable: Lsn,
    pub(super) last_segment: Option<(SegmentId, u32)>,
    pub(super) lsn: Lsn,
    /// The last LSN that is whole.
    pub(super) whole: Lsn,
}

impl Segment {
    fn new(number: u64, id: SegmentId, file: FileId, key: u32, file_key: Option<FileKey>) -> Self {
        Self {
            number,
            id,
            file,
            key,
            file_key: file_key.map(Arc::new),
            timeline: None,
            prev_lsn: Lsn::ZERO,
            first_lsn: None,
            whole: Lsn::ZERO,
            offset: FRAMES_AT,
            frames: 0,
            chunks: 0,
            entries: 0,
            events: 0,
            plain_bytes: 0,
            epoch: None,
            index: ActiveIndex::default(),
        }
    }

    /// Whether frame and footer fit.
    pub(super) fn has_room(&self, head: &FrameHead, options: &Options) -> bool {
        let (records, chunks) = (head.records.len() as u64, head.chunks.len() as u64);
        let notes = if head.chunks.iter().any(|chunk| chunk.notes) { records } else { 0 };
        let (entries, chunks) = (self.entries + records, u64::from(self.chunks) + chunks);
        let footer = footer::bound(entries, chunks, u64::from(self.frames) + 1, self.events + notes);
        let head_bytes = u64::from(head.info.head_bytes);
        let tags = if self.key == 0 { 0 } else { (head.chunks.len() * TAG_BYTES) as u64 };
        let frame = stride(self.offset, head_bytes, head_bytes + u64::from(head.info.body_bytes) + tags);
        let span = head.info.last_lsn.0 - self.first_lsn.unwrap_or(head.info.first_lsn).0;
        let small = self.offset + frame + footer <= options.segment_bytes && entries <= options.segment_records;
        // An empty segment takes any frame: a file may grow past what was reserved.
        (small && span < LSN_SPAN) || self.frames == 0
    }

    pub(super) fn frame_count(&self) -> u32 {
        self.frames
    }

    /// Whether it is time for the next one: at more than a gigabyte a second three quarters of a segment last as long as the
    /// syncs take by which one is made.
    fn wants_next(&self, options: &Options) -> bool {
        self.offset >= options.segment_bytes / 4 || self.entries >= options.segment_records / 4
    }

    /// Whether a frame can be taken, and what it takes.
    pub(super) fn accept(&self, head: &FrameHead, frame: &EncodedFrame) -> Result<Accepted, FrameError> {
        // Only frames with notes are looked into, and those come every few seconds.
        let body = if head.chunks.iter().any(|chunk| chunk.notes) { frame.body.concat() } else { Vec::new() };
        let events = event::of_frame(head, &body, self.epoch != Some(frame.info.epoch))?;
        // Sealing is the last that can fail: numbers that were sealed under are taken.
        let sealed = self.file_key.as_deref().map(|key| frame.sealed(head, key, self.chunks)).transpose()?;
        Ok(Accepted { events, sealed })
    }

    /// Takes a frame that was accepted: where it is written, as what, and its index.
    pub(super) fn add(
        &mut self,
        head: &FrameHead,
        frame: EncodedFrame,
        events: Vec<Event>,
        before: Before,
    ) -> (u64, Vec<Bytes>, IndexRun) {
        let info = &frame.info;
        let run = IndexRun::of_frame(head, events, Place { offset: self.offset, first_chunk: self.chunks });
        let envelope = Envelope {
            id: self.id,
            sequence: self.frames + 1,
            first_chunk: self.chunks,
            durable: before.durable,
            frame_bytes: frame.len() as u32,
            head_bytes: info.head_bytes,
            head_crc: crc32c::crc32c(&frame.head),
        };
        let mut data = Vec::with_capacity(frame.body.len() + 6);
        let mut offset = self.offset;
        if self.frames == 0 {
            (self.prev_lsn, self.whole) = (before.lsn, before.whole);
            self.first_lsn = Some(info.first_lsn);
            let (id, prev_lsn, prev) = (self.id, before.lsn, before.last_segment);
            let (prev_segment, prev_frames) = (prev.map(|(id, _)| id), prev.map_or(0, |(_, frames)| frames));
            let (group, timeline, durable) = (before.group, info.timeline, before.durable);
            let opening = Opening { id, group, timeline, prev_lsn, prev_segment, prev_frames, durable }.encode();
            let gap = (FRAMES_AT - OPENING_AT) as usize - opening.len();
            data.push(opening.into());
            data.push(Bytes::from_static(&ZEROS[..gap]));
            offset = OPENING_AT;
        }
        let (body_at, stride) = (envelope.body_at(self.offset), envelope.stride(self.offset));
        let zeros = |bytes: u64| (bytes > 0).then(|| Bytes::from_static(&ZEROS[..bytes as usize]));
        data.push(envelope.encode().into());
        data.push(frame.head);
        data.extend(zeros(body_at - ENVELOPE_BYTES as u64 - u64::from(info.head_bytes)));
        data.extend(frame.body);
        data.extend(zeros(stride - body_at - u64::from(info.body_bytes)));
        self.offset += stride;
        self.frames += 1;
        self.chunks += head.chunks.len() as u32;
        self.entries += (run.narrow.len() + run.wide.len()) as u64;
        self.events += run.events.len() as u64;
        self.plain_bytes += u64::from(info.plain_bytes);
        self.epoch = Some(info.epoch);
        if let Some(record) = head.records.iter().rev().find(|record| record.index + 1 == record.count) {
            self.whole = record.lsn;
        }
        (offset, data, run)
    }

    /// A frame is written: readers may see it.
    pub(super) fn publish(&mut self, run: Arc<IndexRun>) {
        self.index.push(run);
    }

    /// As readers see it now; none while it is empty.
    pub(super) fn view(&self) -> Option<SegmentView> {
        let runs = self.index.runs();
        let timeline = self.timeline.filter(|_| !runs.is_empty())?;
        Some(SegmentView::active((self.number, self.id, self.key), timeline, self.prev_lsn, runs))
    }
}

/// What was found out about a frame that is going to be taken.
pub(super) struct Accepted {
    pub(super) events: Vec<Event>,
    /// What stands for it in a segment that is sealed at rest.
    pub(super) sealed: Option<(FrameHead, EncodedFrame)>,
}

/// How far the next segment is.
#[derive(Debug)]
pub(super) enum Prepare {
    /// Nothing under way.
    None,
    /// There was no room.
    Waiting(MonoTime),
    Creating(Segment),
    Writing(Segment),
    Syncing(Segment),
    SyncingDirectory(Segment),
    /// Everything is durable but the manifest that names it.
    Naming(Segment, Generation),
}

impl Prepare {
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }
    /// The file that is being made; nothing names it yet.
    fn unnamed(&self) -> Option<FileId> {
        match self {
            Self::Creating(segment)
            | Self::Writing(segment)
            | Self::Syncing(segment)
            | Self::SyncingDirectory(segment) => Some(segment.file),
            Self::None | Self::Waiting(_) | Self::Naming(..) => None,
        }
    }
    pub(super) fn deadline(&self) -> Option<MonoTime> {
        match self {
            Self::Waiting(deadline) => Some(*deadline),
            _ => None,
        }
    }
}

/// How far sealing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SealStep {
    Filling,
    Writing,
    Cutting,
    Syncing,
    Closing,
}

/// A segment that gets its footer.
#[derive(Debug)]
pub(super) struct Sealing {
    segment: Segment,
    step: SealStep,
    summary: Option<crate::journal::layout::Summary>,
    covers: u64,
    /// There was no room for the footer: it is written again at this time.
    retry_at: Option<MonoTime>,
}

impl Sealing {
    /// When to go on, where there was no room.
    pub(super) fn retry_at(&self) -> Option<MonoTime> {
        self.retry_at
    }
    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }
    pub(super) fn segment_mut(&mut self) -> &mut Segment {
        &mut self.segment
    }
}

impl Writer {
    /// Closes the active segment; it is sealed in the background and the next frame opens another.
    pub fn roll(&mut self) {
        if let Some(segment) = self.active.take() {
            let step = SealStep::Filling;
            self.sealing.push_back(Sealing { segment, step, summary: None, covers: 0, retry_at: None });
        }
    }

    /// Makes the prepared segment the active one, if there is one whose name is durable.
    pub(super) fn activate(&mut self, timeline: Timeline) -> bool {
        let Prepare::Naming(segment, generation) = &self.prepare else { return false };
        if *generation > self.manifest_durable() || segment.key != self.key {
            return false;
        }
        let Prepare::Naming(mut segment, _) = std::mem::replace(&mut self.prepare, Prepare::None) else { return false };
        segment.timeline = Some(timeline);
        if let Some(info) = self.manifest.segment_mut(segment.number) {
            info.state = SegmentState::Active;
        }
        self.active = Some(segment);
        true
    }

    pub(super) fn advance_segments(&mut self, now: MonoTime) {
        self.advance_prepare(now);
        // One after another: sealed segments come before all others, which recovery relies on.
        while let Some(first) = self.sealing.front() {
            let waits = first.retry_at.is_some_and(|at| at > now);
            // Media report a write that was lost to one sync of the file only: were two under way, the other would call it durable.
            let (number, step) = (first.segment.number, first.step);
            let ready = self.commit.all_written(number) && !self.commit.is_syncing(number);
            if waits || step != SealStep::Filling || !ready {
                break;
            }
            self.write_footer();
        }
    }

    fn advance_prepare(&mut self, now: MonoTime) {
        let wanted = match &self.prepare {
            Prepare::None => self.active.as_ref().is_none_or(|segment| segment.wants_next(&self.options)),
            Prepare::Waiting(deadline) => *deadline <= now,
            Prepare::Naming(segment, _) if self.closing || segment.key != self.key => {
                let Prepare::Naming(segment, _) = std::mem::replace(&mut self.prepare, Prepare::None) else { return };
                self.drop_prepared(&segment);
                return;
            }
            _ => return,
        };
        if self.closing {
            self.prepare = Prepare::None;
        } else if wanted && self.timeline.is_some() {
            if self.manifest.segments.len() < self.options.segments_max {
                self.create_next();
            } else {
                // A manifest with more is one that nobody reads.
                self.prepare = Prepare::Waiting(now.after(self.options.retry_ns));
            }
        }
    }

    fn create_next(&mut self) {
        // Zero, or an id that was used before, is as good as impossible; drawing again costs nothing.
        let id = loop {
            let Some(id) = SegmentId::new((self.ids)()) else { continue };
            if self.manifest.segments.iter().all(|segment| segment.id != id) {
                break id;
            }
        };
        let (number, file) = (self.manifest.next_segment, self.new_file());
        // The number is taken in memory only: if this fails the file is not named and the number is free again.
        // A key that was taken is on the ring.
        let file_key = if self.key == 0 { None } else { self.keys.segment(self.key, id).ok() };
        self.prepare = Prepare::Creating(Segment::new(number, id, file, self.key, file_key));
        let name = media::join(&self.options.directory, &segment_name(number));
        let (preallocate, keep_free) = (self.options.segment_bytes, self.options.keep_free_bytes);
        self.issue(Effect::Create { file, name, preallocate, keep_free, replace: true }, Purpose::Prepare);
    }

    /// There was no room for the next segment: what was made of it is thrown away, and it is made anew later.
    pub(super) fn prepare_starved(&mut self, retry: MonoTime) {
        let file = self.prepare.unnamed();
        self.prepare = Prepare::Waiting(retry);
        if let Some(file) = file {
            self.issue(Effect::Close { file }, Purpose::Remove);
        }
    }

    /// There was no room for a footer. It is made again from the start, unless a sync failed: what that dropped is not known.
    pub(super) fn seal_starved(&mut self, number: u64, retry: MonoTime) -> bool {
        let found = self.sealing.iter_mut().find(|sealing| sealing.segment.number == number);
        let Some(sealing) = found.filter(|sealing| matches!(sealing.step, SealStep::Writing | SealStep::Cutting))
        else {
            return false;
        };
        (sealing.step, sealing.retry_at) = (SealStep::Filling, Some(retry));
        true
    }

    pub(super) fn prepare_completed(&mut self) {
        let (next, effect) = match std::mem::replace(&mut self.prepare, Prepare::None) {
            Prepare::Creating(segment) => {
                let Segment { id, number, key, .. } = segment;
                let header = SegmentHeader { replica: self.manifest.replica, id, number, key };
                let (file, data) = (segment.file, vec![header.encode().into()]);
                (Prepare::Writing(segment), Effect::Write { file, offset: 0, data })
            }
            Prepare::Writing(segment) => {
                let file = segment.file;
                (Prepare::Syncing(segment), Effect::Sync { file })
            }
            Prepare::Syncing(segment) => {
                (Prepare::SyncingDirectory(segment), Effect::SyncDir { name: self.options.directory.clone() })
            }
            // Made under a key that was replaced since: nothing names it, and the next file takes its place.
            Prepare::SyncingDirectory(segment) if segment.key != self.key => {
                return self.issue(Effect::Close { file: segment.file }, Purpose::Remove);
            }
            Prepare::SyncingDirectory(segment) => {
                let (number, id, key) = (segment.number, segment.id, segment.key);
                self.manifest.next_segment = number + 1;
                self.manifest.segments.push(SegmentInfo { number, id, state: SegmentState::Prepared, key });
                let generation = self.catalog.touch(&mut self.manifest);
                self.prepare = Prepare::Naming(segment, generation);
                return;
            }
            other => {
                self.prepare = other;
                return;
            }
        };
        self.prepare = next;
        self.issue(effect, Purpose::Prepare);
    }

    /// Takes a segment that was never used out of the manifest, then off the media.
    fn drop_prepared(&mut self, segment: &Segment) {
        self.manifest.segments.retain(|info| info.number != segment.number);
        let generation = self.catalog.touch(&mut self.manifest);
        self.remove_later(generation, segment.number);
        self.issue(Effect::Close { file: segment.file }, Purpose::Remove);
    }

    /// Gives the first segment to be sealed its footer; one without frames is taken away.
    fn write_footer(&mut self) {
        if self.sealing.front().is_some_and(|sealing| sealing.segment.frames == 0) {
            if let Some(sealing) = self.sealing.pop_front() {
                self.drop_prepared(&sealing.segment);
            }
            return;
        }
        let group = self.manifest.group;
        let Some(sealing) = self.sealing.front_mut() else { return };
        let segment = &sealing.segment;
        let Some(timeline) = segment.timeline else { return };
        let facts = footer::Facts {
            id: segment.id,
            group,
            timeline,
            prev_lsn: segment.prev_lsn,
            whole_lsn: segment.whole,
            frames_end: segment.offset,
            plain_bytes: segment.plain_bytes,
        };
        let (data, summary) =
            footer::encode(&IndexRun::merge(&segment.index.runs()), &facts, segment.file_key.as_deref());
        let (file, number, offset) = (segment.file, segment.number, segment.offset);
        debug_assert!(offset.is_multiple_of(SECTOR));
        sealing.step = SealStep::Writing;
        sealing.summary = Some(summary);
        sealing.retry_at = None;
        self.issue(Effect::Write { file, offset, data }, Purpose::Seal(number));
    }

    pub(super) fn seal_completed(&mut self, number: u64) {
        let Some(at) = self.sealing.iter().position(|sealing| sealing.segment.number == number) else { return };
        let shown = self.commit.shown();
        let sealing = &mut self.sealing[at];
        let Some(summary) = sealing.summary else { return };
        let file = sealing.segment.file;
        let (step, effect) = match sealing.step {
            SealStep::Writing => (SealStep::Cutting, Effect::SetLength { file, length: summary.file_bytes }),
            SealStep::Cutting => {
                sealing.covers = shown;
                let syncs = !mistakes::is(Mistake::FooterNotSynced);
                (SealStep::Syncing, if syncs { Effect::Sync { file } } else { Effect::Close { file } })
            }
            SealStep::Syncing => {
                let covers = sealing.covers;
                self.commit.synced(number, covers);
                (SealStep::Closing, Effect::Close { file })
            }
            SealStep::Filling | SealStep::Closing => {
                self.sealing.remove(at);
                self.sealed_now(number, summary);
                return;
            }
        };
        self.sealing[at].step = step;
        self.issue(effect, Purpose::Seal(number));
    }

    /// Footer and frames are durable: from here on the segment is read from its file.
    fn sealed_now(&mut self, number: u64, summary: crate::journal::layout::Summary) {
        let Some(info) = self.manifest.segment_mut(number) else { return };
        info.state = SegmentState::Sealed(summary);
        let view = SegmentView::sealed(info).map(Arc::new);
        let sealed = Arc::make_mut(&mut self.sealed);
        sealed.extend(view);
        sealed.sort_by_key(|segment| segment.number);
        self.catalog.touch(&mut self.manifest);
    }
}
