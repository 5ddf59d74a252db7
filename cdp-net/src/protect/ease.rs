//! How hard to compress: as the policy says while a core is free for it, easier where guests would pay for it, not at all
//! where it would be their time.
//!
//! Three signs are looked at. The backlog says that frames come quicker than they are packed. How long the pump's own thread
//! was ready to run and had no core says that every core is wanted by somebody, in general by the guest that makes the
//! frames; storing raw then costs a tenth of the time and gives the rest back. But packed frames that the journal does not
//! take yet, or written ones that do not become durable, say that the disk is behind: then fewer bytes help, not fewer cycles.
//! Those are saved where they are cheap first, in chunks that promise to shrink well: half of the time for most of the bytes.

use cdp_core::frame::Compression;
use cdp_core::types::MonoTime;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// From the policy's level to storing what comes.
const LEVELS: [Compression; 3] = [Compression::Zstd(1), Compression::Zstd(-3), Compression::None];
/// Where the disk is behind: most of what can be saved, for the least time.
const FOR_THE_DISK: Compression = Compression::Promising(-5);
/// Where it is far behind, and the packing keeps up.
const ALL_FOR_THE_DISK: Compression = Compression::Zstd(-1);
/// Plain bytes waiting to be packed above which the next easier level is taken: about what the cores' caches hold, because
/// what has left them costs twice.
const EASE_AT: [u64; 2] = [4 << 20, 12 << 20];
/// Bytes packed and not taken by the journal above which the disk is behind, and far behind.
const DISK_BEHIND: [u64; 2] = [48 << 20, 256 << 20];
/// So much more must wait for the disk than for the packing, which must not become the narrow place instead.
const KEEPS_UP: u64 = 8;
/// Bytes written and not durable that say the same, where writes go into the page cache first: several syncs' worth.
const SYNC_BEHIND: u64 = 256 << 20;
/// How often the thread's times are looked at, in nanoseconds.
const LOOK_NS: u64 = 50_000_000;
/// Looks without crowding before a harder level is tried again.
const CALM_LOOKS: u32 = 40;
/// Of every hundred parts of a look: ready without a core for so many means crowded, if packing is worth speaking of.
const CROWDED_PERCENT: u64 = 12;
const WORTH_PERCENT: u64 = 25;
/// Below this it is calm.
const CALM_PERCENT: u64 = 4;

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
    level: usize,
    calm: u32,
}

impl Ease {
    /// For the calling thread.
    pub(super) fn of_this_thread(now: MonoTime) -> Self {
        let file = File::open("/proc/thread-self/schedstat").ok();
        let times = file.as_ref().and_then(read).unwrap_or_default();
        Self { file, times, looked: now, level: 0, calm: 0 }
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
                self.look(percent(times.running, before.running), percent(times.waiting, before.waiting));
            }
        }
        if unwritten > DISK_BEHIND[0] || unsynced > SYNC_BEHIND {
            let all = unwritten > DISK_BEHIND[1] && waiting <= unwritten / KEEPS_UP;
            return Choice::Aside(if all { ALL_FOR_THE_DISK } else { FOR_THE_DISK });
        }
        let by_backlog = EASE_AT.iter().filter(|limit| waiting > **limit).count();
        Choice::Here(LEVELS[self.level.max(by_backlog)])
    }

    fn look(&mut self, running: u64, waiting: u64) {
        if waiting >= CROWDED_PERCENT && running + waiting >= WORTH_PERCENT {
            self.level = (self.level + 1).min(LEVELS.len() - 1);
            self.calm = 0;
        } else if waiting >= CALM_PERCENT {
            self.calm = 0;
        } else {
            self.calm += 1;
            if self.calm >= CALM_LOOKS {
                self.level = self.level.saturating_sub(1);
                self.calm = 0;
            }
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
        Ease { file: None, times: Times::default(), looked: MonoTime(0), level: 0, calm: 0 }
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
            (64 << 20, 0, 300 << 20, FOR_THE_DISK),
            (0, 64 << 20, 0, FOR_THE_DISK),
            (0, 160 << 20, 0, FOR_THE_DISK),
            (0, 260 << 20, 0, ALL_FOR_THE_DISK),
            (48 << 20, 260 << 20, 0, FOR_THE_DISK),
            (32 << 20, 512 << 20, 0, ALL_FOR_THE_DISK),
        ] {
            assert_eq!(ease.choose(MonoTime(1), waiting, unwritten, unsynced), Choice::Aside(chosen));
        }
    }

    #[test]
    fn crowded_cores_are_left_to_the_guest_until_it_has_been_calm_for_a_while() {
        let mut ease = alone();
        ease.look(60, 30);
        ease.look(60, 30);
        assert_eq!(ease.choose(MonoTime(1), 0, 0, 0), Choice::Here(Compression::None));
        ease.look(5, 15);
        assert_eq!(ease.level, 2, "a thread that hardly runs takes nothing from anybody, and knows nothing");
        for _ in 0..CALM_LOOKS {
            ease.look(30, 1);
        }
        assert_eq!(ease.level, 1);
        ease.look(5, 15);
        assert_eq!(ease.level, 1);
    }
}
