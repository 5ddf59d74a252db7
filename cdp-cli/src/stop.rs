//! The wish to end: by a signal or by the program itself.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Shared between who wishes the end and who brings it about. Once wished, it stays wished.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Stop {
    /// Nobody wishes the end yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Wished by SIGINT, SIGTERM, or SIGHUP (a terminal that was closed) unless that is ignored as under `nohup`; a second one
    /// of them ends the process at once with status 1. For the main program, once.
    ///
    /// # Errors
    /// When the handlers cannot be set.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::new();
        let wished = stop.clone();
        let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup))?;
        std::thread::Builder::new().name("cdp-signals".into()).spawn(move || {
            for _ in signals.forever() {
                if wished.is_wished() {
                    std::process::exit(1);
                }
                wished.wish();
            }
        })?;
        Ok(stop)
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wishes the end.
    pub fn wish(&self) {
        *self.lock() = true;
        self.shared.1.notify_all();
    }

    /// Whether the end is wished.
    #[must_use]
    pub fn is_wished(&self) -> bool {
        *self.lock()
    }

    /// Waits until the end is wished, at most so long; whether it is.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> bool {
        let waited = self.shared.1.wait_timeout_while(self.lock(), at_most, |wished| !*wished);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Whether whoever started this process wants it to ignore the signal; not, where that cannot be asked.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_wakes_who_waits() {
        let stop = Stop::new();
        assert!(!stop.wait(Duration::from_millis(1)));
        let waiting = stop.clone();
        let thread = std::thread::spawn(move || waiting.wait(Duration::from_secs(60)));
        stop.wish();
        assert!(thread.join().unwrap());
        assert!(stop.is_wished());
    }
}
