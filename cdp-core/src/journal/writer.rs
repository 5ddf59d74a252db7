//! The write side: takes frames, gives effects, takes completions back, and alone decides what may be issued before what.
//!
//! Calls: [`append`](Writer::append), [`request_sync`](Writer::request_sync), [`edit`](Writer::edit),
//! [`open_timeline`](Writer::open_timeline), [`roll`](Writer::roll), [`close`](Writer::close) change what is wanted;
//! [`poll`](Writer::poll) gives the next thing to do until it gives none; [`completed`](Writer::completed) brings back what
//! came of it, in any order; [`next_deadline`](Writer::next_deadline) says when to poll again if nothing happens.
//!
//! What holds: a record is called durable only when its frame, all frames before it and the manifest that names their
//! segments are; a sync covers what was written when it was issued; after a failed write or sync nothing is issued any more
//! (the owner opens the store anew, and recovery looks at what is really there). Lack of room is a state that goes by itself:
//! for the next segment, for a manifest, and, where media cannot reserve room, for a frame or a footer, whose write is
//! issued again. So it is where there are as many segments as a manifest may name. Only a sync that says so is a failure: what it dropped is not known.
//!
//! Bounds: [`Options::in_flight_bytes`] of frames are held; the index of segments not yet sealed is in memory, at most
//! [`Options::segment_records`] entries each; there are at most two of them unless media are slower at sealing than at writing.

mod at_rest;
mod catalog;
mod commit;
mod levels;
mod segments;
mod terms;

pub use terms::{Appended, Hold, IdSource, Options, Refusal, Refused, WriterState};

use super::effect::{Effect, EffectId, FileId, Outcome};
use super::index::{IndexRun, LSN_SPAN};
use super::layout::SEGMENT_MAX;
use super::manifest::{Generation, Manifest, SegmentState, TimelineInfo, TimelineState};
use super::snapshot::{SegmentView, Snapshot};
use super::tail::{Tail, Unfinished};
use crate::frame::{EncodedFrame, FrameHead};
use crate::media::{MediaError, Operation};
use crate::mistakes::{self, Mistake};
use crate::trust::Keyring;
use crate::types::{DurableLsn, Lsn, MonoTime, SegmentId, Timeline};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The smallest segments, in bytes.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

fn segment_bytes(wanted: u64) -> u64 {
    wanted.clamp(SEGMENT_BYTES_MIN, SEGMENT_MAX)
}

/// What an effect was for.
#[derive(Clone, Debug)]
enum Purpose {
    Frame(u64),
    CommitSync { segment: u64, covers: u64 },
    Prepare,
    Seal(u64),
    Catalog,
    Remove,
}

/// The write side of a journal. See the module's text for its contract.
pub struct Writer {
    options: Options,
    ids: IdSource,
    manifest: Manifest,
    catalog: catalog::Catalog,
    commit: commit::Commit,
    queue: VecDeque<(EffectId, Effect)>,
    pending: BTreeMap<EffectId, Purpose>,
    next_effect: u64,
    next_file: u64,
    active: Option<segments::Segment>,
    prepare: segments::Prepare,
    sealing: VecDeque<segments::Sealing>,
    /// Sealed segments as snapshots share them.
    sealed: Arc<Vec<Arc<SegmentView>>>,
    timeline: Option<(Timeline, Generation)>,
    /// What new segments are sealed by at rest: the replica key of this generation; 0: they are not.
    key: u32,
    keys: Arc<Keyring>,
    /// The last LSN of the open timeline here, whole or not.
    chain: Lsn,
    /// The last LSN with a part in any segment.
    last_lsn: Lsn,
    /// The last segment with frames, and how many it has.
    last_segment: Option<(SegmentId, u32)>,
    /// The last LSN that is whole with what was appended.
    whole: Lsn,
    /// What the last frame has not all parts of: only the next one is taken.
    unfinished: Option<Unfinished>,
    /// When the runs that were published here are durably named.
    named: BTreeMap<u64, Generation>,
    /// Segments that no merge of the index can read.
    unmerged: BTreeSet<u64>,
    /// Runs with a segment whose footer could not be emptied.
    unemptied: BTreeSet<u64>,
    closing: bool,
    /// What is still to be said when all is sealed: whether the stop was clean.
    parting: Option<bool>,
    failed: Option<MediaError>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Writer");
        out.field("state", &self.state()).field("durable", &self.durable()).field("last_lsn", &self.last_lsn);
        out.finish_non_exhaustive()
    }
}

