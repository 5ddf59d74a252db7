//! Kills that strike at one system call: while the first copy is made, at a start that reads again, under load, at a stop.

use crate::aim::{Aim, Effect, can_aim};
use crate::drill::{Drill, Found};
use crate::number;
use std::path::PathBuf;
use std::time::Duration;

/// How long the first call of its kind may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// And how long a later one, before the kill comes unaimed.
const LATER: Duration = Duration::from_secs(2);
/// Which call of its kind, at most.
const NTH_MAX: u64 = 5;

/// What goes on when the kill comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The first copy is being made, under load.
    FirstCopy,
    /// After a kill: it reads again what differs, under load.
    Resync,
    /// Load begins, and goes on.
    Load,
    /// Sessions are made and dropped, under load.
    Sessions,
    /// It was asked to end, under load.
    Stop,
}

/// A kind of call, by the file that it touches.
#[derive(Clone, Copy, Debug)]
struct Target {
    phase: Phase,
    calls: &'static str,
    file: Touched,
}

/// Files of the product by what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Touched {
    Source,
    BaseImage,
    BaseSidecar,
    BaseDirectory,
    Segment,
    JournalDirectory,
    Manifest,
    ManifestDirectory,
    ActivityLog,
    /// Only sessions make directories once it runs.
    AnyDirectory,
}

// Those with a question mark are not there on every machine.
const WRITE: &str = "pwrite64,pwritev,pwritev2";
const READ: &str = "pread64,preadv,preadv2";
const SYNC: &str = "fdatasync";
const SYNC_DIRECTORY: &str = "fsync";
const MAKE: &str = "?open,openat";
const RESERVE: &str = "fallocate";
const CUT: &str = "ftruncate";
const RENAME: &str = "?rename,?renameat,renameat2";
const MAKE_DIRECTORY: &str = "?mkdir,mkdirat";
const REMOVE: &str = "?unlink,unlinkat";

