//! The memory of a server's requests: receive buffers shared by many small requests, huge pages shared by several large ones,
//! and buffers of their own for the largest.

use crate::sys::huge_pages::{self, HUGE_PAGE};
use cdp_core::buffer::{BufferPool, PAGE, PooledBuffer, SizedPools, half_way_sizes};

/// Size of a receive buffer, in bytes: what one send of a client at depth brings fits several times.
pub(crate) const RECEIVE_BYTES: usize = 1 << 20;
/// From this payload on a write is received straight into page-aligned memory, which it shares with others up to [`SHARED_MAX`]
/// and has for itself above: the journal hands it to the disk from there.
pub(crate) const LARGE_BYTES: usize = 64 << 10;
/// A protected disk keeps what was received until the journal has it: with fewer buffers than that, each is fresh memory, and
/// the page faults of one cost as much as receiving into it.
const RECEIVE_RETAINED_MAX: usize = 64;
/// Memory that payloads from [`LARGE_BYTES`] on share.
const PAGES_BYTES: usize = HUGE_PAGE;
/// Of unused such memory so much is kept: what waits for a replica fills and empties by hundreds of MiB, and making a huge page anew costs
/// more than receiving into it.
const PAGES_RETAINED_MAX: usize = 256;
/// The longest payload that shares such memory: a longer one would leave too much of it empty.
pub(crate) const SHARED_MAX: usize = PAGES_BYTES / 2;
/// The smallest size of large buffers, in bytes (reads by workers).
const LARGE_MIN: usize = 64 << 10;
/// Unused memory that each size of large buffers may hold, in bytes; at least one buffer is kept.
const LARGE_RETAINED_BYTES: usize = 64 << 20;
/// Sizes of large buffers.
const LARGE_CLASSES: usize = 20;

/// Pools for every size there is, up to the largest payload.
#[derive(Debug)]
pub(crate) struct Buffers {
    receive: BufferPool,
    pages: BufferPool,
    large: SizedPools,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let sizes = half_way_sizes(LARGE_MIN, LARGE_CLASSES).map(|bytes| bytes + PAGE);
        let large = SizedPools::new(sizes, LARGE_RETAINED_BYTES);
        let pages = BufferPool::prepared(PAGES_BYTES, HUGE_PAGE, PAGES_RETAINED_MAX, huge_pages::prefer);
        Self { receive: BufferPool::new(RECEIVE_BYTES, RECEIVE_RETAINED_MAX), pages, large }
    }

    /// A receive buffer.
    pub(crate) fn receive(&self) -> PooledBuffer {
        self.receive.take()
    }

    /// Page-aligned memory for several payloads of up to [`SHARED_MAX`].
    pub(crate) fn pages(&self) -> PooledBuffer {
        self.pages.take()
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
