//! Pooled, page-aligned buffers whose front can be shared as [`Bytes`] while the rest is still being filled.
//!
//! A receiver takes one buffer, fills it from the front, and hands out what is complete with [`PooledBuffer::freeze_front`];
//! nothing is copied. When the last [`Bytes`] of a piece is dropped, the piece goes back to its buffer; a buffer whose pieces
//! are all back goes back to its pool, still initialised, so that steady state neither allocates nor clears memory.
//! A piece that is back and lies directly before the unfilled rest can be used again at once ([`PooledBuffer::reclaim`]):
//! where nobody keeps the data, a connection works in the same few cache-warm pages all the time.
//!
//! The pieces are [`BytesMut`]s split from one allocation, which makes all of this safe code.

mod sizes;

pub use sizes::{SizedPools, half_way_sizes};

use bytes::{Bytes, BytesMut};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The alignment of every buffer, in bytes: what direct I/O demands at most.
pub const PAGE: usize = 4096;
/// So many pages are touched at a stretch.
const REST: usize = 8;

/// A source of equal, page-aligned buffers. Clones share one pool.
///
/// Bound: at most `retained_max` unused buffers are kept; a buffer that comes back to a full pool is freed. Pools of several sizes may
/// have one bound together ([`SizedPools`]). How many are in use is the caller's to bound: `take` never waits.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    buffer_bytes: usize,
    /// Where buffers begin: on multiples of this.
    align: usize,
    /// What is unused has its place there.
    room: Arc<Room>,
    /// Is shown every new buffer before anything else touches it.
    prepare: fn(&mut [u8]),
    /// Those that were used last come last.
    free: Mutex<Vec<(BytesMut, Arc<Home>)>>,
    /// How many buffers there are, unused ones included.
    made: AtomicUsize,
    /// How many were unused at least since the last [`BufferPool::trim`].
    unused: AtomicUsize,
}

/// Room for unused buffers: of one pool, or of several together.
struct Room {
    bytes_max: usize,
    bytes: AtomicUsize,
}

