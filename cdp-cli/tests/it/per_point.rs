//! The policy that keeps points only: of what lies between them nothing can be restored, whatever happens meanwhile.

use crate::support::{Place, Scene, cdp, hash, restore, wait_for};
use serde_json::Value;
use std::ffi::OsStr;

const DISK: usize = 4 << 20;

fn ask(scene: &Scene, verb: &str, more: &[&str]) -> Value {
    let arguments = [OsStr::new(verb), scene.replica.as_os_str()];
    cdp(&[&arguments[..], &more.iter().map(OsStr::new).collect::<Vec<_>>()].concat()).done()
}

/// Ranges of this kind, newest first: from which LSN to which.
fn ranges(scene: &Scene, kind: &str) -> Vec<(u64, u64)> {
    let points = ask(scene, "points", &[]);
    let of_kind = points["ranges"].as_array().unwrap().iter().filter(|range| range["kind"] == kind);
    of_kind.map(|range| (range["from_lsn"].as_u64().unwrap(), range["to_lsn"].as_u64().unwrap())).collect()
}

fn lsn_of(scene: &Scene, label: &str) -> u64 {
    let points = ask(scene, "points", &[]);
    let named = points["points"].as_array().unwrap().iter().find(|point| point["label"] == label).cloned();
    named.unwrap()["lsn"].as_u64().unwrap()
}

/// The moment is one by itself, and those next to it are refused with it as the nearest.
fn stands_alone(scene: &Scene, label: &str, model: &[u8]) {
    assert_eq!(scene.restored(label), blake3::hash(model), "{label}");
    let lsn = lsn_of(scene, label);
    assert!(ranges(scene, "only").contains(&(lsn, lsn)), "{label} at {lsn}: {:?}", ranges(scene, "only"));
    let output = scene.place.path("no.img");
    for beside in [lsn - 1, lsn + 1] {
        let refused = restore(&scene.replica, &format!("lsn:{beside}"), &output).failed(3, "not-restorable");
        let near = refused["nearest"].as_array().unwrap();
        assert!(near.iter().any(|moment| moment["lsn"] == lsn), "{refused}");
    }
}

#[test]
fn only_points_can_be_restored_and_a_kill_between_them_takes_none() {
    let place = Place::new();
    let replica = place.path("replica");
    let policy = ["--points", "per-point", "--rpo", "300ms"];
    let mut scene = Scene::begin_with(place, replica, &policy, 701, DISK);
    assert_eq!(ask(&scene, "policy", &[])["points"], "per-point");
    let one = scene.marked("one");
    scene.guest.work(40);
    wait_for("points of the policy", || ranges(&scene, "only").len() > 3);
    let two = scene.marked("two");
    stands_alone(&scene, "one", &one);
    stands_alone(&scene, "two", &two);
    // Durable, and of no moment.
    scene.guest.work(60);
    scene.running.kill();
    stands_alone(&scene, "two", &two);
    assert_eq!(ask(&scene, "verify", &[])["ok"], true);
    scene.begin_again(702);
    wait_for("a moment behind the restart", || {
        scene.guest.flush();
        scene.restored("latest") == hash(&scene.source)
    });
    let three = scene.marked("three");
    for (label, model) in [("one", &one), ("two", &two), ("three", &three)] {
        stands_alone(&scene, label, model);
    }
    assert_eq!(ask(&scene, "verify", &[])["ok"], true);
    scene.guest.work(30);
    scene.running.stop_clean();
    assert_eq!(scene.restored("latest"), hash(&scene.source), "a stop closes the period");
}

#[test]
fn the_policy_is_changed_under_way_and_what_is_there_stays() {
    let mut scene = Scene::begin(711, DISK);
    scene.marked("every");
    let end = |scene: &Scene| ranges(scene, "every").first().map_or(0, |(_, to)| *to);
    ask(&scene, "policy", &["--points", "per-point", "--rpo", "200ms"]);
    let point = scene.marked("point");
    stands_alone(&scene, "point", &point);
    let every = ranges(&scene, "every");
    assert_eq!(every.len(), 1, "{every:?}");
    assert!(every[0].1 >= lsn_of(&scene, "every") && every[0].1 < lsn_of(&scene, "point"));
    ask(&scene, "policy", &["--points", "every-write"]);
    let again = scene.marked("again");
    let lsn = lsn_of(&scene, "again");
    assert_eq!(scene.restored("again"), blake3::hash(&again));
    wait_for("every write again", || end(&scene) >= lsn);
    assert_eq!(ranges(&scene, "every").len(), 2);
    restore(&scene.replica, &format!("lsn:{}", lsn - 1), &scene.place.path("out.img")).done();
    stands_alone(&scene, "point", &point);
    scene.running.stop_clean();
    assert_eq!(scene.restored("latest"), hash(&scene.source));
}

/// What is merged ends at a point, and the window goes on.
#[test]
fn the_window_moves_on_from_point_to_point() {
    let place = Place::new();
    let replica = place.path("replica");
    let policy = ["--points", "per-point", "--rpo", "200ms", "--window", "1s"];
    let mut scene = Scene::begin_with(place, replica, &policy, 721, DISK);
    let kept = scene.marked("kept");
    ask(&scene, "pin", &["--at", "kept"]);
    let lsn = lsn_of(&scene, "kept");
    wait_for("the window to move on", || {
        scene.guest.work(10);
        ranges(&scene, "only")
            .iter()
            .map(|(from, _)| *from)
            .filter(|from| *from != lsn)
            .min()
            .is_some_and(|from| from > lsn)
    });
    let last = scene.marked("last");
    assert_eq!(scene.restored("last"), blake3::hash(&last));
    assert_eq!(scene.restored("kept"), blake3::hash(&kept));
    assert_eq!(ask(&scene, "verify", &[])["ok"], true);
    scene.running.stop_clean();
    assert_eq!(scene.restored("latest"), hash(&scene.source));
    assert_eq!(ask(&scene, "verify", &[])["ok"], true);
}
