//! The rules of the filter, one by one, in virtual time. The simulation in `tests/it/capture.rs` mixes them.

use super::*;
use crate::capture::output::{Failed, LogTrust, Output, Reread, Submitted};
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
    log_works: bool,
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
        let (frames, events, ready, rereads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { filter, now, wall, frames, events, ready, rereads, log_works: true }
    }

    /// Seeded, durable, protecting; frames and events so far forgotten.
    fn protecting() -> Self {
        let mut rig = Self::new(options());
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
                    self.filter.log_written(self.now(), write.token, Ok(())).expect("under way");
                }
                Output::Log(_) => {}
                Output::Flush(_, ticket) => self.filter.flushed(self.now(), ticket, Ok(())),
                Output::Reread(reread) => self.rereads.push(reread),
                Output::Frame(frame) => self.frames.push(frame),
                Output::Event(event) => self.events.push(event),
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
    assert_eq!(rig.ready, [held.ticket()], "a guest waits for the log only so long");
    assert!(rig.has(&Event::Log(LogTrust::Lost { generation: 4_294_967_297, error: None })));
    rig.pass(20 * MS);
    assert!(!rig.frames.is_empty());
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
fn a_failed_write_opens_a_resync_before_it_counts_as_settled_and_takes_points_with_it() {
    let mut rig = Rig::protecting();
    let running = rig.go(write(8192, 4096));
    let failed = rig.filter.status(rig.now()).lsn;
    let point = rig.filter.mark(rig.now(), Mark::default()).expect("protecting");
    rig.complete(running, Err(EIO));
    assert!(rig.has(&Event::PointLost { lsn: point }));
    rig.pass(20 * MS);
    assert_eq!(
        rig.note(RecordKind::ResyncBegin),
        Note::ResyncBegin { from: failed, reason: ResyncReason::WriteFailed }
    );
    let begun = rig.frames.iter().position(|frame| frame.parts.iter().any(|part| part.kind == RecordKind::ResyncBegin));
    assert!(rig.frames[..begun.expect("a resync")].iter().all(|frame| frame.settled < failed));
    let reread = rig.rereads.pop().expect("a re-read");
    assert_eq!(reread.extent, Extent::new(8192, 4096), "exactly what failed");
    assert_eq!(reread.compare_at, None, "the failed write's record is not durable");
    let payload = Payload::new(8192, Bytes::from(vec![9; 4096])).expect("aligned");
    rig.filter.reread_done(rig.now(), reread.token, Ok(vec![payload])).expect("under way");
    rig.pass(60 * MS);
    assert!(rig.kinds().ends_with(&[RecordKind::Repair, RecordKind::ResyncEnd]));
    rig.durable();
    let status = rig.filter.status(rig.now());
    assert_eq!((status.state, status.restorable), (State::Protecting, status.lsn));
    assert!(!rig.has(&Event::PointDurable { lsn: point }));
}

#[test]
fn what_ops_touch_during_a_re_read_is_left_out_of_the_repair() {
    let mut rig = Rig::protecting();
    let running = rig.go(write(0, 16384));
    rig.complete(running, Err(EIO));
    let reread = rig.rereads.pop().expect("a re-read");
    let later = rig.go(write(4096, 512));
    let payload = Payload::new(0, Bytes::from(vec![9; 16384])).expect("aligned");
    rig.filter.reread_done(rig.now(), reread.token, Ok(vec![payload])).expect("under way");
    rig.complete(later, Ok(()));
    rig.pass(20 * MS);
    let repairs = rig.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.kind == RecordKind::Repair);
    let repairs: Vec<Extent> =
        repairs.inspect(|part| assert_eq!(part.crc, crc32c::crc32c(&part.data))).map(|part| part.extent).collect();
    assert_eq!(repairs, [Extent::new(0, 4096), Extent::new(4608, 16384 - 4608)]);
}

