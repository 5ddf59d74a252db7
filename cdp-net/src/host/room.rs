//! How much room the replica has on its media and within its quota, and what takes it.
//!
//! The account is asked for each segment that is made and each piece that is merged, so it asks the media for few files: those of the
//! bases, the segments that are not sealed, the newest kept moment's and the sessions'. Of what is sealed the manifest knows the size,
//! and what older kept moments take never changes: it is remembered.

use super::retain::Retained;
use super::sessions::{directory_bytes, session_directory};
use super::{Host, lock};
use crate::report::{Hold, Problem, ProblemClass};
use cdp_core::journal::{Manifest, Policy, segment_name};
use cdp_core::media::Storage;
use cdp_core::policy::retention as policy;
use cdp_core::policy::room::{Limit, Room, Shorten, shorten};
use cdp_core::replica::retention::Held;
use cdp_core::replica::session::SEGMENT_BYTES;
use cdp_core::replica::{BaseFile, JOURNAL_DIRECTORY, kept};
use cdp_core::types::{DiskId, Lsn, Timeline};
use cdp_core::when::format_bytes;
use std::collections::BTreeMap;

/// Of the reserve no merge takes the last half, or so much, in bytes: manifests and tables of checksums are written there.
const FLOOR: u64 = 32 << 20;
/// The journal stops so much of the quota before its end: merging takes room before it gives any.
const QUOTA_PARTS: u64 = 16;
/// A piece of a merge takes at least so many bytes.
const PIECE_MIN: u64 = 256 << 10;
/// A piece takes room for the blocks, for what is kept of those that were there, and for their checksums.
const PIECE_ROOM: u64 = 3;

/// What the account is made of, as the manifest says it.
struct Facts {
    policy: Policy,
    /// Bytes of sealed segments and of runs of the index.
    sealed: u64,
    /// Numbers of segments that are not sealed.
    open: Vec<u64>,
    disks: Vec<(DiskId, u64)>,
    /// Numbers of kept moments, oldest first.
    kept: Vec<u64>,
    sessions: Vec<Timeline>,
    /// What the largest segment holds, in plain bytes.
    largest: u64,
}

impl Facts {
    fn of(manifest: &Manifest) -> Self {
        let summaries = manifest.segments.iter().filter_map(|segment| segment.summary());
        let runs = manifest.runs.iter().map(|run| run.totals.file_bytes);
        let open = manifest.segments.iter().filter(|segment| segment.summary().is_none());
        Self {
            policy: manifest.policy,
            sealed: summaries.clone().map(|summary| summary.file_bytes).chain(runs).sum(),
            open: open.map(|segment| segment.number).collect(),
            disks: manifest.disks.iter().map(|disk| (disk.id, manifest.reach(disk))).collect(),
            kept: manifest.kept.iter().map(|kept| kept.number).collect(),
            sessions: manifest.sessions.iter().map(|session| session.timeline).collect(),
            largest: summaries.clone().map(|summary| summary.plain_bytes).max().unwrap_or(0),
        }
    }
}

/// Where the bytes are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub(super) base: u64,
    pub(super) journal: u64,
    pub(super) kept: u64,
    /// Of that, the newest kept moment's.
    newest: u64,
    overlays: u64,
}

impl Account {
    pub(super) fn all(&self) -> u64 {
        self.base + self.journal + self.kept + self.overlays
    }
}

/// The least that a replica has taken since it reached its quota, in bytes. From there merging may take a little more, so that it can
/// give some at all: a quota that is lowered below what there is, or used up by something else, must not keep history for ever.
#[derive(Debug, Default)]
pub(super) struct Above(Option<u64>);

impl Above {
    /// What merging may take within the quota, and above it at most so much more than the least that there was.
    fn leaves(&mut self, quota: u64, all: u64, more: u64) -> u64 {
        let within = quota.saturating_sub(all);
        if within >= PIECE_MIN * PIECE_ROOM {
            self.0 = None;
            return within;
        }
        let least = self.0.map_or(all, |least| least.min(all));
        self.0 = Some(least);
        least.saturating_add(more).saturating_sub(all).max(within)
    }
}

