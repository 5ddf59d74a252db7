//! Where records are made.

use super::replica::Replica;
use super::{In, Out, Part, Random, SECOND, Side};
use crate::frame::{Compression, EncodedFrame, Encoder, Part as RecordPart, RawFrame, RecordKind};
use crate::link::message::{Features, Message};
use crate::link::source::{Acked, ConnId, SourceEffect, SourceEnd, SourceOptions};
use crate::types::{ClockEpoch, DiskId, Extent, GroupId, Lsn, MonoTime, Position, Timeline, WallTime};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A part, as far as its order goes: LSN, index, count.
pub(super) type Piece = (u64, u16, u16);

pub(super) fn group() -> GroupId {
    GroupId::new([7; 16]).unwrap()
}

/// The n-th incarnation's timeline.
pub(super) fn timeline(number: u8) -> Timeline {
    Timeline::new([number; 16]).unwrap()
}

pub(super) struct Origin {
    seed: u64,
    connections: u16,
    pub(super) number: u8,
    pub(super) end: SourceEnd,
    /// What is kept, under its key.
    pub(super) frames: BTreeMap<u64, EncodedFrame>,
    /// Every part of this timeline, in order.
    pub(super) made: Vec<Piece>,
    last: u64,
    end_of_last: u64,
    pub(super) acked: Acked,
    pub(super) lost: u32,
    pub(super) broken: u32,
    pub(super) ups: u32,
}

impl Origin {
    pub(super) fn new(now: MonoTime, seed: u64, connections: u16) -> Self {
        Self {
            seed,
            connections,
            number: 1,
            end: source(now, seed, connections, 1, 0),
            frames: BTreeMap::new(),
            made: Vec::new(),
            last: 0,
            end_of_last: 0,
            acked: Acked::default(),
            lost: 0,
            broken: 0,
            ups: 0,
        }
    }

    /// Makes some records, and of them frames, which end anywhere.
    pub(super) fn write(&mut self, now: MonoTime, random: &mut Random, records: u64) {
        let mut parts = Vec::new();
        for _ in 0..records {
            self.last += 1 + random.below(3);
            let count = 1 + random.below(6) as u16;
            for index in 0..count {
                self.made.push((self.last, index, count));
                let data = Bytes::from(vec![self.last as u8; 512 * (1 + random.below(4) as usize)]);
                let disk = DiskId::new(1);
                let extent = Extent::new(u64::from(index) * 4096, data.len() as u64);
                let mut part = RecordPart::plain(RecordKind::Write, disk, extent, Lsn(self.last), WallTime(self.last));
                (part.index, part.count, part.crc, part.data) = (index, count, crc32c::crc32c(&data), data);
                parts.push(part);
            }
        }
        while !parts.is_empty() {
            let rest = parts.split_off((1 + random.below(9) as usize).min(parts.len()));
            let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
            let prev_lsn = Lsn(std::mem::replace(&mut self.end_of_last, parts.last().unwrap().lsn.0));
            let (timeline, epoch, settled) = (timeline(self.number), ClockEpoch(1), Lsn(0));
            let parts = std::mem::replace(&mut parts, rest);
            let raw = RawFrame { timeline, prev_lsn, settled, epoch, parts, plain_bytes };
            let frame = Encoder::new().encode(raw, group(), Compression::None);
            let key = self.end.offer(now, &frame.info, frame.len()).unwrap();
            self.frames.insert(key.0, frame);
        }
    }

    /// What a proxy has stored need not be kept here.
    pub(super) fn lend(&mut self) {
        self.end.lend(self.acked.stored);
    }

    /// There is no room for it, wherever it is.
    pub(super) fn forfeit(&mut self, now: MonoTime) {
        self.end.forfeit_lent(now);
    }

    /// The last LSN that was made.
    pub(super) fn last(&self) -> Lsn {
        Lsn(self.last)
    }

