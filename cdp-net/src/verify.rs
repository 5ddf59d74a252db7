//! Reading everything of a replica: journal, index, bases, kept moments and sessions; what is wrong, where, and which moments of
//! which disks are still good.

mod bases;
mod good;
mod sessions;
mod stores;

use crate::host::{SESSIONS_DIRECTORY, document};
use crate::owner::{ControlClient, PinReply, Request};
use crate::reading::not_answered;
use crate::report::{Problem, ProblemClass, Range, RangeKind, text};
use cdp_core::journal::{
    BaseInfo, Damage as Unopened, Finding, Looked, Manifest, Reader, Snapshot, TimelineInfo, TimelineState, Unreadable,
    damaged_manifests, look_through, look_with, read_manifest, run_name, segment_name,
};
use cdp_core::media::Storage;
use cdp_core::replica::base::Base;
use cdp_core::replica::{
    BASE_DIRECTORY, JOURNAL_DIRECTORY, Lost, Replica, ReplicaError, ReplicaView, is_unseeded, kept,
};
use cdp_core::trust::{KeyHolder, Keyring};
use cdp_core::types::{DiskId, Lsn, SECTOR, Timeline, WallTime};
use good::{Judge, Taken};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How often everything is read beside an owner who cannot leave it alone for so long.
const READS_MAX: usize = 3;

/// How many extents of one damage are said; the others are counted.
const EXTENTS_MAX: usize = 16;

/// The records of a damaged place, first and last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Records {
    /// The first.
    #[serde(with = "text::lsn")]
    pub from_lsn: Lsn,
    /// The last.
    #[serde(with = "text::lsn")]
    pub to_lsn: Lsn,
}

/// A run of a disk that a damaged place takes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LostExtent {
    /// The disk's name; none where it may be any.
    pub disk: Option<String>,
    /// The record that wrote it; 0: it lies in the base.
    #[serde(with = "text::lsn")]
    pub lsn: Lsn,
    /// First byte.
    pub offset: u64,
    /// How many; none where it may be all.
    pub length: Option<u64>,
}

/// Something stored that is not what was stored.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many bytes are concerned, at most.
    pub length: u64,
    /// What is wrong.
    pub what: String,
    /// It is of what was written in this writable session, and takes nothing from the disks' history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The records that are written there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<Records>,
    /// The disks that it takes something from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// What it takes from them: the first few runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extents: Vec<LostExtent>,
    /// How many runs more.
    #[serde(skip_serializing_if = "is_zero")]
    pub more: u64,
    /// The moments that cannot be restored for it, of these disks.
    pub lost: Vec<Range>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What damage leaves of a disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskVerified {
    /// Its name in the group.
    pub disk: String,
    /// The moments at which it was complete and cannot be restored, newest timeline first.
    pub lost: Vec<Range>,
    /// Those at which it can.
    pub good: Vec<Range>,
}

/// What verifying found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Verified {
    /// There is no damage.
    pub ok: bool,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
    /// The moments at which all disks are still good.
    pub good: Vec<Range>,
    /// The same by disk, where there is damage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskVerified>,
    /// More was damaged than can be said one by one: some of what is said to be lost may still be good.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_most: bool,
    /// Bytes that were read.
    pub bytes: u64,
    /// It was stopped before everything was read: of the rest, and of what is good, nothing is said.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// No moment can be restored yet: the first copy is not through.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unseeded: bool,
    /// The replica is sealed at rest and no key was given: that the bytes are those that were written is all that was looked at.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unopened: bool,
    /// Why nobody can find any moment in it, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// Told bytes read and bytes in all; says whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Reads and checks everything beside the owner of the replica, who leaves it alone meanwhile if he can. Where he could not, and
