//! Waiting awake for a moment before sleeping.

use std::io;
use std::time::{Duration, Instant};

/// Waits a little while awake, where that has lately paid.
///
/// A client at depth 1 sends its next request some 10 us after the reply; to sleep and be woken costs 25 us on top. Spinning
/// is bounded by `limit` per wait, gives the core up to whoever wants it, and stops when it fails too often; then one wait
/// in `PROBE_EVERY` tries again.
#[derive(Debug)]
pub(crate) struct Spin {
    limit: Duration,
    credit: u32,
    waits: u32,
}

const CREDIT_MAX: u32 = 64;
const MISS_COSTS: u32 = 8;
const PROBE_EVERY: u32 = 64;

impl Spin {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, credit: CREDIT_MAX, waits: 0 }
    }

    pub(crate) fn run<T>(&mut self, mut attempt: impl FnMut() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        if let Some(value) = attempt()? {
            return Ok(Some(value));
        }
        self.waits = self.waits.wrapping_add(1);
        if self.limit.is_zero() || (self.credit < MISS_COSTS && !self.waits.is_multiple_of(PROBE_EVERY)) {
            return Ok(None);
        }
        let until = Instant::now() + self.limit;
        loop {
            std::thread::yield_now();
            if let Some(value) = attempt()? {
                self.credit = (self.credit + 1).min(CREDIT_MAX);
                return Ok(Some(value));
            }
            if Instant::now() >= until {
                self.credit = self.credit.saturating_sub(MISS_COSTS);
                return Ok(None);
            }
        }
    }
}
