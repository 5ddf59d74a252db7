//! The source end of a link: numbers frames, sends them under the other side's credit, and begins again where the other side
//! stands after every cut. A machine: connections, messages and time go in, [`SourceEnd::poll`] gives what is to be done.
//!
//! It knows of each frame where it begins and ends until it is durable; the bytes are its owner's, under the same [`FrameKey`].
//! One session holds at a time. Whatever breaks one, even the loss of one data connection, ends it, and the next one asks the
//! other side for its position: there is one way to resume.

mod held;
mod session;
#[cfg(test)]
mod tests;

use self::held::Held;
use self::session::Session;
use super::calls::{CallId, CallRefused, Calls};
use super::draw::Draw;
use super::farewell::Class;
use super::message::{Answer, Call, Code, DataKey, FarRoom, Farewell, Features, Message};
use super::pulse::ClockSample;
use crate::frame::{EncodedFrame, FrameInfo};
use crate::types::{GroupId, Lsn, MonoTime, Position, SessionId, Timeline};
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Bytes of frames and calls that wait in the driver for one connection: nothing more is given to it above this.
pub const QUEUED_BYTES_MAX: u64 = 1 << 20;
/// Frames that are not durable, at most. The bound in bytes is the owner's.
pub const FRAMES_MAX: usize = 1 << 20;
/// Seeds that wait for credit, at most.
pub const SEEDS_MAX: usize = 8;
/// While frames wait too, one seed goes after so many of them.
const FRAMES_PER_SEED: u32 = 4;
/// The first wait before a session is tried again, in nanoseconds; each failure doubles it, up to [`SourceOptions::retry_max_ns`].
const RETRY_NS: u64 = 100_000_000;
/// A session that held so long was a good one: the next wait is the first one again.
const STABLE_NS: u64 = 10_000_000_000;
/// A shorter one in which something was acknowledged or answered counts as so few failures at most: faults that follow each other
/// closely are not one long fault. Never none: who lets in and goes away each time is not dialled as often as may be.
const USEFUL_FAILURES: u32 = 1;

/// A connection: a name that its driver gives and never uses again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// A frame between source end and owner: 0, 1, 2 … in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameKey(pub u64);

/// A connection that is to be made: of which attempt, and which one of it, 0 the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dial {
    /// The session's attempt.
    pub attempt: u64,
    /// Which connection.
    pub index: u16,
}

/// How a source end is made.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Whose frames; none where calls name the group.
    pub group: Option<GroupId>,
    /// Their timeline; none: calls only.
    pub timeline: Option<Timeline>,
    /// Whose group; may be empty.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// Who speaks, for people.
    pub software: String,
    /// What is spoken beside the least.
    pub features: Features,
    /// Data connections that are wished.
    pub connections: u16,
    /// They may be plain.
    pub plain: bool,
    /// After so long without a word the other side is taken for dead.
    pub silence_ms: u32,
    /// Where the frames begin that will be offered: of a new timeline LSN 0, whole. A relay that has nothing says what it was told.
    pub start: Position,
    /// Whether frames are made here. Then they are as new as they are offered, and another side that has more of the timeline
    /// has another history. A relay that lost what it kept may find more there, and is told how new frames are.
    pub origin: bool,
    /// The highest durable LSN of the timeline that was told before.
    pub durable: Lsn,
    /// The highest attempt that was used before.
    pub attempt: u64,
    /// The longest wait between attempts, in nanoseconds.
    pub retry_max_ns: u64,
    /// Random: identities and jitter come from it.
    pub seed: [u8; 32],
}

