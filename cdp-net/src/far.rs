//! The seam between a filter and the replica that it writes to, wherever that is.
//!
//! The filter's side ([`protect`](crate::protect)) knows its replica as a [`Far`] and nothing else; who keeps the replica
//! ([`keeper`](crate::keeper)) knows the filter as a [`Near`]. In one process both are direct calls. Between two, frames and acks
//! are the link's own messages, pieces of first copies are its seeds, and everything else is a call: the request and its answer are
//! JSON headers of the types here, by these numbers.
//!
//! | number | call | from | request | answer | tail |
//! |---:|---|---|---|---|---|
//! | 1 | `find` | filter | [`Find`] | `Option<`[`Found`]`>` | |
//! | 2 | `begin` | filter | [`Begin`] | | |
//! | 3 | `trust` | filter | [`Trust`] | | |
//! | 4 | `sync` | filter | | | |
//! | 5 | `reach` | filter | [`Reach`] | [`Reached`] | |
//! | 6 | `group` | filter | | [`Group`] | |
//! | 7 | `disks` | filter | [`DisksEdit`] | | |
//! | 8 | `mark` | filter | [`MarkOrder`] | [`Marked`] | |
//! | 9 | `zeros` | filter | [`Range`] | [`Zeros`] | |
//! | 10 | `digests` | filter | [`Digests`] | [`Digested`] | a hash of 32 bytes for each block |
//! | 11 | `seed-begin` | filter | [`SeedBegin`] | [`SeedBegun`] | |
//! | 12 | `seed-end` | filter | [`SeedOf`] | [`SeedEnd`] | |
//! | 13 | `seeded` | filter | [`Seeded`] | | |
//! | 14 | `quiesce` | filter | | | |
//! | 15 | `close` | filter | [`Close`] | [`Closed`] | |
//! | 16 | `standing` | filter | | [`Standing`] | |
//! | 17 | `sums` | filter | | [`Sums`] | |
//! | 33 | `job` | reader | [`Job`] | [`JobStands`] | [`JobLine`]s |
//! | 34 | `open-view` | reader | [`OpenView`] | | an [`OpenedView`] |
//! | 35 | `extents` | reader | [`ViewRange`] | | [`runs`](encode_runs) from the range's beginning on |
//! | 36 | `read-view` | reader | [`ViewRange`] | | the bytes |
//! | 37 | `write-view` | reader | [`WriteView`], data as the tail | | |
//! | 38 | `touch-view` | reader | [`ViewName`] | | |
//! | 39 | `close-view` | reader | [`ViewName`] | | |
//! | 65 | `mark` | keeper | [`MarkOrder`] | [`Marked`] | |
//! | 66 | `disk` | keeper | [`DiskOrder`] | [`DiskChanged`] | |
//! | 67 | `facts` | keeper | | [`Facts`] | |
//! | 68 | `policy` | keeper | [`FilterPolicy`] | | |
//!
//! An answer that is a refusal has a [`Problem`] as its header. Every call may come twice: what is done is done once.

mod calls;
mod carry;
mod disks;
mod ids;
mod open;
mod reads;
mod remote;
mod seed;
#[cfg(test)]
mod tests;

pub use calls::{
    CallKind, Close, Closed, Digested, Digests, Facts, FilterPolicy, MarkOrder, Marked, Range, Reach, Reached,
    Standing, Sums, Trust, WAIT_MAX, Zeros,
};
pub use carry::{Caller, HEADER_MAX, UNREACHABLE, answered, ask, header};
pub(crate) use carry::{Told, answer, question, tell, tell_with};
pub use disks::{DiskOrder, DisksEdit, Group, NewDisk, SizeOf};
pub use open::{Begin, Find, Found, FoundDisk, NewGroup, Origin, Witness};
pub use reads::{
    DiffOrder, DigestOrder, Job, JobLine, JobStands, LEASE, NO_VIEW, OpenView, OpenedView, Order, ReadName,
    VIEW_BYTES_MAX, ViewDiskInfo, ViewName, ViewRange, WriteHow, WriteView, decode_runs, encode_runs,
};
pub use remote::{Acks, Remote, RemoteNear, SeedWay, Wire, answer_near};
pub use seed::{NOT_SEEDED, PIECE, SeedBegin, SeedBegun, SeedEnd, SeedHandle, SeedOf, Seeded, Seeding};

use crate::report::{DiskChanged, History, Problem};
use cdp_core::capture::Room;
use cdp_core::frame::RawFrame;
use cdp_core::types::{DiskId, Extent, Lsn};
use std::sync::Arc;
use std::time::Duration;

/// Takes frames in their order; never waits. What was given and is not durable is bounded by the filter.
pub type Frames = Box<dyn Fn(RawFrame) + Send>;

/// Told up to which LSN frames are lent ([`cdp_core::capture::Output::Lend`]); never waits.
pub type Lends = Box<dyn Fn(Lsn) + Send>;

