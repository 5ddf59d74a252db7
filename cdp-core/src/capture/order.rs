//! The ops between submission and completion, and who waits for whom.
//!
//! Two ops that share a byte never run at once: the later submitted waits for the earlier, held or running, so that the disk
//! ends up holding them in the order of their LSNs. An op knows only *how many* earlier ops it waits for; each of them
//! counts it down when it leaves.
//!
//! Bound: one slot for each op that the front end has open, about 120 bytes. A guest's write must not fail because of us, so the table has no
//! bound of its own: it is as large as the front end's windows (connections x requests in flight) ever were at once. The
//! overlap test is one pass over two dense arrays, about 1 ns for four ops.

use super::output::Ticket;
use crate::frame::Payload;
use crate::types::{Extent, Lsn, MonoTime};

/// What a guest wants done to a disk.
#[derive(Clone, Debug)]
pub enum Op {
    /// Write these bytes.
    Write(Payload),
    /// Make the range read as zeros, allocated.
    Zero(Extent),
    /// Make the range read as zeros, given back.
    Discard(Extent),
}

impl Op {
    /// The range that is changed.
    #[must_use]
    pub fn extent(&self) -> Extent {
        match self {
            Self::Write(payload) => payload.extent(),
            Self::Zero(extent) | Self::Discard(extent) => *extent,
        }
    }
}

/// Where an op stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nobody is here.
    Free,
    /// Not yet allowed; keeps what will be recorded; `log_since`: since when it waits for the activity log.
    Held { op: Box<Op>, blockers: u32, log_since: Option<MonoTime> },
    /// Running at the disk; `recorded` unless only its extent is tracked.
    Going { recorded: bool },
}

#[derive(Debug)]
struct Slot {
    disk: usize,
    /// Place in the order of submission; its low half makes the ticket of a slot that is used again another one.
    sequence: u64,
    stage: Stage,
}

/// An op that left the table.
pub(super) struct Gone {
    pub(super) disk: usize,
    pub(super) extent: Extent,
    /// The largest there is where it was given none.
    pub(super) lsn: Lsn,
    pub(super) recorded: bool,
}

const DISK_SHIFT: u32 = 51;
const NO_LSN: u64 = u64::MAX;

/// The table of ops between submission and completion.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// First byte and byte after the last of each slot's range, with the disk above bit 51; a free slot overlaps nothing.
    begins: Vec<u64>,
    ends: Vec<u64>,
    /// Of ops that run; [`NO_LSN`] else.
    lsns: Vec<u64>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Held slots in the order of their submission.
    held: Vec<u32>,
    sequence: u64,
    going: usize,
    tracked: usize,
}

fn span(disk: usize, extent: Extent) -> (u64, u64) {
    let base = (disk as u64) << DISK_SHIFT;
    (base + extent.offset, base + extent.end())
}

impl Order {
    pub(super) fn with_capacity(ops: usize) -> Self {
        Self {
            begins: Vec::with_capacity(ops),
            ends: Vec::with_capacity(ops),
            lsns: Vec::with_capacity(ops),
            slots: Vec::with_capacity(ops),
            free: Vec::with_capacity(ops),
            held: Vec::with_capacity(ops),
            ..Self::default()
        }
    }

    /// How many ops in the table share a byte with this range.
    pub(super) fn overlapping(&self, disk: usize, extent: Extent) -> u32 {
        let (begin, end) = span(disk, extent);
        self.begins.iter().zip(&self.ends).map(|(&b, &e)| u32::from(b < end && begin < e)).sum()
    }

    /// Puts an op in, running or held; the caller gives a running one its LSN next.
    pub(super) fn insert(&mut self, disk: usize, extent: Extent, stage: Stage) -> Ticket {
        let (begin, end) = span(disk, extent);
        self.sequence += 1;
        let sequence = self.sequence;
        self.going += usize::from(matches!(stage, Stage::Going { .. }));
        let held = matches!(stage, Stage::Held { .. });
        let slot = Slot { disk, sequence, stage };
        let index = match self.free.pop() {
            Some(index) => {
                let at = index as usize;
                self.slots[at] = slot;
                (self.begins[at], self.ends[at], self.lsns[at]) = (begin, end, NO_LSN);
                index
            }
            None => {
                self.slots.push(slot);
                self.begins.push(begin);
                self.ends.push(end);
                self.lsns.push(NO_LSN);
                self.slots.len() as u32 - 1
            }
        };
        if held {
            self.held.push(index);
        }
        Ticket::new(index, sequence as u32)
    }

