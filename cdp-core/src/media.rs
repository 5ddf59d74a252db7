//! Files as the rest of the crate sees them: a [`Storage`] is a directory, a [`File`] a run of bytes in it.
//!
//! Two implementations: [`Disk`] on a real directory, [`Memory`] for tests and for measuring bookkeeping alone.
//! [`Faulty`] wraps either and fails on demand. Everything here blocks; whoever may not block drives it from a thread.
//!
//! What is promised and what is not:
//! * Names are relative, parts are joined by `/`; `.` and `..` are refused.
//! * [`File::sync`] makes the file's bytes and length survive a power cut, not its name: that takes [`Storage::sync_dir`].
//! * A failed write or sync leaves the touched bytes in an unknown state. Nothing here retries: the caller poisons the file, or,
//!   after a write that found no room, writes the same again.

mod direct;
mod disk;
mod faulty;
mod memory;
mod portion;

pub use disk::Disk;
pub use faulty::{Fault, Faults, Faulty, Hang};
pub use memory::Memory;
pub use portion::{Cut, Portion, Way};

use crate::types::Extent;
use bytes::Bytes;
use rustix::fd::BorrowedFd;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

/// What was tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// Make a new file.
    Create,
    /// Open an existing file.
    Open,
    /// Read bytes.
    Read,
    /// Write bytes.
    Write,
    /// Make bytes and length durable.
    Sync,
    /// Make names durable.
    SyncDir,
    /// Ask for the length.
    Length,
    /// Cut or grow.
    SetLength,
    /// Reserve room.
    Preallocate,
    /// Give room back inside the file.
    Punch,
    /// Look for data between holes.
    Seek,
    /// Give a file another name.
    Rename,
    /// Remove a file.
    Remove,
    /// List names.
    List,
    /// Ask how much room is left.
    Free,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::SyncDir => "sync directory",
            Self::Length => "ask the length of",
            Self::SetLength => "set the length of",
            Self::Preallocate => "preallocate",
            Self::Punch => "punch a hole into",
            Self::Seek => "look for data in",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::List => "list",
            Self::Free => "ask for free room in",
        })
    }
}

/// How it went wrong: a kind for each thing that a caller does differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MediaErrorKind {
    /// No room (or no quota). Goes by itself when there is.
    NoSpace,
    /// No such file or directory.
    NotFound,
    /// The name is taken.
    Exists,
    /// The media or the permissions allow no change.
    ReadOnly,
    /// The name is a pipe's, a device's, a socket's or a directory's: nothing of ours, and reading it might never end.
    NotAFile,
    /// The file ends before what should be read.
    Short,
    /// Everything else: what was touched is in an unknown state.
    Io,
}

/// An operation on a file that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot {operation} {path} at byte {offset}: {message}")]
pub struct MediaError {
    /// What a caller may do about it.
    pub kind: MediaErrorKind,
    /// What was tried.
    pub operation: Operation,
    /// On which file or directory.
    pub path: String,
    /// Where in it, in bytes; 0 where that means nothing.
    pub offset: u64,
    /// What the system said.
    pub message: String,
}

impl MediaError {
    /// An error with all its facts.
    #[must_use]
    pub fn new(kind: MediaErrorKind, operation: Operation, path: &str, offset: u64, message: &str) -> Self {
        Self { kind, operation, path: path.to_owned(), offset, message: message.to_owned() }
    }

    /// Whether the file or directory was not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind == MediaErrorKind::NotFound
    }

    /// Whether room was lacking.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        self.kind == MediaErrorKind::NoSpace
    }
}

/// What operations on media give.
pub type Result<T> = std::result::Result<T, MediaError>;

