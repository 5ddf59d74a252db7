//! `cdp disk`: a group that changes while it is protected, and what scripts see of it.

use crate::support::{Answer, Guest, Place, Running, Scene, cdp, hash, mark, noise, restore, wait_for};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::path::Path;

const MIB: usize = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn disk(replica: &Path, arguments: &[&str]) -> Answer {
    cdp(&[&["disk", text(replica)], arguments].concat())
}

fn disks(replica: &Path) -> Vec<Value> {
    cdp(&["status", text(replica)]).done()["disks"].as_array().unwrap().clone()
}

fn wait_complete(replica: &Path, name: &str) {
    wait_for("the copy", || disks(replica).iter().any(|disk| disk["name"] == name && disk.get("incomplete").is_none()));
}

fn restore_disk(place: &Place, replica: &Path, at: &str, name: &str) -> Result<blake3::Hash, Answer> {
    let output = place.path("one-disk.img");
    let answer = cdp(&["restore", text(replica), "--at", at, "--disk", name, "--output", text(&output), "--force"]);
    if answer.status == 0 { Ok(hash(&output)) } else { Err(answer) }
}

#[test]
fn a_group_changes_while_it_is_protected() {
    let Scene { mut guest, mut running, source, replica, place } = Scene::begin(31, 4 * MIB);
    guest.work(10);
    mark(&replica, "alone");
    let alone = guest.model.clone();
    let data = place.source("data.img", 32, 8 * MIB);
    let added = disk(&replica, &["add", &format!("late={}", text(&data))]).done();
    assert_eq!((&added["verb"], &added["disk"]["name"]), (&json!("added"), &json!("late")));
    let ready = running.wait_event("two disks", |event| {
        event["event"] == "ready" && event["exports"].as_array().is_some_and(|exports| exports.len() == 2)
    });
    wait_complete(&replica, "late");
    let mut late = Guest::connect(ready["exports"][1]["uri"].as_str().unwrap(), &data, 33);
    guest.work(10);
    late.work(10);
    mark(&replica, "both");
    let (both, with_late) = (guest.model.clone(), late.model.clone());

    // A point says which disks it has, and one that was not there is refused with the moments that have it.
    let points = cdp(&["points", text(&replica)]).done()["points"].clone();
    let of =
        |label: &str| points.as_array().unwrap().iter().find(|point| point["label"] == label).unwrap()["disks"].clone();
    assert_eq!((of("alone"), of("both")), (json!(["disk"]), json!(["disk", "late"])));
    let refused = restore_disk(&place, &replica, "label:alone", "late").unwrap_err().failed(3, "disk-incomplete");
    assert_eq!(refused["nearest"].as_array().unwrap().len(), 1, "{refused}");
    let nearest = format!("lsn:{}", refused["nearest"][0]["lsn"]);
    restore_disk(&place, &replica, &nearest, "late").unwrap();
    assert_eq!(restore_disk(&place, &replica, "label:both", "late").unwrap(), blake3::hash(&with_late));
    assert_eq!(restore_disk(&place, &replica, "label:both", "disk").unwrap(), blake3::hash(&both));
    restore_disk(&place, &replica, "label:both", "nobody").unwrap_err().failed(2, "no-disk");

    // It grows, and is cut only when that is forced.
    disk(&replica, &["grow", "late"]).failed(4, "same-size");
    disk(&replica, &["grow", "nobody"]).failed(2, "no-disk");
    OpenOptions::new().write(true).open(&data).unwrap().set_len(9 * MIB as u64).unwrap();
    let grown = disk(&replica, &["grow", "late"]).done();
    assert_eq!((&grown["verb"], &grown["disk"]["size"]), (&json!("grown"), &json!(9 * MIB)));
    mark(&replica, "grown");
    disk(&replica, &["grow", "late", "--size", "4MiB"]).failed(4, "data-would-be-lost");
    let cut = disk(&replica, &["grow", "late", "--size", "4MiB", "--force"]).done();
    assert_eq!((&cut["verb"], data.metadata().unwrap().len()), (&json!("cut"), 4 * MIB as u64));
    mark(&replica, "cut");
    let mut larger = with_late.clone();
    larger.resize(9 * MIB, 0);
    assert_eq!(restore_disk(&place, &replica, "label:grown", "late").unwrap(), blake3::hash(&larger));
    assert_eq!(restore_disk(&place, &replica, "label:cut", "late").unwrap(), blake3::hash(&larger[..4 * MIB]));
    assert_eq!(
        restore_disk(&place, &replica, "label:both", "late").unwrap(),
        blake3::hash(&with_late),
        "as large as then"
    );

    let removed = disk(&replica, &["remove", "late"]).done();
    assert_eq!(removed["verb"], json!("removed"));
    disk(&replica, &["remove", "disk"]).failed(4, "last-disk");
    let listed: Vec<_> = disks(&replica).into_iter().map(|disk| disk["name"].clone()).collect();
    assert_eq!(listed, [json!("disk")]);
    guest.work(5);
    drop((guest, late));
    running.stop_clean();
    let output = place.path("all/");
    assert_eq!(
        cdp(&["restore", text(&replica), "--at", "label:both", "--output", text(&output)]).done()["outputs"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    restore(&replica, "label:alone", &place.path("out.img")).done();
    assert_eq!(hash(&place.path("out.img")), blake3::hash(&alone));
    let refused = restore_disk(&place, &replica, "latest", "late").unwrap_err().failed(3, "disk-incomplete");
    assert_eq!(refused["nearest"].as_array().unwrap().len(), 1, "the last moment before it went: {refused}");
    let (lsn, time) = (refused["nearest"][0]["lsn"].to_string(), refused["nearest"][0]["time"].clone());
    let of_lsn = restore(&replica, &format!("lsn:{lsn}"), &place.path("both/")).done()["at"]["time"].clone();
    assert_eq!(time, of_lsn, "its own time, and not that of the range around it");
    cdp(&["verify", text(&replica)]).done();
    Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting().stop_clean();
}

#[test]
fn a_kill_while_a_disk_is_copied_takes_nothing_from_the_others() {
    let Scene { mut guest, running, source, replica, place } = Scene::begin(41, 2 * MIB);
    guest.work(10);
    // So much that the kill comes before its end.
    let data = place.path("large.img");
    std::fs::write(&data, noise(42, 320 * MIB)).unwrap();
    disk(&replica, &["add", text(&data)]).done();
    guest.work(10);
    mark(&replica, "during");
    let during = guest.model.clone();
    let incomplete = disks(&replica).into_iter().find(|disk| disk["name"] == "large").unwrap();
    assert_eq!(incomplete["incomplete"], json!(true));
    let whole = cdp(&["restore", text(&replica), "--at", "label:during", "--output", text(&place.path("out.img"))]);
    assert_eq!(whole.done()["incomplete"], json!(["large"]));
    drop((guest, running));
    restore_disk(&place, &replica, "label:during", "large").unwrap_err().failed(3, "disk-incomplete");
    assert_eq!(restore_disk(&place, &replica, "label:during", "disk").unwrap(), blake3::hash(&during));
    let socket = place.socket("nbd");
    let (status, end) = Running::try_protect(&[&source], &replica, &socket, &[]).err().unwrap();
    assert_eq!((status, &end["error"]["code"]), (4, &json!("other-disks")));
    let mut running = Running::protect(&[&source, &data], &replica, &socket, &[]).protecting();
    wait_complete(&replica, "large");
    mark(&replica, "complete");
    running.stop_clean();
    assert_eq!(restore_disk(&place, &replica, "label:complete", "large").unwrap(), hash(&data));
    assert_eq!(restore_disk(&place, &replica, "label:during", "disk").unwrap(), blake3::hash(&during));
    cdp(&["verify", text(&replica)]).done();
}

#[test]
fn a_group_changes_while_nobody_protects_it() {
    let Scene { guest, mut running, source, replica, place } = Scene::begin(51, 2 * MIB);
    let first = guest.model.clone();
    drop(guest);
    running.stop_clean();
    let data = place.source("data.img", 52, MIB);
    assert_eq!(disk(&replica, &["add", text(&data)]).done()["lsn"], Value::Null);
    disk(&replica, &["grow", "disk"]).failed(4, "not-protecting");
    OpenOptions::new().write(true).open(&source).unwrap().set_len(MIB as u64).unwrap();
    let socket = place.socket("nbd");
    let (status, end) = Running::try_protect(&[&source, &data], &replica, &socket, &[]).err().unwrap();
    assert_eq!((status, &end["error"]["code"]), (4, &json!("source-cut")));
    assert!(end["error"]["hint"].as_str().unwrap().contains("--size 1048576 --force"), "{end}");
    disk(&replica, &["grow", "disk", "--size", "1048576", "--force"]).done();
    let mut running = Running::protect(&[&source, &data], &replica, &socket, &[]).protecting();
    wait_complete(&replica, "data");
    mark(&replica, "after");
    running.stop_clean();
    assert_eq!(restore_disk(&place, &replica, "label:after", "disk").unwrap(), blake3::hash(&first[..MIB]));
    assert_eq!(restore_disk(&place, &replica, "label:after", "data").unwrap(), hash(&data));
    disk(&replica, &["remove", "data"]).done();
    Running::protect(&[&source], &replica, &socket, &[]).protecting().stop_clean();
    assert_eq!(restore_disk(&place, &replica, "label:after", "data").unwrap(), hash(&data));
}

/// What is held outlasts the disk that it has, and the size that a disk had; when nothing holds it any more its files go.
#[test]
fn a_pinned_moment_keeps_its_disks_when_history_has_lost_them() {
    let place = Place::new();
    let replica = place.path("replica");
    let Scene { mut guest, mut running, source, replica, place } =
        Scene::begin_with(place, replica, &["--window", "1s", "--rpo", "200ms"], 61, 2 * MIB);
    let data = place.source("late.img", 62, 3 * MIB);
    disk(&replica, &["add", text(&data)]).done();
    wait_complete(&replica, "late");
    guest.work(20);
    let pinned = mark(&replica, "held");
    cdp(&["pin", text(&replica), "--at", "label:held"]).done();
    let (held, late) = (guest.model.clone(), std::fs::read(&data).unwrap());
    OpenOptions::new().write(true).open(&source).unwrap().set_len(5 * MIB as u64).unwrap();
    disk(&replica, &["grow", "disk"]).done();
    let removed = disk(&replica, &["remove", "late"]).done()["lsn"].as_u64().unwrap();
    assert!(removed > pinned["at"]["lsn"].as_u64().unwrap());
    let oldest = || {
        let points = cdp(&["points", text(&replica), "--limit", "1"]).done();
        let every = points["ranges"].as_array().unwrap().iter().filter(|range| range["kind"] == "every");
        every.map(|range| range["from_lsn"].as_u64().unwrap()).min().unwrap()
    };
    wait_for("the window to move on", || {
        guest.work(10);
        oldest() > removed
    });
    assert_eq!(restore_disk(&place, &replica, "label:held", "late").unwrap(), blake3::hash(&late));
    assert_eq!(restore_disk(&place, &replica, "label:held", "disk").unwrap(), blake3::hash(&held), "as large as then");
    assert!(replica.join("base/2.img").exists());
    let points = cdp(&["points", text(&replica)]).done()["points"].clone();
    let point = points.as_array().unwrap().iter().find(|point| point["label"] == "held").unwrap().clone();
    assert_eq!(point["disks"], json!(["disk", "late"]));
    cdp(&["unpin", text(&replica), "--at", "label:held"]).done();
    wait_for("the files to go", || {
        guest.work(10);
        !replica.join("base/2.img").exists() && !replica.join("base/2.sum").exists()
    });
    guest.flush();
    let model = std::fs::read(&source).unwrap();
    mark(&replica, "end");
    drop(guest);
    running.stop_clean();
    assert_eq!(restore_disk(&place, &replica, "latest", "disk").unwrap(), blake3::hash(&model));
    cdp(&["verify", text(&replica)]).done();
    Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting().stop_clean();
}
