//! One session of a source end, from its first connection to its end.

use super::super::farewell::TEXT_MAX;
use super::super::message::{
    Ack, Code, DATA_CONNECTIONS_MAX, DataKey, FarRoom, Farewell, Features, Hello, Message, Ping, Pong, Purpose,
    VERSION, Welcome,
};
use super::super::pulse::{ClockSample, Clocks, Pulse, silence_ns};
use super::{Acked, ConnId, Dial, Ending, FRAMES_PER_SEED, FrameKey, Life, QUEUED_BYTES_MAX, SourceEffect, SourceEnd};
use crate::types::{Lsn, MonoTime, Position, SessionId};
use std::collections::BTreeMap;

/// How long a connection that was made may take to its welcome, in nanoseconds.
const WELCOME_NS: u64 = 15_000_000_000;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    /// At most one for each index.
    conns: BTreeMap<ConnId, Conn>,
    up: Option<Up>,
}

#[derive(Debug)]
struct Conn {
    index: u16,
    /// The welcome came.
    ready: bool,
    since: MonoTime,
    /// Bytes that the driver was given and has not reported as sent.
    queued: u64,
    pulse: Pulse,
}

/// What holds since the welcome.
#[derive(Debug)]
struct Up {
    since: MonoTime,
    features: Features,
    silence_ns: u64,
    data_key: Option<DataKey>,
    /// Where the other side stood: frames that end there or before are not sent.
    have: Option<Position>,
    /// What the other side had whole.
    began: Lsn,
    /// The other side stood here, or more was sent: it has no more than this.
    limit: Lsn,
    /// The key of the next frame.
    cursor: u64,
    credit: u64,
    sent: u64,
    frames: u64,
    seeds: u64,
    since_seed: u32,
    ack: Option<Ack>,
    /// The other side has taken or answered something.
    useful: bool,
    clocks: Clocks,
    /// The data connections that are wanted and not there.
    data: BTreeMap<u16, Data>,
}

/// A data connection that is not there.
#[derive(Debug)]
struct Data {
    /// To be dialled then; none: it is being dialled.
    at: Option<MonoTime>,
}

impl Session {
    pub(super) fn new(id: SessionId) -> Self {
        Self { id, conns: BTreeMap::new(), up: None }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Whether it would send a frame that comes before this one.
    pub(super) fn is_before(&self, key: u64) -> bool {
        self.up.as_ref().is_some_and(|up| up.cursor < key)
    }

    pub(super) fn up_since(&self) -> Option<MonoTime> {
        self.up.as_ref().map(|up| up.since)
    }

    pub(super) fn was_useful(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.useful)
    }

    pub(super) fn takes_seeds(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.features.has(Features::SEED))
    }

    pub(super) fn clock(&self) -> Option<ClockSample> {
        self.up.as_ref()?.clocks.best()
    }

    /// Where the other side stood, and what both speak.
    pub(super) fn agreed(&self) -> Option<(Option<Position>, Features)> {
        self.up.as_ref().map(|up| (up.have, up.features))
    }

    pub(super) fn credit_left(&self) -> u64 {
        self.up.as_ref().map_or(0, |up| up.credit - up.sent)
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = ConnId> {
        self.conns.keys().copied()
    }

    pub(super) fn next_deadline(&self) -> Option<MonoTime> {
        let conns = self.conns.values().map(Conn::next_deadline);
        let data = self.up.iter().flat_map(|up| up.data.values().filter_map(|data| data.at));
        conns.chain(data).min()
    }

    fn first(&mut self) -> Option<(ConnId, &mut Conn)> {
        self.conns.iter_mut().find(|(_, conn)| conn.index == 0).map(|(id, conn)| (*id, conn))
    }

    /// The connection for the next frame: the data connection with the least before it; without one, the first connection.
    fn least_queued(&mut self) -> Option<(ConnId, &mut Conn)> {
        let ready = self.conns.iter_mut().filter(|(_, conn)| conn.ready);
        ready.min_by_key(|(_, conn)| (conn.index == 0, conn.queued, conn.index)).map(|(id, conn)| (*id, conn))
    }
}

impl Conn {
    fn next_deadline(&self) -> MonoTime {
        if self.ready { self.pulse.next_deadline() } else { self.since.after(WELCOME_NS) }
    }
}

