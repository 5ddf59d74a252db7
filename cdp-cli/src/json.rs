//! The documents of `--json`: those that the owner answers too ([`cdp_net::report`]) and those that only commands print.
//!
//! Fields may be added, never renamed or removed.

pub use cdp_net::diff::{Difference, DiskDigest, Kind, Of};
pub use cdp_net::report::{
    At, Disk, DiskChanged, DiskVerb, Gap, History, Hold, Journal, Lack, Limit, Point, PointKind, Points, Policy,
    Pruned, Range, Session, Space, State, Status,
};
pub use cdp_net::restore::RestoredDisk;
pub use cdp_net::verify::{Damage, DiskVerified, LostExtent, Records, Verified};

use crate::exit::Failure;
use cdp_core::types::Lsn;
use cdp_core::when::TimelineName;
use cdp_net::report::text;
use serde::Serialize;
use std::path::PathBuf;

/// What stands on stdout when a command failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ErrorDocument {
    /// The failure.
    pub error: ErrorBody,
}

/// Why a command failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ErrorBody {
    /// A word, never changed once released.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Restorable moments on both sides of the one that was asked for.
    pub nearest: Vec<At>,
}

impl From<&Failure> for ErrorDocument {
    fn from(failure: &Failure) -> Self {
        let Failure { code, message, hint, nearest, .. } = failure.clone();
        Self { error: ErrorBody { code, message, hint, nearest } }
    }
}

/// A disk that is served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Export {
    /// The disk and the export.
    pub name: String,
    /// Where.
    pub uri: String,
    /// Its size in bytes.
    pub size: u64,
}

/// How much of the source was compared with the replica at a start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compared {
    /// Nothing: the replica was made, or the stop was clean and the source is as it was left.
    Nothing,
    /// What the activity log names: changes that others made in between would not be seen.
    ActivityLog,
    /// All of it.
    Everything,
}

/// A line of `protect --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProtectEvent {
    /// The replica is open.
    Opened {
        /// The branch of history that writes will be on.
        #[serde(with = "text")]
        timeline: TimelineName,
        /// It was there before.
        resumed: bool,
        /// The last stop was clean (true for a new replica).
        clean: bool,
        /// How much of the source is compared with the replica.
        compared: Compared,
    },
    /// The first copy, or a comparison of everything, goes on.
    Seeding {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
        /// The present rate.
        bytes_per_s: u64,
    },
    /// The disks are served.
    Ready {
        /// Where.
        exports: Vec<Export>,
    },
    /// A point was made and is durable.
    Point {
        /// It.
        point: Point,
    },
    /// Something that nobody can restore.
    Gap {
        /// It.
        gap: Gap,
    },
    /// The protection does something else now.
    State {
        /// What.
        state: State,
        /// Why, for people.
        reason: Option<String>,
        /// Of `no-space` and `quota`: what has to be free.
        #[serde(skip_serializing_if = "Option::is_none")]
        lacks: Option<Lack>,
    },
    /// It shows that the journal's bound will cut the window, or that it will not after all.
    History {
        /// What is kept, and will be.
        history: History,
    },
    /// The end.
    Stopped(Stopped),
}

/// How a protection ended.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stopped {
    /// Everything is durable; else the rest is left in the activity log.
    pub drained: bool,
    /// The last LSN that was given.
    #[serde(with = "text::lsn")]
    pub lsn: Lsn,
    /// The last durable one.
    #[serde(with = "text::lsn")]
    pub durable_lsn: Lsn,
    /// Bytes that guests wrote.
    pub written_bytes: u64,
    /// Bytes that the journal stored for them.
    pub stored_bytes: u64,
    /// Bytes of the disk that the activity log names and a start will read again.
    pub hot_bytes: u64,
    /// Points that were made.
    pub points: u64,
    /// Seconds that it lasted.
    pub seconds: u64,
    /// The replica's manifest says how it ended; else the next start takes it for a crash.
    pub manifest_stored: bool,
    /// What would have to be free on the replica's disk for the rest, if room was lacking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<Lack>,
    /// What hung and was left; it ends with the process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hanging: Vec<String>,
}

/// The answer of `mark`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Marked {
    /// The point.
    pub at: At,
    /// Its name.
    pub label: String,
}

/// The answer of `restore`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Restored {
    /// The moment.
    pub at: At,
    /// What was written.
    pub outputs: Vec<RestoredDisk>,
    /// Disks that were there and whose first copy was not through: they cannot be restored at that moment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<String>,
    /// What nobody can restore now, where the latest moment was asked for and is not the present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<Gap>,
}

/// What `diff` comes to know. Scripts see differences and digests, a line each, as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiffEvent {
    /// The moments were found.
    Begin {
        /// The first one.
        from: At,
        /// The second one, if it is a moment.
        to: Option<At>,
        /// What nobody can restore now, where the latest moment was asked for and is not the present.
        behind: Option<Gap>,
    },
    /// Something that is not the same.
    Difference(Difference),
    /// A disk in short.
    Digest(DiskDigest),
}

/// A line of `mount --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum MountEvent {
    /// The disks of the moment are served.
    Ready {
        /// The moment.
        at: At,
        /// Where.
        exports: Vec<Export>,
        /// The name of the session that writes go to.
        session: Option<String>,
        /// Writes are taken.
        writable: bool,
        /// Disks that were there and whose first copy was not through: they are not served.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        incomplete: Vec<String>,
        /// What nobody can restore now, where the latest moment was asked for and is not the present.
        #[serde(skip_serializing_if = "Option::is_none")]
        behind: Option<Gap>,
    },
    /// The end.
    Stopped {
        /// The session that writes went to is kept.
        kept: bool,
    },
    /// A named session was forgotten.
    Dropped {
        /// Its name.
        session: String,
    },
}

/// The answer of `inspect`: a file of ours in words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Inspected {
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub kind: String,
    /// What stands in it, a fact a line.
    pub lines: Vec<String>,
}

#[cfg(test)]
pub(crate) mod tests;