/// something does not verify, it is read again: it may have been changed or removed while it was read.
///
/// # Errors
/// When it cannot be read at all, or could not be read in peace.
pub fn verify_beside_owner(
    storage: &Arc<dyn Storage>,
    client: &mut ControlClient,
    key: &KeyHolder,
    progress: OnProgress<'_>,
) -> Result<Verified, Problem> {
    let mut doubt = String::new();
    for _ in 0..READS_MAX {
        // The owner vouches for what is durable, and keeps it while this connection lives.
        let PinReply { pin, at } = client.call(&Request::PinAll).map_err(not_answered).map_err(too_early)?;
        let verified = verify(storage, Some(at.lsn), key, progress);
        let held: bool = client.call(&Request::Unpin { pin }).map_err(not_answered)?;
        match verified {
            verified if held => return verified,
            // What verifies is what was stored, whatever was done meanwhile.
            Ok(verified) if verified.ok || verified.stopped => return Ok(verified),
            Ok(Verified { damage, .. }) => {
                let first = damage.first().map(|first| format!("{}: {}", first.file.display(), first.what));
                doubt = format!("{} such places, the first in {}", damage.len(), first.unwrap_or_default());
            }
            Err(problem) => doubt = problem.message,
        }
    }
    let message = format!(
        "the owner had to go on merging each of the {READS_MAX} times that this read everything, so that its journal stays within its \
         bound, window and room: what does not verify may be damage, or was changed meanwhile ({doubt})"
    );
    let hint =
        "verify when less is written, with a longer window, a larger bound or more room, or while nobody protects";
    Err(Problem::new(ProblemClass::Refused, "not-verified", message).hint(hint))
}

/// An owner of whose disks nothing is complete has nothing that he could vouch for.
fn too_early(problem: Problem) -> Problem {
    if problem.class != ProblemClass::NotRestorable {
        return problem;
    }
    let message = "nothing can be restored yet: the first copy is not through, and nothing was verified";
    Problem { message: message.into(), ..problem }.hint("verify when `cdp status` shows that the copy is complete")
}

/// Reads and checks everything that was written up to `safe` (everything, where nobody owns the replica). `progress` is told
/// the bytes read so far, and bytes in all, and says whether to go on.
///
/// # Errors
/// When it cannot be read at all: damage is an answer, not an error.
pub fn verify(
    storage: &Arc<dyn Storage>,
    safe: Option<Lsn>,
    key: &KeyHolder,
    progress: OnProgress<'_>,
) -> Result<Verified, Problem> {
    let unreadable = |error: cdp_core::journal::OpenError| document::unreadable(&error.into());
    // A live owner is the witness for what it vouched for, and its log may run ahead of that.
    let witness = safe.or_else(|| crate::protect::witness(storage.as_ref()));
    // What a power cut tore is no damage: a start cuts it off. A live owner may be writing what is not whole yet.
    let look = if safe.is_some() { look_with } else { look_through };
    let looked = look(storage.as_ref(), JOURNAL_DIRECTORY, witness, key).map_err(unreadable)?;
    let Looked { manifest, snapshot, damage: unopened, behind, keys } = looked;
    let shut = keys.is_empty() && !manifest.keys.is_empty();
    let out = Verified { unopened: shut, unseeded: is_unseeded(&manifest), ..Verified::default() };
    let (total, more) = (stored_bytes(storage.as_ref()), false);
    let mut all =
        Everything { storage, manifest, snapshot, keys, safe, total, out, taken: Vec::new(), more, go_on: true };
    let root = PathBuf::from(storage.path());
    all.out.damage = damaged_copies(storage.as_ref(), &root);
    all.read_journal(&behind, progress);
    all.judge_end(unopened);
    all.read_bases(progress);
    all.read_stores(progress);
    all.judged(progress)
}

/// Of the two copies of a manifest one may be damaged: that takes nothing from anybody.
fn damaged_copies(storage: &dyn Storage, directory: &Path) -> Vec<Damage> {
    // Where neither is whole nothing can be looked at, and that is said instead.
    let found = damaged_manifests(storage).unwrap_or_default().into_iter();
    let damage = |(name, what)| {
        let what = format!("{what} (the other copy of this manifest is whole: the next start writes both)");
        Damage { file: directory.join(name), length: SECTOR, what, ..Damage::default() }
    };
    found.map(damage).collect()
}

/// A replica that is being read.
struct Everything<'a> {
    storage: &'a Arc<dyn Storage>,
    manifest: Manifest,
    snapshot: Snapshot,
    keys: Arc<Keyring>,
    safe: Option<Lsn>,
    /// Bytes in all.
    total: u64,
    out: Verified,
    /// What is lost, and for which damage.
    taken: Vec<Taken>,
    /// There is more than is in `taken` one by one.
    more: bool,
    /// Nobody stopped it yet.
    go_on: bool,
}

