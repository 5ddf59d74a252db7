//! Retention as people see it: history ends where the policy says, and what is held does not.

use crate::support::{Guest, Place, Running, Scene, cdp, client, flip, hash, restore, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DISK: usize = 4 << 20;

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

fn begin(seed: u64, more: &[&str]) -> Scene {
    let place = Place::new();
    let replica = place.path("replica");
    Scene::begin_with(place, replica, more, seed, DISK)
}

/// The first file below a directory whose name ends so.
fn some_file(directory: &Path, ending: &str) -> PathBuf {
    let mut entries: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let found = entries.iter().find(|path| path.to_string_lossy().ends_with(ending)).cloned();
    found.unwrap_or_else(|| some_file(&entries[0], ending))
}

/// The guest goes on until everything up to `lsn` is merged.
fn work_past(scene: &mut Scene, lsn: u64) {
    let replica = scene.replica.clone();
    wait_for("the window to move on", || {
        scene.guest.work(10);
        oldest(&replica) > lsn
    });
}

fn lsn_of(replica: &Path, label: &str) -> u64 {
    let points = ask("points", replica, &[]);
    let named = points["points"].as_array().unwrap().iter().find(|point| point["label"] == label).cloned();
    named.unwrap()["lsn"].as_u64().unwrap()
}

#[test]
fn history_ends_with_the_window_and_what_is_pinned_does_not() {
    let mut scene = begin(401, &["--window", "1s", "--rpo", "200ms"]);
    let pinned = scene.marked("kept");
    scene.marked("lost");
    let lsn = lsn_of(&scene.replica, "lost");
    ask("pin", &scene.replica, &["--at", "kept", "--label", "court"]);
    work_past(&mut scene, lsn);
    let also = scene.marked("also");
    ask("pin", &scene.replica, &["--at", "label:also"]);
    let lsn = lsn_of(&scene.replica, "also");
    work_past(&mut scene, lsn);
    let check = |scene: &Scene, case: &str| {
        for (label, model) in [("kept", &pinned), ("also", &also)] {
            assert_eq!(scene.restored(label), blake3::hash(model), "{case}: {label}");
        }
        let lost = restore(&scene.replica, "lost", &scene.place.path("no.img")).failed(3, "not-restorable");
        assert!(!lost["message"].as_str().unwrap().is_empty());
        assert_eq!(ask("verify", &scene.replica, &[])["ok"], true, "{case}");
        let status = ask("status", &scene.replica, &[]);
        assert_eq!(status["holds"].as_array().unwrap().len(), 2, "{case}: {status}");
        assert!(status["space"]["pinned"].as_u64().unwrap() > 0, "{case}: {status}");
    };
    check(&scene, "under protection");
    let latest = std::fs::read(&scene.source).unwrap();
    scene.running.stop_clean();
    check(&scene, "without an owner");
    for (directory, name) in [("kept", ".seg"), ("base", ".img"), ("base", ".sum")] {
        let file = some_file(&scene.replica.join(directory), name);
        // Of two places for a page of checksums one is in use.
        let flip_both = || [5000, 900].iter().for_each(|at| flip(&file, *at, 3));
        flip_both();
        let verified = cdp(&[OsStr::new("verify"), scene.replica.as_os_str()]);
        assert_eq!(verified.status, 5, "{}: {}", file.display(), verified.json);
        flip_both();
    }
    check(&scene, "mended");
    assert_eq!(scene.restored("latest"), blake3::hash(&latest));
    scene.begin_again(402);
    let mut after = scene.guest.model.clone();
    check(&scene, "in another life");
    let now = oldest(&scene.replica);
    work_past(&mut scene, now);
    after.clone_from(&scene.guest.model);
    check(&scene, "further on");
    scene.running.stop_clean();
    assert_eq!(scene.restored("latest"), blake3::hash(&after));
    // What nobody holds any more goes.
    ask("unpin", &scene.replica, &["--at", "kept"]);
    let again = cdp(&[OsStr::new("unpin"), scene.replica.as_os_str(), OsStr::new("--at"), OsStr::new("also")]);
    again.done();
    ask("prune", &scene.replica, &[]);
    restore(&scene.replica, "kept", &scene.place.path("no.img")).failed(3, "not-restorable");
    let status = ask("status", &scene.replica, &[]);
    assert_eq!(
        (&status["space"]["pinned"], &status["space"]["layers"]),
        (&Value::from(0), &Value::from(0)),
        "{status}"
    );
    assert_eq!(std::fs::read_dir(scene.replica.join("kept")).unwrap().count(), 0);
    assert_eq!(scene.restored("latest"), blake3::hash(&after));
}

#[test]
fn a_bound_cuts_the_window_and_says_so_before_and_after() {
    let mut scene = begin(403, &["--window", "30s", "--max-bytes", "16MiB", "--segment-size", "1MiB"]);
    let mut forecast = false;
    wait_for("the journal to reach its bound", || {
        scene.guest.work(10);
        // Not so fast that it is over before anybody could say so.
        std::thread::sleep(Duration::from_millis(50));
        let history = ask("status", &scene.replica, &[])["history"].clone();
        forecast |= history["forecast_ms"].as_u64().is_some_and(|ms| ms < 30_000);
        assert!(forecast || history["cut"] == false, "cut, and not announced: {history}");
        history["cut"] == true
    });
    let told = |event: &Value| event["event"] == "history" && event["history"]["forecast_ms"].as_u64() < Some(30_000);
    scene.running.wait_event("the announcement", told);
    wait_for("the journal to be within its bound", || {
        scene.guest.work(5);
        ask("status", &scene.replica, &[])["space"]["segments"].as_u64().unwrap() < 20 << 20
    });
    let model = scene.marked("end");
    scene.running.stop_clean();
    assert_eq!(scene.restored("end"), blake3::hash(&model));
    // A smaller bound, applied to a replica that nobody protects.
    let before = oldest(&scene.replica);
    ask("policy", &scene.replica, &["--max-bytes", "8MiB"]);
    let would = ask("prune", &scene.replica, &["--dry-run"]);
    assert_eq!((oldest(&scene.replica), &would["dry_run"]), (before, &Value::from(true)));
    let pruned = ask("prune", &scene.replica, &[]);
    assert!(oldest(&scene.replica) > before, "{would} {pruned}");
    assert_eq!(pruned["oldest"]["lsn"], would["oldest"]["lsn"]);
    assert_eq!(scene.restored("end"), blake3::hash(&model));
}

#[test]
fn long_term_points_outlast_the_window_and_expire() {
    let mut scene = begin(404, &["--window", "1s", "--long-term", "2s", "--keep", "12s"]);
    let long = |scene: &Scene| {
        let points = ask("points", &scene.replica, &[]);
        let points = points["points"].as_array().unwrap().clone();
        points.into_iter().filter(|point| point["kinds"][0] == "long").collect::<Vec<_>>()
    };
    wait_for("two layers that are merged", || {
        scene.guest.work(10);
        let oldest = oldest(&scene.replica);
        long(&scene).iter().filter(|point| point["lsn"].as_u64().unwrap() < oldest).count() >= 2
    });
    let points = long(&scene);
    let at = |point: &Value| format!("point:{}", point["id"].as_str().unwrap());
    let first = at(&points[points.len() - 1]);
    let before = scene.restored(&first);
    scene.guest.work(50);
    assert_eq!(scene.restored(&first), before);
    // An export that others take.
    let out = scene.place.path("long.img");
    restore(&scene.replica, &first, &out).done();
    assert_eq!(hash(&out), before);
    wait_for("the first layer to expire", || {
        scene.guest.work(5);
        long(&scene).iter().all(|point| at(point) != first)
    });
    restore(&scene.replica, &first, &out).failed(3, "not-restorable");
    assert_eq!(ask("verify", &scene.replica, &[])["ok"], true);
}

/// The whole disk, as a client of a mount reads it.
fn read_all(uri: &str) -> Vec<u8> {
    let mut disk = client(uri);
    let mut content = vec![0; DISK];
    for (number, piece) in content.chunks_mut(64 << 10).enumerate() {
        disk.read((number << 16) as u64, piece).unwrap();
    }
    content
}

#[test]
fn who_reads_a_moment_goes_on_while_retention_takes_it_away() {
    let mut scene = begin(405, &["--window", "1s", "--rpo", "200ms"]);
    let model = scene.marked("seen");
    let lsn = lsn_of(&scene.replica, "seen");
    let mounted = Running::mount(&scene.replica, &scene.place.socket("ro"), &["--at", "seen"]);
    let session = &["--at", "seen", "--writable", "--session", "lab"];
    let mut lab = Running::mount(&scene.replica, &scene.place.socket("rw"), session);
    let mut writer = Guest::of(lab.uri(), &model, 7);
    writer.work(20);
    for round in 0..3 {
        work_past(&mut scene, lsn);
        assert!(read_all(mounted.uri()) == model, "round {round}");
        writer.work(20);
        assert!(read_all(lab.uri()) == writer.model, "round {round}: the session");
        scene.guest.work(300);
        let now = oldest(&scene.replica);
        work_past(&mut scene, now);
    }
    let kept = writer.model.clone();
    drop(writer);
    lab.stop();
    let now = oldest(&scene.replica);
    work_past(&mut scene, now);
    // A named session holds its moment without anybody, and that is counted.
    let holds = ask("status", &scene.replica, &[])["holds"].clone();
    let lab_holds =
        |hold: &Value| hold["by"] == "session" && hold["label"] == "lab" && hold["bytes"].as_u64() > Some(0);
    assert!(holds.as_array().unwrap().iter().any(lab_holds), "{holds}");
    let mut lab = Running::mount(&scene.replica, &scene.place.socket("again"), &["--writable", "--session", "lab"]);
    assert!(read_all(lab.uri()) == kept);
    lab.stop();
    drop(mounted);
    restore(&scene.replica, "latest", &scene.place.path("out.img")).done();
    assert_eq!(ask("verify", &scene.replica, &[])["ok"], true);
    scene.running.stop_clean();
    let mut lab = Running::mount(&scene.replica, &scene.place.socket("idle"), &["--writable", "--session", "lab"]);
    assert!(read_all(lab.uri()) == kept);
    lab.stop();
}

#[test]
fn a_mount_reads_on_however_often_the_protection_is_killed_and_begins_again() {
    let mut scene = begin(407, &["--window", "1s", "--rpo", "200ms"]);
    let model = scene.marked("seen");
    let mut mounted = Running::mount(&scene.replica, &scene.place.socket("ro"), &["--at", "seen"]);
    let readers = |scene: &Scene| ask("status", &scene.replica, &[])["pins"].clone();
    for round in 0..3 {
        if round == 1 {
            scene.running.stop_clean();
        } else {
            scene.running.kill();
        }
        scene.begin_again(4070 + round);
        let now = lsn_of(&scene.replica, "seen").max(oldest(&scene.replica));
        // Other bytes than the mount shows, everywhere.
        scene.guest.work(200);
        work_past(&mut scene, now);
        ask("prune", &scene.replica, &[]);
        assert!(read_all(mounted.uri()) == model, "round {round}");
        assert_eq!(readers(&scene), 1, "round {round}");
    }
    assert_eq!(ask("verify", &scene.replica, &[])["ok"], true);
    // Its end is the end of its moment, also where it leaves no word.
    mounted.kill();
    assert_eq!(readers(&scene), 0);
    ask("prune", &scene.replica, &[]);
    restore(&scene.replica, "seen", &scene.place.path("no.img")).failed(3, "not-restorable");
    assert_eq!(std::fs::read_dir(scene.replica.join("kept")).unwrap().count(), 0);
    scene.running.stop_clean();
}

#[test]
fn what_is_kept_for_readers_has_a_bound_and_past_it_they_are_told() {
    let mut scene = begin(406, &["--window", "1s", "--max-bytes", "8MiB", "--segment-size", "1MiB"]);
    let other = scene.marked("other");
    let mounted = Running::mount(&scene.replica, &scene.place.socket("ro"), &["--at", "other"]);
    assert!(read_all(mounted.uri()) == other);
    // A quarter of the bound is less than the disk, which is all written again and again.
    wait_for("the reader to be given up", || {
        scene.guest.work(40);
        ask("status", &scene.replica, &[])["pins"] == 0
    });
    // Parts that no merge has changed may still be read; what cannot be is an error, never something else.
    let mut disk = client(mounted.uri());
    let (mut failed, mut piece) = (0, vec![0; 4096]);
    for at in (0..DISK).step_by(4096) {
        match disk.read(at as u64, &mut piece) {
            Ok(()) => assert!(piece == other[at..at + 4096], "wrong bytes at {at}"),
            Err(_) => failed += 1,
        }
    }
    assert!(failed > 0, "nothing was given up");
    let latest = scene.marked("end");
    assert_eq!(scene.restored("end"), blake3::hash(&latest));
    assert_eq!(ask("verify", &scene.replica, &[])["ok"], true);
}
