//! What the writer wants done to files, and how it is told what came of it.

use crate::media::MediaError;
use bytes::Bytes;
use std::sync::{Arc, OnceLock};

/// Names an effect until its completion is handed back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EffectId(pub u64);

/// Names an open file between writer and driver; never used again for another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u64);

/// One thing to do. Effects that were handed out may be carried out in any order and at once: the writer hands out only what
/// may be. Each gives one completion, `Close` too.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Make a file, which must not be there (a temporary file's remains are replaced), and reserve room in it; refused with
    /// `NoSpace` where less than `keep_free` bytes would be left.
    Create {
        /// What it is called from now on.
        file: FileId,
        /// Its name in the storage.
        name: String,
        /// Bytes to reserve; 0: none.
        preallocate: u64,
        /// Bytes that must be left.
        keep_free: u64,
        /// Whether remains under this name are removed first.
        replace: bool,
    },
    /// Write all buffers one after another.
    Write {
        /// Where to.
        file: FileId,
        /// First byte.
        offset: u64,
        /// What.
        data: Vec<Bytes>,
    },
    /// Read bytes of a file by its name, as many as the landing is for; fewer are an error.
    Read {
        /// The file's name.
        name: String,
        /// First byte.
        offset: u64,
        /// Where they go.
        into: Landing,
    },
    /// Give back what was reserved behind `length`.
    SetLength {
        /// Of which file.
        file: FileId,
        /// Bytes.
        length: u64,
    },
    /// Make every write that completed before this was handed out durable.
    Sync {
        /// Of which file.
        file: FileId,
    },
    /// Forget the file.
    Close {
        /// Which.
        file: FileId,
    },
    /// Give a file another name; what had the name is replaced.
    Rename {
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// Remove a file; one that is not there is as good.
    Remove {
        /// Its name.
        name: String,
    },
    /// Make names in a directory durable.
    SyncDir {
        /// Which; empty: the storage's own.
        name: String,
    },
}

impl Effect {
    /// The bytes that it writes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Write { data, .. } => data.iter().map(|piece| piece.len() as u64).sum(),
            _ => 0,
        }
    }
}

/// Where the bytes of a read go. Who asks for them keeps a clone and takes them when the effect is completed.
#[derive(Clone, Debug)]
pub struct Landing {
    length: usize,
    bytes: Arc<OnceLock<Bytes>>,
}

impl Landing {
    /// For so many bytes; who asks bounds them.
    #[must_use]
    pub fn new(length: usize) -> Self {
        Self { length, bytes: Arc::default() }
    }
    /// How many bytes are to be read.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
    /// What was read. The first that is put here stays.
    pub fn fill(&self, bytes: Bytes) {
        // A second one is a driver's mistake, and no better than the first.
        let _ = self.bytes.set(bytes);
    }
    /// What was put here.
    #[must_use]
    pub fn bytes(&self) -> Option<Bytes> {
        self.bytes.get().cloned()
    }
}

/// What came of an effect.
pub type Outcome = Result<(), MediaError>;
