//! One account of a replica's space: every byte of it is counted once, under what keeps it.

use super::sessions::directory_bytes;
use super::{Host, document};
use crate::report::{Hold, Space};
use cdp_core::journal::Manifest;
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica};
use cdp_core::types::{Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// Where the bytes are; overlays are for the caller to add. What is kept since a moment counts as a layer where the moment is one, else as
/// pinned.
pub(super) fn account(host: &Host, manifest: &Manifest, base: u64) -> Space {
    let storage = host.storage();
    let quota = Some(manifest.policy.quota).filter(|quota| *quota > 0);
    let segments = directory_bytes(storage.as_ref(), JOURNAL_DIRECTORY);
    let mut space = Space { base, segments, quota, ..Space::default() };
    let layers: BTreeSet<_> = manifest.retention.layers.iter().map(|layer| layer.lsn).collect();
    for (lsn, bytes) in kept_bytes(host, manifest) {
        let of = if layers.contains(&lsn) { &mut space.layers } else { &mut space.pinned };
        *of += bytes;
    }
    space
}

/// The bytes that are kept since each kept moment.
fn kept_bytes(host: &Host, manifest: &Manifest) -> BTreeMap<Lsn, u64> {
    let numbers: Vec<_> = manifest.kept.iter().map(|kept| kept.number).collect();
    let bytes = host.retained.weigh(host.storage().as_ref(), &numbers);
    manifest.kept.iter().map(|kept| kept.moment.lsn).zip(bytes).collect()
}

/// What pins, layers and sessions hold, oldest first; without their bytes, which the media have to be asked for.
pub(super) fn holds(replica: &Replica) -> Vec<Hold> {
    let manifest = replica.manifest();
    let hold = |timeline: Timeline, lsn: Lsn, by: &str, label: &str| {
        // A moment that cannot be read is said by `points` and `verify`.
        let moment = replica.exact(timeline, lsn).ok()?;
        let label = (!label.is_empty()).then(|| label.to_owned());
        Some(Hold { at: document::at(replica, &moment), by: by.to_owned(), label, bytes: 0 })
    };
    let pins = manifest.pins.iter().filter_map(|pin| hold(pin.timeline, pin.lsn, "pin", &pin.label));
    let layers = manifest.retention.layers.iter().filter_map(|layer| hold(layer.timeline, layer.lsn, "long", ""));
    let sessions = manifest.sessions.iter().filter_map(|session| {
        let name = document::session_name(session).unwrap_or_default();
        hold(session.parent, session.fork, "session", &name)
    });
    let mut holds: Vec<_> = pins.chain(layers).chain(sessions).collect();
    holds.sort_by_key(|hold| hold.at.lsn);
    holds
}

/// Adds the bytes that are kept since each.
pub(super) fn weigh(host: &Host, manifest: &Manifest, holds: &mut [Hold]) {
    let kept = kept_bytes(host, manifest);
    holds.iter_mut().for_each(|hold| hold.bytes = kept.get(&hold.at.lsn).copied().unwrap_or(0));
}
