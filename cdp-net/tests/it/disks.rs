//! Disks that join, grow, are cut and leave while guests write, and between two starts.

use crate::kit::{Place, label, noise, restored, seeded, wait_for, write_to};
use bytes::Bytes;
use cdp_core::replica::Replica;
use cdp_core::trust::KeyHolder;
use cdp_core::types::Lsn;
use cdp_core::when::When;
use cdp_net::device::Device;
use cdp_net::host::Host;
use cdp_net::owner::{Access, Connection, ControlClient, Handler, Request};
use cdp_net::protect::{ProtectError, Protector};
use cdp_net::report::{DiskChanged, DiskVerb, Problem, ProblemClass, Status};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DISK: u64 = 24 * MIB;

/// Asks the owner, or is it for a moment.
fn ask(place: &Place, request: Request) -> Result<DiskChanged, Problem> {
    let answer = match Access::open(&place.replica(), Duration::from_secs(5)).unwrap() {
        Access::Client(mut client) => return client.call(&request).map_err(cdp_net::reading::not_answered),
        Access::Owner(_owner) => {
            let storage = Arc::new(cdp_core::media::Disk::open(place.replica()).unwrap());
            Host::idle(storage, &KeyHolder::default()).unwrap().handle(request, &Connection::local())?
        }
    };
    Ok(serde_json::from_value(answer).unwrap())
}

fn add(place: &Place, name: &str) -> Result<DiskChanged, Problem> {
    ask(place, Request::AddDisk { name: name.into(), source: place.source(name) })
}

fn remove(place: &Place, name: &str) -> Result<DiskChanged, Problem> {
    ask(place, Request::RemoveDisk { name: name.into() })
}

fn resize(place: &Place, name: &str, size: Option<u64>, force: bool) -> Result<DiskChanged, Problem> {
    ask(place, Request::ResizeDisk { name: name.into(), size, force })
}

fn status(place: &Place) -> Status {
    ControlClient::connect(&place.replica()).unwrap().call(&Request::Status).unwrap()
}

fn is_complete(place: &Place, name: &str) -> bool {
    status(place).disks.iter().any(|disk| disk.name == name && !disk.incomplete)
}

fn device(protector: &Protector, name: &str) -> Arc<dyn Device> {
    let exports = protector.exports();
    Arc::clone(&exports.iter().find(|export| export.name == name).unwrap().device)
}

fn at(lsn: Lsn) -> When {
    When::Lsn { timeline: None, lsn }
}

fn names(replica: &Replica, when: &When) -> Vec<(String, u64)> {
    let moment = replica.resolve(when).unwrap();
    let disks = replica.complete_disks(moment.timeline, moment.lsn);
    disks.into_iter().map(|disk| (disk.name, disk.size)).collect()
}

fn set_len(path: &Path, size: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
}

fn stop(protector: Protector) {
    let summary = protector.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained, "{summary:?}");
}

