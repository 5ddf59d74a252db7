//! What differs between two moments of a replica, or between a moment and a raw image or device; and their digests.

use crate::device::Device;
use crate::file_device::FileDevice;
use crate::host::document;
use crate::moment::{MomentDisk, MomentDisks};
use crate::report::{At, Problem, ProblemClass};
use crate::restore::{OnProgress, no_disk};
use cdp_core::journal::ReadError;
use cdp_core::replica::content::{Content, DiskView};
use cdp_core::replica::diff::{Diff, DiffError};
use cdp_core::replica::digest::digest;
use cdp_core::replica::{ReplicaView, ViewDisk};
use cdp_core::types::Extent;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// How many runs of a file are asked for at once.
const RUNS: usize = 1024;

/// What a run of blocks reads as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something that is not all zeros.
    Data,
    /// Zeros.
    Zero,
}

/// Something that is not the same on both sides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Difference {
    /// A run of blocks.
    Extent {
        /// The disk.
        disk: String,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// What the second side reads as.
        kind: Kind,
    },
    /// The disk's size. What only one side has is compared with zeros.
    Size {
        /// The disk.
        disk: String,
        /// Bytes on the first side.
        from_size: u64,
        /// Bytes on the second side.
        to_size: u64,
    },
}

/// Which of the two sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// The moment of `--from`.
    From,
    /// The moment of `--to`.
    To,
    /// The file.
    With,
}

/// The digest of a disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskDigest {
    /// The disk.
    pub disk: String,
    /// On which side.
    pub of: Of,
    /// The moment; a file has none.
    pub at: Option<At>,
    /// Bytes.
    pub size: u64,
    /// The tree's root, in hex.
    pub digest: String,
}

/// A raw image or block device to compare with.
#[derive(Debug)]
pub struct Raw {
    path: PathBuf,
    device: FileDevice,
}

impl Raw {
    /// Opens it to be read, without any lock: it may be in use, and what is written meanwhile may be seen or not.
    ///
    /// # Errors
    /// When it cannot be opened, or is neither a file nor a block device.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let failed = |error: io::Error| {
            let message = format!("cannot open {}: {error}", path.display());
            Problem::new(ProblemClass::Failed, "with", message).hint("give a raw image or a block device with --with")
        };
        // Asked first: to open a pipe would wait for somebody who writes to it.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let message = format!("{} is neither a raw image nor a block device", path.display());
            return Err(Problem::new(ProblemClass::Failed, "with", message));
        }
        let device = FileDevice::open(path, true).map_err(failed)?;
        Ok(Self { path: path.to_owned(), device })
    }

    fn unreadable(&self, error: &io::Error) -> Problem {
        let message = format!("cannot read {}: {error}", self.path.display());
        Problem::new(ProblemClass::Failed, "with", message)
    }
}

impl Content for Raw {
    type Error = Problem;

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Problem> {
        self.device.read(offset, out).map_err(|error| self.unreadable(&error))
    }

    /// Its holes.
    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, Problem> {
        let (mut at, mut runs) = (range.offset, Vec::new());
        while at < range.end() {
            let found =
                self.device.block_status(at, range.end() - at, RUNS).map_err(|error| self.unreadable(&error))?;
            for status in found {
                runs.push((Extent::new(at, status.length), status.zero));
                at += status.length;
            }
        }
        Ok(runs)
    }
}

fn unreadable(error: ReadError) -> Problem {
    document::unreadable(&error.into())
}

fn stopped() -> Problem {
    Problem::new(ProblemClass::Failed, "stopped", "stopped before the end: there may be more than what was shown")
}

/// Compares the disks of two moments of a replica, or the one that is named; `found` gets every difference in order of disks and
/// offsets. `progress` is told bytes that were looked at and bytes in all.
///
/// # Errors
/// When there is no such disk, a byte cannot be read or does not verify, or `progress` said stop.
pub fn differences(
    from: &ReplicaView,
    to: &ReplicaView,
    disk: Option<&str>,
    progress: OnProgress<'_>,
    found: &mut dyn FnMut(Difference),
) -> Result<(), Problem> {
    let pairs = pairs(from, to, disk)?;
    let total = pairs.iter().map(|(a, b)| a.size.max(b.size)).sum();
    let mut before = 0;
    for (a, b) in pairs {
        let (name, size) = (a.name.clone(), a.size.max(b.size));
        let sides = (DiskView::new(from, a), DiskView::new(to, b));
        let mut told = |done: u64| progress(before + done, total);
        compare(&name, (&sides.0, unreadable), (&sides.1, unreadable), &mut told, found)?;
        before += size;
    }
    Ok(())
}

