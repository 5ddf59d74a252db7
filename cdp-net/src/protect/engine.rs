//! The filter under its lock, and the way of its outputs to the threads that carry them out.
//!
//! Whoever calls the filter drains its outputs before the lock is given back, so frames reach the pump in the order of
//! their LSNs. Nothing waits for I/O under the lock: the queues are unbounded here and bounded by the filter, which counts
//! what it has given out and not seen durable.

use super::budget::{Bounds, Share};
use super::member::{Joined, Membership};
use crate::clock;
use crate::far::Lends;
use cdp_core::capture::{
    Event, Failed, Filter, FlushTicket, LogWrite, Op, Output, Reread, SubmitError, Submitted, Ticket,
};
use cdp_core::frame::RawFrame;
use cdp_core::set::{Completion, MemberCounts, Order};
use cdp_core::types::{DiskId, MonoTime, Now};
use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the filter's timers are looked at, in nanoseconds: half of a frame's age.
const TIMER_STEP_NS: u64 = 10_000_000;

/// Work for the threads beside the guest's.
pub(super) struct Queues {
    /// Frames, to the pump.
    pub(super) frames: Box<dyn Fn(RawFrame) + Send>,
    /// What is lent, where somebody may be lent something.
    pub(super) lends: Option<Lends>,
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
}

/// Ops that were held and may run now, or whose completions were withheld and may be told.
#[derive(Default)]
struct Ready {
    tickets: BTreeSet<Ticket>,
    /// No more will come.
    ended: bool,
}

