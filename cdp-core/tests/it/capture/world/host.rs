//! The driver's side: the activity log, re-reads, seeding, the replica; and the checks at the end.

use super::*;

impl World {
    pub(super) fn log_done(&mut self, token: LogToken) {
        let (pending, writes) = self.log_pending.take().expect("a log write");
        assert_eq!(pending, token);
        let orphaned = std::mem::take(&mut self.log_orphaned);
        let writes = if orphaned { Vec::new() } else { writes };
        let fails = self.unlucky(self.hostility.log_fails_one_in);
        if fails {
            let keep = self.rng.next();
            self.log_lands(&writes, |at| keep >> (at % 64) & 1 == 1);
        } else {
            self.log_lands(&writes, |_| true);
        }
        let result = if fails { Err(Failed { errno: 28 }) } else { Ok(()) };
        self.filter.log_written(self.both(), token, result).expect("it was under way");
    }

    /// The file is gone; the filter hears of it a little later.
    pub(super) fn log_removed(&mut self) {
        self.log_file.clear();
        (self.log_orphaned, self.log_unlinked) = (self.log_pending.is_some(), true);
        self.later(2 * MS, Ev::LogRemovalKnown);
    }

    /// Sectors of a log write that reach the file.
    pub fn log_lands(&mut self, writes: &[(u64, bytes::Bytes)], lands: impl Fn(u64) -> bool) {
        for (offset, data) in writes {
            assert!(offset.is_multiple_of(SECTOR) && (data.len() as u64).is_multiple_of(SECTOR));
            for (at, sector) in data.chunks_exact(SECTOR as usize).enumerate() {
                let begin = *offset as usize + at * SECTOR as usize;
                if self.log_file.len() < begin + SECTOR as usize {
                    self.log_file.resize(begin + SECTOR as usize, 0);
                }
                if lands(begin as u64 / SECTOR) {
                    self.log_file[begin..begin + SECTOR as usize].copy_from_slice(sector);
                }
            }
        }
    }

    pub(super) fn start_reread(&mut self, reread: Reread) {
        assert!(self.rereads.len() < REREADS_MAX && reread.extent.length <= REREAD_BYTES_MAX);
        self.bytes_reread += reread.extent.length;
        let tags = vec![0; (reread.extent.length / SECTOR) as usize];
        self.rereads.insert(reread.token, OpenReread { reread, disk: index(reread.disk), tags, half: false });
        self.later(3 * MS, Ev::RereadReads(reread.token));
    }

    /// Reads the first half, later the second: a read is no snapshot.
    pub(super) fn reread_reads(&mut self, token: RereadToken) {
        let reread = self.rereads.get_mut(&token).expect("a re-read");
        let range = sectors(reread.reread.extent);
        let middle = reread.tags.len() / 2;
        let (first, second) = (range.start..range.start + middle, range.start + middle..range.end);
        let content = &self.disks[reread.disk].content;
        if reread.half {
            reread.tags[middle..].copy_from_slice(&content[second]);
            self.later(3 * MS, Ev::RereadDone(token));
        } else {
            reread.tags[..middle].copy_from_slice(&content[first]);
            reread.half = true;
            self.later(3 * MS, Ev::RereadReads(token));
        }
    }

