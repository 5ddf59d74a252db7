//! Writes that go past the page cache, for files that are written once from front to back: no page is allocated, filled and
//! written back later, so a stream costs one copy into memory that stays warm, and a sync finds nothing left to write.
//!
//! Only where the file system says (`statx`, Linux 6.1) that it takes writes on multiples of [`SECTOR`]; else the page cache
//! is used as always. Readers need not care: the kernel drops the pages that such a write makes stale.

use crate::buffer::{BufferPool, PAGE};
use crate::types::SECTOR;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::io::IoSlice;
use std::path::Path;

/// Bytes of a write from which on it goes past the page cache: smaller ones are cheaper when the cache gathers them until the
/// next sync.
const DIRECT_MIN: usize = 64 << 10;

/// Bytes that are gathered for one system call: disks are at their rate with so many.
const STAGING_BYTES: usize = 1 << 20;

/// So many writes at once find their memory ready; disks are at their rate with two.
const STAGING_RETAINED: usize = 4;

/// A second descriptor of a file, and the memory that is handed to the disk; shared by all who write at once.
#[derive(Debug)]
pub(super) struct Direct {
    fd: OwnedFd,
    staging: BufferPool,
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
        taken.then(|| Self { fd, staging: BufferPool::new(STAGING_BYTES, STAGING_RETAINED) })
    }

    /// Whether a write of so many bytes goes this way.
    pub(super) fn takes(&self, offset: u64, bytes: usize) -> bool {
        bytes >= DIRECT_MIN && offset.is_multiple_of(SECTOR) && (bytes as u64).is_multiple_of(SECTOR)
    }

    /// Writes all buffers one after another; an error with where.
    pub(super) fn write(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<(), (Errno, u64)> {
        let mut staging = self.staging.take();
        let (mut at, mut filled) = (offset, 0);
        for slice in data {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(STAGING_BYTES - filled));
                staging[filled..filled + now.len()].copy_from_slice(now);
                (filled, rest) = (filled + now.len(), later);
                if filled == STAGING_BYTES {
                    self.flush(at, &staging[..filled])?;
                    (at, filled) = (at + filled as u64, 0);
                }
            }
        }
        self.flush(at, &staging[..filled])
    }

    fn flush(&self, offset: u64, mut data: &[u8]) -> Result<(), (Errno, u64)> {
        let mut at = offset;
        while !data.is_empty() {
            match rustix::io::pwrite(&self.fd, data, at) {
                Ok(0) => return Err((Errno::NOSPC, at)),
                Ok(count) => (data, at) = (&data[count..], at + count as u64),
                Err(Errno::INTR) => {}
                Err(errno) => return Err((errno, at)),
            }
        }
        Ok(())
    }
}
