//! Stops of every kind, room that runs out, media that fail, times and events.

use super::kit::*;
use cdp_core::frame::{Compression, Mark, Note, PointKinds, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::*;
use cdp_core::types::*;
use std::sync::Arc;

fn fill(rig: &mut Rig, source: &mut Source, rounds: u32) {
    for _ in 0..rounds {
        (0..4).for_each(|_| source.any());
        source.frames(Compression::Zstd(1)).into_iter().for_each(|frame| drop(rig.append(frame)));
    }
}

#[test]
fn an_unclean_stop_loses_nothing_that_was_durable() {
    let storage = Arc::new(Memory::new());
    let mut rig = Rig::create(storage.clone());
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    fill(&mut rig, &mut source, 80);
    rig.sync();
    let durable = rig.writer.durable().lsn();
    drop(rig);
    let rig = Rig::open(storage.clone(), 2).unwrap();
    assert!(rig.writer.durable().lsn() >= durable);
    assert!(rig.repairs.iter().any(|repair| matches!(repair, Repair::Sealed { torn: None, .. })), "{:?}", rig.repairs);
    let elements = [(timeline(1), durable)];
    let view = View::open(&path(&rig.reader(), &rig.writer.snapshot(), &elements), 1 << 20).unwrap();
    for number in 1..=2 {
        assert!(
            restore(&view, number, source.size).unwrap() == source.model.at(&elements, number, source.size as usize)
        );
    }
    // Opening once more finds nothing to do.
    assert_eq!(open(storage.as_ref(), DIRECTORY, None).unwrap().repairs, []);
}

#[test]
fn no_room_is_a_state_that_goes_by_itself() {
    let storage = Arc::new(Memory::with_capacity(3 << 20));
    let mut rig = Rig::create(storage.clone());
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    let mut held = None;
    'full: for _ in 0..200 {
        (0..4).for_each(|_| source.any());
        for frame in source.frames(Compression::None) {
            let mut frame = Some(frame);
            for _ in 0..10 {
                match rig.writer.append(rig.now, frame.take().unwrap()) {
                    Ok(_) => break,
                    Err(refused) => frame = Some(refused.frame),
                }
                rig.drain();
            }
            if frame.is_some() {
                held = frame;
                break 'full;
            }
        }
    }
    let held = held.expect("three megabytes fill up");
    assert_eq!(rig.writer.state(), WriterState::NoSpace);
    let refused = rig.writer.append(rig.now, held).unwrap_err();
    assert_eq!(refused.why, Refusal::NotNow(Hold::NoSpace));
    rig.sync();
    assert_eq!(rig.writer.durable().lsn().next(), refused.frame.info.first_lsn.max(rig.writer.durable().lsn().next()));
    storage.set_capacity(64 << 20);
    let deadline = rig.writer.next_deadline().expect("it asks again");
    rig.now = deadline;
    rig.drain();
    rig.append(refused.frame);
    rig.sync();
    assert_eq!(rig.writer.state(), WriterState::Running);
}

#[test]
fn a_failed_write_or_sync_ends_everything_and_the_next_start_sees_what_is_there() {
    for operation in [Operation::Write, Operation::Sync] {
        let memory = Arc::new(Memory::new());
        let faults = Faults::default();
        let storage: Arc<dyn Storage> = Arc::new(Faulty::new(memory.clone(), faults.clone()));
        let mut rig = Rig::create(storage);
        let mut source = Source::new(1, timeline(1));
        rig.start(timeline(1), None, Lsn::ZERO);
        fill(&mut rig, &mut source, 3);
        rig.sync();
        let durable = rig.writer.durable();
        faults.add(Fault::once(operation, ".seg", MediaErrorKind::Io));
        source.any();
        source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
        rig.sync();
        assert!(matches!(rig.writer.state(), WriterState::Failed(_)), "{operation:?}");
        assert!(rig.writer.poll(rig.now).is_none(), "nothing is tried again");
        assert_eq!(rig.writer.durable(), durable);
        source.any();
        let frame = source.frames(Compression::None).remove(0);
        assert!(matches!(rig.writer.append(rig.now, frame).unwrap_err().why, Refusal::Failed(_)));
        let rig = Rig::open(memory, 3).unwrap();
        assert!(rig.writer.durable() >= durable);
    }
}

