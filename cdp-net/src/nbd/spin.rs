//! Waiting awake for a moment before sleeping.

use std::io;
use std::time::{Duration, Instant};

/// Waits a little while awake, where that has lately paid.
///
/// A client at depth 1 sends its next request some 10 us after the reply; to sleep and be woken costs 25 us on top. Spinning
/// is bounded by `limit` per wait, and stops when it fails too often; then one wait in `PROBE_EVERY` tries again.
///
/// Where others want the core nobody spins: who does uses up his share and loses the core in the middle of a request, for up to a
/// tick, while one that slept gets it back when he wakes. For the same reason it is not given up on the way: to yield is to give away
/// all that is left of a share.
#[derive(Debug)]
pub(crate) struct Spin {
    limit: Duration,
    credit: u32,
    waits: u32,
    /// Somebody else had the core while we spun: until then we sleep. And how long that was.
    rest: Option<(Instant, Duration)>,
}

const CREDIT_MAX: u32 = 64;
const MISS_COSTS: u32 = 8;
const PROBE_EVERY: u32 = 64;
/// Between two looks somebody else had the core if they are so far apart: a look takes a microsecond, an interrupt some.
const AWAY: Duration = Duration::from_micros(200);
/// How long nobody spins then. It doubles while the core is still wanted when that is over.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(10);

impl Spin {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, credit: CREDIT_MAX, waits: 0, rest: None }
    }

    pub(crate) fn run<T>(&mut self, mut attempt: impl FnMut() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        if let Some(value) = attempt()? {
            return Ok(Some(value));
        }
        self.waits = self.waits.wrapping_add(1);
        if self.limit.is_zero() || (self.credit < MISS_COSTS && !self.waits.is_multiple_of(PROBE_EVERY)) {
            return Ok(None);
        }
        let mut looked = Instant::now();
        if self.rest.is_some_and(|(until, _)| looked < until) {
            return Ok(None);
        }
        let until = looked + self.limit;
        loop {
            std::hint::spin_loop();
            let value = attempt()?;
            let before = std::mem::replace(&mut looked, Instant::now());
            if looked - before >= AWAY {
                self.crowded(looked);
                return Ok(value);
            }
            if value.is_some() {
                self.credit = (self.credit + 1).min(CREDIT_MAX);
                return Ok(value);
            }
            if looked >= until {
                self.credit = self.credit.saturating_sub(MISS_COSTS);
                return Ok(None);
            }
        }
    }

    fn crowded(&mut self, now: Instant) {
        let still = self.rest.filter(|(until, rest)| now.saturating_duration_since(*until) < *rest);
        let rest = still.map_or(REST_MIN, |(_, rest)| (rest * 2).min(REST_MAX));
        self.rest = Some((now + rest, rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it looks before it gives up.
    fn looks(spin: &mut Spin, each: impl Fn()) -> usize {
        let mut looks = 0;
        let waited = spin.run(|| {
            looks += 1;
            each();
            Ok(None::<()>)
        });
        assert!(waited.unwrap().is_none());
        looks
    }

    #[test]
    fn who_lost_the_core_while_spinning_sleeps_from_then_on() {
        let mut spin = Spin::new(Duration::from_secs(3600));
        assert_eq!(looks(&mut spin, || std::thread::sleep(2 * AWAY)), 2);
        assert_eq!(looks(&mut spin, || ()), 1);
    }

    #[test]
    fn the_rest_doubles_while_the_core_is_wanted_and_begins_anew_after_a_good_while() {
        let mut spin = Spin::new(Duration::from_secs(3600));
        let begin = Instant::now();
        let rests = |spin: &Spin| spin.rest.map(|(_, rest)| rest).unwrap();
        spin.crowded(begin);
        assert_eq!(rests(&spin), REST_MIN);
        spin.crowded(begin + REST_MIN);
        assert_eq!(rests(&spin), 2 * REST_MIN);
        spin.crowded(begin + 5 * REST_MIN);
        assert_eq!(rests(&spin), REST_MIN);
        let mut now = begin;
        for _ in 0..20 {
            spin.crowded(now);
            now += rests(&spin);
        }
        assert_eq!(rests(&spin), REST_MAX);
    }
}
