//! Reading the bases of the disks.

use super::Damage;
use cdp_core::journal::{Manifest, ReadError};
use cdp_core::media::Storage;
use cdp_core::replica::ReplicaView;
use cdp_core::replica::base::{Base, BaseError, file_names, table_name};
use cdp_core::replica::sidecar::{PAGE_BYTES, Root};
use cdp_core::trust::Keyring;
use cdp_core::types::{BLOCK, DISK_MAX, DiskId, Extent, SECTOR};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of one read of a base.
const PIECE: u64 = 1 << 20;
/// What is said one by one of the damage of one base, at most: as many places, and as many runs of the disk. All that comes then is
/// one place, and counts as if it took the whole disk.
const TAKEN_MAX: usize = 512;
/// Neighbours are one run inside a stretch of this many bytes of the disk, so that what was written over it is looked up at once.
const STRETCH: u64 = 8 << 20;

/// A read fails without an error of the base where what lies above that cannot be read.
pub(super) type ReadResult = Result<(), Option<BaseError>>;
/// How a range of a base is read.
pub(super) type ReadBase<'a> = &'a dyn Fn(&Base, u64, &mut [u8]) -> ReadResult;

/// Damaged places of one base, each with what it takes from the disk, within the bound of [`TAKEN_MAX`].
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) places: Vec<(Damage, Vec<Extent>)>,
    /// The last place is all that is not said one by one.
    pub(super) more: bool,
    /// It did not open.
    pub(super) unopened: bool,
    /// Runs of the disk in `places`.
    runs: usize,
    /// How much is joined to the first of the last place.
    joined: u64,
}

impl Found {
    /// A block that is not right, in ascending order. Neighbours in one file are one place: what is said of it is said of the first.
    fn add(&mut self, image: &str, damage: Damage, extent: Extent) {
        if self.more {
            if let Some((last, _)) = self.places.last_mut() {
                last.more += u64::from(last.offset + last.length < extent.offset);
                last.length = extent.end() - last.offset;
            }
            return;
        }
        let full = self.runs == TAKEN_MAX;
        if let Some((last, extents)) = self.places.last_mut() {
            let same = last.file == damage.file && last.offset == damage.offset;
            let next = last.file == damage.file && last.offset + last.length == damage.offset;
            let run =
                extents.last_mut().filter(|run| run.end() == extent.offset && !extent.offset.is_multiple_of(STRETCH));
            if (same || next) && (run.is_some() || !full) {
                match run {
                    Some(run) => run.length += extent.length,
                    None => {
                        extents.push(extent);
                        self.runs += 1;
                    }
                }
                if next {
                    last.length += damage.length;
                    self.joined += 1;
                }
                return;
            }
        }
        self.end_place();
        if !full {
            self.places.push((damage, vec![extent]));
            self.runs += 1;
            return;
        }
        let (file, what) =
            (PathBuf::from(image), format!("{}, and there is more: too much to be told apart", damage.what));
        let damage = Damage { file, offset: extent.offset, length: extent.length, what, ..damage };
        self.places.push((damage, vec![Extent::new(0, DISK_MAX)]));
        self.more = true;
    }

    fn end_place(&mut self) {
        if let Some((last, _)) = self.places.last_mut().filter(|_| self.joined > 0) {
            last.what = format!("{}, and {} more right behind it", last.what, self.joined);
        }
        self.joined = 0;
    }
}

/// Reads a whole base; each damaged place is one finding, with what it takes from the disk. Ends when `progress` says so.
pub(super) fn check_base(
    storage: &Arc<dyn Storage>,
    (manifest, keys): (&Manifest, &Arc<Keyring>),
    (disk, root): (DiskId, Root),
    read: ReadBase<'_>,
    bytes: &mut u64,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Found {
    let (image, sidecar_name) = file_names(disk);
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
            let places = vec![(damage, vec![Extent::new(0, root.size)])];
            return Found { places, unopened: true, ..Found::default() };
        }
    };
    let mut found = Found::default();
    let mut at = 0;
    let mut buffer = vec![0; PIECE as usize];
    while at < root.size {
        let piece = Extent::new(at, PIECE.min(root.size - at));
        if read(&base, at, &mut buffer[..piece.length as usize]).is_err() {
            check_blocks(disk, piece, &|at, buffer| read(&base, at, buffer), &mut found);
        }
        at += piece.length;
        *bytes += piece.length;
        if !progress(at) {
            break;
        }
    }
    found.end_place();
    found
}

