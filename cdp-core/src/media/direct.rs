//! Writes that go past the page cache, for files that are written once from front to back: no page is allocated, filled and
//! written back later, and a sync finds nothing left to write. Buffers that are aligned are not even copied.
//!
//! Only where the file system says (`statx`, Linux 6.1) that it takes writes on multiples of [`SECTOR`]; else the page cache
//! is used as always. Readers need not care: the kernel drops the pages that such a write makes stale.

use super::portion::{Cut, IOV_MAX, STAGING_BYTES};
use crate::buffer::{BufferPool, PAGE};
use crate::types::SECTOR;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a write from which on it goes past the page cache: smaller ones are cheaper when the cache gathers them until the
/// next sync.
const DIRECT_MIN: usize = 64 << 10;

/// So many portions at once find their memory ready.
const STAGING_RETAINED: usize = 8;

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

    /// The descriptor, for whoever hands it what [`Self::cut`] gives.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Cuts a write that goes this way into what may be handed over.
    pub(super) fn cut(&self, offset: u64) -> Cut {
        Cut::direct(offset, self.memory_align, self.staging.clone())
    }

    /// Writes all buffers one after another; an error with where.
    pub(super) fn write(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<(), (Errno, u64)> {
        let mut cut = self.cut(offset);
        while let Some(portion) = cut.next(data) {
            self.write_all(portion.offset(), &mut portion.slices(data, 0))?;
        }
        Ok(())
    }

    fn write_all(&self, offset: u64, mut slices: &mut [IoSlice<'_>]) -> Result<(), (Errno, u64)> {
        let mut at = offset;
        while !slices.is_empty() {
            match rustix::io::pwritev(&self.fd, &slices[..slices.len().min(IOV_MAX)], at) {
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
