//! Storage in a real directory, through system calls that say what they did.

use super::direct::Direct;
use super::portion::{Cut, IOV_MAX, Way};
use super::{File, MediaError, MediaErrorKind, Operation, Raw, Result, Storage, is_inside};
use crate::types::Extent;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};
use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::Arc;

/// Names of a directory that are asked for at once, in bytes.
const LIST_BYTES: usize = 32 << 10;
/// Of a range that will be needed Linux fetches no more at a call than it reads ahead, and is silent about the rest: so much is what it
/// reads ahead unless somebody sets it otherwise, in bytes.
const READ_AHEAD: u64 = 128 << 10;

/// A real directory.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// The directory at `root`, made if it is not there.
    ///
    /// # Errors
    /// `ReadOnly`, `NoSpace`, `Io`.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let disk = Self { root: root.into() };
        disk.make_directories("")?;
        Ok(disk)
    }

    /// The directory at `root`, which must be there.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let disk = Self { root: root.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::open(&disk.root, flags, Mode::empty()).map_err(|e| disk.error(e, Operation::Open, ""))?;
        Ok(disk)
    }

    fn error(&self, errno: Errno, operation: Operation, name: &str) -> MediaError {
        error(errno, operation, &self.root.join(name).to_string_lossy(), 0)
    }

    fn full(&self, name: &str, operation: Operation) -> Result<PathBuf> {
        if is_inside(name) { Ok(self.root.join(name)) } else { Err(self.error(Errno::INVAL, operation, name)) }
    }

    /// Makes the directory and those above it, and makes the name of each new one durable.
    fn make_directories(&self, name: &str) -> Result<()> {
        let wanted = self.full(name, Operation::Create)?;
        let mut missing = Vec::new();
        for directory in wanted.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            match fs::stat(directory) {
                Ok(_) => break,
                Err(Errno::NOENT) => missing.push(directory),
                Err(e) => return Err(error(e, Operation::Create, &directory.to_string_lossy(), 0)),
            }
        }
        for directory in missing.iter().rev() {
            let failed = |e| error(e, Operation::Create, &directory.to_string_lossy(), 0);
            // What is in it is what is on somebody's disk: nobody else's business.
            match fs::mkdir(*directory, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(e)),
            }
            let above = directory.parent().filter(|path| !path.as_os_str().is_empty());
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let above = fs::open(above.unwrap_or(std::path::Path::new(".")), flags, Mode::empty()).map_err(failed)?;
            fs::fsync(above).map_err(failed)?;
        }
        Ok(())
    }

    fn open_file(&self, name: &str, flags: OFlags, operation: Operation) -> Result<DiskFile> {
        let path = self.full(name, operation)?;
        let failed = |e| self.error(e, operation, name);
        // Regular files know no waiting; a pipe that lies in the place of one would wait for its other end.
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        let kind = fs::FileType::from_raw_mode(fs::fstat(&fd).map_err(failed)?.st_mode);
        if kind != fs::FileType::RegularFile {
            return Err(not_a_file(&path, operation));
        }
        Ok(DiskFile { fd, direct: None, path: path.to_string_lossy().into_owned() })
    }

    fn stat(&self, name: &str) -> Result<fs::Stat> {
        let path = self.full(name, Operation::Length)?;
        let stat = fs::stat(&path).map_err(|e| self.error(e, Operation::Length, name))?;
        if fs::FileType::from_raw_mode(stat.st_mode) != fs::FileType::RegularFile {
            return Err(not_a_file(&path, Operation::Length));
        }
        Ok(stat)
    }

    pub(super) fn streamed(&self, name: &str) -> Result<DiskFile> {
        let file = self.create_file(name)?;
        Ok(DiskFile { direct: Direct::open(file.path.as_ref()), ..file })
    }

    fn create_file(&self, name: &str) -> Result<DiskFile> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        match self.open_file(name, flags, Operation::Create) {
            // The storage's own directory was there when it was opened: one that was taken away is not made again.
            Err(e) if e.is_not_found() && fs::stat(&self.root).is_ok() => {
                let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                self.make_directories(directory)?;
                self.open_file(name, flags, Operation::Create)
            }
            other => other,
        }
    }
}

