//! The codec against garbage, torn and flipped bytes.

use super::codec::*;
use super::{LogContents, LogError, LogState};
use crate::capture::LogTrust;
use crate::types::{ACTIVITY_EXTENT, DiskId, Extent, GroupId, Lsn, Timeline};
use proptest::prelude::*;

fn group() -> GroupId {
    GroupId::new([7; 16]).expect("not 0")
}

fn disk(number: u16) -> DiskId {
    DiskId::new(number).expect("not 0")
}

fn header(generation: u64, sizes: &[u64]) -> Header {
    let mut first_sector = 0;
    let mut disks = Vec::new();
    for (at, &size) in sizes.iter().enumerate() {
        disks.push(Entry { id: disk(at as u16 + 1), size, first_sector, facts: vec![at as u8 + 1; 9] });
        first_sector += sectors_of(size);
    }
    let timeline = Timeline::new([9; 16]).expect("not 0");
    let (reserved_through, durable) = (Lsn(1 << 24), Lsn(77));
    Header { state: LogState::Open, group: group(), timeline, generation, reserved_through, durable, disks }
}

/// A whole log with these extents marked.
fn file(header: &Header, marked: &[(usize, u64)]) -> Vec<u8> {
    let mut out = [encode_header(header), encode_header(header)].concat();
    for (at, entry) in header.disks.iter().enumerate() {
        for sector in 0..sectors_of(entry.size) {
            let mut words = [0u64; SECTOR_WORDS];
            for (_, extent) in marked.iter().filter(|(disk, extent)| *disk == at && extent / SECTOR_BITS == sector) {
                let bit = extent % SECTOR_BITS;
                words[(bit / 64) as usize] |= 1 << (bit % 64);
            }
            encode_sector(group(), entry.id, sector, &words, &mut out);
        }
    }
    out
}

/// Two sectors and a half extent, and one extent.
const SIZES: [u64; 2] = [(SECTOR_BITS + 100) * ACTIVITY_EXTENT + 512, ACTIVITY_EXTENT];

fn is_hot(log: &LogContents, disk: usize, extent: u64) -> bool {
    log.disks[disk].hot.iter().any(|run| run.overlaps(&Extent::new(extent * ACTIVITY_EXTENT, 512)))
}

#[test]
fn what_is_written_is_read() {
    let marked = [(0, 0), (0, 1), (0, SECTOR_BITS - 1), (0, SECTOR_BITS), (0, SECTOR_BITS + 100), (1, 0)];
    let header = header(5, &SIZES);
    let log = LogContents::read(&file(&header, &marked), group()).expect("good");
    assert_eq!(
        (log.generation, log.state, log.reserved_through, log.durable),
        (5, LogState::Open, Lsn(1 << 24), Lsn(77))
    );
    assert_eq!(log.disks[1].hot, [Extent::new(0, ACTIVITY_EXTENT)]);
    assert_eq!(log.disks[1].facts, [2; 9]);
    let last = Extent::new((SECTOR_BITS + 100) * ACTIVITY_EXTENT, 512);
    let middle = Extent::new((SECTOR_BITS - 1) * ACTIVITY_EXTENT, 2 * ACTIVITY_EXTENT);
    assert_eq!(log.disks[0].hot, [Extent::new(0, 2 * ACTIVITY_EXTENT), middle, last]);
}

#[test]
fn the_bytes_are_those_of_the_document() {
    let bytes = encode_header(&header(5, &SIZES));
    assert_eq!(&bytes[..16], b"CDPACTLG\x01\x00\x01\x00\x02\x00\x00\x00");
    assert_eq!(&bytes[48..56], &5u64.to_le_bytes());
    assert_eq!(&bytes[128 + 96..128 + 98], &2u16.to_le_bytes());
    assert_eq!(&bytes[128 + 96 + 16..128 + 96 + 24], &2u64.to_le_bytes());
    let mut sector = Vec::new();
    let mut words = [0; SECTOR_WORDS];
    words[0] = 1 << 9;
    encode_sector(group(), disk(1), 0, &words, &mut sector);
    assert_eq!((sector.len(), sector[1]), (512, 2));
}

