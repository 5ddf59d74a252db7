//! The filter under its lock, and the way of its outputs to the threads that carry them out.
//!
//! Whoever calls the filter drains its outputs before the lock is given back, so frames leave in the order of their LSNs. Nothing waits for I/O under the lock: the queues are unbounded here and bounded by the filter, which counts
//! what it has given out and not seen durable.
//!
//! Nothing of the replica's side is called under it, nor on a guest's thread. But a thread may hang in it all the same. Then guests' ops go past the filter, straight to the disk ([`super::turns`]): nothing
//! of them is recorded, and the filter is told before anything else once it can be.

use super::budget::{Bounds, Share};
use super::member::{Joined, Membership};
use super::turns::{self, Turn, Turns};
use super::watch::{Inbox, Sender};
use crate::clock;
use crate::far::{Frames, Lends};
use crate::threads::step_back;
use cdp_core::capture::{
    Detached, Event, Failed, Filter, FlushTicket, Health, LogWrite, Op, Output, Reread, State, Status, Stuck,
    SubmitError, Submitted, Ticket,
};
use cdp_core::frame::RawFrame;
use cdp_core::set::{Completion, MemberCounts, Order};
use cdp_core::types::{DiskId, Lsn, MonoTime, Now};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the filter's timers are looked at, in nanoseconds: half of a frame's age.
const TIMER_STEP_NS: u64 = 10_000_000;

/// What goes to the replica's side. Its code is called by a thread of its own: should it hang, no guest's does.
pub(super) enum Outgoing {
    Frame(RawFrame),
    Lend(Lsn),
}

/// Hands it over until the queue is closed.
pub(super) fn run_outgoing(queue: &Inbox<Outgoing>, frames: &Frames, lends: Option<&Lends>) {
    step_back();
    while let Some((outgoing, _taken)) = queue.take() {
        match outgoing {
            Outgoing::Frame(frame) => frames(frame),
            // Where nobody may be lent something nothing is dropped for it either.
            Outgoing::Lend(through) => lends.iter().for_each(|lends| lends(through)),
        }
    }
}

/// Work for the threads beside the guest's.
pub(super) struct Queues {
    /// To the replica's side, in this order.
    pub(super) far: Sender<Outgoing>,
    /// Writes of the activity log.
    pub(super) log: Sender<LogWrite>,
    /// Removals of its file.
    pub(super) log_removals: Sender<()>,
    /// Flushes of a source that the filter itself wants.
    pub(super) flushes: Sender<(DiskId, FlushTicket)>,
    /// Ranges of a source to read again.
    pub(super) rereads: Sender<Reread>,
    /// What happened.
    pub(super) events: Sender<Event>,
}

/// What is under the filter's lock. The queues are: frames stay in the order in which they were closed. So is the member of a consistency
/// set: an op is withheld, or not, by what the filter has given till then.
struct Held {
    filter: Filter,
    queues: Option<Queues>,
    member: Option<Membership>,
    bounds: Bounds,
    /// The time of the newest turn: where that one hung, everything that ran past is younger.
    last: Now,
}

impl Held {
    /// Threads that wait for work end, and ops are refused.
    fn end(&mut self) {
        // Without queues the log's last word is not written: a filter that is dropped has not stopped cleanly.
        self.queues = None;
        let _ = self.filter.close(Vec::new());
        // Nobody is withheld by a set that this group has left.
        self.member = None;
    }
}

/// Ops that were held and may run now, or whose completions were withheld and may be told.
#[derive(Default)]
struct Ready {
    tickets: BTreeSet<Ticket>,
    /// No more will come.
    ended: bool,
}

/// What became of an op, or of a flush, that a guest wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// It has its place in the order.
    Ordered(Ticket),
    /// It was held, and goes before the filter let it.
    Early(Ticket),
    /// The filter does not know of it.
    Past,
}

/// Whether an op may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admitted {
    /// At once.
    Now(Place),
    /// When [`Engine::wait_ready`] says so, which has to be called.
    Later(Ticket),
}

/// A flush that began, or one that the filter does not know of.
#[must_use]
pub(super) struct FlushPlace(Option<FlushTicket>);

/// Why replication is not put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttachError {
    /// It is in the guests' path.
    #[error("replication is not detached")]
    NotDetached,
    /// What was stuck still is, or ops that ran past the filter are not done yet.
    #[error("what replication is stuck in has not come back yet")]
    Stuck,
    /// A thread has ended.
    #[error("a thread that replication needs has ended: start the protection anew")]
    Ended,
}

