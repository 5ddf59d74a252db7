//! What a source proxy makes of frames before it sends them: per-point periods are coalesced, zeros go without their bytes, the rest is
//! compressed as hard as cores and line allow.
//!
//! Frames of one timeline go in by [`Prepare::push`] in their order. In a period of per-point restore they are gathered into a *window* until
//! the period closes, the window is full, or it is old; elsewhere each goes on at once. [`Prepare::poll`] gives what is to be done, for
//! any thread; [`Prepare::done`] takes it back in any order, and [`Prepare::next`] gives frames to send in theirs. They cover the same positions:
//! the first continues what the first one that went in continued, the last ends where the last one ended.
//!
//! A record is left out if it is whole in its window and later records of the same run cover all of it ([`frame`](crate::frame)'s `FORMAT.md`
//! says what a run is). So the content at each end of a window, and of a period, is what it was. A proxy that takes over in the middle
//! knows nothing of the period that is open, and coalesces from the next one on.
//!
//! The checksums made at capture are verified here and move on; nothing recomputes them.

mod level;
mod raw;
#[cfg(test)]
mod tests;
mod window;
mod work;

pub use level::{Chosen, FOR_A_LINK, Ladder, Level};
pub use raw::to_raw;
pub use work::{Done, Work};

use self::window::{Place, Step};
use self::work::Item;
use crate::frame::{Compression, EncodedFrame, FrameError, FrameHead};
use crate::types::{GroupId, Lsn, MonoTime, Position, Timeline};
use std::collections::{BTreeMap, VecDeque};

/// What a preparation is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whose frames.
    pub group: GroupId,
    /// Of which branch of history.
    pub timeline: Timeline,
    /// Up to where the far side has them: of a record of which it has a part nothing is left out.
    pub have: Option<Position>,
    /// Bytes of a window, as its frames came; a window has at most one frame more.
    pub window_bytes: u64,
    /// The oldest frame of a window waits so long at most, in nanoseconds: the RPO.
    pub window_ns: u64,
    /// Bytes of frames that went in and did not come out; one frame more is taken. Work that runs takes as much again.
    pub inside_bytes_max: u64,
    /// The far side takes compressed chunks.
    pub zstd: bool,
    /// The hardest level of zstd that is chosen.
    pub level_max: i32,
    /// Nothing is left out: what the far side has is not known, and it may be a part of anything.
    pub whole: bool,
}

impl Options {
    /// Windows of 16 MiB and 15 s, 64 MiB inside, compressed.
    #[must_use]
    pub fn new(group: GroupId, timeline: Timeline) -> Self {
        let (window_bytes, window_ns, inside_bytes_max) = (16 << 20, 15_000_000_000, 64 << 20);
        Self {
            group,
            timeline,
            have: None,
            window_bytes,
            window_ns,
            inside_bytes_max,
            zstd: true,
            level_max: 19,
            whole: false,
        }
    }
}

/// Why frames cannot be prepared. All but `Full` are for ever: what was inside is lost, and its source still has it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PrepareError {
    /// A frame does not verify.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame of another group or timeline.
    #[error("a frame of group {group}, timeline {timeline} came to be prepared with those of another one")]
    Other {
        /// Its group.
        group: GroupId,
        /// Its timeline.
        timeline: Timeline,
    },
    /// A frame does not continue the one before.
    #[error("a frame that follows LSN {found} came after LSN {expected}")]
    OutOfOrder {
        /// The last LSN of the frame before.
        expected: Lsn,
        /// What the frame says that is.
        found: Lsn,
    },
    /// The bound is reached: later.
    #[error("{bytes} bytes of frames are being prepared: no more are taken until some come out")]
    Full {
        /// How many are inside.
        bytes: u64,
    },
    /// An earlier error ended the preparation.
    #[error("the preparation ended with an earlier error")]
    Ended,
    /// Work that was not given, or came back before.
    #[error("no such work is under way")]
    NotOpen,
}

/// What was saved, since the beginning. For one group: each has a preparation of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Frames that went in.
    pub frames_in: u64,
    /// Bytes of disks that went in, before any compression.
    pub bytes_in: u64,
    /// Records that were left out.
    pub records_coalesced: u64,
    /// Bytes of disks in them.
    pub bytes_coalesced: u64,
    /// Bytes of disks that were zeros and went without.
    pub bytes_zero: u64,
    /// Frames that came out.
    pub frames_out: u64,
    /// Bytes of them, heads and all.
    pub bytes_out: u64,
}

