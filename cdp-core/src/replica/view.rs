//! The disks of a group as they were at one moment, to be read: journal above, base below, every byte verified.

use super::base::{Base, BaseError};
use super::content::Provenance;
use crate::journal::{Below, Origin, PathElement, Piece, ReadError, StampedMoment, View};
use crate::types::{DiskId, Extent};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Memory for region maps of one view, in bytes.
const REGIONS_BYTES: u64 = 256 << 20;
/// How much of a disk is looked at at once when its content is walked through, in bytes.
const STRIDE: u64 = 64 << 20;

/// The bases of a replica's disks. A disk without one (not yet seeded) reads as zeros below the journal.
#[derive(Debug, Default)]
pub struct Bases {
    disks: BTreeMap<DiskId, Arc<Base>>,
    /// Those that did not open: what lies in them cannot be read, what lies above can.
    damaged: BTreeMap<DiskId, BaseError>,
    /// The merge under way that may change them.
    merge: Option<StampedMoment>,
}

impl Bases {
    /// The same, opened to be changed by a merge that the manifest names: who reads them lays the journal up to its end over them.
    /// Views of older moments stand on others, where what it changes does not verify.
    #[must_use]
    pub fn changed_by(self, merge: StampedMoment) -> Self {
        Self { merge: Some(merge), ..self }
    }

    /// The merge that may change them.
    pub(super) fn merge(&self) -> Option<StampedMoment> {
        self.merge
    }

    /// Adds a disk's base.
    pub fn insert(&mut self, disk: DiskId, base: Arc<Base>) {
        self.disks.insert(disk, base);
    }

    /// Adds a disk whose base did not open, and why.
    pub(super) fn insert_damaged(&mut self, disk: DiskId, error: BaseError) {
        self.damaged.insert(disk, error);
    }

    /// That all of them opened: who changes them needs them whole.
    ///
    /// # Errors
    /// Why one did not.
    pub fn check(&self) -> Result<(), BaseError> {
        self.damaged.values().next().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// A disk's base for who reads it.
    ///
    /// # Errors
    /// Why it did not open.
    fn open(&self, disk: DiskId) -> Result<Option<&Arc<Base>>, BaseError> {
        self.damaged.get(&disk).map_or(Ok(self.disks.get(&disk)), |error| Err(error.clone()))
    }

    /// A disk's base, if it has one that opened.
    #[must_use]
    pub fn get(&self, disk: DiskId) -> Option<&Arc<Base>> {
        self.disks.get(&disk)
    }

    /// Bytes that all of them hold.
    ///
    /// # Errors
    /// When the media fail.
    pub fn stored_bytes(&self) -> Result<u64, BaseError> {
        self.disks.values().map(|base| base.stored_bytes()).sum()
    }
}

impl Below for Bases {
    fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self.open(disk)? {
            Some(base) => Ok(base.read(offset, out)?),
            None => {
                out.fill(0);
                Ok(())
            }
        }
    }
}

/// A disk of a view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewDisk {
    /// Its number in the group.
    pub id: DiskId,
    /// Its name in the group.
    pub name: String,
    /// Its size at the moment, in bytes.
    pub size: u64,
}

/// A run of a disk's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Which bytes.
    pub extent: Extent,
    /// They read as zeros, and that is known without reading them.
    pub zero: bool,
    /// They need not be allocated.
    pub hole: bool,
}

/// What a view stands on: the way through journals, and the bases below.
pub type Ground = (Vec<PathElement>, Arc<Bases>);

/// Finds the same moment again after what it stood on was merged, or says that it was given up; none where neither is what
/// happened.
pub type Renew = Box<dyn Fn() -> Option<Result<Ground, ReadError>> + Send + Sync>;

/// How often in a row a view is renewed before what it cannot read counts as damaged.
const RENEWALS_MAX: usize = 8;

