//! A protected disk in one process: what is restored is what was there.

use crate::kit::{DISK, Place, label, noise, restored, seeded, wait_for, write_to};
use cdp_core::capture::{Detached, Stuck};
use cdp_core::journal::{Looked, look};
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica};
use cdp_core::types::{Lsn, WallTime};
use cdp_core::when::When;
use cdp_net::drive::Choice;
use cdp_net::host::document;
use cdp_net::owner::{ControlClient, Request};
use cdp_net::protect::{Compared, ProtectOptions, Protector};
use cdp_net::reading::not_answered;
use cdp_net::report::{At, ProblemClass, State};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn a_mark_brings_back_what_was_there() {
    let name = mark_and_restore(Choice::default());
    assert_eq!(name, "threads");
}

/// On io_uring where it is built in and the kernel gives it to us, and that is said.
#[test]
fn a_mark_brings_back_what_was_there_whatever_drives_the_journal() {
    let name = mark_and_restore(Choice::Uring);
    #[cfg(feature = "uring")]
    {
        use cdp_core::{journal::Executor, media::Memory};
        let offered = cdp_net::drive::Ring::start(Executor::new(Arc::new(Memory::new())), Box::new(|| {}));
        if offered.is_ok() {
            return assert_eq!(name, "io_uring");
        }
        println!("skipped: the kernel gives us no io_uring");
    }
    assert_eq!(name, "threads");
}

fn mark_and_restore(driver: Choice) -> &'static str {
    let place = Place::new();
    let mut model = place.make_source("disk", 1);
    let options = ProtectOptions { driver, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    let driver = protector.driver();
    let device = Arc::clone(&protector.exports()[0].device);
    seeded(protector.protection());
    let mut marks = Vec::new();
    for round in 0..5u64 {
        for write_number in 0..40u64 {
            let at =
                (noise(round * 100 + write_number, 8)[0] as usize * 71 + write_number as usize * 13) % 40_000 * 512;
            let length = ((write_number as usize * 7) % 300 + 1) * 512;
            let length = length.min(DISK - at);
            write_to(device.as_ref(), &mut model, at as u64, noise(round * 1000 + write_number, length));
        }
        device.trim(3 << 20, 64 << 10, false).unwrap();
        model[3 << 20..(3 << 20) + (64 << 10)].fill(0);
        device.flush().unwrap();
        let name = format!("round {round}");
        protector.mark(&label(&name)).unwrap();
        marks.push((name, model.clone()));
    }
    let summary = protector.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained, "{summary:?}");
    assert_eq!(std::fs::read(place.source("disk")).unwrap(), model);
    let replica = place.load();
    for (name, content) in &marks {
        assert!(restored(&replica, &When::Label(label(name)), "disk") == *content, "{name}");
    }
    assert!(restored(&replica, &When::Latest, "disk") == model);
    driver
}