impl Stats {
    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        let Self { frames_in, bytes_in, records_coalesced, bytes_coalesced, bytes_zero, frames_out, bytes_out } =
            *other;
        self.frames_in += frames_in;
        self.bytes_in += bytes_in;
        self.records_coalesced += records_coalesced;
        self.bytes_coalesced += bytes_coalesced;
        self.bytes_zero += bytes_zero;
        self.frames_out += frames_out;
        self.bytes_out += bytes_out;
    }
}

/// Frames of one window that are not yet given as work.
#[derive(Debug)]
struct Window {
    items: Vec<Item>,
    bytes: u64,
    /// When the first one came.
    since: MonoTime,
    /// Before the first one.
    place: Place,
    settled: Lsn,
}

/// Prepares the frames of one timeline. See the module.
#[derive(Debug)]
pub struct Prepare {
    options: Options,
    level: Level,
    /// Packed bytes that wait elsewhere to be sent.
    unsent: u64,
    place: Place,
    settled: Lsn,
    last_lsn: Option<Lsn>,
    open: Option<Window>,
    /// Closed windows; bounded by the bytes inside.
    closed: VecDeque<Window>,
    /// Of the next work.
    number: u64,
    /// Of the work whose frames come out next.
    next: u64,
    /// Bytes that went in, of each work that is not back.
    running: BTreeMap<u64, u64>,
    /// Back, and not all taken.
    ready: BTreeMap<u64, VecDeque<EncodedFrame>>,
    /// As they went in, and of the ready ones as they come out.
    inside: u64,
    /// Of the closed windows: what waits for a thread.
    waiting: u64,
    ended: bool,
    stats: Stats,
}

