//! A base image with its sidecar: the disk as it was below everything that the journal holds.
//!
//! [`BaseWriter`] makes one in a single ascending pass (seeding), and goes on at its last [`Checkpoint`] after a crash; [`Adoption`] makes
//! one of an image that was there. [`Base`] reads it and never gives a byte that does not verify.

mod adopt;
mod gather;
mod resume;
mod write;

pub use self::adopt::{AdoptError, Adoption};
pub use self::resume::{Checkpoint, ResumeError};
pub use self::write::BaseWriter;

use super::files::BaseFile;
use super::sidecar::{self, Entry, Layout, PAGE_BYTES, Page, PageDigest, Root, Seed};
use crate::media::{File, MediaError, Storage};
use crate::trust::{BlockPlace, BlockSealer, KeyError, Keyring};
use crate::types::{BLOCK, DiskId, Extent, ReplicaId, SECTOR};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Pages of the sidecar kept in memory by an open base: 4 MiB, which cover 1.4 GB of the disk.
const PAGES_CACHED: usize = 1024;

/// Why a base cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BaseError {
    /// The media failed.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The digest table is not the one the manifest names.
    #[error("{path} is damaged: its digest table does not match the root in the manifest")]
    Table {
        /// The sidecar.
        path: String,
    },
    /// A page of checksums is damaged, or of another time or place.
    #[error("{path} is damaged: page {page} at byte {offset} does not match its digest")]
    Page {
        /// The sidecar.
        path: String,
        /// Which page.
        page: u64,
        /// Where.
        offset: u64,
    },
    /// The image has another length than the base it is of.
    #[error("{path} is damaged: it has {found} bytes, expected {expected}")]
    Length {
        /// The image.
        path: String,
        /// What the base's size makes it.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// It is sealed at rest, and the key is not there: nothing is wrong with it.
    #[error("{path}: {source}")]
    AtRest {
        /// The image.
        path: String,
        /// Why it does not open.
        source: KeyError,
    },
    /// A block is what was written, as far as its checksum says, and does not open.
    #[error(
        "{path} is damaged: the block at byte {offset} does not open: its bytes or its place are not those that were sealed"
    )]
    NotOpened {
        /// The image.
        path: String,
        /// Where.
        offset: u64,
    },
    /// A block is not what was written.
    #[error("{path} is damaged: the block at byte {offset} has CRC32C {found:08x}, expected {expected:08x}")]
    Block {
        /// The image.
        path: String,
        /// Where.
        offset: u64,
        /// What the sidecar says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
}

/// The names of a disk's image and sidecar.
#[must_use]
pub fn file_names(disk: DiskId) -> (String, String) {
    (BaseFile::Image(disk).path(), BaseFile::Sidecar(disk).path())
}

/// The name of the digest table of a disk's base in that generation; every other one has the same.
#[must_use]
pub fn table_name(disk: DiskId, generation: u64) -> String {
    BaseFile::table(disk, generation).path()
}

/// The generation of a base that was just copied.
pub const FIRST_GENERATION: u64 = 1;

