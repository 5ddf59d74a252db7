//! How crowded the cores are, as a thread feels it: how long it ran, and how long it was ready to run and had no core.

use cdp_core::types::MonoTime;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// How often a thread's times are looked at, in nanoseconds.
const LOOK_NS: u64 = 50_000_000;

/// What the scheduler says of a thread, in nanoseconds since its start.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    running: u64,
    waiting: u64,
}

/// Looks at one thread.
#[derive(Debug)]
pub(crate) struct Crowding {
    /// `None` where the kernel does not tell.
    file: Option<File>,
    times: Times,
    looked: MonoTime,
}

impl Crowding {
    /// For the calling thread.
    pub(crate) fn of_this_thread(now: MonoTime) -> Self {
        let file = File::open("/proc/thread-self/schedstat").ok();
        let times = file.as_ref().and_then(read).unwrap_or_default();
        Self { file, times, looked: now }
    }

    /// For no thread: nothing is ever known.
    #[cfg(test)]
    pub(crate) fn unknown() -> Self {
        Self { file: None, times: Times::default(), looked: MonoTime(0) }
    }

    /// Of every hundred parts of the time since the last look those that the thread ran, and those that it waited for a core; none
    /// before the next look is due.
    pub(crate) fn look(&mut self, now: MonoTime) -> Option<(u64, u64)> {
        let elapsed = now.since(self.looked);
        if elapsed < LOOK_NS {
            return None;
        }
        self.looked = now;
        let times = self.file.as_ref().and_then(read)?;
        let before = std::mem::replace(&mut self.times, times);
        let percent = |after: u64, before: u64| after.saturating_sub(before) * 100 / elapsed;
        Some((percent(times.running, before.running), percent(times.waiting, before.waiting)))
    }
}

fn read(file: &File) -> Option<Times> {
    let mut text = [0; 64];
    let length = file.read_at(&mut text, 0).ok()?;
    let mut numbers = std::str::from_utf8(&text[..length]).ok()?.split_whitespace();
    let mut number = || numbers.next()?.parse().ok();
    Some(Times { running: number()?, waiting: number()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_this_threads_times() {
        let crowding = Crowding::of_this_thread(MonoTime(0));
        // Where there is no such file the kernel was built without.
        assert!(crowding.file.as_ref().is_none_or(|file| read(file).is_some()));
    }
}