#[test]
fn frames_that_do_not_follow_are_refused() {
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut source = Source::new(1, timeline(1));
    source.any();
    let first = source.frames(Compression::None).remove(0);
    let refused = rig.writer.append(rig.now, first).unwrap_err();
    assert!(matches!(refused.why, Refusal::Timeline { open: None, .. }));
    rig.start(timeline(1), None, Lsn::ZERO);
    rig.append(refused.frame.clone());
    let again = rig.writer.append(rig.now, refused.frame).unwrap_err();
    assert_eq!(again.why, Refusal::Chain { expected: source.lsn, found: Lsn::ZERO });
    let mut stranger = Source::new(1, timeline(9));
    stranger.any();
    let frame = stranger.frames(Compression::None).remove(0);
    assert!(matches!(rig.writer.append(rig.now, frame).unwrap_err().why, Refusal::Timeline { .. }));
}

#[test]
fn times_and_events_come_back() {
    AtRest::both().iter().for_each(times_and_events_of);
}

fn times_and_events_of(at_rest: &AtRest) {
    let storage = Arc::new(Memory::new());
    let mut rig = Rig::create_at_rest(storage.clone(), at_rest);
    let mut source = Source::new(4, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    let mut marks = Vec::new();
    for round in 0..60u64 {
        if round == 30 {
            // The wall clock is set back: a new epoch.
            source.time -= 5_000_000;
            source.epoch += 1;
            source.note(RecordKind::Time, None, Note::Time { mono: MonoTime(round) });
        }
        (0..5).for_each(|_| source.any());
        let kinds = PointKinds { short: true, ..PointKinds::default() };
        let mark = Note::Mark(Mark { kinds, on_barrier: false, label: format!("m{round}") });
        marks.push((source.note(RecordKind::Mark, None, mark.clone()), mark));
        source.frames(Compression::Zstd(1)).into_iter().for_each(|frame| drop(rig.append(frame)));
    }
    rig.sync();
    let check = |reader: &Reader, snapshot: &Snapshot| {
        let events = reader.events(snapshot).unwrap();
        let of_marks = events.iter().filter(|event| event.kind == RecordKind::Mark);
        let found: Vec<_> = of_marks.map(|event| (event.lsn, event.note.clone().unwrap())).collect();
        assert_eq!(found, marks);
        assert_eq!(events.iter().filter(|event| event.kind == RecordKind::Time).count(), 1);
        for (_, stamp) in source.stamps.iter().step_by(7) {
            for time in [stamp.time.0 - 1, stamp.time.0, stamp.time.0 + 1] {
                let moments = reader.moments(snapshot, timeline(1), source.lsn, WallTime(time)).unwrap();
                for epoch in 1..=2 {
                    let of = || source.stamps.iter().filter(|(_, stamp)| stamp.epoch.0 == epoch);
                    let expected = of().filter(|(_, stamp)| stamp.time.0 <= time).map(|(lsn, _)| *lsn).max();
                    let found = moments.iter().find(|moment| moment.stamp.epoch.0 == epoch);
                    assert_eq!(found.map(|moment| moment.lsn), expected, "time {time} epoch {epoch}");
                    let inside = of().any(|(_, stamp)| stamp.time.0 >= time);
                    assert!(found.is_none_or(|moment| moment.inside == inside));
                }
            }
        }
        for (lsn, stamp) in source.stamps.iter().step_by(11) {
            assert_eq!(reader.stamp(snapshot, timeline(1), *lsn), Some(*stamp));
        }
        let frames = reader.frames(snapshot, timeline(1), Lsn::ZERO).unwrap();
        let lsns: Vec<_> = frames.flat_map(|frame| frame.unwrap().parts).map(|part| part.lsn).collect();
        let mut made: Vec<_> = source.stamps.iter().map(|(lsn, _)| *lsn).collect();
        let mut read = lsns;
        read.dedup();
        made.dedup();
        assert_eq!(read, made);
    };
    check(&rig.reader(), &rig.writer.snapshot());
    // As another process sees it while the owner writes, and after a clean stop.
    let looked = at_rest.look(storage.as_ref(), Some(source.lsn)).unwrap();
    assert_eq!(looked.damage, None);
    check(&rig.reader(), &looked.snapshot);
    rig.close();
    let opened = at_rest.open(storage.as_ref(), Some(source.lsn)).unwrap();
    check(&at_rest.reader(storage, &opened.manifest), &opened.snapshot());
}

#[test]
fn dropped_segments_go_and_stay_away() {
    let storage = Arc::new(Memory::new());
    let mut rig = Rig::create(storage.clone());
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    fill(&mut rig, &mut source, 100);
    rig.sync();
    let sealed: Vec<_> = rig.writer.manifest().segments.iter().filter(|s| s.summary().is_some()).collect();
    let numbers: Vec<_> = sealed.iter().take(2).map(|segment| segment.number).collect();
    rig.writer.forget(&numbers);
    rig.drain();
    let names = storage.list(DIRECTORY).unwrap();
    assert!(numbers.iter().all(|number| !names.contains(&segment_name(*number))));
    let durable = rig.writer.durable();
    drop(rig);
    assert!(Rig::open(storage, 2).unwrap().writer.durable() >= durable);
}

#[test]
fn a_sync_covers_only_what_was_written_when_it_was_issued() {
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    rig.drain();
    let mut append = |rig: &mut Rig| {
        source.write(1, Extent::new(0, 512), 1);
        let frame = source.frames(Compression::None).remove(0);
        rig.writer.append(rig.now, frame).unwrap();
        let (id, effect) = rig.writer.poll(rig.now).expect("a write");
        assert!(matches!(effect, Effect::Write { .. }));
        (id, effect)
    };
    let done = |rig: &mut Rig, (id, effect): (EffectId, Effect)| {
        let outcome = rig.executor.run(&effect);
        rig.writer.completed(rig.now, id, outcome);
    };
    let (first, second) = (append(&mut rig), append(&mut rig));
    rig.writer.request_sync();
    done(&mut rig, second);
    assert!(rig.writer.poll(rig.now).is_none(), "the first one is not written yet");
    assert_eq!(rig.writer.written(), Lsn(0));
    done(&mut rig, first);
    assert_eq!(rig.writer.written(), Lsn(2));
    let sync = rig.writer.poll(rig.now).expect("a sync");
    assert!(matches!(sync.1, Effect::Sync { .. }));
    // More is appended and written while the sync runs; it is not covered.
    let third = append(&mut rig);
    done(&mut rig, third);
    rig.writer.request_sync();
    assert!(rig.writer.poll(rig.now).is_none(), "one sync of a file at a time");
    assert_eq!((rig.writer.durable().lsn(), rig.writer.written()), (Lsn(0), Lsn(3)));
    done(&mut rig, sync);
    assert_eq!(rig.writer.durable().lsn(), Lsn(2));
    let again = rig.writer.poll(rig.now).expect("a sync for the third");
    done(&mut rig, again);
    assert_eq!(rig.writer.durable().lsn(), Lsn(3));
}

#[test]
fn time_alone_makes_things_durable() {
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    source.write(1, Extent::new(0, 512), 1);
    rig.append(source.frames(Compression::None).remove(0));
    rig.drain();
    assert_eq!(rig.writer.durable().lsn(), Lsn(0));
    rig.now = rig.writer.next_deadline().expect("a commit is due some time");
    rig.drain();
    assert_eq!(rig.writer.durable().lsn(), Lsn(1));
    assert_eq!(rig.writer.next_deadline(), None);
}

#[test]
fn a_write_that_spans_frames_is_durable_when_all_of_it_is() {
    let storage = Arc::new(Memory::new());
    let mut rig = Rig::create(storage.clone());
    let mut source = Source::new(1, timeline(1));
    source.size = 4 << 20;
    rig.start(timeline(1), None, Lsn::ZERO);
    source.write(1, Extent::new(0, 512), 1);
    source.write(1, Extent::new(0, 600 << 10), 2);
    let mut frames = source.frames(Compression::None);
    assert_eq!(frames.len(), 3);
    let last = frames.pop().unwrap();
    for frame in frames {
        rig.append(frame);
    }
    rig.sync();
    assert_eq!(rig.writer.durable().lsn(), Lsn(1));
    // After a stop in between, half of the write is there and nobody sees it.
    let reopened = Rig::open(storage, 2).unwrap();
    assert_eq!(reopened.writer.durable().lsn(), Lsn(1));
    let path_to = |rig: &Rig, lsn| path(&rig.reader(), &rig.writer.snapshot(), &[(timeline(1), lsn)]);
    assert!(View::open(&path_to(&reopened, Lsn(2)), 1 << 20).is_err());
    let mut bytes = vec![0; 1024];
    View::open(&path_to(&reopened, Lsn(1)), 1 << 20).unwrap().read(disk(1), 0, &mut bytes, &Nothing).unwrap();
    assert!(bytes == source.model.at(&[(timeline(1), Lsn(1))], 1, 1024));
    // Behind a fork below it the rest comes too late.
    let mut reopened = reopened;
    reopened.start(timeline(2), Some(timeline(1)), Lsn(1));
    let late = reopened.writer.append(reopened.now, last).unwrap_err();
    assert!(matches!(late.why, Refusal::Timeline { open: Some(_), .. }));
    source.fork(timeline(2), Lsn(1));
    source.write(1, Extent::new(512, 512), 3);
    reopened.append(source.frames(Compression::None).remove(0));
    reopened.sync();
    let elements = [(timeline(1), Lsn(1)), (timeline(2), source.lsn)];
    let view = View::open(&path(&reopened.reader(), &reopened.writer.snapshot(), &elements), 1 << 20).unwrap();
    view.read(disk(1), 0, &mut bytes, &Nothing).unwrap();
    assert!(bytes == source.model.at(&elements, 1, 1024));
}

#[test]
fn a_part_that_is_missing_is_refused() {
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut source = Source::new(1, timeline(1));
    source.size = 4 << 20;
    rig.start(timeline(1), None, Lsn::ZERO);
    source.write(1, Extent::new(0, 1200 << 10), 2);
    let frames = source.frames(Compression::None);
    assert_eq!(frames.len(), 5);
    rig.append(frames[0].clone());
    rig.append(frames[1].clone());
    let refused = rig.writer.append(rig.now, frames[3].clone()).unwrap_err();
    assert_eq!(refused.why, Refusal::Chain { expected: Lsn(1), found: Lsn(1) });
    frames[2..].iter().for_each(|frame| drop(rig.append(frame.clone())));
    rig.sync();
    assert_eq!(rig.writer.durable().lsn(), Lsn(1));
}

/// Media report a write that they lost to one sync of the file; another one beside it would be told that all is well.
#[test]
fn no_sync_of_a_file_is_issued_while_another_is_under_way() {
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    source.write(1, Extent::new(0, 512), 1);
    rig.append(source.frames(Compression::None).remove(0));
    rig.drain();
    rig.writer.request_sync();
    let (id, first) = rig.writer.poll(rig.now).expect("a sync");
    let Effect::Sync { file: active } = first else { panic!("{first:?}") };
    // Everything but this sync goes on: the segment is closed, another one is made.
    rig.writer.roll();
    while let Some((id, effect)) = rig.writer.poll(rig.now) {
        assert!(!matches!(effect, Effect::Sync { file } if file == active), "a second sync of the same file");
        let outcome = rig.executor.run(&effect);
        rig.writer.completed(rig.now, id, outcome);
    }
    assert_eq!(rig.writer.durable().lsn(), Lsn(0));
    rig.writer.completed(rig.now, id, Ok(()));
    assert_eq!(rig.writer.durable().lsn(), Lsn(1));
    // It is sealed when that sync is through.
    rig.drain();
    assert!(rig.writer.manifest().segments.iter().any(|segment| segment.summary().is_some()));
}

/// A manifest that says `clean` is believed: nobody looks for what is missing behind it.
#[test]
fn a_clean_stop_is_said_when_everything_is_sealed() {
    let storage = Arc::new(Memory::new());
    let mut rig = Rig::create(storage.clone());
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    rig.writer.edit(|manifest| manifest.clean = false);
    rig.drain();
    source.write(1, Extent::new(0, 512), 1);
    rig.append(source.frames(Compression::None).remove(0));
    rig.drain();
    rig.writer.close(true);
    // The footer takes its time, manifests do not.
    let mut held = Vec::new();
    while let Some((id, effect)) = rig.writer.poll(rig.now) {
        match effect {
            Effect::Write { offset, .. } if offset > 0 => held.push((id, effect)),
            _ => {
                let outcome = rig.executor.run(&effect);
                rig.writer.completed(rig.now, id, outcome);
            }
        }
    }
    assert_eq!((held.len(), rig.writer.durable().lsn(), rig.writer.state()), (1, Lsn(0), WriterState::Closing));
    let said = read_manifest(storage.as_ref()).unwrap();
    let ends = |manifest: &Manifest| (manifest.clean, manifest.timelines.last().and_then(|timeline| timeline.last));
    assert_eq!(ends(&said), (false, None));
    for (id, effect) in held {
        let outcome = rig.executor.run(&effect);
        rig.writer.completed(rig.now, id, outcome);
    }
    rig.drain();
    assert_eq!((rig.writer.durable().lsn(), rig.writer.state()), (Lsn(1), WriterState::Closed));
    assert_eq!(ends(&read_manifest(storage.as_ref()).unwrap()), (true, Some(Lsn(1))));
}

/// What a note says is checked as what the manifest says is: a merge makes a base as large as that.
#[test]
fn a_note_of_a_disk_larger_than_disks_get_is_refused() {
    let added = |size| (RecordKind::DiskAdded, Note::DiskAdded { name: "disk".to_owned(), size });
    let resized = |from, to| (RecordKind::Resize, Note::Resize { from, to });
    let large = DISK_MAX + SECTOR;
    for (kind, note) in [added(large), resized(large, SECTOR), resized(SECTOR, large), resized(0, u64::MAX)] {
        let mut rig = Rig::create(Arc::new(Memory::new()));
        let mut source = Source::new(1, timeline(1));
        rig.start(timeline(1), None, Lsn::ZERO);
        fill(&mut rig, &mut source, 1);
        let (last, said) = (source.lsn, format!("{note:?}"));
        source.note(kind, Some(1), note);
        let refused = rig.writer.append(rig.now, source.frames(Compression::None).remove(0)).unwrap_err();
        assert!(matches!(refused.why, Refusal::Damaged(_)), "{said}: {}", refused.why);
        assert_eq!(rig.writer.last_lsn(), last);
    }
    let mut rig = Rig::create(Arc::new(Memory::new()));
    let mut source = Source::new(1, timeline(1));
    rig.start(timeline(1), None, Lsn::ZERO);
    let (kind, note) = resized(SECTOR, DISK_MAX);
    source.note(kind, Some(1), note);
    rig.append(source.frames(Compression::None).remove(0));
}

/// A footer says where it ends: beyond the longest segment nobody would read it.
#[test]
fn no_segment_is_made_longer_than_segments_get() {
    let reserved = |wanted: u64, later: Option<u64>| {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let manifest = Manifest::new(ReplicaId::new([5; 16]).unwrap(), group(), "test");
        let opened = create(storage.as_ref(), manifest).unwrap();
        let mut rig = Rig::with(storage, opened, 1, Options { segment_bytes: wanted, ..options() });
        later.into_iter().for_each(|later| rig.writer.set_bounds(later, 0));
        let (id, parent, fork, last, opened) = (timeline(1), None, Lsn::ZERO, None, WallTime(1));
        let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
        rig.writer.open_timeline(TimelineInfo { id, number: 1, parent, fork, last, state, role, opened });
        while let Some((id, effect)) = rig.writer.poll(rig.now) {
            match effect {
                Effect::Create { preallocate, .. } if preallocate > 0 => return preallocate,
                _ => rig.writer.completed(rig.now, id, rig.executor.run(&effect)),
            }
        }
        panic!("no segment was made");
    };
    assert_eq!((reserved(0, None), reserved(8 << 20, None)), (1 << 20, 8 << 20));
    assert_eq!((reserved(u64::MAX, None), reserved(8 << 20, Some(u64::MAX))), (16 << 30, 16 << 30));
}
