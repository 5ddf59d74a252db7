//! Going on with a first copy where it was checkpointed; why that is right after any crash says `FORMAT.md`, section 6.

use super::super::sidecar::{Layout, PAGE_BYTES, PageDigest, Seed, Slot, TableBegin};
use super::{BaseWriter, file_names};
use crate::journal::{SeedingInfo, SeedingPoint};
use crate::media::{File, MediaError, Storage};
use crate::trust::{KeyError, Keyring};
use crate::types::{BLOCK, DiskId, ReplicaId};
use std::sync::Arc;

/// Pages of the sidecar that are read back at once: 1 MiB with their second places.
const PAGES_AT_ONCE: usize = 128;

/// Why a first copy cannot go on where it was; but for failing media and a missing key it can be begun anew.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The media failed.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// It is sealed at rest, and there is no key to go on with.
    #[error("the first copy of disk {disk} is sealed at rest: {source}")]
    Key {
        /// The disk.
        disk: DiskId,
        /// Why there is none.
        source: KeyError,
    },
    /// It is not sealed at rest, and the replica is.
    #[error("the first copy of disk {disk} is not sealed at rest, and the replica is: it has to be begun anew")]
    NotSealed {
        /// The disk.
        disk: DiskId,
    },
    /// A copy and an image that was there are gone on with in different ways.
    #[error("disk {disk}: a copy of the source and an image that was there are gone on with in different ways")]
    OtherWay {
        /// The disk.
        disk: DiskId,
    },
    /// The disk has another size than it had, and the copy ends where only that size makes a border.
    #[error("the first copy of disk {disk} is of {copied} bytes, and the disk has {found}: it has to be begun anew")]
    Size {
        /// The disk.
        disk: DiskId,
        /// What it had.
        copied: u64,
        /// What it has.
        found: u64,
    },
    /// The image ends before the place.
    #[error("{path} has {found} bytes, and {expected} were copied: the first copy has to be begun anew")]
    Length {
        /// The image.
        path: String,
        /// As many as were synced.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// A page of checksums is damaged.
    #[error(
        "{path} is damaged: page {page} at byte {offset} is not what was written; the first copy has to be begun anew"
    )]
    Page {
        /// The sidecar.
        path: String,
        /// Which page.
        page: u64,
        /// Where.
        offset: u64,
    },
    /// Pages are missing, or are those of another copy.
    #[error("{path} is damaged: its pages are not those that the manifest knows; the first copy has to be begun anew")]
    Root {
        /// The sidecar.
        path: String,
    },
}

impl ResumeError {
    /// Whether what is there is of no use, and a copy that begins anew is right.
    #[must_use]
    pub fn begins_anew(&self) -> bool {
        match self {
            Self::Media(error) => error.is_not_found(),
            Self::Key { .. } | Self::OtherWay { .. } => false,
            _ => true,
        }
    }
}

/// A place at which a copy can go on once it is [synced](Self::sync) and a durable manifest says so.
#[derive(Debug)]
#[must_use = "a checkpoint holds when it is synced and named"]
pub struct Checkpoint {
    image: Arc<dyn File>,
    sidecar: Arc<dyn File>,
    point: SeedingPoint,
}

impl Checkpoint {
    /// Makes everything before the place durable, also while the writer goes on. For the thread that syncs these files: no
    /// other sync of them may be under way.
    ///
    /// # Errors
    /// When the media fail. Then the writer is not used any more; the copy goes on, with one that is resumed, at the last place
    /// that is named.
    pub fn sync(self) -> Result<SeedingPoint, MediaError> {
        self.sidecar.sync()?;
        self.image.sync()?;
        Ok(self.point)
    }
}