impl Everything<'_> {
    fn read_journal(&mut self, behind: &[Snapshot], progress: OnProgress<'_>) {
        let reader = Reader::new(Arc::clone(self.storage), JOURNAL_DIRECTORY, 0).with_keys(Arc::clone(&self.keys));
        let snapshot = self.snapshot.clone();
        for snapshot in std::iter::once(&snapshot).chain(behind) {
            if !self.go_on {
                return;
            }
            let (before, total) = (self.out.bytes, self.total);
            let journal = reader.verify(snapshot, |bytes| {
                self.go_on = self.go_on && progress(before + bytes, total);
                self.go_on
            });
            self.out.bytes += journal.bytes;
            self.more |= journal.more > 0;
            // Beside a live owner runs of the index are merged and removed while they are read: what is not named now is no loss.
            let is_index = |finding: &Finding| finding.file.ends_with(".idx");
            let now =
                journal.findings.iter().any(is_index).then(|| read_manifest(self.storage.as_ref()).ok()).flatten();
            let named = |finding: &Finding| {
                now.as_ref().is_none_or(|now| now.runs.iter().any(|run| run_name(run.number) == finding.file))
            };
            let first = self.out.damage.len();
            let findings = journal.findings.into_iter().filter(|finding| !is_index(finding) || named(finding));
            for finding in findings {
                let file = PathBuf::from(self.storage.path()).join(JOURNAL_DIRECTORY).join(&finding.file);
                let (offset, length, what) = (finding.offset, finding.length, finding.what);
                let records = finding.lost.map(|(from_lsn, to_lsn)| Records { from_lsn, to_lsn });
                self.out.damage.push(Damage { file, offset, length, what, records, ..Damage::default() });
            }
            for unreadable in &journal.unreadable {
                let of = place_of(&self.out.damage[first..], unreadable).map(|at| first + at);
                self.taken.push(Taken { damage: of, store: None, kept_only: false, lost: Lost::from(unreadable) });
            }
        }
    }

    /// What of the end of the journal is missing or damaged: from there on there is no moment.
    fn judge_end(&mut self, unopened: Option<Unopened>) {
        // Beside a live owner the end of the journal moves while it is looked at: what lies behind what the owner vouches for is not
        // judged.
        let Some(damage) = unopened.filter(|damage| self.safe.is_none_or(|safe| damage.good < safe)) else { return };
        let from_lsn = damage.good.next();
        let records = Records { from_lsn, to_lsn: damage.acknowledged.max(from_lsn) };
        let disks = self.manifest.disks.iter().map(|disk| disk.name.clone()).collect();
        let range = |info: &TimelineInfo| {
            let (from, to) = (records.from_lsn.max(info.fork.next()), info.last.unwrap_or(records.to_lsn));
            // One that cannot grow ends before the next one begins.
            let follows = |next: &&TimelineInfo| info.state != TimelineState::Open && next.parent == Some(info.id);
            let next = self.manifest.timelines.iter().find(follows);
            let range = range_of(info.id, from, to);
            (from <= to).then(|| Range { to_time: next.map_or(range.to_time, |next| next.opened), ..range })
        };
        self.out.damage.push(Damage {
            file: PathBuf::from(&damage.path),
            offset: damage.offset,
            // Headers and trailers are sectors; of a torn tail nobody knows how long it was.
            length: SECTOR,
            what: damage.what,
            records: Some(records),
            disks,
            lost: self.manifest.timelines.iter().rev().filter_map(range).collect(),
            ..Damage::default()
        });
    }

    fn read_bases(&mut self, progress: OnProgress<'_>) {
        if !self.go_on {
            return;
        }
        // What a merge that is under way changes in the bases is only sound together with the journal above it.
        let loaded = self.manifest.merge.and_then(|merge| Some((merge, self.load().ok()?)));
        let covered = loaded.as_ref().and_then(|(merge, replica)| replica.view(merge.timeline, merge.lsn).ok());
        // Without the key nobody can tell what that has changed of a sealed one from what is damaged.
        let shut = |base: &BaseInfo| base.at_rest && self.out.unopened && self.manifest.merge.is_some();
        let named = self.manifest.disks.iter();
        let bases: Vec<_> = named.filter_map(|disk| Some((disk.id, disk.base.filter(|b| !shut(b))?))).collect();
        let journal_bytes = self.out.bytes;
        for (disk, base) in bases {
            if !self.go_on {
                return;
            }
            let read = |base: &Base, at: u64, buffer: &mut [u8]| match &covered {
                None => base.verify(at, buffer).map_err(Some),
                Some(view) => bases::read_in(view, disk, at, buffer),
            };
            let found = self.read_base((disk, base), &read, (journal_bytes, progress));
            let (unopened, more) = (found.unopened, found.more);
            self.damaged_base(disk, found, false);
            // Over what kept moments stand on lies no journal: they need what the merge has yet to replace.
            let Some(covered) = covered.as_ref().filter(|_| !unopened && !more && self.go_on) else { continue };
            let Some((kept, size)) = loaded.as_ref().and_then(|(_, replica)| newest_kept(replica, disk)) else {
                continue;
            };
            let read = |_: &Base, at: u64, buffer: &mut [u8]| {
                let length = size.saturating_sub(at).min(buffer.len() as u64) as usize;
                let buffer = &mut buffer[..length];
                match bases::read_in(&kept, disk, at, buffer) {
                    // That is told already.
                    Err(Some(_)) if bases::read_in(covered, disk, at, buffer).is_err_and(|error| error.is_some()) => {
                        Err(None)
                    }
                    read => read,
                }
            };
            let bytes = self.out.bytes;
            let found = self.read_base((disk, base), &read, (journal_bytes, progress));
            self.out.bytes = bytes;
            self.damaged_base(disk, found, true);
        }
    }

    fn read_base(
        &mut self,
        (disk, base): (DiskId, BaseInfo),
        read: bases::ReadBase<'_>,
        (before, progress): (u64, OnProgress<'_>),
    ) -> bases::Found {
        let (total, go_on) = (self.total, &mut self.go_on);
        let mut told = |bytes: u64| {
            *go_on = *go_on && progress(before + bytes, total);
            *go_on
        };
        let opened = (&self.manifest, &self.keys);
        bases::check_base(self.storage, opened, (disk, base.into()), read, &mut self.out.bytes, &mut told)
    }

    fn damaged_base(&mut self, disk: DiskId, found: bases::Found, kept_only: bool) {
        self.more |= found.more;
        for (mut damage, extents) in found.places {
            damage.file = PathBuf::from(self.storage.path()).join(&damage.file);
            let (of, disk) = (Some(self.out.damage.len()), Some(disk));
            self.out.damage.push(damage);
            let lost = |extent| Lost { written: None, disk, extent };
            let taken = |extent| Taken { damage: of, store: None, kept_only, lost: lost(extent) };
            self.taken.extend(extents.into_iter().map(taken));
        }
    }

    /// Kept moments and sessions.
    fn read_stores(&mut self, progress: OnProgress<'_>) {
        let root = PathBuf::from(self.storage.path());
        let in_root = |damage: Damage| Damage { file: root.join(&damage.file), ..damage };
        let total = self.total;
        for info in self.manifest.kept.clone().iter().rev() {
            if !self.go_on {
                return;
            }
            let mut told = |bytes: u64| {
                self.go_on = self.go_on && progress(bytes, total);
                self.go_on
            };
            let (key, read) = (self.keys.of_stores(), &mut self.out.bytes);
            let (found, unreadable) = stores::check_kept(self.storage, info, &key, read, &mut told);
            let of = (!found.is_empty()).then_some(self.out.damage.len());
            self.out.damage.extend(found.into_iter().map(in_root));
            let store = Some(info.number);
            let taken = |lost| Taken { damage: of, store, kept_only: false, lost };
            self.taken.extend(unreadable.into_iter().map(taken));
        }
        for info in &self.manifest.sessions {
            if !self.go_on {
                return;
            }
            let mut told = |bytes: u64| {
                self.go_on = self.go_on && progress(bytes, total);
                self.go_on
            };
            let (key, read) = (self.keys.of_stores(), &mut self.out.bytes);
            let found = sessions::check_session(self.storage, info, &key, read, &mut told);
            let session = Some(document::session_name(info).unwrap_or_else(|| "(temporary)".into()));
            let of_session = |damage| Damage { session: session.clone(), ..in_root(damage) };
            self.out.damage.extend(found.into_iter().map(of_session));
        }
    }

    fn load(&self) -> Result<Replica, ReplicaError> {
        let (safe, keys) = (self.safe.unwrap_or(self.snapshot.written()), Arc::clone(&self.keys));
        Replica::load_to_read(Arc::clone(self.storage), self.manifest.clone(), self.snapshot.clone(), safe, keys)
    }

    /// Which moments go with what was found, and which stay.
    ///
    /// # Errors
    /// When it cannot be loaded, and nothing of what was read says why.
    fn judged(mut self, progress: OnProgress<'_>) -> Result<Verified, Problem> {
        self.out.stopped = !self.go_on;
        self.out.ok = self.out.damage.is_empty() && !self.out.stopped;
        self.out.at_most = self.more;
        if self.out.stopped {
            return Ok(self.out);
        }
        let loaded = self.load();
        match loaded {
            Ok(replica) => {
                let (bytes, total) = (self.out.bytes, self.total);
                let mut go_on = || progress(bytes, total);
                if !Judge::new(&replica, &self.taken, &mut go_on).judge(&mut self.out) {
                    (self.out.stopped, self.out.ok) = (true, false);
                }
            }
            // With its key it may be otherwise.
            Err(_) if self.out.unopened => {}
            Err(error) if self.out.damage.is_empty() => return Err(document::unreadable(&error)),
            // Nothing can be found in it, so nothing can be restored.
            Err(error) => {
                self.out.unreadable = Some(error.to_string());
                let newest = self.manifest.durable.max(self.snapshot.written());
                let of_history = |damage: &&mut Damage| damage.lost.is_empty() && damage.session.is_none();
                for damage in self.out.damage.iter_mut().filter(of_history) {
                    let timeline = self.manifest.timelines.last().map(|info| info.id);
                    let from = damage.records.map_or(Lsn(1), |records| records.from_lsn);
                    damage.lost.extend(timeline.map(|timeline| range_of(timeline, from, newest.max(from))));
                }
            }
        }
        Ok(self.out)
    }
}