impl Prepare {
    /// One that nothing went through yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            level: Level::default(),
            unsent: 0,
            place: Place::default(),
            settled: Lsn::ZERO,
            last_lsn: None,
            open: None,
            closed: VecDeque::new(),
            number: 0,
            next: 0,
            running: BTreeMap::new(),
            ready: BTreeMap::new(),
            inside: 0,
            waiting: 0,
            ended: false,
            stats: Stats::default(),
        }
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// `Full`: nothing was taken ([`Self::is_full`] says it before). Else it is not a frame that can follow.
    pub fn push(&mut self, now: MonoTime, frame: EncodedFrame) -> Result<(), PrepareError> {
        if self.ended {
            return Err(PrepareError::Ended);
        }
        if self.is_full() {
            return Err(PrepareError::Full { bytes: self.inside });
        }
        let head = FrameHead::parse(&frame.head)?;
        let info = head.info;
        if (info.group, info.timeline) != (self.options.group, self.options.timeline) {
            return Err(PrepareError::Other { group: info.group, timeline: info.timeline });
        }
        if let Some(expected) = self.last_lsn.filter(|last| *last != info.prev_lsn) {
            return Err(PrepareError::OutOfOrder { expected, found: info.prev_lsn });
        }
        self.last_lsn = Some(info.last_lsn);
        let place = self.place;
        let (mut ends, mut unknown) = (false, false);
        for record in &head.records {
            ends |= self.place.step(record.kind, record.disk) == Step::Ends;
            unknown |= record.kind.is_none();
        }
        if unknown {
            // It is passed on as it is, and nothing goes over it.
            self.flush();
        }
        let bytes = cost(&frame);
        self.inside += bytes;
        self.stats.frames_in += 1;
        self.stats.bytes_in += u64::from(info.plain_bytes);
        let settled = self.settled;
        self.settled = settled.max(info.settled);
        let window =
            self.open.get_or_insert_with(|| Window { items: Vec::new(), bytes: 0, since: now, place, settled });
        window.bytes += bytes;
        window.items.push(Item { head, frame });
        let waits = !(ends || unknown || self.options.whole)
            && self.place.in_period
            && window.bytes < self.options.window_bytes;
        // A window that waits for more where no more is taken would wait for ever.
        if !waits || self.is_full() {
            self.flush();
        }
        Ok(())
    }

    /// Whether no frame is taken until some come out.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inside >= self.options.inside_bytes_max
    }

    /// Nothing more is waited for: what was gathered is prepared now.
    pub fn flush(&mut self) {
        self.waiting += self.open.as_ref().map_or(0, |window| window.bytes);
        self.closed.extend(self.open.take());
    }

    /// Up to where the far side has them: see [`Options::have`].
    pub fn set_have(&mut self, have: Option<Position>) {
        self.options.have = have;
    }

    /// Whether nothing is left out: see [`Options::whole`].
    pub fn set_whole(&mut self, whole: bool) {
        if whole && !self.options.whole {
            // What was gathered for the sake of leaving something out goes on.
            self.flush();
        }
        self.options.whole = whole;
    }

    /// Bytes of a window from now on: see [`Options::window_bytes`].
    pub fn set_window(&mut self, bytes: u64) {
        self.options.window_bytes = bytes;
    }

    /// Whether the far side takes compressed chunks: see [`Options::zstd`].
    pub fn set_zstd(&mut self, zstd: bool) {
        self.options.zstd = zstd;
    }

    /// Packed bytes that wait to be sent elsewhere, as far as the caller knows: they say whether the line is the narrow place.
    pub fn set_unsent(&mut self, bytes: u64) {
        self.unsent = bytes;
    }

    /// How crowded the cores are: see [`Level::look`].
    pub fn look(&mut self, running: u64, waiting: u64) {
        self.level.look(running, waiting);
    }

    /// The next work, for any thread; as many at once as the caller has threads for.
    pub fn poll(&mut self, now: MonoTime) -> Option<Work> {
        if self.ended {
            return None;
        }
        if self.next_deadline().is_some_and(|due| due <= now) {
            self.flush();
        }
        let Window { items, bytes, place, settled, .. } = self.closed.pop_front()?;
        self.waiting -= bytes;
        let number = self.number;
        self.number += 1;
        self.running.insert(number, bytes);
        let compression = match self.options.zstd {
            true => {
                let chosen = self.level.choose(&FOR_A_LINK, self.waiting, self.unsent, false);
                chosen.compression().at_most(self.options.level_max)
            }
            false => Compression::None,
        };
        let keep = self.options.have.map_or(Lsn::ZERO, |have| have.lsn);
        Some(Work {
            number,
            items,
            place,
            settled,
            keep,
            compression,
            zstd: self.options.zstd,
            whole: self.options.whole,
        })
    }

    /// Work is back; in any order.
    ///
    /// # Errors
    /// When it does not verify, which ends the preparation, or is none that was given.
    pub fn done(&mut self, done: Done) -> Result<(), PrepareError> {
        let bytes = self.running.remove(&done.number).ok_or(PrepareError::NotOpen)?;
        self.inside -= bytes;
        match done.frames {
            Ok(frames) => {
                self.stats.add(&done.stats);
                self.inside += frames.iter().map(cost).sum::<u64>();
                self.ready.insert(done.number, frames.into());
                Ok(())
            }
            Err(error) => {
                self.ended = true;
                Err(error)
            }
        }
    }

    /// The next frame to send. What an error ended gives what came before it.
    #[expect(clippy::should_implement_trait, reason = "there may be more after none")]
    pub fn next(&mut self) -> Option<EncodedFrame> {
        loop {
            let frames = self.ready.get_mut(&self.next)?;
            if let Some(frame) = frames.pop_front() {
                self.inside -= cost(&frame);
                return Some(frame);
            }
            self.ready.remove(&self.next);
            self.next += 1;
        }
    }

    /// When `poll` has something to do again, if nothing else is called before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        self.open.as_ref().map(|window| window.since.after(self.options.window_ns))
    }

    /// Bytes that went in and did not come out.
    #[must_use]
    pub fn inside_bytes(&self) -> u64 {
        self.inside
    }

    /// Whether everything that went in came out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inside == 0
    }

    /// What was saved so far, by work that is back.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

/// What a frame takes of the bound, in bytes: inflated, if that is more.
fn cost(frame: &EncodedFrame) -> u64 {
    frame.len().max(u64::from(frame.info.head_bytes) + u64::from(frame.info.plain_bytes))
}
