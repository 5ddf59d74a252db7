//! The disks of a moment, as whoever reads them knows them: of a replica here, or of one at another site.

use crate::host::document;
use crate::report::Problem;
use cdp_core::journal::ReadError;
use cdp_core::replica::content::Content;
use cdp_core::replica::{ReplicaView, Run, ViewDisk};
use cdp_core::types::{DiskId, Extent};

/// How much of a disk is looked at at once where that is at hand, in bytes.
const STRIDE: u64 = 64 << 20;

/// The disks of a group at one moment. Any number of readers at once.
pub trait MomentDisks: Send + Sync {
    /// The disks that are there, in the order of their numbers.
    fn disks(&self) -> &[ViewDisk];

    /// What the beginning of a range that is not empty is made of, in order, without a gap: at least one run, and none beyond it. Where
    /// they end before the range does, the rest is asked for again.
    ///
    /// # Errors
    /// When it cannot be known, or what knows it does not verify.
    fn runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, Problem>;

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// When anything that is needed cannot be read or does not verify; what `out` holds then means nothing.
    fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Problem>;

    /// How many reads are worth having under way at once, for somebody who reads everything.
    fn reads_at_once(&self) -> usize;
}

fn unreadable(error: ReadError) -> Problem {
    document::unreadable(&error.into())
}

/// Here every byte is verified by the thread that reads it.
impl MomentDisks for ReplicaView {
    fn disks(&self) -> &[ViewDisk] {
        Self::disks(self)
    }

    fn runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, Problem> {
        Self::runs(self, disk, Extent::new(range.offset, range.length.min(STRIDE))).map_err(unreadable)
    }

    fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Problem> {
        Self::read(self, disk, offset, out).map_err(unreadable)
    }

    fn reads_at_once(&self) -> usize {
        1
    }
}

/// One disk of a moment, to be compared.
#[derive(Clone)]
pub struct MomentDisk<'a> {
    moment: &'a dyn MomentDisks,
    disk: ViewDisk,
}

impl<'a> MomentDisk<'a> {
    /// This one.
    #[must_use]
    pub fn new(moment: &'a dyn MomentDisks, disk: ViewDisk) -> Self {
        Self { moment, disk }
    }
}

impl Content for MomentDisk<'_> {
    type Error = Problem;

    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Problem> {
        self.moment.read(self.disk.id, offset, out)
    }

    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, Problem> {
        let (mut found, mut left) = (Vec::new(), range);
        while !left.is_empty() {
            let runs = self.moment.runs(self.disk.id, left)?;
            let end = runs.last().map_or(left.end(), |run| run.extent.end());
            left = Extent::new(end, left.end() - end);
            found.extend(runs.iter().map(|run| (run.extent, run.zero)));
        }
        Ok(found)
    }
}