/// What the driver has to do, or the owner to know.
#[derive(Clone, Debug)]
pub enum SourceEffect {
    /// Make a connection; answered once by [`SourceEnd::handle_connected`] or [`SourceEnd::handle_connect_failed`].
    Connect {
        /// Which one.
        dial: Dial,
        /// Its session.
        session: SessionId,
        /// Plain TCP, messages with a MAC of this key; none: TLS.
        plain: Option<DataKey>,
    },
    /// Send this.
    Send {
        /// Where.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// Send the frame with this key under this number.
    SendFrame {
        /// Where.
        conn: ConnId,
        /// Its number in the session.
        number: u64,
        /// Which one.
        key: FrameKey,
    },
    /// Send the last word, if there is one, and close.
    Close {
        /// Which one.
        conn: ConnId,
        /// The last word.
        farewell: Option<Farewell>,
    },
    /// How far the other side is; only when something changed.
    Acked(Acked),
    /// A call of this end is answered, or will not be.
    Answered {
        /// Which one.
        id: CallId,
        /// How.
        answer: Answer,
    },
    /// The other side asks: answer it by [`SourceEnd::answer`].
    Called {
        /// What the answer is given under.
        id: CallId,
        /// What.
        call: Call,
    },
    /// What was acknowledged as durable is lost.
    Lost(RangeInclusive<Lsn>),
    /// The timeline cannot go on here: fork a new one. Nothing more is tried.
    Broken {
        /// Where the other side stands: outside of what is held.
        have: Position,
        /// From here on frames are held.
        oldest: Position,
        /// Up to here.
        newest: Position,
    },
    /// The other side does not let us in: somebody has to do something. Where the class is `Never` nothing more is tried until
    /// [`SourceEnd::dial`].
    Refused {
        /// What it said.
        farewell: Farewell,
        /// What would help.
        class: Class,
    },
    /// A session holds.
    Up {
        /// Where the other side stood.
        have: Option<Position>,
        /// What both speak.
        features: Features,
    },
    /// It does not hold any more. Seeds that were offered may be lost.
    Down {
        /// Why.
        why: Farewell,
    },
}

/// How far the other side is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Acked {
    /// Whole and in order, in memory at least, as the session says that holds: after a cut it may be less.
    pub received: Lsn,
    /// Synced in a proxy's disk cache, or durable; it may become less in the same way.
    pub stored: Lsn,
    /// Synced by the replica host. Never less, but after [`SourceEffect::Lost`].
    pub durable: Lsn,
    /// Frames with lower keys are needed no more.
    pub kept_from: u64,
    /// Whether everything is taken.
    pub room: FarRoom,
    /// Seeds of this session that were taken.
    pub seeds: u64,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OfferError {
    /// It does not continue the frame before.
    #[error("a frame begins at {found}, the one before ends at {expected}")]
    Chain {
        /// Where the last one ends.
        expected: Position,
        /// Where this one begins.
        found: Position,
    },
    /// It is of another group or timeline than this end is for.
    #[error("a frame of group {group}, timeline {timeline} was offered to another link")]
    Other {
        /// Its group.
        group: GroupId,
        /// Its timeline.
        timeline: Timeline,
    },
    /// So many wait already.
    #[error("{frames} frames wait to become durable")]
    Full {
        /// How many.
        frames: usize,
    },
}

/// A seed that cannot be taken now: offer it again.
#[derive(Debug)]
pub struct SeedRefused(pub Box<EncodedFrame>);

/// How it goes, for people and for scraping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourceStatus {
    /// A session holds.
    pub up: bool,
    /// The attempt that was made last.
    pub attempt: u64,
    /// Frames that are not durable.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since the oldest of them was offered; 0: none is there.
    pub lag_ns: u64,
    /// Bytes of frames and seeds that went out, ever.
    pub sent_bytes: u64,
    /// Bytes that the other side holds and that are not durable.
    pub far_bytes: u64,
    /// The other side's clock.
    pub clock: Option<ClockSample>,
    /// Bytes of credit that are left.
    pub credit: u64,
    /// Where the other side stood when the session began; none: it had nothing, or no session holds.
    pub have: Option<Position>,
    /// What both speak; nothing while no session holds.
    pub features: Features,
}

