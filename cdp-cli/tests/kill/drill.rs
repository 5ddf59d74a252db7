//! One replica that is killed again and again, and what must hold after each kill.

use crate::Dice;
use crate::aim::Aim;
use crate::command::Protection;
use crate::sessions::Sessions;
use crate::support::{Answer, cdp, wait_for};
use crate::writers::{LOADED, Writers};
use cdp_core::capture::LogContents;
use cdp_core::journal::read_manifest;
use cdp_core::media::Disk;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Mostly a hole: reading it all again would be noticed.
const DISK: u64 = 96 << 20;

/// A moment whose content is known.
pub(crate) struct Known {
    pub(crate) label: String,
    timeline: String,
    lsn: u64,
    pub(crate) hash: blake3::Hash,
}

/// When the process is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    /// The first copy is being made.
    Seeding,
    /// It has just begun: it may not even serve yet.
    Start,
    /// It reads again what the kill before left.
    Resync,
    /// Under load, after so many milliseconds.
    Load,
}

/// What a start finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// No replica, or one whose first copy was not complete.
    Nothing,
    /// What a clean stop leaves.
    Clean,
    /// What a kill leaves.
    Killed,
}

pub(crate) struct Drill {
    directory: tempfile::TempDir,
    pub(crate) dice: Dice,
    pub(crate) writers: Writers,
    pub(crate) known: Vec<Known>,
    /// What was said to be durable: timeline and last LSN.
    pub(crate) promised: Vec<(String, u64)>,
    pub(crate) sessions: Sessions,
    /// Writes that were answered before the last start that was checked.
    answered: u64,
    /// Starts that read again what the activity log named, and nothing else.
    pub(crate) by_log: u64,
}

impl Drill {
    pub(crate) fn new(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = fs::File::create(directory.path().join("disk")).unwrap();
        source.set_len(DISK).unwrap();
        let writers = Writers::new(seed);
        source.write_all_at(&writers.initial(), 0).unwrap();
        // Something that is copied and never written again.
        source.write_all_at(&vec![0x5a; 4 << 20], DISK - (4 << 20)).unwrap();
        let (dice, sessions) = (Dice::new(seed), Sessions::default());
        let (known, promised) = (Vec::new(), Vec::new());
        Self { directory, dice, writers, known, promised, sessions, answered: 0, by_log: 0 }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn start(&self) -> Protection {
        Protection::start(&self.path("disk"), &self.path("replica"), &self.path("nbd.sock"))
    }

    pub(crate) fn start_aimed(&self, aim: &Aim) -> Protection {
        Protection::start_aimed(aim, &self.path("disk"), &self.path("replica"), &self.path("nbd.sock"))
    }

    /// The next start makes a new replica.
    pub(crate) fn forget_replica(&mut self) {
        fs::remove_dir_all(self.path("replica")).unwrap();
        self.known.clear();
        self.promised.clear();
        self.sessions = Sessions::default();
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Answer {
        let replica = self.path("replica");
        cdp(&[&[arguments[0], replica.to_str().unwrap()], &arguments[1..]].concat())
    }

    pub(crate) fn status(&self) -> Value {
        self.ask(&["status"]).done()
    }

    fn source_hash(&self) -> blake3::Hash {
        blake3::hash(&fs::read(self.path("disk")).unwrap())
    }

    /// Restores a moment and gives the hash of what came.
    pub(crate) fn restored(&self, at: &str) -> blake3::Hash {
        let output = self.path("restored");
        self.ask(&["restore", "--at", at, "--force", "--output", output.to_str().unwrap()]).done();
        blake3::hash(&fs::read(output).unwrap())
    }

    pub(crate) fn wait_for(&self, state: &str) -> Value {
        let mut status = Value::Null;
        wait_for(state, || {
            status = self.status();
            status["state"] == state
        });
        status
    }

    /// Starts, and kills at a moment.
    pub(crate) fn round(&mut self, number: u64, when: Moment) {
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
                self.writers.end_with_server(load);
            }
            Moment::Load => self.load(number, &mut protection),
        }
        protection.kill();
        self.check_source();
    }

    /// What was acknowledged is there.
    pub(crate) fn check_source(&self) {
        self.writers.check(&fs::read(self.path("disk")).unwrap()[..LOADED]);
    }

    /// Load, a known moment in the middle of it, more load, and the kill.
    fn load(&mut self, number: u64, protection: &mut Protection) {
        let uri = protection.ready();
        self.wait_for("protecting");
        let load = self.writers.begin(&uri);
        std::thread::sleep(Duration::from_millis(50 + self.dice.below(150)));
        let pause = load.pause();
        let known = self.mark(format!("round {number}"), self.source_hash());
        drop(pause);
        self.known.push(known);
        let until = Instant::now() + Duration::from_millis(self.dice.below(400));
        while Instant::now() < until {
            let status = self.status();
            if let Some(range) = status["ranges"].get(0) {
                let timeline = range["timeline"].as_str().unwrap().to_owned();
                let durable = status["durable_lsn"].as_u64().unwrap();
                assert!(range["to_lsn"].as_u64().unwrap() <= durable, "{status}");
                self.promised.push((timeline, durable));
            }
        }
        protection.kill();
        self.writers.end_with_server(load);
    }

