//! The filter's host: guests, filter and activity log as the capture tests have them, and the link's source end.

use super::part::{In, MS, Out, Part, S, Side};
use crate::capture::crash::{End, fall, left};
use crate::capture::world::{History, Hostility, World};
use cdp_core::capture::{Fork, Room};
use cdp_core::frame::{Compression, EncodedFrame, Encoder};
use cdp_core::link::message::{Code, FarRoom, Features, Message};
use cdp_core::link::source::{SourceEffect, SourceEnd, SourceOptions};
use cdp_core::types::{GroupId, Lsn, MonoTime, Position, Timeline};
use std::collections::{BTreeMap, VecDeque};

/// What the host is doing.
pub enum Life {
    Up(Box<World>),
    /// It lies there until its next start.
    Down(Box<World>),
    /// Only while one becomes the other.
    Between,
}

pub struct Host {
    pub life: Life,
    group: GroupId,
    connections: u16,
    hostility: Hostility,
    end: SourceEnd,
    encoder: Encoder,
    /// Frames that are not durable, under their keys.
    kept: BTreeMap<u64, EncodedFrame>,
    /// Frames of the world that were offered.
    offered: usize,
    /// A new timeline is wanted, and was asked for.
    pub forking: bool,
    asked: bool,
    attempt: u64,
    seed: u64,
    left: VecDeque<Out>,
    /// What happened on the timelines before.
    pub histories: Vec<History>,
    /// The last LSN that was called durable.
    pub durable: Lsn,
    pub forks: u32,
}

impl Host {
    pub fn new(world: World, hostility: Hostility, connections: u16, seed: u64) -> Self {
        let group = world.options.group;
        let now = MonoTime(world.now);
        let end = source(now, group, world.options.timeline, (connections, 0, seed));
        Self {
            life: Life::Up(Box::new(world)),
            group,
            connections,
            hostility,
            end,
            encoder: Encoder::new(),
            kept: BTreeMap::new(),
            offered: 0,
            forking: false,
            asked: false,
            attempt: 0,
            seed,
            left: VecDeque::new(),
            histories: Vec::new(),
            durable: Lsn::ZERO,
            forks: 0,
        }
    }

    pub fn world(&self) -> Option<&World> {
        match &self.life {
            Life::Up(world) => Some(world),
            _ => None,
        }
    }

    pub fn world_mut(&mut self) -> Option<&mut World> {
        match &mut self.life {
            Life::Up(world) => Some(world),
            _ => None,
        }
    }

    /// Its world, dead or alive.
    pub fn any_world(&self) -> &World {
        match &self.life {
            Life::Up(world) | Life::Down(world) => world,
            Life::Between => unreachable!("nobody looks while it changes"),
        }
    }

    /// The machine ends.
    pub fn crash(&mut self, end: End) {
        let Life::Up(mut world) = std::mem::replace(&mut self.life, Life::Between) else { return };
        fall(&mut world, end);
        self.life = Life::Down(world);
        self.kept.clear();
        self.left.clear();
        (self.forking, self.asked) = (false, false);
    }

    /// The replica has opened `timeline`, which forks from `parent` at `fork`: a start, or the filter that runs goes on there.
    pub fn begin(&mut self, timeline: Timeline, parent: Timeline, fork: Lsn) {
        match std::mem::replace(&mut self.life, Life::Between) {
            Life::Down(world) => {
                self.histories.push(world.history_so_far());
                let world = left(*world, fork).restart_on(self.hostility, timeline, parent);
                self.life = Life::Up(Box::new(world));
            }
            Life::Up(mut world) => {
                self.histories.push(world.history_so_far());
                let now = MonoTime(world.now);
                self.end.stop(now);
                self.drain_end();
                world.far_durable(fork);
                world.fork_at(timeline, fork, Fork::Lent);
                self.life = Life::Up(world);
                self.forks += 1;
            }
            Life::Between => unreachable!("it was put back"),
        }
        let now = MonoTime(self.any_world().now);
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.end = source(now, self.group, timeline, (self.connections, self.attempt, self.seed));
        self.kept.clear();
        (self.offered, self.durable) = (0, Lsn::ZERO);
        (self.forking, self.asked) = (false, false);
    }

    /// What an end that is stopped still wants: to close its connections.
    fn drain_end(&mut self) {
        while let Some(effect) = self.end.poll() {
            if let SourceEffect::Close { conn, farewell } = effect {
                self.left.push_back(Out::Close(Side::Below, conn, farewell));
            }
        }
    }