/// Compares the one disk of a moment, or the one that is named, with a file or device. Else as [`differences`].
///
/// # Errors
/// As of [`differences`]; also when the moment has several disks and none is named.
pub fn differences_with(
    from: &dyn MomentDisks,
    raw: &Raw,
    disk: Option<&str>,
    progress: OnProgress<'_>,
    found: &mut dyn FnMut(Difference),
) -> Result<(), Problem> {
    let disk = the_disk(from, disk)?;
    let total = disk.size.max(raw.size());
    let mut told = |done: u64| progress(done, total);
    let name = disk.name.clone();
    let side = MomentDisk::new(from, disk);
    compare(&name, (&side, |problem| problem), (raw, |problem| problem), &mut told, found)
}

/// The one disk of a moment that a file can be compared with.
fn the_disk(view: &dyn MomentDisks, name: Option<&str>) -> Result<ViewDisk, Problem> {
    let disks = view.disks();
    let names = || disks.iter().map(|disk| disk.name.clone()).collect::<Vec<_>>();
    match (name, disks) {
        (Some(name), disks) => {
            disks.iter().find(|disk| disk.name == name).cloned().ok_or_else(|| no_disk(name, &names()))
        }
        (None, [disk]) => Ok(disk.clone()),
        (None, _) => {
            let message = format!("the moment has several disks ({}), and one file is one disk", names().join(", "));
            Err(Problem::new(ProblemClass::Refused, "several-disks", message).hint("choose one with --disk"))
        }
    }
}

/// The disks of both moments. One that is there at one of them only has no bytes at the other.
fn pairs(from: &ReplicaView, to: &ReplicaView, name: Option<&str>) -> Result<Vec<(ViewDisk, ViewDisk)>, Problem> {
    let at = |view: &ReplicaView, disk: &ViewDisk| {
        let found = view.disks().iter().find(|found| found.id == disk.id).cloned();
        found.unwrap_or_else(|| ViewDisk { size: 0, ..disk.clone() })
    };
    let added = to.disks().iter().filter(|disk| from.disks().iter().all(|known| known.id != disk.id));
    let all: Vec<_> = from.disks().iter().chain(added).map(|disk| (at(from, disk), at(to, disk))).collect();
    let Some(name) = name else { return Ok(all) };
    let names: Vec<_> = all.iter().map(|(disk, _)| disk.name.clone()).collect();
    let chosen: Vec<_> = all.into_iter().filter(|(a, b)| a.name == name || b.name == name).collect();
    if chosen.is_empty() { Err(no_disk(name, &names)) } else { Ok(chosen) }
}

fn compare<A: Content, B: Content>(
    disk: &str,
    (from, why_from): (&A, impl Fn(A::Error) -> Problem),
    (to, why_to): (&B, impl Fn(B::Error) -> Problem),
    progress: &mut dyn FnMut(u64) -> bool,
    found: &mut dyn FnMut(Difference),
) -> Result<(), Problem> {
    let (from_size, to_size) = (from.size(), to.size());
    if from_size != to_size {
        found(Difference::Size { disk: disk.to_owned(), from_size, to_size });
    }
    let mut diff = Diff::new(from, to);
    loop {
        let went_on = diff.step(&mut |change| {
            let kind = if change.zero { Kind::Zero } else { Kind::Data };
            let Extent { offset, length } = change.extent;
            found(Difference::Extent { disk: disk.to_owned(), offset, length, kind });
        });
        let went_on = went_on.map_err(|error| match error {
            DiffError::From(error) => why_from(error),
            DiffError::To(error) => why_to(error),
        })?;
        if !went_on {
            return Ok(());
        }
        if !progress(diff.position()) {
            return Err(stopped());
        }
    }
}

