//! How hard to compress: as hard as pays while a core is free for it, easier where guests would pay for it, not at all where it would be
//! their time; and hard where whoever takes the bytes is behind.
//!
//! Three signs are looked at. What waits to be packed says that frames come quicker than they are packed. How long a thread was ready
//! to run and had no core says that every core is wanted by somebody, in general by the guest that makes the frames; storing raw
//! then costs a tenth of the time and gives the rest back. But packed frames that are not taken (by a link, by a disk) say that there
//! fewer bytes help, not fewer cycles.

use crate::frame::Compression;

/// Looks without crowding before a harder level is tried again.
const CALM_LOOKS: u32 = 40;
/// Of every hundred parts of a look: ready without a core for so many means crowded, if running is worth speaking of.
const CROWDED_PERCENT: u64 = 12;
const WORTH_PERCENT: u64 = 25;
/// Below this it is calm.
const CALM_PERCENT: u64 = 4;

/// What there is to choose from, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ladder {
    /// From what is usual to storing what comes.
    pub usual: [Compression; 3],
    /// Bytes waiting to be packed above which the next easier one is taken.
    pub ease_at: [u64; 2],
    /// Bytes packed and not taken above which who takes them is behind, and far behind.
    pub behind_at: [u64; 2],
    /// Then this.
    pub behind: Compression,
    /// And this, where the packing keeps up.
    pub far_behind: Compression,
}

/// So much more must wait to be taken than to be packed, or the packing would become the narrow place instead.
const KEEPS_UP: u64 = 8;

/// For a link: what is sent was compressed at the least, unless cores are wanted; where the line is the narrow place, harder.
pub const FOR_A_LINK: Ladder = Ladder {
    usual: [Compression::Sampled(1), Compression::Sampled(-3), Compression::None],
    // More than one window, which comes at once.
    ease_at: [20 << 20, 40 << 20],
    // A tenth of a second of 1 Gbit/s, and half of one.
    behind_at: [12 << 20, 60 << 20],
    behind: Compression::Sampled(1),
    far_behind: Compression::Sampled(3),
};

/// What was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chosen {
    /// By backlog and cores.
    Usual(Compression),
    /// Because who takes the bytes is behind.
    Behind(Compression),
}

impl Chosen {
    /// How hard, whatever the reason.
    #[must_use]
    pub fn compression(self) -> Compression {
        let (Self::Usual(compression) | Self::Behind(compression)) = self;
        compression
    }
}

/// Remembers how crowded the cores were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Level {
    steps: usize,
    calm: u32,
}

impl Level {
    /// A thread that packs or waits with it was running, and ready without a core, for so many of every hundred parts of the time since the
    /// last look. Looks come every 50 ms or so.
    pub fn look(&mut self, running: u64, waiting: u64) {
        if waiting >= CROWDED_PERCENT && running + waiting >= WORTH_PERCENT {
            self.steps = (self.steps + 1).min(2);
            self.calm = 0;
        } else if waiting >= CALM_PERCENT {
            self.calm = 0;
        } else {
            self.calm += 1;
            if self.calm >= CALM_LOOKS {
                self.steps = self.steps.saturating_sub(1);
                self.calm = 0;
            }
        }
    }

    /// What to do with the next frame, with so many plain bytes waiting to be packed and so many packed ones to be taken. `late`: there are
    /// other signs that who takes them is behind.
    #[must_use]
    pub fn choose(&self, ladder: &Ladder, unpacked: u64, untaken: u64, late: bool) -> Chosen {
        if late || untaken > ladder.behind_at[0] {
            let far = untaken > ladder.behind_at[1] && unpacked <= untaken / KEEPS_UP;
            return Chosen::Behind(if far { ladder.far_behind } else { ladder.behind });
        }
        let by_backlog = ladder.ease_at.iter().filter(|limit| unpacked > **limit).count();
        Chosen::Usual(ladder.usual[self.steps.max(by_backlog)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(level: Level, unpacked: u64, untaken: u64) -> Compression {
        level.choose(&FOR_A_LINK, unpacked, untaken, false).compression()
    }

    #[test]
    fn a_backlog_is_packed_with_less_effort() {
        let level = Level::default();
        assert_eq!(of(level, 0, 0), Compression::Sampled(1));
        assert_eq!(of(level, 24 << 20, 0), Compression::Sampled(-3));
        assert_eq!(of(level, 64 << 20, 1 << 20), Compression::None);
    }

    #[test]
    fn a_narrow_line_gets_fewer_bytes_as_long_as_the_packing_keeps_up() {
        let level = Level::default();
        assert_eq!(of(level, 5 << 20, 13 << 20), Compression::Sampled(1));
        assert_eq!(of(level, 5 << 20, 80 << 20), Compression::Sampled(3));
        assert_eq!(of(level, 64 << 20, 80 << 20), Compression::Sampled(1));
        assert_eq!(level.choose(&FOR_A_LINK, 0, 0, true), Chosen::Behind(Compression::Sampled(1)));
    }

    #[test]
    fn crowded_cores_are_left_to_the_guest_until_it_has_been_calm_for_a_while() {
        let mut level = Level::default();
        level.look(60, 30);
        level.look(60, 30);
        assert_eq!(of(level, 0, 0), Compression::None);
        level.look(5, 15);
        assert_eq!(level.steps, 2, "a thread that hardly runs takes nothing from anybody, and knows nothing");
        for _ in 0..CALM_LOOKS {
            level.look(30, 1);
        }
        assert_eq!(level.steps, 1);
        level.look(5, 15);
        assert_eq!(level.steps, 1);
    }
}
