//! When ops wait for the log, when bits are cleared, and what a lost log does.

use super::codec::LogContents;
use super::*;
use crate::capture::output::{Failed, LogTrust};

const MS: u64 = 1_000_000;

fn group() -> GroupId {
    GroupId::new([7; 16]).expect("not 0")
}

/// An activity log with a file behind it.
struct Fixture {
    activity: Activity,
    order: Order,
    mend: Mend,
    file: Vec<u8>,
    now: MonoTime,
    /// What the replica says.
    durable: Lsn,
}

impl Fixture {
    fn new() -> Self {
        let limits = Limits {
            wait_ns_max: 100 * MS,
            remove_ns_max: 5000 * MS,
            hot_ns_min: 1000 * MS,
            generation_least: 0,
            durable: Lsn(0),
        };
        let timeline = Timeline::new([9; 16]).expect("not 0");
        let mut activity = Activity::new(group(), timeline, None, limits, MonoTime(1));
        activity.add_disk(DiskId::new(1).expect("not 0"), 1 << 30);
        let mut mend = Mend::default();
        mend.add_disk(1 << 30);
        activity.writer_mut().reserve(Lsn(1));
        let mut fixture =
            Self { activity, order: Order::default(), mend, file: Vec::new(), now: MonoTime(1), durable: Lsn(0) };
        while fixture.write() {}
        fixture
    }

    fn issue(&mut self) -> Option<LogWrite> {
        self.activity.next_write(self.now, self.durable, true)
    }

    fn land(&mut self, write: &LogWrite) {
        for (offset, data) in &write.writes {
            let end = *offset as usize + data.len();
            self.file.resize(self.file.len().max(end), 0);
            self.file[*offset as usize..end].copy_from_slice(data);
        }
    }

    fn write(&mut self) -> bool {
        let Some(write) = self.issue() else { return false };
        self.land(&write);
        self.activity.written(self.now, write.token, Ok(())).expect("under way");
        true
    }

    fn log(&self) -> LogContents {
        LogContents::read(&self.file, group()).expect("good")
    }

    /// A pass over all extents, after everything is quiet.
    fn clean(&mut self, restorable: Lsn) {
        self.now = self.now.after(5000 * MS);
        self.activity.clean(self.now, restorable, &self.order, &self.mend);
    }
}

const HERE: Extent = Extent { offset: 8 << 20, length: 4096 };

#[test]
fn the_first_write_waits_for_one_log_write_and_the_next_does_not() {
    let mut fixture = Fixture::new();
    assert!(!fixture.activity.prepare(0, HERE, fixture.now));
    assert!(fixture.write());
    assert!(fixture.activity.covers(0, HERE) && fixture.activity.prepare(0, HERE, fixture.now));
    assert_eq!(fixture.log().disks[0].hot, [Extent::new(8 << 20, 4 << 20)]);
}

#[test]
fn a_writer_in_sequence_finds_its_extents_marked() {
    let mut fixture = Fixture::new();
    let mut waits = 0;
    for at in 0..200u64 {
        let extent = Extent::new(at << 20, 1 << 20);
        if !fixture.activity.prepare(0, extent, fixture.now) {
            waits += 1;
        }
        fixture.write();
        fixture.activity.touched(0, extent, Lsn(at + 1), fixture.now);
    }
    assert!(waits <= 3, "{waits} of 50 extents waited");
}

#[test]
fn a_writer_at_random_waits_a_few_times_and_not_for_each_extent() {
    let mut fixture = Fixture::new();
    let (mut waits, mut at) = (0, 1u64);
    for lsn in 1..2000 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let extent = Extent::new((at >> 40) % (1 << 18) * 4096, 4096);
        if !fixture.activity.prepare(0, extent, fixture.now) {
            waits += 1;
        }
        fixture.write();
        fixture.activity.touched(0, extent, Lsn(lsn), fixture.now);
        fixture.now = fixture.now.after(MS / 10);
    }
    assert!(waits <= 14, "{waits} of 256 extents waited");
}

#[test]
fn unmarked_extents_that_are_found_now_and_then_or_of_which_there_are_few_are_marked_alone() {
    let mut fixture = Fixture::new();
    for extent in [HERE, Extent::new(3 << 28, 4096), Extent::new(1 << 29, 4096)] {
        assert!(!fixture.activity.prepare(0, extent, fixture.now));
        fixture.write();
        fixture.now = fixture.now.after(1500 * MS);
    }
    for at in 0..3 {
        assert!(!fixture.activity.prepare(0, Extent::new(at * (200 << 20), 4096), fixture.now));
        fixture.write();
    }
    assert_eq!(fixture.activity.hot_bytes(), 6 * ACTIVITY_EXTENT);
}

