//! Who takes the cuts of a set: prepare to all, go when all are prepared, keep when all say that they released on go.
//!
//! It decides nothing by clocks but when to give up. What it calls common was said by every member, by the same start of it, about the same place.

use super::message::{CutId, How, Order, OrderKind, Place, Report, ReportKind};
use super::{CUTS_APART_NS, HOLD_NS};
use crate::mistakes::{self, Mistake};
use crate::types::{GroupId, MonoTime, SetId, StartId};
use std::collections::{BTreeMap, VecDeque};
use thiserror::Error;

/// The most members of a set.
pub const MEMBERS_MAX: usize = 256;
/// An order is said again after so long, while completions are withheld for it.
const AGAIN_NS: u64 = 1_000_000;
/// And after so long when none are any more.
const AGAIN_LATER_NS: u64 = 50_000_000;
/// So long is waited for what members say about their release.
const RELEASED_NS: u64 = 1_000_000_000;
/// So long is waited until all have recorded the point.
const KEPT_NS: u64 = 5_000_000_000;

/// Why a set cannot have these members.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MembersError {
    /// None, or more than [`MEMBERS_MAX`].
    #[error("a consistency set has 1 to {MEMBERS_MAX} groups, not {found}")]
    Count {
        /// How many there were.
        found: usize,
    },
    /// The same group twice.
    #[error("group {group} is named twice")]
    Twice {
        /// The group.
        group: GroupId,
    },
    /// A cut is being taken.
    #[error("cut {cut} is being taken: change the members when it has ended")]
    Busy {
        /// The cut.
        cut: CutId,
    },
}

/// Why no cut is begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BeginError {
    /// One is being taken.
    #[error("cut {cut} is being taken")]
    Busy {
        /// It.
        cut: CutId,
    },
    /// The last one ended a moment ago.
    #[error("the last cut has only just ended: the next may begin in {wait_ns} ns")]
    TooSoon {
        /// So long is to be waited.
        wait_ns: u64,
    },
}

/// Why a cut is no common point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Miss {
    /// These did not say in time that they are prepared.
    NotPrepared(Vec<GroupId>),
    /// This one let go for another reason than go.
    Released(GroupId, How),
    /// This one was started again, or said two things about one cut.
    Changed(GroupId),
    /// These did not say in time why they let go.
    NotReleased(Vec<GroupId>),
    /// These did not record the point, though others may have: it is not offered.
    NotKept(Vec<GroupId>),
}

/// What came of a cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A common point that all have recorded: where each group is cut. It can be restored when all these records are durable.
    Common(BTreeMap<GroupId, Place>),
    /// None.
    Missed(Miss),
}

/// A cut that ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The cut.
    pub cut: CutId,
    /// What came of it.
    pub verdict: Verdict,
    /// From its beginning until the last member was known to be prepared, in nanoseconds; none if that never was.
    pub prepared_ns: Option<u64>,
}

/// What a taker wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TakerOutput {
    /// To this member.
    Send(GroupId, Order),
    /// A cut ended.
    Ended(Ended),
}

/// Since the taker was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Cuts that were begun.
    pub begun: u64,
    /// That are common points.
    pub common: u64,
    /// That are none.
    pub missed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Preparing,
    Going,
    Keeping,
}

/// What a member said about the cut.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    prepared: Option<(StartId, Place)>,
    released: bool,
    kept: bool,
}

impl Said {
    fn is_done(&self, phase: Phase) -> bool {
        match phase {
            Phase::Preparing => self.prepared.is_some(),
            Phase::Going => self.released,
            Phase::Keeping => self.kept,
        }
    }
}

#[derive(Debug)]
struct Running {
    id: CutId,
    phase: Phase,
    begun: MonoTime,
    /// When the phase began.
    since: MonoTime,
    again: MonoTime,
    prepared_ns: Option<u64>,
    said: BTreeMap<GroupId, Said>,
}

impl Running {
    fn phase_ns(&self) -> u64 {
        match self.phase {
            Phase::Preparing => HOLD_NS,
            Phase::Going => RELEASED_NS,
            Phase::Keeping => KEPT_NS,
        }
    }
    fn ends(&self) -> MonoTime {
        self.since.after(self.phase_ns())
    }
    fn open(&self) -> Vec<GroupId> {
        self.said.iter().filter(|(_, said)| !said.is_done(self.phase)).map(|(group, _)| *group).collect()
    }
}

