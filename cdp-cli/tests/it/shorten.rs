//! Little room, on the media or within the quota: history is shortened, announced before, and the protection goes on; or, as the policy
//! says, the protection stops and history stays. What is pinned stays in either case.

use crate::support::{Guest, Mounted, Place, Running, cdp, hash, mark, noise, restore, times, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DISK: usize = 8 << 20;
const SEGMENT: u64 = 2 * MIB;
const ROOM: u64 = 64 * MIB;
/// Of a load that is many times the room.
const LONG: u64 = 256 * MIB;
/// More than there is room for.
const TOO_MUCH: u64 = 96 * MIB;

fn ask(verb: &str, replica: &Path, more: &[&str]) -> Value {
    let arguments = [OsStr::new(verb), replica.as_os_str()];
    cdp(&[&arguments[..], &more.iter().map(OsStr::new).collect::<Vec<_>>()].concat()).done()
}

/// The first LSN from which on every write can be restored.
fn oldest(replica: &Path) -> u64 {
    let points = ask("points", replica, &["--limit", "1"]);
    let every = points["ranges"].as_array().unwrap().iter().filter(|range| range["kind"] == "every");
    every.map(|range| range["from_lsn"].as_u64().unwrap()).min().unwrap()
}

fn is_lack(event: &Value) -> bool {
    event["event"] == "state" && (event["state"] == "no-space" || event["state"] == "quota")
}

struct Scene {
    /// Gone at last.
    guest: Guest,
    running: Running,
    source: PathBuf,
    replica: PathBuf,
    place: Place,
    /// Moments, in their order, and what they hold.
    known: Vec<(String, blake3::Hash)>,
    written: u64,
}

impl Scene {
    fn begin(replica: PathBuf, seed: u64, more: &[&str]) -> Self {
        let place = Place::new();
        let source = place.source("disk.img", seed, DISK);
        let common = ["--rpo", "1s", "--drain", "5s", "--memory", "64MiB", "--segment-size", "2MiB"];
        let more = [&common, more].concat();
        let running = Running::protect(&[&source], &replica, &place.socket("nbd"), &more).protecting();
        let guest = Guest::connect(running.uri(), &source, seed);
        Self { guest, running, source, replica, place, known: Vec::new(), written: 0 }
    }

    fn status(&self) -> Value {
        ask("status", &self.replica, &[])
    }

    /// Overwrites blocks at random places, no faster than the journal takes them and history is merged: on a machine that is busy with other
    /// things either may take long.
    fn overwrite(&mut self, bytes: u64) {
        let end = self.written + bytes;
        while self.written < end {
            for piece in 0..32 {
                let seed = self.written + piece + 1;
                let place = u64::from_le_bytes(noise(seed, 8).try_into().unwrap()) % (DISK as u64 / 4096 - 8);
                self.guest.write(place * 4096, noise(seed ^ 0xabcd, 32 << 10));
            }
            self.written += MIB;
            self.settle();
        }
    }

    /// Waits until everything is durable and there is room for a few segments; or until it has stopped for good.
    fn settle(&self) {
        wait_for("the journal", || {
            let status = self.status();
            let room = status["history"]["room_bytes"].as_u64().is_none_or(|bytes| bytes >= 3 * SEGMENT);
            let through = status["durable_lsn"] == status["lsn"] && room;
            through || status["history"]["problem"].is_string() || status["state"] == "no-space"
        });
    }

    /// The status, if nothing is recorded any more and it says why.
    fn stopped(&self) -> Option<Value> {
        let stopped = |status: &Value| {
            let [needed, free] = ["needed_bytes", "free_bytes"].map(|what| status["lacks"][what].as_u64().unwrap_or(0));
            status["state"] == "quota" && status["history"]["problem"].is_string() && free < needed
        };
        Some(self.status()).filter(stopped)
    }

    fn mark(&mut self) -> String {
        let label = format!("at {}", self.written / MIB);
        mark(&self.replica, &label);
        self.known.push((label.clone(), self.guest.hash()));
        label
    }

    /// Names the present if it can be kept.
    fn try_mark(&mut self) -> bool {
        let label = format!("at {}", self.written / MIB);
        let marked = cdp(&[OsStr::new("mark"), self.replica.as_os_str(), OsStr::new("--label"), OsStr::new(&label)]);
        let done = marked.status == 0;
        if done {
            self.known.push((label, self.guest.hash()));
        }
        done
    }

    fn announced(&self) -> Option<Value> {
        let told = |event: &&Value| event["event"] == "history" && event["history"]["limit"].is_string();
        self.running.events().iter().find(told).cloned()
    }

    /// What can be restored of the known moments; every one that can be is right.
    fn restorable(&self) -> Vec<String> {
        let output = self.place.path("out.img");
        let good = self.known.iter().filter(|(label, expected)| {
            let answer = restore(&self.replica, label, &output);
            if answer.status == 0 {
                assert_eq!(hash(&output), *expected, "{label}");
            } else {
                answer.json["error"]["nearest"].as_array().unwrap();
                assert_eq!(answer.status, 3, "{label}: {answer:?}");
                return false;
            }
            true
        });
        good.map(|(label, _)| label.clone()).collect()
    }

    /// A long load: it never stops, and the first moment is not lost before that was announced.
    fn run_long(&mut self, limit: &str) {
        let begin = oldest(&self.replica);
        let (mut lost, long) = (false, LONG * times("CDP_LONG", 1));
        while self.written < long {
            self.overwrite(4 * MIB);
            // The order matters: what was not said by now was not said before.
            let (announced, now) = (self.announced(), oldest(&self.replica));
            assert!(now == begin || announced.is_some() || self.announced().is_some(), "lost and not announced");
            lost |= now > begin;
            if let Some(said) = announced {
                assert_eq!(said["history"]["limit"], limit, "{said}");
            }
            if self.written.is_multiple_of(16 * MIB) {
                self.mark();
            }
        }
        assert!(lost, "{LONG} bytes fit into {ROOM}");
        let stops: Vec<_> = self.running.events().into_iter().filter(is_lack).collect();
        assert!(stops.is_empty(), "it stopped: {stops:?}");
        let history = &self.status()["history"];
        assert_eq!(
            (&history["cut"], &history["cut_by"], &history["limit"]),
            (&true.into(), &limit.into(), &limit.into())
        );
    }

    fn end(&mut self) {
        let end = self.guest.hash();
        self.running.stop_clean();
        let output = self.place.path("out.img");
        restore(&self.replica, "latest", &output).done();
        assert_eq!((hash(&output), hash(&self.source)), (end, end));
        assert_eq!(ask("verify", &self.replica, &[])["ok"], true);
    }
}

#[test]
fn a_long_load_on_small_media_goes_on_with_a_shorter_history_that_was_announced() {
    let Some(mounted) = Mounted::tmpfs(ROOM) else { return };
    let mut scene = Scene::begin(mounted.path("replica"), 701, &["--reserve", "8MiB"]);
    scene.run_long("room");
    let good = scene.restorable();
    // Media of this size hold more than the last mark, and less than all.
    assert!(good.last() == scene.known.last().map(|(label, _)| label) && good.len() < scene.known.len(), "{good:?}");
    scene.overwrite(8 * MIB);
    scene.end();
    scene.restorable();
}

#[test]
fn where_history_is_to_stay_the_protection_stops_and_all_of_it_can_be_restored() {
    let Some(mut mounted) = Mounted::tmpfs(ROOM) else { return };
    let more = ["--reserve", "8MiB", "--when-full", "stop"];
    let mut scene = Scene::begin(mounted.path("replica"), 702, &more);
    let begin = oldest(&scene.replica);
    while scene.status()["state"] != "no-space" {
        assert!(scene.written < TOO_MUCH, "there is still room");
        if scene.written.is_multiple_of(8 * MIB) {
            scene.mark();
        }
        scene.overwrite(MIB);
    }
    assert_eq!((scene.restorable().len(), oldest(&scene.replica)), (scene.known.len(), begin));
    assert!(scene.status()["history"]["limit"].is_null(), "nothing is going to be cut");
    // Another policy is another outcome: the oldest goes, and it goes on by itself.
    ask("policy", &scene.replica, &["--when-full", "shorten"]);
    wait_for("the oldest to go", || oldest(&scene.replica) > begin);
    assert!(scene.announced().is_some());
    // What was not recorded is read again, as fast as it can be: that alone may take more than was made room for at first.
    let settled = |status: Value| status["state"] == "protecting" && status["lsn"] == status["durable_lsn"];
    wait_for("protection again", || settled(scene.status()));
    scene.overwrite(4 * MIB);
    wait_for("protection again", || settled(scene.status()));
    scene.mark();
    mounted.leave(ROOM);
    scene.end();
    scene.restorable();
}

#[test]
fn a_quota_shortens_history_and_what_is_pinned_stays() {
    let place = Place::new();
    let mut scene = Scene::begin(place.path("replica"), 703, &["--quota", "64MiB"]);
    scene.overwrite(MIB);
    let pinned = scene.mark();
    ask("pin", &scene.replica, &["--at", &pinned, "--label", "court"]);
    scene.run_long("quota");
    let status = scene.status();
    let space = &status["space"];
    let parts = ["base", "layers", "segments", "overlays", "pinned"].map(|part| space[part].as_u64().unwrap());
    assert_eq!(space["quota"], 64 * MIB);
    assert!(parts.iter().sum::<u64>() <= 64 * MIB && parts[4] > 0, "{space}");
    assert!(scene.restorable().contains(&pinned));
    scene.end();
    assert!(scene.restorable().contains(&pinned));
}

/// Pins that keep every state of the disk leave no room: the protection stops as `quota`, names them, and goes on when they go.
#[test]
fn pins_that_leave_no_room_stop_the_protection_and_are_named() {
    let place = Place::new();
    let mut scene = Scene::begin(place.path("replica"), 704, &["--quota", "64MiB"]);
    let mut pinned = Vec::new();
    let mut next = 0;
    let status = loop {
        if let Some(status) = scene.stopped() {
            break status;
        }
        let status = scene.status();
        if status["state"] != "protecting" || status["lsn"] != status["durable_lsn"] {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        assert!(scene.written < 4 * TOO_MUCH, "there is still room: {status}");
        // It may stop just now.
        if scene.written >= next && scene.try_mark() {
            let (label, _) = scene.known.last().unwrap();
            ask("pin", &scene.replica, &["--at", label]);
            pinned.push(label.clone());
            next = scene.written + 8 * MIB;
        }
        scene.overwrite(MIB);
    };
    let problem = status["history"]["problem"].as_str().unwrap();
    for part in
        ["the replica takes", "base ", "held since old moments", "by the pin", "`cdp unpin DIR --at lsn:", "--quota"]
    {
        assert!(problem.contains(part), "{part} in {status}");
    }
    assert!(status["lacks"]["needed_bytes"].as_u64().unwrap() >= SEGMENT, "{status}");
    assert!(status["lacks"]["free_bytes"].as_u64() < status["lacks"]["needed_bytes"].as_u64(), "{status}");
    let held: Vec<_> = status["holds"].as_array().unwrap().iter().map(|hold| hold["bytes"].as_u64().unwrap()).collect();
    assert!(held.len() == pinned.len() && held.iter().sum::<u64>() > 16 * MIB, "{status}");
    let good = scene.restorable();
    assert!(pinned.iter().all(|label| good.contains(label)), "{good:?} of {pinned:?}");
    // The guest was never stopped.
    assert_eq!(hash(&scene.source), scene.guest.hash());
    for label in &pinned {
        ask("unpin", &scene.replica, &["--at", label]);
    }
    // Not by its events: a little room that comes for a moment has it said before, and then it stops again.
    wait_for("protection again", || {
        let status = scene.status();
        status["state"] == "protecting"
            && status["lsn"] == status["durable_lsn"]
            && status["history"]["problem"].is_null()
    });
    scene.overwrite(4 * MIB);
    scene.mark();
    assert!(scene.restorable().contains(&scene.known.last().unwrap().0));
    scene.end();
}

/// A quota that is lowered below what there is does not keep the history that is above it.
#[test]
fn a_quota_below_what_is_there_is_reached_by_merging() {
    const LOWER: u64 = 48 * MIB;
    let place = Place::new();
    let mut scene = Scene::begin(place.path("replica"), 705, &["--quota", "96MiB"]);
    let takes = |status: &Value| {
        let space = &status["space"];
        let parts = ["base", "layers", "segments", "overlays", "pinned"].map(|part| space[part].as_u64().unwrap());
        parts.iter().sum::<u64>()
    };
    while takes(&scene.status()) < LOWER + 16 * MIB {
        assert!(scene.written < TOO_MUCH, "history does not grow: {}", scene.status());
        scene.overwrite(MIB);
    }
    assert_eq!(ask("policy", &scene.replica, &["--quota", "95MiB"])["warnings"], Value::Null);
    let warnings = ask("policy", &scene.replica, &["--quota", "48MiB"])["warnings"].clone();
    let said = warnings[0].as_str().is_some_and(|said| said.contains("48.0 MiB leaves the journal nothing"));
    assert!(said, "{warnings}");
    // What comes now finds no room before there is some.
    for piece in 0..32 {
        scene.guest.write(piece << 16, noise(piece + 1, 64 << 10));
    }
    wait_for("the lower quota", || {
        let status = scene.status();
        let settled = status["state"] == "protecting" && status["lsn"] == status["durable_lsn"];
        settled && takes(&status) <= LOWER && status["space"]["quota"] == LOWER
    });
    scene.overwrite(4 * MIB);
    scene.mark();
    assert!(takes(&scene.status()) <= LOWER, "{}", scene.status());
    assert!(scene.restorable().contains(&scene.known.last().unwrap().0));
    scene.end();
}
