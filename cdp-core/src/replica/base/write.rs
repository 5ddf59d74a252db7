//! Making a base: one ascending pass over a disk, which can be left at a checkpoint and gone on with there.

use super::super::files::BASE_DIRECTORY;
use super::super::sidecar::{Entry, Layout, Page, PageDigest, Root, Seed, Slot, TableBegin};
use super::gather::Gather;
use super::{FIRST_GENERATION, file_names, is_piece, is_zero, seal_block, write_table};
use crate::media::{File, MediaError, MediaErrorKind, Operation, Storage};
use crate::trust::{BlockPlace, BlockSealer, KeyError, Keyring};
use crate::types::{BLOCK, DiskId, Lsn, ReplicaId};
use std::sync::Arc;

/// Writes a base from the first byte to the last.
#[derive(Debug)]
pub struct BaseWriter {
    pub(super) disk: DiskId,
    pub(super) image: Arc<dyn File>,
    pub(super) sidecar: Arc<dyn File>,
    pub(super) seed: Seed,
    /// What seals it at rest.
    pub(super) sealer: Option<BlockSealer>,
    pub(super) size: u64,
    pub(super) at: u64,
    pub(super) page: Option<Page>,
    /// Of the pages that are closed: all before the open one.
    pub(super) digests: Vec<PageDigest>,
    pub(super) table: TableBegin,
    pub(super) stored: u64,
    /// Of the image, and not written.
    pub(super) gather: Gather,
    /// The image holds the bytes already: only pages are written.
    pub(super) adopts: bool,
}

impl BaseWriter {
    /// Begins the base of a disk; what is left of an earlier attempt is removed.
    ///
    /// # Errors
    /// When the media fail.
    pub fn create(storage: &dyn Storage, replica: ReplicaId, disk: DiskId, size: u64) -> Result<Self, MediaError> {
        let (image, sidecar) = file_names(disk);
        for name in [&image, &sidecar] {
            match storage.remove(name) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        let image = storage.create_streamed(&image)?;
        image.set_len(size.next_multiple_of(BLOCK))?;
        let sidecar = storage.create(&sidecar)?;
        storage.sync_dir(BASE_DIRECTORY)?;
        Ok(Self::on((disk, Seed::new(replica, disk)), image, sidecar, size))
    }

    /// At the beginning of a disk.
    pub(super) fn on((disk, seed): (DiskId, Seed), image: Arc<dyn File>, sidecar: Arc<dyn File>, size: u64) -> Self {
        let (digests, table) = (Vec::new(), TableBegin::default());
        let (at, stored, gather) = (0, 0, Gather::default());
        let (sealer, page, adopts) = (None, None, false);
        Self { disk, image, sidecar, seed, sealer, size, at, page, digests, table, stored, gather, adopts }
    }

    /// The same, sealed at rest by the newest key on the ring of the store's writer. Before the first byte.
    ///
    /// # Errors
    /// When no key on the ring was drawn by this process.
    pub fn at_rest(self, keys: &Keyring) -> Result<Self, KeyError> {
        Ok(Self { sealer: Some(keys.block_sealer(None)?), ..self })
    }

    pub(super) fn layout(&self) -> Layout {
        if self.sealer.is_some() { Layout::AtRest } else { Layout::Plain }
    }

    /// Where the next bytes belong.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The image's file, for whoever syncs what was written while more is being written.
    #[must_use]
    pub fn image(&self) -> Arc<dyn File> {
        Arc::clone(&self.image)
    }

    /// Bytes that take room in the image, the few that are not written yet too.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored
    }

    /// The next bytes of the disk, as they were when the write order had reached `lsn`. Whole blocks, but for the disk's last.
    ///
    /// # Errors
    /// When the media fail, or they are no such bytes.
    pub fn data(&mut self, data: &[u8], lsn: Lsn) -> Result<(), MediaError> {
        self.check(data.len() as u64)?;
        if self.sealer.is_some() {
            return self.sealed_data(data, lsn);
        }
        // Blocks of zeros stay holes: runs of others are written with one call.
        let mut run = 0;
        let mut at = 0;
        let begin = self.at;
        for block in data.chunks(BLOCK as usize) {
            if is_zero(block) {
                self.store(begin, &data[..at], run)?;
                run = at + block.len();
            }
            let (number, place) = self.place(begin + at as u64)?;
            let crc = if block.len() == BLOCK as usize {
                self.seed.block(number, lsn, block)
            } else {
                let mut padded = [0; BLOCK as usize];
                padded[..block.len()].copy_from_slice(block);
                self.seed.block(number, lsn, &padded)
            };
            self.open_page().set(place, Entry { lsn, crc, seal: None });
            at += block.len();
        }
        self.store(begin, data, run)?;
        self.at = begin + data.len() as u64;
        Ok(())
    }

