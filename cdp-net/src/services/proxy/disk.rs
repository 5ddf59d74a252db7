//! The disk of a proxy's cache: one driver for the spools of all timelines, which know their effects by the high bits of their ids.

use crate::drive::{Choice, Driver, start};
use cdp_core::journal::{Effect, EffectId, Executor, Outcome};
use cdp_core::link::spool::Spool;
use cdp_core::media::Disk;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Spools at once, at most: what ids have bits for.
const SPOOLS_MAX: u16 = (1 << 14) - 1;

/// What came of an effect.
pub(super) type Completion = (EffectId, Outcome);

/// See the module's text.
#[derive(Debug)]
pub(super) struct CacheDisk {
    pub(super) root: PathBuf,
    pub(super) storage: Arc<Disk>,
    driver: Mutex<Box<dyn Driver>>,
    /// Those that take part, and where what came of their effects goes: as many as each has under way.
    spools: Mutex<BTreeMap<u16, UnboundedSender<Completion>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One spool's place. Goes when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    disk: Arc<CacheDisk>,
    pub(super) ids: u16,
    completions: UnboundedReceiver<Completion>,
}

impl CacheDisk {
    /// The cache in this directory, which is made.
    pub(super) fn open(root: &Path, runtime: &Handle) -> io::Result<Arc<Self>> {
        let storage = Disk::create(root).map_err(io::Error::other)?;
        let woken = Arc::new(Notify::new());
        let waker = Arc::clone(&woken);
        let executor = Executor::new(Arc::new(storage.clone()));
        let driver = Mutex::new(start(Choice::Threads, executor, Box::new(move || waker.notify_one()))?);
        let spools = Mutex::default();
        let disk = Arc::new(Self { root: root.to_owned(), storage: Arc::new(storage), driver, spools });
        let weak = Arc::downgrade(&disk);
        runtime.spawn(async move {
            loop {
                woken.notified().await;
                let Some(disk) = weak.upgrade() else { return };
                let taken = lock(&disk.driver).take();
                let spools = lock(&disk.spools);
                for (id, outcome) in taken {
                    // One that has ended does not ask any more.
                    let _ = spools.get(&Spool::ids_of(id)).map(|spool| spool.send((id, outcome)));
                }
            }
        });
        Ok(disk)
    }

    /// A place for one more spool; none: there are as many as can be.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let (sender, completions) = unbounded_channel();
        let mut spools = lock(&self.spools);
        let ids = (1..=SPOOLS_MAX).find(|ids| !spools.contains_key(ids))?;
        spools.insert(ids, sender);
        Some(Place { disk: Arc::clone(self), ids, completions })
    }
}

/// What may wait for a disk, on a thread that may.
async fn off_the_way<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Place {
    pub(super) fn carry_out(&self, id: EffectId, effect: Effect) {
        lock(&self.disk.driver).start(id, effect);
    }

    pub(super) async fn completed(&mut self) -> Completion {
        match self.completions.recv().await {
            Some(completion) => completion,
            // The sender goes with this only.
            None => std::future::pending().await,
        }
    }
}

impl Place {
    /// Makes a directory of the cache.
    pub(super) fn make(&self, directory: &str) -> impl Future<Output = io::Result<()>> + use<> {
        let path = self.disk.root.join(directory);
        off_the_way(move || {
            let made = std::fs::create_dir_all(&path);
            made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        })
    }

    /// Removes a directory of the cache in which no file is left, and those around it that are empty then.
    pub(super) async fn remove(&self, directory: &str) {
        let (mut path, disk) = (self.disk.root.join(directory), Arc::clone(&self.disk));
        let removing = off_the_way(move || {
            while path != disk.root && std::fs::remove_dir(&path).is_ok() && path.pop() {}
            Ok(())
        });
        // One that is not empty, or not there, stays as it is.
        let _ = removing.await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.disk.spools).remove(&self.ids);
    }
}
