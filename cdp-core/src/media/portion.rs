//! Writes cut into what is handed to the system at once: by a file itself, or by a driver that uses its descriptors.

use crate::buffer::{BufferPool, PooledBuffer};
use crate::types::SECTOR;
use std::io::IoSlice;
use std::ops::{Deref, Range};

/// Bytes that are gathered for one system call: disks are at their rate with so many.
pub(super) const STAGING_BYTES: usize = 1 << 20;

/// Buffers per system call: more than Linux's IOV_MAX are refused by it.
pub(super) const IOV_MAX: usize = 1024;

/// Which of a file's descriptors takes a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The usual one: through the page cache.
    Cached,
    /// The one that goes past the page cache, which wants memory and length aligned.
    Direct,
}

/// Cuts a write into portions, from its front to its end. A portion that goes past the page cache takes what is aligned, in memory
/// and by its place in the file, from where it is, and gathers what lies between in a buffer of its own: at most 1 MiB.
#[derive(Debug)]
pub struct Cut {
    /// Of memory that is handed over, and where buffers come from; none: any memory will do.
    direct: Option<(usize, BufferPool)>,
    at: u64,
    /// The first piece that is not handed over, and how much of it is.
    piece: usize,
    inside: usize,
}

/// What is handed to the system at once.
#[derive(Debug)]
pub struct Portion {
    offset: u64,
    bytes: usize,
    runs: Vec<Run>,
    staging: Option<PooledBuffer>,
}

/// Bytes that follow each other in the file.
#[derive(Debug)]
enum Run {
    /// Written from where they are: of which piece, and from which of its bytes on.
    Given(usize, usize),
    /// Gathered: a range of the staging buffer.
    Gathered(Range<usize>),
}

impl Cut {
    pub(super) fn cached(offset: u64) -> Self {
        Self { direct: None, at: offset, piece: 0, inside: 0 }
    }

    /// The write begins on a sector and has whole ones; buffers have [`STAGING_BYTES`]; `align` is a sector's multiple.
    pub(super) fn direct(offset: u64, align: usize, staging: BufferPool) -> Self {
        Self { direct: Some((align, staging)), at: offset, piece: 0, inside: 0 }
    }

    /// Which way the portions go.
    #[must_use]
    pub fn way(&self) -> Way {
        if self.direct.is_some() { Way::Direct } else { Way::Cached }
    }

    /// The next portion of these pieces, which are the same at each call; none when there is nothing left.
    pub fn next<D: Deref<Target = [u8]>>(&mut self, data: &[D]) -> Option<Portion> {
        let mut portion = Portion { offset: self.at, bytes: 0, runs: Vec::new(), staging: None };
        // Bytes of the staging buffer.
        let mut used = 0;
        while let Some(piece) = data.get(self.piece) {
            let rest = &piece[self.inside..];
            if rest.is_empty() {
                (self.piece, self.inside) = (self.piece + 1, 0);
                continue;
            }
            let full = portion.runs.len() == IOV_MAX;
            let unaligned = self.direct.as_ref().filter(|(align, _)| {
                let placed = self.at.is_multiple_of(SECTOR) && (rest.len() as u64).is_multiple_of(SECTOR);
                !placed || rest.as_ptr().align_offset(*align) != 0
            });
            let step = if let Some((align, pool)) = unaligned {
                let goes_on = matches!(portion.runs.last(), Some(Run::Gathered(range)) if range.end == used);
                let start = if goes_on { used } else { used.next_multiple_of(*align) };
                // Runs begin on sectors, and so does the end of the buffer: what is full is whole sectors.
                if start >= STAGING_BYTES || (full && !goes_on) {
                    break;
                }
                let step = rest.len().min(STAGING_BYTES - start);
                let staging = portion.staging.get_or_insert_with(|| pool.take());
                staging[start..start + step].copy_from_slice(&rest[..step]);
                used = start + step;
                match portion.runs.last_mut() {
                    Some(Run::Gathered(range)) if goes_on => range.end = used,
                    _ => portion.runs.push(Run::Gathered(start..used)),
                }
                step
            } else {
                if full {
                    break;
                }
                portion.runs.push(Run::Given(self.piece, self.inside));
                rest.len()
            };
            portion.bytes += step;
            self.inside += step;
            self.at += step as u64;
        }
        (portion.bytes > 0).then_some(portion)
    }
}