/// The machine. After every call, and at [`Taker::next_deadline`], [`Taker::poll`] is called until it gives nothing. Time never goes back.
#[derive(Debug)]
pub struct Taker {
    set: SetId,
    start: StartId,
    members: BTreeMap<GroupId, Said>,
    number: u64,
    running: Option<Running>,
    ended: Option<MonoTime>,
    /// One message to each member for a call, and two ends.
    outputs: VecDeque<TakerOutput>,
    counts: Counts,
}

fn checked(groups: &[GroupId]) -> Result<BTreeMap<GroupId, Said>, MembersError> {
    if groups.is_empty() || groups.len() > MEMBERS_MAX {
        return Err(MembersError::Count { found: groups.len() });
    }
    let mut members = BTreeMap::new();
    for group in groups {
        if members.insert(*group, Said::default()).is_some() {
            return Err(MembersError::Twice { group: *group });
        }
    }
    Ok(members)
}

impl Taker {
    /// A taker of cuts of these groups. `start` was drawn for it; its cuts are numbered from above `after`.
    ///
    /// # Errors
    /// When a set cannot have these members.
    pub fn new(set: SetId, start: StartId, groups: &[GroupId], after: u64) -> Result<Self, MembersError> {
        let members = checked(groups)?;
        let (outputs, counts) = (VecDeque::new(), Counts::default());
        Ok(Self { set, start, members, number: after, running: None, ended: None, outputs, counts })
    }

    /// Other members from the next cut on.
    ///
    /// # Errors
    /// When a set cannot have them, or a cut is being taken.
    pub fn set_members(&mut self, groups: &[GroupId]) -> Result<(), MembersError> {
        if let Some(running) = &self.running {
            return Err(MembersError::Busy { cut: running.id });
        }
        self.members = checked(groups)?;
        Ok(())
    }

    /// Begins a cut.
    ///
    /// # Errors
    /// While another one is being taken, and for [`CUTS_APART_NS`] after it.
    pub fn begin(&mut self, now: MonoTime) -> Result<CutId, BeginError> {
        if let Some(running) = &self.running {
            return Err(BeginError::Busy { cut: running.id });
        }
        let wait_ns = self.ended.map_or(0, |ended| CUTS_APART_NS.saturating_sub(now.since(ended)));
        if wait_ns > 0 {
            return Err(BeginError::TooSoon { wait_ns });
        }
        self.number += 1;
        self.counts.begun += 1;
        let id = CutId { taker: self.start, number: self.number };
        let (phase, said) = (Phase::Preparing, self.members.clone());
        self.running = Some(Running { id, phase, begun: now, since: now, again: now, prepared_ns: None, said });
        Ok(id)
    }

    /// Takes a report. One of another set or cut, or of who is no member, is passed over.
    pub fn handle(&mut self, now: MonoTime, report: Report) {
        let Some(running) = self.running.as_mut().filter(|running| running.id == report.cut) else { return };
        let Some(said) = running.said.get_mut(&report.group).filter(|_| report.set == self.set) else { return };
        if running.phase == Phase::Preparing && now >= running.since.after(HOLD_NS) {
            // Whoever is prepared now may find the others gone. The next poll gives the cut up.
            return;
        }
        let group = report.group;
        let known = said.prepared;
        let same = |start: StartId, place: Option<Place>| {
            known.is_some_and(|(was, at)| start == was && place.is_none_or(|place| place == at))
        };
        let miss = match report.kind {
            ReportKind::Prepared(place) if known.is_none() => {
                said.prepared = Some((report.start, place));
                None
            }
            ReportKind::Prepared(place) => (!same(report.start, Some(place))).then_some(Miss::Changed(group)),
            ReportKind::Released { how: How::Go, place } => {
                let same = place.is_some() && same(report.start, place) && running.phase != Phase::Preparing;
                said.released |= same;
                (!same).then_some(Miss::Changed(group))
            }
            ReportKind::Released { how, .. } => Some(Miss::Released(group, how)),
            ReportKind::Kept { .. } if running.phase != Phase::Keeping => None,
            // A later start says no to what it knows nothing of, also where the one before it has said yes. What that one recorded counts as far
            // as it is durable, which whoever reads the points sees.
            ReportKind::Kept { recorded } => {
                let recorded = recorded && same(report.start, None);
                said.kept |= recorded;
                (!recorded && !said.kept).then(|| Miss::NotKept(vec![group]))
            }
        };
        match miss {
            Some(miss) => self.end(now, Verdict::Missed(miss)),
            None => self.advance(now),
        }
    }

