//! The rules of the filter, one by one, in virtual time. The simulation in `tests/it/capture.rs` mixes them.

mod detach;
mod disks;
mod fork;
mod ladder;
mod periods;
mod resync;
mod sets;
mod states;

use super::*;
use crate::capture::output::{Failed, LogToken, LogTrust, Output, Reread, Submitted};
use crate::capture::{MarkError, Op, SubmitError};
use crate::frame::{Mark, Payload, RawFrame};
use crate::types::{ClockEpoch, DiskId, GroupId, Timeline, WRITE_MAX, WallTime};
use bytes::Bytes;

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
const EIO: Failed = Failed { errno: 5 };

/// A filter over one disk of 1 GiB, with a log that works and a replica that acknowledges when told to.
struct Rig {
    filter: Filter,
    now: u64,
    wall: u64,
    frames: Vec<RawFrame>,
    events: Vec<Event>,
    ready: Vec<Ticket>,
    rereads: Vec<Reread>,
    lent: Vec<Lsn>,
    /// A write of the log that is not answered.
    log_pending: Option<LogToken>,
    log_works: bool,
    /// How often the log's file was to be removed, and how often one was begun that works.
    removals: u32,
    logs_begun: u32,
}

fn disk() -> DiskId {
    DiskId::new(1).expect("not 0")
}

fn options() -> FilterOptions {
    let (group, timeline) = (GroupId::new([1; 16]).expect("not 0"), Timeline::new([2; 16]).expect("not 0"));
    let disk = DiskSpec { id: disk(), name: "disk".into(), size: 1 << 30 };
    FilterOptions {
        rpo_ns: 4 * S,
        queue_bytes_max: 4 << 20,
        ..FilterOptions::new(group, timeline, Start::First, vec![disk])
    }
}

fn zero(offset: u64, length: u64) -> Op {
    Op::Zero(Extent::new(offset, length))
}

/// A write of one byte's worth everywhere.
fn write(offset: u64, length: usize) -> Op {
    Op::Write(Payload::new(offset, Bytes::from(vec![7; length])).expect("aligned"))
}

impl Rig {
    fn new(options: FilterOptions) -> Self {
        let (now, wall) = (S, 1_700_000_000 * S);
        let both = Now { wall: WallTime(wall), mono: MonoTime(now) };
        let filter = Filter::new(options, both).expect("good options");
        let (frames, events, ready, rereads, lent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self {
            filter,
            now,
            wall,
            frames,
            events,
            ready,
            rereads,
            lent,
            log_pending: None,
            log_works: true,
            removals: 0,
            logs_begun: 0,
        }
    }

    /// Seeded, durable, protecting; frames and events so far forgotten.
    fn protecting() -> Self {
        Self::protecting_with(options())
    }

    fn protecting_with(options: FilterOptions) -> Self {
        let mut rig = Self::new(options);
        rig.filter.seed_done();
        rig.pass(60 * MS);
        rig.durable();
        assert_eq!(rig.filter.state(), State::Protecting);
        rig.frames.clear();
        rig.events.clear();
        rig
    }

    fn now(&self) -> Now {
        Now { wall: WallTime(self.wall), mono: MonoTime(self.now) }
    }

    fn drain(&mut self) {
        while let Some(output) = self.filter.poll(self.now()) {
            match output {
                Output::Ready(ticket) => self.ready.push(ticket),
                Output::Log(write) if self.log_works => {
                    self.logs_begun += u32::from(write.begins);
                    self.filter.log_written(self.now(), write.token, Ok(())).expect("under way");
                }
                Output::Log(write) => self.log_pending = Some(write.token),
                Output::RemoveLog => self.removals += 1,
                Output::Flush(_, ticket) => self.filter.flushed(self.now(), ticket, Ok(())),
                Output::Reread(reread) => self.rereads.push(reread),
                Output::Frame(frame) => self.frames.push(frame),
                Output::Event(event) => self.events.push(event),
                Output::Lend(lsn) => self.lent.push(lsn),
            }
        }
    }

    /// Time goes by, from deadline to deadline.
    fn pass(&mut self, ns: u64) {
        let end = self.now + ns;
        self.drain();
        while let Some(due) = self.filter.next_deadline().filter(|due| due.0 <= end) {
            assert!(due.0 > self.now, "a deadline that is over is due again");
            self.wall += due.0 - self.now;
            self.now = due.0;
            self.drain();
        }
        self.wall += end - self.now;
        self.now = end;
        self.drain();
    }

    fn durable(&mut self) {
        if let Some(last) = self.frames.last().map(RawFrame::last_lsn) {
            self.filter.durable(last);
        }
        self.drain();
    }

    /// Submits; the op must be let go (possibly after the log).
    fn go(&mut self, op: Op) -> Ticket {
        let submitted = self.filter.submit(self.now(), disk(), op).expect("a good op");
        self.drain();
        if let Submitted::Hold(ticket) = submitted {
            assert!(self.ready.contains(&ticket), "it may go");
        }
        submitted.ticket()
    }

    fn complete(&mut self, ticket: Ticket, result: Result<(), Failed>) {
        self.filter.complete(self.now(), ticket, result).expect("it ran");
        self.drain();
    }

    fn flush(&mut self) {
        let ticket = self.filter.flush_begin(disk()).expect("a disk");
        self.filter.flushed(self.now(), ticket, Ok(()));
        self.drain();
    }

    fn kinds(&self) -> Vec<RecordKind> {
        self.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.index == 0).map(|part| part.kind).collect()
    }

