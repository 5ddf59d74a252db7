//! What retention would do, and what it does when it is asked for.

use crate::kit::{Place, label, noise, restored, seeded, wait_for};
use bytes::Bytes;
use cdp_core::media::Disk;
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::host::Host;
use cdp_net::owner::{Connection, Handler, PinReply, PolicyChange, Request};
use cdp_net::protect::Protector;
use cdp_net::report::{At, Limit, Policy, Pruned};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn host(place: &Place) -> Arc<Host> {
    Host::idle(Arc::new(Disk::open(place.replica()).unwrap()), &KeyHolder::default()).unwrap()
}

fn ask<T: serde::de::DeserializeOwned>(host: &Host, request: Request, connection: &Connection) -> T {
    serde_json::from_value(host.handle(request, connection).unwrap()).unwrap()
}

fn bounded(host: &Host, change: PolicyChange) {
    let _: Policy = ask(host, Request::Policy { change }, &Connection::local());
}

/// Applies retention, and it does what it said that it would.
fn pruned(host: &Host, case: &str) -> Pruned {
    let local = Connection::local();
    let would: Pruned = ask(host, Request::Prune { dry_run: true }, &local);
    let done: Pruned = ask(host, Request::Prune { dry_run: false }, &local);
    assert_eq!(Pruned { dry_run: false, ..would }, done, "{case}");
    done
}

#[test]
fn pruning_does_what_a_dry_run_said() {
    let place = Place::new();
    place.make_source("disk", 95);
    let mut options = place.options(&["disk"]);
    options.segment_bytes = 1 << 20;
    // What is durable is noted every two seconds, and nothing is merged meanwhile.
    options.policy.window_ms = Some(32_000);
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(protector.protection());
    for piece in 0..40u64 {
        let data = noise(700 + piece, (1 << 20) - (piece as usize % 3) * 100_000 / 4096 * 4096);
        protector.exports()[0].device.write((piece % 20) << 20, Bytes::from(data), false).unwrap();
        if piece % 5 == 4 {
            protector.mark(&label(&format!("m{piece}"))).unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let bound = |mib: u64| PolicyChange { max_bytes: Some(mib << 20), ..PolicyChange::default() };
    let first = host(&place);
    for piece in [9, 14, 29] {
        let at = When::Label(label(&format!("m{piece}")));
        let _: At = ask(&first, Request::Keep { at, nearest: None, label: None }, &Connection::local());
    }
    let nothing = pruned(&first, "nothing is due");
    assert_eq!((nothing.oldest, nothing.freed_bytes, nothing.holds), (None, 0, 0));
    bounded(&first, bound(36));
    let some = pruned(&first, "the bound, before what is pinned");
    assert!(some.holds == 0 && some.freed_bytes >= 4 << 20, "{some:?}");
    // A merge that is cut off.
    bounded(&first, bound(28));
    let reader = Connection::local();
    let _: PinReply = ask(&first, Request::PinAll, &reader);
    let merging = Arc::clone(&first);
    let merging = std::thread::spawn(move || merging.handle(Request::Compact, &Connection::local()));
    wait_for("a merge that waits", || first.replica().manifest().merge.is_some());
    first.end();
    assert_eq!(merging.join().unwrap().unwrap_err().code, "ending");
    drop((reader, first));
    let second = host(&place);
    assert!(second.replica().manifest().merge.is_some());
    // With no bound any more only what was begun is done. Why history ends where it does is known to whoever comes later.
    bounded(&second, bound(0));
    let begun = pruned(&second, "what was begun");
    for host in [&second, &host(&place)] {
        let history = host.history();
        assert_eq!((history.cut, history.cut_by), (true, Some(Limit::MaxBytes)));
    }
    assert!(begun.oldest.is_some() && begun.oldest != some.oldest, "{begun:?}");
    bounded(&second, PolicyChange { window_ms: Some(1000), ..bound(0) });
    let old = pruned(&second, "the window");
    assert_eq!(second.history().cut_by, None);
    assert!(old.holds >= 1 && old.oldest != begun.oldest, "{old:?}");
    // On a slow machine that was most of it.
    bounded(&second, PolicyChange { window_ms: Some(32_000), ..bound(20) });
    pruned(&second, "the bound");
    bounded(&second, bound(8));
    let all = pruned(&second, "hardly anything stays");
    assert_eq!(all.holds, 3, "{all:?}");
}

/// What came while the window was an hour is as old as it is when the window becomes a second: nothing of it waits for the hour's notes.
#[test]
fn a_window_that_is_shortened_ends_what_is_older_at_once() {
    let place = Place::new();
    place.make_source("disk", 96);
    let mut options = place.options(&["disk"]);
    options.policy.window_ms = Some(3_600_000);
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(protector.protection());
    let host = protector.host();
    // They all go to one segment, and the merge ends inside it.
    let begun = Instant::now();
    let mut marks = Vec::new();
    for piece in 0..40u64 {
        let data = noise(800 + piece, 4096);
        protector.exports()[0].device.write(piece % 7 * 4096, Bytes::from(data), false).unwrap();
        let lsn = protector.mark(&label(&format!("m{piece}"))).unwrap();
        marks.push((begun.elapsed(), lsn));
        std::thread::sleep(Duration::from_millis(100));
    }
    let told = host.replica().manifest().retention.arrivals.len();
    assert!(told <= 8, "told {told} times in {:?}, and nothing was due", begun.elapsed());
    bounded(host, PolicyChange { window_ms: Some(1000), ..PolicyChange::default() });
    let now = begun.elapsed();
    let done: Pruned = ask(host, Request::Prune { dry_run: false }, &Connection::local());
    let oldest = done.oldest.expect("something is older than a second").lsn;
    // A second, a thirty-second part of it, and, on a slow machine, how often it is looked.
    let mut old = marks.iter().filter(|(at, _)| *at + Duration::from_millis(1000 + 32 + 1000) < now);
    let (_, last) = old.next_back().expect("four seconds have passed");
    assert!(oldest >= *last, "merged up to {oldest}, and {last} is older than the window");
    // What follows is there, before and after the next start.
    let newest = label("m39");
    let content = restored(&host.replica(), &When::Label(newest.clone()), "disk");
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let replica = place.load();
    assert_eq!(restored(&replica, &When::Label(newest), "disk"), content);
    let mut expected = std::fs::read(place.source("disk")).unwrap();
    expected.truncate(content.len());
    assert!(content == expected, "the newest mark is not what was written");
}