#[test]
fn a_bit_is_cleared_only_when_durable_flushed_quiet_and_clean() {
    let mut fixture = Fixture::new();
    let hot = |fixture: &Fixture| fixture.activity.hot_bytes() > 0;
    fixture.activity.prepare(0, HERE, fixture.now);
    fixture.write();
    fixture.activity.touched(0, HERE, Lsn(5), fixture.now);
    let op = fixture.order.insert(0, HERE, crate::capture::order::Stage::Going { recorded: true });
    fixture.order.started(op, Lsn(5), true);
    fixture.activity.flush_begins(0);
    fixture.activity.flush_ended(0, 2);

    fixture.clean(Lsn(5));
    assert!(hot(&fixture), "an op runs");
    fixture.order.complete(op);
    fixture.activity.completed(0, HERE, fixture.now);
    fixture.clean(Lsn(5));
    assert!(hot(&fixture), "not flushed since it completed");
    assert_eq!(fixture.activity.next_flush(), Some(0), "and a flush is asked for");
    let generation = fixture.activity.flush_begins(0);
    fixture.activity.flush_ended(0, generation);
    fixture.clean(Lsn(4));
    assert!(hot(&fixture), "not restorable");
    fixture.mend.mark(0, HERE);
    fixture.clean(Lsn(5));
    assert!(hot(&fixture), "dirty");
    fixture.mend.supersede(0, Extent::new(8 << 20, 64 << 10));
    fixture.activity.touched(0, HERE, Lsn(5), fixture.now);
    fixture.now = fixture.now.after(900 * MS);
    fixture.activity.clean(fixture.now, Lsn(5), &fixture.order, &fixture.mend);
    assert!(hot(&fixture), "not quiet");
    fixture.clean(Lsn(5));
    assert!(hot(&fixture), "the log on disk does not say that LSN 5 was durable");
    fixture.durable = Lsn(7);
    assert!(fixture.write());
    fixture.clean(Lsn(5));
    assert!(hot(&fixture), "only one copy of its header does");
    assert!(fixture.write() && !fixture.write());
    fixture.activity.resynced(Lsn(8));
    fixture.clean(Lsn(8));
    assert!(hot(&fixture), "what a resync read again is as old as its end");
    fixture.durable = Lsn(8);
    while fixture.write() {}
    fixture.clean(Lsn(8));
    assert!(!hot(&fixture));
    fixture.write();
    assert_eq!((fixture.log().hot_bytes(), fixture.log().durable), (0, Lsn(8)));
}

#[test]
fn an_extent_that_is_written_again_while_it_is_cleared_waits() {
    let mut fixture = Fixture::new();
    fixture.activity.prepare(0, HERE, fixture.now);
    fixture.write();
    fixture.clean(Lsn(5));
    assert!(fixture.activity.covers(0, HERE), "cleared in memory, marked on disk: an op may go");
    let clearing = fixture.issue().expect("the clearing write");
    assert!(!fixture.activity.prepare(0, HERE, fixture.now), "the disk may lose the bit at any moment");
    fixture.land(&clearing);
    fixture.activity.written(fixture.now, clearing.token, Ok(())).expect("under way");
    assert!(!fixture.activity.covers(0, HERE));
    assert!(fixture.write());
    assert!(fixture.activity.covers(0, HERE) && fixture.log().hot_bytes() > 0);
}

#[test]
fn a_lost_log_holds_nobody_and_comes_back_whole_with_a_higher_generation() {
    let mut fixture = Fixture::new();
    let Some(LogTrust::Good { generation }) = fixture.activity.writer_mut().take_untold() else { panic!("good") };
    fixture.activity.prepare(0, HERE, fixture.now);
    let write = fixture.issue().expect("a write");
    fixture.activity.written(fixture.now, write.token, Err(Failed { errno: 5 })).expect("under way");
    assert!(!write.begins, "it would make a log that says too little");
    assert!(fixture.activity.writer().holds(), "its file is still there");
    assert!(fixture.activity.writer_mut().take_removal() && !fixture.activity.writer_mut().take_removal());
    fixture.file.clear();
    fixture.activity.removed(fixture.now).expect("under way");
    assert!(!fixture.activity.writer().holds());
    let lost = fixture.activity.writer_mut().take_untold();
    assert_eq!(lost, Some(LogTrust::Lost { generation, error: Some(Failed { errno: 5 }) }));
    assert!(fixture.issue().is_none(), "it pauses");
    fixture.now = fixture.activity.writer().retry_due().expect("a pause");
    let elsewhere = Extent::new(64 << 20, 4096);
    let probe = fixture.issue().expect("all sectors");
    assert!(probe.begins, "the file that was removed is written on");
    fixture.activity.prepare(0, elsewhere, fixture.now);
    fixture.land(&probe);
    fixture.activity.written(fixture.now, probe.token, Ok(())).expect("under way");
    assert!(fixture.activity.writer().holds(), "from here on ops wait again");
    assert!(
        LogContents::read(&fixture.file, group()).is_err(),
        "no header before all that was marked meanwhile is written"
    );
    while fixture.write() {}
    let Some(LogTrust::Good { generation: back }) = fixture.activity.writer_mut().take_untold() else { panic!("good") };
    let log = fixture.log();
    assert!(back > generation && log.generation == back);
    assert!(log.disks[0].hot.iter().any(|run| run.contains(&elsewhere)));
}

