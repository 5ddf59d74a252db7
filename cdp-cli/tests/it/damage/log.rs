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

/// Whatever lies in the log's place: a start never waits for it, never believes it, and says so.
#[test]
fn a_log_that_is_no_log_is_not_waited_for_and_all_is_compared() {
    for killed in [false, true] {
        let built = Built::new();
        let log = built.replica.join("state/activity.log");
        if killed {
            let running = built.protect().protecting();
            Guest::connect(running.uri(), built.source(), 79).work(60);
            drop(running);
        }
        let kept = built.keep();
        let garbage = crate::support::noise(7, 70_000);
        let in_place: [(&str, &dyn Fn()); 7] = [
            ("missing", &|| {}),
            ("empty", &|| std::fs::write(&log, "").unwrap()),
            ("garbage", &|| std::fs::write(&log, &garbage).unwrap()),
            ("/dev/null", &|| std::os::unix::fs::symlink("/dev/null", &log).unwrap()),
            ("/dev/zero", &|| std::os::unix::fs::symlink("/dev/zero", &log).unwrap()),
            ("a link to nowhere", &|| std::os::unix::fs::symlink("nowhere", &log).unwrap()),
            ("a pipe", &|| drop(crate::support::run("mkfifo", &[&log]))),
        ];
        for (what, put) in in_place {
            std::fs::remove_file(&log).unwrap();
            put();
            let running = built.protect();
            let opened = running.wait_event("opened", |event| event["event"] == "opened");
            assert_eq!(opened["compared"], "everything", "{what}, killed: {killed}");
            running.protecting().stop_clean();
            assert!(std::fs::symlink_metadata(&log).unwrap().is_file(), "{what} was replaced by a log");
            assert!(built.restart(what));
            built.put_back(&kept);
        }
    }
}
