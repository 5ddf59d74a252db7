//! Replication out of the guest's path: what passes, when, and what attaching costs.

use super::resync::overload;
use super::*;
use crate::capture::{Detached, Health, Stuck};
use crate::journal;
use crate::replica::catalogue::{AtTime, Branch, Catalogue, Role};
use crate::types::Stamp;

fn submit(rig: &mut Rig, op: Op) -> Submitted {
    rig.filter.submit(rig.now(), disk(), op).expect("a good op")
}

/// Answers re-reads until none comes; gives what was read.
fn reread_all(rig: &mut Rig) -> Vec<Extent> {
    let mut read = Vec::new();
    while let Some(reread) = rig.rereads.pop() {
        read.push(reread.extent);
        rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
        rig.pass(5 * MS);
    }
    read
}

#[test]
fn detached_ops_pass_without_record_mark_or_wait_and_attaching_compares_everything() {
    let mut rig = Rig::protecting();
    rig.filter.detach(rig.now());
    rig.drain();
    assert!(rig.has(&Event::Detached(Detached::Ordered)));
    assert!(matches!(rig.note(RecordKind::GapBegin), Note::GapBegin { reason: GapReason::Detached, .. }));
    let before = rig.filter.status(rig.now());
    let frames = rig.frames.len();
    // They overlap, and each goes to a clean extent.
    let passing = [0, 512, 64 << 20].map(|at| {
        let submitted = submit(&mut rig, write(at, 4096));
        assert!(matches!(submitted, Submitted::Go(_)), "nothing is waited for");
        submitted.ticket()
    });
    rig.drain();
    rig.complete(passing[0], Ok(()));
    rig.complete(passing[1], Err(EIO));
    rig.flush();
    rig.pass(10 * S);
    let after = rig.filter.status(rig.now());
    assert_eq!((after.counters.ops_passed, after.counters.ops_tracked), (3, 0));
    assert_eq!(
        (after.lsn, after.hot_bytes, after.counters.log_writes),
        (before.lsn, before.hot_bytes, before.counters.log_writes)
    );
    assert!(rig.frames.len() == frames && rig.rereads.is_empty());
    assert_eq!(after.detached, Some(Detached::Ordered));

    rig.durable();
    assert!(rig.filter.attach(rig.now()) && !rig.filter.attach(rig.now()));
    rig.drain();
    assert!(rig.has(&Event::Attached));
    let over_one_that_runs = submit(&mut rig, write((64 << 20) + 512, 512));
    assert!(matches!(over_one_that_runs, Submitted::Hold(_)), "the order counts again");
    let read = reread_all(&mut rig);
    assert_eq!(read.iter().map(|extent| extent.length).sum::<u64>(), 1 << 30);
    assert_eq!(rig.filter.state(), State::Resyncing, "one that passed still runs");
    rig.complete(passing[2], Ok(()));
    assert!(rig.ready.contains(&over_one_that_runs.ticket()));
    rig.complete(over_one_that_runs.ticket(), Ok(()));
    rig.pass(20 * MS);
    assert!(reread_all(&mut rig).iter().any(|extent| extent.contains(&Extent::new(64 << 20, 4096))));
    rig.pass(60 * MS);
    rig.durable();
    let status = rig.filter.status(rig.now());
    assert_eq!((status.state, status.detached), (State::Protecting, None));
    assert_eq!(status.restorable, status.settled);
}

#[test]
fn ops_pass_only_when_no_start_would_believe_the_log() {
    let mut rig = Rig::protecting();
    rig.log_works = false;
    rig.filter.detach(rig.now());
    rig.drain();
    let held = submit(&mut rig, write(512 << 20, 4096));
    assert!(matches!(held, Submitted::Hold(_)), "the log still says that only what it marks may differ");
    let marked = submit(&mut rig, write(512 << 20, 512));
    assert!(matches!(marked, Submitted::Hold(_)), "and this one waits for that one");
    rig.pass(100 * MS);
    assert!(rig.removals == 1 && rig.ready.is_empty());
    assert_eq!(rig.filter.status(rig.now()).counters.ops_passed, 0);
    rig.filter.log_removed(rig.now()).expect("under way");
    rig.drain();
    assert!(rig.ready.contains(&held.ticket()));
    assert!(matches!(submit(&mut rig, write(600 << 20, 4096)), Submitted::Go(_)));
    let counters = rig.filter.status(rig.now()).counters;
    assert_eq!((counters.ops_passed, counters.ops_tracked), (2, 1), "the first was tracked, what waited for it passes");
}

