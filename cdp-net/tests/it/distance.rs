//! A filter and its replica at two sites, joined by a link over TLS: cut, silent, started anew.

use crate::kit::{Sites, label, noise, restored, seeded, stop, wait_for, write};
use crate::wan::network::{Wan, Weather};
use cdp_core::capture::State as Filtering;
use cdp_core::when::When;
use cdp_net::far::{Far, Find, Remote};
use cdp_net::protect::Compared;
use cdp_net::services::far_link::FarLink;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_replica_at_another_site_holds_what_was_written() {
    let sites = Sites::new();
    let mut model = sites.place.make_source("disk", 1);
    let first = sites.protect(sites.host.address, "disk").unwrap();
    seeded(&first);
    write(&first, &mut model, 4096, noise(5, 300 << 10));
    first.mark(&label("first")).unwrap();
    let at_first = model.clone();
    write(&first, &mut model, 6 << 20, noise(6, 8192));
    let timeline = first.opened().timeline;
    stop(first);
    let second = sites.protect(sites.host.address, "disk").unwrap();
    let opened = second.opened();
    assert_eq!((opened.timeline, opened.clean, opened.compared), (timeline, true, Compared::Nothing));
    write(&second, &mut model, 1 << 20, noise(7, 4096));
    // Frames of the same timeline reach the keeper that was found for this filter, not the one before.
    second.mark(&label("second")).unwrap();
    let at_second = model.clone();
    // As by a crash.
    drop(second);
    let third = sites.protect(sites.host.address, "disk").unwrap();
    assert_eq!(third.opened().compared, Compared::ActivityLog);
    seeded(&third);
    write(&third, &mut model, 2 << 20, noise(8, 4096));
    stop(third);
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
    assert!(restored(&replica, &When::Label(label("first")), "disk") == at_first);
    assert!(restored(&replica, &When::Label(label("second")), "disk") == at_second);
}

/// The timeline that was closed goes on with a resync, on the replica host that closed it.
#[test]
fn a_clean_start_that_compares_everything_goes_on() {
    let mut sites = Sites::new();
    let mut model = sites.place.make_source("disk", 4);
    let first = sites.protect(sites.host.address, "disk").unwrap();
    seeded(&first);
    write(&first, &mut model, 4096, noise(5, 8192));
    stop(first);
    // Somebody else wrote to it meanwhile.
    model[9 << 20..][..4096].fill(7);
    std::fs::write(sites.place.source("disk"), &model).unwrap();
    sites.full_check = true;
    let second = sites.protect(sites.host.address, "disk").unwrap();
    assert_eq!((second.opened().clean, second.opened().compared), (true, Compared::Everything));
    wait_for("what is compared", || {
        let status = second.status();
        status.state == Filtering::Protecting && status.rpo_ns.is_some()
    });
    stop(second);
    assert!(restored(&sites.load().0, &When::Latest, "disk") == model);
}

/// Nothing is lost and no gap is made, whatever the cable does and however often the other site is started anew.
#[test]
fn a_cable_that_is_cut_and_a_host_that_is_started_anew_leave_no_gap() {
    let mut sites = Sites::new();
    let mut model = sites.place.make_source("disk", 2);
    let wan = Wan::start(sites.host.address);
    let protection = sites.protect(wan.address(), "disk").unwrap();
    seeded(&protection);
    wan.set(Weather { delay: Duration::from_millis(3), rate: 40 << 20, loss_ppm: 500 });
    let mut marks = Vec::new();
    for round in 0..6 {
        for piece in 0..12_u64 {
            write(
                &protection,
                &mut model,
                (piece as usize * 37 + round * 11) << 12,
                noise(round as u64 * 100 + piece, 64 << 10),
            );
        }
        match round % 3 {
            0 => wan.cut(),
            1 => wan.silence(),
            _ => {
                sites.host.stop();
                sites.host.again();
            }
        }
        write(&protection, &mut model, round << 20, noise(round as u64, 8192));
        std::thread::sleep(Duration::from_millis(300));
        wan.mend();
        let durable = protection.status().lsn;
        wait_for("what was written meanwhile", || protection.status().durable >= durable);
        let name = format!("round {round}");
        protection.mark(&label(&name)).unwrap_or_else(|why| panic!("{name}: {why:?}: {:?}", protection.status()));
        marks.push((name, model.clone()));
    }
    let status = protection.status();
    assert_eq!((status.counters.gaps, status.counters.resyncs), (0, 1), "only the first copy was one: {status:?}");
    stop(protection);
    drop(wan);
    let (replica, _place) = sites.load();
    for (name, model) in marks {
        assert!(restored(&replica, &When::Label(label(&name)), "disk") == model, "{name}");
    }
    assert_eq!(replica.manifest().timelines.len(), 1);
}

/// An end waits as long as it was told to, and a drop for nothing.
#[test]
fn a_protection_ends_in_time_where_the_other_side_never_answers() {
    let sites = Sites::new();
    let mut model = sites.place.make_source("disk", 6);
    let wan = Wan::start(sites.host.address);
    for dropped in [true, false] {
        let protection = sites.protect(wan.address(), "disk").unwrap();
        seeded(&protection);
        wan.silence();
        write(&protection, &mut model, 4096, noise(7, 300 << 10));
        let (done, ended) = std::sync::mpsc::channel();
        let ending = std::thread::spawn(move || {
            if !dropped {
                let summary = protection.stop(Duration::from_secs(1), &|| false);
                assert!(!summary.drained && !summary.manifest_stored, "{summary:?}");
            }
            drop(protection);
            done.send(()).unwrap();
        });
        wait_for("the end", || ended.try_recv().is_ok());
        ending.join().unwrap();
        wan.mend();
    }
}

/// Whoever waits for an answer when it ends is told so, and not that it took too long; the next one asks again.
#[test]
fn an_end_lets_go_of_whoever_waits_for_an_answer() {
    let sites = Sites::new();
    let wan = Wan::start(sites.host.address);
    let link = FarLink::start(sites.identity("filter"), sites.far_options(wan.address())).unwrap();
    let far = Remote::new(Arc::clone(&link) as _);
    wait_for("the other side", || link.road().is_up);
    wan.silence();
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| far.group().unwrap_err());
        std::thread::sleep(Duration::from_millis(100));
        far.end();
        asked.join().unwrap()
    });
    assert_eq!(asked.code, "given-up", "{asked}");
    assert_eq!(far.group().unwrap_err().code, "given-up");
    wan.mend();
    far.find(&Find::default()).unwrap();
    assert_ne!(far.group().unwrap_err().code, "given-up");
}

#[test]
fn who_is_not_listed_keeps_nothing_there_and_is_told_so() {
    let sites = Sites::new();
    sites.place.make_source("disk", 3);
    // Another filter than the one that is listed.
    std::fs::rename(sites.place.directory.path().join("filter"), sites.place.directory.path().join("listed")).unwrap();
    let refused = sites.protect(sites.host.address, "disk").unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
    assert!(!sites.replicas().exists());
}
