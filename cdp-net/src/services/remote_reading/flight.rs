//! How many reads and writes are under way over one link.

use std::sync::{Condvar, Mutex, PoisonError};

/// Reads and writes under way at once, at most, each of 1 MiB at most: what a line of 1 Gbit/s takes in 0.25 s.
pub(super) const FLIGHT_MAX: usize = 32;

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Flight {
    under_way: Mutex<usize>,
    ended: Condvar,
}

/// One that is under way.
#[derive(Debug)]
pub(super) struct Seat<'a>(&'a Flight);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        *self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_one();
    }
}

impl Flight {
    /// Waits until one more may go. Who has one already must not.
    pub(super) fn take(&self) -> Seat<'_> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_while(under_way, |under_way| *under_way >= FLIGHT_MAX);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Seat(self)
    }

    /// One more, if it may go now.
    pub(super) fn try_take(&self) -> Option<Seat<'_>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        (*under_way < FLIGHT_MAX).then(|| {
            *under_way += 1;
            Seat(self)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_go_than_may() {
        let flight = Flight::default();
        let mut seats: Vec<_> = (0..FLIGHT_MAX).map(|_| flight.take()).collect();
        assert!(flight.try_take().is_none());
        seats.pop();
        let again = flight.try_take();
        assert!(again.is_some() && flight.try_take().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(flight.take()));
            drop(again);
            waiting.join().unwrap();
        });
    }
}
