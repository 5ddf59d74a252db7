//! A relay: the target end of one link, the source end of the next, and between them frames that are kept until they are durable.
//!
//! Between both is one seam: [`RelayEffect::Taken`] gives each frame as it came, and [`Relay::keep`] takes what is to be sent on:
//! the same, or other frames that cover the same positions in the same order.
//!
//! What is kept outlives sessions on both sides. The source end has everything that is not durable, so a relay that has nothing of
//! a timeline says so and begins with the source's oldest frame; where the next hop stands decides what of it is sent on. Where
//! both do not meet, the relay forgets what it has and closes above as `broken`: the source end decides, told where the next hop
//! stands.

mod hops;
mod kept;
#[cfg(test)]
mod tests;

use self::kept::Kept;
use super::calls::CallId;
use super::message::{Code, DataKey, FarRoom, Farewell, Hello, Message};
use super::source::{ConnId, Dial, SourceEnd, SourceOptions, SourceStatus};
use super::spool::{Spool, SpoolEvent};
use super::target::{TargetEffect, TargetEnd, TargetOptions, TargetStatus, Terms};
use crate::frame::{EncodedFrame, FrameInfo};
use crate::journal::{Effect, EffectId, Outcome};
use crate::mistakes::{self, Mistake};
use crate::types::{Lsn, MonoTime, Position, SessionId};
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

/// A call is passed on for so long at most, in nanoseconds: who asked has a bound of its own, which is shorter as a rule.
const CALL_NS: u64 = 600_000_000_000;

/// A relay with a source whose place below another one took takes it back after so long, in nanoseconds.
const REDIAL_NS: u64 = 500_000_000;

/// Which neighbour: above is the source's side.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hop {
    /// Towards the source.
    Above,
    /// Towards the replica.
    Below,
}

/// How a relay is made.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// The end towards the source.
    pub above: TargetOptions,
    /// The end towards the replica; `start`, `origin` and `durable` come from what is kept and what the source says.
    pub below: SourceOptions,
    /// Bytes of frames that are kept, at most: what the spool can hold. One frame may be beyond. Less than the longest write and two
    /// frames and nothing may move any more: a frame that ends within a write is let go of only when all of that write is durable.
    pub held_bytes_max: u64,
    /// Of these, bytes that the source may send before it hears of room again. So much memory may be taken beside the spool's.
    pub window_bytes: u64,
    /// The spool syncs what it holds: then `stored` is said of it.
    pub stores: bool,
}

/// Frames that were taken since the relay last forgot what it had; those from before are not kept any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Run(u64);

/// What the driver has to do, or the owner to know.
#[derive(Debug)]
pub enum RelayEffect {
    /// Make a connection below; answered once by [`Relay::handle_connected`] or [`Relay::handle_connect_failed`].
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
        /// To which side.
        hop: Hop,
        /// Where.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// Send the last word, if there is one, and close.
    Close {
        /// On which side.
        hop: Hop,
        /// Which one.
        conn: ConnId,
        /// The last word.
        farewell: Option<Farewell>,
    },
    /// A frame came: give it, or what is made of it and others, to [`Relay::keep`].
    Taken {
        /// To be given back with it.
        run: Run,
        /// As it came.
        frame: EncodedFrame,
    },
    /// To be done by the spool's disk.
    Disk(EffectId, Effect),
    /// Something that an operator should know.
    Event(RelayEvent),
}

/// What an operator should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RelayEvent {
    /// A session holds.
    Up(Hop),
    /// It does not any more.
    Down(Hop, Farewell),
    /// The next hop does not let us in. Answered by [`Relay::handle_refused`].
    Refused(Farewell),
    /// What the next hop had called durable is lost there; the source is told.
    Lost(RangeInclusive<Lsn>),
    /// What was kept does not meet what the next hop has: it is forgotten, and the source end decides.
    Forgotten {
        /// Where the next hop stands, if it said so.
        have: Option<Position>,
        /// What was kept began here.
        oldest: Position,
    },
    /// The spool said so.
    Spool(SpoolEvent),
}

/// How it goes, for people and for scraping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RelayStatus {
    /// The end towards the source.
    pub above: TargetStatus,
    /// The end towards the replica.
    pub below: SourceStatus,
    /// Bytes of frames that are kept, wherever.
    pub held_bytes: u64,
    /// Bytes of frames that are being prepared or wait for the spool.
    pub waiting_bytes: u64,
    /// Memory of the spool that is taken.
    pub memory_bytes: u64,
    /// Room on disk that the spool's files have.
    pub disk_bytes: u64,
    /// The last LSN that is synced here or durable.
    pub stored: Lsn,
}

