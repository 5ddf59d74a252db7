//! The words of the record model as types: no bare integer crosses a border of this crate.
//!
//! Byte quantities are bytes unless a name says otherwise; extents are multiples of [`SECTOR`]. Identities are random
//! 128-bit values that the caller draws; zero is never an identity, because zeros are what a torn write leaves.

use std::fmt;

/// The smallest unit a disk is addressed in, in bytes.
pub const SECTOR: u64 = 512;
/// The unit of base disks and their sidecars, in bytes.
pub const BLOCK: u64 = 4096;
/// The longest guest write that is one record, in bytes.
pub const WRITE_MAX: u64 = 32 << 20;
/// A write is cut into parts of at most this many bytes, so that two of them fill a chunk and none ever crosses one.
pub const PART_MAX: u64 = 32 << 10;
/// The most plain bytes in one chunk, the unit that is decoded on its own.
pub const CHUNK_PLAIN_MAX: u64 = 64 << 10;
/// The most plain bytes of guest data in one frame.
pub const FRAME_PLAIN_MAX: u64 = 256 << 10;
/// The most parts and records in one frame.
pub const FRAME_RECORDS_MAX: usize = 1024;
/// The longest time between the first and the last stamp of a frame, in nanoseconds: the format has 32 bits for it.
pub const FRAME_SPAN_NS_MAX: u64 = 2_000_000_000;
/// How much of a disk one bit of the activity log and of the dirty map's upper level stands for, in bytes.
pub const ACTIVITY_EXTENT: u64 = 4 << 20;
/// The largest disk, in bytes (1 PiB).
pub const DISK_MAX: u64 = 1 << 50;
/// The most disks in one group.
pub const DISKS_MAX: usize = 64;
/// The longest label of a point and the longest name of a disk, group or session, in bytes of UTF-8.
pub const NAME_MAX: usize = 255;
/// The most bytes of what a common point of a consistency set is called.
pub const SET_LABEL_MAX: usize = 200;

/// Whether a disk, a group or a tenant may be called so: the name of a directory is one.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.chars().any(|c| c == '/' || c.is_control())
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Wraps 128 random bits; `None` if they are all zero.
            #[must_use]
            pub fn new(bytes: [u8; 16]) -> Option<Self> {
                (bytes != [0; 16]).then_some(Self(bytes))
            }
            /// The 128 bits.
            #[must_use]
            pub fn bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

identity! {
    /// One write order over one or more disks, made by one filter process.
    GroupId
}
identity! {
    /// One replica: base, journal and catalogue of one group in one place.
    ReplicaId
}
identity! {
    /// A branch of history; a record is named by (group, timeline, LSN).
    Timeline
}
identity! {
    /// One segment file, drawn anew for each file and never used again.
    SegmentId
}

identity! {
    /// One link while it holds: drawn by who dials.
    SessionId
}

identity! {
    /// A consistency set: several groups that cut common points.
    SetId
}
identity! {
    /// One start of a part that takes a consistency set's cuts or takes part in them: drawn anew each time, so that nothing that was said
    /// to the one before is taken for something that was said to this one.
    StartId
}

