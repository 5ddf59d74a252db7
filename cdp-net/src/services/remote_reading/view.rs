//! A moment of a replica at another site, open to be read, or in a session to be written.

use super::flight::FLIGHT_MAX;
use super::{Asked, RemoteReplica, strange};
use crate::far::{
    CallKind, LEASE, NO_VIEW, OpenView, OpenedView, ReadName, VIEW_BYTES_MAX, ViewName, ViewRange, WriteHow, WriteView,
    decode_runs,
};
use crate::moment::MomentDisks;
use crate::report::{Problem, ProblemClass};
use bytes::Bytes;
use cdp_core::replica::{Run, ViewDisk};
use cdp_core::types::{DiskId, Extent};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How often the other end is told that it is still read.
const TOUCH: Duration = Duration::from_secs(LEASE.as_secs() / 4);
/// How often in a row it is opened anew before what was asked fails.
const OPENINGS_MAX: usize = 4;

/// A moment that is held there while this lives.
pub struct RemoteView {
    replica: Arc<RemoteReplica>,
    /// What it is opened by again.
    order: OpenView,
    /// What it was at its opening.
    pub opened: OpenedView,
    disks: Vec<ViewDisk>,
    name: Mutex<ReadName>,
    writes: Mutex<Writes>,
    ended: Arc<Ended>,
}

/// Told something when the view ends.
#[derive(Default)]
struct Ended {
    ended: Mutex<bool>,
    told: Condvar,
}

/// The numbers of writes that were not answered.
#[derive(Default)]
struct Writes {
    last: u64,
    open: BTreeSet<u64>,
}

impl Writes {
    fn settled(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.last + 1)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for RemoteView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteView").field("opened", &self.opened).finish_non_exhaustive()
    }
}

fn ask_to_open(replica: &RemoteReplica, order: &OpenView) -> Result<OpenedView, Problem> {
    let ((), document) = replica.ask(CallKind::OpenView, order, Bytes::new())?;
    serde_json::from_slice(&document).map_err(|error| strange(&error.to_string()))
}

impl RemoteView {
    pub(super) fn open(replica: &Arc<RemoteReplica>, order: OpenView) -> Result<Arc<Self>, Problem> {
        let order = OpenView { view: ReadName::draw(), ..order };
        let opened = ask_to_open(replica, &order)?;
        // A while later `latest` is another moment.
        let exact = format!("lsn:{}-{}", opened.at.timeline, opened.at.lsn);
        let at = exact.parse().map_err(|_| strange("the moment has no name"))?;
        let view = Arc::new(Self {
            replica: Arc::clone(replica),
            name: Mutex::new(order.view),
            order: OpenView { at: Some(at), nearest: None, ..order },
            disks: opened.disks.iter().cloned().map(Into::into).collect(),
            opened,
            writes: Mutex::default(),
            ended: Arc::default(),
        });
        let (held, ended) = (Arc::downgrade(&view), Arc::clone(&view.ended));
        let touching = std::thread::Builder::new().name("cdp-touch".into()).spawn(move || touch(&held, &ended));
        touching.map_err(|error| Problem::new(ProblemClass::Failed, "thread", error.to_string()))?;
        Ok(view)
    }

    /// What it is called there now.
    pub(super) fn name(&self) -> ReadName {
        *lock(&self.name)
    }

    /// Does it with what the view is called; where the other end does not know it any more it is opened again.
    fn with<T>(&self, mut act: impl FnMut(ReadName) -> Result<T, Problem>) -> Result<T, Problem> {
        for _ in 0..OPENINGS_MAX {
            let name = self.name();
            match act(name) {
                Err(problem) if problem.code == NO_VIEW => self.open_again(name)?,
                done => return done,
            }
        }
        act(self.name())
    }

    fn open_again(&self, before: ReadName) -> Result<(), Problem> {
        if self.order.writable {
            let message = "the session ended while the replica host could not be reached: what was written and not flushed is lost";
            let problem = Problem::new(ProblemClass::Failed, "session-lost", message);
            return Err(problem.hint("mount it again: a session with a name has what was flushed"));
        }
        let mut name = lock(&self.name);
        // Another thread has.
        if *name != before {
            return Ok(());
        }
        let order = OpenView { view: ReadName::draw(), ..self.order.clone() };
        let opened = ask_to_open(&self.replica, &order)?;
        if opened.at.lsn != self.opened.at.lsn || opened.disks != self.opened.disks {
            return Err(strange("the moment is another one than before"));
        }
        *name = order.view;
        Ok(())
    }