#[test]
fn a_later_write_supersedes_a_repair_that_cannot_be_read() {
    let mut rig = Rig::protecting();
    let running = rig.go(write(4096, 4096));
    rig.complete(running, Err(EIO));
    let reread = rig.rereads.pop().expect("a re-read");
    rig.filter.reread_done(rig.now(), reread.token, Err(EIO)).expect("under way");
    rig.drain();
    assert!(rig.has(&Event::RereadFailed { disk: disk(), extent: reread.extent, error: EIO }));
    assert!(rig.rereads.is_empty(), "it pauses");
    assert_eq!(rig.filter.status(rig.now()).rereads_failing, 1);
    let again = rig.go(write(4096, 4096));
    rig.complete(again, Ok(()));
    rig.pass(200 * MS);
    assert!(rig.rereads.is_empty() && !rig.kinds().contains(&RecordKind::Repair));
    assert_eq!(rig.filter.state(), State::Protecting);
}

/// Fills the queue of 4 MiB; the last of these writes is only tracked.
fn overload(rig: &mut Rig) {
    for at in 0..4 {
        let ticket = rig.go(write(at << 20, 1 << 20));
        rig.complete(ticket, Ok(()));
    }
}

#[test]
fn overload_tracks_and_comes_back_by_itself() {
    let mut rig = Rig::protecting();
    overload(&mut rig);
    let Note::GapBegin { from, reason: GapReason::Overload } = rig.note(RecordKind::GapBegin) else { panic!("a gap") };
    assert_eq!(rig.filter.state(), State::Tracking);
    let now = rig.now();
    assert_eq!(rig.filter.mark(now, Mark::default()), Err(MarkError::NotRestorable { state: State::Tracking }));
    let records = rig.frames.len();
    rig.flush();
    rig.pass(5 * S);
    assert_eq!(rig.frames.len(), records, "nothing is recorded in a gap");
    assert!(rig.events.iter().any(|event| matches!(event, Event::RpoViolated { .. })));
    rig.durable();
    rig.pass(20 * MS);
    assert_eq!(rig.note(RecordKind::ResyncBegin), Note::ResyncBegin { from, reason: ResyncReason::Gap });
    assert_eq!(rig.filter.status(rig.now()).restorable, from.prev());
    let reread = rig.rereads.pop().expect("a re-read");
    assert!(rig.rereads.is_empty() && reread.extent.length == 1 << 20, "only what was tracked");
    rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
    rig.pass(20 * MS);
    rig.durable();
    assert_eq!(rig.filter.state(), State::Protecting);
    assert!(rig.filter.status(rig.now()).restorable > from);
}

#[test]
fn an_op_that_was_tracked_keeps_the_resync_open_until_it_was_read_again() {
    let mut rig = Rig::protecting();
    overload(&mut rig);
    let slow = rig.go(write(64 << 20, 4096));
    rig.durable();
    rig.pass(20 * MS);
    while let Some(reread) = rig.rereads.pop() {
        rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
        rig.drain();
    }
    assert_eq!(rig.filter.state(), State::Resyncing, "it runs and has no record");
    rig.complete(slow, Ok(()));
    rig.pass(10 * MS);
    let reread = rig.rereads.pop().expect("again");
    assert!(reread.extent.contains(&Extent::new(64 << 20, 4096)));
}

#[test]
fn without_room_the_queue_fills_first_and_the_gap_says_why() {
    let mut rig = Rig::protecting();
    rig.filter.set_room(Room::NoSpace);
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    assert_eq!(rig.filter.state(), State::Protecting);
    overload(&mut rig);
    assert!(matches!(rig.note(RecordKind::GapBegin), Note::GapBegin { reason: GapReason::NoSpace, .. }));
    rig.durable();
    rig.pass(S);
    assert_eq!(rig.filter.state(), State::Tracking, "there is no room yet");
    rig.filter.set_room(Room::Ok);
    rig.drain();
    assert_eq!(rig.filter.state(), State::Resyncing);
}

