//! What stays of blocks that a merge changes in parts, in a file of its own: by that they verify while any of their bytes may be
//! old, new or torn.
//!
//! A record is made durable before its block is touched. Only whole records of the merge that the manifest names count, and they follow
//! each other; what an earlier try of the same merge wrote stays true. Bound: at most two for each record that is merged
//! ([`merge_end`](crate::policy::retention::merge_end) says how many), and each try. A try writes them all again: those that it finds may
//! have been written and never synced, and where it was their sync that failed a second one proves nothing. With them a block can be
//! read; on them alone none may be changed.

use super::base::{BlockCopy, Rest};
use super::files::{BASE_DIRECTORY, RESTS};
use super::sidecar::{self, Entry};
use super::view::Bases;
use crate::journal::StampedMoment;
use crate::media::{File, MediaError, Storage};
use crate::mistakes::{self, Mistake};
use crate::types::{BLOCK, DiskId, Lsn};
use std::sync::Arc;

/// A record of [`RESTS`], in bytes: disk (2), changed (1), zero (1), CRC of what stays (4), block (8), upto (8), zeros (4), CRC of
/// the record (4).
pub(super) const REST_BYTES: usize = 32;
/// A record of a block that is sealed at rest, before its copy: the same up to `upto`, but for 1 in the place of the zero and what
/// a page will say of the block, whose CRC stands in the place of the CRC of what stays; CRC of the record.
pub(super) const COPY_BYTES: usize = 64;
/// What is read of [`RESTS`] at once, in bytes.
const WINDOW: usize = 1 << 20;
/// The file, as the one who merges has it open.
#[derive(Debug)]
pub(super) struct Rests {
    file: Arc<dyn File>,
    end: u64,
}

impl Rests {
    /// Opens it behind what is there; made if it is not.
    pub(super) fn open(storage: &dyn Storage) -> Result<Self, MediaError> {
        let file = match storage.open(RESTS, true) {
            Err(error) if error.is_not_found() => storage.create(RESTS)?,
            file => file?,
        };
        storage.sync_dir(BASE_DIRECTORY)?;
        let end = file.len()?.next_multiple_of(REST_BYTES as u64);
        Ok(Self { file, end })
    }

    pub(super) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Where the next record goes.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Makes records durable.
    pub(super) fn append(&mut self, records: &[u8]) -> Result<(), MediaError> {
        if records.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(self.end, records)?;
        if !mistakes::is(Mistake::RestsNotSynced) {
            self.file.sync()?;
        }
        self.end += records.len() as u64;
        Ok(())
    }
}

/// Tells bases what the manifest's merge may have torn. Call it before a base is read where the manifest names a merge.
///
/// # Errors
/// When the file that says so cannot be read.
pub fn expect_torn(storage: &dyn Storage, bases: &Bases, merge: StampedMoment) -> Result<(), MediaError> {
    let file = match storage.open(RESTS, false) {
        Err(error) if error.is_not_found() => return Ok(()),
        file => file?,
    };
    let (mut bytes, mut start) = (vec![0; WINDOW], 0);
    loop {
        let length = file.read_at(start, &mut bytes)?;
        let mut at = 0;
        // A record whose end is in the next window is looked at there.
        while at + REST_BYTES <= length && (length < WINDOW || at + COPY_BYTES + BLOCK as usize <= length) {
            at += expect_one(&bytes[at..length], (&file, start + at as u64), bases, merge.lsn);
        }
        start += at as u64;
        if length < WINDOW {
            return Ok(());
        }
    }
}

/// Tells a base what the record says that `bytes` begins with; gives how far the next one is. A torn record belongs to a block that
/// was not touched yet; one of another merge to blocks that are done.
fn expect_one(bytes: &[u8], (file, offset): (&Arc<dyn File>, u64), bases: &Bases, upto: Lsn) -> usize {
    if let Some((disk, block, entry, copy)) = decode_copy(bytes, upto)
        && let Some(base) = bases.get(disk)
        && base.is_right(block, &entry, copy)
    {
        base.expect_torn_sealed(block, BlockCopy { file: Arc::clone(file), offset: offset + COPY_BYTES as u64, entry });
        return COPY_BYTES + BLOCK as usize;
    }
    if let Some((disk, block, rest)) = decode_rest(&bytes[..REST_BYTES], upto)
        && let Some(base) = bases.get(disk)
    {
        base.expect_torn(block, rest);
    }
    REST_BYTES
}

