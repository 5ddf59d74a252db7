//! First copies as somebody asks for them who does not mean well, or whose line is cut.

use super::*;
use crate::far::{DiskOrder, DisksEdit, SizeOf};
use crate::far::{Facts, FilterPolicy, MarkOrder, NewDisk, NewGroup, Origin, UNREACHABLE};
use crate::keeper::{Home, KeeperOptions};
use crate::owner::{Owner, PolicyChange};
use crate::report::DiskChanged;
use bytes::Bytes;
use cdp_core::capture::Room;
use cdp_core::journal::read_manifest;
use cdp_core::media::{Disk, Faults, Faulty, Operation, Storage};
use cdp_core::replica::base::{Base, file_names};
use cdp_core::types::{BLOCK, DISK_MAX, GroupId, Lsn, Timeline};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const SIZE: u64 = (5 << 20) + 512;
const PIECE: u64 = 128 << 10;

/// A filter that hears nothing.
struct Deaf;

impl Near for Deaf {
    fn durable(&self, _: Lsn) {}
    fn stored(&self, _: Lsn) {}
    fn capacity(&self, _: u64) {}
    fn room(&self, _: Room) {}
    fn mark(&self, _: &MarkOrder) -> Result<Lsn, Problem> {
        Err(Problem::default())
    }
    fn change_disk(&self, _: &DiskOrder) -> Result<DiskChanged, Problem> {
        Err(Problem::default())
    }
    fn facts(&self) -> Facts {
        Facts::default()
    }
    fn policy(&self, _: FilterPolicy) {}
}

/// A keeper of a group with a disk that is not copied yet.
struct Scene {
    calls: Arc<Calls>,
    storage: Arc<dyn Storage>,
    faults: Faults,
    content: Vec<u8>,
    _directory: tempfile::TempDir,
}

fn disk() -> DiskId {
    DiskId::new(1).unwrap()
}

fn seed(size: u64) -> SeedBegin {
    SeedBegin { disk: disk(), size, first: 1 }
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (path, faults) = (directory.path().join("replica"), Faults::default());
        let disk_storage = Arc::new(Disk::create(&path).unwrap());
        let storage: Arc<dyn Storage> = Arc::new(Faulty::new(disk_storage, faults.clone()));
        let home = Home { owner: Arc::new(Owner::acquire(&path).unwrap()), storage: Arc::clone(&storage) };
        let options = KeeperOptions { segment_bytes: 1 << 20, seed_sync_bytes: 1 << 20, ..KeeperOptions::default() };
        let calls = Arc::new(Calls::new(Keeper::new(home, options), Arc::new(Deaf)));
        let (id, name, source, size, added) = (disk(), "disk".into(), "disk.img".into(), SIZE, Lsn::ZERO);
        let disks = vec![NewDisk { id, name, size, source, added }];
        let begin = Begin {
            new: Some(NewGroup { group: GroupId::new([3; 16]).unwrap(), name: "group".into(), disks }),
            timeline: Timeline::new([4; 16]).unwrap(),
            origin: Origin::First,
            reserved: Lsn(1),
            dropped: Vec::new(),
            joining: Vec::new(),
            sizes: Vec::new(),
            policy: PolicyChange { reserve_bytes: Some(0), ..PolicyChange::default() },
            stored: false,
        };
        calls.begin(begin).unwrap();
        let content: Vec<u8> = (0..SIZE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        Self { calls, storage, faults, content, _directory: directory }
    }

    /// As a filter does it: again where nobody is there for now.
    fn begin(&self) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.calls.begin_copy(&seed(SIZE)) {
                Ok(begun) => return begun.position,
                Err(problem) if problem.code == UNREACHABLE && Instant::now() < deadline => {}
                Err(problem) => panic!("{problem}"),
            }
        }
    }

    /// Gives what lies between; it is written by and by.
    fn give(&self, from: u64, to: u64) {
        for at in (from..to).step_by(PIECE as usize) {
            let piece = Bytes::copy_from_slice(&self.content[at as usize..(at + PIECE).min(to) as usize]);
            self.calls.copy(disk(), 1, at, |copy| copy.data(vec![piece], Lsn(1)));
        }
    }

    /// Copies so much, of which something is durable when the line is cut.
    fn copied(&self, to: u64) -> u64 {
        assert_eq!(self.begin(), 0);
        self.give(0, to);
        wait_for("what came to be written", || self.calls.copied(disk()) == to);
        self.calls.end();
        let manifest = read_manifest(self.storage.as_ref()).unwrap();
        let done = manifest.seeding_of(disk()).unwrap().point.done;
        assert!(done > 0 && done <= to);
        done
    }

    /// The copy is whole, and holds what was given.
    fn whole(&self) {
        assert_eq!(self.calls.end_copy(disk()), Ok(SeedEnd::Whole));
        let running = self.calls.keeper.running().unwrap();
        let root = lock(&running.roots)[&disk()];
        let base = Base::open(self.storage.as_ref(), running.replica, disk(), root).unwrap();
        let mut found = vec![0; SIZE as usize];
        base.read(0, &mut found).unwrap();
        assert!(found == self.content);
    }

    /// Spoils what was read back of the copy.
    fn spoil(&self) {
        let sidecar = self.storage.open(&file_names(disk()).1, true).unwrap();
        let mut byte = [0];
        sidecar.read_exact_at(100, &mut byte).unwrap();
        sidecar.write_all_at(100, &[byte[0] ^ 1]).unwrap();
    }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_is_no_piece_of_the_disk_is_passed_over_and_the_copy_goes_on_without_it() {
    let scene = Scene::new();
    scene.begin();
    let middle = 1 << 20;
    for (from, to) in [(0, middle), (middle, SIZE)] {
        let left = SIZE - from;
        for length in [left + 1, left + BLOCK, 512, BLOCK + 512, DISK_MAX - from, u64::MAX] {
            scene.calls.copy(disk(), 1, from, |copy| copy.zeros(length, Lsn(1)));
        }
        let long = |length: u64| Bytes::from(vec![9; length as usize]);
        for pieces in
            [vec![long(left + BLOCK - 512)], vec![long(512), long(BLOCK - 512)], vec![long(BLOCK), long(left)]]
        {
            scene.calls.copy(disk(), 1, from, |copy| copy.data(pieces, Lsn(1)));
        }
        scene.give(from, to);
    }
    scene.whole();
}

