//! Opening a protection: which sources, which replica, and what the last stop left.

use super::found::Found;
use super::same::{may_have_changed, refuse_swapped, was_exchanged};
use super::sources::OpenSource;
use super::{Compared, Opened};
use crate::clock;
use crate::drive::Choice;
use crate::host::{check_policy_over, document, place};
use crate::owner::{Owner, OwnerError, PolicyChange};
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use crate::source::{Source, SourceError};
use cdp_core::capture::{LogContents, LogState, OptionsError, Start};
use cdp_core::journal::{
    self, Executor, Generation, Manifest, OpenError, Options, SegmentState, TimelineInfo, TimelineRole, TimelineState,
    Writer, WriterState, drain,
};
use cdp_core::media::{Disk, File, MediaError, MediaErrorKind, Storage};
use cdp_core::policy::retention;
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica, is_unseeded, remove_bases};
use cdp_core::trust::{KeyError, KeyHolder};
use cdp_core::types::{ClockEpoch, DiskId, Lsn, Timeline};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The activity log's file inside the replica's directory.
pub(super) const ACTIVITY_LOG: &str = "state/activity.log";

/// The most bytes of an activity log that are read: 64 disks of a PiB have fewer.
pub const LOG_BYTES_MAX: u64 = 4 << 30;

/// A disk to protect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceOptions {
    /// Its name in the group, and its export's.
    pub name: String,
    /// A raw image or a block device.
    pub path: PathBuf,
}

/// What to protect, and how.
#[derive(Clone, Debug)]
pub struct ProtectOptions {
    /// The disks, in their order; at least one.
    pub sources: Vec<SourceOptions>,
    /// The replica's directory, made if it is not there.
    pub replica: PathBuf,
    /// The group's name, if it is a new one or to be checked.
    pub name: Option<String>,
    /// What of the policy is to be changed.
    pub policy: PolicyChange,
    /// Believe that nobody changed the sources since the last clean stop.
    pub trust_source: bool,
    /// Compare everything with the replica in the background.
    pub full_check: bool,
    /// Bound of what was captured and is not yet durable, in bytes.
    pub queue_bytes: u64,
    /// Segments of the journal are made this large, in bytes, at least 1 MiB.
    pub segment_bytes: u64,
    /// Seals a new replica at rest, and opens one that is sealed.
    pub key: KeyHolder,
    /// What carries out the journal's writes and syncs.
    pub driver: Choice,
}

impl ProtectOptions {
    /// The usual options for these sources.
    #[must_use]
    pub fn new(sources: Vec<SourceOptions>, replica: PathBuf) -> Self {
        Self {
            sources,
            replica,
            name: None,
            policy: PolicyChange::default(),
            trust_source: false,
            full_check: false,
            queue_bytes: 1 << 30,
            segment_bytes: Options::default().segment_bytes,
            key: KeyHolder::default(),
            driver: Choice::default(),
        }
    }
}

/// Why nothing is protected.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    /// Another process owns the replica.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// A source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The replica cannot be opened.
    #[error("{0}")]
    Replica(Problem),
    /// The media.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The system.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The disks are not those of the replica.
    #[error("the replica is of the disks {known:?}, and {given:?} were given")]
    OtherDisks {
        /// Names and sizes in the replica.
        known: Vec<String>,
        /// Those given.
        given: Vec<String>,
    },
    /// A source is shorter than its disk.
    #[error("{path} has {found} bytes, and the disk {disk:?} has {known}: what was behind would be cut off")]
    Cut {
        /// The disk's name.
        disk: String,
        /// Its source.
        path: String,
        /// What the disk has, in bytes.
        known: u64,
        /// What the source has.
        found: u64,
    },
    /// No disk can join any more.
    #[error("the group has used up its numbers of disks")]
    DiskNumbers,
    /// The group's name is another.
    #[error("the replica is of the group {known:?}, not of {given:?}")]
    OtherName {
        /// Of the replica.
        known: String,
        /// Given.
        given: String,
    },
    /// The directory holds what is not a replica's.
    #[error("{path} is no directory of a replica: it holds {}", found.display())]
    Occupied {
        /// The directory.
        path: String,
        /// Something in it.
        found: PathBuf,
    },
    /// The sources changed places.
    #[error("{path} is the source of the disk {other:?}, and was given as {disk:?}")]
    Swapped {
        /// What was given.
        path: String,
        /// The name it was given under.
        disk: String,
        /// The disk whose source it was.
        other: String,
    },
    /// The filter does not take the disks.
    #[error(transparent)]
    Filter(#[from] OptionsError),
    /// The manifest could not be written, and without it nobody could tell later what was not recorded.
    #[error("{path} has no room for the replica's manifest: {needed} bytes are needed, {free} are free")]
    NoRoom {
        /// The replica's directory.
        path: String,
        /// Bytes of the manifest.
        needed: u64,
        /// What is free, in bytes.
        free: u64,
    },
}