#[test]
fn what_was_recorded_before_is_not_lost_by_detaching() {
    let mut rig = Rig::protecting();
    let ticket = rig.go(write(0, 4096));
    let lsn = rig.filter.status(rig.now()).lsn;
    rig.complete(ticket, Ok(()));
    rig.filter.detach(rig.now());
    rig.pass(60 * MS);
    rig.durable();
    assert!(rig.filter.status(rig.now()).restorable >= lsn);
}

#[test]
fn nobody_polls_and_the_guest_goes_on_by_the_clock_of_its_own_ops() {
    let mut rig = Rig::protecting();
    let held = submit(&mut rig, write(512 << 20, 4096));
    assert!(matches!(held, Submitted::Hold(_)), "the log is to be written first");
    rig.now += 30 * S - 1;
    assert!(matches!(submit(&mut rig, write(600 << 20, 4096)), Submitted::Hold(_)));
    rig.now += 1;
    let passes = submit(&mut rig, write(700 << 20, 4096));
    assert!(matches!(passes, Submitted::Go(_)));
    assert_eq!(rig.filter.state(), State::Detached);
    rig.drain();
    assert!(rig.has(&Event::Detached(Detached::Stuck(Stuck::Outputs { waited_ns: 30 * S }))));
    assert!(rig.ready.contains(&held.ticket()) && rig.removals == 1, "the first poll says what became of the log");
    assert!(rig.events.iter().any(|event| matches!(event, Event::Log(LogTrust::Lost { .. }))));
}

#[test]
fn a_driver_that_had_nothing_to_do_or_slept_is_not_stuck() {
    let mut rig = Rig::protecting();
    for _ in 0..3 {
        rig.now += 600 * S;
        rig.wall += 600 * S;
        let ticket = rig.go(write(0, 4096));
        rig.complete(ticket, Ok(()));
    }
    // Without ops nobody has to poll.
    rig.now += 600 * S;
    assert_eq!(rig.filter.state(), State::Protecting);
}

#[test]
fn the_driver_says_what_waits_and_the_filter_judges_it() {
    let mut rig = Rig::protecting();
    let health = |untaken_ns| Health { untaken_ns, ended: false };
    assert_eq!(rig.filter.watchdog(rig.now(), &health(30 * S - 1)), None);
    assert_eq!(rig.filter.state(), State::Protecting);
    let stuck = Stuck::Untaken { waited_ns: 31 * S };
    assert_eq!(rig.filter.watchdog(rig.now(), &health(31 * S)), Some(stuck));
    rig.drain();
    assert!(rig.has(&Event::Detached(Detached::Stuck(stuck))));
}

#[test]
fn a_thread_that_ends_while_replication_is_detached_is_why_it_stays_so() {
    let others: [fn(&mut Rig); 3] = [
        |rig| rig.filter.detach(rig.now()),
        |rig| rig.filter.passed_by(rig.now(), 5 * S),
        |rig| _ = rig.filter.watchdog(rig.now(), &Health { untaken_ns: 31 * S, ended: false }),
    ];
    let ended = Detached::Stuck(Stuck::Ended);
    for detach in others {
        let mut rig = Rig::protecting();
        detach(&mut rig);
        rig.filter.watchdog(rig.now(), &Health { ended: true, ..Health::default() });
        rig.drain();
        assert_eq!(rig.filter.status(rig.now()).detached, Some(ended));
        assert!(rig.has(&Event::Detached(ended)));
        detach(&mut rig);
        assert_eq!(rig.filter.status(rig.now()).detached, Some(ended), "nothing else takes its place");
    }
}

