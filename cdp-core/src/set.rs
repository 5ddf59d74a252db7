//! Consistency sets: common points of several groups on several hosts. Protocol, proof and bounds stand in `set/SET.md`.
//!
//! A [`Taker`] runs the cuts. A [`Member`] stands behind the completions of one group's filter and withholds them while a cut is
//! being taken, for 5 ms at most. Both are machines without I/O: messages and time go in, messages and releases come out.

mod member;
mod message;
mod taker;

pub use member::{Completion, HELD_MAX, Member, MemberCounts, Output};
pub use message::{CutId, How, Order, OrderKind, Place, Refusal, Report, ReportKind, SetPoint};
pub use taker::{BeginError, Counts, Ended, MEMBERS_MAX, MembersError, Miss, Taker, TakerOutput, Verdict};

/// So long at most does a member withhold completions at one cut, by its own clock, in nanoseconds.
pub const HOLD_NS: u64 = 5_000_000;
/// So long after a release no member withholds again, in nanoseconds.
pub const CUTS_APART_NS: u64 = 100_000_000;

#[cfg(test)]
mod tests;
