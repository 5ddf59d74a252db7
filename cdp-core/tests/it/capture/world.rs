//! A simulated source machine and its replica around one filter, in virtual time.
//!
//! The world is hostile inside what the filter promises to survive: ops take random time, fail and tear; the log is slow or
//! fails; acks stall; re-reads and flushes fail; clocks step. [`super::crash`] adds the end of the machine.

use super::disk::{SimDisk, Tags, bytes_of, sectors, tags_of};
use super::model::{self, Change, Shape};
use super::rng::Rng;
use cdp_core::capture::*;
use cdp_core::frame::{Payload, RawFrame};
use cdp_core::types::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const MS: u64 = 1_000_000;
pub const S: u64 = 1_000_000_000;

mod change;
pub use change::DiskChange;
mod far;
pub use far::{History, Order, Piece};
mod fork;
pub use fork::Known;
mod guest;
mod host;

/// How hostile a run is.
#[derive(Clone, Copy, Debug)]
pub struct Hostility {
    pub clients: u64,
    /// One op in so many fails; 0: none.
    pub op_fails_one_in: u64,
    pub log_fails_one_in: u64,
    pub reread_fails_one_in: u64,
    pub flush_fails_one_in: u64,
    /// The replica takes this long for a frame, at most.
    pub durable_ns_max: u64,
    /// One durable frame in so many is followed by a long stall.
    pub stall_one_in: u64,
    pub clock_steps: bool,
    /// Ops that are large, one in so many.
    pub large_one_in: u64,
    /// No op is longer, in sectors.
    pub sectors_max: u64,
    /// Disks join, change their size and leave.
    pub disks_change: bool,
    /// None that joins or grows becomes larger by it, in sectors.
    pub disk_sectors: u64,
    /// The far side cannot continue the order: at one look in so many; 0: never.
    pub forks_one_in: u64,
    /// Replication leaves the guests' path and comes back.
    pub detaches: bool,
    /// The policy is per-point, or becomes it, and a proxy leaves out what it may.
    pub periods: bool,
    /// The replica is elsewhere: whoever has the world takes the frames to it and says what is durable there.
    pub far: bool,
}

#[derive(Debug)]
enum Ev {
    Client(u64),
    OpTouches(Ticket),
    OpDone(Ticket),
    LogDone(LogToken),
    LogRemoved,
    LogRemovalKnown,
    Trusted(u64),
    FlushDone(usize, FlushTicket, (u64, Tags)),
    RereadReads(RereadToken),
    RereadDone(RereadToken),
    ReplicaTakes,
    Ack(Lsn),
    SeedStep(usize, u64),
    ClockStep,
    Room,
    Change,
    ProxyStores,
    Fork,
    Detach,
}

pub struct OpenOp {
    client: u64,
    disk: usize,
    pub extent: Extent,
    tags: Tags,
    fails: bool,
    sequence: u64,
    submitted: u64,
    pub running: bool,
    /// It went while replication was out of the path.
    passed: bool,
    /// It ran beside another that overlaps it: what the disk holds afterwards only the disk knows.
    raced: bool,
    unblocked: u64,
}

struct OpenReread {
    reread: Reread,
    disk: usize,
    tags: Tags,
    half: bool,
}

/// How an op went.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Went {
    Recorded,
    Tracked,
    Passed,
}

