//! Rotating the wrapping key of a replica that is sealed at rest.

use super::document;
use crate::owner::{Owner, is_owned};
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{self, OpenError};
use cdp_core::media::{MediaError, Storage};
use cdp_core::replica::kept::KEPT_DIRECTORY;
use cdp_core::trust::{KeyHolder, WrappingKey};
use std::sync::Arc;

/// Wraps all replica keys with another wrapping key: those of the stores inside the replica's directory first, its own last. Cut
/// short, it is done by being asked for again with the same keys. The owner holds the directory and has nothing of it open. Says
/// whether there was anything left to wrap.
///
/// # Errors
/// When the replica is not sealed, both keys are the same, a session is being written, or the old key is not its own.
pub fn rotate_key(
    owner: &Owner,
    storage: &Arc<dyn Storage>,
    old: &KeyHolder,
    new: &WrappingKey,
) -> Result<bool, Problem> {
    if owner.is_read_only() {
        return Err(super::read_only(owner.dir()));
    }
    let failed = |error: OpenError| document::unreadable(&error.into());
    let manifest = journal::read_manifest(storage.as_ref()).map_err(failed)?;
    if manifest.keys.is_empty() {
        let message = "the replica is not sealed at rest: it has no key to rotate";
        return Err(Problem::new(ProblemClass::Refused, "not-sealed", message));
    }
    if old.holds(new) {
        let message = "the new key is the one that was given as the old one: nothing would be rotated";
        return Err(
            Problem::new(ProblemClass::Usage, "same-key", message).hint("make another: head -c 32 /dev/urandom > FILE")
        );
    }
    let mut changed = false;
    for directory in stores(storage.as_ref()).map_err(|error| failed(error.into()))? {
        if is_owned(&owner.dir().join(&directory)).unwrap_or(false) {
            let message = "a session of the replica is open, and who writes there has the old key";
            return Err(Problem::new(ProblemClass::Refused, "session-open", message).hint("end that mount first"));
        }
        let store = storage.sub(&directory).map_err(|error| failed(error.into()))?;
        match journal::rewrap(store.as_ref(), old, new, &mut identity) {
            // Made, and not yet named: nothing is in it.
            Err(OpenError::NoStore { .. }) => {}
            done => changed |= done.map_err(failed)?,
        }
    }
    changed |= journal::rewrap(storage.as_ref(), old, new, &mut identity).map_err(failed)?;
    Ok(changed)
}

/// The directories of sessions and of kept moments; none where there are none, and an error where nobody can tell.
fn stores(storage: &dyn Storage) -> Result<Vec<String>, MediaError> {
    let mut stores = Vec::new();
    for directory in [super::SESSIONS_DIRECTORY, KEPT_DIRECTORY] {
        stores.extend(storage.list(directory)?.into_iter().map(|name| format!("{directory}/{name}")));
    }
    Ok(stores)
}
