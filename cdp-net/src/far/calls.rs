//! Calls between a filter and who keeps its replica, while both go on; and the numbers of all calls.

use super::ids;
use crate::report::{Lack, PointPolicy, State};
use cdp_core::frame::PointKinds;
use cdp_core::journal::{PointsMode, Policy};
use cdp_core::types::{DiskId, Extent, Lsn, SECTOR};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long [`Reach`] and [`Close`] wait before they answer: who asks looks then whether there is still a use in it.
pub const WAIT_MAX: Duration = Duration::from_millis(200);

/// What a call is. The numbers are never used again for something else; those from 33 on are asked by who reads, those
/// from 65 on by who keeps the replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u16)]
pub enum CallKind {
    /// What there is of a group.
    Find = 1,
    /// Open the timeline.
    Begin = 2,
    /// Which activity logs are to be believed.
    Trust = 3,
    /// Make everything durable soon.
    Sync = 4,
    /// Whether it is.
    Reach = 5,
    /// What has to be known before a disk joins.
    Group = 6,
    /// What becomes of disks.
    Disks = 7,
    /// Make a point, all checks included.
    Mark = 8,
    /// Whether a range is zeros.
    Zeros = 9,
    /// Hashes of a range.
    Digests = 10,
    /// A first copy begins.
    SeedBegin = 11,
    /// A first copy ends.
    SeedEnd = 12,
    /// First copies are whole.
    Seeded = 13,
    /// The protection is about to end.
    Quiesce = 14,
    /// The last word.
    Close = 15,
    /// How the replica stands.
    Standing = 16,
    /// What it all came to.
    Sums = 17,
    /// Something that takes its time.
    Job = 33,
    /// Open a moment.
    OpenView = 34,
    /// What a range of it is made of.
    Extents = 35,
    /// Read of it.
    ReadView = 36,
    /// Change what was opened to be written.
    WriteView = 37,
    /// It is still read.
    TouchView = 38,
    /// It is read no more.
    CloseView = 39,
    /// Make a point's record.
    NearMark = 65,
    /// Change a disk.
    NearDisk = 66,
    /// What the filter knows.
    NearFacts = 67,
    /// The policy was changed.
    NearPolicy = 68,
}

impl CallKind {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::Find,
        Self::Begin,
        Self::Trust,
        Self::Sync,
        Self::Reach,
        Self::Group,
        Self::Disks,
        Self::Mark,
        Self::Zeros,
        Self::Digests,
        Self::SeedBegin,
        Self::SeedEnd,
        Self::Seeded,
        Self::Quiesce,
        Self::Close,
        Self::Standing,
        Self::Sums,
        Self::Job,
        Self::OpenView,
        Self::Extents,
        Self::ReadView,
        Self::WriteView,
        Self::TouchView,
        Self::CloseView,
        Self::NearMark,
        Self::NearDisk,
        Self::NearFacts,
        Self::NearPolicy,
    ];

    /// The one with this number.
    #[must_use]
    pub fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }

    /// Asked by a filter, of who keeps its replica.
    #[must_use]
    pub fn is_of_filter(self) -> bool {
        (self as u16) < 33
    }

    /// Asked by somebody who reads, of who has the replica's directory.
    #[must_use]
    pub fn is_of_reader(self) -> bool {
        !self.is_of_filter() && !self.is_of_keeper()
    }

    /// Asked by who keeps the replica, of the filter.
    #[must_use]
    pub fn is_of_keeper(self) -> bool {
        self as u16 > 64
    }
}

/// Which activity logs are to be believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trust {
    /// None below this generation.
    pub least: u64,
}

/// Whether everything is durable up to an LSN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reach {
    /// Which.
    #[serde(with = "ids::lsn")]
    pub lsn: Lsn,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reached {
    /// It is, and settled at the source.
    pub reached: bool,
}

/// A point to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MarkOrder {
    /// What for.
    #[serde(with = "ids::kinds")]
    pub kinds: PointKinds,
    /// Its label, or nothing.
    pub label: String,
}

/// The point that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Marked {
    /// Its LSN.
    #[serde(with = "ids::lsn")]
    pub lsn: Lsn,
}

