//! The keeper at its end of a link: what a filter at the other end asks, by the numbers of its calls.

use super::{Keeper, lock};
use crate::far::{
    Begin, CallKind, Far, Marked, Near, Range, SeedBegin, SeedBegun, SeedEnd, SeedHandle, SeedOf, Seeding, Told, Zeros,
    answer, question, tell, tell_with,
};
use crate::report::Problem;
use cdp_core::link::message::{Answer, Call};
use cdp_core::types::DiskId;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// A keeper, and the filter that asks it.
pub struct Calls {
    keeper: Arc<Keeper>,
    near: Arc<dyn Near>,
    /// How it began.
    begun: Mutex<Option<Begin>>,
    /// First copies that are under way; at most one for each disk of the group.
    copies: Mutex<BTreeMap<DiskId, Copy>>,
    /// Held while one begins. It is asked for again where a line was cut meanwhile, and two that write the same files ruin both.
    beginning: Mutex<()>,
}

/// A first copy that is under way.
struct Copy {
    /// The number of its first seed.
    first: u64,
    /// Who writes to it has it for himself meanwhile.
    seeding: Arc<Mutex<Option<Box<dyn Seeding>>>>,
    /// What both ends see of it.
    handle: SeedHandle,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("keeper", &self.keeper).finish_non_exhaustive()
    }
}

impl Calls {
    /// Of a filter that `near` leads to.
    #[must_use]
    pub fn new(keeper: Arc<Keeper>, near: Arc<dyn Near>) -> Self {
        Self { keeper, near, begun: Mutex::default(), copies: Mutex::default(), beginning: Mutex::default() }
    }

    /// Answers a call. May wait for the replica's media, or for the filter's answer to a call in turn: not for the link's own threads.
    #[must_use]
    pub fn answer(&self, call: &Call) -> Answer {
        let told = CallKind::of(call.kind).filter(|kind| kind.is_of_filter()).map(|kind| self.told(kind, call));
        answer(call, told)
    }

    fn told(&self, kind: CallKind, call: &Call) -> Told {
        let keeper = self.keeper.as_ref();
        match kind {
            CallKind::Find => tell(&keeper.find(&question(call)?)?),
            CallKind::Begin => tell(&self.begin(question(call)?)?),
            CallKind::Trust => tell(&keeper.trust(question(call)?)?),
            CallKind::Sync => {
                keeper.sync();
                tell(&())
            }
            CallKind::Reach => tell(&keeper.reach(question(call)?)),
            CallKind::Group => tell(&keeper.group()?),
            CallKind::Disks => tell(&keeper.edit_disks(question(call)?)?),
            CallKind::Mark => tell(&Marked { lsn: keeper.mark(&question(call)?)? }),
            CallKind::Zeros => {
                let Range { disk, range } = question(call)?;
                tell(&Zeros { zeros: keeper.is_zero(disk, range) })
            }
            CallKind::Digests => {
                let (told, hashes) = keeper.digests(&question(call)?);
                tell_with(&told, hashes)
            }
            CallKind::SeedBegin => tell(&self.begin_copy(&question(call)?)?),
            CallKind::SeedEnd => {
                let SeedOf { disk } = question(call)?;
                tell(&self.end_copy(disk)?)
            }
            CallKind::Seeded => tell(&keeper.seeded(&question(call)?)?),
            CallKind::Quiesce => {
                keeper.quiesce();
                tell(&())
            }
            CallKind::Close => tell(&keeper.close(&question(call)?)),
            CallKind::Standing => tell(&keeper.standing()),
            CallKind::Sums => tell(&keeper.sums()),
            kind => unreachable!("{kind:?} is not asked by filters: that was taken out above"),
        }
    }

    /// The same answer as often as the same is asked.
    fn begin(&self, begin: Begin) -> Result<(), Problem> {
        let mut begun = lock(&self.begun);
        if begun.as_ref() == Some(&begin) {
            return Ok(());
        }
        self.keeper.begin(&begin, Arc::clone(&self.near))?;
        *begun = Some(begin);
        Ok(())
    }

    /// Where none is under way it has ended before, or with a session that was lost.
    fn end_copy(&self, disk: DiskId) -> Result<SeedEnd, Problem> {
        let copy = lock(&self.copies).remove(&disk).and_then(|copy| lock(&copy.seeding).take());
        match copy {
            Some(copy) => match copy.end()? {
                // By this side: the filter's own wish does not come here.
                SeedEnd::Stopped => Ok(SeedEnd::Again),
                end => Ok(end),
            },
            None if self.keeper.is_copied(disk) => Ok(SeedEnd::Whole),
            None => Ok(SeedEnd::Again),
        }
    }

    /// One that was under way is given up; what is durable of it stays.
    fn begin_copy(&self, seed: &SeedBegin) -> Result<SeedBegun, Problem> {
        let _beginning = lock(&self.beginning);
        self.stop_copy(seed.disk);
        let handle = SeedHandle::default();
        let seeding = self.keeper.seed(seed, handle.clone())?;
        let begun = SeedBegun { position: seeding.position() };
        let copy = Copy { first: seed.first, seeding: Arc::new(Mutex::new(Some(seeding))), handle };
        lock(&self.copies).insert(seed.disk, copy);
        Ok(begun)
    }

    fn stop_copy(&self, disk: DiskId) {
        let Some(Copy { seeding, handle, .. }) = lock(&self.copies).remove(&disk) else { return };
        handle.stop.store(true, Ordering::Relaxed);
        let seeding = lock(&seeding).take();
        drop(seeding);
    }

    /// Gives the seed with this number to who writes the copy, in its order; waits for room. Whether more is of use. One of an attempt
    /// that was given up is passed over, and so is one that does not belong where the copy is, or is no piece of the disk there: what is
    /// durable is gone on with.
    pub fn copy(&self, disk: DiskId, number: u64, offset: u64, write: impl FnOnce(&mut dyn Seeding) -> bool) -> bool {
        let found = lock(&self.copies).get(&disk).map(|copy| (copy.first, Arc::clone(&copy.seeding)));
        let Some((first, seeding)) = found else { return false };
        number < first
            || lock(&seeding).as_mut().is_some_and(|seeding| seeding.position() != offset || write(seeding.as_mut()))
    }

    /// Bytes of a first copy that are written, holes counted.
    #[must_use]
    pub fn copied(&self, disk: DiskId) -> u64 {
        let copies = lock(&self.copies);
        copies.get(&disk).map_or(0, |copy| copy.handle.done.load(Ordering::Relaxed))
    }

    /// The link's session has ended: what was under way goes on in the next one, where it is durable.
    pub fn end(&self) {
        let disks: Vec<_> = lock(&self.copies).keys().copied().collect();
        disks.into_iter().for_each(|disk| self.stop_copy(disk));
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
