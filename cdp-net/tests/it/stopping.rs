//! The end of a protection does not wait for work that somebody asked for.

use crate::kit::{Place, label, noise, restored, seeded, wait_for};
use bytes::Bytes;
use cdp_core::when::When;
use cdp_net::owner::{ControlClient, PinReply, PolicyChange, Request};
use cdp_net::protect::Protector;
use cdp_net::report::{Policy, Pruned};
use std::time::Duration;

#[test]
fn a_merge_that_was_asked_for_ends_with_its_owner_and_goes_on_with_the_next() {
    let place = Place::new();
    let mut model = place.make_source("disk", 81);
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(protector.protection());
    // Three pieces of a merge: one would be through before anybody looks at the end.
    for piece in 0..20 {
        let data = noise(900 + piece, 1 << 20);
        let at = piece as usize % 22 * (1 << 20);
        model[at..at + data.len()].copy_from_slice(&data);
        protector.exports()[0].device.write(at as u64, Bytes::from(data), false).unwrap();
    }
    protector.mark(&label("written")).unwrap();
    let replica = place.replica();
    // Nothing is merged while somebody reads everything.
    let mut reader = ControlClient::connect(&replica).unwrap();
    let _: PinReply = reader.call(&Request::PinAll).unwrap();
    let mut owner = ControlClient::connect(&replica).unwrap();
    let change = PolicyChange { window_ms: Some(1000), ..PolicyChange::default() };
    let _: Policy = owner.call(&Request::Policy { change }).unwrap();
    let merging = |protector: &Protector| protector.host().replica().manifest().merge.is_some();
    wait_for("a merge that waits", || merging(&protector));
    let pruning = std::thread::spawn(move || owner.call::<Pruned>(&Request::Prune { dry_run: false }));
    std::thread::sleep(Duration::from_millis(200));
    let summary = protector.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained, "{summary:?}");
    let refused = pruning.join().unwrap();
    assert!(refused.is_err(), "it merged to the end: {refused:?}");
    drop(reader);
    let left = place.load();
    assert!(left.manifest().merge.is_some(), "the stop waited for a merge");
    assert!(restored(&left, &When::Latest, "disk") == model);
    drop(left);
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    wait_for("the next owner to end the merge", || !merging(&protector));
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    assert!(restored(&place.load(), &When::Latest, "disk") == model);
}
