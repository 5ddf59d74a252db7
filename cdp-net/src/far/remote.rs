//! A replica at the other end of a link, as its filter has it; and a filter at the other end, as who keeps its replica has it.

use super::carry::{Caller, UNREACHABLE, answer, ask, question, tell};
use super::{
    Begin, CallKind, Close, Closed, Digested, Digests, DiskOrder, DisksEdit, Facts, Far, FilterPolicy, Find, Found,
    Frames, Group, Lends, MarkOrder, Marked, Near, Range, Reach, Reached, SeedBegin, SeedBegun, SeedEnd, SeedHandle,
    SeedOf, Seeded, Seeding, Standing, Sums, Trust, Zeros,
};
use crate::report::{DiskChanged, History, Problem};
use bytes::Bytes;
use cdp_core::capture::Room;
use cdp_core::link::message::{Answer, Call};
use cdp_core::replica::digest::hash;
use cdp_core::types::{BLOCK, DiskId, Extent, Lsn};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The filter's end of a link: calls, and what is not one.
pub trait Wire: Caller {
    /// Where frames go.
    fn frames(&self) -> Frames;

    /// Where it goes what is lent.
    fn lends(&self) -> Lends;

    /// From now on acks are told to this one, and calls from the other end are answered by [`answer_near`] with it; none: to nobody, and
    /// whoever waits for an answer is told at once that there is none, until somebody looks for the replica again.
    fn listen(&self, near: Option<Arc<dyn Near>>);

    /// As of [`Far::patience`].
    fn patience(&self, patience: Duration);

    /// The number that the next seed will have in this session.
    fn next_seed(&self) -> u64;

    /// The way of a first copy's pieces, once [`SeedBegin`] was answered. It counts what the other end took in `handle.done`, and gives up
    /// when `handle.stop` is set or the session that it began in has ended.
    fn seed(&self, seed: &SeedBegin, begun: &SeedBegun, handle: SeedHandle) -> Box<dyn SeedWay>;

    /// How the replica stood when it was last told.
    fn standing(&self) -> Standing;

    /// Why nothing can be sent any more, if so.
    fn failure(&self) -> Option<String>;

    /// Why nothing of this timeline can be sent any more, if so.
    fn broken(&self) -> Option<String>;
}

/// The way of the pieces of one first copy. Each call may wait for room; `false`: nothing more is taken.
pub trait SeedWay: Send {
    /// Bytes of the disk, in ascending order.
    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool;

    /// Zeros of the disk.
    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool;

    /// Whether everything that was given has been taken, waiting for that; else the copy has to begin again.
    fn flush(&mut self) -> bool;
}

/// A replica at the other end of a link.
pub struct Remote {
    wire: Arc<dyn Wire>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

impl Remote {
    /// The one that this link leads to.
    #[must_use]
    pub fn new(wire: Arc<dyn Wire>) -> Self {
        Self { wire }
    }

    fn ask<A: serde::de::DeserializeOwned>(
        &self,
        kind: CallKind,
        question: &impl serde::Serialize,
    ) -> Result<A, Problem> {
        ask(self.wire.as_ref(), kind, question).map(|(told, _)| told)
    }

    /// The hashes of a range's blocks at `at` or later.
    fn digests(&self, disk: DiskId, range: Extent, block: u64, at: Lsn) -> Option<Vec<[u8; 32]>> {
        let asked = Digests { disk, range, block, at };
        let (told, tail) = ask::<Digested>(self.wire.as_ref(), CallKind::Digests, &asked).ok()?;
        let (hashes, rest) = tail.as_chunks::<32>();
        let right = told.at? >= at && rest.is_empty() && hashes.len() as u64 == range.length.div_ceil(block);
        right.then(|| hashes.to_vec())
    }
}

impl Far for Remote {
    fn find(&self, find: &Find) -> Result<Option<Found>, Problem> {
        self.ask(CallKind::Find, find)
    }

