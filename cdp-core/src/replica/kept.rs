//! Moments that outlast the merges behind them.
//!
//! When a merge goes on from a moment that must not end, the old content of every block that it changes is put into a store of
//! the moment first ([`Space`]): an overlay made backwards. The moment is the base with the overlays of all kept moments from the
//! newest down to its own above it; `FORMAT.md`, section 10, argues why a crash changes none of them.
//!
//! A space is a session's store ([`Session`]): as crash-proof as the journal, packed and checked in the same way.

use super::base::Base;
use super::session::{self, Session, SessionError, SessionOptions, own_path};
use super::{Bases, ReplicaError, ReplicaView};
use crate::frame::{Compression, Payload};
use crate::journal::{
    IdSource, KeptInfo, Manifest, OpenError, Origin, PathElement, Reader, TimelineInfo, TimelineRole, TimelineState,
    look_through,
};
use crate::media::{MediaError, Storage};
use crate::trust::Keyring;
use crate::types::{DiskId, Extent, Now, Timeline};
use bytes::Bytes;
use std::sync::Arc;

/// Where the stores of kept moments are, inside the replica's directory.
pub const KEPT_DIRECTORY: &str = "kept";
/// Memory for decoded chunks of one store, in bytes: a path may go through a thousand.
const CACHE_BYTES: u64 = 1 << 20;
/// The most bytes of one record.
const RECORD_BYTES: u64 = 1 << 20;

/// The directory of a kept moment's store, inside the replica's.
#[must_use]
pub fn directory(number: u64) -> String {
    format!("{KEPT_DIRECTORY}/{number:016x}")
}

/// Makes the store of a moment that is to be kept; the manifest may name it when this returns. What is left of an earlier try is
/// removed.
///
/// # Errors
/// When the media fail.
pub fn create(
    storage: &dyn Storage,
    manifest: &Manifest,
    number: u64,
    timeline: Timeline,
    now: Now,
) -> Result<(), OpenError> {
    remove(storage, number)?;
    let store = storage.sub(&directory(number))?;
    let (state, role) = (TimelineState::Open, TimelineRole::Session);
    let info = TimelineInfo {
        id: timeline,
        number: 1,
        parent: None,
        fork: crate::types::Lsn::ZERO,
        last: None,
        state,
        role,
        opened: now.wall,
    };
    session::create(store.as_ref(), manifest, &format!("{number:016x}"), info)?;
    storage.sync_dir(KEPT_DIRECTORY)?;
    Ok(storage.sync_dir("")?)
}

/// Removes a store that no manifest names.
///
/// # Errors
/// When the media fail.
pub fn remove(storage: &dyn Storage, number: u64) -> Result<(), MediaError> {
    remove_named(storage, &directory(number))
}

fn remove_named(storage: &dyn Storage, directory: &str) -> Result<(), MediaError> {
    match storage.list(directory) {
        Err(error) if error.is_not_found() => return Ok(()),
        names => {
            for name in names? {
                storage.remove(&format!("{directory}/{name}"))?;
            }
        }
    }
    storage.remove_dir(directory)
}

/// Removes stores that the manifest does not name. For an owner that begins.
///
/// # Errors
/// When the media fail.
pub fn remove_strays(storage: &dyn Storage, manifest: &Manifest) -> Result<(), MediaError> {
    let named: std::collections::BTreeSet<_> = manifest.kept.iter().map(|kept| directory(kept.number)).collect();
    let listed = match storage.list(KEPT_DIRECTORY) {
        Err(error) if error.is_not_found() => return Ok(()),
        listed => listed?,
    };
    for name in listed.iter().map(|name| format!("{KEPT_DIRECTORY}/{name}")).filter(|name| !named.contains(name)) {
        remove_named(storage, &name)?;
    }
    Ok(())
}

