//! A group of two disks of which one is damaged: the other is restored at every moment, and `verify` says so.

use crate::support::{Answer, Guest, Place, Running, cdp, hash, mark, restore, wait_for};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn of<'a>(verified: &'a Value, name: &str) -> &'a Value {
    verified["disks"].as_array().unwrap().iter().find(|disk| disk["disk"] == name).unwrap()
}

fn is_empty(ranges: &Value) -> bool {
    ranges.as_array().unwrap().is_empty()
}

#[test]
fn a_base_that_is_gone_takes_its_own_disk_and_the_other_is_restored_by_the_command_that_is_named() {
    let place = Place::new();
    let (root, data) = (place.source("root.img", 1, 2 << 20), place.source("data.img", 2, 2 << 20));
    let (replica, output) = (place.path("replica"), place.path("out.img"));
    let mut running = Running::protect(&[&root, &data], &replica, &place.socket("nbd"), &[]).protecting();
    let exports = running.wait_event("two disks", |event| event["event"] == "ready")["exports"].clone();
    let guest = |at: usize, source| Guest::connect(exports[at]["uri"].as_str().unwrap(), source, at as u64);
    let (mut first, mut second) = (guest(0, &root), guest(1, &data));
    first.work(20);
    second.work(20);
    mark(&replica, "both");
    let held = second.hash();
    drop((first, second));
    running.stop_clean();

    let image = std::fs::read_dir(replica.join("base")).unwrap().map(|entry| entry.unwrap().path());
    let image = image.filter(|path| path.extension().is_some_and(|ending| ending == "img")).min().unwrap();
    std::fs::rename(&image, place.path("aside")).unwrap();
    let answer = cdp(&["verify", text(&replica)]);
    assert_eq!(answer.status, 5, "{answer:?}");
    let verified = answer.json;
    assert_eq!(verified["damage"][0]["disks"], serde_json::json!(["root"]), "{verified}");
    assert!(is_empty(&of(&verified, "root")["good"]) && !is_empty(&of(&verified, "root")["lost"]), "{verified}");
    assert!(is_empty(&of(&verified, "data")["lost"]) && !is_empty(&of(&verified, "data")["good"]), "{verified}");
    assert!(is_empty(&verified["good"]), "{verified}");

    // People read the same, and the command that is named does it.
    let said = Command::new(env!("CARGO_BIN_EXE_cdp")).args(["verify", text(&replica)]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.lines().next().unwrap().ends_with("every moment of root is lost"), "{said}");
    let named = said.lines().find(|line| line.contains("cdp restore")).unwrap_or_else(|| panic!("{said}"));
    let arguments: Vec<_> = named.split_whitespace().skip(1).map(|word| word.replace("...", text(&output))).collect();
    cdp(&arguments).done();
    assert_eq!(hash(&output), hash(&data));
    cdp(&["restore", text(&replica), "--at", "both", "--disk", "data", "--output", text(&output), "--force"]).done();
    assert_eq!(hash(&output), held);

    // All that needs the other one is refused, and nothing is changed.
    let one = cdp(&["restore", text(&replica), "--at", "both", "--disk", "root", "--output", text(&output), "--force"]);
    one.failed(5, "damaged");
    restore(&replica, "both", &place.path("all/")).failed(5, "damaged");
    cdp(&["prune", text(&replica)]).failed(5, "damaged");
    for listing in ["points", "status"] {
        let answer = cdp(&[listing, text(&replica)]);
        assert!(answer.status == 5 && answer.json["damaged"].is_string(), "{answer:?}");
    }
    let refused = Running::try_protect(&[&root, &data], &replica, &place.socket("nbd"), &[]);
    assert_eq!(refused.map(|_| ()).unwrap_err().0, 5);
    std::fs::rename(place.path("aside"), &image).unwrap();
    cdp(&["verify", text(&replica)]).done();
}

/// A copy that does not come to its end: the quota has less room than it takes.
#[test]
fn before_the_first_copy_is_through_verify_says_that_nothing_can_be_restored() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 3, 96 << 20), place.path("replica"));
    let running = Running::protect(&[&source], &replica, &place.socket("nbd"), &["--quota", "64MiB"]);
    running.wait_event("lack of room", |event| event["event"] == "state" && event["state"] == "quota");
    let message = cdp(&["verify", text(&replica)]).failed(3, "not-restorable")["message"].clone();
    assert!(message.as_str().unwrap().starts_with("nothing can be restored yet"), "{message}");
    drop(running);
    wait_for("the lock", || cdp(&["status", text(&replica)]).status == 0);
    let answer = cdp(&["verify", text(&replica)]);
    assert!(answer.status == 0 && answer.json["unseeded"] == true, "{answer:?}");
}

/// Whether a process has a handler for SIGINT yet.
fn catches(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 2 != 0)
}

/// How a verify of so much ends that is stopped as soon as it can be.
fn stopped_verify(bytes: usize) -> Answer {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 4, bytes), place.path("replica"));
    Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting().stop_clean();
    let mut verifying = Command::new(env!("CARGO_BIN_EXE_cdp"));
    verifying.args(["--json", "verify", text(&replica)]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut verifying = verifying.spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&verifying);
    wait_for("a handler", || catches(verifying.id()) || verifying.try_wait().unwrap().is_some());
    // One that was through already is waited for yet: nobody else has its number.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    Answer::of(&verifying.wait_with_output().unwrap())
}

#[test]
fn a_verify_that_is_stopped_says_how_far_it_came() {
    // A quick machine is through with little before it is stopped.
    let mut answers = [128, 512, 1024].map(|mib| mib << 20).into_iter().map(stopped_verify);
    let answer = answers.find(|answer| answer.status != 0).expect("1 GiB is verified before it can be stopped");
    assert!(answer.status == 130 && answer.json["stopped"] == true && answer.json["ok"] == false, "{answer:?}");
}
