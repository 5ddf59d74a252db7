//! Retention that somebody asks for: applied now, to the end; or what that would do.

use super::retain::{Scope, due, journal_bytes, next_stop, unsealed_bytes};
use super::{Host, document};
use crate::report::{Problem, ProblemClass, Pruned};
use cdp_core::journal::{Manifest, Retention, StampedMoment};
use cdp_core::replica::Replica;
use cdp_core::replica::retention::{self, Held};

impl Host {
    /// Applies retention now, to the end; or says what that would do.
    pub(super) fn prune(&self, dry_run: bool) -> Result<Pruned, Problem> {
        // A merge changes bases: nothing is begun with one that is damaged.
        self.check_bases()?;
        if dry_run {
            return self.would_prune();
        }
        let before = self.journal_bytes();
        if !self.retain(Scope::AtOnce, &|_| !self.is_ending())? {
            let message = "the owner ends: the merge stops where it is";
            let problem = Problem::new(ProblemClass::Refused, "ending", message);
            return Err(problem.hint("nothing is lost by that: the next `cdp protect`, `prune` or `compact` goes on"));
        }
        let freed_bytes = before.saturating_sub(self.journal_bytes());
        let readers = self.holds.plan().held();
        let replica = self.replica();
        let (oldest, held) = (replica.manifest().oldest(), Self::held(&replica, readers));
        pruned(&replica, oldest, &held, Pruned { freed_bytes, ..Pruned::default() })
    }

    /// The same decisions as [`Host::retain`] makes, on a manifest that is changed as those merges would change it.
    fn would_prune(&self) -> Result<Pruned, Problem> {
        let readers = self.holds.plan().held();
        let replica = self.replica();
        let held = Self::held(&replica, readers);
        let (mut manifest, unsealed) = (replica.manifest().clone(), unsealed_bytes(&replica));
        let mut past = self.past(&manifest.retention);
        let before = sealed_bytes(&manifest);
        let next =
            |manifest: &Manifest, past: &Retention| match (manifest.merge, due(manifest, past, (unsealed, 0), true)) {
                // One that was cut off is ended first.
                (Some(to), _) => Ok(Some(to)),
                (None, Some(due)) => next_stop(&replica, manifest, &held, due),
                (None, None) => Ok(None),
            };
        while let Some(to) = next(&manifest, &past).map_err(|error| document::unreadable(&error))? {
            retention::foresee(&mut manifest, to);
            past.oldest = manifest.retention.oldest;
        }
        let freed_bytes = before.saturating_sub(sealed_bytes(&manifest));
        let oldest = manifest.retention.oldest;
        pruned(&replica, oldest, &held, Pruned { freed_bytes, dry_run: true, ..Pruned::default() })
    }

    /// Merges to the end what retention has begun, and all that is due: afterwards nothing waits.
    pub(super) fn compact(&self) -> Result<Pruned, Problem> {
        self.prune(false)
    }

    fn journal_bytes(&self) -> u64 {
        let (sealed, open) = journal_bytes(&self.replica());
        sealed.iter().map(|segment| segment.bytes).sum::<u64>() + open
    }
}

/// What is sealed, and the runs of its index, in bytes.
fn sealed_bytes(manifest: &Manifest) -> u64 {
    let sealed = manifest.segments.iter().filter_map(|segment| segment.summary());
    let runs = manifest.runs.iter().map(|run| run.totals.file_bytes);
    sealed.map(|summary| summary.file_bytes).chain(runs).sum()
}

/// Adds the oldest moment that every write after can be restored from, and how many are kept before it.
fn pruned(replica: &Replica, oldest: Option<StampedMoment>, held: &Held, pruned: Pruned) -> Result<Pruned, Problem> {
    let Some(oldest) = oldest else { return Ok(pruned) };
    let moment = replica.exact(oldest.timeline, oldest.lsn).map_err(|error| document::unresolved(replica, &error))?;
    let holds = held.range(..oldest.lsn).count() as u64;
    Ok(Pruned { oldest: Some(document::at(replica, &moment)), holds, ..pruned })
}