    pub(super) fn reread_done(&mut self, token: RereadToken) {
        let reread = self.rereads[&token].reread;
        if let Some(at) = reread.compare_at.filter(|_| self.hostility.far && !self.rng.one_in(4)) {
            let Reread { token, disk, extent, .. } = reread;
            return self.orders.push_back(Order::Compare { token, disk, extent, at });
        }
        let OpenReread { reread, disk, tags, .. } = self.rereads.remove(&token).expect("a re-read");
        if self.unlucky(self.hostility.reread_fails_one_in) {
            self.filter.reread_done(self.both(), token, Err(Failed { errno: 5 })).expect("it was under way");
            return;
        }
        let whole = |offset, tags: &[u64]| Payload::new(offset, bytes_of(tags)).expect("aligned");
        let payloads = match reread.compare_at {
            // It was compared with what the replica has lost since: whatever came of that counts for nothing.
            Some(at) if at > self.applied_through && self.forked_at > Lsn::ZERO => Vec::new(),
            Some(at) if !self.hostility.far && self.rng.one_in(2) => {
                assert!(at <= self.applied_through, "the replica has what it is compared at");
                let there = &self.applied[disk][sectors(reread.extent)];
                let block = |(at, (here, there)): (usize, (&[u64], &[u64]))| {
                    (here != there).then(|| whole(reread.extent.offset + at as u64 * 8 * SECTOR, here))
                };
                tags.chunks(8).zip(there.chunks(8)).enumerate().filter_map(block).collect()
            }
            _ => vec![whole(reread.extent.offset, &tags)],
        };
        self.repaired.extend(payloads.iter().map(|payload| (disk, payload.extent(), self.frames.len())));
        self.filter.reread_done(self.both(), token, Ok(payloads)).expect("it was under way");
    }

    pub(super) fn seed_step(&mut self, disk: usize, first: u64) {
        let total = self.sizes[disk] as u64;
        let end = (first + 2048).min(total);
        let range = first as usize..end as usize;
        let content = self.disks[disk].content[range.clone()].to_vec();
        // The base lies below all records: it must not cover what was applied on top of it. No moment before is shown.
        for (at, tag) in range.zip(content) {
            if !self.covered[disk][at] {
                self.applied[disk][at] = tag;
                self.base[disk][at] = tag;
            }
        }
        if end < total {
            self.later(40 * MS, Ev::SeedStep(disk, end));
            return;
        }
        if disk >= self.first_disks {
            // It may have left meanwhile.
            let seeded = self.filter.disk_seeded(self.both(), spec(disk, 0).id);
            assert!(seeded.is_ok() || self.changing.contains(&disk) || self.left.contains(&disk));
            return;
        }
        self.seeds_left -= 1;
        if self.seeds_left == 0 {
            self.filter.seed_done();
        }
    }

    pub(super) fn replica_takes(&mut self) {
        let many = self.rng.between(1, 4) as usize;
        let until = (self.taken + many).min(self.frames.len());
        if self.taken < until {
            let through = model::whole(&self.frames[..until]).max(self.applied_through);
            for part in self.frames[self.taken..until].iter().flat_map(|frame| &frame.parts) {
                if let Some(disk) = part.disk.filter(|_| part.kind.changes_disk()) {
                    self.covered[index(disk)][sectors(part.extent)].fill(true);
                }
            }
            self.taken = until;
            let rng = &mut self.rng;
            let run = (self.applied_through, through);
            self.left_out.extend(model::left_out(&self.frames, run, || !rng.one_in(4)));
            model::apply(&mut self.applied, &self.frames[..until], run, &self.left_out, index);
            self.applied_through = through;
            self.later(5 * MS, Ev::Ack(through));
        }
        let ns = if self.unlucky(self.hostility.stall_one_in) { 8 * S } else { self.hostility.durable_ns_max };
        self.later(if self.calm { MS } else { ns }, Ev::ReplicaTakes);
    }

    /// Everything heals, no more ops: the replica becomes the source, and says so.
    pub fn converge(&mut self) {
        self.calm = true;
        let done = |world: &Self| {
            let status = world.filter.status(world.both());
            world.ops.is_empty()
                && status.state == State::Protecting
                && status.dirty_bytes == 0
                && status.queued_bytes == 0
                && status.restorable >= world.last_change()
                && world.changing.is_empty()
        };
        self.run_until(done, self.now + 120 * S);
        self.check();
        let (source, replica) = (&self.disks, &self.applied);
        for (at, (disk, tags)) in source.iter().zip(replica).enumerate().filter(|(at, _)| !self.left.contains(at)) {
            let differs = (0..self.sizes[at]).find(|sector| disk.content[*sector] != tags[*sector]);
            if let Some(sector) = differs {
                panic!("sector {sector} of disk {at} differs at the end: {}", self.history(at, sector));
            }
        }
    }