#[test]
fn the_newer_header_counts_and_one_is_enough() {
    let mut bytes = file(&header(5, &SIZES), &[]);
    bytes[8192..16384].copy_from_slice(&encode_header(&header(6, &SIZES)));
    assert_eq!(LogContents::read(&bytes, group()).expect("good").generation, 6);
    bytes[8192 + 100] ^= 1;
    assert_eq!(LogContents::read(&bytes, group()).expect("good").generation, 5);
    bytes[100] ^= 1;
    let Err(LogError::Headers { first: HeaderFault::Checksum { .. }, .. }) = LogContents::read(&bytes, group()) else {
        panic!("both are damaged")
    };
}

#[test]
fn another_groups_log_is_refused() {
    let other = GroupId::new([8; 16]).expect("not 0");
    let found = LogContents::read(&file(&header(5, &SIZES), &[]), other);
    assert_eq!(found, Err(LogError::OtherGroup { expected: other, found: group() }));
}

#[test]
fn what_is_missing_may_differ() {
    let bytes = file(&header(5, &SIZES), &[]);
    let log = LogContents::read(&bytes[..bytes.len() - 513], group()).expect("good");
    assert_eq!(log.disks[0].damaged_sectors, 1);
    assert!(!is_hot(&log, 0, SECTOR_BITS - 1) && is_hot(&log, 0, SECTOR_BITS) && is_hot(&log, 1, 0));
    let log = LogContents::read(&bytes[..16384], group()).expect("good");
    assert_eq!(log.hot_bytes(), SIZES[0] + SIZES[1]);
}

#[test]
fn a_sector_in_anothers_place_does_not_pass() {
    let mut bytes = file(&header(5, &SIZES), &[]);
    bytes.copy_within(16384..16896, 16896);
    let log = LogContents::read(&bytes, group()).expect("good");
    assert!(is_hot(&log, 0, SECTOR_BITS) && !is_hot(&log, 0, 0));
}

#[test]
fn what_is_stale_or_was_lost_is_not_believed() {
    let log = LogContents::read(&file(&header(5, &SIZES), &[]), group()).expect("good");
    let lost = |generation| LogTrust::Lost { generation, error: None };
    assert!(log.generation >= LogTrust::Good { generation: 5 }.least() && log.generation >= lost(4).least());
    assert!(log.generation < LogTrust::Good { generation: 6 }.least(), "an older file came back");
    assert!(log.generation < lost(5).least(), "it was lost at this generation");
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40_000)) {
        let _ = LogContents::read(&bytes, group());
    }

    #[test]
    fn garbage_behind_a_good_header_only_adds(
        tail in proptest::collection::vec(any::<u8>(), 0..2000),
        at in 0..8192usize,
        value in any::<u8>(),
    ) {
        let mut bytes = file(&header(5, &SIZES), &[]);
        bytes.truncate(16384);
        bytes.extend(tail);
        // A header whose checksum is right and whose fields are not.
        bytes[at] = value;
        let crc = crc32c::crc32c(&bytes[..8188]);
        bytes[8188..8192].copy_from_slice(&crc.to_le_bytes());
        let _ = LogContents::read(&bytes, group());
    }

    #[test]
    fn a_flipped_byte_never_loses_a_marked_extent(
        marked in proptest::collection::vec(0..SECTOR_BITS + 100, 0..20),
        place in any::<proptest::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let marked: Vec<(usize, u64)> = marked.into_iter().map(|extent| (0, extent)).collect();
        let mut bytes = file(&header(5, &SIZES), &marked);
        let at = place.index(bytes.len());
        bytes[at] ^= flip;
        let log = LogContents::read(&bytes, group()).expect("one header is enough");
        prop_assert_eq!((log.state, log.generation, log.reserved_through), (LogState::Open, 5, Lsn(1 << 24)));
        for (disk, extent) in marked {
            prop_assert!(is_hot(&log, disk, extent));
        }
    }
}
