//! What is answered in the state directory of a protection whose replica is kept elsewhere.

use super::Inner;
use crate::host::no_hook;
use crate::owner::{Connection, Handler, Request, reply};
use crate::report::{At, Disk, Problem, ProblemClass, Rates, RemoteReplica, Status};
use cdp_core::when::{Label, PointName};
use serde_json::Value;
use std::sync::Weak;

/// Answers as long as the protection is there.
pub(super) struct Answers(pub(super) Weak<Inner>);

impl Handler for Answers {
    fn handle(&self, request: Request, _: &Connection) -> Result<Value, Problem> {
        let Some(inner) = self.0.upgrade() else {
            return Err(Problem::new(ProblemClass::Refused, "not-protecting", "the protection ends"));
        };
        match request {
            Request::Ping => Ok(Value::Null),
            Request::Status => reply(inner.document()),
            Request::Mark { app_consistent: true, .. } => Err(no_hook()),
            Request::Mark { label, .. } => reply(inner.mark_at(&label)?),
            _ => {
                let message = "the replica is kept at another site: here there is only the protection's own state";
                let place = format!("cdp://{}/{}", inner.road().address, inner.options.link.name);
                Err(Problem::new(ProblemClass::Refused, "replica-elsewhere", message)
                    .hint(format!("ask there: {place}; `status` and `mark` are answered here")))
            }
        }
    }
}

impl Inner {
    /// What this side knows. What only the replica knows is left out.
    fn document(&self) -> Status {
        let (facts, road, protection) = (self.facts(), self.road(), self.protection());
        let of_filter = protection.as_ref().map(|protection| protection.status());
        let disk = |export: crate::nbd::Export| Disk {
            uri: facts.uris.get(&export.name).cloned(),
            size: export.size(),
            name: export.name,
            incomplete: false,
        };
        Status {
            state: facts.state,
            group: self.options.link.name.clone(),
            disks: self.exports().into_iter().map(disk).collect(),
            timeline: protection.map(|protection| protection.opened().timeline.into()),
            lsn: facts.lsn,
            durable_lsn: of_filter.as_ref().map(|status| status.durable).unwrap_or_default(),
            rpo_ms: facts.rpo_ms,
            hot_bytes: facts.hot_bytes,
            reread_bytes: facts.reread_bytes,
            detached: facts.detached,
            failure: facts.failure,
            rates: Rates { write_bytes_per_s: facts.write_bytes_per_s, ..Rates::default() },
            owner_pid: Some(std::process::id()),
            remote: Some(RemoteReplica {
                address: road.address.clone(),
                linked: road.is_up,
                problem: self.now().why.clone().or(road.why),
            }),
            ..Status::default()
        }
    }

    /// The point that was made. Its stamp is the replica's to tell: the time here is one at which it was there.
    fn mark_at(&self, label: &Label) -> Result<At, Problem> {
        let lsn = self.mark(label)?;
        let Some(protection) = self.protection() else { unreachable!("what made a point has begun") };
        let timeline = protection.opened().timeline.into();
        let point = Some(PointName { timeline, lsn });
        Ok(At { timeline, lsn, time: crate::clock::wall(), point })
    }
}
