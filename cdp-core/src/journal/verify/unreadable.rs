//! What damage takes from views: the parts of records that a view which needs them cannot read.
//!
//! A damaged place of a segment does not say by itself what is lost: a head that is gone takes nothing where the index has
//! the same, a block of the footer may take more than a frame. So each part of a damaged segment is read as a view reads it.

use super::Verified;
use crate::frame;
use crate::journal::footer;
use crate::journal::index::{ChunkRow, Entry, What};
use crate::journal::layout::BlockKind;
use crate::journal::level::RunInfo;
use crate::journal::reader::{ReadError, Reader};
use crate::journal::snapshot::{Content, SegmentView, Snapshot};
use crate::trust::{FileKey, KeyError};
use crate::types::{DISK_MAX, DiskId, Extent, Lsn, SECTOR, Timeline};
use std::sync::Arc;

/// What [`Verified`] says of one by one, at most. What comes then counts by disk and timeline, as lost from its first record on
/// without an end: claimed is more than is lost, never less.
pub const UNREADABLE_MAX: usize = 4096;

/// A part of a record that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// Number of its segment.
    pub segment: u64,
    /// Where its chunk stands in the file, in bytes; 0 where nobody knows that.
    pub offset: u64,
    /// The branch of history that it was written on.
    pub timeline: Timeline,
    /// Its record.
    pub lsn: Lsn,
    /// Its disk; none where even that is lost: it may be any.
    pub disk: Option<DiskId>,
    /// Which bytes of the disk; all of them where nobody knows.
    pub extent: Extent,
}

/// All of a disk.
const WHOLE: Extent = Extent { offset: 0, length: DISK_MAX };

impl Verified {
    /// Adds one; neighbours of one record are one.
    fn lose(&mut self, lost: Unreadable) {
        let known = &mut self.unreadable;
        if let Some(last) = known.last_mut() {
            let same = (last.segment, last.timeline, last.lsn, last.disk)
                == (lost.segment, lost.timeline, lost.lsn, lost.disk);
            if same && last.offset == lost.offset && last.extent.end() == lost.extent.offset {
                last.extent.length += lost.extent.length;
                return;
            }
        }
        if known.len() < UNREADABLE_MAX {
            known.push(lost);
            return;
        }
        self.more += 1;
        let same = |other: &&mut Unreadable| (other.timeline, other.disk) == (lost.timeline, lost.disk);
        match known[UNREADABLE_MAX..].iter_mut().find(same) {
            Some(rest) => rest.lsn = rest.lsn.min(lost.lsn),
            None => known.push(Unreadable { extent: WHOLE, ..lost }),
        }
    }
}

impl Reader {
    /// Reads every part of a damaged segment as a view does, and says which it does not get. Takes memory for the segment's entries.
    pub(super) fn find_unreadable(&self, snapshot: &Snapshot, segment: &SegmentView, out: &mut Verified) {
        let timeline = segment.timeline;
        let Ok(mut entries) = self.data_entries(snapshot, segment) else {
            // No view that reaches it knows what it says.
            let (segment, lsn) = (segment.number, segment.first_lsn);
            out.lose(Unreadable { segment, offset: 0, timeline, lsn, disk: None, extent: WHOLE });
            return;
        };
        entries.sort_by_key(|entry| (entry.chunk, entry.lsn, entry.sector));
        for parts in entries.chunk_by(|a, b| a.chunk == b.chunk) {
            let row = self.chunk_row(segment, parts[0].chunk).ok().filter(|row| !row.notes);
            let offset = row.map_or(0, |row| row.offset);
            let plain = row.and_then(|row| self.parts_of(segment, &row, parts));
            for entry in parts.iter().filter(|entry| !plain.as_ref().is_some_and(|plain| plain.gives(entry))) {
                let extent = Extent::new(entry.sector * SECTOR, entry.sectors * SECTOR);
                let (segment, disk, lsn) = (segment.number, DiskId::new(entry.disk), Lsn(entry.lsn));
                out.lose(Unreadable { segment, offset, timeline, lsn, disk, extent });
            }
        }
    }

    /// The entries of a segment that have data, from where a view has them.
    fn data_entries(&self, snapshot: &Snapshot, segment: &SegmentView) -> Result<Vec<Entry>, ReadError> {
        let data = |entries: &[Entry]| -> Vec<Entry> {
            entries.iter().filter(|entry| entry.what == What::Data).copied().collect()
        };
        let summary = match &segment.content {
            Content::Active(runs) => return Ok(runs.iter().flat_map(|run| data(&run.narrow)).collect()),
            Content::Sealed(summary) => summary,
        };
        let run = snapshot.run_of(segment.number).cloned().or_else(|| self.run_of_now(segment.number));
        if let Some(Ok(entries)) = run.map(|run| self.data_of_run(&run, segment.number)) {
            return Ok(entries);
        }
        let narrow = 0..summary.blocks[BlockKind::Narrow as usize - 1];
        let own = self.blocks(segment, summary, BlockKind::Narrow, narrow, |bytes, number| {
            footer::decode_entries(bytes, segment.id, number, false, summary.first_lsn.0)
        });
        match own {
            Ok(entries) => Ok(data(&entries)),
            Err(_) => Ok(data(&self.rebuilt(segment)?.narrow)),
        }
    }

