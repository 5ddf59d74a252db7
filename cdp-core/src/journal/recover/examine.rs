//! What a start, or somebody who only looks, finds of each segment: the facts that are decided about.

use super::OpenError;
use crate::journal::bytes::FormatError;
use crate::journal::decide::Facts;
use crate::journal::layout::{FIXED_BYTES, Opening, Summary, decode_trailer, foreign};
use crate::journal::manifest::{Manifest, SegmentInfo, segment_name, segment_number};
use crate::journal::reader::ReadError;
use crate::journal::scan::{AtRest, Depth, Scan, Stop, check_header, scan, twice};
use crate::media::{self, File, MediaError, MediaErrorKind, Storage};
use crate::trust::{FileKey, Keyring};
use crate::types::{Lsn, SegmentId};
use std::sync::Arc;

/// A segment as it was found.
pub(super) struct Found {
    pub(super) facts: Facts,
    pub(super) scan: Option<Scan>,
    /// Where it is wrong, and how.
    pub(super) wrong: Option<(u64, String)>,
}

impl Found {
    pub(super) fn is_sound(&self) -> bool {
        self.wrong.is_none() && !matches!(self.facts, Facts::Sealed { sound: false, .. })
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.facts, Facts::Unsealed { there: true, connects: true, frames: true, .. })
    }
}

/// What a segment has to continue.
struct Before {
    last: Lsn,
    /// None: the segments before were dropped, or there never were any.
    id: Option<SegmentId>,
    frames: u32,
    /// So far every segment with frames continued the one before it.
    connected: bool,
}

/// The segments of which there are files, for who only looks: one list costs as much as a few files.
struct Listed(Option<Vec<u64>>);

impl Listed {
    /// Whoever takes a store over asks each file for its length instead. Who only looks finds a file that is gone, and one that is
    /// cut short when it reads it: every byte of it is verified then.
    fn new(storage: &dyn Storage, directory: &str, depth: Depth) -> Result<Self, MediaError> {
        if depth == Depth::Bodies {
            return Ok(Self(None));
        }
        let mut numbers = Vec::new();
        storage.each_name(directory, &mut |name| numbers.extend(segment_number(name)))?;
        numbers.sort_unstable();
        Ok(Self(Some(numbers)))
    }

    fn check(
        &self,
        storage: &dyn Storage,
        directory: &str,
        info: &SegmentInfo,
        summary: &Summary,
    ) -> Result<(), ReadError> {
        match &self.0 {
            Some(there) if there.binary_search(&info.number).is_ok() => Ok(()),
            // What is not listed says itself why.
            _ => check_length(storage, directory, info, summary),
        }
    }
}

/// Looks at every segment that the manifest names.
pub(super) fn examine(
    storage: &dyn Storage,
    directory: &str,
    manifest: &Manifest,
    keys: &Keyring,
    depth: Depth,
) -> Result<Vec<Found>, OpenError> {
    let mut all = Vec::with_capacity(manifest.segments.len());
    let mut before = Before { last: manifest.floor, id: None, frames: 0, connected: true };
    let listed = Listed::new(storage, directory, depth)?;
    for info in &manifest.segments {
        let found = match info.summary() {
            Some(summary) => {
                let in_run = manifest.run_of(info.number).is_some();
                examine_sealed(storage, directory, info, summary, in_run.then_some(&listed))?
            }
            None => examine_unsealed(storage, directory, info, keys, depth, &before)?,
        };
        let id = Some(info.id);
        match (found.facts, &found.scan) {
            (Facts::Sealed { last, .. }, _) => {
                let frames = info.summary().map_or(0, |summary| summary.frames);
                before = Before { last, id, frames, ..before };
            }
            (Facts::Unsealed { connects: true, frames: true, last, .. }, Some(scan)) => {
                before = Before { last, id, frames: scan.frame_count(), ..before };
            }
            (Facts::Unsealed { frames, .. }, _) => before.connected &= !frames,
        }
        all.push(found);
    }
    Ok(all)
}

/// What reading gave; what the media answered for good is a fact, a failing read is none and ends the start.
pub(super) fn settle<T>(result: Result<T, ReadError>) -> Result<Result<T, ReadError>, OpenError> {
    match result {
        Err(ReadError::Media(error)) if !matches!(error.kind, MediaErrorKind::NotFound | MediaErrorKind::Short) => {
            Err(error.into())
        }
        other => Ok(other),
    }
}

fn open_file(storage: &dyn Storage, directory: &str, info: &SegmentInfo) -> Result<Arc<dyn File>, MediaError> {
    storage.open(&media::join(directory, &segment_name(info.number)), false)
}

fn check_file(file: &dyn File, info: &SegmentInfo) -> Result<(), ReadError> {
    twice(|| check_header(file, (info.number, info.id, info.key)))
}