#[test]
fn a_disk_joins_and_leaves_while_every_moment_of_the_other_stays() {
    let place = Place::new();
    let mut one = place.make_source("one", 1);
    let mut two = place.make_source("two", 2);
    let protector = Protector::start(&place.options(&["one"]), |_| {}).unwrap();
    seeded(protector.protection());
    let first = device(&protector, "one");
    let joined = AtomicBool::new(false);
    let mut history = Vec::new();
    let mut of_two = Vec::new();
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let added = add(&place, "two").unwrap();
            joined.store(true, Ordering::Release);
            added
        });
        let mut round = 0;
        while round < 400 || !is_complete(&place, "two") {
            write_to(first.as_ref(), &mut one, round % 4000 * 4096, noise(round, 4096));
            history.push((protector.status().lsn, one.clone()));
            if history.len() > 24 {
                history.remove(12);
            }
            // Its guests need not wait for the copy.
            if joined.load(Ordering::Acquire) {
                let second = device(&protector, "two");
                write_to(second.as_ref(), &mut two, round * 7919 % 5000 * 4096, noise(round + 9, 8192));
                second.trim(20 * MIB, 64 << 10, false).unwrap();
                two[(20 * MIB) as usize..(20 * MIB) as usize + (64 << 10)].fill(0);
            }
            round += 1;
        }
        let added = adding.join().unwrap();
        assert_eq!((added.verb, added.disk.size, added.disk.incomplete), (DiskVerb::Added, DISK, true));
    });
    protector.mark(&label("both")).unwrap();
    for round in 0..10 {
        let second = device(&protector, "two");
        write_to(second.as_ref(), &mut two, round * 4096, noise(round, 512));
        of_two.push((protector.status().lsn, two.clone()));
    }
    let second = device(&protector, "two");
    let removed = remove(&place, "two").unwrap();
    assert_eq!((removed.verb, protector.exports().len()), (DiskVerb::Removed, 1));
    assert!(second.write(0, Bytes::from(vec![1; 512]), false).is_err());
    assert!(second.read(0, &mut [0; 512]).is_err());
    let last = remove(&place, "one").unwrap_err();
    assert_eq!((last.class, last.code.as_str()), (ProblemClass::Refused, "last-disk"));
    write_to(first.as_ref(), &mut one, 0, noise(77, 4096));
    protector.mark(&label("alone")).unwrap();
    drop((first, second));
    stop(protector);
    let replica = place.load();
    for (lsn, content) in &history {
        assert!(restored(&replica, &at(*lsn), "one") == *content, "disk one at {lsn}");
    }
    for (lsn, content) in &of_two {
        assert!(restored(&replica, &at(*lsn), "two") == *content, "disk two at {lsn}");
    }
    assert!(restored(&replica, &When::Label(label("alone")), "one") == one);
    let both = [("one".to_owned(), DISK), ("two".to_owned(), DISK)];
    assert_eq!(names(&replica, &at(history[0].0)), both[..1]);
    assert_eq!(names(&replica, &When::Label(label("both"))), both);
    assert_eq!(names(&replica, &When::Label(label("alone"))), both[..1]);
    assert_eq!(names(&replica, &at(Lsn(removed.lsn.unwrap()).prev())), both);
    assert_eq!(names(&replica, &at(Lsn(removed.lsn.unwrap()))), both[..1]);
    assert!(replica.catalogue().trunk().unwrap().gaps().is_empty(), "no moment was lost");
    // And the next start wants what there is now.
    let other = Protector::start(&place.options(&["one", "two"]), |_| {}).err().unwrap();
    assert!(matches!(other, ProtectError::OtherDisks { .. }), "{other}");
    stop(Protector::start(&place.options(&["one"]), |_| {}).unwrap());
}

