//! Disks that join, grow, are cut and leave.

use super::*;
use crate::frame::Part;

fn second() -> DiskId {
    DiskId::new(2).expect("not 0")
}

fn spec(size: u64) -> DiskSpec {
    DiskSpec { id: second(), name: "b".into(), size }
}

const GIB: u64 = 1 << 30;

fn records(rig: &Rig) -> Vec<(RecordKind, Option<u16>)> {
    let wanted = |part: &&Part| part.index == 0 && !matches!(part.kind, RecordKind::Time | RecordKind::Mark);
    let parts = rig.frames.iter().flat_map(|frame| &frame.parts).filter(wanted);
    parts.map(|part| (part.kind, part.disk.map(DiskId::get))).collect()
}

#[test]
fn a_disk_that_joins_is_copied_while_every_moment_of_the_others_can_be_restored() {
    let mut rig = Rig::protecting();
    let added = rig.filter.add_disk(rig.now(), spec(1 << 20), Some(vec![1])).expect("a new disk");
    assert_eq!(rig.filter.state(), State::Protecting);
    let ticket = rig.filter.submit(rig.now(), second(), write(4096, 512)).expect("its ops are taken").ticket();
    rig.drain();
    rig.complete(ticket, Ok(()));
    let ticket = rig.go(write(0, 512));
    rig.complete(ticket, Ok(()));
    rig.pass(60 * MS);
    rig.durable();
    assert!(rig.filter.status(rig.now()).restorable > added, "the others are not kept from being restored");
    assert!(rig.rereads.is_empty(), "the driver copies it");
    assert_eq!(
        rig.filter.resize_disk(rig.now(), second(), 4096, Vec::new()),
        Err(OptionsError::Changing { disk: second() })
    );
    let complete = rig.filter.disk_seeded(rig.now(), second()).expect("it was being copied");
    assert_eq!(rig.filter.disk_seeded(rig.now(), second()), Err(OptionsError::UnknownDisk { disk: second() }));
    rig.pass(60 * MS);
    assert!(rig.has(&Event::DiskComplete { disk: second(), lsn: complete }));
    let (b, first) = (Some(2), Some(1));
    assert_eq!(
        records(&rig),
        [
            (RecordKind::DiskAdded, b),
            (RecordKind::ResyncBegin, b),
            (RecordKind::Write, b),
            (RecordKind::Write, first),
            (RecordKind::ResyncEnd, b)
        ]
    );
    assert_eq!(rig.note(RecordKind::ResyncBegin), Note::ResyncBegin { from: added, reason: ResyncReason::Seeding });
    let twice = rig.filter.add_disk(rig.now(), spec(512), None);
    assert_eq!(twice, Err(OptionsError::DuplicateDisk { disk: second() }));
}

#[test]
fn what_a_disk_grew_by_is_read_before_it_is_larger() {
    let mut rig = Rig::protecting();
    let larger = GIB + (2 << 20);
    let doubtful = Extent::new(GIB + (64 << 10), 64 << 10);
    // What is only just recorded may be a cut, and the replica knows nothing of it yet.
    let ticket = rig.go(write(0, 512));
    rig.complete(ticket, Ok(()));
    rig.filter.resize_disk(rig.now(), disk(), larger, vec![doubtful, Extent::new(0, 512)]).expect("it grew");
    rig.drain();
    assert!(rig.rereads.is_empty());
    rig.pass(60 * MS);
    rig.durable();
    let reread = rig.rereads.pop().expect("a re-read");
    assert_eq!((reread.extent, reread.compare_at.is_some()), (doubtful, true));
    assert!(rig.rereads.is_empty(), "what is not in doubt is not read");
    let beyond = rig.filter.submit(rig.now(), disk(), zero(GIB, 512));
    assert!(matches!(beyond, Err(SubmitError::OutOfBounds { size: GIB, .. })), "{beyond:?}");
    let Op::Write(found) = write(doubtful.offset, 4096) else { unreachable!() };
    rig.filter.reread_done(rig.now(), reread.token, Ok(vec![found])).expect("under way");
    rig.pass(60 * MS);
    rig.durable();
    let status = rig.filter.status(rig.now());
    assert_eq!((status.state, status.restorable), (State::Protecting, rig.frames.last().expect("frames").settled));
    assert_eq!(rig.note(RecordKind::Resize), Note::Resize { from: GIB, to: larger });
    let kinds: Vec<_> = records(&rig).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [RecordKind::Write, RecordKind::Repair, RecordKind::Resize], "and no resync");
    let ticket = rig.go(zero(larger - 512, 512));
    rig.complete(ticket, Ok(()));
    assert_eq!(
        rig.filter.resize_disk(rig.now(), disk(), larger, Vec::new()),
        Err(OptionsError::SameSize { disk: disk(), size: larger })
    );
}

