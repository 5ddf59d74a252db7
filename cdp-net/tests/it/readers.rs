//! What is read stays whole while it is read, also where the reader is the owner and does what others ask for.

use crate::kit::{DISK, Place, label, noise, restored, seeded, wait_for};
use bytes::Bytes;
use cdp_core::journal::{KeptInfo, Manifest, ReadError, StampedMoment, read_manifest};
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::catalogue::Moment;
use cdp_core::replica::{Replica, ReplicaView};
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::owner::{
    Access, Connection, ControlClient, ControlServer, Handler, Owner, PinReply, PolicyChange, Request, reply,
};
use cdp_net::protect::{ProtectOptions, Protector};
use cdp_net::reading::{Reading, ReadingTwo};
use cdp_net::report::{At, Policy, Problem, ProblemClass, Pruned, Status};
use cdp_net::verify::{verify, verify_beside_owner};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const MIB: usize = 1 << 20;

/// A replica that nobody protects any more, with the moments `seen`, `later` and the end: what the disk held then.
fn written(place: &Place, seed: u64) -> [Vec<u8>; 3] {
    let mut model = place.make_source("disk", seed);
    // Small ones: with what is merged first they go first.
    let options = ProtectOptions { segment_bytes: MIB as u64, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(protector.protection());
    // Before the first of them all over, more than a merge does in one piece; then to one place each: what is kept for who reads a
    // moment before is little.
    let models = [("seen", 0..20), ("later", 21..22), ("end", 22..23)].map(|(name, places)| {
        for (round, place) in (0..30).zip(places.cycle()) {
            let (at, data) = (place * MIB, noise(seed + 100 * place as u64 + round, MIB));
            model[at..at + MIB].copy_from_slice(&data);
            protector.exports()[0].device.write(at as u64, Bytes::from(data), false).unwrap();
        }
        protector.mark(&label(name)).unwrap();
        model.clone()
    });
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    models
}

fn named(name: &str) -> When {
    format!("label:{name}").parse().unwrap()
}

fn access(replica: &Path) -> Access {
    Access::open(replica, Duration::from_secs(5)).unwrap()
}

/// Has the owner merge everything but what is held.
fn prune(replica: &Path) {
    let pruned: Pruned = bounded(replica).call(&PRUNE).unwrap();
    assert!(pruned.freed_bytes > 0, "{pruned:?}");
}

const PRUNE: Request = Request::Prune { dry_run: false };

/// Asks for a bound, and applies nothing yet.
fn bounded(replica: &Path) -> ControlClient {
    let mut asking = ControlClient::connect(replica).unwrap();
    // Less than was written after each of the moments. A quarter of it may be kept for readers.
    let change = PolicyChange { max_bytes: Some(20 * MIB as u64), ..PolicyChange::default() };
    let _: Policy = asking.call(&Request::Policy { change }).unwrap();
    asking
}

fn content(view: &ReplicaView) -> Vec<u8> {
    let mut content = vec![0; DISK];
    view.read(view.disks()[0].id, 0, &mut content).unwrap();
    content
}

#[test]
fn a_mount_without_an_owner_outlasts_a_prune_that_it_is_asked_for() {
    let place = Place::new();
    let [seen, ..] = written(&place, 7001);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let reading = Reading::open(&replica, access(&replica), &named("seen"), None, &key).unwrap();
    let view = reading.view().unwrap();
    prune(&replica);
    assert!(content(&view) == seen);
    // Nobody else has it any more, and nobody at all when it is let go of.
    drop((view, reading));
    let mut held = place.load();
    assert_eq!(held.manifest().kept.len(), 1);
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    ControlClient::connect(&replica).unwrap().call::<Pruned>(&PRUNE).unwrap();
    drop(reading);
    held = place.load();
    assert!(held.manifest().kept.is_empty());
    assert!(held.resolve(&named("seen")).is_err());
}

#[test]
fn a_comparison_without_an_owner_outlasts_a_prune_too() {
    let place = Place::new();
    let [seen, later, _] = written(&place, 7002);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let when = [&named("seen"), &named("later")];
    let reading = ReadingTwo::open(&replica, access(&replica), when, None, &key).unwrap();
    let views = reading.views().unwrap();
    prune(&replica);
    assert!(content(&views[0]) == seen);
    assert!(content(&views[1]) == later);
}

fn start(place: &Place) -> Protector {
    Protector::start(&ProtectOptions { segment_bytes: MIB as u64, ..place.options(&["disk"]) }, |_| {}).unwrap()
}

fn stop(protector: Protector) {
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
}

fn readers(replica: &Path) -> u32 {
    ControlClient::connect(replica).unwrap().call::<Status>(&Request::Status).unwrap().pins
}

#[test]
fn what_is_read_outlasts_the_owner_that_it_was_found_by() {
    let place = Place::new();
    let [seen, later, _] = written(&place, 7009);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let protector = start(&place);
    let reading = Reading::open(&replica, access(&replica), &named("seen"), None, &key).unwrap();
    let two = [&named("seen"), &named("later")];
    let comparing = ReadingTwo::open(&replica, access(&replica), two, None, &key).unwrap();
    let (view, views) = (reading.view().unwrap(), comparing.views().unwrap());
    assert_eq!(readers(&replica), 3);
    stop(protector);
    // Whoever owns it next sees two moments, and does not see how many read each.
    let protector = start(&place);
    assert_eq!(readers(&replica), 2);
    prune(&replica);
    assert_eq!(protector.host().replica().manifest().kept.len(), 2);
    stop(protector);
    assert!(content(&view) == seen);
    drop((view, reading));
    // A command that owns it for a moment too.
    let idle = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    assert_eq!(readers(&replica), 3);
    let _: Pruned = ControlClient::connect(&replica).unwrap().call(&PRUNE).unwrap();
    assert!(content(&views[0]) == seen);
    assert!(content(&views[1]) == later);
    drop((views, comparing));
    assert_eq!(readers(&replica), 1);
    let _: Pruned = ControlClient::connect(&replica).unwrap().call(&PRUNE).unwrap();
    drop(idle);
    let left = place.load();
    assert!(left.manifest().kept.is_empty());
    assert!(left.resolve(&named("seen")).is_err());
}

#[test]
fn the_next_owner_gives_up_what_is_read_where_it_takes_too_much_room() {
    let place = Place::new();
    let [seen, ..] = written(&place, 7010);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let protector = start(&place);
    let reading = Reading::open(&replica, access(&replica), &named("seen"), None, &key).unwrap();
    let view = reading.view().unwrap();
    stop(protector);
    let protector = start(&place);
    assert_eq!(readers(&replica), 1);
    for at in (0..20 * MIB).step_by(MIB) {
        protector.exports()[0].device.write(at as u64, Bytes::from(noise(7100 + at as u64, MIB)), false).unwrap();
    }
    protector.mark(&label("over")).unwrap();
    let mut asking = ControlClient::connect(&replica).unwrap();
    // A quarter of it is less than what is kept for the reader.
    let change = PolicyChange { max_bytes: Some(8 * MIB as u64), ..PolicyChange::default() };
    let _: Policy = asking.call(&Request::Policy { change }).unwrap();
    let pruned: Pruned = asking.call(&PRUNE).unwrap();
    assert_eq!((pruned.holds, readers(&replica)), (0, 0));
    assert!(protector.host().replica().manifest().kept.is_empty());
    let mut piece = vec![0; MIB];
    let (mut given_up, disk) = (0, view.disks()[0].id);
    for (at, model) in (0..).step_by(MIB).zip(seen.chunks(MIB)) {
        match view.read(disk, at, &mut piece) {
            Ok(()) => assert!(piece == model, "wrong bytes at {at}"),
            Err(ReadError::GivenUp { .. }) => given_up += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(given_up > 0, "nothing was given up");
    stop(protector);
    // Nor does it hold anything of the one after that, who knows nothing of it.
    let protector = start(&place);
    let pruned: Pruned = ControlClient::connect(&replica).unwrap().call(&PRUNE).unwrap();
    assert_eq!((pruned.holds, readers(&replica)), (0, 0));
    drop(reading);
    stop(protector);
}

#[test]
fn the_end_of_a_reader_that_owns_the_replica_does_not_wait_for_a_prune_that_it_was_asked_for() {
    let place = Place::new();
    written(&place, 7003);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    // Nothing is merged while somebody reads everything: the merge is under way for as long as the test needs.
    let mut everything = ControlClient::connect(&replica).unwrap();
    let _: PinReply = everything.call(&Request::PinAll).unwrap();
    let mut asking = bounded(&replica);
    let pruning = std::thread::spawn(move || asking.call::<Pruned>(&PRUNE));
    let merging = || read_manifest(&Disk::open(&replica).unwrap()).unwrap().merge.is_some();
    wait_for("a merge that waits", merging);
    drop(reading);
    let refused = pruning.join().unwrap();
    assert!(refused.is_err(), "it merged to the end: {refused:?}");
    assert!(merging(), "the end waited for a merge");
    // The next one goes on.
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    prune(&replica);
    drop(reading);
    assert!(!merging());
}

#[test]
fn what_is_let_go_of_stays_until_who_reads_everything_is_through() {
    let place = Place::new();
    let [seen, ..] = written(&place, 7004);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    let mut asking = ControlClient::connect(&replica).unwrap();
    let pin = Request::Keep { at: named("seen"), nearest: None, label: None };
    let _: At = asking.call(&pin).unwrap();
    prune(&replica);
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(&replica).unwrap());
    let kept = || storage.list("kept").unwrap();
    assert_eq!(kept().len(), 1);
    let mut everything = ControlClient::connect(&replica).unwrap();
    let pause: PinReply = everything.call(&Request::PinAll).unwrap();
    // As a verification does it that takes long: what there is is what was there when it began.
    let before = place.load();
    let _: At = asking.call(&Request::LetGo { at: named("seen"), nearest: None }).unwrap();
    let pruning = std::thread::spawn(move || asking.call::<Pruned>(&PRUNE));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(kept().len(), 1, "it is removed while somebody reads everything");
    assert!(restored(&before, &named("seen"), "disk") == seen);
    assert!(verify(&storage, Some(pause.at.lsn), &key, &mut |_, _| true).unwrap().ok);
    drop(everything);
    pruning.join().unwrap().unwrap();
    assert!(kept().is_empty());
    // Who looks for it where it was makes nothing there.
    let Moment { timeline, lsn, .. } = before.resolve(&named("seen")).unwrap();
    assert!(before.ground(timeline, lsn).is_err());
    assert!(kept().is_empty(), "a look has made a directory");
    drop(reading);
}

fn journal_bytes(replica: &Path) -> u64 {
    let entries = std::fs::read_dir(replica.join("journal")).unwrap();
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|found| found.len()).sum()
}

#[test]
fn who_reads_everything_and_never_ends_keeps_no_journal_from_its_bound() {
    let place = Place::new();
    let mut model = place.make_source("disk", 7005);
    let bound = 16 * MIB as u64;
    let policy = PolicyChange { max_bytes: Some(bound), ..PolicyChange::default() };
    let options = ProtectOptions { segment_bytes: MIB as u64, ..place.options(&["disk"]) };
    let protector = Protector::start(&options, |_| {}).unwrap();
    seeded(protector.protection());
    protector.mark(&label("begun")).unwrap();
    let replica = place.replica();
    let mut everything = ControlClient::connect(&replica).unwrap();
    let _: Policy = everything.call(&Request::Policy { change: policy }).unwrap();
    // As one that was stopped from the terminal.
    let pause: PinReply = everything.call(&Request::PinAll).unwrap();
    for round in 0..60 {
        let (at, data) = (round % 24 * MIB, noise(7100 + round as u64, MIB));
        model[at..at + MIB].copy_from_slice(&data);
        protector.exports()[0].device.write(at as u64, Bytes::from(data), false).unwrap();
        // What is marked is in the journal.
        protector.mark(&label(&format!("round {round}"))).unwrap();
        wait_for("the journal to be within its bound", || journal_bytes(&replica) < bound + bound / 2);
    }
    let held: bool = everything.call(&Request::Unpin { pin: pause.pin }).unwrap();
    assert!(!held, "it is told that nothing was changed");
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(&replica).unwrap());
    let verified = verify_beside_owner(&storage, &mut everything, &KeyHolder::default(), &mut |_, _| true).unwrap();
    assert!(verified.ok, "{verified:?}");
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
    assert!(restored(&place.load(), &named("round 59"), "disk") == model);
}

