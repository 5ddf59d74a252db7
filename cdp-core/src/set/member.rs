//! One group's part in the cuts of its set: the machine behind its filter's completions.
//!
//! A completion is withheld only while a cut is being taken, and only above the cut once that is known. Whatever happens to the taker or to the
//! network, the member lets go by its own clock. What it says about a release is what it did: once it let go for another reason, no go changes that.

use super::message::{CutId, How, Order, OrderKind, Place, Refusal, Report, ReportKind, SetPoint};
use super::{CUTS_APART_NS, HOLD_NS};
use crate::mistakes::{self, Mistake};
use crate::types::{GroupId, Lsn, MonoTime, SetId, StartId};
use std::collections::VecDeque;

/// The most completions that are withheld at once; with one more all are released and the cut is missed.
pub const HELD_MAX: usize = 65_536;

/// What is to become of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a completion that is held must not be told to the guest yet"]
pub enum Completion {
    /// Tell the guest.
    Release,
    /// [`Output::Release`] comes with its ticket, after [`HOLD_NS`] at most.
    Hold,
}

/// What a member wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output<T> {
    /// Tell the guest that this op is done.
    Release(T),
    /// Read where the group is now and call [`Member::cut_at`].
    Cut(CutId),
    /// To the taker of the cut.
    Report(Report),
    /// Record this point and call [`Member::kept`].
    Keep(SetPoint),
}

/// Since the member was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemberCounts {
    /// Times that it withheld.
    pub holds: u64,
    /// Of these, released on go.
    pub on_go: u64,
    /// Released on its timer.
    pub on_timer: u64,
    /// Completions that were withheld.
    pub held: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Holding { until: MonoTime },
    Released(How),
}

/// How far the point is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keeping {
    Unasked,
    Asked,
    Answered(bool),
}

/// The cut that was heard of last.
#[derive(Clone, Copy, Debug)]
struct Cut {
    id: CutId,
    stage: Stage,
    place: Option<Place>,
    keeping: Keeping,
}

/// The machine. `T` names an op for the driver, which calls it under the lock of its filter; time never goes back. After every call, and at
/// [`Member::next_deadline`], [`Member::poll`] is called until it gives nothing.
#[derive(Debug)]
pub struct Member<T> {
    set: SetId,
    group: GroupId,
    start: StartId,
    cut: Option<Cut>,
    /// At most [`HELD_MAX`], by their LSNs, in the order of completion.
    held: Vec<(Lsn, T)>,
    /// What was held and is due; never more than `held` was.
    due: VecDeque<T>,
    /// An order gives at most two; the driver takes them before its next call.
    outputs: VecDeque<Output<T>>,
    released: Option<MonoTime>,
    counts: MemberCounts,
}

impl<T: Copy> Member<T> {
    /// A member at the start of its filter, which drew `start`.
    #[must_use]
    pub fn new(set: SetId, group: GroupId, start: StartId) -> Self {
        Self {
            set,
            group,
            start,
            cut: None,
            held: Vec::new(),
            due: VecDeque::new(),
            outputs: VecDeque::new(),
            released: None,
            counts: MemberCounts::default(),
        }
    }

    /// An op with this LSN is done at the disk.
    pub fn complete(&mut self, now: MonoTime, ticket: T, lsn: Lsn) -> Completion {
        self.expire(now);
        let Some(Cut { stage: Stage::Holding { .. }, place, .. }) = self.cut else { return Completion::Release };
        let below = place.is_some_and(|place| lsn <= place.lsn);
        let early = place.is_none() && mistakes::is(Mistake::CutBeforeHold);
        if below || early || mistakes::is(Mistake::AboveLetThrough) {
            return Completion::Release;
        }
        if self.held.len() == HELD_MAX {
            self.release(now, How::Full);
            return Completion::Release;
        }
        self.held.push((lsn, ticket));
        self.counts.held += 1;
        Completion::Hold
    }

    /// Takes an order. One of another set, or of a cut before the last one, is passed over. Another taker's prepare is as good as the same
    /// one's: nobody can tell which was started later, and a late one costs a missed cut and never makes a point.
    pub fn handle(&mut self, now: MonoTime, order: Order) {
        self.expire(now);
        if order.set != self.set {
            return;
        }
        let known = self.cut.filter(|cut| cut.id.taker == order.cut.taker);
        match known {
            Some(cut) if order.cut.number < cut.id.number => {
                if matches!(order.kind, OrderKind::Keep { .. }) {
                    self.report(order.cut, ReportKind::Kept { recorded: false });
                }
            }
            Some(cut) if order.cut.number == cut.id.number => self.again(now, cut, order.kind),
            _ => self.newer(now, order, known.is_some()),
        }
    }

    /// An order about the cut that is known.
    fn again(&mut self, now: MonoTime, cut: Cut, kind: OrderKind) {
        match (kind, cut.stage) {
            (OrderKind::Prepare, Stage::Holding { .. }) => {
                if let Some(place) = cut.place {
                    self.report(cut.id, ReportKind::Prepared(place));
                }
            }
            // Nobody can be told to go before this member said that it is prepared.
            (OrderKind::Go, Stage::Holding { .. }) if cut.place.is_some() => self.release(now, How::Go),
            (OrderKind::Go, Stage::Holding { .. }) => {}
            (OrderKind::Cancel, Stage::Holding { .. }) => self.release(now, How::Cancelled),
            (OrderKind::Prepare | OrderKind::Go, Stage::Released(how)) => {
                self.report(cut.id, ReportKind::Released { how, place: cut.place });
            }
            (OrderKind::Cancel, Stage::Released(_)) => {}
            (OrderKind::Keep { members, start, place }, Stage::Released(How::Go))
                if (start == self.start && cut.place == Some(place)) || mistakes::is(Mistake::KeepUnchecked) =>
            {
                self.keep(cut, members);
            }
            (OrderKind::Keep { .. }, _) => self.report(cut.id, ReportKind::Kept { recorded: false }),
        }
    }