pub(super) fn encode_rest(disk: DiskId, block: u64, rest: Rest, upto: Lsn) -> [u8; REST_BYTES] {
    let mut record = [0; REST_BYTES];
    record[..2].copy_from_slice(&disk.get().to_le_bytes());
    record[2] = rest.changed;
    record[4..8].copy_from_slice(&rest.crc.to_le_bytes());
    record[8..16].copy_from_slice(&block.to_le_bytes());
    record[16..24].copy_from_slice(&upto.0.to_le_bytes());
    let crc = crc32c::crc32c(&record[..28]);
    record[28..].copy_from_slice(&crc.to_le_bytes());
    record
}

pub(super) fn decode_rest(record: &[u8], upto: Lsn) -> Option<(DiskId, u64, Rest)> {
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let long = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let whole = word(28)? == crc32c::crc32c(record.get(..28)?) && long(16)? == upto.0;
    let disk = DiskId::new(u16::from_le_bytes([*record.first()?, *record.get(1)?]))?;
    whole.then_some((disk, long(8)?, Rest { changed: record[2], crc: word(4)? }))
}

/// The record before a copy.
pub(super) fn encode_copy(disk: DiskId, block: u64, changed: u8, entry: Entry, upto: Lsn) -> [u8; COPY_BYTES] {
    let mut said = [0; sidecar::SEALED_ENTRY_BYTES];
    sidecar::encode_entry(entry, &mut said);
    let (lsn, crc, seal) = (&said[..8], &said[8..12], &said[12..]);
    let mut record = [0; COPY_BYTES];
    record[..2].copy_from_slice(&disk.get().to_le_bytes());
    (record[2], record[3]) = (changed, 1);
    record[4..8].copy_from_slice(crc);
    record[8..16].copy_from_slice(&block.to_le_bytes());
    record[16..24].copy_from_slice(&upto.0.to_le_bytes());
    record[24..32].copy_from_slice(lsn);
    record[32..60].copy_from_slice(seal);
    let crc = crc32c::crc32c(&record[..60]);
    record[60..].copy_from_slice(&crc.to_le_bytes());
    record
}