    fn note(&self, kind: RecordKind) -> Note {
        let part = self.frames.iter().flat_map(|frame| &frame.parts).find(|part| part.kind == kind).expect("a record");
        *part.note.clone().expect("a note")
    }

    fn settled(&self) -> Lsn {
        self.frames.last().expect("a frame").settled
    }

    fn has(&self, event: &Event) -> bool {
        self.events.contains(event)
    }
}

#[test]
fn a_group_begins_with_timeline_clock_disks_and_seeding() {
    let mut rig = Rig::new(options());
    rig.pass(30 * MS);
    use RecordKind::{DiskAdded, ResyncBegin, ResyncEnd, Time, TimelineStart};
    assert_eq!(rig.kinds(), [TimelineStart, Time, DiskAdded, ResyncBegin]);
    assert_eq!(rig.note(ResyncBegin), Note::ResyncBegin { from: Lsn(1), reason: ResyncReason::Seeding });
    assert_eq!(rig.filter.state(), State::Seeding);
    let refused = rig.filter.mark(rig.now(), Mark::default());
    assert_eq!(refused, Err(MarkError::NotRestorable { state: State::Seeding }));
    rig.filter.seed_done();
    rig.pass(30 * MS);
    assert_eq!(rig.kinds().last(), Some(&ResyncEnd));
    assert_eq!(rig.filter.state(), State::Protecting);
}

#[test]
fn no_frame_leaves_and_no_op_runs_before_the_log_is_on_disk() {
    let mut rig = Rig::new(options());
    rig.log_works = false;
    rig.drain();
    let held = rig.filter.submit(rig.now(), disk(), zero(0, 512)).expect("a good op");
    rig.pass(90 * MS);
    assert!(matches!(held, Submitted::Hold(_)) && rig.ready.is_empty() && rig.frames.is_empty());
    rig.pass(10 * MS);
    assert!(rig.removals == 1 && rig.ready.is_empty(), "a guest waits for the log only so long, then for its removal");
    rig.filter.log_removed(rig.now()).expect("under way");
    rig.drain();
    assert_eq!(rig.ready, [held.ticket()]);
    assert!(rig.has(&Event::Log(LogTrust::Lost { generation: 4_294_967_297, error: None })));
    rig.pass(20 * MS);
    assert!(!rig.frames.is_empty());
}

