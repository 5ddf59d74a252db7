//! Reading everything of a replica: journal, index, bases, kept moments and sessions; what is wrong, where, and which moments are still good.

mod sessions;

use crate::host::{SESSIONS_DIRECTORY, document};
use crate::owner::{ControlClient, PinReply, Request};
use crate::reading::not_answered;
use crate::report::{Problem, ProblemClass, Range, RangeKind};
use cdp_core::journal::{
    BaseInfo, Damage as Unopened, Finding, KeptInfo, Looked, ReadError, Reader, look_through, look_with, read_manifest,
    run_name,
};
use cdp_core::media::Storage;
use cdp_core::replica::base::{Base, BaseError, file_names, table_name};
use cdp_core::replica::sidecar::{PAGE_BYTES, Root};
use cdp_core::replica::{BASE_DIRECTORY, JOURNAL_DIRECTORY, Replica, ReplicaView, kept};
use cdp_core::trust::{KeyHolder, Keyring};
use cdp_core::types::{BLOCK, DiskId, Lsn, SECTOR, Timeline};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of one read of a base.
const PIECE: u64 = 1 << 20;

/// How often everything is read beside an owner who cannot leave it alone for so long.
const READS_MAX: usize = 3;

/// Something stored that is not what was stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many bytes are concerned, at most.
    pub length: u64,
    /// What is wrong.
    pub what: String,
    /// The moments that cannot be restored for it.
    pub lost: Vec<Range>,
}

/// What verifying found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Verified {
    /// There is no damage.
    pub ok: bool,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
    /// The moments that are still good.
    pub good: Vec<Range>,
    /// Bytes that were read.
    pub bytes: u64,
    /// The replica is sealed at rest and no key was given: that the bytes are those that were written is all that was looked at.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unopened: bool,
}

/// A run of records that cannot be read: no moment from its first one on is whole, on its timeline and those that fork later.
#[derive(Clone, Copy, Debug)]
struct Lost {
    timeline: Timeline,
    from: Lsn,
}

