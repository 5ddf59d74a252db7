//! The manifest: the whole state of a replica's directory in one small file that is only ever replaced as a whole.
//!
//! It names every segment before anything in it is acknowledged, every timeline before its first write, and everything else
//! that must be found again at the next start. Who owns the journal's writer owns the manifest; others edit through it.

mod codec;
mod retention;
mod seeding;
#[cfg(test)]
pub(super) mod tests;

pub use self::retention::{Arrival, CutBy, CutInfo, KeptInfo, LayerInfo, Retention, StampedMoment};
pub use self::seeding::{SeedingInfo, SeedingPoint};
use super::layout::Summary;
use super::level::RunInfo;
use crate::frame::Mark;
use crate::trust::WrappedKey;
pub use crate::types::PointsMode;
use crate::types::{DiskId, GroupId, Lsn, ReplicaId, SegmentId, Timeline, WallTime};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The file's name in the replica's directory.
pub const MANIFEST_NAME: &str = "MANIFEST";
/// What it begins with: how a replica's directory is told from others.
pub const MANIFEST_MAGIC: [u8; 8] = *b"CDPMANI\x01";
/// Its second copy: what is read where the first one is damaged. It is replaced before the first, so it is never the older one.
pub const MANIFEST_COPY: &str = "MANIFEST.copy";
/// Its name while it is written.
pub(super) const MANIFEST_TMP: &str = "MANIFEST.tmp";
/// The same of the second copy.
pub(super) const MANIFEST_COPY_TMP: &str = "MANIFEST.copy.tmp";
/// The longest source path, in bytes.
pub(super) const PATH_MAX: usize = 4096;
/// The most bytes of a manifest.
pub(super) const MANIFEST_MAX: u64 = 256 << 20;

/// Counts the manifests of a directory, from 1. An edit is durable when its generation is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

/// The state of a replica's directory, or of a session's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Which manifest of the directory this is.
    pub generation: Generation,
    /// This replica.
    pub replica: ReplicaId,
    /// Whose write order it keeps.
    pub group: GroupId,
    /// The group's name.
    pub name: String,
    /// What was durable when this was written.
    pub durable: Lsn,
    /// Segments up to this LSN were dropped: their data is in the base, or expired.
    pub floor: Lsn,
    /// LSNs up to here may have been given by the filter: the next one starts above.
    pub reserved: Lsn,
    /// The next segment's number.
    pub next_segment: u64,
    /// Set by a clean stop: nothing was in memory then. Cleared by the next start before it appends.
    pub clean: bool,
    /// Generation of the activity log that belongs to this replica; 0: none yet.
    pub activity_generation: u64,
    /// The group's disks, in order of their numbers, removed ones too as long as history knows them.
    pub disks: Vec<DiskInfo>,
    /// Branches of history, in order of their opening.
    pub timelines: Vec<TimelineInfo>,
    /// Segments, in order of their numbers.
    pub segments: Vec<SegmentInfo>,
    /// What the owner wants to keep.
    pub policy: Policy,
    /// Writable views.
    pub sessions: Vec<SessionInfo>,
    /// First copies that go on where they were, one for a disk at most.
    pub seeding: Vec<SeedingInfo>,
    /// Moments that nothing of ours may drop.
    pub pins: Vec<PinInfo>,
    /// The next number of a kept moment.
    pub next_kept: u64,
    /// Moments older than the bases, oldest first.
    pub kept: Vec<KeptInfo>,
    /// How far back history goes, and how old it is.
    pub retention: Retention,
    /// The merge that is under way, by the moment up to which it goes: bases may hold what it wrote, or not.
    pub merge: Option<StampedMoment>,
    /// What the point says that was made at [`Manifest::oldest`], if one was: the record that says it may be merged.
    pub oldest_point: Option<Mark>,
    /// Why the last merge was, if not for the window.
    pub cut: Option<CutInfo>,
    /// The least number that a new disk may get, as far as the disks that are listed do not say it; see [`Manifest::free_disk`].
    pub next_disk: u16,
    /// Sizes of disks that are announced.
    pub resizing: Vec<ResizeInfo>,
    /// The next number of a run of the levelled index.
    pub next_run: u64,
    /// Runs of the levelled index, in the order of the segments that they hold; no segment is in two of them.
    pub runs: Vec<Arc<RunInfo>>,
    /// Replica keys, wrapped, by ascending generation; none: nothing is sealed at rest.
    pub keys: Vec<WrappedKey>,
    /// Sections of a newer version that may be passed over; kept as they are.
    pub unknown: Vec<(u16, Vec<u8>)>,
}

/// A disk of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskInfo {
    /// Its number.
    pub id: DiskId,
    /// Its name in the group.
    pub name: String,
    /// Its size now, in bytes.
    pub size: u64,
    /// Where its source was last seen.
    pub source: String,
    /// The first LSN at which it is there; zero: from the beginning.
    pub added: Lsn,
    /// The LSN from which on it is gone.
    pub removed: Option<Lsn>,
    /// What the source looked like at the last clean stop.
    pub stopped: Option<SourceFacts>,
    /// The base image, once there is one.
    pub base: Option<BaseInfo>,
}

