//! The replica's disk is full, or may not be written to: the guest goes on, and the protection comes back by itself.

use crate::support::{Guest, Mounted, Place, Running, Scene, cdp, hash, mark, noise, restore, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;

const DISK: usize = 16 << 20;
/// Eight mebibytes may wait in memory until the replica takes them again.
const MORE: [&str; 10] =
    ["--memory", "8MiB", "--segment-size", "8MiB", "--rpo", "1s", "--drain", "1s", "--when-full", "stop"];
/// More than is ever used, with the reserve that stays free behind the segments.
const ROOM: u64 = 1 << 30;
/// More than any segment and what waits: after so much, tracking must have begun.
const TOO_MUCH: u64 = 128 << 20;

fn status(replica: &Path) -> Value {
    cdp(&[OsStr::new("status"), replica.as_os_str()]).done()
}

fn points(replica: &Path) -> Value {
    cdp(&[OsStr::new("points"), replica.as_os_str()]).done()
}

/// A protected disk whose replica lies where room can be taken away.
fn begin(seed: u64) -> Option<(Mounted, Scene)> {
    let mounted = Mounted::tmpfs(ROOM)?;
    let replica = mounted.path("replica");
    let scene = Scene::begin_with(Place::new(), replica, &MORE, seed, DISK);
    Some((mounted, scene))
}

/// Writes until nothing more is recorded; slowly enough that nothing but the lack of room can be the reason.
fn overflow(scene: &mut Scene) {
    let mut written = 0;
    while !has_no_room(scene) {
        assert!(written < TOO_MUCH, "{written} bytes were written and there is still room");
        for _ in 0..2 {
            scene.guest.write(written % DISK as u64, noise(written + 1, 1 << 20));
            written += 1 << 20;
        }
        let caught_up = |status: &Value| status["state"] == "no-space" || status["durable_lsn"] == status["lsn"];
        wait_for("the journal", || caught_up(&status(&scene.replica)));
    }
    while !is_tracking(scene) {
        assert!(written < 2 * TOO_MUCH, "{}", status(&scene.replica));
        scene.guest.write(written % DISK as u64, noise(written + 1, 1 << 20));
        written += 1 << 20;
    }
    scene.guest.work(40);
    assert_eq!(status(&scene.replica)["state"], "no-space");
}

fn has_no_room(scene: &Scene) -> bool {
    scene.running.events().iter().any(|event| event["state"] == "no-space")
}

fn is_tracking(scene: &Scene) -> bool {
    let tracked = |event: &Value| event["reason"].as_str().is_some_and(|reason| reason.contains("no-space"));
    scene.running.events().iter().any(tracked)
}

fn protect(place: &Place, source: &Path, replica: &Path) -> Running {
    Running::protect(&[source], replica, &place.socket("nbd"), &MORE)
}

#[test]
fn a_full_disk_stops_the_protection_and_not_the_guest() {
    let Some((mut mounted, mut scene)) = begin(21) else { return };
    scene.guest.work(50);
    mark(&scene.replica, "before");
    let before = scene.guest.hash();
    mounted.leave(0);
    overflow(&mut scene);
    // What is restorable stays so, what cannot be is refused, the guest reads what it wrote.
    assert_eq!(scene.restored("before"), before);
    let refused = cdp(&[OsStr::new("mark"), scene.replica.as_os_str(), OsStr::new("--label"), OsStr::new("lost")]);
    refused.failed(4, "not-restorable-now");
    assert_eq!(hash(&scene.source), scene.guest.hash());
    let heard = scene.running.events().len();
    mounted.leave(ROOM);
    let protecting = |event: &Value| event["event"] == "state" && event["state"] == "protecting";
    scene.running.wait_event_after(heard, "protection again", protecting);
    assert_eq!(status(&scene.replica)["state"], "protecting");
    scene.guest.work(50);
    mark(&scene.replica, "after");
    let after = scene.guest.hash();
    scene.guest.work(20);
    let gaps = points(&scene.replica)["gaps"].clone();
    let gap =
        gaps.as_array().unwrap().iter().find(|gap| gap["reason"] == "no-space").unwrap_or_else(|| panic!("{gaps}"));
    let inside = format!("lsn:{}", gap["from_lsn"].as_u64().unwrap());
    let lost = restore(&scene.replica, &inside, &scene.place.path("lost.img")).failed(3, "not-restorable");
    assert_eq!(lost["nearest"].as_array().unwrap().len(), 2, "{lost}");
    assert_eq!((scene.restored("before"), scene.restored("after")), (before, after));
    scene.running.stop_clean();
    let end = scene.guest.hash();
    assert_eq!((scene.restored("latest"), hash(&scene.source)), (end, end));
    assert_eq!((scene.restored("before"), scene.restored("after")), (before, after));
    assert_eq!(cdp(&[OsStr::new("verify"), scene.replica.as_os_str()]).done()["ok"], true);
}

#[test]
fn a_kill_and_a_stop_while_the_disk_is_full_lose_nothing_that_was_durable() {
    let Some((mut mounted, mut scene)) = begin(22) else { return };
    mark(&scene.replica, "before");
    let before = scene.guest.hash();
    mounted.leave(0);
    overflow(&mut scene);
    let Scene { guest, running, source, replica, place } = scene;
    let end = guest.hash();
    drop((running, guest));
    let output = place.path("out.img");
    restore(&replica, "before", &output).done();
    assert_eq!(hash(&output), before);
    // There is room for the beginning, and none for a segment: it waits, serves, and goes on by itself.
    mounted.leave(64 << 20);
    let mut running = protect(&place, &source, &replica);
    wait_for("no-space", || status(&replica)["state"] == "no-space");
    let mut guest = Guest::connect(running.uri(), &source, 23);
    assert_eq!(guest.hash(), end);
    guest.work(30);
    mounted.leave(ROOM);
    running = running.protecting();
    guest.work(30);
    running.stop_clean();
    for (at, expected) in [("latest", guest.hash()), ("before", before)] {
        restore(&replica, at, &output).done();
        assert_eq!(hash(&output), expected, "{at}");
    }
    assert_eq!(hash(&source), guest.hash());
}

#[test]
fn a_stop_while_the_disk_is_full_says_what_is_left() {
    let Some((mut mounted, mut scene)) = begin(24) else { return };
    mounted.leave(0);
    overflow(&mut scene);
    let end = scene.guest.hash();
    // A drain that cannot come to an end is given up after its time.
    let (status, stopped) = scene.running.stop();
    assert_eq!((status, stopped["drained"].as_bool()), (1, Some(false)), "{stopped}");
    assert!(stopped["hot_bytes"].as_u64().unwrap() > 0, "{stopped}");
    mounted.leave(ROOM);
    let mut running = protect(&scene.place, &scene.source, &scene.replica).protecting();
    running.stop_clean();
    assert_eq!((scene.restored("latest"), hash(&scene.source)), (end, end));
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let Some(mut mounted) = Mounted::tmpfs(1 << 20) else { return };
    std::fs::create_dir(mounted.path("replica")).unwrap();
    mounted.make_read_only();
    let place = Place::new();
    let source = place.source("disk.img", 25, 1 << 20);
    let before = hash(&source);
    // There already, and to be made.
    for replica in [mounted.path("replica"), mounted.path("new")] {
        let refused = Running::try_protect(&[&source], &replica, &place.socket("nbd"), &[]).err().unwrap();
        let (status, said) = refused;
        let message = said["error"]["message"].as_str().unwrap();
        assert!(status == 4 && message.contains(replica.to_str().unwrap()), "{said}");
        assert_eq!(said["error"]["code"], "read-only", "{said}");
    }
    assert_eq!(hash(&source), before);
}
