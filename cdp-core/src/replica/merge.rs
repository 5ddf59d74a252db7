//! Merging history into the bases: what the oldest records left of each block goes into the image, their segments can go.
//!
//! In place, and right after a crash at any moment, because nothing that is needed is ever changed:
//!
//! 1. The manifest says that a merge up to an LSN is under way ([`StampedMoment`]). From then on a block of a base may be found
//!    old, new or torn. Every reader lays the journal over the base, and the segments of the merge are all still there.
//! 2. Blocks are written, ascending; pages of checksums go to the place that is not in use. Of a block that is changed in parts,
//!    the [`Rest`] is made durable first ([`rests`]): the bytes that stay verify by that until the merge is done.
//! 3. Images and sidecars are synced, then the new digest tables, in the file that is not in use.
//! 4. The manifest names the new roots, and no merge. When that is durable the segments are forgotten.
//!
//! Found with a merge under way, the merge is simply done again, from the same segments and the same old pages.
//!
//! The machine does a bounded piece of the work in each [`step`](Merge::step); whoever drives it chooses the rate, and edits the
//! manifest before and after.

use super::base::{self, Base, BlockCopy, Rest};
use super::files::{BASE_DIRECTORY, RESTS};
use super::kept::Space;
use super::rests::{self, Rests};
use super::session::SessionError;
use super::sidecar::{Entry, Page, PageDigest, Seed, Slot};
use super::view::Bases;
use crate::frame::Note;
use crate::journal::{BaseInfo, DiskInfo, Manifest, Origin, PathElement, ReadError, StampedMoment, View};
use crate::media::{File, MediaError, Storage};
use crate::mistakes::{self, Mistake};
use crate::trust::{BlockPlace, BlockSealer};
use crate::types::{BLOCK, DiskId, Extent, Lsn, Now, ReplicaId, SECTOR};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// Memory for region maps, in bytes: a merge goes through a disk once, region by region.
const REGIONS_BYTES: u64 = 16 << 20;
/// The media are told this long ahead, in bytes of the disk, what of the journal will be read: its places there are all over.
const AHEAD: u64 = 64 << 20;
const SECTORS: u64 = BLOCK / SECTOR;

