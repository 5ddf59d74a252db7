//! A base reads as what was fed, and never gives a byte that does not verify.

use super::super::sidecar::Slot;
use super::*;
use crate::media::Memory;
use crate::trust::{Wrap, WrappingKey};
use crate::types::Lsn;
use proptest::prelude::*;

fn ids() -> (ReplicaId, DiskId) {
    (ReplicaId::new([3; 16]).unwrap(), DiskId::new(1).unwrap())
}

/// None, and a ring with a key that was drawn here.
fn rings() -> [Option<Arc<Keyring>>; 2] {
    let ring = Keyring::default();
    let wrap = Wrap { salt: [1; 16], created: crate::types::WallTime(1) };
    WrappingKey::parse(&[2; 32]).unwrap().new_key(ids().0, [3; 32], wrap).name(1, &ring);
    [None, Some(Arc::new(ring))]
}

fn open(storage: &dyn Storage, root: Root, ring: &Option<Arc<Keyring>>) -> Result<Base, BaseError> {
    let (replica, disk) = ids();
    Base::open_with(storage, replica, disk, root, ring.clone().unwrap_or_default())
}

/// Data and zeros in runs of sectors, fed in pieces of whole blocks.
fn make(storage: &dyn Storage, runs: &[(bool, u64)], ring: &Option<Arc<Keyring>>) -> (Vec<u8>, Root) {
    let (replica, disk) = ids();
    let mut content = Vec::new();
    for (number, (data, blocks)) in runs.iter().enumerate() {
        content.resize(content.len() + (blocks * BLOCK) as usize, if *data { number as u8 + 1 } else { 0 });
    }
    content.truncate(content.len() - 512);
    let mut writer = BaseWriter::create(storage, replica, disk, content.len() as u64).unwrap();
    if let Some(ring) = ring {
        writer = writer.at_rest(ring).unwrap();
    }
    let mut at = 0;
    for (number, (data, blocks)) in runs.iter().enumerate() {
        let end = (at + (blocks * BLOCK) as usize).min(content.len());
        let lsn = Lsn(number as u64 + 1);
        if *data {
            writer.data(&content[at..end], lsn).unwrap();
        } else {
            writer.zeros((end - at) as u64, lsn).unwrap();
        }
        at = end;
    }
    let root = writer.finish(storage, Lsn(99)).unwrap();
    (content, root)
}

proptest! {
    #[test]
    fn a_base_reads_as_what_was_fed(
        runs in prop::collection::vec((any::<bool>(), 1u64..900), 1..6),
        reads in prop::collection::vec((any::<prop::sample::Index>(), 1usize..300), 1..10),
        at_rest: bool,
    ) {
        let storage = Memory::default();
        let ring = &rings()[usize::from(at_rest)];
        let (content, root) = make(&storage, &runs, ring);
        let base = open(&storage, root, ring).unwrap();
        for (at, sectors) in reads {
            let at = at.index(content.len() / 512) * 512;
            let mut buffer = vec![1; sectors * 512];
            base.read(at as u64, &mut buffer).unwrap();
            let inside = buffer.len().min(content.len() - at);
            prop_assert_eq!(&buffer[..inside], &content[at..at + inside]);
            prop_assert!(is_zero(&buffer[inside..]));
        }
    }
}

/// Who sends the pieces may be somebody else's process: what is no piece of the disk is not taken, and the copy goes on without it.
#[test]
fn what_is_longer_than_the_rest_of_the_disk_or_ends_within_a_block_is_refused() {
    for ring in rings() {
        let covers = ring.as_ref().map_or(Layout::Plain, |_| Layout::AtRest).covers();
        for size in [3 * covers, 3 * covers - 512, covers + 3 * BLOCK + 512] {
            let storage = Memory::default();
            let (replica, disk) = ids();
            let mut writer = BaseWriter::create(&storage, replica, disk, size).unwrap();
            if let Some(ring) = &ring {
                writer = writer.at_rest(ring).unwrap();
            }
            let content: Vec<u8> = (0..size).map(|at| (at / BLOCK % 250) as u8 + 1).collect();
            for end in [BLOCK, covers, covers + BLOCK, size] {
                let at = writer.position();
                let left = size - at;
                for length in [left + 1, left + BLOCK, left + covers, u64::MAX] {
                    assert!(writer.zeros(length, Lsn(1)).is_err(), "{length} of {left} bytes");
                }
                for length in [left + 512, left + BLOCK, 512, BLOCK + 512] {
                    assert!(writer.data(&vec![7; length as usize], Lsn(1)).is_err(), "{length} of {left} bytes");
                }
                assert!(writer.zeros(512, Lsn(1)).is_err());
                assert_eq!(writer.position(), at);
                writer.data(&content[at as usize..end as usize], Lsn(2)).unwrap();
            }
            assert!(writer.data(&[7; BLOCK as usize], Lsn(1)).is_err() && writer.zeros(BLOCK, Lsn(1)).is_err());
            let root = writer.finish(&storage, Lsn(2)).unwrap();
            let mut found = vec![0; size as usize];
            open(&storage, root, &ring).unwrap().read(0, &mut found).unwrap();
            assert!(found == content);
        }
    }
}