    fn begin(&self, begin: &Begin, near: Arc<dyn Near>) -> Result<(), Problem> {
        self.wire.listen(Some(near));
        self.ask(CallKind::Begin, begin)
    }

    fn frames(&self) -> Frames {
        self.wire.frames()
    }

    fn trust(&self, trust: Trust) -> Result<(), Problem> {
        self.ask(CallKind::Trust, &trust)
    }

    fn sync(&self) {
        // Who waits for it finds out that nothing came of it.
        let _ = self.ask::<()>(CallKind::Sync, &());
    }

    fn reach(&self, reach: Reach) -> Reached {
        self.ask(CallKind::Reach, &reach).unwrap_or(Reached { reached: false })
    }

    fn group(&self) -> Result<Group, Problem> {
        self.ask(CallKind::Group, &())
    }

    fn edit_disks(&self, edit: DisksEdit) -> Result<(), Problem> {
        self.ask(CallKind::Disks, &edit)
    }

    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        self.ask::<Marked>(CallKind::Mark, order).map(|marked| marked.lsn)
    }

    fn is_zero(&self, disk: DiskId, range: Extent) -> bool {
        self.ask::<Zeros>(CallKind::Zeros, &Range { disk, range }).is_ok_and(|told| told.zeros)
    }

    fn differing(&self, disk: DiskId, range: Extent, at: Lsn, data: &[u8]) -> Option<Vec<Extent>> {
        // One hash where nothing differs, which is the rule; else one for each block.
        if self.digests(disk, range, range.length, at)?.first() == Some(&hash(data)) {
            return Some(Vec::new());
        }
        let known = self.digests(disk, range, BLOCK, at)?;
        let blocks = (range.offset..).step_by(BLOCK as usize).zip(data.chunks(BLOCK as usize)).zip(known);
        let mut runs: Vec<Extent> = Vec::new();
        for ((offset, block), known) in blocks {
            match runs.last_mut().filter(|run| run.end() == offset) {
                _ if hash(block) == known => {}
                Some(run) => run.length += block.len() as u64,
                None => runs.push(Extent::new(offset, block.len() as u64)),
            }
        }
        Some(runs)
    }

    fn seed(&self, seed: &SeedBegin, handle: SeedHandle) -> Result<Box<dyn Seeding>, Problem> {
        let seed = SeedBegin { first: self.wire.next_seed(), ..*seed };
        let begun: SeedBegun = self.ask(CallKind::SeedBegin, &seed)?;
        let way = self.wire.seed(&seed, &begun, handle);
        Ok(Box::new(Copying { wire: Arc::clone(&self.wire), disk: seed.disk, position: begun.position, way }))
    }

    fn seeded(&self, seeded: &Seeded) -> Result<(), Problem> {
        self.ask(CallKind::Seeded, seeded)
    }

    fn patience(&self, patience: Duration) {
        self.wire.patience(patience);
    }

    fn quiesce(&self) {
        // It ends anyway when it is closed.
        let _ = self.ask::<()>(CallKind::Quiesce, &());
    }

    fn close(&self, close: &Close) -> Closed {
        // Who cannot be reached now may be in a moment: who asks looks whether there is time.
        match self.ask(CallKind::Close, close) {
            Ok(closed) => closed,
            Err(problem) if problem.code == UNREACHABLE => Closed::NotYet,
            Err(_) => Closed::Failed,
        }
    }

    fn end(&self) {
        self.wire.listen(None);
    }

    fn standing(&self) -> Standing {
        self.wire.standing()
    }

    fn sums(&self) -> Sums {
        self.ask(CallKind::Sums, &()).unwrap_or_default()
    }

    fn failure(&self) -> Option<String> {
        self.wire.failure()
    }

    fn broken(&self) -> Option<String> {
        self.wire.broken()
    }

    fn lends(&self) -> Option<Lends> {
        Some(self.wire.lends())
    }

    fn trouble(&self) -> Option<String> {
        None
    }

