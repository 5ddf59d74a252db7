//! The sidecar of a base image: for each block of 4 KiB its checksum and the LSN of its last writer.
//!
//! A checksum is seeded with replica, disk, block and LSN, so a block that is right in itself but in the wrong place or of the
//! wrong time is seen. Pages of checksums are chained to a root that the manifest holds: page → digest table → root. A page
//! whose blocks were all zeros need not be there at all; its digest says so. Only this file knows the bytes:
//!
//! | bytes of a page | field |
//! |---|---|
//! | 0..4 | CRC32C of the rest of the page |
//! | 4..8 | magic `CDPS` |
//! | 8..16 | number of the page in the sidecar |
//! | 16..4096 | 340 entries: LSN of the last writer (u64), checksum (u32) |
//!
//! The pages of a base that is sealed at rest have the magic `CDPT` and 102 entries, in which these two are followed by what opens
//! the block: key generation (u32), counter (u64), tag (16 bytes).
//!
//! Each page has two places in the sidecar, one behind the other; a change of the base writes the one that is not in use, so that
//! the page that the manifest's root vouches for is never touched. Which one that is says the digest table, a file of its own:
//! 8 bytes a page, `1` (first place) or `3` (second) and the page's CRC32C, or `2` and zero for an absent page, padded with zeros to a
//! multiple of 4 KiB. There are two such files, for odd and even generations of the base. The root is the BLAKE3 hash of the table.

use crate::journal::BaseInfo;
use crate::trust::BlockSeal;
use crate::types::{BLOCK, DiskId, Lsn, ReplicaId};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

const HEADER: usize = 16;
const ENTRY: usize = 12;
const ENTRY_AT_REST: usize = 40;
const _: () =
    assert!((PAGE_BYTES - HEADER).is_multiple_of(ENTRY) && (PAGE_BYTES - HEADER).is_multiple_of(ENTRY_AT_REST));

/// How much a sidecar says of each block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Who wrote it last, and its checksum.
    Plain,
    /// Also what opens it: the base is sealed at rest.
    AtRest,
}

impl Layout {
    const fn entry_bytes(self) -> usize {
        match self {
            Self::Plain => ENTRY,
            Self::AtRest => ENTRY_AT_REST,
        }
    }

    /// Blocks whose entries are in one page.
    #[must_use]
    pub const fn blocks(self) -> u64 {
        ((PAGE_BYTES - HEADER) / self.entry_bytes()) as u64
    }

    /// Bytes of a disk that one page covers.
    #[must_use]
    pub const fn covers(self) -> u64 {
        self.blocks() * BLOCK
    }

    /// How many pages a disk of `size` bytes has.
    #[must_use]
    pub const fn pages(self, size: u64) -> u64 {
        size.div_ceil(self.covers())
    }

    /// Bytes of the digest table of a disk of `size` bytes.
    #[must_use]
    pub const fn table_bytes(self, size: u64) -> usize {
        (self.pages(size) as usize * 8).next_multiple_of(PAGE_BYTES)
    }

    const fn magic(self) -> [u8; 4] {
        match self {
            Self::Plain => *b"CDPS",
            Self::AtRest => *b"CDPT",
        }
    }
}

/// What a page says of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its last writer.
    pub lsn: Lsn,
    /// The checksum of its bytes as they are in the image.
    pub crc: u32,
    /// What opens it, if it is sealed at rest.
    pub seal: Option<BlockSeal>,
}

/// What seeds every checksum of one base: whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed(u32);

impl Seed {
    /// The seed of a disk of a replica.
    #[must_use]
    pub fn new(replica: ReplicaId, disk: DiskId) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(replica.bytes()), &disk.get().to_le_bytes()))
    }

    /// The checksum of a block's bytes, last written by `lsn`.
    #[must_use]
    pub fn block(self, block: u64, lsn: Lsn, data: &[u8]) -> u32 {
        let mut place = [0; 16];
        place[..8].copy_from_slice(&block.to_le_bytes());
        place[8..].copy_from_slice(&lsn.0.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &place), data)
    }
}

/// One page of checksums.
#[derive(Clone, PartialEq, Eq)]
pub struct Page {
    bytes: Box<[u8; PAGE_BYTES]>,
    layout: Layout,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({})", self.number())
    }
}

impl Page {
    /// A page without entries.
    #[must_use]
    pub fn new(number: u64, layout: Layout) -> Self {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        bytes[4..8].copy_from_slice(&layout.magic());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        Self { bytes, layout }
    }

    /// Its number in the sidecar.
    #[must_use]
    pub fn number(&self) -> u64 {
        u64::from_le_bytes(self.bytes[8..16].try_into().expect("eight bytes"))
    }

    /// What it says of a block, by its place in the page.
    #[must_use]
    pub fn entry(&self, place: usize) -> Entry {
        let bytes = self.layout.entry_bytes();
        decode_entry(&self.bytes[HEADER + place * bytes..][..bytes])
    }