/// Block by block, so that each damaged place is named, and once. Where what lies above a block cannot be read, which is told where
/// that is read, the base may be damaged beside it.
fn check_blocks(disk: DiskId, piece: Extent, read: &dyn Fn(u64, &mut [u8]) -> ReadResult, found: &mut Found) {
    let (image, sidecar_name) = file_names(disk);
    let mut buffer = [0; BLOCK as usize];
    for block in (piece.offset..piece.end()).step_by(BLOCK as usize) {
        let end = piece.end().min(block + BLOCK);
        let mut of_base = |from: u64, to: u64| read(from, &mut buffer[..(to - from) as usize]).err();
        let error = match of_base(block, end) {
            Some(None) => {
                let mut sectors = (block..end).step_by(SECTOR as usize);
                sectors.find_map(|at| of_base(at, end.min(at + SECTOR)).flatten())
            }
            error => error.flatten(),
        };
        let Some(error) = error else { continue };
        let damage = match &error {
            BaseError::Page { offset, .. } => finding(&sidecar_name, *offset, PAGE_BYTES as u64, &error),
            BaseError::Block { offset, .. } => finding(&image, *offset, BLOCK, &error),
            _ => finding(&image, block, end - block, &error),
        };
        found.add(&image, damage, Extent::new(block, end - block));
    }
}

/// Reads it as a view does that stands on it.
pub(super) fn read_in(view: &ReplicaView, disk: DiskId, at: u64, buffer: &mut [u8]) -> ReadResult {
    view.read(disk, at, buffer).map_err(|error| match error {
        ReadError::Below { source, .. } => source.downcast_ref().cloned(),
        _ => None,
    })
}

fn finding(file: &str, offset: u64, length: u64, error: &BaseError) -> Damage {
    let (file, what) = (PathBuf::from(file), error.to_string());
    Damage { file, offset, length, what, ..Damage::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(blocks: impl Iterator<Item = u64>) -> Found {
        let mut found = Found::default();
        for block in blocks {
            let (file, what, offset) = ("1.img".into(), format!("block {block}"), block * BLOCK);
            let damage = Damage { file, offset, length: BLOCK, what, ..Damage::default() };
            found.add("1.img", damage, Extent::new(offset, BLOCK));
        }
        found.end_place();
        found
    }

    #[test]
    fn neighbours_are_one_place() {
        let all = found((3..10).chain(12..13));
        let said: Vec<_> =
            all.places.iter().map(|(place, extents)| (place.offset, place.length, extents.len())).collect();
        assert_eq!(said, [(3 * BLOCK, 7 * BLOCK, 1), (12 * BLOCK, BLOCK, 1)]);
        assert_eq!(all.places[0].0.what, "block 3, and 6 more right behind it");
        assert_eq!(all.places[1].0.what, "block 12");
        assert!(!all.more);
        // Stretch by stretch.
        let long = found(0..3 * STRETCH / BLOCK + 1);
        assert_eq!((long.places.len(), long.places[0].1.len(), long.more), (1, 4, false));
    }

    #[test]
    fn however_much_is_damaged_there_is_a_bound_to_what_is_said_and_nothing_is_left_out() {
        let most = TAKEN_MAX as u64;
        let all = found((0..most + 100).map(|block| block * 2));
        assert_eq!((all.places.len(), all.more), (TAKEN_MAX + 1, true));
        let (last, extents) = all.places.last().unwrap();
        assert_eq!((last.offset, last.offset + last.length), (most * 2 * BLOCK, ((most + 99) * 2 + 1) * BLOCK));
        assert_eq!((last.more, &extents[..]), (99, &[Extent::new(0, DISK_MAX)][..]));
        // One place may be too long as well.
        let all = found(0..(most + 2) * STRETCH / BLOCK);
        assert_eq!((all.places.len(), all.more), (2, true));
        assert_eq!(all.places[0].1.len(), TAKEN_MAX);
        assert_eq!(all.places[1].0.offset, most * STRETCH);
        assert!(!found((0..most).map(|block| block * 2)).more);
    }
}