/// Time passes, and long-term points are made, also while a merge waits for who reads everything, or for another merge.
#[test]
fn a_merge_that_waits_keeps_nothing_else_waiting() {
    let place = Place::new();
    place.make_source("disk", 7006);
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(protector.protection());
    protector.mark(&label("begun")).unwrap();
    let replica = place.replica();
    let mut everything = ControlClient::connect(&replica).unwrap();
    let change = PolicyChange {
        window_ms: Some(1000),
        long_term_ms: Some(1000),
        keep_ms: Some(60_000),
        ..PolicyChange::default()
    };
    let _: Policy = everything.call(&Request::Policy { change }).unwrap();
    let pause: PinReply = everything.call(&Request::PinAll).unwrap();
    let mut round = 0;
    let mut until = |what: &str, holds: &dyn Fn(&Manifest) -> bool| {
        wait_for(what, || {
            round += 1;
            protector.exports()[0].device.write(0, Bytes::from(noise(round, 4096)), false).unwrap();
            holds(protector.host().replica().manifest())
        });
    };
    until("a merge that waits", &|manifest| manifest.merge.is_some());
    let mut asking = ControlClient::connect(&replica).unwrap();
    let pruning = std::thread::spawn(move || asking.call::<Pruned>(&PRUNE));
    let then = protector.host().replica().manifest().retention.clone();
    until("time to be noted", &|manifest| {
        let now = &manifest.retention;
        now.elapsed_ms > then.elapsed_ms + 1500 && now.layers.len() > then.layers.len()
    });
    assert!(protector.host().replica().manifest().merge.is_some(), "nobody waited");
    assert!(everything.call::<bool>(&Request::Unpin { pin: pause.pin }).unwrap(), "nothing was urgent");
    pruning.join().unwrap().unwrap();
    assert!(protector.stop(Duration::from_secs(20), &|| false).drained);
}

