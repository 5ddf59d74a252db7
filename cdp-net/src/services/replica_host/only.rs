//! A session of somebody whose ticket is good for one group only: its hello names the group by its name, and which group that is is
//! seen when something is asked.

use crate::far::{Begin, CallKind};
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{OpenError, read_manifest};
use cdp_core::link::message::Call;
use cdp_core::media::Disk;
use cdp_core::types::GroupId;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The group that a session may ask about.
#[derive(Debug)]
pub(super) struct Only {
    group: GroupId,
    /// The directory's replica is of this group, which it stays.
    known: AtomicBool,
}

impl Only {
    pub(super) fn new(group: GroupId) -> Self {
        Self { group, known: AtomicBool::new(false) }
    }

    /// Whether a call is about this group's replica in `directory`, or makes it. May wait: it reads the manifest.
    pub(super) fn judge(&self, directory: &Path, call: &Call) -> Result<(), Problem> {
        if self.known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let other = || {
            let message = format!("the ticket is for group {} only, and this name is another group's", self.group);
            Problem::new(ProblemClass::Refused, "other-group", message)
        };
        match group_in(directory)? {
            Some(group) if group == self.group => self.known.store(true, Ordering::Relaxed),
            Some(_) => return Err(other()),
            None if CallKind::of(call.kind) == Some(CallKind::Begin) => {
                // What is no such call is refused by who answers it.
                let begin = serde_json::from_slice::<Begin>(&call.header).ok();
                if begin.and_then(|begin| begin.new).is_some_and(|new| new.group != self.group) {
                    return Err(other());
                }
            }
            None => {}
        }
        Ok(())
    }
}

/// The group whose replica is there.
fn group_in(directory: &Path) -> Result<Option<GroupId>, Problem> {
    let failed = |error: &dyn std::fmt::Display| {
        let message = format!("{}: {error}", directory.display());
        Problem::new(ProblemClass::Failed, "replica-directory", message)
    };
    let storage = match Disk::open(directory) {
        Ok(storage) => storage,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    match read_manifest(&storage) {
        Ok(manifest) => Ok(Some(manifest.group)),
        Err(OpenError::NoStore { .. }) => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}