    /// Hands on what the filter made.
    fn offer(&mut self, now: MonoTime) {
        let Life::Up(world) = &mut self.life else { return };
        while let Some(raw) = world.frames.get(self.offered) {
            if self.forking {
                break;
            }
            let frame = self.encoder.encode(raw.clone(), self.group, Compression::None);
            let key = self.end.offer(now, &frame.info, frame.len()).expect("frames continue each other");
            self.kept.insert(key.0, frame);
            self.offered += 1;
        }
    }

    /// The end has something to say; none: it was dealt with here.
    fn carry_out(&mut self, effect: SourceEffect) -> Option<Out> {
        Some(match effect {
            SourceEffect::Connect { dial, .. } => {
                self.attempt = self.attempt.max(dial.attempt);
                Out::Connect(dial)
            }
            SourceEffect::Send { conn, message } => Out::Send(Side::Below, conn, message),
            SourceEffect::SendFrame { conn, number, key } => {
                let frame = self.kept.get(&key.0).expect("a frame is needed that was let go").clone();
                Out::Send(Side::Below, conn, Message::Frame(number, frame))
            }
            SourceEffect::Close { conn, farewell } => Out::Close(Side::Below, conn, farewell),
            SourceEffect::Acked(acked) => {
                self.kept = self.kept.split_off(&acked.kept_from);
                let world = self.world_mut()?;
                if acked.durable > Lsn::ZERO {
                    world.far_durable(acked.durable);
                }
                world.filter.set_room(match acked.room {
                    FarRoom::Ok => Room::Ok,
                    FarRoom::NoSpace | FarRoom::Quota => Room::NoSpace,
                    FarRoom::Lost => Room::Lost,
                });
                self.durable = self.durable.max(acked.durable);
                return None;
            }
            SourceEffect::Lost(lost) => panic!("{lost:?} was acknowledged and is lost"),
            SourceEffect::Broken { .. } => {
                self.forking = true;
                return None;
            }
            SourceEffect::Refused { farewell, .. } => {
                let over = [Code::TimelineClosed, Code::TimelineUnknown, Code::Torn].contains(&farewell.code);
                self.forking |= over;
                return None;
            }
            _ => return None,
        })
    }
}

fn source(
    now: MonoTime,
    group: GroupId,
    timeline: Timeline,
    (connections, attempt, number): (u16, u64, u64),
) -> SourceEnd {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    SourceEnd::new(
        now,
        SourceOptions {
            group: Some(group),
            timeline: Some(timeline),
            tenant: String::new(),
            name: "vm".into(),
            software: "test".into(),
            features: Features::ALL,
            connections,
            plain: false,
            silence_ms: 1_000,
            start: Position::whole(Lsn::ZERO),
            origin: true,
            durable: Lsn::ZERO,
            attempt,
            retry_max_ns: S,
            seed,
        },
    )
}

impl Part for Host {
    fn handle(&mut self, now: MonoTime, _: Side, input: In) {
        let Life::Up(world) = &mut self.life else { return };
        world.step(now.0);
        let end = &mut self.end;
        match input {
            In::Connected(conn, dial) => end.handle_connected(now, conn, dial),
            In::ConnectFailed(dial) => end.handle_connect_failed(now, dial, "no way there"),
            In::Message(conn, message) => end.handle_message(now, conn, message),
            In::Sent(conn, bytes) => end.handle_sent(now, conn, bytes),
            In::Heard(conn) => end.handle_heard(now, conn),
            In::Gone(conn) => end.handle_disconnected(now, conn, "closed"),
            In::Accepted(..) => unreachable!("a source end accepts nobody"),
        }
    }

    fn timer(&mut self, now: MonoTime) {
        let Life::Up(world) = &mut self.life else { return };
        world.step(now.0);
        self.end.handle_timer(now);
    }

    fn deadline(&self) -> Option<MonoTime> {
        let world = MonoTime(self.world()?.next_time());
        Some(self.end.next_deadline().map_or(world, |end| end.min(world)))
    }

    fn poll(&mut self, now: MonoTime) -> Option<Out> {
        if let Some(out) = self.left.pop_front() {
            return Some(out);
        }
        self.world()?;
        loop {
            if self.forking && !std::mem::replace(&mut self.asked, true) {
                return Some(Out::Begin);
            }
            self.offer(now);
            let effect = self.end.poll()?;
            if let Some(out) = self.carry_out(effect) {
                return Some(out);
            }
        }
    }
}

/// The longest that a host lies there.
pub const DOWN_NS: u64 = 3_000 * MS;
