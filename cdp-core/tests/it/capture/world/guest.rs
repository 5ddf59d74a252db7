//! The guests' side: clients that write, zero, discard and flush.

use super::*;

impl World {
    fn pick(&mut self) -> (usize, Extent, u64) {
        let disk = self.any_disk();
        let total = self.sizes[disk] as u64;
        let kind = self.rng.below(10);
        let count = match self.rng.below(100) {
            0..60 => self.rng.between(1, 16),
            60..90 => self.rng.between(1, 160),
            _ if kind < 2 => self.rng.between(1, 4096),
            _ if self.hostility.large_one_in > 0 && self.rng.one_in(self.hostility.large_one_in) => {
                self.rng.between(4096, 12288)
            }
            _ => self.rng.between(1, 1024),
        }
        .min(total)
        .min(self.hostility.sectors_max);
        let zone = if self.rng.one_in(2) { 512.min(total) } else { total };
        let first = self.rng.below(zone).min(total - count);
        (disk, Extent::new(first * SECTOR, count * SECTOR), kind)
    }

    pub(super) fn client(&mut self, client: u64) {
        if self.calm {
            return;
        }
        if self.rng.one_in(12) {
            let disk = self.any_disk();
            let ticket = self.filter.flush_begin(spec(disk, 0).id).expect("a disk");
            self.start_flush(disk, ticket);
            self.later(20 * MS, Ev::Client(client));
            return;
        }
        // Points close periods: those of the policy are enough.
        if self.rng.one_in(if self.hostility.periods { 600 } else { 40 }) {
            let mark = cdp_core::frame::Mark { label: "here".into(), ..Default::default() };
            let _ = self.filter.mark(self.both(), mark);
            self.called();
        }
        let (disk, extent, kind) = self.pick();
        let sequence = self.next_op;
        self.next_op += 1;
        let tags: Tags =
            if kind < 2 { Vec::new() } else { (0..extent.length / SECTOR).map(|at| sequence << 16 | at).collect() };
        let op = match kind {
            0 => Op::Zero(extent),
            1 => Op::Discard(extent),
            _ => Op::Write(Payload::new(extent.offset, bytes_of(&tags)).expect("aligned")),
        };
        let submitted = match self.filter.submit(self.both(), spec(disk, 0).id, op) {
            // Nothing is taken any more of what is about to be cut off, or of a disk that leaves.
            Err(SubmitError::OutOfBounds { .. } | SubmitError::UnknownDisk { .. }) if self.changing.contains(&disk) => {
                self.later(MS, Ev::Client(client));
                return;
            }
            submitted => submitted.expect("a good op"),
        };
        self.called();
        let fails = self.unlucky(self.hostility.op_fails_one_in);
        let op = OpenOp {
            client,
            disk,
            extent,
            tags,
            fails,
            sequence,
            submitted: self.now,
            running: false,
            passed: false,
            raced: false,
            unblocked: 0,
        };
        self.ops.insert(submitted.ticket(), op);
        if let Submitted::Go(ticket) = submitted {
            self.start_op(ticket);
        }
    }

    pub(super) fn start_op(&mut self, ticket: Ticket) {
        let (call, went) = self.gone.pop_front().expect("it went in some call");
        let passed = went == Went::Passed;
        let (disk, extent) = (self.ops[&ticket].disk, self.ops[&ticket].extent);
        let mut raced = false;
        for other in self.ops.values_mut() {
            if other.running && other.disk == disk && other.extent.overlaps(&extent) {
                assert!(passed, "{extent} runs while {} does", other.extent);
                (raced, other.raced) = (true, true);
            }
        }
        let op = self.ops.get_mut(&ticket).expect("an open op");
        (op.running, op.passed, op.raced) = (true, passed, raced);
        let (tags, sequence) = (op.tags.clone(), op.sequence);
        self.disks[disk].begin(extent);
        self.change_of_op.insert(sequence, self.changes.len());
        let lsn = (went == Went::Recorded).then_some(Lsn(u64::MAX));
        self.changes.push(Change { call, disk, extent, tags, lsn, torn: false });
        let slow = if self.rng.one_in(30) { 200 * MS } else { 5 * MS };
        self.later(slow, Ev::OpTouches(ticket));
    }

    /// Some of the op's sectors reach the disk before it completes.
    pub(super) fn op_touches(&mut self, ticket: Ticket) {
        let op = &self.ops[&ticket];
        let disk = &mut self.disks[op.disk];
        let stop = self.rng.below(op.extent.length / SECTOR + 1) as usize;
        for (at, sector) in sectors(op.extent).enumerate().take(stop) {
            disk.write(sector, op.tags.get(at).copied().unwrap_or(0));
        }
        self.later(2 * MS, Ev::OpDone(ticket));
    }

