//! The spool: the frames of one timeline between "arrived" and "durable at the replica", in order, in bounded memory and then on
//! bounded disk.
//!
//! The bytes, the order of writes and syncs, and what a start finds again are in `SPOOL.md`. [`Spool`] is a machine: frames go in by
//! [`Spool::push`] and get numbers 0, 1, 2 …, [`Spool::get`] gives them back as often as wanted, [`Spool::release`] lets them go,
//! and what the disk has to do is asked for by [`Spool::poll`] as [effects](crate::journal::Effect) and told by
//! [`Spool::completed`], in any order.
//!
//! Two uses. With [`SpoolOptions::always`] every frame is written, and [`Spool::stored`] says what survives a crash of this process
//! and of its machine: memory is then given up only for what is stored. Without it only what has no room in memory is written,
//! nothing is synced, and nothing need survive.
//!
//! One reader, which mostly goes forward: what follows the frame that was asked for last is read ahead, and what was asked for last
//! stays until another is asked for.
//!
//! Rooms: `layout` (bytes), `held` (frames and the accounts of memory), `files` (what is written), `ahead` (what is read), `recover`.

mod ahead;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod held;
mod layout;
mod recover;
#[cfg(test)]
mod tests;

pub use self::layout::{SPOOL_FRAME_MAX, SpoolFormatError};
pub use self::recover::{Dropped, Recovered, Recovery, sweep};

use self::files::{Files, Pending};
use self::held::Held;
use crate::frame::{EncodedFrame, FrameInfo};
use crate::journal::{Effect, EffectId, Outcome};
use crate::media::MediaError;
use crate::types::{GroupId, MonoTime, Position, Timeline};
use std::collections::{BTreeMap, VecDeque};

/// The least that is read ahead, in bytes: any frame has room.
pub const AHEAD_BYTES_MIN: u64 = 512 << 10;
/// The least memory beside what is read ahead, in bytes: any frame has room.
pub const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// The least length of a file, in bytes.
pub const FILE_BYTES_MIN: u64 = 1 << 20;
/// Memory that a frame takes beside its bytes and as long as it is held, in bytes.
pub const SLOT_COST: u64 = 96;
/// Syncs are so far apart, unless memory or the next file waits for one: each makes everything stored that was written by then.
pub const SYNC_PAUSE_NS: u64 = 20_000_000;
/// After trouble with the disk it is tried again.
pub const RETRY_NS: u64 = 10_000_000_000;
/// A frame that cannot be read is tried again after so long.
pub const READ_RETRY_NS: u64 = 1_000_000_000;
/// So many reads of a frame fail until it is given up.
pub const READ_TRIES: u8 = 5;
/// Events that are kept until somebody takes them; newer ones are not kept.
const EVENTS_MAX: usize = 64;
/// The low bits of ids, which count; those above are [`SpoolOptions::ids`]. A million effects a second use them up in 35 years.
const ID_BITS: u32 = 50;

/// Bounds and places.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpoolOptions {
    /// Memory for everything, in bytes; at least [`MEMORY_BYTES_MIN`] more than `ahead_bytes`.
    pub memory_bytes_max: u64,
    /// Room on disk, in bytes, in steps of `file_bytes`; less than that: nothing is written.
    pub disk_bytes_max: u64,
    /// How long a file becomes, in bytes; at least [`FILE_BYTES_MIN`]. It may be another length for the next one
    /// ([`Spool::set_file_bytes`]).
    pub file_bytes: u64,
    /// The files' directory in the storage; empty: the storage's own.
    pub directory: String,
    /// Of the memory: for frames that are read before somebody asks, in bytes; at least [`AHEAD_BYTES_MIN`].
    pub ahead_bytes: u64,
    /// Write and sync every frame; else only what has no room in memory is written.
    pub always: bool,
    /// The high bits of this spool's ids of effects and files, so that one driver can serve several: at most 2^14 - 1.
    pub ids: u16,
}

impl SpoolOptions {
    fn clamped(mut self) -> Self {
        self.ahead_bytes = self.ahead_bytes.max(AHEAD_BYTES_MIN);
        self.memory_bytes_max = self.memory_bytes_max.max(self.ahead_bytes.saturating_add(MEMORY_BYTES_MIN));
        self.file_bytes = self.file_bytes.max(FILE_BYTES_MIN).next_multiple_of(layout::HEADER_BYTES);
        self
    }
}

