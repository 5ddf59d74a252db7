//! Comparing a disk with its replica from afar: hashes travel, and bytes only of what differs.
//!
//! A range of at most [`EXTENT_MAX`] is cut at multiples of a *block* of the disk, which is one of [`BLOCKS`]: 1 MiB, where that differs 64 KiB,
//! where that differs 4 KiB. What the range's own ends cut off is a shorter piece. The hash of a piece is the BLAKE3 hash (32 bytes, no
//! key, no context) of its bytes: no two contents share one, whoever chose them, so that equal hashes need no second look.
//! Two disks that are the same cost one hash for each MiB.
//!
//! The far side answers with the hashes as of a durable LSN ([`Asked::hashes_in`]), the source's side drives a [`Compare`]. As bytes, which is
//! how a call's tail carries them, hashes stand back to back in the order of their pieces.
//!
//! # Why hashes of different moments may be compared
//! A guest goes on writing meanwhile, and a range is hashed several times. What is compared is the sectors that no op touches between the
//! beginning and the end; of the others their own records tell. Such a sector is the same at the source whenever it is read, and the same at the
//! replica at every LSN from the one on that has all records of it ([`Ask::at`]). So if it differs, then all hashes of pieces with it
//! differ, on every level, whatever else they hold: it is found. What is named beside it is read again in vain, no more.

mod machine;

pub use self::machine::{
    Answer, Ask, AskId, BadAnswer, BeginError, Compare, CompareOptions, Compared, Counted, EXTENTS_MAX, Job, JobId,
    Outcome, Output, PATIENCE_NS_MAX,
};

use super::content::Content;
use crate::types::{DISK_MAX, Extent, SECTOR};
use std::sync::OnceLock;

/// The longest range that is compared as one, in bytes.
pub const EXTENT_MAX: u64 = 1 << 20;
/// What ranges are cut into, coarsest first, in bytes.
pub const BLOCKS: [u64; 3] = [1 << 20, 64 << 10, 4 << 10];

/// The hash of a piece.
pub type Hash = [u8; 32];

/// A range and the blocks that it is cut into: what one side asks the other, or itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    extent: Extent,
    block: u64,
}

/// What is asked cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadAsk {
    /// Not a range.
    #[error(
        "{extent} (offset+bytes) is no range to compare: it takes multiples of 512, at most {EXTENT_MAX} bytes, inside a disk"
    )]
    Extent {
        /// What was asked.
        extent: Extent,
    },
    /// Not a block.
    #[error("a range is cut into blocks of {BLOCKS:?} bytes, not of {block}")]
    Block {
        /// What was asked.
        block: u64,
    },
}

impl Asked {
    /// A range and one of [`BLOCKS`].
    ///
    /// # Errors
    /// When it is another, or the range is none.
    pub fn new(extent: Extent, block: u64) -> Result<Self, BadAsk> {
        let fits = (1..=EXTENT_MAX).contains(&extent.length) && extent.end() <= DISK_MAX && extent.is_aligned(SECTOR);
        if !fits {
            return Err(BadAsk::Extent { extent });
        }
        if !BLOCKS.contains(&block) {
            return Err(BadAsk::Block { block });
        }
        Ok(Self { extent, block })
    }

    /// The range.
    #[must_use]
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The block.
    #[must_use]
    pub fn block(&self) -> u64 {
        self.block
    }

    /// What is hashed, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Extent> + use<> {
        let Self { extent, block } = *self;
        let blocks = extent.offset / block..extent.end().div_ceil(block);
        blocks.filter_map(move |number| extent.intersect(&Extent::new(number * block, block)))
    }

    /// How many pieces there are: 257 at most.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.extent.end().div_ceil(self.block) - self.extent.offset / self.block) as usize
    }

    /// The hashes of bytes that were read; none if these are not as many as the range has.
    #[must_use]
    pub fn hashes_of(&self, bytes: &[u8]) -> Option<Vec<Hash>> {
        let of = |piece: Extent| {
            let begin = (piece.offset - self.extent.offset) as usize;
            *blake3::hash(&bytes[begin..begin + piece.length as usize]).as_bytes()
        };
        (bytes.len() as u64 == self.extent.length).then(|| self.pieces().map(of).collect())
    }

    /// The hashes where all is zeros: nobody has to read that.
    #[must_use]
    pub fn hashes_of_zeros(&self) -> Vec<Hash> {
        self.pieces().map(|piece| zeros(piece.length)).collect()
    }

    /// The hashes of a disk, which reads as zeros behind its end. What is known to be zeros is not read; `buffer` holds the rest, and
    /// grows to [`EXTENT_MAX`].
    ///
    /// # Errors
    /// When it cannot be read or does not verify.
    pub fn hashes_in<C: Content>(&self, content: &C, buffer: &mut Vec<u8>) -> Result<Vec<Hash>, C::Error> {
        let Self { extent, .. } = *self;
        let inside = content.size().saturating_sub(extent.offset).min(extent.length);
        let runs = if inside == 0 { Vec::new() } else { content.zeros(Extent::new(extent.offset, inside))? };
        let mut data = runs.iter().filter(|(_, zero)| !zero).map(|(run, _)| *run);
        let Some(first) = data.next() else { return Ok(self.hashes_of_zeros()) };
        // One read, and not one for each run: what lies between is zeros anyway.
        let end = data.next_back().unwrap_or(first).end();
        buffer.clear();
        buffer.resize(extent.length as usize, 0);
        let range = (first.offset - extent.offset) as usize..(end - extent.offset) as usize;
        content.read(first.offset, &mut buffer[range])?;
        let hash = |piece: Extent| {
            let begin = (piece.offset - extent.offset) as usize;
            let bytes = &buffer[begin..begin + piece.length as usize];
            let known = piece.end() <= first.offset || piece.offset >= end;
            if known { zeros(piece.length) } else { *blake3::hash(bytes).as_bytes() }
        };
        Ok(self.pieces().map(hash).collect())
    }

    /// Hashes from the bytes of a call's tail; none if these are not as many as there are pieces.
    #[must_use]
    pub fn hashes_from(&self, tail: &[u8]) -> Option<Vec<Hash>> {
        let (hashes, rest) = tail.as_chunks::<{ size_of::<Hash>() }>();
        (rest.is_empty() && hashes.len() == self.count()).then(|| hashes.to_vec())
    }
}

/// Hashes as the bytes of a call's tail.
#[must_use]
pub fn tail_of(hashes: &[Hash]) -> Vec<u8> {
    hashes.concat()
}

/// The hash of so many zeros, at most [`EXTENT_MAX`].
fn zeros(length: u64) -> Hash {
    static WHOLE: [OnceLock<Hash>; BLOCKS.len()] = [const { OnceLock::new() }; BLOCKS.len()];
    let hash = || *blake3::hash(&vec![0; length as usize]).as_bytes();
    match BLOCKS.iter().position(|block| *block == length) {
        Some(at) => *WHOLE[at].get_or_init(hash),
        None => hash(),
    }
}

#[cfg(test)]
mod tests;
