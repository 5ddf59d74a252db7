//! A raw disk image or a block device as a [`Device`], through the page cache.

use crate::device::{BlockStatus, Device, ZeroFlags};
use bytes::Bytes;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Written where nothing better works, a piece at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A raw file or block device.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    size: AtomicU64,
    read_only: bool,
    block_device: bool,
    /// Learnt at opening: whether ranges can be given back, so that they read as zeros.
    can_punch: bool,
}

impl FileDevice {
    /// Opens a regular file or block device.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for anything but a file or block device.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        Self::new(OpenOptions::new().read(true).write(!read_only).open(path)?, read_only)
    }

    /// Takes over an open file.
    ///
    /// # Errors
    /// As [`FileDevice::open`].
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"));
        }
        let block_device = kind.is_block_device();
        let mut device = Self { file, size: AtomicU64::new(0), read_only, block_device, can_punch: false };
        let size = device.refresh_size()?;
        device.can_punch = !read_only && if block_device { device.unmaps()? } else { device.punch(size, 4096)? };
        Ok(device)
    }

    /// Asks the system for the size again, after the file has grown; returns it in bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn refresh_size(&self) -> io::Result<u64> {
        // A block device's metadata say 0; its end says the size.
        let size = seek(&self.file, SeekFrom::End(0))?;
        self.size.store(size, Ordering::Release);
        Ok(size)
    }

    /// The file, for whoever has to lock or look at it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the range read as zeros by giving its space back; `Ok(false)` where that is impossible, nothing was changed then.
    ///
    /// # Errors
    /// What the system says.
    pub fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
    }

    /// `fallocate`, which the kernel also understands for block devices: `PUNCH_HOLE` is zero-out with unmap, and only where
    /// that is no writing of zeros; `ZERO_RANGE` keeps the range allocated.
    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        loop {
            match fallocate(&self.file, flags, offset, length) {
                Ok(()) => return Ok(true),
                // A range that is finer than the device's own blocks is refused as invalid.
                Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS | Errno::INVAL) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the kernel can zero ranges of the block device without writing zeros: its queue says how much at once.
    fn unmaps(&self) -> io::Result<bool> {
        let number = self.file.metadata()?.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        // A partition has no queue of its own; its disk's is a directory above.
        let queues = ["queue", "../queue"].map(|queue| format!("/sys/dev/block/{major}:{minor}/{queue}"));
        let said = queues.iter().find_map(|q| std::fs::read_to_string(format!("{q}/write_zeroes_max_bytes")).ok());
        Ok(said.is_some_and(|bytes| bytes.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0)))
    }

    fn write_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let piece = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..usize::try_from(piece).unwrap_or(ZEROS.len())], at)?;
            at += piece;
        }
        Ok(())
    }

    fn sync_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }

    /// The next data or hole from `at` on; the disk's end if there is none.
    fn next(&self, from: SeekFrom, end: u64) -> io::Result<u64> {
        match seek(&self.file, from) {
            Ok(found) => Ok(found.min(end)),
            Err(Errno::NXIO) => Ok(end),
            Err(error) => Err(error.into()),
        }
    }
}

