//! A disk that is protected: opening it, locking it against others, and telling whether others changed it.

use crate::sys::lock;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What kind of file a source is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceKind {
    /// A raw image.
    Image,
    /// A block device. Its times say nothing about its content.
    BlockDevice,
}

/// What is stored at a clean stop, to tell at the next start whether somebody else changed an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Bytes.
    pub size: u64,
    /// Which file system, by what it says of itself: unlike a device number it stays over reboots.
    pub file_system: u64,
    /// Inode number there.
    pub inode: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Last change of the inode, nanoseconds since 1970.
    pub changed_ns: i64,
}

impl Facts {
    /// As 40 bytes, little endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.modified_ns.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.changed_ns.to_le_bytes());
        bytes[32..].copy_from_slice(&self.file_system.to_le_bytes());
        bytes
    }

    /// Whether both are of one file, however it changed.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.file_system, self.inode) == (other.file_system, other.inode)
    }

    /// From those bytes; `None` where they are none of these.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let [size, inode, modified, changed, file_system] = words else { return None };
        Some(Self {
            size: u64::from_le_bytes(*size),
            inode: u64::from_le_bytes(*inode),
            modified_ns: i64::from_le_bytes(*modified),
            changed_ns: i64::from_le_bytes(*changed),
            file_system: u64::from_le_bytes(*file_system),
        })
    }
}

/// Why a source cannot be protected.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be opened for reading and writing.
    #[error("cannot open {path}: {source}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("{path} is neither a raw image nor a block device")]
    NotADisk {
        /// Which.
        path: String,
    },
    /// It is a file of a replica.
    #[error("{path} lies inside the replica {replica}")]
    InReplica {
        /// Which.
        path: String,
        /// The replica's directory.
        replica: String,
    },
    /// Nothing is in it: which size the disk is to have nobody can know.
    #[error(
        "{path} is empty: for a new disk give it a size first, such as `truncate -s 10G {path}`; else name the image that was meant"
    )]
    Empty {
        /// Which.
        path: String,
    },
    /// A block device without a medium.
    #[error("{path} has no medium: its size is 0 bytes")]
    NoMedium {
        /// Which.
        path: String,
    },
    /// It was given before, perhaps under another name.
    #[error("{second} is the same disk as {first}: give each disk once")]
    Twice {
        /// As it was given first.
        first: String,
        /// As it was given again.
        second: String,
    },
    /// The size is none a disk has.
    #[error(
        "{path} has {size} bytes: a disk has at least one and only whole sectors of 512 bytes; `truncate -s %512 {path}` rounds an image up"
    )]
    Size {
        /// Which.
        path: String,
        /// Bytes.
        size: u64,
    },
    /// It begins like an image that is not raw: writing to it as raw would ruin it.
    #[error(
        "{path} is a {format} image, not a raw one: convert it with `qemu-img convert -O raw {path} NEW`, or serve it raw with `qemu-nbd` and protect that"
    )]
    NotRaw {
        /// Which.
        path: String,
        /// What it looks like.
        format: &'static str,
    },
    /// Another program works on it.
    #[error("{path} is in use by another program (it holds the {what} lock): stop that program first")]
    Locked {
        /// Which.
        path: String,
        /// Which of the locks.
        what: &'static str,
    },
}

/// An open, locked source.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    kind: SourceKind,
    size: u64,
    found: Option<Facts>,
}

/// QEMU's locks on images: a byte for each permission that is used, and a hundred bytes on one for each that is not shared.
const QEMU_USED: i64 = 100;
const QEMU_UNSHARED: i64 = 200;
/// Offset and name of the permissions that we use: consistent read, write, resize.
const PERMISSIONS: [(i64, &str); 3] = [(0, "consistent read"), (1, "write"), (3, "resize")];
/// Those we do not share: nobody else may write or resize; reading is their own risk.
const UNSHARED: [(i64, &str); 2] = [(1, "write"), (3, "resize")];

