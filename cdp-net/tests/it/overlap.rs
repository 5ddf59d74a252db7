//! Clients that write over each other, over a source that fails: in the end the replica is what the source is.
//!
//! Each run has its own seed, printed when it fails; `CDP_OVERLAP_RUNS` says how many runs, `CDP_OVERLAP_SEED` which is the
//! first.

mod clients;
mod shaky;

use self::clients::Counter;
use self::shaky::{Mood, Shaky};
use crate::dice::{Dice, count};
use crate::history::{self, Disks};
use crate::kit::{Place, label, wait_for};
use cdp_core::capture::State;
use cdp_core::types::Lsn;
use cdp_core::when::When;
use cdp_net::device::Device;
use cdp_net::nbd::{Address, Server, ServerOptions, Uri};
use cdp_net::protect::{ProtectOptions, Protector};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const SIDE_BY_SIDE: usize = 4;
/// Where everybody writes.
const SHARED: u64 = 600 << 10;
/// Behind it: a sector for each counter, then one client's own range.
const COUNTERS: u64 = SHARED;
const OWN: u64 = SHARED + (16 << 10);
const DISK: u64 = SHARED + (32 << 10);

/// A moment in the middle, and what the counters can have been then.
struct Seen {
    lsn: Lsn,
    least: Vec<u64>,
    most: Vec<u64>,
}

struct Run {
    seed: u64,
    mood: Mood,
    place: Place,
    initial: Vec<u8>,
    counters: [Counter; 2],
}

impl Run {
    fn new(seed: u64) -> Self {
        let place = Place::new();
        let mut dice = Dice::new(seed);
        let mood = [Mood::Sound, Mood::Failing, Mood::Failing, Mood::Losing][dice.below(4) as usize];
        let mut initial = dice.bytes(DISK as usize);
        initial[COUNTERS as usize..OWN as usize].fill(0);
        initial[100 << 10..200 << 10].fill(0);
        std::fs::write(place.source("disk"), &initial).unwrap();
        Self { seed, mood, place, initial, counters: Default::default() }
    }

    fn dice(&self, purpose: u64) -> Dice {
        Dice::new(self.seed.wrapping_mul(1000) + purpose)
    }

    fn go(&self) {
        let slot: OnceLock<Arc<Shaky>> = OnceLock::new();
        let wrap = |_, inner| {
            let shaky = Shaky::new(inner, self.mood, self.seed, 40);
            Arc::clone(slot.get_or_init(|| shaky)) as Arc<dyn Device>
        };
        let options = ProtectOptions { segment_bytes: 4 << 20, ..self.place.options(&["disk"]) };
        let protector = Protector::start_over(&options, wrap, |_| {}).unwrap();
        let shaky = slot.get().unwrap();
        let address = Address::Unix(self.place.directory.path().join("nbd.sock"));
        let server = Server::start(ServerOptions::new(address, protector.exports().to_vec())).unwrap();
        let uri = server.uris().remove(0);
        if self.dice(1).permille(500) {
            // Else the load falls into the seeding.
            wait_for("the first copy", || protector.status().state == State::Protecting);
        }
        let (seen, own) = self.load(&protector, &uri);
        shaky.mend();
        assert!(server.stop(Duration::from_secs(60)).1, "all connections have ended");
        // A flush that failed last leaves nothing behind that a good one does not find.
        protector.exports()[0].device.flush().unwrap();
        let quiet = || {
            let status = protector.status();
            status.state == State::Protecting && status.dirty_bytes == 0
        };
        wait_for("the repairs", quiet);
        let end = protector.mark(&label("end")).unwrap();
        let source = Disks::new([std::fs::read(self.place.source("disk")).unwrap()]);
        // A flush that failed leaves a doubt that no later one removes: such a stop is never called clean.
        let doubtful = shaky.failed_flushes.load(Ordering::SeqCst) > 0;
        let summary = protector.stop(Duration::from_secs(30), &|| false);
        assert_eq!(summary.drained, !doubtful, "{summary:?}");
        if self.mood != Mood::Losing {
            for (offset, bytes) in own {
                let held = &source.0.values().next().unwrap()[offset as usize..][..bytes.len()];
                assert!(held == bytes, "what the server received is not at {offset}");
            }
        }
        self.check(end, &source, &seen);
        assert_eq!(shaky.faults.load(Ordering::SeqCst) > 0, self.mood != Mood::Sound);
    }

