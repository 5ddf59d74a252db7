//! Each rule by its name.

use super::super::layout::{Header, Home, encode_entry, file_name, parse_name};
use super::*;
use crate::media::{Disk, Fault, Faults, Faulty, MediaErrorKind, Memory, Operation};

/// Frames of 30 KiB that a spool takes until it is full.
fn fill(rig: &mut Rig, source: &mut Source) -> Vec<EncodedFrame> {
    let mut frames = Vec::new();
    while rig.spool.can_take(40 << 10) && frames.len() < 1000 {
        let frame = source.frame(60, 1);
        assert_eq!(rig.spool.push(frame.clone()), Ok(frames.len() as u64));
        frames.push(frame);
        rig.settle();
    }
    frames
}

fn faulty() -> (Arc<dyn Storage>, Memory, Faults) {
    let (memory, faults) = (Memory::new(), Faults::default());
    (Arc::new(Faulty::new(Arc::new(memory.clone()), faults.clone())), memory, faults)
}

#[test]
fn everything_is_written_and_stored_and_read_back_in_order() {
    let storage = Memory::new();
    let mut rig = Rig::new(Spool::new(options(true)), Arc::new(storage.clone()));
    let mut source = Source::new(1);
    let mut frames = Vec::new();
    for _ in 0..150 {
        frames.push(source.frame(60, 1));
        rig.spool.push(frames[frames.len() - 1].clone()).unwrap();
        rig.settle_for(TICK);
    }
    rig.settle_for(2 * SYNC_PAUSE_NS);
    assert_eq!(rig.spool.stored(), Some(149));
    assert!(rig.spool.held_bytes() > rig.spool.memory_bytes(), "more than memory holds");
    for (number, frame) in (0..).zip(&frames) {
        assert_eq!(bytes_of(&rig.read(number).unwrap()), bytes_of(frame), "{number}");
    }
    rig.spool.release(148);
    rig.settle_for(TICK);
    assert_eq!(storage.list("spool/a").unwrap().len(), 1, "the last file is still written");
    assert!(matches!(rig.spool.get(148), Lookup::Gone));
    assert!(matches!(rig.spool.get(150), Lookup::Gone));
    rig.spool.release(149);
    rig.spool.retire();
    rig.settle_for(TICK);
    assert!(rig.spool.is_idle() && storage.list("spool/a").unwrap().is_empty());
    assert_eq!((rig.spool.held_bytes(), rig.spool.memory_bytes(), rig.spool.disk_bytes()), (0, 0, 0));
    assert!(rig.events.is_empty());
}

#[test]
fn only_what_memory_has_no_room_for_is_written_where_nothing_need_survive() {
    let storage = Memory::new();
    let mut rig = Rig::new(Spool::new(options(false)), Arc::new(storage.clone()));
    let mut source = Source::new(1);
    for _ in 0..20 {
        rig.spool.push(source.frame(60, 1)).unwrap();
        rig.settle();
    }
    assert_eq!(rig.spool.disk_bytes(), 0);
    rig.spool.release(19);
    let mut rig = Rig::new(Spool::new(options(false)), Arc::new(storage.clone()));
    let frames = fill(&mut rig, &mut Source::new(1));
    assert!(frames.len() as u64 * (30 << 10) > 7 * MIB, "memory and disk are used: {} frames", frames.len());
    assert_eq!(rig.spool.stored(), None);
    for (number, frame) in (0..).zip(&frames) {
        assert_eq!(bytes_of(&rig.read(number).unwrap()), bytes_of(frame), "{number}");
        rig.spool.release(number);
    }
    let left = storage.list("spool/a").unwrap().len();
    assert_eq!((left > 0, sweep(&storage, "spool/a").unwrap()), (true, left));
}