#[test]
fn pause_tracks_until_resume() {
    let mut rig = Rig::protecting();
    rig.filter.pause(rig.now());
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    rig.pass(S);
    assert!(matches!(rig.note(RecordKind::GapBegin), Note::GapBegin { reason: GapReason::Paused, .. }));
    assert_eq!((rig.filter.state(), rig.filter.status(rig.now()).counters.ops_tracked), (State::Paused, 1));
    rig.filter.resume();
    rig.pass(20 * MS);
    assert_eq!((rig.filter.state(), rig.rereads.len()), (State::Resyncing, 1));
}

#[test]
fn a_stop_is_clean_only_when_everything_is_durable() {
    let mut rig = Rig::protecting();
    let ticket = rig.go(write(0, 4096));
    rig.filter.request_drain();
    rig.pass(S);
    assert!(!rig.filter.is_drained(), "an op runs");
    rig.complete(ticket, Ok(()));
    rig.pass(S);
    assert!(!rig.filter.is_drained(), "nothing is durable");
    let frames = rig.frames.len();
    rig.pass(10 * S);
    assert_eq!(rig.frames.len(), frames, "no time records and points of its own accord");
    rig.durable();
    assert!(rig.filter.is_drained());
    assert_eq!(rig.filter.close(Vec::new()), Closing::Clean);
    rig.pass(MS);
    assert!(rig.has(&Event::Closed));
    assert_eq!(rig.filter.submit(rig.now(), disk(), zero(0, 512)), Err(SubmitError::Closed));

    let mut rig = Rig::protecting();
    rig.go(write(0, 4096));
    let Closing::Open { ops_open: 1, hot_bytes, .. } = rig.filter.close(Vec::new()) else { panic!("an op runs") };
    assert_eq!(hot_bytes, 4 << 20);
}

#[test]
fn a_new_disk_and_what_a_disk_grew_by_are_read_in_behind_their_records() {
    let mut rig = Rig::protecting();
    let added = DiskSpec { id: DiskId::new(2).expect("not 0"), name: "b".into(), size: 1 << 20 };
    let lsn = rig.filter.add_disk(rig.now(), added).expect("a new disk");
    rig.drain();
    let reread = rig.rereads.pop().expect("a re-read");
    assert_eq!((reread.disk.get(), reread.extent, reread.compare_at), (2, Extent::new(0, 1 << 20), None));
    rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
    rig.pass(60 * MS);
    rig.durable();
    assert!(rig.filter.status(rig.now()).restorable > lsn);
    rig.filter.grow(rig.now(), disk(), (1 << 30) + (64 << 10)).expect("it grew");
    rig.drain();
    assert_eq!(rig.rereads.pop().expect("a re-read").extent, Extent::new(1 << 30, 64 << 10));
    rig.go(write(1 << 30, 4096));
    let error = rig.filter.grow(rig.now(), disk(), 1 << 20).expect_err("refused");
    assert_eq!(error, OptionsError::Shrink { disk: disk(), size: (1 << 30) + (64 << 10), to: 1 << 20 });
}

#[test]
fn a_failed_flush_reads_again_what_it_may_have_lost_and_spoils_the_clean_stop() {
    let mut rig = Rig::protecting();
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    let flush = rig.filter.flush_begin(disk()).expect("a disk");
    rig.filter.flushed(rig.now(), flush, Err(EIO));
    rig.drain();
    assert!(rig.has(&Event::FlushFailed { disk: disk(), error: EIO }));
    assert_eq!(rig.rereads.iter().map(|reread| reread.extent.length).sum::<u64>(), 1 << 20, "room for one at a time");
    assert!(!rig.kinds().contains(&RecordKind::Barrier));
    rig.filter.request_drain();
    rig.pass(S);
    rig.durable();
    assert!(!rig.filter.is_drained());
}