impl Writer {
    /// A writer on a store that [`open`](super::open) found or made: all its segments are sealed. A timeline that was open
    /// goes on behind its last part ([`Tail`]), be that within a record. Where nobody can tell which part that is, another timeline
    /// has to be opened.
    #[must_use]
    pub fn new(opened: super::Opened, options: Options, ids: IdSource) -> Self {
        let manifest = opened.manifest;
        let open = manifest.timelines.iter().rev().find(|timeline| timeline.state == TimelineState::Open);
        let timeline = open.map(|timeline| (timeline.id, manifest.generation));
        let summaries = || manifest.segments.iter().filter_map(|segment| segment.summary());
        let last_lsn = summaries().map(|summary| summary.last_lsn).max().unwrap_or(manifest.floor);
        // Another record behind the first parts of one would make that look whole.
        let timeline = timeline.filter(|_| !matches!(opened.tail, Tail::Lost(_)));
        let unfinished = if let Tail::Within(unfinished) = opened.tail { Some(unfinished) } else { None };
        let last_segment = manifest.segments.iter().rev().find_map(|segment| segment.summary().map(|s| (segment, s)));
        let sealed = manifest.segments.iter().filter_map(SegmentView::sealed).map(Arc::new).collect();
        Self {
            chain: opened.tail.lsn(),
            timeline,
            last_lsn,
            last_segment: last_segment.map(|(segment, summary)| (segment.id, summary.frames)),
            whole: opened.durable.lsn(),
            unfinished,
            key: 0,
            keys: opened.keys,
            sealed: Arc::new(sealed),
            catalog: catalog::Catalog::new(opened.stored, manifest.generation),
            commit: commit::Commit::new(opened.durable),
            options: Options { segment_bytes: segment_bytes(options.segment_bytes), ..options },
            ids,
            manifest,
            queue: VecDeque::new(),
            pending: BTreeMap::new(),
            next_effect: 1,
            next_file: 1,
            active: None,
            prepare: segments::Prepare::None,
            sealing: VecDeque::new(),
            named: BTreeMap::new(),
            unmerged: BTreeSet::new(),
            unemptied: BTreeSet::new(),
            closing: false,
            parting: None,
            failed: None,
        }
    }

    /// Takes a frame: it is written by the next effects. Copies no data.
    ///
    /// # Errors
    /// Gives the frame back with the reason; `NotNow` means: offer it again.
    #[allow(clippy::result_large_err, reason = "the frame goes back to where it came from")]
    pub fn append(&mut self, now: MonoTime, frame: EncodedFrame) -> Result<Appended, Refused> {
        match self.admit(&frame) {
            Ok(head) => self.take(now, head, frame),
            Err(why) => Err(Refused { frame, why }),
        }
    }

    /// Decides whether the frame may come now, and makes room for it.
    fn admit(&mut self, frame: &EncodedFrame) -> Result<FrameHead, Refusal> {
        let info = &frame.info;
        if let Some(failure) = &self.failed {
            return Err(Refusal::Failed(failure.clone()));
        }
        if self.closing {
            return Err(Refusal::Closed);
        }
        if self.key == 0 && !self.manifest.keys.is_empty() {
            return Err(Refusal::NoKey);
        }
        if info.group != self.manifest.group {
            return Err(Refusal::Group { expected: self.manifest.group, found: info.group });
        }
        let (open, since) = match self.timeline {
            Some((open, since)) if open == info.timeline => (open, since),
            other => return Err(Refusal::Timeline { found: info.timeline, open: other.map(|(open, _)| open) }),
        };
        if info.prev_lsn != self.chain {
            return Err(Refusal::Chain { expected: self.chain, found: info.prev_lsn });
        }
        if self.is_starved() {
            return Err(Refusal::NotNow(Hold::NoSpace));
        }
        if since > self.catalog.durable() {
            let hold = if self.catalog.is_waiting() { Hold::NoSpace } else { Hold::TimelineNotDurable };
            return Err(Refusal::NotNow(hold));
        }
        if self.commit.in_flight_bytes() >= self.options.in_flight_bytes {
            return Err(Refusal::NotNow(Hold::Busy));
        }
        let head = FrameHead::parse(&frame.head)?;
        if !self.is_continued_by(&head) {
            return Err(Refusal::Chain { expected: self.last_lsn, found: info.first_lsn });
        }
        let fits =
            |segment: &segments::Segment| segment.timeline == Some(open) && segment.has_room(&head, &self.options);
        if self.active.as_ref().is_some_and(|segment| !fits(segment)) {
            self.roll();
        }
        if self.active.is_none() && !self.activate(open) {
            let no_space = self.prepare.is_waiting() || self.catalog.is_waiting();
            let hold = if no_space { Hold::NoSpace } else { Hold::Preparing };
            return Err(Refusal::NotNow(hold));
        }
        Ok(head)
    }

