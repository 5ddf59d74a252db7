//! Whether the sources are those of the last time: none twice, none in another's place, none exchanged, none changed.

use super::open::{ProtectError, ProtectionOptions, SourceOptions};
use super::sources::OpenSource;
use crate::far::Found;
use crate::host::place::replica_around;
use crate::source::{Facts, Source, SourceError, identity};
use cdp_core::capture::LogContents;
use cdp_core::types::DiskId;
use std::collections::BTreeMap;

/// Refuses a file of a replica: whoever writes to it through us would damage what that replica restores.
pub(crate) fn refuse_replicas(sources: &[SourceOptions]) -> Result<(), SourceError> {
    for source in sources {
        if let Some(replica) = replica_around(&source.path) {
            let [path, replica] = [&source.path, &replica].map(|path| path.display().to_string());
            return Err(SourceError::InReplica { path, replica });
        }
    }
    Ok(())
}

/// Refuses a file or device that is given twice, under whichever names: its own lock would look like another program's.
pub(crate) fn refuse_twice(sources: &[SourceOptions]) -> Result<(), SourceError> {
    let mut seen = BTreeMap::new();
    for source in sources {
        // What cannot be asked is refused when it is opened, and says why.
        let Ok(identity) = identity(&source.path) else { continue };
        if let Some(first) = seen.insert(identity, &source.path) {
            let [first, second] = [first, &source.path].map(|path| path.display().to_string());
            return Err(SourceError::Twice { first, second });
        }
    }
    Ok(())
}

/// What the log keeps of a disk's source: how it was found at the last start, or left at a clean stop.
fn kept(log: &LogContents, disk: DiskId) -> Option<Facts> {
    Facts::from_bytes(&log.disks.iter().find(|kept| kept.id == disk)?.facts)
}

/// Refuses a source that is another disk's: compared, one disk's content would become the other's history.
pub(super) fn refuse_swapped(
    options: &ProtectionOptions,
    known: &Found,
    log: &LogContents,
    sources: &BTreeMap<DiskId, OpenSource>,
) -> Result<(), ProtectError> {
    if options.full_check {
        return Ok(());
    }
    let name = |id: DiskId| known.disks.iter().find(|disk| disk.id == id).map(|disk| disk.name.clone());
    for (disk, OpenSource { source, .. }) in sources {
        let Some(found) = source.found() else { continue };
        let is = |disk: DiskId| kept(log, disk).is_some_and(|kept| kept.is_same_file(&found));
        // One that is not there any more has no place that this one could take.
        let other = log.disks.iter().map(|kept| kept.id).find(|other| sources.contains_key(other) && is(*other));
        if let Some(other) = other.filter(|_| !is(*disk)) {
            return Err(ProtectError::Swapped {
                path: source.path().display().to_string(),
                disk: name(*disk).unwrap_or_default(),
                other: name(other).unwrap_or_default(),
            });
        }
    }
    Ok(())
}

/// Whether a source is another file than at the last start. Where nothing is kept of it nobody knows.
pub(super) fn was_exchanged(options: &ProtectionOptions, log: &LogContents, disk: DiskId, source: &Source) -> bool {
    let (kept, found) = (kept(log, disk), source.found());
    !options.trust_source && kept.zip(found).is_some_and(|(kept, found)| !kept.is_same_file(&found))
}

/// Whether somebody else may have written to a source since the clean stop.
pub(super) fn may_have_changed(options: &ProtectionOptions, log: &LogContents, disk: DiskId, source: &Source) -> bool {
    // A block device has no facts: its times say nothing.
    !options.trust_source && source.found().is_none_or(|found| kept(log, disk) != Some(found))
}

/// What is known of each source, as the activity log keeps it.
pub(super) fn facts(sources: &BTreeMap<DiskId, OpenSource>) -> Vec<(DiskId, Vec<u8>)> {
    sources.iter().filter_map(|(id, open)| Some((*id, open.source.found()?.to_bytes().to_vec()))).collect()
}
