//! First copies that are not complete, and from where they go on; `FORMAT.md`, section 6, says why that is right.

use super::codec::disk_id;
use super::{BaseInfo, Manifest};
use crate::journal::bytes::{FormatError, Put, Take};
use crate::types::{DISK_MAX, DiskId, Timeline};
use std::collections::BTreeSet;

const AT_REST: u8 = 1;
const ADOPTED: u8 = 2;

/// A first copy that is not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeedingInfo {
    /// Of which disk.
    pub disk: DiskId,
    /// Bytes of the disk.
    pub size: u64,
    /// How far it is.
    pub point: SeedingPoint,
    /// The timeline that it was begun in. In another one it has to be compared with the source; it is not changed by that.
    pub since: Timeline,
    /// Counts how often it was begun or went on, from 1: what was sent to an older attempt is not taken.
    pub attempt: u64,
    /// Its blocks are sealed at rest.
    pub at_rest: bool,
    /// It is made of an image that was there before.
    pub adopted: bool,
}

/// Where a first copy can go on: everything before is in image and sidecar, and synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeedingPoint {
    /// Bytes from the disk's beginning: a border of pages of the sidecar, or the disk's end.
    pub done: u64,
    /// BLAKE3 of what the digest table will say of these pages.
    pub root: [u8; 32],
}

impl Default for SeedingPoint {
    /// The disk's beginning.
    fn default() -> Self {
        Self { done: 0, root: *blake3::hash(&[]).as_bytes() }
    }
}

impl SeedingInfo {
    /// A copy that begins, by its first attempt.
    #[must_use]
    pub fn new(disk: DiskId, size: u64, since: Timeline) -> Self {
        Self { disk, size, point: SeedingPoint::default(), since, attempt: 1, at_rest: false, adopted: false }
    }

    pub(super) fn put(&self, put: &mut Put) {
        put.u16(self.disk.get()).u64(self.point.done).u64(self.size).bytes(self.since.bytes()).u64(self.attempt);
        let (at_rest, adopted) = (u8::from(self.at_rest) * AT_REST, u8::from(self.adopted) * ADOPTED);
        put.u8(at_rest | adopted).bytes(&self.point.root);
    }

    pub(super) fn take(take: &mut Take<'_>) -> Result<Self, FormatError> {
        let disk = disk_id(take)?;
        let done = take.u64()?;
        let size = take.u64_if("seeding size", |size| (done..=DISK_MAX).contains(&size))?;
        let since = take.id("timeline", Timeline::new)?;
        let attempt = take.u64_if("attempt", |attempt| attempt != 0)?;
        let flags = take.kind("seeding flags", |flags| (flags <= AT_REST | ADOPTED).then_some(flags))?;
        let point = SeedingPoint { done, root: take.array()? };
        let (at_rest, adopted) = (flags & AT_REST != 0, flags & ADOPTED != 0);
        Ok(Self { disk, size, point, since, attempt, at_rest, adopted })
    }
}

impl Manifest {
    /// What is known of a disk's first copy, until its base is named.
    #[must_use]
    pub fn seeding_of(&self, disk: DiskId) -> Option<&SeedingInfo> {
        self.seeding.iter().find(|seeding| seeding.disk == disk)
    }

    /// A first copy begins, begins anew, or goes on; gives the number of this attempt, which holds once this is durable. `None`: the
    /// disk is not there any more, or has its base.
    pub fn begin_seeding(&mut self, info: SeedingInfo) -> Option<u64> {
        let before = self.seeding_of(info.disk).map_or(0, |seeding| seeding.attempt);
        let attempt = before.checked_add(1)?;
        self.disk(info.disk).filter(|disk| disk.base.is_none() && disk.removed.is_none())?;
        self.seeding.retain(|seeding| seeding.disk != info.disk);
        self.seeding.push(SeedingInfo { attempt, ..info });
        Some(attempt)
    }

    /// An attempt came so far, and all of it is synced. Whether it is noted: one that is over, or a point before the one that is
    /// named, is not.
    pub fn note_seeding(&mut self, disk: DiskId, attempt: u64, point: SeedingPoint) -> bool {
        let this = |seeding: &&mut SeedingInfo| seeding.disk == disk && seeding.attempt == attempt;
        let found = self.seeding.iter_mut().find(this);
        match found.filter(|seeding| (seeding.point.done..=seeding.size).contains(&point.done)) {
            Some(seeding) => {
                seeding.point = point;
                true
            }
            None => false,
        }
    }

