//! Merging history into the bases: what the oldest records left of each block goes into the image, their segments can go.
//!
//! In place, and right after a crash at any moment, because nothing that is needed is ever changed:
//!
//! 1. The manifest says that a merge up to an LSN is under way ([`StampedMoment`]). From then on a block of a base may be found
//!    old, new or torn. Every reader lays the journal over the base, and the segments of the merge are all still there.
//! 2. Blocks are written, ascending; pages of checksums go to the place that is not in use. Of a block that is changed in parts,
//!    the [`Rest`] is made durable first, in the file [`RESTS`]: the bytes that stay verify by that until the merge is done.
//! 3. Images and sidecars are synced, then the new digest tables, in the file that is not in use.
//! 4. The manifest names the new roots, and no merge. When that is durable the segments are forgotten.
//!
//! Found with a merge under way, the merge is simply done again, from the same segments and the same old pages.
//!
//! The machine does a bounded piece of the work in each [`step`](Merge::step); whoever drives it chooses the rate, and edits the
//! manifest before and after.

use super::base::{self, Base, BlockCopy, Rest};
use super::files::BASE_DIRECTORY;
use super::kept::Space;
use super::session::SessionError;
use super::sidecar::{self, Entry, Page, PageDigest, Seed, Slot};
use super::view::Bases;
use crate::frame::Note;
use crate::journal::{BaseInfo, DiskInfo, Manifest, Origin, PathElement, ReadError, StampedMoment, View};
use crate::media::{File, MediaError, Storage};
use crate::mistakes::{self, Mistake};
use crate::trust::{BlockPlace, BlockSealer};
use crate::types::{BLOCK, DiskId, Extent, Lsn, Now, ReplicaId, SECTOR};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What stays of blocks that a merge changes in parts.
pub const RESTS: &str = "base/merge.rests";
/// Memory for region maps, in bytes: a merge goes through a disk once, region by region.
const REGIONS_BYTES: u64 = 16 << 20;
/// A record of [`RESTS`], in bytes: disk (2), changed (1), zero (1), CRC of what stays (4), block (8), upto (8), zeros (4), CRC of
/// the record (4).
pub(super) const REST_BYTES: usize = 32;
/// A record of a block that is sealed at rest, before its copy: the same up to `upto`, but for 1 in the place of the zero and what
/// a page will say of the block, whose CRC stands in the place of the CRC of what stays; CRC of the record.
pub(super) const COPY_BYTES: usize = 64;
/// What is read of [`RESTS`] at once, in bytes.
const WINDOW: usize = 1 << 20;
/// The media are told this long ahead, in bytes of the disk, what of the journal will be read: its places there are all over.
const AHEAD: u64 = 64 << 20;
const SECTORS: u64 = BLOCK / SECTOR;

