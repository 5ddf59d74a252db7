//! What a filter is made with, its bounds, and why it may refuse.

use super::activity::LogContents;
use crate::types::{
    ClockEpoch, DISK_MAX, DISKS_MAX, DiskId, Extent, GroupId, Lsn, NAME_MAX, PointsMode, SECTOR, Timeline,
};

/// The smallest bound for what is not yet durable, in bytes: one re-read of 1 MiB must fit into a quarter of it.
pub const QUEUE_BYTES_MIN: u64 = 4 << 20;
/// Re-reads under way at once, if nothing else is asked for.
pub const REREADS_MAX: usize = 4;
/// The most re-reads under way at once that can be asked for: a replica behind a long link wants many.
pub const REREADS_LIMIT: usize = 64;
/// The longest re-read, in bytes.
pub const REREAD_BYTES_MAX: u64 = 1 << 20;
/// Disks that a filter can have had since its start, those that are gone included: the table of ops has so many.
pub const SLOTS_MAX: usize = 4096;
/// What a part costs beside its data, in bytes of the queue's bound.
pub const PART_COST: u64 = std::mem::size_of::<crate::frame::Part>() as u64;
/// How far a filter whose predecessor's LSN reservation is not known begins above everything that is.
///
/// At a million records a second a filter would need nine years to give out so many.
pub const LSN_JUMP: u64 = 1 << 48;

/// A disk of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskSpec {
    /// Its number, never used again in this group.
    pub id: DiskId,
    /// Its name in the group.
    pub name: String,
    /// Its size in bytes, a multiple of 512.
    pub size: u64,
}

/// Where the filter's history begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// A group's first filter: the disks are not at the replica yet (seeding).
    First,
    /// The last stop was clean, and the driver knows that nobody changed the sources since.
    Clean {
        /// The last LSN, durable at the replica.
        after: Lsn,
        /// The last clock epoch.
        epoch: ClockEpoch,
        /// The log that says `clean`.
        log: LogContents,
    },
    /// Anything else: a new timeline; what was hot is compared.
    Unclean {
        /// The timeline that was open.
        parent: Timeline,
        /// Its last LSN that belongs to this one's past.
        fork: Lsn,
        /// The highest LSN that the replica knows of on the parent's path: at least the fork, and the parent's
        /// [`super::Filter::first_lsn`], kept there when the parent was opened. It counts when the log does not say more.
        above: Lsn,
        /// The last clock epoch of the path.
        epoch: ClockEpoch,
        /// The log as it was found; `None` if it is lost, unreadable or not to be believed: everything is compared.
        log: Option<LogContents>,
    },
}

