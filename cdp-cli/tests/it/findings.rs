//! What a new user stumbled over: names of moments, messages, and what is said beside an answer.

use crate::support::{Answer, Guest, Place, Running, Scene, cdp, command, hash, mark, restore};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An LSN that can be restored is no point for that: the id was mistyped, or is of another list.
#[test]
fn a_point_that_is_none_is_refused_with_the_points_next_to_it() {
    let mut scene = Scene::begin(60, 1 << 20);
    let mut marked = Vec::new();
    for label in ["one", "two"] {
        scene.guest.work(10);
        marked.push(mark(&scene.replica, label)["at"].clone());
    }
    let timeline = marked[0]["timeline"].as_str().unwrap();
    let [one, two] = [0, 1].map(|at| marked[at]["lsn"].as_u64().unwrap());
    let output = scene.place.path("out.img");
    restore(&scene.replica, &format!("point:{timeline}-{one}"), &output).done();
    let between = two - 1;
    assert!(between > one);
    let refused = restore(&scene.replica, &format!("point:{timeline}-{between}"), &output).failed(3, "not-restorable");
    let nearest: Vec<_> = refused["nearest"].as_array().unwrap().iter().map(|at| at["lsn"].as_u64().unwrap()).collect();
    assert_eq!(nearest, [one, two], "{refused}");
    // As an LSN it is a moment like any other.
    restore(&scene.replica, &format!("lsn:{timeline}-{between}"), &output).done();
    scene.running.stop_clean();
}

/// Words of a list that begin like a time, with the zone's offset behind them.
fn times(shown: &str) -> Vec<String> {
    let words: Vec<_> = shown.split_whitespace().collect();
    let is_date = |word: &str| word.len() == 10 && word.as_bytes()[4] == b'-';
    words.windows(3).filter(|triple| is_date(triple[0])).map(|triple| triple.join(" ")).collect()
}

#[test]
fn a_time_that_is_shown_to_people_can_be_asked_for() {
    let mut scene = Scene::begin(61, 1 << 20);
    scene.guest.work(20);
    mark(&scene.replica, "one");
    let expected = scene.guest.hash();
    scene.guest.work(20);
    for zone in ["UTC", "Europe/Berlin", "Asia/Kolkata"] {
        let mut people = std::process::Command::new(env!("CARGO_BIN_EXE_cdp"));
        let shown = people.env("TZ", zone).args(["points", text(&scene.replica)]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let line = shown.lines().find(|line| line.ends_with(" one")).unwrap_or_else(|| panic!("{shown}"));
        let [time] = &times(line)[..] else { panic!("{line}") };
        let output = scene.place.path("out.img");
        // Exactly the record that it stands beside, not the one before.
        let restored = restore(&scene.replica, time, &output).done();
        assert_eq!((restored["at"]["point"].is_string(), hash(&output)), (true, expected), "{time}: {restored}");
        // The first moment of all is one too.
        let range = shown.lines().find(|line| line.contains("every write from")).unwrap();
        restore(&scene.replica, &times(range)[0], &output).done();
    }
    scene.running.stop_clean();
}

#[test]
fn what_cannot_be_listened_on_has_a_reason_and_a_way_out() {
    let place = Place::new();
    let source = place.source("disk.img", 62, 1 << 20);
    let replica = place.path("replica");
    let no_directory = format!("nbd+unix:///?socket={}", place.path("none/nbd.sock").display());
    let long = format!("nbd+unix:///?socket=/tmp/{}", "x".repeat(200));
    for (listen, reason, way) in [
        ("nbd://192.0.2.1:10809", "Cannot assign", "none of this machine's"),
        (&no_directory, "No such file", "make the directory"),
        (&long, "", "--listen"),
        ("nbd://no-such-host.invalid:1", "", "--listen"),
    ] {
        let arguments = ["protect", text(&source), "--replica", text(&replica), "--listen", listen];
        let refused = cdp(&arguments).failed(1, "listen");
        let (message, hint) = (refused["message"].as_str().unwrap(), refused["hint"].as_str().unwrap());
        let (_, why) = message.rsplit_once(": ").unwrap_or_else(|| panic!("{message}"));
        assert!(!why.is_empty() && message.contains(reason) && hint.contains(way), "{refused}");
    }
    assert!(!replica.exists(), "nothing was made");
}

#[test]
fn a_protection_that_does_not_begin_makes_no_replica() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 64, 1 << 20), place.path("new/replica"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (there, missing) = (format!("nbd://127.0.0.1:{port}"), place.path("none.img"));
    let free = place.socket("nbd");
    let protect = |source: &Path, listen: &str, more: &[&str]| {
        let arguments = ["protect", text(source), "--replica", text(&replica), "--listen", listen];
        let answer = cdp(&[&arguments[..], more].concat());
        assert!(!place.path("new").exists(), "nothing was made: {listen} {more:?}");
        answer
    };
    protect(&source, &there, &[]).failed(1, "listen");
    protect(&missing, &free, &[]).failed(1, "source");
    protect(&source, &free, &["--tls-certificates", text(&missing)]).failed(1, "tls");
    // Whoever listens there because the replica is its own is named as that.
    let mut running = Running::protect(&[&source], &replica, &free, &[]).protecting();
    let again = ["protect", text(&source), "--replica", text(&replica), "--listen", &free];
    cdp(&again).failed(4, "owned");
    running.stop_clean();
}

/// As a user who owns nothing of it. `None` where this process may not become one.
fn as_nobody(arguments: &[&str]) -> Option<Answer> {
    let mut stranger = command(arguments);
    stranger.uid(65_534).gid(65_534);
    let Ok(output) = stranger.output() else {
        println!("skipped: another user, which takes root and a command that all may run");
        return None;
    };
    Some(Answer::of(&output))
}

