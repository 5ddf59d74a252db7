//! Looking after what replication needs: whether somebody hangs in the filter, whether work that was handed to a thread is taken up,
//! and putting replication back where what it was stuck in came back.
//!
//! Work that is *carried out* for long is no reason to detach: a source, a log or a replica that does not answer is waited for by our
//! threads and by no guest, and detaching would only stop the recording. A thread that does nothing and takes nothing up is one.
//!
//! What was detached because it was stuck is attached by itself when it went well for [`ATTACH_AFTER`], twice as long each time it is
//! stuck again, up to [`ATTACH_AFTER_MAX`]: everything is compared each time. What was detached by order, or because a thread ended, is
//! not.

use super::engine::Engine;
use super::log_file::forget_at_once;
use super::turns::LOOK;
use cdp_core::capture::{Detached, Stuck};
use cdp_core::media::Storage;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long all must go well before replication is put back.
const ATTACH_AFTER: Duration = Duration::from_secs(30);
/// The same where it was stuck again and again.
const ATTACH_AFTER_MAX: Duration = Duration::from_secs(3600);

/// How a queue between the filter and a thread stands.
#[derive(Debug, Default)]
struct Tally {
    put: AtomicU64,
    taken: AtomicU64,
    /// Threads that carry something out.
    busy: AtomicUsize,
}

/// Hands work to threads; never waits. Bounded by the filter, which gives out only so much at once.
#[derive(Debug)]
pub(super) struct Sender<T> {
    sender: std::sync::mpsc::Sender<T>,
    tally: Arc<Tally>,
}

impl<T> Sender<T> {
    pub(super) fn send(&self, work: T) -> Result<(), SendError<T>> {
        self.tally.put.fetch_add(1, Ordering::Relaxed);
        self.sender.send(work)
    }
}

/// Where threads take it from.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    receiver: Mutex<Receiver<T>>,
    tally: Arc<Tally>,
}

/// Work that was taken, until it is carried out.
pub(super) struct Taken<'a>(&'a Tally);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T> Inbox<T> {
    fn receiver(&self) -> MutexGuard<'_, Receiver<T>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self, work: T) -> (T, Taken<'_>) {
        self.tally.busy.fetch_add(1, Ordering::Relaxed);
        self.tally.taken.fetch_add(1, Ordering::Relaxed);
        (work, Taken(&self.tally))
    }

    /// The next work; none when no more will come.
    pub(super) fn take(&self) -> Option<(T, Taken<'_>)> {
        let work = self.receiver().recv().ok()?;
        Some(self.taken(work))
    }

    /// The same for who has something else to look at.
    pub(super) fn take_within(&self, time: Duration) -> Result<(T, Taken<'_>), RecvTimeoutError> {
        let work = self.receiver().recv_timeout(time)?;
        Ok(self.taken(work))
    }
}

/// All queues, for who watches them.
#[derive(Debug, Default)]
pub(super) struct Tallies(Vec<(Arc<Tally>, Standing)>);

#[derive(Debug, Default)]
struct Standing {
    taken: u64,
    looks: u32,
}

impl Tallies {
    /// Makes one more queue that is watched.
    pub(super) fn queue<T>(&mut self) -> (Sender<T>, Inbox<T>) {
        let (sender, receiver) = channel();
        let tally = Arc::new(Tally::default());
        self.0.push((Arc::clone(&tally), Standing::default()));
        (Sender { sender, tally: Arc::clone(&tally) }, Inbox { receiver: Mutex::new(receiver), tally })
    }

    /// One look, every [`LOOK`]: how long the oldest work waits that nobody takes although nobody carries anything out, in nanoseconds.
    fn untaken_ns(&mut self) -> u64 {
        let look = |(tally, before): &mut (Arc<Tally>, Standing)| {
            let taken = tally.taken.load(Ordering::Relaxed);
            let waits = tally.put.load(Ordering::Relaxed) > taken && tally.busy.load(Ordering::Relaxed) == 0;
            let looks = if waits && taken == before.taken { before.looks + 1 } else { 0 };
            *before = Standing { taken, looks };
            u64::from(looks)
        };
        self.0.iter_mut().map(look).max().unwrap_or_default() * LOOK.as_nanos() as u64
    }
}

/// When replication that was stuck is put back.
struct Patience {
    after: Duration,
    well: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { after: ATTACH_AFTER, well: Duration::ZERO }
    }

    /// One look at the filter, every [`LOOK`], when nobody hangs in it. Whether it is time.
    fn is_over(&mut self, detached: Option<Detached>) -> bool {
        let comes_back = matches!(detached, Some(Detached::Stuck(stuck)) if stuck != Stuck::Ended);
        if !comes_back {
            self.well = Duration::ZERO;
            return false;
        }
        self.well += LOOK;
        if self.well < self.after {
            return false;
        }
        self.after = (self.after * 2).min(ATTACH_AFTER_MAX);
        self.well = Duration::ZERO;
        true
    }

    /// It does not go well.
    fn again(&mut self) {
        self.well = Duration::ZERO;
    }
}

/// Watches until the engine ends.
pub(super) fn run(engine: &Engine, storage: &dyn Storage, mut queues: Tallies) {
    let mut patience = Patience::new();
    engine.run_watch(
        || queues.untaken_ns(),
        |ready| forget_at_once(storage, ready),
        |looked| match looked {
            None => patience.again(),
            // Where ops that ran past are not done yet it is looked again after that long.
            Some(detached) if patience.is_over(detached) => _ = engine.attach(),
            Some(_) => {}
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_nobody_takes_waits_and_what_stands_behind_some_that_is_carried_out_does_not() {
        let mut queues = Tallies::default();
        let (sender, inbox) = queues.queue();
        assert_eq!(queues.untaken_ns(), 0);
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        let waited: Vec<_> = (0..3).map(|_| queues.untaken_ns() / LOOK.as_nanos() as u64).collect();
        assert_eq!(waited, [1, 2, 3]);
        let (first, carried_out) = inbox.take().unwrap();
        assert_eq!((first, queues.untaken_ns()), (1, 0));
        assert_eq!(queues.untaken_ns(), 0, "it is carried out for long, and that is nobody's fault here");
        drop(carried_out);
        assert!(queues.untaken_ns() > 0, "its thread is idle and does not take the second");
        assert_eq!(inbox.take_within(LOOK).unwrap().0, 2);
        assert_eq!(queues.untaken_ns(), 0);
    }

    #[test]
    fn what_was_stuck_is_put_back_later_each_time_and_what_was_ordered_never() {
        let mut patience = Patience::new();
        let looks = |patience: &mut Patience, why| (1..100_000).find(|_| patience.is_over(Some(why)));
        let stuck = Detached::Stuck(Stuck::Lock { waited_ns: 1 });
        let first = looks(&mut patience, stuck).unwrap();
        assert_eq!(LOOK * first, ATTACH_AFTER);
        assert!(!patience.is_over(None));
        patience.is_over(Some(stuck));
        patience.again();
        assert_eq!(looks(&mut patience, stuck), Some(2 * first), "one that hung again meanwhile is waited for anew");
        for _ in 0..10 {
            looks(&mut patience, stuck);
        }
        assert_eq!(LOOK * looks(&mut patience, stuck).unwrap(), ATTACH_AFTER_MAX);
        assert_eq!(looks(&mut patience, Detached::Ordered), None);
        assert_eq!(looks(&mut patience, Detached::Stuck(Stuck::Ended)), None);
    }
}
