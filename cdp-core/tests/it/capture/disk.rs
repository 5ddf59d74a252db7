//! A simulated source disk: a tag per sector instead of bytes, pages that a power cut loses unless they were flushed.

use super::rng::Rng;
use bytes::Bytes;
use cdp_core::types::{Extent, SECTOR};

const PAGE_SECTORS: usize = 8;

/// Contents of a disk, a tag for each sector; 0 is zeros.
pub type Tags = Vec<u64>;

/// Bytes of sectors with these tags.
pub fn bytes_of(tags: &[u64]) -> Bytes {
    let mut out = vec![0u8; tags.len() * SECTOR as usize];
    for (sector, tag) in out.chunks_exact_mut(SECTOR as usize).zip(tags) {
        sector[..8].copy_from_slice(&tag.to_le_bytes());
    }
    Bytes::from(out)
}

/// Tags of these bytes.
pub fn tags_of(bytes: &[u8]) -> Tags {
    let tag = |sector: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| sector[i]));
    bytes.chunks_exact(SECTOR as usize).map(tag).collect()
}

/// The sectors of an extent.
pub fn sectors(extent: Extent) -> std::ops::Range<usize> {
    (extent.offset / SECTOR) as usize..(extent.end() / SECTOR) as usize
}

#[derive(Clone, Debug)]
pub struct SimDisk {
    /// What a reader sees.
    pub content: Tags,
    /// What a power cut leaves for sure.
    flushed: Tags,
    /// Pages whose write-back failed once: later flushes do not write them.
    lost: Vec<bool>,
    pub running: Vec<Extent>,
    flushes: u64,
    newest_flushed: u64,
    /// Sectors that were always there: what a flush found behind them may not be there any more.
    pub steady: usize,
}

impl SimDisk {
    pub fn new(size: u64, rng: &mut Rng) -> Self {
        let count = (size / SECTOR) as usize;
        let mut content = vec![0; count];
        for chunk in content.chunks_mut(2048) {
            if rng.one_in(2) {
                chunk.iter_mut().for_each(|tag| *tag = 1 << 63 | rng.next() >> 1);
            }
        }
        let flushed = content.clone();
        Self {
            content,
            flushed,
            lost: vec![false; count.div_ceil(PAGE_SECTORS)],
            running: Vec::new(),
            flushes: 0,
            newest_flushed: 0,
            steady: usize::MAX,
        }
    }

    /// From `from` on it holds something else, safely, and has so many sectors at least.
    pub fn put(&mut self, from: usize, tags: &[u64]) {
        let count = self.content.len().max(from + tags.len());
        for content in [&mut self.content, &mut self.flushed] {
            content.resize(count, 0);
            content[from..from + tags.len()].copy_from_slice(tags);
        }
        self.lost.resize(count.div_ceil(PAGE_SECTORS), false);
    }

    /// An op reaches the disk.
    pub fn begin(&mut self, extent: Extent) {
        self.running.push(extent);
    }

    pub fn end(&mut self, extent: Extent) {
        let at = self.running.iter().position(|running| *running == extent).expect("it ran");
        self.running.swap_remove(at);
    }

    pub fn write(&mut self, sector: usize, tag: u64) {
        self.content[sector] = tag;
        self.lost[sector / PAGE_SECTORS] = false;
    }

    /// A flush begins: what is there now will be safe when it ends.
    pub fn flush_begins(&mut self) -> (u64, Tags) {
        self.flushes += 1;
        (self.flushes, self.content.clone())
    }

    pub fn flush_ends(&mut self, (number, content): &(u64, Tags)) {
        if *number < self.newest_flushed {
            return;
        }
        self.newest_flushed = *number;
        // What was cut off or added since is as it is.
        for (at, tag) in content.iter().enumerate().filter(|(at, _)| *at < self.steady) {
            if !self.lost[at / PAGE_SECTORS] {
                self.flushed[at] = *tag;
            }
        }
    }

    /// Some of the pages that were not flushed will never be, unless they are written again.
    pub fn flush_fails(&mut self, rng: &mut Rng) {
        for page in 0..self.lost.len() {
            let sectors = page * PAGE_SECTORS..((page + 1) * PAGE_SECTORS).min(self.content.len());
            if self.content[sectors.clone()] != self.flushed[sectors] {
                self.lost[page] |= rng.one_in(2);
            }
        }
    }

    /// A new process opens the disk and drops what the cache holds and would not write: a driver does so before it re-reads.
    pub fn reopen(&mut self) {
        for page in 0..self.lost.len() {
            let sectors = page * PAGE_SECTORS..((page + 1) * PAGE_SECTORS).min(self.content.len());
            if std::mem::take(&mut self.lost[page]) {
                self.content[sectors.clone()].copy_from_slice(&self.flushed[sectors]);
            }
        }
    }

    /// The machine lost power: each page is what was flushed, or what was in memory.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        for page in 0..self.lost.len() {
            let sectors = page * PAGE_SECTORS..((page + 1) * PAGE_SECTORS).min(self.content.len());
            if rng.one_in(2) {
                self.content[sectors.clone()].copy_from_slice(&self.flushed[sectors]);
            }
        }
        self.flushed = self.content.clone();
        self.lost.fill(false);
    }
}
