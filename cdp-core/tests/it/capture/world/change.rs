//! Disks that join, change their size and leave, while guests write and everything else goes wrong.

use super::*;

/// The most disks at once, and where the replica is elsewhere.
const DISKS: usize = 4;
const DISKS_FAR: usize = 8;

/// What somebody wants of the disks, whose replica is elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskChange {
    /// Another one joins, with so many sectors.
    Join { sectors: usize },
    /// It leaves.
    Leave { disk: usize },
    /// It gets so many sectors.
    Resize { disk: usize, to: usize },
}

impl World {
    /// A disk that guests may write to.
    pub(super) fn any_disk(&mut self) -> usize {
        let there: Vec<_> = (0..self.disks.len()).filter(|disk| !self.left.contains(disk)).collect();
        there[self.rng.below(there.len() as u64) as usize]
    }

    pub(super) fn change_disks(&mut self) {
        if self.calm {
            return;
        }
        if self.hostility.far {
            return self.want_change();
        }
        if self.seeds_left > 0 {
            // A driver lets a new group be copied first.
            return self.later(S, Ev::Change);
        }
        let there = self.disks.len() - self.left.len();
        let disk = self.any_disk();
        let free = !self.changing.contains(&disk);
        match self.rng.below(4) {
            0 if there < DISKS => self.add_disk(),
            // One that is being copied may leave too.
            1 if there > 1 && self.filter.remove_disk(spec(disk, 0).id).is_ok() => {
                self.changing.insert(disk);
            }
            2 if free => self.grow_disk(disk),
            3 if free => {
                let to = self.rng.between(1, self.sizes[disk] as u64 - 1) * SECTOR;
                self.filter.resize_disk(self.both(), spec(disk, 0).id, to, Vec::new()).expect("a smaller size");
                self.changing.insert(disk);
            }
            _ => {}
        }
        self.called();
        self.later(S, Ev::Change);
    }

    /// Whether it can be now is for whoever has the replica to say.
    fn want_change(&mut self) {
        let disk = self.any_disk();
        let (there, size) = (self.disks.len() - self.left.len(), self.sizes[disk]);
        let most = self.hostility.disk_sectors;
        let change = match self.rng.below(4) {
            0 if there < DISKS_FAR => Some(DiskChange::Join { sectors: self.rng.between(1, most) as usize }),
            1 if there > 1 => Some(DiskChange::Leave { disk }),
            2 if (size as u64) < most => {
                Some(DiskChange::Resize { disk, to: self.rng.between(size as u64 + 1, most) as usize })
            }
            3 if size > 1 => Some(DiskChange::Resize { disk, to: self.rng.between(1, size as u64 - 1) as usize }),
            _ => None,
        };
        self.orders.extend(change.map(Order::Change));
        self.later(S / 2, Ev::Change);
    }

    fn some_tags(&mut self, count: usize) -> Tags {
        let mut tags = vec![0; count];
        for piece in tags.chunks_mut(512) {
            if self.rng.one_in(2) {
                piece.iter_mut().for_each(|tag| *tag = 1 << 63 | self.rng.next() >> 1);
            }
        }
        tags
    }

    fn add_disk(&mut self) {
        let most = self.hostility.disk_sectors;
        let (at, count) = (self.disks.len(), self.rng.between(most / 20, most) as usize);
        let disk = SimDisk::new(count as u64 * SECTOR, &mut self.rng);
        self.reserve_disk();
        self.put_disk(at, disk);
        let facts = self.rng.one_in(2).then(|| vec![1]);
        self.filter.add_disk(self.both(), spec(at, count as u64 * SECTOR), facts).expect("a new disk");
        self.changing.insert(at);
        self.later(40 * MS, Ev::SeedStep(at, 0));
    }

    /// The number of a disk that is to join.
    pub fn reserve_disk(&mut self) -> usize {
        let at = self.disks.len();
        self.disks.push(SimDisk::new(0, &mut self.rng));
        for contents in [&mut self.start_content, &mut self.base, &mut self.applied] {
            contents.push(Vec::new());
        }
        self.covered.push(Vec::new());
        for sizes in [&mut self.start_sizes, &mut self.sizes, &mut self.source_sizes] {
            sizes.push(0);
        }
        self.left.insert(at);
        at
    }

    /// A disk of this number is there.
    fn put_disk(&mut self, at: usize, disk: SimDisk) {
        let count = disk.content.len();
        self.start_content[at].clone_from(&disk.content);
        self.disks[at] = disk;
        for replica in [&mut self.base, &mut self.applied] {
            replica[at] = vec![0; count];
        }
        self.covered[at] = vec![false; count];
        (self.sizes[at], self.source_sizes[at]) = (count, count);
        self.left.remove(&at);
    }