/// Bounds of a relay that may change while it works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelayBounds {
    /// See [`RelayOptions::held_bytes_max`].
    pub held_bytes_max: u64,
    /// See [`RelayOptions::window_bytes`].
    pub window_bytes: u64,
    /// Memory of the spool, with what is read ahead.
    pub memory_bytes: u64,
    /// Of it, for what is read ahead.
    pub ahead_bytes: u64,
    /// Room of the spool on disk.
    pub disk_bytes: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Relay {
    options: RelayOptions,
    above: TargetEnd,
    below: Option<SourceEnd>,
    kept: Kept,
    /// What the source is told where it asks next: where the next hop stands, after what was kept did not meet it.
    told: Option<Position>,
    /// Where the next hop stood at the beginning of its last session.
    met: Option<Position>,
    /// What is lost, until the source has heard it; and whether the welcome of the session above says so.
    lost: Option<RangeInclusive<Lsn>>,
    lost_told: bool,
    far_room: FarRoom,
    /// The end below is dialled again then: another relay took its place, and the source is with this one.
    redial: Option<MonoTime>,
    /// For plain data connections of a session that is to be judged.
    key: Option<(SessionId, DataKey)>,
    /// Seeds for below, within the credit; and how many of the session below were of earlier sessions above.
    seeds: VecDeque<EncodedFrame>,
    seeds_before: u64,
    seeds_passed: u64,
    /// Some may be lost, and what the source hears is not said yet.
    seeds_cut: bool,
    /// Calls that were passed on, by what they are called on the other side. Bounded by what both ends have open.
    calls_down: BTreeMap<CallId, CallId>,
    calls_up: BTreeMap<CallId, CallId>,
    effects: VecDeque<RelayEffect>,
}

impl Relay {
    /// A relay with what its spool has: the frames of a recovered one, in order. With any it dials at once, else when a source
    /// comes.
    #[must_use]
    pub fn new(now: MonoTime, options: RelayOptions, spool: Spool, frames: &[FrameInfo]) -> Self {
        let mut relay = Self {
            above: TargetEnd::new(options.above.clone()),
            below: None,
            kept: Kept::new(spool),
            told: None,
            met: None,
            lost: None,
            lost_told: false,
            far_room: FarRoom::Ok,
            redial: None,
            key: None,
            seeds: VecDeque::new(),
            seeds_before: 0,
            seeds_passed: 0,
            seeds_cut: false,
            calls_down: BTreeMap::new(),
            calls_up: BTreeMap::new(),
            effects: VecDeque::new(),
            options,
        };
        if let Some(first) = frames.first() {
            relay.start_below(now, first.begin());
            for info in frames {
                let bytes = u64::from(info.head_bytes) + u64::from(info.body_bytes);
                // A recovered spool's frames continue each other: none is refused.
                let offered = relay.below.as_mut().is_some_and(|below| below.offer(now, info, bytes).is_ok());
                debug_assert!(offered, "a spool gave frames with a hole between them");
                relay.kept.recovered(info);
            }
        }
        relay.work(now);
        relay
    }

    /// What was made of frames that were taken: the next ones of the timeline. Those of an earlier run are not wanted any more.
    pub fn keep(&mut self, now: MonoTime, run: Run, frame: EncodedFrame) {
        if self.kept.run() == run {
            self.kept.push(frame);
            self.work(now);
        }
    }

    /// A connection from above said hello. The driver has seen to it that the peer is who may speak for the group. With `key` its
    /// session may have plain data connections.
    pub fn handle_accepted(&mut self, now: MonoTime, conn: ConnId, hello: Hello, key: Option<DataKey>) {
        if let Some(key) = key {
            self.key = Some((hello.session, key));
        }
        self.above.handle_accepted(now, conn, hello);
        self.work(now);
    }

    /// A connection below was made.
    pub fn handle_connected(&mut self, now: MonoTime, conn: ConnId, dial: Dial) {
        match &mut self.below {
            Some(below) => below.handle_connected(now, conn, dial),
            None => self.effects.push_back(RelayEffect::Close { hop: Hop::Below, conn, farewell: None }),
        }
        self.work(now);
    }

    /// A connection below could not be made.
    pub fn handle_connect_failed(&mut self, now: MonoTime, dial: Dial, why: &str) {
        if let Some(below) = &mut self.below {
            below.handle_connect_failed(now, dial, why);
        }
        self.work(now);
    }

    /// A neighbour said something.
    pub fn handle_message(&mut self, now: MonoTime, hop: Hop, conn: ConnId, message: Message) {
        match (hop, &mut self.below) {
            (Hop::Above, below) => {
                let pinged = matches!(message, Message::Ping(_));
                // What can come only after the welcome says that it was read.
                let before = matches!(&message, Message::Hello(_) | Message::Error(_));
                let broken = matches!(&message, Message::Close(why) if why.code == Code::Broken);
                if self.lost_told && (broken || !(before || matches!(message, Message::Close(_)))) {
                    (self.lost, self.lost_told) = (None, false);
                }
                self.above.handle_message(now, conn, message);
                // How new the source's records are, on this clock.
                if let (true, Some(below), Some(newest)) = (pinged, below, self.above.status().newest) {
                    below.set_newest(newest);
                }
            }
            (Hop::Below, Some(below)) => below.handle_message(now, conn, message),
            (Hop::Below, None) => {}
        }
        self.work(now);
    }

