//! How long a gap lasts at least. What is recorded and read again for a guest that writes faster than the replica takes comes to
//! nothing as often as it is tried, and holds the guest up each time: after an attempt in vain the next one waits, twice as long as
//! the one before did.

use crate::types::MonoTime;

/// The first pause, in nanoseconds. The longest is the RPO, which is long over by then.
const PAUSE_NS_MIN: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest {
    pause_ns: u64,
    until: MonoTime,
    /// A gap ended, and what was tracked in it is not read again yet.
    tried: bool,
}

impl Rest {
    /// The queue is full.
    pub(super) fn gap_began(&mut self, now: MonoTime, pause_ns_max: u64) {
        if std::mem::take(&mut self.tried) {
            self.pause_ns = (self.pause_ns * 2).max(PAUSE_NS_MIN).min(pause_ns_max);
        }
        self.until = now.after(self.pause_ns);
    }

    /// Writes are recorded again.
    pub(super) fn gap_ended(&mut self) {
        self.tried = true;
    }

    /// Nothing differs any more.
    pub(super) fn mended(&mut self) {
        *self = Self::default();
    }

    /// When the gap may end.
    pub(super) fn until(&self) -> MonoTime {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_pause_follows_only_an_attempt_in_vain_and_doubles_up_to_the_rpo() {
        let mut rest = Rest::default();
        let mut pauses = Vec::new();
        for at in (0..).map(|step| MonoTime(step * 100 * SECOND)).take(7) {
            rest.gap_began(at, 15 * SECOND);
            pauses.push(rest.until().since(at) / SECOND);
            rest.gap_ended();
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 15, 15]);
        rest.mended();
        rest.gap_began(MonoTime(SECOND), 15 * SECOND);
        assert_eq!(rest.until(), MonoTime(SECOND));
    }
}