impl SourceEnd {
    /// A connection was made.
    pub fn handle_connected(&mut self, now: MonoTime, conn: ConnId, dial: Dial) {
        let attempt = self.attempt;
        let connections = self.options.connections.min(DATA_CONNECTIONS_MAX);
        let session = match &mut self.life {
            Life::Session(session) if dial.attempt == attempt => session,
            _ => return self.effects.push_back(SourceEffect::Close { conn, farewell: None }),
        };
        let expected = match &mut session.up {
            Some(up) => up.data.remove(&dial.index).is_some(),
            None => dial.index == 0 && session.conns.is_empty(),
        };
        if !expected {
            return self.effects.push_back(SourceEffect::Close { conn, farewell: None });
        }
        let silence = session.up.as_ref().map_or(silence_ns(self.options.silence_ms), |up| up.silence_ns);
        let pulse = Pulse::new(now, silence);
        session.conns.insert(conn, Conn { index: dial.index, ready: false, since: now, queued: 0, pulse });
        let options = &self.options;
        let hello = Hello {
            versions: VERSION..=VERSION,
            connection: dial.index,
            connections,
            plain: options.plain,
            features: options.features,
            session: session.id,
            attempt,
            purpose: if options.timeline.is_some() { Purpose::Frames } else { Purpose::Calls },
            group: options.group,
            timeline: options.timeline,
            durable_seen: self.durable_seen.max(self.acked.durable),
            oldest: self.held.oldest(),
            silence_ms: (silence / 1_000_000) as u32,
            tenant: options.tenant.clone(),
            name: options.name.clone(),
            software: options.software.clone(),
        };
        self.effects.push_back(SourceEffect::Send { conn, message: Message::Hello(Box::new(hello)) });
    }

    /// A connection could not be made.
    pub fn handle_connect_failed(&mut self, now: MonoTime, dial: Dial, why: &str) {
        if dial.attempt != self.attempt {
            return;
        }
        let Life::Session(session) = &mut self.life else { return };
        match &mut session.up {
            Some(up) if up.data.contains_key(&dial.index) => self.redial(now, dial.index),
            None if dial.index == 0 => self.end(now, Farewell::new(Code::Unreachable, cut(why)), Ending::Cut),
            _ => {}
        }
    }

    /// A connection broke.
    pub fn handle_disconnected(&mut self, now: MonoTime, conn: ConnId, why: &str) {
        let Life::Session(session) = &mut self.life else { return };
        if let Some(lost) = session.conns.remove(&conn) {
            self.lose(now, &lost, Farewell::new(Code::Silent, cut(why)), Ending::Cut);
        }
    }

