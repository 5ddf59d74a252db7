//! Writes that go past the page cache, for files that are written once from front to back: no page is allocated, filled and
//! written back later, and a sync finds nothing left to write. Buffers that are aligned are not even copied.
//!
//! Only where the file system says (`statx`, Linux 6.1) that it takes writes on multiples of [`SECTOR`]; else the page cache
//! is used as always. Readers need not care: the kernel drops the pages that such a write makes stale.

use crate::buffer::{BufferPool, PAGE, PooledBuffer};
use crate::types::SECTOR;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::io::IoSlice;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a write from which on it goes past the page cache: smaller ones are cheaper when the cache gathers them until the
/// next sync.
const DIRECT_MIN: usize = 64 << 10;

/// Bytes that are gathered for one system call: disks are at their rate with so many.
const STAGING_BYTES: usize = 1 << 20;

/// So many writes at once find their memory ready.
const STAGING_RETAINED: usize = 4;

/// A second descriptor of a file, and the memory that is handed to the disk; shared by all who write at once.
#[derive(Debug)]
pub(super) struct Direct {
    fd: OwnedFd,
    /// Of what is handed to the disk.
    memory_align: usize,
    staging: BufferPool,
    given_up: AtomicBool,
}

impl Direct {
    /// None where the file system does not take such writes, or does not say.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).ok()?;
        let stat = fs::statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
        let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        let fine = |align: u32, most: u64| align != 0 && most.is_multiple_of(u64::from(align));
        let taken = told && fine(stat.stx_dio_mem_align, PAGE as u64) && fine(stat.stx_dio_offset_align, SECTOR);
        let staging = BufferPool::new(STAGING_BYTES, STAGING_RETAINED);
        // Sectors at least: a run that is gathered ends on one, and the next one begins behind it.
        taken.then(|| Self {
            fd,
            memory_align: (stat.stx_dio_mem_align as usize).max(SECTOR as usize),
            staging,
            given_up: AtomicBool::new(false),
        })
    }

    /// Whether a write of so many bytes goes this way.
    pub(super) fn takes(&self, offset: u64, bytes: usize) -> bool {
        !self.given_up.load(Ordering::Relaxed)
            && bytes >= DIRECT_MIN
            && offset.is_multiple_of(SECTOR)
            && (bytes as u64).is_multiple_of(SECTOR)
    }

    /// No write goes this way any more.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether the descriptor goes past the page cache.
    #[cfg(test)]
    pub(super) fn is_direct(&self) -> bool {
        fs::fcntl_getfl(&self.fd).is_ok_and(|flags| flags.contains(OFlags::DIRECT))
    }

    /// Writes all buffers one after another; an error with where. Those that are aligned, in memory and by their place in the
    /// file, are handed to the disk as they are; what lies between them is gathered first.
    pub(super) fn write(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<(), (Errno, u64)> {
        let mut batch =
            Batch { direct: self, staging: self.staging.take(), used: 0, runs: Vec::new(), at: offset, end: offset };
        for slice in data {
            let aligned = batch.end.is_multiple_of(SECTOR)
                && (slice.len() as u64).is_multiple_of(SECTOR)
                && slice.as_ptr().align_offset(self.memory_align) == 0;
            if aligned {
                batch.runs.push(Run::Given(slice));
                batch.end += slice.len() as u64;
            } else {
                batch.gather(slice)?;
            }
        }
        batch.flush()
    }

    fn write_all(&self, offset: u64, mut slices: &mut [IoSlice<'_>]) -> Result<(), (Errno, u64)> {
        let mut at = offset;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match rustix::io::pwritev(&self.fd, &slices[..slices.len().min(super::disk::IOV_MAX)], at) {
                Ok(0) => return Err((Errno::NOSPC, at)),
                Ok(count) => {
                    IoSlice::advance_slices(&mut slices, count);
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err((errno, at)),
            }
        }
        Ok(())
    }
}

/// Bytes that follow each other in the file.
enum Run<'a> {
    /// Written from where they are.
    Given(&'a [u8]),
    /// Gathered: a range of the staging buffer.
    Gathered(Range<usize>),
}

/// What is written together.
struct Batch<'a> {
    direct: &'a Direct,
    staging: PooledBuffer,
    used: usize,
    runs: Vec<Run<'a>>,
    /// Where the runs begin in the file, and where they end.
    at: u64,
    end: u64,
}

impl Batch<'_> {
    fn gather(&mut self, mut rest: &[u8]) -> Result<(), (Errno, u64)> {
        while !rest.is_empty() {
            let goes_on = matches!(self.runs.last(), Some(Run::Gathered(range)) if range.end == self.used);
            let start = if goes_on { self.used } else { self.used.next_multiple_of(self.direct.memory_align) };
            // Runs begin on sectors, and so does the end of the buffer: what is full can be written.
            if start >= STAGING_BYTES {
                self.flush()?;
                continue;
            }
            let (now, later) = rest.split_at(rest.len().min(STAGING_BYTES - start));
            self.staging[start..start + now.len()].copy_from_slice(now);
            self.used = start + now.len();
            match self.runs.last_mut() {
                Some(Run::Gathered(range)) if goes_on => range.end = self.used,
                _ => self.runs.push(Run::Gathered(start..self.used)),
            }
            self.end += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), (Errno, u64)> {
        let mut slices = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            slices.push(IoSlice::new(match run {
                Run::Given(bytes) => bytes,
                Run::Gathered(range) => &self.staging[range.clone()],
            }));
        }
        self.direct.write_all(self.at, &mut slices)?;
        self.runs.clear();
        (self.used, self.at) = (0, self.end);
        Ok(())
    }
}
