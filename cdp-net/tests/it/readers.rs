//! What is read stays whole while it is read, also where the reader is the owner and does what others ask for.

use super::protect::{DISK, Place, label, noise, seeded};
use bytes::Bytes;
use cdp_core::replica::ReplicaView;
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::owner::{Access, ControlClient, PolicyChange, Request};
use cdp_net::protect::{ProtectOptions, Protector};
use cdp_net::reading::{Reading, ReadingTwo};
use cdp_net::report::{Policy, Pruned};
use std::path::Path;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// A replica that nobody protects any more, with the moments `seen`, `later` and the end: what the disk held then.
fn written(place: &Place, seed: u64) -> [Vec<u8>; 3] {
    let mut model = place.make_source("disk", seed);
    // Small ones: with what is merged first they go first.
    let options = ProtectOptions { segment_bytes: MIB as u64, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(&protector);
    // Much is written, and always to the same place: what a merge has to keep for who reads a moment before is little.
    let models = [("seen", 20), ("later", 21), ("end", 22)].map(|(name, place)| {
        for round in 0..30 {
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
    let mut asking = ControlClient::connect(replica).unwrap();
    // Less than was written after each of the moments. A quarter of it may be kept for readers.
    let change = PolicyChange { max_bytes: Some(20 * MIB as u64), ..PolicyChange::default() };
    let _: Policy = asking.call(&Request::Policy { change }).unwrap();
    let pruned: Pruned = asking.call(&Request::Prune { dry_run: false }).unwrap();
    assert!(pruned.freed_bytes > 0, "{pruned:?}");
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
    ControlClient::connect(&replica).unwrap().call::<Pruned>(&Request::Prune { dry_run: false }).unwrap();
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