/// An owner who leaves nobody alone but who asks for it the so-maniest time.
struct Pressed {
    at: At,
    asked: AtomicU32,
    held_at: u32,
}

impl Handler for Pressed {
    fn handle(&self, request: Request, _: &Connection) -> Result<serde_json::Value, Problem> {
        match request {
            Request::PinAll => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                reply(PinReply { pin: 1, at: self.at.clone() })
            }
            _ => reply(self.asked.load(Ordering::Relaxed) == self.held_at),
        }
    }
}

#[test]
fn what_does_not_verify_is_damage_only_where_nobody_changed_it_meanwhile() {
    let place = Place::new();
    written(&place, 7007);
    let (replica, key) = (place.replica(), KeyHolder::default());
    let reading = Reading::open(&replica, access(&replica), &When::Latest, None, &key).unwrap();
    let at = reading.at.clone();
    drop(reading);
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(&replica).unwrap());
    let owner = Owner::acquire(&replica).unwrap();
    let verified = |held_at: u32| {
        let pressed = Arc::new(Pressed { at: at.clone(), asked: AtomicU32::new(0), held_at });
        let _control = ControlServer::start(&owner, Arc::clone(&pressed) as _).unwrap();
        let mut client = ControlClient::connect(&replica).unwrap();
        let verified = verify_beside_owner(&storage, &mut client, &key, &mut |_, _| true);
        (verified, pressed.asked.load(Ordering::Relaxed))
    };
    let (whole, asked) = verified(u32::MAX);
    assert!(whole.unwrap().ok && asked == 1, "what verifies was stored so");
    let image = storage.open("base/1.img", true).unwrap();
    image.write_all_at(23 * MIB as u64, &[0x5a; 16]).unwrap();
    let (damaged, asked) = verified(2);
    let damaged = damaged.unwrap();
    assert!(!damaged.ok && damaged.damage.len() == 1 && asked == 2, "{damaged:?}");
    let (doubtful, asked) = verified(u32::MAX);
    let doubtful = doubtful.unwrap_err();
    assert_eq!((doubtful.class, doubtful.code.as_str(), asked), (ProblemClass::Refused, "not-verified", 3));
    assert!(doubtful.message.contains("1.img"), "{doubtful:?}");
}