/// As a share of a disk does: it becomes smaller than the files that were begun under it, and later larger again.
#[test]
fn files_that_are_begun_later_are_as_long_as_is_said_then() {
    let storage = Memory::new();
    let whole = SpoolOptions { disk_bytes_max: 8 * MIB, file_bytes: 4 * MIB, ..options(true) };
    let mut rig = Rig::new(Spool::new(whole), Arc::new(storage.clone()));
    let mut source = Source::new(1);
    let mut frames = vec![source.frame(60, 1)];
    rig.spool.push(frames[0].clone()).unwrap();
    rig.settle();
    rig.spool.set_bounds(3 * MIB, MIB, 6 * MIB);
    rig.spool.set_file_bytes(MIB);
    while rig.spool.can_take(40 << 10) && frames.len() < 1000 {
        frames.push(source.frame(60, 1));
        rig.spool.push(frames[frames.len() - 1].clone()).unwrap();
        rig.settle_for(TICK);
    }
    let length = |name: &String| storage.open(&format!("spool/a/{name}"), false).unwrap().len().unwrap();
    let lengths = || storage.list("spool/a").unwrap().iter().map(length).collect::<Vec<_>>();
    assert_eq!(lengths(), [4 * MIB, MIB, MIB], "the one that is open stays as it is");
    let last = frames.len() as u64 - 1;
    for (number, frame) in (0..).zip(&frames) {
        assert_eq!(bytes_of(&rig.read(number).unwrap()), bytes_of(frame), "{number}");
    }
    rig.spool.release(last);
    rig.spool.set_file_bytes(2 * MIB);
    for _ in 0..50 {
        rig.spool.push(source.frame(60, 1)).unwrap();
        rig.settle_for(TICK);
    }
    assert_eq!(lengths(), [2 * MIB]);
    drop(rig);
    let found = Spool::recover(&storage, "spool/a").unwrap().found.pop().unwrap();
    assert_eq!(found.end, Position::whole(source.prev));
}

#[test]
fn a_full_spool_takes_no_frame_until_some_are_released() {
    let mut rig = Rig::new(Spool::new(options(true)), Arc::new(Memory::new()));
    let mut source = Source::new(1);
    let mut taken = 0;
    let refused = loop {
        let frame = source.frame(60, 1);
        if let Err(refused) = rig.spool.push(frame.clone()) {
            assert!(!rig.spool.can_take(frame.len()));
            assert!(matches!(refused, PushError::Full { .. }), "{refused}");
            break frame;
        }
        taken += 1;
        rig.settle_for(TICK);
    };
    assert!(taken * (30 << 10) > 7 * MIB, "{taken} frames");
    rig.spool.release(taken / 2);
    rig.settle_for(2 * SYNC_PAUSE_NS);
    assert_eq!(rig.spool.push(refused), Ok(taken));
    rig.settle_for(2 * SYNC_PAUSE_NS);
    assert_eq!(rig.spool.stored(), Some(taken));
}

#[test]
fn what_does_not_continue_is_refused() {
    let mut spool = Spool::new(options(true));
    let mut source = Source::new(1);
    // A write of four parts in as many frames.
    let [first, second, third] = [0, 1, 2].map(|_| source.frame(256, 1));
    spool.push(first.clone()).unwrap();
    let refused = spool.push(third.clone()).unwrap_err();
    assert_eq!(refused, PushError::NotNext { expected: first.info.end(), found: third.info.begin() });
    let refused = spool.push(Source::new(2).frame(1, 1)).unwrap_err();
    assert_eq!(refused, PushError::OtherTimeline { expected: timeline(1), found: timeline(2) });
    assert!(matches!(spool.push(first), Err(PushError::NotNext { .. })));
    assert_eq!(spool.push(second), Ok(1));
    assert_eq!(spool.push(third), Ok(2));
}

#[test]
fn nothing_is_stored_before_its_sync_and_the_directorys() {
    let mut rig = Rig::new(Spool::new(options(true)), Arc::new(Memory::new()));
    rig.spool.push(Source::new(1).frame(4, 1)).unwrap();
    let take = |rig: &mut Rig, is: fn(&Effect) -> bool| {
        rig.poll();
        let at = rig.flying.iter().position(|(_, effect)| is(effect)).expect("it is asked for");
        rig.finish(at);
    };
    take(&mut rig, |effect| matches!(effect, Effect::Create { .. }));
    take(&mut rig, |effect| matches!(effect, Effect::Write { .. }));
    rig.poll();
    assert!(!rig.flying.iter().any(|(_, effect)| matches!(effect, Effect::Sync { .. })), "names first");
    for name in ["spool/a", "spool", ""] {
        assert!(rig.flying.iter().any(|(_, effect)| matches!(effect, Effect::SyncDir { name: it } if it == name)));
    }
    (0..3).for_each(|_| take(&mut rig, |effect| matches!(effect, Effect::SyncDir { .. })));
    rig.poll();
    assert_eq!(rig.spool.stored(), None);
    take(&mut rig, |effect| matches!(effect, Effect::Sync { .. }));
    assert_eq!(rig.spool.stored(), Some(0));
}

