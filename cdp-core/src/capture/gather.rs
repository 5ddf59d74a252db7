//! The open frame, and what was sent and is not yet durable.
//!
//! Parts come in LSN order. A frame closes when the next part would pass [`FRAME_PLAIN_MAX`] or [`FRAME_RECORDS_MAX`], at its
//! age limit, before a new clock epoch, and when somebody drains. It says how far the write order is *settled*: below the
//! oldest op that still runs, and never beyond a record whose last part is not in this or an earlier frame.
//!
//! What is sent lies in three runs, oldest first: *lent* (a proxy alone has it, it costs nothing of the queue), *stored* (a
//! proxy has it too), and the rest.

use super::options::PART_COST;
use super::order::Order;
use crate::frame::{Part, RawFrame};
use crate::types::{
    ClockEpoch, DiskId, Extent, FRAME_PLAIN_MAX, FRAME_RECORDS_MAX, FRAME_SPAN_NS_MAX, Lsn, MonoTime, Now, Timeline,
};
use std::collections::VecDeque;

/// Lent frames that are known one by one; beyond, neighbours are known together, and are durable together.
const LENT_MAX: usize = 4096;

/// A range of a disk that a part changes.
pub(super) type Range = (DiskId, Extent);

/// A frame that is on its way and not durable.
#[derive(Clone, Debug)]
struct Sent {
    last_lsn: Lsn,
    settled: Lsn,
    cost: u64,
    /// When its last record was made.
    made: MonoTime,
    /// What it changes, where that is kept; empty once it is lent.
    ranges: Box<[Range]>,
}

/// What the replica's durability reached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    /// The last LSN of the newest frame that is durable.
    pub(super) lsn: Lsn,
    /// How far that frame says the order is settled.
    pub(super) settled: Lsn,
    /// When its last record was made.
    pub(super) made: MonoTime,
}

/// Gathers parts into frames and remembers what is not durable.
#[derive(Debug)]
pub(super) struct Gather {
    timeline: Timeline,
    prev_lsn: Lsn,
    parts: Vec<Part>,
    plain_bytes: u64,
    cost: u64,
    opened: MonoTime,
    last_made: MonoTime,
    /// The last LSN whose last part was gathered.
    whole: Lsn,
    settled: Lsn,
    queued: u64,
    /// All that was ever queued, and all of it that became durable.
    gathered: u64,
    durable_cost: u64,
    /// Bounded by the queue's bound: each frame costs at least a part; and by [`LENT_MAX`].
    sent: VecDeque<Sent>,
    /// How many of the first of them are lent, and how many of the first are stored; the cost of those between.
    lent: usize,
    stored: usize,
    lendable: u64,
    keeps_ranges: bool,
    /// Closed and not fetched; counted in `queued`.
    pub(super) frames: VecDeque<RawFrame>,
    pub(super) frames_closed: u64,
}

/// What parts change, neighbours together.
fn ranges_of<'a>(parts: impl Iterator<Item = &'a Part>) -> Box<[Range]> {
    let mut ranges: Vec<Range> = Vec::new();
    for part in parts.filter(|part| part.kind.changes_disk()) {
        let Some(disk) = part.disk else { continue };
        match ranges.last_mut() {
            Some((last, extent)) if *last == disk && extent.end() == part.extent.offset => {
                extent.length += part.extent.length;
            }
            _ => ranges.push((disk, part.extent)),
        }
    }
    ranges.into_boxed_slice()
}

impl Gather {
    pub(super) fn new(timeline: Timeline, after: Lsn, keeps_ranges: bool) -> Self {
        Self {
            timeline,
            prev_lsn: after,
            parts: Vec::new(),
            plain_bytes: 0,
            cost: 0,
            opened: MonoTime(0),
            last_made: MonoTime(0),
            whole: after,
            settled: after,
            queued: 0,
            gathered: 0,
            durable_cost: 0,
            sent: VecDeque::with_capacity(64),
            lent: 0,
            stored: 0,
            lendable: 0,
            keeps_ranges,
            frames: VecDeque::with_capacity(64),
            frames_closed: 0,
        }
    }