    fn data_of_run(&self, run: &RunInfo, segment: u64) -> Result<Vec<Entry>, ReadError> {
        let tables = self.run_tables(run)?;
        let mut disks: Vec<u16> = self.run_tops(run)?.iter().map(|top| top.disk).collect();
        disks.dedup();
        let mut found = Vec::new();
        for disk in disks.into_iter().filter_map(DiskId::new) {
            self.run_overlapping(run, disk, WHOLE, |entry| {
                if entry.what == What::Data
                    && let Some((row, chunk)) = tables.segment_of(entry)
                    && tables.segments[row].number == segment
                {
                    found.push(Entry { chunk, ..*entry });
                }
            })?;
        }
        // Narrow and wide tops of a disk do not stand together.
        found.sort_by_key(Entry::key);
        found.dedup_by_key(|entry| entry.key());
        Ok(found)
    }

    /// What the stored bytes of a chunk give, as far as there are keys; none where they give nothing.
    fn parts_of(&self, segment: &SegmentView, row: &ChunkRow, parts: &[Entry]) -> Option<Plain> {
        let chunk = parts[0].chunk;
        let file = self.file(segment.number, segment.id).ok()?;
        let key = match self.file_key(segment) {
            Err(ReadError::AtRest { source: KeyError::Missing, .. }) => {
                // Whether it would open nobody can say; whether it is what was stored, its checksum does.
                let mut stored = vec![0; row.stored_length as usize];
                file.read_exact_at(row.offset, &mut stored).ok()?;
                return (crc32c::crc32c(&stored) == row.crc).then_some(Plain::Shut);
            }
            key => key.ok()?,
        };
        let bytes = if row.compressed || row.sealed {
            let mut stored = vec![0; row.stored_length as usize];
            file.read_exact_at(row.offset, &mut stored).ok()?;
            let plain = match &key {
                Some(key) => frame::open_chunk(&row.info(), chunk, stored.into(), key),
                None => frame::decode_chunk(&row.info(), &stored.into()),
            };
            plain.ok()?.to_vec()
        } else {
            let mut plain = vec![0; row.plain_length as usize];
            file.read_exact_at(row.offset, &mut plain).ok()?;
            plain
        };
        Some(Plain::Open { bytes, key })
    }
}

/// A chunk as a view has it.
enum Plain {
    /// It is what was stored; without its key nobody knows more.
    Shut,
    Open {
        bytes: Vec<u8>,
        key: Option<Arc<FileKey>>,
    },
}

impl Plain {
    /// Whether a part of it is what was written.
    fn gives(&self, entry: &Entry) -> bool {
        let Self::Open { bytes, key } = self else { return true };
        let at = u32::from(entry.at) * SECTOR as u32;
        let Some(part) = bytes.get(at as usize..at as usize + (entry.sectors * SECTOR) as usize) else { return false };
        let expected = key.as_ref().map_or(entry.crc, |key| key.mask(entry.chunk, at, entry.crc));
        crc32c::crc32c(part) == expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BLOCK;

    #[test]
    fn what_is_too_much_to_tell_apart_is_lost_from_its_first_record_on() {
        let timeline = |number| Timeline::new([number; 16]).unwrap();
        let lost = |number, on, lsn| Unreadable {
            segment: 1,
            offset: 4096,
            timeline: timeline(on),
            lsn: Lsn(lsn),
            disk: DiskId::new(number),
            extent: Extent::new(lsn * BLOCK, BLOCK),
        };
        let mut out = Verified::default();
        // Neighbours of one record are one.
        out.lose(lost(1, 1, 5));
        out.lose(Unreadable { extent: Extent::new(6 * BLOCK, BLOCK), ..lost(1, 1, 5) });
        assert_eq!(out.unreadable[0].extent, Extent::new(5 * BLOCK, 2 * BLOCK));
        let first = UNREADABLE_MAX as u64 + 5;
        (6..first).for_each(|lsn| out.lose(lost(1, 1, lsn)));
        assert_eq!((out.unreadable.len(), out.more), (UNREADABLE_MAX, 0));
        for lsn in (first..first + 100).rev() {
            out.lose(lost(1, 1, lsn));
            out.lose(lost(2, 1, lsn + 1));
            out.lose(lost(2, 2, lsn + 2));
        }
        let rest: Vec<_> =
            out.unreadable[UNREADABLE_MAX..].iter().map(|rest| (rest.disk, rest.timeline, rest.lsn.0)).collect();
        let of = |number, on, lsn| (DiskId::new(number), timeline(on), lsn);
        assert_eq!(rest, [of(1, 1, first), of(2, 1, first + 1), of(2, 2, first + 2)]);
        assert!(out.unreadable[UNREADABLE_MAX..].iter().all(|rest| rest.extent == WHOLE) && out.more == 300);
    }
}
