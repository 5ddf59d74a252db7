//! The memory that all connections of a process receive into: what one is done with the next one finds mapped. Fresh memory for each
//! message costs more than its bytes do: a page fault for every 4 KiB.
//!
//! What nobody uses any more goes back to the system by and by, while anything is heard on any connection.

use crate::clock::mono;
use cdp_core::buffer::{BufferPool, SizedPools, half_way_sizes};
use cdp_core::types::MonoTime;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sizes of long messages: 8 KiB to 512 KiB. The few that are longer are calls.
const LEAST: usize = 8 << 10;
const SIZES: usize = 13;
/// Unused memory of all sizes together, at most, in bytes: what is on its way over a fast link, with room for its moods. It is beside what
/// a file sets as bounds.
const RETAINED_BYTES: usize = 128 << 20;
/// What is not used is looked at so often, and half of it goes back.
const LOOK_NS: u64 = 5_000_000_000;
/// What a connection reads at once of TLS.
pub(super) const AHEAD_BYTES: usize = 64 << 10;
/// So much of such memory is kept: connections have it only while there is something to read.
const AHEAD_RETAINED: usize = 64;

/// Memory for messages, and when it was looked at.
struct Messages {
    pools: SizedPools,
    looked: AtomicU64,
}

static MESSAGES: LazyLock<Messages> = LazyLock::new(Messages::new);

impl Messages {
    fn new() -> Self {
        Self { pools: SizedPools::new(half_way_sizes(LEAST, SIZES), RETAINED_BYTES), looked: AtomicU64::new(0) }
    }

    fn tend(&self, now: MonoTime) {
        let looked = self.looked.load(Ordering::Relaxed);
        let is_due = now.since(MonoTime(looked)) >= LOOK_NS;
        // One of those who find it due does it.
        if is_due && self.looked.compare_exchange(looked, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.pools.trim();
        }
    }
}

/// For messages.
pub(super) fn messages() -> SizedPools {
    MESSAGES.pools.clone()
}

/// Gives back what was not used for a while. Costs nothing where that was looked at a moment ago: for whoever hears something.
pub(super) fn tend() {
    MESSAGES.tend(mono());
}

/// For what is read ahead of TLS.
pub(super) fn ahead() -> &'static BufferPool {
    static POOL: LazyLock<BufferPool> = LazyLock::new(|| BufferPool::new(AHEAD_BYTES, AHEAD_RETAINED));
    &POOL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_burst_took_goes_back_and_what_is_used_stays() {
        let messages = Messages::new();
        let mut now = MonoTime(LOOK_NS);
        drop([(); 64].map(|()| messages.pools.take(20 << 10)));
        let burst = messages.pools.retained_bytes();
        assert_eq!(burst, 64 * (24 << 10));
        for _ in 0..1000 {
            messages.tend(now);
        }
        assert_eq!(messages.pools.retained_bytes(), burst, "one look, whoever heard something");
        for _ in 0..20 {
            now = now.after(LOOK_NS);
            drop([(); 4].map(|()| messages.pools.take(20 << 10)));
            messages.tend(now);
        }
        assert_eq!(messages.pools.retained_bytes(), 4 * (24 << 10));
    }
}
