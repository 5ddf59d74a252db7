//! One session of a target end, from its admission to its end.

use super::super::message::{Ack, Code, FarRoom, Farewell, Features, Hello, Message, Ping, Pong, Welcome};
use super::super::pulse::{Clocks, Pulse, silence_ns};
use super::super::source::{ConnId, QUEUED_BYTES_MAX};
use super::order::InOrder;
use super::{ACK_NS, Life, TargetEffect, TargetEnd, TargetStatus, Terms};
use crate::frame::EncodedFrame;
use crate::types::{Lsn, MonoTime, Position, SessionId};
use std::collections::BTreeMap;

/// A session that is being judged.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) conn: ConnId,
    pub(super) hello: Box<Hello>,
    pub(super) until: MonoTime,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    welcome: Welcome,
    /// At most one for each index.
    conns: BTreeMap<ConnId, Conn>,
    frames: InOrder,
    seeds: InOrder,
    /// Bytes of frames and seeds that came, those that the owner has, and those that it will never see.
    arrived: u64,
    handed: u64,
    dropped: u64,
    /// Up to here frames were put in order.
    position: Option<Position>,
    ack: Ack,
    /// What was said last, and when.
    said: Option<(Ack, MonoTime)>,
    clocks: Clocks,
    /// Bytes that the owner holds, and those that the other side does.
    held: u64,
    far_bytes: u64,
    newest: MonoTime,
}

#[derive(Debug)]
struct Conn {
    index: u16,
    queued: u64,
    pulse: Pulse,
}

impl Session {
    pub(super) fn new(now: MonoTime, id: SessionId, first: ConnId, welcome: Welcome, terms: &Terms) -> Self {
        let pulse = Pulse::new(now, silence_ns(welcome.silence_ms));
        let ack = Ack { credit: terms.room_bytes, room: terms.room, ..Ack::default() };
        let mut session = Self {
            id,
            welcome,
            conns: BTreeMap::from([(first, Conn { index: 0, queued: 0, pulse })]),
            frames: InOrder::default(),
            seeds: InOrder::default(),
            arrived: 0,
            handed: 0,
            dropped: 0,
            position: terms.have,
            ack,
            said: None,
            clocks: Clocks::default(),
            held: 0,
            far_bytes: 0,
            newest: MonoTime(0),
        };
        session.ack.received = terms.have.unwrap_or_default().whole_lsn().max(terms.durable);
        session.ack.durable = terms.durable;
        session.stored(terms.stored.max(terms.durable));
        session
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = ConnId> {
        self.conns.keys().copied()
    }

    pub(super) fn handed(&mut self, bytes: u64) {
        self.handed += bytes;
    }

    pub(super) fn set_held(&mut self, bytes: u64) {
        self.held = bytes;
    }

    pub(super) fn grant(&mut self, room_bytes: u64) {
        let credit = (self.handed + self.dropped).saturating_add(room_bytes);
        self.ack.credit = self.ack.credit.max(credit);
    }

    pub(super) fn stored(&mut self, lsn: Lsn) {
        // A cache holds nothing that did not come.
        self.ack.stored = self.ack.stored.max(lsn.min(self.ack.received));
    }

    pub(super) fn durable(&mut self, lsn: Lsn) {
        self.ack.durable = self.ack.durable.max(lsn.min(self.ack.received));
        self.ack.stored = self.ack.stored.max(self.ack.durable);
    }

    pub(super) fn seeds(&mut self, taken: u64) {
        self.ack.seeds = self.ack.seeds.max(taken.min(self.seeds.passed()));
    }

    pub(super) fn room(&mut self, room: FarRoom) {
        self.ack.room = room;
    }

    fn ack_due(&self) -> Option<MonoTime> {
        match &self.said {
            None => Some(MonoTime(0)),
            Some((said, _)) if *said == self.ack => None,
            Some((_, at)) => Some(at.after(ACK_NS)),
        }
    }

    pub(super) fn next_deadline(&self) -> MonoTime {
        let conns = self.conns.values().map(|conn| conn.pulse.next_deadline());
        conns.chain(self.ack_due()).min().unwrap_or(MonoTime(u64::MAX))
    }

    pub(super) fn fill(&self, status: &mut TargetStatus) {
        status.up = true;
        status.waiting_bytes = self.arrived - self.handed.min(self.arrived);
        status.far_bytes = self.far_bytes;
        status.clock = self.clocks.best();
        status.newest = status.clock.filter(|_| self.newest.0 != 0).map(|clock| clock.to_ours(self.newest));
    }

    fn first(&mut self) -> Option<(ConnId, &mut Conn)> {
        self.conns.iter_mut().find(|(_, conn)| conn.index == 0).map(|(id, conn)| (*id, conn))
    }

    /// A frame or seed came: it must be within the credit.
    fn arrives(&mut self, frame: &EncodedFrame) -> Result<(), Farewell> {
        self.arrived += frame.len();
        if self.arrived > self.ack.credit {
            let why = Farewell::new(Code::Credit, "more was sent than was granted");
            return Err(why.with(self.ack.credit, self.arrived));
        }
        Ok(())
    }

    /// Bytes that the owner will not see: their credit goes back at once.
    fn drop(&mut self, bytes: u64) {
        self.dropped += bytes;
        self.ack.credit = self.ack.credit.saturating_add(bytes);
    }

    /// What is new of the next frame in order.
    fn place(&mut self, frame: EncodedFrame) -> Result<Option<EncodedFrame>, Farewell> {
        let (info, came) = (frame.info, frame.len());
        let chain =
            if info.first_index == 0 { info.prev_lsn < info.first_lsn } else { info.prev_lsn == info.first_lsn };
        let (begin, end) = (info.begin(), info.end());
        let new = match self.position {
            _ if !chain => None,
            // Nothing of the timeline is there: it begins with what comes first.
            None => Some(frame),
            Some(position) if begin == position => Some(frame),
            Some(position) if end <= position => {
                self.drop(came);
                return Ok(None);
            }
            Some(position) if begin < position => {
                let rest = frame.after(position).map_err(|why| Farewell::new(Code::Damaged, why.to_string()))?;
                // What is left can be longer, as it is not compressed: that is not the other side's debt.
                let rest = rest.filter(|rest| rest.info.begin() == position && rest.info.end() == end);
                self.drop(rest.as_ref().map_or(0, |rest| came.saturating_sub(rest.len())));
                rest
            }
            Some(_) => None,
        };
        let Some(frame) = new else {
            let expected = self.position.unwrap_or_default();
            let text = format!("a frame of positions {begin} to {end} does not continue {expected}");
            return Err(Farewell::new(Code::OutOfOrder, text).with(expected.lsn.0, begin.lsn.0));
        };
        self.position = Some(end);
        self.ack.received = self.ack.received.max(end.whole_lsn());
        Ok(Some(frame))
    }
}

impl TargetEnd {
    /// A data connection of the session.
    pub(super) fn data_connection(&mut self, now: MonoTime, conn: ConnId, index: u16, hello: &Hello) {
        let attempt = self.attempt;
        let refuse = |farewell| TargetEffect::Close { conn, farewell: Some(farewell) };
        let session = match &mut self.life {
            Life::Session(session) if session.id == hello.session && attempt == hello.attempt => session,
            _ => {
                let farewell = Farewell::new(Code::Unexpected, "a data connection of no session that holds");
                return self.effects.push_back(refuse(farewell));
            }
        };
        if index > session.welcome.connections || session.conns.values().any(|conn| conn.index == index) {
            let farewell = Farewell::new(Code::Busy, "more data connections than were granted");
            let granted = u64::from(session.welcome.connections);
            return self.effects.push_back(refuse(farewell.with(granted, index.into())));
        }
        let pulse = Pulse::new(now, silence_ns(session.welcome.silence_ms));
        session.conns.insert(conn, Conn { index, queued: 0, pulse });
        // Without the key: this connection may be the plain one that it is for.
        let welcome = Welcome { data_key: None, ..session.welcome.clone() };
        let message = Message::Welcome(Box::new(welcome));
        self.effects.push_back(TargetEffect::Send { conn, message });
    }

