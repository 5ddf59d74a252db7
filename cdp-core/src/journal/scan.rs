//! Reading a segment that was not sealed: frame by frame from the front, trusting nothing, up to the first thing that is
//! not what must come there; and behind that only for what it says about durability.

use super::bytes::FormatError;
use super::event;
use super::index::{IndexRun, Place};
use super::layout::{ENVELOPE_BYTES, Envelope, FIXED_BYTES, FRAMES_AT, OPENING_AT, Opening, SegmentHeader, foreign};
use super::reader::{ReadError, parse_head};
use super::tail::Unfinished;
use crate::frame::{FrameError, FrameHead};
use crate::media::{File, MediaErrorKind};
use crate::trust::FileKey;
use crate::types::{ClockEpoch, Lsn, SECTOR, SegmentId};
use std::sync::Arc;

/// How much is verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Depth {
    /// Every stored byte, by who seals what is whole and so has to have the key.
    Bodies,
    /// Every stored byte, with or without the key, by who looks at what nobody owns.
    Stored,
    /// Heads only: for readers of a journal that its owner is writing.
    Heads,
}

/// Why a scan ended.
#[derive(Debug)]
pub(super) enum Stop {
    /// Nothing was ever written there.
    Clean,
    /// Something is there that is no frame that belongs there.
    Torn(Box<ReadError>),
}

/// What a segment holds.
#[derive(Debug)]
pub(super) struct Scan {
    /// None: no frame was written, or the first write tore.
    pub(super) opening: Option<Opening>,
    pub(super) runs: Vec<Arc<IndexRun>>,
    /// Where the valid frames end.
    pub(super) end: u64,
    pub(super) last_lsn: Lsn,
    /// What the last frame has not all parts of.
    pub(super) unfinished: Option<Unfinished>,
    /// The last LSN that is whole; none if no part here is the last of its record.
    pub(super) whole: Option<Lsn>,
    pub(super) plain_bytes: u64,
    pub(super) stop: Stop,
    /// The highest durable LSN that anything valid here tells of.
    pub(super) witness: Lsn,
}

/// What does not verify is read again before anything is concluded from it: media may give a flipped bit once, and a start must not
/// cut off, remove or drop what the next reading would find whole.
pub(super) fn twice<T, E>(read: impl Fn() -> Result<T, E>) -> Result<T, E> {
    read().or_else(|_| read())
}

/// Checks that the file is the segment that the manifest means, sealed at rest by the key that it names.
pub(super) fn check_header(file: &dyn File, (number, id, key): (u64, SegmentId, u32)) -> Result<(), ReadError> {
    let mut bytes = [0; FIXED_BYTES];
    file.read_exact_at(0, &mut bytes)?;
    let failed = |source| ReadError::Format { segment: number, offset: 0, source };
    let header = SegmentHeader::decode(&bytes).map_err(failed)?;
    if header.id != id || header.number != number {
        return Err(failed(foreign("segment header", "segment", id, header.id)));
    }
    if header.key != key {
        return Err(failed(foreign("segment header", "key", key, header.key)));
    }
    Ok(())
}

/// How a segment is sealed at rest, if it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum AtRest<'a> {
    Plain,
    /// Without the key everything is found but what notes say.
    Sealed(Option<&'a FileKey>),
}