    /// So many bytes of frames and calls left the driver's queue.
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
        let Life::Session(session) = &mut self.life else { return };
        let Some(state) = session.conns.get_mut(&conn) else { return };
        state.pulse.heard(now);
        let (first, ready) = (state.index == 0, state.ready);
        match (message, session.up.as_mut()) {
            (Message::Error(why) | Message::Close(why), _) => {
                if let Some(lost) = session.conns.remove(&conn) {
                    self.effects.push_back(SourceEffect::Close { conn, farewell: None });
                    self.lose(now, &lost, why, Ending::Theirs);
                }
            }
            (Message::Welcome(welcome), None) if first => self.welcomed(now, conn, &welcome),
            (Message::Welcome(_), Some(_)) if !ready => {
                state.ready = true;
                self.pump(now);
            }
            (Message::Ping(ping), Some(_)) if ready => {
                if first {
                    self.far_bytes = ping.held_bytes;
                }
                state.pulse.said(now);
                let pong = Pong { sent_ns: ping.sent_ns, came_ns: now.0, left_ns: now.0 };
                self.effects.push_back(SourceEffect::Send { conn, message: Message::Pong(pong) });
            }
            (Message::Pong(pong), Some(up)) if ready => {
                // A data connection's pong comes after the frames before it: it would say the queue, not the way.
                if first {
                    up.clocks.pong(now, &pong);
                }
            }
            (Message::Ack(ack), Some(_)) if first => self.acknowledged(now, ack),
            (Message::Call(number, call), Some(_)) if first => match self.calls.asked(number, &call) {
                Ok(id) => self.effects.push_back(SourceEffect::Called { id, call }),
                Err(why) => self.end(now, why, Ending::Ours),
            },
            (Message::Answer(number, answer), Some(up)) if first => {
                up.useful = true;
                if let Some(id) = self.calls.answered(number) {
                    self.effects.push_back(SourceEffect::Answered { id, answer });
                }
            }
            _ => self.end(now, Farewell::new(Code::Unexpected, "a message came that may not come now"), Ending::Ours),
        }
    }

    /// A connection is gone that is not in the session's table any more. One that carried something takes the session along.
    fn lose(&mut self, now: MonoTime, lost: &Conn, why: Farewell, ending: Ending) {
        if lost.index == 0 || lost.ready {
            self.end(now, why, ending);
        } else {
            self.redial(now, lost.index);
        }
    }

    fn redial(&mut self, now: MonoTime, index: u16) {
        let at = Some(self.retry_at(now));
        if let Life::Session(session) = &mut self.life
            && let Some(up) = &mut session.up
        {
            up.data.insert(index, Data { at });
        }
    }

    fn welcomed(&mut self, now: MonoTime, conn: ConnId, welcome: &Welcome) {
        let Life::Session(session) = &mut self.life else { return };
        let options = &self.options;
        let connections = options.connections.min(DATA_CONNECTIONS_MAX);
        let plain = welcome.data_key.is_some();
        let in_bounds = welcome.version == VERSION
            && welcome.connections <= connections
            && options.features.has(welcome.features)
            && silence_ns(welcome.silence_ms) <= silence_ns(options.silence_ms)
            && (options.plain || !plain);
        if !in_bounds {
            let text = "a welcome grants what was not asked for";
            return self.end(now, Farewell::new(Code::Malformed, text), Ending::Ours);
        }
        if let Some(lost) = &welcome.lost {
            self.acked.durable = self.acked.durable.min(lost.start().prev());
            (self.told.durable, self.durable_seen) = (self.acked.durable, self.acked.durable);
            self.effects.push_back(SourceEffect::Lost(lost.clone()));
        }
        let (oldest, newest) = (self.held.oldest(), self.held.end());
        let cursor = match welcome.have {
            None => Some(self.held.first_key()),
            Some(have) if options.origin && have > newest => None,
            Some(have) => self.held.find(have),
        };
        let have = welcome.have.unwrap_or_default();
        let Some(cursor) = cursor else {
            let text = format!("position {have} is not within {oldest} to {newest}, which is what is held");
            let why = Farewell::new(Code::Broken, text).with(have.lsn.0, oldest.lsn.0);
            self.end(now, why, Ending::Ours);
            self.life = Life::Resting;
            return self.effects.push_back(SourceEffect::Broken { have, oldest, newest });
        };
        let silence_ns = silence_ns(welcome.silence_ms);
        if let Some(state) = session.conns.get_mut(&conn) {
            state.ready = true;
            state.pulse = Pulse::new(now, silence_ns);
        }
        session.up = Some(Up {
            since: now,
            features: welcome.features,
            silence_ns,
            data_key: welcome.data_key.clone(),
            have: welcome.have,
            began: have.whole_lsn().max(welcome.durable).max(self.acked.durable),
            limit: have.whole_lsn().max(welcome.durable).max(self.acked.durable),
            cursor,
            credit: welcome.credit,
            sent: 0,
            frames: 0,
            seeds: 0,
            since_seed: 0,
            ack: None,
            useful: false,
            clocks: Clocks::default(),
            data: (1..=welcome.connections).map(|index| (index, Data { at: Some(now) })).collect(),
        });
        self.effects.push_back(SourceEffect::Up { have: welcome.have, features: welcome.features });
        let durable = self.acked.durable.max(welcome.durable);
        let room = FarRoom::Ok;
        let received = have.whole_lsn().max(welcome.durable);
        self.acked = Acked { received, stored: welcome.durable, durable, room, seeds: 0, ..self.acked };
        self.release();
        self.keep_alive(now);
    }

    fn acknowledged(&mut self, now: MonoTime, ack: Ack) {
        let Life::Session(session) = &mut self.life else { return };
        let Some(up) = &mut session.up else { return };
        let before = up.ack.unwrap_or(Ack { credit: up.credit, ..Ack::default() });
        let runs_back = ack.received < before.received
            || ack.stored < before.stored
            || ack.durable < before.durable
            || ack.credit < before.credit
            || ack.seeds < before.seeds;
        let limit = up.limit;
        if runs_back
            || ack.received > limit
            || ack.durable > ack.stored
            || ack.stored > ack.received
            || ack.seeds > up.seeds
        {
            let text = "an acknowledgement runs back, or says more than was sent";
            let why = Farewell::new(Code::Malformed, text).with(limit.0, ack.received.0);
            return self.end(now, why, Ending::Ours);
        }
        // The first one tells where it stood; what it says more than that came in this session.
        up.useful |= ack.received > up.began || ack.durable > self.acked.durable || ack.seeds > before.seeds;
        up.ack = Some(ack);
        up.credit = ack.credit;
        let Ack { received, stored, room, seeds, .. } = ack;
        let durable = self.acked.durable.max(ack.durable);
        self.acked = Acked { received, stored, durable, room, seeds, ..self.acked };
        self.release();
        self.pump(now);
    }

    /// Pings, the dead, and data connections that are due.
    pub(super) fn keep_alive(&mut self, now: MonoTime) {
        let Life::Session(session) = &mut self.life else { return };
        let late = session.conns.iter().filter(|(_, conn)| match conn.ready {
            true => conn.pulse.dead_at() <= now,
            false => conn.since.after(WELCOME_NS) <= now,
        });
        let late: Vec<ConnId> = late.map(|(id, _)| *id).collect();
        for id in late {
            let why = Farewell::new(Code::Silent, "nothing was heard for too long");
            let Life::Session(session) = &mut self.life else { return };
            let Some(lost) = session.conns.remove(&id) else { continue };
            self.effects.push_back(SourceEffect::Close { conn: id, farewell: Some(why.clone()) });
            self.lose(now, &lost, why, Ending::Ours);
        }
        let Life::Session(session) = &mut self.life else { return };
        let ping = Ping { sent_ns: now.0, held_bytes: self.held.bytes(), newest_ns: self.newest.0 };
        for (conn, state) in session.conns.iter_mut().filter(|(_, conn)| conn.ready && conn.pulse.ping_due() <= now) {
            state.pulse.pinged(now);
            self.effects.push_back(SourceEffect::Send { conn: *conn, message: Message::Ping(ping) });
        }
        if let Some(up) = &mut session.up {
            for (index, data) in up.data.iter_mut().filter(|(_, data)| data.at.is_some_and(|at| at <= now)) {
                data.at = None;
                let dial = Dial { attempt: self.attempt, index: *index };
                let plain = up.data_key.clone();
                self.effects.push_back(SourceEffect::Connect { dial, session: session.id, plain });
            }
        }
        self.pump(now);
    }

    /// Sends what may be sent: calls first, then frames, with a seed now and then.
    pub(super) fn pump(&mut self, now: MonoTime) {
        let Life::Session(session) = &mut self.life else { return };
        if !session.is_up() {
            return;
        }
        while let Some((conn, state)) = session.first().filter(|(_, state)| state.queued < QUEUED_BYTES_MAX) {
            let Some(message) = self.calls.next_message() else { break };
            state.queued += message.queued_bytes();
            state.pulse.said(now);
            self.effects.push_back(SourceEffect::Send { conn, message });
        }
        while let Some(effect) = self.next_frame(now) {
            self.effects.push_back(effect);
        }
    }

    fn next_frame(&mut self, now: MonoTime) -> Option<SourceEffect> {
        let Life::Session(session) = &mut self.life else { return None };
        let mut up = session.up.take()?;
        let effect = self.next_frame_of(now, &mut up);
        if let Life::Session(session) = &mut self.life {
            session.up = Some(up);
        }
        effect
    }

    fn next_frame_of(&mut self, now: MonoTime, up: &mut Up) -> Option<SourceEffect> {
        let Life::Session(session) = &mut self.life else { return None };
        let (conn, state) = session.least_queued().filter(|(_, state)| state.queued < QUEUED_BYTES_MAX)?;
        // What the other side had at the beginning may be durable by now.
        up.cursor = up.cursor.max(self.held.first_key());
        while self.held.get(up.cursor).is_some_and(|frame| Some(frame.end) <= up.have) {
            up.cursor += 1;
        }
        let frame = self.held.get(up.cursor);
        let seed_first = !self.seeds.is_empty() && (frame.is_none() || up.since_seed >= FRAMES_PER_SEED);
        let bytes = if seed_first { self.seeds.front()?.len() } else { frame?.bytes };
        let end = frame.map(|frame| frame.end.lsn);
        if up.sent + bytes > up.credit {
            return None;
        }
        up.sent += bytes;
        self.sent_bytes += bytes;
        state.queued += bytes;
        state.pulse.said(now);
        state.pulse.flowed();
        if seed_first {
            (up.since_seed, up.seeds) = (0, up.seeds + 1);
            let message = Message::Seed(up.seeds, self.seeds.pop_front()?);
            return Some(SourceEffect::Send { conn, message });
        }
        up.since_seed = up.since_seed.saturating_add(1);
        up.limit = up.limit.max(end?);
        (up.frames, up.cursor) = (up.frames + 1, up.cursor + 1);
        Some(SourceEffect::SendFrame { conn, number: up.frames, key: FrameKey(up.cursor - 1) })
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}