    /// The same, sealed: whole blocks, also the disk's last.
    fn sealed_data(&mut self, data: &[u8], lsn: Lsn) -> Result<(), MediaError> {
        let begin = self.at;
        let mut blocks = data.to_vec();
        blocks.resize(data.len().next_multiple_of(BLOCK as usize), 0);
        let mut run = 0;
        for at in (0..blocks.len()).step_by(BLOCK as usize) {
            let (number, place) = self.place(begin + at as u64)?;
            let block_place = BlockPlace { disk: self.disk, block: number, lsn };
            let block = &mut blocks[at..at + BLOCK as usize];
            let is_hole = is_zero(block);
            let entry = seal_block(self.sealer.as_ref(), self.seed, block_place, block);
            self.open_page().set(place, entry);
            if is_hole {
                self.store(begin, &blocks[..at], run)?;
                run = at + BLOCK as usize;
            }
        }
        self.store(begin, &blocks, run)?;
        self.at = begin + data.len() as u64;
        Ok(())
    }

    /// The next `length` bytes of the disk are zeros. Whole blocks, but for the disk's end.
    ///
    /// # Errors
    /// When the media fail, or the disk has no such bytes.
    pub fn zeros(&mut self, length: u64, lsn: Lsn) -> Result<(), MediaError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        self.check(length)?;
        let end = self.at + length;
        while self.at < end {
            // A page that would hold nothing but zeros is not written at all.
            let covers = self.layout().covers();
            let page_end = ((self.at / covers + 1) * covers).min(self.size);
            if self.at.is_multiple_of(covers) && end >= page_end {
                self.close_page()?;
                self.push(PageDigest::Absent);
                self.at = page_end;
            } else {
                let step = (end.min(page_end) - self.at).min(ZEROS.len() as u64);
                self.data(&ZEROS[..step as usize], lsn)?;
            }
        }
        Ok(())
    }

    /// What lies behind the disk's end would be written for ever, and what ends within a block be covered by the checksum of another.
    fn check(&self, length: u64) -> Result<(), MediaError> {
        if is_piece(self.size, self.at, length) {
            return Ok(());
        }
        let message = format!("{length} bytes are no next piece of a disk of {}", self.size);
        Err(MediaError::new(MediaErrorKind::Io, Operation::Write, self.image.path(), self.at, &message))
    }

    /// Ends the pass: everything is durable when this returns, but for the root, which belongs into the manifest.
    ///
    /// # Errors
    /// When the media fail.
    pub fn finish(mut self, storage: &dyn Storage, lsn: Lsn) -> Result<Root, MediaError> {
        self.zeros(self.size - self.at, lsn)?;
        self.close_page()?;
        self.gather.write(self.image.as_ref())?;
        self.sidecar.sync()?;
        self.image.sync()?;
        let root = write_table(storage, self.disk, FIRST_GENERATION, (self.size, self.layout()), &self.digests)?;
        storage.sync_dir(BASE_DIRECTORY)?;
        Ok(root)
    }

    fn store(&mut self, begin: u64, data: &[u8], from: usize) -> Result<(), MediaError> {
        if from < data.len() && !self.adopts {
            self.gather.add(self.image.as_ref(), begin + from as u64, &data[from..])?;
            self.stored += (data.len() - from) as u64;
        }
        Ok(())
    }

    /// The number of the block at `offset`, and its place in its page, which is made the open one.
    fn place(&mut self, offset: u64) -> Result<(u64, usize), MediaError> {
        let (number, blocks) = (offset / BLOCK, self.layout().blocks());
        if self.page.as_ref().is_some_and(|page| page.number() != number / blocks) {
            self.close_page()?;
        }
        Ok((number, (number % blocks) as usize))
    }

    fn open_page(&mut self) -> &mut Page {
        let (number, layout) = (self.digests.len() as u64, self.layout());
        self.page.get_or_insert_with(|| Page::new(number, layout))
    }

    pub(super) fn close_page(&mut self) -> Result<(), MediaError> {
        if let Some(mut page) = self.page.take() {
            let offset = Slot::First.offset(page.number());
            let (bytes, digest) = page.seal(Slot::First);
            self.sidecar.write_all_at(offset, bytes)?;
            self.push(digest);
        }
        Ok(())
    }

    fn push(&mut self, digest: PageDigest) {
        self.table.push(digest);
        self.digests.push(digest);
    }
}
