//! Records in memory: what a filter makes, what a frame carries, what a journal gives back.

use crate::types::{
    ClockEpoch, DiskId, Extent, Lsn, MonoTime, PART_MAX, SECTOR, SetId, StartId, Timeline, WRITE_MAX, WallTime,
};
use bytes::Bytes;

/// What a record is. The numbers are those of the format; 0 is none of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// Data that a guest wrote.
    Write = 1,
    /// A range that reads as zeros and stays allocated.
    Zero = 2,
    /// A range that reads as zeros and need not be kept.
    Discard = 3,
    /// A flush that completed: everything acknowledged before is durable at the source.
    Barrier = 4,
    /// A point: every LSN up to and with this one is wanted as one moment.
    Mark = 5,
    /// Both clocks of the source, read together; begins an epoch when the wall clock stepped.
    Time = 6,
    /// A disk has another size from here on.
    Resize = 7,
    /// A disk joined the group.
    DiskAdded = 8,
    /// A disk left the group.
    DiskRemoved = 9,
    /// The first record of a timeline.
    TimelineStart = 10,
    /// From here on writes were not recorded, only which extents they touched.
    GapBegin = 11,
    /// From here on writes are recorded again.
    GapEnd = 12,
    /// From `from` on no LSN is restorable until the matching end.
    ResyncBegin = 13,
    /// The replica is what the source was; this LSN is restorable.
    ResyncEnd = 14,
    /// Data that was read from the source again, after a failed write or for a resync.
    Repair = 15,
    /// From here on only the LSN at which the period closes can be restored.
    PeriodBegin = 16,
    /// The period that is open closes here, without a point.
    PeriodEnd = 17,
    /// A point before it is common to all groups of a consistency set.
    SetPoint = 18,
}

impl RecordKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [RecordKind; 18] = [
        Self::Write,
        Self::Zero,
        Self::Discard,
        Self::Barrier,
        Self::Mark,
        Self::Time,
        Self::Resize,
        Self::DiskAdded,
        Self::DiskRemoved,
        Self::TimelineStart,
        Self::GapBegin,
        Self::GapEnd,
        Self::ResyncBegin,
        Self::ResyncEnd,
        Self::Repair,
        Self::PeriodBegin,
        Self::PeriodEnd,
        Self::SetPoint,
    ];

    /// The kind with this number in the format.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Whether its parts carry bytes of the disk.
    #[must_use]
    pub fn has_data(self) -> bool {
        matches!(self, Self::Write | Self::Repair)
    }

    /// Whether it changes what a range of the disk reads as.
    #[must_use]
    pub fn changes_disk(self) -> bool {
        matches!(self, Self::Write | Self::Repair | Self::Zero | Self::Discard)
    }

    /// Whether a reader that does not know this kind must refuse what follows.
    #[must_use]
    pub fn must_understand(self) -> bool {
        !matches!(self, Self::Barrier | Self::Mark | Self::Time | Self::SetPoint)
    }
}

/// What a point was made for; several may hold at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PointKinds {
    /// Closed by the policy, one per RPO.
    pub short: bool,
    /// Closed by the policy, every few hours, kept for days.
    pub long: bool,
    /// Asked for by a person or a program.
    pub mark: bool,
    /// Applications were frozen for it.
    pub app: bool,
    /// It is common to all groups of a consistency set. Known only after its record was made: a [`Note::SetPoint`] says so.
    pub set: bool,
}

impl PointKinds {
    /// A bit for each, as formats hold them.
    #[must_use]
    pub(crate) fn bits(self) -> u8 {
        let Self { short, long, mark, app, set } = self;
        u8::from(short) | u8::from(long) << 1 | u8::from(mark) << 2 | u8::from(app) << 3 | u8::from(set) << 4
    }

    /// Bits that have no meaning yet are passed over.
    #[must_use]
    pub(crate) fn from_bits(bits: u8) -> Self {
        let on = |bit: u8| bits >> bit & 1 == 1;
        Self { short: on(0), long: on(1), mark: on(2), app: on(3), set: on(4) }
    }
}

/// A point's own facts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// What it was made for.
    pub kinds: PointKinds,
    /// It directly follows a flush of the guest.
    pub on_barrier: bool,
    /// Its name, or empty; at most [`crate::types::NAME_MAX`] bytes.
    pub label: String,
}