/// Scans a segment whose header was checked, or is damaged: then the id that the manifest says tells what belongs to it.
pub(super) fn scan(
    file: &dyn File,
    (number, id): (u64, SegmentId),
    depth: Depth,
    at_rest: AtRest<'_>,
) -> Result<Scan, ReadError> {
    let mut scan = Scan {
        opening: None,
        runs: Vec::new(),
        end: FRAMES_AT,
        last_lsn: Lsn::ZERO,
        unfinished: None,
        whole: None,
        plain_bytes: 0,
        stop: Stop::Clean,
        witness: Lsn::ZERO,
    };
    let mut bytes = vec![0; FIXED_BYTES];
    file.read_exact_at(OPENING_AT, &mut bytes)?;
    let failed = |source| ReadError::Format { segment: number, offset: OPENING_AT, source };
    let mut opening = Opening::decode(&bytes);
    if opening.is_err() {
        file.read_exact_at(OPENING_AT, &mut bytes)?;
        opening = Opening::decode(&bytes);
    }
    match opening {
        Ok(opening) if opening.id == id => {
            scan.witness = opening.durable;
            scan.opening = Some(opening);
        }
        Ok(opening) => scan.stop = Stop::Torn(failed(foreign("segment opening", "segment", id, opening.id)).into()),
        Err(source) if bytes.iter().any(|byte| *byte != 0) => scan.stop = Stop::Torn(failed(source).into()),
        Err(_) => {}
    }
    if scan.opening.is_some() {
        scan.frames(file, (number, id), depth, at_rest)?;
    }
    scan.search_behind(file, id)?;
    Ok(scan)
}

impl Scan {
    /// How many frames are valid.
    pub(super) fn frame_count(&self) -> u32 {
        self.runs.iter().map(|run| run.frames.len() as u32).sum()
    }

    fn frames(
        &mut self,
        file: &dyn File,
        segment: (u64, SegmentId),
        depth: Depth,
        at_rest: AtRest<'_>,
    ) -> Result<(), ReadError> {
        let (mut sequence, mut chunks, mut epoch) = (1, 0, None);
        loop {
            let mut found = self.frame(file, segment, depth, at_rest, (sequence, chunks, epoch));
            if found.is_err() {
                found = self.frame(file, segment, depth, at_rest, (sequence, chunks, epoch));
            }
            match found {
                Ok(Some(head)) => {
                    sequence += 1;
                    chunks += head.chunks.len() as u32;
                    epoch = Some(head.info.epoch);
                }
                Ok(None) => return Ok(()),
                // A file that ends early is torn; media that fail are not, and nothing may be concluded from them.
                Err(ReadError::Media(error)) if error.kind != MediaErrorKind::Short => return Err(error.into()),
                Err(error) => {
                    self.stop = Stop::Torn(error.into());
                    return Ok(());
                }
            }
        }
    }

    /// Takes the frame at `end`; none where nothing was written.
    fn frame(
        &mut self,
        file: &dyn File,
        (number, id): (u64, SegmentId),
        depth: Depth,
        at_rest: AtRest<'_>,
        (sequence, chunks, epoch): (u32, u32, Option<ClockEpoch>),
    ) -> Result<Option<FrameHead>, ReadError> {
        let offset = self.end;
        let mut front = [0; ENVELOPE_BYTES];
        if file.read_at(offset, &mut front)? < ENVELOPE_BYTES || front == [0; ENVELOPE_BYTES] {
            return Ok(None);
        }
        let broken = |source| ReadError::Format { segment: number, offset, source };
        let envelope = Envelope::decode(&front).map_err(broken)?;
        let mut bytes = vec![0; envelope.stride(offset) as usize];
        file.read_exact_at(offset, &mut bytes)?;
        let (envelope, head) = parse_head(number, id, offset, &bytes)?;
        for (field, expected, found) in
            [("sequence", sequence, envelope.sequence), ("first_chunk", chunks, envelope.first_chunk)]
        {
            if expected != found {
                return Err(broken(foreign("frame envelope", field, expected, found)));
            }
        }
        self.check_chain(&head).map_err(broken)?;
        let body = &bytes[envelope.body_at(offset) as usize..];
        let failed = |source| ReadError::Frame { segment: number, offset, source };
        let key = at_rest.check(&head).map_err(failed)?;
        if depth != Depth::Heads {
            check_chunks(&head, body).map_err(failed)?;
        }
        let new_epoch = epoch != Some(head.info.epoch);
        let events = event::of_stored(&head, body, new_epoch, key, chunks).map_err(failed)?;
        let run = IndexRun::of_frame(&head, events, Place { offset, first_chunk: chunks });
        self.runs.push(Arc::new(run));
        self.end += envelope.stride(offset);
        self.last_lsn = head.info.last_lsn;
        self.plain_bytes += u64::from(head.info.plain_bytes);
        self.witness = self.witness.max(envelope.durable);
        self.unfinished = Unfinished::left_by(&head);
        let whole = head.records.iter().rev().find(|record| record.index + 1 == record.count);
        self.whole = whole.map(|record| record.lsn).or(self.whole);
        Ok(Some(head))
    }

