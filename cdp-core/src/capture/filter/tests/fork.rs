//! Going on under another timeline.

use super::*;

fn far() -> FilterOptions {
    FilterOptions { keeps_ranges: true, ..options() }
}

fn other() -> Timeline {
    Timeline::new([9; 16]).expect("not 0")
}

fn fork(rig: &mut Rig, at: Lsn, lost: Fork) -> Lsn {
    let first = rig.filter.fork(rig.now(), other(), at, lost, &options().disks).expect("a good fork");
    rig.frames.clear();
    rig.drain();
    first
}

/// What is read again, in order, and answered.
fn reread_all(rig: &mut Rig) -> Vec<Extent> {
    let mut read = Vec::new();
    while let Some(reread) = rig.rereads.pop() {
        read.push(reread.extent);
        rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
        rig.pass(5 * MS);
    }
    read.sort_by_key(|extent| extent.offset);
    read
}

#[test]
fn a_fork_begins_like_a_start_above_all_that_was_given_and_reads_exactly_what_was_not_durable() {
    let mut rig = Rig::protecting_with(far());
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    rig.pass(60 * MS);
    rig.durable();
    let at = rig.filter.status(rig.now()).durable;
    let ticket = rig.go(write(1 << 20, 4096));
    rig.complete(ticket, Ok(()));
    rig.pass(20 * MS);
    // One that runs, one that waits for it, and one whose frame was not yet closed.
    let runs = rig.go(write(100 << 20, 4096));
    let waits = rig.filter.submit(rig.now(), disk(), write((100 << 20) + 512, 512)).expect("good");
    let ticket = rig.go(zero(200 << 20, 4096));
    rig.complete(ticket, Ok(()));
    let point = rig.filter.mark(rig.now(), Mark::default()).expect("protecting");
    let before = rig.filter.status(rig.now()).lsn;
    let first = fork(&mut rig, at, Fork::Lent);
    assert_eq!(first, before.next());
    assert!(
        rig.has(&Event::Forked { timeline: other(), fork: at, first }) && rig.has(&Event::PointLost { lsn: point })
    );
    assert_eq!((rig.filter.timeline(), rig.filter.first_lsn()), (other(), first));
    let frame = &rig.frames[0];
    assert_eq!((frame.timeline, frame.prev_lsn, frame.first_lsn()), (other(), Lsn::ZERO, first));
    assert_eq!(rig.kinds(), [RecordKind::TimelineStart, RecordKind::Time, RecordKind::ResyncBegin]);
    let parent = Some(options().timeline);
    assert_eq!(rig.note(RecordKind::TimelineStart), Note::TimelineStart { parent, fork: at });
    let begin = Note::ResyncBegin { from: first, reason: ResyncReason::LentLost };
    assert_eq!(rig.note(RecordKind::ResyncBegin), begin);
    assert!(matches!(waits, Submitted::Hold(_)) && !rig.ready.contains(&waits.ticket()));

    let block = |at: u64| Extent::new(at, 64 << 10);
    assert_eq!(reread_all(&mut rig), [block(1 << 20), block(100 << 20), block(200 << 20)]);
    assert_eq!(rig.filter.state(), State::Resyncing, "one of the order before still runs");
    rig.complete(runs, Ok(()));
    assert!(rig.ready.contains(&waits.ticket()));
    rig.complete(waits.ticket(), Ok(()));
    rig.pass(5 * MS);
    assert_eq!(reread_all(&mut rig), [block(100 << 20)]);
    assert_eq!(rig.filter.state(), State::Protecting);
    rig.pass(60 * MS);
    let restorable = rig.filter.status(rig.now()).restorable;
    assert!(restorable <= at, "of what lies between nothing is restorable");
    // What the timeline before is acknowledged to now says nothing.
    rig.filter.durable(before);
    rig.drain();
    assert_eq!(rig.filter.status(rig.now()).restorable, restorable);
    rig.durable();
    let status = rig.filter.status(rig.now());
    assert_eq!((status.restorable, status.counters.forks), (status.settled, 1));
    assert!(status.settled > first);
}

#[test]
fn what_was_lent_is_read_again_block_by_block() {
    let mut rig = Rig::protecting_with(far());
    let at = rig.filter.status(rig.now()).durable;
    for mib in 0..3 {
        let ticket = rig.go(write(mib << 23, 1 << 20));
        rig.complete(ticket, Ok(()));
    }
    rig.pass(20 * MS);
    let last = rig.frames.last().expect("frames").last_lsn();
    rig.filter.stored(last);
    let ticket = rig.go(write(64 << 20, 1 << 20));
    rig.complete(ticket, Ok(()));
    assert!(rig.filter.lent().is_some());
    fork(&mut rig, at, Fork::Lent);
    assert_eq!(rig.filter.lent(), None);
    let expected = [0, 8 << 20, 16 << 20, 64 << 20].map(|at| Extent::new(at, 1 << 20));
    assert_eq!(reread_all(&mut rig), expected);
}

