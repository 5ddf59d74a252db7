//! The documents that scripts read: what the owner of a replica answers over its control socket and what `--json` prints.
//!
//! They live beside the control socket, and not in the command, because the same document must come out whether a command
//! asks the owner or reads the replica itself. Fields may be added, never renamed or removed. LSNs and bytes are numbers,
//! times RFC 3339 in UTC with nine digits, `timeline` is the string that stands in the ids of points.

pub mod text;

use cdp_core::types::{Lsn, WallTime};
use cdp_core::when::{PointName, TimelineName};
use serde::{Deserialize, Serialize};

/// A moment of a replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct At {
    /// The branch of history.
    #[serde(with = "text")]
    pub timeline: TimelineName,
    /// The last record that the moment holds.
    #[serde(with = "text::lsn")]
    pub lsn: Lsn,
    /// The stamp of that record.
    #[serde(with = "text")]
    pub time: WallTime,
    /// The point at that record, if one was made there.
    #[serde(with = "text::option", default)]
    pub point: Option<PointName>,
}

/// What kind of failure it is; the exit status of the command follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemClass {
    /// Something did not work.
    #[default]
    Failed,
    /// The request itself is wrong.
    Usage,
    /// The moment asked for is not restorable.
    NotRestorable,
    /// State or ownership does not allow it.
    Refused,
    /// Stored bytes are not what was stored.
    Damage,
}

/// Why something was not done, for scripts (`code`) and for people (`message`, `hint`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What kind it is.
    #[serde(default)]
    pub class: ProblemClass,
    /// A word for scripts, never changed once released.
    pub code: String,
    /// One sentence: what, where and why.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub hint: Option<String>,
    /// The restorable moments before and after the one that was asked for.
    #[serde(default)]
    pub nearest: Vec<At>,
}

impl Problem {
    /// A problem of that class with a word and a sentence.
    pub fn new(class: ProblemClass, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { class, code: code.into(), message: message.into(), hint: None, nearest: Vec::new() }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the restorable neighbours.
    #[must_use]
    pub fn nearest(mut self, nearest: Vec<At>) -> Self {
        self.nearest = nearest;
        self
    }
}

/// Whether a branch of history may still grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineState {
    /// It has a writer.
    Open,
    /// It is history.
    Closed,
}

/// What a branch of history is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineRole {
    /// The protected machine wrote it.
    Trunk,
    /// Writes of somebody who looked at a moment.
    Session,
}

/// A branch of history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// Its name.
    #[serde(with = "text")]
    pub timeline: TimelineName,
    /// Counted from 1 by the catalogue.
    pub number: u32,
    /// The branch that it forks from.
    #[serde(with = "text::option", default)]
    pub parent: Option<TimelineName>,
    /// The last LSN of the parent that belongs to its past; 0 without a parent.
    #[serde(with = "text::lsn")]
    pub fork_lsn: Lsn,
    /// Whether it may still grow.
    pub state: TimelineState,
    /// What it is for.
    pub role: TimelineRole,
}

/// How much of a range can be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RangeKind {
    /// Any LSN.
    Every,
    /// The one LSN that both ends name.
    Only,
}

/// A run of restorable moments; both ends belong to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Range {
    /// The branch of history.
    #[serde(with = "text")]
    pub timeline: TimelineName,
    /// How much of it can be restored.
    pub kind: RangeKind,
    /// The first LSN.
    #[serde(with = "text::lsn")]
    pub from_lsn: Lsn,
    /// The last LSN.
    #[serde(with = "text::lsn")]
    pub to_lsn: Lsn,
    /// The stamp of the first.
    #[serde(with = "text")]
    pub from_time: WallTime,
    /// The stamp of the last.
    #[serde(with = "text")]
    pub to_time: WallTime,
}

/// A run of moments that nobody can restore, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// The branch of history.
    #[serde(with = "text")]
    pub timeline: TimelineName,
    /// The first LSN.
    #[serde(with = "text::lsn")]
    pub from_lsn: Lsn,
    /// The last LSN.
    #[serde(with = "text::lsn")]
    pub to_lsn: Lsn,
    /// The stamp of the first.
    #[serde(with = "text")]
    pub from_time: WallTime,
    /// The stamp of the last.
    #[serde(with = "text")]
    pub to_time: WallTime,
    /// `overload`, `no-space`, `quota`, `replica-lost`, `paused` or `resync`.
    pub reason: String,
    /// Of a resync, what made it necessary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// It has not ended: both last ones are as far as it went until now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
}

/// What a point was made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// By the policy, one per RPO.
    Short,
    /// By the policy, every few hours.
    Long,
    /// Somebody asked for it.
    Mark,
    /// Applications were frozen for it.
    App,
}

