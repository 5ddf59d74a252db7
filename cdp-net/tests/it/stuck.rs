//! What hangs at the replica's side or in the filter's own threads is waited for by no guest: their ops go past the filter, and when it
//! comes back everything is compared.

use crate::kit::{DISK, Place, label, noise, restored, wait_for};
use cdp_core::capture::{Detached, State as Filtering, Stuck};
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::ResolveError;
use cdp_core::set::{CutId, Order, OrderKind};
use cdp_core::types::{DiskId, Extent, Lsn, SetId, StartId};
use cdp_core::when::When;
use cdp_net::far::{
    Begin, Close, Closed, DisksEdit, Far, Find, Found, Frames, Group, Lends, MarkOrder, Near, Reach, Reached,
    SeedBegin, SeedHandle, Seeded, Seeding, Standing, Sums, Trust,
};
use cdp_net::keeper::{Home, Keeper, KeeperOptions};
use cdp_net::nbd::{Address, Client, ClientOptions, Server, ServerOptions};
use cdp_net::owner::{Owner, OwnerError};
use cdp_net::protect::{
    AttachError, Compared, GivenSources, Protection, ProtectionOptions, SetOptions, SourceOptions, State,
};
use cdp_net::report::{self, History, Problem};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Where calls hang, and which do.
#[derive(Default)]
struct Gate {
    closed: Mutex<Vec<&'static str>>,
    opened: Condvar,
    hanging: Mutex<Vec<&'static str>>,
    /// How long whoever asks something waits for it, where the road to the replica is closed.
    asked_until: Mutex<Option<Instant>>,
}

impl Gate {
    fn pass(&self, call: &'static str) {
        let mut closed = self.closed.lock().unwrap();
        if closed.contains(&call) {
            self.hanging.lock().unwrap().push(call);
        }
        while closed.contains(&call) {
            closed = self.opened.wait(closed).unwrap();
        }
    }