/// Reads and checks everything beside the owner of the replica, who leaves it alone meanwhile if he can. Where he could not, and
/// something does not verify, it is read again: it may have been changed or removed while it was read.
///
/// # Errors
/// When it cannot be read at all, or could not be read in peace.
pub fn verify_beside_owner(
    storage: &Arc<dyn Storage>,
    client: &mut ControlClient,
    key: &KeyHolder,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, Problem> {
    let mut doubt = String::new();
    for _ in 0..READS_MAX {
        // The owner vouches for what is durable, and keeps it while this connection lives.
        let PinReply { pin, at } = client.call(&Request::PinAll).map_err(not_answered)?;
        let verified = verify(storage, Some(at.lsn), key, progress);
        let held: bool = client.call(&Request::Unpin { pin }).map_err(not_answered)?;
        match verified {
            verified if held => return verified,
            // What verifies is what was stored, whatever was done meanwhile.
            Ok(verified) if verified.ok => return Ok(verified),
            Ok(Verified { damage, .. }) => {
                let first = damage.first().map(|first| format!("{}: {}", first.file.display(), first.what));
                doubt = format!("{} such places, the first in {}", damage.len(), first.unwrap_or_default());
            }
            Err(problem) => doubt = problem.message,
        }
    }
    let message = format!(
        "the owner had to go on merging each of the {READS_MAX} times that this read everything, so that its journal stays within its \
         bound and room: what does not verify may be damage, or was changed meanwhile ({doubt})"
    );
    let hint = "verify when less is written, with a larger bound or more room, or while nobody protects";
    Err(Problem::new(ProblemClass::Refused, "not-verified", message).hint(hint))
}

/// Reads and checks everything that was written up to `safe` (everything, where nobody owns the replica). `progress` is told
/// the bytes read so far, and bytes in all.
///
/// # Errors
/// When it cannot be read at all: damage is an answer, not an error.
pub fn verify(
    storage: &Arc<dyn Storage>,
    safe: Option<Lsn>,
    key: &KeyHolder,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, Problem> {
    let unreadable = |error: cdp_core::journal::OpenError| document::unreadable(&error.into());
    // A live owner is the witness for what it vouched for, and its log may run ahead of that.
    let witness = safe.or_else(|| crate::protect::witness(storage.as_ref()));
    // What a power cut tore is no damage: a start cuts it off. A live owner may be writing what is not whole yet.
    let look = if safe.is_some() { look_with } else { look_through };
    let looked = look(storage.as_ref(), JOURNAL_DIRECTORY, witness, key).map_err(unreadable)?;
    let Looked { manifest, snapshot, damage: unopened, behind, keys } = looked;
    let root = PathBuf::from(storage.path());
    let total = stored_bytes(storage.as_ref());
    let mut out = Verified::default();
    let mut lost = Vec::new();
    let reader = Reader::new(Arc::clone(storage), JOURNAL_DIRECTORY, 0).with_keys(Arc::clone(&keys));
    out.unopened = keys.is_empty() && !manifest.keys.is_empty();
    for snapshot in std::iter::once(&snapshot).chain(&behind) {
        let before = out.bytes;
        let journal = reader.verify(snapshot, |bytes| {
            progress(before + bytes, total);
            true
        });
        out.bytes += journal.bytes;
        // Beside a live owner runs of the index are merged and removed while they are read: what is not named now is no loss.
        let is_index = |finding: &Finding| finding.file.ends_with(".idx");
        let now = journal.findings.iter().any(is_index).then(|| read_manifest(storage.as_ref()).ok()).flatten();
        let named = |finding: &Finding| {
            now.as_ref().is_none_or(|now| now.runs.iter().any(|run| run_name(run.number) == finding.file))
        };
        for finding in journal.findings.into_iter().filter(|finding| !is_index(finding) || named(finding)) {
            let from = finding.lost.map(|(first, _)| first);
            lost.extend(from.map(|from| Lost { timeline: finding.timeline, from }));
            let file = root.join(JOURNAL_DIRECTORY).join(&finding.file);
            let (offset, length, what) = (finding.offset, finding.length, finding.what);
            out.damage.push(Damage { file, offset, length, what, lost: lost_ranges(from, finding.timeline) });
        }
    }
    let journal_bytes = out.bytes;
    // Beside a live owner the end of the journal moves while it is looked at: what lies behind what the owner vouches for is not
    // judged.
    let unopened = unopened.filter(|damage| safe.is_none_or(|safe| damage.good < safe));
    if let Some(damage) = unopened {
        let timeline = manifest.timelines.last().map(|info| info.id);
        lost.extend(timeline.map(|timeline| Lost { timeline, from: damage.good.next() }));
        out.damage.push(of_unopened(&damage, timeline));
    }
    let mut base_lost = false;
    // What a merge that is under way changes in the bases is only sound together with the journal above it.
    let covered = manifest.merge.and_then(|merge| {
        let replica = load(storage, manifest.clone(), snapshot.clone(), safe, Arc::clone(&keys)).ok()?;
        replica.view(merge.timeline, merge.lsn).ok()
    });
    // Without the key nobody can tell what that has changed of a sealed one from what is damaged.
    let shut = |base: &BaseInfo| base.at_rest && out.unopened && manifest.merge.is_some();
    let bases: Vec<_> =
        manifest.disks.iter().filter_map(|disk| Some((disk.id, disk.base.filter(|b| !shut(b))?))).collect();
    for (disk, base) in bases {
        let mut told = |bytes: u64| progress(journal_bytes + bytes, total);
        let found =
            check_base(storage, (&manifest, &keys), disk, base.into(), covered.as_ref(), &mut out.bytes, &mut told);
        base_lost |= !found.is_empty();
        out.damage.extend(found.into_iter().map(|mut damage| {
            damage.file = root.join(&damage.file);
            damage
        }));
    }
    let mut kept_lost = None;
    for info in manifest.kept.iter().rev() {
        let found = check_kept(storage, info, &keys.of_stores(), &mut out.bytes);
        if !found.is_empty() && kept_lost.is_none() {
            // Those before it go through it.
            kept_lost = Some(info.moment.lsn);
        }
        out.damage.extend(found.into_iter().map(|mut damage| {
            damage.file = root.join(&damage.file);
            damage
        }));
    }
    for info in &manifest.sessions {
        let found = sessions::check_session(storage, info, &keys.of_stores(), &mut out.bytes);
        progress(out.bytes, total);
        out.damage.extend(found.into_iter().map(|mut damage| {
            damage.file = root.join(&damage.file);
            damage
        }));
    }
    // Bases lie below every moment: with one damaged none can be promised.
    if !base_lost && let Ok(replica) = load(storage, manifest, snapshot, safe, keys) {
        out.good = good_ranges(&replica, &lost);
        let is_lost = |range: &Range| range.kind == RangeKind::Only && kept_lost.is_some_and(|lsn| range.to_lsn <= lsn);
        out.good.retain(|range| !is_lost(range));
    }
    out.ok = out.damage.is_empty();
    Ok(out)
}

fn load(
    storage: &Arc<dyn Storage>,
    manifest: cdp_core::journal::Manifest,
    snapshot: cdp_core::journal::Snapshot,
    safe: Option<Lsn>,
    keys: Arc<Keyring>,
) -> Result<Replica, cdp_core::replica::ReplicaError> {
    let safe = safe.unwrap_or(snapshot.written());
    Replica::load_with(Arc::clone(storage), manifest, snapshot, safe, keys)
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

fn of_unopened(damage: &Unopened, timeline: Option<Timeline>) -> Damage {
    Damage {
        file: PathBuf::from(&damage.path),
        offset: damage.offset,
        // Headers and trailers are sectors; of a torn tail nobody knows how long it was.
        length: SECTOR,
        what: damage.what.clone(),
        lost: timeline.map(|timeline| lost_ranges(Some(damage.good.next()), timeline)).unwrap_or_default(),
    }
}

fn lost_ranges(from: Option<Lsn>, timeline: Timeline) -> Vec<Range> {
    let range = |from: Lsn| Range {
        timeline: timeline.into(),
        kind: RangeKind::Every,
        from_lsn: from,
        to_lsn: Lsn(u64::MAX),
        from_time: cdp_core::types::WallTime(0),
        to_time: cdp_core::types::WallTime(u64::MAX),
    };
    from.map(range).into_iter().collect()
}

/// Restorable ranges that end before the first lost record of their own path.
fn good_ranges(replica: &Replica, lost: &[Lost]) -> Vec<Range> {
    let catalogue = replica.catalogue();
    let mut good = Vec::new();
    for branch in catalogue.branches().into_iter().rev() {
        let on_path = |lost: &&Lost| {
            catalogue.path(branch.timeline).iter().any(|(on, upto)| on.timeline == lost.timeline && lost.from <= *upto)
        };
        let first = lost.iter().filter(on_path).map(|lost| lost.from).min().unwrap_or(Lsn(u64::MAX));
        for range in document::ranges_of(branch).into_iter().filter(|range| range.from_lsn < first) {
            let to_lsn = range.to_lsn.min(first.prev());
            let time = replica.exact(branch.timeline, to_lsn).map_or(range.to_time, |moment| moment.stamp.time);
            let to_time = if to_lsn < range.to_lsn { time } else { range.to_time };
            good.push(Range { to_lsn, to_time, ..range });
        }
    }
    good
}

/// Reads the whole store of a kept moment.
fn check_kept(storage: &Arc<dyn Storage>, info: &KeptInfo, key: &KeyHolder, bytes: &mut u64) -> Vec<Damage> {
    let directory = PathBuf::from(kept::directory(info.number));
    let moment = Range {
        timeline: info.moment.timeline.into(),
        kind: RangeKind::Only,
        from_lsn: info.moment.lsn,
        to_lsn: info.moment.lsn,
        from_time: info.moment.stamp.time,
        to_time: info.moment.stamp.time,
    };
    let damage =
        |file: PathBuf, offset, length, what| Damage { file, offset, length, what, lost: vec![moment.clone()] };
    let store = storage.look_in(&kept::directory(info.number));
    let looked = store.map_err(Into::into).and_then(|store| Ok((look_through(store.as_ref(), "", None, key)?, store)));
    let (looked, store) = match looked {
        Ok(found) => found,
        Err(error) => {
            let error: cdp_core::journal::OpenError = error;
            return vec![damage(directory, 0, SECTOR, error.to_string())];
        }
    };
    let mut found: Vec<_> = looked
        .damage
        .iter()
        .map(|lost| damage(PathBuf::from(&lost.path), lost.offset, SECTOR, lost.what.clone()))
        .collect();
    let verified = Reader::new(store, "", 0).with_keys(Arc::clone(&looked.keys)).verify(&looked.snapshot, |_| true);
    *bytes += verified.bytes;
    found.extend(
        verified
            .findings
            .into_iter()
            .map(|finding| damage(directory.join(&finding.file), finding.offset, finding.length, finding.what)),
    );
    found
}

/// Reads a whole base; each damaged place is one finding. `covered`: the moment of a merge that is under way.
fn check_base(
    storage: &Arc<dyn Storage>,
    (manifest, keys): (&cdp_core::journal::Manifest, &Arc<Keyring>),
    disk: DiskId,
    root: Root,
    covered: Option<&ReplicaView>,
    bytes: &mut u64,
    progress: &mut dyn FnMut(u64),
) -> Vec<Damage> {
    let (image, sidecar_name) = file_names(disk);
    let everything = || {
        let open = manifest.timelines.first().map(|info| info.id);
        open.map(|timeline| lost_ranges(Some(Lsn(1)), timeline)).unwrap_or_default()
    };
    let finding = |file: &str, offset: u64, length: u64, error: &BaseError| Damage {
        file: PathBuf::from(file),
        offset,
        length,
        what: error.to_string(),
        lost: everything(),
    };
    let base = match Base::open_with(storage.as_ref(), manifest.replica, disk, root, Arc::clone(keys)) {
        Ok(base) => base,
        Err(error) => {
            let table = table_name(disk, root.generation);
            return vec![match &error {
                BaseError::Table { .. } => finding(&table, 0, root.layout.table_bytes(root.size) as u64, &error),
                BaseError::Media(media) if media.path.ends_with(&table) => finding(&table, 0, 0, &error),
                BaseError::Media(media) if media.path.ends_with(&sidecar_name) => finding(&sidecar_name, 0, 0, &error),
                _ => finding(&image, 0, 0, &error),
            }];
        }
    };
    let read = |at: u64, buffer: &mut [u8]| match covered {
        None => base.verify(at, buffer),
        Some(view) => match view.read(disk, at, buffer) {
            // What is wrong with the journal is told where that is read.
            Err(ReadError::Below { source, .. }) => source.downcast_ref().cloned().map_or(Ok(()), Err),
            _ => Ok(()),
        },
    };
    let mut found: Vec<Damage> = Vec::new();
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while at < root.size {
        let length = PIECE.min(root.size - at);
        if read(at, &mut buffer[..length as usize]).is_err() {
            // Something in it: block by block, so that each damaged place is named, and once.
            for block in (at..at + length).step_by(BLOCK as usize) {
                let bytes = BLOCK.min(at + length - block);
                let Err(error) = read(block, &mut buffer[..bytes as usize]) else { continue };
                let damage = match &error {
                    BaseError::Page { offset, .. } => finding(&sidecar_name, *offset, PAGE_BYTES as u64, &error),
                    BaseError::Block { offset, .. } => finding(&image, *offset, BLOCK, &error),
                    _ => finding(&image, block, bytes, &error),
                };
                if found.last() != Some(&damage) {
                    found.push(damage);
                }
            }
        }
        at += length;
        *bytes += length;
        progress(at);
    }
    found
}
