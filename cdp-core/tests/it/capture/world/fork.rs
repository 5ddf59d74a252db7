//! The far side: proxies that store, are lost, and a replica that forgets; the filter goes on under another timeline.
//!
//! After a fork the world counts from there: what the replica has is the base, what the guests did so far is the beginning.

use super::*;
use cdp_core::frame::{Note, RecordKind};

impl World {
    /// A proxy has synced some of what it was sent. Another one that took its place may have less.
    pub(super) fn proxy_stores(&mut self) {
        let until = self.rng.between(self.taken as u64, self.frames.len() as u64) as usize;
        self.stored = model::whole(&self.frames[..until]).max(self.applied_through);
        self.filter.stored(self.stored);
        self.later(10 * MS, Ev::ProxyStores);
    }

    pub(super) fn maybe_fork(&mut self) {
        if self.unlucky(self.hostility.forks_one_in) {
            self.fork();
        }
        self.later(2 * S, Ev::Fork);
    }

    pub(super) fn detach_or_attach(&mut self) {
        let now = self.both();
        if !self.filter.attach(now) && !self.calm {
            match self.rng.below(3) {
                0 => self.filter.detach(now),
                1 => self.pass_by(),
                _ => {}
            }
        }
        self.later(3 * S, Ev::Detach);
    }

    /// No record leaves under a timeline that the log, as it lies there and will be believed, does not name.
    pub(super) fn check_log_names(&self, timeline: Timeline) {
        if let Ok(log) = LogContents::read(&self.log_file, self.options.group)
            && log.generation >= self.told
        {
            assert_eq!(log.timeline, timeline, "the log is that of another timeline: {log:?}");
        }
    }

    /// The order cannot go on. What is not durable is lost; sometimes what was durable, too.
    pub fn fork(&mut self) {
        self.check();
        let durable = model::whole(&self.frames[..self.taken]).max(self.applied_through);
        let forgets = self.rng.one_in(4);
        let kept = if forgets { self.rng.between(0, self.taken as u64) as usize } else { self.taken };
        let at = if forgets { model::whole(&self.frames[..kept]).max(self.forked_at) } else { durable };
        if at == Lsn::ZERO && forgets {
            return;
        }
        let timeline = Timeline::new(self.rng.identity()).expect("not 0");
        self.fork_at(timeline, at, if forgets { Fork::Acknowledged } else { Fork::Lent });
    }

    /// The replica has opened another timeline, which forks from this one at `at`.
    pub fn fork_at(&mut self, timeline: Timeline, at: Lsn, lost: Fork) {
        let known = self.known_at(at);
        let specs: Vec<DiskSpec> = known
            .iter()
            .enumerate()
            .filter(|(_, size)| **size > 0)
            .map(|(disk, size)| spec(disk, *size as u64 * SECTOR))
            .collect();
        self.rebase(at, known);
        self.options.timeline = timeline;
        let first = self.filter.fork(self.both(), timeline, at, lost, &specs).expect("a good fork");
        assert!(first > at);
        let call = self.called();
        // What a disk is about to have grown by is beyond the sizes that the fork tells.
        for disk in 0..self.disks.len() {
            let from = self.sizes[disk];
            let tags = self.disks[disk].content[from..].to_vec();
            if !tags.is_empty() {
                let extent = Extent::new(from as u64 * SECTOR, tags.len() as u64 * SECTOR);
                self.changes.push(Change { call, disk, extent, tags, lsn: None, torn: true });
            }
        }
    }

    /// Sizes of the disks as the replica has them at an LSN, 0 where it does not know one; and those that are not complete.
    fn known_at(&mut self, at: Lsn) -> Vec<usize> {
        let mut sizes = self.start_sizes.clone();
        for part in self.frames.iter().flat_map(|frame| &frame.parts).filter(|part| part.lsn <= at) {
            let Some(disk) = part.disk.map(index) else { continue };
            match part.note.as_deref() {
                Some(Note::DiskAdded { size: to, .. } | Note::Resize { to, .. }) => {
                    sizes[disk] = (to / SECTOR) as usize
                }
                Some(Note::ResyncBegin { .. }) => drop(self.hidden.insert(disk)),
                Some(Note::ResyncEnd { .. }) => drop(self.hidden.remove(&disk)),
                _ if part.kind == RecordKind::DiskRemoved => sizes[disk] = 0,
                _ => {}
            }
        }
        sizes
    }

    fn rebase(&mut self, at: Lsn, known: Vec<usize>) {
        model::apply(&mut self.base, &self.frames, (Lsn::ZERO, at), &self.left_out, index);
        self.applied = self.base.clone();
        self.applied_through = at;
        self.stored = at;
        for change in std::mem::take(&mut self.changes) {
            for (sector, at) in sectors(change.extent).zip(0..) {
                self.start_content[change.disk][sector] = change.tags.get(at).copied().unwrap_or(0);
            }
        }
        self.change_of_op.clear();
        self.start_sizes = known;
        self.frames.clear();
        self.repaired.clear();
        self.taken = 0;
        (self.shape, self.chain_start, self.forked_at) = (Shape::default(), Lsn::ZERO, at);
        self.events.retain(|event| !matches!(event, Event::PointDurable { .. }));
    }
}