    fn index(&self, ticket: Ticket) -> Option<usize> {
        let at = ticket.slot();
        self.slots
            .get(at)
            .filter(|slot| slot.sequence as u32 == ticket.generation() && !matches!(slot.stage, Stage::Free))?;
        Some(at)
    }

    /// Says what an op that runs was given.
    pub(super) fn started(&mut self, ticket: Ticket, lsn: Lsn, recorded: bool) {
        let Some(at) = self.index(ticket) else { return };
        self.lsns[at] = lsn.0;
        self.slots[at].stage = Stage::Going { recorded };
        self.tracked += usize::from(!recorded);
    }

    /// What a running op is; `None` for unknown tickets and for held ops.
    pub(super) fn running(&self, ticket: Ticket) -> Option<Gone> {
        let at = self.index(ticket)?;
        let Stage::Going { recorded } = self.slots[at].stage else { return None };
        Some(Gone { disk: self.slots[at].disk, extent: self.extent(at), lsn: Lsn(self.lsns[at]), recorded })
    }

    fn extent(&self, at: usize) -> Extent {
        let base = (self.slots[at].disk as u64) << DISK_SHIFT;
        Extent::new(self.begins[at] - base, self.ends[at] - self.begins[at])
    }

    /// Takes an op out and counts down those that waited for it.
    fn remove(&mut self, at: usize) {
        let (begin, end, sequence) = (self.begins[at], self.ends[at], self.slots[at].sequence);
        for &index in &self.held {
            let waiting = index as usize;
            if self.begins[waiting] < end && begin < self.ends[waiting] {
                let slot = &mut self.slots[waiting];
                if let Stage::Held { blockers, .. } = &mut slot.stage
                    && slot.sequence > sequence
                {
                    *blockers -= 1;
                }
            }
        }
        (self.begins[at], self.ends[at], self.lsns[at]) = (u64::MAX, 0, NO_LSN);
        self.slots[at].stage = Stage::Free;
        self.free.push(at as u32);
        if self.free.len() == self.slots.len() {
            self.forget_peak();
        }
    }

    /// With nothing open the table begins anew, so that the overlap test is as short as the load is deep now.
    fn forget_peak(&mut self) {
        self.slots.clear();
        self.begins.clear();
        self.ends.clear();
        self.lsns.clear();
        self.free.clear();
    }

    /// A running op completed.
    pub(super) fn complete(&mut self, ticket: Ticket) -> Option<Gone> {
        let gone = self.running(ticket)?;
        self.going -= 1;
        self.tracked -= usize::from(!gone.recorded);
        self.remove(ticket.slot());
        Some(gone)
    }

    /// A held op will never run. `None` if it is not held.
    pub(super) fn withdraw(&mut self, ticket: Ticket) -> Option<()> {
        let at = self.index(ticket)?;
        if !matches!(self.slots[at].stage, Stage::Held { .. }) {
            return None;
        }
        self.held.retain(|&index| index as usize != at);
        self.remove(at);
        Some(())
    }

    /// The first held op, in the order of submission, that waits for nobody and for which `log_covers` holds. It runs now.
    pub(super) fn release(
        &mut self,
        now: MonoTime,
        log_covers: impl Fn(usize, Extent) -> bool,
    ) -> Option<(Ticket, usize, Op)> {
        let mut position = None;
        for (place, &index) in self.held.iter().enumerate() {
            let at = index as usize;
            let extent = self.extent(at);
            let slot = &mut self.slots[at];
            let Stage::Held { blockers: 0, log_since, .. } = &mut slot.stage else { continue };
            if log_covers(slot.disk, extent) {
                position = Some(place);
                break;
            }
            // The log stopped covering it while it waited for another op: from now on it waits for the log.
            log_since.get_or_insert(now);
        }
        let position = position?;
        let at = self.held.remove(position) as usize;
        let slot = &mut self.slots[at];
        let Stage::Held { op, .. } = std::mem::replace(&mut slot.stage, Stage::Going { recorded: true }) else {
            return None;
        };
        self.going += 1;
        Some((Ticket::new(at as u32, slot.sequence as u32), slot.disk, *op))
    }

