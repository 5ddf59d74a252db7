//! An image that was there becomes a base that reads as it, and is not written.

use super::super::{Base, is_zero};
use super::*;
use crate::journal::SeedingInfo;
use crate::media::Memory;
use crate::types::Timeline;
use proptest::prelude::*;
use std::sync::Arc;

fn ids() -> (ReplicaId, DiskId) {
    (ReplicaId::new([3; 16]).unwrap(), DiskId::new(1).unwrap())
}

/// An image of runs of blocks, a sector shorter.
fn place(storage: &dyn Storage, runs: &[(bool, u64)]) -> Vec<u8> {
    let image = storage.create(&file_names(ids().1).0).unwrap();
    let mut content = Vec::new();
    for (number, (data, blocks)) in runs.iter().enumerate() {
        content.resize(content.len() + (blocks * BLOCK) as usize, if *data { number as u8 + 1 } else { 0 });
    }
    content.truncate(content.len() - 512);
    for (number, block) in content.chunks(BLOCK as usize).enumerate().filter(|(_, block)| !is_zero(block)) {
        image.write_all_at(number as u64 * BLOCK, block).unwrap();
    }
    image.set_len(content.len() as u64).unwrap();
    content
}

fn read(storage: &dyn Storage, root: Root) -> Vec<u8> {
    let base = Base::open_with(storage, ids().0, ids().1, root, Arc::default()).unwrap();
    let mut found = vec![1; root.size as usize];
    base.read(0, &mut found).unwrap();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_base_reads_as_the_image_with_zeros_behind(
        runs in prop::collection::vec((any::<bool>(), 1u64..900), 1..6),
        longer in 0..1000u64,
        stop in prop::option::of(0..8usize),
    ) {
        let storage = Memory::new();
        let mut content = place(&storage, &runs);
        content.resize(content.len() + (longer * 512) as usize, 0);
        let size = content.len() as u64;
        let mut adoption = Adoption::begin(&storage, ids().0, ids().1, size).unwrap();
        if let Some(steps) = stop {
            for _ in 0..steps {
                adoption.step().unwrap();
            }
            let point = adoption.checkpoint().unwrap().sync().unwrap();
            let fresh = SeedingInfo::new(ids().1, size, Timeline::new([9; 16]).unwrap());
            let info = SeedingInfo { point, adopted: true, ..fresh };
            let copied = BaseWriter::resume(&storage, ids().0, &info, size, None);
            prop_assert!(matches!(copied, Err(ResumeError::OtherWay { .. })), "it would be cut");
            adoption = Adoption::resume(&storage, ids().0, &info, size).unwrap();
            prop_assert_eq!(adoption.position(), point.done);
        }
        let root = adoption.finish(&storage).unwrap();
        prop_assert!(read(&storage, root) == content);
    }
}

#[test]
fn an_image_that_is_larger_than_the_disk_stays_as_it_is() {
    let storage = Memory::new();
    let content = place(&storage, &[(true, 9)]);
    let size = content.len() as u64 - 2 * BLOCK;
    let refused = Adoption::begin(&storage, ids().0, ids().1, size).unwrap_err();
    assert!(matches!(refused, AdoptError::Larger { .. }), "{refused}");
    assert_eq!(storage.length(&file_names(ids().1).0).unwrap(), content.len() as u64);
    storage.remove(&file_names(ids().1).0).unwrap();
    assert!(matches!(Adoption::begin(&storage, ids().0, ids().1, size), Err(AdoptError::Media(_))));
}