impl Room {
    fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, bytes: AtomicUsize::new(0) })
    }

    /// Whether there is a place, which is taken then.
    fn enter(&self, bytes: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.bytes_max);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn leave(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Where the pieces of one buffer come back to.
struct Home {
    pool: Weak<Shared>,
    buffer_bytes: usize,
    /// Sorted by offset, neighbours joined.
    pieces: Mutex<Vec<Piece>>,
}

struct Piece {
    offset: usize,
    bytes: BytesMut,
}

impl BufferPool {
    /// A pool of buffers of `buffer_bytes` (rounded up to whole pages), of which it keeps at most `retained_max` unused ones.
    #[must_use]
    pub fn new(buffer_bytes: usize, retained_max: usize) -> Self {
        Self::prepared(buffer_bytes, PAGE, retained_max, |_| {})
    }

    /// A pool whose buffers begin on multiples of `align` (a power of two, at least a page) and are shown to `prepare` while
    /// they are new: nothing has touched their memory then, so that advice to the system on how to back it comes in time.
    #[must_use]
    pub fn prepared(buffer_bytes: usize, align: usize, retained_max: usize, prepare: fn(&mut [u8])) -> Self {
        let room = Room::new(whole_pages(buffer_bytes).saturating_mul(retained_max));
        Self::within(room, buffer_bytes, align, prepare)
    }

    /// A pool whose unused buffers have their places in a room that may be that of others too.
    fn within(room: Arc<Room>, buffer_bytes: usize, align: usize, prepare: fn(&mut [u8])) -> Self {
        let (buffer_bytes, align) = (whole_pages(buffer_bytes), align.next_power_of_two().max(PAGE));
        let free = Mutex::new(Vec::with_capacity(room.bytes_max / buffer_bytes));
        let (made, unused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { shared: Arc::new(Shared { buffer_bytes, align, room, prepare, free, made, unused }) }
    }

    /// The size of each buffer, in bytes.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// How many unused buffers the pool holds.
    #[must_use]
    pub fn retained(&self) -> usize {
        lock(&self.shared.free).len()
    }

    /// A whole buffer; what it holds is unspecified (an earlier user's bytes).
    #[must_use]
    pub fn take(&self) -> PooledBuffer {
        let mut unused = lock(&self.shared.free);
        let free = unused.pop();
        self.shared.unused.fetch_min(unused.len(), Ordering::Relaxed);
        drop(unused);
        if free.is_some() {
            self.shared.room.leave(self.shared.buffer_bytes);
        }
        let (tail, home) = free.unwrap_or_else(|| self.shared.fresh());
        PooledBuffer { tail, offset: 0, home }
    }

    /// How many buffers somebody uses.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.shared.made.load(Ordering::Relaxed).saturating_sub(self.retained())
    }

    /// Makes buffers until there are `count` unused ones, as far as they are kept, and touches all of their memory: who takes one
    /// waits for none. That takes its time, which is for a thread that nobody waits for; `rest` is called every few pages.
    pub fn stock(&self, count: usize, rest: impl Fn()) {
        while self.retained() < count && self.shared.room.enter(self.shared.buffer_bytes) {
            let (mut fresh, home) = self.shared.fresh();
            for pages in fresh.chunks_mut(REST * PAGE) {
                pages.iter_mut().step_by(PAGE).for_each(|byte| *std::hint::black_box(byte) = 0);
                rest();
            }
            // The first one that is taken is still one of those that are warm in the cache.
            lock(&self.shared.free).insert(0, (fresh, home));
        }
    }

    /// Gives memory back to the system: half of what nobody used since the last call, beyond `keep` buffers.
    pub fn trim(&self, keep: usize) {
        let mut free = lock(&self.shared.free);
        let unused = self.shared.unused.swap(free.len(), Ordering::Relaxed).min(free.len());
        let surplus = unused.saturating_sub(keep).div_ceil(2);
        let dropped: Vec<_> = free.drain(..surplus).collect();
        drop(free);
        self.shared.room.leave(dropped.len() * self.shared.buffer_bytes);
        // Outside of the lock: it takes a while.
        drop(dropped);
    }
}

impl Shared {
    fn fresh(self: &Arc<Self>) -> (BytesMut, Arc<Home>) {
        self.made.fetch_add(1, Ordering::Relaxed);
        let (pool, buffer_bytes) = (Arc::downgrade(self), self.buffer_bytes);
        let home = Home { pool, buffer_bytes, pieces: Mutex::new(Vec::new()) };
        let mut fresh = aligned(buffer_bytes, self.align);
        (self.prepare)(&mut fresh);
        (fresh, Arc::new(home))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.made.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("buffer_bytes", &self.shared.buffer_bytes)
            .field("retained", &self.retained())
            .finish_non_exhaustive()
    }
}

fn whole_pages(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(PAGE)
}

/// Zeroed bytes that begin on a multiple of `align`: over-allocated, the odd front cut off. The system has memory of zeros, so
/// this touches none of it.
fn aligned(bytes: usize, align: usize) -> BytesMut {
    let mut buffer = BytesMut::zeroed(bytes + align);
    let odd = buffer.as_ptr().align_offset(align);
    drop(buffer.split_to(odd.min(align)));
    buffer.truncate(bytes);
    buffer
}

/// A buffer, or what is left of it behind the pieces that were frozen. Dereferences to the writable rest.
pub struct PooledBuffer {
    tail: BytesMut,
    offset: usize,
    home: Arc<Home>,
}

impl PooledBuffer {
    /// Splits the first `length` bytes off and shares them, without copying. The buffer goes on behind them.
    ///
    /// # Panics
    /// If fewer than `length` bytes are left.
    #[must_use]
    pub fn freeze_front(&mut self, length: usize) -> Bytes {
        if length == 0 {
            return Bytes::new();
        }
        let piece = Piece { offset: self.offset, bytes: self.tail.split_to(length) };
        self.offset += length;
        Bytes::from_owner(Frozen { piece: Some(piece), home: Arc::clone(&self.home) })
    }

    /// Shares the first `length` bytes and gives the rest back.
    ///
    /// # Panics
    /// If fewer than `length` bytes are left.
    #[must_use]
    pub fn freeze(mut self, length: usize) -> Bytes {
        self.freeze_front(length)
    }

    /// Takes back what lies directly before the rest and is no longer used by anybody; returns how many bytes that is. What
    /// stood at the front of the rest stands behind them now.
    pub fn reclaim(&mut self) -> usize {
        if self.offset == 0 {
            return 0;
        }
        let mut pieces = lock(&self.home.pieces);
        let adjacent = pieces.last().is_some_and(|last| last.offset + last.bytes.len() == self.offset);
        let Some(mut piece) = pieces.pop_if(|_| adjacent) else { return 0 };
        drop(pieces);
        let gained = piece.bytes.len();
        piece.bytes.unsplit(std::mem::take(&mut self.tail));
        self.tail = piece.bytes;
        self.offset = piece.offset;
        gained
    }
}

impl Deref for PooledBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.tail
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.tail
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.tail);
        Home::give_back(&self.home, Piece { offset: self.offset, bytes });
    }
}

