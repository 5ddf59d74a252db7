//! `kill -9` of `cdp protect`, again and again on one replica, with real writers on real connections.
//!
//! After every kill: it starts again, on a new timeline; the source holds what was acknowledged; every moment that was called
//! restorable still is, with the bytes that it had; the next start reads hot extents and not the disk; then replica and source
//! are the same, and what lies between is a gap that nobody restores into. `CDP_KILLS` says how many kills, `CDP_KILL_SEED`
//! which ones; both are printed when it fails.

mod command;
mod writers;

use command::{Answer, Protection, cdp};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use writers::{LOADED, Writers};

/// Mostly a hole: reading it all again would be noticed.
const DISK: u64 = 96 << 20;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// A generator (xorshift64*) that a seed repeats.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % limit
    }
}

/// A moment whose content is known.
struct Known {
    label: String,
    timeline: String,
    lsn: u64,
    hash: blake3::Hash,
}

/// When the process is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    /// The first copy is being made.
    Seeding,
    /// It has just begun: it may not even serve yet.
    Start,
    /// It reads again what the kill before left.
    Resync,
    /// Under load, after so many milliseconds.
    Load,
}

struct Drill {
    directory: tempfile::TempDir,
    dice: Dice,
    writers: Writers,
    known: Vec<Known>,
    /// What was said to be restorable: timeline and last LSN.
    promised: Vec<(String, u64)>,
    /// Starts that read again what the activity log named, and nothing else.
    by_log: u64,
}