    /// A disk whose number was reserved joins, and is to be copied. Gives the last record that says so.
    pub fn join(&mut self, at: usize, sectors: usize) -> Lsn {
        let disk = SimDisk::new(sectors as u64 * SECTOR, &mut self.rng);
        self.put_disk(at, disk);
        let facts = self.rng.one_in(2).then(|| vec![1]);
        self.filter.add_disk(self.both(), spec(at, sectors as u64 * SECTOR), facts).expect("a new disk");
        self.changing.insert(at);
        self.called();
        self.filter.status(self.both()).lsn
    }

    /// The copy of a disk that joined is whole.
    pub fn joined(&mut self, at: usize) {
        self.filter.disk_seeded(self.both(), spec(at, 0).id).expect("it is being copied");
        self.called();
        self.drain();
    }

    /// Whether something becomes of a disk already, or became.
    pub fn is_busy(&self, at: usize) -> bool {
        self.changing.contains(&at) || self.left.contains(&at)
    }

    /// A disk is to leave; whether it can.
    pub fn leave(&mut self, at: usize) -> bool {
        let leaves = self.filter.remove_disk(spec(at, 0).id).is_ok();
        if leaves {
            self.changing.insert(at);
        }
        self.called();
        self.drain();
        leaves
    }

    /// A disk is to get another size. A larger one is that of its source, of which all that is new may differ.
    pub fn resize(&mut self, at: usize, to: usize) {
        let (from, to) = (self.sizes[at] as u64 * SECTOR, to as u64 * SECTOR);
        let new = (to > from).then(|| Extent::new(from, to - from));
        self.filter.resize_disk(self.both(), spec(at, 0).id, to, new.into_iter().collect()).expect("another size");
        self.changing.insert(at);
        self.called();
        self.drain();
    }

    /// The source is larger, and what is new holds something already.
    fn grow_disk(&mut self, at: usize) {
        let count = self.rng.between(1, self.hostility.disk_sectors) as usize;
        let from = self.sizes[at];
        self.grow_source(at, from + count);
        self.resize(at, from + count);
    }

    /// A source gets more sectors; its disk does when the filter is told.
    pub fn grow_source(&mut self, at: usize, to: usize) {
        let from = self.sizes[at];
        let tags = self.some_tags(to - from);
        let new = Extent::new(from as u64 * SECTOR, (to - from) as u64 * SECTOR);
        self.source_sizes[at] = to;
        let steady = self.disks[at].steady.min(from);
        self.disks[at].steady = steady;
        self.disks[at].put(from, &tags);
        for content in [&mut self.start_content[at], &mut self.base[at], &mut self.applied[at]] {
            let length = content.len().max(to);
            content.resize(length, 0);
        }
        let length = self.covered[at].len().max(to);
        self.covered[at].resize(length, false);
        let call = self.called();
        // Nobody sees it before the record.
        self.changes.push(Change { call, disk: at, extent: new, tags, lsn: None, torn: true });
    }

    /// What the filter tells of a disk.
    pub(super) fn disk_changed(&mut self, event: &Event) {
        if let Event::DiskResized { lsn, .. } | Event::DiskComplete { lsn, .. } | Event::DiskRemoved { lsn, .. } = event
        {
            self.disks_changed = self.disks_changed.max(*lsn);
        }
        match event {
            Event::DiskResized { disk, size, .. } => {
                let (at, to) = (index(*disk), (size / SECTOR) as usize);
                let from = std::mem::replace(&mut self.sizes[at], to);
                if to < from {
                    let open = self.ops.values().find(|op| op.disk == at && op.extent.end() > *size);
                    assert!(open.is_none(), "an op runs on what is cut off");
                    let steady = self.disks[at].steady.min(to);
                    self.disks[at].steady = steady;
                    self.disks[at].put(to, &vec![0; from - to]);
                    self.source_sizes[at] = to;
                }
                self.changing.remove(&at);
            }
            Event::DiskComplete { disk, .. } => drop(self.changing.remove(&index(*disk))),
            Event::DiskRemoved { disk, .. } => {
                let at = index(*disk);
                assert!(self.ops.values().all(|op| op.disk != at), "an op runs on a disk that left");
                self.changing.remove(&at);
                self.left.insert(at);
            }
            _ => {}
        }
    }
}