/// What outlives a filter.
pub struct World {
    pub rng: Rng,
    pub now: u64,
    pub wall_offset: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    sequence: u64,
    pub hostility: Hostility,
    pub calm: bool,
    pub filter: Filter,
    pub options: FilterOptions,
    pub disks: Vec<SimDisk>,
    pub ops: BTreeMap<Ticket, OpenOp>,
    next_op: u64,
    rereads: BTreeMap<RereadToken, OpenReread>,
    /// The activity log: what is synced, and what is being written.
    pub log_file: Vec<u8>,
    pub log_pending: Option<(LogToken, Vec<(u64, bytes::Bytes)>)>,
    /// What is being written goes into a file that was removed meanwhile.
    pub log_orphaned: bool,
    /// The file that is open has no name any more.
    pub log_unlinked: bool,
    /// What the replica believes of activity logs, and what it was told.
    pub least: u64,
    pub told: u64,
    pub frames: Vec<RawFrame>,
    /// Records that a proxy left out on the way to the replica.
    pub left_out: BTreeSet<Lsn>,
    shape: Shape,
    chain_start: Lsn,
    /// Frames that the replica has.
    pub taken: usize,
    /// The replica before the first record, and after the durable ones.
    pub base: Vec<Tags>,
    pub applied: Vec<Tags>,
    pub applied_through: Lsn,
    pub start_content: Vec<Tags>,
    start_sizes: Vec<usize>,
    /// Disks that are not complete where the records begin.
    hidden: BTreeSet<usize>,
    /// Disks that were there at the start of the filter.
    first_disks: usize,
    /// Where the timeline of the records forked from the one before, if this filter did that.
    pub forked_at: Lsn,
    /// How often frames were lent.
    pub lends: u64,
    stored: Lsn,
    /// Sectors of each disk now, and of its source.
    pub sizes: Vec<usize>,
    pub source_sizes: Vec<usize>,
    /// Disks of which something is to become, or that are being copied.
    pub changing: BTreeSet<usize>,
    pub left: BTreeSet<usize>,
    /// The last record of those that say what became of a disk.
    disks_changed: Lsn,
    pub changes: Vec<Change>,
    change_of_op: BTreeMap<u64, usize>,
    pub lsn_after_call: Vec<Lsn>,
    gone: VecDeque<(u64, Went)>,
    counted: [u64; 3],
    pub events: Vec<Event>,
    pub bytes_reread: u64,
    pub trace: u64,
    /// First copies of the group that are not through.
    pub seeds_left: usize,
    /// For whoever has the replica, where that is elsewhere.
    pub orders: VecDeque<Order>,
    /// What was handed to the filter to be repaired, and how many frames there were then.
    repaired: Vec<(usize, Extent, usize)>,
    /// What was durable when the first frame was lent of those that are.
    lent_since: Option<Lsn>,
    /// Sectors that a record covers: the base below them is not seen.
    covered: Vec<Vec<bool>>,
}

pub fn spec(at: usize, size: u64) -> DiskSpec {
    DiskSpec { id: DiskId::new(at as u16 + 1).expect("not 0"), name: format!("disk{at}"), size }
}

pub fn index(disk: DiskId) -> usize {
    usize::from(disk.get()) - 1
}

impl World {
    pub fn new(
        mut rng: Rng,
        hostility: Hostility,
        disks: Vec<SimDisk>,
        base: Vec<Tags>,
        options: FilterOptions,
    ) -> Self {
        let now = rng.between(1, 1000) * S;
        let wall_offset = 1_700_000_000 * S;
        let both = Now { wall: WallTime(now + wall_offset), mono: MonoTime(now) };
        let filter = Filter::new(options.clone(), both).expect("good options");
        let chain_start = if let Start::Clean { after, .. } = &options.start { *after } else { Lsn::ZERO };
        let start_content = disks.iter().map(|disk| disk.content.clone()).collect();
        let start_sizes: Vec<usize> = disks.iter().map(|disk| disk.content.len()).collect();
        let mut world = Self {
            rng,
            now,
            wall_offset,
            queue: BTreeMap::new(),
            sequence: 0,
            hostility,
            calm: false,
            filter,
            options,
            disks,
            ops: BTreeMap::new(),
            next_op: 1,
            rereads: BTreeMap::new(),
            log_file: Vec::new(),
            log_pending: None,
            log_orphaned: false,
            log_unlinked: false,
            least: 0,
            told: 0,
            frames: Vec::new(),
            left_out: BTreeSet::new(),
            shape: Shape::default(),
            chain_start,
            taken: 0,
            applied: base.clone(),
            base,
            applied_through: chain_start,
            start_content,
            sizes: start_sizes.clone(),
            source_sizes: start_sizes.clone(),
            first_disks: start_sizes.len(),
            start_sizes,
            hidden: BTreeSet::new(),
            forked_at: Lsn::ZERO,
            lends: 0,
            stored: Lsn::ZERO,
            changing: BTreeSet::new(),
            left: BTreeSet::new(),
            disks_changed: Lsn::ZERO,
            changes: Vec::new(),
            change_of_op: BTreeMap::new(),
            lsn_after_call: Vec::new(),
            gone: VecDeque::new(),
            counted: [0; 3],
            events: Vec::new(),
            bytes_reread: 0,
            trace: 0,
            seeds_left: 0,
            orders: VecDeque::new(),
            repaired: Vec::new(),
            lent_since: None,
            covered: Vec::new(),
        };
        world.covered = world.disks.iter().map(|disk| vec![false; disk.content.len()]).collect();
        world.called();
        if !hostility.far {
            world.later(MS, Ev::ReplicaTakes);
        }
        for client in 0..hostility.clients {
            world.later(MS, Ev::Client(client));
        }
        if let Start::First = world.options.start {
            world.seeds_left = world.disks.len();
            if !hostility.far {
                (0..world.disks.len()).for_each(|disk| world.later(5 * MS, Ev::SeedStep(disk, 0)));
            }
        }
        if hostility.clock_steps {
            world.later(S, Ev::ClockStep);
        }
        world.later(2 * S, Ev::Room);
        if hostility.disks_change {
            world.later(S, Ev::Change);
        }
        if world.options.keeps_ranges && !hostility.far {
            world.later(MS, Ev::ProxyStores);
        }
        if hostility.forks_one_in > 0 {
            world.later(2 * S, Ev::Fork);
        }
        if hostility.detaches {
            world.later(3 * S, Ev::Detach);
        }
        world
    }

