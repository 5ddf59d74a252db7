//! Blocks that a merge which did not come to its end left torn, and the next tries of the same merge.

use super::kit::*;
use cdp_core::frame::Compression;
use cdp_core::journal::*;
use cdp_core::media::*;
use cdp_core::replica::base::{Base, BaseWriter};
use cdp_core::replica::merge::Merge;
use cdp_core::replica::{BaseFile, Bases};
use cdp_core::types::*;
use std::sync::Arc;

const SIZE: u64 = 3 * BLOCK;

/// The next try finds blocks as the one before left them, and no room for its own records of what stays of them.
#[test]
fn a_merge_done_again_that_fails_leaves_torn_blocks_readable() {
    AtRest::both().iter().for_each(torn_blocks_stay_readable);
}

fn torn_blocks_stay_readable(at_rest: &AtRest) {
    let faults = Faults::default();
    let storage: Arc<dyn Storage> = Arc::new(Faulty::new(Arc::new(Memory::new()), faults.clone()));
    let mut rig = Rig::create_at_rest(Arc::clone(&storage), at_rest);
    rig.drain();
    let replica = rig.writer.manifest().replica;
    let mut writer = BaseWriter::create(storage.as_ref(), replica, disk(1), SIZE).unwrap();
    if at_rest.key.is_some() {
        writer = writer.at_rest(&rig.keys).unwrap();
    }
    writer.data(&[0x11; SIZE as usize], Lsn::ZERO).unwrap();
    let old = writer.finish(storage.as_ref(), Lsn::ZERO).unwrap();
    let (merged, base) = (Lsn(2), Some(old.named(Lsn::ZERO)));
    let info =
        StampedMoment { timeline: timeline(1), lsn: merged, stamp: Stamp { epoch: ClockEpoch(1), time: WallTime(1) } };
    rig.writer.edit(|manifest| {
        let (name, source, added) = ("disk".to_owned(), String::new(), Lsn::ZERO);
        let (id, removed, stopped) = (disk(1), None, None);
        manifest.disks.push(DiskInfo { id, name, size: SIZE, source, added, removed, stopped, base });
        manifest.merge = Some(info);
    });
    rig.start(timeline(1), None, Lsn::ZERO);
    // A part of the first block and of the last.
    let mut source = Source::new(1, timeline(1));
    source.write(1, Extent::new(1024, 1024), 4);
    source.write(1, Extent::new(2 * BLOCK + 512, 512), 5);
    source.frames(Compression::None).into_iter().for_each(|frame| drop(rig.append(frame)));
    rig.sync();
    let mut expected = vec![0x11; SIZE as usize];
    for (.., extent, data) in &source.model.history {
        expected[extent.offset as usize..extent.end() as usize].copy_from_slice(data.as_ref().unwrap());
    }
    let mut bases = Bases::default();
    let base = Base::open_with(storage.as_ref(), replica, disk(1), old, Arc::clone(&rig.keys)).unwrap();
    bases.insert(disk(1), Arc::new(base));
    let bases = Arc::new(bases.changed_by(info));
    let path = path(&rig.reader(), &rig.writer.snapshot(), &[(timeline(1), merged)]);
    let now = Now { wall: WallTime(1), mono: MonoTime(1) };
    let merge = || Merge::begin(&storage, rig.writer.manifest(), info, &path, &bases, None).unwrap();
    let read = || {
        let mut found = vec![0; SIZE as usize];
        View::open(&path, 1 << 20).unwrap().read(disk(1), 0, &mut found, bases.as_ref()).map(|()| found)
    };
    // The first try writes every block and does not come to its end.
    assert!(!merge().step(now, 1 << 20).unwrap());
    assert!(read().unwrap() == expected);
    for operation in [Operation::Write, Operation::Sync] {
        faults.add(Fault::always(operation, &BaseFile::Rests.path(), MediaErrorKind::NoSpace));
        assert!(merge().step(now, 1 << 20).unwrap_err().is_no_space(), "{operation:?}");
        let found = read();
        assert!(found.is_ok_and(|found| found == expected), "after a failed {operation:?}");
        faults.clear();
    }
    // And with room it comes to its end.
    let mut last = merge();
    assert!(!last.step(now, 1 << 20).unwrap());
    let root = last.finish(now).unwrap()[0].1.into();
    let base = Base::open_with(storage.as_ref(), replica, disk(1), root, Arc::clone(&rig.keys)).unwrap();
    let mut found = vec![0; SIZE as usize];
    base.read(0, &mut found).unwrap();
    assert!(found == expected);
}
