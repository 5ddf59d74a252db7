//! The memory that all connections of a process receive into: what one is done with the next one finds mapped. Fresh memory for each
//! message costs more than its bytes do: a page fault for every 4 KiB.

use cdp_core::buffer::{BufferPool, SizedPools, half_way_sizes};
use std::sync::LazyLock;

/// Sizes of long messages: 8 KiB to 512 KiB. The few that are longer are calls.
const LEAST: usize = 8 << 10;
const SIZES: usize = 13;
/// Unused memory of each size, at most, in bytes: what is on its way over a fast link, with room for its moods.
const RETAINED_BYTES: usize = 64 << 20;
/// What a connection reads at once of TLS.
pub(super) const AHEAD_BYTES: usize = 64 << 10;
/// So much of such memory is kept: connections have it only while there is something to read.
const AHEAD_RETAINED: usize = 64;

/// For messages.
pub(super) fn messages() -> SizedPools {
    static POOLS: LazyLock<SizedPools> =
        LazyLock::new(|| SizedPools::new(half_way_sizes(LEAST, SIZES), RETAINED_BYTES));
    POOLS.clone()
}

/// For what is read ahead of TLS.
pub(super) fn ahead() -> &'static BufferPool {
    static POOL: LazyLock<BufferPool> = LazyLock::new(|| BufferPool::new(AHEAD_BYTES, AHEAD_RETAINED));
    &POOL
}
