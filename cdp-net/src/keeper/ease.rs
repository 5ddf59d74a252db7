//! How hard to compress: as the policy says while a core is free for it, easier where guests would pay for it, not at all
//! where it would be their time.
//!
//! What is decided how is [`Level`]'s; here is what it is told: how long the pump's own thread was ready to run and had no core, what waits
//! to be packed, and what the journal does not take yet or is written and does not become durable, which says that the disk is behind.
//! Bytes are saved for that where they are cheap first, in chunks that promise to shrink well: half of the time for most of the bytes.

use cdp_core::frame::Compression;
use cdp_core::link::prepare::{Chosen, Ladder, Level};
use cdp_core::types::MonoTime;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// From the policy's level to storing what comes; and where the disk is behind, most of what can be saved for the least time.
const FOR_THE_JOURNAL: Ladder = Ladder {
    usual: [Compression::Zstd(1), Compression::Zstd(-3), Compression::None],
    // About what the cores' caches hold, because what has left them costs twice.
    ease_at: [4 << 20, 12 << 20],
    behind_at: [48 << 20, 256 << 20],
    behind: Compression::Promising(-5),
    far_behind: Compression::Zstd(-1),
};
/// Bytes written and not durable that say the same, where writes go into the page cache first: several syncs' worth.
const SYNC_BEHIND: u64 = 256 << 20;
/// How often the thread's times are looked at, in nanoseconds.
const LOOK_NS: u64 = 50_000_000;

/// What the scheduler says of a thread, in nanoseconds since its start.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    running: u64,
    waiting: u64,
}

/// Who packs a frame, and how hard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// The pump.
    Here(Compression),
    /// Those who help it.
    Aside(Compression),
}

/// Chooses, frame by frame.
#[derive(Debug)]
pub(super) struct Ease {
    /// `None` where the kernel does not tell: then the backlog alone decides.
    file: Option<File>,
    times: Times,
    looked: MonoTime,
    level: Level,
}

impl Ease {
    /// For the calling thread.
    pub(super) fn of_this_thread(now: MonoTime) -> Self {
        let file = File::open("/proc/thread-self/schedstat").ok();
        let times = file.as_ref().and_then(read).unwrap_or_default();
        Self { file, times, looked: now, level: Level::default() }
    }

    /// What to do with the next frame, with so many plain bytes waiting to be packed, so many stored ones to be written, and so
    /// many written ones to become durable.
    pub(super) fn choose(&mut self, now: MonoTime, waiting: u64, unwritten: u64, unsynced: u64) -> Choice {
        let elapsed = now.since(self.looked);
        if elapsed >= LOOK_NS {
            self.looked = now;
            if let Some(times) = self.file.as_ref().and_then(read) {
                let before = std::mem::replace(&mut self.times, times);
                let percent = |after: u64, before: u64| after.saturating_sub(before) * 100 / elapsed;
                self.level.look(percent(times.running, before.running), percent(times.waiting, before.waiting));
            }
        }
        match self.level.choose(&FOR_THE_JOURNAL, waiting, unwritten, unsynced > SYNC_BEHIND) {
            Chosen::Usual(compression) => Choice::Here(compression),
            Chosen::Behind(compression) => Choice::Aside(compression),
        }
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

    fn alone() -> Ease {
        Ease { file: None, times: Times::default(), looked: MonoTime(0), level: Level::default() }
    }

    #[test]
    fn the_kernel_tells_this_threads_times() {
        let ease = Ease::of_this_thread(MonoTime(0));
        // Where there is no such file the kernel was built without.
        assert!(ease.file.as_ref().is_none_or(|file| read(file).is_some()));
    }

    #[test]
    fn a_backlog_is_stored_with_less_effort() {
        let mut ease = alone();
        assert_eq!(ease.choose(MonoTime(1), 0, 0, 0), Choice::Here(Compression::Zstd(1)));
        assert_eq!(ease.choose(MonoTime(2), 5 << 20, 0, 0), Choice::Here(Compression::Zstd(-3)));
        assert_eq!(ease.choose(MonoTime(3), 64 << 20, 0, 32 << 20), Choice::Here(Compression::None));
        assert_eq!(ease.choose(MonoTime(4), 0, 0, 0), Choice::Here(Compression::Zstd(1)));
    }

    #[test]
    fn where_the_disk_is_behind_others_pack_for_it_and_the_harder_the_less_waits_for_them() {
        let mut ease = alone();
        for (waiting, unwritten, unsynced, chosen) in [
            (64 << 20, 0, 300 << 20, FOR_THE_JOURNAL.behind),
            (0, 64 << 20, 0, FOR_THE_JOURNAL.behind),
            (0, 160 << 20, 0, FOR_THE_JOURNAL.behind),
            (0, 260 << 20, 0, FOR_THE_JOURNAL.far_behind),
            (48 << 20, 260 << 20, 0, FOR_THE_JOURNAL.behind),
            (32 << 20, 512 << 20, 0, FOR_THE_JOURNAL.far_behind),
        ] {
            assert_eq!(ease.choose(MonoTime(1), waiting, unwritten, unsynced), Choice::Aside(chosen));
        }
    }
}
