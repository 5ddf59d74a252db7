//! What an owner notes of the time it watches: over many short runs, and for points that come more often than arrivals.

use crate::kit::{Place, label, noise, seeded, wait_for};
use bytes::Bytes;
use cdp_core::journal::Retention;
use cdp_net::protect::{ProtectOptions, Protector};
use std::process::Command;
use std::time::Duration;

const DRAIN: Duration = Duration::from_secs(20);

fn start(options: &ProtectOptions) -> Protector {
    let protector = Protector::start(options, |_| {}).unwrap();
    seeded(protector.protection());
    protector
}

fn past(protector: &Protector) -> Retention {
    protector.host().replica().manifest().retention.clone()
}

fn last_arrival(past: &Retention) -> u64 {
    past.arrivals.last().map_or(0, |last| last.elapsed_ms)
}

#[test]
fn runs_shorter_than_a_sixteenth_of_the_window_add_up() {
    let place = Place::new();
    place.make_source("disk", 91);
    let mut options = place.options(&["disk"]);
    options.policy.window_ms = Some(32_000);
    for run in 0..6 {
        let protector = start(&options);
        let before = past(&protector).elapsed_ms;
        protector.exports()[0].device.write(run * 4096, Bytes::from(noise(run, 4096)), false).unwrap();
        std::thread::sleep(Duration::from_millis(800));
        assert!(protector.stop(DRAIN, &|| false).drained);
        let past = place.load().manifest().retention.clone();
        assert!(past.elapsed_ms >= before + 800, "{} ms more in run {run}", past.elapsed_ms - before);
    }
    let past = place.load().manifest().retention.clone();
    // Two seconds are a sixteenth of the window: no run lasted so long, and each said at its end what was durable when.
    let since = past.elapsed_ms - past.arrivals.last().unwrap().elapsed_ms;
    assert!(since < 800 && past.arrivals.len() >= 6, "{past:?}");
}

/// What is found after a crash says how long was watched, though no note was due: crash after crash, history grows old.
#[test]
fn runs_that_end_in_crashes_add_up() {
    let place = Place::new();
    place.make_source("disk", 93);
    let mut options = place.options(&["disk"]);
    options.policy.window_ms = Some(3_600_000);
    // The first copy is complete, and that is noted.
    assert!(start(&options).stop(DRAIN, &|| false).drained);
    let mut told = last_arrival(&place.load().manifest().retention);
    let begun = told;
    for run in 0..3u64 {
        let protector = start(&options);
        if run > 0 {
            // What the run before recorded: a little less than it watched.
            wait_for("what a crash left to be noted", || past(&protector).elapsed_ms >= told + 800);
            told = last_arrival(&past(&protector));
        }
        protector.exports()[0].device.write(run * 4096, Bytes::from(noise(run, 4096)), false).unwrap();
        std::thread::sleep(Duration::from_millis(900));
        protector.exports()[0].device.write(run * 4096, Bytes::from(noise(run, 4096)), false).unwrap();
        protector.mark(&label(&format!("m{run}"))).unwrap();
        // As a crash leaves it.
        let crashed = place.directory.path().join(format!("crashed-{run}"));
        let copied = Command::new("cp").arg("-r").arg(&options.replica).arg(&crashed).status().unwrap();
        assert!(copied.success());
        assert!(protector.stop(DRAIN, &|| false).drained);
        options.replica = crashed;
    }
    assert!(told >= begun + 1600, "{begun} {told}");
}

#[test]
fn long_term_points_have_a_period_of_their_own() {
    let place = Place::new();
    place.make_source("disk", 92);
    let mut options = place.options(&["disk"]);
    // What is durable is noted every sixteen seconds.
    options.policy.window_ms = Some(256_000);
    (options.policy.long_term_ms, options.policy.keep_ms) = (Some(1000), Some(3_600_000));
    let protector = start(&options);
    wait_for("three long-term points", || past(&protector).layers.len() >= 3);
    let past = past(&protector);
    assert!(past.layers[2].elapsed_ms - past.layers[0].elapsed_ms < 16_000, "{past:?}");
    assert!(past.layers.windows(2).all(|pair| pair[0].elapsed_ms + 1000 <= pair[1].elapsed_ms), "{past:?}");
    let segments = protector.host().replica().manifest().segments.len();
    assert!(segments <= 4, "{segments} segments: the journal goes on in a new one with each point");
    assert!(protector.stop(DRAIN, &|| false).drained);
}
