//! The first copy while guests write more than the replica takes.

use crate::held::{Access, Gate, Held};
use crate::history::{self, Disks};
use crate::kit::{Place, label, noise, seeded, wait_for};
use bytes::Bytes;
use cdp_core::capture::State;
use cdp_net::protect::{ProtectOptions, Protector};
use std::sync::atomic::Ordering;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Zeros over what the first copy has read already, in a gap: read again, they must not be held against a base that is not
/// there yet, which would read as zeros too.
#[test]
fn zeros_written_in_a_gap_of_the_seeding_reach_the_replica() {
    let place = Place::new();
    // Without the holes of other tests: what the copy has read is data.
    std::fs::write(place.source("disk"), noise(77, 24 * MIB as usize)).unwrap();
    let gate = Gate::new();
    gate.close();
    let wrap = |_, inner| Held::over(inner, &gate, |access| matches!(access, Access::Read(at) if at >= 14 * MIB));
    let options = ProtectOptions { queue_bytes: 4 * MIB, segment_bytes: 64 * MIB, ..place.options(&["disk"]) };
    let protector = Protector::start_over(&options, wrap, |_| {}).unwrap();
    let exports = protector.exports();
    let device = exports[0].device.as_ref();
    wait_for("the copy to reach the gate", || protector.progress().done.load(Ordering::Relaxed) >= 13 * MIB);
    let mut at = 0;
    while protector.status().state != State::Tracking {
        device.write(at % (2 * MIB), Bytes::from(noise(at, MIB as usize)), false).unwrap();
        at += MIB;
    }
    // Still in the gap: much that has to be read again first, then the zeros.
    for at in 2..12 {
        device.write(at * MIB, Bytes::from(noise(at, MIB as usize)), false).unwrap();
    }
    device.write(12 * MIB, Bytes::from(vec![0; 512 << 10]), false).unwrap();
    let tracked = protector.status().counters.ops_tracked;
    assert!(tracked >= 2, "{tracked} writes fell into the gap");
    wait_for("everything to be read again", || protector.status().dirty_bytes == 0);
    gate.open();
    seeded(protector.protection());
    let lsn = protector.mark(&label("end")).unwrap();
    assert!(protector.stop(Duration::from_secs(30), &|| false).drained);
    let replica = place.load();
    let timeline = replica.catalogue().trunk().unwrap().timeline;
    let source = Disks::new([std::fs::read(place.source("disk")).unwrap()]);
    history::at(&replica, timeline, lsn).check(&source, &"the replica against the source");
}
