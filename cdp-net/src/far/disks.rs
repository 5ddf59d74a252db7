//! Disks that join, leave and change while their group is protected.

use super::ids;
use cdp_core::types::{DiskId, Lsn};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A disk that joins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewDisk {
    /// Its number.
    #[serde(with = "ids::disk")]
    pub id: DiskId,
    /// Its name in the group.
    pub name: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Where its source is, for people.
    pub source: String,
    /// The first LSN at which it is there; zero: from the beginning.
    #[serde(with = "ids::lsn")]
    pub added: Lsn,
}

/// The size of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SizeOf {
    /// The disk.
    #[serde(with = "ids::disk")]
    pub disk: DiskId,
    /// Its bytes.
    pub size: u64,
}

/// What becomes of disks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisksEdit {
    /// One joins: records of it may follow.
    Joins(NewDisk),
    /// One that was to join does not: there are no records of it.
    Forget(#[serde(with = "ids::disk")] DiskId),
    /// One left: that is recorded durably.
    Left {
        /// Which.
        #[serde(with = "ids::disk")]
        disk: DiskId,
        /// From which LSN on it is gone.
        #[serde(with = "ids::lsn")]
        lsn: Lsn,
    },
    /// A size that records may reach, or that a source may be cut to.
    Announce(SizeOf),
    /// Sizes that are recorded durably.
    Sizes(Vec<SizeOf>),
}

/// What has to be known before a disk joins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// The first copy of the group was never complete: disks are not changed before it is.
    pub seeding: bool,
    /// The next number of a disk; none: they are used up.
    #[serde(with = "ids::option_disk")]
    pub free_disk: Option<DiskId>,
}

/// What somebody wants done to a disk by the protection that is going on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum DiskOrder {
    /// It joins the group.
    Add {
        /// The name that it gets.
        name: String,
        /// Its source, where the filter is.
        source: PathBuf,
    },
    /// It leaves the group.
    Remove {
        /// Its name.
        name: String,
    },
    /// It gets another size.
    Resize {
        /// Its name.
        name: String,
        /// The size; none: that of its source.
        size: Option<u64>,
        /// Data may be lost by that.
        force: bool,
    },
}
