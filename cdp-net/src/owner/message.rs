//! What is said over the control socket.

use crate::report::{At, PointPolicy, Problem, ProblemClass, WhenFull, text};
use cdp_core::types::WallTime;
use cdp_core::when::{Label, When};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// The first field of both greetings.
pub const PROTOCOL: &str = "cdp-control";
/// The version that this library speaks. Fields and operations may be added without a new one.
pub const VERSION: u32 = 1;

/// The first line of each side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Always [`PROTOCOL`].
    pub protocol: String,
    /// The client's newest version; the owner answers with the one that is spoken.
    pub version: u32,
    /// The process that speaks.
    pub pid: u32,
    /// Since when the owner owns; the client leaves it out.
    #[serde(with = "text::option", default, skip_serializing_if = "Option::is_none")]
    pub since: Option<WallTime>,
}

/// Which neighbour to take of a moment that is not restorable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The last restorable one before it.
    Before,
    /// The first restorable one after it.
    After,
}

/// What to change of a policy; what is `None` stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PolicyChange {
    /// How often a point is closed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
    /// Which moments are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<PointPolicy>,
    /// How long every write is kept, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// What the journal may take, in bytes; 0: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// What stays free on the replica's media, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_bytes: Option<u64>,
    /// How often a long-term point is made, in milliseconds; 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_term_ms: Option<u64>,
    /// How long long-term points are kept, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_ms: Option<u64>,
    /// What is done when there is no room left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
    /// What the whole replica may take, in bytes; 0: no quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

/// What the owner can be asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// Nothing: is anybody there?
    Ping,
    /// A [`crate::report::Status`].
    Status,
    /// A [`crate::report::Points`], newest first.
    Points {
        /// Only from here on.
        #[serde(with = "text::option", default)]
        since: Option<When>,
        /// Only up to here.
        #[serde(with = "text::option", default)]
        until: Option<When>,
        /// At most so many points.
        #[serde(default)]
        limit: Option<u32>,
    },
    /// A point now; its [`At`] is the answer, given when it is durable.
    Mark {
        /// Its name.
        #[serde(with = "text")]
        label: Label,
        /// Freeze the applications for it, or refuse.
        #[serde(default)]
        app_consistent: bool,
    },
    /// Keeps everything that a reader of the moment needs until it is released or the connection ends: a [`PinReply`].
    Pin {
        /// The moment.
        #[serde(with = "text")]
        at: When,
        /// Which neighbour to take if it is not restorable.
        #[serde(default)]
        nearest: Option<Side>,
    },
    /// Keeps everything there is, for a reader of the whole replica (`verify`): a [`PinReply`] of the latest moment. Given up where the
    /// journal is at its bound or there is hardly any room, and where retention has waited for it for half a window: who lets go of it
    /// ([`Request::Unpin`]) is told.
    PinAll,
    /// Pins a moment durably: nothing drops it until it is let go. Its [`At`] is the answer.
    Keep {
        /// The moment.
        #[serde(with = "text")]
        at: When,
        /// Which neighbour to take if it is not restorable.
        #[serde(default)]
        nearest: Option<Side>,
        /// The pin's name.
        #[serde(with = "text::option", default)]
        label: Option<Label>,
    },
    /// Takes a durable pin away: its [`At`].
    LetGo {
        /// The moment.
        #[serde(with = "text")]
        at: When,
        /// Which neighbour to take if it is not restorable.
        #[serde(default)]
        nearest: Option<Side>,
    },
    /// Applies retention now: a [`crate::report::Pruned`].
    Prune {
        /// Only say what that would do.
        #[serde(default)]
        dry_run: bool,
    },
    /// Merges everything that waits to be merged: a [`crate::report::Pruned`].
    Compact,
    /// Releases a pin of this connection: whether it was held until now. Retention gives up what would keep it from its work.
    Unpin {
        /// The number that [`PinReply`] gave.
        pin: u64,
    },
    /// Changes the policy durably (an empty change changes nothing); the whole [`crate::report::Policy`] is the answer.
    Policy {
        /// What to change.
        #[serde(default)]
        change: PolicyChange,
    },
    /// Makes or reopens a writable session: a [`crate::report::Session`]. One without a name ends with the connection.
    OpenSession {
        /// The moment where it begins; one that exists keeps its own.
        #[serde(with = "text::option", default)]
        at: Option<When>,
        /// Which neighbour to take if it is not restorable.
        #[serde(default)]
        nearest: Option<Side>,
        /// Its name.
        #[serde(default)]
        name: Option<String>,
    },
    /// A disk joins the group: a [`crate::report::DiskChanged`] when that is recorded durably.
    AddDisk {
        /// Its name.
        name: String,
        /// Its source, from the root on.
        source: PathBuf,
    },
    /// A disk leaves the group; the same answer.
    RemoveDisk {
        /// Its name.
        name: String,
    },
    /// A disk gets another size; the same answer, when everything that is new is at the replica.
    ResizeDisk {
        /// Its name.
        name: String,
        /// In bytes; that of its source if there is none.
        #[serde(default)]
        size: Option<u64>,
        /// Cut off data.
        #[serde(default)]
        force: bool,
    },
    /// Forgets a named session and all that was written in it.
    DropSession {
        /// Its name.
        name: String,
    },
}

