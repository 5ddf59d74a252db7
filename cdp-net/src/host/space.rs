//! One account of a replica's space: every byte of it is counted once, under what keeps it.

use super::document;
use super::sessions::directory_bytes;
use crate::report::{Hold, Space};
use cdp_core::journal::Manifest;
use cdp_core::media::Storage;
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica, kept};
use cdp_core::types::{Lsn, Timeline};

/// Where the bytes are; overlays are for the caller to add. What is kept since a moment counts as a layer where the moment is one, else as
/// pinned.
pub(super) fn account(storage: &dyn Storage, manifest: &Manifest, base: u64) -> Space {
    let mut space = Space { base, segments: directory_bytes(storage, JOURNAL_DIRECTORY), ..Space::default() };
    let layers = || manifest.retention.layers.iter().map(|layer| layer.lsn);
    for info in &manifest.kept {
        let bytes = directory_bytes(storage, &kept::directory(info.number));
        if layers().any(|lsn| lsn == info.moment.lsn) {
            space.layers += bytes;
        } else {
            space.pinned += bytes;
        }
    }
    space
}

/// What pins and layers hold, oldest first; without their bytes, which the media have to be asked for.
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
    let mut holds: Vec<_> = pins.chain(layers).collect();
    holds.sort_by_key(|hold| hold.at.lsn);
    holds
}

/// Adds the bytes that are kept since each.
pub(super) fn weigh(storage: &dyn Storage, manifest: &Manifest, holds: &mut [Hold]) {
    for hold in holds {
        let kept = manifest.kept.iter().find(|kept| kept.moment.lsn == hold.at.lsn);
        hold.bytes = kept.map_or(0, |kept| directory_bytes(storage, &kept::directory(kept.number)));
    }
}