#[test]
fn a_log_that_does_not_answer_detaches_nobody() {
    let mut rig = Rig::protecting();
    rig.log_works = false;
    let held = submit(&mut rig, write(512 << 20, 4096));
    rig.pass(6 * S);
    assert!(rig.ready.contains(&held.ticket()), "it waited for write and removal, each as long as may be");
    rig.pass(120 * S);
    assert_eq!(rig.filter.state(), State::Protecting);
}

#[test]
fn the_stop_of_a_detached_filter_is_no_clean_one() {
    let mut rig = Rig::protecting();
    rig.filter.detach(rig.now());
    rig.filter.request_drain();
    rig.pass(S);
    rig.durable();
    assert_eq!(rig.filter.drained(), Drained::NotYet);
    assert!(matches!(rig.filter.close(Vec::new()), Closing::Open { .. }));
    assert!(!rig.filter.attach(rig.now()));
}

#[test]
fn events_that_nobody_fetches_are_bounded() {
    let mut rig = Rig::protecting();
    overload(&mut rig);
    rig.events.clear();
    for _ in 0..3000 {
        let ticket = rig.filter.flush_begin(disk()).expect("a disk");
        rig.filter.flushed(rig.now(), ticket, Err(EIO));
    }
    rig.drain();
    let failed = rig.events.iter().filter(|event| matches!(event, Event::FlushFailed { .. })).count();
    assert!((1000..=1024).contains(&failed), "{failed}");
}

#[test]
fn what_ran_past_the_filter_detaches_it_before_anything_else_is_said() {
    let mut rig = Rig::protecting();
    let recorded = rig.go(write(0, 4096));
    rig.log_works = false;
    let held = submit(&mut rig, write(512 << 20, 4096));
    assert!(matches!(held, Submitted::Hold(_)), "the log is to be written first");
    rig.now += 60 * S;
    rig.wall += 60 * S;
    let frames = rig.frames.len();
    rig.filter.passed_by(rig.now(), 5 * S);
    assert_eq!(rig.filter.state(), State::Detached);
    rig.drain();
    assert!(rig.has(&Event::Detached(Detached::Stuck(Stuck::Lock { waited_ns: 5 * S }))));
    assert!(matches!(rig.note(RecordKind::GapBegin), Note::GapBegin { reason: GapReason::Detached, .. }));
    assert!(
        !rig.events.iter().any(|event| matches!(event, Event::PointClosed { .. })),
        "none of a time of which nothing is known"
    );
    assert!(rig.frames.len() > frames && rig.removals == 1);
    // Both went, whoever let them, and both are known.
    rig.complete(recorded, Ok(()));
    rig.complete(held.ticket(), Ok(()));
    assert!(matches!(submit(&mut rig, write(600 << 20, 4096)), Submitted::Go(_)), "no log is waited for");
    rig.filter.passed_by(rig.now(), 5 * S);
    assert_eq!(rig.filter.status(rig.now()).detached, Some(Detached::Stuck(Stuck::Lock { waited_ns: 5 * S })));
}

#[test]
fn a_filter_that_was_detached_by_order_and_is_passed_by_stays_so() {
    let mut rig = Rig::protecting();
    rig.log_works = false;
    rig.filter.detach(rig.now());
    rig.drain();
    assert!(matches!(submit(&mut rig, write(512 << 20, 4096)), Submitted::Hold(_)), "the log still counts");
    rig.filter.passed_by(rig.now(), 5 * S);
    assert!(matches!(submit(&mut rig, write(600 << 20, 4096)), Submitted::Go(_)), "its file is gone already");
    assert_eq!(rig.filter.status(rig.now()).detached, Some(Detached::Ordered));
}

/// As a replica's catalogue has it when all frames so far are durable.
fn history(rig: &Rig) -> Catalogue {
    let timeline = options().timeline;
    let mut branch = Branch::new(timeline, 1, None, Lsn::ZERO, Role::Trunk);
    for frame in &rig.frames {
        for part in &frame.parts {
            let stamp = Stamp { epoch: frame.epoch, time: part.time };
            let note = part.note.as_deref().cloned();
            branch.handle(journal::Event { timeline, lsn: part.lsn, stamp, kind: part.kind, disk: part.disk, note });
            branch.advance(part.lsn, stamp);
        }
    }
    let mut catalogue = Catalogue::default();
    catalogue.insert(branch);
    catalogue
}

