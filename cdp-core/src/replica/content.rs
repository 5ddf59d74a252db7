//! Whatever holds the bytes of a disk, as digests and comparisons see it: a disk of a view, a file, a device.

use super::{ReplicaView, ViewDisk};
use crate::journal::ReadError;
use crate::types::{Extent, Lsn, Timeline};

/// Which act put bytes where they are. Two runs of the same place of the same disk that were made by the same act hold the same
/// bytes, so that nobody has to read them to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provenance {
    /// They are zeros.
    Zeros,
    /// A record wrote them.
    Record {
        /// Its branch of history: LSNs of two branches may be equal.
        timeline: Timeline,
        /// Its place in the order.
        lsn: Lsn,
    },
    /// They lie in the base whose digest table has this root.
    Base {
        /// The root.
        root: [u8; 32],
    },
    /// Nobody knows: only reading tells.
    Unknown,
}

/// The bytes of a disk.
pub trait Content {
    /// Why they cannot be read.
    type Error;

    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `out` from `offset`; the range lies inside the disk.
    ///
    /// # Errors
    /// When they cannot be read or do not verify; what `out` holds then means nothing.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Self::Error>;

    /// The runs of a range inside the disk, in order, without a gap: whether each is known to be zeros without reading it.
    ///
    /// # Errors
    /// When what knows it cannot be read or does not verify.
    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, Self::Error>;

    /// The runs of a range inside the disk, in order, without a gap, by what put them there. Reads no data, and no checksums
    /// of it either.
    ///
    /// # Errors
    /// When an index cannot be read or does not verify.
    fn provenance(&self, range: Extent) -> Result<Vec<(Extent, Provenance)>, Self::Error> {
        Ok(vec![(range, Provenance::Unknown)])
    }
}

/// One disk of a view.
#[derive(Clone, Debug)]
pub struct DiskView<'a> {
    view: &'a ReplicaView,
    disk: ViewDisk,
}

impl<'a> DiskView<'a> {
    /// The disk, with the size that it has at the view's moment: 0 where it is not there yet, or not any more.
    #[must_use]
    pub fn new(view: &'a ReplicaView, disk: ViewDisk) -> Self {
        Self { view, disk }
    }
}

impl Content for DiskView<'_> {
    type Error = ReadError;

    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.view.read(self.disk.id, offset, out)
    }

    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, ReadError> {
        Ok(self.view.runs(self.disk.id, range)?.into_iter().map(|run| (run.extent, run.zero)).collect())
    }

    fn provenance(&self, range: Extent) -> Result<Vec<(Extent, Provenance)>, ReadError> {
        self.view.provenance(self.disk.id, range)
    }
}