impl Request {
    /// Whether something of the replica is another after it.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Self::Ping | Self::Status | Self::Points { .. } | Self::Pin { .. } | Self::PinAll | Self::Unpin { .. } => {
                false
            }
            Self::Prune { dry_run } => !dry_run,
            Self::Policy { change } => *change != PolicyChange::default(),
            Self::Mark { .. } | Self::Keep { .. } | Self::LetGo { .. } | Self::Compact => true,
            Self::OpenSession { .. } | Self::DropSession { .. } => true,
            Self::AddDisk { .. } | Self::RemoveDisk { .. } | Self::ResizeDisk { .. } => true,
        }
    }
}

/// The answer to [`Request::Pin`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PinReply {
    /// For [`Request::Unpin`].
    pub pin: u64,
    /// The moment that is kept.
    pub at: At,
}

/// A request with its number, as it stands on a line.
#[derive(Serialize)]
pub(super) struct Envelope<'a> {
    pub(super) id: u64,
    #[serde(flatten)]
    pub(super) request: &'a Request,
}

/// An answer as it stands on a line.
#[derive(Serialize, Deserialize)]
pub(super) struct Answer {
    /// The request's number; 0 where there was none to read.
    pub(super) id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ok: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Problem>,
}

impl Answer {
    pub(super) fn new(id: u64, result: Result<Value, Problem>) -> Self {
        match result {
            Ok(value) => Self { id, ok: Some(value), error: None },
            Err(problem) => Self { id, ok: None, error: Some(problem) },
        }
    }
}

/// The operations, for telling an unknown one from a malformed one. A test compares it with [`Request`].
pub(super) const OPERATIONS: [&str; 17] = [
    "ping",
    "status",
    "points",
    "mark",
    "pin",
    "pin-all",
    "keep",
    "let-go",
    "prune",
    "compact",
    "unpin",
    "policy",
    "open-session",
    "drop-session",
    "add-disk",
    "remove-disk",
    "resize-disk",
];

/// Reads a request from a line: its number (0 if it has none) and the request, or what is wrong with it.
pub(super) fn parse(line: &[u8]) -> (u64, Result<Request, Problem>) {
    let usage = |code: &str, message: String| Problem::new(ProblemClass::Usage, code, message);
    let mut fields: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(fields) => fields,
        Err(error) => return (0, Err(usage("bad-request", format!("the request is no JSON object: {error}")))),
    };
    let Some(id) = fields.remove("id").as_ref().and_then(Value::as_u64) else {
        return (0, Err(usage("bad-request", "the request has no whole number as \"id\"".into())));
    };
    let operation = fields.get("op").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !OPERATIONS.contains(&operation.as_str()) {
        let problem = usage("unknown-operation", format!("the owner knows no operation {operation:?}"));
        return (id, Err(problem.hint("the owner may be an older version: restart it with this one")));
    }
    let request = serde_json::from_value(Value::Object(fields));
    (id, request.map_err(|error| usage("bad-request", format!("the request {operation} is malformed: {error}"))))
}

/// Makes a handler's answer of a document.
///
/// # Errors
/// When the document has no JSON form (a programming error, named `internal`).
pub fn reply(document: impl Serialize) -> Result<Value, Problem> {
    let internal =
        |error| Problem::new(ProblemClass::Failed, "internal", format!("the answer has no JSON form: {error}"));
    serde_json::to_value(document).map_err(internal)
}