    /// Whether a frame continues what is there.
    fn check_chain(&self, head: &FrameHead) -> Result<(), FormatError> {
        let Some(opening) = &self.opening else { return Ok(()) };
        if head.info.timeline != opening.timeline {
            return Err(foreign("frame", "timeline", opening.timeline, head.info.timeline));
        }
        if head.info.group != opening.group {
            return Err(foreign("frame", "group", opening.group, head.info.group));
        }
        let found = head.info.prev_lsn;
        let record = &head.records[0];
        let follows = match &self.unfinished {
            Some(rest) => rest.is_continued_by(head),
            None => self.runs.is_empty() || (record.lsn > self.last_lsn && record.index == 0),
        };
        if !follows {
            return Err(foreign("frame", "part", self.unfinished.map_or(0, |rest| rest.parts), record.index));
        }
        let first = self.runs.is_empty() && (found == opening.prev_lsn || found == Lsn::ZERO);
        if !first && (self.runs.is_empty() || found != self.last_lsn) {
            return Err(foreign("frame", "prev_lsn", self.last_lsn.max(opening.prev_lsn), found));
        }
        Ok(())
    }

    /// Looks behind the end of the valid frames for envelopes of this very segment: what they say was durable was.
    fn search_behind(&mut self, file: &dyn File, id: SegmentId) -> Result<(), ReadError> {
        let mut at = self.end;
        let mut window = vec![0; 256 << 10];
        while let Some(run) = file.next_data(at)? {
            at = run.offset.max(at) / SECTOR * SECTOR;
            let length = file.read_at(at, &mut window)?;
            if length < ENVELOPE_BYTES {
                break;
            }
            for sector in window[..length].chunks(SECTOR as usize).filter(|sector| Envelope::begins(sector)) {
                if let Some(envelope) = Envelope::decode(sector).ok().filter(|envelope| envelope.id == id) {
                    self.witness = self.witness.max(envelope.durable);
                }
            }
            at += (length as u64).next_multiple_of(SECTOR);
        }
        Ok(())
    }
}

impl<'a> AtRest<'a> {
    /// That every chunk of a frame is sealed at rest, or none, as its segment is; gives the key, if there is one.
    pub(super) fn check(self, head: &FrameHead) -> Result<Option<&'a FileKey>, FrameError> {
        let (sealed, key) = match self {
            Self::Plain => (false, None),
            Self::Sealed(key) => (true, key),
        };
        match head.chunks.iter().find(|chunk| chunk.sealed != sealed) {
            Some(chunk) => Err(FrameError::Field { field: "chunk.flags", value: chunk.sealed.into() }),
            None => Ok(key),
        }
    }
}

/// Verifies every chunk's stored bytes.
pub(super) fn check_chunks(head: &FrameHead, body: &[u8]) -> Result<(), FrameError> {
    for chunk in &head.chunks {
        let expected = (chunk.offset + chunk.stored_length) as usize;
        let stored = body.get(chunk.offset as usize..expected);
        let stored = stored.ok_or(FrameError::Short { expected, found: body.len() })?;
        let (found, expected) = (crc32c::crc32c(stored), chunk.crc);
        if found != expected {
            return Err(FrameError::ChunkChecksum { chunk: chunk.number, expected, found });
        }
    }
    Ok(())
}