    fn close(&self, calls: &[&'static str]) {
        self.hanging.lock().unwrap().clear();
        *self.closed.lock().unwrap() = calls.to_vec();
    }

    fn open(&self) {
        self.closed.lock().unwrap().clear();
        self.opened.notify_all();
    }

    fn ask(&self) {
        if self.closed.lock().unwrap().contains(&"road") {
            let until = self.asked_until.lock().unwrap().unwrap_or_else(|| Instant::now() + Duration::from_secs(30));
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
    }

    fn hangs(&self, call: &str) -> bool {
        self.hanging.lock().unwrap().contains(&call)
    }
}

/// A replica each of whose calls may hang.
struct Hanging {
    keeper: Arc<Keeper>,
    gate: Arc<Gate>,
}

impl Far for Hanging {
    fn find(&self, find: &Find) -> Result<Option<Found>, Problem> {
        self.keeper.find(find)
    }
    fn begin(&self, begin: &Begin, near: Arc<dyn Near>) -> Result<(), Problem> {
        self.keeper.begin(begin, near)
    }
    fn frames(&self) -> Frames {
        let (frames, gate) = (self.keeper.frames(), Arc::clone(&self.gate));
        Box::new(move |frame| {
            gate.pass("frames");
            frames(frame);
        })
    }
    fn patience(&self, patience: Duration) {
        *self.gate.asked_until.lock().unwrap() = Some(Instant::now() + patience);
        self.keeper.patience(patience);
    }
    fn trust(&self, trust: Trust) -> Result<(), Problem> {
        self.gate.pass("trust");
        self.keeper.trust(trust)
    }
    fn sync(&self) {
        self.gate.ask();
        self.gate.pass("sync");
        self.keeper.sync();
    }
    fn reach(&self, reach: Reach) -> Reached {
        self.gate.pass("reach");
        self.keeper.reach(reach)
    }
    fn group(&self) -> Result<Group, Problem> {
        self.gate.pass("group");
        Far::group(self.keeper.as_ref())
    }
    fn edit_disks(&self, edit: DisksEdit) -> Result<(), Problem> {
        self.gate.pass("edit_disks");
        self.keeper.edit_disks(edit)
    }
    fn mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        self.gate.pass("mark");
        self.keeper.mark(order)
    }
    fn is_zero(&self, disk: DiskId, range: Extent) -> bool {
        self.gate.pass("is_zero");
        self.keeper.is_zero(disk, range)
    }
    fn differing(&self, disk: DiskId, range: Extent, at: Lsn, data: &[u8]) -> Option<Vec<Extent>> {
        self.gate.pass("differing");
        self.keeper.differing(disk, range, at, data)
    }
    fn seed(&self, seed: &SeedBegin, handle: SeedHandle) -> Result<Box<dyn Seeding>, Problem> {
        self.gate.pass("seed");
        Far::seed(self.keeper.as_ref(), seed, handle)
    }
    fn seeded(&self, seeded: &Seeded) -> Result<(), Problem> {
        self.gate.pass("seeded");
        self.keeper.seeded(seeded)
    }
    fn quiesce(&self) {
        self.gate.ask();
        self.keeper.quiesce();
    }
    fn close(&self, close: &Close) -> Closed {
        Far::close(self.keeper.as_ref(), close)
    }
    fn end(&self) {
        Far::end(self.keeper.as_ref());
    }
    fn standing(&self) -> Standing {
        self.keeper.standing()
    }
    fn sums(&self) -> Sums {
        self.gate.ask();
        self.keeper.sums()
    }
    fn failure(&self) -> Option<String> {
        Far::failure(self.keeper.as_ref())
    }
    fn broken(&self) -> Option<String> {
        self.gate.pass("broken");
        self.keeper.broken()
    }
    fn lends(&self) -> Option<Lends> {
        let gate = Arc::clone(&self.gate);
        Some(Box::new(move |_| gate.pass("lends")))
    }
    fn trouble(&self) -> Option<String> {
        self.gate.pass("trouble");
        self.keeper.trouble()
    }
    fn history(&self) -> Option<History> {
        self.gate.pass("history");
        Far::history(self.keeper.as_ref())
    }
}

struct Running {
    protection: Arc<Protection>,
    keeper: Arc<Keeper>,
    gate: Arc<Gate>,
    server: Server,
}

/// The disk protected and served over a socket, its replica one that may hang.
fn start(place: &Path, name: &str) -> Running {
    let sources = vec![SourceOptions { name: name.to_owned(), path: place.join(name) }];
    let options = ProtectionOptions {
        sources: sources.clone(),
        name: None,
        policy: Default::default(),
        trust_source: false,
        full_check: false,
        queue_bytes: 32 << 20,
        reread_threads: 1,
    };
    let directory = place.join("filter");
    let storage: Arc<dyn Storage> = Arc::new(Disk::create(&directory).unwrap());
    let state = State { storage, owner: Some(Arc::new(Owner::acquire(&directory).unwrap())) };
    let keeper = Keeper::new(Home::acquire(&place.join("replica")).unwrap(), KeeperOptions::default());
    let gate = Arc::new(Gate::default());
    let far: Arc<dyn Far> = Arc::new(Hanging { keeper: Arc::clone(&keeper), gate: Arc::clone(&gate) });
    let given = GivenSources::open(&sources).unwrap();
    let protection = Protection::start(&options, given, state, &far, |_| {}).unwrap();
    keeper.serve().unwrap();
    wait_for("the first copy", || protection.status().state == Filtering::Protecting);
    let address = Address::Unix(place.join("socket"));
    let server = Server::start(ServerOptions::new(address, protection.exports())).unwrap();
    let reports = {
        let gate = Arc::clone(&gate);
        Box::new(move |_| gate.pass("reports")) as Box<_>
    };
    protection.join_set(SetOptions { set: set(), name: "set".into(), reports });
    Running { protection: Arc::new(protection), keeper, gate, server }
}

fn set() -> SetId {
    SetId::new([7; 16]).unwrap()
}

/// Guests that write over sockets, each in its own part of the disk, what the counter says.
struct Guests {
    stop: Arc<AtomicBool>,
    written: Vec<Arc<AtomicU64>>,
    /// The longest that one of them waited for a single answer, in milliseconds.
    waited_ms: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Vec<u8>>>,
}

const GUESTS: usize = 4;
/// The longest that a guest waits at a filter that hangs, as that has it: 64 looks, of which each takes 250 ms.
const WAITS_MAX: Duration = Duration::from_secs(16);
/// So much longer it may look on a machine that does other things too: threads wait for a processor, and disks for others.
const BUSY: u32 = 3;

impl Guests {
    fn start(server: &Server, model: &[u8]) -> Self {
        let (stop, waited_ms) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
        let (mut written, mut threads) = (Vec::new(), Vec::new());
        for guest in 0..GUESTS {
            let count = Arc::new(AtomicU64::new(0));
            let part = guest * DISK / GUESTS..(guest + 1) * DISK / GUESTS;
            let mut mine = model[part.clone()].to_vec();
            let (uri, stop, counts) = (server.uris()[0].clone(), Arc::clone(&stop), Arc::clone(&count));
            let waited_ms = Arc::clone(&waited_ms);
            threads.push(std::thread::spawn(move || {
                let mut client = Client::connect(&uri, &ClientOptions::default()).unwrap();
                let answered = |begun: Instant| {
                    let took = u64::try_from(begun.elapsed().as_millis()).unwrap();
                    waited_ms.fetch_max(took, Ordering::Relaxed);
                };
                let mut turn = guest as u64;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let data = noise(turn * 7919 + guest as u64, 512 << (turn % 8));
                    let at = (turn as usize * 104_729 % (mine.len() - data.len())) / 512 * 512;
                    mine[at..at + data.len()].copy_from_slice(&data);
                    let begun = Instant::now();
                    client.write((part.start + at) as u64, &data, turn.is_multiple_of(5)).unwrap();
                    answered(begun);
                    if turn.is_multiple_of(11) {
                        let begun = Instant::now();
                        client.flush().unwrap();
                        answered(begun);
                    }
                    counts.fetch_add(1, Ordering::Relaxed);
                    // The journal keeps up with them on any machine.
                    std::thread::sleep(Duration::from_millis(2));
                }
                client.disconnect().unwrap();
                mine
            }));
            written.push(count);
        }
        Self { stop, written, waited_ms, threads }
    }

