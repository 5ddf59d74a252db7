//! What a front end serves: a disk, protected or as it was at a moment.
//!
//! The calls block. A front end runs those that may wait for a disk on threads of its own choice; the `*_now` forms are for
//! its I/O threads and never wait for a device.

use bytes::Bytes;
use std::io;

/// How a run of a disk is allocated (`NBD_CMD_BLOCK_STATUS`, context `base:allocation`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockStatus {
    /// Number of bytes that this answer covers.
    pub length: u64,
    /// Nothing is allocated there.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

/// How zeros are to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroFlags {
    /// Durable before the call returns.
    pub fua: bool,
    /// Keep the range allocated.
    pub no_hole: bool,
    /// Fail with `ErrorKind::Unsupported` rather than write zeros byte by byte.
    pub fast: bool,
}

/// What is left of a write that has to wait: for a thread that may.
pub type Rest = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// How far [`Device::write_now`] came.
pub enum Written {
    /// The data are written.
    Whole,
    /// The write has its place among the others and waits for something: this has to be called, on a thread that may wait.
    Waits(Rest),
}

/// A disk that can be served. Offsets and lengths are bytes, multiples of 512 and inside the disk: the front end has checked.
///
/// Errors are told to the client by their OS error where they have one (`ENOSPC`, `EIO`, `EPERM`), else as `EIO`.
pub trait Device: Send + Sync {
    /// The disk's size in bytes; may grow while it is served.
    fn size(&self) -> u64;

    /// Whether writes are refused (with `EPERM`).
    fn read_only(&self) -> bool;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// What the disk says; nothing of `buffer` may be used then.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Fills `buffer` if that needs no wait for a device; `Ok(false)`: call [`Device::read`] on a thread that may wait.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let _ = (offset, buffer);
        Ok(false)
    }

    /// Fills `buffer` with what the disk itself holds, as far as caches between can be told to forget what is not dirty.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn read_media(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read(offset, buffer)
    }

    /// Writes `data` at `offset`; with `fua` it is durable before the call returns. `data` is shared, never copied, so the
    /// caller hands over a buffer that nobody changes any more.
    ///
    /// # Errors
    /// What the disk says; the range then holds the old bytes, the new ones, or a mixture.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()>;

    /// As [`Device::write`] without `fua`, where nothing has to be waited for but the disk itself; else what is left to do.
    ///
    /// # Errors
    /// As [`Device::write`].
    fn write_now(&self, offset: u64, data: Bytes) -> io::Result<Written> {
        self.write(offset, data, false).map(|()| Written::Whole)
    }

    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// What the disk says; writes since the last successful flush may be lost then.
    fn flush(&self) -> io::Result<()>;

    /// Makes the range read as zeros where the disk can drop it.
    ///
    /// # Errors
    /// As [`Device::write`].
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()>;

    /// Writes zeros.
    ///
    /// # Errors
    /// As [`Device::write`]; `ErrorKind::Unsupported` with `fast` where it would be slow, nothing was changed then.
    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()>;

    /// Whether [`Device::trim`] makes a range read as zeros; where it does not it is a hint that changes nothing.
    fn can_trim(&self) -> bool {
        true
    }

    /// Whether [`Device::write_zeroes`] with these flags is quicker than writing zeros byte by byte.
    fn can_zero_fast(&self, flags: ZeroFlags) -> bool {
        let _ = flags;
        true
    }

    /// Reads the range into whatever cache there is.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }

    /// How the range is allocated: at least one entry, together at most `length` bytes, at most `entries_max` of them.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        let _ = (offset, entries_max);
        Ok(vec![BlockStatus { length, hole: false, zero: false }])
    }
}