#[test]
fn after_a_failed_sync_the_file_is_left_and_what_it_was_to_keep_is_written_again() {
    for operation in [Operation::Sync, Operation::Write, Operation::SyncDir] {
        let (storage, memory, faults) = faulty();
        let mut rig = Rig::new(Spool::new(options(true)), storage);
        let mut source = Source::new(1);
        rig.spool.push(source.frame(4, 1)).unwrap();
        if operation != Operation::SyncDir {
            rig.settle_for(2 * SYNC_PAUSE_NS);
            assert_eq!(rig.spool.stored(), Some(0));
        }
        let stored = rig.spool.stored();
        faults.add(Fault::once(operation, "", MediaErrorKind::Io));
        let frames: Vec<_> = (0..10).map(|_| source.frame(60, 1)).collect();
        for frame in &frames {
            rig.spool.push(frame.clone()).unwrap();
            rig.settle_for(TICK);
        }
        rig.settle_for(2 * SYNC_PAUSE_NS);
        assert_eq!(faults.fired(), 1);
        assert_eq!(rig.spool.stored(), stored, "{operation}: memory only");
        assert!(matches!(rig.events[..], [SpoolEvent::DiskFailed { .. }]), "{:?}", rig.events);
        rig.settle_for(RETRY_NS);
        rig.settle_for(2 * SYNC_PAUSE_NS);
        assert_eq!(rig.spool.stored(), Some(10), "{operation}");
        assert_eq!(rig.events[1..], [SpoolEvent::DiskBack]);
        drop(rig);
        let mut recovery = Spool::recover(&memory, "spool/a").unwrap();
        assert!(recovery.dropped.is_empty());
        let found = recovery.found.pop().unwrap();
        assert_eq!(found.frames.len(), 11, "{operation}");
        let mut rig = Rig::new(found.into_spool(options(true)), Arc::new(memory));
        for (number, frame) in (1..).zip(&frames) {
            assert_eq!(bytes_of(&rig.read(number).unwrap()), bytes_of(frame), "{operation}");
        }
    }
}

#[test]
fn no_space_is_met_before_anything_is_written_and_goes_on_by_itself() {
    let (storage, _, faults) = faulty();
    let mut rig = Rig::new(Spool::new(options(true)), storage);
    faults.add(Fault::always(Operation::Preallocate, "", MediaErrorKind::NoSpace));
    let mut source = Source::new(1);
    let mut taken = 0;
    while rig.spool.can_take(40 << 10) {
        rig.spool.push(source.frame(60, 1)).unwrap();
        taken += 1;
        rig.settle_for(RETRY_NS / 7);
    }
    assert!(taken * (30 << 10) > MIB, "memory is used");
    assert_eq!((rig.spool.stored(), rig.spool.disk_bytes(), rig.events.len()), (None, 0, 1));
    faults.clear();
    rig.settle_for(2 * RETRY_NS);
    assert_eq!(rig.spool.stored(), Some(taken - 1));
    assert_eq!(rig.events[1..], [SpoolEvent::DiskBack]);
}

#[test]
fn a_frame_that_cannot_be_read_is_tried_again_and_then_lost_alone() {
    let (storage, _, faults) = faulty();
    let mut rig = Rig::new(Spool::new(options(true)), storage);
    let frames = fill(&mut rig, &mut Source::new(1));
    rig.settle_for(TICK);
    let number = rig.spool.stored().unwrap();
    faults.add(Fault { count: 3, ..Fault::always(Operation::Read, "", MediaErrorKind::Io) });
    assert_eq!(bytes_of(&rig.read(number).unwrap()), bytes_of(&frames[number as usize]), "media that come back");
    assert_eq!(faults.fired(), 3);
    let at = match rig.spool.held.slot(number - 3).unwrap() {
        slot if slot.is_to_be_read().is_some() => slot.place.unwrap(),
        _ => panic!("more than memory holds is stored"),
    };
    let range = Some(crate::types::Extent::new(at.offset, 1));
    let path = file_name(timeline(1), at.sequence);
    faults.add(Fault { range, ..Fault::always(Operation::Read, &path, MediaErrorKind::Io) });
    assert!(rig.read(number - 3).is_none());
    assert!(matches!(rig.events[..], [SpoolEvent::Lost { number: lost, .. }] if lost == number - 3));
    for near in [number - 4, number - 2] {
        assert_eq!(bytes_of(&rig.read(near).unwrap()), bytes_of(&frames[near as usize]));
    }
}