impl Device for FileDevice {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn read_media(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = std::num::NonZeroU64::new(buffer.len() as u64);
        // Advice only: where the kernel does not follow it the cache is all there is.
        let _ = rustix::fs::fadvise(&self.file, offset, length, rustix::fs::Advice::DontNeed);
        self.read(offset, buffer)
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let length = buffer.len();
        match preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            // A short read has met the first page that is not in memory.
            Ok(count) => Ok(count == length),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        if !fua {
            return self.file.write_all_at(&data, offset);
        }
        // Syncs this range only; other writes' pages are not waited for.
        let mut done = 0;
        while done < data.len() {
            let slices = [IoSlice::new(&data[done..])];
            match pwritev2(&self.file, &slices, offset + done as u64, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.file.write_all_at(&data[done..], offset + done as u64)?;
                    return self.flush();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        loop {
            match fdatasync(&self.file) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        // Who asked whether it trims relies on zeros. A disk that said it can drop ranges and then does not gets them written;
        // where it never could, a trim is a hint and changes nothing.
        if self.can_punch && !self.punch(offset, length)? {
            self.write_zeroes(offset, length, ZeroFlags::default())?;
        }
        self.sync_if(fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        let zero_range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        // On a block device the kernel may fall back to writing zeros inside ZERO_RANGE, which is not fast.
        let keep = !flags.fast || !self.block_device;
        let done =
            (!flags.no_hole && self.punch(offset, length)?) || (keep && self.allocate(zero_range, offset, length)?);
        if !done {
            if flags.fast {
                return Err(io::ErrorKind::Unsupported.into());
            }
            self.write_zeros(offset, length)?;
        }
        self.sync_if(flags.fua)
    }

    fn can_trim(&self) -> bool {
        self.can_punch
    }

    fn can_zero_fast(&self, flags: ZeroFlags) -> bool {
        // Zeroing that keeps the range allocated may be a writing of zeros inside the kernel: never promised.
        self.can_punch && !flags.no_hole
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        let length = std::num::NonZeroU64::new(length);
        Ok(rustix::fs::fadvise(&self.file, offset, length, rustix::fs::Advice::WillNeed)?)
    }

    fn block_status(&self, offset: u64, length: u64, entries_max: usize) -> io::Result<Vec<BlockStatus>> {
        let allocated = |length| BlockStatus { length, hole: false, zero: false };
        if self.block_device {
            return Ok(vec![allocated(length)]);
        }
        let end = offset + length;
        let mut at = offset;
        let mut found = Vec::new();
        while at < end && found.len() < entries_max {
            let data = self.next(SeekFrom::Data(at), end)?;
            if data > at {
                found.push(BlockStatus { length: data - at, hole: true, zero: true });
                at = data;
                continue;
            }
            let hole = self.next(SeekFrom::Hole(at), end)?.max(at + 1);
            found.push(allocated(hole - at));
            at = hole;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 20;

    fn device() -> FileDevice {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        FileDevice::new(file, false).unwrap()
    }

    #[test]
    fn holes_are_told_and_cover_the_range() {
        let device = device();
        device.write(256 << 10, Bytes::from(vec![1; 64 << 10]), true).unwrap();
        let found = device.block_status(4096, SIZE - 4096, 16).unwrap();
        assert_eq!(found.iter().map(|status| status.length).sum::<u64>(), SIZE - 4096);
        assert!(found[0].hole && found[0].zero);
        assert_eq!(device.block_status(0, SIZE, 1).unwrap().len(), 1);
        assert!(device.punch(256 << 10, 64 << 10).unwrap());
        assert_eq!(device.block_status(0, SIZE, 16).unwrap(), [BlockStatus { length: SIZE, hole: true, zero: true }]);
    }

    #[test]
    fn it_grows_when_asked_and_refuses_what_is_no_disk() {
        let device = device();
        device.file().set_len(2 * SIZE).unwrap();
        assert_eq!(device.size(), SIZE);
        assert_eq!(device.refresh_size().unwrap(), 2 * SIZE);
        assert_eq!(device.size(), 2 * SIZE);
        let null = FileDevice::open(Path::new("/dev/null"), true).unwrap_err();
        assert_eq!(null.kind(), io::ErrorKind::InvalidInput);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, u64, u8, bool),
        Trim(u64, u64),
        Zero(u64, u64, ZeroFlags),
    }

    fn op() -> impl Strategy<Value = Op> {
        let sectors = SIZE / 512;
        let range =
            (0..sectors).prop_flat_map(move |at| (Just(at * 512), (1..=(sectors - at).min(256)).prop_map(|n| n * 512)));
        let flags = any::<(bool, bool)>().prop_map(|(fua, no_hole)| ZeroFlags { fua, no_hole, fast: false });
        prop_oneof![
            (range.clone(), any::<u8>(), any::<bool>())
                .prop_map(|((at, length), byte, fua)| Op::Write(at, length, byte, fua)),
            range.clone().prop_map(|(at, length)| Op::Trim(at, length)),
            (range, flags).prop_map(|((at, length), flags)| Op::Zero(at, length, flags)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn it_holds_what_a_model_holds(ops in proptest::collection::vec(op(), 1..20)) {
            let device = device();
            let mut model = vec![0; SIZE as usize];
            for op in ops {
                let (at, length, byte) = match op {
                    Op::Write(at, length, byte, fua) => {
                        device.write(at, Bytes::from(vec![byte; length as usize]), fua).unwrap();
                        (at, length, byte)
                    }
                    Op::Trim(at, length) => {
                        // Where the file system cannot punch, a trim changes nothing: then the model must not either.
                        if !device.punch(at, length).unwrap() {
                            continue;
                        }
                        (at, length, 0)
                    }
                    Op::Zero(at, length, flags) => {
                        device.write_zeroes(at, length, flags).unwrap();
                        (at, length, 0)
                    }
                };
                model[at as usize..(at + length) as usize].fill(byte);
            }
            let mut read = vec![0; SIZE as usize];
            device.read(0, &mut read).unwrap();
            prop_assert!(read == model);
            if device.read_now(0, &mut read).unwrap() {
                prop_assert!(read == model);
            }
        }
    }
}
