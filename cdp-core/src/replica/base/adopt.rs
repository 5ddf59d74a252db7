//! A base of an image that is there already: an older copy of the disk that somebody brought, so that only what differs has to travel.
//!
//! The image lies where the base's belongs before this begins; it is read once and stays as it is. What the base holds then is
//! right in itself, and need not be what the source holds: all of it is compared afterwards. A replica that is sealed at rest can
//! keep no such image; there the other copy is read like a source, and written by [`BaseWriter`].

use super::super::files::BASE_DIRECTORY;
use super::super::sidecar::{Root, Seed};
use super::{BaseWriter, Checkpoint, ResumeError, file_names};
use crate::journal::SeedingInfo;
use crate::media::{MediaError, Storage};
use crate::types::{BLOCK, DiskId, Lsn, ReplicaId};

/// Bytes that one step reads.
const PIECE: usize = 1 << 20;
/// The most of a hole that one step passes, in bytes: its pages are counted one by one.
const HOLE_MAX: u64 = 64 << 30;

/// Why an image is not taken for a base.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The media failed, or there is none.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// It is larger than the disk: of another one, as it seems, and what is behind would be cut off.
    #[error("{path} has {found} bytes, and the disk {expected}: it is not an older copy of it")]
    Larger {
        /// The image.
        path: String,
        /// Bytes of the disk.
        expected: u64,
        /// What it has.
        found: u64,
    },
}

/// A base that is being made of an image.
#[derive(Debug)]
pub struct Adoption {
    writer: BaseWriter,
    buffer: Vec<u8>,
}

impl Adoption {
    /// Takes the image that is in the base's place. One that is shorter than the disk gets zeros behind it.
    ///
    /// # Errors
    /// When there is none, it is larger than the disk, or the media fail.
    pub fn begin(storage: &dyn Storage, replica: ReplicaId, disk: DiskId, size: u64) -> Result<Self, AdoptError> {
        let (image, sidecar) = file_names(disk);
        let image = storage.open(&image, true)?;
        let found = image.len()?;
        if found > size.next_multiple_of(BLOCK) {
            return Err(AdoptError::Larger { path: image.path().to_owned(), expected: size, found });
        }
        match storage.remove(&sidecar) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        // What the last block has behind the disk's end has to be zeros.
        image.set_len(size)?;
        image.set_len(size.next_multiple_of(BLOCK))?;
        let sidecar = storage.create(&sidecar)?;
        storage.sync_dir(BASE_DIRECTORY)?;
        let begun = BaseWriter::on((disk, Seed::new(replica, disk)), image, sidecar, size);
        Ok(Self::by(BaseWriter { adopts: true, ..begun }))
    }

    /// Goes on where a durable manifest says.
    ///
    /// # Errors
    /// When nothing can be gone on with, or the media fail.
    pub fn resume(
        storage: &dyn Storage,
        replica: ReplicaId,
        info: &SeedingInfo,
        size: u64,
    ) -> Result<Self, ResumeError> {
        BaseWriter::go_on(storage, replica, info, size, (None, true)).map(Self::by)
    }

    fn by(writer: BaseWriter) -> Self {
        Self { writer, buffer: vec![0; PIECE] }
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.writer.position()
    }

    /// Takes what comes next, at most 1 MiB of data or a hole. Whether there is more.
    ///
    /// # Errors
    /// When the media fail.
    pub fn step(&mut self) -> Result<bool, MediaError> {
        let (writer, buffer) = (&mut self.writer, &mut self.buffer);
        let (at, size) = (writer.at, writer.size);
        let begin = writer.image.next_data(at)?.map_or(size, |data| data.offset.min(size));
        let hole = if begin == size { size } else { begin / BLOCK * BLOCK };
        if hole > at {
            writer.zeros((hole - at).min(HOLE_MAX), Lsn::ZERO)?;
        } else if at < size {
            let data = &mut buffer[..(size - at).min(PIECE as u64) as usize];
            writer.image.read_exact_at(at, data)?;
            writer.data(data, Lsn::ZERO)?;
        }
        Ok(writer.at < size)
    }

    /// As of a copy.
    ///
    /// # Errors
    /// When the media fail.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, MediaError> {
        self.writer.checkpoint()
    }

    /// Ends it: everything is durable when this returns, but for the root, which belongs into the manifest.
    ///
    /// # Errors
    /// When the media fail.
    pub fn finish(mut self, storage: &dyn Storage) -> Result<Root, MediaError> {
        while self.step()? {}
        self.writer.finish(storage, Lsn::ZERO)
    }
}

#[cfg(test)]
mod tests;
