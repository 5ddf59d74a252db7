//! What the disks of a group were at every LSN, from what was done to them.

use super::super::kit::*;
use bytes::Bytes;
use cdp_core::types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a record did.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// A disk joins, with this content.
    Joined(u16, Arc<Vec<u8>>),
    /// Its first copy is through.
    Complete(u16),
    /// None: zeros.
    Write(u16, Extent, Option<Bytes>),
    Resize(u16, u64),
    Gone(u16),
    /// Nothing that a disk shows.
    Nothing,
}

/// A disk at an LSN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DiskThen {
    pub(super) bytes: Vec<u8>,
    pub(super) complete: bool,
}

/// Everything that was done, on the one path that leads to now.
#[derive(Clone, Debug, Default)]
pub(super) struct Past(pub(super) Vec<(Lsn, Timeline, What)>);

impl Past {
    pub(super) fn at(&self, lsn: Lsn) -> BTreeMap<u16, DiskThen> {
        let mut disks = BTreeMap::new();
        for (_, _, what) in self.0.iter().take_while(|(at, ..)| *at <= lsn) {
            what.play(&mut disks);
        }
        disks
    }

    /// The LSNs of a range that something was done at.
    pub(super) fn lsns(&self, from: Lsn, to: Lsn) -> Vec<Lsn> {
        let mut lsns: Vec<_> = self.0.iter().map(|(lsn, ..)| *lsn).filter(|lsn| (from..=to).contains(lsn)).collect();
        lsns.dedup();
        lsns
    }

    pub(super) fn timeline_of(&self, lsn: Lsn) -> Option<Timeline> {
        self.0.iter().find(|(at, ..)| *at >= lsn && *at > Lsn::ZERO).map(|(_, timeline, _)| *timeline)
    }

    /// The same up to an LSN.
    pub(super) fn upto(&self, lsn: Lsn) -> Self {
        Self(self.0.iter().take_while(|(at, ..)| *at <= lsn).cloned().collect())
    }
}

impl What {
    fn play(&self, disks: &mut BTreeMap<u16, DiskThen>) {
        match self {
            Self::Joined(number, content) => {
                disks.insert(*number, DiskThen { bytes: content.to_vec(), complete: false });
            }
            Self::Gone(number) => drop(disks.remove(number)),
            Self::Nothing => {}
            Self::Complete(number) => disks.get_mut(number).unwrap().complete = true,
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