/// The digests of a moment's disks, or of the one that is named.
///
/// # Errors
/// When there is no such disk, a byte cannot be read or does not verify, or `progress` said stop.
pub fn digests(
    view: &ReplicaView,
    (of, at): (Of, &At),
    disk: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<Vec<DiskDigest>, Problem> {
    let disks = match disk {
        Some(name) => vec![the_disk(view, Some(name))?],
        None => view.disks().to_vec(),
    };
    let total = disks.iter().map(|disk| disk.size).sum();
    let mut before = 0;
    let mut found = Vec::new();
    for disk in disks {
        let content = DiskView::new(view, disk.clone());
        let made = digest(&content, |done| progress(before + done, total)).map_err(unreadable)?.ok_or_else(stopped)?;
        let (at, digest) = (Some(at.clone()), made.to_string());
        found.push(DiskDigest { disk: disk.name, of, at, size: made.size, digest });
        before += disk.size;
    }
    Ok(found)
}

/// The digest of a file, which counts as that disk of the moment.
///
/// # Errors
/// As of [`digests`]; also when the moment has several disks and none is named.
pub fn digest_with(
    view: &dyn MomentDisks,
    raw: &Raw,
    disk: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<DiskDigest, Problem> {
    let disk = the_disk(view, disk)?.name;
    let made = digest(raw, |done| progress(done, raw.size()))?.ok_or_else(stopped)?;
    Ok(DiskDigest { disk, of: Of::With, at: None, size: made.size, digest: made.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::replica::Bases;
    use cdp_core::types::DiskId;
    use std::io::{Seek, SeekFrom, Write};
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    /// Disks without a base and without a record: all zeros.
    fn view(disks: &[(u16, u64)]) -> ReplicaView {
        let disk = |&(id, size): &(u16, u64)| ViewDisk { id: DiskId::new(id).unwrap(), name: format!("d{id}"), size };
        ReplicaView::open((Vec::new(), Arc::new(Bases::default())), disks.iter().map(disk).collect()).unwrap()
    }

    /// What is found, and the last that was told of the way.
    fn find(
        from: &ReplicaView,
        to: &ReplicaView,
        disk: Option<&str>,
    ) -> Result<(Vec<Difference>, (u64, u64)), Problem> {
        let (mut found, mut way) = (Vec::new(), (0, 0));
        let mut told = |done, total| {
            assert!(way.0 <= done && done <= total, "{way:?}, then {done} of {total}");
            way = (done, total);
            true
        };
        differences(from, to, disk, &mut told, &mut |difference| found.push(difference))?;
        Ok((found, way))
    }

    fn find_with(from: &ReplicaView, raw: &Raw, disk: Option<&str>) -> Result<(Vec<Difference>, (u64, u64)), Problem> {
        let (mut found, mut way) = (Vec::new(), (0, 0));
        let mut told = |done, total| {
            way = (done, total);
            true
        };
        differences_with(from, raw, disk, &mut told, &mut |difference| found.push(difference))?;
        Ok((found, way))
    }

    fn size(disk: &str, from_size: u64, to_size: u64) -> Difference {
        Difference::Size { disk: disk.into(), from_size, to_size }
    }

    #[test]
    fn disks_that_grew_came_or_went_are_named_with_their_sizes() {
        let (from, to) = (view(&[(1, MIB), (2, 70 * MIB), (3, MIB)]), view(&[(1, 2 * MIB), (3, MIB), (4, 3 * MIB)]));
        let (found, way) = find(&from, &to, None).unwrap();
        assert_eq!(found, [size("d1", MIB, 2 * MIB), size("d2", 70 * MIB, 0), size("d4", 0, 3 * MIB)]);
        assert_eq!(way, (76 * MIB, 76 * MIB));
        let (found, _) = find(&from, &to, Some("d4")).unwrap();
        assert_eq!(found, [size("d4", 0, 3 * MIB)]);
        let none = find(&from, &to, Some("d5")).unwrap_err();
        assert_eq!((none.class, none.code.as_str()), (ProblemClass::Usage, "no-disk"));
        assert!(none.message.ends_with("d1, d2, d3, d4"), "{none}");
    }

    #[test]
    fn a_file_with_holes_is_one_disk() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(70 * MIB).unwrap();
        file.seek(SeekFrom::Start(65 * MIB + 100)).unwrap();
        file.write_all(b"x").unwrap();
        let raw = Raw::open(file.path()).unwrap();
        let zeros = raw.zeros(Extent::new(0, 70 * MIB)).unwrap();
        let known: u64 = zeros.iter().filter(|(_, zero)| *zero).map(|(extent, _)| extent.length).sum();
        assert!((60 * MIB..=70 * MIB - 4096).contains(&known), "{zeros:?}");
        let (one, two) = (view(&[(1, 70 * MIB)]), view(&[(1, MIB), (2, 70 * MIB)]));
        let extent = |disk: &str| {
            let (offset, length) = (65 * MIB, 4096);
            Difference::Extent { disk: disk.into(), offset, length, kind: Kind::Data }
        };
        assert_eq!(find_with(&one, &raw, None).unwrap(), (vec![extent("d1")], (70 * MIB, 70 * MIB)));
        assert_eq!(find_with(&two, &raw, Some("d2")).unwrap().0, [extent("d2")]);
        let which = find_with(&two, &raw, None).unwrap_err();
        assert_eq!((which.class, which.code.as_str()), (ProblemClass::Refused, "several-disks"));
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let (from, to) = (view(&[(1, 200 * MIB)]), view(&[(1, 200 * MIB)]));
        let mut steps = 0;
        let mut told = |done, _| {
            steps += 1;
            done < 100 * MIB
        };
        let stopped = differences(&from, &to, None, &mut told, &mut |_| {}).unwrap_err();
        assert_eq!((stopped.code.as_str(), steps), ("stopped", 2));
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(2 * MIB).unwrap();
        let raw = Raw::open(file.path()).unwrap();
        assert_eq!(digest_with(&from, &raw, None, &mut |done, _| done < MIB).unwrap_err().code, "stopped");
    }

    /// One that grows shorter while it is read is an error, and no zeros.
    #[test]
    fn a_file_that_ends_too_early_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 8192]).unwrap();
        let raw = Raw::open(file.path()).unwrap();
        file.as_file().set_len(4096).unwrap();
        let error = raw.read(0, &mut [0; 8192]).unwrap_err();
        assert!(error.message.contains(file.path().to_str().unwrap()), "{error}");
    }
}