    /// Asks for pieces of a range, several at once; `take` gets the answers in their order.
    fn pieces(
        &self,
        range: Extent,
        ask: impl Fn(Extent) -> Result<Asked, Problem>,
        mut take: impl FnMut(Extent, Bytes) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut under_way = VecDeque::new();
        let mut at = range.offset;
        loop {
            while at < range.end() {
                let flight = &self.replica.flight;
                // Who has one under way waits for that, and not for others who wait for him.
                let seat = if under_way.is_empty() { Some(flight.take()) } else { flight.try_take() };
                let Some(seat) = seat else { break };
                let piece = Extent::new(at, (range.end() - at).min(VIEW_BYTES_MAX));
                under_way.push_back((piece, ask(piece)?, seat));
                at = piece.end();
            }
            let Some((piece, asked, seat)) = under_way.pop_front() else { return Ok(()) };
            let ((), bytes) = self.replica.wait(asked)?;
            drop(seat);
            take(piece, bytes)?;
        }
    }

    /// Changes a session: data as long as the range, or none.
    ///
    /// # Errors
    /// When there is no room, the session was lost, or nobody can be reached.
    pub(super) fn write(
        &self,
        (disk, range): (DiskId, Extent),
        how: WriteHow,
        data: &Bytes,
        fua: bool,
    ) -> Result<(), Problem> {
        if how != WriteHow::Data {
            return self.with(|view| {
                let _seat = self.replica.flight.take();
                let numbered = self.numbered(|number, settled| {
                    let write = WriteView { view, disk, range, how, fua, number, settled };
                    self.replica.ask(CallKind::WriteView, &write, Bytes::new())
                });
                numbered.map(|((), _)| ())
            });
        }
        let (mut left, mut at) = (data.clone(), range.offset);
        while !left.is_empty() {
            let tail = left.split_to(left.len().min(VIEW_BYTES_MAX as usize));
            let range = Extent::new(at, tail.len() as u64);
            at = range.end();
            self.with(|view| {
                let _seat = self.replica.flight.take();
                let numbered = self.numbered(|number, settled| {
                    let write = WriteView { view, disk, range, how, fua, number, settled };
                    self.replica.ask(CallKind::WriteView, &write, tail.clone())
                });
                numbered.map(|((), _)| ())
            })?;
        }
        Ok(())
    }

    /// Gives a write its number, which is open until it is answered.
    fn numbered<T>(&self, act: impl FnOnce(u64, u64) -> Result<T, Problem>) -> Result<T, Problem> {
        let (number, settled) = {
            let mut writes = lock(&self.writes);
            writes.last += 1;
            let number = writes.last;
            writes.open.insert(number);
            (number, writes.settled())
        };
        let done = act(number, settled);
        lock(&self.writes).open.remove(&number);
        done
    }

    /// Ends it there, with everything that is to be kept made durable.
    ///
    /// # Errors
    /// When that cannot be said.
    pub fn close(&self) -> Result<(), Problem> {
        *lock(&self.ended.ended) = true;
        self.ended.told.notify_all();
        let name = ViewName { view: self.name() };
        self.replica.ask(CallKind::CloseView, &name, Bytes::new()).map(|((), _)| ())
    }
}

/// Where it was not closed, its end is said and not waited for.
impl Drop for RemoteView {
    fn drop(&mut self) {
        if !std::mem::replace(&mut *lock(&self.ended.ended), true) {
            self.ended.told.notify_all();
            let name = ViewName { view: self.name() };
            drop(self.replica.begin(CallKind::CloseView, &name, Bytes::new()));
        }
    }
}

/// Says now and then that it is still read, until it ends.
fn touch(view: &Weak<RemoteView>, ended: &Ended) {
    loop {
        let waited = ended.told.wait_timeout_while(lock(&ended.ended), TOUCH, |ended| !*ended);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
        let Some(view) = view.upgrade() else { return };
        // Where it cannot be said now, whoever reads is told.
        let _ = view.with(|name| {
            let name = ViewName { view: name };
            view.replica.ask(CallKind::TouchView, &name, Bytes::new()).map(|((), _)| ())
        });
    }
}

impl MomentDisks for RemoteView {
    fn disks(&self) -> &[ViewDisk] {
        &self.disks
    }

    fn runs(&self, disk: DiskId, range: Extent) -> Result<Vec<Run>, Problem> {
        self.with(|view| {
            let ((), runs) = self.replica.ask(CallKind::Extents, &ViewRange { view, disk, range }, Bytes::new())?;
            decode_runs(&runs, range).ok_or_else(|| strange("extents that do not follow each other"))
        })
    }

    fn read(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), Problem> {
        let whole = Extent::new(offset, out.len() as u64);
        self.with(|view| {
            let ask = |range| self.replica.begin(CallKind::ReadView, &ViewRange { view, disk, range }, Bytes::new());
            self.pieces(whole, ask, |piece, bytes| {
                let at = (piece.offset - offset) as usize;
                let part = &mut out[at..at + piece.length as usize];
                if part.len() != bytes.len() {
                    return Err(strange("a read has another length than was asked for"));
                }
                part.copy_from_slice(&bytes);
                Ok(())
            })
        })
    }

    /// As many as the link takes: the way there and back is waited for by all of them together.
    fn reads_at_once(&self) -> usize {
        FLIGHT_MAX / 2
    }
}