/// Why writes were not recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum GapReason {
    /// What was not yet durable reached the bound of memory (and of the spool).
    Overload = 1,
    /// The replica's media had no room.
    NoSpace = 2,
    /// The replica's media failed or could not be reached.
    ReplicaLost = 3,
    /// Somebody paused the protection.
    Paused = 4,
    /// Replication was taken out of the guest's path.
    Detached = 5,
}

impl GapReason {
    /// The reason with this number in the format.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Overload, Self::NoSpace, Self::ReplicaLost, Self::Paused, Self::Detached]
            .into_iter()
            .find(|r| *r as u8 == number)
    }

    /// The reason as it is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::NoSpace => "no-space",
            Self::ReplicaLost => "replica-lost",
            Self::Paused => "paused",
            Self::Detached => "detached",
        }
    }
}

/// Why the replica had to be compared with the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ResyncReason {
    /// The first copy of the disks.
    Seeding = 1,
    /// Writes went on unrecorded before.
    Gap = 2,
    /// The source stopped without draining.
    UncleanStop = 3,
    /// A write failed or tore at the source.
    WriteFailed = 4,
    /// The source may have been changed by others.
    FullCheck = 5,
    /// What was lent to a proxy was lost with it.
    LentLost = 6,
    /// The replica lost what it had acknowledged, or another one took its place.
    AcknowledgedLost = 7,
}

impl ResyncReason {
    /// The reason with this number in the format.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::Seeding,
            Self::Gap,
            Self::UncleanStop,
            Self::WriteFailed,
            Self::FullCheck,
            Self::LentLost,
            Self::AcknowledgedLost,
        ]
        .into_iter()
        .find(|r| *r as u8 == number)
    }

    /// The reason as it is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seeding => "seeding",
            Self::Gap => "gap",
            Self::UncleanStop => "unclean-stop",
            Self::WriteFailed => "write-failed",
            Self::FullCheck => "full-check",
            Self::LentLost => "lent-lost",
            Self::AcknowledgedLost => "acknowledged-lost",
        }
    }
}

/// What a record says that is not data of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// Of [`RecordKind::Mark`].
    Mark(Mark),
    /// Of [`RecordKind::Time`]: the wall clock is the record's stamp.
    Time {
        /// The source's steady clock at the stamp.
        mono: MonoTime,
    },
    /// Of [`RecordKind::Resize`], in bytes.
    Resize {
        /// Size before.
        from: u64,
        /// Size from here on.
        to: u64,
    },
    /// Of [`RecordKind::DiskAdded`].
    DiskAdded {
        /// The disk's name in the group.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Of [`RecordKind::TimelineStart`].
    TimelineStart {
        /// The branch this one forks from; none for the first.
        parent: Option<Timeline>,
        /// The last LSN of the parent that belongs to this one's past.
        fork: Lsn,
    },
    /// Of [`RecordKind::GapBegin`].
    GapBegin {
        /// The first LSN that was not recorded.
        from: Lsn,
        /// Why.
        reason: GapReason,
    },
    /// Of [`RecordKind::ResyncBegin`].
    ResyncBegin {
        /// The first LSN that is not restorable.
        from: Lsn,
        /// Why.
        reason: ResyncReason,
    },
    /// Of [`RecordKind::ResyncEnd`].
    ResyncEnd {
        /// Bytes of the source that were read again.
        bytes_read: u64,
        /// Bytes that differed and were recorded.
        bytes_changed: u64,
    },
    /// Of [`RecordKind::PeriodBegin`].
    PeriodBegin {
        /// The first LSN that cannot be restored until the period closes: the record's own.
        from: Lsn,
    },
    /// Of [`RecordKind::SetPoint`]: the mark at `lsn`, on the record's timeline, is this group's part of a common point.
    SetPoint {
        /// The set.
        set: SetId,
        /// The start of who took the cut.
        taker: StartId,
        /// The cut's number.
        cut: u64,
        /// The mark, below the record's own LSN.
        lsn: Lsn,
        /// How many groups have to have it.
        members: u16,
        /// What people call it; at most [`crate::types::SET_LABEL_MAX`] bytes.
        label: String,
    },
}

/// A record, or one part of a write: the unit that frames carry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Place in the write order; all parts of one write share it.
    pub lsn: Lsn,
    /// The source's wall clock, in the epoch of the frame.
    pub time: WallTime,
    /// What the record is.
    pub kind: RecordKind,
    /// The disk it is about; none for records about the whole group.
    pub disk: Option<DiskId>,
    /// This part's own range; empty for records without one.
    pub extent: Extent,
    /// Which part of the write this is, from 0.
    pub index: u16,
    /// How many parts the write has; 1 for everything else.
    pub count: u16,
    /// CRC32C of `data`, made at capture and never again; 0 without data.
    pub crc: u32,
    /// The bytes written; empty for kinds without data.
    pub data: Bytes,
    /// What a record without data says.
    pub note: Option<Box<Note>>,
}

