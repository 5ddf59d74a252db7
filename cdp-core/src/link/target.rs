//! The target end of a link: lets a session in, puts its frames in order, hands on what is new of them, and acknowledges.
//! A machine: connections, messages and time go in, [`TargetEnd::poll`] gives what is to be done.
//!
//! What is there of the timeline, its owner knows: it is asked at each session ([`TargetEffect::Judge`]) and says it by
//! [`TargetEnd::admit`]. Before that everything that was taken of the session before has been handed to it.

mod order;
mod session;
#[cfg(test)]
mod tests;

use self::session::{Pending, Session};
use super::calls::{CallId, CallRefused, Calls};
use super::message::{
    Answer, Call, Code, DATA_CONNECTIONS_MAX, DataKey, FarRoom, Farewell, Features, Hello, Message, Purpose, VERSION,
    Welcome,
};
use super::pulse::{ClockSample, silence_ns};
use super::source::ConnId;
use crate::frame::EncodedFrame;
use crate::types::{GroupId, Lsn, MonoTime, Position, SessionId, Timeline};
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// How long the owner may take to judge a session, in nanoseconds.
const JUDGE_NS: u64 = 10_000_000_000;
/// Acknowledgements are so far apart at least, in nanoseconds.
const ACK_NS: u64 = 1_000_000;

/// How a target end is made.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// Whose frames; none where calls name the group.
    pub group: Option<GroupId>,
    /// Their timeline; none: calls only.
    pub timeline: Option<Timeline>,
    /// What is spoken beside the least.
    pub features: Features,
    /// Data connections that may come.
    pub connections: u16,
    /// After so long without a word the other side is taken for dead; the smaller wish of both counts.
    pub silence_ms: u32,
    /// The highest attempt that was let in before.
    pub attempt: u64,
}

/// What holds for a session, as the owner says it.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Up to where it has the timeline, in memory at least; LSN 0, whole, where that is open and empty. None: it keeps nothing
    /// itself, and takes what comes first, as a relay does that has just started.
    pub have: Option<Position>,
    /// Synced in a proxy's disk cache, or durable.
    pub stored: Lsn,
    /// Synced by the replica host; what lies before the timeline where it has nothing of it.
    pub durable: Lsn,
    /// What was acknowledged as durable and is lost.
    pub lost: Option<RangeInclusive<Lsn>>,
    /// Bytes of frames and seeds that it can take: see [`TargetEnd::grant`]. Where it never takes more than this, that is more than
    /// the longest write and two frames: a part of a write does not become durable alone.
    pub room_bytes: u64,
    /// Whether it takes everything.
    pub room: FarRoom,
    /// Plain data connections are granted, with this key.
    pub data_key: Option<DataKey>,
}

/// What the driver has to do, or the owner to know.
#[derive(Clone, Debug)]
pub enum TargetEffect {
    /// Whether the session may begin: [`TargetEnd::admit`] or [`TargetEnd::refuse`].
    Judge {
        /// Which one.
        session: SessionId,
        /// What it wants.
        hello: Box<Hello>,
    },
    /// Send this.
    Send {
        /// Where.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// Send the last word, if there is one, and close.
    Close {
        /// Which one.
        conn: ConnId,
        /// The last word.
        farewell: Option<Farewell>,
    },
    /// The next frame of the timeline: it continues the one before, or what was there.
    Take(EncodedFrame),
    /// The next seed.
    TakeSeed(EncodedFrame),
    /// A call of this end is answered, or will not be.
    Answered {
        /// Which one.
        id: CallId,
        /// How.
        answer: Answer,
    },
    /// The other side asks: answer it by [`TargetEnd::answer`].
    Called {
        /// What the answer is given under.
        id: CallId,
        /// What.
        call: Call,
    },
    /// A session holds.
    Up {
        /// Which one.
        session: SessionId,
        /// What both speak.
        features: Features,
    },
    /// It does not hold any more.
    Down {
        /// Why.
        why: Farewell,
    },
}

/// How it goes, for people and for scraping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TargetStatus {
    /// A session holds.
    pub up: bool,
    /// The attempt that was let in last.
    pub attempt: u64,
    /// Bytes of frames and seeds that came, ever.
    pub taken_bytes: u64,
    /// Bytes of frames that wait for those before them.
    pub waiting_bytes: u64,
    /// Bytes that the other side holds and that are not durable.
    pub far_bytes: u64,
    /// The newest record at the source that is known, on this side's clock.
    pub newest: Option<MonoTime>,
    /// The other side's clock.
    pub clock: Option<ClockSample>,
}