    fn keep(&mut self, cut: Cut, members: u16) {
        match (cut.keeping, cut.place) {
            (Keeping::Unasked, Some(place)) => {
                self.set_keeping(Keeping::Asked);
                self.outputs.push_back(Output::Keep(SetPoint { set: self.set, cut: cut.id, place, members }));
            }
            (Keeping::Answered(recorded), _) => self.report(cut.id, ReportKind::Kept { recorded }),
            (Keeping::Asked, _) | (Keeping::Unasked, None) => {}
        }
    }

    fn set_keeping(&mut self, keeping: Keeping) {
        if let Some(cut) = &mut self.cut {
            cut.keeping = keeping;
        }
    }

    /// An order about a cut that was not heard of, of the taker of the last one or of another.
    fn newer(&mut self, now: MonoTime, order: Order, same_taker: bool) {
        let begins = match order.kind {
            OrderKind::Prepare => true,
            // It has overtaken its prepare, which must find the cut given up.
            OrderKind::Cancel if same_taker || self.cut.is_none() => false,
            // This member was started again since, or has obeyed another taker.
            OrderKind::Cancel | OrderKind::Go => return,
            OrderKind::Keep { .. } => return self.report(order.cut, ReportKind::Kept { recorded: false }),
        };
        self.release(now, How::Cancelled);
        let too_soon = self.released.is_some_and(|released| now.since(released) < CUTS_APART_NS);
        let stage = match (begins, too_soon) {
            (false, _) => Stage::Released(How::Cancelled),
            (true, true) => Stage::Released(How::Refused(Refusal::TooSoon)),
            (true, false) => Stage::Holding { until: now.after(HOLD_NS) },
        };
        self.cut = Some(Cut { id: order.cut, stage, place: None, keeping: Keeping::Unasked });
        match stage {
            Stage::Holding { .. } => {
                self.counts.holds += 1;
                self.outputs.push_back(Output::Cut(order.cut));
            }
            Stage::Released(how) if begins => self.report(order.cut, ReportKind::Released { how, place: None }),
            Stage::Released(_) => {}
        }
    }

    /// The answer to [`Output::Cut`]: the last LSN that was given, read at any time since. What is at or below it needs no withholding.
    pub fn cut_at(&mut self, now: MonoTime, id: CutId, place: Result<Place, Refusal>) {
        self.expire(now);
        let Some(cut) = &mut self.cut else { return };
        if cut.id != id || cut.place.is_some() || !matches!(cut.stage, Stage::Holding { .. }) {
            return;
        }
        match place {
            Err(refusal) => self.release(now, How::Refused(refusal)),
            Ok(place) => {
                cut.place = Some(place);
                let due = &mut self.due;
                self.held.retain(|(lsn, ticket)| {
                    let above = *lsn > place.lsn;
                    if !above {
                        due.push_back(*ticket);
                    }
                    above
                });
                self.report(id, ReportKind::Prepared(place));
            }
        }
    }

    /// The answer to [`Output::Keep`]: whether the point has its place in the write order.
    pub fn kept(&mut self, id: CutId, recorded: bool) {
        if self.cut.is_some_and(|cut| cut.id == id && cut.keeping == Keeping::Asked) {
            self.set_keeping(Keeping::Answered(recorded));
            self.report(id, ReportKind::Kept { recorded });
        }
    }

    /// Lets go of everything for good: the filter stops.
    pub fn stop(&mut self, now: MonoTime) {
        self.release(now, How::Cancelled);
    }

    /// The next thing to do; what guests wait for comes first.
    pub fn poll(&mut self, now: MonoTime) -> Option<Output<T>> {
        self.expire(now);
        self.due.pop_front().map(Output::Release).or_else(|| self.outputs.pop_front())
    }

    /// When [`Member::poll`] has to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        match self.cut?.stage {
            Stage::Holding { until } => Some(until),
            Stage::Released(_) => None,
        }
    }

    /// Since it was made.
    #[must_use]
    pub fn counts(&self) -> MemberCounts {
        self.counts
    }

    /// Every call looks at the time first, so that a go that comes late is late also where no timer fired.
    fn expire(&mut self, now: MonoTime) {
        if self.next_deadline().is_some_and(|until| now >= until) {
            self.release(now, How::Timer);
        }
    }

    /// Lets go, if anything is being withheld, and says so.
    fn release(&mut self, now: MonoTime, how: How) {
        let Some(cut) = self.cut.as_mut().filter(|cut| matches!(cut.stage, Stage::Holding { .. })) else { return };
        let how = if how == How::Timer && mistakes::is(Mistake::TimerIsGo) { How::Go } else { how };
        cut.stage = Stage::Released(how);
        let (id, place) = (cut.id, cut.place);
        self.released = Some(now);
        self.counts.on_go += u64::from(how == How::Go);
        self.counts.on_timer += u64::from(how == How::Timer);
        self.due.extend(self.held.drain(..).map(|(_, ticket)| ticket));
        self.report(id, ReportKind::Released { how, place });
    }

    fn report(&mut self, cut: CutId, kind: ReportKind) {
        let report = Report { set: self.set, cut, group: self.group, start: self.start, kind };
        self.outputs.push_back(Output::Report(report));
    }
}