    /// Starts after kills and holds everything against what is known. Gives what the start found, which must be one of
    /// `expected`.
    pub(crate) fn check(&mut self, expected: &[Found]) -> Found {
        let hot = self.hot_bytes();
        let mut protection = self.start();
        let uri = protection.ready();
        let opened = protection.opened();
        let found = match (&opened["resumed"], &opened["clean"]) {
            (Value::Bool(false), _) => Found::Nothing,
            (_, Value::Bool(true)) => Found::Clean,
            _ => Found::Killed,
        };
        assert!(expected.contains(&found), "not one of {expected:?}: {opened}");
        let status = self.wait_for("protecting");
        // One that was ending may have said already that nothing is hot.
        let cold = expected.contains(&Found::Clean);
        self.check_reread(found, cold, hot, &opened, &status);
        // Quiet: what is restored now is what the source is.
        let (label, hash) = (format!("number {}", self.known.len()), self.source_hash());
        let known = self.mark(label, hash);
        if found == Found::Killed {
            self.check_gap(&opened);
        }
        assert_eq!(self.restored(&format!("label:{}", known.label)), hash, "replica and source after the start");
        self.known.push(known);
        for known in self.known.iter().rev().skip(1).take(2) {
            assert_eq!(self.restored(&format!("label:{}", known.label)), known.hash, "{}", known.label);
        }
        if let Some(known) = self.known.iter().rev().nth(1) {
            let at = format!("lsn:{}-{}", known.timeline, known.lsn);
            assert_eq!(self.restored(&at), known.hash, "{at}");
        }
        self.check_promises();
        self.writers.read_through(&uri);
        // And goes on: the next kill, or the next start, finds it like this.
        protection.stop();
        self.verify_promises_without_owner();
        self.sessions.check(&self.path("replica"), &self.status());
        found
    }

    /// What the activity log names, in bytes, if it can be read.
    fn hot_bytes(&self) -> Option<u64> {
        let storage = Disk::open(self.path("replica")).ok()?;
        let group = read_manifest(&storage).ok()?.group;
        let log = LogContents::read(&fs::read(self.path("replica/state/activity.log")).ok()?, group).ok()?;
        Some(log.disks.iter().flat_map(|disk| &disk.hot).map(|extent| extent.length).sum())
    }

    /// A start reads again what the activity log names, and not the disk; after a clean stop nothing.
    fn check_reread(&mut self, found: Found, cold: bool, hot: Option<u64>, opened: &Value, status: &Value) {
        let reread = status["reread_bytes"].as_u64().unwrap();
        let written = self.writers.answered() > std::mem::replace(&mut self.answered, self.writers.answered());
        match (found, opened["compared"].as_str().unwrap()) {
            (Found::Killed, "activity-log") => {
                assert_eq!(Some(reread), hot, "bytes that were read again, and those that are hot");
                assert!(reread <= DISK / 2, "{reread} bytes were read again of {DISK}");
                assert!(reread > 0 || !written || cold, "writes were answered, and nothing was read again");
                self.by_log += u64::from(reread > 0);
            }
            // Where a sync took longer than a guest may wait, or the first copy had just ended, the log is not believed.
            (Found::Killed, compared) => assert_eq!((compared, reread), ("everything", DISK)),
            (_, compared) => assert_eq!((compared, reread), ("nothing", 0)),
        }
    }

    /// A moment whose content is known, because nothing is written while it is made.
    fn mark(&self, label: String, hash: blake3::Hash) -> Known {
        let marked = self.ask(&["mark", "--label", &label]).done();
        let timeline = marked["at"]["timeline"].as_str().unwrap().to_owned();
        Known { label, timeline, lsn: marked["at"]["lsn"].as_u64().unwrap(), hash }
    }

    /// The present, while nothing is written.
    pub(crate) fn mark_now(&self, label: String) -> Known {
        self.mark(label, self.source_hash())
    }

    /// Every moment whose content is known has it still.
    pub(crate) fn check_known(&self) {
        for known in &self.known {
            assert_eq!(self.restored(&format!("label:{}", known.label)), known.hash, "{} in the end", known.label);
        }
    }

    fn ranges(&self) -> Vec<(String, u64, u64)> {
        let points = self.ask(&["points"]).done();
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
        let points = self.ask(&["points"]).done();
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
            assert_eq!(answer.status, 3, "{at}: {}", answer.json);
            let nearest = answer.json["error"]["nearest"].as_array().unwrap();
            assert!(!nearest.is_empty(), "{at}: {}", answer.json);
            assert!(nearest.iter().any(|near| near["timeline"] == opened["timeline"]), "{}", answer.json);
            assert!(!output.exists());
        }
    }
}
