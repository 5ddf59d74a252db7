//! The replica host: the link's target end and a journal on a disk that tears and forgets.

mod copies;
mod disks;

use self::copies::Copies;
use super::calls::{Given, Reply};
use super::part::{FRAME, In, MS, Out, Part, Side, window};
use crate::capture::rng::Rng;
use bytes::Bytes;
use cdp_core::frame::EncodedFrame;
use cdp_core::journal::{
    Appended, DiskInfo, Effect, EffectId, Executor, Generation, Manifest, Opened, Options, Outcome, Refusal, Refused,
    Tail, TimelineInfo, TimelineRole, TimelineState, Writer, WriterState, create, open,
};
use cdp_core::link::message::{Code, FarRoom, Farewell, Features, Hello};
use cdp_core::link::target::{TargetEffect, TargetEnd, TargetOptions, Terms};
use cdp_core::media::{MediaError, MediaErrorKind, Operation};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::{DiskId, GroupId, Lsn, MonoTime, Position, ReplicaId, Timeline, WallTime};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub struct ReplicaHost {
    rng: Rng,
    group: GroupId,
    pub disk: SimDisk,
    /// Bytes of frames that are held, at most.
    window: u64,
    executor: Executor,
    pub writer: Writer,
    flying: BTreeMap<(MonoTime, EffectId), Effect>,
    end: TargetEnd,
    timeline: Timeline,
    have: Position,
    /// Frames that were taken and not appended yet.
    waiting: VecDeque<EncodedFrame>,
    /// Frames that are not durable: where they end, and their bytes.
    pending: VecDeque<(Position, u64)>,
    pending_bytes: u64,
    /// The last LSN that is whole with what was appended.
    whole: Lsn,
    /// The last LSN that was ever called durable.
    pub told: Lsn,
    /// The open timeline ends within a write, and nobody can tell where: another one has to follow.
    torn: bool,
    /// How often that was so, and how often it went on within a write.
    pub torn_times: u32,
    pub within_times: u32,
    /// Nothing is taken any more: another timeline is about to be opened, in this generation of the manifest.
    closing: bool,
    opening: Option<(Timeline, Generation)>,
    attempt: u64,
    pub is_down: bool,
    pub writes_fail: u64,
    pub no_space_until: MonoTime,
    /// Nor for a manifest.
    pub no_space_at_all: bool,
    left: VecDeque<Out>,
    copies: Copies,
}

fn options() -> Options {
    Options {
        directory: JOURNAL_DIRECTORY.to_owned(),
        segment_bytes: 1 << 20,
        segment_records: 400,
        keep_free_bytes: 0,
        commit_bytes: 64 << 10,
        retry_ns: 100 * MS,
        ..Options::default()
    }
}

fn writer(opened: Opened, rng: &mut Rng) -> Writer {
    let mut rng = Rng::new(rng.next());
    Writer::new(opened, options(), Box::new(move || rng.identity()))
}

fn target(group: GroupId, timeline: Timeline, attempt: u64) -> TargetEnd {
    TargetEnd::new(TargetOptions {
        group: Some(group),
        timeline: Some(timeline),
        features: Features::ALL,
        connections: 15,
        silence_ms: 1_000,
        attempt,
    })
}