    /// Takes a part into the open frame, closing it first if it has no room.
    pub(super) fn push(&mut self, now: Now, epoch: ClockEpoch, order: &Order, part: Part) {
        let bytes = part.data.len() as u64;
        // After a stall of the whole process the open frame may be old before its timer was looked at.
        let old = self.parts.first().is_some_and(|first| part.time.0.saturating_sub(first.time.0) > FRAME_SPAN_NS_MAX);
        if old || self.plain_bytes + bytes > FRAME_PLAIN_MAX || self.parts.len() == FRAME_RECORDS_MAX {
            self.close(epoch, order);
        }
        if self.parts.is_empty() {
            self.opened = now.mono;
        }
        if part.is_last() {
            self.whole = part.lsn;
        }
        self.plain_bytes += bytes;
        self.cost += bytes + PART_COST;
        self.queued += bytes + PART_COST;
        self.gathered += bytes + PART_COST;
        self.last_made = now.mono;
        self.parts.push(part);
    }

    /// Closes the open frame, if it holds anything. `epoch` is that of its records.
    pub(super) fn close(&mut self, epoch: ClockEpoch, order: &Order) {
        if self.parts.is_empty() {
            return;
        }
        self.settled = self.settled.max(self.settleable(order));
        let next = Vec::with_capacity(self.parts.len().next_power_of_two().min(FRAME_RECORDS_MAX));
        let ranges = if self.keeps_ranges { ranges_of(self.parts.iter()) } else { Box::default() };
        let frame = RawFrame {
            timeline: self.timeline,
            prev_lsn: self.prev_lsn,
            settled: self.settled,
            epoch,
            parts: std::mem::replace(&mut self.parts, next),
            plain_bytes: std::mem::take(&mut self.plain_bytes),
        };
        self.prev_lsn = frame.last_lsn();
        self.sent.push_back(Sent {
            last_lsn: self.prev_lsn,
            settled: self.settled,
            cost: std::mem::take(&mut self.cost),
            made: self.last_made,
            ranges,
        });
        self.frames.push_back(frame);
        self.frames_closed += 1;
    }

    /// How far a frame that closed now could say that the order is settled.
    fn settleable(&self, order: &Order) -> Lsn {
        order.oldest_lsn().map_or(self.whole, |oldest| oldest.prev().min(self.whole))
    }

    /// Whether nothing is gathered and yet more is settled than any frame has said.
    pub(super) fn has_untold(&self, order: &Order) -> bool {
        self.parts.is_empty() && self.settled < self.whole && self.settled < self.settleable(order)
    }

    /// Whether a completion may have settled something that no frame will say soon: the cheap test.
    pub(super) fn may_have_untold(&self) -> bool {
        self.parts.is_empty() && self.settled < self.whole
    }

    /// Everything that was recorded is whole, settled and told.
    pub(super) fn is_settled(&self) -> bool {
        self.parts.is_empty() && self.settled == self.whole
    }

