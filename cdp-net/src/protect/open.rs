//! Opening a protection: which sources, which replica, and what the last stop left.

use super::found::Disks;
use super::log_file::{ACTIVITY_LOG, open_log, read_log, remove};
use super::same::{may_have_changed, refuse_swapped, was_exchanged};
use super::sources::OpenSource;
use super::{Compared, Opened};
use crate::far::{Begin, Far, FilterPolicy, Find, Found, NewGroup, Origin, SizeOf, Witness};
use crate::host::check_policy;
use crate::keeper::HomeError;
use crate::owner::{Owner, OwnerError, PolicyChange};
use crate::random::identity;
use crate::report::{Problem, ProblemClass};
use crate::source::{Source, SourceError};
use cdp_core::capture::{LogContents, LogState, OptionsError, Start};
use cdp_core::media::{File, MediaError, Storage};
use cdp_core::types::{DISKS_MAX, DiskId, GroupId, NAME_MAX, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// A disk to protect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceOptions {
    /// Its name in the group, and its export's.
    pub name: String,
    /// A raw image or a block device.
    pub path: PathBuf,
}

/// What the filter's side is told, wherever the replica is.
#[derive(Clone, Debug)]
pub struct ProtectionOptions {
    /// The disks, in their order; at least one.
    pub sources: Vec<SourceOptions>,
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
    /// Threads that read the sources again: one where the replica is at hand, more where each comparison waits for a network.
    pub reread_threads: usize,
}

/// Where the filter's side keeps its activity log.
#[derive(Debug)]
pub struct State {
    /// The directory: that of the replica, if it is kept here, or one of its own.
    pub storage: Arc<dyn Storage>,
    /// The right to it, held as long as the protection is, and any thread of it; none where nobody else can come to it.
    pub owner: Option<Arc<Owner>>,
}

/// Sources that were opened, and that nobody else writes to.
#[derive(Debug)]
pub struct GivenSources(pub(super) Vec<(SourceOptions, Source)>);

impl GivenSources {
    /// Opens and locks them.
    ///
    /// # Errors
    /// When one cannot be protected.
    pub fn open(sources: &[SourceOptions]) -> Result<Self, ProtectError> {
        let opened = sources.iter().map(|source| Ok((source.clone(), Source::open(&source.path)?)));
        opened.collect::<Result<_, ProtectError>>().map(Self)
    }

    /// The same once more, for a start that may have to be tried again: all hold the locks.
    ///
    /// # Errors
    /// What the system says.
    pub fn again(&self) -> Result<Self, ProtectError> {
        let failed = |source| ProtectError::System { what: "ask the source", source };
        let again = self.0.iter().map(|(options, source)| Ok((options.clone(), source.again().map_err(failed)?)));
        again.collect::<Result<_, ProtectError>>().map(Self)
    }

    /// Names and open files, in their order.
    #[cfg(feature = "services")]
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.0.iter().map(|(options, source)| (options.name.as_str(), source))
    }
}

/// From now on nothing that was known of the sources is to be believed: what is compared is everything. Durable when it returns.
///
/// # Errors
/// What the media say: then a crash of the machine may bring the old log back.
#[cfg(feature = "services")]
pub(crate) fn forget_log(storage: &dyn Storage) -> Result<(), MediaError> {
    remove(storage, ACTIVITY_LOG)?;
    match storage.sync_dir("state") {
        // There was none yet.
        Err(error) if error.is_not_found() => Ok(()),
        synced => synced,
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
    /// The replica's side refuses.
    #[error("{0}")]
    Replica(#[from] Problem),
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
}

impl From<HomeError> for ProtectError {
    fn from(error: HomeError) -> Self {
        match error {
            HomeError::Occupied { path, found } => Self::Occupied { path, found },
            HomeError::Unlisted(source) => Self::System { what: "list the replica's directory", source },
            HomeError::Media(error) => Self::Media(error),
            HomeError::Owner(error) => Self::Owner(error),
        }
    }
}

/// Everything that was opened, before a thread runs.
pub(super) struct Prepared {
    pub(super) sources: BTreeMap<DiskId, OpenSource>,
    pub(super) disks: Disks,
    pub(super) group: GroupId,
    pub(super) start: Start,
    pub(super) full_check: bool,
    /// The least generation of an activity log that is to be believed.
    pub(super) generation_least: u64,
    pub(super) policy: FilterPolicy,
    pub(super) log: Arc<dyn File>,
    pub(super) opened: Opened,
    /// What the replica's side is told; where the filter's LSNs begin is not known yet.
    pub(super) begin: Begin,
}

fn usage(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Usage, code, message)
}

/// Whether the options are such that a manifest can hold them.
pub(crate) fn check(options: &ProtectionOptions) -> Result<(), Problem> {
    check_policy(&options.policy)?;
    if options.sources.is_empty() || options.sources.len() > DISKS_MAX {
        return Err(usage("disks", format!("a group has 1 to {DISKS_MAX} disks, not {}", options.sources.len())));
    }
    let mut names = BTreeSet::new();
    for name in options.sources.iter().map(|source| &source.name).chain(&options.name) {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(usage("name", format!("a name has 1 to {NAME_MAX} bytes, not {}", name.len())));
        }
    }
    if let Some(twice) = options.sources.iter().find(|source| !names.insert(&source.name)) {
        return Err(usage("name", format!("two disks are called {:?}", twice.name)));
    }
    Ok(())
}