/// Why a frame is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PushError {
    /// No room now: when frames are released, or are stored, there will be.
    #[error("no room for a frame of {bytes} bytes: {memory} of {memory_max} bytes of memory are taken")]
    Full {
        /// The frame's.
        bytes: u64,
        /// Bytes of memory that are taken.
        memory: u64,
        /// Bytes that may be.
        memory_max: u64,
    },
    /// Longer than [`SPOOL_FRAME_MAX`].
    #[error("a frame of {bytes} bytes is too long: at most {SPOOL_FRAME_MAX}")]
    TooLong {
        /// The frame's.
        bytes: u64,
    },
    /// Of another group or timeline than the frames before.
    #[error("a frame of timeline {found} does not go to the frames of {expected}, or is of another group")]
    OtherTimeline {
        /// Of the frames before.
        expected: Timeline,
        /// Of this one.
        found: Timeline,
    },
    /// It does not continue the frame before.
    #[error("a frame that begins at {found} does not continue {expected}")]
    NotNext {
        /// Where the frame before ends.
        expected: Position,
        /// Where this one begins.
        found: Position,
    },
}

/// What there is of a frame.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// Here it is.
    Here(EncodedFrame),
    /// It is read; ask again after a completion.
    Later,
    /// It was released, was lost ([`SpoolEvent::Lost`]), or never came.
    Gone,
}

/// What an operator should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SpoolEvent {
    /// From now on there is only memory; the disk is tried again after [`RETRY_NS`].
    DiskFailed {
        /// What happened.
        error: MediaError,
    },
    /// The disk works again.
    DiskBack,
    /// A frame that was on disk alone cannot be read.
    Lost {
        /// Its number.
        number: u64,
        /// What was wrong the last time.
        why: String,
    },
}

/// The spool of one timeline.
#[derive(Debug)]
pub struct Spool {
    options: SpoolOptions,
    of: Option<(GroupId, Timeline)>,
    /// Where the last frame ends.
    end: Option<Position>,
    held: Held,
    files: Files,
    /// The number that was asked for last, and the next one to be looked at for reading ahead.
    cursor: u64,
    ahead_next: u64,
    /// Reads wait until then.
    read_after: Option<MonoTime>,
    reads: usize,
    /// Effects that were handed out: a few, see the bounds in `SPOOL.md`.
    pending: BTreeMap<EffectId, Pending>,
    next_id: u64,
    events: VecDeque<SpoolEvent>,
    retired: bool,
}

impl Spool {
    /// An empty spool. With [`SpoolOptions::always`], [`Spool::recover`] comes before, which finds what an earlier life left.
    #[must_use]
    pub fn new(options: SpoolOptions) -> Self {
        let options = options.clamped();
        Self {
            of: None,
            end: None,
            held: Held::new(options.memory_bytes_max - options.ahead_bytes, options.ahead_bytes, options.always),
            files: Files::default(),
            cursor: 0,
            ahead_next: 0,
            read_after: None,
            reads: 0,
            pending: BTreeMap::new(),
            next_id: u64::from(options.ids) << ID_BITS,
            events: VecDeque::new(),
            retired: false,
            options,
        }
    }

    /// Whose id an effect's is: [`SpoolOptions::ids`].
    #[must_use]
    pub fn ids_of(id: EffectId) -> u16 {
        (id.0 >> ID_BITS) as u16
    }

    /// Takes a frame, which must continue the one before; gives its number.
    ///
    /// # Errors
    /// When there is no room, or it is not the next one of this timeline: then nothing has changed.
    pub fn push(&mut self, frame: EncodedFrame) -> Result<u64, PushError> {
        let (bytes, info) = (frame.len(), frame.info);
        if bytes > SPOOL_FRAME_MAX {
            return Err(PushError::TooLong { bytes });
        }
        if let Some((_, expected)) = self.of.filter(|of| *of != (info.group, info.timeline)) {
            return Err(PushError::OtherTimeline { expected, found: info.timeline });
        }
        if let Some(expected) = self.end.filter(|end| !continues(*end, &info)) {
            return Err(PushError::NotNext { expected, found: info.begin() });
        }
        if !self.held.has_room(held::cost_of(&frame)) {
            let (memory, memory_max) = (self.memory_bytes(), self.options.memory_bytes_max);
            return Err(PushError::Full { bytes, memory, memory_max });
        }
        self.of = Some((info.group, info.timeline));
        self.end = Some(info.end());
        let queued = self.held.push(frame, self.options.disk_bytes_max >= self.options.file_bytes);
        let number = self.held.end() - 1;
        if queued {
            self.files.queue.push_back(number);
        }
        Ok(number)
    }

    /// Whether a frame of so many bytes would be taken now, if it is of one piece for each 512 bytes at most.
    #[must_use]
    pub fn can_take(&self, bytes: u64) -> bool {
        bytes <= SPOOL_FRAME_MAX && self.held.has_room(held::cost_at_most(bytes))
    }

    /// The frame with this number, and what follows is read ahead.
    pub fn get(&mut self, number: u64) -> Lookup {
        if number < self.held.base() || number >= self.held.end() {
            return Lookup::Gone;
        }
        self.seek(number);
        match self.held.frame(number) {
            held::Found::Here(frame) => Lookup::Here(frame),
            held::Found::OnDisk => {
                self.ahead_next = number;
                Lookup::Later
            }
            held::Found::Lost => Lookup::Gone,
        }
    }