/// Why a merge cannot go on. Nothing is lost: the next start does it again.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// What is to be merged cannot be read, or does not verify.
    #[error("a merge into the bases stops: {0}")]
    Read(#[from] ReadError),
    /// The bases are given to views of moments before it, too.
    #[error("a merge into the bases stops: they were opened before the manifest named it, and must be opened again")]
    Shared,
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

/// A merge under way.
#[derive(Debug)]
pub struct Merge {
    storage: Arc<dyn Storage>,
    info: StampedMoment,
    view: View,
    bases: Arc<Bases>,
    rests: Rests,
    /// The newest kept moment: gets what is replaced.
    kept: Option<Space>,
    waiting: VecDeque<Work>,
    done: Vec<Work>,
    /// Memory for what is written together, from one piece to the next.
    spare: Vec<u8>,
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
    /// Where blocks that are sealed at rest are read from once `rests` are on the media; at most one for each block of `writes`.
    copies: Vec<(u64, BlockCopy)>,
    /// What is written, one after another: where on the disk, and which part of `data`.
    writes: Vec<(u64, Range<usize>)>,
    data: Vec<u8>,
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
    /// in this process reads since then. `kept` is the newest kept moment's store, if there is any: it gets what is replaced.
    ///
    /// # Errors
    /// When the bases were opened before the manifest named it, the journal does not reach that far, or the media fail.
    pub fn begin(
        storage: &Arc<dyn Storage>,
        manifest: &Manifest,
        info: StampedMoment,
        path: &[PathElement],
        bases: &Arc<Bases>,
        kept: Option<Space>,
    ) -> Result<Self, MergeError> {
        // A view of an older moment has nothing to lay over what changes: it would take new bytes for old ones.
        if bases.merge() != Some(info) {
            return Err(MergeError::Shared);
        }
        bases.check()?;
        rests::expect_torn(storage.as_ref(), bases, info)?;
        let rests = Rests::open(storage.as_ref())?;
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
        Ok(Self { storage, info, view, bases, rests, kept, waiting, done: Vec::new(), spare: Vec::new() })
    }

    /// Merges until about `budget` bytes were written; whether there is more to do.
    ///
    /// # Errors
    /// What cannot be read, or the media: then nothing more may be asked of this one.
    pub fn step(&mut self, now: Now, budget: u64) -> Result<bool, MergeError> {
        let Some(work) = self.waiting.front_mut() else { return Ok(false) };
        let mut batch = Batch { data: std::mem::take(&mut self.spare), ..Batch::default() };
        while batch.bytes < budget && work.page < work.digests.len() as u64 {
            work.announce(&self.view)?;
            let changed = work.gather(&self.view, self.bases.as_ref(), self.info.lsn, &mut batch, &self.rests)?;
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
        self.rests.append(&batch.rests)?;
        // Not before: until then a block that an earlier try tore is read from the copy which that one made.
        for (block, copy) in std::mem::take(&mut batch.copies) {
            work.base.expect_torn_sealed(block, copy);
        }
        self.spare = work.write(batch)?;
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
        let (end, length) = (base.size().next_multiple_of(BLOCK), image.len()?);
        // An earlier try may have reached further, for a disk that then did not grow: what is new of a base is zeros.
        if length > end {
            image.set_len(end)?;
        }
        if size.next_multiple_of(BLOCK) != end {
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
        rests: &Rests,
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
            let mut data = std::mem::take(&mut batch.data);
            let start = data.len();
            data.resize(start + run.len() * BLOCK as usize, 0);
            view.read(self.disk, offset, &mut data[start..], bases)?;
            let blocks = data[start..].chunks_exact_mut(BLOCK as usize).zip(run.iter().flatten());
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
            changed.push(Extent::new(offset, run.len() as u64 * BLOCK));
            batch.data = data;
            batch.add(offset, start, run);
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
        (batch, rests): (&mut Batch, &Rests),
    ) {
        if self.sealer.is_none() {
            batch.rests.extend_from_slice(&rests::encode_rest(self.disk, block, rest, upto));
            // True before it is on the media too: every try leaves the same.
            return self.base.expect_torn(block, rest);
        }
        // A cipher changes all of a block: what stays of it is read from a copy of what it is going to be.
        batch.rests.extend_from_slice(&rests::encode_copy(self.disk, block, rest.changed, entry, upto));
        let offset = rests.end() + batch.rests.len() as u64;
        batch.rests.extend_from_slice(bytes);
        batch.bytes += bytes.len() as u64;
        batch.copies.push((block, BlockCopy { file: Arc::clone(rests.file()), offset, entry }));
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

    /// Writes a batch, and gives its memory back. Needs no sync: until [`Merge::finish`] the manifest says that anything may have
    /// happened.
    fn write(&mut self, batch: Batch) -> Result<Vec<u8>, MediaError> {
        for (offset, range) in &batch.writes {
            self.image.write_all_at(*offset, &batch.data[range.clone()])?;
        }
        // While the next batch is read: then the last sync finds little to do.
        if let (Some((first, _)), Some((last, range))) = (batch.writes.first(), batch.writes.last()) {
            self.image.will_sync(Extent::new(*first, last + range.len() as u64 - first));
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
        let mut spare = batch.data;
        spare.clear();
        Ok(spare)
    }
}

impl Batch {
    /// Blocks that follow each other and all change: the last of `data`, from `start` on. What reads as zeros because it was discarded
    /// takes no room.
    fn add(&mut self, offset: u64, start: usize, changes: &[Option<Change>]) {
        let data = &self.data[start..];
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
                self.write(here, start + from..start + to);
            }
        }
    }

    /// What goes on where the write before it ends is one with it.
    fn write(&mut self, offset: u64, range: Range<usize>) {
        match self.writes.last_mut() {
            Some((at, last)) if *at + last.len() as u64 == offset && last.end == range.start => last.end = range.end,
            _ => self.writes.push((offset, range)),
        }
    }
}

/// The largest sizes that the journal says of disks, at whichever of its moments: what a disk grows by is recorded before its size
/// is, and one that was cut since had it at the moments between. All of them stand on the bases, so these hold what any of them
/// shows. The way is through one journal.
fn reached(path: &[PathElement]) -> Result<BTreeMap<DiskId, u64>, ReadError> {
    let mut sizes = BTreeMap::new();
    let Some(PathElement { reader, snapshot, .. }) = path.last() else { return Ok(sizes) };
    for event in reader.events(snapshot)? {
        if let (Some(disk), Some(Note::Resize { from, to })) = (event.disk, &event.note) {
            let size = sizes.entry(disk).or_insert(0);
            *size = (*from).max(*to).max(*size);
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