/// The overlays from the newest kept moment down to the one with this number, as they are now. There may be a thousand, each with
/// many segments: all of them are read beside `reader`, within its bound of open files.
///
/// # Errors
/// When a store does not open, or is damaged.
pub fn path(
    storage: &dyn Storage,
    kept: &[KeptInfo],
    number: u64,
    (keys, reader): (&Keyring, &Reader),
) -> Result<Vec<PathElement>, ReplicaError> {
    let (mut path, holder) = (Vec::new(), keys.of_stores());
    for info in kept.iter().rev().take_while(|info| info.number >= number) {
        let store = storage.look_in(&directory(info.number))?;
        // The newest may have been written to when the power went: what is torn there is still whole in the base.
        let looked = look_through(store.as_ref(), "", None, &holder)?;
        if let Some(damage) = looked.damage {
            return Err(OpenError::Damaged(Box::new(damage)).into());
        }
        let reader = Arc::new(Reader::new(store, "", CACHE_BYTES).with_keys(looked.keys).beside(reader));
        path.extend(own_path(&looked.manifest.timelines, &looked.snapshot, &reader));
    }
    Ok(path)
}

/// The store of the newest kept moment, as the one who merges has it open.
#[derive(Debug)]
pub struct Space {
    session: Session,
}

impl Space {
    /// Opens it for writing; its only writer is the owner of the replica. So much stays free on the media, and its segments are at
    /// most so large, in bytes. `keys` are the replica's: where that is sealed at rest,
    /// this is too.
    ///
    /// # Errors
    /// When it does not open, or is damaged.
    pub fn open(
        storage: &dyn Storage,
        number: u64,
        (keep_free_bytes, segment_bytes): (u64, u64),
        (keys, ids): (&Keyring, IdSource),
        now: Now,
    ) -> Result<Self, SessionError> {
        let store = storage.sub(&directory(number)).map_err(|error| SessionError::Open(error.into()))?;
        // It is asked for what was put into it, and for nothing below.
        let moment = ReplicaView::open((Vec::new(), Arc::new(Bases::default())), Vec::new())?;
        let (compression, keys) = (Compression::Zstd(1), keys.of_stores());
        let options = SessionOptions { moment, keep_free_bytes, segment_bytes, compression, keys };
        Ok(Self { session: Session::open(&store, options, ids, now)? })
    }

    /// Takes the content that a range of whole blocks has in the base, but for blocks that are here already. Durable after
    /// [`Self::flush`]; nothing of the range may be changed before.
    ///
    /// # Errors
    /// When the base does not verify, there is no room, or the store failed.
    pub fn copy(&self, now: Now, disk: DiskId, range: Extent, base: &Base) -> Result<u64, SessionError> {
        let mut copied = 0;
        self.session.show(now, disk, range)?;
        for piece in self.session.own(disk, range)?.into_iter().filter(|piece| piece.origin == Origin::Below) {
            copied += self.copy_all(now, disk, piece.extent, base)?;
        }
        Ok(copied)
    }

    fn copy_all(&self, now: Now, disk: DiskId, range: Extent, base: &Base) -> Result<u64, SessionError> {
        let below = |source: super::base::BaseError| crate::journal::ReadError::Below {
            disk,
            offset: range.offset,
            source: source.into(),
        };
        let mut copied = 0;
        for (extent, data) in base.runs(range).map_err(below)? {
            if !data {
                self.session.zero(now, disk, extent, false)?;
                continue;
            }
            let mut at = extent.offset;
            while at < extent.end() {
                let length = (extent.end() - at).min(RECORD_BYTES);
                let mut bytes = vec![0; length as usize];
                base.read(at, &mut bytes).map_err(below)?;
                // Ranges are of whole blocks, so that a payload of them is always one.
                if let Ok(payload) = Payload::new(at, Bytes::from(bytes)) {
                    self.session.write(now, disk, payload)?;
                }
                copied += length;
                at += length;
            }
        }
        Ok(copied)
    }

    /// Makes everything that was taken durable.
    ///
    /// # Errors
    /// When there is no room or the store failed.
    pub fn flush(&self, now: Now) -> Result<(), SessionError> {
        self.session.flush(now)
    }

    /// Ends the writing: nothing more is added to this moment.
    ///
    /// # Errors
    /// When there is no room or the store failed.
    pub fn close(&self, now: Now) -> Result<(), SessionError> {
        self.session.close(now)
    }
}