/// Why a merge cannot go on. Nothing is lost: the next start does it again.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// What is to be merged cannot be read, or does not verify.
    #[error("a merge into the bases stops: {0}")]
    Read(#[from] ReadError),
    /// The base.
    #[error("a merge into the bases stops: {0}")]
    Base(#[from] base::BaseError),
    /// The store of the newest kept moment.
    #[error("a merge into the bases stops, the moment that is kept does not take what it replaces: {0}")]
    Kept(#[from] SessionError),
    /// The media.
    #[error("a merge into the bases stops: {0}")]
    Media(#[from] MediaError),
}

impl MergeError {
    /// Whether room is all that is lacking.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Media(error) => error.is_no_space(),
            Self::Kept(SessionError::NoSpace { .. }) => true,
            _ => false,
        }
    }
}

/// Tells bases what the manifest's merge may have torn. Call it before a base is read where the manifest names a merge.
///
/// # Errors
/// When the file that says so cannot be read.
pub fn expect_torn(storage: &dyn Storage, bases: &Bases, merge: StampedMoment) -> Result<(), MediaError> {
    let file = match storage.open(RESTS, false) {
        Err(error) if error.is_not_found() => return Ok(()),
        file => file?,
    };
    let (mut bytes, mut start) = (vec![0; WINDOW], 0);
    loop {
        let length = file.read_at(start, &mut bytes)?;
        let mut at = 0;
        // A record whose end is in the next window is looked at there.
        while at + REST_BYTES <= length && (length < WINDOW || at + COPY_BYTES + BLOCK as usize <= length) {
            at += expect_one(&bytes[at..length], (&file, start + at as u64), bases, merge.lsn);
        }
        start += at as u64;
        if length < WINDOW {
            return Ok(());
        }
    }
}

/// Tells a base what the record says that `bytes` begins with; gives how far the next one is. A torn record belongs to a block that
/// was not touched yet; one of another merge to blocks that are done.
fn expect_one(bytes: &[u8], (file, offset): (&Arc<dyn File>, u64), bases: &Bases, upto: Lsn) -> usize {
    if let Some((disk, block, entry, copy)) = decode_copy(bytes, upto)
        && let Some(base) = bases.get(disk)
        && base.is_right(block, &entry, copy)
    {
        base.expect_torn_sealed(block, BlockCopy { file: Arc::clone(file), offset: offset + COPY_BYTES as u64, entry });
        return COPY_BYTES + BLOCK as usize;
    }
    if let Some((disk, block, rest)) = decode_rest(&bytes[..REST_BYTES], upto)
        && let Some(base) = bases.get(disk)
    {
        base.expect_torn(block, rest);
    }
    REST_BYTES
}

/// Removes what a merge left that the manifest does not name any more.
///
/// # Errors
/// When the media fail.
pub fn clean_up(storage: &dyn Storage) -> Result<(), MediaError> {
    match storage.remove(RESTS) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn encode_rest(disk: DiskId, block: u64, rest: Rest, upto: Lsn) -> [u8; REST_BYTES] {
    let mut record = [0; REST_BYTES];
    record[..2].copy_from_slice(&disk.get().to_le_bytes());
    record[2] = rest.changed;
    record[4..8].copy_from_slice(&rest.crc.to_le_bytes());
    record[8..16].copy_from_slice(&block.to_le_bytes());
    record[16..24].copy_from_slice(&upto.0.to_le_bytes());
    let crc = crc32c::crc32c(&record[..28]);
    record[28..].copy_from_slice(&crc.to_le_bytes());
    record
}

pub(super) fn decode_rest(record: &[u8], upto: Lsn) -> Option<(DiskId, u64, Rest)> {
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let long = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let whole = word(28)? == crc32c::crc32c(record.get(..28)?) && long(16)? == upto.0;
    let disk = DiskId::new(u16::from_le_bytes([*record.first()?, *record.get(1)?]))?;
    whole.then_some((disk, long(8)?, Rest { changed: record[2], crc: word(4)? }))
}

/// The record before a copy.
pub(super) fn encode_copy(disk: DiskId, block: u64, changed: u8, entry: Entry, upto: Lsn) -> [u8; COPY_BYTES] {
    let mut said = [0; sidecar::SEALED_ENTRY_BYTES];
    sidecar::encode_entry(entry, &mut said);
    let (lsn, crc, seal) = (&said[..8], &said[8..12], &said[12..]);
    let mut record = [0; COPY_BYTES];
    record[..2].copy_from_slice(&disk.get().to_le_bytes());
    (record[2], record[3]) = (changed, 1);
    record[4..8].copy_from_slice(crc);
    record[8..16].copy_from_slice(&block.to_le_bytes());
    record[16..24].copy_from_slice(&upto.0.to_le_bytes());
    record[24..32].copy_from_slice(lsn);
    record[32..60].copy_from_slice(seal);
    let crc = crc32c::crc32c(&record[..60]);
    record[60..].copy_from_slice(&crc.to_le_bytes());
    record
}

/// What such a record says, and the copy behind it.
pub(super) fn decode_copy(bytes: &[u8], upto: Lsn) -> Option<(DiskId, u64, Entry, &[u8])> {
    let record = bytes.get(..COPY_BYTES)?;
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let long = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let whole = record[3] == 1 && word(60)? == crc32c::crc32c(&record[..60]) && long(16)? == upto.0;
    let copy = bytes.get(COPY_BYTES..COPY_BYTES + BLOCK as usize).filter(|_| whole)?;
    let disk = DiskId::new(u16::from_le_bytes([record[0], record[1]]))?;
    let said = [&record[24..32], &record[4..8], &record[32..60]].concat();
    Some((disk, long(8)?, sidecar::decode_entry(&said), copy))
}

/// A merge under way.
#[derive(Debug)]
pub struct Merge {
    storage: Arc<dyn Storage>,
    info: StampedMoment,
    view: View,
    bases: Arc<Bases>,
    rests: Arc<dyn File>,
    rests_bytes: u64,
    /// The newest kept moment: gets what is replaced.
    kept: Option<Space>,
    waiting: VecDeque<Work>,
    done: Vec<Work>,
}

/// Where a batch's records go in [`RESTS`].
#[derive(Debug)]
struct RestsAt<'a> {
    file: &'a Arc<dyn File>,
    offset: u64,
}

/// One disk's part.
#[derive(Debug)]
struct Work {
    disk: DiskId,
    base: Arc<Base>,
    image: Arc<dyn File>,
    sidecar: Arc<dyn File>,
    seed: Seed,
    /// What seals it at rest, if it is.
    sealer: Option<BlockSealer>,
    size: u64,
    /// Pages as they will be.
    digests: Vec<PageDigest>,
    /// The next page.
    page: u64,
    /// What the media were told will be needed: everything before this byte of the disk.
    announced: u64,
}

/// What is written together.
#[derive(Debug, Default)]
struct Batch {
    rests: Vec<u8>,
    writes: Vec<(u64, Vec<u8>)>,
    punches: Vec<Extent>,
    pages: Vec<Page>,
    bytes: u64,
}

/// What the records of a merge do to one block.
#[derive(Clone, Copy, Debug)]
struct Change {
    lsn: Lsn,
    /// A bit for each sector.
    sectors: u8,
    discarded: u8,
}

impl Merge {
    /// The merge that the manifest names; that manifest is durable. `path` leads to its LSN, `bases` are those that everybody
    /// in this process reads. `kept` is the newest kept moment's store, if there is any: it gets what is replaced.
    ///
    /// # Errors
    /// When the journal does not reach that far, or the media fail.
    pub fn begin(
        storage: &Arc<dyn Storage>,
        manifest: &Manifest,
        info: StampedMoment,
        path: &[PathElement],
        bases: &Arc<Bases>,
        kept: Option<Space>,
    ) -> Result<Self, MergeError> {
        expect_torn(storage.as_ref(), bases, info)?;
        let rests = match storage.open(RESTS, true) {
            Err(error) if error.is_not_found() => storage.create(RESTS)?,
            file => file?,
        };
        storage.sync_dir(BASE_DIRECTORY)?;
        // What an earlier try wrote stays true: only whole records count, and they follow each other.
        let rests_bytes = rests.len()?.next_multiple_of(REST_BYTES as u64);
        let mut waiting = VecDeque::new();
        let reached = reached(path)?;
        // Of a disk that comes later there is nothing, and of one that is gone by then nothing is needed.
        let there = |disk: &&DiskInfo| disk.added <= info.lsn && disk.removed.is_none_or(|end| end > info.lsn);
        for disk in manifest.disks.iter().filter(there) {
            if let Some(base) = bases.get(disk.id) {
                // A key that the manifest says bases are sealed by: what it seals is never without it.
                let sealer = base.sealer(manifest.keys.last().map(|key| key.generation))?;
                let size = manifest.reach(disk).max(reached.get(&disk.id).copied().unwrap_or(0));
                let work = Work::new(storage.as_ref(), manifest.replica, disk.id, size, base)?;
                waiting.push_back(Work { sealer, ..work });
            }
        }
        let (storage, bases) = (Arc::clone(storage), Arc::clone(bases));
        let view = View::open(path, REGIONS_BYTES)?;
        Ok(Self { storage, info, view, bases, rests, rests_bytes, kept, waiting, done: Vec::new() })
    }

    /// Merges until about `budget` bytes were written; whether there is more to do.
    ///
    /// # Errors
    /// What cannot be read, or the media: then nothing more may be asked of this one.
    pub fn step(&mut self, now: Now, budget: u64) -> Result<bool, MergeError> {
        let Some(work) = self.waiting.front_mut() else { return Ok(false) };
        let mut batch = Batch::default();
        let rests = RestsAt { file: &self.rests, offset: self.rests_bytes };
        while batch.bytes < budget && work.page < work.digests.len() as u64 {
            work.announce(&self.view)?;
            let changed = work.gather(&self.view, self.bases.as_ref(), self.info.lsn, &mut batch, &rests)?;
            if let Some(kept) = &self.kept {
                for range in changed {
                    kept.copy(now, work.disk, range, &work.base)?;
                }
            }
        }
        let flushes = batch.bytes > 0 && !mistakes::is(Mistake::KeptNotFlushed);
        if let Some(kept) = self.kept.as_ref().filter(|_| flushes) {
            kept.flush(now)?;
        }
        if !batch.rests.is_empty() {
            self.rests.write_all_at(self.rests_bytes, &batch.rests)?;
            if !mistakes::is(Mistake::RestsNotSynced) {
                self.rests.sync()?;
            }
            self.rests_bytes += batch.rests.len() as u64;
        }
        work.write(batch)?;
        if work.page == work.digests.len() as u64 {
            self.done.extend(self.waiting.pop_front());
        }
        Ok(!self.waiting.is_empty())
    }

    /// Makes everything durable; gives the bases as the manifest has to name them, with no merge any more. To be called when
    /// [`Self::step`] had nothing more to do.
    ///
    /// # Errors
    /// When the media fail.
    pub fn finish(self, now: Now) -> Result<Vec<(DiskId, BaseInfo)>, MergeError> {
        if let Some(kept) = &self.kept {
            kept.close(now)?;
        }
        let mut bases = Vec::new();
        for work in &self.done {
            if !mistakes::is(Mistake::BasesNotSynced) {
                work.image.sync()?;
                work.sidecar.sync()?;
            }
            let generation = work.base.root().generation + 1;
            let root = base::write_table(
                self.storage.as_ref(),
                work.disk,
                generation,
                (work.size, work.base.layout()),
                &work.digests,
            )?;
            bases.push((work.disk, root.named(self.info.lsn)));
        }
        self.storage.sync_dir(BASE_DIRECTORY)?;
        Ok(bases)
    }
}

impl Work {
    fn new(
        storage: &dyn Storage,
        replica: ReplicaId,
        disk: DiskId,
        size: u64,
        base: &Arc<Base>,
    ) -> Result<Self, MediaError> {
        let (image, sidecar) = base::file_names(disk);
        let (image, sidecar) = (storage.open(&image, true)?, storage.open(&sidecar, true)?);
        let size = size.max(base.size());
        if image.len()? < size.next_multiple_of(BLOCK) {
            image.set_len(size.next_multiple_of(BLOCK))?;
        }
        let mut digests = base.digests().to_vec();
        digests.resize(base.layout().pages(size) as usize, PageDigest::Absent);
        let (base, seed) = (Arc::clone(base), Seed::new(replica, disk));
        Ok(Self { disk, base, image, sidecar, seed, sealer: None, size, digests, page: 0, announced: 0 })
    }

    /// Has fetched, while other pages are worked out, what those that follow will read.
    fn announce(&mut self, view: &View) -> Result<(), MergeError> {
        let at = self.page * self.base.layout().covers();
        while self.announced < (at + AHEAD).min(self.size) {
            let range = Extent::new(self.announced, (AHEAD / 4).min(self.size - self.announced));
            view.will_need(self.disk, range)?;
            self.announced = range.end();
        }
        Ok(())
    }

    /// Works out the next page: what its blocks become, and what is to be written for that. Gives the runs of blocks that change.
    fn gather(
        &mut self,
        view: &View,
        bases: &Bases,
        upto: Lsn,
        batch: &mut Batch,
        rests: &RestsAt<'_>,
    ) -> Result<Vec<Extent>, MergeError> {
        let (number, layout) = (self.page, self.base.layout());
        self.page += 1;
        let at = number * layout.covers();
        let end = (at + layout.covers()).min(self.size.next_multiple_of(BLOCK));
        let changes = changes(view, self.disk, Extent::new(at, end - at))?;
        if changes.iter().all(Option::is_none) && !self.ends_in(number) {
            return Ok(Vec::new());
        }
        let mut changed = Vec::new();
        let mut page = self.old_page(number)?;
        let mut next = 0;
        for run in changes.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let first = next;
            next += run.len();
            if run[0].is_none() {
                continue;
            }
            let offset = at + first as u64 * BLOCK;
            let mut data = vec![0; run.len() * BLOCK as usize];
            view.read(self.disk, offset, &mut data, bases)?;
            let blocks = data.chunks_exact_mut(BLOCK as usize).zip(run.iter().flatten());
            for (place, (block, change)) in (first..).zip(blocks) {
                let number = number * layout.blocks() + place as u64;
                let rest = Rest::of(change.sectors, block);
                let block_place = BlockPlace { disk: self.disk, block: number, lsn: change.lsn };
                let entry = base::seal_block(self.sealer.as_ref(), self.seed, block_place, block);
                page.set(place, entry);
                if change.sectors != u8::MAX {
                    self.keep(number, (rest, entry), block, upto, (&mut *batch, rests));
                }
            }
            changed.push(Extent::new(offset, data.len() as u64));
            batch.add(offset, data, run);
        }
        batch.pages.push(page);
        Ok(changed)
    }

    /// Keeps what stays of a block that is changed in parts, where it is found when the block is torn: before the block is written.
    fn keep(
        &self,
        block: u64,
        (rest, entry): (Rest, Entry),
        bytes: &[u8],
        upto: Lsn,
        (batch, rests): (&mut Batch, &RestsAt<'_>),
    ) {
        if self.sealer.is_none() {
            batch.rests.extend_from_slice(&encode_rest(self.disk, block, rest, upto));
            return self.base.expect_torn(block, rest);
        }
        // A cipher changes all of a block: what stays of it is read from a copy of what it is going to be.
        batch.rests.extend_from_slice(&encode_copy(self.disk, block, rest.changed, entry, upto));
        let offset = rests.offset + batch.rests.len() as u64;
        batch.rests.extend_from_slice(bytes);
        batch.bytes += bytes.len() as u64;
        self.base.expect_torn_sealed(block, BlockCopy { file: Arc::clone(rests.file), offset, entry });
    }

    /// Whether the base ends inside this page and is going to be longer: what is new of the page are zeros that nobody wrote.
    fn ends_in(&self, number: u64) -> bool {
        let blocks = self.base.size().div_ceil(BLOCK);
        let there = matches!(self.base.digests().get(number as usize), Some(PageDigest::Crc(..)));
        there && blocks / self.base.layout().blocks() == number && self.size.div_ceil(BLOCK) > blocks
    }

    /// The page as the manifest's root has it, to be changed.
    fn old_page(&self, number: u64) -> Result<Page, MergeError> {
        static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        let layout = self.base.layout();
        let (mut page, mut known) = (Page::new(number, layout), 0);
        if (number as usize) < self.base.digests().len()
            && let Some(old) = self.base.page(number)?
        {
            page = (*old).clone();
            // Of a base that stays as long as it is, its last page stays as it is too.
            let there = self.base.size().div_ceil(BLOCK) - number * layout.blocks();
            known = if self.ends_in(number) { there } else { layout.blocks() };
        }
        // Of a page that is there, what lies behind the disk's end stays as it is.
        let end = if known == 0 { layout.blocks() } else { self.size.div_ceil(BLOCK) - number * layout.blocks() };
        for place in known..end.min(layout.blocks()) {
            let crc = self.seed.block(number * layout.blocks() + place, Lsn::ZERO, &ZEROS);
            page.set(place as usize, Entry { lsn: Lsn::ZERO, crc, seal: None });
        }
        Ok(page)
    }

    /// Writes a batch. Needs no sync: until [`Merge::finish`] the manifest says that anything may have happened.
    fn write(&mut self, batch: Batch) -> Result<(), MediaError> {
        for (offset, data) in &batch.writes {
            self.image.write_all_at(*offset, data)?;
        }
        for range in batch.punches {
            self.image.punch(range)?;
        }
        for mut page in batch.pages {
            let number = page.number();
            let slot = match self.base.digests().get(number as usize) {
                Some(PageDigest::Crc(slot, _)) if mistakes::is(Mistake::PagesInPlace) => *slot,
                Some(PageDigest::Crc(slot, _)) => slot.other(),
                _ => Slot::First,
            };
            let (bytes, digest) = page.seal(slot);
            self.sidecar.write_all_at(slot.offset(number), bytes)?;
            self.digests[number as usize] = digest;
        }
        Ok(())
    }
}

impl Batch {
    /// Blocks that follow each other and all change. What reads as zeros because it was discarded takes no room.
    fn add(&mut self, offset: u64, data: Vec<u8>, changes: &[Option<Change>]) {
        self.bytes += data.len() as u64;
        let hole = |block: &[u8], change: &Option<Change>| {
            change.is_some_and(|change| change.discarded == u8::MAX) && base::is_zero(block)
        };
        let blocks: Vec<_> = data.chunks_exact(BLOCK as usize).zip(changes).map(|(b, c)| hole(b, c)).collect();
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| a == b) {
            let (from, to) = (at, at + run.len() * BLOCK as usize);
            at = to;
            let here = offset + from as u64;
            if run[0] {
                self.punches.push(Extent::new(here, (to - from) as u64));
            } else {
                self.writes.push((here, data[from..to].to_vec()));
            }
        }
    }
}

