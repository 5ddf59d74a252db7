//! What the commands ask of the libraries: the narrow border behind which everything real happens.
//!
//! Small questions (status, points, mark, policy, sessions) are [`cdp_net::owner::Request`]s and take the same way with and
//! without another owner: [`Engine::open`] gives the handler that an owner has. The long jobs are calls of their own.

use crate::exit::{Exit, Failure};
use crate::json::{DiffEvent, Inspected, MountEvent, ProtectEvent, Restored, Stopped, Verified};
use crate::place::Way;
use crate::progress::Progress;
use crate::stop::Stop;
use cdp_core::trust::{KeyHolder, WrappingKey};
use cdp_core::when::When;
use cdp_net::link::pin::Fingerprint;
use cdp_net::nbd::Uri;
use cdp_net::owner::{Access, Handler, Owner, PolicyChange, Side};
use cdp_net::services::url::CdpUrl;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A disk to protect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceSpec {
    /// Its name in the group, and its export's.
    pub name: String,
    /// A raw image or a block device.
    pub path: PathBuf,
}

/// What to believe of a source that may have been changed by others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SourceTrust {
    /// Files by size, inode and times; block devices never.
    #[default]
    Default,
    /// All.
    Trust,
    /// None: everything is compared.
    Check,
}

/// What to protect, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProtectSpec {
    /// The disks, in their order; at least one.
    pub sources: Vec<SourceSpec>,
    /// The replica's directory, or, where that is elsewhere, the directory of the protection's own state; made if it is not there.
    pub replica: PathBuf,
    /// Where the replica is, if it is kept at another site.
    pub there: Option<ThereSpec>,
    /// Where to serve the disks.
    pub listen: Uri,
    /// Directory of the certificates; with it only clients that use TLS are served.
    pub tls: Option<PathBuf>,
    /// The group's name, if it was given.
    pub name: Option<String>,
    /// What was given of the policy.
    pub policy: PolicyChange,
    /// What to believe of the sources.
    pub trust: SourceTrust,
    /// Bound of what was captured and is not yet durable, in bytes.
    pub memory: u64,
    /// How long the end may take.
    pub drain: Duration,
    /// How large the journal's segments are made, in bytes, if it was given.
    pub segment_bytes: Option<u64>,
}

/// A replica at another site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ThereSpec {
    /// Where it is reached, the place that is wanted most first.
    pub to: Vec<CdpUrl>,
    /// What the group is called there.
    pub group: String,
    /// Who may answer.
    pub peers: Vec<Fingerprint>,
    /// What a gateway on the way lets in; empty: none.
    pub ticket: Vec<u8>,
}

/// What to write where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreSpec {
    /// The moment.
    pub at: When,
    /// Which neighbour to take if it is not restorable.
    pub nearest: Option<Side>,
    /// The file, block device or directory.
    pub output: PathBuf,
    /// One disk of several.
    pub disk: Option<String>,
    /// Overwrite.
    pub force: bool,
}

/// What to compare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiffSpec {
    /// The moment that counts as before.
    pub from: When,
    /// What it is compared with; nothing if only its digest is asked for.
    pub to: Option<DiffTo>,
    /// Which neighbour to take of a moment that is not restorable.
    pub nearest: Option<Side>,
    /// One disk of several.
    pub disk: Option<String>,
    /// Tell digests, and no differences.
    pub digest: bool,
}

/// The second side of a comparison.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiffTo {
    /// Another moment.
    Moment(When),
    /// A raw image or block device.
    File(PathBuf),
}

/// What to serve, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountSpec {
    /// The moment; a session that exists has its own.
    pub at: Option<When>,
    /// Which neighbour to take if it is not restorable.
    pub nearest: Option<Side>,
    /// Where; `None` is the default address, or the next free port after it.
    pub listen: Option<Uri>,
    /// Directory of the certificates; with it only clients that use TLS are served.
    pub tls: Option<PathBuf>,
    /// Take writes.
    pub writable: bool,
    /// The session that writes go to; `None` is one that ends with the mount.
    pub session: Option<String>,
}

/// The libraries, as the commands see them.
pub trait Engine: Sync {
    /// Tells the key of replicas that are sealed at rest, before anything else. An engine that seals nothing takes no notice.
    fn take_key(&self, _key: KeyHolder) {}

    /// Rotates the wrapping key of a replica that is sealed at rest: from now on it opens with `new` only. Says whether it did not before.
    ///
    /// # Errors
    /// When it is not sealed, somebody is using it, or the key that was given is not its own.
    fn rotate_key(&self, dir: &Path, _access: Access, _new: &WrappingKey) -> Result<bool, Failure> {
        Err(Failure::new(Exit::Refused, "not-sealed", format!("{} is not sealed at rest", dir.display())))
    }

    /// Opens the replica of a directory that this process owns, to answer what an owner answers.
    ///
    /// # Errors
    /// When it is none, or damaged.
    fn open(&self, owner: Owner) -> Result<Box<dyn Handler>, Failure>;

    /// Protects until `stop` is wished or nothing can be protected any more.
    ///
    /// # Errors
    /// When it cannot begin, or a source cannot be served any more.
    fn protect(
        &self,
        spec: &ProtectSpec,
        stop: &Stop,
        events: &mut dyn FnMut(ProtectEvent),
    ) -> Result<Stopped, Failure>;

    /// Serves a moment until `stop` is wished. `way` is kept all the while.
    ///
    /// # Errors
    /// When the moment is not restorable or cannot be served.
    fn mount(&self, way: Way, spec: &MountSpec, stop: &Stop, events: &mut dyn FnMut(MountEvent))
    -> Result<(), Failure>;

    /// Writes the disks of a moment; when `stop` is wished nothing is left behind.
    ///
    /// # Errors
    /// When the moment is not restorable or the output cannot be written.
    fn restore(
        &self,
        way: Way,
        spec: &RestoreSpec,
        stop: &Stop,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Restored, Failure>;

    /// Compares a moment with another one or with a file, and tells what differs, or the digests, while it goes on.
    ///
    /// # Errors
    /// When a moment is not restorable, something cannot be read, or `stop` was wished before the end.
    fn diff(
        &self,
        way: Way,
        spec: &DiffSpec,
        stop: &Stop,
        progress: &mut dyn FnMut(Progress),
        events: &mut dyn FnMut(DiffEvent),
    ) -> Result<(), Failure>;

    /// Reads and checks everything. Damage is an answer, not an error.
    ///
    /// # Errors
    /// When it cannot be read at all.
    fn verify(&self, way: Way, stop: &Stop, progress: &mut dyn FnMut(Progress)) -> Result<Verified, Failure>;

    /// Says what is in a file of ours.
    ///
    /// # Errors
    /// When it cannot be read or is none of ours.
    fn inspect(&self, path: &Path) -> Result<Inspected, Failure>;
}
