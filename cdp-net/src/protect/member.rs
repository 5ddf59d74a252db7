//! A group's part in its consistency set: the machine beside the filter, under the same lock, and what carries out what it wants.

use super::Protection;
use crate::random::identity;
use cdp_core::capture::{Filter, Ticket};
use cdp_core::set::{Member, MemberCounts, Order, Output, Report};
use cdp_core::types::{GroupId, MonoTime, Now, SET_LABEL_MAX, SetId, StartId};

/// A consistency set as one of its groups knows it.
pub struct SetOptions {
    /// The set.
    pub set: SetId,
    /// Its name: common points are called by it and the number of their cut. What is too long of it is cut off.
    pub name: String,
    /// Takes reports to who takes the cuts. Called under the filter's lock: it must not wait.
    pub reports: Box<dyn Fn(Report) + Send>,
}

impl std::fmt::Debug for SetOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetOptions").field("set", &self.set).field("name", &self.name).finish_non_exhaustive()
    }
}

/// The same for one start of the group's filter.
pub(super) struct Joined {
    options: SetOptions,
    group: GroupId,
    start: StartId,
}

pub(super) struct Membership {
    pub(super) machine: Member<Ticket>,
    name: String,
    reports: Box<dyn Fn(Report) + Send>,
}

/// Digits of the largest number of a cut, and the space before.
const NUMBER_MAX: usize = 21;

impl Membership {
    pub(super) fn new(joined: Joined) -> Self {
        let Joined { options: SetOptions { set, mut name, reports }, group, start } = joined;
        let mut end = name.len().min(SET_LABEL_MAX - NUMBER_MAX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        Self { machine: Member::new(set, group, start), name, reports }
    }

    /// Carries out what the member wants; gives the ops whose guests may be told.
    pub(super) fn carry_out(&mut self, filter: &mut Filter, now: Now) -> Vec<Ticket> {
        // Without a cut nothing is allocated here.
        let mut released = Vec::new();
        while let Some(output) = self.machine.poll(now.mono) {
            match output {
                Output::Release(ticket) => released.push(ticket),
                Output::Cut(cut) => self.machine.cut_at(now.mono, cut, filter.cut(now)),
                Output::Report(report) => (self.reports)(report),
                Output::Keep(point) => {
                    let label = format!("{} {}", self.name, point.cut.number);
                    self.machine.kept(point.cut, filter.set_point(now, &point, &label));
                }
            }
        }
        released
    }

    /// Leaves the set; gives the ops whose guests may be told.
    pub(super) fn stop(&mut self, now: Now) -> Vec<Ticket> {
        self.machine.stop(now.mono);
        let mut released = Vec::new();
        while let Some(output) = self.machine.poll(now.mono) {
            match output {
                Output::Release(ticket) => released.push(ticket),
                Output::Report(report) => (self.reports)(report),
                Output::Cut(_) | Output::Keep(_) => {}
            }
        }
        released
    }

    /// When it has to be looked at.
    pub(super) fn next_deadline(&self) -> Option<MonoTime> {
        self.machine.next_deadline()
    }
}

impl Protection {
    /// The group that is protected.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Makes the group a member of a consistency set, in place of the one that it is in: at each cut completions are withheld, for 5 ms at
    /// most. The start that its reports name is drawn anew.
    pub fn join_set(&self, options: SetOptions) {
        let Some(start) = StartId::new(identity()) else { unreachable!("an identity is never zero") };
        self.shared.engine.join_set(Some(Joined { options, group: self.group, start }));
    }

    /// Leaves its consistency set; nothing is withheld any more.
    pub fn leave_set(&self) {
        self.shared.engine.join_set(None);
    }

    /// Takes what the taker of its set's cuts says. Without a set it is passed over.
    pub fn set_order(&self, order: Order) {
        self.shared.engine.set_order(order);
    }

    /// What it did for its set, if it is in one.
    #[must_use]
    pub fn set_counts(&self) -> Option<MemberCounts> {
        self.shared.engine.set_counts()
    }
}
