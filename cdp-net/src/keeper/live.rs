//! What the directory's owner asks of a protection that is going on: this side answers what it knows, the filter the rest.

use super::check::check_name;
use super::store::{EDIT_PATIENCE, LOOK};
use super::{Running, lock};
use crate::far::{DiskOrder, FilterPolicy, MarkOrder};
use crate::host::Live;
use crate::report::{self, DiskChanged, Problem, ProblemClass};
use cdp_core::frame::PointKinds;
use cdp_core::journal::Policy;
use cdp_core::policy::retention;
use cdp_core::types::Lsn;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a mark may take to become durable before its caller is told.
const MARK_PATIENCE: Duration = Duration::from_secs(30);

fn ended() -> Problem {
    let message = "the protection ends: there is no present moment any more";
    Problem::new(ProblemClass::Refused, "not-protecting", message).hint("start `cdp protect`, then mark")
}

impl Running {
    /// Makes a point and returns its LSN when it can be restored.
    pub(super) fn make_mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        let near = self.near().ok_or_else(ended)?;
        if !order.label.is_empty() {
            check_name(&order.label)?;
        }
        let lsn = self.labels.take(&order.label, &self.host, || near.mark(order))?;
        let deadline = Instant::now() + MARK_PATIENCE;
        // A pump that has ended made nothing durable, which is seen below.
        let _ = self.pump.ask(|writer| writer.request_sync(), MARK_PATIENCE);
        loop {
            let replica = self.host.replica();
            let branch = replica.catalogue().trunk();
            let (frontier, restorable) =
                branch.map_or((Lsn::ZERO, false), |branch| (branch.frontier().lsn, branch.is_restorable(lsn)));
            drop(replica);
            if restorable {
                return Ok(lsn);
            }
            let lost = frontier >= lsn;
            if lost || Instant::now() > deadline {
                let message = if lost {
                    "a write before the mark failed: this moment cannot be restored"
                } else {
                    "the mark was made and is not durable yet: the replica does not keep up"
                };
                return Err(Problem::new(ProblemClass::Failed, "not-durable", message).hint("see `cdp status`"));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn change(&self, order: &DiskOrder) -> Result<DiskChanged, Problem> {
        self.near().ok_or_else(ended)?.change_disk(order)
    }

    fn segment_bytes_of(&self, policy: &Policy) -> u64 {
        retention::segment_bytes(policy, self.segment_bytes)
    }
}

impl Live for Running {
    fn mark(&self, kinds: PointKinds, label: &str) -> Result<Lsn, Problem> {
        self.make_mark(&MarkOrder { kinds, label: label.to_owned() })
    }

    fn add_disk(&self, name: &str, source: &Path) -> Result<DiskChanged, Problem> {
        self.change(&DiskOrder::Add { name: name.to_owned(), source: source.to_owned() })
    }

    fn remove_disk(&self, name: &str) -> Result<DiskChanged, Problem> {
        self.change(&DiskOrder::Remove { name: name.to_owned() })
    }

    fn resize_disk(&self, name: &str, size: Option<u64>, force: bool) -> Result<DiskChanged, Problem> {
        self.change(&DiskOrder::Resize { name: name.to_owned(), size, force })
    }

    fn stored_bytes_per_s(&self) -> u64 {
        self.stored.per_second()
    }

    fn segment_bytes(&self) -> u64 {
        let policy = self.host.replica().manifest().policy;
        self.segment_bytes_of(&policy)
    }

    fn unrecorded(&self) -> Option<(report::State, Lsn)> {
        let facts = self.near()?.facts();
        facts.unrecorded.map(|state| (state, facts.lsn))
    }

    fn describe(&self, status: &mut report::Status) {
        let Some(near) = self.near() else { return };
        let facts = near.facts();
        status.state = facts.state;
        status.lacks = facts.state.is_lack().then(|| self.lacks()).flatten();
        status.lsn = facts.lsn;
        status.hot_bytes = facts.hot_bytes;
        status.reread_bytes = facts.reread_bytes;
        (status.detached, status.failure) = (facts.detached, facts.failure);
        status.rpo_ms = facts.rpo_ms;
        status.journal = self.driver.get().map(|driver| report::Journal { driver: (*driver).to_owned() });
        status.rates.write_bytes_per_s = facts.write_bytes_per_s;
        status.rates.stored_bytes_per_s = self.stored.per_second();
        status.disks.iter_mut().for_each(|disk| disk.uri = facts.uris.get(&disk.name).cloned());
    }

    fn policy_changed(&self, policy: &Policy) {
        let (segment_bytes, reserve_bytes) = (self.segment_bytes_of(policy), policy.reserve_bytes);
        // A pump that has ended makes no segments.
        let _ = self.pump.ask(move |writer| writer.set_bounds(segment_bytes, reserve_bytes), EDIT_PATIENCE);
        if let Some(near) = self.near() {
            near.policy(FilterPolicy::of(policy));
        }
    }
}

impl Running {
    /// News of how far back history goes, once.
    pub(super) fn take_history(&self) -> Option<report::History> {
        lock(&self.history).take()
    }
}