    /// Sets what it says of a block.
    pub fn set(&mut self, place: usize, entry: Entry) {
        let bytes = self.layout.entry_bytes();
        encode_entry(entry, &mut self.bytes[HEADER + place * bytes..][..bytes]);
    }

    /// Its bytes, under their checksum, and what the digest table says of it when it is in that place.
    #[must_use]
    pub fn seal(&mut self, slot: Slot) -> (&[u8], PageDigest) {
        let crc = crc32c::crc32c(&self.bytes[4..]);
        self.bytes[..4].copy_from_slice(&crc.to_le_bytes());
        (self.bytes.as_slice(), PageDigest::Crc(slot, crc))
    }

    /// The page of this number that the digest table names; `None` when the bytes are another's or damaged.
    #[must_use]
    pub fn parse(bytes: Box<[u8; PAGE_BYTES]>, number: u64, digest: PageDigest, layout: Layout) -> Option<Self> {
        let crc = crc32c::crc32c(&bytes[4..]);
        let said = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let page = Self { bytes, layout };
        let named = matches!(digest, PageDigest::Crc(_, named) if named == crc);
        let right = said == crc && named && page.bytes[4..8] == layout.magic() && page.number() == number;
        right.then_some(page)
    }
}

/// Bytes of what [`encode_entry`] says of a block that is sealed at rest.
pub(super) const SEALED_ENTRY_BYTES: usize = ENTRY_AT_REST;

/// As an entry stands in a page; `bytes` has room for all of it or for what a plain one says.
pub(super) fn encode_entry(entry: Entry, bytes: &mut [u8]) {
    bytes[..8].copy_from_slice(&entry.lsn.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&entry.crc.to_le_bytes());
    if let Some(rest) = bytes.get_mut(12..ENTRY_AT_REST) {
        let none = BlockSeal { generation: 0, counter: 0, tag: [0; 16] };
        let seal = entry.seal.unwrap_or(none);
        rest[..4].copy_from_slice(&seal.generation.to_le_bytes());
        rest[4..12].copy_from_slice(&seal.counter.to_le_bytes());
        rest[12..].copy_from_slice(&seal.tag);
    }
}

pub(super) fn decode_entry(bytes: &[u8]) -> Entry {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let seal = bytes.get(24..ENTRY_AT_REST).filter(|_| word(12) != 0);
    let seal = seal.map(|tag| BlockSeal {
        generation: word(12),
        counter: long(16),
        tag: tag.try_into().expect("sixteen bytes"),
    });
    Entry { lsn: Lsn(long(0)), crc: word(8), seal }
}

/// One of a page's two places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// The first.
    First,
    /// The second.
    Second,
}

impl Slot {
    /// The one that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Where it is in the sidecar, for a page.
    #[must_use]
    pub fn offset(self, page: u64) -> u64 {
        (2 * page + u64::from(self == Self::Second)) * PAGE_BYTES as u64
    }
}

/// What the digest table says of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageDigest {
    /// Which place it is in, and its checksum.
    Crc(Slot, u32),
    /// There is none: every block it would cover is zeros.
    Absent,
}

impl PageDigest {
    /// Its bytes in the digest table.
    fn entry(self) -> [u8; 8] {
        let (state, crc) = match self {
            Self::Crc(Slot::First, crc) => (1u32, crc),
            Self::Crc(Slot::Second, crc) => (3, crc),
            Self::Absent => (2, 0),
        };
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&state.to_le_bytes());
        entry[4..].copy_from_slice(&crc.to_le_bytes());
        entry
    }

    /// Of a page as it lies in the first place, where a first copy puts them: a hole is an absent one. `None`: it is damaged, or not
    /// this page.
    #[must_use]
    pub fn found(bytes: &[u8; PAGE_BYTES], number: u64, layout: Layout) -> Option<Self> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Some(Self::Absent);
        }
        let digest = Self::Crc(Slot::First, crc32c::crc32c(&bytes[4..]));
        Page::parse(Box::new(*bytes), number, digest, layout).map(|_| digest)
    }
}

/// What the manifest holds of a base: everything else follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Counts the states of the base, from 1: says which file has the digest table.
    pub generation: u64,
    /// Bytes of the disk when the base was made.
    pub size: u64,
    /// BLAKE3 of the digest table.
    pub digest: [u8; 32],
    /// How much the sidecar says of each block.
    pub layout: Layout,
}

impl Root {
    /// The base as the manifest names it, when it holds every record up to `lsn`.
    #[must_use]
    pub fn named(self, lsn: Lsn) -> BaseInfo {
        let Self { generation, size, digest: root, layout } = self;
        BaseInfo { lsn, generation, size, root, at_rest: layout == Layout::AtRest }
    }
}

impl From<BaseInfo> for Root {
    fn from(base: BaseInfo) -> Self {
        let BaseInfo { generation, size, root: digest, at_rest, .. } = base;
        Self { generation, size, digest, layout: if at_rest { Layout::AtRest } else { Layout::Plain } }
    }
}