/// What a filter is made with. [`FilterOptions::new`] fills in the usual bounds.
#[derive(Clone, Debug)]
pub struct FilterOptions {
    /// The group.
    pub group: GroupId,
    /// The timeline of the records: new, but for [`Start::Clean`].
    pub timeline: Timeline,
    /// Where it begins.
    pub start: Start,
    /// The least generation of an activity log that the replica believes, 0 at a group's first start (see
    /// [`super::LogTrust::least`]): a log without a good predecessor gets a generation far above all that may lie around.
    pub log_generation_least: u64,
    /// Compare the whole source with the replica in the background (not for [`Start::First`], which seeds).
    pub full_check: bool,
    /// The group's disks.
    pub disks: Vec<DiskSpec>,
    /// Of these disks, those that are new with this start (not for [`Start::First`]): they are announced, and the driver copies
    /// them ([`super::Filter::disk_seeded`]).
    pub joining: Vec<DiskId>,
    /// Disks that are gone with this start.
    pub leaving: Vec<DiskId>,
    /// Disks that have another size than at the last stop, and which size that was. What is new is compared.
    pub resized: Vec<(DiskId, u64)>,
    /// What the driver knows of each source, for the next start to see whether it is the same one: opaque, kept in the
    /// activity log until [`super::Filter::close`] replaces it.
    pub facts: Vec<(DiskId, Vec<u8>)>,
    /// One short-term point is closed in each period of this length.
    pub rpo_ns: u64,
    /// Whether every write can be restored, or one moment of each of these periods.
    pub points: PointsMode,
    /// Bound of what was recorded and is not yet durable, in bytes of data plus [`PART_COST`] a part, as far as it is kept in
    /// memory. What would pass it and [`FilterOptions::spool_bytes_max`] is tracked instead (a gap). Control records are
    /// exempt: they are few.
    pub queue_bytes_max: u64,
    /// What the driver keeps on disk beyond that, in the same bytes; 0: it has no spool.
    pub spool_bytes_max: u64,
    /// Keep the ranges of every part that is not durable: 24 bytes a part at most, beside the queue's bound. Only then can
    /// frames be lent ([`super::Filter::stored`]), and a fork reads again exactly what it must instead of whole 4 MiB extents.
    /// For replicas behind a link.
    pub keeps_ranges: bool,
    /// A frame closes when its first part is this old.
    pub frame_age_ns_max: u64,
    /// The longest a guest's op waits for a write of the activity log; then everything is unknown, and the op runs as soon as
    /// the log's file is removed.
    pub log_wait_ns_max: u64,
    /// The longest a guest's op waits for that removal.
    pub log_remove_ns_max: u64,
    /// An extent's bit in the activity log stays set for at least so long after the last write.
    pub hot_ns_min: u64,
    /// Re-reads are issued at this rate at most.
    pub reread_bytes_per_s_max: u64,
    /// Re-reads under way at once, at most; 1 to [`REREADS_LIMIT`].
    pub rereads_max: usize,
    /// After so long without a [`super::Filter::poll`] while ops come, or as long as the driver reports something to have
    /// waited ([`super::Filter::watchdog`]), replication is stuck and leaves the guest's path.
    pub stuck_ns_max: u64,
    /// Ops that are open at once in steady state; the table is allocated for so many (it grows if there are more).
    pub ops_expected: usize,
}

impl FilterOptions {
    /// The usual bounds: RPO 15 s, queue 1 GiB, frames of 20 ms, log wait 100 ms and 5 s for its
    /// removal, hot for 10 s, re-reads at 512 MiB/s, stuck after 30 s; no spool.
    #[must_use]
    pub fn new(group: GroupId, timeline: Timeline, start: Start, disks: Vec<DiskSpec>) -> Self {
        Self {
            group,
            timeline,
            start,
            log_generation_least: 0,
            full_check: false,
            disks,
            joining: Vec::new(),
            leaving: Vec::new(),
            resized: Vec::new(),
            facts: Vec::new(),
            rpo_ns: 15_000_000_000,
            points: PointsMode::EveryWrite,
            queue_bytes_max: 1 << 30,
            spool_bytes_max: 0,
            keeps_ranges: false,
            frame_age_ns_max: 20_000_000,
            log_wait_ns_max: 100_000_000,
            log_remove_ns_max: 5_000_000_000,
            hot_ns_min: 10_000_000_000,
            reread_bytes_per_s_max: 512 << 20,
            rereads_max: REREADS_MAX,
            stuck_ns_max: 30_000_000_000,
            ops_expected: 256,
        }
    }

    pub(super) fn check(&self) -> Result<(), OptionsError> {
        if self.disks.is_empty() || self.disks.len() > DISKS_MAX {
            return Err(OptionsError::DiskCount { count: self.disks.len() });
        }
        for (at, disk) in self.disks.iter().enumerate() {
            check_disk(disk)?;
            if self.disks[..at].iter().any(|other| other.id == disk.id) {
                return Err(OptionsError::DuplicateDisk { disk: disk.id });
            }
        }
        check_queue(self.queue_bytes_max)?;
        if !(1..=REREADS_LIMIT).contains(&self.rereads_max) {
            return Err(OptionsError::Rereads { count: self.rereads_max });
        }
        if [self.rpo_ns, self.frame_age_ns_max, self.reread_bytes_per_s_max, self.stuck_ns_max].contains(&0) {
            return Err(OptionsError::Zero);
        }
        Ok(())
    }
}

pub(super) fn check_queue(bytes: u64) -> Result<(), OptionsError> {
    if bytes < QUEUE_BYTES_MIN { Err(OptionsError::QueueTooSmall { bytes }) } else { Ok(()) }
}