/// All of them: what a phase does to its files.
fn targets() -> Vec<Target> {
    let of = |phase: Phase, kinds: &[(Touched, &[&'static str])]| -> Vec<Target> {
        let each = kinds.iter().flat_map(|(file, calls)| calls.iter().map(|calls| (*file, *calls)));
        each.map(|(file, calls)| Target { phase, calls, file }).collect()
    };
    let first_copy = of(
        Phase::FirstCopy,
        &[
            (Touched::Source, &[READ, WRITE]),
            (Touched::BaseImage, &[MAKE, CUT, WRITE, SYNC]),
            (Touched::BaseSidecar, &[MAKE, WRITE, SYNC]),
            (Touched::BaseDirectory, &[SYNC_DIRECTORY]),
            (Touched::Segment, &[MAKE, WRITE, SYNC]),
            (Touched::JournalDirectory, &[SYNC_DIRECTORY]),
            (Touched::Manifest, &[MAKE, WRITE, SYNC, RENAME]),
            (Touched::ManifestDirectory, &[SYNC_DIRECTORY]),
            (Touched::ActivityLog, &[MAKE, WRITE, SYNC]),
        ],
    );
    let resync = of(
        Phase::Resync,
        &[
            (Touched::Source, &[READ, WRITE, SYNC]),
            (Touched::Segment, &[MAKE, WRITE, SYNC, CUT]),
            (Touched::Manifest, &[MAKE, SYNC, RENAME]),
            (Touched::ManifestDirectory, &[SYNC_DIRECTORY]),
            (Touched::ActivityLog, &[WRITE, SYNC]),
        ],
    );
    let load = of(
        Phase::Load,
        &[
            (Touched::Source, &[WRITE, SYNC]),
            (Touched::Segment, &[MAKE, RESERVE, WRITE, SYNC, CUT]),
            (Touched::JournalDirectory, &[SYNC_DIRECTORY]),
            (Touched::Manifest, &[MAKE, WRITE, SYNC, RENAME]),
            (Touched::ManifestDirectory, &[SYNC_DIRECTORY]),
            (Touched::ActivityLog, &[WRITE, SYNC]),
        ],
    );
    let sessions = of(
        Phase::Sessions,
        &[
            (Touched::Manifest, &[MAKE, SYNC, RENAME]),
            (Touched::ManifestDirectory, &[SYNC_DIRECTORY]),
            (Touched::AnyDirectory, &[MAKE_DIRECTORY]),
        ],
    );
    let stop = of(
        Phase::Stop,
        &[
            (Touched::Source, &[SYNC]),
            (Touched::Segment, &[WRITE, SYNC, CUT, REMOVE]),
            (Touched::Manifest, &[MAKE, WRITE, SYNC, RENAME]),
            (Touched::ManifestDirectory, &[SYNC_DIRECTORY]),
            (Touched::ActivityLog, &[WRITE, SYNC]),
        ],
    );
    [first_copy, resync, load, sessions, stop].concat()
}

impl Target {
    fn paths(&self, drill: &Drill) -> Vec<PathBuf> {
        let replica = drill.path("replica");
        match self.file {
            Touched::Source => vec![drill.path("disk")],
            Touched::BaseImage => vec![replica.join("base/1.img")],
            Touched::BaseSidecar => vec![replica.join("base/1.sum")],
            Touched::BaseDirectory => vec![replica.join("base")],
            Touched::Segment => segments(drill),
            Touched::JournalDirectory => vec![replica.join("journal")],
            Touched::Manifest => vec![replica.join("MANIFEST.tmp")],
            Touched::ManifestDirectory => vec![replica],
            Touched::ActivityLog => vec![replica.join("state/activity.log")],
            Touched::AnyDirectory => Vec::new(),
        }
    }

    /// Whether there is at least one such call.
    fn comes_always(&self) -> bool {
        // A stop removes the segment that was prepared and not used, if there is one.
        (self.phase, self.calls) != (Phase::Stop, REMOVE)
    }

    /// What the next start may find.
    fn leaves(&self) -> &'static [Found] {
        match self.phase {
            // Whether the last manifest of the copy was renamed decides.
            Phase::FirstCopy => &[Found::Nothing, Found::Killed],
            Phase::Resync | Phase::Load | Phase::Sessions => &[Found::Killed],
            Phase::Stop => &[Found::Clean, Found::Killed],
        }
    }
}

/// The segments that there are at the end, and those that come.
fn segments(drill: &Drill) -> Vec<PathBuf> {
    let journal = drill.path("replica/journal");
    let names = std::fs::read_dir(&journal).into_iter().flatten().flatten().map(|entry| entry.path());
    let numbers = names.filter_map(|path| u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok());
    let last = numbers.max().unwrap_or(0);
    (last.saturating_sub(3).max(1)..last + 60).map(|number| journal.join(format!("{number:016x}.seg"))).collect()
}

impl Drill {
    /// Brings about the phase and the kill; whether it came where it was aimed at.
    fn strike(&mut self, target: &Target, nth: u64) -> bool {
        let patience = if nth == 1 { PATIENCE } else { LATER };
        match target.phase {
            Phase::FirstCopy => {
                self.forget_replica();
                self.strike_from_the_start(target, nth, patience)
            }
            Phase::Resync => {
                self.kill_under_load();
                self.strike_from_the_start(target, nth, patience)
            }
            Phase::Load | Phase::Sessions | Phase::Stop => self.strike_while_it_runs(target, nth, patience),
        }
    }

    fn aim(&self, target: &Target, nth: u64) -> Aim {
        let effect = Effect::Kill { nth };
        Aim { calls: target.calls, paths: target.paths(self), effect, log: self.path("calls") }
    }

    fn kill_under_load(&mut self) {
        let mut protection = self.start();
        let load = self.writers.begin(&protection.ready());
        std::thread::sleep(Duration::from_millis(50 + self.dice.below(100)));
        protection.kill();
        self.writers.end_with_server(load);
    }

    fn strike_from_the_start(&mut self, target: &Target, nth: u64, patience: Duration) -> bool {
        let mut protection = self.start_aimed(&self.aim(target, nth));
        let Some(uri) = protection.ready_unless_killed() else { return protection.is_killed_within(PATIENCE) };
        let load = self.writers.begin(&uri);
        let struck = protection.is_killed_within(patience);
        protection.kill();
        self.writers.end_with_server(load);
        struck
    }

    fn strike_while_it_runs(&mut self, target: &Target, nth: u64, patience: Duration) -> bool {
        let mut protection = self.start();
        let uri = protection.ready();
        self.wait_for("protecting");
        let aim = self.aim(target, nth);
        let before = (target.phase == Phase::Stop).then(|| self.writers.begin(&uri));
        if before.is_some() {
            std::thread::sleep(Duration::from_millis(100));
        }
        // After a clean stop every extent is cold: the load's first writes are the activity log's first ones.
        let tracer = aim.at(protection.pid());
        let load = before.unwrap_or_else(|| self.writers.begin(&uri));
        let patience = match target.phase {
            Phase::Stop => {
                protection.ask_to_stop();
                PATIENCE
            }
            Phase::Sessions => match self.sessions.come_and_go(&self.path("replica"), patience) {
                // Its end may not be seen yet.
                None => PATIENCE,
                Some(()) => Duration::ZERO,
            },
            _ => patience,
        };
        let struck = protection.is_killed_within(patience);
        protection.kill();
        drop(tracer);
        self.writers.end_with_server(load);
        struck
    }
}

#[test]
fn a_kill_at_any_system_call_loses_nothing() {
    if !can_aim() {
        return;
    }
    let (kills, seed) = (number("CDP_AIMED_KILLS", 16), number("CDP_KILL_SEED", 1));
    eprintln!("CDP_AIMED_KILLS={kills} CDP_KILL_SEED={seed}");
    let mut drill = Drill::new(seed);
    let mut missed = 0;
    let mut left = Vec::new();
    drill.check(&[Found::Nothing]);
    for kill in 0..kills {
        if left.is_empty() {
            left = targets();
        }
        let target = left.swap_remove(drill.dice.below(left.len() as u64) as usize);
        // The first call of its kind comes always, and shows that the aim is right.
        let nth = if drill.dice.below(2) == 0 { 1 } else { 1 + drill.dice.below(NTH_MAX) };
        let struck = drill.strike(&target, nth);
        let last = drill.aim(&target, nth).last_calls();
        eprintln!("kill {kill}: {target:?}, call {nth}: {}", if struck { &last } else { "not reached" });
        assert!(struck || nth > 1 || !target.comes_always(), "no such call was made");
        missed += u64::from(!struck);
        drill.check_source();
        drill.check(target.leaves());
    }
    eprintln!("{kills} kills, {missed} of them not where they were aimed at");
    assert!(missed < kills, "nothing was struck");
    let verified = drill.ask(&["verify"]);
    assert_eq!(verified.status, 0, "{}", verified.json);
    drill.check_known();
}