impl fmt::Debug for PooledBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledBuffer").field("offset", &self.offset).field("length", &self.tail.len()).finish()
    }
}

/// The owner behind the shared bytes of one piece.
struct Frozen {
    piece: Option<Piece>,
    home: Arc<Home>,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        self.piece.as_ref().map_or(&[], |piece| &piece.bytes)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            Home::give_back(&self.home, piece);
        }
    }
}

impl Home {
    fn give_back(home: &Arc<Home>, piece: Piece) {
        if piece.bytes.is_empty() {
            return;
        }
        let mut pieces = lock(&home.pieces);
        let at = pieces.partition_point(|other| other.offset < piece.offset);
        pieces.insert(at, piece);
        join_with_next(&mut pieces, at);
        if at > 0 {
            join_with_next(&mut pieces, at - 1);
        }
        if pieces[0].bytes.len() < home.buffer_bytes {
            return;
        }
        let whole = pieces.pop();
        drop(pieces);
        let (Some(whole), Some(pool)) = (whole, home.pool.upgrade()) else { return };
        if pool.room.enter(pool.buffer_bytes) {
            lock(&pool.free).push((whole.bytes, Arc::clone(home)));
        }
    }
}

fn join_with_next(pieces: &mut Vec<Piece>, at: usize) {
    let joins = pieces.get(at + 1).is_some_and(|next| pieces[at].offset + pieces[at].bytes.len() == next.offset);
    if joins {
        let next = pieces.remove(at + 1);
        pieces[at].bytes.unsplit(next.bytes);
    }
}

