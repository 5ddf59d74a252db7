//! Sidecars and what merges leave, for fuzzers.

use super::rests::{COPY_BYTES, REST_BYTES, decode_copy, decode_rest, encode_copy, encode_rest};
use super::sidecar::{Layout, PAGE_BYTES, Page, PageDigest, Root, Slot, decode_table, encode_table};
use crate::types::Lsn;

/// The page that these bytes say they are; the digest table vouches for it.
pub(crate) fn sidecar_page(bytes: &[u8]) -> bool {
    let Ok(bytes) = <[u8; PAGE_BYTES]>::try_from(bytes) else { return false };
    let number = u64::from_le_bytes(std::array::from_fn(|at| bytes[8 + at]));
    let digest = PageDigest::Crc(Slot::First, crc32c::crc32c(&bytes[4..]));
    let layouts = [Layout::Plain, Layout::AtRest].into_iter();
    let mut pages = layouts.filter_map(|layout| Some((layout, Page::parse(Box::new(bytes), number, digest, layout)?)));
    let Some((layout, mut page)) = pages.next() else { return false };
    assert_eq!(page.seal(Slot::First), (bytes.as_slice(), digest));
    for place in 0..layout.blocks() as usize {
        let entry = page.entry(place);
        page.set(place, entry);
        assert_eq!(page.entry(place), entry);
    }
    true
}

pub(crate) fn seal_page(bytes: &[u8]) -> Vec<u8> {
    let mut page = bytes.to_vec();
    page.resize(PAGE_BYTES, 0);
    // By its first byte of one or the other kind.
    page[4..8].copy_from_slice(if bytes.first().is_some_and(|byte| byte % 2 == 1) { b"CDPT" } else { b"CDPS" });
    let crc = crc32c::crc32c(&page[4..]);
    page[..4].copy_from_slice(&crc.to_le_bytes());
    page
}

/// The table of a disk that has as many pages as these bytes have entries that are not zeros; the manifest vouches for it.
pub(crate) fn digest_table(bytes: &[u8]) -> bool {
    let entries = bytes.chunks_exact(8).take_while(|entry| **entry != [0; 8]).count() as u64;
    let mut any = false;
    for layout in [Layout::Plain, Layout::AtRest] {
        let digest = *blake3::hash(bytes).as_bytes();
        let root = Root { generation: 1, size: entries * layout.covers(), digest, layout };
        let Some(digests) = decode_table(bytes, root) else { continue };
        assert_eq!(digests.len() as u64, layout.pages(root.size));
        let (again, root) = encode_table(1, root.size, layout, &digests);
        assert_eq!(decode_table(&again, root), Some(digests));
        any = true;
    }
    any
}

pub(crate) fn seal_table(bytes: &[u8]) -> Vec<u8> {
    let mut table = bytes.to_vec();
    table.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    table
}

/// Whether any record is one of the merge that it names itself.
pub(crate) fn rests(bytes: &[u8]) -> bool {
    let mut any = false;
    for record in bytes.chunks_exact(REST_BYTES) {
        let upto = Lsn(u64::from_le_bytes(std::array::from_fn(|at| record[16 + at])));
        assert_eq!(decode_rest(record, Lsn(!upto.0)), None);
        if let Some((disk, block, rest)) = decode_rest(record, upto) {
            assert_eq!(decode_rest(&encode_rest(disk, block, rest, upto), upto), Some((disk, block, rest)));
            any = true;
        }
    }
    for at in (0..bytes.len().saturating_sub(COPY_BYTES)).step_by(REST_BYTES) {
        let upto = Lsn(u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + 16 + byte])));
        if let Some((disk, block, entry, copy)) = decode_copy(&bytes[at..], upto) {
            let again = [&encode_copy(disk, block, bytes[at + 2], entry, upto), copy].concat();
            assert_eq!(decode_copy(&again, upto), Some((disk, block, entry, copy)));
            any = true;
        }
    }
    any
}

pub(crate) fn seal_rests(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for record in bytes.chunks_exact_mut(REST_BYTES) {
        let crc = crc32c::crc32c(&record[..REST_BYTES - 4]);
        record[REST_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}