#[test]
fn what_a_merge_that_is_decided_takes_is_not_shown_again_before_the_manifest_says_so() {
    let place = Place::new();
    written(&place, 7008);
    let mut replica = place.load();
    let (mut manifest, snapshot) = (replica.manifest().clone(), replica.snapshot().clone());
    let [oldest, to] = ["seen", "end"].map(|name| {
        let Moment { timeline, lsn, stamp } = replica.resolve(&named(name)).unwrap();
        StampedMoment { timeline, lsn, stamp }
    });
    manifest.retention.oldest = Some(oldest);
    replica.update(Some(&manifest), snapshot.clone()).unwrap();
    let shown = |replica: &Replica| {
        let branch = replica.catalogue().branch(to.timeline).unwrap();
        ([oldest, to].map(|moment| branch.is_restorable(moment.lsn)), branch.ranges().len())
    };
    assert_eq!(shown(&replica), ([true, true], 1));
    replica.begin_at(Some(to), Vec::new());
    assert_eq!(shown(&replica), ([false, true], 1));
    // An edit of something else is written, with what the manifest said before.
    replica.update(Some(&manifest), snapshot.clone()).unwrap();
    assert_eq!(shown(&replica), ([false, true], 1), "it is shown again");
    manifest.merge = Some(to);
    replica.update(Some(&manifest), snapshot.clone()).unwrap();
    assert_eq!(shown(&replica), ([false, true], 1));
    // From then on the manifest is believed.
    manifest.kept.push(KeptInfo { number: 9, moment: oldest, point: None, disks: Vec::new() });
    replica.update(Some(&manifest), snapshot).unwrap();
    assert_eq!(shown(&replica), ([true, true], 2));
}