#[test]
fn without_ranges_whole_extents_are_read() {
    let mut rig = Rig::protecting();
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    rig.pass(60 * MS);
    rig.durable();
    let at = rig.filter.status(rig.now()).durable;
    let ticket = rig.go(write(100 << 20, 4096));
    rig.complete(ticket, Ok(()));
    fork(&mut rig, at, Fork::Lent);
    let read = reread_all(&mut rig);
    assert_eq!(read.iter().map(|extent| extent.length).sum::<u64>(), 4 << 20);
    assert_eq!(read[0].offset, 100 << 20, "what was durable is not read");
}

#[test]
fn a_replica_that_lost_what_it_acknowledged_is_compared_with_everything() {
    let mut rig = Rig::protecting_with(far());
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    rig.pass(60 * MS);
    rig.durable();
    let durable = rig.filter.status(rig.now()).durable;
    let refused = rig.filter.fork(rig.now(), other(), Lsn(3), Fork::Lent, &options().disks);
    assert_eq!(refused, Err(ForkError::BelowDurable { at: Lsn(3), durable }));
    let first = fork(&mut rig, Lsn(3), Fork::Acknowledged);
    let begin = Note::ResyncBegin { from: first, reason: ResyncReason::AcknowledgedLost };
    assert_eq!(rig.note(RecordKind::ResyncBegin), begin);
    let status = rig.filter.status(rig.now());
    assert_eq!((status.durable, status.restorable), (Lsn(3), Lsn(3)));
    assert_eq!(reread_all(&mut rig).iter().map(|extent| extent.length).sum::<u64>(), 1 << 30);
    assert_eq!(rig.filter.state(), State::Protecting);
}

#[test]
fn a_fork_that_cannot_be_changes_nothing() {
    let mut rig = Rig::protecting_with(far());
    let last = rig.filter.status(rig.now()).lsn;
    let same = options().timeline;
    let refused = rig.filter.fork(rig.now(), same, last, Fork::Lent, &options().disks);
    assert_eq!(refused, Err(ForkError::SameTimeline { timeline: same }));
    let refused = rig.filter.fork(rig.now(), other(), last.next(), Fork::Lent, &options().disks);
    assert_eq!(refused, Err(ForkError::Beyond { at: last.next(), last }));
    assert_eq!((rig.filter.status(rig.now()).lsn, rig.filter.state()), (last, State::Protecting));
}

#[test]
fn no_record_of_the_new_timeline_leaves_before_the_log_names_it() {
    let mut rig = Rig::protecting_with(far());
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    rig.log_works = false;
    let at = rig.filter.status(rig.now()).durable;
    fork(&mut rig, at, Fork::Lent);
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Ok(()));
    rig.pass(99 * MS);
    assert!(rig.frames.is_empty() && rig.removals == 0, "the log that is there is that of the parent, and is believed");
    rig.pass(MS);
    assert!(rig.frames.is_empty() && rig.removals == 1);
    rig.filter.log_removed(rig.now()).expect("under way");
    rig.drain();
    assert_eq!(rig.frames[0].timeline, other(), "nobody believes what it names");
}

/// A header of the parent is in one copy, and would be believed.
#[test]
fn a_fork_while_the_log_is_made_anew_waits_for_its_headers() {
    let mut rig = Rig::protecting_with(far());
    rig.log_works = false;
    let held = rig.filter.submit(rig.now(), disk(), write(512 << 20, 512)).expect("good");
    rig.pass(100 * MS);
    rig.filter.log_removed(rig.now()).expect("under way");
    rig.drain();
    rig.complete(held.ticket(), Ok(()));
    // The late write ends: everything is written anew.
    let mut due = vec![rig.log_pending.take().expect("late")];
    let mut writes = 0;
    while let Some(token) = due.pop() {
        rig.filter.log_written(rig.now(), token, Ok(())).expect("under way");
        rig.drain();
        writes += 1;
        if writes == 4 {
            // The late one, the sectors twice, and a header.
            assert!(rig.filter.activity.writer().holds());
            let at = rig.filter.status(rig.now()).durable;
            fork(&mut rig, at, Fork::Lent);
        }
        assert!(writes <= 4 || due.is_empty() && (rig.frames.is_empty() || rig.filter.activity.writer().is_written()));
        due.extend(rig.log_pending.take());
    }
    assert!(writes > 5 && rig.filter.activity.writer().is_written());
    assert_eq!(rig.frames[0].timeline, other());
}

