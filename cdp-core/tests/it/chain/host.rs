//! The filter's host: guests, filter and activity log as the capture tests have them, and the link's source end.

mod copies;
mod disks;

use self::copies::Copies;
use self::disks::Changes;
use super::calls::{Ask, Begun, Given, Reply};
use super::part::{FRAME, In, MS, Out, Part, S, Side};
use crate::capture::crash::{Disks, End, begin_again, fall, left};
use crate::capture::world::{History, Hostility, Order, World, index, spec};
use cdp_core::capture::{Fork, QUEUE_BYTES_MIN, RereadToken, Room};
use cdp_core::frame::{Compression, EncodedFrame, Encoder};
use cdp_core::link::message::{Code, FarRoom, Features, Message};
use cdp_core::link::source::{SourceEffect, SourceEnd, SourceOptions};
use cdp_core::replica::compare::{Compare, CompareOptions, Outcome, Output};
use cdp_core::types::{DiskId, GroupId, Lsn, MonoTime, Position, SECTOR, Timeline};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of frames that are kept, at most: the filter's queue, with what frames take beside what they carry.
const KEPT: u64 = QUEUE_BYTES_MIN + QUEUE_BYTES_MIN / 8;

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
    kept_bytes: u64,
    copies: Copies,
    changes: Changes,
    compare: Compare<RereadToken>,
    /// Ranges that wait to be compared.
    doubtful: VecDeque<Order>,
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
    /// Timelines that a filter went on under.
    pub forked: BTreeSet<Timeline>,
    lends: u64,
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
            group,
            connections,
            hostility,
            end,
            encoder: Encoder::new(),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            copies: Copies::new(copies::all(&world)),
            changes: Changes::default(),
            compare: comparison(),
            doubtful: VecDeque::new(),
            offered: 0,
            forking: false,
            asked: false,
            attempt: 0,
            seed,
            left: VecDeque::new(),
            histories: Vec::new(),
            forked: BTreeSet::new(),
            lends: 0,
            durable: Lsn::ZERO,
            forks: 0,
            life: Life::Up(Box::new(world)),
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
        self.kept_bytes = 0;
        self.compare = comparison();
        self.doubtful.clear();
        self.left.clear();
        self.changes.fell();
        (self.forking, self.asked) = (false, false);
    }

    /// The replica has opened `timeline`: a start, or the filter that runs goes on there.
    pub fn begin(&mut self, timeline: Timeline, begun: Begun, given: &[Given]) {
        match (std::mem::replace(&mut self.life, Life::Between), begun.after) {
            (Life::Down(world), None) => {
                self.histories.push(world.history_so_far());
                let world = begin_again(*world, self.hostility, timeline);
                self.copies = Copies::new(copies::all(&world));
                self.life = Life::Up(Box::new(world));
            }
            (Life::Down(mut world), Some((parent, fork))) => {
                self.histories.push(world.history_so_far());
                world.trusted(begun.least);
                let mut left = left(*world, fork);
                for (disk, base) in begun.bases {
                    if self.copies.is_uncopied(disk) {
                        left.base[index(disk)] = base;
                    }
                }
                let is_anew = |disk: DiskId| given.iter().find(|given| given.anew == disk && given.disk != disk);
                let there: Vec<DiskId> = begun.disks.iter().map(|(disk, _)| *disk).collect();
                let joining = there.iter().filter_map(|disk| Some((*disk, is_anew(*disk)?.disk))).collect();
                let disks = Disks { there, joining, leaving: begun.leaving };
                let mut world = left.restart_on(self.hostility, (timeline, parent), &disks);
                for (disk, size) in begun.disks.iter().filter(|(disk, _)| is_anew(*disk).is_none()) {
                    let known = world.known_at(Lsn::ZERO).sizes[index(*disk)] as u64 * SECTOR;
                    assert_eq!(known, *size, "of disk {disk} the replica knows {size} bytes");
                }
                world.seeds_left = begun.uncopied.len();
                self.copies = Copies::new(begun.uncopied);
                let announced = world.filter.status(world.both()).lsn;
                disks.joining.iter().for_each(|(disk, _)| self.copies.join(*disk, announced));
                self.life = Life::Up(Box::new(world));
            }
            (Life::Up(mut world), after) => {
                let (_, fork) = after.expect("only a start finds nothing");
                self.histories.push(world.history_so_far());
                let now = MonoTime(world.now);
                self.end.stop(now);
                self.drain_end();
                world.far_durable(fork);
                let (before, lost) = (world.dirty_bytes(), world.lost_bytes(fork));
                let known = begun.disks.iter().map(|(disk, size)| spec(index(*disk), *size)).collect::<Vec<_>>();
                world.fork_at(timeline, fork, Fork::Lent, &known);
                self.changes.forked();
                let after = world.dirty_bytes();
                // Only where ranges are kept it is known which were lost.
                let exact = !world.options.keeps_ranges || world.hostility.disks_change || after <= before + lost;
                assert!(exact, "{after} bytes are read again, {before} were dirty and {lost} are lost");
                self.forked.insert(timeline);
                self.copies.session_changed(false);
                self.life = Life::Up(world);
                self.forks += 1;
            }
            (Life::Between, _) => unreachable!("it was put back"),
        }
        let now = MonoTime(self.any_world().now);
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.end = source(now, self.group, timeline, (self.connections, self.attempt, self.seed));
        self.kept.clear();
        (self.offered, self.durable, self.kept_bytes) = (0, Lsn::ZERO, 0);
        (self.forking, self.asked) = (false, false);
    }

    /// What it asked the replica is answered.
    pub fn answered(&mut self, now: MonoTime, ask: Ask, reply: Reply) {
        let Life::Up(world) = &mut self.life else { return };
        world.step(now.0);
        match (ask, reply) {
            (Ask::Trust { least }, Reply::Done) => world.trusted(least),
            (Ask::Disks { timeline, edit }, Reply::Done) => {
                if timeline == world.options.timeline {
                    self.changes.told(world, edit);
                }
            }
            (Ask::Copy { disk, .. }, Reply::Copy { attempt, position }) => self.copies.begun(disk, attempt, position),
            (Ask::Copied { disk, attempt }, Reply::Copied(whole)) => self.copies.ended(world, (disk, attempt), whole),
            (Ask::Hashes(_), Reply::Hashes(id, answer)) => {
                self.compare.answered(now, id, answer).expect("as many hashes as were asked for");
            }
            (ask, reply) => unreachable!("{ask:?} is answered by {reply:?}"),
        }
    }

    /// How often frames were lent.
    pub fn lends(&self) -> u64 {
        self.lends
    }

    /// First copies are through, and nothing becomes of any disk.
    pub fn is_settled(&self) -> bool {
        self.copies.are_all_done() && self.changes.are_done()
    }

    /// What becomes of the disks.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Bytes of disks that are not copied, and of what is about to be.
    pub fn uncopied_bytes(&self) -> u64 {
        self.copies.left(self.any_world()) + self.changes.bytes()
    }

    /// The sources that a filter is started with, or has. Of a disk that left it may not be known any more that it did.
    pub fn given(&mut self) -> Vec<Given> {
        match &mut self.life {
            Life::Up(world) => disks::held(world),
            Life::Down(world) => disks::given(world),
            Life::Between => unreachable!("it was put back"),
        }
    }

    /// What the filter wants of whoever has the replica; gives what is to be asked.
    fn order(&mut self) -> Option<Ask> {
        let Life::Up(world) = &mut self.life else { return None };
        while let Some(order) = world.orders.pop_front() {
            match order {
                Order::Trust(least) => return Some(Ask::Trust { least }),
                Order::Lend(through) => {
                    self.lends += 1;
                    self.end.lend(through);
                }
                Order::Compare { .. } => self.doubtful.push_back(order),
                // One at a time, and none while a new group is copied.
                Order::Change(change) if self.changes.are_done() && self.copies.are_done() && !self.forking => {
                    self.changes.begin(world, &mut self.copies, change);
                }
                Order::Change(_) => {}
            }
        }
        None
    }

    /// Goes on with what is compared; gives what is to be asked.
    fn go_on_comparing(&mut self, now: MonoTime) -> Option<Ask> {
        let Life::Up(world) = &mut self.life else { return None };
        loop {
            while let Some(Order::Compare { token, disk, extent, at }) =
                self.doubtful.pop_front_if(|_| self.compare.has_room())
            {
                self.compare.begin(token, disk, extent, at).expect("there is room");
            }
            match self.compare.poll(now)? {
                Output::Hash(job) => self.compare.hashed(job.id, Ok(world.hashes(job.disk, &job.asked))),
                Output::Ask(ask) => return Some(Ask::Hashes(ask)),
                Output::Done(done) => {
                    let differs = if let Outcome::Differs(runs) = done.outcome { Some(runs) } else { None };
                    world.compared(done.key, differs);
                }
            }
        }
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
            if self.kept_bytes + frame.len() > KEPT {
                // What is lent has no room here, whoever has stored it meanwhile or has not.
                self.end.forfeit_lent(now);
                let kept_from = self.end.acked().kept_from;
                let Self { kept, kept_bytes, .. } = self;
                let_go(kept, kept_bytes, kept_from);
            }
            self.kept_bytes += frame.len();
            assert!(self.kept_bytes <= KEPT + FRAME, "{} bytes are kept", self.kept_bytes);
            let key = self.end.offer(now, &frame.info, frame.len()).expect("frames continue each other");
            self.kept.insert(key.0, frame);
            self.offered += 1;
        }
    }

    /// Goes on with first copies; gives what is to be asked.
    fn copy(&mut self, now: MonoTime) -> Option<Ask> {
        let Life::Up(world) = &mut self.life else { return None };
        if self.forking {
            return None;
        }
        let ask = self.changes.go_on(world, &mut self.copies);
        ask.or_else(|| self.copies.go_on(now, world, (self.group, &mut self.end)))
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
                let_go(&mut self.kept, &mut self.kept_bytes, acked.kept_from);
                self.copies.taken(acked.seeds);
                let world = self.world_mut()?;
                if acked.durable > Lsn::ZERO {
                    world.far_durable(acked.durable);
                }
                world.far_stored(acked.stored);
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
            SourceEffect::Up { .. } => {
                self.copies.session_changed(true);
                return None;
            }
            SourceEffect::Down { .. } => {
                self.copies.session_changed(false);
                return None;
            }
            _ => return None,
        })
    }
}

/// Frames with lower keys are needed no more.
fn let_go(kept: &mut BTreeMap<u64, EncodedFrame>, bytes: &mut u64, kept_from: u64) {
    let stays = kept.split_off(&kept_from);
    *bytes -= std::mem::replace(kept, stays).values().map(EncodedFrame::len).sum::<u64>();
}

/// What is not answered is asked again soon.
fn comparison() -> Compare<RereadToken> {
    Compare::new(CompareOptions { patience_ns: 500 * MS, ..CompareOptions::default() })
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
        let others = [self.end.next_deadline(), self.compare.next_deadline(), self.copies.next_deadline()];
        others.into_iter().flatten().chain(Some(world)).min()
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
            // What is lent makes room for the frames behind it.
            if let Some(ask) = self.order() {
                return Some(Out::Ask(ask));
            }
            self.offer(now);
            if let Some(ask) = self.go_on_comparing(now).or_else(|| self.copy(now)) {
                return Some(Out::Ask(ask));
            }
            let effect = self.end.poll()?;
            if let Some(out) = self.carry_out(effect) {
                return Some(out);
            }
        }
    }
}

/// The longest that a host lies there.
pub const DOWN_NS: u64 = 3_000 * MS;
