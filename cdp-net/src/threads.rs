//! Threads whose panics are told, and waits that end when they are to.

use crate::failure::Failure;
use crate::sys::sched;
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Threads of one part of a protection.
#[derive(Debug)]
pub(crate) struct Threads {
    failure: Arc<Failure>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// None yet. What one of them ends by, if it is a panic, is told to `failure`.
    pub(crate) fn new(failure: Arc<Failure>) -> Self {
        Self { failure, handles: Vec::new() }
    }

    /// Starts one.
    ///
    /// # Errors
    /// When the system has none to give.
    pub(crate) fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let failure = Arc::clone(&self.failure);
        let told = name.to_owned();
        let contained = move || {
            // A thread that panics takes its part of the protection along: that is told, and the guest goes on.
            if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                failure.set(&format!("the thread {told} ended by a panic"));
            }
        };
        self.handles.push(Builder::new().name(name.to_owned()).spawn(contained)?);
        Ok(())
    }

    /// Waits for all of them, in the order in which they were started.
    pub(crate) fn join(&mut self) {
        for handle in self.handles.drain(..) {
            // Panics are contained inside: there is nothing to hear.
            let _ = handle.join();
        }
    }

    /// The same for so long at most; gives the names of those that have not ended, each once.
    pub(crate) fn join_within(&mut self, time: Duration) -> Vec<String> {
        const LOOK: Duration = Duration::from_millis(1);
        let deadline = Instant::now() + time;
        while self.handles.iter().any(|handle| !handle.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        for handle in self.handles.extract_if(.., |handle| handle.is_finished()) {
            let _ = handle.join();
        }
        let mut left: Vec<_> =
            self.handles.iter().filter_map(|handle| handle.thread().name()).map(String::from).collect();
        left.dedup();
        left
    }
}

/// Where a thread stands that no guest waits for. A guest that wants a core all the time leaves it a tenth of that: the protection goes
/// on, and who holds the filter's lock when he loses the core has it back soon.
const BEHIND_GUESTS: i32 = 10;

thread_local! {
    /// Whether this thread stepped back.
    static STANDS_BACK: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread, and those that it starts, step back behind guests. One that stands further back stays there.
pub(crate) fn step_back() {
    STANDS_BACK.set(true);
    sched::give_way();
    if rustix::process::getpriority_process(None).is_ok_and(|now| now < BEHIND_GUESTS) {
        // A wish that a system may refuse.
        let _ = rustix::process::setpriority_process(None, BEHIND_GUESTS);
    }
}

/// Lets a guest's thread have the core, if this one stepped back; to be called where some ten microseconds were worked. A thread that is
/// owed time keeps a core that others want until the next tick, some milliseconds, unless it says itself that they may have it.
pub(crate) fn make_way() {
    if STANDS_BACK.get() {
        std::thread::yield_now();
    }
}

/// Waits, unless the end is wished.
pub(crate) fn pause(stop: &AtomicBool, time: Duration) {
    const STEP: Duration = Duration::from_millis(50);
    let mut left = time;
    while !left.is_zero() && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(STEP);
        left = left.saturating_sub(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_steps_back_alone_and_never_forward() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let here = nice();
        std::thread::spawn(move || {
            step_back();
            assert_eq!(nice(), here.max(BEHIND_GUESTS));
            rustix::process::setpriority_process(None, here.max(15)).unwrap();
            step_back();
            assert_eq!(nice(), here.max(15));
        })
        .join()
        .unwrap();
        assert_eq!(nice(), here);
    }
}
