//! Which moments of a disk go with something that cannot be read.

use super::Replica;
use crate::journal::Unreadable;
use crate::types::{DiskId, Extent, Lsn, Timeline};
use std::collections::BTreeMap;

/// Something of a disk that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The record that wrote it; none: it lies in the base, below every record.
    pub written: Option<(Timeline, Lsn)>,
    /// Its disk; none: it may be any.
    pub disk: Option<DiskId>,
    /// Which bytes of the disk.
    pub extent: Extent,
}

impl From<&Unreadable> for Lost {
    fn from(unreadable: &Unreadable) -> Self {
        let Unreadable { timeline, lsn, disk, extent, .. } = *unreadable;
        Self { written: Some((timeline, lsn)), disk, extent }
    }
}

/// The LSNs of a timeline at which a view needs what is lost: the first, and the last unless it is needed to the newest.
pub type Needed = (Timeline, Lsn, Option<Lsn>);

/// What of something that is lost is still there where a timeline begins.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Left {
    /// Its record comes later, or is on another way.
    Not,
    /// These bytes of it.
    Some(Vec<Extent>),
    /// Nobody knows how much; it counts as there for ever.
    Unknown,
    /// Nothing: all of it was written over.
    Nothing,
}

impl Replica {
    /// The moments above the bases that need something that is lost: on each timeline from its record on, until records have
    /// written over all of it. A timeline goes on from what its parent leaves it: of each the records are looked through twice.
    #[must_use]
    pub fn moments_that_need(&self, lost: &Lost) -> Vec<Needed> {
        let from = lost.written.map_or(Lsn::ZERO, |(_, lsn)| lsn);
        let mut begins: BTreeMap<Timeline, Left> = BTreeMap::new();
        let mut needed = Vec::new();
        for branch in self.catalogue.branches() {
            let path = self.catalogue.path(branch.timeline);
            let way: Vec<_> = path.iter().rev().map(|(branch, upto)| (branch.timeline, *upto)).collect();
            let mut left = if lost.written.is_none() { Left::Some(vec![lost.extent]) } else { Left::Not };
            for pair in way.windows(2) {
                let next = begins.get(&pair[1].0).cloned();
                left = next.unwrap_or_else(|| self.left_at(pair[0], left, lost).0);
                begins.insert(pair[1].0, left.clone());
            }
            match self.left_at((branch.timeline, Lsn(u64::MAX)), left.clone(), lost) {
                // What was written over before it forked stays so.
                _ if left == Left::Nothing => {}
                (Left::Not, _) => {}
                (Left::Nothing, end) => needed.push((branch.timeline, from, Some(end.prev()))),
                (Left::Some(_) | Left::Unknown, _) => needed.push((branch.timeline, from, None)),
            }
        }
        needed.retain(|(_, first, last)| last.is_none_or(|last| *first <= last));
        needed
    }

    /// What of something that is lost is left at an LSN of a timeline, from what was left where that began; if it is nothing, and was
    /// not, with which record the last was written over.
    fn left_at(&self, (timeline, upto): (Timeline, Lsn), left: Left, lost: &Lost) -> (Left, Lsn) {
        let from = lost.written.map_or(Lsn::ZERO, |(_, lsn)| lsn);
        let mut rest = match left {
            Left::Not if lost.written.is_some_and(|(on, lsn)| on == timeline && lsn <= upto) => vec![lost.extent],
            Left::Some(rest) => rest,
            Left::Not | Left::Unknown | Left::Nothing => return (left, from),
        };
        let Some(disk) = lost.disk else { return (Left::Unknown, from) };
        // LSNs grow along a path. What cannot be read of an index tells of nothing that was written over.
        match self.reader.written_over(&self.snapshot, (timeline, disk), &mut rest, (from, upto)) {
            Ok(Some(lsn)) => (Left::Nothing, lsn),
            Ok(None) => (Left::Some(rest), from),
            Err(_) => (Left::Unknown, from),
        }
    }
}