#[derive(Debug)]
enum Life {
    Free,
    Judging(Pending),
    Session(Box<Session>),
}

/// See the module's text.
#[derive(Debug)]
pub struct TargetEnd {
    options: TargetOptions,
    life: Life,
    /// The highest attempt that was judged.
    attempt: u64,
    calls: Calls,
    taken_bytes: u64,
    /// Frames in it are within the credit; the rest is bounded by what a session may have open.
    effects: VecDeque<TargetEffect>,
}

impl TargetEnd {
    /// An end without a session.
    #[must_use]
    pub fn new(options: TargetOptions) -> Self {
        let attempt = options.attempt;
        let effects = VecDeque::new();
        Self { options, life: Life::Free, attempt, calls: Calls::default(), taken_bytes: 0, effects }
    }

    /// A connection said hello. The driver has seen to it that the peer is who may speak for the group.
    pub fn handle_accepted(&mut self, now: MonoTime, conn: ConnId, hello: Hello) {
        let refused = match hello.connection {
            0 => self.wrong_with(&hello),
            index => return self.data_connection(now, conn, index, &hello),
        };
        if let Some(farewell) = refused {
            return self.effects.push_back(TargetEffect::Close { conn, farewell: Some(farewell) });
        }
        let why = Farewell::new(Code::Superseded, "a newer session of this source end is there");
        self.end(why.with(hello.attempt, self.attempt));
        self.attempt = hello.attempt;
        let session = hello.session;
        self.effects.push_back(TargetEffect::Judge { session, hello: Box::new(hello.clone()) });
        self.life = Life::Judging(Pending { conn, hello: Box::new(hello), until: now.after(JUDGE_NS) });
    }

    /// Why a session cannot be one of this end.
    fn wrong_with(&self, hello: &Hello) -> Option<Farewell> {
        if !hello.versions.contains(&VERSION) {
            let found = u64::from(*hello.versions.end());
            return Some(Farewell::new(Code::Version, "no common version").with(VERSION.into(), found));
        }
        if hello.group != self.options.group && self.options.group.is_some() {
            return Some(Farewell::new(Code::UnknownGroup, "this is not the link of that group"));
        }
        if (hello.purpose == Purpose::Frames) != hello.timeline.is_some() {
            return Some(Farewell::new(Code::Malformed, "frames need a timeline, and calls need none"));
        }
        if hello.timeline != self.options.timeline {
            return Some(Farewell::new(Code::TimelineUnknown, "this is not the link of that timeline"));
        }
        if hello.attempt <= self.attempt {
            let text = "a session with a higher attempt was let in";
            return Some(Farewell::new(Code::Superseded, text).with(self.attempt, hello.attempt));
        }
        None
    }

    /// The session may begin.
    pub fn admit(&mut self, now: MonoTime, session: SessionId, mut terms: Terms) {
        // A relay may have less than what is durable behind it. The source end would let go of what has to come here still.
        if let Some(have) = terms.have {
            terms.durable = terms.durable.min(have.whole_lsn());
        }
        let Life::Judging(pending) = &self.life else { return };
        if pending.hello.session != session {
            return;
        }
        let Life::Judging(Pending { conn, hello, .. }) = std::mem::replace(&mut self.life, Life::Free) else { return };
        let features = hello.features.and(self.options.features);
        let silence_ns = silence_ns(hello.silence_ms).min(silence_ns(self.options.silence_ms));
        let data_key = terms.data_key.clone().filter(|_| hello.plain);
        let connections = self.options.connections.min(hello.connections).min(DATA_CONNECTIONS_MAX);
        let welcome = Welcome {
            version: VERSION,
            connections,
            data_key,
            features,
            credit: terms.room_bytes,
            have: terms.have,
            durable: terms.durable,
            lost: terms.lost.clone(),
            silence_ms: (silence_ns / 1_000_000) as u32,
        };
        self.effects.push_back(TargetEffect::Send { conn, message: Message::Welcome(Box::new(welcome.clone())) });
        self.effects.push_back(TargetEffect::Up { session, features });
        self.life = Life::Session(Box::new(Session::new(now, session, conn, welcome, &terms)));
        self.said(now);
    }