    /// Nothing is said to be durable that the replica did not say.
    pub(super) fn check(&self, replica: &Replica) {
        assert!(self.acked.durable <= replica.durable_told, "{:?} beyond {}", self.acked, replica.durable_told);
        assert!(self.acked.received <= self.last(), "{:?} beyond {}", self.acked, self.last);
    }

    /// The timeline cannot go on: the next one begins above everything that can exist on this one.
    fn fork(&mut self, now: MonoTime) {
        self.number += 1;
        let attempt = self.end.status(now).attempt;
        self.end = source(now, self.seed, self.connections, self.number, attempt);
        self.frames.clear();
        self.made.clear();
        self.last += 1_000;
        self.end_of_last = 0;
        self.acked = Acked::default();
    }
}

fn source(now: MonoTime, seed: u64, connections: u16, number: u8, attempt: u64) -> SourceEnd {
    let mut bytes = [number; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let options = SourceOptions {
        group: Some(group()),
        timeline: Some(timeline(number)),
        tenant: String::new(),
        name: "vm".into(),
        software: "test".into(),
        features: Features::ALL,
        connections,
        plain: false,
        silence_ms: 3_000,
        start: Position::whole(Lsn::ZERO),
        origin: true,
        durable: Lsn::ZERO,
        attempt,
        retry_max_ns: 2 * SECOND,
        seed: bytes,
    };
    SourceEnd::new(now, options)
}

impl Part for Origin {
    fn handle(&mut self, now: MonoTime, _: Side, input: In) {
        source_input(&mut self.end, now, input);
    }

    fn timer(&mut self, now: MonoTime) {
        self.end.handle_timer(now);
    }

    fn deadline(&self) -> Option<MonoTime> {
        self.end.next_deadline()
    }

    fn poll(&mut self, now: MonoTime) -> Option<Out> {
        loop {
            return Some(match self.end.poll()? {
                SourceEffect::Connect { dial, .. } => Out::Connect(dial),
                SourceEffect::Send { conn, message } => Out::Send(Side::Below, conn, message),
                SourceEffect::SendFrame { conn, number, key } => {
                    let frame = self.frames.get(&key.0).expect("a frame is needed that was let go").clone();
                    Out::Send(Side::Below, conn, Message::Frame(number, frame))
                }
                SourceEffect::Close { conn, farewell } => Out::Close(Side::Below, conn, farewell),
                SourceEffect::Acked(acked) => {
                    assert!(acked.durable >= self.acked.durable && acked.kept_from >= self.acked.kept_from);
                    self.acked = acked;
                    self.frames = self.frames.split_off(&acked.kept_from);
                    continue;
                }
                SourceEffect::Lost(lost) => {
                    self.lost += 1;
                    self.acked.durable = self.acked.durable.min(lost.start().prev());
                    continue;
                }
                SourceEffect::Broken { .. } => {
                    self.broken += 1;
                    // What the old end still wants to say is said first.
                    while let Some(effect) = self.end.poll() {
                        assert!(matches!(effect, SourceEffect::Acked(_)), "{effect:?}");
                    }
                    self.fork(now);
                    continue;
                }
                SourceEffect::Up { .. } => {
                    self.ups += 1;
                    continue;
                }
                SourceEffect::Down { .. } | SourceEffect::Refused { .. } => continue,
                SourceEffect::Answered { .. } | SourceEffect::Called { .. } => continue,
            });
        }
    }
}

/// What the network says, to a source end.
pub(super) fn source_input(end: &mut SourceEnd, now: MonoTime, input: In) {
    match input {
        In::Connected(conn, dial) => end.handle_connected(now, conn, dial),
        In::ConnectFailed(dial) => end.handle_connect_failed(now, dial, "no way there"),
        In::Message(conn, message) => end.handle_message(now, conn, message),
        In::Sent(conn, bytes) => end.handle_sent(now, conn, bytes),
        In::Gone(conn) => end.handle_disconnected(now, conn, "closed"),
        In::Accepted(ConnId(_), _) => unreachable!("a source end accepts nobody"),
    }
}
