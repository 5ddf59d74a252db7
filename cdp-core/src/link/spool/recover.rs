//! What a start finds: see `SPOOL.md`, recovery.

use super::held::Place;
use super::layout::{
    ENTRY_BYTES, HEADER_BYTES, Header, Home, SpoolFormatError, decode_entry, entry_bytes, entry_head, parse_name,
};
use super::{Spool, SpoolOptions, continues};
use crate::frame::{EncodedFrame, FrameInfo};
use crate::media::{self, File, MediaError, Storage};
use crate::types::{GroupId, Position, Timeline};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// What was found in a directory.
#[derive(Debug)]
pub struct Recovery {
    /// For each timeline of which there is anything: its frames.
    pub found: Vec<Recovered>,
    /// What was stored once and is not passed on, because the media lost something before it.
    pub dropped: Vec<Dropped>,
}

/// The frames of a timeline, stored, one continuing the other.
#[derive(Debug)]
pub struct Recovered {
    /// Whose.
    pub group: GroupId,
    /// Which.
    pub timeline: Timeline,
    /// Where the first frame begins.
    pub begin: Position,
    /// Where the last one ends.
    pub end: Position,
    /// All of them; in the spool their numbers are 0, 1, 2 ….
    pub frames: Vec<FrameInfo>,
    places: Vec<Place>,
    /// Files with the number behind their last frame, and their length.
    files: Vec<(u64, u64, u64)>,
    last_sequence: u64,
}

/// Files that are not used any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// Of which timeline.
    pub timeline: Timeline,
    /// Where what was kept ends.
    pub after: Position,
    /// Where what was dropped begins.
    pub from: Position,
    /// The file whose end is missing.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub why: SpoolFormatError,
}

impl Recovered {
    /// The spool with these frames; the directory is the one in which they were found.
    #[must_use]
    pub fn into_spool(self, options: SpoolOptions) -> Spool {
        let mut spool = Spool::new(options);
        spool.of = Some((self.group, self.timeline));
        spool.end = Some(self.end);
        for (info, place) in self.frames.iter().zip(&self.places) {
            spool.held.push_stored(u64::from(info.head_bytes) + u64::from(info.body_bytes), *place);
        }
        self.files.iter().for_each(|(sequence, end, bytes)| spool.files.found(*sequence, *end, *bytes));
        spool.files.begin_after(self.last_sequence);
        spool.files.synced = spool.held.end();
        spool
    }
}

impl Spool {
    /// Reads what an earlier life left in a directory, syncs what is good, and removes what is not. Blocks, and reads everything.
    ///
    /// # Errors
    /// When the media cannot be read, synced or changed: nothing that was stored is given up then.
    pub fn recover(storage: &dyn Storage, directory: &str) -> Result<Recovery, MediaError> {
        let mut names: BTreeMap<Timeline, BTreeMap<u64, String>> = BTreeMap::new();
        for name in storage.list(directory)? {
            if let Some((timeline, sequence)) = parse_name(&name) {
                names.entry(timeline).or_default().insert(sequence, media::join(directory, &name));
            }
        }
        let mut recovery = Recovery { found: Vec::new(), dropped: Vec::new() };
        for (timeline, names) in names {
            let (run, dropped) = Run::walk(storage, timeline, &names)?;
            let kept: BTreeSet<u64> = run.files.iter().map(|file| file.sequence).collect();
            // First what is kept is durable, then what is not is removed.
            for sequence in &kept {
                storage.open(&names[sequence], true)?.sync()?;
            }
            for (_, name) in names.iter().filter(|(sequence, _)| !kept.contains(sequence)) {
                storage.remove(name)?;
            }
            let last_sequence = names.last_key_value().map_or(0, |(last, _)| *last);
            recovery.dropped.extend(dropped);
            recovery.found.extend(run.recovered(timeline, last_sequence));
        }
        // Removals of earlier lives too: a file that came back would be taken for one of this life.
        sync_dir(storage, directory)?;
        Ok(recovery)
    }
}

/// Removes every spool file of a directory, for who stores nothing in it; gives their number.
///
/// # Errors
/// When the media do not let us.
pub fn sweep(storage: &dyn Storage, directory: &str) -> Result<usize, MediaError> {
    let names = storage.list(directory)?;
    let ours: Vec<_> = names.iter().filter(|name| parse_name(name).is_some()).collect();
    ours.iter().try_for_each(|name| storage.remove(&media::join(directory, name)))?;
    Ok(ours.len())
}

