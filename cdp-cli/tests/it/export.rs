//! A long-term point as others take it: a raw file that stands for itself.

use crate::support::{Place, Running, Scene, cdp, hash, installed, mark, restore, run, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;

const DISK: usize = 8 << 20;

fn ask(verb: &str, replica: &Path) -> Value {
    cdp(&[OsStr::new(verb), replica.as_os_str()]).done()
}

/// The newest long-term point.
fn long(replica: &Path) -> Option<Value> {
    let points = ask("points", replica)["points"].as_array().unwrap().clone();
    points.into_iter().find(|point| point["kinds"].as_array().unwrap().iter().any(|kind| kind == "long"))
}

/// The first LSN from which on every write can be restored.
fn oldest(replica: &Path) -> u64 {
    let ranges = ask("points", replica)["ranges"].as_array().unwrap().clone();
    let every = ranges.iter().filter(|range| range["kind"] == "every");
    every.map(|range| range["from_lsn"].as_u64().unwrap()).min().unwrap()
}

#[test]
fn a_long_term_point_is_a_raw_image_that_qemu_converts_and_finds_identical() {
    if !installed("qemu-img") {
        return;
    }
    let place = Place::new();
    let replica = place.path("replica");
    let more = ["--window", "1s", "--long-term", "2s", "--keep", "1h", "--rpo", "200ms"];
    let mut scene = Scene::begin_with(place, replica, &more, 501, DISK);
    // The guest rests while the point is made: what the disk holds then is what it has to give back.
    scene.guest.work(200);
    let expected = scene.place.path("expected.raw");
    std::fs::write(&expected, &scene.guest.model).unwrap();
    mark(&scene.replica, "rest");
    let rested = ask("status", &scene.replica)["lsn"].as_u64().unwrap();
    let mut found = None;
    wait_for("a long-term point of the rest", || {
        found = long(&scene.replica).filter(|point| point["lsn"].as_u64().unwrap() >= rested);
        found.is_some()
    });
    let point = found.unwrap();
    wait_for("the window to leave it behind", || {
        scene.guest.work(20);
        oldest(&scene.replica) > point["lsn"].as_u64().unwrap()
    });
    let at = format!("point:{}", point["id"].as_str().unwrap());
    restore(&scene.replica, "rest", &scene.place.path("no.img")).failed(3, "not-restorable");
    check(&scene, &at, &expected, "under protection");
    scene.running.stop_clean();
    // Nothing of the replica is needed any more once it is exported.
    let exported = check(&scene, &at, &expected, "without an owner");
    std::fs::remove_dir_all(&scene.replica).unwrap();
    assert_eq!(hash(&exported), blake3::hash(&std::fs::read(&expected).unwrap()));
}

/// Exports the point and has somebody else's program convert it, compare it, as a file and as it is served.
fn check(scene: &Scene, at: &str, expected: &Path, case: &str) -> std::path::PathBuf {
    let (raw, qcow) = (scene.place.path("long.raw"), scene.place.path("long.qcow2"));
    let restored = restore(&scene.replica, at, &raw).done();
    assert_eq!(restored["outputs"][0]["bytes"], DISK, "{case}");
    let [raw_name, qcow_name, expected_name] = [&raw, &qcow, expected].map(|path| path.to_str().unwrap());
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw_name, qcow_name]);
    run("qemu-img", &["check", "-f", "qcow2", qcow_name]);
    let compared = run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", qcow_name, expected_name]);
    assert!(compared.contains("identical"), "{case}: {compared}");
    // The same moment over the wire.
    let mut mounted = Running::mount(&scene.replica, &scene.place.socket("long"), &["--at", at]);
    let served = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", expected_name, mounted.uri()]);
    assert!(served.contains("identical"), "{case}: {served}");
    assert_eq!(mounted.stop().0, 0);
    raw
}
