//! A proxy: a relay, its disk, and whoever starts it again.

use super::part::{FRAME, In, MS, Out, Part, S, Side};
use crate::capture::rng::Rng;
use cdp_core::frame::EncodedFrame;
use cdp_core::journal::{Effect, EffectId, Executor, Outcome};
use cdp_core::link::message::Features;
use cdp_core::link::relay::{Hop, Relay, RelayEffect, RelayEvent, RelayOptions, Run};
use cdp_core::link::source::SourceOptions;
use cdp_core::link::spool::{Spool, SpoolOptions};
use cdp_core::link::target::TargetOptions;
use cdp_core::media::{MediaError, MediaErrorKind, Operation};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::{GroupId, Lsn, MonoTime, Position, Timeline};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Bytes of frames that are kept, beside those that may come at once.
const BESIDE: u64 = 50_000;

pub struct Proxy {
    rng: Rng,
    group: GroupId,
    timeline: Timeline,
    /// Bytes of frames that may come at once.
    window: u64,
    pub relay: Relay,
    disk: SimDisk,
    executor: Executor,
    /// What the disk does: done then.
    flying: BTreeMap<(MonoTime, EffectId), Effect>,
    /// What is being prepared: ready then, in order.
    preparing: VecDeque<(MonoTime, Run, EncodedFrame)>,
    left: VecDeque<Out>,
    /// Bytes that its disk had at the last start: also of frames that are durable.
    found: u64,
    /// Writes, or reads, of its disk fail until then.
    pub writes_fail_until: MonoTime,
    pub reads_fail_until: MonoTime,
    /// Its disk has no room until then.
    pub full_until: MonoTime,
    pub is_down: bool,
    attempt: u64,
}

impl Proxy {
    pub fn new(group: GroupId, timeline: Timeline, window: u64, mut rng: Rng) -> Self {
        let disk = SimDisk::new();
        let relay = relay(MonoTime(0), (group, timeline, window), (rng.next(), 0), &disk);
        let executor = Executor::new(Arc::new(disk.clone()));
        Self {
            rng,
            group,
            timeline,
            window,
            relay,
            executor,
            disk,
            flying: BTreeMap::new(),
            preparing: VecDeque::new(),
            left: VecDeque::new(),
            found: 0,
            writes_fail_until: MonoTime(0),
            reads_fail_until: MonoTime(0),
            full_until: MonoTime(0),
            is_down: false,
            attempt: 0,
        }
    }

    /// It comes back with what its disk kept, or with an empty one.
    pub fn restart(&mut self, now: MonoTime, keeps_disk: bool) {
        let survival = Survival::Some(self.rng.next());
        self.is_down = false;
        self.begin(now, if keeps_disk { self.disk.after_cut(survival) } else { SimDisk::new() });
    }

    pub fn crash(&mut self) {
        // Of what the disk was doing some was done.
        for (_, effect) in std::mem::take(&mut self.flying) {
            if self.rng.one_in(2) {
                // The machine does not hear of it any more.
                let _ = self.executor.run(&effect);
            }
        }
        self.is_down = true;
        self.preparing.clear();
        self.left.clear();
    }

    fn begin(&mut self, now: MonoTime, disk: SimDisk) {
        self.relay = relay(now, (self.group, self.timeline, self.window), (self.rng.next(), self.attempt), &disk);
        self.found = self.relay.status(now).held_bytes;
        self.executor = Executor::new(Arc::new(disk.clone()));
        self.disk = disk;
        self.flying.clear();
        self.preparing.clear();
    }

    fn run(&self, now: MonoTime, effect: &Effect) -> Outcome {
        let reads = matches!(effect, Effect::Read { .. });
        if now < if reads { self.reads_fail_until } else { self.writes_fail_until } {
            let operation = if reads { Operation::Read } else { Operation::Write };
            return Err(MediaError::new(MediaErrorKind::Io, operation, "spool", 5, "simulated"));
        }
        if now < self.full_until && matches!(effect, Effect::Create { .. } | Effect::Write { .. }) {
            return Err(MediaError::new(MediaErrorKind::NoSpace, Operation::Write, "spool", 28, "simulated"));
        }
        self.executor.run(effect)
    }
}