#[test]
fn a_replica_of_another_user_is_said_to_be() {
    let mut scene = Scene::begin(63, 1 << 20);
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    // Not even its directory can be looked into.
    open(&scene.place.path(""), 0o755);
    open(&scene.replica, 0o700);
    let status = ["status", text(&scene.replica)];
    let Some(answer) = as_nobody(&status) else { return };
    let refused = answer.failed(4, "no-permission");
    assert!(refused["message"].as_str().unwrap().contains("Permission denied"), "{refused}");
    // It can, and its owner may not be asked.
    open(&scene.replica, 0o755);
    let refused = as_nobody(&status).unwrap().failed(4, "no-permission");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("control.sock") && message.contains("user 0"), "{refused}");
    scene.running.stop_clean();
    // Nobody owns it now, and it may not be locked.
    let refused = as_nobody(&status).unwrap().failed(4, "no-permission");
    assert!(refused["message"].as_str().unwrap().contains("LOCK"), "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("run the command as the user"), "{refused}");
}

#[test]
fn a_disk_that_is_smaller_than_what_it_is_restored_over_says_so() {
    let mut scene = Scene::begin(64, 1 << 20);
    mark(&scene.replica, "now");
    let output = scene.place.path("out.img");
    std::fs::write(&output, vec![7; 3 << 20]).unwrap();
    let restored = restore(&scene.replica, "now", &output).done();
    assert_eq!(restored["outputs"][0]["over"].as_u64(), Some(3 << 20), "{restored}");
    assert_eq!(hash(&output), hash(&scene.source));
    // Nothing is said where nothing is to be said.
    assert!(restore(&scene.replica, "now", &output).done()["outputs"][0]["over"].is_null());
    scene.running.stop_clean();
}

#[test]
fn a_directory_for_several_disks_is_made_if_it_is_asked_for() {
    let place = Place::new();
    let (one, two) = (place.source("one.img", 65, 1 << 20), place.source("two.img", 66, 2 << 20));
    let replica = place.path("replica");
    let mut running = Running::protect(&[&one, &two], &replica, &place.socket("nbd"), &[]).protecting();
    mark(&replica, "both");
    let directory = place.path("restored");
    restore(&replica, "both", &directory).failed(4, "several-disks");
    assert!(!directory.exists());
    let with_slash = format!("{}/", directory.display());
    let none = ["restore", text(&replica), "--at", "both", "--output", &with_slash, "--disk", "three"];
    cdp(&none).failed(2, "no-disk");
    assert!(!directory.exists(), "nothing came into it: it is gone again");
    restore(&replica, "both", Path::new(&with_slash)).done();
    assert_eq!((hash(&directory.join("one.img")), hash(&directory.join("two.img"))), (hash(&one), hash(&two)));
    running.stop_clean();
}

/// A file is explained by the replica around it, wherever one stands when one asks.
#[test]
fn a_file_is_inspected_from_every_directory() {
    let mut scene = Scene::begin(68, 1 << 20);
    scene.running.stop_clean();
    for (standing, path, kind) in [
        ("", "base/1.img", "a base image"),
        ("", "./base/1.sum", "the sidecar of a base"),
        ("", "state/activity.log", "an activity log"),
        ("", "MANIFEST", "manifest"),
        ("base", "1.img", "a base image"),
        ("base", "./1.img", "a base image"),
        ("base", "../state/activity.log", "an activity log"),
        ("state", "activity.log", "an activity log"),
        ("..", "replica/base/1.img", "a base image"),
        ("base", "../../replica/base/1.sum", "the sidecar of a base"),
    ] {
        let mut asking = command(&["inspect", path]);
        let answer = Answer::of(&asking.current_dir(scene.replica.join(standing)).output().unwrap()).done();
        assert!(answer["kind"].as_str().unwrap().starts_with(kind), "{standing} {path}: {answer}");
    }
}

/// What says `protecting` has to be what `latest` is of.
#[test]
fn latest_is_of_the_new_timeline_once_the_state_says_protecting() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 67, 1 << 20), place.path("replica"));
    for round in 0..6 {
        let running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
        let opened = running.wait_event("opened", |event| event["event"] == "opened");
        let status = cdp(&["status", text(&replica)]).done();
        assert_eq!(status["state"], "protecting");
        let restored = restore(&replica, "latest", &place.path("out.img")).done();
        assert_eq!(restored["at"]["timeline"], opened["timeline"], "round {round}");
        Guest::connect(running.uri(), &source, 67 + round).work(5);
        // Killed.
    }
}

/// It is stored, since room may be made later, and whoever stores it hears at once what follows.
#[test]
fn a_policy_that_leaves_no_room_is_accepted_and_said_to_be_one() {
    let mut scene = Scene::begin(69, 1 << 20);
    let policy = |change: &[&str]| cdp(&[&["policy", text(&scene.replica)], change].concat());
    for (change, said) in [
        (["--reserve", "99TiB"], "the reserve of 99.0 TiB is more than the"),
        (["--quota", "32MiB"], "the quota of 32.0 MiB leaves the journal nothing"),
    ] {
        let answer = policy(&change);
        assert!(answer.status == 0 && answer.stderr.starts_with(&format!("cdp: {said}")), "{answer:?}");
        let warnings = answer.json["warnings"].as_array().unwrap();
        assert!(warnings.len() == 1 && answer.stderr.contains(warnings[0].as_str().unwrap()), "{answer:?}");
    }
    for change in [&["--rpo", "1s"][..], &["--reserve", "1MiB", "--quota", "0"], &[]] {
        let answer = policy(change);
        assert!(answer.stderr.is_empty() && answer.done()["warnings"].is_null(), "{change:?}");
    }
    scene.running.stop_clean();
}