    /// Every one of them goes on, and none waited longer than it may.
    fn go_on(&self, writes: u64) {
        let goals: Vec<_> = self.written.iter().map(|count| count.load(Ordering::Relaxed) + writes).collect();
        wait_for("every guest to go on", || {
            self.written.iter().zip(&goals).all(|(count, goal)| count.load(Ordering::Relaxed) >= *goal)
        });
        self.waited();
    }

    /// The longest wait of them all so far.
    fn waited(&self) -> Duration {
        let waited = Duration::from_millis(self.waited_ms.load(Ordering::Relaxed));
        assert!(waited <= WAITS_MAX * BUSY, "a guest waited {waited:?} for one answer, of {WAITS_MAX:?} at most");
        waited
    }

    /// What they wrote, as the disk should be.
    fn stop(mut self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        let model = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        println!("no guest waited longer than {:?} for one answer, of {WAITS_MAX:?} at most", self.waited());
        model
    }
}

fn log_of(place: &Place) -> std::path::PathBuf {
    place.directory.path().join("filter/state/activity.log")
}

impl Running {
    fn attached(&self) {
        wait_for("what ran past to be done", || match self.protection.attach() {
            Ok(()) => true,
            Err(AttachError::Stuck) => false,
            Err(error) => panic!("{error}"),
        });
    }

    fn compared(&self) {
        wait_for("everything to be compared", || self.protection.state() == report::State::Protecting);
    }

    /// Somebody who is no guest hangs in the filter, in what is called under its lock.
    fn hang(&self, number: u64) -> std::thread::JoinHandle<()> {
        self.gate.close(&["reports"]);
        let cut = CutId { taker: StartId::new([8; 16]).unwrap(), number };
        let protection = Arc::clone(&self.protection);
        let order = Order { set: set(), cut, kind: OrderKind::Prepare };
        let hanging = std::thread::spawn(move || protection.set_order(order));
        wait_for("the filter to hang", || self.gate.hangs("reports"));
        hanging
    }

    /// As a crash of both sides.
    fn let_go(self) {
        let Self { protection, keeper, server, .. } = self;
        server.stop(Duration::from_secs(5));
        drop(Arc::into_inner(protection).expect("nobody else has it"));
        keeper.let_go();
    }

    fn stop_equal(self, place: &Place, name: &str, model: &[u8]) {
        let summary = self.protection.stop(Duration::from_secs(30), &|| false);
        assert!(summary.drained, "{summary:?}");
        self.let_go();
        assert!(std::fs::read(place.source(name)).unwrap() == model, "the source");
        assert!(restored(&place.load(), &When::Latest, name) == model, "the replica");
    }
}