    /// The frames up to and with this number are durable: they are forgotten, and files in which nothing else is are removed.
    pub fn release(&mut self, upto: u64) {
        while self.held.base() <= upto
            && let Some((writing, cost)) = self.held.release()
        {
            if let Some(Pending::Write { orphaned, .. }) = writing.and_then(|id| self.pending.get_mut(&id)) {
                *orphaned += cost;
            }
        }
        self.cursor = self.cursor.max(self.held.base());
        self.files.synced = self.files.synced.max(self.held.base());
    }

    /// Releases everything, and the next frame need not continue what was there.
    pub fn forget(&mut self) {
        if let Some(last) = self.held.end().checked_sub(1) {
            self.release(last);
        }
        self.end = None;
    }

    /// Everything up to and with this number is stored, or was released; none: nothing is.
    #[must_use]
    pub fn stored(&self) -> Option<u64> {
        self.files.synced.max(self.held.base()).checked_sub(1)
    }

    /// The number that the next frame gets.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.held.end()
    }

    /// Where the last frame that came ends.
    #[must_use]
    pub fn end(&self) -> Option<Position> {
        self.end
    }

    /// Bytes of all frames that are not released, wherever they are.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held.frame_bytes()
    }

    /// Bytes of frames that it can hold as it is now, those that it holds included: more, as more of them come to be on disk.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.held.frame_bytes() + self.held.memory_max().saturating_sub(self.held.stuck())
    }

    /// What its effects are known by: [`SpoolOptions::ids`].
    #[must_use]
    pub fn ids(&self) -> u16 {
        self.options.ids
    }

    /// Memory that is taken: never more than [`SpoolOptions::memory_bytes_max`], but for a recovered spool whose frames alone need
    /// more to be counted.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.held.memory_bytes()
    }

    /// Room on disk that files have: never more than [`SpoolOptions::disk_bytes_max`], but for recovered files.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.files.bytes()
    }

    /// Whether the disk is in trouble, and there is only memory.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.files.failed
    }

    /// Other bounds from now on, as those of [`SpoolOptions`]. What is there above them stays until it is released or written.
    pub fn set_bounds(&mut self, memory_bytes_max: u64, ahead_bytes: u64, disk_bytes_max: u64) {
        let options = SpoolOptions { memory_bytes_max, ahead_bytes, disk_bytes_max, ..self.options.clone() };
        self.options = options.clamped();
        let SpoolOptions { memory_bytes_max, ahead_bytes, .. } = self.options;
        self.held.set_bounds(memory_bytes_max - ahead_bytes, ahead_bytes);
    }

    /// Files that are begun from now on become so long: see [`SpoolOptions::file_bytes`].
    pub fn set_file_bytes(&mut self, bytes: u64) {
        let options = SpoolOptions { file_bytes: bytes, ..self.options.clone() };
        self.options = options.clamped();
    }

    /// No frame comes any more: files are removed as soon as everything is released, the one that is being written too.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// Whether nothing is under way, and of a retired spool no file is left.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && (!self.retired || self.files.is_empty())
    }

    /// What happened, the oldest first.
    pub fn event(&mut self) -> Option<SpoolEvent> {
        self.events.pop_front()
    }

    /// The next thing to do, if there is one; all that were given may be carried out at once and in any order.
    pub fn poll(&mut self, now: MonoTime) -> Option<(EffectId, Effect)> {
        self.poll_files(now).or_else(|| self.poll_reads(now))
    }

    /// What came of an effect.
    pub fn completed(&mut self, now: MonoTime, id: EffectId, outcome: Outcome) {
        match self.pending.remove(&id) {
            Some(Pending::Read { spans, landing, reserved }) => self.was_read(now, &spans, &landing, reserved, outcome),
            Some(pending) => self.was_done(now, id, pending, outcome),
            None => {}
        }
    }

    /// When [`Spool::poll`] has something without anything else having happened.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        [self.files_deadline(), self.read_after.filter(|_| self.wants_read())].into_iter().flatten().min()
    }

    fn tell(&mut self, event: SpoolEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    fn hand_out(&mut self, pending: Pending, effect: Effect) -> Option<(EffectId, Effect)> {
        let id = EffectId(self.next_id);
        self.next_id += 1;
        self.pending.insert(id, pending);
        Some((id, effect))
    }

    /// What an effect will be called that is handed out next.
    fn coming_id(&self) -> EffectId {
        EffectId(self.next_id)
    }

    fn path(&self, timeline: Timeline, sequence: u64) -> String {
        crate::media::join(&self.options.directory, &layout::file_name(timeline, sequence))
    }
}

/// Whether a frame goes on at this position.
fn continues(end: Position, info: &FrameInfo) -> bool {
    info.begin() == end
}
