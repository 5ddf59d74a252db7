//! A relay, its disk, and whoever starts it again.

use super::origin::{group, timeline};
use super::{In, MS, Out, Part, Random, SECOND, Side};
use crate::frame::EncodedFrame;
use crate::journal::{Effect, EffectId, Executor};
use crate::link::message::{Code, Farewell, Features, Message};
use crate::link::relay::{Hop, Relay, RelayEffect, RelayEvent, RelayOptions, Run};
use crate::link::source::SourceOptions;
use crate::link::spool::{Spool, SpoolOptions};
use crate::link::target::TargetOptions;
use crate::sim::{SimDisk, Survival};
use crate::types::{Lsn, MonoTime, Position};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Bytes of frames that are kept, at most, and of these, what may come unasked.
const HELD: u64 = 60_000;
const WINDOW: u64 = 25_000;
/// A frame is not longer.
const FRAME: u64 = 40_000;

pub(super) struct Middle {
    random: Random,
    pub(super) number: u8,
    pub(super) relay: Relay,
    disk: SimDisk,
    executor: Executor,
    /// What the disk does: done then.
    flying: BTreeMap<(MonoTime, EffectId), Effect>,
    /// What is being prepared: ready then, in order.
    preparing: VecDeque<(MonoTime, Run, EncodedFrame)>,
    /// What a relay still wanted to say when its timeline was over.
    left: VecDeque<Out>,
    /// Bytes that its disk had at the last start: also of frames that are durable.
    found: u64,
    pub(super) events: Vec<RelayEvent>,
}

impl Middle {
    pub(super) fn new(seed: u64) -> Self {
        let disk = SimDisk::new();
        let number = 1;
        Self {
            random: Random(seed),
            number,
            relay: relay(MonoTime(0), number, seed, &disk),
            executor: Executor::new(Arc::new(disk.clone())),
            disk,
            flying: BTreeMap::new(),
            preparing: VecDeque::new(),
            left: VecDeque::new(),
            found: 0,
            events: Vec::new(),
        }
    }

    /// Comes back with what its disk kept, or with an empty one.
    pub(super) fn crash(&mut self, now: MonoTime, keeps_disk: bool) {
        let survival = Survival::Some(self.random.next());
        self.begin(now, if keeps_disk { self.disk.after_cut(survival) } else { SimDisk::new() });
    }

    fn begin(&mut self, now: MonoTime, disk: SimDisk) {
        self.relay = relay(now, self.number, self.random.next(), &disk);
        self.found = self.relay.status(now).held_bytes;
        self.executor = Executor::new(Arc::new(disk.clone()));
        self.disk = disk;
        self.flying.clear();
        self.preparing.clear();
    }
}