    /// A connection broke.
    pub fn handle_disconnected(&mut self, now: MonoTime, hop: Hop, conn: ConnId, why: &str) {
        match (hop, &mut self.below) {
            (Hop::Above, _) => self.above.handle_disconnected(now, conn, why),
            (Hop::Below, Some(below)) => below.handle_disconnected(now, conn, why),
            (Hop::Below, None) => {}
        }
        self.work(now);
    }

    /// So many bytes of frames and calls left the driver's queue.
    pub fn handle_sent(&mut self, now: MonoTime, hop: Hop, conn: ConnId, bytes: u64) {
        match (hop, &mut self.below) {
            (Hop::Above, _) => self.above.handle_sent(now, conn, bytes),
            (Hop::Below, Some(below)) => below.handle_sent(now, conn, bytes),
            (Hop::Below, None) => {}
        }
        self.work(now);
    }

    /// Bytes came, though no whole message yet.
    pub fn handle_heard(&mut self, now: MonoTime, hop: Hop, conn: ConnId) {
        match (hop, &mut self.below) {
            (Hop::Above, _) => self.above.handle_heard(now, conn),
            (Hop::Below, Some(below)) => below.handle_heard(now, conn),
            (Hop::Below, None) => {}
        }
    }

    /// What came of something that the spool wanted of its disk.
    pub fn disk_completed(&mut self, now: MonoTime, id: EffectId, outcome: Outcome) {
        self.kept.spool.completed(now, id, outcome);
        self.work(now);
    }

    /// Time went on.
    pub fn handle_timer(&mut self, now: MonoTime) {
        self.above.handle_timer(now);
        if let Some(below) = &mut self.below {
            below.handle_timer(now);
        }
        if self.redial.is_some_and(|at| at <= now) {
            self.redial = None;
            // Without a source its place is the other one's.
            if self.above.status().up {
                self.dial(now);
            }
        }
        self.work(now);
    }

    /// Tries below now: the way there is another one, or somebody has changed something.
    pub fn dial(&mut self, now: MonoTime) {
        if let Some(below) = &mut self.below {
            below.dial(now);
        }
    }

    /// From the next session below on there are so many data connections beside the first one, plain ones or not.
    pub fn set_data_connections(&mut self, connections: u16, plain: bool) {
        (self.options.below.connections, self.options.below.plain) = (connections, plain);
        if let Some(below) = &mut self.below {
            below.set_data_connections(connections, plain);
        }
    }

    /// What was taken cannot be made into frames to send, or not into those that the next hop takes: the source sends it again.
    pub fn start_over(&mut self, now: MonoTime, why: &str) {
        self.begin_anew(now, why);
        self.work(now);
    }

    /// Ends in order: both sides hear of it. What is stored stays for the next life.
    pub fn stop(&mut self, now: MonoTime) {
        self.above.close(Farewell::new(Code::Stopping, "this proxy ends"));
        if let Some(below) = &mut self.below {
            below.stop(now);
        }
        self.work(now);
    }

    /// The next thing to do, or `None` until the next call or deadline.
    pub fn poll(&mut self, now: MonoTime) -> Option<RelayEffect> {
        if let Some(effect) = self.effects.pop_front() {
            return Some(effect);
        }
        if let Some((id, effect)) = self.kept.spool.poll(now) {
            return Some(RelayEffect::Disk(id, effect));
        }
        self.kept.spool.event().map(|event| RelayEffect::Event(RelayEvent::Spool(event)))
    }

