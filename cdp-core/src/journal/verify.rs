//! Reading everything: every block, every frame, every chunk, every part, and that the index says what the frames say.

mod unreadable;

pub use unreadable::{UNREADABLE_MAX, Unreadable};

use super::bytes::FormatError;
use super::event::{self, Event};
use super::index::{Entry, EntrySum, IndexRun, Place, What};
use super::layout::{
    BLOCK_BYTES, ENVELOPE_BYTES, Envelope, FIXED_BYTES, FRAMES_AT, OPENING_AT, Opening, Summary, decode_trailer,
    foreign,
};
use super::level::{RunInfo, run_name};
use super::manifest::segment_name;
use super::reader::{ReadError, Reader, parse_head};
use super::scan::{AtRest, check_chunks, check_header};
use super::snapshot::{Content, SegmentView, Snapshot};
use crate::frame::{FrameError, FrameHead};
use crate::trust::KeyError;
use crate::types::{DISK_MAX, DiskId, Extent, Lsn, SegmentId, Timeline};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Something that is not what was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file's name.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many bytes are concerned, at most.
    pub length: u64,
    /// What is wrong.
    pub what: String,
    /// The timeline whose records are concerned.
    pub timeline: Timeline,
    /// The records that cannot be read any more, first and last; none where only the index suffers.
    pub lost: Option<(Lsn, Lsn)>,
}

/// What verifying found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// What views cannot read for it: at most [`UNREADABLE_MAX`] one by one, and then one for each timeline and disk.
    pub unreadable: Vec<Unreadable>,
    /// How many are behind those.
    pub more: u64,
    /// Segments that were read.
    pub segments: u64,
    /// Frames that were read and are good.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Frames whose bytes are as they were written, as far as checksums say, and that were not opened: they are sealed at rest and
    /// no key was given.
    pub unopened: u64,
}

/// What is kept of a segment that is good, for the run that holds its index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) id: SegmentId,
    /// What its frames say, but for the following.
    pub(super) entries: EntrySum,
    /// Entries without a chunk of the record at this LSN, which began in an earlier segment: a run does not say of which of both they are.
    pub(super) continued: (Lsn, EntrySum),
    pub(super) events_bytes: u32,
    pub(super) events_crc: u32,
}

/// One segment being verified.
struct Check<'a> {
    reader: &'a Reader,
    segment: &'a SegmentView,
    /// The run that holds its index.
    run: Option<&'a RunInfo>,
    out: &'a mut Verified,
    /// Sealed at rest, and no key was given: what checksums say is all that can be said.
    shut: bool,
}

impl Reader {
    /// Reads everything that the snapshot has, one segment after another, then the runs of the levelled index. `progress` is
    /// told the bytes read so far after each file and says whether to go on.
    pub fn verify(&self, snapshot: &Snapshot, mut progress: impl FnMut(u64) -> bool) -> Verified {
        let mut out = Verified::default();
        let (mut before, mut seen) = (None, BTreeMap::new());
        for segment in snapshot.segments() {
            let shut = matches!(self.file_key(segment), Err(ReadError::AtRest { source: KeyError::Missing, .. }));
            let run = snapshot.run_of(segment.number).map(Arc::as_ref);
            let findings = out.findings.len();
            let mut check = Check { reader: self, segment, run, out: &mut out, shut };
            if let Some(last) = before.replace(segment.last_lsn).filter(|last| *last != segment.prev_lsn) {
                let source = foreign("segment", "prev_lsn", last, segment.prev_lsn);
                check.report(&ReadError::Format { segment: segment.number, offset: 0, source }, 0, 0, None);
            }
            match check.segment() {
                Ok(found) => drop(found.map(|found| seen.insert(segment.number, found))),
                Err(error) => check.report(&error, 0, 0, Some((segment.first_lsn, segment.last_lsn))),
            }
            if out.findings.len() > findings {
                self.find_unreadable(snapshot, segment, &mut out);
            }
            out.segments += 1;
            if !progress(out.bytes) {
                return out;
            }
        }
        for run in snapshot.runs() {
            match self.verify_run(run, &seen) {
                Ok(bytes) => out.bytes += bytes,
                Err(error) => {
                    let (file, offset) = (run_name(run.number), error.offset().unwrap_or(0));
                    let length = run.totals.file_bytes.saturating_sub(offset);
                    let (what, timeline) = (error.to_string(), run.timeline);
                    out.findings.push(Finding { file, offset, length, what, timeline, lost: None });
                }
            }
            if !progress(out.bytes) {
                break;
            }
        }
        out
    }
}