#[derive(Debug)]
enum Life {
    /// The next attempt is due then.
    Waiting(MonoTime),
    Session(Box<Session>),
    /// Until somebody says so.
    Resting,
    Stopped,
}

/// See the module's text.
#[derive(Debug)]
pub struct SourceEnd {
    options: SourceOptions,
    draw: Draw,
    held: Held,
    life: Life,
    attempt: u64,
    failures: u32,
    calls: Calls,
    seeds: VecDeque<EncodedFrame>,
    acked: Acked,
    told: Acked,
    /// Up to here what is stored need not be held: see [`SourceEnd::lend`].
    lent: Lsn,
    /// The highest durable LSN that anybody has told: see [`SourceEnd::learn`].
    durable_seen: Lsn,
    newest: MonoTime,
    far_bytes: u64,
    sent_bytes: u64,
    /// Bounded by what a session may have queued, open and told: frames and calls by [`QUEUED_BYTES_MAX`] for each connection.
    effects: VecDeque<SourceEffect>,
}

impl SourceEnd {
    /// An end that dials at once.
    #[must_use]
    pub fn new(now: MonoTime, options: SourceOptions) -> Self {
        let acked = Acked { durable: options.durable, ..Acked::default() };
        Self {
            draw: Draw::new(options.seed),
            held: Held::new(options.start, FRAMES_MAX),
            life: Life::Waiting(now),
            attempt: options.attempt,
            failures: 0,
            calls: Calls::default(),
            seeds: VecDeque::new(),
            acked,
            told: acked,
            lent: Lsn::ZERO,
            durable_seen: options.durable,
            newest: MonoTime(0),
            far_bytes: 0,
            sent_bytes: 0,
            effects: VecDeque::new(),
            options,
        }
    }

    /// From the next session on there are so many data connections beside the first one, plain ones or not.
    pub fn set_data_connections(&mut self, connections: u16, plain: bool) {
        (self.options.connections, self.options.plain) = (connections, plain);
    }

    /// The next frame of the timeline. Its owner keeps it until [`Acked::kept_from`] is above its key.
    ///
    /// # Errors
    /// When it does not continue the one before, or too many wait.
    pub fn offer(&mut self, now: MonoTime, info: &FrameInfo, bytes: u64) -> Result<FrameKey, OfferError> {
        if self.options.timeline != Some(info.timeline) || self.options.group != Some(info.group) {
            return Err(OfferError::Other { group: info.group, timeline: info.timeline });
        }
        let key = self.held.push(now, info, bytes)?;
        if self.options.origin {
            self.newest = now;
        }
        self.release();
        self.pump(now);
        Ok(key)
    }

    /// Frames up to and with this LSN are *lent*: as soon as the other side has stored them they are held by it alone, and
    /// [`Acked::kept_from`] passes them. If it is lost with them before they are durable, the next session ends with
    /// [`SourceEffect::Broken`].
    pub fn lend(&mut self, through: Lsn) {
        self.lent = self.lent.max(through);
        self.release();
    }

    /// Lets go of everything that is lent, stored or not, because there is no room for it: another proxy took the place of the one
    /// that had stored it. A session that would have sent it ends, and the next one says whether anything is missing.
    pub fn forfeit_lent(&mut self, now: MonoTime) {
        self.held.release(self.lent);
        let missed = matches!(&self.life, Life::Session(session) if session.is_before(self.held.first_key()));
        if missed {
            self.end(now, Farewell::new(Code::Broken, "what would follow is not held any more"), Ending::Ours);
            self.life = Life::Waiting(now);
        }
        self.release();
    }