/// What a replica has room for.
struct Found {
    account: Account,
    facts: Facts,
    limit: Limit,
    /// For the journal.
    free: u64,
    for_merging: u64,
}

/// Bytes of the stores of kept moments, each asked for once it does not change any more.
#[derive(Debug, Default)]
pub(super) struct Weights(BTreeMap<u64, u64>);

impl Weights {
    /// Of these, oldest first: only the newest is written to.
    fn of(&mut self, storage: &dyn Storage, numbers: &[u64]) -> Vec<u64> {
        self.0.retain(|number, _| numbers.binary_search(number).is_ok());
        let ask = |number: u64| directory_bytes(storage, &kept::directory(number));
        let Some((newest, closed)) = numbers.split_last() else { return Vec::new() };
        self.0.remove(newest);
        let closed = closed.iter().map(|number| *self.0.entry(*number).or_insert_with(|| ask(*number)));
        closed.chain([ask(*newest)]).collect()
    }
}

impl Retained {
    /// Bytes of the stores of these kept moments, in their order.
    pub(super) fn weigh(&self, storage: &dyn Storage, numbers: &[u64]) -> Vec<u64> {
        lock(&self.weights).of(storage, numbers)
    }
}

impl Host {
    fn facts(&self) -> Facts {
        Facts::of(self.replica().manifest())
    }

    /// What the replica takes now.
    pub(super) fn account(&self) -> Account {
        self.account_of(&self.facts())
    }

    fn account_of(&self, facts: &Facts) -> Account {
        let storage = self.storage();
        // What is not there takes nothing; what cannot be asked is told by those who read it.
        let takes = |file: BaseFile| storage.allocated(&file.path()).unwrap_or(0);
        let of_disk = |disk| {
            let tables = [BaseFile::EvenTable(disk), BaseFile::OddTable(disk)];
            [BaseFile::Image(disk), BaseFile::Sidecar(disk)].into_iter().chain(tables).map(takes).sum::<u64>()
        };
        let length =
            |number: &u64| storage.length(&format!("{JOURNAL_DIRECTORY}/{}", segment_name(*number))).unwrap_or(0);
        let kept = self.retained.weigh(storage.as_ref(), &facts.kept);
        let overlay = |timeline: &Timeline| directory_bytes(storage.as_ref(), &session_directory(*timeline));
        Account {
            base: facts.disks.iter().map(|(disk, _)| of_disk(*disk)).sum::<u64>() + takes(BaseFile::Rests),
            journal: facts.sealed + facts.open.iter().map(length).sum::<u64>(),
            kept: kept.iter().sum(),
            newest: kept.last().copied().unwrap_or(0),
            overlays: facts.sessions.iter().map(overlay).sum(),
        }
    }

    fn found(&self) -> Result<Found, Problem> {
        let facts = self.facts();
        let account = self.account_of(&facts);
        let unknown = |error| super::document::unreadable(&cdp_core::replica::ReplicaError::Media(error));
        let media = self.storage().free_bytes().map_err(unknown)?;
        let Policy { reserve_bytes, quota, .. } = facts.policy;
        let beside = media.saturating_sub(reserve_bytes);
        let within = match quota {
            0 => u64::MAX,
            quota => quota.saturating_sub(account.all()),
        };
        let before_end = within.saturating_sub(quota / QUOTA_PARTS);
        let limit = if before_end < beside { Limit::Quota } else { Limit::Media };
        let for_merging = media.saturating_sub(floor(reserve_bytes)).min(match quota {
            0 => u64::MAX,
            // Enough for one segment, which gives nothing before all of it is merged; bases and what is kept grow by no more than the disks.
            quota => {
                let whole = facts.disks.iter().map(|(_, size)| size + size / 64).sum();
                let segment = facts.largest.saturating_mul(PIECE_ROOM).min(whole);
                lock(&self.retained.above).leaves(quota, account.all(), segment.max(quota / QUOTA_PARTS))
            }
        });
        Ok(Found { account, facts, limit, free: beside.min(before_end), for_merging })
    }

    /// What of the quota is left for the journal and for first copies, in bytes; none: there is no quota.
    pub(crate) fn quota_left(&self) -> Option<u64> {
        let facts = self.facts();
        let quota = facts.policy.quota;
        let left = || quota.saturating_sub(self.account_of(&facts).all()).saturating_sub(quota / QUOTA_PARTS);
        (quota > 0).then(left)
    }