#[test]
fn a_disk_grows_and_is_cut_while_it_is_written() {
    let place = Place::new();
    let mut model = place.make_source("disk", 3);
    let protector = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(protector.protection());
    let disk = device(&protector, "disk");
    // An image that has grown is not cut by a size that lies between.
    set_len(&place.source("disk"), DISK + MIB);
    assert_eq!(resize(&place, "disk", Some(DISK + 512), false).unwrap_err().code, "source-larger");
    set_len(&place.source("disk"), DISK);
    let same = resize(&place, "disk", None, false).unwrap_err();
    assert_eq!((same.class, same.code.as_str()), (ProblemClass::Refused, "same-size"));
    assert_eq!(resize(&place, "disk", Some(DISK + 512), false).unwrap_err().code, "source-smaller");
    let before = protector.status().lsn;
    let small = model.clone();
    // What is new holds something already, and a hole.
    let larger = DISK + 6 * MIB;
    set_len(&place.source("disk"), larger);
    let file = OpenOptions::new().write(true).open(place.source("disk")).unwrap();
    file.write_all_at(&noise(5, MIB as usize), DISK + MIB).unwrap();
    model.resize(larger as usize, 0);
    model[(DISK + MIB) as usize..(DISK + 2 * MIB) as usize].copy_from_slice(&noise(5, MIB as usize));
    let done = AtomicBool::new(false);
    let grown = std::thread::scope(|scope| {
        let growing = scope.spawn(|| {
            let grown = resize(&place, "disk", None, false).unwrap();
            done.store(true, Ordering::Release);
            grown
        });
        let mut round = 0;
        while !done.load(Ordering::Acquire) || round < 50 {
            write_to(disk.as_ref(), &mut model, round % 900 * 4096, noise(round, 4096));
            round += 1;
        }
        growing.join().unwrap()
    });
    assert_eq!((grown.verb, grown.disk.size, disk.size()), (DiskVerb::Grown, larger, larger));
    let when_grown = (protector.status().lsn, model.clone());
    write_to(disk.as_ref(), &mut model, larger - 4096, noise(6, 4096));
    let large = (protector.status().lsn, model.clone());
    let refused = resize(&place, "disk", Some(DISK), false).unwrap_err();
    assert_eq!((refused.class, refused.code.as_str()), (ProblemClass::Refused, "data-would-be-lost"));
    assert!(refused.hint.unwrap().contains("--force"));
    let cut = resize(&place, "disk", Some(DISK), true).unwrap();
    assert_eq!((cut.verb, disk.size()), (DiskVerb::Cut, DISK));
    assert!(disk.write(DISK, Bytes::from(vec![1; 512]), false).is_err());
    assert_eq!(std::fs::metadata(place.source("disk")).unwrap().len(), DISK);
    model.truncate(DISK as usize);
    write_to(disk.as_ref(), &mut model, 0, noise(7, 512));
    let short = (protector.status().lsn, model.clone());
    // Where nothing is nothing has to be forced.
    set_len(&place.source("disk"), DISK + MIB);
    resize(&place, "disk", None, false).unwrap();
    resize(&place, "disk", Some(DISK), false).unwrap();
    set_len(&place.source("disk"), DISK + MIB);
    resize(&place, "disk", None, false).unwrap();
    model.resize((DISK + MIB) as usize, 0);
    drop(disk);
    stop(protector);
    let replica = place.load();
    assert!(replica.catalogue().trunk().unwrap().gaps().is_empty(), "no moment was lost");
    assert!(restored(&replica, &at(before), "disk") == small);
    for (lsn, content) in [when_grown, large, short] {
        assert!(restored(&replica, &at(lsn), "disk") == content, "at {lsn}");
    }
    assert!(restored(&replica, &When::Latest, "disk") == model, "what was cut off is not there again");
    stop(Protector::start(&place.options(&["disk"]), |_| {}).unwrap());
    assert!(restored(&place.load(), &When::Latest, "disk") == model);
}

#[test]
fn a_source_that_grew_between_two_starts_is_found_and_one_that_was_cut_is_refused() {
    let place = Place::new();
    let mut model = place.make_source("disk", 4);
    let first = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(first.protection());
    first.mark(&label("small")).unwrap();
    stop(first);
    let small = model.clone();
    set_len(&place.source("disk"), DISK + MIB);
    let file = OpenOptions::new().write(true).open(place.source("disk")).unwrap();
    file.write_all_at(&noise(1, 8192), DISK + 4096).unwrap();
    model.resize((DISK + MIB) as usize, 0);
    model[DISK as usize + 4096..][..8192].copy_from_slice(&noise(1, 8192));
    // As after a crash: nothing of the second start says how it ended.
    let second = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(second.protection());
    write_to(device(&second, "disk").as_ref(), &mut model, DISK + MIB - 512, noise(2, 512));
    second.mark(&label("large")).unwrap();
    // And as if it had ended before the new size was written down: the record says it.
    second.host().edit(Box::new(|manifest| manifest.disks[0].size = DISK)).unwrap();
    drop(second);
    let third = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    assert_eq!(third.host().replica().manifest().disks[0].size, DISK + MIB);
    seeded(third.protection());
    third.mark(&label("again")).unwrap();
    stop(third);
    let replica = place.load();
    assert!(restored(&replica, &When::Label(label("small")), "disk") == small);
    for name in ["large", "again"] {
        assert!(restored(&replica, &When::Label(label(name)), "disk") == model, "{name}");
    }
    set_len(&place.source("disk"), DISK);
    let refused = Protector::start(&place.options(&["disk"]), |_| {}).err().unwrap();
    assert!(matches!(refused, ProtectError::Cut { found: DISK, .. }), "{refused}");
    assert_eq!(resize(&place, "disk", Some(DISK), false).unwrap_err().code, "data-would-be-lost");
    assert_eq!(resize(&place, "disk", Some(DISK), true).unwrap().lsn, None);
    let last = Protector::start(&place.options(&["disk"]), |_| {}).unwrap();
    seeded(last.protection());
    last.mark(&label("cut")).unwrap();
    wait_for("the new size in the manifest", || {
        last.host().replica().manifest().disks[0].size == DISK && last.host().replica().manifest().resizing.is_empty()
    });
    stop(last);
    let replica = place.load();
    assert!(restored(&replica, &When::Label(label("again")), "disk") == model);
    assert!(restored(&replica, &When::Label(label("cut")), "disk") == model[..DISK as usize]);
}