/// Writes the digest table of a state of the base, durably but for the directory.
pub(super) fn write_table(
    storage: &dyn Storage,
    disk: DiskId,
    generation: u64,
    (size, layout): (u64, Layout),
    digests: &[PageDigest],
) -> Result<Root, MediaError> {
    let name = table_name(disk, generation);
    let (bytes, root) = sidecar::encode_table(generation, size, layout, digests);
    match storage.remove(&name) {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    let file = storage.create(&name)?;
    file.write_all_at(0, &bytes)?;
    file.sync()?;
    Ok(root)
}

/// Seals a block in place, if its base is sealed at rest and it is not all zeros; gives what a page says of it.
pub(super) fn seal_block(sealer: Option<&BlockSealer>, seed: Seed, place: BlockPlace, bytes: &mut [u8]) -> Entry {
    let seal = sealer.filter(|_| !is_zero(bytes)).map(|sealer| sealer.seal(place, bytes));
    Entry { lsn: place.lsn, crc: seed.block(place.block, place.lsn, bytes), seal }
}

/// Whether all bytes are zero; written so that the compiler compares words.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Data rarely begins with a run of zeros: most blocks are decided by their first bytes.
    let (head, rest) = bytes.split_at(bytes.len().min(64));
    head.iter().all(|byte| *byte == 0)
        && rest.chunks(256).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Whether so many bytes at `offset` can be the next piece of a first copy of a disk of `size` bytes: none lies behind its end, and they
/// are whole blocks, but for its last one.
#[must_use]
pub fn is_piece(size: u64, offset: u64, length: u64) -> bool {
    size.checked_sub(offset).is_some_and(|left| length == left || length < left && length.is_multiple_of(BLOCK))
}

/// An open base. Any number of readers at once.
#[derive(Debug)]
pub struct Base {
    image: Arc<dyn File>,
    sidecar: Arc<dyn File>,
    seed: Seed,
    root: Root,
    digests: Vec<PageDigest>,
    pages: Vec<Mutex<Option<Arc<Page>>>>,
    /// Blocks that a merge writes only parts of, by number. Bound: at most two for each record that is merged, since all between its
    /// ends is whole, of which there are so many as [`merge_end`](crate::policy::retention::merge_end) says, and no more than the blocks
    /// of the disk. They are kept until the merge is through, in about 128 bytes each.
    torn: RwLock<BTreeMap<u64, Torn>>,
    disk: DiskId,
    keys: Arc<Keyring>,
}

/// How a block is read that a merge may have torn.
#[derive(Clone, Debug)]
enum Torn {
    /// What stays of it proves itself.
    Rest(Rest),
    /// It is sealed at rest: all of it lies elsewhere.
    Copy(BlockCopy),
}

/// A block as a merge makes it, beside the image.
#[derive(Clone, Debug)]
pub struct BlockCopy {
    /// What it is in.
    pub file: Arc<dyn File>,
    /// Where.
    pub offset: u64,
    /// What the new page says of it.
    pub entry: Entry,
}

/// What of a block a merge leaves as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rest {
    /// The sectors that it changes, a bit each; the rest stays.
    pub changed: u8,
    /// CRC32C of the sectors that stay, in order.
    pub crc: u32,
}

impl Rest {
    /// Of a block's bytes, before or after the change.
    #[must_use]
    pub fn of(changed: u8, block: &[u8]) -> Self {
        let stays = block.chunks(SECTOR as usize).enumerate().filter(|(sector, _)| changed >> sector & 1 == 0);
        Self { changed, crc: stays.fold(0, |crc, (_, bytes)| crc32c::crc32c_append(crc, bytes)) }
    }
}

impl Base {
    /// Opens the base whose root the manifest holds.
    ///
    /// # Errors
    /// When a file is missing or the digest table is not the root's.
    pub fn open(storage: &dyn Storage, replica: ReplicaId, disk: DiskId, root: Root) -> Result<Self, BaseError> {
        Self::open_with(storage, replica, disk, root, Arc::default())
    }

    /// The same with the keys of the replica's manifest, for one that is sealed at rest; who merges shares those of the writer.
    ///
    /// # Errors
    /// When a file is missing or the digest table is not the root's. Keys are looked for when a block is read.
    pub fn open_with(
        storage: &dyn Storage,
        replica: ReplicaId,
        disk: DiskId,
        root: Root,
        keys: Arc<Keyring>,
    ) -> Result<Self, BaseError> {
        let (image, sidecar) = file_names(disk);
        let (image, sidecar) = (storage.open(&image, false)?, storage.open(&sidecar, false)?);
        let (expected, found) = (root.size.next_multiple_of(BLOCK), image.len()?);
        // A merge makes room for a disk that grew before the manifest says so.
        if found < expected {
            return Err(BaseError::Length { path: image.path().to_owned(), expected, found });
        }
        let table = storage.open(&table_name(disk, root.generation), false)?;
        let mut bytes = vec![0; root.layout.table_bytes(root.size)];
        // One that ends early is another one, not a failure of the media.
        let length = table.read_at(0, &mut bytes)?;
        let Some(digests) = sidecar::decode_table(&bytes[..length], root) else {
            return Err(BaseError::Table { path: table.path().to_owned() });
        };
        let pages = (0..PAGES_CACHED.min(digests.len())).map(|_| Mutex::new(None)).collect();
        let torn = RwLock::default();
        Ok(Self { image, sidecar, seed: Seed::new(replica, disk), root, digests, pages, torn, disk, keys })
    }

    /// A merge is about to change parts of a block: from now on it may be found old, new or torn, and what stays is what counts.
    /// Those who read it lay the journal over what changes.
    pub fn expect_torn(&self, block: u64, rest: Rest) {
        self.torn.write().unwrap_or_else(PoisonError::into_inner).insert(block, Torn::Rest(rest));
    }

    /// The same of a base that is sealed at rest: what stays of the block is read from its copy, which is on media before the block
    /// is touched.
    pub fn expect_torn_sealed(&self, block: u64, copy: BlockCopy) {
        self.torn.write().unwrap_or_else(PoisonError::into_inner).insert(block, Torn::Copy(copy));
    }