impl Timeline {
    /// The first 64 bits in hex, as they stand in point ids and `lsn:TIMELINE-N`.
    #[must_use]
    pub fn short(&self) -> String {
        self.0[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A disk's number inside its group, from 1; never given to another disk of the group again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskId(u16);

impl DiskId {
    /// Wraps a number; `None` for 0.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }
    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which moments a policy wants to be able to go back to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum PointsMode {
    /// Every write.
    #[default]
    EveryWrite = 1,
    /// Points only: writes between them may be coalesced.
    PerPoint = 2,
}

/// A record's place in the write order of its group. 0 means "before the first record".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first record.
    pub const ZERO: Lsn = Lsn(0);

    /// The next place in the order.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
    /// The place before; zero stays zero.
    #[must_use]
    pub fn prev(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place between two parts in the order of a timeline: every part of every record below `lsn`, and the first `parts` of it.
/// A write of many parts lies in several frames, so an LSN alone does not say where a frame ends. Behind the last part `parts` is
/// [`Position::WHOLE`], however many there are: so a position says by itself whether its record is whole, and whoever makes one
/// part of many moves no position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    /// The record that was begun last.
    pub lsn: Lsn,
    /// How many of its parts lie before; [`Position::WHOLE`]: all.
    pub parts: u32,
}

impl Position {
    /// All parts of the record.
    pub const WHOLE: u32 = u32::MAX;

    /// Behind the record at `lsn`.
    #[must_use]
    pub fn whole(lsn: Lsn) -> Self {
        Self { lsn, parts: Self::WHOLE }
    }

    /// The last LSN that is whole at this place.
    #[must_use]
    pub fn whole_lsn(self) -> Lsn {
        if self.parts == Self::WHOLE { self.lsn } else { self.lsn.prev() }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts {
            Self::WHOLE => write!(f, "{}", self.lsn),
            parts => write!(f, "{}/{parts}", self.lsn),
        }
    }
}

/// An LSN up to which everything survives a power cut. Minted only by the journal, at the completion of the covering sync.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DurableLsn(Lsn);

impl DurableLsn {
    /// Nothing is durable yet.
    pub const NONE: DurableLsn = DurableLsn(Lsn::ZERO);

    /// Only the journal's writer and its recovery may say that something is durable.
    pub(crate) fn mint(lsn: Lsn) -> Self {
        Self(lsn)
    }
    /// The LSN.
    #[must_use]
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

/// A run of bytes of a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Extent {
    /// A run of `length` bytes from `offset`.
    #[must_use]
    pub fn new(offset: u64, length: u64) -> Self {
        Self { offset, length }
    }
    /// The first byte after the run (saturating).
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
    /// Whether the run holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    /// Whether the runs share a byte.
    #[must_use]
    pub fn overlaps(&self, other: &Extent) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
    /// The bytes that both runs hold, if any.
    #[must_use]
    pub fn intersect(&self, other: &Extent) -> Option<Extent> {
        let offset = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        (offset < end).then(|| Extent::new(offset, end - offset))
    }
    /// Whether `other` lies inside.
    #[must_use]
    pub fn contains(&self, other: &Extent) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }
    /// Whether both ends are on multiples of `unit`.
    #[must_use]
    pub fn is_aligned(&self, unit: u64) -> bool {
        self.offset.is_multiple_of(unit) && self.length.is_multiple_of(unit)
    }
    /// The smallest run on multiples of `unit` that holds this one.
    #[must_use]
    pub fn widen(&self, unit: u64) -> Extent {
        let offset = self.offset / unit * unit;
        Extent::new(offset, self.end().next_multiple_of(unit) - offset)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length)
    }
}

/// Nanoseconds since 1970-01-01 UTC as the source's wall clock says them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WallTime(pub u64);

/// Nanoseconds of a clock that never steps; its zero means nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// The time `nanoseconds` later.
    #[must_use]
    pub fn after(self, nanoseconds: u64) -> MonoTime {
        MonoTime(self.0.saturating_add(nanoseconds))
    }
    /// Nanoseconds since `earlier`, 0 if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: MonoTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks, read together: what every `handle_*` of a state machine takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// The wall clock.
    pub wall: WallTime,
    /// The clock that never steps.
    pub mono: MonoTime,
}

/// Counts the steps of the source's wall clock, from 1. Stamps of one epoch are ordered; across epochs only LSNs are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClockEpoch(pub u32);

/// When a record was made, by the source's clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stamp {
    /// The epoch in which `time` is ordered.
    pub epoch: ClockEpoch,
    /// max(previous stamp of the epoch, the source's wall clock).
    pub time: WallTime,
}

/// A point's name, stable for ever: `<first 16 hex digits of the timeline>-<lsn>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PointId {
    /// The branch of history.
    pub timeline: Timeline,
    /// The last record that the point holds.
    pub lsn: Lsn,
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.timeline.short(), self.lsn)
    }
}
