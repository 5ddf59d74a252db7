//! What a filter wants done, and the numbers by which what was done comes back.

use super::status::State;
use crate::frame::{GapReason, PointKinds, RawFrame, ResyncReason};
use crate::types::{ClockEpoch, DiskId, Extent, Lsn, Timeline};
use bytes::Bytes;

/// Names an op between its submission and its completion; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(u64);

impl Ticket {
    pub(super) fn new(slot: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot))
    }
    pub(super) fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }
    pub(super) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Names a flush between its beginning and its end: it vouches only for what completed before it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a flush that is not reported keeps the activity log from being cleared"]
pub struct FlushTicket {
    pub(super) disk: usize,
    pub(super) generation: u64,
    /// What was flushed when it began: if it fails, everything since then may be lost, whatever ends well meanwhile.
    pub(super) flushed: u64,
    pub(super) guest: bool,
}

/// Names a write of the activity log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogToken(pub(super) u64);

/// Names a re-read of the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RereadToken(pub(super) u64);

/// An I/O that failed, as the operating system says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("I/O failed with OS error {errno}")]
pub struct Failed {
    /// The error's number there; 0 where there is none.
    pub errno: i32,
}

/// Whether a submitted op may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an op that may go has its place in the order and must be completed"]
pub enum Submitted {
    /// Do it now, then call `complete`.
    Go(Ticket),
    /// Wait for [`Output::Ready`] with this ticket.
    Hold(Ticket),
}

impl Submitted {
    /// The op's ticket, either way.
    #[must_use]
    pub fn ticket(self) -> Ticket {
        match self {
            Self::Go(ticket) | Self::Hold(ticket) => ticket,
        }
    }
}

/// Sectors of the activity log to write in place, then to sync. All writes of one `LogWrite` may be issued in any order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogWrite {
    /// Comes back with `log_written`.
    pub token: LogToken,
    /// It begins the log anew: it goes into the file that has the log's name now, made if there is none. Any other goes into the file that
    /// the one before it went into, also where that has no name any more: it never makes one.
    pub begins: bool,
    /// Offsets in the file, ascending, and what to write there: whole sectors.
    pub writes: Vec<(u64, Bytes)>,
}

/// A range of the source to read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reread {
    /// Comes back with `reread_done`.
    pub token: RereadToken,
    /// The disk.
    pub disk: DiskId,
    /// At most [`super::REREAD_BYTES_MAX`].
    pub extent: Extent,
    /// `Some(n)`: every record that touches the range is at or below `n`, and `n` is durable, so that the driver may compare
    /// with the replica's state at `n` (or any later one) and hand back only what differs. `None`: it must not compare,
    /// records that touch the range are still on their way.
    pub compare_at: Option<Lsn>,
}

/// What happened to the activity log's trust. The driver keeps the highest [`LogTrust::least`] durably at the replica, and at
/// each start believes no log below it: neither a stale one that comes back nor one that was lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogTrust {
    /// The log on disk is whole and current from this generation on.
    Good {
        /// The header's generation.
        generation: u64,
    },
    /// It could not be written (in time): everything is unknown. No log of this generation or below is to be believed.
    Lost {
        /// The highest generation that may be on disk.
        generation: u64,
        /// What the write failed with; `None`: it did not end in time, or LSNs ran out of their reservation.
        error: Option<Failed>,
    },
}

impl LogTrust {
    /// The least generation of a log that may be believed after this.
    #[must_use]
    pub fn least(&self) -> u64 {
        match self {
            Self::Good { generation } => *generation,
            Self::Lost { generation, .. } => generation + 1,
        }
    }
}

/// Why replication is out of the guest's path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detached {
    /// Somebody said so.
    Ordered,
    /// It was stuck.
    Stuck(Stuck),
}

/// In what replication was stuck, in nanoseconds of the steady clock. Nothing else counts: what waits for replica, proxy or
/// network waits in the queue, and the guest does not; what waits for the activity log is bounded by its own limits, then the
/// log is lost and replication goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stuck {
    /// Ops came and nobody polled: frames, the activity log, ops that may go, everything waits.
    Outputs {
        /// From the first op that nobody polled after to the one that found it.
        waited_ns: u64,
    },
    /// Somebody had the filter for so long, and ops ran past it.
    Lock {
        /// As the driver said.
        waited_ns: u64,
    },
    /// An output that was handed to a thread of the driver was not taken up.
    Untaken {
        /// As the driver said.
        waited_ns: u64,
    },
    /// A thread that replication needs has ended.
    Ended,
}

