//! The digest of a disk: two disks that have the same one hold the same bytes, wherever they are, without a copy of either.
//!
//! Anybody can compute it. A disk of `size` bytes is cut into leaves of 1 MiB; the last one is shorter where the size is no
//! multiple of that, and a disk of no bytes has none. A leaf's hash is the BLAKE3 hash (32 bytes, no key, no context) of its
//! bytes. The disk's digest is the BLAKE3 hash of these bytes, integers little endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..16 | `CDP-DISK-DIGEST` and the byte `1`, the version of this table |
//! | 16..24 | size of the disk in bytes (u64) |
//! | 24..32 | size of a leaf in bytes (u64): 1048576 |
//! | 32.. | the hashes of the leaves in order, 32 bytes each |
//!
//! Leaves do not depend on each other: [`leaf`] may run on as many threads as the caller has, and [`Tree`] takes the hashes in
//! order. A leaf that is known to be zeros is not read.

use super::content::Content;
use crate::types::Extent;
use std::fmt;
use std::sync::OnceLock;

/// Bytes of a leaf.
pub const LEAF: u64 = 1 << 20;

const TAG: [u8; 16] = *b"CDP-DISK-DIGEST\x01";

/// The hash of a leaf.
pub type LeafHash = [u8; 32];

/// What a disk holds, in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Bytes of the disk.
    pub size: u64,
    /// The hash over its leaves.
    pub root: [u8; 32],
}

/// The root in hex.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The hash of bytes, as that of a leaf is: of a range that is compared over a distance.
#[must_use]
pub fn hash(bytes: &[u8]) -> LeafHash {
    *blake3::hash(bytes).as_bytes()
}

/// How many leaves a disk of `size` bytes has.
#[must_use]
pub fn leaves(size: u64) -> u64 {
    size.div_ceil(LEAF)
}

/// The hash of a leaf of the disk, by its number from 0. `buffer` holds a leaf, and grows to that.
///
/// # Errors
/// When it cannot be read or does not verify.
pub fn leaf<C: Content>(content: &C, number: u64, buffer: &mut Vec<u8>) -> Result<LeafHash, C::Error> {
    let offset = number * LEAF;
    let range = Extent::new(offset, content.size().saturating_sub(offset).min(LEAF));
    if content.zeros(range)?.iter().all(|(_, zero)| *zero) {
        return Ok(zero_leaf(range.length));
    }
    buffer.resize(range.length as usize, 0);
    content.read(offset, buffer)?;
    Ok(*blake3::hash(buffer).as_bytes())
}

/// The hash of so many zeros.
fn zero_leaf(length: u64) -> LeafHash {
    static WHOLE: OnceLock<LeafHash> = OnceLock::new();
    let hash = |length: u64| *blake3::hash(&vec![0; length as usize]).as_bytes();
    if length == LEAF { *WHOLE.get_or_init(|| hash(LEAF)) } else { hash(length) }
}

/// Makes the digest of the hashes of a disk's leaves.
#[derive(Clone, Debug)]
pub struct Tree {
    size: u64,
    hasher: blake3::Hasher,
}

impl Tree {
    /// Of a disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&TAG).update(&size.to_le_bytes()).update(&LEAF.to_le_bytes());
        Self { size, hasher }
    }

    /// The hash of the next leaf.
    pub fn push(&mut self, leaf: &LeafHash) {
        self.hasher.update(leaf);
    }

    /// The digest, once every leaf was pushed.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest { size: self.size, root: *self.hasher.finalize().as_bytes() }
    }
}

/// The digest of a disk, leaf by leaf; `progress` is told the bytes that were looked at and says whether to go on. `None`: it
/// said no.
///
/// # Errors
/// When a leaf cannot be read or does not verify.
pub fn digest<C: Content>(content: &C, mut progress: impl FnMut(u64) -> bool) -> Result<Option<Digest>, C::Error> {
    let size = content.size();
    let (mut tree, mut buffer) = (Tree::new(size), Vec::new());
    for number in 0..leaves(size) {
        tree.push(&leaf(content, number, &mut buffer)?);
        if !progress(((number + 1) * LEAF).min(size)) {
            return Ok(None);
        }
    }
    Ok(Some(tree.finish()))
}

#[cfg(test)]
mod tests;