    /// The replica holds everything up to `lsn`.
    pub(super) fn durable(&mut self, lsn: Lsn) -> Option<Reached> {
        let mut reached = None;
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.last_lsn <= lsn) {
            if self.lent > 0 {
                self.lent -= 1;
            } else {
                self.queued -= sent.cost;
                self.lendable -= if self.stored > 0 { sent.cost } else { 0 };
            }
            self.stored = self.stored.saturating_sub(1);
            self.durable_cost += sent.cost;
            reached = Some(Reached { lsn: sent.last_lsn, settled: sent.settled, made: sent.made });
        }
        reached
    }

    /// A proxy has everything up to `lsn`, synced; another one than before may have less.
    pub(super) fn stored(&mut self, lsn: Lsn) {
        let stored = self.sent.partition_point(|sent| sent.last_lsn <= lsn).max(self.lent);
        let cost = |range: std::ops::Range<usize>| self.sent.range(range).map(|sent| sent.cost).sum::<u64>();
        self.lendable = match stored >= self.stored {
            true => self.lendable + cost(self.stored..stored),
            false => cost(self.lent..stored),
        };
        self.stored = stored;
    }

    /// Lends the oldest frames that are stored until `bytes` of the queue are free, if there are so many. `mark` is called with what
    /// they change. Returns the last LSN of the newest.
    pub(super) fn lend(&mut self, bytes: u64, mut mark: impl FnMut(Range)) -> Option<Lsn> {
        let (mut freed, mut through) = (0, None);
        while self.keeps_ranges && self.lent < self.stored {
            let sent = &mut self.sent[self.lent];
            // A long write lies in several frames: it is lent as a whole.
            if freed >= bytes && through != Some(sent.last_lsn) {
                break;
            }
            std::mem::take(&mut sent.ranges).iter().for_each(|range| mark(*range));
            (self.queued, self.lendable) = (self.queued - sent.cost, self.lendable - sent.cost);
            freed += sent.cost;
            through = Some(sent.last_lsn);
            self.lent += 1;
        }
        if self.lent > LENT_MAX {
            self.join_lent();
        }
        through
    }

    /// Lent frames are known two by two from here on.
    fn join_lent(&mut self) {
        let lent: Vec<Sent> = self.sent.drain(..self.lent).collect();
        let pairs: Vec<Sent> = lent
            .chunks(2)
            .map(|pair| {
                let last = &pair[pair.len() - 1];
                Sent { cost: pair.iter().map(|sent| sent.cost).sum(), ranges: Box::default(), ..*last }
            })
            .collect();
        self.stored -= self.lent - pairs.len();
        self.lent = pairs.len();
        pairs.into_iter().rev().for_each(|sent| self.sent.push_front(sent));
    }

    /// Whether any lent frame is not durable.
    pub(super) fn has_lent(&self) -> bool {
        self.lent > 0
    }

    #[cfg(test)]
    pub(super) fn lent_frames(&self) -> usize {
        self.lent
    }

    /// What could be lent, in bytes of the queue.
    pub(super) fn lendable(&self) -> u64 {
        if self.keeps_ranges { self.lendable } else { 0 }
    }

    /// Goes on under another timeline: what is not durable is forgotten. Returns what it changes but for what is lent, or `None`
    /// where that is not kept.
    pub(super) fn fork(&mut self, timeline: Timeline) -> Option<Vec<Range>> {
        let next = Self { frames_closed: self.frames_closed, ..Self::new(timeline, Lsn::ZERO, self.keeps_ranges) };
        let before = std::mem::replace(self, next);
        before.keeps_ranges.then(|| {
            let open = ranges_of(before.parts.iter());
            before.sent.iter().flat_map(|sent| &sent.ranges).chain(&open).copied().collect()
        })
    }

    /// Whether what is not durable is known range by range.
    pub(super) fn keeps_ranges(&self) -> bool {
        self.keeps_ranges
    }

    /// When the open frame was begun.
    pub(super) fn opened(&self) -> Option<MonoTime> {
        (!self.parts.is_empty()).then_some(self.opened)
    }

    /// Data and part costs that were recorded and are neither durable nor lent, in bytes.
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// All that was ever gathered, in the same bytes; it only grows.
    pub(super) fn gathered(&self) -> u64 {
        self.gathered
    }

    /// All of it that became durable.
    pub(super) fn durable_cost(&self) -> u64 {
        self.durable_cost
    }

    /// The last settled LSN that a frame said.
    pub(super) fn settled(&self) -> Lsn {
        self.settled
    }

    /// Whether everything that was gathered is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.parts.is_empty() && self.sent.is_empty()
    }
}