    pub(super) fn op_done(&mut self, ticket: Ticket) {
        let op = self.ops.remove(&ticket).expect("an open op");
        let disk = &mut self.disks[op.disk];
        if !op.fails {
            for (at, sector) in sectors(op.extent).enumerate() {
                disk.write(sector, op.tags.get(at).copied().unwrap_or(0));
            }
        }
        disk.end(op.extent);
        let result = if op.fails { Err(Failed { errno: 5 }) } else { Ok(()) };
        self.filter.complete(self.both(), ticket, result).expect("it ran");
        let call = self.called();
        if op.fails || op.raced {
            let tags = self.disks[op.disk].content[sectors(op.extent)].to_vec();
            self.changes.push(Change { call, disk: op.disk, extent: op.extent, tags, lsn: None, torn: true });
        }
        let pause = if self.rng.one_in(20) { S } else { 4 * MS };
        self.later(pause, Ev::Client(op.client));
    }

    /// Nobody gets at the filter for a while: the log's file is removed, ops run past, and the filter hears of it afterwards.
    pub(super) fn pass_by(&mut self) {
        self.log_file.clear();
        (self.log_orphaned, self.log_unlinked) = (self.log_pending.is_some(), true);
        let mut past = Vec::new();
        for _ in 0..self.rng.between(1, 5) {
            let (disk, extent, _) = self.pick();
            if self.changing.contains(&disk) {
                continue;
            }
            let sequence = self.next_op;
            self.next_op += 1;
            let tags: Tags = (0..extent.length / SECTOR).map(|at| sequence << 16 | at).collect();
            self.disks[disk].begin(extent);
            sectors(extent).zip(&tags).for_each(|(sector, tag)| self.disks[disk].write(sector, *tag));
            self.disks[disk].end(extent);
            // Those that run end up with either, sector by sector.
            let beside = self.ops.values_mut().filter(|op| op.running && op.disk == disk);
            beside.filter(|op| op.extent.overlaps(&extent)).for_each(|op| op.raced = true);
            past.push((disk, extent, tags));
        }
        self.filter.passed_by(self.both(), 5 * S);
        // What was said before is of the time before.
        let call = self.called();
        let change = |(disk, extent, tags)| Change { call, disk, extent, tags, lsn: None, torn: false };
        self.changes.extend(past.into_iter().map(change));
    }

    pub(super) fn start_flush(&mut self, disk: usize, ticket: FlushTicket) {
        let content = self.disks[disk].flush_begins();
        self.later(10 * MS, Ev::FlushDone(disk, ticket, content));
    }

    pub(super) fn flush_done(&mut self, disk: usize, ticket: FlushTicket, content: &(u64, Tags)) {
        let result = if self.unlucky(self.hostility.flush_fails_one_in) {
            self.disks[disk].flush_fails(&mut self.rng);
            Err(Failed { errno: 5 })
        } else {
            self.disks[disk].flush_ends(content);
            Ok(())
        };
        self.filter.flushed(self.both(), ticket, result);
    }
}

impl World {
    /// The machine ends in the middle of an op: any of its sectors may be there.
    pub fn land_some_of(&mut self, op: &OpenOp) {
        for (at, sector) in sectors(op.extent).enumerate() {
            if self.rng.one_in(2) {
                self.disks[op.disk].write(sector, op.tags.get(at).copied().unwrap_or(0));
            }
        }
    }

    /// No running op lies at or below what the last frame calls settled.
    pub(super) fn check_settled(&self) {
        let settled = self.frames.last().expect("a frame").settled;
        for op in self.ops.values().filter(|op| op.running) {
            let change = self.change_of_op.get(&op.sequence).and_then(|at| self.changes[*at].lsn);
            assert!(change.is_none_or(|lsn| lsn > settled), "an op that runs is settled");
        }
    }

    pub(super) fn check_waits(&mut self) {
        let open: Vec<(u64, usize, Extent)> = self.ops.values().map(|op| (op.sequence, op.disk, op.extent)).collect();
        for op in self.ops.values_mut().filter(|op| !op.running) {
            let blocked = open.iter().any(|(sequence, disk, extent)| {
                *sequence < op.sequence && *disk == op.disk && extent.overlaps(&op.extent)
            });
            if blocked {
                op.unblocked = self.now;
            }
            let waited = self.now - op.submitted.max(op.unblocked);
            let (write, removal) = (self.options.log_wait_ns_max, self.options.log_remove_ns_max);
            assert!(waited <= write + removal, "a guest waits {waited} ns for the log");
        }
    }
}