impl Check<'_> {
    fn report(&mut self, error: &ReadError, offset: u64, length: u64, lost: Option<(Lsn, Lsn)>) {
        let offset = error.offset().unwrap_or(offset);
        let (file, timeline) = (segment_name(self.segment.number), self.segment.timeline);
        self.out.findings.push(Finding { file, offset, length, what: error.to_string(), timeline, lost });
    }

    /// Gives what a run must say of it, if all of it is good.
    fn segment(&mut self) -> Result<Option<Seen>, ReadError> {
        let file = self.reader.file(self.segment.number, self.segment.id)?;
        check_header(file.as_ref(), (self.segment.number, self.segment.id, self.segment.key))?;
        self.opening()?;
        let (mut events_crc, mut emptied) = (0, false);
        if let Content::Sealed(summary) = &self.segment.content {
            events_crc = self.footer(summary)?;
            emptied = self.emptied(summary)?;
        }
        let rows = self.reader.frame_rows(self.segment)?;
        let (mut sequence, mut chunks, mut at) = (1, 0, FRAMES_AT);
        let mut runs = Vec::new();
        for row in &rows {
            let lost = Some((row.first_lsn, row.last_lsn));
            let place = Place { offset: row.offset, first_chunk: chunks };
            match self.frame(row.offset, row.frame_bytes, (sequence, place, at)) {
                Ok((run, stride, count)) => {
                    runs.push(run);
                    (at, chunks) = (row.offset + stride, chunks + count);
                }
                Err(error) => {
                    // With its envelope, and what may lie between head and body: less than a page.
                    let length = ENVELOPE_BYTES as u64 + BLOCK_BYTES as u64 + u64::from(row.frame_bytes);
                    self.report(&error, row.offset, length, lost);
                    // What follows is judged by where the table says it is.
                    let next = rows.get(sequence as usize);
                    at = next.map_or(at, |next| next.offset);
                    chunks = next.and_then(|next| self.first_chunk(next.offset)).unwrap_or(chunks);
                }
            }
            sequence += 1;
        }
        if runs.len() != rows.len() {
            return Ok(None);
        }
        self.index(&runs, emptied)?;
        let (mut entries, mut continued) = (EntrySum::default(), (self.segment.prev_lsn, EntrySum::default()));
        for entry in runs.iter().flat_map(|run| run.narrow.iter().chain(&run.wide)) {
            let is_shared = entry.what != What::Data && entry.lsn == continued.0.0;
            if is_shared { &mut continued.1 } else { &mut entries }.add(entry);
        }
        let events_bytes = match &self.segment.content {
            Content::Sealed(summary) => summary.events_bytes,
            Content::Active(_) => 0,
        };
        Ok(Some(Seen { id: self.segment.id, entries, continued, events_bytes, events_crc }))
    }

    /// What stands between header and first frame.
    fn opening(&mut self) -> Result<(), ReadError> {
        let (number, id) = (self.segment.number, self.segment.id);
        let mut bytes = vec![0; (FRAMES_AT - OPENING_AT) as usize];
        self.reader.file(number, id)?.read_exact_at(OPENING_AT, &mut bytes)?;
        let failed = |source| ReadError::Format { segment: number, offset: OPENING_AT, source };
        let opening = Opening::decode(&bytes).map_err(failed)?;
        let timeline = self.segment.timeline;
        if opening.id != id || opening.timeline != timeline {
            return Err(failed(foreign("segment opening", "timeline", timeline, opening.timeline)));
        }
        self.padding(&bytes[FIXED_BYTES..], OPENING_AT + FIXED_BYTES as u64);
        Ok(())
    }

    /// What nobody reads is zeros all the same: what is not was changed by somebody else.
    fn padding(&mut self, bytes: &[u8], offset: u64) {
        if bytes.iter().any(|byte| *byte != 0) {
            let source = FormatError::Field { what: "padding", field: "zeros", value: 1 };
            let error = ReadError::Format { segment: self.segment.number, offset, source };
            self.report(&error, offset, bytes.len() as u64, None);
        }
    }

    fn first_chunk(&self, offset: u64) -> Option<u32> {
        let file = self.reader.file(self.segment.number, self.segment.id).ok()?;
        let mut bytes = [0; ENVELOPE_BYTES];
        file.read_exact_at(offset, &mut bytes).ok()?;
        super::layout::Envelope::decode(&bytes).ok().map(|envelope| envelope.first_chunk)
    }

    /// One frame with everything in it; gives its index, its stride and how many chunks it has.
    fn frame(
        &mut self,
        offset: u64,
        frame_bytes: u32,
        (sequence, place, expected): (u32, Place, u64),
    ) -> Result<(IndexRun, u64, u32), ReadError> {
        let (number, id) = (self.segment.number, self.segment.id);
        let broken = |source| ReadError::Format { segment: number, offset, source };
        let file = self.reader.file(number, id)?;
        let mut front = [0; ENVELOPE_BYTES];
        file.read_exact_at(offset, &mut front)?;
        let envelope = Envelope::decode(&front).map_err(broken)?;
        let mut bytes = vec![0; envelope.stride(offset) as usize];
        file.read_exact_at(offset, &mut bytes)?;
        let (envelope, head) = parse_head(number, id, offset, &bytes)?;
        let (head_ends, body_at) = (ENVELOPE_BYTES + envelope.head_bytes as usize, envelope.body_at(offset) as usize);
        let padding = bytes.split_off(body_at + (envelope.frame_bytes - envelope.head_bytes) as usize);
        self.padding(&bytes[head_ends..body_at], offset + head_ends as u64);
        self.padding(&padding, offset + bytes.len() as u64);
        self.out.bytes += bytes.len() as u64;
        let facts = [
            ("sequence", u64::from(sequence), u64::from(envelope.sequence)),
            ("first_chunk", u64::from(place.first_chunk), u64::from(envelope.first_chunk)),
            ("frame_bytes", u64::from(frame_bytes), u64::from(envelope.frame_bytes)),
            ("offset", expected, offset),
        ];
        for (field, expected, found) in facts {
            if expected != found {
                return Err(broken(foreign("frame envelope", field, expected, found)));
            }
        }
        if head.info.timeline != self.segment.timeline {
            return Err(broken(foreign("frame", "timeline", self.segment.timeline, head.info.timeline)));
        }
        let body = Bytes::from(bytes).slice(body_at..);
        let failed = |source| ReadError::Frame { segment: number, offset, source };
        let events = self.open_frame(&envelope, &head, &body)?.map_err(failed)?;
        let run = IndexRun::of_frame(&head, events, place);
        self.out.frames += 1;
        self.out.records += u64::from(head.info.records);
        Ok((run, envelope.stride(offset), head.chunks.len() as u32))
    }

    /// Every chunk and part of a frame, as far as keys go; gives its events.
    fn open_frame(
        &mut self,
        envelope: &Envelope,
        head: &FrameHead,
        body: &Bytes,
    ) -> Result<Result<Vec<Event>, FrameError>, ReadError> {
        let key = if self.shut { None } else { self.reader.file_key(self.segment)? };
        let at_rest = if self.segment.key == 0 { AtRest::Plain } else { AtRest::Sealed(key.as_deref()) };
        if let Err(wrong) = at_rest.check(head) {
            return Ok(Err(wrong));
        }
        if self.shut {
            self.out.unopened += 1;
            return Ok(check_chunks(head, body).map(|()| Vec::new()));
        }
        if let Err(wrong) = self.reader.unpack(self.segment, envelope, head, body)? {
            return Ok(Err(wrong));
        }
        Ok(event::of_stored(head, body, true, key.as_deref(), envelope.first_chunk))
    }

    /// Trailer, and the checksum over rows and events; gives the one over events.
    fn footer(&mut self, summary: &Summary) -> Result<u32, ReadError> {
        let number = self.segment.number;
        let file = self.reader.file(number, self.segment.id)?;
        let failed = |offset: u64| move |source: FormatError| ReadError::Format { segment: number, offset, source };
        let mut trailer = [0; FIXED_BYTES];
        file.read_exact_at(summary.trailer_at(), &mut trailer)?;
        let (id, found) = decode_trailer(&trailer).map_err(failed(summary.trailer_at()))?;
        if id != self.segment.id || found != *summary {
            return Err(failed(summary.trailer_at())(foreign("segment trailer", "segment", self.segment.id, id)));
        }
        let length = file.len()?;
        if length > summary.file_bytes {
            let mut rest = vec![0; (length - summary.file_bytes).min(1 << 20) as usize];
            file.read_exact_at(summary.file_bytes, &mut rest)?;
            self.padding(&rest, summary.file_bytes);
        }
        let (from, end, mut crc) = (summary.index_extent().end(), summary.trailer_at(), 0);
        let mut at = from;
        let mut block = vec![0; BLOCK_BYTES];
        while at < end {
            let length = (end - at).min(BLOCK_BYTES as u64) as usize;
            file.read_exact_at(at, &mut block[..length])?;
            crc = crc32c::crc32c_append(crc, &block[..length]);
            at += length as u64;
            self.out.bytes += length as u64;
        }
        if crc != summary.footer_crc {
            let (expected, found) = (summary.footer_crc, crc);
            let error = failed(summary.frames_end)(FormatError::Checksum { what: "segment footer", expected, found });
            self.report(&error, from, end - from, None);
        }
        let mut events = vec![0; summary.events_bytes as usize];
        file.read_exact_at(summary.events_at(), &mut events)?;
        Ok(crc32c::crc32c(&events))
    }

    /// That the index is not here where a manifest says so, and is here where nobody else has it; whether there is none to compare.
    fn emptied(&mut self, summary: &Summary) -> Result<bool, ReadError> {
        let index = summary.index_extent();
        let expected = match self.run {
            Some(run) if run.emptied => true,
            None => false,
            // It is being emptied: any part of it may be zeros.
            Some(_) => return Ok(false),
        };
        let file = self.reader.file(self.segment.number, self.segment.id)?;
        let (mut at, mut zeros) = (index.offset, true);
        let mut block = vec![0; BLOCK_BYTES];
        while at < index.end() && zeros {
            file.read_exact_at(at, &mut block)?;
            zeros = block.iter().all(|byte| *byte == 0);
            at += BLOCK_BYTES as u64;
        }
        let what = match (expected, zeros && !index.is_empty()) {
            // An owner put it into a run since it was looked.
            (false, true) if self.reader.run_of_now(self.segment.number).is_some() => return Ok(true),
            (true, false) if !index.is_empty() => "the footer's index is not empty, though the manifest says so",
            (false, true) => "its index is in no run any more: it is read from its frames until it is merged again",
            _ => return Ok(false),
        };
        let (file, timeline) = (segment_name(self.segment.number), self.segment.timeline);
        let (offset, length, what) = (index.offset, index.length, what.to_owned());
        self.out.findings.push(Finding { file, offset, length, what, timeline, lost: None });
        Ok(true)
    }

    /// What the index has of the disks of these entries, sorted.
    fn entries(&self, like: &[Entry]) -> Result<Vec<Entry>, ReadError> {
        let mut found = Vec::with_capacity(like.len());
        for entries in like.chunk_by(|a, b| a.disk == b.disk) {
            let Some(disk) = DiskId::new(entries[0].disk) else { continue };
            found.extend(self.reader.overlapping(self.segment, disk, Extent::new(0, DISK_MAX))?);
        }
        found.sort();
        Ok(found)
    }

    /// Whether the index has exactly the entries, chunks and events that the frames give.
    fn index(&mut self, runs: &[IndexRun], emptied: bool) -> Result<(), ReadError> {
        let number = self.segment.number;
        let broken = |field, expected: usize, found: usize| ReadError::Format {
            segment: number,
            offset: 0,
            source: foreign("segment index", field, expected, found),
        };
        // The index of others is in a run, and compared with that.
        if self.run.is_none() && !emptied {
            let mut expected: Vec<Entry> =
                runs.iter().flat_map(|run| run.narrow.iter().chain(&run.wide)).copied().collect();
            expected.sort();
            let found = self.entries(&expected);
            match found {
                Ok(found) if found != expected => {
                    let error = broken("entries", expected.len(), found.len());
                    self.report(&error, 0, 0, None);
                }
                Ok(_) => {}
                // It is being emptied while it is read.
                Err(_) if self.reader.run_of_now(number).is_some() => {}
                Err(error) => self.report(&error, 0, BLOCK_BYTES as u64, None),
            }
        }
        let rows: Vec<_> = runs.iter().flat_map(|run| run.chunks.iter().copied()).collect();
        for (chunk, row) in (0..).zip(&rows) {
            if self.reader.chunk_row(self.segment, chunk)? != *row {
                let error = broken("chunk row", chunk as usize, chunk as usize);
                self.report(&error, 0, 0, None);
            }
        }
        // Without its key nobody can say what events a segment has; its checksums were looked at.
        if self.shut {
            return Ok(());
        }
        let events: usize = self.reader.segment_events(self.segment)?.len();
        let all: usize = runs.iter().map(|run| run.events.len()).sum();
        // Time records count only where they begin an epoch; each frame was asked alone here.
        if events > all {
            let error = broken("events", all, events);
            self.report(&error, 0, 0, None);
        }
        Ok(())
    }
}
