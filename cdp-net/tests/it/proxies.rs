//! A filter, two proxies and a replica host: nothing is lost, whichever of them goes.

use crate::kit::{Host, Sites, any, far_options, label, noise, restored, seeded, stop, wait_for, write};
use crate::wan::network::{Wan, Weather};
use bytes::Bytes;
use cdp_core::when::When;
use cdp_net::far::{Far, OpenView, ReadName, Remote};
use cdp_net::link::pin::Peers;
use cdp_net::moment::MomentDisks;
use cdp_net::owner::PolicyChange;
use cdp_net::protect::{Protection, ProtectionOptions};
use cdp_net::report::PointPolicy;
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::proxy::{Mode, Proxy};
use cdp_net::services::remote_reading::{RemoteOptions, RemoteReplica};
use cdp_net::services::traffic::Traffic;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A host to which target proxies send.
fn chain() -> Sites {
    Sites::listing(&[("target", "*")])
}

/// The provider's: its source proxies speak for the tenant.
fn target_proxy(sites: &Sites, at: SocketAddr, to: SocketAddr) -> Proxy {
    sites.proxy("target", "target-cache", at, &[("source", "acme"), ("host", "*")], &[to], Mode::Pass)
}

fn source_proxy(sites: &Sites, cache: &str, at: SocketAddr, to: &[SocketAddr]) -> Proxy {
    sites.proxy("source", cache, at, &[("filter", "*"), ("target", "*")], to, Mode::Compress { level: 3 })
}

fn protect(sites: &Sites, to: &[SocketAddr]) -> Protection {
    let far = FarOptions { traffic: Traffic::default(), ..far_options(to, &sites.identity("source")) };
    let protection = sites.protect_over(far, "disk", |_| {}).unwrap();
    seeded(&protection);
    protection
}

/// Each part in turn is lost under load, with what it had in memory; proxies come back with their caches, or not at all.
#[test]
fn whichever_part_is_lost_nothing_is_and_no_gap_is_made() {
    let mut sites = chain();
    let mut model = sites.place.make_source("disk", 4);
    let wan = Wan::start(sites.host.address);
    let mut target = target_proxy(&sites, any(), wan.address());
    let far = Wan::start(target.address());
    let mut source = source_proxy(&sites, "first", any(), &[far.address()]);
    let second = source_proxy(&sites, "second", any(), &[far.address()]);
    let protection = protect(&sites, &[source.address(), second.address()]);
    far.set(Weather { delay: Duration::from_millis(2), rate: 60 << 20, loss_ppm: 300 });
    let mut marks = Vec::new();
    for round in 0..10 {
        for piece in 0..12_u64 {
            let at = (piece as usize * 41 + round * 13) << 12;
            write(&protection, &mut model, at, noise(round as u64 * 100 + piece, 48 << 10));
        }
        match round % 5 {
            0 => far.cut(),
            1 => {
                let at = source.address();
                drop(source);
                source = source_proxy(&sites, "first", at, &[far.address()]);
            }
            2 => {
                let at = target.address();
                drop(target);
                target = target_proxy(&sites, at, wan.address());
            }
            3 => {
                sites.host.stop();
                sites.host.again();
            }
            _ => wan.silence(),
        }
        write(&protection, &mut model, round << 20, noise(round as u64, 8192));
        std::thread::sleep(Duration::from_millis(300));
        far.mend();
        wan.mend();
        let written = protection.status().lsn;
        wait_for("what was written meanwhile", || protection.status().durable >= written);
        let name = format!("round {round}");
        protection.mark(&label(&name)).unwrap_or_else(|why| panic!("{name}: {why:?}: {:?}", protection.status()));
        marks.push((name, model.clone()));
    }
    let status = protection.status();
    assert_eq!((status.counters.gaps, status.counters.resyncs), (0, 1), "only the first copy was one: {status:?}");
    stop(protection);
    assert_eq!((source.stop(Duration::from_secs(20)), second.stop(Duration::from_secs(20))), (0, 0));
    assert_eq!(target.stop(Duration::from_secs(20)), 0);
    drop((source, second, target, far, wan));
    let (replica, _place) = sites.load();
    for (name, model) in marks {
        assert!(restored(&replica, &When::Label(label(&name)), "disk") == model, "{name}");
    }
    assert_eq!(replica.manifest().timelines.len(), 1);
}