/// The first entries of a digest table as they become known: what a first copy that is not complete is known by.
#[derive(Clone, Debug, Default)]
pub struct TableBegin(blake3::Hasher);

impl TableBegin {
    /// The next page's entry.
    pub fn push(&mut self, digest: PageDigest) {
        self.0.update(&digest.entry());
    }

    /// The hash of the entries so far; without any that of nothing.
    #[must_use]
    pub fn root(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// The digest table as bytes, and its root.
#[must_use]
pub fn encode_table(generation: u64, size: u64, layout: Layout, digests: &[PageDigest]) -> (Vec<u8>, Root) {
    let mut bytes = Vec::with_capacity(layout.table_bytes(size));
    digests.iter().for_each(|digest| bytes.extend_from_slice(&digest.entry()));
    bytes.resize(layout.table_bytes(size), 0);
    let digest = *blake3::hash(&bytes).as_bytes();
    (bytes, Root { generation, size, digest, layout })
}

/// The digests of a table whose root the manifest holds; `None` when the bytes are not that table.
#[must_use]
pub fn decode_table(bytes: &[u8], root: Root) -> Option<Vec<PageDigest>> {
    if bytes.len() != root.layout.table_bytes(root.size) || blake3::hash(bytes) != root.digest {
        return None;
    }
    let digests = bytes.chunks_exact(8).take(root.layout.pages(root.size) as usize).map(|entry| {
        let (state, crc) = entry.split_at(4);
        let crc = u32::from_le_bytes(crc.try_into().ok()?);
        match state {
            [1, 0, 0, 0] => Some(PageDigest::Crc(Slot::First, crc)),
            [3, 0, 0, 0] => Some(PageDigest::Crc(Slot::Second, crc)),
            [2, 0, 0, 0] => Some(PageDigest::Absent),
            _ => None,
        }
    });
    digests.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> Seed {
        Seed::new(ReplicaId::new([7; 16]).unwrap(), DiskId::new(1).unwrap())
    }

    #[test]
    fn a_block_is_bound_to_its_place_its_time_and_its_owner() {
        let data = [5; BLOCK as usize];
        let right = seed().block(3, Lsn(9), &data);
        assert_ne!(right, seed().block(4, Lsn(9), &data));
        assert_ne!(right, seed().block(3, Lsn(8), &data));
        let other = Seed::new(ReplicaId::new([7; 16]).unwrap(), DiskId::new(2).unwrap());
        assert_ne!(right, other.block(3, Lsn(9), &data));
    }

    #[test]
    fn a_page_comes_back_only_whole_and_from_its_own_place() {
        let seal = BlockSeal { generation: 3, counter: 1 << 40, tag: [6; 16] };
        for (layout, last, seal) in [(Layout::Plain, 339, None), (Layout::AtRest, 101, Some(seal))] {
            let mut page = Page::new(4, layout);
            let entry = Entry { lsn: Lsn(77), crc: 0xdead_beef, seal };
            page.set(last, entry);
            page.set(0, Entry { seal: None, ..entry });
            let (bytes, digest) = page.seal(Slot::Second);
            let bytes: Box<[u8; PAGE_BYTES]> = Box::new(bytes.try_into().unwrap());
            let page = Page::parse(bytes.clone(), 4, digest, layout).unwrap();
            assert_eq!((page.entry(last), page.entry(0)), (entry, Entry { seal: None, ..entry }));
            assert_eq!(layout.blocks(), last as u64 + 1);
            assert_eq!(Page::parse(bytes.clone(), 5, digest, layout), None);
            assert_eq!(Page::parse(bytes.clone(), 4, PageDigest::Crc(Slot::Second, 1), layout), None);
            let other = if layout == Layout::Plain { Layout::AtRest } else { Layout::Plain };
            assert_eq!(Page::parse(bytes.clone(), 4, digest, other), None);
            for at in (0..PAGE_BYTES).step_by(7) {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x10;
                assert_eq!(Page::parse(bytes, 4, digest, layout), None, "flip at {at}");
            }
        }
    }

    #[test]
    fn a_table_comes_back_only_under_its_root() {
        let size = 5 * Layout::Plain.covers() - 512;
        let digest = |n| if n % 2 == 0 { PageDigest::Crc(Slot::First, n) } else { PageDigest::Crc(Slot::Second, n) };
        let digests: Vec<_> = (0..5).map(|n| if n == 2 { PageDigest::Absent } else { digest(n) }).collect();
        let (bytes, root) = encode_table(3, size, Layout::Plain, &digests);
        assert_eq!(Slot::First.offset(1), 2 * PAGE_BYTES as u64);
        assert_eq!(Slot::First.other().offset(1), 3 * PAGE_BYTES as u64);
        assert_eq!(decode_table(&bytes, root), Some(digests));
        let mut flipped = bytes.clone();
        flipped[3] ^= 1;
        assert_eq!(decode_table(&flipped, root), None);
        assert_eq!(decode_table(&bytes[..8], root), None);
    }
}