impl std::fmt::Display for Detached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ordered => f.write_str("by order"),
            Self::Stuck(stuck) => stuck.fmt(f),
        }
    }
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |ns: u64| ns / 1_000_000_000;
        match *self {
            Self::Outputs { waited_ns } => write!(f, "nobody did what the filter wants for {} s", seconds(waited_ns)),
            Self::Lock { waited_ns } => write!(f, "a thread held the filter for {} s", seconds(waited_ns)),
            Self::Untaken { waited_ns } => write!(f, "a thread took up no work for {} s", seconds(waited_ns)),
            Self::Ended => f.write_str("a thread that replication needs has ended"),
        }
    }
}

/// How the driver's side is, for [`super::Filter::watchdog`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// How long the oldest output waits that was handed to a thread and not taken up, in nanoseconds. Not one that is being
    /// carried out, however long that takes.
    pub untaken_ns: u64,
    /// A thread that replication needs has ended and will not come back.
    pub ended: bool,
}

/// What happened, for people and for the catalogue's watchers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The filter is in another state.
    State {
        /// Before.
        from: State,
        /// From here on.
        to: State,
    },
    /// A point's record was made. It is a point only when [`Event::PointDurable`] follows.
    PointClosed {
        /// The mark's LSN.
        lsn: Lsn,
        /// What for.
        kinds: PointKinds,
        /// Directly after a flush of the guest.
        on_barrier: bool,
    },
    /// Everything up to this point's LSN is durable and settled: it can be restored.
    PointDurable {
        /// The mark's LSN.
        lsn: Lsn,
    },
    /// A write before this point failed before the point was durable: it lies in a resync and cannot be restored.
    PointLost {
        /// The mark's LSN.
        lsn: Lsn,
    },
    /// A period ended without a point, or what is durable is older than the RPO.
    RpoViolated {
        /// Age of the last restorable record; `None` before the first.
        rpo_ns: Option<u64>,
    },
    /// From here on writes are tracked, not recorded.
    GapBegan {
        /// First LSN that has no record.
        from: Lsn,
        /// Why.
        reason: GapReason,
    },
    /// Writes are recorded again.
    GapEnded {
        /// Of the record that says so.
        lsn: Lsn,
    },
    /// Nothing from here on can be restored until the resync ends.
    ResyncBegan {
        /// First LSN that is not restorable.
        from: Lsn,
        /// Why.
        reason: ResyncReason,
    },
    /// The replica is what the source is.
    ResyncEnded {
        /// Of the record that says so; restorable.
        lsn: Lsn,
        /// Bytes that were read again.
        bytes_read: u64,
        /// Bytes that were recorded.
        bytes_changed: u64,
    },
    /// A disk has another size.
    DiskResized {
        /// The disk.
        disk: DiskId,
        /// Of the record that says so.
        lsn: Lsn,
        /// In bytes.
        size: u64,
    },
    /// Everything of a disk that joined has a record or is in its first copy.
    DiskComplete {
        /// The disk.
        disk: DiskId,
        /// Of the record that says so.
        lsn: Lsn,
    },
    /// A disk is gone: nothing is taken for it any more.
    DiskRemoved {
        /// The disk.
        disk: DiskId,
        /// Of the record that says so.
        lsn: Lsn,
    },
    /// A re-read failed; it is tried again.
    RereadFailed {
        /// The disk.
        disk: DiskId,
        /// What could not be read.
        extent: Extent,
        /// With what.
        error: Failed,
    },
    /// Replication left the guest's path.
    Detached(Detached),
    /// It is in the guest's path again; everything is compared.
    Attached,
    /// The order goes on under another timeline; nothing of the one before that was not durable at `fork` will be.
    Forked {
        /// The one that goes on.
        timeline: Timeline,
        /// The last LSN of the one before that belongs to its past.
        fork: Lsn,
        /// Its first LSN.
        first: Lsn,
    },
    /// The activity log is trusted, or is not.
    Log(LogTrust),
    /// The wall clock stepped.
    ClockStepped {
        /// The epoch that began.
        epoch: ClockEpoch,
    },
    /// A flush of the source failed: what was written since the last good one may be lost there and is read again.
    FlushFailed {
        /// The disk.
        disk: DiskId,
        /// With what.
        error: Failed,
    },
    /// The activity log says that the stop was clean; nothing follows.
    Closed,
}

/// One thing to do, in the order in which they should be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// A held op may run now.
    Ready(Ticket),
    /// Write and sync the activity log.
    Log(LogWrite),
    /// Remove the activity log's file, at once: by another thread than the one that may hang in a write of it. Guests wait for
    /// the answer, `log_removed`; no sync is needed. The next write of the log begins a new file.
    RemoveLog,
    /// Flush this disk's source (fdatasync); the answer goes to `flushed`.
    Flush(DiskId, FlushTicket),
    /// Read the source again.
    Reread(Reread),
    /// Frames whose last LSN is at or below this one need not be kept any more: a proxy has them, and the queue is full.
    Lend(Lsn),
    /// Hand this frame on, in order.
    Frame(RawFrame),
    /// Tell whoever listens.
    Event(Event),
}
