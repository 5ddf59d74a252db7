//! What is read stays whole while it is read, also where the reader is the owner and does what others ask for.

use super::protect::{DISK, Place, label, noise, restored, seeded, wait_for};
use bytes::Bytes;
use cdp_core::journal::read_manifest;
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::ReplicaView;
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::owner::{Access, ControlClient, PinReply, PolicyChange, Request};
use cdp_net::protect::{ProtectOptions, Protector};
use cdp_net::reading::{Reading, ReadingTwo};
use cdp_net::report::{At, Policy, Pruned};
use cdp_net::verify::verify;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// A replica that nobody protects any more, with the moments `seen`, `later` and the end: what the disk held then.
fn written(place: &Place, seed: u64) -> [Vec<u8>; 3] {
    let mut model = place.make_source("disk", seed);
    // Small ones: with what is merged first they go first.
    let options = ProtectOptions { segment_bytes: MIB as u64, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(&protector);
    // Before the first of them all over, more than a merge does in one piece; then to one place each: what is kept for who reads a
    // moment before is little.
    let models = [("seen", 0..20), ("later", 21..22), ("end", 22..23)].map(|(name, places)| {
        for (round, place) in (0..30).zip(places.cycle()) {
            let (at, data) = (place * MIB, noise(seed + 100 * place as u64 + round, MIB));
            model[at..at + MIB].copy_from_slice(&data);
            protector.exports()[0].device.write(at as u64, Bytes::from(data), false).unwrap();
        }
        protector.mark(&label(name)).unwrap();
        model.clone()
    });
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    models
}

fn named(name: &str) -> When {
    format!("label:{name}").parse().unwrap()
}

fn access(replica: &Path) -> Access {
    Access::open(replica, Duration::from_secs(5)).unwrap()
}

/// Has the owner merge everything but what is held.
fn prune(replica: &Path) {
    let pruned: Pruned = bounded(replica).call(&PRUNE).unwrap();
    assert!(pruned.freed_bytes > 0, "{pruned:?}");
}

const PRUNE: Request = Request::Prune { dry_run: false };

/// Asks for a bound, and applies nothing yet.
fn bounded(replica: &Path) -> ControlClient {
    let mut asking = ControlClient::connect(replica).unwrap();
    // Less than was written after each of the moments. A quarter of it may be kept for readers.
    let change = PolicyChange { max_bytes: Some(20 * MIB as u64), ..PolicyChange::default() };
    let _: Policy = asking.call(&Request::Policy { change }).unwrap();
    asking
}

fn content(view: &ReplicaView) -> Vec<u8> {
    let mut content = vec![0; DISK];
    view.read(view.disks()[0].id, 0, &mut content).unwrap();
    content
}

#[test]
fn a_mount_without_an_owner_outlasts_a_prune_that_it_is_asked_for() {
    let place = Place::new();
    let [seen, ..] = written(&place, 7001);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let reading = Reading::open(&replica, access(&replica), &named("seen"), None, &key).unwrap();
    let view = reading.view().unwrap();
    prune(&replica);
    assert!(content(&view) == seen);
    // Nobody else has it any more, and nobody at all when it is let go of.
    drop((view, reading));
    let mut held = place.load();
    assert_eq!(held.manifest().kept.len(), 1);
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    ControlClient::connect(&replica).unwrap().call::<Pruned>(&PRUNE).unwrap();
    drop(reading);
    held = place.load();
    assert!(held.manifest().kept.is_empty());
    assert!(held.resolve(&named("seen")).is_err());
}

#[test]
fn a_comparison_without_an_owner_outlasts_a_prune_too() {
    let place = Place::new();
    let [seen, later, _] = written(&place, 7002);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let when = [&named("seen"), &named("later")];
    let reading = ReadingTwo::open(&replica, access(&replica), when, None, &key).unwrap();
    let views = reading.views().unwrap();
    prune(&replica);
    assert!(content(&views[0]) == seen);
    assert!(content(&views[1]) == later);
}

#[test]
fn the_end_of_a_reader_that_owns_the_replica_does_not_wait_for_a_prune_that_it_was_asked_for() {
    let place = Place::new();
    written(&place, 7003);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    // Nothing is merged while somebody reads everything: the merge is under way for as long as the test needs.
    let mut everything = ControlClient::connect(&replica).unwrap();
    let _: PinReply = everything.call(&Request::PinAll).unwrap();
    let mut asking = bounded(&replica);
    let pruning = std::thread::spawn(move || asking.call::<Pruned>(&PRUNE));
    let merging = || read_manifest(&Disk::open(&replica).unwrap()).unwrap().merge.is_some();
    wait_for("a merge that waits", merging);
    drop(reading);
    let refused = pruning.join().unwrap();
    assert!(refused.is_err(), "it merged to the end: {refused:?}");
    assert!(merging(), "the end waited for a merge");
    // The next one goes on.
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    prune(&replica);
    drop(reading);
    assert!(!merging());
}

#[test]
fn what_is_let_go_of_stays_until_who_reads_everything_is_through() {
    let place = Place::new();
    let [seen, ..] = written(&place, 7004);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    let mut asking = ControlClient::connect(&replica).unwrap();
    let pin = Request::Keep { at: named("seen"), nearest: None, label: None };
    let _: At = asking.call(&pin).unwrap();
    prune(&replica);
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(&replica).unwrap());
    let kept = || storage.list("kept").unwrap();
    assert_eq!(kept().len(), 1);
    let mut everything = ControlClient::connect(&replica).unwrap();
    let pause: PinReply = everything.call(&Request::PinAll).unwrap();
    // As a verification does it that takes long: what there is is what was there when it began.
    let before = place.load();
    let _: At = asking.call(&Request::LetGo { at: named("seen"), nearest: None }).unwrap();
    let pruning = std::thread::spawn(move || asking.call::<Pruned>(&PRUNE));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(kept().len(), 1, "it is removed while somebody reads everything");
    assert!(restored(&before, &named("seen"), "disk") == seen);
    assert!(verify(&storage, Some(pause.at.lsn), &key, &mut |_, _| {}).unwrap().ok);
    drop(everything);
    pruning.join().unwrap().unwrap();
    assert!(kept().is_empty());
    drop(reading);
}
