//! What is kept of one group: base disks, the journal above them, and the catalogue of what can be restored.
//!
//! A [`Replica`] is a directory as its readers see it at one moment. Whoever owns the directory keeps one up to date from the
//! journal's writer; others load theirs from the files under the owner's pin. It gives moments (from times, LSNs, labels) and
//! views of the disks at a moment.

pub mod base;
pub mod catalogue;
pub mod compare;
pub mod content;
pub mod diff;
pub mod digest;
mod disks;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub mod kept;
mod losses;
pub mod merge;
mod resolve;
pub mod rests;
pub mod retention;
pub mod seeding;
pub mod session;
pub mod sidecar;
mod view;

pub use disks::{DiskAt, is_unseeded, merge_limit, remove_bases, remove_bases_but};
pub use files::{BASE_DIRECTORY, BaseFile};
pub use losses::{Lost, Needed};
pub use resolve::{NotRestorable, ResolveError};
pub use view::{Bases, Ground, Renew, ReplicaView, Run, ViewDisk};

use self::base::{Base, BaseError};
use self::catalogue::{Branch, Catalogue, Role};
use crate::journal::{
    Damage, Event, KeptInfo, Manifest, PathElement, ReadError, Reader, Snapshot, StampedMoment, TimelineRole,
    TimelineState,
};
use crate::media::{MediaError, Storage};
use crate::trust::Keyring;
use crate::types::{Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Directory of the trunk's segments inside the replica's.
pub const JOURNAL_DIRECTORY: &str = "journal";
/// Memory for decoded chunks of a reader, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Why a replica cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] ReadError),
    /// The store.
    #[error(transparent)]
    Open(#[from] crate::journal::OpenError),
    /// A base.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The media.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The moment is in the bases, with others behind it.
    #[error("LSN {lsn} of timeline {timeline} is not kept any more")]
    Merged {
        /// The branch of history.
        timeline: Timeline,
        /// The moment.
        lsn: Lsn,
    },
    /// Asked for a timeline that is not there.
    #[error("there is no timeline {timeline} in this replica")]
    UnknownTimeline {
        /// Which.
        timeline: Timeline,
    },
}

/// A replica as it is at one moment.
#[derive(Debug)]
pub struct Replica {
    storage: Arc<dyn Storage>,
    manifest: Manifest,
    snapshot: Snapshot,
    reader: Arc<Reader>,
    bases: Arc<Bases>,
    catalogue: Catalogue,
    /// Where history begins, and what is kept before, once a merge or a release is named that was decided: none is.
    decided: Option<(Option<StampedMoment>, Vec<KeptInfo>)>,
    damage: Option<Damage>,
    keys: Arc<Keyring>,
}

impl Replica {
    /// Reads what the catalogue is made of; reads no data. What lies above `safe` is not restorable: an owner says what is
    /// durable, and where there is none that is everything that was written.
    ///
    /// # Errors
    /// When a footer or a base does not verify.
    pub fn load(
        storage: Arc<dyn Storage>,
        manifest: Manifest,
        snapshot: Snapshot,
        safe: Lsn,
    ) -> Result<Self, ReplicaError> {
        Self::load_with(storage, manifest, snapshot, safe, Arc::default())
    }

    /// The same, of a replica that is sealed at rest.
    ///
    /// # Errors
    /// When a footer or a base does not verify, or the keys are not those of the manifest.
    pub fn load_with(
        storage: Arc<dyn Storage>,
        manifest: Manifest,
        snapshot: Snapshot,
        safe: Lsn,
        keys: Arc<Keyring>,
    ) -> Result<Self, ReplicaError> {
        let replica = Self::load_to_read(storage, manifest, snapshot, safe, keys)?;
        replica.bases.check()?;
        Ok(replica)
    }

    /// The same for who reads: a base that does not open takes its own disk, and what else is there is given.
    ///
    /// # Errors
    /// When a footer does not verify, or the keys are not those of the manifest.
    pub fn load_to_read(
        storage: Arc<dyn Storage>,
        manifest: Manifest,
        snapshot: Snapshot,
        safe: Lsn,
        keys: Arc<Keyring>,
    ) -> Result<Self, ReplicaError> {
        let reader = Reader::new(Arc::clone(&storage), JOURNAL_DIRECTORY, CACHE_BYTES).with_keys(Arc::clone(&keys));
        let reader = Arc::new(reader);
        let bases = Arc::new(open_bases(&storage, &manifest, &keys, true)?);
        let mut catalogue = Catalogue::default();
        add_branches(&mut catalogue, &manifest, &snapshot, &reader, safe)?;
        Ok(Self { storage, manifest, snapshot, reader, bases, catalogue, decided: None, damage: None, keys })
    }

    /// The same, knowing that a part of the journal is damaged and left out: moments that may have been there are refused.
    #[must_use]
    pub fn with_damage(self, damage: Option<Damage>) -> Self {
        Self { damage, ..self }
    }

    /// Acknowledged data that is left out because it is damaged.
    #[must_use]
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// Takes over what the owner's writer says now. The catalogue's newest events are the caller's to hand in.
    ///
    /// # Errors
    /// When a base that the manifest names does not open.
    pub fn update(&mut self, manifest: Option<&Manifest>, snapshot: Snapshot) -> Result<(), ReplicaError> {
        self.snapshot = snapshot;
        // Edits that are written together share a generation: an equal one may hold more, only an older one holds less.
        let Some(manifest) = manifest.filter(|manifest| manifest.generation >= self.manifest.generation) else {
            return Ok(());
        };
        let roots = |manifest: &Manifest| manifest.disks.iter().map(|disk| disk.base).collect::<Vec<_>>();
        // What a merge changes of a block it tells those alone who lay the journal over that: views of before keep theirs.
        if roots(manifest) != roots(&self.manifest) || manifest.merge != self.manifest.merge {
            let bases = open_bases(&self.storage, manifest, &self.keys, true)?;
            if self.bases.check().is_ok() {
                bases.check()?;
            }
            self.bases = Arc::new(bases);
        }
        let first = |manifest: &Manifest| manifest.segments.first().map(|segment| segment.number);
        if first(manifest) > first(&self.manifest) || manifest.segments.is_empty() {
            // The oldest go first, and their numbers are never given again.
            let begin = first(manifest).unwrap_or(u64::MAX);
            let gone = self.manifest.segments.iter().take_while(|segment| segment.number < begin);
            self.reader.close(gone.map(|segment| segment.id));
        }
        self.manifest.clone_from(manifest);
        for info in &self.manifest.timelines {
            match self.catalogue.branch_mut(info.id) {
                Some(branch) => branch.open = info.state == TimelineState::Open,
                None => {
                    let past = info.parent.and_then(|parent| self.catalogue.branch(parent)?.last());
                    self.catalogue.insert(branch_of(info).after(past));
                }
            }
        }
        add_sessions(&mut self.catalogue, &self.manifest);
        let known = |timeline: Timeline| self.manifest.timeline(timeline).is_some();
        self.catalogue.retain(|branch| branch.role != Role::Trunk || known(branch.timeline));
        self.begin();
        Ok(())
    }

    /// Nothing before `oldest` is given to anybody any more but what is `kept`: it is decided, and the manifest will say so. What it
    /// says until then, for whatever other reason it was written, brings nothing back.
    pub fn begin_at(&mut self, oldest: Option<StampedMoment>, kept: Vec<KeptInfo>) {
        self.decided = Some((oldest, kept));
        self.begin();
    }

    fn begin(&mut self) {
        let (oldest, kept) = (self.manifest.oldest(), &self.manifest.kept);
        let lsn = |oldest: &Option<StampedMoment>| oldest.map(|oldest| oldest.lsn);
        let numbers = |kept: &[KeptInfo]| kept.iter().map(|kept| kept.number).collect::<BTreeSet<_>>();
        let is_said = |(decided, needed): &(Option<StampedMoment>, Vec<KeptInfo>)| {
            lsn(&oldest) >= lsn(decided) && numbers(kept).is_subset(&numbers(needed))
        };
        self.decided = self.decided.take().filter(|decided| !is_said(decided));
        let (oldest, kept) = self.decided.as_ref().map_or((oldest, kept), |(oldest, kept)| (*oldest, kept));
        self.catalogue.begin_at(oldest.as_ref(), kept);
    }

    /// The files.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The directory's state.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it is sealed by at rest; empty where it is not.
    #[must_use]
    pub fn keys(&self) -> &Arc<Keyring> {
        &self.keys
    }

    /// The journal.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Reads the journal.
    #[must_use]
    pub fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    /// The base disks: others when the manifest names a merge or its end.
    #[must_use]
    pub fn bases(&self) -> &Arc<Bases> {
        &self.bases
    }

    /// What can be restored.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// What can be restored, for the owner to keep up to date.
    pub fn catalogue_mut(&mut self) -> &mut Catalogue {
        &mut self.catalogue
    }

    /// The way to an LSN of a timeline through the trunk's journal.
    ///
    /// # Errors
    /// When the timeline is not known.
    pub fn path(&self, timeline: Timeline, lsn: Lsn) -> Result<Vec<PathElement>, ReplicaError> {
        let path = self.catalogue.path(timeline);
        if path.is_empty() {
            return Err(ReplicaError::UnknownTimeline { timeline });
        }
        let element = |(branch, upto): &(&Branch, Lsn)| PathElement {
            reader: Arc::clone(&self.reader),
            snapshot: self.snapshot.clone(),
            timeline: branch.timeline,
            upto: lsn.min(*upto),
        };
        Ok(path.iter().rev().map(element).collect())
    }

    /// What a view of an LSN of a timeline of the trunk stands on: bases, and the way above them.
    ///
    /// # Errors
    /// When the timeline is not known, the moment is merged and not kept, or what keeps it cannot be read.
    pub fn ground(&self, timeline: Timeline, lsn: Lsn) -> Result<Ground, ReplicaError> {
        // LSNs grow along the trunk: what is below is before.
        let merged = self.manifest.oldest().is_some_and(|oldest| lsn < oldest.lsn);
        if !merged {
            return Ok((self.path(timeline, lsn)?, Arc::clone(&self.bases)));
        }
        let number = self.manifest.kept_at(timeline, lsn).ok_or(ReplicaError::Merged { timeline, lsn })?.number;
        let path = kept::path(self.storage.as_ref(), &self.manifest.kept, number, (&self.keys, &self.reader))?;
        // Nothing lies over what a merge changes there: what it leaves of a block is not enough.
        Ok((path, Arc::new(open_bases(&self.storage, &self.manifest, &self.keys, false)?)))
    }

    /// The disks that were complete at an LSN of a timeline of the trunk, as they were. Whether it is restorable is for the caller
    /// to ask first.
    ///
    /// # Errors
    /// When the timeline is not known or the journal does not reach so far.
    pub fn view(&self, timeline: Timeline, lsn: Lsn) -> Result<ReplicaView, ReplicaError> {
        Ok(ReplicaView::open(self.ground(timeline, lsn)?, self.complete_disks(timeline, lsn))?)
    }
}

/// That the bases which the manifest names are there now, and open: who has them open already does not see that they are gone.
///
/// # Errors
/// Why one does not open.
pub fn check_bases(storage: &Arc<dyn Storage>, manifest: &Manifest, keys: &Arc<Keyring>) -> Result<(), BaseError> {
    open_bases(storage, manifest, keys, false)?.check()
}

/// Opens the bases that the manifest names; of one that does not open is kept why. `covered`: whoever reads them lays over them what the merge that is under way changes.
fn open_bases(
    storage: &Arc<dyn Storage>,
    manifest: &Manifest,
    keys: &Arc<Keyring>,
    covered: bool,
) -> Result<Bases, BaseError> {
    let mut bases = Bases::default();
    for (disk, base) in manifest.disks.iter().filter_map(|disk| Some((disk.id, disk.base?))) {
        match Base::open_with(storage.as_ref(), manifest.replica, disk, base.into(), Arc::clone(keys)) {
            Ok(base) => bases.insert(disk, Arc::new(base)),
            Err(error) => bases.insert_damaged(disk, error),
        }
    }
    if let Some(merge) = manifest.merge.filter(|_| covered) {
        rests::expect_torn(storage.as_ref(), &bases, merge)?;
        return Ok(bases.changed_by(merge));
    }
    Ok(bases)
}

fn branch_of(info: &crate::journal::TimelineInfo) -> Branch {
    let role = if info.role == TimelineRole::Trunk { Role::Trunk } else { Role::Session };
    let mut branch = Branch::new(info.id, info.number, info.parent, info.fork, role);
    branch.open = info.state == TimelineState::Open;
    branch
}

/// Folds what the journal holds into the catalogue.
fn add_branches(
    catalogue: &mut Catalogue,
    manifest: &Manifest,
    snapshot: &Snapshot,
    reader: &Reader,
    safe: Lsn,
) -> Result<(), ReplicaError> {
    let mut events: BTreeMap<Timeline, Vec<Event>> = BTreeMap::new();
    for event in reader.events(snapshot)? {
        events.entry(event.timeline).or_default().push(event);
    }
    let oldest = manifest.oldest();
    for info in &manifest.timelines {
        let past = info.parent.and_then(|parent| catalogue.branch(parent)?.last());
        let mut branch = branch_of(info).after(past);
        if let Some(oldest) = oldest.filter(|oldest| oldest.timeline == info.id) {
            branch.begin_at(&oldest);
        }
        events.remove(&info.id).into_iter().flatten().for_each(|event| branch.handle(event));
        // Segment by segment, so that each clock epoch's span ends with the stamp of its own last record.
        let mut frontiers = reader.frontiers(snapshot, info.id)?;
        let ends_at = frontiers.last().map(|last| last.settled.min(safe));
        if let (Some(last), Some(lsn)) = (frontiers.last_mut(), ends_at) {
            // Behind it may lie records that are not settled, and are not restorable.
            last.last = reader.stamp(snapshot, info.id, lsn).unwrap_or(last.last);
        }
        for frontier in frontiers {
            branch.advance(frontier.settled.min(safe), frontier.last);
        }
        catalogue.insert(branch);
    }
    catalogue.begin_at(oldest.as_ref(), &manifest.kept);
    if let (Some(oldest), Some(mark)) = (&oldest, &manifest.oldest_point) {
        catalogue.begin_with(oldest, mark);
    }
    add_sessions(catalogue, manifest);
    Ok(())
}

/// Sessions are branches too; what is written in them is in stores of their own.
fn add_sessions(catalogue: &mut Catalogue, manifest: &Manifest) {
    let known = |timeline: Timeline| manifest.sessions.iter().any(|session| session.timeline == timeline);
    let gone = |branch: &&Branch| branch.role == Role::Session && !known(branch.timeline);
    for timeline in catalogue.branches().into_iter().filter(gone).map(|branch| branch.timeline).collect::<Vec<_>>() {
        catalogue.remove(timeline);
    }
    let trunk = manifest.timelines.len() as u32;
    for (number, session) in (trunk + 1..).zip(&manifest.sessions) {
        catalogue.insert(Branch::new(session.timeline, number, Some(session.parent), session.fork, Role::Session));
    }
}
