//! Capture: the I/O filter as a state machine. Writes of guests go through it and come out as one order of records.
//!
//! [`Filter`] takes ops before they go to the disk and completions after, and gives frames for the replica. It never does I/O
//! and never makes a guest wait for memory, network or replica: an op waits only for one in flight that it overlaps, and for
//! one write of the local activity log when it is the first in a clean 4 MiB extent.
//!
//! What a reader must know before touching it:
//! * An LSN is given when an op *goes*, under the same lock as its stamp. It is *settled* when its op and all below completed
//!   well (or lie in an open resync). Restorable is what is settled, durable, and outside of gaps and resyncs.
//! * What may differ from the replica is always in one of three places: running ops, the [`DirtyMap`] (and the exact ranges of
//!   failed writes), or re-reads under way. The activity log on disk marks a superset of it, at any moment; see `ACTIVITY.md`.
//! * Overload: queue up to a bound (memory, then the driver's spool), then *lend* (what a proxy has synced is dropped here),
//!   then *track* (a gap: only which blocks changed is known), then *resync* (read again).
//! * Where the far side cannot continue the order the filter *forks*: a new timeline, what was not durable is read again.
//! * Replication that is stuck is *detached*: ops pass, everything is compared later. The guest is never detached from its disk.
//!
//! Rooms: [`order`](self) of ops in flight, `gather` (open frame, what is not durable), `clock`, `points`, `dirty`, `lent`,
//! `mend` (re-reads), `activity` (the log), and `filter`, which joins them. Beside it [`Budget`]: memory that several filters share.

mod activity;
mod budget;
mod clock;
mod dirty;
mod filter;
mod gather;
mod lent;
mod mend;
mod options;
mod order;
mod output;
mod points;
mod rest;
mod status;

#[cfg(feature = "fuzzing")]
pub(crate) use activity::fuzz as fuzz_activity;
pub use activity::{
    CLEAN_PASS_NS, CLEAN_SLICE_NS, FACTS_MAX, HeaderFault, LOOKAHEAD, LogContents, LogDisk, LogError, LogState,
};
pub use budget::{Budget, BudgetError, GROUPS_MAX, Portion, WEIGHT_MAX};
pub use clock::{STEP_NS, TIME_RECORD_NS_MAX, TIME_RECORD_NS_MIN, time_record_period_ns};
pub use dirty::{DIRTY_BLOCK, DirtyMap};
pub use filter::{Closing, Drained, Filter, Fork, ForkError, RereadError, Room};
pub use mend::{EXACT_MAX, RETRY_NS_MAX, RETRY_NS_MIN};
pub use options::{
    DiskSpec, FilterOptions, LSN_JUMP, MarkError, NotOpen, OptionsError, PART_COST, QUEUE_BYTES_MIN, REREAD_BYTES_MAX,
    REREADS_LIMIT, REREADS_MAX, SLOTS_MAX, Start, SubmitError,
};
pub use order::Op;
pub use output::{
    Detached, Event, Failed, FlushTicket, Health, LogToken, LogTrust, LogWrite, Output, Reread, RereadToken, Stuck,
    Submitted, Ticket,
};
pub use points::PENDING_POINTS_MAX;
pub use status::{Counters, Stage, State, Status};
