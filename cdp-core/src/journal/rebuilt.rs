//! A sealed segment's index and events, made again from its frames: for segments whose footer does not say them any more and
//! that no run holds. Slow and right: the frames' heads are what a footer is made of.

use super::event::{self, Event};
use super::index::{Entry, FrameRow, IndexRun, Place};
use super::layout::{ENVELOPE_BYTES, Envelope, foreign};
use super::reader::{ReadError, Reader, parse_head};
use super::snapshot::SegmentView;
use crate::frame::FrameHead;
use crate::types::ClockEpoch;
use std::sync::Arc;

impl Reader {
    /// The index of a sealed segment from the heads of its frames; of bodies only those are read that hold notes. What was made
    /// last is kept within a bound: a segment's is a few megabytes.
    pub(super) fn rebuilt(&self, segment: &SegmentView) -> Result<Arc<IndexRun>, ReadError> {
        self.rebuilt.get_or(segment.id, || {
            let (mut chunks, mut epoch) = (0, None);
            let rows = self.frame_rows(segment)?;
            let mut runs = Vec::with_capacity(rows.len());
            for row in &rows {
                let (run, head) = self.frame_index(segment, row, chunks, epoch)?;
                chunks += head.chunks.len() as u32;
                epoch = Some(head.info.epoch);
                runs.push(Arc::new(run));
            }
            let run = IndexRun::merge(&runs);
            let entries = (run.narrow.len() + run.wide.len()) * size_of::<Entry>();
            let bytes = entries + run.events.len() * size_of::<Event>() + run.frames.len() * size_of::<FrameRow>();
            Ok((Arc::new(run), bytes as u64 + 256))
        })
    }

    fn frame_index(
        &self,
        segment: &SegmentView,
        row: &FrameRow,
        first_chunk: u32,
        epoch: Option<ClockEpoch>,
    ) -> Result<(IndexRun, FrameHead), ReadError> {
        let (number, offset) = (segment.number, row.offset);
        let broken = |source| ReadError::Format { segment: number, offset, source };
        let file = self.file(number, segment.id)?;
        let mut bytes = vec![0; ENVELOPE_BYTES];
        file.read_exact_at(offset, &mut bytes)?;
        let envelope = Envelope::decode(&bytes).map_err(broken)?;
        bytes.resize(ENVELOPE_BYTES + envelope.head_bytes as usize, 0);
        file.read_exact_at(offset, &mut bytes)?;
        let (envelope, head) = parse_head(number, segment.id, offset, &bytes)?;
        if head.info.timeline != segment.timeline {
            return Err(broken(foreign("frame", "timeline", segment.timeline, head.info.timeline)));
        }
        if envelope.first_chunk != first_chunk {
            return Err(broken(foreign("frame envelope", "first_chunk", first_chunk, envelope.first_chunk)));
        }
        let mut body = Vec::new();
        if head.chunks.iter().any(|chunk| chunk.notes) {
            body.resize(head.info.body_bytes as usize, 0);
            file.read_exact_at(offset + envelope.body_at(offset), &mut body)?;
        }
        let (key, new_epoch) = (self.file_key(segment)?, epoch != Some(head.info.epoch));
        let events = event::of_stored(&head, &body, new_epoch, key.as_deref(), first_chunk);
        let events = events.map_err(|source| ReadError::Frame { segment: number, offset, source })?;
        Ok((IndexRun::of_frame(&head, events, Place { offset, first_chunk }), head))
    }
}
