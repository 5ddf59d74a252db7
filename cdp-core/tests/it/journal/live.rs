//! A view that goes on with what is appended, as a session's does.

use super::kit::*;
use cdp_core::frame::{Compression, RecordKind};
use cdp_core::journal::*;
use cdp_core::media::{Disk, Memory, Storage};
use cdp_core::types::*;
use std::sync::Arc;

/// Bytes of a disk that one map stands for.
const MAP: u64 = 8 << 20;

/// Some of the maps are there, some are not; frames touch one, several, those of two disks, and ones that nobody has looked at.
#[test]
fn a_view_that_goes_on_shows_each_frame_in_every_map_that_it_touches() {
    let mut rig = Rig::create(Arc::new(Memory::new()));
    rig.start(timeline(1), None, Lsn::ZERO);
    let mut source = Source::new(1, timeline(1));
    for map in 0..6 {
        (1..=2).for_each(|number| source.write(number, Extent::new(map * MAP + MAP / 2, BLOCK), map as u8));
    }
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.sync();
    let (reader, first) = (rig.reader(), rig.writer.snapshot());
    let live = View::open(&path(&reader, &first, &[(timeline(1), source.lsn)]), 16 << 20).unwrap();
    let mut byte = [0];
    for map in [0, 1, 3, 4] {
        (1..=2).for_each(|number| live.read(disk(number), map * MAP + 7, &mut byte, &Nothing).unwrap());
    }
    let steps: [&dyn Fn(&mut Source); 5] = [
        &|source| source.clear(RecordKind::Discard, 1, Extent::new(MAP + BLOCK, 3 * MAP)),
        &|source| source.write(2, Extent::new(4 * MAP - BLOCK, 2 * BLOCK), 9),
        &|source| {
            source.write(2, Extent::new(0, SECTOR), 10);
            source.write(1, Extent::new(MAP - SECTOR, 2 * SECTOR), 11);
            source.write(1, Extent::new(MAP - SECTOR, SECTOR), 12);
        },
        &|source| source.clear(RecordKind::Zero, 2, Extent::new(0, 6 * MAP)),
        &|source| source.write(2, Extent::new(5 * MAP - SECTOR, SECTOR), 13),
    ];
    for (number, step) in steps.iter().enumerate() {
        step(&mut source);
        for frame in source.frames(Compression::None) {
            let appended = rig.append(frame);
            live.advance(&reader, &appended);
        }
        rig.sync();
        let fresh = View::open(&path(&reader, &rig.writer.snapshot(), &[(timeline(1), source.lsn)]), 16 << 20).unwrap();
        for of in 1..=2 {
            let all = |view: &View| view.resolve(disk(of), Extent::new(0, 6 * MAP)).unwrap();
            assert_eq!(all(&live), all(&fresh), "disk {of} after step {number}");
            for at in (0..6).map(|map| map * MAP).flat_map(|at| [at.saturating_sub(BLOCK), at + MAP / 2]) {
                let bytes = |view: &View| {
                    let mut bytes = vec![0xee; 2 * BLOCK as usize];
                    view.read(disk(of), at, &mut bytes, &Nothing).unwrap();
                    bytes
                };
                assert!(bytes(&live) == bytes(&fresh), "disk {of} at byte {at} after step {number}");
            }
        }
    }
}

/// A view remembers files, and none is open because of that: their number is the reader's, and so is when they are closed.
#[test]
fn a_view_holds_no_file_open_that_its_reader_closed() {
    let directory = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(directory.path()).unwrap());
    let mut rig = Rig::create(Arc::clone(&storage));
    rig.start(timeline(1), None, Lsn::ZERO);
    let mut source = Source::new(1, timeline(1));
    source.write(1, Extent::new(0, BLOCK), 7);
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.close();
    let (reader, snapshot) = (rig.reader(), rig.writer.snapshot());
    let view = View::open(&path(&reader, &snapshot, &[(timeline(1), source.lsn)]), 1 << 20).unwrap();
    let read = || {
        let mut block = vec![0; BLOCK as usize];
        view.read(disk(1), 0, &mut block, &Nothing).map(|()| block).map_err(|error| error.to_string())
    };
    let (first, segments) = (read(), rig.writer.manifest().segments.clone());
    assert!(first.is_ok() && read() == first);
    let names: Vec<_> =
        segments.iter().map(|segment| format!("{DIRECTORY}/{}", segment_name(segment.number))).collect();
    // As long as the reader has them open they are read.
    names.iter().for_each(|name| storage.rename(name, &format!("{name}.away")).unwrap());
    assert_eq!(read(), first);
    reader.close(segments.iter().map(|segment| segment.id));
    assert!(read().is_err_and(|error| names.iter().any(|name| error.contains(name.as_str()))));
    names.iter().for_each(|name| storage.rename(&format!("{name}.away"), name).unwrap());
    assert_eq!([read(), read()], [first.clone(), first]);
}

/// A manifest may be on the media before the frames are: of a timeline that was closed meanwhile it does not say where it ends.
#[test]
fn a_closed_timeline_ends_where_it_is_durable_or_nobody_knows() {
    for synced in [true, false] {
        let mut rig = Rig::create(Arc::new(Memory::new()));
        rig.start(timeline(1), None, Lsn::ZERO);
        let mut source = Source::new(7, timeline(1));
        let mut append = |rig: &mut Rig| {
            source.write(1, Extent::new(0, BLOCK), 3);
            source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
            source.lsn
        };
        let first = append(&mut rig);
        rig.sync();
        let last = append(&mut rig);
        if synced {
            rig.sync();
        }
        assert_eq!(rig.writer.durable().lsn(), if synced { last } else { first });
        let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
        let (id, parent, fork) = (timeline(2), Some(timeline(1)), rig.writer.durable().lsn());
        let info = TimelineInfo { id, number: 2, parent, fork, last: None, state, role, opened: WallTime(2) };
        rig.writer.open_timeline(info);
        let closed = rig.writer.manifest().timelines[0];
        assert_eq!((closed.state, closed.last), (TimelineState::Closed, synced.then_some(last)));
    }
}
