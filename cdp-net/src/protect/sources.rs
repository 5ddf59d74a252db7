//! The open sources of a protection: which there are changes while it runs.

use super::disk::ProtectedDisk;
use super::engine::Engine;
use crate::device::Device;
use crate::file_device::FileDevice;
use crate::nbd::Export;
use crate::source::{Facts, Source};
use cdp_core::types::DiskId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A source that is protected.
pub(super) struct Held {
    pub(super) name: String,
    /// Keeps it locked.
    pub(super) source: Source,
    pub(super) file: Arc<FileDevice>,
    /// The file, or what a test put around it.
    pub(super) device: Arc<dyn Device>,
    /// What front ends serve.
    served: Arc<ProtectedDisk>,
    /// Ends its first copy.
    pub(super) stop: Arc<AtomicBool>,
}

/// A source that was opened.
pub(super) struct OpenSource {
    pub(super) name: String,
    pub(super) source: Source,
    pub(super) file: Arc<FileDevice>,
    pub(super) device: Arc<dyn Device>,
}

impl OpenSource {
    /// Takes an open source over.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn new(name: &str, source: Source) -> std::io::Result<Self> {
        let file = Arc::new(FileDevice::new(source.file().try_clone()?, false)?);
        Ok(Self { name: name.to_owned(), source, device: Arc::clone(&file) as _, file })
    }
}

/// The sources by disk. At most as many as a group may have disks.
#[derive(Default)]
pub(super) struct Sources(RwLock<BTreeMap<DiskId, Arc<Held>>>);

impl Sources {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<DiskId, Arc<Held>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<DiskId, Arc<Held>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a disk's source, to be served through the filter.
    pub(super) fn insert(&self, disk: DiskId, open: OpenSource, engine: &Arc<Engine>) {
        let OpenSource { name, source, file, device } = open;
        let served = Arc::new(ProtectedDisk::new(disk, Arc::clone(&device), Arc::clone(engine)));
        let held = Held { name, source, file, device, served, stop: Arc::default() };
        self.write().insert(disk, Arc::new(held));
    }

    /// A disk's source.
    pub(super) fn get(&self, disk: DiskId) -> Option<Arc<Held>> {
        self.read().get(&disk).cloned()
    }

    /// The disk of that name.
    pub(super) fn named(&self, name: &str) -> Option<(DiskId, Arc<Held>)> {
        self.read().iter().find(|(_, held)| held.name == name).map(|(disk, held)| (*disk, Arc::clone(held)))
    }

    /// Lets a source go: who still has its export gets errors.
    pub(super) fn remove(&self, disk: DiskId) {
        if let Some(held) = self.write().remove(&disk) {
            held.served.end();
        }
    }

    /// The disks, in their order.
    pub(super) fn disks(&self) -> Vec<DiskId> {
        self.read().keys().copied().collect()
    }

    /// Bytes of all disks.
    pub(super) fn bytes(&self) -> u64 {
        self.read().values().map(|held| held.device.size()).sum()
    }

    /// What front ends serve, the first disk first.
    pub(super) fn exports(&self) -> Vec<Export> {
        let export = |held: &Arc<Held>| Export::new(held.name.clone(), Arc::clone(&held.served) as Arc<dyn Device>);
        self.read().values().map(export).collect()
    }

    /// Ends all first copies.
    pub(super) fn stop_copies(&self) {
        self.read().values().for_each(|held| held.stop.store(true, Ordering::Relaxed));
    }

    /// What is known of each source, as the activity log keeps it.
    pub(super) fn facts(&self) -> Vec<(DiskId, Vec<u8>)> {
        let of = |held: &Held| held.source.facts().ok().flatten().map(Facts::to_bytes);
        self.read().iter().filter_map(|(disk, held)| Some((*disk, of(held)?.to_vec()))).collect()
    }
}