/// Each of those who mark looks before any of their marks is durable.
#[test]
fn of_two_who_give_the_same_label_at_once_one_gets_it() {
    let place = Place::new();
    place.make_source("disk", 9);
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(protector.protection());
    for round in 0..5 {
        let name = label(&format!("round {round}"));
        let together = std::sync::Barrier::new(2);
        let ask = || {
            let mut client = ControlClient::connect(&place.replica()).unwrap();
            together.wait();
            let request = Request::Mark { label: name.clone(), app_consistent: false };
            client.call::<At>(&request).map_err(not_answered)
        };
        let answers = std::thread::scope(|scope| {
            let asking = [scope.spawn(ask), scope.spawn(ask)];
            asking.map(|asking| asking.join().unwrap())
        });
        let (given, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!((given.len(), refused.len()), (1, 1), "{given:?} {refused:?}");
        let problem = refused[0].as_ref().unwrap_err();
        assert_eq!((problem.class, problem.code.as_str()), (ProblemClass::Refused, "label-taken"), "{problem:?}");
    }
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let replica = place.load();
    for round in 0..5 {
        assert_eq!(replica.catalogue().labelled(&format!("round {round}")).len(), 1);
    }
}

#[test]
fn a_clean_stop_is_resumed_on_the_same_timeline_without_reading_the_source() {
    let place = Place::new();
    let mut model = place.make_source("disk", 2);
    let first = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(first.protection());
    let timeline = first.opened().timeline;
    write_to(first.exports()[0].device.as_ref(), &mut model, 4096, noise(5, 8192));
    assert!(first.stop(Duration::from_secs(20), &|| false).drained);
    let second = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    assert_eq!((second.opened().timeline, second.opened().clean), (timeline, true));
    assert_eq!(second.opened().compared, Compared::Nothing);
    write_to(second.exports()[0].device.as_ref(), &mut model, 1 << 20, noise(6, 512));
    second.mark(&label("after")).unwrap();
    assert_eq!(second.status().counters.bytes_reread, 0);
    assert!(second.stop(Duration::from_secs(20), &|| false).drained);
    assert!(restored(&place.load(), &When::Latest, "disk") == model);
    assert_eq!(place.load().catalogue().trunk().unwrap().gaps(), []);
}

#[test]
fn a_source_that_somebody_else_changed_is_found_and_copied() {
    let place = Place::new();
    place.make_source("disk", 3);
    let first = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(first.protection());
    assert!(first.stop(Duration::from_secs(20), &|| false).drained);
    let mut changed = std::fs::read(place.source("disk")).unwrap();
    changed[9 << 20..(9 << 20) + 512].fill(0xee);
    std::fs::write(place.source("disk"), &changed).unwrap();
    let second = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    assert_eq!(second.opened().compared, Compared::Everything);
    seeded(second.protection());
    let counters = second.status().counters;
    assert_eq!(counters.bytes_reread, DISK as u64);
    // One extent of the activity log at most is recorded for the one sector that differs.
    assert!((512..=4 << 20).contains(&counters.bytes_repaired), "{} bytes recorded", counters.bytes_repaired);
    assert!(second.stop(Duration::from_secs(20), &|| false).drained);
    assert!(restored(&place.load(), &When::Latest, "disk") == changed);
}

#[test]
fn a_dropped_protector_leaves_what_a_crash_leaves_and_is_made_whole() {
    let place = Place::new();
    let mut model = place.make_source("disk", 4);
    let first = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(first.protection());
    let timeline = first.opened().timeline;
    let device = Arc::clone(&first.exports()[0].device);
    write_to(device.as_ref(), &mut model, 0, noise(7, 4096));
    let kept = first.mark(&label("kept")).unwrap();
    let at_mark = model.clone();
    write_to(device.as_ref(), &mut model, 8 << 20, noise(8, 300 << 10));
    drop(device);
    drop(first);
    let second = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    assert_eq!((second.opened().clean, second.opened().compared), (false, Compared::ActivityLog));
    assert_ne!(second.opened().timeline, timeline);
    seeded(second.protection());
    let read = second.status().counters.bytes_reread;
    assert!(read > 0 && read < DISK as u64, "{read} bytes were read: the hot extents, not the disk");
    assert!(second.stop(Duration::from_secs(20), &|| false).drained);
    let replica = place.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
    assert!(restored(&replica, &When::Lsn { timeline: None, lsn: kept }, "disk") == at_mark);
    let trunk = replica.catalogue().trunk().unwrap();
    let gap = trunk.gaps()[0];
    let lost = replica.resolve(&When::Lsn { timeline: None, lsn: gap.from }).unwrap_err();
    assert!(lost.to_string().contains("not restorable"), "{lost}");
    let listed = |since, until| document::points(&replica, since, until, None).gaps.len();
    let all = trunk.gaps().len();
    assert_eq!((listed(None, None), listed(Some(gap.from_time), Some(gap.from_time))), (all, 1));
    assert_eq!((listed(Some(WallTime(u64::MAX)), None), listed(None, Some(WallTime(gap.from_time.0 - 1)))), (0, 0));
}

#[test]
fn two_disks_are_restored_to_the_same_lsn() {
    let place = Place::new();
    let mut models = [place.make_source("one", 5), place.make_source("two", 6)];
    let protector = Protector::start(&place.options(&["one", "two"]), |_| {}).unwrap();
    seeded(protector.protection());
    let devices: Vec<_> = protector.exports().iter().map(|export| Arc::clone(&export.device)).collect();
    let mut history = Vec::new();
    for step in 0..30usize {
        let which = step % 2;
        write_to(devices[which].as_ref(), &mut models[which], step as u64 * 4096, noise(step as u64, 4096));
        history.push((protector.status().lsn, models.clone()));
    }
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    let replica = place.load();
    for (lsn, models) in &history {
        let when = When::Lsn { timeline: None, lsn: *lsn };
        assert!(restored(&replica, &when, "one") == models[0], "disk one at {lsn}");
        assert!(restored(&replica, &when, "two") == models[1], "disk two at {lsn}");
    }
}

#[test]
fn the_journal_reads_the_same_under_its_owner() {
    let place = Place::new();
    let mut model = place.make_source("disk", 8);
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(protector.protection());
    write_to(protector.exports()[0].device.as_ref(), &mut model, 0, noise(9, 64 << 10));
    let lsn = protector.mark(&label("now")).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(place.replica()).unwrap());
    let Looked { manifest, snapshot, damage, .. } = look(storage.as_ref(), JOURNAL_DIRECTORY, None).unwrap();
    assert!(damage.is_none(), "{damage:?}");
    let replica = Replica::load(storage, manifest, snapshot, lsn).unwrap();
    assert!(restored(&replica, &When::Lsn { timeline: None, lsn }, "disk") == model);
    assert!(replica.catalogue().trunk().unwrap().frontier().lsn >= Lsn(1));
    drop(protector);
    assert!(Path::new(&place.replica()).exists());
}

