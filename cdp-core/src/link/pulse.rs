//! Signs of life on a connection, and what they tell about the other side's clock.

use super::message::Pong;
use crate::types::MonoTime;
use std::collections::VecDeque;

/// The silence that may be agreed on, in milliseconds.
pub const SILENCE_MS_MIN: u32 = 1_000;
/// See [`SILENCE_MS_MIN`].
pub const SILENCE_MS_MAX: u32 = 60_000;
/// While frames flow, a ping goes out so often, in nanoseconds.
const FLOWING_NS: u64 = 1_000_000_000;
/// Of so many measurements of the clock the best one counts.
const SAMPLES: usize = 8;

pub(super) fn silence_ns(silence_ms: u32) -> u64 {
    u64::from(silence_ms.clamp(SILENCE_MS_MIN, SILENCE_MS_MAX)) * 1_000_000
}

/// When a connection was heard of, and when the other side has to hear of us.
#[derive(Debug)]
pub(super) struct Pulse {
    silence_ns: u64,
    heard: MonoTime,
    said: MonoTime,
    pinged: MonoTime,
    flowing: bool,
}

impl Pulse {
    pub(super) fn new(now: MonoTime, silence_ns: u64) -> Self {
        Self { silence_ns, heard: now, said: now, pinged: now, flowing: false }
    }

    pub(super) fn heard(&mut self, now: MonoTime) {
        self.heard = self.heard.max(now);
    }

    pub(super) fn said(&mut self, now: MonoTime) {
        self.said = now;
    }

    /// Frames went or came.
    pub(super) fn flowed(&mut self) {
        self.flowing = true;
    }

    pub(super) fn pinged(&mut self, now: MonoTime) {
        (self.said, self.pinged, self.flowing) = (now, now, false);
    }

    pub(super) fn ping_due(&self) -> MonoTime {
        let quiet = self.said.after(self.silence_ns / 3);
        if self.flowing { quiet.min(self.pinged.after(FLOWING_NS)) } else { quiet }
    }

    /// Then the other side is taken for dead.
    pub(super) fn dead_at(&self) -> MonoTime {
        self.heard.after(self.silence_ns)
    }

    pub(super) fn next_deadline(&self) -> MonoTime {
        self.ping_due().min(self.dead_at())
    }
}

/// What a ping and its pong tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockSample {
    /// How long both were under way.
    pub delay_ns: u64,
    /// The other side's steady clock minus ours.
    pub offset_ns: i64,
}

impl ClockSample {
    /// A time of the other side's clock on ours.
    #[must_use]
    pub fn to_ours(&self, theirs: MonoTime) -> MonoTime {
        let ours = i128::from(theirs.0) - i128::from(self.offset_ns);
        MonoTime(u64::try_from(ours.max(0)).unwrap_or(u64::MAX))
    }
}

/// The last measurements.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    samples: VecDeque<ClockSample>,
}

impl Clocks {
    pub(super) fn pong(&mut self, back: MonoTime, pong: &Pong) {
        let (sent, back) = (i128::from(pong.sent_ns), i128::from(back.0));
        let (came, left) = (i128::from(pong.came_ns), i128::from(pong.left_ns));
        let delay = (back - sent) - (left - came);
        // A pong whose numbers cannot be tells nothing.
        let (Ok(delay_ns), Ok(offset_ns)) = (u64::try_from(delay), i64::try_from(((came - sent) + (left - back)) / 2))
        else {
            return;
        };
        if left < came || back < sent {
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(ClockSample { delay_ns, offset_ns });
    }

    pub(super) fn best(&self) -> Option<ClockSample> {
        self.samples.iter().min_by_key(|sample| sample.delay_ns).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_of_the_last_eight_says_the_offset() {
        let mut clocks = Clocks::default();
        // The other clock is 1,000 ahead; the way there takes 10 and the way back as given.
        let mut answer = |at: u64, way_back: u64| {
            let (came_ns, left_ns) = (at + 10 + 1_000, at + 15 + 1_000);
            clocks.pong(MonoTime(at + 15 + way_back), &Pong { sent_ns: at, came_ns, left_ns });
            clocks.best().unwrap()
        };
        assert_eq!(answer(100, 500).delay_ns, 510);
        let quick = ClockSample { delay_ns: 20, offset_ns: 1_000 };
        assert_eq!(answer(1_000, 10), quick);
        (2..9).for_each(|second| assert_eq!(answer(second * 1_000, 300), quick));
        assert_eq!(answer(9_000, 300), ClockSample { delay_ns: 310, offset_ns: 855 }, "the quick one is the ninth");
        assert_eq!(quick.to_ours(MonoTime(5_000)), MonoTime(4_000));
    }

    #[test]
    fn pongs_that_cannot_be_tell_nothing() {
        let mut clocks = Clocks::default();
        for (sent_ns, came_ns, left_ns) in [(50, 0, 0), (0, 9, 8), (0, 0, u64::MAX), (0, u64::MAX, u64::MAX)] {
            clocks.pong(MonoTime(40), &Pong { sent_ns, came_ns, left_ns });
            assert_eq!(clocks.best(), None, "{sent_ns} {came_ns} {left_ns}");
        }
    }

    #[test]
    fn a_quiet_connection_pings_after_a_third_and_a_busy_one_each_second() {
        let mut pulse = Pulse::new(MonoTime(0), silence_ns(9_000));
        assert_eq!(pulse.next_deadline(), MonoTime(3_000_000_000));
        pulse.said(MonoTime(2_000_000_000));
        assert_eq!(pulse.ping_due(), MonoTime(5_000_000_000));
        pulse.flowed();
        assert_eq!(pulse.ping_due(), MonoTime(1_000_000_000));
        pulse.pinged(MonoTime(2_500_000_000));
        assert_eq!(pulse.ping_due(), MonoTime(5_500_000_000));
        pulse.heard(MonoTime(4_000_000_000));
        assert_eq!(pulse.dead_at(), MonoTime(13_000_000_000));
    }
}