    /// The room that a protection has; none where nobody protects, or there is no telling.
    pub(super) fn room(&self) -> Option<Room> {
        let segment = self.live()?.segment_bytes();
        let found = self.found().ok()?;
        let held = self.held_now();
        let (account, disks) = (&found.account, &found.facts.disks);
        // With checksums: 64 bytes at most for a block of 4 KiB.
        let whole: u64 = disks.iter().map(|(_, size)| size + size / 64).sum();
        let above = self.replica().manifest().oldest().map_or(Lsn::ZERO, |oldest| oldest.lsn);
        // A moment that is kept from here on takes no more than the bases do; the newest one that is kept takes what it lacks of that.
        let coming = held.range(above..).count() as u64;
        let kept = whole.min(account.base).saturating_mul(coming);
        let newest = if found.facts.kept.is_empty() { 0 } else { account.base.saturating_sub(account.newest) };
        let growth_max = whole.saturating_sub(account.base).saturating_add(kept).saturating_add(newest);
        let tried = lock(&self.retained.trial);
        let in_vain = tried.as_ref().is_some_and(|(then, trial)| *then == held && trial.is_in_vain(segment));
        drop(tried);
        let Found { limit, free, for_merging, .. } = found;
        Some(Room { limit, free, segment, for_merging, growth_max, in_vain })
    }

    /// What pins, layers, sessions and readers hold now.
    pub(super) fn held_now(&self) -> Held {
        let readers = self.holds.plan().held();
        Self::held(&self.replica(), readers)
    }

    /// What is to be merged for room; what comes of it is kept for who asks.
    pub(super) fn due_for_room(&self) -> Option<policy::Due> {
        let room = self.room()?;
        let replica = self.replica();
        let newest = super::retain::restorable(&replica, Lsn(u64::MAX - 1));
        let (mut sealed, _) = super::retain::journal_bytes(&replica);
        sealed.retain(|segment| segment.last <= newest);
        let manifest = replica.manifest();
        let decided = shorten(&manifest.policy, &manifest.retention, &room, &sealed);
        if !room.is_low() {
            *lock(&self.retained.trial) = None;
        }
        match decided {
            // Whether there is such a merge is seen by who plans it.
            Shorten::Merge(due) => return Some(due),
            decided => *lock(&self.retained.shortage) = Some(decided).filter(|_| room.is_low()),
        }
        None
    }

    /// How much a merge may write next, in bytes.
    ///
    /// # Errors
    /// When there is no room for any.
    pub(super) fn room_for_piece(&self, piece: u64) -> Result<u64, Problem> {
        let found = self.found()?;
        let bytes = (found.for_merging / PIECE_ROOM).min(piece);
        if bytes >= PIECE_MIN {
            return Ok(bytes);
        }
        let (free, limit) = (found.for_merging, found.limit);
        let place = match limit {
            Limit::Media => "on the replica's disk",
            Limit::Quota => "within the quota",
        };
        let (needed, free) = (format_bytes(PIECE_MIN * PIECE_ROOM), format_bytes(free));
        let message = format!("merging history needs room itself: {needed} {place}, where {free} are free");
        Err(Problem::new(ProblemClass::Failed, "no-space", message).hint("make room"))
    }

    /// What the store of a kept moment leaves free, and how large its segments are, in bytes.
    pub(super) fn bounds_of_kept(&self, reserve: u64) -> (u64, u64) {
        (floor(reserve), self.live().map_or(SEGMENT_BYTES, |live| live.segment_bytes()))
    }