    /// The next seed. None is kept: after `Down` seeding begins again where a call says.
    ///
    /// # Errors
    /// Gives it back while no session that takes seeds holds, or [`SEEDS_MAX`] wait.
    pub fn offer_seed(&mut self, now: MonoTime, seed: EncodedFrame) -> Result<(), SeedRefused> {
        let takes = matches!(&self.life, Life::Session(session) if session.takes_seeds());
        if !takes || self.seeds.len() >= SEEDS_MAX {
            return Err(SeedRefused(Box::new(seed)));
        }
        self.seeds.push_back(seed);
        self.pump(now);
        Ok(())
    }

    /// How many seeds would be taken now.
    #[must_use]
    pub fn seeds_wanted(&self) -> usize {
        let takes = matches!(&self.life, Life::Session(session) if session.takes_seeds());
        if takes { SEEDS_MAX - self.seeds.len() } else { 0 }
    }

    /// Asks the other side. [`SourceEffect::Answered`] comes in any case, after `within_ns` at the latest.
    ///
    /// # Errors
    /// When it cannot be asked now.
    pub fn call(&mut self, now: MonoTime, call: Call, within_ns: u64) -> Result<CallId, CallRefused> {
        if !self.is_up() {
            return Err(CallRefused::Down);
        }
        let id = self.calls.call(now, call, within_ns)?;
        self.pump(now);
        Ok(id)
    }

    /// Answers a call of the other side; without effect if its session is over.
    pub fn answer(&mut self, now: MonoTime, id: CallId, answer: Answer) {
        self.calls.answer(id, answer);
        self.pump(now);
    }

    /// What a relay was told from above: from where on the source has everything, as long as no frame came, and what was called
    /// durable. That is believed only when the other side says so too: it is asked again if it did not.
    pub(super) fn learn(&mut self, now: MonoTime, start: Position, durable_seen: Lsn) {
        self.held.start_at(start);
        if durable_seen <= self.durable_seen.max(self.acked.durable) {
            return;
        }
        self.durable_seen = durable_seen;
        if matches!(self.life, Life::Session(_)) {
            let why = Farewell::new(Code::Done, "another session asks about what was called durable");
            self.end(now, why, Ending::Ours);
            self.life = Life::Waiting(now);
        }
    }

    /// Nothing is tried until [`SourceEnd::dial`].
    #[must_use]
    pub fn is_resting(&self) -> bool {
        matches!(self.life, Life::Resting)
    }

    /// The newest record of the source that is known here, by this side's clock: a relay says what it was told.
    pub fn set_newest(&mut self, newest: MonoTime) {
        self.newest = self.newest.max(newest);
    }

    /// Tries now: somebody has changed something, or the network is back.
    pub fn dial(&mut self, now: MonoTime) {
        self.failures = 0;
        if matches!(self.life, Life::Waiting(_) | Life::Resting) {
            self.life = Life::Waiting(now);
        }
    }

    /// Ends in order: nothing more is sent, nothing more is tried.
    pub fn stop(&mut self, now: MonoTime) {
        self.end(now, Farewell::new(Code::Done, "nothing more comes"), Ending::Ours);
        self.life = Life::Stopped;
    }

    /// The next thing to do, or `None` until the next call or deadline.
    pub fn poll(&mut self) -> Option<SourceEffect> {
        self.effects.pop_front()
    }