fn sync_dir(storage: &dyn Storage, directory: &str) -> Result<(), MediaError> {
    match storage.sync_dir(directory) {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// A file and its valid entries.
struct Scanned {
    sequence: u64,
    header: Header,
    entries: Vec<(FrameInfo, u64)>,
    /// Everything before the first of these is released.
    alone: bool,
    bytes: u64,
    /// Where the first thing is that is no entry, and why.
    stop: (u64, SpoolFormatError),
}

/// Files whose frames follow each other.
#[derive(Default)]
struct Run {
    files: Vec<Scanned>,
}

impl Run {
    fn walk(
        storage: &dyn Storage,
        timeline: Timeline,
        names: &BTreeMap<u64, String>,
    ) -> Result<(Self, Option<Dropped>), MediaError> {
        let mut headers = Vec::new();
        for (sequence, name) in names {
            let file = storage.open(name, false)?;
            let header = Header::decode(&read(file.as_ref(), 0, HEADER_BYTES)?);
            // Not kept open: there may be more of them than a process may have.
            let ours = header.ok().filter(|header| header.timeline == timeline && header.sequence == *sequence);
            headers.extend(ours.map(|header| (header, name)));
        }
        let mut run = Self::default();
        for (at, (header, name)) in headers.iter().enumerate() {
            let mut scanned = scan(storage.open(name, false)?.as_ref(), *header)?;
            if let Some((next, _)) = headers.get(at + 1) {
                scanned.entries.retain(|(info, _)| info.begin() < next.first);
            }
            let Some((first, _)) = scanned.entries.first() else { continue };
            if let Some(last) = run.files.last().filter(|_| !scanned.alone) {
                let (end, _) = last.entries[last.entries.len() - 1];
                let missing = (last.sequence + 1..header.sequence).any(|between| !names.contains_key(&between));
                let follows = continues(end.end(), first) && last.header.group == header.group;
                if !follows && !missing {
                    let (offset, why) = last.stop.clone();
                    let (after, from) = (end.end(), first.begin());
                    let file = names[&last.sequence].clone();
                    return Ok((run, Some(Dropped { timeline, after, from, file, offset, why })));
                }
                if !follows {
                    run.files.clear();
                }
            } else {
                run.files.clear();
            }
            run.files.push(scanned);
        }
        Ok((run, None))
    }

    fn recovered(self, timeline: Timeline, last_sequence: u64) -> Option<Recovered> {
        let group = self.files.first()?.header.group;
        let (mut frames, mut places, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for Scanned { sequence, entries, bytes, .. } in self.files {
            for (info, offset) in entries {
                frames.push(info);
                places.push(Place { sequence, offset });
            }
            files.push((sequence, frames.len() as u64, bytes));
        }
        let (begin, end) = (frames.first()?.begin(), frames.last()?.end());
        Some(Recovered { group, timeline, begin, end, frames, places, files, last_sequence })
    }
}

/// Reads a file's entries up to the first that is none, or does not continue the one before.
fn scan(file: &dyn File, header: Header) -> Result<Scanned, MediaError> {
    let Header { group, timeline, sequence, first } = header;
    let mut entries: Vec<(FrameInfo, u64)> = Vec::new();
    let (mut offset, mut any_alone) = (HEADER_BYTES, false);
    let why = loop {
        let home = Home { group, timeline, sequence, offset };
        let (frame, alone) = match entry(file, home)? {
            Ok(entry) => entry,
            Err(why) => break why,
        };
        let follows = match entries.last() {
            Some((before, _)) => alone || continues(before.end(), &frame.info),
            None => frame.info.begin() == first,
        };
        if !follows {
            break SpoolFormatError::Field { field: "first_lsn", value: frame.info.first_lsn.0 };
        }
        if alone {
            entries.clear();
            any_alone = true;
        }
        entries.push((frame.info, offset));
        offset += entry_bytes(frame.len());
    };
    Ok(Scanned { sequence, header, entries, alone: any_alone, bytes: file.len()?, stop: (offset, why) })
}

type Entry = Result<(EncodedFrame, bool), SpoolFormatError>;

fn entry(file: &dyn File, home: Home) -> Result<Entry, MediaError> {
    let (length, alone) = match entry_head(home, &read(file, home.offset, ENTRY_BYTES)?) {
        Ok(head) => head,
        Err(why) => return Ok(Err(why)),
    };
    let bytes = read(file, home.offset, ENTRY_BYTES + length)?;
    Ok(decode_entry(home, &bytes).map(|frame| (frame, alone)))
}

/// So many bytes, fewer at the file's end.
fn read(file: &dyn File, offset: u64, length: u64) -> Result<Bytes, MediaError> {
    let mut bytes = vec![0; length as usize];
    let found = file.read_at(offset, &mut bytes)?;
    bytes.truncate(found);
    Ok(bytes.into())
}