    /// When [`Relay::handle_timer`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        let below = self.below.as_ref().and_then(SourceEnd::next_deadline);
        let spool = self.kept.spool.next_deadline();
        [self.above.next_deadline(), below, spool, self.redial].into_iter().flatten().min()
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self, now: MonoTime) -> RelayStatus {
        RelayStatus {
            above: self.above.status(),
            below: self.below.as_ref().map(|below| below.status(now)).unwrap_or_default(),
            held_bytes: self.kept.spool.held_bytes(),
            waiting_bytes: self.kept.waiting_bytes(),
            memory_bytes: self.kept.spool.memory_bytes(),
            disk_bytes: self.kept.spool.disk_bytes(),
            stored: self.stored(),
        }
    }

    /// Other bounds from now on. What is there above them stays, and nothing more comes until there is room.
    pub fn set_bounds(&mut self, now: MonoTime, bounds: RelayBounds) {
        (self.options.held_bytes_max, self.options.window_bytes) = (bounds.held_bytes_max, bounds.window_bytes);
        self.kept.spool.set_bounds(bounds.memory_bytes, bounds.ahead_bytes, bounds.disk_bytes);
        self.work(now);
    }

    /// Takes nothing more: the source goes to another proxy, or comes back later. What is kept is still sent on.
    pub fn drain(&mut self, now: MonoTime) {
        self.above.close(Farewell::new(Code::Stopping, "this proxy ends"));
        self.work(now);
    }

    /// Nothing more is kept for the next life: see [`Spool::retire`].
    pub fn retire(&mut self) {
        self.kept.retire();
    }

    /// Whether the spool has nothing under way: after [`Relay::retire`], that its files are gone.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.kept.spool.is_idle()
    }

    /// Everything that is kept is durable, or nothing is kept.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.kept.is_empty()
    }

    /// A new end below. What was called durable it learns from both sides anew.
    fn start_below(&mut self, now: MonoTime, start: Position) {
        let mut options = SourceOptions { start, durable: Lsn::ZERO, origin: false, ..self.options.below.clone() };
        if let Some(before) = &self.below {
            options.attempt = before.status(now).attempt;
        }
        self.below = Some(SourceEnd::new(now, options));
    }

    /// What is kept is of no use: the next session above begins anew, at `told` if that is known.
    fn forget(&mut self, now: MonoTime, told: Option<Position>) {
        // What the end below still says is about what is kept until now.
        if let Some(below) = &mut self.below {
            below.stop(now);
            self.drain_below(now);
        }
        let oldest = self.kept.oldest().unwrap_or_default();
        self.effects.push_back(RelayEffect::Event(RelayEvent::Forgotten { have: told, oldest }));
        self.kept.forget();
        self.told = told;
        self.seeds.clear();
        self.start_below(now, told.unwrap_or_default());
    }

    /// Whether a session above may begin, and where.
    fn judge(&mut self, now: MonoTime, session: SessionId, hello: &Hello) {
        // What is kept ends before what the source still has: another proxy went on, and what is between is durable.
        let overtaken = self.kept.position().is_some_and(|position| position < hello.oldest);
        if overtaken && self.told.is_none() {
            self.forget(now, None);
        }
        if self.below.is_none() {
            self.start_below(now, hello.oldest);
        }
        if let Some(below) = &mut self.below {
            // What the source still believes to be durable and is not, it hears now.
            let durable_seen = if self.lost.is_none() { hello.durable_seen } else { Lsn::ZERO };
            below.learn(now, hello.oldest, durable_seen);
            if below.is_resting() {
                below.dial(now);
            }
        }
        let have = self.kept.position().or(self.told);
        self.seeds_before = self.seeds_passed;
        self.seeds.clear();
        let stored = self.stored();
        let terms = Terms {
            have,
            stored,
            durable: self.durable(),
            lost: self.lost.clone(),
            room_bytes: self.room_bytes(),
            room: self.far_room,
            data_key: self.key.take_if(|(of, _)| hello.plain && *of == session).map(|(_, key)| key),
        };
        self.lost_told = self.lost.is_some();
        self.above.admit(now, session, terms);
    }

    /// What the next hop says to be durable.
    fn durable(&self) -> Lsn {
        if mistakes::is(Mistake::StoredIsDurable) {
            return self.kept.stored();
        }
        self.below.as_ref().map_or(Lsn::ZERO, |below| below.acked().durable)
    }

    /// What is synced here or durable.
    fn stored(&self) -> Lsn {
        let synced = if self.options.stores { self.kept.stored() } else { Lsn::ZERO };
        synced.max(self.durable())
    }

    /// Bytes that may come beside what is here.
    fn room_bytes(&self) -> u64 {
        let seeds: u64 = self.seeds.iter().map(EncodedFrame::len).sum();
        let waiting = self.kept.waiting_bytes() + seeds;
        let held = self.kept.spool.held_bytes() + waiting;
        let room = self.options.held_bytes_max.saturating_sub(held);
        room.min(self.options.window_bytes.saturating_sub(waiting))
    }

    /// What both ends and the spool want, until none wants anything.
    fn work(&mut self, now: MonoTime) {
        loop {
            let worked = self.drain_above(now) | self.drain_below(now) | self.move_on(now);
            if !worked {
                break;
            }
        }
        self.above.grant(now, self.room_bytes());
        // What is durable below may be more than what came here yet.
        self.above.durable(now, self.durable());
        self.above.set_held(self.kept.spool.held_bytes() + self.kept.waiting_bytes());
        let stored = self.stored();
        self.above.stored(now, stored);
        self.drain_above(now);
    }
}