/// One group's filter, shared by all threads.
pub(super) struct Engine {
    held: Turns<Held>,
    /// The filter as it was when it was last looked at, for the time in which nobody can.
    last: Mutex<Status>,
    ready: Mutex<Ready>,
    ready_signal: Condvar,
    /// The end has come: who hangs in the filter ends it when he comes back.
    ending: AtomicBool,
    /// The consistency set that the group is to be in, if that is another one than it is in.
    joining: Mutex<Option<Option<Joined>>>,
    joins: AtomicBool,
    timer_stopped: Mutex<bool>,
    timer_signal: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held is contained by the front end; the filter's own state is whole between calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub(super) fn new(filter: Filter, queues: Queues, queue_bytes: u64) -> Self {
        // Somebody may hang before anybody has looked.
        let now = clock::now();
        let last = Mutex::new(filter.status(now));
        let bounds = Bounds::new(queue_bytes);
        Self {
            held: Turns::new(Held { filter, queues: Some(queues), member: None, bounds, last: now }),
            last,
            ready: Mutex::default(),
            ready_signal: Condvar::new(),
            ending: AtomicBool::new(false),
            joining: Mutex::default(),
            joins: AtomicBool::new(false),
            timer_stopped: Mutex::new(false),
            timer_signal: Condvar::new(),
        }
    }

    /// Calls the filter and hands on whatever it wants done.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Filter, Now) -> T) -> T {
        self.with_held(|held, now| call(&mut held.filter, now))
    }

    fn with_held<T>(&self, call: impl FnOnce(&mut Held, Now) -> T) -> T {
        let mut turn = self.held.turn();
        self.settle(&mut turn);
        self.run(&mut turn, call)
    }

    /// The same for who must not be kept by one that hangs when the end has come: none then.
    pub(super) fn with_before_end<T>(&self, call: impl FnOnce(&mut Filter, Now) -> T) -> Option<T> {
        self.with_held_before_end(|held, now| call(&mut held.filter, now))
    }

    fn with_held_before_end<T>(&self, call: impl FnOnce(&mut Held, Now) -> T) -> Option<T> {
        let mut turn = self.held.turn_before_end()?;
        self.settle(&mut turn);
        Some(self.run(&mut turn, call))
    }

    /// The same for a guest's thread: where it cannot get at the filter it goes past, and that is noted.
    fn with_guest<T, P>(
        &self,
        call: impl FnOnce(&mut Held, Now) -> T,
        past: impl FnOnce(&mut turns::Past) -> P,
    ) -> Result<T, P> {
        self.held.guest(past).map(|mut turn| self.run(&mut turn, call))
    }

    /// The same for who only looks: none while somebody hangs in the filter.
    pub(super) fn look<T>(&self, call: impl FnOnce(&mut Filter, Now) -> T) -> Option<T> {
        self.look_at_held(|held, now| call(&mut held.filter, now))
    }

    fn look_at_held<T>(&self, call: impl FnOnce(&mut Held, Now) -> T) -> Option<T> {
        let mut turn = self.held.look_in()?;
        self.settle(&mut turn);
        Some(self.run(&mut turn, call))
    }

    /// The same for who waits no longer than that.
    pub(super) fn look_until<T>(&self, until: Instant, call: impl FnOnce(&mut Filter, Now) -> T) -> Option<T> {
        let mut turn = self.held.look_in_until(until)?;
        self.settle(&mut turn);
        Some(self.run(&mut turn, |held, now| call(&mut held.filter, now)))
    }

    fn run<T>(&self, held: &mut Held, call: impl FnOnce(&mut Held, Now) -> T) -> T {
        // One time for all that this turn does: what runs past the filter, should it hang, comes after it.
        let now = clock::now();
        held.last = now;
        if self.joins.load(Ordering::Relaxed) {
            self.join(held, now);
        }
        let answer = call(held, now);
        let Held { filter, queues, member, .. } = held;
        if let Some(member) = member {
            self.tell(&member.carry_out(filter, now));
        }
        while let Some(output) = filter.poll(now) {
            self.dispatch(output, queues.as_ref());
        }
        if self.ending.load(Ordering::Relaxed) {
            held.end();
        }
        answer
    }

    /// Tells the filter what ran past it, before anything else.
    fn settle(&self, turn: &mut Turn<'_, Held>) {
        if !turn.is_past() {
            return;
        }
        let waited_ns = u64::from(turns::STUCK_LOOKS) * turns::LOOK.as_nanos() as u64;
        // Nobody had a turn since the one that hung.
        let last = turn.last;
        self.run(turn, |held, _| held.filter.passed_by(last, waited_ns));
        while let Some(past) = turn.settle() {
            self.run(turn, |held, now| {
                for (ticket, result) in &past.late {
                    if held.filter.complete(now, *ticket, *result).is_err() {
                        // A filter that is closed lets go of nobody.
                        let _ = held.filter.withdraw(now, *ticket);
                    }
                }
                for disk in &past.flushes_failed {
                    // Everything since the last good one may be lost.
                    if let Ok(flush) = held.filter.flush_begin(*disk) {
                        held.filter.flushed(now, flush, Err(Failed { errno: libc::EIO }));
                    }
                }
            });
            // Nobody waits for them.
            let mut ready = lock(&self.ready);
            past.late.iter().for_each(|(ticket, _)| _ = ready.tickets.remove(ticket));
        }
    }

    /// Lets those go whose completions were withheld.
    fn tell(&self, released: &[Ticket]) {
        if !released.is_empty() {
            lock(&self.ready).tickets.extend(released);
            self.ready_signal.notify_all();
        }
    }

    /// Makes this group a member of a consistency set, or another one than it was; none: of none from here on.
    /// Where somebody hangs in the filter it is when he comes back.
    pub(super) fn join_set(&self, joined: Option<Joined>) {
        *lock(&self.joining) = Some(joined);
        self.joins.store(true, Ordering::Relaxed);
        let _ = self.look(|_, _| {});
    }

    #[cold]
    fn join(&self, held: &mut Held, now: Now) {
        self.joins.store(false, Ordering::Relaxed);
        let Some(joined) = lock(&self.joining).take() else { return };
        if let Some(mut before) = held.member.take() {
            self.tell(&before.stop(now));
        }
        held.member = joined.map(Membership::new);
    }

    /// So many bytes can be kept now of what is not durable, in memory and on disk.
    pub(super) fn set_capacity(&self, bytes: u64) {
        // What ends keeps nothing.
        let _ = self.with_held_before_end(|held, _| held.bounds.set_capacity(&mut held.filter, bytes));
    }

    /// From now on the group shares its memory with others.
    pub(super) fn set_share(&self, share: Share) {
        self.with_held(|held, _| held.bounds.set_share(&mut held.filter, share));
    }

    /// Takes what the taker of cuts says. Without a set it is passed over, and where somebody hangs in the filter: it is said again.
    pub(super) fn set_order(&self, order: Order) {
        let _ = self.look_at_held(|held, now| {
            held.member.iter_mut().for_each(|member| member.machine.handle(now.mono, order));
        });
    }

    /// What the group did for its set, if it is in one, and that can be asked.
    pub(super) fn set_counts(&self) -> Option<MemberCounts> {
        self.look_at_held(|held, _| held.member.as_ref().map(|member| member.machine.counts())).flatten()
    }

    fn dispatch(&self, output: Output, queues: Option<&Queues>) {
        if let Output::Ready(ticket) = output {
            lock(&self.ready).tickets.insert(ticket);
            self.ready_signal.notify_all();
            return;
        }
        // Without queues, or with a thread that has ended, the protector is being dropped: nobody needs the work any more.
        let Some(queues) = queues else { return };
        let _ = match output {
            Output::Ready(_) => true,
            Output::Lend(through) => queues.far.send(Outgoing::Lend(through)).is_ok(),
            Output::Frame(frame) => queues.far.send(Outgoing::Frame(frame)).is_ok(),
            Output::Log(write) => queues.log.send(write).is_ok(),
            Output::RemoveLog => queues.log_removals.send(()).is_ok(),
            Output::Flush(disk, ticket) => queues.flushes.send((disk, ticket)).is_ok(),
            Output::Reread(reread) => queues.rereads.send(reread).is_ok(),
            Output::Event(event) => queues.events.send(event).is_ok(),
        };
    }

    /// The end is near: ops go past no more, and nobody but threads of ours waits for one that hangs.
    pub(super) fn end_is_near(&self) {
        self.held.end_past();
    }

    /// Ends everything: threads that wait for work end, ops are refused from here on, those that wait are let go of. What is
    /// not durable stays so; the activity log names it. Whether that is done: not while somebody hangs in the filter, who does it
    /// when he comes back.
    pub(super) fn end(&self) -> bool {
        self.end_is_near();
        self.ending.store(true, Ordering::Relaxed);
        let ended = self.held.turn_before_end().map(|mut held| held.end()).is_some();
        lock(&self.ready).ended = true;
        self.ready_signal.notify_all();
        self.stop_timer();
        ended
    }

    /// Gives an op its place in the order.
    pub(super) fn submit(&self, disk: DiskId, op: Op) -> Result<Admitted, SubmitError> {
        let submitted = self.with_guest(|held, now| held.filter.submit(now, disk, op), turns::Past::begin);
        match submitted {
            Err(past) => past.map(Admitted::Now),
            Ok(Err(refused)) => Err(refused),
            Ok(Ok(Submitted::Go(ticket))) => Ok(Admitted::Now(Place::Ordered(ticket))),
            Ok(Ok(Submitted::Hold(ticket))) => Ok(Admitted::Later(ticket)),
        }
    }

    /// Returns when an op may run that was held. The wait is one of the two bounded ones: for an op that overlaps, or for one sync of
    /// the activity log (where that takes too long: for the removal of its file). Where somebody hangs in the filter it ends too, and
    /// the op goes past.
    pub(super) fn wait_ready(&self, ticket: Ticket) -> Result<Place, SubmitError> {
        let mut ready = lock(&self.ready);
        while !ready.tickets.remove(&ticket) {
            if ready.ended {
                return Err(SubmitError::Closed);
            }
            let waited = self.ready_signal.wait_timeout(ready, turns::LOOK);
            let over;
            (ready, over) = waited.unwrap_or_else(PoisonError::into_inner);
            if over.timed_out() && self.held.is_past() {
                return Ok(Place::Early(ticket));
            }
        }
        Ok(Place::Ordered(ticket))
    }

    /// Says how an op ended. Returns when its guest may be told: at once, but for groups in a consistency set, at a cut, within 5 ms.
    pub(super) fn complete(&self, place: Place, result: &std::io::Result<()>) {
        let (Place::Ordered(ticket) | Place::Early(ticket)) = place else { return self.held.ran_past() };
        let result = failed(result);
        let told = self.with_guest(
            |held, now| {
                let known = held.filter.complete(now, ticket, result);
                debug_assert!(known.is_ok(), "a ticket is completed once");
                let (member, lsn) = (held.member.as_mut()?, known.ok()?);
                match member.machine.complete(now.mono, ticket, lsn) {
                    Completion::Release => None,
                    Completion::Hold => member.machine.next_deadline(),
                }
            },
            |past| past.late.push((ticket, result)),
        );
        if let (Place::Early(_), Ok(_)) = (place, &told) {
            // The filter let it go when it was told that it went.
            lock(&self.ready).tickets.remove(&ticket);
        }
        if let Ok(Some(until)) = told {
            self.wait_withheld(ticket, until);
        }
    }

    /// A guest's flush begins.
    pub(super) fn flush_begin(&self, disk: DiskId) -> Result<FlushPlace, SubmitError> {
        match self.with_guest(|held, _| held.filter.flush_begin(disk), turns::Past::begin) {
            Err(past) => past.map(|_| FlushPlace(None)),
            Ok(begun) => begun.map(|ticket| FlushPlace(Some(ticket))),
        }
    }

    /// It ended; or, of a write that was to be durable at once, it is not known to have done anything for others: none.
    pub(super) fn flush_end(&self, disk: DiskId, place: FlushPlace, result: Option<&std::io::Result<()>>) {
        let result = result.map(failed);
        let is_past = place.0.is_none();
        let told = match (place.0, result) {
            (Some(ticket), Some(result)) => Some((Some(ticket), result)),
            (None, Some(Err(error))) => Some((None, Err(error))),
            _ => None,
        };
        if let Some((ticket, result)) = told {
            let tell = |held: &mut Held, now| {
                if let Some(ticket) = ticket.or_else(|| held.filter.flush_begin(disk).ok()) {
                    held.filter.flushed(now, ticket, result);
                }
            };
            // One that ended well and is not told of vouches for nothing, which is always right.
            let note = |past: &mut turns::Past| _ = result.is_err() && past.flushes_failed.insert(disk);
            let _ = self.with_guest(tell, note);
        }
        if is_past {
            self.held.ran_past();
        }
    }

    /// The filter as it is now; while somebody hangs in it, as it was, and that it is passed by.
    pub(super) fn status(&self) -> Status {
        self.look(|filter, now| filter.status(now)).unwrap_or_else(|| self.last_status())
    }

    /// As it was when somebody hung in it.
    pub(super) fn last_status(&self) -> Status {
        let mut status = lock(&self.last).clone();
        status.state = State::Detached;
        let waited_ns = u64::from(turns::STUCK_LOOKS) * turns::LOOK.as_nanos() as u64;
        status.detached.get_or_insert(Detached::Stuck(Stuck::Lock { waited_ns }));
        status
    }

    /// Takes replication out of the guests' path until it is attached.
    pub(super) fn detach(&self) {
        self.with(|filter, now| filter.detach(now));
    }

    /// Puts replication back into the guests' path, once nothing runs past it any more.
    pub(super) fn attach(&self) -> Result<(), AttachError> {
        let mut turn = self.held.look_in().ok_or(AttachError::Stuck)?;
        self.settle(&mut turn);
        // What is not past yet cannot begin to be during this turn.
        let beside = turn.running_past() > 0;
        self.run(&mut turn, |held, now| match held.filter.status(now).detached {
            None => Err(AttachError::NotDetached),
            Some(Detached::Stuck(Stuck::Ended)) => Err(AttachError::Ended),
            Some(_) if beside => Err(AttachError::Stuck),
            Some(_) if held.filter.attach(now) => Ok(()),
            Some(_) => Err(AttachError::NotDetached),
        })
    }

    /// Whoever is withheld looks at the time itself: the timer's thread may be late, and nobody waits longer for that.
    fn wait_withheld(&self, ticket: Ticket, until: MonoTime) {
        let mut ready = lock(&self.ready);
        while !ready.tickets.remove(&ticket) && !ready.ended {
            let left = until.since(clock::mono());
            if left == 0 {
                drop(ready);
                // The member releases all of them.
                let _ = self.with_guest(|_, _| {}, |_| {});
                ready = lock(&self.ready);
                ready.tickets.remove(&ticket);
                return;
            }
            let waited = self.ready_signal.wait_timeout(ready, Duration::from_nanos(left));
            ready = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs the filter's timers until [`Engine::end`].
    pub(super) fn run_timer(&self) {
        let mut stopped = lock(&self.timer_stopped);
        while !*stopped {
            drop(stopped);
            let due = self.with_held_before_end(|held, _| {
                held.bounds.renew(&mut held.filter);
                let member = held.member.as_ref().and_then(Membership::next_deadline);
                held.filter.next_deadline().into_iter().chain(member).min().unwrap_or(MonoTime(u64::MAX))
            });
            let Some(due) = due else { return };
            stopped = lock(&self.timer_stopped);
            // Guests' threads may bring a deadline forward at any time. Looking again after a step costs less than their
            // waking this thread, and nothing that the filter times is finer.
            let wait = due.since(clock::mono()).clamp(TIMER_STEP_NS / 10, TIMER_STEP_NS);
            if !*stopped {
                let waited = self.timer_signal.wait_timeout(stopped, Duration::from_nanos(wait));
                stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn stop_timer(&self) {
        *lock(&self.timer_stopped) = true;
        self.timer_signal.notify_all();
    }

    /// Looks every so often whether anything hangs until [`Engine::end`]. `untaken` says for how long an output waits, in nanoseconds;
    /// `forget` makes the activity log one that nobody believes and then calls what it is given; `looked` is told why the filter is
    /// detached, if it is, and nothing where somebody hangs in it.
    pub(super) fn run_watch(
        &self,
        mut untaken: impl FnMut() -> u64,
        forget: impl Fn(&dyn Fn()),
        mut looked: impl FnMut(Option<Option<Detached>>),
    ) {
        let mut seen = turns::Seen::default();
        let mut stopped = lock(&self.timer_stopped);
        while !*stopped {
            let waited = self.timer_signal.wait_timeout(stopped, turns::LOOK);
            drop(waited.unwrap_or_else(PoisonError::into_inner).0);
            if self.held.is_stuck(&mut seen) {
                forget(&|| self.held.pass());
                self.ready_signal.notify_all();
            }
            let health = Health { untaken_ns: untaken(), ended: false };
            // Some turns are long: nothing is said where this one was not had.
            if let Some(mut turn) = self.held.try_turn() {
                self.settle(&mut turn);
                let status = self.run(&mut turn, |held, now| {
                    held.filter.watchdog(now, &health);
                    held.filter.status(now)
                });
                drop(turn);
                looked(Some(status.detached));
                *lock(&self.last) = status;
            } else if self.held.is_past() {
                looked(None);
            }
            stopped = lock(&self.timer_stopped);
        }
    }
}

/// A result as the filter takes it.
pub(super) fn failed(result: &std::io::Result<()>) -> Result<(), Failed> {
    result.as_ref().copied().map_err(|error| Failed { errno: error.raw_os_error().unwrap_or(libc::EIO) })
}
