//! A limit that several connections or groups share, for tasks that wait for their turn.
//!
//! Whose turn it is decides [`Throttle`]. Of those who wait one leads: it sleeps until the next turn and wakes whoever has it. So a
//! turn costs one timer, however many wait.

use crate::clock::mono;
use cdp_core::policy::throttle::{Grant, RATE_MIN, RateTooLow, TakeError, Throttle};
use cdp_core::types::{GroupId, MonoTime};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// A limit of bytes a second that its members share equally.
#[derive(Debug)]
pub(crate) struct Pace {
    state: Mutex<State>,
    /// Held by whoever sleeps for all.
    lead: tokio::sync::Mutex<()>,
    /// The next turn may be another one.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    throttle: Throttle,
    /// Those who wait for their turn. As many as there are members, at most.
    waiting: BTreeMap<GroupId, oneshot::Sender<()>>,
    /// Names of members that are gone: they are given again, so that the throttle never knows more names than there were members at
    /// once.
    free: BTreeSet<GroupId>,
    named: u64,
}

impl State {
    fn new(now: MonoTime, rate: Option<u64>) -> Result<Self, RateTooLow> {
        let throttle = Throttle::new(now, rate)?;
        Ok(Self { throttle, waiting: BTreeMap::new(), free: BTreeSet::new(), named: 0 })
    }

    /// Wakes those whose turn it is.
    fn wake(&mut self, now: MonoTime) {
        while let Some(member) = self.throttle.poll(now) {
            // One that gave up has left.
            self.waiting.remove(&member).map(|turn| turn.send(()));
        }
    }
}

/// One who shares a limit. Dropped, it leaves its share to the others.
#[derive(Debug)]
pub(crate) struct Member {
    pace: Arc<Pace>,
    name: GroupId,
}

/// Takes who gave up waiting out of the queue.
struct Waits<'a>(&'a Member);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.0.pace.lock();
        state.waiting.remove(&self.0.name);
        state.throttle.leave(self.0.name);
        state.wake(mono());
    }
}

impl Pace {
    /// So many bytes a second, and not less than [`RATE_MIN`]; none: no limit.
    pub(crate) fn new(rate: Option<u64>) -> Result<Self, RateTooLow> {
        let state = Mutex::new(State::new(mono(), rate.map(|rate| rate.max(RATE_MIN)))?);
        Ok(Self { state, lead: tokio::sync::Mutex::default(), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another rate from now on.
    pub(crate) fn set_rate(&self, rate: Option<u64>) -> Result<(), RateTooLow> {
        let now = mono();
        let mut state = self.lock();
        state.throttle.set_rate(now, rate.map(|rate| rate.max(RATE_MIN)))?;
        state.wake(now);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// One more who shares it.
    pub(crate) fn join(self: &Arc<Self>) -> Member {
        let mut state = self.lock();
        let name = state.free.pop_first().or_else(|| {
            state.named += 1;
            GroupId::new(u128::from(state.named).to_le_bytes())
        });
        drop(state);
        // A number from 1 is never the zeros that are no name.
        let name = name.unwrap_or_else(|| unreachable!("numbers begin at 1"));
        Member { pace: Arc::clone(self), name }
    }

    /// Sleeps until turns come, and wakes whose they are. Never ends: who leads ends it when its own turn came.
    async fn lead(&self) {
        let _lead = self.lead.lock().await;
        loop {
            let next = {
                let mut state = self.lock();
                state.wake(mono());
                state.throttle.next_deadline()
            };
            let changed = self.changed.notified();
            match next {
                Some(at) => {
                    let wait = Duration::from_nanos(at.since(mono()));
                    // The next look is at the state, whatever ended the sleep.
                    let _ = tokio::time::timeout(wait, changed).await;
                }
                None => changed.await,
            }
        }
    }
}

impl Member {
    /// Waits until so many bytes may go, at most [`REQUEST_MAX`](cdp_core::policy::throttle::REQUEST_MAX).
    ///
    /// # Errors
    /// When that is too much at once, or the members are too many.
    pub(crate) async fn take(&mut self, bytes: u64) -> Result<(), TakeError> {
        let turn = {
            let (mut state, now) = (self.pace.lock(), mono());
            match state.throttle.take(now, self.name, bytes)? {
                Grant::Now => {
                    state.wake(now);
                    return Ok(());
                }
                Grant::Later(_) => {
                    let (told, turn) = oneshot::channel();
                    state.waiting.insert(self.name, told);
                    turn
                }
            }
        };
        let _waits = Waits(self);
        self.pace.changed.notify_one();
        tokio::select! {
            biased;
            _ = turn => {}
            () = self.pace.lead() => {}
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.pace.lock().free.insert(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const PIECE: u64 = 32 << 10;

    async fn within<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), what).await.expect("in time")
    }

    /// Takes so many pieces.
    async fn pieces(mut member: Member, count: u64) {
        for _ in 0..count {
            member.take(PIECE).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_goes_than_the_rate_and_a_burst_and_nobody_waits_for_ever() {
        const RATE: u64 = 4 << 20;
        let pace = Arc::new(Pace::new(Some(RATE)).unwrap());
        let began = Instant::now();
        let all: Vec<_> = (0..8).map(|_| tokio::spawn(pieces(pace.join(), 16))).collect();
        for one in all {
            within(one).await.unwrap();
        }
        let taken = 8 * 16 * PIECE - cdp_core::policy::throttle::REQUEST_MAX;
        assert!(began.elapsed() >= Duration::from_secs_f64(taken as f64 / RATE as f64), "{:?}", began.elapsed());
        let state = pace.lock();
        assert!(state.waiting.is_empty());
        assert_eq!((state.free.len(), state.named), (8, 8));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_gives_up_keeps_nobody_waiting_and_its_name_is_given_again() {
        let pace = Arc::new(Pace::new(Some(RATE_MIN)).unwrap());
        let mut first = pace.join();
        first.take(cdp_core::policy::throttle::REQUEST_MAX).await.unwrap();
        // The bucket is empty, and a minute passes before it has so much again.
        let gives_up = tokio::spawn(pieces(pace.join(), 16));
        while pace.lock().throttle.waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gives_up.abort();
        assert!(gives_up.await.unwrap_err().is_cancelled());
        assert_eq!(pace.lock().throttle.waiting(), 0);
        within(first.take(1)).await.unwrap();
        let again = pace.join();
        assert_eq!(pace.lock().named, 2);
        drop((first, again));
    }

    /// A new rate is taken by those who wait already.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_rate_that_is_lifted_lets_those_go_who_wait() {
        let pace = Arc::new(Pace::new(Some(RATE_MIN)).unwrap());
        let waits: Vec<_> = (0..4).map(|_| tokio::spawn(pieces(pace.join(), 64))).collect();
        while pace.lock().throttle.waiting() < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pace.set_rate(None).unwrap();
        for one in waits {
            within(one).await.unwrap();
        }
    }
}
