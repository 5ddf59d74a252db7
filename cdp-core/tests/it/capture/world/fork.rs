//! The far side: proxies that store, are lost, and a replica that forgets; the filter goes on under another timeline.
//!
//! After a fork the world counts from there: what the replica has is the base, what the guests did so far is the beginning.

use super::*;
use cdp_core::frame::{Note, Part, RecordKind};

/// What somebody knows of the disks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// Sectors of each; 0: there is none.
    pub sizes: Vec<usize>,
    /// Those that are not complete.
    pub hidden: BTreeSet<usize>,
}

impl Known {
    /// A record says something of a disk.
    pub fn hear(&mut self, part: &Part) {
        let Some(disk) = part.disk.map(index) else { return };
        match part.note.as_deref() {
            Some(Note::DiskAdded { size, .. }) => {
                let before = std::mem::replace(&mut self.sizes[disk], (size / SECTOR) as usize);
                if before == 0 {
                    self.hidden.insert(disk);
                }
            }
            Some(Note::Resize { to, .. }) => self.sizes[disk] = (to / SECTOR) as usize,
            Some(Note::ResyncBegin { .. }) => drop(self.hidden.insert(disk)),
            Some(Note::ResyncEnd { .. }) => drop(self.hidden.remove(&disk)),
            _ if part.kind == RecordKind::DiskRemoved => self.sizes[disk] = 0,
            _ => {}
        }
    }

    /// With disks of which no record is there: nothing of them is complete.
    fn with(mut self, specs: &[DiskSpec]) -> Self {
        for (disk, size) in specs.iter().map(|spec| (index(spec.id), (spec.size / SECTOR) as usize)) {
            match self.sizes[disk] {
                0 => {
                    self.sizes[disk] = size;
                    self.hidden.insert(disk);
                }
                known => assert_eq!(known, size, "of disk {disk} records say another size"),
            }
        }
        self
    }

    /// Disks that can be restored.
    pub fn shown(&self) -> impl Iterator<Item = usize> {
        (0..self.sizes.len()).filter(|disk| self.sizes[*disk] > 0 && !self.hidden.contains(disk))
    }
}

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
        let known = self.known_at(at);
        let there = known.sizes.iter().enumerate().filter(|(_, size)| **size > 0);
        let specs: Vec<DiskSpec> = there.map(|(disk, size)| spec(disk, *size as u64 * SECTOR)).collect();
        self.fork_at(timeline, at, if forgets { Fork::Acknowledged } else { Fork::Lent }, &specs);
    }

    /// The replica has opened another timeline, which forks from this one at `at`, and knows these disks there.
    pub fn fork_at(&mut self, timeline: Timeline, at: Lsn, lost: Fork, specs: &[DiskSpec]) {
        let known = self.known_at(at).with(specs);
        self.rebase(at, known);
        self.options.timeline = timeline;
        let first = self.filter.fork(self.both(), timeline, at, lost, specs).expect("a good fork");
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

    /// The disks as records say that the replica has them at an LSN.
    pub fn known_at(&self, at: Lsn) -> Known {
        let mut known = self.known_first();
        let parts = self.frames.iter().flat_map(|frame| &frame.parts);
        parts.filter(|part| part.lsn <= at).for_each(|part| known.hear(part));
        known
    }

    /// Whether a disk was there and complete before the first record.
    pub fn was_whole(&self, at: usize) -> bool {
        self.start_sizes[at] > 0 && !self.hidden.contains(&at)
    }

    /// The same before the first record.
    pub(super) fn known_first(&self) -> Known {
        Known { sizes: self.start_sizes.clone(), hidden: self.hidden.clone() }
    }

    /// What the replica knew of disks when the filter began.
    pub fn begin_with(&mut self, known: Known) {
        (self.start_sizes, self.hidden) = (known.sizes, known.hidden);
        self.make_room();
    }

    /// Every disk has as many sectors as it ever had.
    fn make_room(&mut self) {
        for (at, size) in self.start_sizes.iter().enumerate() {
            let most = self.disks[at].content.len().max(*size);
            for content in [&mut self.start_content[at], &mut self.base[at], &mut self.applied[at]] {
                let length = content.len().max(most);
                content.resize(length, 0);
            }
            let length = self.covered[at].len().max(most);
            self.covered[at].resize(length, false);
        }
    }

    fn rebase(&mut self, at: Lsn, known: Known) {
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
        (self.start_sizes, self.hidden) = (known.sizes, known.hidden);
        self.frames.clear();
        self.repaired.clear();
        self.taken = 0;
        (self.shape, self.chain_start, self.forked_at) = (Shape::default(), Lsn::ZERO, at);
        self.events.retain(|event| !matches!(event, Event::PointDurable { .. }));
        self.make_room();
    }
}
