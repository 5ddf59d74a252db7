//! Answers about a replica that is not to be changed now.

use super::Host;
use crate::owner::{Connection, ControlServer, Handler, Owner, Request};
use crate::report::{Problem, ProblemClass};
use cdp_core::media::Storage;
use cdp_core::trust::KeyHolder;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A host that answers, and refuses every change.
#[derive(Debug)]
pub struct Looking {
    host: Arc<Host>,
    /// Why.
    refusal: Problem,
}

impl Looking {
    /// Answers for `host`; whoever wants a change is told `refusal`.
    #[must_use]
    pub fn new(host: Arc<Host>, refusal: Problem) -> Self {
        Self { host, refusal }
    }
}

impl Handler for Looking {
    fn handle(&self, request: Request, connection: &Connection) -> Result<Value, Problem> {
        if request.changes() { Err(self.refusal.clone()) } else { self.host.handle(request, connection) }
    }
}

/// A directory whose owner reads everything in it, which may take hours: who asks is answered meanwhile, and changes have to wait.
pub struct ReadWhole {
    /// Dropped first: who asks after that finds no owner.
    _control: Option<ControlServer>,
    _owner: Owner,
}

impl std::fmt::Debug for ReadWhole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadWhole").finish_non_exhaustive()
    }
}

impl ReadWhole {
    /// Answers until this is dropped, if that is possible: of a replica that does not load nothing can be said, and it is the one
    /// that is most in need of being read.
    #[must_use]
    pub fn begin(owner: Owner, storage: &Arc<dyn Storage>, key: &KeyHolder) -> Self {
        let message =
            format!("everything in {} is being read and checked: it is not changed meanwhile", owner.dir().display());
        let refusal =
            Problem::new(ProblemClass::Refused, "verifying", message).hint("wait until `cdp verify` ends, or stop it");
        let answer = || {
            let host = Host::idle(Arc::clone(storage), key).ok()?;
            ControlServer::start(&owner, Arc::new(Looking::new(host, refusal))).ok()
        };
        let control = if owner.is_read_only() { None } else { answer() };
        Self { _control: control, _owner: owner }
    }
}

/// Nothing of a replica can be changed where nobody writes.
#[must_use]
pub fn read_only(dir: &Path) -> Problem {
    let message = format!("{} lies on media that cannot be written to: it can be read, not changed", dir.display());
    Problem::new(ProblemClass::Refused, "read-only", message)
        .hint("mount them for writing, or copy the replica elsewhere")
}
