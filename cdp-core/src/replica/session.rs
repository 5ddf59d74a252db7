//! A writable session: a restored moment that somebody works on.
//!
//! Its writes are records of a timeline of its own, forked at the moment, in a journal store of its own with this one writer.
//! So an overlay is as crash-proof as the journal, any moment of it can be looked at, and there is no second format. Writes
//! gather in memory as a guest's disk cache does; a flush makes them durable.

use super::ReplicaView;
use crate::frame::{Compression, Encoder, Note, Part, Payload, RawFrame, RecordKind};
use crate::journal::{
    Appended, Executor, Hold, IdSource, Manifest, OpenError, Opened, Options, PathElement, Piece, ReadError, Reader,
    Refusal, Snapshot, TimelineInfo, TimelineState, Writer, WriterState, drain,
};
use crate::media::{MediaError, Storage};
use crate::trust::{KeyError, KeyHolder, NewKey};
use crate::types::{
    ClockEpoch, DiskId, Extent, FRAME_PLAIN_MAX, FRAME_RECORDS_MAX, FRAME_SPAN_NS_MAX, GroupId, Lsn, Now, Timeline,
    WallTime,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory for decoded chunks of a session's own journal, in bytes.
const CACHE_BYTES: u64 = 16 << 20;
/// Segments of a session are at most so large, in bytes: small, because each is reserved in full.
pub const SEGMENT_BYTES: u64 = 32 << 20;
/// How far above its fork a session's LSNs begin: no LSN of the trunk's path is ever as high.
const LSN_JUMP: u64 = 1 << 48;

/// Why a session cannot take or give bytes.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Something below could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its store does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is sealed at rest, and there is no key to seal with.
    #[error(transparent)]
    AtRest(#[from] KeyError),
    /// The media have no room; what was written before stays.
    #[error("no room for the session's writes: {segment_bytes} bytes more are needed beside the reserve")]
    NoSpace {
        /// What a segment takes.
        segment_bytes: u64,
    },
    /// The session's store failed; nothing more is taken.
    #[error("the session's store failed: {0}")]
    Failed(MediaError),
    /// The store does not take a frame, for a reason that a session cannot have.
    #[error("the session's journal refused its own frame: {0}")]
    Refused(Refusal),
}

/// What a session is opened with.
#[derive(Debug)]
pub struct SessionOptions {
    /// The moment it begins at.
    pub moment: ReplicaView,
    /// Stays free on the media.
    pub keep_free_bytes: u64,
    /// Its segments are made this large, up to [`SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// How what is written is packed.
    pub compression: Compression,
    /// Who opens and seals it at rest: as the replica that it is of, [`Keyring::of_stores`](crate::trust::Keyring::of_stores).
    pub keys: KeyHolder,
}

/// Makes the store of a new session.
///
/// # Errors
/// When there is one already or the media fail.
pub fn create(storage: &dyn Storage, trunk: &Manifest, name: &str, timeline: TimelineInfo) -> Result<(), OpenError> {
    let mut manifest = Manifest::new(trunk.replica, trunk.group, name);
    manifest.disks.clone_from(&trunk.disks);
    manifest.reserved = Lsn(timeline.fork.0 + LSN_JUMP);
    manifest.timelines.push(timeline);
    crate::journal::create(storage, manifest).map(drop)
}

/// A session that is open. All methods may be called from several threads at once.
#[derive(Debug)]
pub struct Session {
    view: ReplicaView,
    reader: Arc<Reader>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    writer: Writer,
    executor: Executor,
    encoder: Encoder,
    compression: Compression,
    group: GroupId,
    segment_bytes: u64,
    timeline: Timeline,
    /// Taken and not yet appended: less than a frame, and one write more while there is no room.
    waiting: VecDeque<Part>,
    lsn: Lsn,
    prev_lsn: Lsn,
    time: WallTime,
    /// Appended, and for lack of room not yet written: nothing is read or taken before it is.
    behind: Option<Appended>,
}

impl Session {
    /// Opens the store that [`create`] made, as its only writer. After a stop that was not clean its writes go on on a new
    /// timeline, so that nothing that was torn is ever continued.
    ///
    /// # Errors
    /// When the store or what lies below does not open.
    pub fn open(
        storage: &Arc<dyn Storage>,
        options: SessionOptions,
        mut ids: IdSource,
        now: Now,
    ) -> Result<Self, SessionError> {
        let SessionOptions { moment, keep_free_bytes, segment_bytes, compression, keys } = options;
        let bounds = (keep_free_bytes, segment_bytes.min(SEGMENT_BYTES));
        let opened = crate::journal::open_with(storage.as_ref(), "", None, &keys)?;
        let reader = Reader::new(Arc::clone(storage), "", CACHE_BYTES).with_keys(Arc::clone(&opened.keys));
        let reader = Arc::new(reader);
        let path: Vec<_> = own_path(&opened.manifest.timelines, &opened.snapshot(), &reader).collect();
        let view = moment.under(&path)?;
        let fresh = Timeline::new(ids()).unwrap_or(opened.manifest.timelines[0].id);
        let key = keys.draw(opened.manifest.replica, &mut ids, now.wall);
        if key.is_none() && !opened.manifest.keys.is_empty() {
            return Err(KeyError::Missing.into());
        }
        let state = State::new(storage, opened, (bounds, compression), (ids, key), fresh, now)?;
        let session = Self { view, reader, state: Mutex::new(state) };
        let mut state = session.state();
        if state.prev_lsn == Lsn::ZERO {
            state.begin(now);
            session.append(&mut state, now)?;
        }
        drop(state);
        Ok(session)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's branch of history.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.state().timeline
    }

    /// The disks as they are now, to be read.
    #[must_use]
    pub fn view(&self) -> &ReplicaView {
        &self.view
    }

    /// Fills `out` from `offset` with what was written last.
    ///
    /// # Errors
    /// When anything that is needed cannot be read or does not verify.
    pub fn read(&self, now: Now, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), SessionError> {
        self.show(now, disk, Extent::new(offset, out.len() as u64))?;
        Ok(self.view.read(disk, offset, out)?)
    }

    /// Makes what was written to a range visible to [`Session::view`].
    ///
    /// # Errors
    /// When there is no room or the store failed.
    pub fn show(&self, now: Now, disk: DiskId, range: Extent) -> Result<(), SessionError> {
        let mut state = self.state();
        self.catch_up(&mut state, now)?;
        if state.waiting.iter().any(|part| part.disk == Some(disk) && part.extent.overlaps(&range)) {
            self.append(&mut state, now)?;
        }
        Ok(())
    }

    /// Takes a write. It can be read at once and is durable after the next [`Session::flush`].
    ///
    /// # Errors
    /// When there is no room or the store failed.
    pub fn write(&self, now: Now, disk: DiskId, payload: Payload) -> Result<(), SessionError> {
        let mut state = self.state();
        self.append_full(&mut state, now)?;
        let (lsn, time) = state.next(now);
        state.waiting.extend(payload.into_parts(RecordKind::Write, disk, lsn, time));
        self.append_full(&mut state, now)
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// When there is no room or the store failed.
    pub fn zero(&self, now: Now, disk: DiskId, extent: Extent, keep_allocated: bool) -> Result<(), SessionError> {
        let mut state = self.state();
        self.append_full(&mut state, now)?;
        let (lsn, time) = state.next(now);
        let kind = if keep_allocated { RecordKind::Zero } else { RecordKind::Discard };
        state.waiting.push_back(Part::plain(kind, Some(disk), extent, lsn, time));
        Ok(())
    }

    /// Makes everything that was taken durable.
    ///
    /// # Errors
    /// When there is no room or the store failed.
    pub fn flush(&self, now: Now) -> Result<(), SessionError> {
        let mut state = self.state();
        self.catch_up(&mut state, now)?;
        self.append(&mut state, now)?;
        state.writer.request_sync();
        state.drive(now)?;
        state.check_room()?;
        if let Some(top) = self.view.top() {
            top.refresh(&state.writer.snapshot());
        }
        Ok(())
    }

    /// Writes what found no room. What it holds was taken and would not be read: nothing is, until it is there.
    fn catch_up(&self, state: &mut State, now: Now) -> Result<(), SessionError> {
        if state.behind.is_some() {
            state.drive(now)?;
            state.check_room()?;
        }
        if let Some(appended) = state.behind.take() {
            self.written(&appended);
        }
        Ok(())
    }

    /// Shows what was appended and is written.
    fn written(&self, appended: &Appended) {
        if let Some(top) = self.view.top() {
            top.advance(&self.reader, appended);
        }
    }

    /// What the session itself wrote to a range, and where it wrote nothing.
    pub(super) fn own(&self, disk: DiskId, range: Extent) -> Result<Vec<Piece>, ReadError> {
        self.view.top().map_or(Ok(Vec::new()), |top| top.resolve(disk, range))
    }

    /// Ends the session's writing: everything durable and sealed.
    ///
    /// # Errors
    /// When there is no room or the store failed.
    pub fn close(&self, now: Now) -> Result<(), SessionError> {
        let mut state = self.state();
        self.catch_up(&mut state, now)?;
        self.append(&mut state, now)?;
        state.writer.close(true);
        state.drive(now)?;
        state.check_room()
    }

    /// Appends what fills frames; the rest goes on gathering.
    fn append_full(&self, state: &mut State, now: Now) -> Result<(), SessionError> {
        while state.holds_a_frame() {
            self.append_one(state, now)?;
        }
        Ok(())
    }

    /// Appends everything that was gathered.
    fn append(&self, state: &mut State, now: Now) -> Result<(), SessionError> {
        while !state.waiting.is_empty() {
            self.append_one(state, now)?;
        }
        Ok(())
    }

    /// Writes a frame of what was gathered, and shows it. Where there is no room everything stays gathered.
    fn append_one(&self, state: &mut State, now: Now) -> Result<(), SessionError> {
        self.catch_up(state, now)?;
        if state.writer.lacks().is_some() {
            // Only who drives it asks for room again.
            state.drive(now)?;
        }
        let Some(raw) = state.frame() else { return Ok(()) };
        let (group, compression) = (state.group, state.compression);
        let records = raw.parts.len();
        let mut frame = state.encoder.encode(raw, group, compression);
        let last = frame.info.last_lsn;
        loop {
            match state.writer.append(now.mono, frame) {
                Ok(appended) => {
                    state.taken(records, last);
                    state.drive(now)?;
                    if let Err(error) = state.check_room() {
                        state.behind = Some(appended);
                        return Err(error);
                    }
                    self.written(&appended);
                    return Ok(());
                }
                Err(refused) => match refused.why {
                    Refusal::NotNow(Hold::NoSpace) => {
                        return Err(SessionError::NoSpace { segment_bytes: state.segment_bytes });
                    }
                    Refusal::NotNow(_) => frame = refused.frame,
                    Refusal::Failed(error) => return Err(SessionError::Failed(error)),
                    why => return Err(SessionError::Refused(why)),
                },
            }
            state.drive(now)?;
        }
    }
}

/// What a session's store adds to the way to its fork: its timelines follow each other, each up to the next one's fork.
pub(super) fn own_path<'a>(
    timelines: &'a [TimelineInfo],
    snapshot: &'a Snapshot,
    reader: &'a Arc<Reader>,
) -> impl Iterator<Item = PathElement> + 'a {
    let forks = timelines.iter().skip(1).map(|next| next.fork).chain([snapshot.written()]);
    timelines.iter().zip(forks).map(|(timeline, upto)| PathElement {
        reader: Arc::clone(reader),
        snapshot: snapshot.clone(),
        timeline: timeline.id,
        upto,
    })
}