/// What shows whether somebody else wrote to a source file in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourceFacts {
    /// Bytes.
    pub size: u64,
    /// Inode number.
    pub inode: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub modified: u64,
    /// Last change of the inode, nanoseconds since 1970.
    pub changed: u64,
}

/// The base image of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaseInfo {
    /// The base holds every record up to here, and none above.
    pub lsn: Lsn,
    /// Counts the states of base and sidecar that a manifest named, from 1.
    pub generation: u64,
    /// Bytes of the base image.
    pub size: u64,
    /// Root of the sidecar's digest table; see `FORMAT.md`.
    pub root: [u8; 32],
    /// Its blocks are sealed at rest.
    pub at_rest: bool,
}

/// Whether a timeline can still grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TimelineState {
    /// It has exactly one writer.
    Open = 1,
    /// Nothing is added to it any more.
    Closed = 2,
}

/// What a timeline is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TimelineRole {
    /// The protected machine's own history.
    Trunk = 1,
    /// A writable view.
    Session = 2,
    /// A failed over replica's own writes.
    Failover = 3,
}

/// A branch of history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimelineInfo {
    /// Its identity.
    pub id: Timeline,
    /// The number that people see, from 1.
    pub number: u32,
    /// The branch it forked from.
    pub parent: Option<Timeline>,
    /// The last LSN of the parent that belongs to its past.
    pub fork: Lsn,
    /// The last LSN, known once it is cleanly stopped, or closed when everything in it was durable.
    pub last: Option<Lsn>,
    /// Whether it can still grow.
    pub state: TimelineState,
    /// What it is for.
    pub role: TimelineRole,
    /// When it was opened, by the replica host's clock.
    pub opened: WallTime,
}

/// Where a segment is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all segments of a journal are sealed")]
pub enum SegmentState {
    /// Made, and not yet used as far as the manifest knows. It may hold frames.
    Prepared,
    /// Frames are appended to it.
    Active,
    /// Nothing will change in it any more.
    Sealed(Summary),
}

/// A segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    /// Its number, which is its name in hex.
    pub number: u64,
    /// Its identity, never used again.
    pub id: SegmentId,
    /// Where it is in its life.
    pub state: SegmentState,
    /// Generation of the replica key that it is sealed by at rest; 0: it is not.
    pub key: u32,
}

impl SegmentInfo {
    /// What is known of a sealed segment.
    #[must_use]
    pub fn summary(&self) -> Option<&Summary> {
        match &self.state {
            SegmentState::Sealed(summary) => Some(summary),
            _ => None,
        }
    }
}

/// The file name of a segment.
#[must_use]
pub fn segment_name(number: u64) -> String {
    format!("{number:016x}.seg")
}

/// The segment to whose file the journal gives such a name.
#[must_use]
pub(super) fn segment_number(name: &[u8]) -> Option<u64> {
    number(name.strip_suffix(b".seg")?)
}

/// Whether the journal gives a file of its directory such a name: a segment's or an index run's.
#[must_use]
pub fn is_journal_file(name: &str) -> bool {
    let name = name.as_bytes();
    segment_number(name).or_else(|| number(name.strip_suffix(b".idx")?)).is_some()
}

fn number(digits: &[u8]) -> Option<u64> {
    let digits: &[u8; 16] = digits.try_into().ok()?;
    let mut number = 0;
    for byte in digits {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u64::from(digit);
    }
    Some(number)
}

/// What the owner of a replica wants to keep. Times in milliseconds, amounts in bytes; 0 where it says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// A point is closed so often.
    pub rpo_ms: u64,
    /// Short-term points are kept so long.
    pub window_ms: u64,
    /// The journal may take so much; 0: no bound.
    pub max_bytes: u64,
    /// So much of the file system stays free.
    pub reserve_bytes: u64,
    /// Which LSNs stay restorable.
    pub points: PointsMode,
    /// A long-term point is made so often; 0: none.
    pub long_term_ms: u64,
    /// Long-term points are kept so long.
    pub keep_ms: u64,
    /// What is done when there is no room left.
    pub when_full: WhenFull,
    /// The whole replica may take so much; 0: no bound.
    pub quota: u64,
}

/// What is done when there is no room left for the journal, or none within the quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum WhenFull {
    /// The oldest history is merged into the bases, and the journal goes on; it stops when nothing more can be merged.
    #[default]
    Shorten = 1,
    /// The journal stops, and history stays as long as the policy says.
    Stop = 2,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rpo_ms: 15_000,
            window_ms: 4 * 3_600_000,
            max_bytes: 0,
            reserve_bytes: 256 << 20,
            points: PointsMode::EveryWrite,
            long_term_ms: 0,
            keep_ms: 7 * 24 * 3_600_000,
            when_full: WhenFull::Shorten,
            quota: 0,
        }
    }
}

/// How long a session lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SessionKind {
    /// Until its reader ends.
    Temporary = 1,
    /// Until somebody drops it.
    Named = 2,
}

