//! The memory of a server's requests: receive buffers shared by many small requests, huge pages shared by several large ones,
//! and buffers of their own for the largest.

use crate::sys::huge_pages::{self, HUGE_PAGE};
use crate::threads::{make_way, step_back};
use cdp_core::buffer::{BufferPool, PAGE, PooledBuffer, SizedPools, half_way_sizes};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Size of a receive buffer, in bytes: what one send of a client at depth brings fits several times.
pub(crate) const RECEIVE_BYTES: usize = 1 << 20;
/// From this payload on a write is received straight into page-aligned memory, which it shares with others up to [`SHARED_MAX`]
/// and has for itself above: the journal hands it to the disk from there.
pub(crate) const LARGE_BYTES: usize = 64 << 10;
/// A protected disk keeps what was received until the journal has it, half a gigabyte for example: with fewer buffers than that, each
/// is fresh memory, and the page faults of one cost more than receiving into it. What is not used for a while goes back.
const RECEIVE_RETAINED_MAX: usize = 512;
/// Memory that payloads from [`LARGE_BYTES`] on share.
const PAGES_BYTES: usize = HUGE_PAGE;
/// Of unused such memory so much is kept, as of receive buffers.
const PAGES_RETAINED_MAX: usize = 256;
/// So many of either kind are made ahead where payloads are kept, by a thread of its own, so that no guest waits for memory.
const READY: usize = 16;
/// In use at once they are so many where payloads are kept: else each connection has one or two.
const KEPT: usize = 8;
/// What is not used is looked at so often, and half of it goes back; those that are ready stay.
const LOOK: Duration = Duration::from_secs(5);
/// The longest payload that shares such memory: a longer one would leave too much of it empty.
pub(crate) const SHARED_MAX: usize = PAGES_BYTES / 2;
/// The smallest size of large buffers, in bytes (reads by workers).
const LARGE_MIN: usize = 64 << 10;
/// Unused memory of all sizes of large buffers together, at most, in bytes.
const LARGE_RETAINED_BYTES: usize = 64 << 20;
/// Sizes of large buffers.
const LARGE_CLASSES: usize = 20;

/// Pools for every size there is, up to the largest payload.
#[derive(Debug)]
pub(crate) struct Buffers {
    receive: BufferPool,
    pages: BufferPool,
    large: SizedPools,
    tending: Mutex<Tending>,
    wanted: Condvar,
}

/// What the thread that makes memory ahead is to do.
#[derive(Debug, Default)]
struct Tending {
    wanted: bool,
    ended: bool,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let sizes = half_way_sizes(LARGE_MIN, LARGE_CLASSES).map(|bytes| bytes + PAGE);
        let large = SizedPools::new(sizes, LARGE_RETAINED_BYTES);
        let pages = BufferPool::prepared(PAGES_BYTES, HUGE_PAGE, PAGES_RETAINED_MAX, huge_pages::prefer);
        let receive = BufferPool::new(RECEIVE_BYTES, RECEIVE_RETAINED_MAX);
        Self { receive, pages, large, tending: Mutex::default(), wanted: Condvar::new() }
    }

    /// A receive buffer.
    pub(crate) fn receive(&self) -> PooledBuffer {
        self.take(&self.receive)
    }

    /// Page-aligned memory for several payloads of up to [`SHARED_MAX`].
    pub(crate) fn pages(&self) -> PooledBuffer {
        self.take(&self.pages)
    }

    fn take(&self, pool: &BufferPool) -> PooledBuffer {
        let taken = pool.take();
        if pool.in_use() >= KEPT && pool.retained() < READY / 2 {
            self.lock().wanted = true;
            self.wanted.notify_one();
        }
        taken
    }

    /// Makes memory ahead while payloads are kept, and gives it back when they are not any more, until [`Buffers::end`]. Sleeps where
    /// there is nothing to do.
    pub(crate) fn tend(&self) {
        step_back();
        let pools = [&self.receive, &self.pages];
        let mut state = self.lock();
        while !state.ended {
            if std::mem::take(&mut state.wanted) {
                drop(state);
                pools.iter().filter(|pool| pool.in_use() >= KEPT).for_each(|pool| pool.stock(READY, make_way));
                state = self.lock();
            } else if pools.iter().any(|pool| pool.in_use() >= KEPT || pool.retained() > READY) {
                let (woken, waited) = self.wanted.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
                state = woken;
                if waited.timed_out() {
                    drop(state);
                    pools.iter().for_each(|pool| pool.trim(READY));
                    state = self.lock();
                }
            } else {
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Nothing is made ahead any more.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.wanted.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Tending> {
        self.tending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page-aligned buffer of at least `bytes` and a page more, for a header before aligned data. `bytes` is at most the
    /// largest payload.
    pub(crate) fn large(&self, bytes: usize) -> PooledBuffer {
        self.large.take(bytes + PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::protocol::PAYLOAD_MAX;

    #[test]
    fn memory_is_made_ahead_where_payloads_are_kept_and_nowhere_else() {
        let buffers = Buffers::new();
        std::thread::scope(|scope| {
            scope.spawn(|| buffers.tend());
            drop((buffers.receive(), buffers.pages()));
            let kept: Vec<_> = (0..KEPT).map(|_| buffers.receive()).collect();
            while buffers.receive.retained() < READY {
                std::thread::yield_now();
            }
            drop(kept);
            buffers.end();
        });
        assert_eq!(buffers.pages.retained(), 1, "nobody kept these");
    }

    #[test]
    fn every_payload_has_a_class() {
        let buffers = Buffers::new();
        assert_eq!(buffers.pages().len(), 2 * SHARED_MAX);
        for bytes in [1, LARGE_BYTES, LARGE_BYTES + 1, 1 << 20, PAYLOAD_MAX as usize] {
            assert!(buffers.large(bytes).len() >= bytes + PAGE);
        }
        for bytes in (LARGE_BYTES..=PAYLOAD_MAX as usize).step_by(100_003) {
            let buffer = buffers.large(bytes).len();
            assert!(buffer <= bytes / 2 * 3 + 2 * PAGE, "{buffer} for {bytes}");
        }
    }
}