/// A disk that is protected, and guests that write to it.
fn scene(seed: u64) -> (Place, Running, Guests) {
    let place = Place::new();
    let model = place.make_source("disk", seed);
    let running = start(place.directory.path(), "disk");
    let guests = Guests::start(&running.server, &model);
    (place, running, guests)
}

#[test]
fn guests_write_on_past_a_filter_in_which_somebody_hangs_and_afterwards_everything_is_compared() {
    let (place, running, guests) = scene(1);
    guests.go_on(20);
    assert_eq!(running.protection.attach(), Err(AttachError::NotDetached));
    for time in 1..=2 {
        running.gate.open();
        running.protection.mark(&label(&format!("before-{time}"))).unwrap();
        let hanging = running.hang(time);
        // Those that wait at the lock, those that come later, with and without flushes.
        guests.go_on(40);
        assert!(!hanging.is_finished());
        assert!(!log_of(&place).exists(), "nobody would believe it");
        let status = running.protection.status();
        assert!(matches!(status.detached, Some(Detached::Stuck(Stuck::Lock { .. }))), "{status:?}");
        assert_eq!(running.protection.state(), report::State::Detached);
        assert_eq!(running.protection.attach(), Err(AttachError::Stuck));
        running.gate.open();
        hanging.join().unwrap();
        guests.go_on(10);
        assert_eq!(running.protection.state(), report::State::Detached, "by itself it comes back later");
        if time == 1 {
            running.attached();
        } else {
            std::thread::sleep(Duration::from_secs(30));
        }
        running.compared();
        guests.go_on(10);
    }
    let model = guests.stop();
    running.stop_equal(&place, "disk", &model);
    let replica = place.load();
    for time in 1..=2 {
        replica.resolve(&When::Label(label(&format!("before-{time}")))).unwrap();
    }
}

#[test]
fn nothing_of_the_time_in_which_guests_wrote_past_the_filter_can_be_restored() {
    let (place, running, guests) = scene(6);
    guests.go_on(20);
    running.protection.mark(&label("before")).unwrap();
    let hanging = running.hang(1);
    guests.go_on(40);
    let mut past = vec![cdp_net::clock::wall()];
    guests.go_on(20);
    running.gate.open();
    hanging.join().unwrap();
    guests.go_on(10);
    past.push(cdp_net::clock::wall());
    running.attached();
    running.compared();
    guests.go_on(10);
    let model = guests.stop();
    running.stop_equal(&place, "disk", &model);
    let replica = place.load();
    replica.resolve(&When::Label(label("before"))).unwrap();
    for time in past {
        let found = replica.resolve(&When::Time(time));
        assert!(matches!(found, Err(ResolveError::NotRestorable(_))), "{time}: {found:?}");
    }
}

/// None of these is called by a guest's thread, nor under what such a one waits for.
#[test]
fn what_hangs_at_the_replica_outside_of_the_filter_takes_nothing_out_of_the_guests_path() {
    let (place, running, guests) = scene(2);
    let calls = [
        "trust",
        "sync",
        "reach",
        "group",
        "edit_disks",
        "mark",
        "is_zero",
        "differing",
        "seed",
        "seeded",
        "broken",
        "lends",
    ];
    running.gate.close(&calls);
    let marked = std::thread::scope(|scope| {
        let marking = scope.spawn(|| running.protection.mark(&label("late")));
        wait_for("calls to hang", || ["mark", "broken"].iter().all(|call| running.gate.hangs(call)));
        // Comparing hangs. What is read again before the replica has all that was recorded is not compared, so that it may take more.
        while !running.gate.hangs("differing") {
            running.protection.detach();
            running.attached();
            let compared = || running.protection.state() == report::State::Protecting;
            wait_for("a comparison to hang, or the end of it", || running.gate.hangs("differing") || compared());
        }
        guests.go_on(50);
        let status = running.protection.status();
        assert_eq!((status.detached, status.state), (None, Filtering::Resyncing));
        running.gate.open();
        marking.join().unwrap()
    });
    running.compared();
    // Nobody tells anything any more.
    running.gate.close(&["trouble", "history"]);
    wait_for("them to hang", || running.gate.hangs("trouble") || running.gate.hangs("history"));
    guests.go_on(50);
    assert_eq!(running.protection.status().detached, None);
    running.gate.open();
    let model = guests.stop();
    running.stop_equal(&place, "disk", &model);
    // The mark was made at a moment that can be restored, or whoever wanted it was told why there was none.
    let late = place.load().resolve(&When::Label(label("late"))).map(|moment| moment.lsn);
    match marked {
        Ok(lsn) => assert_eq!(late.unwrap(), lsn),
        Err(problem) => assert!(problem.code == "not-restorable-now" && late.is_err(), "{problem:?}, {late:?}"),
    }
}