impl Source {
    /// Opens and locks a raw image or block device. A block device is opened exclusively, so a mounted one is refused; an image
    /// is locked as QEMU locks images, so that QEMU's programs and a second `cdp` are refused while we hold it, and we while they do.
    ///
    /// # Errors
    /// What keeps it from being protected.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        let failed = |source| SourceError::Open { path: name.clone(), source };
        let kind = match std::fs::metadata(path).map_err(failed)?.file_type() {
            kind if kind.is_file() => SourceKind::Image,
            kind if kind.is_block_device() => SourceKind::BlockDevice,
            _ => return Err(SourceError::NotADisk { path: name }),
        };
        let exclusive = if kind == SourceKind::BlockDevice { libc::O_EXCL } else { 0 };
        let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
        let file = opened.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => SourceError::Locked { path: name.clone(), what: "exclusive" },
            _ => failed(error),
        })?;
        let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed)?;
        if size == 0 {
            return Err(match kind {
                SourceKind::Image => SourceError::Empty { path: name },
                SourceKind::BlockDevice => SourceError::NoMedium { path: name },
            });
        }
        if !size.is_multiple_of(cdp_core::types::SECTOR) || size > cdp_core::types::DISK_MAX {
            return Err(SourceError::Size { path: name, size });
        }
        let mut source = Self { path: path.to_owned(), file, kind, size, found: None };
        source.found = source.facts().map_err(failed)?;
        if kind == SourceKind::Image {
            source.refuse_formats()?;
            lock_image(&source.file, path)?;
        }
        Ok(source)
    }

    /// The same once more, as it was found: both hold the lock.
    ///
    /// # Errors
    /// What the system says.
    pub fn again(&self) -> io::Result<Self> {
        let (path, file, size) = (self.path.clone(), self.file.try_clone()?, self.current_size()?);
        Ok(Self { path, file, kind: self.kind, size, found: self.found })
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes as the system says now.
    ///
    /// # Errors
    /// When it can no longer be asked.
    pub fn current_size(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?)
    }

    /// What was true when it was opened, before anything of ours touched it.
    #[must_use]
    pub fn found(&self) -> Option<Facts> {
        self.found
    }

    /// What tells whether somebody else changed it; none for block devices, whose times do not tell.
    ///
    /// # Errors
    /// When the file can no longer be asked.
    pub fn facts(&self) -> io::Result<Option<Facts>> {
        if self.kind == SourceKind::BlockDevice {
            return Ok(None);
        }
        let found = self.file.metadata()?;
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Ok(Some(Facts {
            size: found.size(),
            file_system: rustix::fs::fstatvfs(&self.file)?.f_fsid,
            inode: found.ino(),
            modified_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
            changed_ns: nanoseconds(found.ctime(), found.ctime_nsec()),
        }))
    }

    fn refuse_formats(&self) -> Result<(), SourceError> {
        const FORMATS: [(&[u8], &str); 5] =
            [(b"QFI\xfb", "qcow2"), (b"KDMV", "VMDK"), (b"conectix", "VHD"), (b"vhdxfile", "VHDX"), (b"QED\0", "QED")];
        let mut head = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut head, 0)
            .map_err(|source| SourceError::Open { path: self.path.display().to_string(), source })?;
        match FORMATS.into_iter().find(|(magic, _)| head.starts_with(magic)) {
            Some((_, format)) => Err(SourceError::NotRaw { path: self.path.display().to_string(), format }),
            None => Ok(()),
        }
    }
}

/// What makes two paths the same disk: file system and inode of a file, the number of a device.
///
/// # Errors
/// When the path cannot be asked.
pub fn identity(path: &Path) -> io::Result<(bool, u64, u64)> {
    let found = std::fs::metadata(path)?;
    Ok(if found.file_type().is_block_device() { (true, found.rdev(), 0) } else { (false, found.dev(), found.ino()) })
}

/// Locks an image for ourselves. Takes the locks first and looks for others' after, as QEMU does: of two who come at once at
/// least one sees the other.
///
/// # Errors
/// [`SourceError::Locked`] when another program works on it.
pub fn lock_image(image: &File, name: &Path) -> Result<(), SourceError> {
    let file = image.as_fd();
    let path = || name.display().to_string();
    let failed = |source| SourceError::Open { path: path(), source };
    let used = PERMISSIONS.map(|(byte, _)| QEMU_USED + byte);
    let unshared = UNSHARED.map(|(byte, _)| QEMU_UNSHARED + byte);
    for byte in used.into_iter().chain(unshared) {
        lock::take(file, lock::Kind::Shared, byte).map_err(failed)?;
    }
    let theirs = PERMISSIONS.map(|(byte, what)| (QEMU_UNSHARED + byte, what)).into_iter();
    for (byte, what) in theirs.chain(UNSHARED.map(|(byte, what)| (QEMU_USED + byte, what))) {
        // An exclusive lock is only asked about, never taken: others' shared ones stay possible.
        if lock::is_held(file, lock::Kind::Exclusive, byte).map_err(failed)? {
            return Err(SourceError::Locked { path: path(), what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(directory: &tempfile::TempDir, content: &[u8]) -> PathBuf {
        let path = directory.path().join("disk.img");
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn a_second_protector_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = image(&directory, &[1; 4096]);
        let first = Source::open(&path).unwrap();
        let second = Source::open(&path).unwrap_err();
        assert!(matches!(second, SourceError::Locked { .. }), "{second}");
        let again = first.again().unwrap();
        drop(first);
        assert!(Source::open(&path).is_err(), "who has it once more holds the lock");
        drop(again);
        Source::open(&path).unwrap();
    }

    #[test]
    fn what_is_no_raw_disk_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Source::open(directory.path()), Err(SourceError::NotADisk { .. })));
        assert!(matches!(Source::open(&directory.path().join("none")), Err(SourceError::Open { .. })));
        let odd = Source::open(&image(&directory, &[1; 700])).unwrap_err();
        assert!(odd.to_string().contains("700 bytes") && odd.to_string().contains("truncate"), "{odd}");
        let mut qcow = vec![0; 1024];
        qcow[..4].copy_from_slice(b"QFI\xfb");
        let qcow = Source::open(&image(&directory, &qcow)).unwrap_err();
        assert!(qcow.to_string().contains("qcow2"), "{qcow}");
    }

    #[test]
    fn facts_change_with_the_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = image(&directory, &[1; 4096]);
        let source = Source::open(&path).unwrap();
        let before = source.facts().unwrap();
        assert_eq!(before, source.facts().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(source.file(), &[2], 0).unwrap();
        assert_ne!(before, source.facts().unwrap());
    }
}
