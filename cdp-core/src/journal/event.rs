//! Records that are not data: what the catalogue is made of. They are kept apart from data, so that it never reads any.
//!
//! In a footer they stand as frames without data: one codec, one place that knows it.

use crate::frame::{Compression, Encoder, FrameError, FrameHead, NOTES_MAX};
use crate::frame::{Note, Part, RawFrame, RecordInfo, RecordKind};
use crate::trust::FileKey;
use crate::types::{DiskId, Extent, FRAME_RECORDS_MAX, GroupId, Lsn, Stamp, Timeline};

/// A mark, a gap's or a resync's begin or end, a new clock epoch, a change of disks, or a timeline's start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The branch of history.
    pub timeline: Timeline,
    /// Place in the write order.
    pub lsn: Lsn,
    /// When, by the source's clock.
    pub stamp: Stamp,
    /// What. [`RecordKind::Time`] only where a new clock epoch begins in the segment.
    pub kind: RecordKind,
    /// The disk it is about.
    pub disk: Option<DiskId>,
    /// What it says.
    pub note: Option<Note>,
}

impl Event {
    /// Those of a frame whose body begins at `body[0]`, of which no more is looked at than the chunk with notes. `new_epoch`: nobody was
    /// told of the frame's clock epoch yet.
    ///
    /// # Errors
    /// Whatever of the notes does not verify.
    pub fn of_frame(head: &FrameHead, body: &[u8], new_epoch: bool) -> Result<Vec<Self>, FrameError> {
        of_frame(head, body, new_epoch)
    }
}

/// How far a frame's stamps and LSNs may lie apart; the format has 32 bits for each.
const SPAN_MAX: u64 = 1 << 31;

const _: () = assert!(NOTES_MAX < FRAME_RECORDS_MAX, "a frame takes as many records");

/// Whether a record of this kind is an event of its own accord.
fn is_event(kind: RecordKind) -> bool {
    !kind.changes_disk() && !matches!(kind, RecordKind::Barrier | RecordKind::Time)
}

/// The events of a frame whose body begins at `body[0]`. `new_epoch`: no frame before in this segment had its clock epoch.
pub(super) fn of_frame(head: &FrameHead, body: &[u8], new_epoch: bool) -> Result<Vec<Event>, FrameError> {
    let mut epoch_open = new_epoch;
    let mut wanted = |record: &RecordInfo| {
        let kind = record.kind?;
        let opens = kind == RecordKind::Time && std::mem::take(&mut epoch_open);
        (opens || is_event(kind)).then_some(kind)
    };
    let mut chosen = Vec::new();
    for record in &head.records {
        if let Some(kind) = wanted(record) {
            chosen.push((record, kind));
        }
    }
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    // Both in the order of records.
    let mut notes = head.notes(body)?.into_iter().peekable();
    let mut event = |(record, kind): (&RecordInfo, RecordKind)| {
        while notes.next_if(|(noted, _)| noted.lsn < record.lsn).is_some() {}
        let note = notes.next_if(|(noted, _)| noted.lsn == record.lsn).map(|(_, note)| note);
        let stamp = Stamp { epoch: head.info.epoch, time: record.time };
        Event { timeline: head.info.timeline, lsn: record.lsn, stamp, kind, disk: record.disk, note }
    };
    Ok(chosen.into_iter().map(&mut event).collect())
}

/// The events of a frame as it stands in a segment whose chunks before it are `first_chunk`; of one that is sealed at rest none,
/// if there is no key.
pub(super) fn of_stored(
    head: &FrameHead,
    body: &[u8],
    new_epoch: bool,
    key: Option<&FileKey>,
    first_chunk: u32,
) -> Result<Vec<Event>, FrameError> {
    // Only frames with notes are looked into, and those come every few seconds.
    if !head.chunks.iter().any(|chunk| chunk.notes && chunk.sealed) {
        return of_frame(head, body, new_epoch);
    }
    let Some(key) = key else { return Ok(Vec::new()) };
    let (head, body) = head.unsealed(body, key, first_chunk)?;
    of_frame(&head, &body, new_epoch)
}

/// Events as bytes.
pub(super) fn encode(group: GroupId, events: &[Event]) -> Vec<u8> {
    let fits = |first: &Event, next: &Event| {
        next.stamp.epoch == first.stamp.epoch
            && next.timeline == first.timeline
            && next.stamp.time.0.saturating_sub(first.stamp.time.0) < SPAN_MAX
            && next.lsn.0 - first.lsn.0 < SPAN_MAX
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new();
    let mut rest = events;
    while let Some(first) = rest.first() {
        let count = rest.iter().take(NOTES_MAX).take_while(|event| fits(first, event)).count();
        let (batch, others) = rest.split_at(count);
        rest = others;
        let parts = batch.iter().map(|event| {
            let plain = Part::plain(event.kind, event.disk, Extent::new(0, 0), event.lsn, event.stamp.time);
            Part { note: event.note.clone().map(Box::new), ..plain }
        });
        let raw = RawFrame {
            timeline: first.timeline,
            prev_lsn: Lsn::ZERO,
            settled: Lsn::ZERO,
            epoch: first.stamp.epoch,
            parts: parts.collect(),
            plain_bytes: 0,
        };
        let frame = encoder.encode(raw, group, Compression::None);
        bytes.extend_from_slice(&frame.head);
        frame.body.iter().for_each(|piece| bytes.extend_from_slice(piece));
    }
    bytes
}

/// The events of one segment, all of one timeline, in the order of LSNs, as its footer has them. The key is that of a segment that
/// is sealed at rest.
pub(super) fn decode_stored(bytes: &[u8], timeline: Timeline, key: Option<&FileKey>) -> Result<Vec<Event>, FrameError> {
    let mut events = match key.filter(|_| !bytes.is_empty()) {
        Some(key) => decode(&key.open_events(bytes).map_err(|_| FrameError::NotOpened { chunk: 0 })?)?,
        None => decode(bytes)?,
    };
    if let Some(event) = events.iter().find(|event| event.timeline != timeline) {
        return Err(FrameError::Field { field: "timeline", value: event.lsn.0 });
    }
    events.sort_by_key(|event| event.lsn);
    Ok(events)
}

/// Events back from bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Event>, FrameError> {
    let mut events = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let head = FrameHead::parse(rest)?;
        let body = &rest[head.info.head_bytes as usize..];
        let found = body.len();
        let expected = head.info.body_bytes as usize;
        let (body, after) = body.split_at_checked(expected).ok_or(FrameError::Short { expected, found })?;
        events.extend(of_frame(&head, body, true)?);
        rest = after;
    }
    Ok(events)
}