impl Storage for Disk {
    fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        Ok(Arc::new(self.create_file(name)?))
    }

    fn create_streamed(&self, name: &str) -> Result<Arc<dyn File>> {
        Ok(Arc::new(self.streamed(name)?))
    }

    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn File>> {
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        Ok(Arc::new(self.open_file(name, flags, Operation::Open)?))
    }

    fn length(&self, name: &str) -> Result<u64> {
        Ok(self.stat(name)?.st_size as u64)
    }

    fn allocated(&self, name: &str) -> Result<u64> {
        // Blocks are of 512 bytes, whatever those of the file system are.
        Ok(self.stat(name)?.st_blocks as u64 * 512)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (source, target) = (self.full(from, Operation::Rename)?, self.full(to, Operation::Rename)?);
        fs::rename(source, target).map_err(|e| self.error(e, Operation::Rename, from))
    }

    fn remove(&self, name: &str) -> Result<()> {
        fs::unlink(self.full(name, Operation::Remove)?).map_err(|e| self.error(e, Operation::Remove, name))
    }

    fn sync_dir(&self, name: &str) -> Result<()> {
        let failed = |e| self.error(e, Operation::SyncDir, name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(self.full(name, Operation::SyncDir)?, flags, Mode::empty()).map_err(failed)?;
        fs::fsync(fd).map_err(failed)
    }

    fn remove_dir(&self, name: &str) -> Result<()> {
        match fs::unlinkat(fs::CWD, self.full(name, Operation::Remove)?, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error(e, Operation::Remove, name)),
        }
    }

    fn list(&self, name: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_name(name, &mut |name| names.push(String::from_utf8_lossy(name).into_owned()))?;
        names.sort_unstable();
        Ok(names)
    }

    fn each_name(&self, name: &str, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let failed = |e| self.error(e, Operation::List, name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match fs::open(self.full(name, Operation::List)?, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        let mut held = Vec::with_capacity(LIST_BYTES);
        let mut entries = fs::RawDir::new(fd, held.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // It was removed since it was opened.
                Err(Errno::NOENT) => break,
                entry => entry.map_err(failed)?,
            };
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => each(name),
            }
        }
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64> {
        let stat = fs::statvfs(&self.root).map_err(|e| self.error(e, Operation::Free, ""))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn sub(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.make_directories(name)?;
        self.look_in(name)
    }

    fn look_in(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self { root: self.full(name, Operation::Open)? }))
    }

    fn path(&self) -> String {
        self.root.to_string_lossy().into_owned()
    }
}

fn not_a_file(path: &std::path::Path, operation: Operation) -> MediaError {
    let path = path.to_string_lossy();
    MediaError::new(MediaErrorKind::NotAFile, operation, &path, 0, "it is not a regular file")
}

#[derive(Debug)]
pub(super) struct DiskFile {
    fd: OwnedFd,
    pub(super) direct: Option<Direct>,
    path: String,
}

impl DiskFile {
    fn error(&self, errno: Errno, operation: Operation, offset: u64) -> MediaError {
        error(errno, operation, &self.path, offset)
    }
}

