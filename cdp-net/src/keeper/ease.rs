//! How hard to compress: as the policy says while a core is free for it, easier where guests would pay for it, not at all
//! where it would be their time.
//!
//! What is decided how is [`Level`]'s; here is what it is told: how long the pump's own thread was ready to run and had no core, what waits
//! to be packed, and what the journal does not take yet or is written and does not become durable, which says that the disk is behind.
//! Bytes are saved for that where they are cheap first, in chunks that promise to shrink well: half of the time for most of the bytes.

use crate::crowding::Crowding;
use cdp_core::frame::Compression;
use cdp_core::link::prepare::{Chosen, Ladder, Level};
use cdp_core::types::MonoTime;

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
    crowding: Crowding,
    level: Level,
}

impl Ease {
    /// For the calling thread.
    pub(super) fn of_this_thread(now: MonoTime) -> Self {
        Self { crowding: Crowding::of_this_thread(now), level: Level::default() }
    }

    /// What to do with the next frame, with so many plain bytes waiting to be packed, so many stored ones to be written, and so
    /// many written ones to become durable.
    pub(super) fn choose(&mut self, now: MonoTime, waiting: u64, unwritten: u64, unsynced: u64) -> Choice {
        if let Some((running, waiting)) = self.crowding.look(now) {
            self.level.look(running, waiting);
        }
        match self.level.choose(&FOR_THE_JOURNAL, waiting, unwritten, unsynced > SYNC_BEHIND) {
            Chosen::Usual(compression) => Choice::Here(compression),
            Chosen::Behind(compression) => Choice::Aside(compression),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> Ease {
        Ease { crowding: Crowding::unknown(), level: Level::default() }
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