impl ReplicaHost {
    /// A replica of disks of these sizes, in bytes, on its first timeline, and images of some of them that somebody brought.
    pub fn new(group: GroupId, timeline: Timeline, sizes: &[u64], brought: Vec<(DiskId, Bytes)>, mut rng: Rng) -> Self {
        let disk = SimDisk::new();
        let mut manifest = Manifest::new(ReplicaId::new(rng.identity()).expect("not 0"), group, "vm");
        for (at, size) in sizes.iter().enumerate() {
            manifest.disks.push(DiskInfo {
                id: DiskId::new(at as u16 + 1).expect("not 0"),
                name: format!("disk{at}"),
                size: *size,
                source: String::new(),
                added: Lsn::ZERO,
                removed: None,
                stopped: None,
                base: None,
            });
        }
        let opened = create(&disk, manifest).expect("an empty disk");
        let mut this = Self {
            writer: writer(opened, &mut rng),
            rng,
            group,
            executor: Executor::new(Arc::new(disk.clone())),
            disk,
            window: window(sizes.iter().copied().max().unwrap_or(0)),
            flying: BTreeMap::new(),
            end: target(group, timeline, 0),
            timeline,
            have: Position::whole(Lsn::ZERO),
            waiting: VecDeque::new(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            whole: Lsn::ZERO,
            told: Lsn::ZERO,
            torn: false,
            torn_times: 0,
            within_times: 0,
            closing: false,
            opening: None,
            attempt: 0,
            is_down: false,
            writes_fail: 0,
            no_space_until: MonoTime(0),
            no_space_at_all: false,
            left: VecDeque::new(),
            copies: Copies::new(brought),
        };
        this.copies.bring(&this.disk);
        this.writer.open_timeline(info(timeline, 1, None, Lsn::ZERO));
        cdp_core::journal::drain(&mut this.writer, &this.executor, MonoTime(1));
        this
    }

    /// As a reader sees it now.
    pub fn look(&self) -> Replica {
        let (manifest, snapshot) = (self.writer.manifest().clone(), self.writer.snapshot());
        let safe = self.writer.durable().lsn();
        Replica::load_to_read(Arc::new(self.disk.clone()), manifest, snapshot, safe, Arc::default())
            .expect("a replica can be read")
    }

    pub fn durable(&self) -> Lsn {
        self.writer.durable().lsn()
    }

    pub fn has_failed(&self) -> bool {
        matches!(self.writer.state(), WriterState::Failed(_))
    }

    pub fn crash(&mut self) {
        for (_, effect) in std::mem::take(&mut self.flying) {
            if self.rng.one_in(2) {
                // The machine does not hear of it any more.
                let _ = self.executor.run(&effect);
            }
        }
        self.is_down = true;
        self.writes_fail = 0;
        self.left.clear();
    }

    pub fn restart(&mut self) {
        self.is_down = false;
        self.disk = self.disk.after_cut(Survival::Some(self.rng.next()));
        self.executor = Executor::new(Arc::new(self.disk.clone()));
        let opened = open(&self.disk, JOURNAL_DIRECTORY, Some(self.told));
        let mut opened = opened.unwrap_or_else(|error| panic!("the replica does not open: {error}"));
        let durable = opened.durable.lsn();
        assert!(durable >= self.told, "{} was called durable, {durable} is there", self.told);
        if matches!(opened.tail, Tail::Within(_)) {
            if self.rng.one_in(6) {
                // As it is found where the head of the last frame is damaged.
                opened.tail = Tail::Lost(opened.last_lsn);
                self.torn_times += 1;
            } else {
                self.within_times += 1;
            }
        }
        self.torn = opened.tail.position().is_none();
        let there = opened.manifest.timelines.iter().find(|timeline| timeline.state == TimelineState::Open);
        self.timeline = there.expect("one is open").id;
        self.have = opened.tail.position().unwrap_or_default();
        self.writer = writer(opened, &mut self.rng);
        self.end = target(self.group, self.timeline, self.attempt);
        (self.whole, self.closing, self.opening) = (durable, false, None);
        self.waiting.clear();
        self.pending.clear();
        self.pending_bytes = 0;
        self.copies.fell();
    }

    /// Somebody wants to write this timeline from now on; none: not yet.
    fn begin(&mut self, now: MonoTime, timeline: Timeline, (starts, given): (bool, &[Given])) -> Option<Reply> {
        if self.has_failed() {
            return None;
        }
        if timeline == self.timeline {
            if self.opening.is_some_and(|(_, generation)| self.writer.manifest_durable() < generation) {
                return None;
            }
            if self.opening.take().is_some() {
                (self.closing, self.torn) = (false, false);
            }
            return Some(Reply::Begun(self.begun()));
        }
        if starts && self.is_vacant() {
            // No copy of any disk came anywhere: the group is begun anew.
            self.begin_anew(timeline);
            return Some(Reply::Begun(self.begun()));
        }
        if !std::mem::replace(&mut self.closing, true) {
            self.end.close(Farewell::new(Code::TimelineClosed, "another timeline is written now"));
            self.waiting.clear();
            self.writer.request_sync();
        }
        self.turn(now);
        if !self.flying.is_empty() || self.durable() < self.whole {
            return None;
        }
        let number = self.writer.manifest().timelines.len() as u32 + 1;
        let (parent, fork) = (self.timeline, self.durable());
        let replica = self.look();
        self.writer.open_timeline(info(timeline, number, Some(parent), fork));
        let generation = self.note_disks(&replica, (starts, given), fork);
        self.opening = Some((timeline, generation));
        (self.timeline, self.have) = (timeline, Position::whole(Lsn::ZERO));
        self.pending.clear();
        self.pending_bytes = 0;
        self.copies.forget();
        let left: Vec<Out> = std::iter::from_fn(|| self.poll(now)).collect();
        self.left.extend(left);
        self.end = target(self.group, timeline, 0);
        self.turn(now);
        None
    }

    /// Appends what waits, and gives the disk what the writer wants of it.
    fn turn(&mut self, now: MonoTime) {
        while let Some(frame) = self.waiting.pop_front() {
            match self.writer.append(now, frame) {
                Ok(Appended { whole, .. }) => self.whole = whole,
                Err(Refused { frame, why: Refusal::NotNow(_) | Refusal::Failed(_) }) => {
                    self.waiting.push_front(frame);
                    break;
                }
                Err(refused) => panic!("a frame that came in order is refused: {}", refused.why),
            }
            self.issue(now);
        }
        self.issue(now);
    }

    fn issue(&mut self, now: MonoTime) {
        while let Some((id, effect)) = self.writer.poll(now) {
            let syncs = matches!(effect, Effect::Sync { .. } | Effect::SyncDir { .. });
            let due = now.after(self.rng.below(if syncs { 8 * MS } else { 2 * MS }));
            self.flying.insert((due, id), effect);
        }
    }

    fn run(&mut self, now: MonoTime, effect: &Effect) -> Outcome {
        let error = |kind| Err(MediaError::new(kind, Operation::Write, "journal", 5, "simulated"));
        if let Effect::Create { preallocate, .. } = effect
            && now < self.no_space_until
            && (*preallocate > 0 || self.no_space_at_all)
        {
            return error(MediaErrorKind::NoSpace);
        }
        if self.writes_fail > 0 && matches!(effect, Effect::Write { .. } | Effect::Sync { .. }) {
            self.writes_fail -= 1;
            if self.writes_fail == 0 {
                return error(MediaErrorKind::Io);
            }
        }
        self.executor.run(effect)
    }

    /// Says what is durable now.
    fn tell(&mut self, now: MonoTime) {
        let durable = self.durable();
        while let Some((_, bytes)) = self.pending.pop_front_if(|(end, _)| *end <= Position::whole(durable)) {
            self.pending_bytes -= bytes;
        }
        if !self.closing {
            self.told = self.told.max(durable);
            self.end.durable(now, durable);
            let room = if self.writer.state() == WriterState::NoSpace { FarRoom::NoSpace } else { FarRoom::Ok };
            self.end.room(now, room);
            self.end.grant(now, self.window.saturating_sub(self.pending_bytes));
        }
    }

    fn judge(&mut self, now: MonoTime, hello: &Hello) {
        self.attempt = hello.attempt;
        if self.closing || self.opening.is_some() {
            let why = Farewell::new(Code::TimelineClosed, "another timeline is about to be written");
            return self.end.refuse(hello.session, why);
        }
        if self.torn {
            let why = Farewell::new(Code::Torn, "nobody can tell within which part of a write the timeline ends");
            return self.end.refuse(hello.session, why);
        }
        let durable = self.durable();
        assert!(hello.durable_seen <= durable, "{} was seen durable, {durable} is there", hello.durable_seen);
        self.told = self.told.max(durable);
        let room_bytes = self.window.saturating_sub(self.pending_bytes);
        let terms = Terms { have: Some(self.have), stored: durable, durable, room_bytes, ..Terms::default() };
        self.end.admit(now, hello.session, terms);
    }
}

fn info(id: Timeline, number: u32, parent: Option<Timeline>, fork: Lsn) -> TimelineInfo {
    let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
    TimelineInfo { id, number, parent, fork, last: None, state, role, opened: WallTime(1) }
}

impl Part for ReplicaHost {
    fn handle(&mut self, now: MonoTime, _: Side, input: In) {
        let end = &mut self.end;
        match input {
            In::Accepted(conn, hello) => end.handle_accepted(now, conn, *hello),
            In::Message(conn, message) => end.handle_message(now, conn, message),
            In::Sent(conn, bytes) => end.handle_sent(now, conn, bytes),
            In::Heard(conn) => end.handle_heard(now, conn),
            In::Gone(conn) => end.handle_disconnected(now, conn, "closed"),
            In::Connected(..) | In::ConnectFailed(_) => unreachable!("a target end dials nobody"),
        }
    }

