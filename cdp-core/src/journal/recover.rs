//! Opening a store: what is there is looked at, decided about, and made whole; or refused with what is lost and what is good.
//!
//! Three ways in: [`create`] makes a new store, [`open`] takes one over (its caller holds the directory's lock), [`look`]
//! only reads, also while an owner is writing. A store that is sealed at rest takes its keys: [`open_with`], [`look_with`]. After `open` every segment is sealed: none is ever appended to again.

mod examine;

use self::examine::{Found, examine, file_key, settle};
use super::decide::{Action, Loss, decide};
use super::footer;
use super::index::IndexRun;
use super::layout::{ENVELOPE_BYTES, OPENING_AT, Summary};
use super::level;
use super::manifest::{
    Generation, MANIFEST_COPY_TMP, MANIFEST_NAME, MANIFEST_TMP, Manifest, SegmentInfo, SegmentState, is_journal_file,
    segment_name,
};
use super::reader::{ReadError, parse_head};
use super::scan::{Depth, Scan, Stop, check_chunks, twice};
use super::snapshot::{SegmentView, Snapshot};
use super::stored::{read_manifest, write_manifest};
use super::tail::Tail;
use crate::journal::bytes::FormatError;
use crate::media::{self, File, MediaError, MediaErrorKind, Operation, Storage};
use crate::trust::{FileKey, KeyError, KeyHolder, Keyring, WrappingKey};
use crate::types::{DurableLsn, Extent, Lsn, Timeline};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The media did not let us.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// There is no manifest: no store.
    #[error("{path} holds no {MANIFEST_NAME}: there is no replica in it")]
    NoStore {
        /// Of the directory.
        path: String,
    },
    /// There is a manifest already.
    #[error("{path} holds a replica already")]
    Exists {
        /// Of the directory.
        path: String,
    },
    /// The manifest is damaged or of another version.
    #[error("{path}/{MANIFEST_NAME}: {source}")]
    Manifest {
        /// Of the directory.
        path: String,
        /// What is wrong.
        source: FormatError,
    },
    /// It is sealed at rest, and the key is another one or its wraps are damaged: nothing is wrong with what it holds.
    #[error("{path}: {source}")]
    AtRest {
        /// Of the directory.
        path: String,
        /// Why it does not open.
        source: KeyError,
    },
    /// A segment could not be read while it was looked at.
    #[error(transparent)]
    Segment(#[from] ReadError),
    /// Data that was acknowledged is missing or damaged.
    #[error("{0}")]
    Damaged(Box<Damage>),
}

/// Acknowledged data that is not there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{path} at byte {offset}: {what}; the records after LSN {good} up to LSN {acknowledged} were acknowledged and are lost, \
     everything up to LSN {good} is good"
)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Of its file, or of the directory.
    pub path: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// Everything up to here can be read.
    pub good: Lsn,
    /// Everything up to here was acknowledged.
    pub acknowledged: Lsn,
    /// The good LSNs by timeline: first and last with a part.
    pub ranges: Vec<(Timeline, Lsn, Lsn)>,
}

/// What opening did to a file, for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Repair {
    /// The segment had not been sealed; it was, after its last valid frame.
    Sealed {
        /// Number of the segment.
        segment: u64,
        /// Where its frames end.
        end: u64,
        /// What followed them, if it was not nothing: never acknowledged.
        torn: Option<String>,
    },
    /// A run of the levelled index was not as the manifest says. It only repeats what its segments say: it is made again.
    IndexDropped {
        /// Its name.
        name: String,
        /// What was wrong.
        what: String,
    },
    /// The file held nothing that was ever acknowledged.
    Removed {
        /// Its name.
        name: String,
    },
}

/// A store that is open: all its segments are sealed and sound.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its state.
    pub manifest: Manifest,
    /// The manifest that stands on the media: an older one where there was no room for this state.
    pub stored: Generation,
    /// Everything up to here survives a power cut.
    pub durable: DurableLsn,
    /// The last LSN with a part in any segment: new ones start above.
    pub last_lsn: Lsn,
    /// Where the open timeline ends, to the part, and goes on.
    pub tail: Tail,
    /// What was done.
    pub repairs: Vec<Repair>,
    /// What it is sealed by at rest; empty where it is not, or no key was given.
    pub keys: Arc<Keyring>,
}