/// Everything that was opened, before a thread runs.
pub(super) struct Prepared {
    pub(super) owner: Owner,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) sources: BTreeMap<DiskId, OpenSource>,
    pub(super) found: Found,
    pub(super) replica: Replica,
    pub(super) writer: Writer,
    pub(super) executor: Executor,
    pub(super) start: Start,
    pub(super) timeline: Timeline,
    pub(super) full_check: bool,
    pub(super) log: Arc<dyn File>,
    pub(super) opened: Opened,
}

pub(super) fn unreadable(error: OpenError) -> ProtectError {
    ProtectError::Replica(document::unreadable(&error.into()))
}

/// Takes the directory and the sources, opens or makes the store, and begins the timeline that writes will be on.
pub(super) fn prepare(options: &ProtectOptions) -> Result<Prepared, ProtectError> {
    super::make::check(options).map_err(ProtectError::Replica)?;
    super::same::refuse_twice(&options.sources)?;
    super::same::refuse_replicas(&options.sources)?;
    let listed = |source| ProtectError::System { what: "list the replica's directory", source };
    if let Some(stranger) = place::stranger(&options.replica).map_err(listed)? {
        return Err(ProtectError::Occupied { path: options.replica.display().to_string(), found: stranger });
    }
    let open_sources = || {
        let opened = options.sources.iter().map(|source| Ok((source, Source::open(&source.path)?)));
        opened.collect::<Result<Vec<_>, ProtectError>>()
    };
    // Nothing is made for sources that cannot be protected. Where a replica may be, its owner is to be named first: it has them.
    let of_new = if options.replica.exists() { None } else { Some(open_sources()?) };
    let storage: Arc<dyn Storage> = Arc::new(Disk::create(&options.replica)?);
    let owner = Owner::acquire(&options.replica)?;
    let opened_sources = of_new.map_or_else(open_sources, Ok)?;
    let (manifest, resumed) = match existing(storage.as_ref())? {
        Some(manifest) => (Some(manifest), true),
        None => (None, false),
    };
    let policy = manifest.as_ref().map(|manifest| manifest.policy).unwrap_or_default();
    check_policy_over(&options.policy, &policy).map_err(ProtectError::Replica)?;
    if let Some(manifest) = &manifest {
        check_key(manifest, options).map_err(ProtectError::Replica)?;
        check_name(manifest, options)?;
    }
    let (opened, found_log) = match manifest {
        Some(manifest) => {
            // Extents that the log forgot are not compared: what it calls durable has to be there, or nothing is begun.
            let log = read_log(storage.as_ref(), &manifest)?;
            let witness = log.as_ref().map(|log| log.durable);
            let opened = journal::open_with(storage.as_ref(), JOURNAL_DIRECTORY, witness, &options.key);
            (opened.map_err(unreadable)?, log)
        }
        None => (super::make::create(storage.as_ref(), options, &opened_sources)?, None),
    };
    let manifest = opened.manifest.clone();
    let durable = opened.durable.lsn();
    let (snapshot, keys) = (opened.snapshot(), Arc::clone(&opened.keys));
    let replica = Replica::load_with(Arc::clone(&storage), manifest.clone(), snapshot, durable, keys);
    let replica = replica.map_err(|error| ProtectError::Replica(document::unreadable(&error)))?;
    let found = if resumed { Found::resumed(&replica, durable, &opened_sources)? } else { Found::first(&manifest) };
    let named = |name: &str| found.disks.iter().find(|disk| disk.name == name).map(|disk| disk.id);
    let mut sources = BTreeMap::new();
    for (options, source) in opened_sources {
        let Some(id) = named(&options.name) else { continue };
        let open = OpenSource::new(&options.name, source);
        let open = open.map_err(|source| ProtectError::System { what: "open the source", source })?;
        if found.joining.contains(&id) {
            // What is copied must not be lost at the source by a power cut: nobody would compare it.
            open.device.flush().map_err(|source| ProtectError::System { what: "flush the source", source })?;
        }
        sources.insert(id, open);
    }
    if let Some(log) = &found_log {
        refuse_swapped(options, &manifest, log, &sources)?;
    }
    let log = open_log(storage.as_ref())?;
    let mut writer = Writer::new(opened, writer_options(&manifest, options), Box::new(identity));
    // Of this start, whatever the starts before sealed with: a copy of the directory may be going on elsewhere.
    if let Some(key) = options.key.draw(manifest.replica, &mut identity, clock::wall()) {
        writer.seal_at_rest(key).map_err(|error| ProtectError::Replica(document::locked(&error)))?;
    }
    let executor = Executor::new(Arc::clone(&storage));
    let compared: BTreeMap<_, _> = sources.iter().filter(|(disk, _)| !found.joining.contains(disk)).collect();
    let decided = decide(options, &manifest, &compared, found_log, durable, resumed);
    let Decided { start, timeline, full_check, opened } = decided;
    if let Start::Clean { .. } = start {
        writer.edit(Manifest::goes_on);
    } else {
        check_timelines(&manifest).map_err(ProtectError::Replica)?;
        writer.open_timeline(new_timeline(&manifest, &start, timeline));
    }
    let generation = writer.edit(|manifest| {
        options.policy.apply(&mut manifest.policy);
        if resumed {
            found.note(&replica, manifest);
        }
    });
    let stored = store(&mut writer, &executor, generation)?;
    if stored {
        // Of copies that were never complete, and of disks that are forgotten.
        remove_bases(storage.as_ref(), writer.manifest())?;
    }
    if !stored && options.trust_source && opened.clean {
        // Manifest and log may go on saying that the stop was clean, and nothing else would tell.
        let (path, needed, free) = (storage.path(), writer.lacks().unwrap_or(0), storage.free_bytes()?);
        return Err(ProtectError::NoRoom { path, needed, free });
    }
    Ok(Prepared { owner, storage, sources, found, replica, writer, executor, start, timeline, full_check, log, opened })
}