    fn timer(&mut self, now: MonoTime) {
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, id), effect) = entry.remove_entry();
            let outcome = self.run(now, &effect);
            self.writer.completed(now, id, outcome);
        }
        self.turn(now);
        self.take_seeds(now);
        self.tell(now);
        self.end.handle_timer(now);
    }

    fn deadline(&self) -> Option<MonoTime> {
        if self.is_down {
            return None;
        }
        let disk = self.flying.keys().next().map(|(due, _)| *due);
        let copies = self.copies.waits().then_some(self.no_space_until);
        [disk, copies, self.writer.next_deadline(), self.end.next_deadline()].into_iter().flatten().min()
    }

    fn poll(&mut self, now: MonoTime) -> Option<Out> {
        loop {
            if let Some(out) = self.left.pop_front() {
                return Some(out);
            }
            if self.is_down {
                return None;
            }
            return Some(match self.end.poll()? {
                TargetEffect::Judge { hello, .. } => {
                    self.judge(now, &hello);
                    continue;
                }
                TargetEffect::Send { conn, message } => Out::Send(Side::Above, conn, message),
                TargetEffect::Close { conn, farewell } => Out::Close(Side::Above, conn, farewell),
                TargetEffect::Take(frame) => {
                    assert_eq!(frame.info.begin(), self.have, "a frame that does not continue was handed on");
                    self.have = frame.info.end();
                    self.pending.push_back((self.have, frame.len()));
                    self.pending_bytes += frame.len();
                    assert!(self.pending_bytes <= self.window + FRAME, "{} bytes are held", self.pending_bytes);
                    if !self.closing {
                        self.waiting.push_back(frame);
                        self.turn(now);
                    }
                    continue;
                }
                TargetEffect::TakeSeed(seed) => {
                    self.pending_bytes += seed.len();
                    assert!(self.pending_bytes <= self.window + FRAME, "{} bytes are held", self.pending_bytes);
                    self.copies.arrives(seed);
                    self.take_seeds(now);
                    continue;
                }
                TargetEffect::Up { .. } | TargetEffect::Down { .. } => {
                    self.pending_bytes -= self.copies.forget();
                    continue;
                }
                _ => continue,
            });
        }
    }
}
