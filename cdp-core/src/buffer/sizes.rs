//! Pools for buffers of many sizes: for what may be of any length and is known to be of one before it comes.

use super::{BufferPool, PAGE, PooledBuffer, Room};
use std::sync::Arc;

/// A pool for each of some sizes. Clones share them.
///
/// Bound: of all sizes together unused buffers are kept up to an amount of bytes. Which ones is up to what came back last: who calls
/// [`Self::trim`] now and then has those of the sizes that are in use.
#[derive(Clone, Debug)]
pub struct SizedPools {
    /// Ascending.
    pools: Arc<[BufferPool]>,
}

impl SizedPools {
    /// Pools for these sizes, which ascend; of all together so many bytes are kept unused.
    pub fn new(sizes: impl IntoIterator<Item = usize>, retained_bytes: usize) -> Self {
        let room = Room::new(retained_bytes);
        let pool = |bytes: usize| BufferPool::within(Arc::clone(&room), bytes, PAGE, |_| {});
        Self { pools: sizes.into_iter().map(pool).collect() }
    }

    /// No pools: each buffer is made when it is taken and freed when it is not used any more.
    #[must_use]
    pub fn none() -> Self {
        Self { pools: Arc::new([]) }
    }

    /// A buffer of at least so many bytes. One that is longer than the largest size is made, and freed after its use.
    #[must_use]
    pub fn take(&self, bytes: usize) -> PooledBuffer {
        let fits = self.pools.partition_point(|pool| pool.buffer_bytes() < bytes);
        self.pools.get(fits).map_or_else(|| BufferPool::new(bytes, 0).take(), BufferPool::take)
    }

    /// Gives memory back to the system: half of what nobody used since the last call.
    pub fn trim(&self) {
        self.pools.iter().for_each(|pool| pool.trim(0));
    }

    /// Bytes of unused buffers that are kept.
    #[must_use]
    pub fn retained_bytes(&self) -> usize {
        self.pools.iter().map(|pool| pool.retained() * pool.buffer_bytes()).sum()
    }
}

/// So many sizes from `least` on, doubling and half-way between: what takes the smallest that it fits into leaves at most a third of it
/// empty.
pub fn half_way_sizes(least: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |size| (least << (size / 2)) / 2 * (2 + size % 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_has_the_smallest_buffer_that_it_fits_into() {
        let pools = SizedPools::new(half_way_sizes(2 * PAGE, 5), 23 * PAGE);
        let taken = |bytes: usize| pools.take(bytes).len() / PAGE;
        let lengths = [1, 2 * PAGE, 2 * PAGE + 1, 4 * PAGE - 1, 4 * PAGE + 1, 8 * PAGE, 8 * PAGE + 1];
        assert_eq!(lengths.map(taken), [2, 2, 3, 4, 6, 8, 9]);
        let retained: Vec<_> = pools.pools.iter().map(BufferPool::retained).collect();
        assert_eq!(retained, [1, 1, 1, 1, 1], "one of each, used again");
        assert_eq!(SizedPools::none().take(7).len(), PAGE);
    }

    /// Whatever lengths came, and however many of each.
    #[test]
    fn unused_memory_of_all_sizes_together_has_one_bound() {
        let pools = SizedPools::new(half_way_sizes(2 * PAGE, 5), 10 * PAGE);
        let retained = || pools.pools.iter().map(|pool| pool.retained() * pool.buffer_bytes()).sum::<usize>();
        for pages in [2, 3, 4, 6, 8] {
            drop([(); 9].map(|()| pools.take(pages * PAGE)));
            assert!(retained() <= 10 * PAGE, "{} bytes", retained());
        }
        assert_eq!(retained(), 10 * PAGE, "and all of it is used");
    }

    #[test]
    fn what_nobody_uses_makes_room_for_other_sizes() {
        let pools = SizedPools::new([2 * PAGE, 8 * PAGE], 8 * PAGE);
        drop([(); 4].map(|()| pools.take(2 * PAGE)));
        drop(pools.take(8 * PAGE));
        assert_eq!(pools.pools[1].retained(), 0, "the small ones have the room");
        for _ in 0..4 {
            drop(pools.take(8 * PAGE));
            pools.trim();
        }
        drop(pools.take(8 * PAGE));
        assert_eq!((pools.pools[1].retained(), pools.retained_bytes()), (1, 8 * PAGE));
        (0..3).for_each(|_| pools.trim());
        assert_eq!(pools.retained_bytes(), 0);
    }
}