/// A range of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Range {
    /// The disk.
    #[serde(with = "ids::disk")]
    pub disk: DiskId,
    /// Where on it: offset and length in bytes.
    #[serde(with = "ids::extent")]
    pub range: Extent,
}

/// Whether a range is known to be zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Zeros {
    /// It is; else that is not known.
    pub zeros: bool,
}

/// Hashes of a range, block by block, as of an LSN or later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digests {
    /// The disk.
    #[serde(with = "ids::disk")]
    pub disk: DiskId,
    /// Where on it: offset and length in bytes. The last block is shorter if this is no multiple of them.
    #[serde(with = "ids::extent")]
    pub range: Extent,
    /// Bytes of a block.
    pub block: u64,
    /// Every record that touches the range is at or below this, and durable.
    #[serde(with = "ids::lsn")]
    pub at: Lsn,
}

impl Digests {
    /// The most bytes that are hashed for one call.
    pub const BYTES_MAX: u64 = 16 << 20;
    /// The most hashes of one answer: its tail has 128 KiB then.
    pub const HASHES_MAX: u64 = 4096;

    /// Whether this can be answered without asking too much of anybody.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        let (range, block) = (self.range, self.block);
        let whole = block >= SECTOR && [block, range.offset, range.length].iter().all(|at| at.is_multiple_of(SECTOR));
        whole && range.length <= Self::BYTES_MAX && range.length.div_ceil(block) <= Self::HASHES_MAX
    }
}

/// What the hashes in the tail are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digested {
    /// The LSN that they are as of; none: the replica cannot tell, and the tail is empty.
    #[serde(with = "ids::option_lsn")]
    pub at: Option<Lsn>,
}

/// The last word of a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Close {
    /// Everything is durable, and the activity log says that the stop was clean.
    pub clean: bool,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// The replica's manifest says so.
    Stored,
    /// It does not and will not.
    Failed,
    /// Not yet.
    NotYet,
}

/// How a replica stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// A first copy waits for room.
    pub seed_waits: bool,
    /// It is the quota that leaves no room.
    pub quota: bool,
}

/// What it all came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Points that can be restored.
    pub points: u64,
    /// Bytes that the journal stored since the filter began.
    pub stored_bytes: u64,
    /// What has to be free before it goes on, and what is.
    pub lack: Option<Lack>,
}

/// What only the filter knows of a protection.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// What is being done.
    pub state: State,
    /// Nothing that guests write reaches the replica now, and what that is called.
    pub unrecorded: Option<State>,
    /// Why replication is out of the guest's path, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<String>,
    /// Why nothing is recorded until the protection is started again, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The last LSN that was given.
    #[serde(with = "ids::lsn")]
    pub lsn: Lsn,
    /// Bytes that a start after a crash now would read again.
    pub hot_bytes: u64,
    /// Bytes that were read again since the start.
    pub reread_bytes: u64,
    /// The age of the last restorable record, in milliseconds.
    pub rpo_ms: Option<u64>,
    /// Bytes a second that guests write.
    pub write_bytes_per_s: u64,
    /// Where disks are served, by name.
    pub uris: BTreeMap<String, String>,
}

/// What of the policy a filter follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FilterPolicy {
    /// How often a point is closed, in milliseconds.
    pub rpo_ms: u64,
    /// Which moments are kept.
    pub points: PointPolicy,
}

impl FilterPolicy {
    /// What there is of it in a policy.
    #[must_use]
    pub fn of(policy: &Policy) -> Self {
        let points = match policy.points {
            PointsMode::EveryWrite => PointPolicy::EveryWrite,
            PointsMode::PerPoint => PointPolicy::PerPoint,
        };
        Self { rpo_ms: policy.rpo_ms, points }
    }

    /// Which moments are kept, as the filter has it.
    #[must_use]
    pub fn mode(&self) -> PointsMode {
        match self.points {
            PointPolicy::EveryWrite => PointsMode::EveryWrite,
            PointPolicy::PerPoint => PointsMode::PerPoint,
        }
    }
}

/// That of a new group, if nobody wants another one.
impl Default for FilterPolicy {
    fn default() -> Self {
        Self::of(&Policy::default())
    }
}