    /// The session may not begin, or not go on.
    pub fn refuse(&mut self, session: SessionId, farewell: Farewell) {
        let this = match &self.life {
            Life::Free => false,
            Life::Judging(pending) => pending.hello.session == session,
            Life::Session(running) => running.id() == session,
        };
        if this {
            self.end(farewell);
        }
    }

    /// Ends whatever is there, with a last word.
    pub fn close(&mut self, farewell: Farewell) {
        self.end(farewell);
    }

    /// The owner can take so many bytes of frames and seeds beyond those that it took out of [`TargetEnd::poll`] so far. What
    /// was granted stays granted.
    pub fn grant(&mut self, now: MonoTime, room_bytes: u64) {
        if let Life::Session(session) = &mut self.life {
            session.grant(room_bytes);
            self.said(now);
        }
    }

    /// Everything up to here is durable. Beyond what came nothing is said: that comes again.
    pub fn durable(&mut self, now: MonoTime, lsn: Lsn) {
        if let Life::Session(session) = &mut self.life {
            session.durable(lsn);
            self.said(now);
        }
    }

    /// Everything up to here is synced in a cache.
    pub fn stored(&mut self, now: MonoTime, lsn: Lsn) {
        if let Life::Session(session) = &mut self.life {
            session.stored(lsn);
            self.said(now);
        }
    }

    /// So many seeds of this session were taken by whoever writes them.
    pub fn seeds(&mut self, now: MonoTime, taken: u64) {
        if let Life::Session(session) = &mut self.life {
            session.seeds(taken);
            self.said(now);
        }
    }

    /// Whether everything is taken.
    pub fn room(&mut self, now: MonoTime, room: FarRoom) {
        if let Life::Session(session) = &mut self.life {
            session.room(room);
            self.said(now);
        }
    }

    /// Bytes of frames that the owner holds and that are not durable: for the other side to know.
    pub fn set_held(&mut self, bytes: u64) {
        if let Life::Session(session) = &mut self.life {
            session.set_held(bytes);
        }
    }

    /// Asks the other side. [`TargetEffect::Answered`] comes in any case, after `within_ns` at the latest.
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

    /// The next thing to do, or `None` until the next call or deadline.
    pub fn poll(&mut self) -> Option<TargetEffect> {
        let effect = self.effects.pop_front()?;
        if let (TargetEffect::Take(frame) | TargetEffect::TakeSeed(frame), Life::Session(session)) =
            (&effect, &mut self.life)
        {
            session.handed(frame.len());
        }
        Some(effect)
    }

    /// When [`TargetEnd::handle_timer`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        match &self.life {
            Life::Free => None,
            Life::Judging(pending) => Some(pending.until),
            Life::Session(session) => Some(session.next_deadline()).into_iter().chain(self.calls.next_deadline()).min(),
        }
    }

    /// Time went on.
    pub fn handle_timer(&mut self, now: MonoTime) {
        match &self.life {
            Life::Judging(pending) if pending.until <= now => {
                self.end(Farewell::new(Code::Busy, "nobody said in time whether this may begin"));
            }
            Life::Session(_) => {
                for (id, answer) in self.calls.expired(now) {
                    self.effects.push_back(TargetEffect::Answered { id, answer });
                }
                self.keep_alive(now);
            }
            _ => {}
        }
    }

    /// Whether a session holds.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.life, Life::Session(_))
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self) -> TargetStatus {
        let mut status = TargetStatus { attempt: self.attempt, taken_bytes: self.taken_bytes, ..Default::default() };
        if let Life::Session(session) = &self.life {
            session.fill(&mut status);
        }
        status
    }

    /// What is there is over; every connection that is left is told why.
    fn end(&mut self, why: Farewell) {
        let farewell = Some(why.clone());
        match std::mem::replace(&mut self.life, Life::Free) {
            Life::Free => {}
            Life::Judging(Pending { conn, .. }) => self.effects.push_back(TargetEffect::Close { conn, farewell }),
            Life::Session(session) => {
                for conn in session.connections() {
                    self.effects.push_back(TargetEffect::Close { conn, farewell: farewell.clone() });
                }
                for (id, answer) in self.calls.cut() {
                    self.effects.push_back(TargetEffect::Answered { id, answer });
                }
                self.effects.push_back(TargetEffect::Down { why });
            }
        }
    }
}
