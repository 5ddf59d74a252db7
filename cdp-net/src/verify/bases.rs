//! Reading the bases of the disks.

use super::Damage;
use cdp_core::journal::{Manifest, ReadError};
use cdp_core::media::Storage;
use cdp_core::replica::ReplicaView;
use cdp_core::replica::base::{Base, BaseError, file_names, table_name};
use cdp_core::replica::sidecar::{PAGE_BYTES, Root};
use cdp_core::trust::Keyring;
use cdp_core::types::{BLOCK, DiskId, Extent};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of one read of a base.
const PIECE: u64 = 1 << 20;

/// Reads a whole base; each damaged place is one finding, with what it takes from the disk. `covered`: the moment of a merge that is
/// under way. Ends when `progress` says so.
pub(super) fn check_base(
    storage: &Arc<dyn Storage>,
    (manifest, keys): (&Manifest, &Arc<Keyring>),
    (disk, root): (DiskId, Root),
    covered: Option<&ReplicaView>,
    bytes: &mut u64,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Vec<(Damage, Vec<Extent>)> {
    let (image, sidecar_name) = file_names(disk);
    let finding = |file: &str, offset: u64, length: u64, error: &BaseError| {
        let (file, what) = (PathBuf::from(file), error.to_string());
        Damage { file, offset, length, what, ..Damage::default() }
    };
    let base = match Base::open_with(storage.as_ref(), manifest.replica, disk, root, Arc::clone(keys)) {
        Ok(base) => base,
        Err(error) => {
            let table = table_name(disk, root.generation);
            let damage = match &error {
                BaseError::Table { .. } => finding(&table, 0, root.layout.table_bytes(root.size) as u64, &error),
                BaseError::Media(media) if media.path.ends_with(&table) => finding(&table, 0, 0, &error),
                BaseError::Media(media) if media.path.ends_with(&sidecar_name) => finding(&sidecar_name, 0, 0, &error),
                _ => finding(&image, 0, 0, &error),
            };
            return vec![(damage, vec![Extent::new(0, root.size)])];
        }
    };
    let read = |at: u64, buffer: &mut [u8]| match covered {
        None => base.verify(at, buffer),
        Some(view) => match view.read(disk, at, buffer) {
            // What is wrong with the journal is told where that is read.
            Err(ReadError::Below { source, .. }) => source.downcast_ref().cloned().map_or(Ok(()), Err),
            _ => Ok(()),
        },
    };
    let mut found: Vec<(Damage, Vec<Extent>)> = Vec::new();
    let mut at = 0;
    let mut buffer = vec![0; PIECE as usize];
    while at < root.size {
        let length = PIECE.min(root.size - at);
        if read(at, &mut buffer[..length as usize]).is_err() {
            // Something in it: block by block, so that each damaged place is named, and once.
            for block in (at..at + length).step_by(BLOCK as usize) {
                let bytes = BLOCK.min(at + length - block);
                let Err(error) = read(block, &mut buffer[..bytes as usize]) else { continue };
                let damage = match &error {
                    BaseError::Page { offset, .. } => finding(&sidecar_name, *offset, PAGE_BYTES as u64, &error),
                    BaseError::Block { offset, .. } => finding(&image, *offset, BLOCK, &error),
                    _ => finding(&image, block, bytes, &error),
                };
                let extent = Extent::new(block, bytes);
                match found.last_mut() {
                    Some((last, extents)) if *last == damage => join(extents, extent),
                    _ => found.push((damage, vec![extent])),
                }
            }
        }
        at += length;
        *bytes += length;
        if !progress(at) {
            break;
        }
    }
    found
}

/// Adds a block to the runs that a damaged page takes, in ascending order.
fn join(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.end() == extent.offset => last.length += extent.length,
        _ => extents.push(extent),
    }
}