/// A named moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Point {
    /// Its name, stable for ever.
    #[serde(with = "text")]
    pub id: PointName,
    /// The branch of history.
    #[serde(with = "text")]
    pub timeline: TimelineName,
    /// The last record that it holds.
    #[serde(with = "text::lsn")]
    pub lsn: Lsn,
    /// The stamp of that record.
    #[serde(with = "text")]
    pub time: WallTime,
    /// What it was made for.
    pub kinds: Vec<PointKind>,
    /// Its name for people.
    pub label: Option<String>,
    /// Somebody holds it.
    pub pinned: bool,
    /// It directly follows a flush of the guest.
    pub on_barrier: bool,
    /// It is one moment with points of other groups.
    pub set_consistent: bool,
    /// The disks that it holds.
    pub disks: Vec<String>,
}

/// Everything that can be restored: the answer of `points`, newest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Points {
    /// The group's name.
    pub group: String,
    /// Branches of history.
    pub timelines: Vec<TimelineEntry>,
    /// Restorable runs; of the single moments of periods those from `next` on.
    pub ranges: Vec<Range>,
    /// Named moments.
    pub points: Vec<Point>,
    /// The group's disks now; a point may have others, and lacks those that were not complete in it.
    #[serde(default)]
    pub disks: Vec<String>,
    /// What cannot be restored.
    pub gaps: Vec<Gap>,
    /// What to give as `--until` to see the points that were left off.
    #[serde(with = "text::option", default)]
    pub next: Option<WallTime>,
    /// What is damaged, where and since which LSN, if that is known: what was there is not listed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// What a replica or its owner is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum State {
    /// Nobody protects anything.
    #[default]
    Stopped,
    /// The first copy is being made.
    Seeding,
    /// Every write is recorded.
    Protecting,
    /// Blocks that may differ are read again.
    Resync,
    /// Only which blocks changed is recorded.
    Tracking,
    /// The replica's media has no room; goes on by itself.
    NoSpace,
    /// The replica has used up its quota; goes on by itself when that is larger, or something is let go.
    Quota,
    /// The replica's media failed; the guest goes on.
    ReplicaLost,
    /// What is not yet durable is being written before the end.
    Draining,
    /// Replication was stuck and is out of the guest's path: nothing is recorded or tracked, and everything is compared later.
    Detached,
}

impl State {
    /// Whether it is a lack of room.
    #[must_use]
    pub fn is_lack(self) -> bool {
        matches!(self, Self::NoSpace | Self::Quota)
    }

    /// The word that stands in documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Seeding => "seeding",
            Self::Protecting => "protecting",
            Self::Resync => "resync",
            Self::Tracking => "tracking",
            Self::NoSpace => "no-space",
            Self::Quota => "quota",
            Self::ReplicaLost => "replica-lost",
            Self::Draining => "draining",
            Self::Detached => "detached",
        }
    }
}

/// Where the bytes of a replica are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Space {
    /// Base disks and their sidecars.
    pub base: u64,
    /// Layers of long-term points.
    pub layers: u64,
    /// Segments of the journal.
    pub segments: u64,
    /// Writable sessions.
    pub overlays: u64,
    /// What only holds keep.
    pub pinned: u64,
    /// The most that all may take, if a policy says so.
    pub quota: Option<u64>,
}

/// What keeps the states `no-space` and `quota` from ending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Lack {
    /// What has to be free, on the replica's media or within its quota.
    pub needed_bytes: u64,
    /// What is.
    pub free_bytes: u64,
}

/// Bytes a second over the last seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// What guests write.
    pub write_bytes_per_s: u64,
    /// What the journal stores for it.
    pub stored_bytes_per_s: u64,
}

/// A writable session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Its name; `None` for one that ends with its mount.
    pub name: Option<String>,
    /// Its branch of history.
    #[serde(with = "text")]
    pub timeline: TimelineName,
    /// The moment that it began at.
    pub at: At,
    /// Bytes that its writes take.
    pub bytes: u64,
    /// Somebody serves it now.
    pub open: bool,
}

/// A protected disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Disk {
    /// Its name in the group.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Where it is served, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Its first copy is not through: it cannot be restored yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

/// What became of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskVerb {
    /// It joined the group.
    Added,
    /// It left.
    Removed,
    /// It is larger.
    Grown,
    /// It is smaller.
    Cut,
}

/// The answer to a change of the group's disks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskChanged {
    /// What was done.
    pub verb: DiskVerb,
    /// The disk as it is now, or was.
    pub disk: Disk,
    /// Up to which LSN that is recorded, durably; none: nobody protects now, and the next `protect` does it.
    #[serde(default)]
    pub lsn: Option<u64>,
}