/// A group's replica as its filter knows it. Calls may wait for the replica's media, or for a network: no guest's thread makes any.
pub trait Far: Send + Sync {
    /// What there is of the group; `None`: nothing yet, or a first copy that was never complete and is begun anew.
    ///
    /// # Errors
    /// When what is there cannot be gone on with.
    fn find(&self, find: &Find) -> Result<Option<Found>, Problem>;

    /// Opens the timeline, durably where there is room for that, and takes frames from here on. Comes once after each [`Far::find`].
    ///
    /// # Errors
    /// When nothing can be recorded there.
    fn begin(&self, begin: &Begin, near: Arc<dyn Near>) -> Result<(), Problem>;

    /// Where frames go. Those that come before [`Far::begin`] wait for it.
    fn frames(&self) -> Frames;

    /// From now on no activity log below this generation is to be believed.
    ///
    /// # Errors
    /// When that is not stored.
    fn trust(&self, trust: Trust) -> Result<(), Problem>;

    /// What it has is to become durable soon, whatever else is waited for.
    fn sync(&self);

    /// Whether everything up to `lsn` is durable and settled. Waits for that a fraction of a second at most.
    fn reach(&self, reach: Reach) -> Reached;

    /// What has to be known before a disk joins.
    ///
    /// # Errors
    /// When that cannot be asked now.
    fn group(&self) -> Result<Group, Problem>;

    /// Writes down what becomes of disks, durably.
    ///
    /// # Errors
    /// When it is not stored.
    fn edit_disks(&self, edit: DisksEdit) -> Result<(), Problem>;

    /// Makes a point, by way of [`Near::mark`], and gives its LSN when it can be restored.
    ///
    /// # Errors
    /// When this moment cannot be restored, or the label is taken.
    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem>;

    /// Whether a range of the replica is known to be zeros, as far as everything is durable.
    fn is_zero(&self, disk: DiskId, range: Extent) -> bool;

    /// Which blocks of `data`, read from the source at `range`, differ from the replica at `at` or later, as extents of the disk.
    /// `None`: that cannot be told. Where the bytes themselves are at hand they are compared; over a network their digests are.
    fn differing(&self, disk: DiskId, range: Extent, at: Lsn, data: &[u8]) -> Option<Vec<Extent>>;

    /// Begins the first copy of a disk, or goes on with it.
    ///
    /// # Errors
    /// When the replica's media do not take it, or the disk is copied, gone, or of another size.
    fn seed(&self, seed: &SeedBegin, handle: SeedHandle) -> Result<Box<dyn Seeding>, Problem>;

    /// First copies are whole: from here on they are what their disks were.
    ///
    /// # Errors
    /// When that is not stored: it may be asked again.
    fn seeded(&self, seeded: &Seeded) -> Result<(), Problem>;

    /// The protection is about to end: whoever asks something from here on waits for this time altogether, at most. One that answers
    /// gets what it needs to write down how it ended. Comes again when it is known how much of that is left.
    fn patience(&self, patience: Duration);

    /// What it does by itself in the background ends, because the protection is about to; frames are still taken.
    fn quiesce(&self);

    /// The last word: whether the stop was clean. Waits for it a fraction of a second at most, and may be asked again.
    fn close(&self, close: &Close) -> Closed;

    /// Lets go of everything at once: whoever waits here for something gives up, and the [`Near`] is not called any more.
    fn end(&self);

    /// How it stands, as it was last told: does not wait.
    fn standing(&self) -> Standing;

    /// What it all came to, by now.
    fn sums(&self) -> Sums;

    /// Why it stopped, if it did.
    fn failure(&self) -> Option<String>;

    /// Why the order cannot go on there under its timeline, if so: it does as soon as another one is begun that forks from it.
    fn broken(&self) -> Option<String>;

    /// Where it is said what need not be kept on this side of the way, as somebody on it has stored it; none: nobody is.
    fn lends(&self) -> Option<Lends>;

    /// Why its index is not kept as it should be, if so.
    fn trouble(&self) -> Option<String>;

    /// News of how far back its history will go, once.
    fn history(&self) -> Option<History>;
}

/// A filter as who keeps its replica knows it. Acks come one after the other, and are taken without a wait: the journal stands still
/// meanwhile.
pub trait Near: Send + Sync {
    /// Everything up to this LSN is durable.
    fn durable(&self, lsn: Lsn);

    /// Everything up to this LSN is synced by somebody on the way, or durable; it may become less.
    fn stored(&self, lsn: Lsn);

    /// So many bytes of what is not durable can be kept now, in memory and on disk, on the filter's side of the way.
    fn capacity(&self, bytes: u64);

    /// Whether more is taken.
    fn room(&self, room: Room);

    /// Makes a point's record and gives its LSN.
    ///
    /// # Errors
    /// When this moment cannot be restored.
    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem>;

    /// A disk joins, leaves, or gets another size.
    ///
    /// # Errors
    /// When it cannot.
    fn change_disk(&self, order: &DiskOrder) -> Result<DiskChanged, Problem>;

    /// What only the filter knows.
    fn facts(&self) -> Facts;

    /// The policy was changed durably.
    fn policy(&self, policy: FilterPolicy);
}