#[test]
fn a_disk_is_cut_when_what_runs_beyond_is_over_and_nobody_else_waits() {
    let mut rig = Rig::protecting();
    let to = 8 << 20;
    let over = rig.go(write(to - 512, 1024));
    let held = rig.filter.submit(rig.now(), disk(), zero(to, 512)).expect("it waits for the other");
    assert!(matches!(held, Submitted::Hold(_)));
    rig.filter.resize_disk(rig.now(), disk(), to, Vec::new()).expect("smaller");
    let refused = rig.filter.submit(rig.now(), disk(), zero(to, 512));
    assert!(matches!(refused, Err(SubmitError::OutOfBounds { size: 8_388_608, .. })), "{refused:?}");
    let inside = rig.go(write(0, 512));
    rig.complete(inside, Ok(()));
    rig.pass(60 * MS);
    assert!(!rig.kinds().contains(&RecordKind::Resize));
    rig.complete(over, Err(EIO));
    assert!(rig.ready.contains(&held.ticket()));
    rig.complete(held.ticket(), Err(EIO));
    rig.pass(60 * MS);
    assert_eq!(rig.note(RecordKind::Resize), Note::Resize { from: GIB, to });
    let last = rig.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.kind.changes_disk()).last();
    let resize = rig.frames.iter().flat_map(|frame| &frame.parts).find(|part| part.kind == RecordKind::Resize);
    assert!(last.expect("ops").lsn < resize.expect("it was cut").lsn);
    rig.pass(S);
    let rereads = std::mem::take(&mut rig.rereads);
    assert!(!rereads.is_empty(), "what failed and is still there is read again");
    for reread in rereads {
        let Op::Write(all) = write(reread.extent.offset, reread.extent.length as usize) else { unreachable!() };
        rig.filter.reread_done(rig.now(), reread.token, Ok(vec![all])).expect("under way");
    }
    rig.pass(60 * MS);
    let repairs = rig.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.kind == RecordKind::Repair);
    let ends: Vec<_> = repairs.map(|part| part.extent.end()).collect();
    assert_eq!(ends, [to]);
    rig.pass(60 * MS);
    assert_eq!(rig.filter.state(), State::Protecting);
    assert_eq!(rig.filter.status(rig.now()).dirty_bytes, 0);
}

/// A re-read that was under way says nothing of what was cut off.
#[test]
fn what_was_being_read_beyond_the_cut_is_not_recorded() {
    let mut rig = Rig::protecting();
    let to = GIB - (32 << 10);
    let failed = rig.go(write(GIB - (64 << 10), 64 << 10));
    rig.complete(failed, Err(EIO));
    let reread = rig.rereads.pop().expect("a re-read");
    rig.filter.resize_disk(rig.now(), disk(), to, Vec::new()).expect("smaller");
    rig.drain();
    let Op::Write(all) = write(reread.extent.offset, reread.extent.length as usize) else { unreachable!() };
    rig.filter.reread_done(rig.now(), reread.token, Ok(vec![all])).expect("under way");
    rig.pass(60 * MS);
    let repairs = rig.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.kind == RecordKind::Repair);
    let ends: Vec<_> = repairs.map(|part| part.extent.end()).collect();
    assert_eq!(ends.iter().max(), Some(&to), "{ends:?}");
    assert_eq!(rig.filter.state(), State::Protecting);
}

#[test]
fn a_disk_leaves_when_its_ops_are_over_and_its_place_is_not_given_again() {
    let mut rig = Rig::protecting();
    assert_eq!(rig.filter.remove_disk(disk()), Err(OptionsError::LastDisk { disk: disk() }));
    rig.filter.add_disk(rig.now(), spec(64 << 20), None).expect("a new disk");
    rig.filter.disk_seeded(rig.now(), second()).expect("copied");
    rig.drain();
    let ticket = rig.go(write(0, 512));
    let flush = rig.filter.flush_begin(disk()).expect("a disk");
    rig.filter.remove_disk(disk()).expect("the other one stays");
    assert_eq!(rig.filter.remove_disk(second()), Err(OptionsError::LastDisk { disk: second() }));
    assert_eq!(rig.filter.submit(rig.now(), disk(), zero(0, 512)), Err(SubmitError::UnknownDisk { disk: disk() }));
    rig.pass(60 * MS);
    assert!(!rig.kinds().contains(&RecordKind::DiskRemoved));
    rig.complete(ticket, Err(EIO));
    rig.pass(60 * MS);
    assert!(rig.kinds().contains(&RecordKind::DiskRemoved));
    // What comes late changes nothing.
    rig.filter.flushed(rig.now(), flush, Err(EIO));
    for reread in std::mem::take(&mut rig.rereads) {
        rig.filter.reread_done(rig.now(), reread.token, Err(EIO)).expect("under way");
    }
    let frames = rig.frames.len();
    rig.pass(60 * MS);
    assert_eq!(rig.filter.state(), State::Protecting);
    let late = rig.frames[frames..].iter().flat_map(|frame| &frame.parts).find(|part| part.disk == Some(disk()));
    assert_eq!(late, None);
    let again = DiskSpec { id: disk(), name: "a".into(), size: 512 };
    assert_eq!(rig.filter.add_disk(rig.now(), again, None), Err(OptionsError::DuplicateDisk { disk: disk() }));
    rig.pass(20 * S);
    rig.durable();
    rig.filter.request_drain();
    rig.pass(S);
    rig.durable();
    assert_eq!(rig.filter.close(Vec::new()), Closing::Clean, "{:?}", rig.filter.status(rig.now()));
}