/// The largest sizes that disks had on the way: one that was cut since may have been longer at the moment up to which is merged.
fn reached(path: &[PathElement]) -> Result<BTreeMap<DiskId, u64>, ReadError> {
    let mut sizes = BTreeMap::new();
    for element in path {
        for event in element.reader.events(&element.snapshot)? {
            let counts = event.timeline == element.timeline && event.lsn <= element.upto;
            if let (true, Some(disk), Some(Note::Resize { from, to })) = (counts, event.disk, &event.note) {
                let size = sizes.entry(disk).or_insert(0);
                *size = (*from).max(*to).max(*size);
            }
        }
    }
    Ok(sizes)
}

/// What the journal does to each block of a range that begins on one.
fn changes(view: &View, disk: DiskId, range: Extent) -> Result<Vec<Option<Change>>, ReadError> {
    let mut changes: Vec<Option<Change>> = vec![None; (range.length / BLOCK) as usize];
    for piece in view.resolve(disk, range)? {
        let (lsn, discarded) = match piece.origin {
            Origin::Below => continue,
            Origin::Data { lsn, .. } => (lsn, false),
            Origin::Zero { lsn, discarded } => (lsn, discarded),
        };
        let first = (piece.extent.offset - range.offset) / SECTOR;
        let last = (piece.extent.end() - range.offset).div_ceil(SECTOR);
        for sector in first..last {
            let change = &mut changes[(sector / SECTORS) as usize];
            let change = change.get_or_insert(Change { lsn, sectors: 0, discarded: 0 });
            change.lsn = change.lsn.max(lsn);
            change.sectors |= 1 << (sector % SECTORS);
            change.discarded |= u8::from(discarded) << (sector % SECTORS);
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Memory;
    use crate::replica::base::BaseWriter;
    use crate::trust::{KeyHolder, Keyring, WrappingKey};
    use crate::types::WallTime;
    use proptest::prelude::*;

    /// A base that is sealed at rest, of so many blocks, each with other bytes, and what the blocks of its image are.
    fn sealed(storage: &Memory, blocks: u64) -> (Arc<Base>, Vec<(Entry, Vec<u8>)>) {
        let (replica, disk) = (ReplicaId::new([3; 16]).unwrap(), DiskId::new(1).unwrap());
        let holder = KeyHolder::from(Some(WrappingKey::parse(&[1; 32]).unwrap()));
        let ring: Arc<Keyring> = holder.unlock(replica, &[]).unwrap();
        holder.draw(replica, &mut || [5; 16], WallTime(1)).unwrap().name(1, &ring);
        let mut writer = BaseWriter::create(storage, replica, disk, blocks * BLOCK).unwrap().at_rest(&ring).unwrap();
        for block in 0..blocks {
            writer.data(&vec![block as u8 | 1; BLOCK as usize], Lsn(block + 1)).unwrap();
        }
        let root = writer.finish(storage, Lsn(blocks)).unwrap();
        let base = Base::open_with(storage, replica, disk, root, ring).unwrap();
        let image = storage.open(&base::file_names(disk).0, false).unwrap();
        let content = (0..blocks).map(|block| {
            let (page, place) = (block / base.layout().blocks(), block % base.layout().blocks());
            let mut bytes = vec![0; BLOCK as usize];
            image.read_exact_at(block * BLOCK, &mut bytes).unwrap();
            (base.page(page).unwrap().unwrap().entry(place as usize), bytes)
        });
        let content = content.collect();
        (Arc::new(base), content)
    }

    /// Copies lie across the seams of what is read at once, with torn ones and others between them.
    #[test]
    fn every_whole_copy_is_found_and_no_torn_one() {
        let storage = Memory::new();
        let (base, content) = sealed(&storage, 600);
        let disk = DiskId::new(1).unwrap();
        let mut bytes = Vec::new();
        for (block, (entry, copy)) in (0..).zip(&content) {
            bytes.extend_from_slice(&encode_copy(disk, block, 1, *entry, Lsn(9)));
            bytes.extend_from_slice(copy);
            match block % 7 {
                0 => *bytes.last_mut().unwrap() ^= 1,
                1 => bytes.extend_from_slice(&encode_rest(disk, block, Rest { changed: 1, crc: 2 }, Lsn(8))),
                2 => bytes.extend_from_slice(&[0xee; REST_BYTES * 3]),
                _ => {}
            }
        }
        assert!(bytes.len() > 2 * WINDOW);
        storage.create(RESTS).unwrap().write_all_at(0, &bytes).unwrap();
        let image = storage.open(&base::file_names(disk).0, true).unwrap();
        image.write_all_at(0, &vec![0x5a; 600 * BLOCK as usize]).unwrap();
        let mut bases = Bases::default();
        bases.insert(disk, Arc::clone(&base));
        let moment = |lsn| StampedMoment {
            timeline: crate::types::Timeline::new([1; 16]).unwrap(),
            lsn: Lsn(lsn),
            stamp: crate::types::Stamp { epoch: crate::types::ClockEpoch(1), time: WallTime(1) },
        };
        let readable = || {
            let read = |block: &u64| {
                let mut found = vec![0; BLOCK as usize];
                let read = base.read(block * BLOCK, &mut found);
                assert!(read.is_err() || found == vec![*block as u8 | 1; BLOCK as usize]);
                read.is_ok()
            };
            (0..600).filter(read).collect::<Vec<_>>()
        };
        expect_torn(&storage, &bases, moment(7)).unwrap();
        assert_eq!(readable(), [0; 0], "of another merge");
        expect_torn(&storage, &bases, moment(9)).unwrap();
        assert_eq!(readable(), (0..600).filter(|block| block % 7 != 0).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn records_come_back_only_whole(
            block: u64,
            changed: u8,
            crc: u32,
            counter: u64,
            flip in any::<prop::sample::Index>(),
            bit in 0u8..8,
            garbage in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let disk = DiskId::new(3).unwrap();
            let seal = crate::trust::BlockSeal { generation: 4, counter, tag: [changed; 16] };
            let entry = Entry { lsn: Lsn(block ^ 5), crc, seal: Some(seal) };
            let mut bytes = encode_copy(disk, block, changed, entry, Lsn(6)).to_vec();
            bytes.extend_from_slice(&[9; BLOCK as usize]);
            prop_assert_eq!(decode_copy(&bytes, Lsn(6)), Some((disk, block, entry, &bytes[COPY_BYTES..])));
            prop_assert_eq!(decode_copy(&bytes, Lsn(7)), None);
            prop_assert_eq!(decode_copy(&bytes[..bytes.len() - 1], Lsn(6)), None);
            bytes[flip.index(COPY_BYTES)] ^= 1 << bit;
            prop_assert_eq!(decode_copy(&bytes, Lsn(6)), None);
            prop_assert_eq!(decode_copy(&garbage, Lsn(0)), None);
        }
    }
}
