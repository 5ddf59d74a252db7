//! A replica at another site that cannot go on with the order of its filter: a new timeline is begun under running guests.

use crate::kit::{Sites, label, noise, restored, seeded, settled, stop, wait_for, write};
use crate::wan::network::{Wan, Weather};
use cdp_core::frame::ResyncReason;
use cdp_core::journal::look_through;
use cdp_core::media::Disk;
use cdp_core::replica::JOURNAL_DIRECTORY;
use cdp_core::replica::catalogue::LossReason;
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::protect::Notice;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_replica_that_lost_what_it_acknowledged_is_compared_and_goes_on_by_itself() {
    let mut sites = Sites::new();
    let mut model = sites.place.make_source("disk", 1);
    let notices = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&notices);
    let protection = sites
        .protect_over(sites.far_options(sites.host.address), "disk", move |notice| told.lock().unwrap().push(notice))
        .unwrap();
    seeded(&protection);
    write(&protection, &mut model, 4096, noise(5, 300 << 10));
    let before = protection.mark(&label("before")).unwrap();
    let at_before = model.clone();
    sites.host.stop();
    let old = sites.place.directory.path().join("old");
    copy(&sites.replicas(), &old);
    sites.host.again();
    write(&protection, &mut model, 2 << 20, noise(6, 300 << 10));
    let lost = protection.mark(&label("lost")).unwrap();
    sites.host.stop();
    std::fs::remove_dir_all(sites.replicas()).unwrap();
    std::fs::rename(&old, sites.replicas()).unwrap();
    write(&protection, &mut model, 7 << 20, noise(7, 8192));
    sites.host.again();
    write(&protection, &mut model, 9 << 20, noise(8, 8192));
    wait_for("a new timeline", || protection.status().counters.forks == 1);
    write(&protection, &mut model, 10 << 20, noise(9, 8192));
    settled(&protection);
    assert_eq!(protection.failure(), None);
    protection.mark(&label("after")).unwrap();
    let at_after = model.clone();
    write(&protection, &mut model, 11 << 20, noise(10, 8192));
    let alarms: Vec<_> = notices
        .lock()
        .unwrap()
        .iter()
        .filter(|notice| matches!(notice, Notice::AcknowledgedLost { .. }))
        .cloned()
        .collect();
    let [Notice::AcknowledgedLost { from, to }] = alarms[..] else { panic!("{alarms:?}") };
    assert!(before < from && from <= lost && lost <= to, "{from} to {to}, and {lost} is among them");
    stop(protection);
    let (replica, _place) = sites.load();
    assert_eq!(replica.manifest().timelines.len(), 2);
    assert!(restored(&replica, &When::Latest, "disk") == model);
    assert!(restored(&replica, &When::Label(label("after")), "disk") == at_after);
    assert!(restored(&replica, &When::Label(label("before")), "disk") == at_before);
    assert!(replica.resolve(&When::Label(label("lost"))).is_err());
    let why = LossReason::Resync(ResyncReason::AcknowledgedLost);
    let gaps = replica.catalogue().trunk().unwrap().gaps();
    assert!(gaps.iter().any(|gap| gap.reason == why), "{gaps:?}");
}

/// Whether the journal that lies there ends with the first parts of a write.
fn ends_within_a_write(sites: &Sites) -> bool {
    let storage = Disk::open(sites.replicas().join("acme/machine")).unwrap();
    let looked = look_through(&storage, JOURNAL_DIRECTORY, None, &KeyHolder::default()).unwrap();
    let open = looked.manifest.timelines.last().unwrap().id;
    looked.snapshot.span(open).is_some_and(|(_, last)| last > looked.snapshot.written())
}

/// What the first parts of a write are to be gone on from, the filter still has, or a proxy.
#[test]
fn a_host_that_crashes_within_writes_goes_on_within_them() {
    let mut sites = Sites::new();
    let mut model = sites.place.make_source("disk", 2);
    let wan = Wan::start(sites.host.address);
    let protection = sites.protect(wan.address(), "disk").unwrap();
    seeded(&protection);
    protection.mark(&label("before")).unwrap();
    let at_before = model.clone();
    let mut within = 0;
    for round in 0..20 {
        wan.set(Weather { delay: Duration::from_millis(1), rate: 4 << 20, loss_ppm: 0 });
        write(&protection, &mut model, 1 << 20, noise(round, 8 << 20));
        // In the middle of it, as far as that can be told from here.
        std::thread::sleep(Duration::from_millis(600));
        wan.cut();
        // Once more before anything of the rest has come.
        for _ in 0..1 + round % 2 {
            sites.host.stop();
            within += u32::from(ends_within_a_write(&sites));
            sites.host.again();
        }
        wan.mend();
        wan.set(Weather::default());
        settled(&protection);
        if within >= 4 {
            break;
        }
    }
    let status = protection.status();
    assert!(within >= 4, "a host that stops in the middle of a write: {status:?}");
    assert_eq!((protection.failure(), status.counters.gaps, status.counters.forks), (None, 0, 0));
    stop(protection);
    drop(wan);
    let (replica, _place) = sites.load();
    assert_eq!((replica.manifest().timelines.len(), replica.catalogue().trunk().unwrap().gaps()), (1, &[][..]));
    assert!(restored(&replica, &When::Latest, "disk") == model);
    assert!(restored(&replica, &When::Label(label("before")), "disk") == at_before);
}
