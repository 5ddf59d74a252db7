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

impl Replica {
    /// The moments above the bases that need something that is lost: on each timeline from its record on, until records have
    /// written over all of it.
    #[must_use]
    pub fn moments_that_need(&self, lost: &Lost) -> Vec<Needed> {
        let mut over: BTreeMap<Timeline, Lsn> = BTreeMap::new();
        let mut needed = Vec::new();
        for branch in self.catalogue.branches() {
            // What was written over before it forked stays so.
            let parent = branch.parent.and_then(|parent| over.get(&parent)).copied();
            if let Some(lsn) = parent.filter(|lsn| *lsn <= branch.fork) {
                over.insert(branch.timeline, lsn);
                continue;
            }
            let Some((first, end)) = self.needed_on(branch.timeline, lost) else { continue };
            over.extend(end.map(|end| (branch.timeline, end)));
            needed.push((branch.timeline, first, end.map(Lsn::prev)));
        }
        needed.retain(|(_, first, last)| last.is_none_or(|last| *first <= last));
        needed
    }

    /// From which LSN on a timeline's way something that is lost is there, and with which it is written over.
    fn needed_on(&self, timeline: Timeline, lost: &Lost) -> Option<(Lsn, Option<Lsn>)> {
        let path = self.catalogue.path(timeline);
        let from = lost.written.map_or(Lsn::ZERO, |(_, lsn)| lsn);
        let written = |on: Timeline, upto: Lsn| lost.written.is_none_or(|(of, lsn)| of == on && lsn <= upto);
        let way: Vec<_> = path.iter().rev().map(|(branch, upto)| (branch.timeline, *upto)).collect();
        let begin = way.iter().position(|(on, upto)| written(*on, *upto))?;
        let Some(disk) = lost.disk else { return Some((from, None)) };
        let mut rest = vec![lost.extent];
        for (on, upto) in &way[begin..] {
            // LSNs grow along a path. What cannot be read of an index tells of nothing that was written over.
            match self.reader.written_over(&self.snapshot, (*on, disk), &mut rest, (from, *upto)) {
                Ok(Some(lsn)) => return Some((from, Some(lsn))),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        Some((from, None))
    }
}
