//! What takers and members say to each other, as values. How they are carried stands in `SET.md`.

use crate::types::{GroupId, Lsn, SetId, StartId, Timeline};
use std::fmt;

/// A cut of a set. Numbers grow with each cut of a taker; another start of it is another taker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CutId {
    /// The start of who takes it.
    pub taker: StartId,
    /// Its number.
    pub number: u64,
}

impl fmt::Display for CutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.number, self.taker)
    }
}

/// Where a group is cut: everything up to the LSN is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The branch of history.
    pub timeline: Timeline,
    /// The last LSN that is in.
    pub lsn: Lsn,
}

/// Why a member does not take part in a cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// What its group writes now cannot be restored: it is tracking, resyncing, paused or closed.
    NotProtecting,
    /// Its last release was less than [`super::CUTS_APART_NS`] ago.
    TooSoon,
}

/// Why a member let go of the completions that it withheld.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The taker said go: everybody was withholding.
    Go,
    /// It had withheld for [`super::HOLD_NS`].
    Timer,
    /// The taker gave the cut up, or began another one.
    Cancelled,
    /// It held [`super::HELD_MAX`] completions.
    Full,
    /// It did not take part.
    Refused(Refusal),
}

impl How {
    /// The word for it in messages and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Timer => "timer",
            Self::Cancelled => "cancel",
            Self::Full => "full",
            Self::Refused(Refusal::NotProtecting) => "not-protecting",
            Self::Refused(Refusal::TooSoon) => "too-soon",
        }
    }

    /// The reason that this word stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        let refused = [Refusal::NotProtecting, Refusal::TooSoon].map(Self::Refused);
        [Self::Go, Self::Timer, Self::Cancelled, Self::Full].into_iter().chain(refused).find(|how| how.as_str() == word)
    }
}

/// From the taker to a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// The set.
    pub set: SetId,
    /// The cut.
    pub cut: CutId,
    /// What is to be done.
    pub kind: OrderKind,
}

/// What a member is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrderKind {
    /// Withhold completions, and say where the group is cut.
    Prepare,
    /// Release: everybody is withholding.
    Go,
    /// Release: the cut is given up.
    Cancel,
    /// Every member released on go: record the point.
    Keep {
        /// How many groups have to have it.
        members: u16,
        /// The start of the member that released on go.
        start: StartId,
        /// Where it was cut. A later start may have withheld for the same cut at another place, since a prepare and a go came to it late.
        place: Place,
    },
}

/// From a member to the taker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// The set.
    pub set: SetId,
    /// The cut.
    pub cut: CutId,
    /// Whose report it is.
    pub group: GroupId,
    /// The member's start.
    pub start: StartId,
    /// What it says.
    pub kind: ReportKind,
}

/// What a member says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReportKind {
    /// Completions of what is above this place are withheld.
    Prepared(Place),
    /// Nothing is withheld any more.
    Released {
        /// Why.
        how: How,
        /// Where the group was cut, if it was.
        place: Option<Place>,
    },
    /// The answer to keep.
    Kept {
        /// The point has its place in the group's write order.
        recorded: bool,
    },
}

/// A common point, as a group records it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetPoint {
    /// The set.
    pub set: SetId,
    /// The cut.
    pub cut: CutId,
    /// Where this group was cut.
    pub place: Place,
    /// How many groups have to have it.
    pub members: u16,
}