    fn history(&self) -> Option<History> {
        None
    }
}

/// A first copy on its way.
struct Copying {
    wire: Arc<dyn Wire>,
    disk: DiskId,
    position: u64,
    way: Box<dyn SeedWay>,
}

impl Seeding for Copying {
    fn position(&self) -> u64 {
        self.position
    }

    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool {
        self.position += data.iter().map(|data| data.len() as u64).sum::<u64>();
        self.way.data(data, lsn)
    }

    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool {
        self.position += length;
        self.way.zeros(length, lsn)
    }

    fn end(mut self: Box<Self>) -> Result<SeedEnd, Problem> {
        let all = self.way.flush();
        let ended = ask::<SeedEnd>(self.wire.as_ref(), CallKind::SeedEnd, &SeedOf { disk: self.disk });
        match ended.map(|(end, _)| end) {
            // What was given did not come: it is not whole, whatever the other end has.
            Ok(SeedEnd::Whole) if !all => Ok(SeedEnd::Again),
            // A link that broke is there again, and the copy with it.
            Err(problem) if problem.code == UNREACHABLE => Ok(SeedEnd::Again),
            ended => ended,
        }
    }
}

/// Answers a call from who keeps the replica.
#[must_use]
pub fn answer_near(near: &dyn Near, call: &Call) -> Answer {
    let told = CallKind::of(call.kind).and_then(|kind| match kind {
        CallKind::NearMark => Some(question(call).and_then(|order: MarkOrder| {
            let lsn = near.mark(&order)?;
            tell(&Marked { lsn })
        })),
        CallKind::NearDisk => Some(question(call).and_then(|order: DiskOrder| tell(&near.change_disk(&order)?))),
        CallKind::NearFacts => Some(tell(&near.facts())),
        CallKind::NearPolicy => Some(question(call).and_then(|policy: FilterPolicy| {
            near.policy(policy);
            tell(&())
        })),
        _ => None,
    });
    answer(call, told)
}

/// The keeper's end of a link: calls, and acks.
pub trait Acks: Caller {
    /// Everything up to this LSN is durable. Does not wait.
    fn durable(&self, lsn: Lsn);

    /// Whether more is taken. Does not wait.
    fn room(&self, room: Room);
}

/// A filter at the other end of a link.
pub struct RemoteNear {
    wire: Arc<dyn Acks>,
    /// What it said last: shown while it does not answer.
    known: Mutex<Facts>,
}

impl std::fmt::Debug for RemoteNear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteNear").finish_non_exhaustive()
    }
}

impl RemoteNear {
    /// The one that this link comes from.
    #[must_use]
    pub fn new(wire: Arc<dyn Acks>) -> Self {
        Self { wire, known: Mutex::default() }
    }
}

impl Near for RemoteNear {
    fn durable(&self, lsn: Lsn) {
        self.wire.durable(lsn);
    }

    fn stored(&self, _: Lsn) {
        // Said by those on the way, which are between the filter and this side.
    }

    fn capacity(&self, _: u64) {
        // The same.
    }

    fn room(&self, room: Room) {
        self.wire.room(room);
    }

    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        ask::<Marked>(self.wire.as_ref(), CallKind::NearMark, order).map(|(marked, _)| marked.lsn)
    }

    fn change_disk(&self, order: &DiskOrder) -> Result<DiskChanged, Problem> {
        ask(self.wire.as_ref(), CallKind::NearDisk, order).map(|(changed, _)| changed)
    }

    fn facts(&self) -> Facts {
        let told = ask::<Facts>(self.wire.as_ref(), CallKind::NearFacts, &());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok((facts, _)) = told {
            *known = facts;
        }
        known.clone()
    }

    fn policy(&self, policy: FilterPolicy) {
        // One that cannot be reached asks for it when it begins.
        let _ = ask::<()>(self.wire.as_ref(), CallKind::NearPolicy, &policy);
    }
}
