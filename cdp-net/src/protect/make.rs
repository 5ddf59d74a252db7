//! Making a replica: what may be made, where, and what an attempt that did not end left behind.

use super::open::{ACTIVITY_LOG, ProtectError, ProtectOptions, SourceOptions, unreadable};
use crate::host::{RPO_MS, no_coalescing};
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use crate::source::Source;
use cdp_core::journal::{self, DiskInfo, MANIFEST_NAME, Manifest, PointsMode};
use cdp_core::media::{MediaError, Storage};
use cdp_core::replica::JOURNAL_DIRECTORY;
use cdp_core::types::{DISKS_MAX, DiskId, GroupId, Lsn, NAME_MAX, ReplicaId};
use std::collections::BTreeSet;

/// Directory of the bases inside the replica's.
const BASE_DIRECTORY: &str = "base";

fn usage(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Usage, code, message)
}

/// Whether the options are such that a manifest can hold them.
pub(super) fn check(options: &ProtectOptions) -> Result<(), Problem> {
    if options.points == Some(PointsMode::PerPoint) {
        return Err(no_coalescing());
    }
    if options.sources.is_empty() || options.sources.len() > DISKS_MAX {
        return Err(usage("disks", format!("a group has 1 to {DISKS_MAX} disks, not {}", options.sources.len())));
    }
    let mut names = BTreeSet::new();
    for name in options.sources.iter().map(|source| &source.name).chain(&options.name) {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(usage("name", format!("a name has 1 to {NAME_MAX} bytes, not {}", name.len())));
        }
    }
    if let Some(twice) = options.sources.iter().find(|source| !names.insert(&source.name)) {
        return Err(usage("name", format!("two disks are called {:?}", twice.name)));
    }
    if let Some(rpo_ms) = options.rpo_ms.filter(|rpo_ms| !RPO_MS.contains(rpo_ms)) {
        return Err(usage("rpo", format!("an RPO of {rpo_ms} ms is not between {} ms and a day", RPO_MS.start())));
    }
    Ok(())
}

/// What of the directory is ours: segments, index runs, bases, the activity log.
fn ours(storage: &dyn Storage) -> Result<Vec<String>, MediaError> {
    let of = |directory: &str, endings: &[&str]| -> Result<Vec<String>, MediaError> {
        let names = storage.list(directory)?.into_iter();
        let ours = names.filter(|name| endings.iter().any(|ending| name.ends_with(ending)));
        Ok(ours.map(|name| format!("{directory}/{name}")).collect())
    };
    Ok([of(JOURNAL_DIRECTORY, &[".seg", ".idx"])?, of(BASE_DIRECTORY, &[".img", ".sum"])?].concat())
}

/// Makes a new store. What a first copy that never ended left is removed: its manifest, which says so, goes last. Files of
/// ours without a manifest are a replica that lost it, and are not touched.
pub(super) fn create(
    storage: &dyn Storage,
    options: &ProtectOptions,
    sources: &[(&SourceOptions, Source)],
) -> Result<journal::Opened, ProtectError> {
    let left = ours(storage)?;
    let begun = storage.list("")?.iter().any(|name| name == MANIFEST_NAME);
    if let Some(file) = left.first().filter(|_| !begun) {
        let message = format!("{} has {file} and no {MANIFEST_NAME}: it held a replica", storage.path());
        let hint = "bring the manifest back from a copy, or give an empty directory";
        return Err(ProtectError::Replica(Problem::new(ProblemClass::Damage, "no-manifest", message).hint(hint)));
    }
    for name in left.iter().map(String::as_str).chain([ACTIVITY_LOG]) {
        remove(storage, name)?;
    }
    for directory in [JOURNAL_DIRECTORY, BASE_DIRECTORY].into_iter().filter(|_| !left.is_empty()) {
        // A directory that was never made has no names to make durable.
        match storage.sync_dir(directory) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    remove(storage, MANIFEST_NAME)?;
    storage.sync_dir("")?;
    let first = options.sources.first().map(|source| source.name.clone()).unwrap_or_default();
    let name = options.name.clone().unwrap_or(first);
    let (Some(replica), Some(group)) = (ReplicaId::new(identity()), GroupId::new(identity())) else {
        unreachable!("an identity is never zero")
    };
    let mut manifest = Manifest::new(replica, group, &name);
    for (number, (options, source)) in (1..).zip(sources) {
        let Some(id) = DiskId::new(number) else { continue };
        manifest.disks.push(DiskInfo {
            id,
            name: options.name.clone(),
            size: source.size(),
            source: source.path().display().to_string(),
            added: Lsn::ZERO,
            removed: None,
            stopped: None,
            base: None,
        });
    }
    journal::create(storage, manifest).map_err(unreadable)
}

/// Removes a name, if it is there.
pub(super) fn remove(storage: &dyn Storage, name: &str) -> Result<(), MediaError> {
    match storage.remove(name) {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