fn relay(now: MonoTime, number: u8, seed: u64, disk: &SimDisk) -> Relay {
    let mut bytes = [number; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let options = RelayOptions {
        above: TargetOptions {
            group: Some(group()),
            timeline: Some(timeline(number)),
            features: Features::ALL,
            connections: 15,
            silence_ms: 4_000,
            attempt: 0,
        },
        below: SourceOptions {
            group: Some(group()),
            timeline: Some(timeline(number)),
            tenant: String::new(),
            name: "vm".into(),
            software: "test".into(),
            features: Features::ALL,
            connections: 2,
            plain: false,
            silence_ms: 3_000,
            start: Position::default(),
            origin: false,
            durable: Lsn::ZERO,
            // Higher than in an earlier life.
            attempt: now.0 / MS,
            retry_max_ns: 2 * SECOND,
            seed: bytes,
        },
        held_bytes_max: HELD,
        window_bytes: WINDOW,
        stores: true,
    };
    let spool = SpoolOptions {
        memory_bytes_max: 2 << 20,
        disk_bytes_max: 8 << 20,
        file_bytes: 1 << 20,
        directory: "spool".into(),
        ahead_bytes: 1 << 19,
        always: true,
        ids: 1,
    };
    let found = Spool::recover(disk, "spool").unwrap().found;
    let found = found.into_iter().find(|found| found.timeline == timeline(number));
    let frames = found.as_ref().map_or(Vec::new(), |found| found.frames.clone());
    let spool = match found {
        Some(found) => found.into_spool(spool),
        None => Spool::new(spool),
    };
    Relay::new(now, options, spool, &frames)
}

impl Part for Middle {
    fn handle(&mut self, now: MonoTime, from: Side, input: In) {
        if let In::Accepted(_, hello) = &input
            && hello.timeline > Some(timeline(self.number))
        {
            // The timeline before is broken: what is kept of it goes nowhere.
            self.relay.stop(now);
            let left: Vec<Out> = std::iter::from_fn(|| self.poll(now)).collect();
            self.left.extend(left);
            while hello.timeline > Some(timeline(self.number)) {
                self.number += 1;
            }
            self.begin(now, SimDisk::new());
        }
        let hop = if from == Side::Above { Hop::Above } else { Hop::Below };
        let relay = &mut self.relay;
        match input {
            In::Connected(conn, dial) => relay.handle_connected(now, conn, dial),
            In::ConnectFailed(dial) => relay.handle_connect_failed(now, dial, "no way there"),
            In::Accepted(conn, hello) => relay.handle_accepted(now, conn, *hello, None),
            In::Message(conn, message) => relay.handle_message(now, hop, conn, message),
            In::Sent(conn, bytes) => relay.handle_sent(now, hop, conn, bytes),
            In::Gone(conn) => relay.handle_disconnected(now, hop, conn, "closed"),
        }
    }

    fn timer(&mut self, now: MonoTime) {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, id), effect) = entry.remove_entry();
            let outcome = self.executor.run(&effect);
            self.relay.disk_completed(now, id, outcome);
        }
        while let Some((_, run, frame)) = self.preparing.pop_front_if(|(due, ..)| *due <= now) {
            self.relay.keep(now, run, frame);
        }
        self.relay.handle_timer(now);
    }

    fn deadline(&self) -> Option<MonoTime> {
        let disk = self.flying.keys().next().map(|(due, _)| *due);
        let prepared = self.preparing.front().map(|(due, ..)| *due);
        [disk, prepared, self.relay.next_deadline()].into_iter().flatten().min()
    }

    fn poll(&mut self, now: MonoTime) -> Option<Out> {
        let side = |hop| if hop == Hop::Above { Side::Above } else { Side::Below };
        loop {
            if let Some(out) = self.left.pop_front() {
                return Some(out);
            }
            let Some(effect) = self.relay.poll(now) else { break };
            return Some(match effect {
                RelayEffect::Connect { dial, .. } => Out::Connect(dial),
                RelayEffect::Send { hop, conn, message } => Out::Send(side(hop), conn, message),
                RelayEffect::Close { hop, conn, farewell } => Out::Close(side(hop), conn, farewell),
                RelayEffect::Taken { run, frame } => {
                    let due = now.after(self.random.below(3 * MS));
                    let due = self.preparing.back().map_or(due, |(last, ..)| due.max(*last));
                    self.preparing.push_back((due, run, frame));
                    continue;
                }
                RelayEffect::Disk(id, effect) => {
                    let due = now.after(self.random.below(5 * MS));
                    self.flying.insert((due, id), effect);
                    continue;
                }
                RelayEffect::Event(event) => {
                    if let RelayEvent::Refused(why) = &event {
                        // There is one way.
                        self.relay.handle_refused(now, why.clone(), true);
                    }
                    self.events.push(event);
                    continue;
                }
            });
        }
        let status = self.relay.status(now);
        assert!(status.held_bytes + status.waiting_bytes <= (HELD + FRAME).max(self.found), "{status:?}");
        None
    }
}

/// A relay closes in order what it cannot go on with.
#[test]
fn a_relay_that_stops_says_so_above() {
    let mut middle = Middle::new(7);
    let now = MonoTime(SECOND);
    let mut origin = super::origin::Origin::new(now, 1, 0);
    origin.timer(now);
    let Some(Out::Connect(dial)) = origin.poll(now) else { panic!() };
    let conn = crate::link::source::ConnId(1);
    origin.handle(now, Side::Below, In::Connected(conn, dial));
    let Some(Out::Send(_, _, Message::Hello(hello))) = origin.poll(now) else { panic!() };
    middle.handle(now, Side::Above, In::Accepted(conn, hello));
    middle.relay.stop(now);
    let said: Vec<Out> = std::iter::from_fn(|| middle.poll(now)).collect();
    let closed =
        said.iter().any(|out| matches!(out, Out::Close(Side::Above, _, Some(Farewell { code: Code::Stopping, .. }))));
    assert!(closed, "{said:?}");
}
