//! The activity log for fuzzers.

use super::LogContents;
use super::codec::{
    BITMAP_OFFSET, HEADER_BYTES, decode_header, encode_header, header_offset, seal_header, seal_sector,
};
use super::codec::{sector_offset, sectors_of};
use crate::types::{Extent, SECTOR};

/// Whether the bytes are a log of the group that they name.
pub(crate) fn log(bytes: &[u8]) -> bool {
    let header = |copy| decode_header(bytes.get(header_offset(copy) as usize..).unwrap_or_default()).ok();
    let mut found = false;
    for header in [header(0), header(1)].into_iter().flatten() {
        assert_eq!(decode_header(&encode_header(&header)).as_ref(), Ok(&header));
        let Ok(log) = LogContents::read(bytes, header.group) else { continue };
        for disk in &log.disks {
            let whole = Extent::new(0, disk.size);
            assert!(disk.hot.iter().all(|run| !run.is_empty() && run.intersect(&whole) == Some(*run)));
            assert!(disk.hot.windows(2).all(|pair| pair[0].end() < pair[1].offset));
        }
        found = true;
    }
    found
}

/// A log of these bytes in which every checksum is right.
pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(BITMAP_OFFSET as usize), 0);
    let (first, rest) = bytes.split_at_mut(HEADER_BYTES as usize);
    seal_header(first);
    seal_header(&mut rest[..HEADER_BYTES as usize]);
    let Ok(header) = decode_header(&bytes) else { return bytes };
    for disk in &header.disks {
        for sector in 0..sectors_of(disk.size) {
            let at = sector_offset(disk.first_sector + sector) as usize;
            let Some(bits) = bytes.get_mut(at..at + SECTOR as usize) else { break };
            seal_sector(header.group, disk.id, sector, bits);
        }
    }
    bytes
}
