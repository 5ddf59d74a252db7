//! The filter's side as who keeps its replica knows it. From the end on nobody there is kept by one that hangs in the filter.

use super::Shared;
use crate::far::{DiskOrder, Facts, FilterPolicy, MarkOrder, Near};
use crate::report::{self, DiskChanged, Problem, ProblemClass};
use cdp_core::capture::{Detached, MarkError, Room, Stuck};
use cdp_core::frame::Mark;
use cdp_core::types::Lsn;
use std::sync::PoisonError;

impl Near for Shared {
    fn durable(&self, lsn: Lsn) {
        // What ends need not hear it: nor what follows.
        let _ = self.engine.with_before_end(|filter, _| filter.durable(lsn));
    }

    fn stored(&self, lsn: Lsn) {
        let _ = self.engine.with_before_end(|filter, _| filter.stored(lsn));
    }

    fn capacity(&self, bytes: u64) {
        self.engine.set_capacity(bytes);
    }

    fn room(&self, room: Room) {
        let _ = self.engine.with_before_end(|filter, _| filter.set_room(room));
    }

    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        let ended =
            || Problem::new(ProblemClass::Failed, "not-marked", "the protection ended before the mark was made");
        if self.engine.with_before_end(|filter, _| filter.room()).ok_or_else(ended)? == Room::NoSpace {
            let place = if self.far.standing().quota { "quota leaves" } else { "disk has" };
            let message = format!("the replica's {place} no room: this moment would not be kept");
            return Err(Problem::new(ProblemClass::Refused, "not-restorable-now", message)
                .hint("make room; the protection then goes on by itself"));
        }
        let mark = Mark { kinds: order.kinds, on_barrier: false, label: order.label.clone() };
        let make = || self.engine.with_before_end(|filter, now| filter.mark(now, mark)).ok_or_else(ended);
        let refused = |error| match error {
            MarkError::NotRestorable { .. } => {
                Problem::new(ProblemClass::Refused, "not-restorable-now", error.to_string())
                    .hint("wait until `cdp status` says protecting")
            }
            error => Problem::new(ProblemClass::Refused, "not-marked", error.to_string()),
        };
        self.marking.make(&order.label, || make()?.map_err(refused))
    }

    fn change_disk(&self, order: &DiskOrder) -> Result<DiskChanged, Problem> {
        match order {
            DiskOrder::Add { name, source } => self.add_disk(name, source),
            DiskOrder::Remove { name } => self.remove_disk(name),
            DiskOrder::Resize { name, size, force } => self.resize_disk(name, *size, *force),
        }
    }

    fn facts(&self) -> Facts {
        let now = self.engine.status();
        let room = self.engine.look(|filter, _| filter.room()).unwrap_or(Room::Ok);
        let unrecorded = match room {
            _ if now.detached.is_some() => Some(report::State::Detached),
            _ if self.failure().is_some() => Some(report::State::ReplicaLost),
            Room::NoSpace => Some(self.without_room()),
            _ => None,
        };
        // Whose thread ended says so a moment later.
        let ended = now.detached.filter(|why| *why == Detached::Stuck(Stuck::Ended)).map(|why| why.to_string());
        Facts {
            state: self.state(now.state),
            unrecorded,
            detached: now.detached.map(|why| why.to_string()),
            failure: self.failure().or(ended),
            lsn: now.lsn,
            hot_bytes: now.hot_bytes,
            reread_bytes: now.counters.bytes_reread,
            rpo_ms: now.rpo_ns.map(|age| age / 1_000_000),
            write_bytes_per_s: now.write_bytes_per_s,
            uris: self.uris.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn policy(&self, policy: FilterPolicy) {
        let _ = self.engine.with_before_end(|filter, now| {
            filter.set_rpo(now, policy.rpo_ms * 1_000_000);
            filter.set_points(now, policy.mode());
        });
    }
}
