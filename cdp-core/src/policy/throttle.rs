//! How fast groups may send together: a token bucket, and whose turn it is.
//!
//! The bucket fills at the rate and holds at most [`Throttle::burst`]; a request is granted whole, when the bucket has all of it. So in any time no
//! more is granted than rate x time + burst, and while somebody waits nothing but the wait for the next request's bytes keeps tokens from being used.
//!
//! The groups that want to send share equally: the share that one leaves goes to the others (max-min fair). Turns are by start-time fair
//! queueing: a request starts where the group's one before it ended, counted in bytes, but not before the one that was granted last; the one that starts
//! first is next (Goyal, Vin and Cheng, 1997). Two groups that both always want differ by two requests at most, and nobody is passed over
//! for ever, since every grant moves its group behind.

use crate::types::{GroupId, MonoTime};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// The most bytes of a request: a frame and its head have room in it.
pub const REQUEST_MAX: u64 = 512 << 10;
/// The lowest rate, in bytes a second: with less, a frame would take minutes.
pub const RATE_MIN: u64 = 8 << 10;
/// The most groups that are waiting or were served so lately that it matters.
pub const GROUPS_MAX: usize = 65_536;
/// The bucket holds what comes in so long at the rate, where that is more than a request.
const BURST_NS: u64 = 50_000_000;
const SECOND: u128 = 1_000_000_000;

/// The answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "what is granted has been taken from the bucket"]
pub enum Grant {
    /// Send them.
    Now,
    /// The group's turn comes by [`Throttle::poll`]: not before this time unless the rate is raised, and later where others come first.
    Later(MonoTime),
}

/// Why a request cannot be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TakeError {
    /// More than [`REQUEST_MAX`].
    #[error("{bytes} bytes are more than the {REQUEST_MAX} that are granted at once: ask for them in pieces")]
    TooMuch {
        /// What was asked for.
        bytes: u64,
    },
    /// [`GROUPS_MAX`] are there.
    #[error("{GROUPS_MAX} groups share this limit already: ask again when one has left")]
    TooMany,
}

/// No rate is lower than [`RATE_MIN`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{bytes_per_s} bytes a second are fewer than the least that can be set, {RATE_MIN}")]
pub struct RateTooLow {
    /// What was asked for.
    pub bytes_per_s: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    start: u64,
    sequence: u64,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// Where its last request ended.
    end: u64,
    waiting: Option<Waiting>,
}

/// One limit that several groups share. Each has at most one request open. After every call, and at [`Throttle::next_deadline`], the
/// driver calls [`Throttle::poll`] until it gives nothing.
#[derive(Debug)]
pub struct Throttle {
    /// In bytes a second; none: everything is granted.
    rate: Option<u64>,
    /// Bytes times nanoseconds a second, so that nothing is ever rounded.
    tokens: u128,
    /// When `tokens` was counted.
    counted: MonoTime,
    /// Where the request started that was granted last.
    turn: u64,
    sequence: u64,
    groups: BTreeMap<GroupId, Served>,
    /// Those that wait, in the order of their turns.
    queue: BTreeSet<(u64, u64, GroupId)>,
    /// Those that do not, by where they ended; they are forgotten when the turn has come there.
    idle: BTreeSet<(u64, GroupId)>,
}

fn checked(rate: Option<u64>) -> Result<(), RateTooLow> {
    match rate {
        Some(bytes_per_s) if bytes_per_s < RATE_MIN => Err(RateTooLow { bytes_per_s }),
        _ => Ok(()),
    }
}

impl Throttle {
    /// A limit of so many bytes a second, or none. Its bucket is full.
    ///
    /// # Errors
    /// When the rate is too low.
    pub fn new(now: MonoTime, rate: Option<u64>) -> Result<Self, RateTooLow> {
        checked(rate)?;
        let mut throttle = Self {
            rate,
            tokens: 0,
            counted: now,
            turn: 0,
            sequence: 0,
            groups: BTreeMap::new(),
            queue: BTreeSet::new(),
            idle: BTreeSet::new(),
        };
        throttle.tokens = throttle.full();
        Ok(throttle)
    }

    /// The rate, in bytes a second.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// The most bytes that are ever granted at one moment under the rate.
    #[must_use]
    pub fn burst(&self) -> u64 {
        let rate = u128::from(self.rate.unwrap_or(0));
        u64::try_from(rate * u128::from(BURST_NS) / SECOND).unwrap_or(u64::MAX).max(REQUEST_MAX)
    }