/// No code of ours panics while it holds one of these locks, and what they guard is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buffers_are_page_aligned_and_come_back() {
        let pool = BufferPool::new(10_000, 2);
        assert_eq!(pool.buffer_bytes(), 12_288);
        let buffers: Vec<_> = (0..3).map(|_| pool.take()).collect();
        for buffer in &buffers {
            assert_eq!(buffer.as_ptr().align_offset(PAGE), 0);
            assert_eq!(buffer.len(), 12_288);
        }
        drop(buffers);
        assert_eq!(pool.retained(), 2, "the third found the pool full");
        assert_eq!(pool.take().as_ptr().align_offset(PAGE), 0);
    }

    #[test]
    fn new_buffers_are_prepared_once_and_begin_where_they_are_wanted() {
        let pool = BufferPool::prepared(3 * PAGE, 16 * PAGE, 4, |fresh| fresh[0] += 1);
        for _ in 0..3 {
            let mut buffer = pool.take();
            assert_eq!((buffer.as_ptr().align_offset(16 * PAGE), buffer.len(), buffer[0]), (0, 3 * PAGE, 1));
            buffer[1] = 9;
        }
        assert_eq!(pool.take()[1], 9, "the same one again and again");
    }

    #[test]
    fn a_stock_is_made_ahead_and_what_nobody_used_for_two_looks_goes_back() {
        let pool = BufferPool::new(2 * PAGE, 8);
        pool.stock(20, || ());
        assert_eq!((pool.retained(), pool.in_use()), (8, 0), "no more than are kept");
        let taken: Vec<_> = (0..3).map(|_| pool.take()).collect();
        assert_eq!((pool.retained(), pool.in_use()), (5, 3));
        pool.trim(2);
        assert_eq!(pool.retained(), 5, "none was unused when this began");
        drop(taken);
        pool.trim(2);
        assert_eq!((pool.retained(), pool.in_use()), (6, 0), "half of the three beyond two go");
        for _ in 0..3 {
            pool.trim(2);
        }
        assert_eq!((pool.retained(), pool.in_use()), (2, 0));
    }

    #[test]
    fn frozen_bytes_share_the_buffer_and_keep_it() {
        let pool = BufferPool::new(PAGE, 4);
        let mut buffer = pool.take();
        buffer[..3].copy_from_slice(b"abc");
        let address = buffer.as_ptr();
        let first = buffer.freeze_front(3);
        assert_eq!(first.as_ptr(), address);
        buffer[0] = b'd';
        let second = buffer.freeze(1);
        let slice = first.slice(1..2);
        drop(first);
        assert_eq!((&slice[..], &second[..]), (&b"b"[..], &b"d"[..]));
        assert_eq!(pool.retained(), 0);
        drop((slice, second));
        assert_eq!(pool.retained(), 1);
    }

    #[test]
    fn reclaim_takes_the_front_back_only_when_nobody_uses_it() {
        let pool = BufferPool::new(PAGE, 4);
        let mut buffer = pool.take();
        let bytes = buffer.freeze_front(100);
        assert_eq!(buffer.reclaim(), 0);
        assert_eq!(buffer.len(), PAGE - 100);
        buffer[0] = 7;
        drop(bytes);
        assert_eq!(buffer.reclaim(), 100);
        assert_eq!(buffer[100], 7);
        assert_eq!(buffer.len(), PAGE);
        assert_eq!(buffer.as_ptr().align_offset(PAGE), 0);
    }

    #[test]
    fn bytes_outlive_their_pool() {
        let pool = BufferPool::new(PAGE, 4);
        let bytes = pool.take().freeze(10);
        drop(pool);
        assert_eq!(bytes.len(), 10);
    }

    proptest! {
        #[test]
        fn any_order_of_drops_gives_the_whole_buffer_back(
            lengths in proptest::collection::vec(1usize..900, 1..12),
            order in any::<u64>(),
        ) {
            let pool = BufferPool::new(3 * PAGE, 4);
            let mut buffer = pool.take();
            let mut frozen = Vec::new();
            for (index, &length) in lengths.iter().enumerate() {
                let value = u8::try_from(index).unwrap();
                buffer[..length].fill(value);
                frozen.push((value, buffer.freeze_front(length)));
            }
            drop(buffer);
            let mut order = order;
            while !frozen.is_empty() {
                let at = usize::try_from(order % frozen.len() as u64).unwrap();
                order = order.rotate_right(7);
                let (value, bytes) = frozen.swap_remove(at);
                prop_assert!(bytes.iter().all(|&byte| byte == value));
            }
            prop_assert_eq!(pool.retained(), 1);
            prop_assert_eq!(pool.take().len(), 3 * PAGE);
        }
    }
}