/// A directory of files. All methods may be called from several threads at once.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Makes a new, empty file for reading and writing; directories on its way are made too.
    ///
    /// # Errors
    /// `Exists` when the name is taken.
    fn create(&self, name: &str) -> Result<Arc<dyn File>>;

    /// Like [`Storage::create`], for a file that is written once from front to back and seldom read soon after: large writes
    /// on multiples of a sector may go past the system's cache.
    ///
    /// # Errors
    /// As [`Storage::create`].
    fn create_streamed(&self, name: &str) -> Result<Arc<dyn File>> {
        self.create(name)
    }

    /// Opens an existing file, for writing too if `write`. Never waits for a writer, as a pipe would make it.
    ///
    /// # Errors
    /// `NotFound`, `NotAFile`, `ReadOnly`.
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn File>>;

    /// Length of a file in bytes, without opening it where that is cheaper.
    ///
    /// # Errors
    /// As [`Storage::open`].
    fn length(&self, name: &str) -> Result<u64> {
        self.open(name, false)?.len()
    }

    /// Bytes that a file takes on the media: of one with holes less than its length.
    ///
    /// # Errors
    /// As [`Storage::open`].
    fn allocated(&self, name: &str) -> Result<u64> {
        self.length(name)
    }

    /// Gives a file another name in one step; what had the name is replaced.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, `Io`.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Removes a file. Those who hold it open go on reading.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, `Io`.
    fn remove(&self, name: &str) -> Result<()>;

    /// Removes an empty directory, if it is there.
    ///
    /// # Errors
    /// When it holds something, or the media do not let us.
    fn remove_dir(&self, name: &str) -> Result<()>;

    /// Makes the names in the directory `name` durable; the empty name is the storage's own directory.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    fn sync_dir(&self, name: &str) -> Result<()>;

    /// The names of the files and directories in the directory `name`, sorted; empty if there is no such directory.
    ///
    /// # Errors
    /// `Io`.
    fn list(&self, name: &str) -> Result<Vec<String>>;

    /// Calls `each` for the same names as bytes, in no order: who looks for a few kinds among many needs no list.
    ///
    /// # Errors
    /// As [`Storage::list`].
    fn each_name(&self, name: &str, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.list(name)?.iter().for_each(|name| each(name.as_bytes()));
        Ok(())
    }

    /// Bytes that may still be written by us.
    ///
    /// # Errors
    /// `Io`.
    fn free_bytes(&self) -> Result<u64>;

    /// A directory inside this one as a storage of its own, made (with its name durable) if it is not there.
    ///
    /// # Errors
    /// `ReadOnly`, `NoSpace`, `Io`.
    fn sub(&self, name: &str) -> Result<Arc<dyn Storage>>;

    /// The same for who only looks: nothing is made, and where there is no such directory no file of it is found.
    ///
    /// # Errors
    /// `Io`.
    fn look_in(&self, name: &str) -> Result<Arc<dyn Storage>>;

    /// The path as people know it, for messages.
    fn path(&self) -> String;
}

/// An open file. All methods may be called from several threads at once; overlapping writes are the caller's business.
pub trait File: Send + Sync + fmt::Debug {
    /// Reads into several buffers one after another; gives the bytes read, fewer than asked for only at the file's end.
    ///
    /// # Errors
    /// `Io`.
    fn read_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<usize>;