#[test]
fn who_paused_or_detached_stays_so_on_the_new_timeline() {
    for detached in [false, true] {
        let mut rig = Rig::protecting_with(far());
        if detached {
            rig.filter.detach(rig.now())
        } else {
            rig.filter.pause(rig.now())
        }
        rig.drain();
        let (state, at) = (rig.filter.state(), rig.filter.status(rig.now()).durable);
        fork(&mut rig, at, Fork::Lent);
        assert_eq!(rig.filter.state(), state);
        let kinds = [RecordKind::TimelineStart, RecordKind::Time, RecordKind::ResyncBegin, RecordKind::GapBegin];
        assert_eq!(rig.kinds(), kinds);
        assert!(rig.rereads.is_empty());
    }
}

#[test]
fn the_replica_is_told_of_disks_that_it_does_not_know() {
    let mut rig = Rig::protecting_with(far());
    let id = |number| DiskId::new(number).expect("not 0");
    let spec = |number: u16, size| DiskSpec { id: id(number), name: format!("disk{number}"), size };
    let at = rig.filter.status(rig.now()).durable;
    rig.filter.add_disk(rig.now(), spec(2, 1 << 20), None).expect("a new disk");
    rig.filter.add_disk(rig.now(), spec(3, 2 << 20), None).expect("a new disk");
    rig.filter.disk_seeded(rig.now(), id(3)).expect("copied");
    let known = [DiskSpec { size: 1 << 29, ..options().disks[0].clone() }, spec(7, 512)];
    rig.filter.fork(rig.now(), other(), at, Fork::Lent, &known).expect("a good fork");
    rig.frames.clear();
    rig.drain();
    let disks = rig.frames.iter().flat_map(|frame| &frame.parts).filter_map(|part| Some((part.kind, part.disk?.get())));
    let expected = [
        (RecordKind::DiskRemoved, 7),
        (RecordKind::Resize, 1),
        (RecordKind::DiskAdded, 2),
        (RecordKind::ResyncBegin, 2),
        (RecordKind::DiskAdded, 3),
    ];
    assert_eq!(disks.collect::<Vec<_>>(), expected);
    let read: Vec<_> = rig.rereads.iter().map(|reread| (reread.disk, reread.extent.length)).collect();
    assert_eq!(read, [(id(3), 1 << 20)], "one that was copied is read, one that is being copied is not");
    rig.filter.disk_seeded(rig.now(), id(2)).expect("its copy goes on");
}

#[test]
fn forks_of_forks_while_nothing_becomes_durable() {
    let mut rig = Rig::protecting_with(far());
    let at = rig.filter.status(rig.now()).durable;
    let ticket = rig.go(write(5 << 20, 4096));
    rig.complete(ticket, Ok(()));
    fork(&mut rig, at, Fork::Lent);
    let reread = rig.rereads.pop().expect("a re-read");
    let payload = Payload::new(5 << 20, Bytes::from(vec![7; 4096])).expect("aligned");
    rig.filter.reread_done(rig.now(), reread.token, Ok(vec![payload])).expect("under way");
    rig.pass(20 * MS);
    assert!(rig.kinds().contains(&RecordKind::Repair));
    let third = Timeline::new([10; 16]).expect("not 0");
    rig.filter.fork(rig.now(), third, at, Fork::Lent, &options().disks).expect("a good fork");
    rig.drain();
    let read = reread_all(&mut rig);
    assert_eq!(read, [Extent::new(5 << 20, 64 << 10)], "the repair was not durable");
}

/// The replica wrote the disk down before it had records, and those that say that it is not complete are lost.
#[test]
fn a_replica_that_lost_the_records_of_a_disk_that_joins_is_told_again_that_it_is_not_complete() {
    let mut rig = Rig::protecting_with(far());
    let at = rig.filter.status(rig.now()).durable;
    let joins = DiskSpec { id: DiskId::new(2).expect("not 0"), name: "disk2".into(), size: 1 << 20 };
    rig.filter.add_disk(rig.now(), joins.clone(), None).expect("a new disk");
    let known = [options().disks[0].clone(), joins.clone()];
    let first = rig.filter.fork(rig.now(), other(), at, Fork::Lent, &known).expect("a good fork");
    rig.frames.clear();
    rig.drain();
    let parts = rig.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.disk == Some(joins.id));
    let said: Vec<_> = parts.map(|part| part.note.as_deref().cloned()).collect();
    let begins = |note: &Option<Note>| matches!(note, Some(Note::ResyncBegin { from, reason: ResyncReason::Seeding }) if *from > first);
    assert!(said.len() == 1 && begins(&said[0]), "of the disk is said {said:?}");
    rig.filter.disk_seeded(rig.now(), joins.id).expect("its copy goes on");
}