#[test]
fn a_file_that_the_media_lost_the_end_of_stops_the_run_and_is_named() {
    let memory = Memory::new();
    let mut rig = Rig::new(Spool::new(options(true)), Arc::new(memory.clone()));
    let mut source = Source::new(1);
    (0..80).for_each(|_| {
        rig.spool.push(source.frame(60, 1)).unwrap();
        rig.settle_for(TICK);
    });
    rig.settle_for(2 * SYNC_PAUSE_NS);
    drop(rig);
    let names = memory.list("spool/a").unwrap();
    assert_eq!(names.len(), 3);
    let second = format!("spool/a/{}", names[1]);
    memory.open(&second, true).unwrap().write_all_at(512 + 5 * 31232 + 100, &[0xff]).unwrap();
    let mut recovery = Spool::recover(&memory, "spool/a").unwrap();
    let dropped = recovery.dropped.pop().unwrap();
    assert_eq!((&dropped.file, dropped.offset), (&second, 512 + 5 * 31232), "{dropped:?}");
    let found = recovery.found.pop().unwrap();
    assert_eq!(found.end, dropped.after);
    assert_eq!(found.frames.len(), 33 + 5);
    assert_eq!(memory.list("spool/a").unwrap(), names[..2], "what is behind it is of no use");
}

#[test]
fn files_of_several_timelines_are_told_apart_and_strangers_left_alone() {
    let memory = Memory::new();
    for number in [1, 2] {
        let mut rig = Rig::new(Spool::new(options(true)), Arc::new(memory.clone()));
        let mut source = Source::new(number);
        for _ in 0..3 {
            rig.spool.push(source.frame(8, 1)).unwrap();
        }
        rig.settle_for(2 * SYNC_PAUSE_NS);
    }
    memory.create("spool/a/notes.txt").unwrap();
    memory.create(&format!("spool/a/{}", file_name(timeline(3), 1))).unwrap();
    let recovery = Spool::recover(&memory, "spool/a").unwrap();
    let found: Vec<_> = recovery.found.iter().map(|found| (found.timeline, found.frames.len())).collect();
    assert_eq!(found, [(timeline(1), 3), (timeline(2), 3)]);
    assert_eq!(memory.list("spool/a").unwrap().len(), 3, "an empty file goes, a stranger's does not");
    assert!(Spool::recover(&memory, "nowhere").unwrap().found.is_empty());
}

#[test]
fn it_works_in_a_real_directory() {
    let directory = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(directory.path()).unwrap());
    let mut rig = Rig::new(Spool::new(options(true)), Arc::clone(&storage));
    let mut source = Source::new(1);
    let frames: Vec<_> = (0..90).map(|number| source.frame(1 + number % 128, 4)).collect();
    for frame in &frames {
        rig.spool.push(frame.clone()).unwrap();
        rig.settle_for(TICK);
    }
    rig.settle_for(2 * SYNC_PAUSE_NS);
    assert_eq!(rig.spool.stored(), Some(89));
    drop(rig);
    let found = Spool::recover(storage.as_ref(), "spool/a").unwrap().found.pop().unwrap();
    let mut rig = Rig::new(found.into_spool(options(true)), storage);
    for (number, frame) in (0..).zip(&frames) {
        assert_eq!(bytes_of(&rig.read(number).unwrap()), bytes_of(frame));
    }
}

#[test]
fn names_are_ours_or_nobodys() {
    assert_eq!(parse_name(&file_name(timeline(0xab), 0x1f)), Some((timeline(0xab), 0x1f)));
    let good = file_name(timeline(0xab), 0x1f);
    for bad in
        ["", "-.spool", &good.to_uppercase(), &good.replace("001f", "1f"), &good.replace("1f", "00"), "é-1.spool"]
    {
        assert_eq!(parse_name(bad), None, "{bad}");
    }
}

#[test]
fn golden_bytes_of_version_1() {
    let frame = Source::new(1).frame(1, 1);
    let (group, timeline) = (frame.info.group, frame.info.timeline);
    let header = Header { group, timeline, sequence: 2, first: frame.info.begin() }.encode();
    let mut entry = Vec::new();
    encode_entry(Home { group, timeline, sequence: 2, offset: 512 }, &frame, true, &mut entry);
    let entry = entry.concat();
    assert_eq!((header.len(), entry.len()), (512, 1024));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found = format!("{}\n{}\n", hex(&header[..80]), hex(&entry[..96]));
    if std::env::var_os("CDP_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/link/spool");
        let storage = Disk::open(path).unwrap();
        let file = storage.open("golden-v1.hex", true).or_else(|_| storage.create("golden-v1.hex")).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(0, found.as_bytes()).unwrap();
    }
    assert_eq!(found, include_str!("../golden-v1.hex"));
    assert!(header[80..].iter().all(|byte| *byte == 0));
    let end = 64 + frame.len() as usize;
    assert_eq!(entry[64..end], bytes_of(&frame), "the frame as it came");
    assert!(entry[end..].iter().all(|byte| *byte == 0));
}