/// The cache of a proxy is what is left when the source is gone and the line comes back.
#[test]
fn what_a_proxy_has_stored_comes_through_without_its_source() {
    let sites = chain();
    let mut model = sites.place.make_source("disk", 5);
    let target = target_proxy(&sites, any(), sites.host.address);
    let far = Wan::start(target.address());
    let source = source_proxy(&sites, "first", any(), &[far.address()]);
    let at = source.address();
    let protection = protect(&sites, &[at]);
    far.cut();
    (0..40).for_each(|piece| write(&protection, &mut model, piece << 16, noise(piece as u64, 40 << 10)));
    let written = protection.status().lsn;
    wait_for("the cache", || source.stored("machine") >= Some(written));
    // The source is gone for good, and the proxy is started anew.
    drop((protection, source));
    let source = source_proxy(&sites, "first", at, &[far.address()]);
    far.mend();
    assert_eq!(source.stop(Duration::from_secs(20)), 0);
    drop((source, target));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// What is read has a lease at the host: proxies come and go between, and nothing has to be opened again.
#[test]
fn a_moment_is_read_through_proxies_one_of_which_is_started_anew() {
    let sites = chain();
    let mut model = sites.place.make_source("disk", 9);
    let target = target_proxy(&sites, any(), sites.host.address);
    let target_at = target.address();
    let source = source_proxy(&sites, "first", any(), &[target_at]);
    let protection = protect(&sites, &[source.address()]);
    write(&protection, &mut model, 4096, noise(3, 64 << 10));
    protection.mark(&label("one")).unwrap();
    let at_one = model.clone();
    let url = format!("cdp://{}/machine", source.address()).parse().unwrap();
    let peers = Peers::new([sites.identity("source").fingerprint()]);
    let options = RemoteOptions { url, tenant: String::new(), peers, ticket: Bytes::new() };
    let replica = RemoteReplica::open(sites.identity("filter"), options).unwrap();
    let at = Some(When::Label(label("one")));
    let lab = Some("lab".to_owned());
    let order = OpenView { view: ReadName::draw(), at, nearest: None, disk: None, writable: true, session: lab };
    let session = replica.view(order.clone()).unwrap();
    let view = replica.view(OpenView { writable: false, session: None, ..order }).unwrap();
    let read = |view: &dyn MomentDisks| {
        let mut content = vec![0; at_one.len()];
        view.read(view.disks()[0].id, 0, &mut content).unwrap();
        content
    };
    assert!(read(view.as_ref()) == at_one);
    write(&protection, &mut model, 1 << 20, noise(4, 64 << 10));
    drop(target);
    let _target = target_proxy(&sites, target_at, sites.host.address);
    assert!(read(view.as_ref()) == at_one && read(session.as_ref()) == at_one);
    assert!(replica.verify(&mut |_, _| true).unwrap().ok);
    stop(protection);
}

/// What refuses for good may let in after all: it is asked again, and nothing has to be started anew.
#[test]
fn a_refusal_for_good_stops_no_hop_for_ever() {
    let sites = chain();
    let mut model = sites.place.make_source("disk", 10);
    let stranger = sites.proxy("target", "target-cache", any(), &[("host", "*")], &[sites.host.address], Mode::Pass);
    let at = stranger.address();
    let source = source_proxy(&sites, "first", any(), &[at]);
    let protection = std::thread::scope(|scope| {
        let protection = scope.spawn(|| protect(&sites, &[source.address()]));
        // Refused meanwhile, whoever asks.
        std::thread::sleep(Duration::from_millis(500));
        drop(stranger);
        let target = target_proxy(&sites, at, sites.host.address);
        (protection.join().unwrap(), target)
    });
    let (protection, target) = protection;
    // The same for frames that are on their way: the hop is another one for a while.
    drop(target);
    let stranger = sites.proxy("target", "target-cache", at, &[("host", "*")], &[sites.host.address], Mode::Pass);
    write(&protection, &mut model, 8192, noise(1, 64 << 10));
    let lsn = protection.status().lsn;
    std::thread::sleep(Duration::from_millis(1500));
    assert!(protection.status().durable < lsn);
    drop(stranger);
    let target = target_proxy(&sites, at, sites.host.address);
    wait_for("what was refused", || protection.status().durable >= lsn);
    stop(protection);
    drop((source, target));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// The directory of its group is a file: who comes is told, and turns to the next.
#[test]
fn a_proxy_that_cannot_make_the_directory_of_a_group_lets_nobody_wait() {
    let sites = chain();
    let model = sites.place.make_source("disk", 12);
    let target = target_proxy(&sites, any(), sites.host.address);
    std::fs::create_dir_all(sites.place.path("broken")).unwrap();
    std::fs::write(sites.place.path("broken").join("local"), "a file").unwrap();
    let broken = source_proxy(&sites, "broken", any(), &[target.address()]);
    let source = source_proxy(&sites, "first", any(), &[target.address()]);
    let protection = protect(&sites, &[broken.address(), source.address()]);
    stop(protection);
    assert_eq!((broken.stop(Duration::from_secs(5)), source.stop(Duration::from_secs(20))), (0, 0));
    drop((broken, source, target));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// A filter that starts anew goes on under another timeline, and what a proxy has of the one before belongs to nobody; what is refused for
/// another reason stays with it.
#[test]
fn a_drain_drops_what_is_of_a_closed_timeline_and_nothing_else() {
    let sites = chain();
    let mut model = sites.place.make_source("disk", 11);
    let target = target_proxy(&sites, any(), sites.host.address);
    let far = Wan::start(target.address());
    let source = source_proxy(&sites, "first", any(), &[far.address()]);
    let second = source_proxy(&sites, "second", any(), &[target.address()]);
    let protection = protect(&sites, &[source.address()]);
    far.cut();
    (0..8).for_each(|piece| write(&protection, &mut model, piece << 16, noise(piece as u64, 40 << 10)));
    let written = protection.status().lsn;
    wait_for("the cache", || source.stored("machine") >= Some(written));
    // As by a crash; the next start takes another way and forks.
    drop(protection);
    let protection = protect(&sites, &[second.address()]);
    // Nobody answers: it stays.
    assert!(source.stop(Duration::from_millis(300)) > 0 && source.dropped_bytes() == 0);
    drop(source);
    // Nobody lets it in: it stays too.
    let stranger = sites.proxy("target", "strange-target", any(), &[("host", "*")], &[sites.host.address], Mode::Pass);
    let source = source_proxy(&sites, "first", any(), &[stranger.address()]);
    assert!(source.stop(Duration::from_secs(2)) > 0 && source.dropped_bytes() == 0);
    drop(source);
    far.mend();
    let source = source_proxy(&sites, "first", any(), &[far.address()]);
    assert_eq!(source.stop(Duration::from_secs(20)), 0);
    assert!(source.dropped_bytes() > 0);
    drop(source);
    let source = source_proxy(&sites, "first", any(), &[far.address()]);
    assert_eq!((source.stop(Duration::from_secs(20)), source.dropped_bytes()), (0, 0), "it has come back");
    write(&protection, &mut model, 1 << 20, noise(9, 8192));
    stop(protection);
    assert_eq!(second.stop(Duration::from_secs(20)), 0);
    drop((source, second, stranger, target, far));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// A volume that is not mounted looks so. Who says then that nobody knows the timeline has the only copy of it dropped.
#[test]
fn a_drain_keeps_what_is_of_a_replica_that_is_not_there() {
    let mut sites = chain();
    let mut model = sites.place.make_source("disk", 13);
    let target = target_proxy(&sites, any(), sites.host.address);
    let far = Wan::start(target.address());
    let source = source_proxy(&sites, "first", any(), &[far.address()]);
    let protection = protect(&sites, &[source.address()]);
    far.cut();
    (0..8).for_each(|piece| write(&protection, &mut model, piece << 16, noise(piece as u64, 40 << 10)));
    let written = protection.status().lsn;
    wait_for("the cache", || source.stored("machine") >= Some(written));
    // The source is gone for good, and the host starts before its volume is there.
    drop((protection, source));
    sites.host.stop();
    let volume = sites.place.path("volume");
    std::fs::rename(sites.replicas(), &volume).unwrap();
    std::fs::create_dir(sites.replicas()).unwrap();
    sites.host.again();
    far.mend();
    let source = source_proxy(&sites, "first", any(), &[far.address()]);
    let why = "Unreachable: there is no replica of this group here: is the volume of this group's replica mounted?";
    assert!(source.stop(Duration::from_secs(3)) > 0 && source.dropped_bytes() == 0);
    assert!(sites.told.count(why) > 0);
    drop(source);
    sites.host.stop();
    // Nothing was put there either.
    std::fs::remove_dir(sites.replicas()).unwrap();
    std::fs::rename(&volume, sites.replicas()).unwrap();
    sites.host.again();
    let source = source_proxy(&sites, "first", any(), &[far.address()]);
    assert_eq!((source.stop(Duration::from_secs(20)), source.dropped_bytes()), (0, 0));
    drop((source, target, far));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// Another host, with the replicas as they are at the first one, which has stopped.
fn copied(sites: &Sites) -> Host {
    let root = sites.place.path("other");
    std::fs::create_dir(&root).unwrap();
    for name in ["host", "target", "replicas"] {
        assert!(Command::new("cp").arg("-a").arg(sites.place.path(name)).arg(&root).status().unwrap().success());
    }
    Host::start(&root, &[("target", "*")])
}

/// The second next hop has an old copy of the replica, and the first one, whose is the timeline, is away for a moment. That word alone
/// would end the protection for good.
#[test]
fn one_next_hop_of_two_that_does_not_know_the_timeline_ends_no_protection() {
    let mut sites = chain();
    let mut model = sites.place.make_source("disk", 14);
    let target = target_proxy(&sites, any(), sites.host.address);
    let source = source_proxy(&sites, "first", any(), &[target.address()]);
    // As by a crash: the next start forks.
    drop((protect(&sites, &[source.address()]), source, target));
    sites.host.stop();
    let other = copied(&sites);
    sites.host.again();
    let listed = [("source", "acme"), ("host", "*")];
    let to = [sites.host.address, other.address];
    let target = sites.proxy("target", "target-cache", any(), &listed, &to, Mode::Pass);
    let source = source_proxy(&sites, "first", any(), &[target.address()]);
    let protection = protect(&sites, &[source.address()]);
    sites.host.stop();
    write(&protection, &mut model, 1 << 20, noise(1, 64 << 10));
    wait_for("the other one's word", || {
        sites.told.count("target: acme/machine: is refused by the next hop: Timeline") > 0
    });
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(protection.failure(), None);
    sites.host.again();
    let written = protection.status().lsn;
    wait_for("what was written meanwhile", || protection.status().durable >= written);
    assert_eq!(protection.failure(), None);
    // What the filter asks goes to whoever answered it first.
    drop(other);
    stop(protection);
    assert_eq!((source.stop(Duration::from_secs(20)), target.stop(Duration::from_secs(20))), (0, 0));
    drop((source, target));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// The first of the list refuses for good, again and again; the second one comes later.
#[test]
fn who_is_refused_by_one_waits_for_the_other() {
    let sites = chain();
    let mut model = sites.place.make_source("disk", 15);
    let target = target_proxy(&sites, any(), sites.host.address);
    let to = [target.address()];
    let mode = Mode::Compress { level: 3 };
    let stranger = sites.proxy("source", "strange-source", any(), &[("target", "*")], &to, mode);
    let source = source_proxy(&sites, "first", any(), &to);
    let at = source.address();
    drop(source);
    let (protection, source) = std::thread::scope(|scope| {
        let protection = scope.spawn(|| protect(&sites, &[stranger.address(), at]));
        std::thread::sleep(Duration::from_secs(1));
        let source = source_proxy(&sites, "first", at, &to);
        (protection.join().unwrap(), source)
    });
    write(&protection, &mut model, 8192, noise(1, 64 << 10));
    assert_eq!(protection.failure(), None);
    stop(protection);
    assert_eq!(source.stop(Duration::from_secs(20)), 0);
    drop((source, stranger, target));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// The first of each list does not let them in, for good: the second one does.
#[test]
fn who_is_refused_by_one_turns_to_the_next() {
    let sites = chain();
    let mut model = sites.place.make_source("disk", 9);
    let target = target_proxy(&sites, any(), sites.host.address);
    let strange_target =
        sites.proxy("target", "strange-target", any(), &[("host", "*")], &[sites.host.address], Mode::Pass);
    let source = source_proxy(&sites, "first", any(), &[strange_target.address(), target.address()]);
    let strange_source = sites.proxy(
        "source",
        "strange-source",
        any(),
        &[("target", "*")],
        &[target.address()],
        Mode::Compress { level: 3 },
    );
    let protection = protect(&sites, &[strange_source.address(), source.address()]);
    write(&protection, &mut model, 8192, noise(1, 64 << 10));
    stop(protection);
    assert_eq!(source.stop(Duration::from_secs(20)), 0);
    drop((source, strange_source, target, strange_target));
    let (replica, _place) = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// Whoever looks why nothing becomes durable finds it where the next hop is not reached, and finds it once.
#[test]
fn a_proxy_that_does_not_reach_the_next_hop_says_why_and_once() {
    let sites = chain();
    let mut model = sites.place.make_source("disk", 11);
    let mut target = target_proxy(&sites, any(), sites.host.address);
    let at = target.address();
    let source = source_proxy(&sites, "first", any(), &[at]);
    let protection = protect(&sites, &[source.address()]);
    let why = format!("does not reach the next hop: cannot connect to {at}: Connection refused");
    assert_eq!(sites.told.count(&why), 0);
    for round in 1..3 {
        drop(target);
        write(&protection, &mut model, round << 20, noise(round as u64, 8192));
        wait_for("the reason", || sites.told.count(&why) == round);
        // It is tried again and again.
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(sites.told.count(&why), round);
        target = target_proxy(&sites, at, sites.host.address);
        let written = protection.status().lsn;
        wait_for("what was written meanwhile", || protection.status().durable >= written);
    }
    stop(protection);
}

/// With a period that stays open all through the test, and in it a write that a source proxy keeps back, because it may be written over.
fn gathered(sites: &Sites, source: &Proxy) -> Protection {
    let mut model = sites.place.make_source("disk", 13);
    let options =
        FarOptions { traffic: Traffic::default(), ..far_options(&[source.address()], &sites.identity("source")) };
    let far: Arc<dyn Far> = Arc::new(Remote::new(FarLink::start(sites.identity("filter"), options).unwrap()));
    let (rpo_ms, points) = (Some(600_000), Some(PointPolicy::PerPoint));
    let policy = PolicyChange { rpo_ms, points, ..PolicyChange::default() };
    let options = ProtectionOptions { policy, ..sites.place.options_for_far(&["disk"]) };
    let protection = sites.place.protect(&options, &far, |_| {}).unwrap();
    seeded(&protection);
    write(&protection, &mut model, 4096, noise(1, 64 << 10));
    wait_for("the window", || held(source) > 64 << 10);
    std::thread::sleep(Duration::from_secs(1));
    assert!(held(source) > 64 << 10, "it is not kept back at all");
    protection
}

fn held(source: &Proxy) -> u64 {
    source.groups().iter().map(|group| group.held.memory).sum()
}

/// A window is open for fifteen seconds.
const SOON: Duration = Duration::from_secs(9);

#[test]
fn a_drain_waits_for_no_window_that_nobody_fills_any_more() {
    let sites = chain();
    let target = target_proxy(&sites, any(), sites.host.address);
    let source = source_proxy(&sites, "first", any(), &[target.address()]);
    let protection = gathered(&sites, &source);
    let begun = Instant::now();
    assert_eq!(source.stop(Duration::from_secs(30)), 0);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    drop((protection, source, target));
}

#[test]
fn what_was_gathered_of_a_source_that_is_gone_goes_on_at_once() {
    let sites = chain();
    let target = target_proxy(&sites, any(), sites.host.address);
    let source = source_proxy(&sites, "first", any(), &[target.address()]);
    let protection = gathered(&sites, &source);
    let begun = Instant::now();
    drop(protection);
    wait_for("what was gathered", || held(&source) == 0);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    drop((source, target));
}