    fn full(&self) -> u128 {
        u128::from(self.burst()) * SECOND
    }

    /// Another rate from now on. What the bucket holds stays, as far as its new size goes; without a rate before, it begins empty.
    ///
    /// # Errors
    /// When the rate is too low; the old one stays.
    pub fn set_rate(&mut self, now: MonoTime, rate: Option<u64>) -> Result<(), RateTooLow> {
        checked(rate)?;
        self.count(now);
        if self.rate.is_none() {
            self.tokens = 0;
        }
        self.rate = rate;
        self.tokens = self.tokens.min(self.full());
        Ok(())
    }

    /// The group wants to send so many bytes. Where it waits already, this is what it wants instead, and it keeps its turn.
    ///
    /// # Errors
    /// When that is too much at once, or the groups are too many.
    pub fn take(&mut self, now: MonoTime, group: GroupId, bytes: u64) -> Result<Grant, TakeError> {
        if bytes > REQUEST_MAX {
            return Err(TakeError::TooMuch { bytes });
        }
        self.count(now);
        let known = self.groups.get(&group).copied();
        if known.is_none() && self.groups.len() >= GROUPS_MAX {
            return Err(TakeError::TooMany);
        }
        let served = known.unwrap_or(Served { end: self.turn, waiting: None });
        let waiting = match served.waiting {
            Some(waiting) => Waiting { bytes, ..waiting },
            None => {
                self.idle.remove(&(served.end, group));
                self.sequence += 1;
                Waiting { start: served.end.max(self.turn), sequence: self.sequence, bytes }
            }
        };
        self.queue.insert((waiting.start, waiting.sequence, group));
        self.groups.insert(group, Served { waiting: Some(waiting), ..served });
        if self.queue.first().is_some_and(|(.., first)| *first == group) && self.grant().is_some() {
            return Ok(Grant::Now);
        }
        Ok(Grant::Later(self.has(bytes)))
    }

    /// A group that may now send what it asked for.
    pub fn poll(&mut self, now: MonoTime) -> Option<GroupId> {
        self.count(now);
        self.grant()
    }

    /// The group wants nothing any more. What it left of its share is the others'.
    pub fn leave(&mut self, group: GroupId) {
        let Some(served) = self.groups.get_mut(&group) else { return };
        if let Some(waiting) = served.waiting.take() {
            self.queue.remove(&(waiting.start, waiting.sequence, group));
            let end = served.end;
            self.rest(group, end);
        }
    }

    /// When [`Throttle::poll`] may give something; none while nobody waits.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        let (.., group) = self.queue.first()?;
        let waiting = self.groups.get(group)?.waiting?;
        Some(self.has(waiting.bytes))
    }

    /// How many groups are waiting.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn count(&mut self, now: MonoTime) {
        let elapsed = u128::from(now.since(self.counted));
        self.counted = self.counted.max(now);
        if let Some(rate) = self.rate {
            self.tokens = self.tokens.saturating_add(u128::from(rate) * elapsed).min(self.full());
        }
    }

    /// When the bucket has so many bytes, if nobody takes any before.
    fn has(&self, bytes: u64) -> MonoTime {
        let missing = (u128::from(bytes) * SECOND).saturating_sub(self.tokens);
        let Some(rate) = self.rate else { return self.counted };
        self.counted.after(u64::try_from(missing.div_ceil(u128::from(rate))).unwrap_or(u64::MAX))
    }

    /// Grants the first request, if the bucket has it.
    fn grant(&mut self) -> Option<GroupId> {
        let (start, sequence, group) = *self.queue.first()?;
        let bytes = self.groups.get(&group)?.waiting?.bytes;
        if self.rate.is_some() {
            self.tokens = self.tokens.checked_sub(u128::from(bytes) * SECOND)?;
        }
        self.queue.remove(&(start, sequence, group));
        self.turn = self.turn.max(start);
        self.rest(group, start.saturating_add(bytes));
        Some(group)
    }

    /// The group waits no more; who ended before the turn has nothing that needs to be known.
    fn rest(&mut self, group: GroupId, end: u64) {
        self.groups.insert(group, Served { end, waiting: None });
        self.idle.insert((end, group));
        while let Some((end, group)) = self.idle.first().copied().filter(|(end, _)| *end <= self.turn) {
            self.idle.remove(&(end, group));
            self.groups.remove(&group);
        }
    }
}

#[cfg(test)]
mod tests;
