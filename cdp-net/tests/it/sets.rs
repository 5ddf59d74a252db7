//! Consistency sets on real filters: a ledger over two groups, many cuts, and what is restored from each.

use crate::kit::{noise, wait_for};
use bytes::Bytes;
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::Replica;
use cdp_core::set::{Ended, Miss, Verdict};
use cdp_core::trust::KeyHolder;
use cdp_core::types::{GroupId, SetId};
use cdp_core::when::Label;
use cdp_net::device::Device;
use cdp_net::host::{document, load_idle};
use cdp_net::protect::{ProtectOptions, Protector, SetOptions, SourceOptions};
use cdp_net::sets::{Taking, Way, reports};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Those who write: each has one block, at the same place on both disks.
const WRITERS: usize = 4;
const BLOCK: usize = 4096;
const DISK: usize = 1 << 20;

/// What each writer had written last at a common point, on the one disk and on the other.
type Ledger = ([u64; WRITERS], [u64; WRITERS]);

struct Side {
    _directory: tempfile::TempDir,
    replica: PathBuf,
    protector: Arc<Protector>,
}

impl Side {
    fn start(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (source, replica) = (directory.path().join("disk"), directory.path().join("replica"));
        let mut content = noise(seed, DISK);
        content[..WRITERS * BLOCK].fill(0);
        std::fs::write(&source, content).unwrap();
        let options = ProtectOptions::new(vec![SourceOptions { name: "disk".into(), path: source }], replica.clone());
        let protector = Arc::new(Protector::start(&options, |_| {}).unwrap());
        crate::kit::seeded(protector.protection());
        Self { _directory: directory, replica, protector }
    }

    fn device(&self) -> Arc<dyn Device> {
        self.protector.exports()[0].device.clone()
    }

    /// Stops, and gives what is left as a reader sees it.
    fn stop(self) -> (tempfile::TempDir, Replica) {
        let protector = Arc::into_inner(self.protector).expect("nobody else has it");
        let summary = protector.stop(Duration::from_secs(30), &|| false);
        assert!(summary.drained, "{summary:?}");
        let storage: Arc<dyn Storage> = Arc::new(Disk::open(&self.replica).unwrap());
        (self._directory, load_idle(&storage, &KeyHolder::default()).unwrap())
    }
}