#[test]
fn a_guest_waits_for_the_removal_of_a_late_log_only_so_long_and_where_the_log_marks_not_at_all() {
    let mut rig = Rig::protecting();
    let ticket = rig.go(zero(0, 512));
    rig.complete(ticket, Ok(()));
    rig.log_works = false;
    let held = rig.filter.submit(rig.now(), disk(), zero(512 << 20, 512)).expect("a good op");
    rig.pass(100 * MS);
    assert!(rig.removals == 1 && !rig.ready.contains(&held.ticket()));
    let marked = rig.filter.submit(rig.now(), disk(), zero(512, 512)).expect("a good op");
    assert!(matches!(marked, Submitted::Go(_)), "the file that is there marks it");
    rig.pass(5 * S - MS);
    assert!(!rig.ready.contains(&held.ticket()), "a kill would find the log");
    rig.pass(MS);
    assert!(rig.ready.contains(&held.ticket()) && rig.removals == 1);
    assert!(rig.has(&Event::Log(LogTrust::Lost { generation: 4_294_967_298, error: None })), "{:?}", rig.events);
    rig.filter.log_removed(rig.now()).expect("under way");
    assert!(rig.filter.log_removed(rig.now()).is_err(), "answered once");
    rig.drain();
}

#[test]
fn bad_requests_are_errors_and_take_nothing() {
    let mut rig = Rig::protecting();
    let now = rig.now();
    let mut submit = |disk, op| rig.filter.submit(now, disk, op).expect_err("refused");
    let other = DiskId::new(9).expect("not 0");
    assert_eq!(submit(other, zero(0, 512)), SubmitError::UnknownDisk { disk: other });
    for (offset, length) in [(0, 0), (1, 512), (0, 513)] {
        let extent = Extent::new(offset, length);
        assert_eq!(submit(disk(), Op::Zero(extent)), SubmitError::Unaligned { extent });
    }
    for (offset, length) in [(1 << 30, 512), ((1 << 30) - 512, 1024), (u64::MAX - 511, 512), (512, u64::MAX - 511)] {
        let extent = Extent::new(offset, length);
        assert_eq!(submit(disk(), Op::Discard(extent)), SubmitError::OutOfBounds { extent, size: 1 << 30 });
    }
    assert_eq!(rig.filter.status(now).ops_running, 0);
}

#[test]
fn a_write_over_many_frames_is_settled_only_with_its_last_part_and_its_completion() {
    let mut rig = Rig::new(FilterOptions { queue_bytes_max: 64 << 20, ..options() });
    rig.filter.seed_done();
    rig.pass(30 * MS);
    rig.frames.clear();
    let ticket = rig.go(write(0, WRITE_MAX as usize));
    let lsn = rig.filter.status(rig.now()).lsn;
    rig.pass(20 * MS);
    assert_eq!(rig.frames.len(), 128);
    assert!(rig.frames.iter().all(|frame| frame.settled < lsn && frame.plain_bytes == 256 << 10));
    assert!(rig.frames[1..].iter().all(|frame| frame.prev_lsn == lsn && frame.first_lsn() == lsn));
    rig.complete(ticket, Ok(()));
    rig.pass(60 * MS);
    assert!(rig.settled() >= lsn, "told by a time record when nothing else is");
}

#[test]
fn frames_close_by_age_by_bytes_by_records_and_before_an_epoch() {
    let mut rig = Rig::protecting();
    rig.go(write(0, 4096));
    rig.pass(19 * MS);
    assert!(rig.frames.is_empty());
    rig.pass(MS);
    assert_eq!(rig.frames.len(), 1);
    for at in 0..65 {
        rig.go(write((1 + at) * 4096, 4096));
    }
    assert_eq!((rig.frames.len(), rig.frames[1].plain_bytes), (2, 256 << 10));
    for at in 0..1030 {
        rig.go(zero((100 + at) * 4096, 512));
    }
    assert_eq!((rig.frames.len(), rig.frames[2].parts.len()), (3, 1024));
    rig.wall += 2 * S;
    rig.go(zero(512 << 20, 512));
    assert_eq!(rig.frames.len(), 4, "the old epoch's frame is closed");
    rig.pass(20 * MS);
    let frame = rig.frames.last().expect("a frame");
    assert_eq!((frame.epoch, frame.parts[0].kind), (ClockEpoch(2), RecordKind::Time));
    assert!(rig.has(&Event::ClockStepped { epoch: ClockEpoch(2) }));
}

