//! What the running process tells.

use serde::Serialize;
use std::net::SocketAddr;

/// Something happened. Fields may be added, never renamed or removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A role is started.
    Started {
        /// Which one.
        role: &'static str,
    },
    /// All are.
    Ready {
        /// Those that run.
        roles: Vec<&'static str>,
        /// What other parts know this process by.
        fingerprint: String,
        /// Where the metrics are.
        metrics: Option<SocketAddr>,
    },
    /// A new file was taken.
    Reloaded {
        /// What differs in it and stays as it was until the process is started again.
        unchanged: Vec<String>,
        /// What roles did not take, and why: there everything stays as it was.
        refused: Vec<String>,
    },
    /// A new file was not taken: everything stays as it was.
    NotReloaded {
        /// What is wrong with it.
        why: String,
    },
    /// A role does not work any more.
    Failed {
        /// Which one.
        role: &'static str,
        /// Why.
        why: String,
    },
    /// A sentence of a role.
    Note {
        /// What it says.
        text: String,
    },
    /// The end has begun: roles are drained, one after another.
    Draining {
        /// Seconds that this takes at most, but for what is written down at the end.
        within_s: u64,
    },
    /// A role is drained.
    Drained {
        /// Which one.
        role: &'static str,
        /// Bytes that are not known to be durable, as [`Drained`](super::Drained) has them.
        left_bytes: u64,
    },
    /// Everything is over.
    Stopped,
}