    /// All that ever happened to a sector, for people.
    pub fn history(&self, disk: usize, sector: usize) -> String {
        let inside = |extent: &Extent| sectors(*extent).contains(&sector);
        let tag = |tags: &[u64], extent: Extent| tags.get(sector - sectors(extent).start).copied().unwrap_or(0);
        let mut out = vec![format!("base {:x}", self.base[disk][sector])];
        for change in self.changes.iter().filter(|change| change.disk == disk && inside(&change.extent)) {
            let (Change { call, lsn, extent, torn, .. }, tag) = (change, tag(&change.tags, change.extent));
            out.push(format!("source: call {call} lsn {lsn:?} {extent} tag {tag:x} torn {torn}"));
        }
        for (at, frame) in self.frames.iter().enumerate() {
            let here =
                |part: &&cdp_core::frame::Part| part.disk.is_some_and(|id| index(id) == disk) && inside(&part.extent);
            for part in frame.parts.iter().filter(here) {
                let tag = tag(&tags_of(&part.data), part.extent);
                out.push(format!("replica: frame {at} lsn {} {:?} {} tag {tag:x}", part.lsn, part.kind, part.extent));
            }
        }
        out.push(format!("taken {} of {}, events {:?}", self.taken, self.frames.len(), self.events));
        out.join("\n")
    }

    /// After it has converged: guests write again, and what can fail fails.
    pub fn go_on(&mut self) {
        self.calm = false;
        (0..self.hostility.clients).for_each(|client| self.later(MS, Ev::Client(client)));
    }

    pub(super) fn last_change(&self) -> Lsn {
        self.changes.iter().filter_map(|change| change.lsn).max().unwrap_or(Lsn::ZERO)
    }

    /// Every LSN that can be restored from what the replica has is a moment of the source. Returns how many there are.
    pub fn check(&self) -> u64 {
        let frames = &self.frames[..self.taken];
        let limit = model::restorable(frames).max(self.forked_at);
        let said = self.filter.status(self.both()).restorable;
        assert!(frames.is_empty() || said <= limit, "the filter says {said}, by its records it is {limit}");
        let windows = model::windows(&self.frames);
        for event in &self.events {
            if let Event::PointDurable { lsn } = event {
                assert!(*lsn <= limit || windows.iter().any(|(from, _)| from > lsn), "a durable point can be restored");
                assert!(
                    !windows.iter().any(|(from, end)| from <= lsn && lsn < end),
                    "a durable point lies in no resync"
                );
            }
        }
        let disks = (self.base.clone(), self.start_content.clone(), self.start_sizes.clone(), &self.hidden);
        match model::check_every_lsn(disks, &self.changes, frames, &self.lsn_after_call, index) {
            Ok(checked) => checked,
            Err(wrong) => {
                panic!("LSN {} is no moment of the source: {}", wrong.lsn, self.history(wrong.disk, wrong.sector))
            }
        }
    }

    /// A clean stop, from a converged world. Returns the log.
    pub fn stop(&mut self) -> LogContents {
        self.filter.request_drain();
        self.run_until(|world| world.filter.drained() == Drained::Safe, self.now + 60 * S);
        let facts = vec![(spec(0, 0).id, b"size 1, inode 2".to_vec())];
        assert_eq!(self.filter.close(facts), Closing::Clean);
        self.run_until(|world| world.events.contains(&Event::Closed), self.now + 60 * S);
        let log = LogContents::read(&self.log_file, self.options.group).expect("a good log");
        assert_eq!((log.state, log.hot_bytes()), (LogState::Clean, 0));
        assert_eq!(log.disks[0].facts, b"size 1, inode 2");
        assert_eq!(log.reserved_through, self.filter.status(self.both()).lsn);
        assert!(log.generation >= self.least);
        log
    }
}