#[test]
fn a_replica_that_takes_no_frame_is_waited_for_by_nobody_and_what_was_written_meanwhile_is_read_again() {
    let (place, running, guests) = scene(5);
    running.gate.close(&["frames"]);
    wait_for("frames to hang", || running.gate.hangs("frames"));
    guests.go_on(50);
    assert_eq!(running.protection.status().detached, None);
    // The queue is full at some time, and only what changes is known.
    wait_for("tracking", || running.protection.status().state == Filtering::Tracking);
    guests.go_on(20);
    running.gate.open();
    running.compared();
    let model = guests.stop();
    running.stop_equal(&place, "disk", &model);
}

#[test]
fn a_protection_that_ends_while_it_is_detached_has_everything_compared_at_its_next_start() {
    let (place, running, guests) = scene(3);
    guests.go_on(10);
    running.protection.detach();
    guests.go_on(30);
    let model = guests.stop();
    running.let_go();
    let running = start(place.directory.path(), "disk");
    assert_eq!(running.protection.opened().compared, Compared::Everything);
    running.stop_equal(&place, "disk", &model);
}

#[test]
fn a_stop_takes_its_patience_once_where_the_replica_is_out_of_reach_and_none_in_a_hurry() {
    for (patience, hurry, most) in [(6, false, 11), (60, true, 20)] {
        let (_place, running, guests) = scene(7);
        guests.go_on(5);
        // Nothing drains.
        running.protection.detach();
        guests.stop();
        running.gate.close(&["road"]);
        let begun = Instant::now();
        let summary = running.protection.stop(Duration::from_secs(patience), &|| hurry);
        let took = begun.elapsed();
        assert!(!summary.drained && summary.hanging.is_empty(), "{summary:?}");
        assert!(took < Duration::from_secs(most), "{took:?} of {patience} s, in a hurry: {hurry}");
        running.gate.open();
        running.let_go();
    }
}

/// What hangs is left as it is: `stop` says what, and nobody begins in the directory before it is out.
fn ends_and_leaves(place: &Place, running: Running, model: &[u8], hanging: &[&str], comes_back: impl FnOnce()) {
    let Running { protection, keeper, gate, server } = running;
    server.stop(Duration::from_secs(5));
    let begun = Instant::now();
    let summary = protection.stop(Duration::from_secs(1), &|| false);
    let took = begun.elapsed();
    assert!(!summary.drained && summary.hanging == hanging, "{summary:?}");
    assert!(took < Duration::from_secs(31), "{took:?}");
    drop(protection);
    keeper.let_go();
    assert!(begun.elapsed() < took + Duration::from_secs(10), "the end of both waits for nobody");
    let state = place.directory.path().join("filter");
    assert!(matches!(Owner::acquire(&state), Err(OwnerError::Owned { .. })), "it may still write there");
    gate.open();
    comes_back();
    wait_for("the last thread to end", || Owner::acquire(&state).is_ok());
    let running = start(place.directory.path(), "disk");
    assert_ne!(running.protection.opened().compared, Compared::Nothing);
    running.stop_equal(place, "disk", model);
}

#[test]
fn a_protection_in_whose_filter_somebody_hangs_ends_all_the_same() {
    let (place, running, guests) = scene(8);
    guests.go_on(20);
    let hanging = running.hang(1);
    // Past him.
    guests.go_on(5);
    // Nor does who takes the cuts of its set wait for him, who leaves it, or who asks.
    let cut = CutId { taker: StartId::new([8; 16]).unwrap(), number: 2 };
    running.protection.set_order(Order { set: set(), cut, kind: OrderKind::Prepare });
    running.protection.leave_set();
    assert_eq!(running.protection.set_counts(), None);
    let model = guests.stop();
    assert!(!log_of(&place).exists());
    ends_and_leaves(&place, running, &model, &["the filter"], || hanging.join().unwrap());
}

