//! Reading in the order of writing: all frames of a timeline, and which LSN a time means.

use super::index::FrameRow;
use super::reader::{ReadError, Reader};
use super::snapshot::{Content, SegmentView, Snapshot};
use crate::frame::RawFrame;
use crate::types::{ClockEpoch, Lsn, Stamp, Timeline, WallTime};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The frames of a timeline in order; see [`Reader::frames`].
#[derive(Debug)]
pub struct Frames<'a> {
    reader: &'a Reader,
    segments: VecDeque<Arc<SegmentView>>,
    rows: VecDeque<FrameRow>,
    from: Lsn,
}

impl Iterator for Frames<'_> {
    type Item = Result<RawFrame, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let segment = self.segments.front()?;
            if let Some(row) = self.rows.pop_front() {
                return Some(self.reader.frame(segment, &row));
            }
            self.segments.pop_front();
            if let Err(error) = self.load() {
                self.segments.clear();
                return Some(Err(error));
            }
        }
    }
}

impl Frames<'_> {
    fn load(&mut self) -> Result<(), ReadError> {
        if let Some(segment) = self.segments.front() {
            let rows = self.reader.frame_rows(segment)?;
            self.rows = rows.into_iter().filter(|row| row.last_lsn >= self.from).collect();
        }
        Ok(())
    }
}

/// What a time means in one clock epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The largest LSN of the epoch whose stamp is not above the time.
    pub lsn: Lsn,
    /// Its stamp.
    pub stamp: Stamp,
    /// The epoch has records at or after the time: it was current then. Otherwise the time lies behind its end.
    pub inside: bool,
}

impl Reader {
    /// All frames of a timeline that have a part at or above `from`, every checksum verified.
    ///
    /// # Errors
    /// When the first segment's footer cannot be read; later ones are items.
    pub fn frames(&self, snapshot: &Snapshot, timeline: Timeline, from: Lsn) -> Result<Frames<'_>, ReadError> {
        let segments = snapshot.of(timeline).filter(|segment| segment.last_lsn >= from).cloned().collect();
        let mut frames = Frames { reader: self, segments, rows: VecDeque::new(), from };
        frames.load()?;
        Ok(frames)
    }

    /// What a time of the source's clock means on a timeline, for each clock epoch that had begun by then, in order. Only
    /// LSNs up to `upto` count. Reads the frame table and one head of the segments that the time falls into, nothing of others.
    ///
    /// # Errors
    /// When a footer or a head cannot be read or does not verify.
    pub fn moments(
        &self,
        snapshot: &Snapshot,
        timeline: Timeline,
        upto: Lsn,
        time: WallTime,
    ) -> Result<Vec<Moment>, ReadError> {
        let mut epochs = Epochs { time, upto, found: BTreeMap::new(), ends: BTreeMap::new() };
        for segment in snapshot.of(timeline).filter(|segment| segment.first_lsn <= upto) {
            match &segment.content {
                Content::Sealed(summary) if summary.first.epoch == summary.last.epoch => {
                    let (first, last) = (summary.first.time, summary.last);
                    if first > time {
                        epochs.end(last);
                        continue;
                    }
                    if last.time <= time && summary.last_lsn <= upto {
                        epochs.end(last);
                        epochs.found(summary.last_lsn, last);
                        continue;
                    }
                }
                _ => {}
            }
            epochs.search(self, segment)?;
        }
        let Epochs { found, ends, .. } = epochs;
        let inside = |epoch: &ClockEpoch| ends.get(epoch).is_some_and(|end| time <= *end);
        Ok(found
            .iter()
            .map(|(epoch, (lsn, stamp))| Moment { lsn: *lsn, stamp: *stamp, inside: inside(epoch) })
            .collect())
    }

    /// When a record was made, by the source's clock: its own stamp, or that of the last record before it. It is for people: where
    /// the row or the head that says it cannot be read, it is the stamp of what is the end of the frame, or of the segment. Where a
    /// frame begins is nothing that restoring a moment needs.
    #[must_use]
    pub fn stamp(&self, snapshot: &Snapshot, timeline: Timeline, lsn: Lsn) -> Option<Stamp> {
        let segment = snapshot.of(timeline).filter(|segment| segment.first_lsn <= lsn).last()?;
        let last = match &segment.content {
            Content::Sealed(summary) if summary.last_lsn <= lsn => return Some(summary.last),
            Content::Sealed(summary) => Some(summary.last),
            Content::Active(_) => None,
        };
        let Ok(rows) = self.frame_rows(segment) else { return last };
        let row = rows.iter().rfind(|row| row.first_lsn <= lsn)?;
        if row.last_lsn <= lsn {
            return Some(row.last);
        }
        let Ok((_, head)) = self.frame_head(segment, row) else { return Some(row.last) };
        let record = head.records.iter().rfind(|record| record.lsn <= lsn);
        record.map(|record| Stamp { epoch: head.info.epoch, time: record.time })
    }
}

/// Collects by epoch what a time means.
struct Epochs {
    time: WallTime,
    upto: Lsn,
    found: BTreeMap<ClockEpoch, (Lsn, Stamp)>,
    ends: BTreeMap<ClockEpoch, WallTime>,
}

impl Epochs {
    fn found(&mut self, lsn: Lsn, stamp: Stamp) {
        let held = self.found.entry(stamp.epoch).or_insert((lsn, stamp));
        if lsn > held.0 {
            *held = (lsn, stamp);
        }
    }

    fn end(&mut self, stamp: Stamp) {
        let end = self.ends.entry(stamp.epoch).or_insert(stamp.time);
        *end = stamp.time.max(*end);
    }

    fn search(&mut self, reader: &Reader, segment: &SegmentView) -> Result<(), ReadError> {
        let upto = self.upto;
        for row in reader.frame_rows(segment)?.iter().filter(|row| row.first_lsn <= upto) {
            if row.last.time <= self.time && row.last_lsn <= self.upto {
                self.end(row.last);
                self.found(row.last_lsn, row.last);
                continue;
            }
            if row.first_time > self.time {
                self.end(row.last);
                continue;
            }
            let (_, head) = reader.frame_head(segment, row)?;
            for record in head.records.iter().filter(|record| record.lsn <= upto) {
                let stamp = Stamp { epoch: head.info.epoch, time: record.time };
                self.end(stamp);
                if record.time <= self.time {
                    self.found(record.lsn, stamp);
                }
            }
        }
        Ok(())
    }
}