/// A hole that somebody punched into the image must not pass for zeros.
#[test]
fn a_hole_where_data_was_is_no_zeros() {
    // On a real file system: its holes are as fine as blocks.
    let directory = tempfile::tempdir().unwrap();
    let storage = crate::media::Disk::open(directory.path()).unwrap();
    let (content, root) = make(&storage, &[(true, 3), (false, 5), (true, 2), (false, 700)], &None);
    let (replica, disk) = ids();
    let base = Base::open(&storage, replica, disk, root).unwrap();
    let all = Extent::new(0, content.len() as u64);
    let data =
        |base: &Base| base.runs(all).unwrap().into_iter().filter(|run| run.1).map(|run| run.0).collect::<Vec<_>>();
    let right = [Extent::new(0, 3 * BLOCK), Extent::new(8 * BLOCK, 2 * BLOCK)];
    assert_eq!(data(&base), right);
    storage.open(&file_names(disk).0, true).unwrap().punch(Extent::new(BLOCK, BLOCK)).unwrap();
    assert_eq!(data(&base), right, "the sidecar knows better than the image");
    assert!(base.read(0, &mut vec![0; 4 * BLOCK as usize]).is_err());
    storage.open(&file_names(disk).0, true).unwrap().set_len(BLOCK).unwrap();
    assert!(matches!(Base::open(&storage, replica, disk, root), Err(BaseError::Length { .. })));
}

#[test]
fn a_flipped_bit_is_never_given_out() {
    for ring in rings() {
        let storage = Memory::default();
        let (content, root) = make(&storage, &[(true, 3), (false, 400), (true, 2)], &ring);
        let disk = ids().1;
        for name in [file_names(disk).0, file_names(disk).1, table_name(disk, FIRST_GENERATION)] {
            let file = storage.open(&name, true).unwrap();
            for at in (0..file.len().unwrap()).step_by(509) {
                let mut byte = [0];
                file.read_exact_at(at, &mut byte).unwrap();
                file.write_all_at(at, &[byte[0] ^ 4]).unwrap();
                let mut buffer = vec![0; content.len()];
                let read = open(&storage, root, &ring).and_then(|base| base.read(0, &mut buffer));
                assert!(read.is_err() || buffer == content, "flip at {at} of {name} gave wrong bytes");
                // As much is seen without a key.
                let shut = open(&storage, root, &None).and_then(|base| base.verify(0, &mut buffer));
                assert_eq!(shut.is_err(), read.is_err(), "flip at {at} of {name}");
                file.write_all_at(at, &byte).unwrap();
            }
        }
    }
}

#[test]
fn a_base_at_rest_opens_with_its_key_only_and_each_block_only_in_its_place() {
    let storage = Memory::default();
    let [_, ring] = rings();
    let (content, root) = make(&storage, &[(true, 3), (false, 2), (true, 2)], &ring);
    let mut buffer = vec![0; content.len()];
    let shut = open(&storage, root, &None).unwrap();
    assert!(shut.is_shut());
    assert!(matches!(shut.read(0, &mut buffer), Err(BaseError::AtRest { source: KeyError::Missing, .. })));
    shut.verify(0, &mut buffer).unwrap();
    assert_ne!(buffer, content);
    let image = storage.open(&file_names(ids().1).0, true).unwrap();
    let mut stored = vec![0; 4 * BLOCK as usize];
    image.read_exact_at(0, &mut stored).unwrap();
    assert!(stored.windows(64).all(|window| window != [1; 64]) && is_zero(&stored[3 * BLOCK as usize..]));
    // Another base of the disk, block by block the same: its checksums are right, its tags are of other counters.
    let (other, other_root) = make(&Memory::default(), &[(true, 3), (false, 2), (true, 2)], &ring);
    assert!(other == content && other_root != root, "the same bytes are never the same twice");
    // A sidecar that somebody made to fit: the block opens only as what it is.
    let sidecar = storage.open(&file_names(ids().1).1, true).unwrap();
    let mut bytes = Box::new([0; PAGE_BYTES]);
    sidecar.read_exact_at(0, bytes.as_mut_slice()).unwrap();
    let table = storage.open(&table_name(ids().1, FIRST_GENERATION), false).unwrap();
    let mut digests = vec![0; root.layout.table_bytes(root.size)];
    table.read_exact_at(0, &mut digests).unwrap();
    let digest = sidecar::decode_table(&digests, root).unwrap()[0];
    let mut page = Page::parse(bytes, 0, digest, root.layout).unwrap();
    let entry = page.entry(1);
    let seed = Seed::new(ids().0, ids().1);
    page.set(1, Entry { lsn: Lsn(77), crc: seed.block(1, Lsn(77), &stored[4096..8192]), ..entry });
    let (bytes, digest) = page.seal(Slot::First);
    sidecar.write_all_at(0, bytes).unwrap();
    let forged = write_table(&storage, ids().1, FIRST_GENERATION, (root.size, root.layout), &[digest]).unwrap();
    let base = open(&storage, forged, &ring).unwrap();
    assert!(matches!(base.read(4096, &mut buffer[..512]), Err(BaseError::NotOpened { offset: 4096, .. })));
    base.read(0, &mut buffer[..4096]).unwrap();
    assert_eq!(buffer[..4096], content[..4096]);
}