pub(super) fn check_disk(disk: &DiskSpec) -> Result<(), OptionsError> {
    if disk.size == 0 || disk.size > DISK_MAX || !disk.size.is_multiple_of(SECTOR) {
        return Err(OptionsError::DiskSize { disk: disk.id, size: disk.size });
    }
    if disk.name.is_empty() || disk.name.len() > NAME_MAX {
        return Err(OptionsError::DiskName { disk: disk.id, bytes: disk.name.len() });
    }
    Ok(())
}

/// Why there is no filter with these options.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionsError {
    /// None, or too many.
    #[error("a group has 1 to {DISKS_MAX} disks, not {count}")]
    DiskCount {
        /// How many were given.
        count: usize,
    },
    /// Two disks have one number.
    #[error("disk {disk} is there already")]
    DuplicateDisk {
        /// The number.
        disk: DiskId,
    },
    /// Not a size of a disk.
    #[error("disk {disk} cannot have {size} bytes: it takes a multiple of 512, at most {DISK_MAX}")]
    DiskSize {
        /// The disk.
        disk: DiskId,
        /// What was given, in bytes.
        size: u64,
    },
    /// Not a name.
    #[error("the name of disk {disk} has {bytes} bytes; it takes 1 to {NAME_MAX}")]
    DiskName {
        /// The disk.
        disk: DiskId,
        /// The name's length.
        bytes: usize,
    },
    /// Less than [`QUEUE_BYTES_MIN`].
    #[error("a queue of {bytes} bytes is too small: it takes at least {QUEUE_BYTES_MIN}")]
    QueueTooSmall {
        /// What was given.
        bytes: u64,
    },
    /// A time or rate that may not be 0 is.
    #[error("RPO, frame age, re-read rate and the time after which replication is stuck must not be 0")]
    Zero,
    /// None, or more than [`REREADS_LIMIT`].
    #[error("{count} re-reads at once cannot be: it takes 1 to {REREADS_LIMIT}")]
    Rereads {
        /// What was given.
        count: usize,
    },
    /// No such disk.
    #[error("the group has no disk {disk}")]
    UnknownDisk {
        /// The number.
        disk: DiskId,
    },
    /// It has that size.
    #[error("disk {disk} has {size} bytes already")]
    SameSize {
        /// The disk.
        disk: DiskId,
        /// What it has, and what was asked for.
        size: u64,
    },
    /// An earlier change of the disk is not through.
    #[error("disk {disk} is still being copied, resized or removed")]
    Changing {
        /// The disk.
        disk: DiskId,
    },
    /// A group has a disk.
    #[error("disk {disk} is the group's last one")]
    LastDisk {
        /// The disk.
        disk: DiskId,
    },
    /// So many disks came since the start that the filter has no place for another one.
    #[error("{SLOTS_MAX} disks were there since the start; the next start has room for more")]
    Slots,
    /// The filter was closed.
    #[error("the filter is closed")]
    Closed,
}

/// Why an op is no op. The guest's request is bad, or the disk is not ours: the front end answers EINVAL or ENOSPC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// No such disk.
    #[error("the group has no disk {disk}")]
    UnknownDisk {
        /// The number.
        disk: DiskId,
    },
    /// Empty, or not on multiples of 512 bytes.
    #[error("{extent} (offset+bytes) is empty or not on multiples of {SECTOR} bytes")]
    Unaligned {
        /// What was asked for.
        extent: Extent,
    },
    /// Beyond the disk's end.
    #[error("{extent} (offset+bytes) does not lie inside the disk's {size} bytes")]
    OutOfBounds {
        /// What was asked for.
        extent: Extent,
        /// The disk's size.
        size: u64,
    },
    /// After `close`.
    #[error("the filter is closed")]
    Closed,
}

/// The ticket or token is not one that is open: it was used before, or is held and did not go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no such thing is under way")]
pub struct NotOpen;

/// Why no point is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MarkError {
    /// Nothing can be restored at this moment.
    #[error("the group is {state}: this moment could not be restored")]
    NotRestorable {
        /// What it is doing.
        state: super::State,
    },
    /// The label is too long.
    #[error("a label of {bytes} bytes is too long: at most {NAME_MAX}")]
    Label {
        /// Its length.
        bytes: usize,
    },
    /// Too many points are not durable yet.
    #[error("{} points wait for the replica; no more are made until it takes them", super::PENDING_POINTS_MAX)]
    TooMany,
    /// After `close`.
    #[error("the filter is closed")]
    Closed,
}