/// The newest moment before the bases that a disk is kept of, and its size there. What older ones need of the base, this needs.
fn newest_kept(replica: &Replica, disk: DiskId) -> Option<(ReplicaView, u64)> {
    let manifest = replica.manifest();
    let oldest = manifest.oldest()?;
    let before = manifest.kept.iter().filter(|kept| kept.moment.lsn < oldest.lsn);
    let kept = before.rev().find(|kept| kept.disks.iter().any(|(id, _)| *id == disk))?;
    let view = replica.view(kept.moment.timeline, kept.moment.lsn).ok()?;
    let size = view.disks().iter().find(|found| found.id == disk)?.size;
    Some((view, size))
}

/// The damage that takes a part from views: where its chunk stands, else the first of its segment.
fn place_of(damage: &[Damage], unreadable: &Unreadable) -> Option<usize> {
    let name = segment_name(unreadable.segment);
    let of_segment = || damage.iter().enumerate().filter(|(_, damage)| damage.file.ends_with(&name));
    let around = |damage: &Damage| {
        damage.offset <= unreadable.offset && unreadable.offset < damage.offset.saturating_add(damage.length)
    };
    let lost = |damage: &Damage| damage.records.is_some();
    let there = of_segment().find(|(_, damage)| around(damage) && lost(damage));
    there.or_else(|| of_segment().find(|(_, damage)| lost(damage))).or_else(|| of_segment().next()).map(|(at, _)| at)
}

/// A run of moments of which only LSNs are known.
fn range_of(timeline: Timeline, from_lsn: Lsn, to_lsn: Lsn) -> Range {
    let (from_time, to_time) = (WallTime(0), WallTime(u64::MAX));
    Range { timeline: timeline.into(), kind: RangeKind::Every, from_lsn, to_lsn, from_time, to_time }
}

fn stored_bytes(storage: &dyn Storage) -> u64 {
    let length = |name: String| storage.open(&name, false).ok()?.len().ok();
    let of = |directory: &str| {
        let names = storage.list(directory).unwrap_or_default();
        names.into_iter().filter_map(|name| length(format!("{directory}/{name}"))).sum::<u64>()
    };
    let stores = |directory: &str| {
        let names = storage.list(directory).unwrap_or_default();
        names.into_iter().map(|name| of(&format!("{directory}/{name}"))).sum::<u64>()
    };
    of(JOURNAL_DIRECTORY) + of(BASE_DIRECTORY) + stores(kept::KEPT_DIRECTORY) + stores(SESSIONS_DIRECTORY)
}