impl Opened {
    /// The store as it is, for readers.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let segments = self.manifest.segments.iter().filter_map(SegmentView::sealed).map(Arc::new).collect();
        Snapshot::new(&self.manifest, segments, self.durable, self.durable.lsn(), Lsn::ZERO)
    }
}

/// Makes a new store with the given state.
///
/// # Errors
/// When there is one already, or the media do not let us.
pub fn create(storage: &dyn Storage, mut manifest: Manifest) -> Result<Opened, OpenError> {
    if storage.list("")?.iter().any(|name| name == MANIFEST_NAME) {
        return Err(OpenError::Exists { path: storage.path() });
    }
    manifest.generation = Generation(manifest.generation.0.max(1));
    write_manifest(storage, &manifest)?;
    let stored = manifest.generation;
    let (durable, last_lsn, tail) = (DurableLsn::NONE, Lsn::ZERO, Tail::Whole(Lsn::ZERO));
    Ok(Opened { manifest, stored, durable, last_lsn, tail, repairs: Vec::new(), keys: Arc::default() })
}

/// Wraps a store's replica keys with another wrapping key, durably; whether there was anything to do. For who owns the directory,
/// and has nothing of it open.
///
/// # Errors
/// When the holder's key is not the one that they are wrapped with, or the media fail: the old manifest then stands.
pub fn rewrap(
    storage: &dyn Storage,
    holder: &KeyHolder,
    with: &WrappingKey,
    random: &mut dyn FnMut() -> [u8; 16],
) -> Result<bool, OpenError> {
    let mut manifest = read_manifest(storage)?;
    let failed = |source| OpenError::AtRest { path: storage.path(), source };
    let Some(keys) = holder.rewrap(manifest.replica, &manifest.keys, with, random).map_err(failed)? else {
        return Ok(false);
    };
    manifest.keys = keys;
    manifest.generation = Generation(manifest.generation.0 + 1);
    write_manifest(storage, &manifest)?;
    Ok(true)
}

/// [`open_with`] for a store that is not sealed at rest.
///
/// # Errors
/// As [`open_with`].
pub fn open(storage: &dyn Storage, directory: &str, witness: Option<Lsn>) -> Result<Opened, OpenError> {
    open_with(storage, directory, witness, &KeyHolder::default())
}