/// Writes the manifest that has this edit; whether there was room for it. Without room the guest is served all the same: the
/// writer takes no frame before the manifest that names their timeline is there, and asks again by itself.
pub(super) fn store(writer: &mut Writer, executor: &Executor, generation: Generation) -> Result<bool, ProtectError> {
    drain(writer, executor, clock::mono());
    match writer.state() {
        WriterState::Failed(error) => Err(error.into()),
        _ => Ok(writer.manifest_durable() >= generation),
    }
}

fn writer_options(manifest: &Manifest, options: &ProtectOptions) -> Options {
    let mut policy = manifest.policy;
    options.policy.apply(&mut policy);
    Options {
        segment_bytes: retention::segment_bytes(&policy, options.segment_bytes),
        keep_free_bytes: policy.reserve_bytes,
        // Syncs that follow each other closely write the same pages of metadata again and again.
        commit_bytes: 32 << 20,
        commit_ns: 100_000_000,
        ..Options::default()
    }
}

/// The manifest of a replica that can be resumed. A first copy that was never completed restores nothing: it is begun anew.
fn existing(storage: &dyn Storage) -> Result<Option<Manifest>, ProtectError> {
    match journal::read_manifest(storage) {
        Ok(manifest) if !is_unseeded(&manifest) => Ok(Some(manifest)),
        Ok(_) | Err(OpenError::NoStore { .. }) => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// Whether the replica is sealed at rest and there is a key, or neither.
fn check_key(manifest: &Manifest, options: &ProtectOptions) -> Result<(), Problem> {
    match (manifest.keys.is_empty(), options.key.has_key()) {
        (false, false) => Err(document::locked(&KeyError::Missing)),
        (true, true) => {
            let message =
                "the replica is not sealed at rest, and a key was given: what it holds would stay readable to all";
            let problem = Problem::new(ProblemClass::Refused, "not-sealed", message);
            Err(problem
                .hint("leave the key out, or give a new directory: a new replica is sealed from its first byte on"))
        }
        _ => Ok(()),
    }
}

fn check_name(manifest: &Manifest, options: &ProtectOptions) -> Result<(), ProtectError> {
    if let Some(given) = options.name.as_ref().filter(|given| **given != manifest.name) {
        return Err(ProtectError::OtherName { known: manifest.name.clone(), given: given.clone() });
    }
    Ok(())
}

/// Whether nothing of ours is there: no file, or one that a log cannot be.
fn is_no_log(error: &MediaError) -> bool {
    matches!(error.kind, MediaErrorKind::NotFound | MediaErrorKind::NotAFile)
}

/// What the activity log says, if that is to be believed.
fn read_log(storage: &dyn Storage, manifest: &Manifest) -> Result<Option<LogContents>, ProtectError> {
    let file = match storage.open(ACTIVITY_LOG, false) {
        Err(error) if is_no_log(&error) => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; file.len()?.min(LOG_BYTES_MAX) as usize];
    if file.read_exact_at(0, &mut bytes).is_err() {
        return Ok(None);
    }
    // A log that is damaged, another group's, or older than what the replica was told, says nothing: all is compared.
    let found = LogContents::read(&bytes, manifest.group).ok();
    Ok(found.filter(|log| log.generation >= manifest.activity_generation))
}

/// Up to where the journal was durable when the activity log was last written: the witness for a last frame that was
/// acknowledged and is damaged, which by itself looks like one that was never whole. Asked before the journal is looked at.
pub(crate) fn witness(storage: &dyn Storage) -> Option<Lsn> {
    // A log that cannot be read is no witness; whether it is needed is the business of who takes the store over.
    let log = read_log(storage, &journal::read_manifest(storage).ok()?).ok()??;
    Some(log.durable)
}

/// The activity log's file, made if it is not there, or if what is there is a pipe, a device or a link to one.
pub(super) fn open_log(storage: &dyn Storage) -> Result<Arc<dyn File>, MediaError> {
    match storage.open(ACTIVITY_LOG, true) {
        Err(error) if is_no_log(&error) => {
            super::make::remove(storage, ACTIVITY_LOG)?;
            let file = storage.create(ACTIVITY_LOG)?;
            storage.sync_dir("state")?;
            Ok(file)
        }
        other => other,
    }
}

struct Decided {
    start: Start,
    timeline: Timeline,
    full_check: bool,
    opened: Opened,
}

/// What the last stop left, and what that means for this start.
fn decide(
    options: &ProtectOptions,
    manifest: &Manifest,
    sources: &BTreeMap<&DiskId, &OpenSource>,
    log: Option<LogContents>,
    durable: Lsn,
    resumed: bool,
) -> Decided {
    let Some(fresh) = Timeline::new(identity()) else { unreachable!("an identity is never zero") };
    let open = manifest.timelines.iter().rev().find(|info| info.state == TimelineState::Open);
    let Some(open) = open.filter(|_| resumed) else {
        let opened = Opened { timeline: fresh, resumed: false, clean: true, compared: Compared::Nothing };
        return Decided { start: Start::First, timeline: fresh, full_check: false, opened };
    };
    let epoch = last_epoch(manifest);
    match log {
        Some(log) if manifest.clean && log.state == LogState::Clean && log.timeline == open.id => {
            let changed = sources.iter().any(|(disk, source)| may_have_changed(options, &log, **disk, &source.source));
            let full_check = options.full_check || changed;
            let compared = if full_check { Compared::Everything } else { Compared::Nothing };
            let opened = Opened { timeline: open.id, resumed, clean: true, compared };
            Decided { start: Start::Clean { after: durable, epoch, log }, timeline: open.id, full_check, opened }
        }
        log => {
            let believed = log.as_ref().is_some_and(|log| log.state != LogState::AllUnknown);
            let exchanged = |log: &LogContents| {
                sources.iter().any(|(id, source)| was_exchanged(options, log, **id, &source.source))
            };
            let full_check = options.full_check || log.as_ref().is_some_and(exchanged);
            let everything = full_check || !believed;
            let compared = if everything { Compared::Everything } else { Compared::ActivityLog };
            let opened = Opened { timeline: fresh, resumed, clean: false, compared };
            let above = manifest.reserved.max(durable);
            let start = Start::Unclean { parent: open.id, fork: durable, above, epoch, log };
            Decided { start, timeline: fresh, full_check, opened }
        }
    }
}

/// Refuses one more timeline where a manifest with it might be read by nobody: each unclean stop leaves one, and merging takes them away.
fn check_timelines(manifest: &Manifest) -> Result<(), Problem> {
    let found = manifest.timelines.len();
    if found < Manifest::TIMELINES_OPENED {
        return Ok(());
    }
    let message = format!("the replica has {found} timelines, one for each unclean stop, and takes no more");
    let problem = Problem::new(ProblemClass::Refused, "timelines", message);
    Err(problem.hint("`cdp prune` drops those that are older than the window; else protect into a new directory"))
}

fn last_epoch(manifest: &Manifest) -> ClockEpoch {
    let summaries = manifest.segments.iter().filter_map(|segment| match &segment.state {
        SegmentState::Sealed(summary) => Some(summary.last.epoch),
        _ => None,
    });
    summaries.max().unwrap_or(ClockEpoch(1))
}

fn new_timeline(manifest: &Manifest, start: &Start, id: Timeline) -> TimelineInfo {
    let (parent, fork) = match start {
        Start::Unclean { parent, fork, .. } => (Some(*parent), *fork),
        _ => (None, Lsn::ZERO),
    };
    TimelineInfo {
        id,
        number: manifest.timelines.iter().map(|info| info.number).max().unwrap_or(0) + 1,
        parent,
        fork,
        last: None,
        state: TimelineState::Open,
        role: TimelineRole::Trunk,
        opened: clock::wall(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protect::Protector;
    use cdp_core::types::{GroupId, ReplicaId};
    use std::time::Duration;

    #[test]
    fn a_manifest_that_is_full_of_timelines_takes_no_more() {
        let id = [1; 16];
        let (replica, group, timeline) =
            (ReplicaId::new(id).unwrap(), GroupId::new(id).unwrap(), Timeline::new(id).unwrap());
        let mut manifest = Manifest::new(replica, group, "group");
        let info = new_timeline(&manifest, &Start::First, timeline);
        manifest.timelines.resize(Manifest::TIMELINES_OPENED - 1, info);
        check_timelines(&manifest).unwrap();
        manifest.timelines.push(info);
        assert_eq!(check_timelines(&manifest).unwrap_err().code, "timelines");
        assert_eq!(manifest.too_long(), None);
    }

    #[test]
    fn the_activity_log_remembers_what_was_durable() {
        let directory = tempfile::tempdir().unwrap();
        let (source, replica) = (directory.path().join("disk"), directory.path().join("replica"));
        std::fs::write(&source, vec![7; 1 << 20]).unwrap();
        let sources = vec![SourceOptions { name: "disk".to_owned(), path: source }];
        let protector = Protector::start(&ProtectOptions::new(sources, replica.clone()), |_| {}).unwrap();
        while protector.status().state != cdp_core::capture::State::Protecting {
            std::thread::sleep(Duration::from_millis(5));
        }
        protector.exports()[0].device.write(4096, vec![1; 4096].into(), false).unwrap();
        let stopped = protector.stop(Duration::from_secs(30), &|| false);
        assert!(stopped.drained && stopped.durable > Lsn::ZERO, "{stopped:?}");
        let storage = Disk::open(&replica).unwrap();
        assert_eq!(witness(&storage), Some(stopped.durable));
        storage.remove(ACTIVITY_LOG).unwrap();
        assert_eq!(witness(&storage), None);
    }
}