#[test]
fn nothing_of_the_time_in_which_ops_ran_past_the_filter_can_be_restored() {
    let mut rig = Rig::protecting();
    let recorded = rig.go(write(0, 4096));
    rig.complete(recorded, Ok(()));
    rig.pass(60 * MS);
    let last = rig.now();
    // Somebody hangs in the filter for an hour, and guests write on.
    rig.now += 3600 * S;
    rig.wall += 3600 * S;
    rig.filter.passed_by(last, 5 * S);
    rig.drain();
    rig.filter.log_removed(rig.now()).expect("under way");
    rig.pass(30 * S);
    rig.durable();
    assert!(rig.filter.attach(rig.now()));
    rig.pass(MS);
    reread_all(&mut rig);
    rig.pass(60 * MS);
    rig.durable();
    assert_eq!(rig.filter.state(), State::Protecting);
    let mut parts = rig.frames.iter().flat_map(|frame| &frame.parts);
    let end = parts.rfind(|part| part.kind == RecordKind::ResyncEnd).expect("a resync").time;
    let history = history(&rig);
    let is_inside = |time| matches!(history.at_time(WallTime(time)), AtTime::Inside { .. });
    assert!(is_inside(last.wall.0) && is_inside(end.0));
    for between in [last.wall.0 + 1, last.wall.0 + 1800 * S, last.wall.0 + 3600 * S, end.0 - 1] {
        assert!(!is_inside(between), "{} s after the last record", (between - last.wall.0) / S);
    }
}

#[test]
fn a_log_that_was_begun_while_ops_passed_is_given_up_when_they_go_past_again() {
    let mut rig = Rig::protecting();
    for time in 1..=2 {
        // Whichever log there is, the driver removes its file first.
        rig.filter.passed_by(rig.now(), 5 * S);
        rig.drain();
        assert_eq!(rig.removals, time);
        rig.filter.log_removed(rig.now()).expect("under way");
        rig.pass(2 * S);
        assert_eq!(rig.logs_begun, time, "what is written from here on goes into a file that is found");
    }
    assert!(rig.filter.attach(rig.now()));
    rig.drain();
    assert!(matches!(submit(&mut rig, write(512 << 20, 4096)), Submitted::Hold(_)), "a guest waits for that one");
}

#[test]
fn a_stop_whose_last_word_went_with_the_log_is_no_clean_one() {
    let mut rig = Rig::protecting();
    rig.filter.request_drain();
    rig.pass(S);
    rig.durable();
    rig.log_works = false;
    assert_eq!(rig.filter.close(Vec::new()), Closing::Clean);
    rig.drain();
    let last_word = rig.log_pending.take().expect("under way");
    rig.filter.passed_by(rig.now(), 5 * S);
    rig.filter.log_written(rig.now(), last_word, Ok(())).expect("under way");
    rig.log_works = true;
    rig.drain();
    rig.filter.log_removed(rig.now()).expect("under way");
    rig.pass(10 * S);
    assert!(rig.logs_begun == 1 && !rig.filter.is_closed() && !rig.has(&Event::Closed));
    assert!(matches!(rig.filter.close(Vec::new()), Closing::Open { .. }));
}

/// A recorded write and one that passed run side by side: which of them the disk ends up with, no record says.
#[test]
fn what_an_op_that_passed_may_have_overtaken_is_read_again() {
    let mut rig = Rig::protecting();
    let recorded = rig.go(write(0, 4096));
    rig.filter.detach(rig.now());
    rig.drain();
    let passed = submit(&mut rig, write(0, 4096));
    assert!(matches!(passed, Submitted::Go(_)), "nothing is waited for");
    rig.complete(passed.ticket(), Ok(()));
    rig.durable();
    assert!(rig.filter.attach(rig.now()));
    rig.drain();
    reread_all(&mut rig);
    rig.complete(recorded, Ok(()));
    rig.pass(20 * MS);
    let read = reread_all(&mut rig);
    assert!(read.iter().any(|extent| extent.contains(&Extent::new(0, 4096))), "{read:?}");
    rig.pass(60 * MS);
    rig.durable();
    assert_eq!(rig.filter.state(), State::Protecting);
}