impl File for DiskFile {
    fn read_vectored_at(&self, offset: u64, mut out: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let mut done = 0;
        IoSliceMut::advance_slices(&mut out, 0);
        while !out.is_empty() {
            let batch = out.len().min(IOV_MAX);
            let at = offset + done as u64;
            match rustix::io::preadv(&self.fd, &mut out[..batch], at) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    IoSliceMut::advance_slices(&mut out, count);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.error(e, Operation::Read, at)),
            }
        }
        Ok(done)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            match rustix::io::pread(&self.fd, &mut out[done..], at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.error(e, Operation::Read, at)),
            }
        }
        Ok(done)
    }

    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()> {
        let mut done = 0;
        let total: usize = data.iter().map(|slice| slice.len()).sum();
        if let Some(direct) = self.direct.as_ref().filter(|direct| direct.takes(offset, total)) {
            match direct.write(offset, data) {
                // What is below may have changed, or said more than it can do: the cache takes the same bytes to the same place.
                Err((Errno::INVAL, _)) => direct.give_up(),
                other => return other.map_err(|(errno, at)| self.error(errno, Operation::Write, at)),
            }
        }
        let mut first = 0;
        // Bytes of `data[first]` that are written already: a short transfer ends inside a buffer.
        let mut inside = 0;
        while done < total {
            let at = offset + done as u64;
            let written = if inside == 0 {
                rustix::io::pwritev(&self.fd, &data[first..data.len().min(first + IOV_MAX)], at)
            } else {
                rustix::io::pwrite(&self.fd, &data[first][inside..], at)
            };
            match written {
                Ok(0) => return Err(self.error(Errno::NOSPC, Operation::Write, at)),
                Ok(count) => {
                    done += count;
                    inside += count;
                    while first < data.len() && inside >= data[first].len() {
                        inside -= data[first].len();
                        first += 1;
                    }
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.error(e, Operation::Write, at)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        // Once: one that was interrupted may have taken the word of a lost write with it, and the next one would say that all is well.
        fs::fdatasync(&self.fd).map_err(|e| self.error(e, Operation::Sync, 0))
    }

    fn len(&self) -> Result<u64> {
        let stat = fs::fstat(&self.fd).map_err(|e| self.error(e, Operation::Length, 0))?;
        Ok(stat.st_size as u64)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        retry_on_intr(|| fs::ftruncate(&self.fd, length)).map_err(|e| self.error(e, Operation::SetLength, length))
    }

    fn preallocate(&self, range: Extent) -> Result<()> {
        // Reserving much takes long enough to be interrupted; what is reserved already stays so.
        match retry_on_intr(|| fs::fallocate(&self.fd, FallocateFlags::empty(), range.offset, range.length)) {
            Ok(()) => Ok(()),
            // A file system without it (some network ones): the length alone; lack of room then shows at a write.
            Err(Errno::OPNOTSUPP) if self.len()? < range.end() => self.set_len(range.end()),
            Err(Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(self.error(e, Operation::Preallocate, range.offset)),
        }
    }

    fn punch(&self, range: Extent) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fs::fallocate(&self.fd, flags, range.offset, range.length)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.write_zeros(range),
            Err(e) => Err(self.error(e, Operation::Punch, range.offset)),
        }
    }

    fn will_need(&self, range: Extent) {
        let mut at = range.offset;
        while at < range.end() {
            let length = (range.end() - at).min(READ_AHEAD);
            // Only a hint: who reads finds out what is wrong.
            let _ = fs::fadvise(&self.fd, at, std::num::NonZero::new(length), fs::Advice::WillNeed);
            at += length;
        }
    }

    fn will_sync(&self, range: Extent) {
        // To drop pages from the cache the system begins with writing those that are not written: they stay until they are.
        let _ = fs::fadvise(&self.fd, range.offset, std::num::NonZero::new(range.length), fs::Advice::DontNeed);
    }

    fn next_data(&self, offset: u64) -> Result<Option<Extent>> {
        let failed = |e| self.error(e, Operation::Seek, offset);
        let length = self.len()?;
        if offset >= length {
            return Ok(None);
        }
        let start = match fs::seek(&self.fd, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(Extent::new(offset, length - offset))),
            Err(e) => return Err(failed(e)),
        };
        let end = match fs::seek(&self.fd, SeekFrom::Hole(start)) {
            Ok(end) => end,
            // The file was cut in between, as a segment is that gets its footer: there is no data any more.
            Err(Errno::NXIO) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        Ok(Some(Extent::new(start, end.max(start) - start)).filter(|run| !run.is_empty()))
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }

    fn path(&self) -> &str {
        &self.path
    }
}

impl Raw for DiskFile {
    fn cut(&self, offset: u64, bytes: usize) -> Cut {
        let direct = self.direct.as_ref().filter(|direct| direct.takes(offset, bytes));
        direct.map_or_else(|| Cut::cached(offset), |direct| direct.cut(offset))
    }

    fn descriptor(&self, way: Way) -> BorrowedFd<'_> {
        let direct = self.direct.as_ref().filter(|_| way == Way::Direct);
        direct.map_or_else(|| self.fd.as_fd(), Direct::fd)
    }

    fn give_up_direct(&self) {
        self.direct.iter().for_each(Direct::give_up);
    }

    fn error(&self, errno: i32, operation: Operation, offset: u64) -> MediaError {
        self.error(Errno::from_raw_os_error(errno), operation, offset)
    }
}

impl DiskFile {
    /// Zeros by writing, inside the file's length, where holes cannot be punched.
    fn write_zeros(&self, range: Extent) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let end = range.end().min(self.len()?);
        let mut at = range.offset;
        while at < end {
            let count = (end - at).min(ZEROS.len() as u64);
            self.write_all_at(at, &ZEROS[..count as usize])?;
            at += count;
        }
        Ok(())
    }
}

fn error(errno: Errno, operation: Operation, path: &str, offset: u64) -> MediaError {
    let kind = match errno {
        Errno::NOSPC | Errno::DQUOT => MediaErrorKind::NoSpace,
        Errno::NOENT | Errno::NOTDIR => MediaErrorKind::NotFound,
        Errno::EXIST => MediaErrorKind::Exists,
        // A directory, a socket, a device that is not there.
        Errno::ISDIR | Errno::NXIO | Errno::NODEV => MediaErrorKind::NotAFile,
        Errno::ROFS | Errno::ACCESS | Errno::PERM => MediaErrorKind::ReadOnly,
        _ => MediaErrorKind::Io,
    };
    let message = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    MediaError::new(kind, operation, path, offset, &message)
}
