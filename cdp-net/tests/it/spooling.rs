//! What a filter does with what its replica at another site does not take: memory, then disk, then only which blocks changed.

use crate::kit::{Sites, noise, restored, seeded, stop, wait_for, write};
use crate::wan::network::Wan;
use cdp_core::capture::State as Filtering;
use cdp_core::frame::GapReason;
use cdp_core::when::When;
use cdp_net::protect::{Protection, SharedBudget};
use cdp_net::services::far_link::{FarLink, FarOptions, SpoolPlace};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn sites() -> (Sites, PathBuf) {
    let mut sites = Sites::new();
    sites.queue_bytes = 8 << 20;
    let directory = sites.place.directory.path().join("spool");
    (sites, directory)
}

fn options(sites: &Sites, wan: &Wan, directory: PathBuf, bytes: u64) -> FarOptions {
    let spool = Some(SpoolPlace { directory, bytes });
    FarOptions { memory_bytes: 24 << 20, spool, ..sites.far_options(wan.address()) }
}

fn files(directory: &PathBuf) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Writes as fast as the spool's disk takes it.
fn write_in_steps(protection: &Protection, model: &mut [u8], seed: u64, pieces: usize) {
    for piece in 0..pieces {
        write(protection, model, (piece * 5 % 23) * MIB, noise(seed + piece as u64, MIB));
        let room = || {
            let status = protection.status();
            status.queued_bytes + (2 << 20) < status.queue_bytes_max
        };
        wait_for("the spool's disk", room);
    }
}

#[test]
fn what_has_no_room_in_memory_goes_to_the_spool_and_comes_from_it_in_order() {
    let (sites, directory) = sites();
    let mut model = sites.place.make_source("disk", 1);
    // What a process before left there.
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(format!("{:032x}-{:016x}.spool", 7, 1)), b"old").unwrap();
    let wan = Wan::start(sites.host.address);
    let far = options(&sites, &wan, directory.clone(), 256 << 20);
    let protection = sites.protect_over(far, "disk", |_| {}).unwrap();
    seeded(&protection);
    assert_eq!(files(&directory), 0);
    wan.cut();
    write_in_steps(&protection, &mut model, 100, 96);
    let status = protection.status();
    assert_eq!((status.state, status.counters.gaps), (Filtering::Protecting, 0), "{status:?}");
    assert!(status.queued_bytes > 90 << 20 && files(&directory) > 0, "{status:?}");
    wan.mend();
    let lsn = status.lsn;
    wait_for("everything to be durable", || protection.status().durable >= lsn);
    // The last one is used on.
    wait_for("the files to go", || files(&directory) <= 1);
    let status = protection.status();
    assert_eq!((status.counters.gaps, status.counters.forks), (0, 0));
    stop(protection);
    drop(wan);
    assert!(restored(&sites.load().0, &When::Latest, "disk") == model);
}

#[test]
fn what_has_no_room_in_the_spool_either_is_tracked_and_read_again() {
    let (sites, directory) = sites();
    let mut model = sites.place.make_source("disk", 2);
    let wan = Wan::start(sites.host.address);
    let protection = sites.protect_over(options(&sites, &wan, directory, 16 << 20), "disk", |_| {}).unwrap();
    seeded(&protection);
    wan.cut();
    write_in_steps(&protection, &mut model, 200, 20);
    assert_eq!(protection.status().state, Filtering::Protecting);
    for piece in 0..40 {
        write(&protection, &mut model, (piece * 7 % 23) * MIB, noise(300 + piece as u64, MIB));
    }
    let status = protection.status();
    assert_eq!((status.state, status.gap), (Filtering::Tracking, Some(GapReason::Overload)), "{status:?}");
    wan.mend();
    wait_for("the resync", || protection.status().state == Filtering::Protecting);
    let status = protection.status();
    assert_eq!((status.counters.gaps, status.counters.forks), (1, 0), "nothing that was kept is lost: {status:?}");
    stop(protection);
    drop(wan);
    assert!(restored(&sites.load().0, &When::Latest, "disk") == model);
}

/// As a new file with more groups says, or with fewer.
#[test]
fn a_spool_that_is_made_smaller_takes_no_more_than_that_and_one_that_grows_does() {
    let (sites, directory) = sites();
    let mut model = sites.place.make_source("disk", 5);
    let wan = Wan::start(sites.host.address);
    let link = FarLink::start(sites.identity("filter"), options(&sites, &wan, directory.clone(), 64 << 20)).unwrap();
    let protection = sites.protect_by(Arc::clone(&link), "disk", |_| {}).unwrap();
    seeded(&protection);
    link.set_spool_bytes(16 << 20);
    wan.cut();
    let mut piece = 0;
    wait_for("all room to be taken", || {
        write(&protection, &mut model, (piece * 5 % 23) * MIB, noise(400 + piece as u64, MIB));
        piece += 1;
        protection.status().state == Filtering::Tracking
    });
    let taken: u64 = directory.read_dir().unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(taken <= 16 << 20, "{taken}");
    wan.mend();
    wait_for("the resync", || protection.status().state == Filtering::Protecting);
    link.set_spool_bytes(256 << 20);
    let gaps = protection.status().counters.gaps;
    wan.cut();
    write_in_steps(&protection, &mut model, 500, 64);
    let status = protection.status();
    assert_eq!((status.state, status.counters.gaps), (Filtering::Protecting, gaps), "{status:?}");
    wan.mend();
    stop(protection);
    drop((wan, link));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// Two groups of one process, whose far sides are both away: the one that writes much takes what the other does not need, and no more.
#[test]
fn a_noisy_group_does_not_push_the_others_into_tracking() {
    let budget = SharedBudget::new(48 << 20);
    let start = |seed| {
        let sites = Sites::new();
        let model = sites.place.make_source("disk", seed);
        let wan = Wan::start(sites.host.address);
        let far = FarOptions { memory_bytes: 80 << 20, ..sites.far_options(wan.address()) };
        let protection = sites.protect_over(far, "disk", |_| {}).unwrap();
        seeded(&protection);
        protection.share(&budget, 1).unwrap();
        (sites, wan, protection, model)
    };
    let ((noisy_sites, noisy_wan, noisy, mut noisy_model), (_quiet_sites, quiet_wan, quiet, mut quiet_model)) =
        (start(3), start(4));
    noisy_wan.cut();
    quiet_wan.cut();
    for piece in 0..96 {
        write(&noisy, &mut noisy_model, (piece * 5 % 23) * MIB, noise(piece as u64, MIB));
        // A writer that fills memory quicker than timers run is tracked sooner.
        std::thread::sleep(Duration::from_millis(5));
    }
    wait_for("the noisy one to be out of room", || noisy.status().state == Filtering::Tracking);
    for piece in 0..5 {
        write(&quiet, &mut quiet_model, piece * MIB, noise(1000 + piece as u64, MIB));
    }
    let (noisy_now, quiet_now) = (noisy.status(), quiet.status());
    assert_eq!((quiet_now.state, quiet_now.counters.gaps), (Filtering::Protecting, 0), "{quiet_now:?}");
    assert!(noisy_now.queued_bytes > 24 << 20, "it had more than its share: {noisy_now:?}");
    assert!(noisy_now.queued_bytes + quiet_now.queued_bytes <= 48 << 20 && budget.taken() <= 48 << 20);
    noisy_wan.mend();
    wait_for("the resync", || noisy.status().state == Filtering::Protecting);
    stop(noisy);
    drop(noisy_wan);
    assert!(restored(&noisy_sites.load().0, &When::Latest, "disk") == noisy_model);
}
