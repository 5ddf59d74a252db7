//! The events of a run's segments: the bytes of their footers, copied, so that a catalogue is read from a few files.

use super::RunInfo;
use super::RunTotals;
use super::codec::SegmentRow;
use super::read::field;
use crate::journal::event::{self, Event};
use crate::journal::reader::{ReadError, Reader};
use crate::journal::snapshot::SegmentView;
use crate::trust::FileKey;
use crate::types::Lsn;

/// Bytes of events that are read at once, about.
const READ_BYTES: u64 = 1 << 20;

impl Reader {
    /// The events of one segment of a run as bytes, which begin at `at` of the run's events.
    pub(super) fn run_event_bytes(&self, run: &RunInfo, row: &SegmentRow, at: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; row.events_bytes as usize];
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let offset = RunTotals::events_at(&run.totals.blocks) + at;
        self.run_file(run)?.read_exact_at(offset, &mut bytes)?;
        check(run, row, &bytes, offset)?;
        Ok(bytes)
    }

    /// The events of those segments of a run that are there, in the order of segments and LSNs.
    pub(in crate::journal) fn run_events<'a>(
        &self,
        run: &RunInfo,
        there: impl Fn(&SegmentRow) -> Option<&'a SegmentView>,
    ) -> Result<Vec<Event>, ReadError> {
        if run.totals.events_bytes == 0 {
            return Ok(Vec::new());
        }
        // Held while its tables and its events are read.
        let file = self.run_file(run)?;
        let tables = self.run_tables(run)?;
        let mut events = Vec::new();
        let mut at = RunTotals::events_at(&run.totals.blocks);
        let (mut rows, mut last) = (&tables.segments[..], run.first_lsn.prev());
        while !rows.is_empty() {
            let mut length = 0;
            let many = |row: &&SegmentRow| {
                length += u64::from(row.events_bytes);
                length <= READ_BYTES
            };
            let (batch, rest) = rows.split_at(rows.iter().take_while(many).count().max(1));
            rows = rest;
            let length: usize = batch.iter().map(|row| row.events_bytes as usize).sum();
            let mut bytes = vec![0; length];
            if batch.iter().any(|row| there(row).is_some()) {
                file.read_exact_at(at, &mut bytes)?;
            }
            let mut left = &bytes[..];
            for row in batch {
                let (own, behind) = left.split_at(row.events_bytes as usize);
                left = behind;
                if let Some(segment) = there(row).filter(|_| !own.is_empty()) {
                    check(run, row, own, at)?;
                    let key = self.file_key(segment)?;
                    events.extend(decode(run, row, (own, key.as_deref()), last, at)?);
                }
                last = row.last_lsn;
                at += own.len() as u64;
            }
        }
        Ok(events)
    }
}

fn check(run: &RunInfo, row: &SegmentRow, bytes: &[u8], offset: u64) -> Result<(), ReadError> {
    let found = crc32c::crc32c(bytes);
    if found == row.events_crc { Ok(()) } else { Err(field(run, offset, "events_crc", found.into())) }
}

/// What decodes and is not of this segment was never written here.
fn decode(
    run: &RunInfo,
    row: &SegmentRow,
    (bytes, key): (&[u8], Option<&FileKey>),
    last: Lsn,
    offset: u64,
) -> Result<Vec<Event>, ReadError> {
    let events =
        event::decode_stored(bytes, run.timeline, key).map_err(|_| field(run, offset, "events", row.number))?;
    let of_it = |event: &Event| event.lsn > last && event.lsn <= row.last_lsn;
    if events.iter().all(of_it) { Ok(events) } else { Err(field(run, offset, "events", row.number)) }
}