/// Finds the replica, matches the sources with its disks, and decides where this filter's records begin.
pub(super) fn prepare(
    options: &ProtectionOptions,
    given: GivenSources,
    state: &dyn Storage,
    far: &dyn Far,
) -> Result<Prepared, ProtectError> {
    // What the log says of the replica goes along with the question; whether it is to be believed, the answer tells.
    let log = read_log(state);
    let of_log = log.as_ref().ok().and_then(Option::as_ref);
    let witness = of_log.map(|log| Witness { group: log.group, generation: log.generation, durable: log.durable });
    let found = far.find(&Find { name: options.name.clone(), policy: options.policy, witness })?;
    let (disks, log, new) = match &found {
        Some(found) => {
            // A log that is damaged, another group's, or older than what the replica was told, says nothing: all is compared.
            let log = log?.filter(|log| log.group == found.group && log.generation >= found.activity_generation);
            (Disks::resumed(found, &given.0)?, log, None)
        }
        None => {
            // It may be another replica's, or of a first copy that never ended.
            remove(state, ACTIVITY_LOG)?;
            let disks = Disks::first(&given.0);
            let Some(group) = GroupId::new(identity()) else { unreachable!("an identity is never zero") };
            let first = options.sources.first().map(|source| source.name.clone()).unwrap_or_default();
            let name = options.name.clone().unwrap_or(first);
            let new = NewGroup { group, name, disks: disks.added.clone() };
            (disks, None, Some(new))
        }
    };
    let sources = open_devices(&disks, given)?;
    if let (Some(found), Some(log)) = (&found, &log) {
        refuse_swapped(options, found, log, &sources)?;
    }
    let file = open_log(state)?;
    let compared: BTreeMap<_, _> = sources.iter().filter(|(disk, _)| !disks.joining.contains(disk)).collect();
    let decided = decide(options, found.as_ref(), &compared, log);
    let Decided { start, full_check, opened, origin } = decided;
    let joining = if new.is_some() { Vec::new() } else { disks.added.clone() };
    let Some(group) = found.as_ref().map(|found| found.group).or(new.as_ref().map(|new| new.group)) else {
        unreachable!("a group that is not found is new")
    };
    let known = found.as_ref().map(|found| found.policy).unwrap_or_default();
    let policy = FilterPolicy {
        rpo_ms: options.policy.rpo_ms.unwrap_or(known.rpo_ms),
        points: options.policy.points.unwrap_or(known.points),
    };
    let begin = Begin {
        new,
        timeline: opened.timeline,
        origin,
        reserved: cdp_core::types::Lsn::ZERO,
        dropped: disks.dropped.clone(),
        joining,
        sizes: disks.new_sizes().into_iter().map(|(disk, size)| SizeOf { disk, size }).collect(),
        policy: options.policy,
        // Manifest and log may go on saying that the stop was clean, and nothing else would tell.
        stored: options.trust_source && opened.clean,
    };
    let generation_least = found.as_ref().map_or(0, |found| found.activity_generation);
    Ok(Prepared { sources, disks, group, start, full_check, generation_least, policy, log: file, opened, begin })
}

/// The sources by the numbers of their disks.
fn open_devices(disks: &Disks, given: GivenSources) -> Result<BTreeMap<DiskId, OpenSource>, ProtectError> {
    let named = |name: &str| disks.disks.iter().find(|disk| disk.name == name).map(|disk| disk.id);
    let mut sources = BTreeMap::new();
    for (options, source) in given.0 {
        let Some(id) = named(&options.name) else { continue };
        let open = OpenSource::new(&options.name, source);
        let open = open.map_err(|source| ProtectError::System { what: "open the source", source })?;
        if disks.joining.contains(&id) {
            // What is copied must not be lost at the source by a power cut: nobody would compare it.
            open.device.flush().map_err(|source| ProtectError::System { what: "flush the source", source })?;
        }
        sources.insert(id, open);
    }
    Ok(sources)
}

struct Decided {
    start: Start,
    full_check: bool,
    opened: Opened,
    origin: Origin,
}

/// What the last stop left, and what that means for this start.
fn decide(
    options: &ProtectionOptions,
    found: Option<&Found>,
    sources: &BTreeMap<&DiskId, &OpenSource>,
    log: Option<LogContents>,
) -> Decided {
    let Some(fresh) = Timeline::new(identity()) else { unreachable!("an identity is never zero") };
    let Some((found, open)) = found.and_then(|found| Some((found, found.open?))) else {
        let opened = Opened { timeline: fresh, resumed: false, clean: true, compared: Compared::Nothing };
        return Decided { start: Start::First, full_check: false, opened, origin: Origin::First };
    };
    let Found { durable, epoch, .. } = *found;
    match log {
        Some(log) if found.clean && log.state == LogState::Clean && log.timeline == open => {
            let changed = sources.iter().any(|(disk, source)| may_have_changed(options, &log, **disk, &source.source));
            let full_check = options.full_check || changed;
            let compared = if full_check { Compared::Everything } else { Compared::Nothing };
            let opened = Opened { timeline: open, resumed: true, clean: true, compared };
            let start = Start::Clean { after: durable, epoch, log };
            Decided { start, full_check, opened, origin: Origin::GoesOn }
        }
        log => {
            let believed = log.as_ref().is_some_and(|log| log.state != LogState::AllUnknown);
            let exchanged = |log: &LogContents| {
                sources.iter().any(|(id, source)| was_exchanged(options, log, **id, &source.source))
            };
            let full_check = options.full_check || log.as_ref().is_some_and(exchanged);
            let everything = full_check || !believed;
            let compared = if everything { Compared::Everything } else { Compared::ActivityLog };
            let opened = Opened { timeline: fresh, resumed: true, clean: false, compared };
            let above = found.reserved.max(durable);
            let start = Start::Unclean { parent: open, fork: durable, above, epoch, log };
            Decided { start, full_check, opened, origin: Origin::Fork { parent: open, at: durable } }
        }
    }
}
