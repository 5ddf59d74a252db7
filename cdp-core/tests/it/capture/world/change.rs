//! Disks that join, change their size and leave, while guests write and everything else goes wrong.

use super::*;

/// The most disks at once.
const DISKS: usize = 4;
/// The most sectors of one.
const SECTORS: u64 = 20 << 11;

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
        let (at, count) = (self.disks.len(), self.rng.between(2 << 10, SECTORS) as usize);
        let disk = SimDisk::new(count as u64 * SECTOR, &mut self.rng);
        self.start_content.push(disk.content.clone());
        self.disks.push(disk);
        for replica in [&mut self.base, &mut self.applied] {
            replica.push(vec![0; count]);
        }
        self.covered.push(vec![false; count]);
        self.start_sizes.push(0);
        self.sizes.push(count);
        let facts = self.rng.one_in(2).then(|| vec![1]);
        self.filter.add_disk(self.both(), spec(at, count as u64 * SECTOR), facts).expect("a new disk");
        self.changing.insert(at);
        self.later(40 * MS, Ev::SeedStep(at, 0));
    }

    /// The source is larger, and what is new holds something already.
    fn grow_disk(&mut self, at: usize) {
        let from = self.sizes[at];
        let count = self.rng.between(1, SECTORS) as usize;
        let tags = self.some_tags(count);
        let (new, to) = (Extent::new(from as u64 * SECTOR, count as u64 * SECTOR), from + count);
        let steady = self.disks[at].steady.min(from);
        self.disks[at].steady = steady;
        self.disks[at].put(from, &tags);
        for content in [&mut self.start_content[at], &mut self.base[at], &mut self.applied[at]] {
            let length = content.len().max(to);
            content.resize(length, 0);
        }
        let length = self.covered[at].len().max(to);
        self.covered[at].resize(length, false);
        self.filter.resize_disk(self.both(), spec(at, 0).id, to as u64 * SECTOR, vec![new]).expect("a larger size");
        let call = self.called();
        // Nobody sees it before the record.
        self.changes.push(Change { call, disk: at, extent: new, tags, lsn: None, torn: true });
        self.changing.insert(at);
    }

    /// What the filter tells of a disk.
    pub(super) fn disk_changed(&mut self, event: &Event) {
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