impl State {
    fn new(
        storage: &Arc<dyn Storage>,
        opened: Opened,
        ((keep_free_bytes, segment_bytes), compression): ((u64, u64), Compression),
        (ids, key): (IdSource, Option<NewKey>),
        fresh: Timeline,
        now: Now,
    ) -> Result<Self, SessionError> {
        let options = Options {
            directory: String::new(),
            segment_bytes,
            keep_free_bytes,
            commit_bytes: u64::MAX,
            commit_ns: u64::MAX,
            ..Options::default()
        };
        let (manifest, durable, last_lsn) = (opened.manifest.clone(), opened.durable.lsn(), opened.last_lsn);
        let last = manifest.timelines.last().copied().ok_or_else(|| OpenError::NoStore { path: storage.path() })?;
        let span = opened.snapshot().span(last.id);
        let mut state = Self {
            writer: Writer::new(opened, options, ids),
            executor: Executor::new(Arc::clone(storage)),
            encoder: Encoder::new(),
            compression,
            group: manifest.group,
            segment_bytes,
            timeline: last.id,
            waiting: VecDeque::new(),
            lsn: last_lsn.max(manifest.reserved),
            prev_lsn: span.map_or(Lsn::ZERO, |(_, last)| last),
            time: WallTime(0),
            behind: None,
        };
        // Before the first segment is made.
        if let Some(key) = key {
            state.writer.seal_at_rest(key)?;
        }
        if !manifest.clean {
            let fork = durable.max(last.fork);
            let (number, parent) = (last.number + 1, Some(last.id));
            let next = TimelineInfo { id: fresh, number, parent, fork, last: None, opened: now.wall, ..last };
            state.writer.open_timeline(TimelineInfo { state: TimelineState::Open, ..next });
            (state.timeline, state.prev_lsn) = (fresh, Lsn::ZERO);
        }
        state.writer.edit(Manifest::goes_on);
        state.drive(now)?;
        Ok(state)
    }