/// One group's filter, shared by all threads.
pub(super) struct Engine {
    filter: Mutex<Held>,
    ready: Mutex<Ready>,
    ready_signal: Condvar,
    timer_stopped: Mutex<bool>,
    timer_signal: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held is contained by the front end; the filter's own state is whole between calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub(super) fn new(filter: Filter, queues: Queues, queue_bytes: u64) -> Self {
        Self {
            filter: Mutex::new(Held { filter, queues: Some(queues), member: None, bounds: Bounds::new(queue_bytes) }),
            ready: Mutex::default(),
            ready_signal: Condvar::new(),
            timer_stopped: Mutex::new(false),
            timer_signal: Condvar::new(),
        }
    }

    /// Calls the filter and hands on whatever it wants done.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Filter, Now) -> T) -> T {
        self.with_held(|held, now| call(&mut held.filter, now))
    }

    fn with_held<T>(&self, call: impl FnOnce(&mut Held, Now) -> T) -> T {
        let mut held = lock(&self.filter);
        let now = clock::now();
        let answer = call(&mut held, now);
        let Held { filter, queues, member, .. } = &mut *held;
        if let Some(member) = member {
            self.tell(&member.carry_out(filter, now));
        }
        while let Some(output) = filter.poll(now) {
            self.dispatch(output, queues.as_ref());
        }
        answer
    }

    /// Lets those go whose completions were withheld.
    fn tell(&self, released: &[Ticket]) {
        if !released.is_empty() {
            lock(&self.ready).tickets.extend(released);
            self.ready_signal.notify_all();
        }
    }

    /// Makes this group a member of a consistency set, or another one than it was; none: of none from here on.
    pub(super) fn join_set(&self, joined: Option<Joined>) {
        self.with_held(|held, now| {
            if let Some(mut before) = held.member.take() {
                self.tell(&before.stop(now));
            }
            held.member = joined.map(Membership::new);
        });
    }

    /// So many bytes can be kept now of what is not durable, in memory and on disk.
    pub(super) fn set_capacity(&self, bytes: u64) {
        self.with_held(|held, _| held.bounds.set_capacity(&mut held.filter, bytes));
    }

    /// From now on the group shares its memory with others.
    pub(super) fn set_share(&self, share: Share) {
        self.with_held(|held, _| held.bounds.set_share(&mut held.filter, share));
    }

    /// Takes what the taker of cuts says. Without a set it is passed over.
    pub(super) fn set_order(&self, order: Order) {
        self.with_held(|held, now| {
            held.member.iter_mut().for_each(|member| member.machine.handle(now.mono, order));
        });
    }

    /// What the group did for its set, if it is in one.
    pub(super) fn set_counts(&self) -> Option<MemberCounts> {
        self.with_held(|held, _| held.member.as_ref().map(|member| member.machine.counts()))
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
            Output::Lend(through) => return queues.lends.iter().for_each(|lends| lends(through)),
            Output::Frame(frame) => return (queues.frames)(frame),
            Output::Log(write) => queues.log.send(write).is_ok(),
            Output::RemoveLog => queues.log_removals.send(()).is_ok(),
            Output::Flush(disk, ticket) => queues.flushes.send((disk, ticket)).is_ok(),
            Output::Reread(reread) => queues.rereads.send(reread).is_ok(),
            Output::Event(event) => queues.events.send(event).is_ok(),
        };
    }

    /// Ends everything: threads that wait for work end, ops are refused from here on, those that wait are let go of. What is
    /// not durable stays so; the activity log names it.
    pub(super) fn end(&self) {
        {
            let mut held = lock(&self.filter);
            // Without queues the log's last word is not written: a filter that is dropped has not stopped cleanly.
            held.queues = None;
            let _ = held.filter.close(Vec::new());
            // Nobody is withheld by a set that this group has left.
            held.member = None;
        }
        lock(&self.ready).ended = true;
        self.ready_signal.notify_all();
        self.stop_timer();
    }

    /// Gives an op its place in the order; returns when it may run. The wait is one of the two bounded ones: for an op that
    /// overlaps, or for one sync of the activity log (where that takes too long: for the removal of its file).
    pub(super) fn submit(&self, disk: DiskId, op: Op) -> Result<Ticket, SubmitError> {
        match self.with(|filter, now| filter.submit(now, disk, op))? {
            Submitted::Go(ticket) => Ok(ticket),
            Submitted::Hold(ticket) => {
                let mut ready = lock(&self.ready);
                while !ready.tickets.remove(&ticket) {
                    if ready.ended {
                        return Err(SubmitError::Closed);
                    }
                    ready = self.ready_signal.wait(ready).unwrap_or_else(PoisonError::into_inner);
                }
                Ok(ticket)
            }
        }
    }

    /// Says how an op ended. Returns when its guest may be told: at once, but for groups in a consistency set, at a cut, within 5 ms.
    pub(super) fn complete(&self, ticket: Ticket, result: &std::io::Result<()>) {
        let result = failed(result);
        let until = self.with_held(|held, now| {
            let known = held.filter.complete(now, ticket, result);
            debug_assert!(known.is_ok(), "a ticket is completed once");
            let (member, lsn) = (held.member.as_mut()?, known.ok()?);
            match member.machine.complete(now.mono, ticket, lsn) {
                Completion::Release => None,
                Completion::Hold => member.machine.next_deadline(),
            }
        });
        if let Some(until) = until {
            self.wait_withheld(ticket, until);
        }
    }

    /// Whoever is withheld looks at the time itself: the timer's thread may be late, and nobody waits longer for that.
    fn wait_withheld(&self, ticket: Ticket, until: MonoTime) {
        let mut ready = lock(&self.ready);
        while !ready.tickets.remove(&ticket) && !ready.ended {
            let left = until.since(clock::mono());
            if left == 0 {
                drop(ready);
                // The member releases all of them.
                self.with(|_, _| {});
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
            let due = self.with_held(|held, _| {
                held.bounds.renew(&mut held.filter);
                let member = held.member.as_ref().and_then(Membership::next_deadline);
                held.filter.next_deadline().into_iter().chain(member).min().unwrap_or(MonoTime(u64::MAX))
            });
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
        self.timer_signal.notify_one();
    }
}

/// A result as the filter takes it.
pub(super) fn failed(result: &std::io::Result<()>) -> Result<(), Failed> {
    result.as_ref().copied().map_err(|error| Failed { errno: error.raw_os_error().unwrap_or(libc::EIO) })
}