    /// Why retention does not go on, or history is not shortened though there is hardly any room, in words.
    pub(super) fn trouble(&self, room: Option<&Room>) -> Option<String> {
        let low = room.is_some_and(Room::is_low);
        let why = match *lock(&self.retained.shortage) {
            Some(Shorten::InVain) => "merging more history would give none: what it puts elsewhere takes as much",
            _ => "there is no history left to merge",
        };
        let decided = matches!(*lock(&self.retained.shortage), Some(Shorten::InVain | Shorten::Nothing));
        let not_shortened = || format!("there is hardly any room, and {why}");
        let problem = lock(&self.retained.problem).clone();
        let mut text = problem.or_else(|| (low && decided).then(not_shortened))?;
        if !low {
            return Some(text);
        }
        let account = self.account();
        let parts = [
            ("base", account.base),
            ("journal", account.journal),
            ("what is held since old moments", account.kept),
            ("sessions", account.overlays),
        ];
        let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<_> = parts.map(|(what, bytes)| format!("{what} {}", format_bytes(*bytes))).collect();
        text.push_str(&format!("; the replica takes {}: {}", format_bytes(account.all()), parts.join(", ")));
        let (mut holds, manifest) = {
            let replica = self.replica();
            (super::space::holds(&replica), replica.manifest().clone())
        };
        super::space::weigh(self, &manifest, &mut holds);
        holds.retain(|hold| hold.bytes > 0);
        if !holds.is_empty() {
            // The largest say most.
            holds.sort_by_key(|hold| std::cmp::Reverse(hold.bytes));
            let said: Vec<_> = holds.iter().take(HOLDS_SAID).map(hold_said).collect();
            text.push_str(&format!("; held since old moments: {}", said.join(", ")));
        }
        if room.is_some_and(|room| room.limit == Limit::Quota) {
            text.push_str("; a larger quota makes room too (`cdp policy DIR --quota`)");
        }
        Some(text)
    }
}

/// The most holds in a sentence: `status` lists all of them.
const HOLDS_SAID: usize = 3;

fn hold_said(hold: &Hold) -> String {
    let Hold { at, by, label, bytes } = hold;
    let label = label.as_ref().map(|label| format!(" {label:?}")).unwrap_or_default();
    let way = match by.as_str() {
        "pin" => format!(" (`cdp unpin DIR --at lsn:{}` lets go of it)", at.lsn),
        "session" => " (it ends with its mount, or with `cdp mount DIR --drop NAME`)".to_owned(),
        _ => String::new(),
    };
    format!("{} by the {by}{label} of LSN {}{way}", format_bytes(*bytes), at.lsn)
}

fn floor(reserve: u64) -> u64 {
    (reserve / 2).min(FLOOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::media::Memory;

    #[test]
    fn above_the_quota_merging_takes_a_little_more_than_the_least_that_there_was() {
        const MIB: u64 = 1 << 20;
        let mut above = Above::default();
        let mut leaves = |all: u64| above.leaves(64 * MIB, all, 4 * MIB);
        assert_eq!((leaves(0), leaves(60 * MIB), leaves(63 * MIB)), (64 * MIB, 4 * MIB, MIB), "within");
        assert_eq!((leaves(80 * MIB), leaves(82 * MIB), leaves(84 * MIB)), (4 * MIB, 2 * MIB, 0), "and no more");
        assert_eq!((leaves(79 * MIB), leaves(82 * MIB), leaves(200 * MIB)), (4 * MIB, MIB, 0));
        assert_eq!((leaves(64 * MIB), leaves(63 * MIB), leaves(68 * MIB)), (4 * MIB, MIB, 4 * MIB), "it begins anew");
    }

    #[test]
    fn only_the_newest_kept_moment_is_asked_for_again() {
        let storage = Memory::new();
        let put = |number: u64, bytes: usize| {
            let name = format!("{}/MANIFEST", kept::directory(number));
            let file = storage.open(&name, true).or_else(|_| storage.create(&name)).unwrap();
            file.write_all_at(0, &vec![1; bytes]).unwrap();
        };
        (1..=3).for_each(|number| put(number, 100));
        let mut weights = Weights::default();
        assert_eq!(weights.of(&storage, &[1, 2, 3]), [100, 100, 100]);
        (1..=3).for_each(|number| put(number, 200));
        assert_eq!(weights.of(&storage, &[1, 2, 3]), [100, 100, 200], "what is closed does not change");
        put(4, 300);
        put(3, 250);
        assert_eq!(weights.of(&storage, &[2, 3, 4]), [100, 250, 300], "asked for once more when it is closed");
        assert_eq!(weights.0.len(), 2, "what is gone is forgotten");
        assert!(weights.of(&storage, &[]).is_empty());
    }
}
