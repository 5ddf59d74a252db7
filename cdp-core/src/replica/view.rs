//! The disks of a group as they were at one moment, to be read: journal above, base below, every byte verified.

use super::base::{Base, BaseError};
use super::content::Provenance;
use crate::journal::{Below, Origin, PathElement, ReadError, View};
use crate::types::{DiskId, Extent};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory for region maps of one view, in bytes.
const REGIONS_BYTES: u64 = 256 << 20;
/// How much of a disk is looked at at once when its content is walked through, in bytes.
const STRIDE: u64 = 64 << 20;

/// The bases of a replica's disks. A disk without one (not yet seeded) reads as zeros below the journal.
#[derive(Debug, Default)]
pub struct Bases(BTreeMap<DiskId, Arc<Base>>);

impl Bases {
    /// Adds a disk's base.
    pub fn insert(&mut self, disk: DiskId, base: Arc<Base>) {
        self.0.insert(disk, base);
    }

    /// A disk's base.
    #[must_use]
    pub fn get(&self, disk: DiskId) -> Option<&Arc<Base>> {
        self.0.get(&disk)
    }

    /// Bytes that all of them hold.
    ///
    /// # Errors
    /// When the media fail.
    pub fn stored_bytes(&self) -> Result<u64, BaseError> {
        self.0.values().map(|base| base.stored_bytes()).sum()
    }
}

impl Below for Bases {
    fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self.0.get(&disk) {
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

/// The disks of a group at one moment. Any number of readers at once.
#[derive(Debug)]
pub struct ReplicaView {
    view: View,
    bases: Arc<Bases>,
    disks: Vec<ViewDisk>,
}

impl ReplicaView {
    /// Opens the moment that `path` ends at.
    ///
    /// # Errors
    /// When a journal does not reach as far as the path says.
    pub fn open(path: &[PathElement], bases: Arc<Bases>, disks: Vec<ViewDisk>) -> Result<Self, ReadError> {
        let view = View::open(path, REGIONS_BYTES)?;
        Ok(Self { view, bases, disks })
    }

    /// The disks that are there at the moment, in the order of their numbers.
    #[must_use]
    pub fn disks(&self) -> &[ViewDisk] {
        &self.disks
    }

    /// The journal's part, for a session that writes above it.
    #[must_use]
    pub fn journal(&self) -> &View {
        &self.view
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// When anything that is needed cannot be read or does not verify; what `out` holds then means nothing.
    pub fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.view.read(disk, offset, out, self.bases.as_ref())
    }

    /// What the range is made of, in order, without a gap: neighbours of one kind are one run.
    ///
    /// # Errors
    /// When an index cannot be read or does not verify.
    pub fn runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, ReadError> {
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |extent: Extent, zero: bool, hole: bool| {
            if extent.is_empty() {
                return;
            }
            match runs.last_mut().filter(|last| (last.zero, last.hole) == (zero, hole)) {
                Some(last) => last.extent.length += extent.length,
                None => runs.push(Run { extent, zero, hole }),
            }
        };
        for piece in self.view.resolve(disk, range)? {
            match piece.origin {
                Origin::Data { .. } => add(piece.extent, false, false),
                Origin::Zero { discarded, .. } => add(piece.extent, true, discarded),
                Origin::Below => {
                    for (extent, data) in self.below(disk, piece.extent)? {
                        add(extent, !data, !data);
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
        let below =
            self.bases.get(disk).map_or(Provenance::Zeros, |base| Provenance::Base { root: base.root().digest });
        let made = |origin: Origin| match origin {
            Origin::Data { timeline, lsn } => Provenance::Record { timeline, lsn },
            Origin::Zero { .. } => Provenance::Zeros,
            Origin::Below => below,
        };
        Ok(self.view.resolve(disk, range)?.into_iter().map(|piece| (piece.extent, made(piece.origin))).collect())
    }

    /// The runs of the base inside `range`: whether each may hold anything but zeros.
    fn below(&self, disk: DiskId, range: Extent) -> Result<Vec<(Extent, bool)>, ReadError> {
        let Some(base) = self.bases.get(disk) else { return Ok(vec![(range, false)]) };
        base.runs(range).map_err(|source| ReadError::Below { disk, offset: range.offset, source: source.into() })
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
