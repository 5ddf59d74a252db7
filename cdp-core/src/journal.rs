//! What is kept: frames in segments, found again at any moment.
//!
//! `FORMAT.md` beside this code specifies every byte and argues, case by case, why a crash at any moment loses nothing that
//! was called durable. The way in is [`create`], [`open`] or [`look`]; the write side is [`Writer`], a machine that asks for
//! effects and is told their outcome; the read side is a [`Snapshot`] (what there is), a [`Reader`] (bytes, verified) and a
//! [`View`] (a disk as it was at one moment).
//!
//! Who may call what: a store has one owner, who has its [`Writer`]; snapshots, readers and views are for everybody.

mod bytes;
mod cache;
mod decide;
mod drive;
mod effect;
mod event;
mod footer;
mod frontier;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod index;
mod inspect;
mod layout;
mod level;
mod manifest;
mod reader;
mod rebuilt;
mod records;
mod recover;
mod region;
mod scan;
mod snapshot;
mod stored;
mod tail;
#[cfg(test)]
mod tests;
mod verify;
mod view;
mod writer;
mod written;

pub use self::bytes::FormatError;
pub use drive::{Admit, Executor, drain};
pub use effect::{Effect, EffectId, FileId, Landing, Outcome};
pub use event::Event;
pub use frontier::Frontier;
pub use inspect::inspect;
pub use layout::{Envelope, Opening, SegmentHeader, Summary};
pub use level::{
    EmptyTask, IndexEmptying, IndexMerge, IndexMergeError, IndexMergeTask, IndexPlan, PlanError, RegionRange, RunInfo,
    RunTotals, run_name,
};
pub use manifest::{
    Arrival, BaseInfo, CutBy, CutInfo, DiskInfo, Generation, KeptInfo, LayerInfo, MANIFEST_COPY, MANIFEST_MAGIC,
    MANIFEST_NAME, Manifest, PinInfo, PointsMode, Policy, ResizeInfo, Retention, SeedingInfo, SeedingPoint,
    SegmentInfo, SegmentState, SessionInfo, SessionKind, SourceFacts, StampedMoment, TimelineInfo, TimelineRole,
    TimelineState, WhenFull, is_journal_file, segment_name,
};
pub use reader::{ReadError, Reader};
pub use records::{Frames, Moment};
pub use recover::{
    Damage, Looked, OpenError, Opened, Repair, create, look, look_through, look_with, open, open_with, rewrap,
};
pub use snapshot::Snapshot;
pub use stored::{damaged_manifests, read_manifest};
pub use tail::{Tail, Unfinished};
pub use verify::{Finding, UNREADABLE_MAX, Unreadable, Verified};
pub use view::{Below, Nothing, Origin, PathElement, Piece, View};
pub use writer::{Appended, Hold, IdSource, Options, Refusal, Refused, Writer, WriterState};