    /// Whether a frame goes on where the last one ended: with the next part of its record, else with a new one.
    fn is_continued_by(&self, head: &FrameHead) -> bool {
        let first = &head.records[0];
        match &self.unfinished {
            Some(rest) => rest.is_continued_by(head),
            None => first.lsn > self.last_lsn && first.index == 0,
        }
    }

    #[allow(clippy::result_large_err, reason = "the frame goes back to where it came from")]
    fn take(&mut self, now: MonoTime, head: FrameHead, frame: EncodedFrame) -> Result<Appended, Refused> {
        let (durable, info) = (self.durable().lsn(), frame.info);
        let (group, last_segment, (lsn, whole)) = (self.manifest.group, self.last_segment, (self.last_lsn, self.whole));
        let Some(segment) = self.active.as_mut() else { unreachable!("admit made one") };
        let segments::Accepted { events, sealed } = match segment.accept(&head, &frame) {
            Ok(accepted) => accepted,
            Err(error) => return Err(Refused { frame, why: error.into() }),
        };
        let (head, frame) = sealed.unwrap_or((head, frame));
        let before = segments::Before { group, durable, last_segment, lsn, whole };
        let (offset, data, run) = segment.add(&head, frame, events, before);
        let (file, number, id, key) = (segment.file, segment.number, segment.id, segment.key);
        let (timeline, prev_lsn) = (info.timeline, segment.prev_lsn);
        self.last_segment = Some((id, segment.frame_count()));
        self.chain = info.last_lsn;
        self.last_lsn = info.last_lsn;
        let whole = head.records.iter().rev().find(|record| record.index + 1 == record.count);
        self.whole = whole.map_or(self.whole, |record| record.lsn);
        self.unfinished = Unfinished::left_by(&head);
        let run = Arc::new(run);
        let write = Effect::Write { file, offset, data };
        let sequence = self.commit.add(now, number, self.whole, info.settled, write.clone(), Arc::clone(&run));
        self.issue(write, Purpose::Frame(sequence));
        Ok(Appended { segment: number, id, key, timeline, prev_lsn, run, whole: self.whole })
    }

    /// From now on segments are made this large, as far as they may be, and so much stays free on the media.
    pub fn set_bounds(&mut self, segment_bytes: u64, keep_free_bytes: u64) {
        self.options.segment_bytes = self::segment_bytes(segment_bytes);
        self.options.keep_free_bytes = keep_free_bytes;
    }

    /// Makes everything appended so far durable as soon as it can be.
    pub fn request_sync(&mut self) {
        self.commit.request();
    }

    /// Everything up to here survives a power cut.
    #[must_use]
    pub fn durable(&self) -> DurableLsn {
        self.commit.durable()
    }

    /// The last LSN that is whole in what was written, durable or not: what a snapshot can show.
    #[must_use]
    pub fn written(&self) -> Lsn {
        self.commit.written()
    }

