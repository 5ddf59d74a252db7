//! The open frame, and what was sent and is not yet durable.
//!
//! Parts come in LSN order. A frame closes when the next part would pass [`FRAME_PLAIN_MAX`] or [`FRAME_RECORDS_MAX`], at its
//! age limit, before a new clock epoch, and when somebody drains. It says how far the write order is *settled*: below the
//! oldest op that still runs, and never beyond a record whose last part is not in this or an earlier frame.

use super::options::PART_COST;
use super::order::Order;
use crate::frame::{Part, RawFrame};
use crate::types::{ClockEpoch, FRAME_PLAIN_MAX, FRAME_RECORDS_MAX, FRAME_SPAN_NS_MAX, Lsn, MonoTime, Now, Timeline};
use std::collections::VecDeque;

/// A frame that is on its way and not durable.
#[derive(Clone, Copy, Debug)]
struct Sent {
    last_lsn: Lsn,
    settled: Lsn,
    /// Data in it, in bytes.
    plain_bytes: u64,
    cost: u64,
    /// When its last record was made.
    made: MonoTime,
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
    /// Data that became durable, in bytes.
    drained: u64,
    /// Bounded by the queue's bound: each frame costs at least a part.
    sent: VecDeque<Sent>,
    /// Closed and not fetched; counted in `queued`.
    pub(super) frames: VecDeque<RawFrame>,
    pub(super) frames_closed: u64,
}

impl Gather {
    pub(super) fn new(timeline: Timeline, after: Lsn) -> Self {
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
            drained: 0,
            sent: VecDeque::with_capacity(64),
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
        let frame = RawFrame {
            timeline: self.timeline,
            prev_lsn: self.prev_lsn,
            settled: self.settled,
            epoch,
            parts: std::mem::replace(&mut self.parts, next),
            plain_bytes: std::mem::take(&mut self.plain_bytes),
        };
        self.prev_lsn = frame.last_lsn();
        self.frames.push_back(frame);
        self.sent.push_back(Sent {
            last_lsn: self.prev_lsn,
            settled: self.settled,
            plain_bytes: self.frames.back().map_or(0, |frame| frame.plain_bytes),
            cost: std::mem::take(&mut self.cost),
            made: self.last_made,
        });
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
            self.queued -= sent.cost;
            self.drained += sent.plain_bytes;
            reached = Some(Reached { lsn: sent.last_lsn, settled: sent.settled, made: sent.made });
        }
        reached
    }

    /// When the open frame was begun.
    pub(super) fn opened(&self) -> Option<MonoTime> {
        (!self.parts.is_empty()).then_some(self.opened)
    }

    /// Data and part costs that were recorded and are not durable, in bytes.
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// Data that was recorded and became durable since the beginning, in bytes.
    pub(super) fn drained(&self) -> u64 {
        self.drained
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