    /// On to the next phase when all have said what this one waits for.
    fn advance(&mut self, now: MonoTime) {
        let Some(running) = &mut self.running else { return };
        let early = running.phase == Phase::Preparing
            && mistakes::is(Mistake::GoEarly)
            && running.said.values().any(|said| said.prepared.is_some());
        if !early && running.said.values().any(|said| !said.is_done(running.phase)) {
            return;
        }
        let next = match running.phase {
            Phase::Preparing => Phase::Going,
            Phase::Going => Phase::Keeping,
            Phase::Keeping => {
                let places = running.said.iter().filter_map(|(group, said)| Some((*group, said.prepared?.1)));
                let verdict = Verdict::Common(places.collect());
                return self.end(now, verdict);
            }
        };
        if next == Phase::Going {
            running.prepared_ns = Some(now.since(running.begun));
        }
        (running.phase, running.since, running.again) = (next, now, now);
    }

    /// The cut ended. Where somebody may still withhold for it, all are told that it is given up.
    fn end(&mut self, now: MonoTime, verdict: Verdict) {
        let Some(running) = self.running.take() else { return };
        let cut = running.id;
        if running.phase != Phase::Keeping {
            let order = Order { set: self.set, cut, kind: OrderKind::Cancel };
            let open = running.said.iter().filter(|(_, said)| !said.released);
            self.outputs.extend(open.map(|(group, _)| TakerOutput::Send(*group, order)));
        }
        self.ended = Some(now);
        match verdict {
            Verdict::Common(_) => self.counts.common += 1,
            Verdict::Missed(_) => self.counts.missed += 1,
        }
        self.outputs.push_back(TakerOutput::Ended(Ended { cut, verdict, prepared_ns: running.prepared_ns }));
    }

    /// The next thing to do.
    pub fn poll(&mut self, now: MonoTime) -> Option<TakerOutput> {
        self.expire(now);
        self.say_again(now);
        self.outputs.pop_front()
    }

    fn expire(&mut self, now: MonoTime) {
        let Some(running) = self.running.as_ref().filter(|running| now >= running.ends()) else { return };
        let open = running.open();
        let miss = match running.phase {
            Phase::Preparing => Miss::NotPrepared(open),
            Phase::Going => Miss::NotReleased(open),
            Phase::Keeping => Miss::NotKept(open),
        };
        self.end(now, Verdict::Missed(miss));
    }

    /// Says the phase's order to those that have not answered it.
    fn say_again(&mut self, now: MonoTime) {
        let members = self.members.len() as u16;
        let Some(running) = self.running.as_mut().filter(|running| now >= running.again) else { return };
        let kind = |said: &Said| match (running.phase, said.prepared) {
            (Phase::Going, _) => OrderKind::Go,
            (Phase::Keeping, Some((start, place))) => OrderKind::Keep { members, start, place },
            (Phase::Preparing | Phase::Keeping, _) => OrderKind::Prepare,
        };
        let withheld = running.phase != Phase::Keeping && now.since(running.since) < HOLD_NS;
        let open = running.said.iter().filter(|(_, said)| !said.is_done(running.phase));
        let order = |said: &Said| Order { set: self.set, cut: running.id, kind: kind(said) };
        self.outputs.extend(open.map(|(group, said)| TakerOutput::Send(*group, order(said))));
        running.again = now.after(if withheld { AGAIN_NS } else { AGAIN_LATER_NS });
    }

    /// When [`Taker::poll`] has to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        self.running.as_ref().map(|running| running.ends().min(running.again))
    }

    /// Since it was made.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
