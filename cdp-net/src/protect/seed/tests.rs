//! The first copy on media that run out of room at any of its writes and syncs.

use super::*;
use crate::far::SeedHandle;
use crate::file_device::FileDevice;
use crate::keeper::{Job, Lack, begin_seed};
use cdp_core::journal::{DiskInfo, Manifest, SeedingInfo};
use cdp_core::media::{Fault, Faults, Faulty, MediaErrorKind, Memory, Operation, Storage};
use cdp_core::replica::base::Base;
use cdp_core::replica::sidecar::Root;
use cdp_core::types::{DiskId, GroupId, ReplicaId, Timeline};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Mutex;

const SIZE: usize = 5 << 20;

struct Scene {
    content: Vec<u8>,
    device: FileDevice,
    memory: Memory,
    faults: Faults,
    storage: Arc<dyn Storage>,
    progress: Progress,
    lack: Arc<Lack>,
    roots: Arc<Mutex<BTreeMap<DiskId, Root>>>,
    manifest: Arc<Mutex<Manifest>>,
    stop: Arc<AtomicBool>,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let mut content: Vec<u8> = (0..SIZE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        content[1 << 20..2 << 20].fill(0);
        std::fs::write(&path, &content).unwrap();
        let device = FileDevice::new(File::options().read(true).write(true).open(&path).unwrap(), false).unwrap();
        let (memory, faults) = (Memory::new(), Faults::default());
        let storage: Arc<dyn Storage> = Arc::new(Faulty::new(Arc::new(memory.clone()), faults.clone()));
        let (progress, stop) = (Progress::default(), Arc::default());
        let (lack, roots, (replica, id)) = (Arc::default(), Arc::default(), Self::ids());
        let mut manifest = Manifest::new(replica, GroupId::new([8; 16]).unwrap(), "group");
        let (name, source, size) = ("disk".into(), "disk.img".into(), SIZE as u64);
        let (removed, stopped, base) = (None, None, None);
        manifest.disks.push(DiskInfo { id, name, size, source, added: Lsn(0), removed, stopped, base });
        let manifest = Arc::new(Mutex::new(manifest));
        Self { content, device, memory, faults, storage, progress, lack, roots, manifest, stop, _directory: directory }
    }

    fn ids() -> (ReplicaId, DiskId) {
        (ReplicaId::new([7; 16]).unwrap(), DiskId::new(1).unwrap())
    }

    fn run(&self) -> Result<Option<Root>, Problem> {
        let (replica, disk) = Self::ids();
        let (progress, stop) = (&self.progress, &self.stop);
        let begin = |size| {
            begin_seed(Job {
                storage: Arc::clone(&self.storage),
                replica,
                disk,
                size,
                reserve: 0,
                quota_left: Box::new(|| None),
                keys: None,
                lack: Arc::clone(&self.lack),
                roots: Arc::clone(&self.roots),
                alive: Arc::default(),
                handle: SeedHandle { stop: Arc::clone(stop), done: Arc::clone(&progress.done) },
                info: SeedingInfo::new(disk, size, Timeline::new([4; 16]).unwrap()),
                edit: {
                    let manifest = Arc::clone(&self.manifest);
                    Arc::new(move |edit| {
                        edit(&mut manifest.lock().unwrap());
                        Ok(())
                    })
                },
                sync_every: 1 << 20,
            })
        };
        let whole = run(&Seed { source: &self.device, lsn: &|| Lsn(3), begin: &begin, progress, stop })?;
        let root = self.roots.lock().unwrap().get(&disk).copied();
        assert_eq!(whole, root.is_some());
        Ok(root)
    }

    fn check(&self, root: Root, context: &str) {
        let (replica, disk) = Self::ids();
        let base = Base::open(&self.memory, replica, disk, root).unwrap();
        let mut found = vec![1; SIZE];
        base.read(0, &mut found).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(found == self.content, "{context}");
        assert_eq!(self.progress.done.load(Ordering::Relaxed), SIZE as u64, "{context}");
        assert_eq!(self.lack.get(), None, "{context}");
    }
}

#[test]
fn a_first_copy_waits_for_room_at_whatever_it_does() {
    for (operation, path, after) in [
        (Operation::Create, ".img", 0),
        (Operation::Create, ".sum", 0),
        (Operation::Create, ".dig1", 0),
        (Operation::SetLength, ".img", 0),
        (Operation::Write, ".img", 0),
        (Operation::Write, ".img", 1),
        (Operation::Write, ".sum", 0),
        (Operation::Write, ".sum", 2),
        (Operation::Write, ".dig1", 0),
        (Operation::Sync, ".img", 0),
        (Operation::Sync, ".sum", 0),
        (Operation::Sync, ".dig1", 0),
        (Operation::SyncDir, "base", 0),
        (Operation::SyncDir, "base", 1),
    ] {
        let scene = Scene::new();
        let fault = Fault::once(operation, path, MediaErrorKind::NoSpace);
        scene.faults.add(Fault { after, ..fault });
        let context = format!("{operation} {path} {after}");
        let root = scene.run().unwrap_or_else(|error| panic!("{context}: {error}")).expect("nobody stops it");
        assert_eq!(scene.faults.fired(), 1, "{context}");
        scene.check(root, &context);
    }
}

#[test]
fn a_first_copy_that_waits_for_room_says_so_and_can_be_stopped() {
    let scene = Scene::new();
    scene.faults.add(Fault::always(Operation::Write, ".img", MediaErrorKind::NoSpace));
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| scene.run());
        while scene.lack.get().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        scene.stop.store(true, Ordering::Relaxed);
        assert!(copy.join().unwrap().unwrap().is_none());
    });
}

#[test]
fn media_that_fail_otherwise_are_not_waited_for() {
    for operation in [Operation::Write, Operation::Sync] {
        let scene = Scene::new();
        scene.faults.add(Fault::once(operation, ".img", MediaErrorKind::Io));
        let problem = scene.run().unwrap_err();
        assert!(problem.code == "protect" && problem.message.contains(".img"), "{problem}");
        assert!(scene.faults.fired() == 1);
    }
}