#[test]
fn a_copy_that_nobody_could_write_down_is_refused_and_the_replica_can_be_read_on() {
    let scene = Scene::new();
    for size in [0, SIZE - 512, SIZE + 512, DISK_MAX, DISK_MAX + 1, 1 << 60, u64::MAX] {
        let refused = scene.calls.begin_copy(&seed(size)).unwrap_err();
        assert_eq!(refused.code, "bounds", "{size}: {refused}");
    }
    let stranger = SeedBegin { disk: DiskId::new(9).unwrap(), ..seed(SIZE) };
    assert_eq!(scene.calls.begin_copy(&stranger).unwrap_err().code, "not-uncopied");
    assert_eq!(read_manifest(scene.storage.as_ref()).unwrap().seeding, []);
    scene.begin();
    scene.give(0, SIZE);
    scene.whole();
}

#[test]
fn the_base_of_a_disk_is_not_begun_anew() {
    let scene = Scene::new();
    scene.begin();
    scene.give(0, SIZE);
    scene.whole();
    let root = lock(&scene.calls.keeper.running().unwrap().roots)[&disk()];
    scene.calls.keeper.seeded(&crate::far::Seeded { disks: vec![disk()] }).unwrap();
    assert_eq!(scene.calls.begin_copy(&seed(SIZE)).unwrap_err().code, "not-uncopied");
    let running = scene.calls.keeper.running().unwrap();
    let base = Base::open(scene.storage.as_ref(), running.replica, disk(), root).unwrap();
    let mut found = vec![0; SIZE as usize];
    base.read(0, &mut found).unwrap();
    assert!(found == scene.content);
}

#[test]
fn hostile_edits_of_disks_are_refused_and_the_replica_can_be_read_on() {
    let scene = Scene::new();
    let far = &scene.calls.keeper;
    let stranger = DiskId::new(77).unwrap();
    assert!(far.edit_disks(DisksEdit::Announce(SizeOf { disk: stranger, size: 512 })).is_err());
    assert!(far.edit_disks(DisksEdit::Announce(SizeOf { disk: disk(), size: DISK_MAX + 1 })).is_err());
    assert!(far.edit_disks(DisksEdit::Left { disk: disk(), lsn: Lsn::ZERO }).is_err());
    far.edit_disks(DisksEdit::Announce(SizeOf { disk: disk(), size: DISK_MAX })).unwrap();
    assert_eq!(read_manifest(scene.storage.as_ref()).unwrap().resizing.len(), 1);
}

#[test]
fn of_two_that_begin_the_same_copy_at_once_one_writes() {
    let scene = Scene::new();
    let hold = scene.faults.hold(Operation::Create, "1.img");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| scene.begin());
        }
        wait_for("one to make its files", || scene.faults.hanging() > 0);
        for _ in 0..500 {
            assert!(scene.faults.hanging() < 2, "both make their files");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(hold);
    });
    scene.give(0, SIZE);
    scene.whole();
}

#[test]
fn who_begins_does_not_wait_until_a_long_copy_is_read_back() {
    let scene = Scene::new();
    let done = scene.copied(4 << 20);
    let hold = scene.faults.hold(Operation::Read, "1.sum");
    let (told, heard) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| told.send(scene.begin()));
        let position = heard.recv_timeout(Duration::from_secs(20));
        assert_eq!(scene.faults.hanging(), 1, "it is being read back");
        assert_eq!(position, Ok(done));
        scope.spawn(|| scene.give(done, SIZE));
        drop(hold);
    });
    scene.whole();
}

#[test]
fn a_long_copy_that_turns_out_to_be_damaged_ends_and_the_next_attempt_begins_anew() {
    let scene = Scene::new();
    let done = scene.copied(4 << 20);
    scene.spoil();
    let hold = scene.faults.hold(Operation::Read, "1.sum");
    assert_eq!(scene.begin(), done);
    drop(hold);
    scene.give(done, SIZE);
    assert_eq!(scene.calls.end_copy(disk()), Ok(SeedEnd::Again));
    assert_eq!(scene.begin(), 0);
    scene.give(0, SIZE);
    scene.whole();
}

#[test]
fn a_copy_that_is_soon_found_to_be_damaged_begins_anew_at_once() {
    let scene = Scene::new();
    scene.copied(4 << 20);
    scene.spoil();
    assert_eq!(scene.begin(), 0);
    scene.give(0, SIZE);
    scene.whole();
}
