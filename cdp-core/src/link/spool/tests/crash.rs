//! The power goes at any change of the media, with any subset of unsynced bytes and names kept, or the process alone ends and what
//! it wrote is not synced yet; life after life.

use super::*;
use crate::sim::{SimDisk, Survival};

/// Everything that one story knows.
struct Story {
    dice: Dice,
    source: Source,
    /// All frames that were ever pushed, and that the spool may still be asked for.
    frames: Vec<EncodedFrame>,
    /// The source as it was behind each of them.
    sources: Vec<Source>,
    /// Frames before this one are released.
    released: usize,
    /// Frames before this one were called stored.
    stored: usize,
}

impl Story {
    /// A life: pushes, releases, effects in any order, until the power is gone or for so many steps.
    fn live(&mut self, rig: &mut Rig, disk: &SimDisk, base: usize, steps: u64) {
        for _ in 0..steps {
            if disk.is_cut() {
                return;
            }
            match self.dice.below(12) {
                0..=3 => {
                    let before = self.source.clone();
                    let frame = self.source.frame(1 + self.dice.below(400), 1 + self.dice.below(8) as usize);
                    match rig.spool.push(frame.clone()) {
                        Ok(number) => {
                            assert_eq!(number as usize + base, self.frames.len());
                            self.frames.push(frame);
                            self.sources.push(self.source.clone());
                        }
                        Err(refused) => {
                            assert!(matches!(refused, PushError::Full { .. }), "{refused}");
                            self.source = before;
                        }
                    }
                }
                4 if self.released < self.frames.len() => {
                    let most = (self.frames.len() - self.released).min(12) as u64;
                    self.released += 1 + self.dice.below(most) as usize;
                    rig.spool.release((self.released - 1 - base) as u64);
                }
                5 => rig.now = rig.now.after(self.dice.below(2 * SYNC_PAUSE_NS)),
                6 => drop(rig.spool.get(self.dice.below(1 + rig.spool.next_number()))),
                7 if self.dice.below(8) == 0 => rig.now = rig.now.after(RETRY_NS),
                8 => rig.poll(),
                _ => {
                    rig.poll();
                    rig.finish(self.dice.below(64) as usize);
                }
            }
            if !disk.is_cut() {
                self.stored = self.stored.max(base + rig.spool.stored().map_or(0, |number| number as usize + 1));
            }
        }
    }

    /// What was stored and not released is there, and what is there is what was pushed, in order; gives the spool that goes on.
    fn found(&mut self, disk: &SimDisk) -> (Spool, usize) {
        let mut recovery = Spool::recover(disk, "spool/a").unwrap();
        assert!(recovery.dropped.is_empty(), "{:?}", recovery.dropped);
        assert!(recovery.found.len() <= 1);
        let Some(found) = recovery.found.pop() else {
            assert!(self.stored <= self.released, "stored {}, released {}", self.stored, self.released);
            // The peer says from where it wants to go on: from what the replica has.
            self.resume(self.released);
            return (Spool::new(options(true)), self.frames.len());
        };
        let base = self.frames.iter().position(|frame| frame.info.begin() == found.begin).expect("one of ours");
        let end = base + found.frames.len();
        // What is released counts as stored, wherever it was.
        let whole = end >= self.stored || self.stored <= self.released;
        assert!(base <= self.released && whole, "{base}..{end} of stored {}", self.stored);
        for (info, frame) in found.frames.iter().zip(&self.frames[base..]) {
            assert_eq!(*info, frame.info);
        }
        // Where all that is there is durable already the replica is asked, and the spool begins anew.
        self.resume(end.max(self.released));
        let mut spool = found.into_spool(options(true));
        if end < self.released {
            spool.release(u64::MAX);
            spool = self.fresh(disk, spool);
            return (spool, self.frames.len());
        }
        self.stored = end;
        if self.released > base {
            spool.release((self.released - base - 1) as u64);
        }
        (spool, base)
    }

    /// The source goes on behind so many frames.
    fn resume(&mut self, frames: usize) {
        self.frames.truncate(frames);
        self.sources.truncate(frames);
        self.source = self.sources.last().cloned().unwrap_or_else(|| Source::new(1));
    }

    /// A spool in which nothing is wanted ends, and another one of the timeline begins.
    fn fresh(&mut self, disk: &SimDisk, mut spool: Spool) -> Spool {
        spool.retire();
        let mut rig = Rig::new(spool, Arc::new(disk.clone()));
        rig.settle();
        assert!(rig.spool.is_idle());
        Spool::new(options(true))
    }
}

fn tell(seed: u64) -> (usize, usize) {
    let mut story = Story {
        dice: Dice(seed),
        source: Source::new(1),
        frames: Vec::new(),
        sources: Vec::new(),
        released: 0,
        stored: 0,
    };
    let mut disk = SimDisk::new();
    let (mut spool, mut base) = (Spool::new(options(true)), 0);
    let mut kept = 0;
    for _ in 0..4 {
        let killed = story.dice.below(3) == 0;
        disk.cut_at(if killed { u64::MAX } else { disk.effects() + 1 + story.dice.below(60) });
        let mut rig = Rig::new(spool, Arc::new(disk.clone()));
        let steps = if killed { story.dice.below(200) } else { 400 };
        story.live(&mut rig, &disk, base, steps);
        drop(rig);
        let survival = match story.dice.below(8) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            _ => Survival::Some(story.dice.below(u64::MAX)),
        };
        if !killed {
            disk = disk.after_cut(survival);
        }
        (spool, base) = story.found(&disk);
        kept += (story.stored.saturating_sub(story.released) > 0) as usize;
        // What is there can be read.
        let mut rig = Rig::new(spool, Arc::new(disk.clone()));
        for number in story.released.max(base)..base + rig.spool.next_number() as usize {
            let frame = rig.read((number - base) as u64).expect("it is there");
            assert_eq!(bytes_of(&frame), bytes_of(&story.frames[number]));
        }
        spool = rig.spool;
    }
    (kept, story.frames.len())
}

#[test]
fn what_was_stored_survives_any_power_cut() {
    let cases = std::env::var("CDP_SPOOL_SEEDS").map_or(100, |text| text.parse().expect("a number"));
    let (mut kept, mut frames) = (0, 0);
    for seed in 0..cases {
        let told = std::panic::catch_unwind(|| tell(seed));
        let (more, pushed) = told.unwrap_or_else(|_| panic!("seed {seed}"));
        (kept, frames) = (kept + more, frames + pushed);
    }
    assert!(kept as u64 > cases / 2 && frames as u64 > cases * 10, "{kept} crashes with something stored");
}