/// Takes a store over: validates its segments, scans those that were not sealed, cuts torn tails, seals what is whole, and
/// removes what was half made. `witness` is what the peer was told to be durable, if it remembers. Where there is no room for
/// the manifest that says so the old one stands, and means the same: the writer takes no frame before it is replaced. Where
/// it is sealed at rest, `holder` has the key; without it a store opens whose segments are all sealed, by a clean stop, and of any other
/// nothing is changed.
///
/// # Errors
/// `Damaged` when something acknowledged is missing or damaged; nothing was changed then.
pub fn open_with(
    storage: &dyn Storage,
    directory: &str,
    witness: Option<Lsn>,
    holder: &KeyHolder,
) -> Result<Opened, OpenError> {
    let mut manifest = read_manifest(storage)?;
    let keys = unlock(storage, &manifest, holder)?;
    let found = examine(storage, directory, &manifest, &keys, Depth::Bodies)?;
    let facts: Vec<_> = found.iter().map(|found| found.facts).collect();
    let acknowledged = manifest.durable.max(witness.unwrap_or(Lsn::ZERO));
    let plan = decide(&facts, manifest.floor, acknowledged)
        .map_err(|loss| OpenError::Damaged(Box::new(damage(storage, directory, &manifest, &found, loss))))?;
    let mut repairs = Vec::new();
    let mut segments = Vec::new();
    let mut whole = manifest.floor;
    for ((info, found), action) in manifest.segments.iter().zip(found).zip(plan.actions) {
        match (action, found.scan) {
            (Action::Keep, _) => {
                whole = whole.max(info.summary().map_or(Lsn::ZERO, |summary| summary.whole_lsn));
                segments.push(*info);
            }
            (Action::Seal, Some(scan)) => {
                whole = whole.max(scan.whole.unwrap_or(Lsn::ZERO));
                let summary = seal(storage, directory, info, (&scan, whole), file_key(info, &keys)?.as_ref())?;
                let torn = match &scan.stop {
                    Stop::Clean => None,
                    Stop::Torn(error) => Some(error.to_string()),
                };
                repairs.push(Repair::Sealed { segment: info.number, end: scan.end, torn });
                segments.push(SegmentInfo { state: SegmentState::Sealed(summary), ..*info });
            }
            _ => {}
        }
    }
    manifest.segments = segments;
    manifest.durable = plan.whole.max(manifest.durable);
    let dropped = level::drop_unsound(storage, directory, &mut manifest);
    repairs.extend(dropped.into_iter().map(|level::Fault { name, what }| Repair::IndexDropped { name, what }));
    let stands = manifest.generation;
    manifest.generation = Generation(manifest.generation.0 + 1);
    let written = write_manifest(storage, &manifest);
    if !is_without_room(&written) {
        written.clone()?;
    }
    // What goes was never acknowledged: a manifest that still names it finds it gone, and decides the same.
    remove_strays(storage, directory, &manifest, &mut repairs)?;
    // That may have been the room that was lacking.
    let written = if is_without_room(&written) { write_manifest(storage, &manifest) } else { written };
    let stored = if is_without_room(&written) { stands } else { written.map(|()| manifest.generation)? };
    let durable = DurableLsn::mint(plan.whole);
    let tail = settle(Tail::read(storage, directory, &manifest))?.unwrap_or_else(|_| Tail::lost(&manifest));
    Ok(Opened { manifest, stored, durable, last_lsn: plan.last, tail, repairs, keys })
}

fn is_without_room(written: &Result<(), MediaError>) -> bool {
    written.as_ref().is_err_and(MediaError::is_no_space)
}

/// A store as it was found by [`look`].
#[derive(Clone, Debug)]
pub struct Looked {
    /// Its state.
    pub manifest: Manifest,
    /// What can be read.
    pub snapshot: Snapshot,
    /// What is missing or damaged of what was acknowledged. From there on segments are not in the snapshot.
    pub damage: Option<Damage>,
    /// Each sealed segment behind the damage: of no moment any more, and yet for whoever verifies to read.
    pub behind: Vec<Snapshot>,
    /// What it is sealed by at rest; empty where it is not, or no key was given.
    pub keys: Arc<Keyring>,
}

/// [`look_with`] for a store that is not sealed at rest.
///
/// # Errors
/// As [`look_with`].
pub fn look(storage: &dyn Storage, directory: &str, witness: Option<Lsn>) -> Result<Looked, OpenError> {
    look_with(storage, directory, witness, &KeyHolder::default())
}

/// Reads a store without changing it while its owner writes: what was not sealed is scanned by heads, up to where it
/// ends now. `written` of the snapshot then says how far; what of that is durable only the owner knows, and of what is not some
/// bytes may be missing. `witness` is what somebody remembers to have been durable before this call. `holder` has the key of a
/// store that is sealed at rest; without it, what is sealed is found and not opened. Where nobody writes: [`look_through`].
///
/// # Errors
/// When the manifest or a file cannot be read. Damage is not an error here.
pub fn look_with(
    storage: &dyn Storage,
    directory: &str,
    witness: Option<Lsn>,
    holder: &KeyHolder,
) -> Result<Looked, OpenError> {
    look_at(storage, directory, witness, holder, Depth::Heads)
}

/// The same for a store that nobody owns: its last owner may have been stopped by a power cut, and has not opened it since. A frame
/// counts only if every byte of it is right, as for [`open_with`]: what is found here is what a start keeps. What was being written
/// then is not damage.
///
/// # Errors
/// As [`look_with`].
pub fn look_through(
    storage: &dyn Storage,
    directory: &str,
    witness: Option<Lsn>,
    holder: &KeyHolder,
) -> Result<Looked, OpenError> {
    look_at(storage, directory, witness, holder, Depth::Stored)
}