fn relay(now: MonoTime, of: (GroupId, Timeline, u64), (number, attempt): (u64, u64), disk: &SimDisk) -> Relay {
    let (group, timeline, window_bytes) = of;
    let mut seed = [9; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let options = RelayOptions {
        above: TargetOptions {
            group: Some(group),
            timeline: Some(timeline),
            features: Features::ALL,
            connections: 15,
            silence_ms: 1_000,
            attempt: 0,
        },
        below: SourceOptions {
            group: Some(group),
            timeline: Some(timeline),
            tenant: String::new(),
            name: "vm".into(),
            software: "test".into(),
            features: Features::ALL,
            connections: 1,
            plain: false,
            silence_ms: 1_000,
            start: Position::default(),
            origin: false,
            durable: Lsn::ZERO,
            // Higher than in an earlier life.
            attempt,
            retry_max_ns: S,
            seed,
        },
        held_bytes_max: window_bytes + BESIDE,
        window_bytes,
        stores: true,
    };
    let spool = SpoolOptions {
        memory_bytes_max: 2 << 20,
        disk_bytes_max: 4 << 20,
        file_bytes: 1 << 20,
        directory: "spool".into(),
        ahead_bytes: 1 << 19,
        always: true,
        ids: 1,
    };
    let found = Spool::recover(disk, "spool").expect("a simulated disk reads").found;
    let found = found.into_iter().find(|found| found.timeline == timeline);
    let frames = found.as_ref().map_or(Vec::new(), |found| found.frames.clone());
    let spool = match found {
        Some(found) => found.into_spool(spool),
        None => Spool::new(spool),
    };
    Relay::new(now, options, spool, &frames)
}

impl Part for Proxy {
    fn handle(&mut self, now: MonoTime, from: Side, input: In) {
        if let In::Accepted(_, hello) = &input
            && let Some(timeline) = hello.timeline.filter(|timeline| *timeline != self.timeline)
        {
            // The timeline before is over: what is kept of it goes nowhere.
            self.relay.stop(now);
            let left: Vec<Out> = std::iter::from_fn(|| self.poll(now)).collect();
            self.left.extend(left);
            self.timeline = timeline;
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
            In::Heard(conn) => relay.handle_heard(now, hop, conn),
            In::Gone(conn) => relay.handle_disconnected(now, hop, conn, "closed"),
        }
    }

    fn timer(&mut self, now: MonoTime) {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, id), effect) = entry.remove_entry();
            let outcome = self.run(now, &effect);
            self.relay.disk_completed(now, id, outcome);
        }
        while let Some((_, run, frame)) = self.preparing.pop_front_if(|(due, ..)| *due <= now) {
            self.relay.keep(now, run, frame);
        }
        self.relay.handle_timer(now);
    }

    fn deadline(&self) -> Option<MonoTime> {
        if self.is_down {
            return None;
        }
        let disk = self.flying.keys().next().map(|(due, _)| *due);
        let prepared = self.preparing.front().map(|(due, ..)| *due);
        [disk, prepared, self.relay.next_deadline()].into_iter().flatten().min()
    }

    fn poll(&mut self, now: MonoTime) -> Option<Out> {
        let side = |hop| if hop == Hop::Above { Side::Above } else { Side::Below };
        if let Some(out) = self.left.pop_front() {
            return Some(out);
        }
        while let Some(effect) = self.relay.poll(now).filter(|_| !self.is_down) {
            return Some(match effect {
                RelayEffect::Connect { dial, .. } => {
                    self.attempt = self.attempt.max(dial.attempt);
                    Out::Connect(dial)
                }
                RelayEffect::Send { hop, conn, message } => Out::Send(side(hop), conn, message),
                RelayEffect::Close { hop, conn, farewell } => Out::Close(side(hop), conn, farewell),
                RelayEffect::Taken { run, frame } => {
                    let due = now.after(self.rng.below(2 * MS));
                    let due = self.preparing.back().map_or(due, |(last, ..)| due.max(*last));
                    self.preparing.push_back((due, run, frame));
                    continue;
                }
                RelayEffect::Disk(id, effect) => {
                    let due = now.after(self.rng.below(5 * MS));
                    self.flying.insert((due, id), effect);
                    continue;
                }
                RelayEffect::Event(event) => {
                    if let RelayEvent::Refused(why) = event {
                        // There is one way.
                        self.relay.handle_refused(now, why, true);
                    }
                    continue;
                }
            });
        }
        let status = self.relay.status(now);
        let bound = (self.window + BESIDE + FRAME).max(self.found);
        assert!(status.held_bytes + status.waiting_bytes <= bound, "more is held than {bound}: {status:?}");
        None
    }
}
