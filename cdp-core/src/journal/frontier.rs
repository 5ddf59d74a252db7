//! How far a timeline was settled, run by run: what the catalogue folds its events with.

use super::reader::{ReadError, Reader};
use super::snapshot::{Content, Snapshot};
use crate::types::{Lsn, Stamp, Timeline};

/// A run of frames of one clock epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontier {
    /// Everything up to here completed well at the source and is whole.
    pub settled: Lsn,
    /// Stamp of the run's last record.
    pub last: Stamp,
}

impl Reader {
    /// How far a timeline was settled at the end of each segment and of each clock epoch, in order. Reads the frame tables of
    /// segments in which the clock stepped, and nothing of others.
    ///
    /// # Errors
    /// When a footer cannot be read or does not verify.
    pub fn frontiers(&self, snapshot: &Snapshot, timeline: Timeline) -> Result<Vec<Frontier>, ReadError> {
        let mut found: Vec<Frontier> = Vec::new();
        for segment in snapshot.of(timeline) {
            match &segment.content {
                Content::Sealed(summary) if summary.first.epoch == summary.last.epoch => {
                    found.push(Frontier { settled: summary.settled, last: summary.last });
                }
                _ => {
                    for row in self.frame_rows(segment)? {
                        let frontier = Frontier { settled: row.settled, last: row.last };
                        match found.last_mut().filter(|before| before.last.epoch == row.last.epoch) {
                            Some(before) => *before = frontier,
                            None => found.push(frontier),
                        }
                    }
                }
            }
        }
        Ok(found)
    }
}
