//! What a life does next, with everything that is chosen about it: drawn by dice, or by who can shrink it.

use super::super::kit::Dice;

/// A record of one disk. What is picked is taken modulo what there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) disk: u8,
    pub(crate) sector: u16,
    pub(crate) sectors: u8,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Data(u8),
    Zero,
    Discard,
    /// A point, of no disk.
    Mark,
}

/// What becomes of a session that was written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum After {
    /// It stays open, beside others.
    Open,
    Closed,
    /// Nobody has it open any more, and nobody closed it.
    Left,
}

/// A step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Write {
        records: Vec<Record>,
        roll: bool,
        wait: bool,
    },
    Pin(u16),
    Unpin(u8),
    /// A long-term point.
    Layer,
    /// The oldest of those is given up.
    Expire,
    /// History is to begin at some moment. A merge is left after so many pieces; none: none is left.
    Merge {
        to: u16,
        pieces: Option<u8>,
    },
    /// Runs are made of segments, and footers that runs hold are emptied.
    Index,
    /// Writes to blocks (disk, block) of one of three sessions, which is made first where it is not there.
    Session {
        which: u8,
        fork: u16,
        writes: Vec<(u8, u8)>,
        flush: bool,
        after: After,
    },
    /// The session is given up.
    Drop(u8),
    Resize {
        disk: u8,
        sectors: u16,
    },
    /// A disk of so many blocks joins.
    Add {
        blocks: u8,
    },
    /// So much of the disks that are not complete is copied.
    Copy {
        blocks: u8,
    },
    Remove(u8),
    Rotate,
}

impl Record {
    fn any(dice: &mut Dice) -> Self {
        let kind = match dice.below(9) {
            0 => Kind::Zero,
            1 => Kind::Discard,
            2 => Kind::Mark,
            _ => Kind::Data(dice.next() as u8),
        };
        let (disk, sector, sectors) = (dice.next() as u8, dice.next() as u16, 1 + dice.below(24) as u8);
        Self { disk, sector, sectors, kind }
    }
}

impl Step {
    pub(super) fn any(dice: &mut Dice) -> Self {
        match dice.below(22) {
            0..=6 => Self::write(dice),
            7..=8 => Self::Pin(dice.next() as u16),
            9 => Self::Unpin(dice.next() as u8),
            10..=12 => Self::merge(dice),
            13..=14 => Self::any_session(dice),
            15 => Self::resize(dice),
            16 => Self::Add { blocks: 2 + dice.below(6) as u8 },
            17 => Self::Copy { blocks: 1 + dice.below(8) as u8 },
            18 => Self::Remove(dice.next() as u8),
            19 => Self::Layer,
            20 => Self::Expire,
            _ => Self::Rotate,
        }
    }

    fn write(dice: &mut Dice) -> Self {
        let records = (0..1 + dice.below(4)).map(|_| Record::any(dice)).collect();
        Self::Write { records, roll: dice.below(3) == 0, wait: dice.below(2) == 0 }
    }

    fn merge(dice: &mut Dice) -> Self {
        Self::Merge { to: dice.next() as u16, pieces: (dice.below(6) == 0).then(|| dice.below(4) as u8) }
    }

    fn session(dice: &mut Dice, which: u8, after: After) -> Self {
        let writes = (0..3).map(|_| (dice.next() as u8, dice.next() as u8)).collect();
        Self::Session { which, fork: dice.next() as u16, writes, flush: dice.below(4) > 0, after }
    }

    fn any_session(dice: &mut Dice) -> Self {
        let after = [After::Open, After::Closed, After::Left, After::Left][dice.below(4) as usize];
        let which = dice.below(3) as u8;
        Self::session(dice, which, after)
    }

    fn resize(dice: &mut Dice) -> Self {
        Self::Resize { disk: dice.next() as u8, sectors: 8 + dice.below(90) as u16 }
    }

    /// A life's steps: nothing of what there is is left out, and the order is the seed's.
    pub(super) fn script(dice: &mut Dice) -> Vec<Self> {
        let mut pin = || Self::Pin(dice.next() as u16);
        let pins = [pin(), pin()];
        let mut merge = || Self::merge(dice);
        let merges = [merge(), merge(), merge(), merge()];
        let [first, second] = pins;
        let [one, two, three, four] = merges;
        let mut rest = vec![first, one, Self::Layer, second, two, Self::Unpin(0), three, Self::Expire, four];
        let add = Self::Add { blocks: 2 + dice.below(6) as u8 };
        for step in [Self::resize(dice), Self::resize(dice), Self::Remove(dice.next() as u8), Self::Rotate] {
            rest.insert(dice.below(rest.len() as u64 + 1) as usize, step);
        }
        // Two sessions at once, and again.
        let both = [Self::session(dice, 0, After::Open), Self::session(dice, 1, After::Open)];
        let at = dice.below(rest.len() as u64) as usize;
        rest.splice(at..at, both);
        rest.push(Self::any_session(dice));
        // A copy has pieces, and things happen between them.
        let at = dice.below(rest.len() as u64 - 3) as usize;
        rest.insert(at, add);
        rest.insert(at + 2, Self::Copy { blocks: 1 + dice.below(3) as u8 });
        rest.insert(at + 4, Self::Copy { blocks: u8::MAX });
        if dice.below(4) == 0 {
            rest.push(Self::Drop(0));
        }
        let mut steps = Vec::new();
        // One in three has enough segments for a run from the beginning, and enough to read of them until they are merged.
        if dice.below(3) == 0 {
            for _ in 0..8 {
                steps.push(Self::Write { records: vec![Record::any(dice)], roll: true, wait: true });
            }
            steps.push(Self::Index);
        }
        for step in rest {
            steps.extend([Self::write(dice), Self::write(dice), step]);
        }
        steps
    }
}