#[test]
fn a_copy_that_a_crash_ends_begins_anew_and_takes_nothing_from_the_others() {
    let place = Place::new();
    let mut one = place.make_source("one", 5);
    // Large enough that the crash comes before its end.
    let two = noise(6, 400 << 20);
    std::fs::write(place.source("two"), &two).unwrap();
    let first = Protector::start(&place.options(&["one"]), |_| {}).unwrap();
    seeded(first.protection());
    add(&place, "two").unwrap();
    device(&first, "two").write(8192, Bytes::from(noise(7, 4096)), false).unwrap();
    write_to(device(&first, "one").as_ref(), &mut one, 4096, noise(8, 4096));
    first.mark(&label("during")).unwrap();
    assert!(!is_complete(&place, "two"));
    drop(first);
    let replica = place.load();
    assert!(restored(&replica, &When::Label(label("during")), "one") == one);
    assert_eq!(names(&replica, &When::Label(label("during"))), [("one".to_owned(), DISK)]);
    let moment = replica.resolve(&When::Label(label("during"))).unwrap();
    assert_eq!(replica.nearest_with_disk("two", &moment).after, None, "it never was complete");
    let second = Protector::start(&place.options(&["one", "two"]), |_| {}).unwrap();
    seeded(second.protection());
    wait_for("the second copy", || is_complete(&place, "two"));
    second.mark(&label("complete")).unwrap();
    stop(second);
    let replica = place.load();
    let mut two = two;
    two[8192..8192 + 4096].copy_from_slice(&noise(7, 4096));
    assert!(restored(&replica, &When::Label(label("complete")), "two") == two);
    assert!(restored(&replica, &When::Label(label("during")), "one") == one);
    let moment = replica.resolve(&When::Label(label("during"))).unwrap();
    let after = replica.nearest_with_disk("two", &moment).after.expect("it is complete later");
    assert!(after.lsn > moment.lsn && names(&replica, &at(after.lsn)).len() == 2);
    let mut files: Vec<_> =
        std::fs::read_dir(place.replica().join("base")).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["1.dig1", "1.img", "1.sum", "3.dig1", "3.img", "3.sum"], "of the first attempt nothing is left");
    let third = Protector::start(&place.options(&["one", "two"]), |_| {}).unwrap();
    assert!(is_complete(&place, "two"), "and it is not copied again");
    stop(third);
}

#[test]
fn what_is_changed_while_nobody_protects_is_recorded_by_the_next_start() {
    let place = Place::new();
    let one = place.make_source("one", 9);
    let two = place.make_source("two", 10);
    let three = place.make_source("three", 11);
    let first = Protector::start(&place.options(&["one", "two"]), |_| {}).unwrap();
    seeded(first.protection());
    first.mark(&label("before")).unwrap();
    stop(first);
    assert_eq!(add(&place, "one").unwrap_err().code, "disk-exists");
    let twice = ask(&place, Request::AddDisk { name: "x".into(), source: place.source("one") }).unwrap_err();
    assert_eq!(twice.code, "source-twice");
    assert_eq!(add(&place, "nothing").unwrap_err().class, ProblemClass::Failed);
    assert_eq!(remove(&place, "x").unwrap_err().class, ProblemClass::Usage);
    assert_eq!(remove(&place, "one").unwrap().lsn, None);
    assert_eq!(remove(&place, "two").unwrap_err().code, "last-disk");
    assert_eq!(add(&place, "three").unwrap().lsn, None);
    assert!(restored(&place.load(), &When::Latest, "one") == one, "nothing was recorded yet");
    let other = Protector::start(&place.options(&["one", "two"]), |_| {}).err().unwrap();
    assert!(other.to_string().contains("three"), "{other}");
    let second = Protector::start(&place.options(&["two", "three"]), |_| {}).unwrap();
    assert_eq!(second.opened().compared, cdp_net::protect::Compared::Nothing);
    wait_for("the copy", || is_complete(&place, "three"));
    second.mark(&label("after")).unwrap();
    stop(second);
    let replica = place.load();
    assert!(restored(&replica, &When::Label(label("before")), "one") == one);
    assert!(restored(&replica, &When::Label(label("after")), "two") == two);
    assert!(restored(&replica, &When::Label(label("after")), "three") == three);
    let both = ["two", "three"].map(|name| (name.to_owned(), DISK));
    assert_eq!(names(&replica, &When::Label(label("after"))), both);
    let events = replica.catalogue().trunk().unwrap().disk_changes().len();
    stop(Protector::start(&place.options(&["two", "three"]), |_| {}).unwrap());
    assert_eq!(place.load().catalogue().trunk().unwrap().disk_changes().len(), events, "and only once");
}