    /// When [`SourceEnd::handle_timer`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        match &self.life {
            Life::Waiting(at) => Some(*at),
            Life::Session(session) => {
                let calls = self.calls.next_deadline();
                session.next_deadline().into_iter().chain(calls).min()
            }
            Life::Resting | Life::Stopped => None,
        }
    }

    /// Time went on.
    pub fn handle_timer(&mut self, now: MonoTime) {
        match &self.life {
            Life::Waiting(at) if *at <= now => self.begin(),
            Life::Session(_) => {
                for (id, answer) in self.calls.expired(now) {
                    self.effects.push_back(SourceEffect::Answered { id, answer });
                }
                self.keep_alive(now);
            }
            _ => {}
        }
    }

    /// Whether a session holds.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(&self.life, Life::Session(session) if session.is_up())
    }

    /// The position from which on every frame is held.
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.held.oldest()
    }

    /// Behind the last frame that was offered.
    #[must_use]
    pub fn end_position(&self) -> Position {
        self.held.end()
    }

    /// How far the other side is, as it was told last.
    #[must_use]
    pub fn acked(&self) -> Acked {
        self.acked
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self, now: MonoTime) -> SourceStatus {
        let session = if let Life::Session(session) = &self.life { Some(session) } else { None };
        SourceStatus {
            up: self.is_up(),
            attempt: self.attempt,
            frames: self.held.len() as u64,
            bytes: self.held.bytes(),
            lag_ns: self.held.front().map_or(0, |frame| now.since(frame.made)),
            sent_bytes: self.sent_bytes,
            far_bytes: self.far_bytes,
            clock: session.and_then(|session| session.clock()),
            credit: session.map_or(0, |session| session.credit_left()),
            have: session.and_then(|session| session.agreed()?.0),
            features: session
                .and_then(|session| session.agreed())
                .map_or(Features::default(), |(_, features)| features),
        }
    }

    /// Begins an attempt.
    fn begin(&mut self) {
        let Some(id) = SessionId::new(self.draw.identity()) else { return };
        self.attempt = self.attempt.saturating_add(1);
        self.life = Life::Session(Box::new(Session::new(id)));
        let dial = Dial { attempt: self.attempt, index: 0 };
        self.effects.push_back(SourceEffect::Connect { dial, session: id, plain: None });
    }

    /// Lets go of what is durable, or lent and stored, and says what changed.
    fn release(&mut self) {
        self.held.release(self.acked.durable.max(self.lent.min(self.acked.stored)));
        self.acked.kept_from = self.held.first_key();
        if self.told != self.acked {
            self.told = self.acked;
            self.effects.push_back(SourceEffect::Acked(self.acked));
        }
    }

    /// When to try again: twice as long after each failure, somewhere in the upper half of that.
    fn retry_at(&mut self, now: MonoTime) -> MonoTime {
        let wait = RETRY_NS.saturating_mul(1 << self.failures.min(20)).min(self.options.retry_max_ns.max(RETRY_NS));
        self.failures = self.failures.saturating_add(1);
        now.after(self.draw.between_half_and(wait))
    }

    /// The session is over.
    fn end(&mut self, now: MonoTime, why: Farewell, ending: Ending) {
        let Life::Session(session) = std::mem::replace(&mut self.life, Life::Resting) else { return };
        let farewell = (ending == Ending::Ours).then(|| why.clone());
        for conn in session.connections() {
            self.effects.push_back(SourceEffect::Close { conn, farewell: farewell.clone() });
        }
        for (id, answer) in self.calls.cut() {
            self.effects.push_back(SourceEffect::Answered { id, answer });
        }
        self.seeds.clear();
        if session.up_since().is_some_and(|since| now.since(since) >= STABLE_NS) {
            self.failures = 0;
        } else if session.was_useful() {
            self.failures = self.failures.min(USEFUL_FAILURES);
        }
        if session.is_up() {
            self.effects.push_back(SourceEffect::Down { why: why.clone() });
        }
        let mut class = if ending == Ending::Theirs { why.code.class() } else { Class::Retry };
        if why.code == Code::Superseded {
            // Whoever dials again counts on from there.
            self.attempt = self.attempt.max(why.expected);
            if !session.is_up() {
                // This end started again and counts from too low. Once in, it is the other one that is refused.
                class = Class::Retry;
            }
        }
        if class != Class::Retry {
            self.effects.push_back(SourceEffect::Refused { farewell: why, class });
        }
        if class != Class::Never {
            self.life = Life::Waiting(self.retry_at(now));
        }
    }
}

/// Who ends a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// This side, with a last word.
    Ours,
    /// The other side said it.
    Theirs,
    /// Nobody: it broke.
    Cut,
}