    pub fn both(&self) -> Now {
        Now { wall: WallTime(self.now + self.wall_offset), mono: MonoTime(self.now) }
    }

    fn later(&mut self, ns_max: u64, event: Ev) {
        let at = self.now + self.rng.between(1, ns_max);
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    fn unlucky(&mut self, one_in: u64) -> bool {
        !self.calm && one_in > 0 && self.rng.one_in(one_in)
    }

    fn hash(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    /// After every call of the filter: which ops went in it, and which LSNs were given.
    fn called(&mut self) -> u64 {
        let status = self.filter.status(self.both());
        let call = self.lsn_after_call.len() as u64;
        self.lsn_after_call.push(status.lsn);
        let Counters { ops_recorded, ops_tracked, ops_passed, .. } = status.counters;
        let counted = [ops_recorded, ops_tracked, ops_passed];
        for (at, went) in [Went::Recorded, Went::Tracked, Went::Passed].into_iter().enumerate() {
            self.gone.extend((self.counted[at]..counted[at]).map(|_| (call, went)));
        }
        self.counted = counted;
        assert!(status.settled <= status.lsn && status.restorable <= status.durable);
        assert!(status.restorable <= status.settled.max(self.forked_at));
        assert!(status.lent.is_some() || status.lent_bytes == 0);
        self.lent_since = self.lent_since.filter(|_| status.lent.is_some());
        assert!(status.queued_bytes <= status.queue_bytes_max + (64 << 10), "the queue keeps its bound: {status:?}");
        call
    }

    /// Lives for so long.
    pub fn run_for(&mut self, ns: u64) {
        let end = self.now + ns;
        self.run_until(|world| world.now >= end, end);
    }

    /// Lives until something holds; it must by `deadline`.
    pub fn run_until(&mut self, done: impl Fn(&Self) -> bool, deadline: u64) {
        self.drain();
        let mut stuck = 0;
        while !done(self) {
            let event = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let timer = self.filter.next_deadline().map_or(u64::MAX, |at| at.0);
            let next = event.min(timer).max(self.now);
            stuck = if next > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 10_000, "time stands still: timer {timer} at {}, {:#?}", self.now, self.filter);
            if next > deadline {
                self.now = deadline;
                assert!(
                    done(self),
                    "not reached: {:#?} {:?}",
                    self.filter,
                    &self.events[self.events.len().saturating_sub(12)..]
                );
                return;
            }
            self.now = next;
            if event <= timer {
                let (_, event) = self.queue.pop_first().expect("an event");
                self.happen(event);
            }
            self.drain();
        }
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Client(client) => self.client(client),
            Ev::OpTouches(ticket) => self.op_touches(ticket),
            Ev::OpDone(ticket) => self.op_done(ticket),
            Ev::LogDone(token) => self.log_done(token),
            Ev::LogRemoved => self.log_removed(),
            Ev::LogRemovalKnown => self.filter.log_removed(self.both()).expect("it was under way"),
            Ev::Trusted(least) => self.least = self.least.max(least),
            Ev::FlushDone(disk, ticket, content) => self.flush_done(disk, ticket, &content),
            Ev::RereadReads(token) => self.reread_reads(token),
            Ev::RereadDone(token) => self.reread_done(token),
            Ev::ReplicaTakes => self.replica_takes(),
            Ev::Ack(lsn) => self.filter.durable(lsn),
            Ev::SeedStep(disk, offset) => self.seed_step(disk, offset),
            Ev::ClockStep => {
                let step = self.rng.between(0, 8 * S);
                self.wall_offset = (self.wall_offset + step).saturating_sub(4 * S);
                self.later(4 * S, Ev::ClockStep);
            }
            Ev::Change => self.change_disks(),
            Ev::ProxyStores => self.proxy_stores(),
            Ev::Fork => self.maybe_fork(),
            Ev::Detach => self.detach_or_attach(),
            Ev::Room => {
                let room = if self.calm { 3 } else { self.rng.below(4) };
                if !self.hostility.far {
                    self.filter.set_room([Room::Lost, Room::NoSpace, Room::Ok, Room::Ok][room as usize]);
                }
                if self.hostility.periods {
                    let every = self.rng.one_in(4);
                    self.filter
                        .set_points(self.both(), if every { PointsMode::EveryWrite } else { PointsMode::PerPoint });
                    self.called();
                }
                self.later(3 * S, Ev::Room);
            }
        }
    }

