//! What damage takes from views: the parts of records that a view which needs them cannot read.
//!
//! A damaged place of a segment does not say by itself what is lost: a head that is gone takes nothing where the index has
//! the same, a block of the footer may take more than a frame. So each part of a damaged segment is read as a view reads it.

use super::Verified;
use crate::frame;
use crate::journal::index::{ChunkRow, Entry, What};
use crate::journal::level::RunInfo;
use crate::journal::reader::{ReadError, Reader};
use crate::journal::snapshot::{Content, SegmentView, Snapshot};
use crate::trust::{FileKey, KeyError};
use crate::types::{DISK_MAX, DiskId, Extent, Lsn, SECTOR, Timeline};
use std::collections::BTreeSet;
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
        let Indexed { mut entries, lost } = self.data_entries(snapshot, segment);
        for disk in lost {
            // No view that reaches it knows what it says.
            let (segment, lsn) = (segment.number, segment.first_lsn);
            out.lose(Unreadable { segment, offset: 0, timeline, lsn, disk, extent: WHOLE });
        }
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

    /// The entries of a segment that have data, from where a view has them: it needs all that a disk has there, zeros too, to know
    /// what is over what.
    fn data_entries(&self, snapshot: &Snapshot, segment: &SegmentView) -> Indexed {
        let mut found = Indexed::default();
        let summary = match &segment.content {
            Content::Active(runs) => {
                runs.iter().for_each(|run| found.add(&run.narrow));
                return found;
            }
            Content::Sealed(summary) => summary,
        };
        let run = snapshot.run_of(segment.number).cloned().or_else(|| self.run_of_now(segment.number));
        if let Some((run, disks)) = run.and_then(|run| self.disks_of_run(&run).ok().map(|disks| (run, disks))) {
            for disk in disks {
                let entries = self.data_of_run(&run, segment.number, disk);
                found.add_of(disk, entries.or_else(|_| self.data_of_segment(segment, disk)));
            }
            return found;
        }
        match self.fences(segment, summary) {
            Ok(fences) => {
                let disks: BTreeSet<_> = fences.iter().map(|fence| fence.disk).collect();
                for disk in disks.into_iter().filter_map(DiskId::new) {
                    found.add_of(disk, self.data_of_segment(segment, disk));
                }
            }
            // Not even of which disks it speaks.
            Err(_) => match self.rebuilt(segment) {
                Ok(run) => found.add(&run.narrow),
                Err(_) => found.lost.push(None),
            },
        }
        found
    }

    /// What a disk has in a segment, as its footer says it or else its frames.
    fn data_of_segment(&self, segment: &SegmentView, disk: DiskId) -> Result<Vec<Entry>, ReadError> {
        self.overlapping(segment, disk, WHOLE).or_else(|_| self.rebuilt_overlapping(segment, disk, WHOLE))
    }

    /// The disks that a run speaks of, where it can be opened.
    fn disks_of_run(&self, run: &RunInfo) -> Result<Vec<DiskId>, ReadError> {
        self.run_file(run)?;
        self.run_tables(run)?;
        let disks: BTreeSet<_> = self.run_tops(run)?.iter().map(|top| top.disk).collect();
        Ok(disks.into_iter().filter_map(DiskId::new).collect())
    }

    fn data_of_run(&self, run: &RunInfo, segment: u64, disk: DiskId) -> Result<Vec<Entry>, ReadError> {
        let tables = self.run_tables(run)?;
        let mut found = Vec::new();
        self.run_overlapping(run, disk, WHOLE, |entry| {
            if entry.what == What::Data
                && let Some((row, chunk)) = tables.segment_of(entry)
                && tables.segments[row].number == segment
            {
                found.push(Entry { chunk, ..*entry });
            }
        })?;
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

/// What a view gets of a segment's index.
#[derive(Default)]
struct Indexed {
    /// Those that have data.
    entries: Vec<Entry>,
    /// The disks of which it gets none, because some cannot be read; none: that may be any.
    lost: Vec<Option<DiskId>>,
}

impl Indexed {
    fn add(&mut self, entries: &[Entry]) {
        self.entries.extend(entries.iter().filter(|entry| entry.what == What::Data));
    }

    fn add_of(&mut self, disk: DiskId, entries: Result<Vec<Entry>, ReadError>) {
        match entries {
            Ok(entries) => self.add(&entries),
            Err(_) => self.lost.push(Some(disk)),
        }
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