/// A write's data, cut into parts and checksummed: made by the caller of the filter before any lock is taken.
#[derive(Clone, Debug)]
pub struct Payload {
    extent: Extent,
    /// The first part stands by itself, so that a write of one part, the usual one, allocates nothing here.
    first: (Bytes, u32),
    rest: Vec<(Bytes, u32)>,
}

/// Why bytes cannot be one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayloadError {
    /// Offset or length is no multiple of the sector size, or the length is 0.
    #[error("a write of {extent} (offset+bytes) is empty or not on multiples of 512 bytes")]
    Unaligned {
        /// What was asked for.
        extent: Extent,
    },
    /// Longer than one record may be.
    #[error("a write of {length} bytes is longer than the {WRITE_MAX} that one record holds")]
    TooLong {
        /// What was asked for.
        length: u64,
    },
}

impl Payload {
    /// Cuts and checksums `data`, written at `offset`. Copies nothing.
    ///
    /// # Errors
    /// When offset and length are not those of a write.
    pub fn new(offset: u64, data: Bytes) -> Result<Self, PayloadError> {
        let extent = Extent::new(offset, data.len() as u64);
        if extent.is_empty() || !extent.is_aligned(SECTOR) {
            return Err(PayloadError::Unaligned { extent });
        }
        if extent.length > WRITE_MAX {
            return Err(PayloadError::TooLong { length: extent.length });
        }
        let part = PART_MAX as usize;
        let mut left = data;
        let cut = |left: &mut Bytes| {
            let piece = left.split_to(part.min(left.len()));
            let crc = crc32c::crc32c(&piece);
            (piece, crc)
        };
        let first = cut(&mut left);
        let mut rest = Vec::with_capacity(left.len().div_ceil(part));
        while !left.is_empty() {
            rest.push(cut(&mut left));
        }
        Ok(Self { extent, first, rest })
    }

    /// The range that is written.
    #[must_use]
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The parts as records of `kind` at `lsn`, in order of their offset.
    pub fn into_parts(self, kind: RecordKind, disk: DiskId, lsn: Lsn, time: WallTime) -> impl Iterator<Item = Part> {
        let count = self.rest.len() as u16 + 1;
        let mut offset = self.extent.offset;
        std::iter::once(self.first).chain(self.rest).enumerate().map(move |(index, (data, crc))| {
            let extent = Extent::new(offset, data.len() as u64);
            offset = extent.end();
            Part { lsn, time, kind, disk: Some(disk), extent, index: index as u16, count, crc, data, note: None }
        })
    }
}

impl Part {
    /// A record without data.
    #[must_use]
    pub fn plain(kind: RecordKind, disk: Option<DiskId>, extent: Extent, lsn: Lsn, time: WallTime) -> Self {
        Self { lsn, time, kind, disk, extent, index: 0, count: 1, crc: 0, data: Bytes::new(), note: None }
    }

    /// A record that carries a note.
    #[must_use]
    pub fn noted(kind: RecordKind, disk: Option<DiskId>, lsn: Lsn, time: WallTime, note: Note) -> Self {
        Self { note: Some(Box::new(note)), ..Self::plain(kind, disk, Extent::new(0, 0), lsn, time) }
    }

    /// Whether it is the last part of its record.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.index + 1 == self.count
    }
}

/// Records gathered for one frame, not yet packed. Parts are in LSN order, those of one write in order of their index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawFrame {
    /// The branch of history they belong to.
    pub timeline: Timeline,
    /// The last LSN of the timeline's frame before this one; zero before its first.
    pub prev_lsn: Lsn,
    /// Every LSN up to here completed well at the source (or lies in an open resync) and is whole in this or earlier frames.
    pub settled: Lsn,
    /// The clock epoch of every stamp in the frame.
    pub epoch: ClockEpoch,
    /// At least one, at most [`crate::types::FRAME_RECORDS_MAX`].
    pub parts: Vec<Part>,
    /// Bytes of data in `parts`.
    pub plain_bytes: u64,
}

impl RawFrame {
    /// The first LSN that has a part here.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        self.parts.first().map_or(Lsn::ZERO, |part| part.lsn)
    }

    /// The last LSN that has a part here.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.parts.last().map_or(Lsn::ZERO, |part| part.lsn)
    }
}