/// The disks of a group at one moment. Any number of readers at once.
///
/// What it stands on may be merged while it is read: segments go, blocks of a base change. That is noticed, since every byte is
/// verified, and the moment is found again in its new place.
pub struct ReplicaView {
    /// What a session wrote above the moment.
    top: Option<View>,
    standing: RwLock<Arc<Standing>>,
    renew: Option<Renew>,
    disks: Vec<ViewDisk>,
}

#[derive(Debug)]
struct Standing {
    view: View,
    bases: Arc<Bases>,
}

impl std::fmt::Debug for ReplicaView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaView").field("disks", &self.disks).finish_non_exhaustive()
    }
}

impl Standing {
    fn open((path, bases): Ground) -> Result<Arc<Self>, ReadError> {
        Ok(Arc::new(Self { view: View::open(&path, REGIONS_BYTES)?, bases }))
    }

    /// The runs of a base inside `range`: whether each may hold anything but zeros.
    fn below(&self, disk: DiskId, range: Extent) -> Result<Vec<(Extent, bool)>, ReadError> {
        let failed = |source: BaseError| ReadError::Below { disk, offset: range.offset, source: source.into() };
        match self.bases.open(disk).map_err(failed)? {
            Some(base) => base.runs(range).map_err(failed),
            None => Ok(vec![(range, false)]),
        }
    }

    fn runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, ReadError> {
        let mut runs = Vec::new();
        for piece in self.view.resolve(disk, range)? {
            match Run::of(&piece) {
                Some(run) => runs.push(run),
                None => {
                    let below = self.below(disk, piece.extent)?.into_iter();
                    runs.extend(below.map(|(extent, data)| Run { extent, zero: !data, hole: !data }));
                }
            }
        }
        Ok(runs)
    }

    fn provenance(&self, disk: DiskId, range: Extent) -> Result<Vec<(Extent, Provenance)>, ReadError> {
        let failed = |source: BaseError| ReadError::Below { disk, offset: range.offset, source: source.into() };
        let below = || -> Result<Provenance, ReadError> {
            let base = self.bases.open(disk).map_err(failed)?;
            Ok(base.map_or(Provenance::Zeros, |base| Provenance::Base { root: base.root().digest }))
        };
        let pieces = self.view.resolve(disk, range)?.into_iter();
        pieces.map(|piece| Ok((piece.extent, made(piece.origin).map_or_else(below, Ok)?))).collect()
    }
}

impl Run {
    /// Of a piece that a journal says something about.
    fn of(piece: &Piece) -> Option<Self> {
        let (zero, hole) = match piece.origin {
            Origin::Data { .. } => (false, false),
            Origin::Zero { discarded, .. } => (true, discarded),
            Origin::Below => return None,
        };
        Some(Self { extent: piece.extent, zero, hole })
    }
}

/// By whom, if a journal knows.
fn made(origin: Origin) -> Option<Provenance> {
    match origin {
        Origin::Data { timeline, lsn } => Some(Provenance::Record { timeline, lsn }),
        Origin::Zero { .. } => Some(Provenance::Zeros),
        Origin::Below => None,
    }
}

/// What lies below a session.
struct Lower<'a>(&'a ReplicaView);

impl Below for Lower<'_> {
    fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_standing(disk, offset, out)?)
    }
}

impl ReplicaView {
    /// Opens the moment that `path` ends at.
    ///
    /// # Errors
    /// When a journal does not reach as far as the path says.
    pub fn open(ground: Ground, disks: Vec<ViewDisk>) -> Result<Self, ReadError> {
        Ok(Self { top: None, standing: RwLock::new(Standing::open(ground)?), renew: None, disks })
    }

    /// With a way to find the moment again when what it stands on was merged.
    #[must_use]
    pub fn renewed_by(self, renew: Renew) -> Self {
        Self { renew: Some(renew), ..self }
    }

    /// With a session's own writes above it.
    ///
    /// # Errors
    /// When the session's journal does not reach as far as its path says.
    pub(super) fn under(self, path: &[PathElement]) -> Result<Self, ReadError> {
        Ok(Self { top: Some(View::open(path, REGIONS_BYTES)?), ..self })
    }