impl Drill {
    fn new(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = fs::File::create(directory.path().join("disk")).unwrap();
        source.set_len(DISK).unwrap();
        let writers = Writers::new(seed);
        source.write_all_at(&writers.initial(), 0).unwrap();
        // Something that is copied and never written again.
        source.write_all_at(&vec![0x5a; 4 << 20], DISK - (4 << 20)).unwrap();
        Self { directory, dice: Dice::new(seed), writers, known: Vec::new(), promised: Vec::new(), by_log: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self) -> Protection {
        Protection::start(&self.path("disk"), &self.path("replica"), &self.path("nbd.sock"))
    }

    fn ask(&self, arguments: &[&str]) -> Answer {
        let replica = self.path("replica");
        cdp(&[&[arguments[0], replica.to_str().unwrap()], &arguments[1..], &["--json"]].concat())
    }

    fn status(&self) -> Value {
        self.ask(&["status"]).good()
    }

    fn source_hash(&self) -> blake3::Hash {
        blake3::hash(&fs::read(self.path("disk")).unwrap())
    }

    /// Restores a moment and gives the hash of what came.
    fn restored(&self, at: &str) -> blake3::Hash {
        let output = self.path("restored");
        self.ask(&["restore", "--at", at, "--force", "--output", output.to_str().unwrap()]).good();
        blake3::hash(&fs::read(output).unwrap())
    }

    fn wait_for(&self, state: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.status();
            if status["state"] == state {
                return status;
            }
            assert!(Instant::now() < deadline, "waited too long for {state}: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts, and kills at a moment.
    fn round(&mut self, number: u64, when: Moment) {
        let mut protection = self.start();
        match when {
            Moment::Start => std::thread::sleep(Duration::from_millis(self.dice.below(120))),
            Moment::Seeding => drop(protection.ready()),
            Moment::Resync => {
                // It resyncs from its first moment on, when the stop before was a kill: load goes on meanwhile.
                let uri = protection.ready();
                let load = self.writers.begin(&uri);
                std::thread::sleep(Duration::from_millis(self.dice.below(60)));
                protection.kill();
                self.writers.end(load);
            }
            Moment::Load => self.load(number, &mut protection),
        }
        protection.kill();
        self.writers.check(&fs::read(self.path("disk")).unwrap()[..LOADED]);
    }

    /// Load, a known moment in the middle of it, more load, and the kill.
    fn load(&mut self, number: u64, protection: &mut Protection) {
        let uri = protection.ready();
        self.wait_for("protecting");
        let load = self.writers.begin(&uri);
        std::thread::sleep(Duration::from_millis(50 + self.dice.below(150)));
        let pause = load.pause();
        let (hash, label) = (self.source_hash(), format!("round {number}"));
        let marked = self.ask(&["mark", "--label", &label]).good();
        drop(pause);
        let timeline = marked["at"]["timeline"].as_str().unwrap().to_owned();
        self.known.push(Known { label, timeline, lsn: marked["at"]["lsn"].as_u64().unwrap(), hash });
        let until = Instant::now() + Duration::from_millis(self.dice.below(400));
        while Instant::now() < until {
            let status = self.status();
            if let Some(range) = status["ranges"].get(0) {
                let timeline = range["timeline"].as_str().unwrap().to_owned();
                assert!(range["to_lsn"].as_u64() <= status["durable_lsn"].as_u64(), "{status}");
                self.promised.push((timeline, range["to_lsn"].as_u64().unwrap()));
            }
        }
        protection.kill();
        self.writers.end(load);
    }

    /// Starts after kills and holds everything against what is known.
    fn check(&mut self, resumed: bool) {
        let mut protection = self.start();
        let uri = protection.ready();
        let opened = protection.opened();
        assert_eq!((&opened["resumed"], &opened["clean"]), (&Value::from(resumed), &Value::from(!resumed)), "{opened}");
        let status = self.wait_for("protecting");
        if resumed {
            let reread = status["reread_bytes"].as_u64().unwrap();
            if opened["compared"] == "activity-log" {
                assert!(reread > 0 && reread <= DISK / 2, "{reread} bytes were read again of {DISK}");
                self.by_log += 1;
            } else {
                // Where a sync took longer than a guest may wait, the log is not believed.
                assert_eq!((&opened["compared"], reread), (&Value::from("everything"), DISK));
            }
        }
        // Quiet: what is restored now is what the source is.
        let label = format!("after {}", opened["timeline"].as_str().unwrap());
        self.ask(&["mark", "--label", &label]).good();
        if resumed {
            self.check_gap(&opened);
        }
        assert_eq!(self.restored(&format!("label:{label}")), self.source_hash(), "replica and source after the resync");
        for known in self.known.iter().rev().take(2) {
            assert_eq!(self.restored(&format!("label:{}", known.label)), known.hash, "{}", known.label);
        }
        if let Some(known) = self.known.last() {
            let at = format!("lsn:{}-{}", known.timeline, known.lsn);
            assert_eq!(self.restored(&at), known.hash, "{at}");
        }
        self.check_promises();
        self.writers.read_through(&uri);
        // And goes on: the next kill, or the next start, finds it like this.
        protection.stop();
        self.verify_promises_without_owner();
    }

    fn ranges(&self) -> Vec<(String, u64, u64)> {
        let points = self.ask(&["points"]).good();
        let range = |range: &Value| {
            let timeline = range["timeline"].as_str().unwrap().to_owned();
            (timeline, range["from_lsn"].as_u64().unwrap(), range["to_lsn"].as_u64().unwrap())
        };
        points["ranges"].as_array().unwrap().iter().map(range).collect()
    }

    fn check_promises(&self) {
        let ranges = self.ranges();
        for (timeline, lsn) in &self.promised {
            let holds = ranges.iter().any(|(of, from, to)| of == timeline && (from..=to).contains(&lsn));
            assert!(holds, "LSN {lsn} of {timeline} was restorable before a kill: {ranges:?}");
        }
    }

    /// The newest of them is read, too.
    fn verify_promises_without_owner(&self) {
        self.check_promises();
        if let Some((timeline, lsn)) = self.promised.last() {
            self.restored(&format!("lsn:{timeline}-{lsn}"));
        }
    }

    /// What was in memory when the kill came is a gap: in `points`, and for who asks for a moment inside.
    fn check_gap(&self, opened: &Value) {
        let points = self.ask(&["points"]).good();
        let of_new = |gap: &&Value| gap["timeline"] == opened["timeline"] && gap["cause"] == "unclean-stop";
        let gaps: Vec<_> = points["gaps"].as_array().unwrap().iter().filter(of_new).collect();
        assert_eq!(gaps.len(), 1, "{points}");
        let gap = gaps[0];
        // It begins where what can be restored, or another gap, ends: no moment lies in neither.
        let others = points["ranges"].as_array().unwrap().iter().chain(points["gaps"].as_array().unwrap());
        let begins = others.map(|before| &before["to_time"]).any(|ends| *ends == gap["from_time"]);
        assert!(begins || self.promised.is_empty(), "{points}");
        let time = |text: &Value| text.as_str().unwrap().parse::<cdp_core::types::WallTime>().unwrap().0;
        let middle = cdp_core::types::WallTime(time(&gap["from_time"]).midpoint(time(&gap["to_time"])));
        let lsn = format!("lsn:{}-{}", gap["timeline"].as_str().unwrap(), gap["to_lsn"]);
        for at in [lsn, middle.to_string()] {
            let output = self.path("refused");
            let answer = self.ask(&["restore", "--at", &at, "--output", output.to_str().unwrap()]);
            assert_eq!(answer.status, 3, "{at}: {}", answer.document);
            let nearest = answer.document["error"]["nearest"].as_array().unwrap();
            assert!(!nearest.is_empty(), "{at}: {}", answer.document);
            assert!(nearest.iter().any(|near| near["timeline"] == opened["timeline"]), "{}", answer.document);
            assert!(!output.exists());
        }
    }
}

#[test]
fn a_killed_protection_loses_nothing_that_it_promised() {
    let (kills, seed) = (number("CDP_KILLS", 12), number("CDP_KILL_SEED", 1));
    eprintln!("CDP_KILLS={kills} CDP_KILL_SEED={seed}");
    let mut drill = Drill::new(seed);
    // A first copy that was never complete restores nothing: it is begun anew.
    drill.round(0, Moment::Start);
    drill.round(1, Moment::Seeding);
    for number in 2..kills {
        // Every second kill follows a kill.
        let (when, checked) = match number % 5 {
            2 | 0 => (Moment::Load, false),
            3 => (Moment::Resync, true),
            4 => (Moment::Load, true),
            _ => (Moment::Start, true),
        };
        eprintln!("kill {number}: {when:?}");
        drill.round(number, when);
        if checked || number + 1 == kills {
            drill.check(true);
        }
    }
    assert!(drill.by_log > 0, "the activity log was never believed");
    let verified = drill.ask(&["verify"]);
    assert_eq!(verified.status, 0, "{}", verified.document);
    for known in &drill.known {
        assert_eq!(drill.restored(&format!("label:{}", known.label)), known.hash, "{} in the end", known.label);
    }
}
