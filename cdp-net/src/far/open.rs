//! How a filter finds its replica, and begins.

use super::FilterPolicy;
use super::disks::{NewDisk, SizeOf};
use super::ids;
use crate::owner::PolicyChange;
use cdp_core::types::{ClockEpoch, DiskId, GroupId, Lsn, ReplicaId, Timeline};
use serde::{Deserialize, Serialize};

/// What a filter looks for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Find {
    /// The group's name, if it is known: one of another name is refused.
    pub name: Option<String>,
    /// What of the policy is going to be changed: refused here if it cannot be followed.
    pub policy: PolicyChange,
    /// What the activity log says, if there is one.
    pub witness: Option<Witness>,
}

/// What an activity log says of the replica: a journal that ends before what was called durable is not gone on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Witness {
    /// Whose log it is.
    #[serde(with = "ids::identity")]
    pub group: GroupId,
    /// The log's generation: one that is too old is not believed.
    pub generation: u64,
    /// What was known to be durable.
    #[serde(with = "ids::lsn")]
    pub durable: Lsn,
}

/// A disk of a replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FoundDisk {
    /// Its number.
    #[serde(with = "ids::disk")]
    pub id: DiskId,
    /// Its name.
    pub name: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Its first copy was whole; else it is begun anew under another number.
    pub complete: bool,
    /// The size that somebody allowed it to be cut to.
    pub announced: Option<u64>,
}

/// A replica that can be gone on with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Found {
    /// The replica.
    #[serde(with = "ids::identity")]
    pub replica: ReplicaId,
    /// The group.
    #[serde(with = "ids::identity")]
    pub group: GroupId,
    /// The group's name.
    pub name: String,
    /// Its disks now.
    pub disks: Vec<FoundDisk>,
    /// Disks that were taken out of the group while nobody recorded that.
    #[serde(with = "ids::disks")]
    pub leaving: Vec<DiskId>,
    /// The next number of a disk; none: they are used up.
    #[serde(with = "ids::option_disk")]
    pub free_disk: Option<DiskId>,
    /// The timeline that is open.
    #[serde(with = "ids::option")]
    pub open: Option<Timeline>,
    /// Its last durable LSN.
    #[serde(with = "ids::lsn")]
    pub durable: Lsn,
    /// No LSN above this was given on its path but by its last filter.
    #[serde(with = "ids::lsn")]
    pub reserved: Lsn,
    /// The last filter closed it, and everything was durable.
    pub clean: bool,
    /// The last clock epoch.
    #[serde(with = "epoch")]
    pub epoch: ClockEpoch,
    /// The least generation of an activity log that is to be believed.
    pub activity_generation: u64,
    /// What a filter follows.
    pub policy: FilterPolicy,
}

mod epoch {
    use cdp_core::types::ClockEpoch;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(epoch: &ClockEpoch, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(epoch.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ClockEpoch, D::Error> {
        u32::deserialize(deserializer).map(ClockEpoch)
    }
}

/// A group that is new.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewGroup {
    /// Drawn by the filter's side.
    #[serde(with = "ids::identity")]
    pub group: GroupId,
    /// What people call it.
    pub name: String,
    /// All its disks, there from the beginning.
    pub disks: Vec<NewDisk>,
}

/// Where a filter's records begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum Origin {
    /// On a timeline without a past.
    First,
    /// Behind the last record of the timeline that is open.
    GoesOn,
    /// On the timeline that is open, by the very filter that writes it: the replica's side alone was away. What follows comes again.
    Resumes {
        /// What was durable there.
        #[serde(with = "ids::lsn")]
        at: Lsn,
    },
    /// On a timeline of their own.
    Fork {
        /// The one that was open.
        #[serde(with = "ids::identity")]
        parent: Timeline,
        /// Its last LSN that counts.
        #[serde(with = "ids::lsn")]
        at: Lsn,
    },
}

/// How a filter begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Begin {
    /// Make the group, if there was nothing.
    pub new: Option<NewGroup>,
    /// The timeline of the records.
    #[serde(with = "ids::identity")]
    pub timeline: Timeline,
    /// Where it begins.
    pub origin: Origin,
    /// No record of the filter has a lower LSN: kept before there is any, so that no later start begins below.
    #[serde(with = "ids::lsn")]
    pub reserved: Lsn,
    /// Disks whose copy was never complete: they are forgotten.
    #[serde(with = "ids::disks")]
    pub dropped: Vec<DiskId>,
    /// Disks that join.
    pub joining: Vec<NewDisk>,
    /// Sizes that records may reach from here on.
    pub sizes: Vec<SizeOf>,
    /// What of the policy is changed.
    pub policy: PolicyChange,
    /// Begin only if all this is stored durably now; else it is as soon as there is room.
    pub stored: bool,
}