impl Portion {
    /// Its first byte's place in the file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where they are, without the first `done`: in the portion and in the pieces that it was cut from.
    ///
    /// # Panics
    /// If these are fewer or shorter pieces than those that it was cut from, or `done` is more than there is.
    #[must_use]
    pub fn slices<'a, D: Deref<Target = [u8]>>(&'a self, data: &'a [D], done: usize) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            slices.push(IoSlice::new(match run {
                Run::Given(piece, from) => &data[*piece][*from..],
                Run::Gathered(range) => self.staging.as_deref().map_or(&[], |staging| &staging[range.clone()]),
            }));
        }
        let mut rest = slices.as_mut_slice();
        IoSlice::advance_slices(&mut rest, done);
        let skipped = self.runs.len() - rest.len();
        slices.drain(..skipped);
        slices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    /// Pieces of one memory that is aligned to pages, each with some bytes left out before it.
    fn pieces(lengths: &[(usize, usize)]) -> Vec<Bytes> {
        let total = lengths.iter().map(|(gap, length)| gap + length).sum::<usize>().max(1);
        let mut buffer = BufferPool::new(total, 0).take();
        let ramp: Vec<u8> = (0..251).collect();
        buffer.chunks_mut(251).for_each(|some| some.copy_from_slice(&ramp[..some.len()]));
        let mut rest = buffer.freeze(total);
        let cut = |(gap, length): &(usize, usize)| {
            drop(rest.split_to(*gap));
            rest.split_to(*length)
        };
        lengths.iter().map(cut).collect()
    }

    /// Checks the portions; gives them.
    fn check(mut cut: Cut, align: Option<usize>, offset: u64, data: &[Bytes]) -> Vec<Portion> {
        let (mut at, mut found, mut portions) = (offset, Vec::new(), Vec::new());
        while let Some(portion) = cut.next(data) {
            assert_eq!(portion.offset(), at);
            let slices = portion.slices(data, 0);
            assert!(slices.len() <= IOV_MAX && slices.iter().all(|slice| !slice.is_empty()));
            if let Some(align) = align {
                assert!(at.is_multiple_of(SECTOR));
                assert!(slices.iter().all(|slice| slice.as_ptr().align_offset(align) == 0));
                assert!(slices.iter().all(|slice| (slice.len() as u64).is_multiple_of(SECTOR)));
            }
            let joined = |slices: &[IoSlice<'_>]| slices.iter().map(Deref::deref).collect::<Vec<_>>().concat();
            let whole = joined(&slices);
            assert_eq!(whole.len(), portion.bytes());
            for done in [1, whole.len() / 2, whole.len()] {
                assert!(joined(&portion.slices(data, done)) == whole[done..]);
            }
            at += whole.len() as u64;
            found.extend(whole);
            portions.push(portion);
        }
        assert!(found == data.concat());
        portions
    }

    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![Just(0), 1..2000_usize, (1..20_usize).prop_map(|sectors| sectors * 512), Just(300 << 10)]
    }

    proptest! {
        #[test]
        fn portions_are_the_write_and_what_goes_past_the_cache_is_aligned(
            lengths in prop::collection::vec((prop_oneof![Just(0), 1..600_usize], length()), 0..60),
            sector in 0..10_u64,
            align in prop_oneof![Just(512_usize), Just(4096)],
        ) {
            let mut lengths = lengths;
            check(Cut::cached(sector * 512 + 7), None, sector * 512 + 7, &pieces(&lengths));
            // A write that goes past the cache has whole sectors.
            let total: usize = lengths.iter().map(|(_, length)| length).sum();
            lengths.push((3, total.next_multiple_of(512) - total));
            let cut = Cut::direct(sector * 512, align, BufferPool::new(STAGING_BYTES, 2));
            check(cut, Some(align), sector * 512, &pieces(&lengths));
        }
    }

    #[test]
    fn a_portion_ends_where_the_buffer_or_the_systems_patience_does() {
        let odd = pieces(&[(1, 5 << 20)]);
        let direct = || Cut::direct(0, 512, BufferPool::new(STAGING_BYTES, 2));
        assert_eq!(check(direct(), Some(512), 0, &odd).len(), 5);
        assert_eq!(check(Cut::cached(0), None, 0, &odd).len(), 1);
        let many = pieces(&vec![(0, 512); 2500]);
        assert_eq!(check(direct(), Some(512), 0, &many).len(), 3);
        assert_eq!(check(Cut::cached(0), None, 0, &many).len(), 3);
        // Aligned pieces and others in turns: both kinds count.
        let turns =
            pieces(&vec![(0, 512); 1030].iter().flat_map(|even| [*even, (1, 512), (511, 512)]).collect::<Vec<_>>());
        assert!(check(direct(), Some(512), 0, &turns).len() >= 2);
    }
}
