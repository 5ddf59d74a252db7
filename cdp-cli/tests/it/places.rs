//! Where a replica may be, what may be a source, and what a restore may write over.

use crate::support::{Guest, Place, Running, cdp, command, hash, mark, restore, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

const DISK: usize = 2 << 20;

fn refused(source: &Path, replica: &Path, place: &Place, code: &str) {
    let end = Running::try_protect(&[source], replica, &place.socket("other"), &[]).err().unwrap();
    assert_eq!((end.0, end.1["error"]["code"].as_str()), (4, Some(code)), "{}", end.1);
}

#[test]
fn a_directory_of_something_else_and_a_file_of_a_replica_are_left_alone() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 81, DISK), place.path("replica"));
    let elsewhere = place.path("etc");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("passwd"), "root").unwrap();
    refused(&source, &elsewhere, &place, "replica-occupied");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1, "nothing was put there");
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    refused(&replica.join("base/1.img"), &place.path("second"), &place, "source-in-replica");
    // Neither the replica that is restored nor another one.
    let (other, output) = (place.path("other"), place.path("replica/base/1.img"));
    let image = place.source("other.img", 82, DISK);
    Running::protect(&[&image], &other, &place.socket("third"), &[]).protecting().stop_clean();
    let before = hash(&output);
    for from in [&replica, &other] {
        restore(from, "latest", &output).failed(4, "output-in-replica");
    }
    assert_eq!(hash(&output), before);
    running.stop_clean();
    // What is on somebody's disk is nobody else's business.
    for (path, mode) in [("", 0o700), ("base", 0o700), ("base/1.img", 0o600), ("MANIFEST", 0o600)] {
        let found = std::fs::metadata(replica.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found & !mode, 0, "{path}: {found:o}");
    }
}

#[test]
fn a_restore_over_a_file_keeps_its_permissions() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 83, DISK), place.path("replica"));
    Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting().stop_clean();
    let output = place.source("out.img", 84, DISK);
    std::fs::set_permissions(&output, std::fs::Permissions::from_mode(0o664)).unwrap();
    restore(&replica, "latest", &output).done();
    assert_eq!(std::fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o664);
    assert_eq!(hash(&output), hash(&source));
}

#[test]
fn a_replica_that_is_taken_away_is_missed() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 85, DISK), place.path("replica"));
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    let mut guest = Guest::connect(running.uri(), &source, 85);
    std::fs::rename(&replica, place.path("moved")).unwrap();
    let lost = |event: &Value| event["state"] == "replica-lost";
    let said = running.wait_event("the loss", lost);
    assert!(said["reason"].as_str().unwrap().contains("renamed"), "{said}");
    guest.work(20);
    assert_eq!(hash(&source), guest.hash());
    let (status, stopped) = running.stop();
    assert_eq!((status, stopped["drained"].as_bool()), (1, Some(false)), "{stopped}");
    assert!(!replica.exists(), "nothing is put where it was");
}

/// The owner has vouched for what its files do not hold any more.
#[test]
fn a_journal_that_is_gone_under_its_owner_is_damage() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 86, DISK), place.path("replica"));
    let running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    Guest::connect(running.uri(), &source, 86).work(20);
    mark(&replica, "now");
    let directory = replica.to_str().unwrap();
    assert_eq!(cdp(&["verify", directory]).done()["ok"], true);
    for segment in std::fs::read_dir(replica.join("journal")).unwrap() {
        std::fs::remove_file(segment.unwrap().path()).unwrap();
    }
    let found = cdp(&["verify", directory]);
    assert_eq!((found.status, found.json["ok"].as_bool()), (5, Some(false)), "{found:?}");
}

#[test]
fn a_name_that_was_mistyped_has_no_neighbours_and_an_answer_that_is_cut_off_is_a_failure() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 87, DISK), place.path("replica"));
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    mark(&replica, "label");
    let (directory, output) = (replica.to_str().unwrap(), place.path("out.img"));
    for at in ["lable", "lsn:00000000000000aa-5"] {
        let arguments = ["restore", directory, "--at", at, "--nearest", "before", "--output", output.to_str().unwrap()];
        cdp(&arguments).failed(3, "not-restorable");
        assert!(!output.exists(), "{at}");
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut points = crate::support::command(&["points", directory]);
    assert_eq!(points.stdout(full).output().unwrap().status.code(), Some(1));
    running.stop_clean();
    // What was lost and told once is not told at every start.
    drop(Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting());
    let mut killed = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    let is_gap = |event: &Value| event["event"] == "gap";
    wait_for("the gap that the kill left", || killed.events().iter().any(is_gap));
    killed.stop_clean();
    let mut again = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    std::thread::sleep(std::time::Duration::from_millis(300));
    again.stop_clean();
    assert!(!again.events().iter().any(is_gap), "{:?}", again.events());
}

/// What it had written stays under a hidden name when it is killed.
#[test]
fn what_a_killed_restore_left_goes_with_the_next_one() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 85, 32 << 20), place.path("replica"));
    Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting().stop_clean();
    let directory = place.path("out");
    std::fs::create_dir(&directory).unwrap();
    let output = directory.join("out.img");
    let left = || std::fs::read_dir(&directory).unwrap().flatten().filter(|entry| entry.path() != output).count();
    let arguments = ["restore", "--at", "latest", "--output"].map(OsStr::new);
    let arguments = [&arguments[..], &[output.as_os_str(), replica.as_os_str()]].concat();
    // One that was too quick has to be killed again.
    for _ in 0..50 {
        let mut killed = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while left() == 0 && killed.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        if left() > 0 {
            break;
        }
        std::fs::remove_file(&output).unwrap();
    }
    assert_eq!((left(), output.exists()), (1, false));
    restore(&replica, "latest", &output).done();
    assert_eq!((left(), hash(&output)), (0, hash(&source)));
}