    /// The last LSN that was appended.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.last_lsn
    }

    /// How the writer is.
    #[must_use]
    pub fn state(&self) -> WriterState {
        match &self.failed {
            Some(failure) => WriterState::Failed(failure.clone()),
            None if self.closing && self.is_through() => WriterState::Closed,
            None if self.closing => WriterState::Closing,
            None if self.lacks().is_some() => WriterState::NoSpace,
            None => WriterState::Running,
        }
    }

    /// How many bytes have to be free on the media before it goes on, if room is lacking: for the next segment beside what
    /// must be left, for a manifest, or for what was taken already.
    #[must_use]
    pub fn lacks(&self) -> Option<u64> {
        if self.prepare.is_waiting() {
            Some(self.options.segment_bytes.saturating_add(self.options.keep_free_bytes))
        } else if self.is_starved() {
            Some(self.options.segment_bytes)
        } else {
            self.catalog.is_waiting().then(|| self.catalog.bytes())
        }
    }

    /// Whether what was taken finds no room, a frame or a footer, so that nothing more becomes durable for now.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.commit.is_starved() || self.sealing.iter().any(|sealing| sealing.retry_at().is_some())
    }

    /// The manifest with all edits, durable or not.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Changes the manifest; the change is durable when [`Writer::manifest_durable`] reaches what this gives. Segments,
    /// timelines and index runs are the writer's own business.
    pub fn edit(&mut self, change: impl FnOnce(&mut Manifest)) -> Generation {
        change(&mut self.manifest);
        self.keep_keys_of_bases();
        self.catalog.touch(&mut self.manifest)
    }

    /// The last generation of the manifest that is durable.
    #[must_use]
    pub fn manifest_durable(&self) -> Generation {
        self.catalog.durable()
    }

    /// Opens a timeline and closes the one that was open. Its frames are taken when the manifest that says so is durable.
    pub fn open_timeline(&mut self, info: TimelineInfo) -> Generation {
        self.end_timelines();
        self.manifest.timelines.push(info);
        self.manifest.goes_on();
        self.roll();
        self.chain = Lsn::ZERO;
        self.unfinished = None;
        let generation = self.catalog.touch(&mut self.manifest);
        self.timeline = Some((info.id, generation));
        generation
    }

    /// Closes the open timeline without opening another.
    pub fn close_timeline(&mut self) -> Generation {
        self.end_timelines();
        self.timeline = None;
        self.roll();
        self.catalog.touch(&mut self.manifest)
    }

    fn end_timelines(&mut self) {
        // What a write that was not finished left behind belongs to no moment. What is not durable yet may never be: nothing is said then.
        let last = Some(self.chain.min(self.whole)).filter(|last| *last <= self.durable().lsn());
        for timeline in self.manifest.timelines.iter_mut().filter(|timeline| timeline.state == TimelineState::Open) {
            timeline.state = TimelineState::Closed;
            timeline.last = last.map(|last| last.max(timeline.fork));
        }
    }

    /// Forgets sealed segments, the oldest ones: out of the manifest, then off the media. Their events go with them.
    pub fn forget(&mut self, numbers: &[u64]) -> Generation {
        let sealed = |state: &SegmentState| matches!(state, SegmentState::Sealed(_));
        let (mut gone, mut floor) = (Vec::new(), self.manifest.floor);
        self.manifest.segments.retain(|segment| {
            let stays = !numbers.contains(&segment.number) || !sealed(&segment.state);
            if !stays {
                gone.push(segment.number);
                floor = floor.max(segment.summary().map_or(Lsn::ZERO, |summary| summary.last_lsn));
            }
            stays
        });
        self.manifest.floor = floor;
        self.drop_unused_keys();
        Arc::make_mut(&mut self.sealed).retain(|segment| !gone.contains(&segment.number));
        let runs = self.drop_empty_runs();
        let generation = self.catalog.touch(&mut self.manifest);
        let removed_at = if mistakes::is(Mistake::SegmentsRemovedEarly) { Generation(0) } else { generation };
        for number in gone {
            self.remove_later(removed_at, number);
        }
        runs.into_iter().for_each(|name| self.catalog.remove_at(generation, name));
        generation
    }

    /// Seals everything, removes what was prepared, and then writes a manifest that says `clean`; frames are refused from now on.
    pub fn close(&mut self, clean: bool) {
        self.closing = true;
        self.roll();
        self.commit.request();
        self.parting = Some(clean);
    }

    /// Says how it ended when everything is durable: a manifest that came before would tell of what a power cut took.
    fn part(&mut self) {
        let sealed =
            self.active.is_none() && self.sealing.is_empty() && matches!(self.prepare, segments::Prepare::None);
        let Some(clean) = self.parting.take_if(|_| sealed) else { return };
        let last = self.chain.min(self.whole);
        self.edit(|manifest| {
            manifest.clean = clean;
            let open = manifest.timelines.iter_mut().find(|timeline| timeline.state == TimelineState::Open);
            open.into_iter().for_each(|timeline| timeline.last = Some(last));
        });
    }

    /// Everything as it is now, for readers. Cheap; shows what is written, durable or not.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let unsealed = self.sealing.iter().map(segments::Sealing::segment).chain(&self.active);
        let unsealed = unsealed.filter_map(segments::Segment::view).map(Arc::new);
        let mut segments: Vec<_> = Vec::with_capacity(self.sealed.len() + 4);
        segments.extend(self.sealed.iter().cloned().chain(unsealed));
        segments.sort_by_key(|segment| segment.number);
        Snapshot::new(&self.manifest, segments, self.durable(), self.commit.written(), self.commit.settled())
    }

    /// The next effect to carry out; none: come back after a completion, a call, or at the deadline.
    pub fn poll(&mut self, now: MonoTime) -> Option<(EffectId, Effect)> {
        if self.failed.is_some() {
            return None;
        }
        if self.queue.is_empty() {
            self.advance_commit(now);
            self.advance_segments(now);
            self.part();
            self.advance_catalog(now);
        }
        self.queue.pop_front()
    }

    /// When to poll again though nothing was completed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        if self.failed.is_some() {
            return None;
        }
        let commit =
            self.active.as_ref().and_then(|segment| self.commit.deadline(segment.number, self.options.commit_ns));
        let footer = self.sealing.front().and_then(segments::Sealing::retry_at);
        let starved = [self.commit.retry_at(), footer];
        [commit, self.prepare.deadline(), self.catalog.deadline()].into_iter().chain(starved).flatten().min()
    }

    /// Whether nothing is under way and nothing wanted: every effect that was handed out came back.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.queue.is_empty()
    }

    /// What came of an effect.
    pub fn completed(&mut self, now: MonoTime, id: EffectId, outcome: Outcome) {
        let Some(purpose) = self.pending.remove(&id) else { return };
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = outcome {
            return self.went_wrong(now, &purpose, &error);
        }
        match purpose {
            Purpose::Frame(sequence) => self.frame_written(sequence),
            Purpose::CommitSync { segment, .. } if mistakes::is(Mistake::SyncCoversMore) => {
                self.commit.synced(segment, self.commit.shown());
            }
            Purpose::CommitSync { segment, covers } => self.commit.synced(segment, covers),
            Purpose::Prepare => self.prepare_completed(),
            Purpose::Seal(number) => self.seal_completed(number),
            Purpose::Catalog => self.catalog_completed(),
            Purpose::Remove => {}
        }
    }

    fn went_wrong(&mut self, now: MonoTime, purpose: &Purpose, error: &MediaError) {
        let retry = now.after(self.options.retry_ns);
        match purpose {
            Purpose::Prepare if error.is_no_space() => self.prepare_starved(retry),
            Purpose::Frame(sequence) if error.is_no_space() => self.commit.park(*sequence, retry),
            Purpose::Seal(number) if error.is_no_space() && self.seal_starved(*number, retry) => {}
            // A temporary file that found no room is made again; it never held anything.
            Purpose::Catalog if error.is_no_space() => self.catalog.wait(retry),
            // A file that could not be removed is found again at the next start.
            Purpose::Remove if error.operation == Operation::Remove => {}
            _ => {
                self.failed = Some(error.clone());
                self.queue.clear();
            }
        }
    }

    fn issue(&mut self, effect: Effect, purpose: Purpose) {
        let id = EffectId(self.next_effect);
        self.next_effect += 1;
        self.pending.insert(id, purpose);
        self.queue.push_back((id, effect));
    }

    fn new_file(&mut self) -> FileId {
        self.next_file += 1;
        FileId(self.next_file)
    }

    fn frame_written(&mut self, sequence: u64) {
        for (number, run) in self.commit.written_frame(sequence) {
            let sealing = self.sealing.iter_mut().map(segments::Sealing::segment_mut);
            if let Some(segment) = sealing.chain(&mut self.active).find(|segment| segment.number == number) {
                segment.publish(run);
            }
        }
    }

    /// Whether nothing is left to do.
    fn is_through(&self) -> bool {
        self.is_idle()
            && self.parting.is_none()
            && self.active.is_none()
            && self.sealing.is_empty()
            && matches!(self.prepare, segments::Prepare::None)
            && self.catalog.is_through()
    }
}

/// LSNs of a segment are stored as distances from its first one.
const _: () = assert!(LSN_SPAN > 1 << 32);