#[test]
fn a_protection_one_of_whose_threads_hangs_ends_all_the_same() {
    let (place, running, guests) = scene(9);
    guests.go_on(20);
    running.gate.close(&["frames"]);
    wait_for("frames to hang", || running.gate.hangs("frames"));
    let model = guests.stop();
    assert!(log_of(&place).exists(), "what it marks is compared");
    ends_and_leaves(&place, running, &model, &["cdp-frames"], || {});
}

/// The process of the next test: it protects, hangs when it is told to, for a moment of its own time, and says what came of it.
#[test]
fn the_process_that_is_stopped() {
    let Some(directory) = std::env::var_os("CDP_STOPPED_PLACE") else { return };
    let running = start(Path::new(&directory), "disk");
    println!("ready {}", running.server.uris()[0]);
    let lines = || {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
    };
    lines();
    let hanging = running.hang(1);
    println!("hangs");
    lines();
    running.gate.open();
    hanging.join().unwrap();
    // A few looks of who watches.
    std::thread::sleep(Duration::from_secs(2));
    println!("detached {:?}", running.protection.status().detached);
}

#[test]
fn a_process_that_was_stopped_for_long_is_not_stuck() {
    let place = Place::new();
    place.make_source("disk", 10);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stuck::the_process_that_is_stopped", "--nocapture"])
        .env("CDP_STOPPED_PLACE", place.directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut hear = |word: &str| {
        lines.find_map(|line| Some(line.unwrap().split_once(word)?.1.to_owned())).expect("the process goes on")
    };
    let uri = hear("ready ").parse().unwrap();
    let mut client = Client::connect(&uri, &ClientOptions::default()).unwrap();
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"hang\n").unwrap();
    hear("hangs");
    std::thread::scope(|scope| {
        let waits = scope.spawn(move || client.write(0, &noise(1, 4096), false).unwrap());
        std::thread::sleep(Duration::from_secs(1));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // Longer than a filter would wait before it calls something stuck.
        std::thread::sleep(Duration::from_secs(31));
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        std::io::Write::write_all(&mut input, b"go on\n").unwrap();
        waits.join().unwrap();
    });
    assert_eq!(hear("detached "), "None");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The process of the next test: it protects, hangs when it is told to, and is killed.
#[test]
fn the_process_that_is_killed() {
    let Some(directory) = std::env::var_os("CDP_STUCK_PLACE") else { return };
    let running = start(Path::new(&directory), "disk");
    println!("ready {}", running.server.uris()[0]);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let hanging = running.hang(1);
    hanging.join().unwrap();
}

#[test]
fn what_guests_wrote_past_a_filter_that_hung_until_its_process_was_killed_is_found_by_the_next_start() {
    let place = Place::new();
    let model = place.make_source("disk", 4);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stuck::the_process_that_is_killed", "--nocapture"])
        .env("CDP_STUCK_PLACE", place.directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let uri = lines.find_map(|line| Some(line.unwrap().split_once("ready ")?.1.to_owned())).unwrap();
    let mut client = Client::connect(&uri.parse().unwrap(), &ClientOptions::default()).unwrap();
    let mut expected = model;
    let mut put = |client: &mut Client, at: usize, seed: u64| {
        let data = noise(seed, 8192);
        expected[at..at + data.len()].copy_from_slice(&data);
        client.write(at as u64, &data, seed.is_multiple_of(3)).unwrap();
    };
    for piece in 0..20 {
        put(&mut client, piece << 20, piece as u64 + 1);
    }
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"hang\n").unwrap();
    // Each waits as long as it has to, and the log is gone before the first that runs past.
    let mut piece = 0;
    while log_of(&place).exists() {
        put(&mut client, (piece % 40) << 19, piece as u64 + 100);
        piece += 1;
    }
    for piece in 0..20 {
        put(&mut client, (piece << 20) + 300_032, piece as u64 + 7);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(client);
    assert!(!log_of(&place).exists());
    let running = start(place.directory.path(), "disk");
    assert_eq!(running.protection.opened().compared, Compared::Everything);
    running.stop_equal(&place, "disk", &expected);
}