#[test]
fn time_records_go_out_when_idle_and_the_rpo_counts_from_what_can_be_restored() {
    let mut rig = Rig::protecting();
    rig.pass(2100 * MS);
    let times = rig.kinds().iter().filter(|kind| **kind == RecordKind::Time).count();
    assert!((4..=5).contains(&times), "every 500 ms at an RPO of 4 s: {times}");
    rig.durable();
    assert!(rig.filter.status(rig.now()).rpo_ns.expect("known") <= 520 * MS);
    rig.pass(3 * S);
    assert!(rig.filter.status(rig.now()).rpo_ns.expect("known") >= 3 * S);
}

#[test]
fn a_point_closes_at_a_barrier_in_the_last_quarter_or_at_the_end() {
    let mut rig = Rig::protecting();
    let points = |rig: &Rig| {
        let closed =
            |event: &Event| if let Event::PointClosed { on_barrier, .. } = event { Some(*on_barrier) } else { None };
        rig.events.iter().filter_map(closed).collect::<Vec<bool>>()
    };
    rig.flush();
    assert!(points(&rig).is_empty(), "too early");
    rig.pass(3500 * MS);
    rig.flush();
    rig.flush();
    assert_eq!(points(&rig), [true]);
    rig.pass(S);
    assert_eq!(points(&rig), [true], "the period has its point");
    rig.pass(4 * S);
    assert_eq!(points(&rig), [true, false]);
    let kinds = rig.kinds();
    let at = kinds.iter().position(|kind| *kind == RecordKind::Mark).expect("a mark");
    assert_eq!(kinds[at - 1], RecordKind::Barrier, "directly behind the flush");
}

#[test]
fn a_point_is_durable_when_all_below_it_is_settled_and_durable() {
    let mut rig = Rig::protecting();
    let running = rig.go(write(0, 4096));
    let lsn = rig.filter.mark(rig.now(), Mark { label: "m".into(), ..Mark::default() }).expect("protecting");
    rig.drain();
    rig.durable();
    assert!(!rig.has(&Event::PointDurable { lsn }), "a write below it runs");
    rig.complete(running, Ok(()));
    rig.pass(60 * MS);
    rig.durable();
    assert!(rig.has(&Event::PointDurable { lsn }));
}

#[test]
fn a_stop_is_clean_only_when_everything_is_durable() {
    let mut rig = Rig::protecting();
    let ticket = rig.go(write(0, 4096));
    rig.filter.request_drain();
    rig.pass(S);
    assert_eq!(rig.filter.drained(), Drained::NotYet, "an op runs");
    rig.complete(ticket, Ok(()));
    rig.pass(S);
    assert_eq!(rig.filter.drained(), Drained::NotYet, "nothing is durable");
    let frames = rig.frames.len();
    rig.pass(10 * S);
    assert_eq!(rig.frames.len(), frames, "no time records and points of its own accord");
    rig.durable();
    assert_eq!(rig.filter.drained(), Drained::Safe);
    assert_eq!(rig.filter.close(Vec::new()), Closing::Clean);
    rig.pass(MS);
    assert!(rig.has(&Event::Closed));
    assert_eq!(rig.filter.submit(rig.now(), disk(), zero(0, 512)), Err(SubmitError::Closed));

    let mut rig = Rig::protecting();
    rig.go(write(0, 4096));
    let Closing::Open { ops_open: 1, hot_bytes, .. } = rig.filter.close(Vec::new()) else { panic!("an op runs") };
    assert_eq!(hot_bytes, 4 << 20);
}