fn check_length(
    storage: &dyn Storage,
    directory: &str,
    info: &SegmentInfo,
    summary: &Summary,
) -> Result<(), ReadError> {
    let length = storage.length(&media::join(directory, &segment_name(info.number)))?;
    if length >= summary.file_bytes {
        return Ok(());
    }
    let (what, expected) = ("segment", summary.file_bytes);
    let source = FormatError::Short { what, expected, found: length };
    Err(ReadError::Format { segment: info.number, offset: length, source })
}

fn examine_sealed(
    storage: &dyn Storage,
    directory: &str,
    info: &SegmentInfo,
    summary: &Summary,
    in_run: Option<&Listed>,
) -> Result<Found, OpenError> {
    let check = || {
        // What is in a run was read whole since it was sealed: there are few of the others, however long the journal is.
        if let Some(listed) = in_run {
            return listed.check(storage, directory, info, summary);
        }
        let file = open_file(storage, directory, info)?;
        check_file(file.as_ref(), info)?;
        let offset = summary.trailer_at();
        let mut bytes = [0; FIXED_BYTES];
        file.read_exact_at(offset, &mut bytes)?;
        let failed = |source| ReadError::Format { segment: info.number, offset, source };
        let (id, found) = decode_trailer(&bytes).map_err(failed)?;
        if id != info.id || found != *summary {
            return Err(failed(foreign("segment trailer", "segment", info.id, id)));
        }
        Ok(())
    };
    let wrong = settle(twice(check))?.err().map(|error| (error.offset().unwrap_or(0), error.to_string()));
    let (last, whole) = (summary.last_lsn, summary.whole_lsn);
    Ok(Found { facts: Facts::Sealed { sound: wrong.is_none(), last, whole }, scan: None, wrong })
}

/// The keys of a segment that is sealed at rest.
pub(super) fn file_key(info: &SegmentInfo, keys: &Keyring) -> Result<Option<FileKey>, ReadError> {
    if info.key == 0 {
        return Ok(None);
    }
    let failed = |source| ReadError::AtRest { segment: info.number, source };
    keys.segment(info.key, info.id).map(Some).map_err(failed)
}

fn examine_unsealed(
    storage: &dyn Storage,
    directory: &str,
    info: &SegmentInfo,
    keys: &Keyring,
    depth: Depth,
    before: &Before,
) -> Result<Found, OpenError> {
    let key = match file_key(info, keys) {
        // Who is to write its footer has to know what notes say.
        Err(error) if depth == Depth::Bodies => return Err(error.into()),
        key => key.ok().flatten(),
    };
    let at_rest = if info.key == 0 { AtRest::Plain } else { AtRest::Sealed(key.as_ref()) };
    let read = || {
        let file = open_file(storage, directory, info)?;
        // It was durable before the segment was named: one that is wrong is damaged since, and what is behind it says how much was
        // there.
        let damaged = match check_file(file.as_ref(), info) {
            Err(error @ ReadError::Format { .. }) => Some(error),
            header => header.map(|()| None)?,
        };
        Ok((scan(file.as_ref(), (info.number, info.id), depth, at_rest)?, damaged))
    };
    let (scan, damaged) = match settle(read())? {
        Ok(found) => found,
        Err(error) => {
            let none = Lsn::ZERO;
            let (there, connects, frames, torn) = (false, false, false, false);
            let facts = Facts::Unsealed { there, connects, frames, last: none, whole: none, torn, witness: none };
            return Ok(Found { facts, scan: None, wrong: Some((error.offset().unwrap_or(0), error.to_string())) });
        }
    };
    let follows = |opening: &Opening| {
        let same = opening.prev_segment == before.id && opening.prev_frames == before.frames;
        opening.prev_lsn == before.last && (same || before.id.is_none())
    };
    let connects = before.connected && scan.opening.as_ref().is_some_and(follows);
    let frames = !scan.runs.is_empty();
    let wrong = match &scan.stop {
        Stop::Torn(error) => Some((scan.end, error.to_string())),
        Stop::Clean if frames && !connects => {
            Some((0, format!("does not continue the segment before it, which ends at LSN {}", before.last)))
        }
        Stop::Clean => None,
    };
    let facts = Facts::Unsealed {
        there: damaged.is_none(),
        connects,
        frames,
        last: scan.last_lsn,
        whole: scan.whole.unwrap_or(Lsn::ZERO),
        torn: damaged.is_some() || matches!(scan.stop, Stop::Torn(_)),
        witness: scan.witness,
    };
    match damaged {
        Some(error) => Ok(Found { facts, scan: None, wrong: Some((0, error.to_string())) }),
        None => Ok(Found { facts, scan: Some(scan), wrong }),
    }
}