    fn drain(&mut self) {
        self.called();
        while let Some(output) = self.filter.poll(self.both()) {
            self.called();
            self.take(output);
        }
        self.called();
        assert!(self.gone.is_empty(), "every op that went was said to");
        self.check_waits();
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Ready(ticket) => self.start_op(ticket),
            Output::Log(LogWrite { token, begins, writes }) => {
                self.log_unlinked &= !begins;
                self.log_orphaned = self.log_unlinked;
                assert!(self.log_pending.is_none(), "one log write at a time");
                self.log_pending = Some((token, writes));
                let slow = self.unlucky(self.hostility.log_fails_one_in);
                self.later(if slow { 400 * MS } else { 5 * MS }, Ev::LogDone(token));
            }
            Output::RemoveLog => {
                let slow = self.rng.one_in(4);
                self.later(if slow { 100 * MS } else { MS }, Ev::LogRemoved);
            }
            Output::Flush(disk, ticket) => self.start_flush(index(disk), ticket),
            Output::Reread(reread) => self.start_reread(reread),
            Output::Frame(frame) => self.take_frame(frame),
            Output::Lend(lsn) => {
                assert!(lsn <= self.stored, "only what a proxy has is lent");
                self.lends += 1;
                if self.hostility.far {
                    self.orders.push_back(Order::Lend(lsn));
                    self.lent_since.get_or_insert(self.applied_through);
                }
            }
            Output::Event(event) => {
                if let Event::Log(trust) = event {
                    self.told = self.told.max(trust.least());
                    if self.hostility.far {
                        self.orders.push_back(Order::Trust(trust.least()));
                    } else {
                        let slow = self.unlucky(self.hostility.log_fails_one_in);
                        self.later(if slow { 8 * S } else { 5 * MS }, Ev::Trusted(trust.least()));
                    }
                }
                self.disk_changed(&event);
                self.events.push(event);
            }
        }
    }

    fn take_frame(&mut self, frame: RawFrame) {
        self.shape.check(&frame, self.chain_start);
        self.check_log_names(frame.timeline);
        for part in &frame.parts {
            for value in
                [part.lsn.0, part.time.0, part.kind as u64, part.extent.offset, part.extent.length, part.crc.into()]
            {
                self.hash(value);
            }
            let op = tags_of(&part.data).first().map_or(0, |tag| tag >> 16);
            if let Some(at) = self.change_of_op.get(&op).filter(|_| part.kind == cdp_core::frame::RecordKind::Write) {
                self.changes[*at].lsn = Some(part.lsn);
            } else if part.data.is_empty() && part.kind.changes_disk() {
                self.match_hole(part.lsn, index(part.disk.expect("a disk")), part.extent);
            }
        }
        self.frames.push(frame);
        self.check_settled();
    }

    /// Zeros and discards carry no tag: they come in the order in which they went.
    fn match_hole(&mut self, lsn: Lsn, disk: usize, extent: Extent) {
        let waiting =
            |change: &&mut Change| change.tags.is_empty() && change.lsn == Some(Lsn(u64::MAX)) && !change.torn;
        let change = self.changes.iter_mut().find(waiting).expect("a zero or discard went");
        assert_eq!((change.disk, change.extent), (disk, extent));
        change.lsn = Some(lsn);
    }
}