    /// The timeline's first record.
    fn begin(&mut self, now: Now) {
        let info = self.writer.manifest().timelines.last().copied();
        let (parent, fork) = info.map_or((None, Lsn::ZERO), |info| (info.parent, info.fork));
        let (lsn, time) = self.next(now);
        self.waiting.push_back(Part::noted(
            RecordKind::TimelineStart,
            None,
            lsn,
            time,
            Note::TimelineStart { parent, fork },
        ));
    }

    fn next(&mut self, now: Now) -> (Lsn, WallTime) {
        self.lsn = self.lsn.next();
        self.time = self.time.max(now.wall);
        (self.lsn, self.time)
    }

    fn holds_a_frame(&self) -> bool {
        let bytes: u64 = self.waiting.iter().map(|part| part.data.len() as u64).sum();
        bytes >= FRAME_PLAIN_MAX || self.waiting.len() >= FRAME_RECORDS_MAX || self.is_old()
    }

    /// Stamps of one frame lie close together: the format has 32 bits for the difference.
    fn is_old(&self) -> bool {
        self.waiting.front().is_some_and(|first| self.time.0 - first.time.0 > FRAME_SPAN_NS_MAX)
    }

    /// The next frame's worth of what was gathered; it stays gathered until it was [`State::taken`].
    fn frame(&self) -> Option<RawFrame> {
        let first = self.waiting.front()?;
        let mut plain_bytes = 0;
        let fits = |part: &&Part| {
            plain_bytes += part.data.len() as u64;
            plain_bytes <= FRAME_PLAIN_MAX && part.time.0 - first.time.0 <= FRAME_SPAN_NS_MAX
        };
        let parts: Vec<_> = self.waiting.iter().take(FRAME_RECORDS_MAX).take_while(fits).cloned().collect();
        let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
        let settled = parts.iter().rev().find(|part| part.is_last()).map_or(Lsn::ZERO, |part| part.lsn);
        let (timeline, prev_lsn) = (self.timeline, self.prev_lsn);
        Some(RawFrame { timeline, prev_lsn, settled, epoch: ClockEpoch(1), parts, plain_bytes })
    }

    fn taken(&mut self, records: usize, last: Lsn) {
        self.waiting.drain(..records);
        self.prev_lsn = last;
    }

    /// Whether everything that was appended is written.
    fn check_room(&self) -> Result<(), SessionError> {
        if self.writer.is_starved() { Err(SessionError::NoSpace { segment_bytes: self.segment_bytes }) } else { Ok(()) }
    }

    fn drive(&mut self, now: Now) -> Result<(), SessionError> {
        drain(&mut self.writer, &self.executor, now.mono);
        match self.writer.state() {
            WriterState::Failed(error) => Err(SessionError::Failed(error)),
            _ => Ok(()),
        }
    }
}