#[test]
fn a_reservation_counts_when_both_headers_have_it() {
    let mut fixture = Fixture::new();
    let last = Lsn(1 + (1 << 24));
    assert!(fixture.activity.writer().may_give(last) && !fixture.activity.writer().may_give(last.next()));
    fixture.activity.writer_mut().reserve(Lsn(1 << 23 | 2));
    assert!(fixture.write());
    assert!(!fixture.activity.writer().may_give(last.next()), "one copy has it");
    assert!(fixture.write());
    assert!(fixture.activity.writer().may_give(last.next()));
}

#[test]
fn what_a_failed_flush_may_have_lost_stays_marked() {
    let mut fixture = Fixture::new();
    fixture.activity.prepare(0, HERE, fixture.now);
    fixture.write();
    fixture.activity.touched(0, HERE, Lsn(5), fixture.now);
    fixture.activity.completed(0, HERE, fixture.now);
    assert_eq!(
        fixture.activity.flush_failed(0, fixture.activity.flushed(0), std::iter::empty()),
        [Extent::new(8 << 20, 4 << 20)]
    );
    let generation = fixture.activity.flush_begins(0);
    fixture.activity.flush_ended(0, generation);
    fixture.clean(Lsn(5));
    assert!(fixture.activity.hot_bytes() > 0 && !fixture.activity.is_flushed(0));
}

/// 4064 extents are a sector: the second disk's sectors move when the first one's end goes.
#[test]
fn a_disk_that_is_cut_or_gone_takes_its_bits_along_and_no_others() {
    let mut fixture = Fixture::new();
    let (first, second) = (DiskId::new(1).expect("not 0"), DiskId::new(2).expect("not 0"));
    fixture.activity.grow(0, 40 << 30);
    fixture.mend.grow(0, 40 << 30);
    fixture.activity.add_disk(second, 1 << 30);
    fixture.mend.add_disk(1 << 30);
    let far = Extent::new(39 << 30, 4096);
    for (disk, extent) in [(0, HERE), (0, far), (1, HERE)] {
        fixture.activity.prepare(disk, extent, fixture.now);
    }
    while fixture.write() {}
    let hot = |fixture: &Fixture, at: usize| fixture.log().disks[at].hot.clone();
    let here = [Extent::new(8 << 20, 4 << 20)];
    assert_eq!((hot(&fixture, 0).len(), hot(&fixture, 1)), (2, here.to_vec()));
    // A write that is under way knows nothing of the cut.
    fixture.activity.prepare(0, Extent::new(38 << 30, 512), fixture.now);
    let late = fixture.issue().expect("a bit to be written");
    fixture.activity.cut(0, 20 << 30);
    fixture.land(&late);
    fixture.activity.written(fixture.now, late.token, Ok(())).expect("under way");
    assert!(!fixture.activity.covers(0, HERE), "until it is written again");
    while fixture.write() {}
    assert!(fixture.activity.covers(0, HERE) && fixture.activity.covers(1, HERE));
    let log = fixture.log();
    assert_eq!((log.disks[0].id, log.disks[0].size, hot(&fixture, 0)), (first, 20 << 30, here.to_vec()));
    assert_eq!((log.disks[1].id, hot(&fixture, 1)), (second, here.to_vec()));
    assert_eq!(fixture.activity.hot_bytes(), 8 << 20);
    fixture.mend.cut(0, 0);
    fixture.activity.remove_disk(0);
    while fixture.write() {}
    let log = fixture.log();
    assert_eq!((log.disks.len(), log.disks[0].id, hot(&fixture, 0)), (1, second, here.to_vec()));
    assert!(fixture.activity.is_flushed(0) && !fixture.activity.has_lost(0));
    // Cleaning goes on with those that are there.
    fixture.activity.touched(1, HERE, Lsn(5), fixture.now);
    fixture.durable = Lsn(5);
    for _ in 0..6 {
        let generation = fixture.activity.flush_begins(1);
        fixture.activity.flush_ended(1, generation);
        fixture.clean(Lsn(5));
        while fixture.write() {}
    }
    assert_eq!(fixture.activity.hot_bytes(), 0);
}
