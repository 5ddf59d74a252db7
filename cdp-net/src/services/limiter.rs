//! A rate that several groups share, for tasks: [`Throttle`] with somebody who waits for it.

use crate::clock::mono;
use cdp_core::policy::throttle::{Grant, RateTooLow, TakeError, Throttle};
use cdp_core::types::GroupId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

/// See the module's text. Its task ends with it.
#[derive(Debug)]
pub struct Limiter {
    state: Mutex<State>,
    /// Somebody waits, or the rate is another one.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    throttle: Throttle,
    /// Those who wait; as many as the throttle has groups.
    waiting: BTreeMap<GroupId, oneshot::Sender<()>>,
}

impl Limiter {
    /// One of so many bytes a second, with a task on `runtime`.
    ///
    /// # Errors
    /// When the rate is too low.
    pub fn start(runtime: &Handle, bytes_per_s: u64) -> Result<Arc<Self>, RateTooLow> {
        let throttle = Throttle::new(mono(), Some(bytes_per_s))?;
        let changed = Arc::new(Notify::new());
        let state = Mutex::new(State { throttle, waiting: BTreeMap::new() });
        let limiter = Arc::new(Self { state, changed: Arc::clone(&changed) });
        runtime.spawn(grant(Arc::downgrade(&limiter), changed));
        Ok(limiter)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another rate from now on.
    ///
    /// # Errors
    /// When the rate is too low; the old one stays.
    pub fn set_rate(&self, bytes_per_s: u64) -> Result<(), RateTooLow> {
        self.lock().throttle.set_rate(mono(), Some(bytes_per_s))?;
        self.changed.notify_one();
        Ok(())
    }

    /// Waits until the group may send so many bytes. One request of a group at once: a second one takes the place of the first.
    ///
    /// # Errors
    /// When it asks for too much at once, or too many groups ask.
    pub async fn take(&self, group: GroupId, bytes: u64) -> Result<(), TakeError> {
        let granted = {
            let mut state = self.lock();
            match state.throttle.take(mono(), group, bytes)? {
                Grant::Now => return Ok(()),
                Grant::Later(_) => {
                    let (sender, granted) = oneshot::channel();
                    state.waiting.insert(group, sender);
                    granted
                }
            }
        };
        self.changed.notify_one();
        // Its sender goes with the limiter, or with a later request of the group: nobody is held up by either.
        let _ = granted.await;
        Ok(())
    }

    /// The group wants nothing any more.
    pub fn leave(&self, group: GroupId) {
        let mut state = self.lock();
        state.throttle.leave(group);
        state.waiting.remove(&group);
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        // Its task sees that nobody has it any more.
        self.changed.notify_one();
    }
}

async fn grant(limiter: Weak<Limiter>, changed: Arc<Notify>) {
    loop {
        let due = {
            let Some(limiter) = limiter.upgrade() else { return };
            let (mut state, now) = (limiter.lock(), mono());
            while let Some(group) = state.throttle.poll(now) {
                // Who gave up has what was granted: it was his share.
                let _ = state.waiting.remove(&group).map(|waiting| waiting.send(()));
            }
            state.throttle.next_deadline()
        };
        let wait = due.map_or(Duration::from_secs(3600), |at| Duration::from_nanos(at.since(mono())));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::policy::throttle::REQUEST_MAX;
    use std::time::Instant;

    fn group(number: u8) -> GroupId {
        GroupId::new([number; 16]).unwrap()
    }

    #[tokio::test]
    async fn two_groups_share_a_rate_and_neither_is_held_up_by_who_gave_up() {
        let limiter = Limiter::start(&Handle::current(), 4 << 20).unwrap();
        let begin = Instant::now();
        let work = |number: u8| {
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move {
                for _ in 0..8 {
                    limiter.take(group(number), 256 << 10).await.unwrap();
                }
                Instant::now()
            })
        };
        let (first, second) = (work(1), work(2));
        // One that asks and goes away again.
        let given_up = tokio::time::timeout(Duration::from_millis(20), limiter.take(group(3), REQUEST_MAX)).await;
        assert!(given_up.is_err(), "the bucket was not empty");
        limiter.leave(group(3));
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        // 4 MiB in all, of which the bucket has half a MiB at the beginning.
        let took = first.max(second) - begin;
        assert!(took >= Duration::from_millis(800), "{took:?}");
        assert!(limiter.take(group(1), REQUEST_MAX + 1).await.is_err());
    }
}
