//! What reading a moment costs that was kept long ago.

use super::kit::disk;
use cdp_core::journal::*;
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::base::{Base, BaseWriter};
use cdp_core::replica::kept::{self, Space};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica};
use cdp_core::trust::Keyring;
use cdp_core::types::*;
use std::sync::Arc;

const NOW: Now = Now { wall: WallTime(1), mono: MonoTime(1) };
const STORES: u64 = 12;
/// Of each store, a block in each.
const SEGMENTS: u64 = 30;
const BLOCKS: u64 = STORES * SEGMENTS;
/// What a reader says of itself, and image and sidecar of the base, for the newest moments and for this one.
const OPEN_MAX: usize = 256 + 4;

fn ids(seed: u64) -> IdSource {
    let mut dice = super::kit::Dice(seed);
    Box::new(move || std::array::from_fn(|_| dice.next() as u8))
}

/// How many files of the directory this process has open.
fn open_files(directory: &std::path::Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(directory))).count()
}

/// A path through many stores with many segments reads every one of them, and does not hold all of them open.
#[test]
fn an_old_kept_moment_is_read_with_few_files_open() {
    let directory = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(directory.path()).unwrap());
    let (replica, keys) = (ReplicaId::new([5; 16]).unwrap(), Keyring::default());
    create(storage.as_ref(), Manifest::new(replica, super::kit::group(), "test")).unwrap();
    let mut writer = BaseWriter::create(storage.as_ref(), replica, disk(1), BLOCKS * BLOCK).unwrap();
    let content: Vec<u8> = (0..BLOCKS).flat_map(|block| [block as u8 | 1; BLOCK as usize]).collect();
    writer.data(&content, Lsn(1)).unwrap();
    let base = writer.finish(storage.as_ref(), Lsn(1)).unwrap().named(Lsn(1));
    let Looked { mut manifest, snapshot, keys: ring, .. } =
        look_with(storage.as_ref(), JOURNAL_DIRECTORY, None, &keys.of_stores()).unwrap();
    let moment = |lsn| {
        let stamp = Stamp { epoch: ClockEpoch(1), time: WallTime(lsn) };
        StampedMoment { timeline: super::kit::timeline(1), lsn: Lsn(lsn), stamp }
    };
    let (name, source) = ("disk".to_owned(), String::new());
    let (id, size, added) = (disk(1), BLOCKS * BLOCK, Lsn::ZERO);
    manifest.disks.push(DiskInfo { id, name, size, source, added, removed: None, stopped: None, base: Some(base) });
    for store in 0..STORES {
        let timeline = Timeline::new([store as u8 + 10; 16]).unwrap();
        kept::create(storage.as_ref(), &manifest, store, timeline, NOW).unwrap();
        manifest.kept.push(KeptInfo {
            number: store,
            moment: moment(store + 1),
            point: None,
            disks: vec![(disk(1), BLOCKS * BLOCK)],
        });
    }
    manifest.retention.oldest = Some(moment(STORES + 1));
    let opened = Base::open(storage.as_ref(), replica, disk(1), base.into()).unwrap();
    for block in 0..BLOCKS {
        // Whoever opens a store goes on in another segment.
        let ids = ids(block + 1);
        let space = Space::open(storage.as_ref(), block % STORES, (0, 0), (&keys, ids), NOW).unwrap();
        space.copy(NOW, disk(1), Extent::new(block * BLOCK, BLOCK), &opened).unwrap();
        space.close(NOW).unwrap();
    }
    // What is read is not what the base has.
    let image = storage.open(&cdp_core::replica::base::file_names(disk(1)).0, true).unwrap();
    image.write_all_at(0, &vec![0; content.len()]).unwrap();
    drop((image, opened));
    let before = open_files(directory.path());
    let replica = Replica::load_with(Arc::clone(&storage), manifest, snapshot, Lsn(u64::MAX), ring).unwrap();
    let view = replica.view(super::kit::timeline(1), Lsn(1)).unwrap();
    let (mut found, mut most) = (vec![0; BLOCK as usize], 0);
    for block in 0..BLOCKS {
        view.read(disk(1), block * BLOCK, &mut found).unwrap();
        assert_eq!(found, content[(block * BLOCK) as usize..][..BLOCK as usize]);
        most = most.max(open_files(directory.path()) - before);
    }
    assert!((200..=OPEN_MAX).contains(&most), "{most} of {BLOCKS} segments were open");
}
