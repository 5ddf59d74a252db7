//! Finding a replica: what is in its directory, and how far its journal goes.

use super::{Keeper, lock, make};
use crate::far::{FilterPolicy, Find, Found, FoundDisk, Witness};
use crate::host::{check_policy_over, document};
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{self, Manifest, OpenError, SegmentState, TimelineState};
use cdp_core::media::{MediaError, MediaErrorKind, Storage};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica};
use cdp_core::trust::{KeyError, KeyHolder};
use cdp_core::types::{ClockEpoch, DiskId, Lsn};
use std::sync::Arc;

/// A store that was opened and is not written yet.
pub(super) struct Store {
    pub(super) opened: journal::Opened,
    pub(super) replica: Replica,
}

pub(super) fn unreadable(error: OpenError) -> Problem {
    document::unreadable(&error.into())
}

/// What it means that the replica's media refuse something at the start.
pub(super) fn refused_by_media(error: &MediaError) -> Problem {
    let problem = |class, code: &str| Problem::new(class, code, error.to_string());
    match error.kind {
        _ if error.is_no_space() => problem(ProblemClass::Failed, "no-space").hint("make room on the replica's disk"),
        MediaErrorKind::ReadOnly => {
            problem(ProblemClass::Refused, "read-only").hint("give a directory on media that can be written to")
        }
        _ => problem(ProblemClass::Failed, "protect"),
    }
}

impl Store {
    /// Loads what the journal's manifest names.
    pub(super) fn load(storage: &Arc<dyn Storage>, opened: journal::Opened) -> Result<Self, Problem> {
        let (manifest, durable) = (opened.manifest.clone(), opened.durable.lsn());
        let (snapshot, keys) = (opened.snapshot(), Arc::clone(&opened.keys));
        let replica = Replica::load_with(Arc::clone(storage), manifest, snapshot, durable, keys);
        Ok(Self { opened, replica: replica.map_err(|error| document::unreadable(&error))? })
    }

    pub(super) fn durable(&self) -> Lsn {
        self.opened.durable.lsn()
    }

    fn facts(&self) -> Found {
        let manifest = &self.opened.manifest;
        let open = manifest.timelines.iter().rev().find(|info| info.state == TimelineState::Open);
        Found {
            replica: manifest.replica,
            group: manifest.group,
            name: manifest.name.clone(),
            disks: self.disks(),
            leaving: self.leaving(),
            free_disk: manifest.free_disk(),
            open: open.map(|info| info.id),
            durable: self.durable(),
            reserved: manifest.reserved,
            clean: manifest.clean,
            epoch: last_epoch(manifest),
            activity_generation: manifest.activity_generation,
            policy: FilterPolicy::of(&manifest.policy),
        }
    }

    fn disks(&self) -> Vec<FoundDisk> {
        let manifest = &self.opened.manifest;
        let announced = |id: DiskId| manifest.resizing.iter().find(|resizing| resizing.disk == id).map(|to| to.size);
        let disk = |id: DiskId, name: &str, size: u64, complete: bool| FoundDisk {
            id,
            name: name.to_owned(),
            size,
            complete,
            announced: announced(id),
        };
        match self.replica.catalogue().trunk() {
            Some(trunk) => {
                let current = self.replica.disks_at(trunk.timeline, Lsn(u64::MAX)).into_iter();
                current.map(|at| disk(at.disk.id, &at.disk.name, at.disk.size, at.complete)).collect()
            }
            None => manifest.disks.iter().map(|info| disk(info.id, &info.name, info.size, true)).collect(),
        }
    }

    /// Disks that were taken out while nobody recorded that.
    fn leaving(&self) -> Vec<DiskId> {
        let Some(trunk) = self.replica.catalogue().trunk() else { return Vec::new() };
        let end = self.durable();
        let leaves = |disk: &&journal::DiskInfo| {
            let recorded = self.replica.catalogue().disk_end(trunk.timeline, disk.id);
            recorded.is_none() && disk.removed.is_some_and(|removed| removed > end)
        };
        self.opened.manifest.disks.iter().filter(leaves).map(|disk| disk.id).collect()
    }
}

impl Keeper {
    /// Finds and opens a store that `counts`; else there is nothing.
    pub(super) fn find_store(
        &self,
        find: &Find,
        counts: impl FnOnce(&Manifest) -> bool,
    ) -> Result<Option<Found>, Problem> {
        let mut waiting = lock(&self.waiting);
        if waiting.queue.is_none() {
            let message = "a filter has begun to write to this replica: another one needs a new keeper";
            return Err(Problem::new(ProblemClass::Failed, "begun", message));
        }
        waiting.found = None;
        let storage = self.storage.as_ref();
        let manifest = existing(storage)?.filter(counts);
        check_policy_over(&find.policy, &manifest.as_ref().map(|manifest| manifest.policy).unwrap_or_default())?;
        let Some(manifest) = manifest else {
            make::check_vacant(storage)?;
            return Ok(None);
        };
        check_key(&manifest, &self.options.key)?;
        check_name(&manifest, find.name.as_deref())?;
        // Extents that the log forgot are not compared: what it calls durable has to be there, or nothing is begun.
        let witness = find.witness.filter(|witness| is_believed(witness, &manifest)).map(|witness| witness.durable);
        let opened = journal::open_with(storage, JOURNAL_DIRECTORY, witness, &self.options.key).map_err(unreadable)?;
        let store = Store::load(&self.storage, opened)?;
        let facts = store.facts();
        waiting.found = Some(store);
        Ok(Some(facts))
    }
}

/// Another group's log, or one that is older than what the replica was told, says nothing.
fn is_believed(witness: &Witness, manifest: &Manifest) -> bool {
    witness.group == manifest.group && witness.generation >= manifest.activity_generation
}

/// The manifest of a replica, if there is one.
fn existing(storage: &dyn Storage) -> Result<Option<Manifest>, Problem> {
    match journal::read_manifest(storage) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(OpenError::NoStore { .. }) => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// Whether the replica is sealed at rest and there is a key, or neither.
fn check_key(manifest: &Manifest, key: &KeyHolder) -> Result<(), Problem> {
    match (manifest.keys.is_empty(), key.has_key()) {
        (false, false) => Err(document::locked(&KeyError::Missing)),
        (true, true) => {
            let message =
                "the replica is not sealed at rest, and a key was given: what it holds would stay readable to all";
            let problem = Problem::new(ProblemClass::Refused, "not-sealed", message);
            Err(problem
                .hint("leave the key out, or give a new directory: a new replica is sealed from its first byte on"))
        }
        _ => Ok(()),
    }
}

fn check_name(manifest: &Manifest, name: Option<&str>) -> Result<(), Problem> {
    let Some(given) = name.filter(|given| *given != manifest.name) else { return Ok(()) };
    let message = format!("the replica is of the group {:?}, not of {given:?}", manifest.name);
    let problem = Problem::new(ProblemClass::Refused, "other-name", message);
    Err(problem.hint("leave --name out, or give another directory"))
}

fn last_epoch(manifest: &Manifest) -> ClockEpoch {
    let summaries = manifest.segments.iter().filter_map(|segment| match &segment.state {
        SegmentState::Sealed(summary) => Some(summary.last.epoch),
        _ => None,
    });
    summaries.max().unwrap_or(ClockEpoch(1))
}