    /// A connection broke: the session with it.
    pub fn handle_disconnected(&mut self, _now: MonoTime, conn: ConnId, why: &str) {
        let gone = match &mut self.life {
            Life::Free => false,
            Life::Judging(pending) => pending.conn == conn,
            Life::Session(session) => session.conns.remove(&conn).is_some(),
        };
        if gone && matches!(self.life, Life::Judging(_)) {
            self.life = Life::Free;
        } else if gone {
            self.end(Farewell::new(Code::Silent, why));
        }
    }

    /// So many bytes of calls left the driver's queue.
    pub fn handle_sent(&mut self, now: MonoTime, conn: ConnId, bytes: u64) {
        let Life::Session(session) = &mut self.life else { return };
        if let Some(conn) = session.conns.get_mut(&conn) {
            conn.queued = conn.queued.saturating_sub(bytes);
            self.pump(now);
        }
    }

    /// Bytes came, though no whole message yet.
    pub fn handle_heard(&mut self, now: MonoTime, conn: ConnId) {
        let Life::Session(session) = &mut self.life else { return };
        if let Some(conn) = session.conns.get_mut(&conn) {
            conn.pulse.heard(now);
        }
    }

    /// The other side said something.
    pub fn handle_message(&mut self, now: MonoTime, conn: ConnId, message: Message) {
        if matches!(&self.life, Life::Judging(pending) if pending.conn == conn) {
            // The source end may give up before it is judged, and may say nothing else.
            let farewell = match message {
                Message::Error(_) | Message::Close(_) => None,
                _ => Some(Farewell::new(Code::Unexpected, "a message came before the welcome")),
            };
            self.life = Life::Free;
            return self.effects.push_back(TargetEffect::Close { conn, farewell });
        }
        let Life::Session(session) = &mut self.life else { return };
        let Some(state) = session.conns.get_mut(&conn) else { return };
        state.pulse.heard(now);
        let first = state.index == 0;
        let done = match message {
            Message::Frame(number, frame) => {
                state.pulse.flowed();
                self.frame(number, frame)
            }
            Message::Seed(number, frame) => {
                state.pulse.flowed();
                self.seed(number, frame)
            }
            Message::Ping(ping) => {
                if first {
                    session.far_bytes = ping.held_bytes;
                    session.newest = session.newest.max(MonoTime(ping.newest_ns));
                }
                state.pulse.said(now);
                let pong = Pong { sent_ns: ping.sent_ns, came_ns: now.0, left_ns: now.0 };
                self.effects.push_back(TargetEffect::Send { conn, message: Message::Pong(pong) });
                Ok(())
            }
            Message::Pong(pong) => {
                if first {
                    session.clocks.pong(now, &pong);
                }
                Ok(())
            }
            Message::Call(number, call) if first => self.calls.asked(number, &call).map(|id| {
                self.effects.push_back(TargetEffect::Called { id, call });
            }),
            Message::Answer(number, answer) if first => {
                if let Some(id) = self.calls.answered(number) {
                    self.effects.push_back(TargetEffect::Answered { id, answer });
                }
                Ok(())
            }
            Message::Error(why) | Message::Close(why) => {
                session.conns.remove(&conn);
                self.effects.push_back(TargetEffect::Close { conn, farewell: None });
                return self.end(why);
            }
            _ => Err(Farewell::new(Code::Unexpected, "a message came that may not come here or now")),
        };
        match done {
            Ok(()) => self.said(now),
            Err(why) => self.end(why),
        }
    }