    /// All clients at once, and somebody who marks moments meanwhile.
    fn load(&self, protector: &Protector, uri: &Uri) -> (Vec<Seen>, clients::Sent) {
        std::thread::scope(|scope| {
            let mut writers = Vec::new();
            for client in 0..3 {
                let seed = self.dice(10 + client).next();
                writers.push(scope.spawn(move || clients::pipelined(uri, SHARED, seed, 40)));
            }
            for (at, counter) in (0..).zip(&self.counters) {
                writers.push(scope.spawn(move || clients::counting(uri, COUNTERS + at * 512, counter, 120)));
            }
            let seed = self.dice(20).next();
            let piecemeal = scope.spawn(move || clients::piecemeal(uri, SHARED, OWN, seed, 16));
            let mut seen = Vec::new();
            while writers.iter().any(|writer| !writer.is_finished()) && seen.len() < 4 {
                seen.extend(self.look(protector, seen.len()));
                std::thread::sleep(Duration::from_millis(5));
            }
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            (seen, piecemeal.join().unwrap())
        })
    }

    /// Marks this moment, if it is one that can be restored.
    fn look(&self, protector: &Protector, number: usize) -> Option<Seen> {
        let least = self.counters.iter().map(|counter| counter.acknowledged.load(Ordering::SeqCst)).collect();
        let lsn = protector.mark(&label(&format!("mark {number}"))).ok()?;
        let most = self.counters.iter().map(|counter| counter.sent.load(Ordering::SeqCst)).collect();
        Some(Seen { lsn, least, most })
    }

    fn check(&self, end: Lsn, source: &Disks, seen: &[Seen]) {
        let replica = self.place.load();
        let timeline = replica.catalogue().trunk().unwrap().timeline;
        history::at(&replica, timeline, end).check(source, &"the replica against the source");
        let mut dice = self.dice(30);
        let mut model = Disks::new([self.initial.clone()]);
        for record in history::records(&replica, timeline) {
            model.apply(&record);
            let chosen = record.lsn == end || dice.permille(25);
            let when = When::Lsn { timeline: None, lsn: record.lsn };
            if chosen && replica.resolve(&when).is_ok() {
                let found = history::at(&replica, timeline, record.lsn);
                found.check(&model, &format_args!("LSN {} against the records", record.lsn));
            }
        }
        for seen in seen {
            let found = history::at(&replica, timeline, seen.lsn);
            let content = found.0.values().next().unwrap();
            for (at, (least, most)) in seen.least.iter().zip(&seen.most).enumerate() {
                let offset = COUNTERS as usize + at * 512;
                let value = u64::from_le_bytes(content[offset..offset + 8].try_into().unwrap());
                // What was acknowledged may be gone only where a flush failed and said so.
                let enough = value >= *least || self.mood == Mood::Losing;
                assert!(enough && value <= *most, "counter {at} is {value} at {}: {least}..={most}", seen.lsn);
            }
        }
    }
}

/// Runs with the seeds that are left; what a run waits for is mostly the disk, so some go side by side.
fn work(next: &AtomicU64, end: u64) {
    loop {
        let seed = next.fetch_add(1, Ordering::SeqCst);
        if seed >= end {
            return;
        }
        let run = Run::new(seed);
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.go())) {
            eprintln!("failed with CDP_OVERLAP_SEED={seed} CDP_OVERLAP_RUNS=1 (mood {:?})", run.mood);
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn overlapping_clients_over_a_failing_source_leave_the_replica_as_the_source_is() {
    let first = count("CDP_OVERLAP_SEED", 1);
    let (next, end) = (AtomicU64::new(first), first + count("CDP_OVERLAP_RUNS", 100));
    std::thread::scope(|scope| (0..SIDE_BY_SIDE).for_each(|_| drop(scope.spawn(|| work(&next, end)))));
}
