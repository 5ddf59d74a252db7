//! Answers about a replica that is not to be changed now.

use super::Host;
use crate::owner::{Connection, Handler, Request};
use crate::report::{Problem, ProblemClass};
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

/// Nothing of a replica can be changed where nobody writes.
#[must_use]
pub fn read_only(dir: &Path) -> Problem {
    let message = format!("{} lies on media that cannot be written to: it can be read, not changed", dir.display());
    Problem::new(ProblemClass::Refused, "read-only", message)
        .hint("mount them for writing, or copy the replica elsewhere")
}