    fn frame(&mut self, number: u64, frame: EncodedFrame) -> Result<(), Farewell> {
        let Life::Session(session) = &mut self.life else { return Ok(()) };
        if self.options.timeline != Some(frame.info.timeline) || self.options.group != Some(frame.info.group) {
            return Err(Farewell::new(Code::Unexpected, "a frame of another group or timeline"));
        }
        session.arrives(&frame)?;
        self.taken_bytes += frame.len();
        session.frames.push(number, frame)?;
        while let Some(frame) = session.frames.next() {
            if let Some(frame) = session.place(frame)? {
                self.effects.push_back(TargetEffect::Take(frame));
            }
        }
        Ok(())
    }

    fn seed(&mut self, number: u64, seed: EncodedFrame) -> Result<(), Farewell> {
        let Life::Session(session) = &mut self.life else { return Ok(()) };
        if !session.welcome.features.has(Features::SEED) || self.options.group != Some(seed.info.group) {
            return Err(Farewell::new(Code::Unexpected, "a seed, which was not agreed on, or of another group"));
        }
        session.arrives(&seed)?;
        self.taken_bytes += seed.len();
        session.seeds.push(number, seed)?;
        while let Some(seed) = session.seeds.next() {
            self.effects.push_back(TargetEffect::TakeSeed(seed));
        }
        Ok(())
    }

    /// Pings and the dead.
    pub(super) fn keep_alive(&mut self, now: MonoTime) {
        let Life::Session(session) = &mut self.life else { return };
        if session.conns.values().any(|conn| conn.pulse.dead_at() <= now) {
            return self.end(Farewell::new(Code::Silent, "nothing was heard for too long"));
        }
        let ping = Ping { sent_ns: now.0, held_bytes: session.held, newest_ns: 0 };
        for (conn, state) in session.conns.iter_mut().filter(|(_, conn)| conn.pulse.ping_due() <= now) {
            state.pulse.pinged(now);
            self.effects.push_back(TargetEffect::Send { conn: *conn, message: Message::Ping(ping) });
        }
        self.said(now);
    }

    /// Acknowledges what is new, if the last time is long enough ago, and goes on with calls.
    pub(super) fn said(&mut self, now: MonoTime) {
        let Life::Session(session) = &mut self.life else { return };
        if session.ack_due().is_some_and(|due| due <= now) {
            let ack = session.ack;
            session.said = Some((ack, now));
            if let Some((conn, state)) = session.first() {
                state.pulse.said(now);
                self.effects.push_back(TargetEffect::Send { conn, message: Message::Ack(ack) });
            }
        }
        self.pump(now);
    }

    /// Sends what waits of calls and answers.
    pub(super) fn pump(&mut self, now: MonoTime) {
        let Life::Session(session) = &mut self.life else { return };
        while let Some((conn, state)) = session.first().filter(|(_, state)| state.queued < QUEUED_BYTES_MAX) {
            let Some(message) = self.calls.next_message() else { break };
            state.queued += message.queued_bytes();
            state.pulse.said(now);
            self.effects.push_back(TargetEffect::Send { conn, message });
        }
    }
}