    /// The disks that are there at the moment, in the order of their numbers.
    #[must_use]
    pub fn disks(&self) -> &[ViewDisk] {
        &self.disks
    }

    /// What a session wrote above the moment.
    pub(super) fn top(&self) -> Option<&View> {
        self.top.as_ref()
    }

    /// Tries, and again on what the moment stands on now.
    fn with<T>(&self, mut attempt: impl FnMut(&Standing) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let mut standing = Arc::clone(&self.standing.read().unwrap_or_else(PoisonError::into_inner));
        for _ in 0..RENEWALS_MAX {
            match attempt(&standing) {
                Ok(done) => return Ok(done),
                Err(error) => standing = self.renewed(&standing).ok_or(error)??,
            }
        }
        attempt(&standing)
    }

    /// What the moment stands on now, if that is not what it stood on.
    fn renewed(&self, before: &Arc<Standing>) -> Option<Result<Arc<Standing>, ReadError>> {
        let renew = self.renew.as_ref()?;
        let mut standing = self.standing.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&standing, before) {
            match renew()?.and_then(Standing::open) {
                Ok(renewed) => *standing = renewed,
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(Arc::clone(&standing)))
    }

    fn read_standing(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.with(|standing| standing.view.read(disk, offset, out, standing.bases.as_ref()))
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// When anything that is needed cannot be read or does not verify; what `out` holds then means nothing.
    pub fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        match &self.top {
            Some(top) => top.read(disk, offset, out, &Lower(self)),
            None => self.read_standing(disk, offset, out),
        }
    }

    /// What the range is made of, in order, without a gap: neighbours of one kind are one run.
    ///
    /// # Errors
    /// When an index cannot be read or does not verify.
    pub fn runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, ReadError> {
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |run: Run| {
            if run.extent.is_empty() {
                return;
            }
            match runs.last_mut().filter(|last| (last.zero, last.hole) == (run.zero, run.hole)) {
                Some(last) => last.extent.length += run.extent.length,
                None => runs.push(run),
            }
        };
        let standing = |range: Extent| self.with(|standing| standing.runs(disk, range));
        match &self.top {
            None => standing(range)?.into_iter().for_each(add),
            Some(top) => {
                for piece in top.resolve(disk, range)? {
                    match Run::of(&piece) {
                        Some(run) => add(run),
                        None => standing(piece.extent)?.into_iter().for_each(&mut add),
                    }
                }
            }
        }
        Ok(runs)
    }

    /// What the range is made of by who wrote it, in order, without a gap: from the index alone.
    ///
    /// # Errors
    /// When an index cannot be read or does not verify.
    pub fn provenance(&self, disk: DiskId, range: Extent) -> Result<Vec<(Extent, Provenance)>, ReadError> {
        let standing = |range: Extent| self.with(|standing| standing.provenance(disk, range));
        let Some(top) = &self.top else { return standing(range) };
        let mut runs = Vec::new();
        for piece in top.resolve(disk, range)? {
            match made(piece.origin) {
                Some(provenance) => runs.push((piece.extent, provenance)),
                None => runs.extend(standing(piece.extent)?),
            }
        }
        Ok(runs)
    }

    /// Walks through a whole disk: `visit` gets every run that is not known to be zeros, read and verified, in pieces of at
    /// most `buffer` bytes; it returns whether to go on.
    ///
    /// # Errors
    /// Of reading, or what `visit` returns.
    pub fn walk<E: From<ReadError>>(
        &self,
        disk: &ViewDisk,
        buffer: &mut [u8],
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while at < disk.size {
            let stride = Extent::new(at, STRIDE.min(disk.size - at));
            for run in self.runs(disk.id, stride)?.into_iter().filter(|run| !run.zero) {
                let mut from = run.extent.offset;
                while from < run.extent.end() {
                    let length = (run.extent.end() - from).min(buffer.len() as u64) as usize;
                    self.read(disk.id, from, &mut buffer[..length])?;
                    visit(from, &buffer[..length])?;
                    from += length as u64;
                }
            }
            at = stride.end();
        }
        Ok(())
    }
}