/// Writes to the one disk and, when that is done, the same number to the other, and so on. Gives the times that writes took.
fn write_until(stop: &AtomicBool, disks: &[Arc<dyn Device>; 2], writer: usize, number: &mut u64) -> Vec<Duration> {
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        *number += 1;
        for disk in disks {
            let data = number.to_le_bytes().repeat(BLOCK / 8);
            let begun = Instant::now();
            disk.write((writer * BLOCK) as u64, Bytes::from(data), false).unwrap();
            took.push(begun.elapsed());
            // As a network between machines takes its time; the disks are not to be all that is tested.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    took
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// All writers for so long; the times of all their writes.
fn write_for(disks: &[Arc<dyn Device>; 2], numbers: &mut [u64; WRITERS], done: impl FnOnce()) -> Vec<Duration> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let run = |(writer, number)| scope.spawn(move || write_until(stop, disks, writer, number));
        let writers: Vec<_> = numbers.iter_mut().enumerate().map(run).collect();
        done();
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// What each writer had written last at a common point; what is restored must be called common.
fn ledger(replica: &Replica, label: &str) -> [u64; WRITERS] {
    let found = replica.catalogue().labelled(label);
    let [point] = found[..] else { panic!("{} points are called {label:?}", found.len()) };
    assert!(document::point(replica, point).set_consistent);
    assert!(replica.catalogue().branch(point.id.timeline).unwrap().is_restorable(point.id.lsn));
    let view = replica.view(point.id.timeline, point.id.lsn).unwrap();
    let mut content = vec![0; WRITERS * BLOCK];
    view.read(view.disks()[0].id, 0, &mut content).unwrap();
    std::array::from_fn(|writer| u64::from_le_bytes(content[writer * BLOCK..][..8].try_into().unwrap()))
}

/// The second disk has nothing without its cause on the first, nor the first the next without what came before on the second.
fn is_causal(first: &[u64; WRITERS], second: &[u64; WRITERS]) -> bool {
    first.iter().zip(second).all(|(first, second)| second <= first && *first <= second + 1)
}

fn join(side: &Side, set: SetId, give: &cdp_net::sets::Reports) -> (GroupId, Way) {
    let give = give.clone();
    let reports = Box::new(move |report| give.give(report));
    side.protector.protection().join_set(SetOptions { set, name: "shop".into(), reports });
    let protector = Arc::downgrade(&side.protector);
    let way: Way = Box::new(move |order| {
        if let Some(protector) = protector.upgrade() {
            protector.protection().set_order(order);
        }
    });
    (side.protector.protection().group(), way)
}

#[cfg(feature = "services")]
mod linked;
#[cfg(feature = "services")]
mod processes;

/// What is compared shows what must not be: the sides at two different cuts, the later one on the second disk, are not of one moment.
/// Where nobody wrote on between the two, which a busy machine may bring about, they are. Ledgers come in the order of their cuts; gives
/// how many neighbours were told apart.
fn told_apart(ledgers: &[Ledger]) -> usize {
    let wrote_on = |two: &&[Ledger]| two[0].0.iter().zip(&two[1].0).any(|(before, after)| *after > before + 1);
    let mixed: Vec<_> = ledgers.windows(2).filter(wrote_on).map(|two| is_causal(&two[0].0, &two[1].1)).collect();
    assert!(!mixed.contains(&true), "a ledger that is mixed of two cuts is found out");
    mixed.len()
}

/// What a test's taker and members have to live as long as it.
type Kept = Box<dyn std::any::Any>;

#[test]
fn no_common_point_of_two_filters_holds_an_effect_without_its_cause() {
    cuts_over(|sides, set, give| {
        let ways = sides.iter().map(|side| join(side, set, give)).collect();
        (ways, Box::new(()))
    });
}

/// Takes cuts of two groups whose members are reached as `meet` makes it, and looks at what is restored from each.
fn cuts_over(meet: impl FnOnce(&[Side; 2], SetId, &cdp_net::sets::Reports) -> (BTreeMap<GroupId, Way>, Kept)) {
    let cuts = std::env::var("CDP_SET_CUTS").ok().map_or(40, |text| text.parse().expect("a number"));
    let sides = [Side::start(1), Side::start(2)];
    let disks = [sides[0].device(), sides[1].device()];
    let mut numbers = [0; WRITERS];
    let without = write_for(&disks, &mut numbers, || std::thread::sleep(Duration::from_secs(1)));
    let set = SetId::new([7; 16]).unwrap();
    let (give, inbox) = reports();
    let (ways, kept) = meet(&sides, set, &give);
    let ended: Arc<Mutex<Vec<Ended>>> = Arc::default();
    let seen = Arc::clone(&ended);
    let push = move |end| seen.lock().unwrap().push(end);
    let taking = Taking::start(set, ways, Duration::from_millis(110), (give, inbox), push).unwrap();
    let within = Duration::from_secs(cuts as u64);
    let with = write_for(&disks, &mut numbers, || {
        let until = Instant::now() + within;
        while ended.lock().unwrap().len() < cuts {
            assert!(Instant::now() < until, "{} cuts in {within:?}", ended.lock().unwrap().len());
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    drop(taking);
    drop(kept);
    let counts = sides.each_ref().map(|side| side.protector.protection().set_counts().unwrap());
    drop(disks);
    let groups = sides.each_ref().map(|side| side.protector.protection().group());
    let [(_first, first), (_second, second)] = sides.map(Side::stop);
    let ended = std::mem::take(&mut *ended.lock().unwrap());
    let mut ledgers = Vec::new();
    for end in &ended {
        let label = format!("shop {}", end.cut.number);
        let Verdict::Common(places) = &end.verdict else {
            // All that some recorded and others did not is not offered; nothing of the rest has the name.
            let partly = matches!(end.verdict, Verdict::Missed(Miss::NotKept(_)));
            let found = [&first, &second].map(|replica| replica.catalogue().labelled(&label).len());
            assert!(partly || found == [0, 0], "{end:?}: {found:?}");
            continue;
        };
        for (replica, group) in [&first, &second].into_iter().zip(groups) {
            assert_eq!(replica.catalogue().labelled(&label)[0].id.lsn, places[&group].lsn);
        }
        let found = (ledger(&first, &label), ledger(&second, &label));
        assert!(is_causal(&found.0, &found.1), "{label}: {found:?}");
        ledgers.push(found);
    }
    println!(
        "{} of {} cuts are common points ({:.1} %); writes took {:?} at the 99th percentile without a set, {:?} with cuts every 110 ms; {:?}",
        ledgers.len(),
        ended.len(),
        ledgers.len() as f64 * 100.0 / ended.len() as f64,
        p99(without),
        p99(with),
        counts
    );
    assert!(ledgers.len() >= 2, "too few cuts are common points to tell anything: {ended:?}");
    assert!(counts.iter().any(|counts| counts.held > 0), "writes were withheld: {counts:?}");
    assert!(told_apart(&ledgers) > 0, "the ledger moved between cuts");
}

/// Nobody tells it to go on: it goes on by its own clock.
#[test]
fn a_member_whose_taker_is_gone_lets_writes_go() {
    use cdp_core::set::{CutId, HOLD_NS, How, Order, OrderKind, ReportKind};
    let side = Side::start(3);
    let set = SetId::new([7; 16]).unwrap();
    let said: Arc<Mutex<Vec<ReportKind>>> = Arc::default();
    let heard = Arc::clone(&said);
    let reports = Box::new(move |report: cdp_core::set::Report| heard.lock().unwrap().push(report.kind));
    side.protector.protection().join_set(SetOptions { set, name: "shop".into(), reports });
    let cut = CutId { taker: cdp_core::types::StartId::new([8; 16]).unwrap(), number: 1 };
    let device = side.device();
    let begun = Instant::now();
    side.protector.protection().set_order(Order { set, cut, kind: OrderKind::Prepare });
    device.write(0, Bytes::from(vec![1; BLOCK]), false).unwrap();
    assert!(begun.elapsed() >= Duration::from_nanos(HOLD_NS), "it was withheld: {:?}", begun.elapsed());
    wait_for("what it says", || said.lock().unwrap().len() == 2);
    let said = said.lock().unwrap().clone();
    let [ReportKind::Prepared(place), ReportKind::Released { how: How::Timer, place: Some(at) }] = said[..] else {
        panic!("{said:?}")
    };
    assert_eq!(place, at);
    // And leaving lets go at once of what is withheld.
    std::thread::sleep(Duration::from_millis(110));
    let order = Order { set, cut: CutId { number: 2, ..cut }, kind: OrderKind::Prepare };
    side.protector.protection().set_order(order);
    side.protector.protection().leave_set();
    assert_eq!(side.protector.protection().set_counts(), None);
    device.write(0, Bytes::from(vec![2; BLOCK]), false).unwrap();
    let label: Label = "after".parse().unwrap();
    side.protector.mark(&label).unwrap();
}