    /// The first held op, whatever it waits for. It runs now.
    pub(super) fn release_any(&mut self) -> Option<Ticket> {
        let at = *self.held.first()? as usize;
        self.held.remove(0);
        let slot = &mut self.slots[at];
        slot.stage = Stage::Going { recorded: true };
        self.going += 1;
        Some(Ticket::new(at as u32, slot.sequence as u32))
    }

    /// The lowest LSN of an op that runs.
    pub(super) fn oldest_lsn(&self) -> Option<Lsn> {
        self.lsns.iter().copied().min().filter(|&lsn| lsn != NO_LSN).map(Lsn)
    }

    /// Ranges of the ops that run on a disk.
    pub(super) fn running_on(&self, disk: usize) -> impl Iterator<Item = Extent> {
        let running = move |slot: &Slot| slot.disk == disk && matches!(slot.stage, Stage::Going { .. });
        (0..self.slots.len()).filter(move |at| running(&self.slots[*at])).map(|at| self.extent(at))
    }

    /// A running op has no record, no place in the order, and no mark: everything is compared later.
    pub(super) fn passed(&mut self, ticket: Ticket) {
        self.started(ticket, Lsn(NO_LSN), false);
    }

    /// What runs has no record and no place in the order that goes on: its ranges are read again when it has completed.
    pub(super) fn disown(&mut self) {
        self.lsns.fill(NO_LSN);
        for slot in &mut self.slots {
            if let Stage::Going { recorded } = &mut slot.stage {
                self.tracked += usize::from(std::mem::take(recorded));
            }
        }
    }

    /// What runs on a disk counts as not recorded from here on: its range is read again when it has completed.
    pub(super) fn distrust(&mut self, disk: usize) {
        for slot in self.slots.iter_mut().filter(|slot| slot.disk == disk) {
            if let Stage::Going { recorded } = &mut slot.stage {
                self.tracked += usize::from(std::mem::take(recorded));
            }
        }
    }

    /// Ranges of all ops on a disk, running or held.
    pub(super) fn open_on(&self, disk: usize) -> impl Iterator<Item = Extent> {
        let open = move |slot: &Slot| slot.disk == disk && !matches!(slot.stage, Stage::Free);
        (0..self.slots.len()).filter(move |at| open(&self.slots[*at])).map(|at| self.extent(at))
    }

    /// Ops that run.
    pub(super) fn running_count(&self) -> usize {
        self.going
    }

    /// Ops that run and have no record.
    pub(super) fn tracked_count(&self) -> usize {
        self.tracked
    }