/// What a thread of ours did, nobody does any more: guests are served on, and nobody waits for it.
#[test]
fn a_thread_that_ends_takes_replication_out_of_the_guests_path_and_not_the_guest_from_its_disk() {
    let place = Place::new();
    let mut model = place.make_source("disk", 1);
    let fail = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fail);
    let notices = move |_| assert!(!failing.load(Ordering::Relaxed), "a listener of the tests panics");
    let protector = Protector::start(&place.options(&["disk"]), notices).unwrap();
    seeded(protector.protection());
    fail.store(true, Ordering::Relaxed);
    let device = Arc::clone(&protector.exports()[0].device);
    wait_for("the thread to end", || {
        // Something to tell.
        let _ = protector.mark(&label(&protector.status().lsn.to_string()));
        protector.status().detached.is_some()
    });
    assert_eq!(protector.status().detached, Some(Detached::Stuck(Stuck::Ended)));
    assert_eq!(protector.state(), State::Detached);
    wait_for("the reason", || protector.failure().is_some_and(|why| why.contains("cdp-events")));
    // Whoever asks is told of no return that never comes.
    let status = serde_json::to_value(protector.host().status().unwrap()).unwrap();
    assert!(status["failure"].as_str().is_some_and(|why| why.contains("cdp-events")), "{status}");
    write_to(device.as_ref(), &mut model, 1 << 20, noise(9, 64 << 10));
    device.flush().unwrap();
    drop((protector, device));
    assert!(std::fs::read(place.source("disk")).unwrap() == model);
    // The next start believes nothing of what the log said.
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    assert_eq!(protector.opened().compared, Compared::Everything);
    seeded(protector.protection());
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    assert!(restored(&place.load(), &When::Latest, "disk") == model);
}
