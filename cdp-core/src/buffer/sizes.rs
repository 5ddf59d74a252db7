//! Pools for buffers of many sizes: for what may be of any length and is known to be of one before it comes.

use super::{BufferPool, PooledBuffer};
use std::sync::Arc;

/// A pool for each of some sizes. Clones share them.
///
/// Bound: of each size unused buffers are kept up to an amount of bytes, and one whatever it is.
#[derive(Clone, Debug)]
pub struct SizedPools {
    /// Ascending.
    pools: Arc<[BufferPool]>,
}

impl SizedPools {
    /// Pools for these sizes, which ascend; of each so many bytes are kept unused.
    pub fn new(sizes: impl IntoIterator<Item = usize>, retained_bytes: usize) -> Self {
        let pool = |bytes: usize| BufferPool::new(bytes, (retained_bytes / bytes.max(1)).max(1));
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
}

/// So many sizes from `least` on, doubling and half-way between: what takes the smallest that it fits into leaves at most a third of it
/// empty.
pub fn half_way_sizes(least: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |size| (least << (size / 2)) / 2 * (2 + size % 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::PAGE;

    #[test]
    fn each_length_has_the_smallest_buffer_that_it_fits_into() {
        let pools = SizedPools::new(half_way_sizes(2 * PAGE, 5), 10 * PAGE);
        let taken = |bytes: usize| pools.take(bytes).len() / PAGE;
        let lengths = [1, 2 * PAGE, 2 * PAGE + 1, 4 * PAGE - 1, 4 * PAGE + 1, 8 * PAGE, 8 * PAGE + 1];
        assert_eq!(lengths.map(taken), [2, 2, 3, 4, 6, 8, 9]);
        let retained: Vec<_> = pools.pools.iter().map(BufferPool::retained).collect();
        assert_eq!(retained, [1, 1, 1, 1, 1], "one of each, used again");
        drop([(); 9].map(|()| pools.take(PAGE)));
        assert_eq!(pools.pools[0].retained(), 5, "of each size so many bytes are kept");
        assert_eq!(SizedPools::none().take(7).len(), PAGE);
    }
}