    /// Whether a block's bytes are those that an entry is of.
    pub(super) fn is_right(&self, block: u64, entry: &Entry, bytes: &[u8]) -> bool {
        self.seed.block(block, entry.lsn, bytes) == entry.crc
    }

    /// How much its sidecar says.
    pub(super) fn layout(&self) -> Layout {
        self.root.layout
    }

    /// What seals its blocks, if it is sealed at rest: the key of this generation.
    pub(super) fn sealer(&self, generation: Option<u32>) -> Result<Option<BlockSealer>, BaseError> {
        if self.layout() == Layout::Plain {
            return Ok(None);
        }
        let failed = |source| BaseError::AtRest { path: self.image.path().to_owned(), source };
        self.keys.block_sealer(generation).map(Some).map_err(failed)
    }

    /// Whether it is sealed at rest and there is no key at all: then checksums are all that can be looked at.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.layout() == Layout::AtRest && self.keys.is_empty()
    }

    /// The state that the manifest names: two bases of a disk that have the same root hold the same bytes.
    pub(super) fn root(&self) -> Root {
        self.root
    }

    /// Which pages there are.
    pub(super) fn digests(&self) -> &[PageDigest] {
        &self.digests
    }

    /// Bytes of the disk when the base was made.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.root.size
    }

    /// Fills `buffer` from `offset`; what lies after the base's end is zeros.
    ///
    /// # Errors
    /// When the media fail or a byte does not verify; nothing of `buffer` may be used then.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BaseError> {
        self.read_as(offset, buffer, true)
    }

    /// Reads as much and verifies it, also where there is no key to open it: `buffer` may then hold what is sealed.
    ///
    /// # Errors
    /// When the media fail or a byte does not verify.
    pub fn verify(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BaseError> {
        self.read_as(offset, buffer, !self.is_shut())
    }

    fn read_as(&self, offset: u64, buffer: &mut [u8], open: bool) -> Result<(), BaseError> {
        let inside = self.root.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (buffer, after) = buffer.split_at_mut(inside);
        after.fill(0);
        let wanted = Extent::new(offset, buffer.len() as u64);
        let mut at = offset;
        // Page by page: an absent one needs no media, a present one verifies all blocks that are touched.
        while at < wanted.end() {
            let covers = self.layout().covers();
            let end = ((at / covers + 1) * covers).min(wanted.end());
            let piece = &mut buffer[(at - offset) as usize..(end - offset) as usize];
            match self.page(at / covers)? {
                Some(page) => self.read_blocks(&page, at, piece, open)?,
                None => piece.fill(0),
            }
            at = end;
        }
        Ok(())
    }

    /// The runs of a range, in order: whether each may hold anything but zeros. What the image says is a hole is one only if
    /// the sidecar says so too: a hole where data was is damage, which reading finds.
    ///
    /// # Errors
    /// When the media fail or a page of checksums does not verify.
    pub fn runs(&self, range: Extent) -> Result<Vec<(Extent, bool)>, BaseError> {
        let mut runs: Vec<(Extent, bool)> = Vec::new();
        let mut add = |extent: Extent, data: bool| match runs.last_mut().filter(|last| last.1 == data) {
            Some(last) => last.0.length += extent.length,
            None => runs.push((extent, data)),
        };
        let inside = Extent::new(range.offset, self.root.size.saturating_sub(range.offset).min(range.length));
        let mut at = inside.offset;
        while at < inside.end() {
            let covers = self.layout().covers();
            let end = ((at / covers + 1) * covers).min(inside.end());
            let here = Extent::new(at, end - at);
            match self.page(at / covers)? {
                None => add(here, false),
                Some(page) => self.runs_of_page(&page, here, &mut add)?,
            }
            at = end;
        }
        if inside.end() < range.end() {
            add(Extent::new(inside.end(), range.end() - inside.end()), false);
        }
        Ok(runs)
    }

    fn runs_of_page(&self, page: &Page, range: Extent, add: &mut impl FnMut(Extent, bool)) -> Result<(), BaseError> {
        static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        let mut at = range.offset;
        while at < range.end() {
            let data = self.image.next_data(at)?.and_then(|data| data.intersect(&range));
            let data = data.unwrap_or(Extent::new(range.end(), 0));
            while at < data.offset {
                let end = ((at / BLOCK + 1) * BLOCK).min(data.offset);
                let Entry { lsn, crc, .. } = page.entry((at / BLOCK % self.layout().blocks()) as usize);
                add(Extent::new(at, end - at), self.seed.block(at / BLOCK, lsn, &ZEROS) != crc);
                at = end;
            }
            if !data.is_empty() {
                add(data, true);
                at = data.end();
            }
        }
        Ok(())
    }

    /// Bytes that image and sidecar hold, holes not counted.
    ///
    /// # Errors
    /// When the media fail.
    pub fn stored_bytes(&self) -> Result<u64, BaseError> {
        let mut bytes = 0;
        for file in [&self.image, &self.sidecar] {
            let mut at = 0;
            while let Some(extent) = file.next_data(at)? {
                bytes += extent.length;
                at = extent.end();
            }
        }
        Ok(bytes)
    }

    fn read_blocks(&self, page: &Page, offset: u64, buffer: &mut [u8], open: bool) -> Result<(), BaseError> {
        let wanted = Extent::new(offset, buffer.len() as u64);
        let blocks = wanted.widen(BLOCK);
        if blocks == wanted {
            self.image.read_exact_at(offset, buffer)?;
            return self.check(page, offset, buffer, open);
        }
        let mut whole = vec![0; blocks.length as usize];
        self.image.read_exact_at(blocks.offset, &mut whole)?;
        self.check(page, blocks.offset, &mut whole, open)?;
        buffer.copy_from_slice(&whole[(offset - blocks.offset) as usize..][..buffer.len()]);
        Ok(())
    }

    /// Verifies blocks and opens what is sealed.
    fn check(&self, page: &Page, offset: u64, data: &mut [u8], open: bool) -> Result<(), BaseError> {
        for (block, data) in (offset / BLOCK..).zip(data.chunks_exact_mut(BLOCK as usize)) {
            let mut entry = page.entry((block % self.layout().blocks()) as usize);
            let found = self.seed.block(block, entry.lsn, data);
            if found != entry.crc {
                match self.torn(block) {
                    Some(Torn::Rest(rest)) if Rest::of(rest.changed, data) == rest => continue,
                    Some(Torn::Copy(copy)) => {
                        copy.file.read_exact_at(copy.offset, data)?;
                        entry = copy.entry;
                        self.check_crc(block, &entry, data)?;
                    }
                    _ => self.check_crc(block, &entry, data)?,
                }
            }
            if open {
                self.open_block(block, &entry, data)?;
            }
        }
        Ok(())
    }

    fn check_crc(&self, block: u64, entry: &Entry, data: &[u8]) -> Result<(), BaseError> {
        let (found, expected) = (self.seed.block(block, entry.lsn, data), entry.crc);
        let path = || self.image.path().to_owned();
        if found == expected {
            Ok(())
        } else {
            Err(BaseError::Block { path: path(), offset: block * BLOCK, expected, found })
        }
    }

    fn open_block(&self, block: u64, entry: &Entry, data: &mut [u8]) -> Result<(), BaseError> {
        let path = || self.image.path().to_owned();
        let not_opened = || BaseError::NotOpened { path: path(), offset: block * BLOCK };
        match (self.layout(), &entry.seal) {
            (Layout::Plain, _) => Ok(()),
            (Layout::AtRest, None) => {
                if is_zero(data) {
                    Ok(())
                } else {
                    Err(not_opened())
                }
            }
            (Layout::AtRest, Some(seal)) => {
                let place = BlockPlace { disk: self.disk, block, lsn: entry.lsn };
                let opened = self.keys.open_block(place, seal, data);
                opened.map_err(|source| BaseError::AtRest { path: path(), source })?.map_err(|_| not_opened())
            }
        }
    }

    fn torn(&self, block: u64) -> Option<Torn> {
        self.torn.read().unwrap_or_else(PoisonError::into_inner).get(&block).cloned()
    }

    /// A page of checksums; `None`: all its blocks are zeros.
    pub(super) fn page(&self, number: u64) -> Result<Option<Arc<Page>>, BaseError> {
        let digest = self.digests[number as usize];
        let PageDigest::Crc(place, _) = digest else { return Ok(None) };
        // Direct-mapped: a page has one place; who comes later takes it.
        let slot = &self.pages[number as usize % self.pages.len()];
        let cached = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(page) = cached.filter(|page| page.number() == number) {
            return Ok(Some(page));
        }
        let offset = place.offset(number);
        let mut bytes = Box::new([0; PAGE_BYTES]);
        self.sidecar.read_exact_at(offset, bytes.as_mut_slice())?;
        let page = Page::parse(bytes, number, digest, self.layout()).ok_or_else(|| BaseError::Page {
            path: self.sidecar.path().to_owned(),
            page: number,
            offset,
        })?;
        let page = Arc::new(page);
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&page));
        Ok(Some(page))
    }
}

#[cfg(test)]
mod tests;
