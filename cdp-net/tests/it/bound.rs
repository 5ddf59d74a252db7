//! The journal's bound, where a guest writes quicker than history can be merged.

use crate::kit::noise;
use cdp_core::capture::{State, Status};
use cdp_core::types::Lsn;
use cdp_net::owner::PolicyChange;
use cdp_net::protect::{ProtectOptions, Protector, SourceOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DISK: u64 = 512 * MIB;
const BOUND: u64 = 256 * MIB;
/// As much is written.
const WRITTEN: u64 = 1536 * MIB;
/// Bytes of a write: each is other than the one before it at its place, and shrinks little.
const WRITE: u64 = MIB;
/// As much of it is not durable at most, as where a guest has writes under way and waits for them.
const BACKLOG: u64 = 32 * MIB;

#[test]
fn a_guest_that_writes_quicker_than_merging_is_kept_within_the_bound() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("disk");
    std::fs::File::create(&source).unwrap().set_len(DISK).unwrap();
    let policy = PolicyChange { max_bytes: Some(BOUND), reserve_bytes: Some(0), ..PolicyChange::default() };
    let sources = vec![SourceOptions { name: "disk".to_owned(), path: source }];
    let options = ProtectOptions { policy, ..ProtectOptions::new(sources, place.path().join("replica")) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    while protector.status().state != State::Protecting {
        std::thread::sleep(Duration::from_millis(5));
    }
    let device = Arc::clone(&protector.exports()[0].device);
    let over = AtomicBool::new(false);
    let largest = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut largest = 0;
            while !over.load(Ordering::Relaxed) {
                largest = largest.max(protector.host().status().unwrap().space.segments);
                assert_eq!(protector.status().state, State::Protecting, "everything is recorded");
                std::thread::sleep(Duration::from_millis(5));
            }
            largest
        });
        let pool: Vec<_> = (0..7).map(|seed| bytes::Bytes::from(noise(seed, WRITE as usize))).collect();
        for at in 0..WRITTEN / WRITE {
            device.write(at * WRITE % DISK, pool[at as usize % 7].clone(), false).unwrap();
            let unwritten = |status: Status| (status.lsn.0 - status.durable.0) * WRITE;
            while unwritten(protector.status()) > BACKLOG {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        over.store(true, Ordering::Relaxed);
        watching.join().unwrap()
    });
    assert!(largest > BOUND / 2 && largest * 4 <= BOUND * 5, "{largest} bytes of {BOUND}");
    assert!(protector.host().replica().manifest().retention.oldest.is_some_and(|oldest| oldest.lsn > Lsn(0)));
    drop(device);
    protector.stop(Duration::from_secs(60), &|| false);
}
