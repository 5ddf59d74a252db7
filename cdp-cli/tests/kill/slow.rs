//! A stop while the media are slow: it takes the time that it may take, and says how it ended.

use crate::aim::{Aim, Effect, can_aim};
use crate::drill::{Drill, Found};
use std::time::Duration;

/// Stops while calls on a file are slow. Everything is durable, and `--drain` leaves time for the rest: it ends well and clean.
fn stops_clean_with_slow(calls: &'static str, file: &str, effect: Effect) {
    if !can_aim() {
        return;
    }
    let mut drill = Drill::new(1);
    let mut protection = drill.start();
    let uri = protection.ready();
    drill.wait_for("protecting");
    let load = drill.writers.begin(&uri);
    std::thread::sleep(Duration::from_millis(20));
    drill.writers.end(load);
    drill.ask(&["mark", "--label", "all of it"]).good();
    let paths = vec![drill.path("replica").join(file)];
    let aim = Aim { calls, paths, effect, log: drill.path("calls") };
    let tracer = aim.at(protection.pid());
    protection.stop();
    drop(tracer);
    assert!(aim.calls_so_far().contains("DELAYED"), "no call was slow");
    drill.check(&[Found::Clean]);
}

#[test]
fn a_stop_waits_for_slow_syncs_of_the_manifest() {
    stops_clean_with_slow("fdatasync", "MANIFEST.tmp", Effect::Delay { nth: 9, by: Duration::from_secs(6) });
}

#[test]
fn a_stop_waits_for_slow_syncs_of_the_activity_log() {
    stops_clean_with_slow("fdatasync", "state/activity.log", Effect::Delay { nth: 9, by: Duration::from_secs(6) });
}

/// The thread that owns the journal's writer answers nobody meanwhile.
#[test]
fn a_stop_is_not_called_clean_before_its_manifest_is_written() {
    stops_clean_with_slow(
        "pwrite64,pwritev,pwritev2",
        "MANIFEST.tmp",
        Effect::Delay { nth: 1, by: Duration::from_secs(12) },
    );
}
