//! What is shown of a protection, wherever its replica is.

use crate::json::{Gap, Lack, Point, State};
use cdp_core::capture;
use cdp_core::replica::catalogue::Branch;
use cdp_core::types::{Lsn, WallTime};
use cdp_net::host::document;
use cdp_net::nbd;
use cdp_net::protect::{Notice, Opened, Progress, Protector};
use cdp_net::services::remote::RemoteProtection;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// What threads of a protection tell.
pub(super) enum Told {
    /// What happens.
    Notice(Notice),
    /// It began later than the disks were served.
    Began(Opened),
    /// The state has this reason.
    Because(String),
}

/// A protection as it is shown.
pub(super) trait Shown {
    /// What is served.
    fn exports(&self) -> Vec<nbd::Export>;

    /// Where that is, by name.
    fn set_uris(&self, uris: BTreeMap<String, String>);

    /// Bytes of a first copy that are done, and all of them.
    fn progress(&self) -> (u64, u64);

    /// What is being done.
    fn state(&self) -> State;

    /// The same for a state that the filter told of.
    fn state_of(&self, filter: capture::State) -> State;

    /// What has to be free at the replica, if that is known here.
    fn lacks(&self) -> Option<Lack>;

    /// Why replication stopped, if it did.
    fn failure(&self) -> Option<String>;

    /// Why retention does not go on, if that is known here.
    fn history_problem(&self) -> Option<String>;

    /// The point at an LSN, if the replica is here.
    fn point(&self, lsn: Lsn) -> Option<Point>;

    /// Gaps that ended, but for the first so many, if the replica is here.
    fn gaps_after(&self, known: usize) -> Vec<Gap>;
}

fn done(progress: &Progress) -> (u64, u64) {
    (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed))
}

/// How many gaps had ended by then.
pub(super) fn gaps_before(protector: &Protector, then: WallTime) -> usize {
    let replica = protector.host().replica();
    let gaps = replica.catalogue().trunk().map_or(&[][..], |trunk| trunk.gaps());
    gaps.iter().filter(|gap| !gap.open && gap.to_time < then).count()
}

impl Shown for Protector {
    fn exports(&self) -> Vec<nbd::Export> {
        self.exports()
    }

    fn set_uris(&self, uris: BTreeMap<String, String>) {
        self.set_uris(uris);
    }

    fn progress(&self) -> (u64, u64) {
        done(self.progress())
    }

    fn state(&self) -> State {
        self.state()
    }

    fn state_of(&self, filter: capture::State) -> State {
        self.state_of(filter)
    }

    fn lacks(&self) -> Option<Lack> {
        self.lacks()
    }

    fn failure(&self) -> Option<String> {
        self.failure()
    }

    fn history_problem(&self) -> Option<String> {
        self.host().history().problem
    }

    fn point(&self, lsn: Lsn) -> Option<Point> {
        let replica = self.host().replica();
        let find = |branch: &Branch| branch.points().iter().rev().find(|point| point.id.lsn == lsn).cloned();
        let point = replica.catalogue().trunk().and_then(find)?;
        Some(document::point(&replica, &point))
    }

    fn gaps_after(&self, known: usize) -> Vec<Gap> {
        let replica = self.host().replica();
        let Some(trunk) = replica.catalogue().trunk() else { return Vec::new() };
        let ended = trunk.gaps().iter().filter(|gap| !gap.open).count();
        trunk.gaps().iter().take(ended).skip(known).map(|gap| document::gap(trunk, gap)).collect()
    }
}

impl Shown for RemoteProtection {
    fn exports(&self) -> Vec<nbd::Export> {
        self.exports()
    }

    fn set_uris(&self, uris: BTreeMap<String, String>) {
        self.set_uris(uris);
    }

    fn progress(&self) -> (u64, u64) {
        self.protection().map_or((0, 0), |protection| done(protection.progress()))
    }

    fn state(&self) -> State {
        self.state()
    }

    fn state_of(&self, filter: capture::State) -> State {
        self.protection().map_or_else(|| self.state(), |protection| protection.state_of(filter))
    }

    fn lacks(&self) -> Option<Lack> {
        None
    }

    fn failure(&self) -> Option<String> {
        self.failure()
    }

    fn history_problem(&self) -> Option<String> {
        None
    }

    fn point(&self, _: Lsn) -> Option<Point> {
        None
    }

    fn gaps_after(&self, _: usize) -> Vec<Gap> {
        Vec::new()
    }
}
