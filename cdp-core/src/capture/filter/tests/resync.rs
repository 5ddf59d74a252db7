//! Failed writes, gaps, resyncs: what opens them, what is read again, what ends them.

use super::*;

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
pub(super) fn overload(rig: &mut Rig) {
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
    rig.durable();
    let status = rig.filter.status(rig.now());
    assert!(status.restorable == from.prev() && status.durable > from, "durable, and not restorable");
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
fn a_resync_after_a_gap_begins_no_later_than_what_still_runs() {
    let mut rig = Rig::protecting();
    let slow = rig.go(write(64 << 20, 4096));
    let lsn = rig.filter.status(rig.now()).lsn;
    overload(&mut rig);
    rig.durable();
    rig.pass(20 * MS);
    assert_eq!(rig.note(RecordKind::ResyncBegin), Note::ResyncBegin { from: lsn, reason: ResyncReason::Gap });
    rig.complete(slow, Err(EIO));
    let begun = rig.kinds().iter().filter(|kind| **kind == RecordKind::ResyncBegin).count();
    assert_eq!(begun, 1, "its failure lies inside");
}

#[test]
fn what_was_hot_stays_marked_until_the_resync_has_ended_durably() {
    let mut rig = Rig::protecting();
    let (timeline, parent) = (Timeline::new([3; 16]).expect("not 0"), options().timeline);
    let hot = crate::capture::LogDisk {
        id: disk(),
        size: 1 << 30,
        facts: Vec::new(),
        hot: vec![Extent::new(8 << 20, 4 << 20)],
        damaged_sectors: 0,
    };
    let log = LogContents {
        group: options().group,
        timeline: parent,
        generation: 3,
        state: LogState::Open,
        reserved_through: Lsn(1000),
        durable: Lsn(90),
        disks: vec![hot],
        copy: 0,
    };
    let (fork, above, epoch) = (Lsn(90), Lsn(90), ClockEpoch(4));
    let start = Start::Unclean { parent, fork, above, epoch, log: Some(log) };
    rig.filter = Filter::new(FilterOptions { timeline, start, ..options() }, rig.now()).expect("good options");
    rig.pass(20 * MS);
    assert_eq!(rig.filter.first_lsn(), Lsn(1001));
    assert_eq!(rig.note(RecordKind::TimelineStart), Note::TimelineStart { parent: Some(parent), fork });
    while let Some(reread) = rig.rereads.pop() {
        assert!(reread.compare_at.is_some() && Extent::new(8 << 20, 4 << 20).contains(&reread.extent));
        rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
        rig.pass(5 * MS);
    }
    assert_eq!(rig.filter.state(), State::Protecting);
    rig.pass(60 * S);
    assert_eq!(rig.filter.status(rig.now()).hot_bytes, 4 << 20);
    rig.durable();
    rig.pass(60 * S);
    assert_eq!(rig.filter.status(rig.now()).hot_bytes, 0);
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

/// What was tracked is read again while the first copy goes on, and only its end waits for that.
#[test]
fn gaps_during_a_first_copy_of_which_everything_was_read_again_do_not_last_longer_each_time() {
    let mut rig = Rig::new(options());
    rig.pass(30 * MS);
    for time in 1..=4 {
        rig.durable();
        overload(&mut rig);
        assert_eq!(rig.filter.state(), State::Tracking);
        rig.durable();
        rig.pass(20 * MS);
        assert_eq!(rig.filter.state(), State::Seeding, "gap {time} lasts for nothing");
        rig.durable();
        let mut read = 0;
        while let Some(reread) = rig.rereads.pop() {
            read += reread.extent.length;
            rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
            rig.pass(5 * MS);
        }
        assert!(read > 0);
    }
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
    while let Some(reread) = rig.rereads.pop() {
        assert_eq!(rig.filter.drained(), Drained::NotYet);
        rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
        rig.pass(S);
    }
    rig.durable();
    assert_eq!(
        rig.filter.drained(),
        Drained::InDoubt,
        "the replica has everything, and nobody knows what the source has"
    );
}

#[test]
fn disks_that_are_compared_as_a_whole_are_read_when_that_can_be_compared_and_do_not_wait_for_it_for_ever() {
    let checked = || {
        let mut rig = Rig::protecting();
        let ticket = rig.go(write(0, 4096));
        rig.complete(ticket, Ok(()));
        rig.filter.full_check(rig.now());
        rig.pass(S);
        assert!(rig.rereads.is_empty(), "all of it would be recorded, also what is the same");
        rig
    };
    let mut rig = checked();
    rig.durable();
    let reread = rig.rereads.pop().expect("a re-read");
    assert!(reread.compare_at.is_some_and(|at| at <= rig.filter.status(rig.now()).durable), "{reread:?}");
    let mut rig = checked();
    rig.pass(9 * S);
    assert_eq!(rig.rereads.pop().expect("a re-read").compare_at, None);
}