/// What such a record says, and the copy behind it.
pub(super) fn decode_copy(bytes: &[u8], upto: Lsn) -> Option<(DiskId, u64, Entry, &[u8])> {
    let record = bytes.get(..COPY_BYTES)?;
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let long = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let whole = record[3] == 1 && word(60)? == crc32c::crc32c(&record[..60]) && long(16)? == upto.0;
    let copy = bytes.get(COPY_BYTES..COPY_BYTES + BLOCK as usize).filter(|_| whole)?;
    let disk = DiskId::new(u16::from_le_bytes([record[0], record[1]]))?;
    let said = [&record[24..32], &record[4..8], &record[32..60]].concat();
    Some((disk, long(8)?, sidecar::decode_entry(&said), copy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Memory;
    use crate::replica::base::BaseWriter;
    use crate::replica::base::{self, Base};
    use crate::trust::{KeyHolder, Keyring, WrappingKey};
    use crate::types::ReplicaId;
    use crate::types::WallTime;
    use proptest::prelude::*;

    /// A base that is sealed at rest, of so many blocks, each with other bytes, and what the blocks of its image are.
    fn sealed(storage: &Memory, blocks: u64) -> (Arc<Base>, Vec<(Entry, Vec<u8>)>) {
        let (replica, disk) = (ReplicaId::new([3; 16]).unwrap(), DiskId::new(1).unwrap());
        let holder = KeyHolder::from(Some(WrappingKey::parse(&[1; 32]).unwrap()));
        let ring: Arc<Keyring> = holder.unlock(replica, &[]).unwrap();
        holder.draw(replica, &mut || [5; 16], WallTime(1)).unwrap().name(1, &ring);
        let mut writer = BaseWriter::create(storage, replica, disk, blocks * BLOCK).unwrap().at_rest(&ring).unwrap();
        for block in 0..blocks {
            writer.data(&vec![block as u8 | 1; BLOCK as usize], Lsn(block + 1)).unwrap();
        }
        let root = writer.finish(storage, Lsn(blocks)).unwrap();
        let base = Base::open_with(storage, replica, disk, root, ring).unwrap();
        let image = storage.open(&base::file_names(disk).0, false).unwrap();
        let content = (0..blocks).map(|block| {
            let (page, place) = (block / base.layout().blocks(), block % base.layout().blocks());
            let mut bytes = vec![0; BLOCK as usize];
            image.read_exact_at(block * BLOCK, &mut bytes).unwrap();
            (base.page(page).unwrap().unwrap().entry(place as usize), bytes)
        });
        let content = content.collect();
        (Arc::new(base), content)
    }

    /// Copies lie across the seams of what is read at once, with torn ones and others between them.
    #[test]
    fn every_whole_copy_is_found_and_no_torn_one() {
        let storage = Memory::new();
        let (base, content) = sealed(&storage, 600);
        let disk = DiskId::new(1).unwrap();
        let mut bytes = Vec::new();
        for (block, (entry, copy)) in (0..).zip(&content) {
            bytes.extend_from_slice(&encode_copy(disk, block, 1, *entry, Lsn(9)));
            bytes.extend_from_slice(copy);
            match block % 7 {
                0 => *bytes.last_mut().unwrap() ^= 1,
                1 => bytes.extend_from_slice(&encode_rest(disk, block, Rest { changed: 1, crc: 2 }, Lsn(8))),
                2 => bytes.extend_from_slice(&[0xee; REST_BYTES * 3]),
                _ => {}
            }
        }
        assert!(bytes.len() > 2 * WINDOW);
        storage.create(RESTS).unwrap().write_all_at(0, &bytes).unwrap();
        let image = storage.open(&base::file_names(disk).0, true).unwrap();
        image.write_all_at(0, &vec![0x5a; 600 * BLOCK as usize]).unwrap();
        let mut bases = Bases::default();
        bases.insert(disk, Arc::clone(&base));
        let moment = |lsn| StampedMoment {
            timeline: crate::types::Timeline::new([1; 16]).unwrap(),
            lsn: Lsn(lsn),
            stamp: crate::types::Stamp { epoch: crate::types::ClockEpoch(1), time: WallTime(1) },
        };
        let readable = || {
            let read = |block: &u64| {
                let mut found = vec![0; BLOCK as usize];
                let read = base.read(block * BLOCK, &mut found);
                assert!(read.is_err() || found == vec![*block as u8 | 1; BLOCK as usize]);
                read.is_ok()
            };
            (0..600).filter(read).collect::<Vec<_>>()
        };
        expect_torn(&storage, &bases, moment(7)).unwrap();
        assert_eq!(readable(), [0; 0], "of another merge");
        expect_torn(&storage, &bases, moment(9)).unwrap();
        assert_eq!(readable(), (0..600).filter(|block| block % 7 != 0).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn records_come_back_only_whole(
            block: u64,
            changed: u8,
            crc: u32,
            counter: u64,
            flip in any::<prop::sample::Index>(),
            bit in 0u8..8,
            garbage in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let disk = DiskId::new(3).unwrap();
            let seal = crate::trust::BlockSeal { generation: 4, counter, tag: [changed; 16] };
            let entry = Entry { lsn: Lsn(block ^ 5), crc, seal: Some(seal) };
            let mut bytes = encode_copy(disk, block, changed, entry, Lsn(6)).to_vec();
            bytes.extend_from_slice(&[9; BLOCK as usize]);
            prop_assert_eq!(decode_copy(&bytes, Lsn(6)), Some((disk, block, entry, &bytes[COPY_BYTES..])));
            prop_assert_eq!(decode_copy(&bytes, Lsn(7)), None);
            prop_assert_eq!(decode_copy(&bytes[..bytes.len() - 1], Lsn(6)), None);
            bytes[flip.index(COPY_BYTES)] ^= 1 << bit;
            prop_assert_eq!(decode_copy(&bytes, Lsn(6)), None);
            prop_assert_eq!(decode_copy(&garbage, Lsn(0)), None);
        }
    }
}