impl BaseWriter {
    /// The last border of pages that was passed. What is written afterwards changes nothing before it.
    ///
    /// # Errors
    /// When the media fail.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, MediaError> {
        if self.at == self.size || self.at.is_multiple_of(self.layout().covers()) {
            self.close_page()?;
        }
        self.gather.write(self.image.as_ref())?;
        let done = (self.digests.len() as u64 * self.layout().covers()).min(self.size);
        let point = SeedingPoint { done, root: self.table.root() };
        Ok(Checkpoint { image: Arc::clone(&self.image), sidecar: Arc::clone(&self.sidecar), point })
    }

    /// Goes on where a durable manifest says. `size` is the disk's now: it may have grown. Where the copy is sealed at rest, `keys` are
    /// those of the store's writer: what follows is sealed by the newest, what is there stays.
    ///
    /// # Errors
    /// When nothing can be gone on with, or the media fail.
    pub fn resume(
        storage: &dyn Storage,
        replica: ReplicaId,
        info: &SeedingInfo,
        size: u64,
        keys: Option<&Keyring>,
    ) -> Result<Self, ResumeError> {
        Self::go_on(storage, replica, info, size, (keys, false))
    }

    pub(super) fn go_on(
        storage: &dyn Storage,
        replica: ReplicaId,
        info: &SeedingInfo,
        size: u64,
        (keys, adopts): (Option<&Keyring>, bool),
    ) -> Result<Self, ResumeError> {
        let disk = info.disk;
        if info.adopted != adopts {
            return Err(ResumeError::OtherWay { disk });
        }
        let sealer = match (info.at_rest, keys) {
            (false, None) => None,
            (false, Some(_)) => return Err(ResumeError::NotSealed { disk }),
            (true, None) => return Err(ResumeError::Key { disk, source: KeyError::Missing }),
            (true, Some(keys)) => Some(keys.block_sealer(None).map_err(|source| ResumeError::Key { disk, source })?),
        };
        let layout = if info.at_rest { Layout::AtRest } else { Layout::Plain };
        let done = info.point.done;
        let on_border = done.is_multiple_of(layout.covers()) || done == info.size && info.size == size;
        if done > size || !on_border {
            return Err(ResumeError::Size { disk, copied: info.size, found: size });
        }
        let (image, sidecar) = file_names(disk);
        let (image, sidecar) = (storage.open(&image, true)?, storage.open(&sidecar, true)?);
        let found = image.len()?;
        if found < done {
            return Err(ResumeError::Length { path: image.path().to_owned(), expected: done, found });
        }
        let digests = read_back(sidecar.as_ref(), done.div_ceil(layout.covers()), layout)?;
        let mut table = TableBegin::default();
        digests.iter().for_each(|digest| table.push(*digest));
        if table.root() != info.point.root {
            return Err(ResumeError::Root { path: sidecar.path().to_owned() });
        }
        sidecar.set_len(Slot::First.offset(digests.len() as u64))?;
        if !adopts {
            // Zeros are not written: nothing may be where they will be.
            image.set_len(done.next_multiple_of(BLOCK))?;
        }
        image.set_len(size.next_multiple_of(BLOCK))?;
        let begun = Self::on((disk, Seed::new(replica, disk)), image, sidecar, size);
        Ok(Self { sealer, at: done, digests, table, adopts, ..begun })
    }
}

/// The pages before the place, as they are found.
fn read_back(sidecar: &dyn File, pages: u64, layout: Layout) -> Result<Vec<PageDigest>, ResumeError> {
    let mut digests = Vec::new();
    let mut bytes = vec![0; PAGES_AT_ONCE * 2 * PAGE_BYTES];
    while (digests.len() as u64) < pages {
        let at = digests.len() as u64;
        // Whole runs of absent pages are holes, which need no reading.
        let data = sidecar.next_data(Slot::First.offset(at))?;
        let next = data.map_or(pages, |data| (data.offset / Slot::First.offset(1)).clamp(at, pages));
        if next > at {
            digests.resize(next as usize, PageDigest::Absent);
            continue;
        }
        let count = (pages - at).min(PAGES_AT_ONCE as u64) as usize;
        let bytes = &mut bytes[..count * 2 * PAGE_BYTES];
        bytes.fill(0);
        sidecar.read_at(Slot::First.offset(at), bytes)?;
        for (page, both) in (at..).zip(bytes.chunks_exact(2 * PAGE_BYTES)) {
            let first = both.first_chunk().unwrap_or_else(|| unreachable!("two pages hold one"));
            let damaged = || {
                let (path, offset) = (sidecar.path().to_owned(), Slot::First.offset(page));
                ResumeError::Page { path, page, offset }
            };
            digests.push(PageDigest::found(first, page, layout).ok_or_else(damaged)?);
        }
    }
    Ok(digests)
}

#[cfg(test)]
mod tests;