fn look_at(
    storage: &dyn Storage,
    directory: &str,
    witness: Option<Lsn>,
    holder: &KeyHolder,
    depth: Depth,
) -> Result<Looked, OpenError> {
    let manifest = read_manifest(storage)?;
    let keys = unlock(storage, &manifest, holder)?;
    let found = examine(storage, directory, &manifest, &keys, depth)?;
    let facts: Vec<_> = found.iter().map(|found| found.facts).collect();
    let acknowledged = manifest.durable.max(witness.unwrap_or(Lsn::ZERO));
    let loss = decide(&facts, manifest.floor, acknowledged).err();
    let damage = loss.map(|loss| damage(storage, directory, &manifest, &found, loss));
    let sound = found.iter().take_while(|found| found.is_sound()).count();
    // One that was not sealed is good up to where it is damaged.
    let usable = if loss.is_some() {
        sound + usize::from(found.get(sound).is_some_and(Found::is_connected))
    } else {
        found.len()
    };
    // Without its loss everything is decided as it would be without a witness.
    let plan = decide(&facts[..usable], manifest.floor, Lsn::ZERO);
    let mut segments = Vec::new();
    let (mut whole, mut settled) = (manifest.floor, Lsn::ZERO);
    for (info, found) in manifest.segments.iter().zip(&found).take(usable) {
        match (info.summary(), &found.scan) {
            (Some(summary), _) => {
                whole = whole.max(summary.whole_lsn);
                segments.extend(SegmentView::sealed(info).map(Arc::new));
            }
            (None, Some(Scan { opening: Some(opening), runs, whole: last_whole, .. })) if found.is_connected() => {
                whole = last_whole.unwrap_or(whole).max(whole);
                let last = runs.last().and_then(|run| run.frames.last());
                settled = settled.max(last.map_or(Lsn::ZERO, |frame| frame.settled));
                let (timeline, prev_lsn) = (opening.timeline, opening.prev_lsn);
                let view = SegmentView::active((info.number, info.id, info.key), timeline, prev_lsn, runs.clone());
                segments.push(Arc::new(view));
            }
            _ => {}
        }
    }
    let whole = plan.map_or(whole, |plan| plan.whole);
    let durable = DurableLsn::mint(acknowledged.min(whole));
    let snapshot = Snapshot::new(&manifest, segments, durable, whole, settled);
    let behind = manifest.segments.iter().zip(&found).skip(usable).filter(|(_, found)| found.is_sound());
    let behind = behind.filter_map(|(info, _)| SegmentView::sealed(info));
    let behind =
        behind.map(|segment| Snapshot::new(&manifest, vec![Arc::new(segment)], durable, whole, settled)).collect();
    Ok(Looked { manifest, snapshot, damage, behind, keys })
}

/// The keys of a manifest; none where no key was given. What needs them says so when it comes to that.
fn unlock(storage: &dyn Storage, manifest: &Manifest, holder: &KeyHolder) -> Result<Arc<Keyring>, OpenError> {
    match holder.unlock(manifest.replica, &manifest.keys) {
        Err(KeyError::Missing) => Ok(Arc::default()),
        Err(source) => Err(OpenError::AtRest { path: storage.path(), source }),
        Ok(keys) => Ok(keys),
    }
}

fn damage(storage: &dyn Storage, directory: &str, manifest: &Manifest, found: &[Found], loss: Loss) -> Damage {
    let info = manifest.segments.get(loss.at);
    let name = info.map_or(directory.to_owned(), |info| media::join(directory, &segment_name(info.number)));
    let end = found.get(loss.at).and_then(|found| found.scan.as_ref()).map_or(0, |scan| scan.end);
    let nothing = || (end, "nothing follows, though more was acknowledged".to_owned());
    let (offset, what) = found.get(loss.at).and_then(|found| found.wrong.clone()).unwrap_or_else(nothing);
    let mut ranges: Vec<(Timeline, Lsn, Lsn)> = Vec::new();
    for (info, found) in manifest.segments.iter().zip(found).take(loss.at + 1) {
        let range = match (info.summary(), &found.scan) {
            (Some(summary), _) if found.is_sound() => (summary.timeline, summary.first_lsn, summary.last_lsn),
            (None, Some(Scan { opening: Some(opening), runs, last_lsn, .. })) if found.is_connected() => {
                let first = runs.first().and_then(|run| run.frames.first()).map_or(Lsn::ZERO, |frame| frame.first_lsn);
                (opening.timeline, first, *last_lsn)
            }
            _ => continue,
        };
        match ranges.last_mut().filter(|last| last.0 == range.0) {
            Some(last) => last.2 = range.2,
            None => ranges.push(range),
        }
    }
    let path = format!("{}/{name}", storage.path());
    let segment = info.map_or(0, |info| info.number);
    Damage { segment, path, offset, what, good: loss.good, acknowledged: loss.acknowledged, ranges }
}

