//! What a filter's host asks whoever keeps its replica, beside the link. Each may come twice: what is done is done once.

use crate::capture::disk::Tags;
use cdp_core::replica::compare::{Answer, Ask as AskHashes, AskId};
use cdp_core::types::{DiskId, Lsn, Timeline};

/// A question.
#[derive(Clone, Debug)]
pub enum Ask {
    /// This timeline is written from now on. `starts`: by a filter that starts. With the sources that it has.
    Begin { timeline: Timeline, starts: bool, given: Vec<Given> },
    /// What is to be written down of a disk, by whoever writes this timeline.
    Disks { timeline: Timeline, edit: DisksEdit },
    /// No activity log below this generation is to be believed.
    Trust { least: u64 },
    /// The first copy of a disk begins, or goes on.
    Copy { disk: DiskId, size: u64 },
    /// All pieces of an attempt were taken.
    Copied { disk: DiskId, attempt: u64 },
    /// What it has of a range.
    Hashes(AskHashes),
}

/// A source, as large as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    pub disk: DiskId,
    pub size: u64,
    /// The number under which it is copied anew, if its copy never was whole.
    pub anew: DiskId,
}

/// What of a disk is written down beside the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DisksEdit {
    /// It may have records soon.
    Joins { disk: DiskId, size: u64, added: Lsn },
    /// It left, durably.
    Left { disk: DiskId, lsn: Lsn },
    /// It is about to have another size.
    Announce { disk: DiskId, size: u64 },
    /// It has that, durably.
    Sizes { disk: DiskId, size: u64 },
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Reply {
    Begun(Begun),
    Done,
    /// What lies before the position is there.
    Copy {
        attempt: u64,
        position: u64,
    },
    /// The copy is whole and named; none: it is to be begun again.
    Copied(Option<Whole>),
    Hashes(AskId, Answer),
}

/// The timeline is open.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Where it goes on from; none: nothing is there, and the group begins.
    pub after: Option<(Timeline, Lsn)>,
    /// What it believes of activity logs.
    pub least: u64,
    /// The disks that there are, with the sizes that the replica knows, in bytes; those that are to be copied anew have their new numbers.
    pub disks: Vec<(DiskId, u64)>,
    /// Those that are gone with this start.
    pub leaving: Vec<DiskId>,
    /// Disks of the group whose first copy is not whole, and what the others are below the timeline, for the model.
    pub uncopied: Vec<DiskId>,
    pub bases: Vec<(DiskId, Tags)>,
}

/// A first copy that is whole.
#[derive(Clone, Debug)]
pub struct Whole {
    /// It was there before: nobody knows of what moment it is.
    pub brought: bool,
    /// What the disk is below the open timeline, for the model.
    pub base: Tags,
}
