//! A replica that takes everything at once and keeps nothing of it: what capture alone costs.

use cdp_core::frame::RawFrame;
use cdp_core::types::{DiskId, Extent, Lsn};
use cdp_net::far::{
    Begin, Close, Closed, DisksEdit, Far, Find, Found, Frames, Group, Lends, MarkOrder, Near, Reach, Reached,
    SeedBegin, SeedHandle, Seeded, Seeding, Standing, Sums, Trust,
};
use cdp_net::keeper::{Home, Keeper, KeeperOptions};
use cdp_net::report::{History, Problem};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

type Failure = Box<dyn std::error::Error>;

/// The first copy goes to a real one, and frames do until that is whole.
pub(crate) struct Null {
    keeper: Arc<Keeper>,
    near: Arc<Mutex<Option<Arc<dyn Near>>>>,
    /// Says that the first copy is whole.
    seeded: Arc<std::sync::atomic::AtomicBool>,
}

impl Null {
    pub(crate) fn new(directory: &Path) -> Result<Self, Failure> {
        let keeper = Keeper::new(Home::acquire(directory)?, KeeperOptions::default());
        Ok(Self { keeper, near: Arc::default(), seeded: Arc::default() })
    }

    /// Says of each LSN that it is durable.
    fn acks(&self) -> Sender<Lsn> {
        let (sender, lsns) = channel::<Lsn>();
        let near = Arc::clone(&self.near);
        std::thread::spawn(move || {
            while let Ok(mut lsn) = lsns.recv() {
                lsn = lsns.try_iter().last().unwrap_or(lsn);
                if let Some(near) = near.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                    near.durable(lsn);
                }
            }
        });
        sender
    }
}

impl Far for Null {
    fn find(&self, find: &Find) -> Result<Option<Found>, Problem> {
        self.keeper.find(find)
    }

    fn begin(&self, begin: &Begin, near: Arc<dyn Near>) -> Result<(), Problem> {
        *self.near.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&near));
        Far::begin(self.keeper.as_ref(), begin, near)
    }

    fn frames(&self) -> Frames {
        let (frames, acks, seeded) = (self.keeper.frames(), self.acks(), Arc::clone(&self.seeded));
        Box::new(move |frame: RawFrame| {
            if seeded.load(std::sync::atomic::Ordering::Relaxed) {
                // Whoever acknowledges ends with this process.
                let _ = acks.send(frame.last_lsn());
            } else {
                frames(frame);
            }
        })
    }

    fn trust(&self, trust: Trust) -> Result<(), Problem> {
        self.keeper.trust(trust)
    }

    fn sync(&self) {
        self.keeper.sync();
    }

    fn reach(&self, reach: Reach) -> Reached {
        Far::reach(self.keeper.as_ref(), reach)
    }

    fn group(&self) -> Result<Group, Problem> {
        self.keeper.group()
    }

    fn edit_disks(&self, edit: DisksEdit) -> Result<(), Problem> {
        self.keeper.edit_disks(edit)
    }

    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        self.keeper.mark(order)
    }

    fn is_zero(&self, disk: DiskId, range: Extent) -> bool {
        self.keeper.is_zero(disk, range)
    }

    fn differing(&self, disk: DiskId, range: Extent, at: Lsn, data: &[u8]) -> Option<Vec<Extent>> {
        self.keeper.differing(disk, range, at, data)
    }

    fn seed(&self, seed: &SeedBegin, handle: SeedHandle) -> Result<Box<dyn Seeding>, Problem> {
        self.keeper.seed(seed, handle)
    }

    fn seeded(&self, seeded: &Seeded) -> Result<(), Problem> {
        self.keeper.seeded(seeded)?;
        self.seeded.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn patience(&self, patience: Duration) {
        self.keeper.patience(patience);
    }

    fn quiesce(&self) {
        self.keeper.quiesce();
    }

    fn close(&self, _: &Close) -> Closed {
        Closed::Stored
    }

    fn end(&self) {
        self.keeper.end();
    }

    fn standing(&self) -> Standing {
        self.keeper.standing()
    }

    fn sums(&self) -> Sums {
        self.keeper.sums()
    }

    fn history(&self) -> Option<History> {
        self.keeper.history()
    }

    fn failure(&self) -> Option<String> {
        self.keeper.failure()
    }

    fn broken(&self) -> Option<String> {
        self.keeper.broken()
    }

    fn lends(&self) -> Option<Lends> {
        self.keeper.lends()
    }

    fn trouble(&self) -> Option<String> {
        self.keeper.trouble()
    }
}