/// Gives a segment its footer behind its valid frames; up to `whole_lsn` everything is whole with them. What of them may not be on the media yet is written again: a page
/// cache can hold what a failed sync of the process before did not bring down.
fn seal(
    storage: &dyn Storage,
    directory: &str,
    info: &SegmentInfo,
    (scan, whole_lsn): (&Scan, Lsn),
    key: Option<&FileKey>,
) -> Result<Summary, OpenError> {
    let file = storage.open(&media::join(directory, &segment_name(info.number)), true)?;
    let Some(opening) = scan.opening else {
        let path = file.path();
        return Err(MediaError::new(MediaErrorKind::Short, Operation::Read, path, 0, "no opening").into());
    };
    let run = IndexRun::merge(&scan.runs);
    if run.frames[0].last_lsn > scan.witness {
        file.write_all_at(OPENING_AT, &opening.encode())?;
    }
    let ends = run.frames.iter().skip(1).map(|next| next.offset).chain([scan.end]);
    for (frame, end) in run.frames.iter().zip(ends).filter(|(frame, _)| frame.last_lsn > scan.witness) {
        let bytes = twice(|| read_frame(file.as_ref(), info, Extent::new(frame.offset, end - frame.offset)))?;
        file.write_all_at(frame.offset, &bytes)?;
    }
    let facts = footer::Facts {
        id: info.id,
        group: opening.group,
        timeline: opening.timeline,
        prev_lsn: opening.prev_lsn,
        whole_lsn,
        frames_end: scan.end,
        plain_bytes: scan.plain_bytes,
    };
    let (footer, summary) = footer::encode(&run, &facts, key);
    file.write_at(scan.end, &footer)?;
    file.set_len(summary.file_bytes)?;
    file.sync()?;
    Ok(summary)
}

/// The bytes of a frame that was valid when it was scanned, to be written again: only if they still are.
fn read_frame(file: &dyn File, info: &SegmentInfo, place: Extent) -> Result<Vec<u8>, ReadError> {
    let (segment, offset) = (info.number, place.offset);
    let mut bytes = vec![0; place.length as usize];
    file.read_exact_at(offset, &mut bytes)?;
    let (envelope, head) = parse_head(segment, info.id, offset, &bytes)?;
    let body_at = envelope.body_at(offset) as usize;
    check_chunks(&head, &bytes[body_at..]).map_err(|source| ReadError::Frame { segment, offset, source })?;
    // Nothing verifies what lies between, which is zeros.
    bytes[ENVELOPE_BYTES + head.info.head_bytes as usize..body_at].fill(0);
    bytes[body_at + head.info.body_bytes as usize..].fill(0);
    Ok(bytes)
}

/// Removes what the manifest does not name: half made segments and index runs, those that were dropped, a half written manifest.
fn remove_strays(
    storage: &dyn Storage,
    directory: &str,
    manifest: &Manifest,
    repairs: &mut Vec<Repair>,
) -> Result<(), MediaError> {
    let segments = manifest.segments.iter().map(|segment| segment_name(segment.number));
    let named: BTreeSet<_> = segments.chain(manifest.runs.iter().map(|run| level::run_name(run.number))).collect();
    for name in storage.list(directory)? {
        if is_journal_file(&name) && !named.contains(&name) {
            let name = media::join(directory, &name);
            storage.remove(&name)?;
            repairs.push(Repair::Removed { name });
        }
    }
    for name in [MANIFEST_TMP, MANIFEST_COPY_TMP] {
        match storage.remove(name) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