    /// Writes all buffers one after another.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; any part may have been written.
    fn write_vectored_at(&self, offset: u64, data: &[IoSlice<'_>]) -> Result<()>;

    /// Makes every write that completed before this call durable, with the length.
    ///
    /// # Errors
    /// `Io`: then nothing is known about any write since the last success, and asking again proves nothing.
    fn sync(&self) -> Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// `Io`.
    fn len(&self) -> Result<u64>;

    /// Whether the file holds no byte.
    ///
    /// # Errors
    /// `Io`.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or grows (with zeros) to `length` bytes.
    ///
    /// # Errors
    /// `Io`.
    fn set_len(&self, length: u64) -> Result<()>;

    /// Reserves room so that writing there cannot fail for lack of it; the file grows, new bytes read as zeros.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    fn preallocate(&self, range: Extent) -> Result<()>;

    /// Gives the room of a range back; it then reads as zeros, the length stays.
    ///
    /// # Errors
    /// `Io`.
    fn punch(&self, range: Extent) -> Result<()>;

    /// The next run of bytes at or after `offset` that is not a hole; none up to the end.
    ///
    /// # Errors
    /// `Io`.
    fn next_data(&self, offset: u64) -> Result<Option<Extent>>;

    /// A hint that a range is read soon: it may be fetched meanwhile. Does nothing where nothing is gained.
    fn will_need(&self, _: Extent) {}

    /// A hint that what was written to a range is synced soon: it may go to the media meanwhile. Does nothing where nothing is
    /// gained.
    fn will_sync(&self, _: Extent) {}

    /// The file's descriptors, if it has any, for drivers that hand writes and syncs to the system themselves.
    fn raw(&self) -> Option<&dyn Raw> {
        None
    }

    /// Path for messages.
    fn path(&self) -> &str;

    /// Reads into one buffer; fewer bytes than asked for only at the file's end.
    ///
    /// # Errors
    /// As for reading into several.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.read_vectored_at(offset, &mut [IoSliceMut::new(out)])
    }

    /// Fills `out`.
    ///
    /// # Errors
    /// `Short` when the file ends before; else as for reading.
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let expected = out.len();
        let found = self.read_at(offset, out)?;
        self.is_whole(offset, expected, found)
    }

    /// Fills all buffers, one after another.
    ///
    /// # Errors
    /// `Short` when the file ends before; else as for reading.
    fn read_exact_vectored_at(&self, offset: u64, out: &mut [IoSliceMut<'_>]) -> Result<()> {
        let expected = out.iter().map(|slice| slice.len()).sum();
        let found = self.read_vectored_at(offset, out)?;
        self.is_whole(offset, expected, found)
    }

    /// Whether as many bytes were read as were wanted.
    ///
    /// # Errors
    /// `Short` when they were not.
    fn is_whole(&self, offset: u64, expected: usize, found: usize) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let message = format!("the file ends after {found} of {expected} bytes");
        Err(MediaError::new(MediaErrorKind::Short, Operation::Read, self.path(), offset, &message))
    }

    /// Writes all bytes of one buffer.
    ///
    /// # Errors
    /// As for writing several.
    fn write_all_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_vectored_at(offset, &[IoSlice::new(data)])
    }

    /// Writes all buffers one after another without copying them.
    ///
    /// # Errors
    /// As for writing several.
    fn write_at(&self, offset: u64, data: &[Bytes]) -> Result<()> {
        let slices: Vec<_> = data.iter().map(|data| IoSlice::new(data)).collect();
        self.write_vectored_at(offset, &slices)
    }
}

/// A file that has descriptors. What is written and synced through them is as if the file itself had done it.
pub trait Raw {
    /// Cuts a write of so many bytes into what is to be handed to the system, and says to which descriptor.
    fn cut(&self, offset: u64, bytes: usize) -> Cut;

    /// The descriptor of that way. The cached one is synced, and takes any portion.
    fn descriptor(&self, way: Way) -> BorrowedFd<'_>;

    /// The direct descriptor refused a portion as invalid: no write goes that way any more.
    fn give_up_direct(&self);

    /// What the system said, as the file says it.
    fn error(&self, errno: i32, operation: Operation, offset: u64) -> MediaError;
}

/// Joins a directory and a name; either may be empty.
#[must_use]
pub(crate) fn join(directory: &str, name: &str) -> String {
    match (directory, name) {
        ("", name) => name.to_owned(),
        (directory, "") => directory.to_owned(),
        (directory, name) => format!("{directory}/{name}"),
    }
}

/// Whether a name stays inside its storage.
fn is_inside(name: &str) -> bool {
    !name.starts_with('/') && name.split('/').all(|part| part != ".." && part != ".")
}

#[cfg(test)]
mod tests;