/// One process that owns the group without protecting it, as a mount does, is asked by two at once.
#[test]
fn of_two_changes_at_once_the_second_sees_what_the_first_did() {
    let place = Place::new();
    ["one", "two", "three", "four"].iter().for_each(|name| drop(place.make_source(name, 14)));
    let first = Protector::start(&place.options(&["one", "two"]), |_| {}).unwrap();
    seeded(first.protection());
    stop(first);
    let storage = Arc::new(cdp_core::media::Disk::open(place.replica()).unwrap());
    let host = Host::idle(storage, &KeyHolder::default()).unwrap();
    let at_once = |requests: [Request; 2]| {
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let asking = requests.map(|request| {
                scope.spawn(|| {
                    together.wait();
                    host.handle(request, &Connection::local()).map(drop)
                })
            });
            asking.map(|asking| asking.join().unwrap())
        })
    };
    for round in 0..8 {
        let gone = at_once(["one", "two"].map(|name| Request::RemoveDisk { name: name.into() }));
        let last: Vec<_> = gone.iter().filter_map(|gone| Some(gone.as_ref().err()?.code.as_str())).collect();
        assert_eq!(last, ["last-disk"], "round {round}");
        let left = host.replica().disks()[0].name.clone();
        let back = if left == "one" { "two" } else { "one" };
        let path = |name: &str| place.source(name);
        let added = at_once([back, "three"].map(|name| Request::AddDisk { name: name.into(), source: path(name) }));
        assert_eq!(added, [Ok(()), Ok(())], "round {round}");
        let twice = at_once(["four", "four"].map(|name| Request::AddDisk { name: name.into(), source: path(name) }));
        let codes: Vec<_> = twice.iter().filter_map(|twice| Some(twice.as_ref().err()?.code.as_str())).collect();
        assert_eq!(codes, ["disk-exists"], "round {round}");
        let replica = host.replica();
        let ids: std::collections::BTreeSet<_> = replica.manifest().disks.iter().map(|disk| disk.id).collect();
        assert_eq!(ids.len(), replica.manifest().disks.len(), "round {round}: a number was given twice");
        drop(replica);
        for name in ["three", "four"] {
            host.handle(Request::RemoveDisk { name: name.into() }, &Connection::local()).unwrap();
        }
    }
}

#[test]
fn a_new_group_is_copied_before_it_changes() {
    use crate::held::{Access as Touch, Gate, Held};
    let place = Place::new();
    place.make_source("one", 12);
    place.make_source("two", 13);
    let gate = Gate::new();
    gate.close();
    let wrap = |_, inner| Held::over(inner, &gate, |touch| matches!(touch, Touch::Read(at) if at >= 14 * MIB));
    let protector = Protector::start_over(&place.options(&["one"]), wrap, |_| {}).unwrap();
    for refused in [add(&place, "two"), remove(&place, "one"), resize(&place, "one", Some(DISK - 512), true)] {
        assert_eq!(refused.unwrap_err().code, "seeding");
    }
    gate.open();
    seeded(protector.protection());
    add(&place, "two").unwrap();
    wait_for("the copy", || is_complete(&place, "two"));
    stop(protector);
}
