//! The brake: where guests write quicker than history is merged, the journal takes nothing for a moment instead of outgrowing its bound.
//!
//! What comes meanwhile waits in memory, where it waits for a slow disk too, and the disk is the merge's alone. It is used
//! while a merge makes room, and never longer: where nothing can be merged the journal grows. Who appends lets go of it by himself when
//! half of what may wait does, so that nothing is ever left out of the journal because of it.

use super::Host;
use super::watch::all_bytes;
use std::sync::atomic::{AtomicBool, Ordering};

/// The part of the bound that the journal may be above it: with what is on its way, less than a quarter comes of it.
const ABOVE: u64 = 16;

/// Whether a merge makes room.
#[derive(Debug, Default)]
pub(super) struct Relief(AtomicBool);

/// A merge that makes room, until it ends, however it does.
pub(super) struct Relieving<'a>(&'a Relief);

impl Relief {
    pub(super) fn begin(&self) -> Relieving<'_> {
        let relieving = Relieving(self);
        relieving.goes_on(true);
        relieving
    }
}

impl Relieving<'_> {
    /// Whether it goes on, or waits for somebody itself.
    pub(super) fn goes_on(&self, does: bool) {
        self.0.0.store(does, Ordering::Relaxed);
    }
}

impl Drop for Relieving<'_> {
    fn drop(&mut self) {
        self.goes_on(false);
    }
}

impl Host {
    /// Whether the journal is so far above its bound that it should take nothing until the merge that is under way has ended.
    pub(crate) fn is_braking(&self) -> bool {
        self.retained.relief.0.load(Ordering::Relaxed) && {
            let replica = self.replica();
            let bound = replica.manifest().policy.max_bytes;
            bound > 0 && all_bytes(&replica) > bound + bound / ABOVE
        }
    }
}
