//! A damaged activity log is never believed: what it may have forgotten is compared.

use super::built::Built;
use crate::support::{Guest, times};

fn places(length: u64) -> Vec<u64> {
    let many = times("CDP_TEST_LOG_FLIPS", 8);
    let mut places: Vec<u64> = (0..many).map(|n| (n * length / many + n * 37).min(length - 1)).collect();
    places.push(length - 1);
    places
}

#[test]
fn a_flipped_bit_of_the_log_after_a_clean_stop_leads_to_no_divergence() {
    let built = Built::new();
    let kept = built.keep();
    let log = built.replica.join("state/activity.log");
    for at in places(std::fs::metadata(&log).unwrap().len()) {
        crate::support::flip(&log, at, 5);
        assert!(built.restart(&format!("log at byte {at}")));
        built.put_back(&kept);
    }
}

#[test]
fn a_flipped_bit_of_the_log_after_a_kill_leads_to_no_divergence() {
    let built = Built::new();
    let running = built.protect().protecting();
    let mut guest = Guest::connect(running.uri(), built.source(), 78);
    guest.work(60);
    drop((running, guest));
    let kept = built.keep();
    let log = built.replica.join("state/activity.log");
    for at in places(std::fs::metadata(&log).unwrap().len()) {
        crate::support::flip(&log, at, (at % 8) as u8);
        assert!(built.restart(&format!("log at byte {at}")));
        built.put_back(&kept);
    }
    // Gone altogether.
    std::fs::remove_file(&log).unwrap();
    assert!(built.restart("no log"));
}
