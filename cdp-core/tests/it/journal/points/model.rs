//! What the disks of a group were at every LSN, from what was done to them.

use super::super::kit::*;
use bytes::Bytes;
use cdp_core::types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a record did.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A disk joins, with this content.
    Joined(u16, Arc<Vec<u8>>),
    /// Its first copy is through.
    Complete(u16),
    /// It is copied, for the first time or once more.
    Incomplete(u16),
    /// None: zeros.
    Write(u16, Extent, Option<Bytes>),
    Resize(u16, u64),
    Gone(u16),
    /// A point, by its label.
    Mark(String),
    /// Nothing that a disk shows.
    Nothing,
}

/// A disk at an LSN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DiskThen {
    pub(crate) bytes: Vec<u8>,
    pub(crate) complete: bool,
}

/// The disks at an LSN, by their numbers.
pub(crate) type State = BTreeMap<u16, DiskThen>;

/// A record, or what goes with one: then both have its LSN.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) lsn: Lsn,
    pub(crate) timeline: Timeline,
    pub(crate) stamp: Stamp,
    pub(crate) what: What,
}

/// Everything that was done, on the one path that leads to now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past(pub(crate) Vec<Done>);

impl Past {
    pub(crate) fn at(&self, lsn: Lsn) -> State {
        let mut disks = BTreeMap::new();
        self.0.iter().take_while(|done| done.lsn <= lsn).for_each(|done| done.what.play(&mut disks));
        disks
    }

    /// Every LSN from the first to the last, with what the disks were then.
    pub(crate) fn walk<E>(&self, mut look: impl FnMut(&Done, &State) -> Result<(), E>) -> Result<(), E> {
        let mut disks = BTreeMap::new();
        for (number, done) in self.0.iter().enumerate() {
            done.what.play(&mut disks);
            if self.0.get(number + 1).is_none_or(|next| next.lsn != done.lsn) {
                look(done, &disks)?;
            }
        }
        Ok(())
    }

    /// The LSNs of a range that something was done at.
    pub(crate) fn lsns(&self, from: Lsn, to: Lsn) -> Vec<Lsn> {
        let mut lsns: Vec<_> = self.0.iter().map(|done| done.lsn).filter(|lsn| (from..=to).contains(lsn)).collect();
        lsns.dedup();
        lsns
    }

    pub(crate) fn timeline_of(&self, lsn: Lsn) -> Option<Timeline> {
        self.0.iter().find(|done| done.lsn >= lsn && done.lsn > Lsn::ZERO).map(|done| done.timeline)
    }

    /// The same up to an LSN.
    pub(crate) fn upto(&self, lsn: Lsn) -> Self {
        Self(self.0.iter().take_while(|done| done.lsn <= lsn).cloned().collect())
    }
}

impl What {
    fn play(&self, disks: &mut State) {
        match self {
            Self::Joined(number, content) => {
                disks.insert(*number, DiskThen { bytes: content.to_vec(), complete: false });
            }
            Self::Gone(number) => drop(disks.remove(number)),
            Self::Nothing | Self::Mark(_) => {}
            Self::Complete(number) => disks.get_mut(number).unwrap().complete = true,
            Self::Incomplete(number) => disks.get_mut(number).unwrap().complete = false,
            Self::Resize(number, to) => disks.get_mut(number).unwrap().bytes.resize(*to as usize, 0),
            Self::Write(number, extent, data) => {
                let bytes = &mut disks.get_mut(number).unwrap().bytes;
                let range = extent.offset as usize..extent.end() as usize;
                match data {
                    Some(data) => bytes[range].copy_from_slice(data),
                    None => bytes[range].fill(0),
                }
            }
        }
    }
}

/// Content that is partly zeros.
pub(super) fn content(dice: &mut Dice, size: u64) -> Vec<u8> {
    let mut content = vec![0; size as usize];
    for _ in 0..4 {
        let at = dice.below(size.div_ceil(BLOCK)) * BLOCK;
        let end = (at + (1 + dice.below(4)) * BLOCK).min(size);
        content[at as usize..end as usize].fill(1 + dice.below(250) as u8);
    }
    content
}