/// How a replica is: the answer of `status`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// What is going on.
    pub state: State,
    /// The group's name.
    #[serde(default)]
    pub group: String,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// The trunk's newest branch of history.
    #[serde(with = "text::option", default)]
    pub timeline: Option<TimelineName>,
    /// The last LSN that was given.
    #[serde(with = "text::lsn")]
    pub lsn: Lsn,
    /// Everything up to here was over at the source and survives a power cut: outside of gaps it can be restored then.
    #[serde(with = "text::lsn")]
    pub durable_lsn: Lsn,
    /// How much would be lost now, in milliseconds; `None` while nothing is protected.
    pub rpo_ms: Option<u64>,
    /// Restorable runs.
    pub ranges: Vec<Range>,
    /// How many single moments, between the newest and the oldest one, are left off there: `points` lists them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges_left_off: Option<u64>,
    /// Where the bytes are.
    pub space: Space,
    /// While the state is `no-space` or `quota`: what has to be free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<Lack>,
    /// How fast they come.
    pub rates: Rates,
    /// Writable sessions.
    pub sessions: Vec<Session>,
    /// Readers that hold a moment now.
    #[serde(default)]
    pub pins: u32,
    /// How far back every write is kept.
    #[serde(default)]
    pub history: History,
    /// What keeps moments beyond the window.
    #[serde(default)]
    pub holds: Vec<Hold>,
    /// What the replica holds is sealed at rest: nobody reads it without its key.
    #[serde(default)]
    pub sealed_at_rest: bool,
    /// Who protects: how the journal is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// The process that owns the replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_pid: Option<u32>,
    /// What is damaged, where and since which LSN, if that is known: what was there is not listed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    /// Marked in the activity log, in bytes: what a crash now would make the next start read again.
    #[serde(default)]
    pub hot_bytes: u64,
    /// Bytes of the disks that were read again since the start, for resyncs and repairs.
    #[serde(default)]
    pub reread_bytes: u64,
    /// While the state is `detached`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<String>,
    /// Why nothing is recorded until the protection is started again, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Where the replica is, if it is kept at another site: what only that knows is left out here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteReplica>,
}

/// A replica at another site, as its filter sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RemoteReplica {
    /// HOST:PORT of who is spoken to, or was tried last.
    pub address: String,
    /// It answers.
    pub linked: bool,
    /// Why nothing has begun, or nobody answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How a journal is written.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// What carries out its writes and syncs: `threads` or `io_uring`.
    pub driver: String,
}

/// How far back every write is kept.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// What the policy asks for, in milliseconds.
    pub window_ms: u64,
    /// How old the oldest write is, in milliseconds: of the time during which the replica was protected.
    pub kept_ms: u64,
    /// What the journal's bound, or the room that there is, will leave of the window at this rate, in milliseconds, once the rate is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast_ms: Option<u64>,
    /// What will cut the window before long: that is announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// While there is little room: what the journal takes before it has to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_bytes: Option<u64>,
    /// The oldest moments were dropped before they were as old as the window.
    #[serde(default)]
    pub cut: bool,
    /// For what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_by: Option<Limit>,
    /// Why retention does not go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What limits how far back history goes, other than the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The journal's bound.
    MaxBytes,
    /// The room on the replica's media.
    Room,
    /// The replica's quota.
    Quota,
}

impl Limit {
    /// Whether it is a lack of room, and not the policy's wish.
    #[must_use]
    pub fn is_room(self) -> bool {
        self != Self::MaxBytes
    }
}

impl History {
    /// Whether a bound will cut the window at this rate.
    #[must_use]
    pub fn cut_forecast(&self) -> bool {
        self.forecast_ms.is_some_and(|ms| ms < self.window_ms)
    }
}

/// What keeps a moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hold {
    /// The moment.
    pub at: At,
    /// What holds it: `pin`, `long`, `session`.
    pub by: String,
    /// Its name, if it has one.
    pub label: Option<String>,
    /// Bytes that are kept since that moment.
    pub bytes: u64,
}

/// What applying retention did, or would.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pruned {
    /// The oldest moment after which every write can be restored; none while nothing was ever merged.
    pub oldest: Option<At>,
    /// What the journal takes less.
    pub freed_bytes: u64,
    /// Moments before it that are kept.
    #[serde(default)]
    pub holds: u64,
    /// Nothing was done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Which moments are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointPolicy {
    /// Any LSN can be restored.
    #[default]
    EveryWrite,
    /// Only points can.
    PerPoint,
}

/// The answer of `policy`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// A point is closed this often, in milliseconds.
    pub rpo_ms: u64,
    /// Which moments are kept.
    pub points: PointPolicy,
    /// How long they are, in milliseconds.
    #[serde(default)]
    pub window_ms: u64,
    /// What the journal may take, in bytes; 0: no bound.
    #[serde(default)]
    pub max_bytes: u64,
    /// What stays free on the replica's media, in bytes.
    #[serde(default)]
    pub reserve_bytes: u64,
    /// How often a long-term point is made, in milliseconds; 0: never.
    #[serde(default)]
    pub long_term_ms: u64,
    /// How long long-term points are kept, in milliseconds.
    #[serde(default)]
    pub keep_ms: u64,
    /// What is done when there is no room left.
    #[serde(default)]
    pub when_full: WhenFull,
    /// What the whole replica may take, in bytes; 0: no quota.
    #[serde(default)]
    pub quota: u64,
    /// What was changed just now and leaves the journal no room, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What is done when there is no room left, on the replica's media or within its quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The oldest history is merged away and the protection goes on.
    #[default]
    Shorten,
    /// History stays and the protection stops until there is room.
    Stop,
}

/// The defaults of the command line.
impl Default for Policy {
    fn default() -> Self {
        crate::host::document::policy(&cdp_core::journal::Policy::default())
    }
}