    /// Ops that wait.
    pub(super) fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Since when the held op waits that has waited longest for the activity log.
    pub(super) fn log_wanted_since(&self) -> Option<MonoTime> {
        let since = |&index: &u32| match self.slots[index as usize].stage {
            Stage::Held { log_since, .. } => log_since,
            _ => None,
        };
        self.held.iter().filter_map(since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(order: &mut Order, extent: Extent) -> Ticket {
        let blockers = order.overlapping(0, extent);
        order.insert(0, extent, Stage::Held { op: Box::new(Op::Zero(extent)), blockers, log_since: None })
    }

    fn going(order: &mut Order, extent: Extent, lsn: u64) -> Ticket {
        let ticket = order.insert(0, extent, Stage::Going { recorded: true });
        order.started(ticket, Lsn(lsn), true);
        ticket
    }

    #[test]
    fn a_held_op_blocks_later_ones_that_overlap_it() {
        let mut order = Order::default();
        let first = going(&mut order, Extent::new(0, 1024), 1);
        let second = held(&mut order, Extent::new(512, 1024));
        let third = held(&mut order, Extent::new(1024, 512));
        assert!(order.release(MonoTime(1), |_, _| true).is_none());
        order.complete(first).expect("runs");
        let (ticket, _, _) = order.release(MonoTime(1), |_, _| true).expect("second may go");
        assert_eq!(ticket, second);
        assert!(order.release(MonoTime(1), |_, _| true).is_none(), "third waits for second");
        order.complete(second).expect("runs");
        assert_eq!(order.release(MonoTime(1), |_, _| true).expect("third may go").0, third);
    }

    #[test]
    fn disks_do_not_overlap_and_the_last_byte_of_one_is_not_the_first_of_the_next() {
        let mut order = Order::default();
        order.insert(0, Extent::new(crate::types::DISK_MAX - 512, 512), Stage::Going { recorded: true });
        assert_eq!(order.overlapping(1, Extent::new(0, 512)), 0);
        assert_eq!(order.overlapping(0, Extent::new(crate::types::DISK_MAX - 512, 512)), 1);
    }

    #[test]
    fn a_withdrawn_op_frees_those_behind_it_and_its_ticket_is_dead() {
        let mut order = Order::default();
        let first = going(&mut order, Extent::new(0, 512), 7);
        let second = held(&mut order, Extent::new(0, 1024));
        let third = held(&mut order, Extent::new(512, 512));
        assert_eq!(order.withdraw(second), Some(()));
        assert_eq!(order.withdraw(second), None);
        assert_eq!(order.release(MonoTime(1), |_, _| true).expect("free").0, third);
        assert_eq!(order.withdraw(first), None, "a running op cannot be withdrawn");
        assert_eq!(order.oldest_lsn(), Some(Lsn(7)));
        order.complete(first).expect("runs");
        assert!(order.complete(first).is_none());
        assert_eq!(order.oldest_lsn(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Submit(u64, u64),
        Complete(proptest::sample::Index),
        Withdraw(proptest::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..12u64, 1..5u64).prop_map(|(at, n)| Step::Submit(at * 512, n * 512)),
            2 => any::<proptest::sample::Index>().prop_map(Step::Complete),
            1 => any::<proptest::sample::Index>().prop_map(Step::Withdraw),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// Against a list: an op may run exactly when no earlier one that overlaps it is open.
        #[test]
        fn ops_run_as_early_as_their_order_allows(steps in steps()) {
            let mut order = Order::default();
            let mut open: Vec<(Ticket, Extent, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Submit(offset, length) => {
                        let extent = Extent::new(offset, length);
                        let free = order.overlapping(0, extent) == 0;
                        prop_assert_eq!(free, !open.iter().any(|(_, other, _)| other.overlaps(&extent)));
                        let ticket = if free { going(&mut order, extent, 1) } else { held(&mut order, extent) };
                        prop_assert!(open.iter().all(|(other, ..)| *other != ticket));
                        open.push((ticket, extent, free));
                    }
                    Step::Complete(_) | Step::Withdraw(_) if open.is_empty() => {}
                    Step::Complete(which) => {
                        let at = which.index(open.len());
                        prop_assert_eq!(order.complete(open[at].0).is_some(), open[at].2);
                        open.retain(|(ticket, _, running)| !running || order.running(*ticket).is_some());
                    }
                    Step::Withdraw(which) => {
                        let at = which.index(open.len());
                        prop_assert_eq!(order.withdraw(open[at].0).is_some(), !open[at].2);
                        if !open[at].2 {
                            open.remove(at);
                        }
                    }
                }
                let mut released = Vec::new();
                while let Some((ticket, _, op)) = order.release(MonoTime(1), |_, _| true) {
                    released.push((ticket, op.extent()));
                }
                let mut expected = Vec::new();
                for at in 0..open.len() {
                    let blocked = open[..at].iter().any(|(_, other, _)| other.overlaps(&open[at].1));
                    if !open[at].2 && !blocked {
                        open[at].2 = true;
                        expected.push((open[at].0, open[at].1));
                    }
                }
                prop_assert_eq!(released, expected);
                prop_assert_eq!(order.running_count() + order.held_count(), open.len());
            }
        }
    }
}