#[test]
fn a_start_records_what_became_of_the_disks_since() {
    let log = crate::capture::LogContents {
        group: GroupId::new([1; 16]).expect("not 0"),
        timeline: Timeline::new([2; 16]).expect("not 0"),
        generation: 9,
        state: crate::capture::LogState::Clean,
        reserved_through: Lsn(500),
        durable: Lsn(500),
        disks: Vec::new(),
        copy: 0,
    };
    let start = Start::Clean { after: Lsn(500), epoch: ClockEpoch(1), log };
    let larger = DiskSpec { id: disk(), name: "disk".into(), size: GIB + (1 << 20) };
    let gone = DiskId::new(3).expect("not 0");
    let options = FilterOptions {
        start,
        disks: vec![larger, spec(4096)],
        joining: vec![second()],
        leaving: vec![gone],
        resized: vec![(disk(), GIB)],
        ..options()
    };
    let mut rig = Rig::new(options);
    rig.pass(60 * MS);
    let (a, b) = (Some(1), Some(2));
    assert_eq!(
        records(&rig),
        [
            (RecordKind::DiskRemoved, Some(3)),
            (RecordKind::Resize, a),
            (RecordKind::DiskAdded, b),
            (RecordKind::ResyncBegin, b),
            (RecordKind::ResyncBegin, None),
        ]
    );
    let rereads = std::mem::take(&mut rig.rereads);
    assert_eq!(
        rereads.iter().map(|reread| (reread.disk, reread.extent)).collect::<Vec<_>>(),
        [(disk(), Extent::new(GIB, 1 << 20))]
    );
    rig.filter.reread_done(rig.now(), rereads[0].token, Ok(Vec::new())).expect("under way");
    rig.pass(60 * MS);
    rig.durable();
    assert_eq!(rig.filter.state(), State::Protecting);
    rig.filter.disk_seeded(rig.now(), second()).expect("it is being copied");
}

/// What is new cannot be read; nobody sees it, and nobody waits for it.
#[test]
fn a_growth_that_fails_keeps_no_resync_from_ending() {
    let mut rig = Rig::protecting();
    let new = Extent::new(GIB, 1 << 20);
    rig.filter.resize_disk(rig.now(), disk(), GIB + (1 << 20), vec![new]).expect("it grew");
    rig.pass(60 * MS);
    rig.durable();
    let fails = |rig: &mut Rig| {
        for reread in std::mem::take(&mut rig.rereads) {
            let inside = reread.extent.offset < GIB;
            let result = if inside { Ok(Vec::new()) } else { Err(EIO) };
            rig.filter.reread_done(rig.now(), reread.token, result).expect("under way");
        }
        rig.pass(100 * MS);
        rig.durable();
    };
    fails(&mut rig);
    let ticket = rig.go(write(0, 4096));
    rig.complete(ticket, Err(EIO));
    assert_eq!(rig.filter.state(), State::Resyncing);
    for _ in 0..100 {
        fails(&mut rig);
    }
    assert_eq!(rig.filter.state(), State::Protecting);
    assert!(!rig.kinds().contains(&RecordKind::Resize) && rig.filter.status(rig.now()).rereads_failing > 0);
    // It works out in the end.
    for _ in 0..100 {
        for reread in std::mem::take(&mut rig.rereads) {
            rig.filter.reread_done(rig.now(), reread.token, Ok(Vec::new())).expect("under way");
        }
        rig.pass(100 * MS);
    }
    assert_eq!(rig.note(RecordKind::Resize), Note::Resize { from: GIB, to: GIB + (1 << 20) });
}