/// A writable view: a journal of its own on a forked timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    /// Its name, and that of its directory.
    pub name: String,
    /// Its branch of history.
    pub timeline: Timeline,
    /// The branch it forked from.
    pub parent: Timeline,
    /// Where.
    pub fork: Lsn,
    /// How long it lives.
    pub kind: SessionKind,
    /// When it was made, by the replica host's clock.
    pub created: WallTime,
}

/// A moment that nothing of ours may drop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinInfo {
    /// Its name, may be empty.
    pub label: String,
    /// The branch of history.
    pub timeline: Timeline,
    /// The moment.
    pub lsn: Lsn,
    /// When it was made, by the replica host's clock.
    pub created: WallTime,
}

/// A size of a disk that is announced: records may reach so far, or the source may have been cut so short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResizeInfo {
    /// Which.
    pub disk: DiskId,
    /// In bytes.
    pub size: u64,
}

impl Manifest {
    /// Somebody writes again: how it ends is not known any more.
    pub fn goes_on(&mut self) {
        self.clean = false;
        let open = self.timelines.iter_mut().filter(|timeline| timeline.state == TimelineState::Open);
        open.for_each(|timeline| timeline.last = None);
    }

    /// The first manifest of a new replica.
    #[must_use]
    pub fn new(replica: ReplicaId, group: GroupId, name: &str) -> Self {
        Self {
            generation: Generation(0),
            replica,
            group,
            name: name.to_owned(),
            durable: Lsn::ZERO,
            floor: Lsn::ZERO,
            reserved: Lsn::ZERO,
            next_segment: 1,
            clean: true,
            activity_generation: 0,
            disks: Vec::new(),
            timelines: Vec::new(),
            segments: Vec::new(),
            policy: Policy::default(),
            sessions: Vec::new(),
            seeding: Vec::new(),
            pins: Vec::new(),
            next_kept: 1,
            kept: Vec::new(),
            retention: Retention::default(),
            merge: None,
            oldest_point: None,
            cut: None,
            next_disk: 1,
            resizing: Vec::new(),
            next_run: 1,
            runs: Vec::new(),
            keys: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// What is known of a timeline.
    #[must_use]
    pub fn timeline(&self, id: Timeline) -> Option<&TimelineInfo> {
        self.timelines.iter().find(|timeline| timeline.id == id)
    }

    /// What is known of a disk.
    #[must_use]
    pub fn disk(&self, id: DiskId) -> Option<&DiskInfo> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// Lets go of replica keys that nothing is sealed by. The newest stays: new segments are sealed by it, and its generation is
    /// not given to another.
    pub(super) fn drop_unused_keys(&mut self) {
        let newest = self.keys.last().map_or(0, |key| key.generation);
        let used: BTreeSet<u32> = self.segments.iter().map(|segment| segment.key).collect();
        let stays = |key: &WrappedKey| key.generation == newest || key.bases || used.contains(&key.generation);
        self.keys.retain(stays);
    }

    /// The run of the levelled index that holds a segment.
    pub(super) fn run_of(&self, segment: u64) -> Option<&Arc<RunInfo>> {
        let at = self.runs.partition_point(|run| run.last_segment < segment);
        self.runs.get(at).filter(|run| run.covers(segment))
    }

    /// A number that no disk of this group ever had; `None` when all were used, or no more disks can be listed.
    #[must_use]
    pub fn free_disk(&self) -> Option<DiskId> {
        let listed = self.disks.iter().map(|disk| disk.id.get()).max().unwrap_or(0);
        let free = self.next_disk.max(listed.saturating_add(1));
        let room = self.disks.len() < codec::DISKS_LISTED_MAX;
        DiskId::new(free).filter(|_| free < u16::MAX && room)
    }

    /// Takes a disk off the list; its number stays used.
    pub fn drop_disk(&mut self, id: DiskId) {
        self.next_disk = self.next_disk.max(id.get().saturating_add(1));
        self.disks.retain(|disk| disk.id != id);
        self.seeding.retain(|seeding| seeding.disk != id);
        self.resizing.retain(|resizing| resizing.disk != id);
    }

    /// The largest size that records of a disk may reach.
    #[must_use]
    pub fn reach(&self, disk: &DiskInfo) -> u64 {
        let announced = self.resizing.iter().filter(|resizing| resizing.disk == disk.id).map(|resizing| resizing.size);
        announced.fold(disk.size, u64::max)
    }

    /// The kept moment that is this one. They are in the order of their LSNs.
    #[must_use]
    pub fn kept_at(&self, timeline: Timeline, lsn: Lsn) -> Option<&KeptInfo> {
        let at = self.kept.binary_search_by_key(&lsn, |kept| kept.moment.lsn).ok()?;
        Some(&self.kept[at]).filter(|kept| kept.moment.timeline == timeline)
    }

    /// The moment before which there are only kept ones: everything up to it is in the bases, or is on its way there.
    #[must_use]
    pub fn oldest(&self) -> Option<StampedMoment> {
        self.merge.or(self.retention.oldest)
    }

    pub(super) fn segment_mut(&mut self, number: u64) -> Option<&mut SegmentInfo> {
        self.segments.iter_mut().find(|segment| segment.number == number)
    }
}