    /// An attempt is through, and everything of it is durable: the disk has a base. Whether it is named: of an attempt that is
    /// over it is not.
    pub fn end_seeding(&mut self, disk: DiskId, attempt: u64, base: BaseInfo) -> bool {
        let is_this = self.seeding_of(disk).is_some_and(|seeding| seeding.attempt == attempt);
        let Some(info) = self.disks.iter_mut().find(|info| info.id == disk).filter(|_| is_this) else { return false };
        info.base = Some(base);
        self.seeding.retain(|seeding| seeding.disk != disk);
        true
    }

    /// The disk of which two copies are listed, if there is one.
    pub(super) fn seeded_twice(&self) -> Option<DiskId> {
        let mut disks = BTreeSet::new();
        self.seeding.iter().map(|seeding| seeding.disk).find(|disk| !disks.insert(*disk))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::full;
    use super::*;
    use crate::types::Lsn;

    fn disk(number: u16) -> DiskId {
        DiskId::new(number).unwrap()
    }

    /// A group with one disk that is not copied yet.
    fn uncopied() -> Manifest {
        let mut manifest = full();
        manifest.seeding.clear();
        (manifest.disks[0].base, manifest.disks[0].removed) = (None, None);
        manifest
    }

    fn info() -> SeedingInfo {
        SeedingInfo::new(disk(1), 1 << 30, Timeline::new([3; 16]).unwrap())
    }

    #[test]
    fn the_bytes_of_a_first_copy_are_these() {
        let point = SeedingPoint { done: 0x15_4000, root: [0xab; 32] };
        let info = SeedingInfo { point, attempt: 5, at_rest: true, adopted: true, ..info() };
        let mut put = Put(Vec::new());
        info.put(&mut put);
        let hex: String = put.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = [
            "0100",
            "0040150000000000",
            "0000004000000000",
            "03030303030303030303030303030303",
            "0500000000000000",
            "03",
            "abababababababababababababababababababababababababababababababab",
        ];
        assert_eq!(hex, expected.concat());
        assert_eq!(SeedingInfo::take(&mut Take::new("seeding", &put.0)), Ok(info));
        for (at, byte, what) in [(0, 0, "disk"), (17, 5, "seeding size"), (42, 4, "seeding flags"), (34, 0, "attempt")]
        {
            let mut bytes = put.0.clone();
            bytes[at] = byte;
            let error = SeedingInfo::take(&mut Take::new("seeding", &bytes)).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_disk_is_not_copied_twice_at_once() {
        let mut manifest = uncopied();
        manifest.seeding = vec![info(), info()];
        let refused = Manifest::decode(&manifest.encode()).unwrap_err().to_string();
        assert!(refused.contains("disk seeded twice"), "{refused}");
    }

    #[test]
    fn what_comes_late_from_an_attempt_that_is_over_changes_nothing() {
        let mut manifest = uncopied();
        let point = |done| SeedingPoint { done, root: [1; 32] };
        assert_eq!(manifest.begin_seeding(info()), Some(1));
        assert!(manifest.note_seeding(disk(1), 1, point(8192)));
        assert!(!manifest.note_seeding(disk(1), 1, point(4096)), "it goes back");
        assert!(!manifest.note_seeding(disk(1), 1, point((1 << 30) + 1)), "beyond the disk");
        let goes_on = *manifest.seeding_of(disk(1)).unwrap();
        assert_eq!(manifest.begin_seeding(goes_on), Some(2));
        assert!(!manifest.note_seeding(disk(1), 1, point(16384)));
        let base = BaseInfo { lsn: Lsn(0), generation: 1, size: 1 << 30, root: [2; 32], at_rest: false };
        assert!(!manifest.end_seeding(disk(1), 1, base));
        assert_eq!(manifest.seeding, [SeedingInfo { attempt: 2, point: point(8192), ..info() }]);
        assert!(manifest.end_seeding(disk(1), 2, base));
        assert_eq!((manifest.seeding.len(), manifest.disks[0].base), (0, Some(base)));
        assert_eq!(manifest.begin_seeding(info()), None, "it has its base");
        assert!(!manifest.end_seeding(disk(1), 2, base));
    }
}
