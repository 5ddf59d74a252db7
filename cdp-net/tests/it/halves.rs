//! The two halves with nothing between them but what a link carries: calls as JSON, frames that are packed, pieces of first copies.
//! The filter's side has a directory of its own for its state.

use crate::kit::{DISK, Place, label, noise, restored, seeded, wait_for, write_to};
use bytes::Bytes;
use cdp_core::capture::Room;
use cdp_core::frame::{Compression, EncodedFrame, Encoder};
use cdp_core::link::message::{Answer, Call, CallStatus};
use cdp_core::types::{BLOCK, DiskId, GroupId, Lsn, Timeline};
use cdp_core::when::When;
use cdp_net::far::{
    Acks, Begin, CallKind, Caller, Close, Closed, Far, Find, Found, Frames, Lends, Near, Reach, Reached, Remote,
    RemoteNear, SeedBegin, SeedBegun, SeedHandle, SeedWay, Seeding, Standing, Wire, answer_near, ask,
};
use cdp_net::keeper::{Calls, Home, Keeper, KeeperOptions};
use cdp_net::owner::{ControlClient, Owner, OwnerError, Request};
use cdp_net::protect::{Compared, Protection};
use cdp_net::report::{self, DiskChanged};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;

/// Something like a link: who keeps the replica may be replaced, and frames are kept until they are durable. The filter's end.
struct Cable {
    far: RwLock<(Arc<Keeper>, Arc<Calls>)>,
    group: Mutex<Option<GroupId>>,
    near: Mutex<Option<Arc<dyn Near>>>,
    kept: Mutex<VecDeque<EncodedFrame>>,
    /// Calls for hashes, and hashes of blocks that were asked for.
    hashed: [AtomicU64; 2],
    me: Weak<Cable>,
}

/// The keeper's end.
struct Back(Weak<Cable>);

fn calls(keeper: &Arc<Keeper>, cable: &Weak<Cable>) -> Arc<Calls> {
    let near = RemoteNear::new(Arc::new(Back(Weak::clone(cable))));
    Arc::new(Calls::new(Arc::clone(keeper), Arc::new(near)))
}

impl Cable {
    fn new(keeper: Arc<Keeper>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            far: RwLock::new((Arc::clone(&keeper), calls(&keeper, me))),
            group: Mutex::default(),
            near: Mutex::default(),
            kept: Mutex::default(),
            hashed: Default::default(),
            me: Weak::clone(me),
        })
    }

    fn keeper(&self) -> Arc<Keeper> {
        Arc::clone(&self.far.read().unwrap().0)
    }

    fn calls(&self) -> Arc<Calls> {
        Arc::clone(&self.far.read().unwrap().1)
    }

    /// The replica's side ends as by a crash, and another one takes its place.
    fn replace(&self, place: &Place, timeline: Timeline, seen: Lsn) -> Lsn {
        // Frames go on being kept meanwhile.
        self.keeper().let_go();
        let group = self.group.lock().unwrap().unwrap();
        let keeper = Keeper::new(Home::acquire(&place.replica()).unwrap(), KeeperOptions::default());
        let near = || Arc::new(RemoteNear::new(Arc::new(Back(Weak::clone(&self.me)))));
        let refused = keeper.resume(group, Timeline::new([9; 16]).unwrap(), Some(seen), near());
        assert_eq!(refused.unwrap_err().code, "unknown-timeline");
        drop(keeper);
        let keeper = Keeper::new(Home::acquire(&place.replica()).unwrap(), KeeperOptions::default());
        let kept = self.kept.lock().unwrap();
        let (have, durable) = keeper.resume(group, timeline, Some(seen), near()).unwrap();
        let rest = kept.iter().filter_map(|frame| frame.after(have).unwrap());
        rest.for_each(|frame| keeper.packed(frame));
        *self.far.write().unwrap() = (Arc::clone(&keeper), calls(&keeper, &self.me));
        drop(kept);
        keeper.serve().unwrap();
        durable
    }
}

impl Caller for Cable {
    fn call(&self, call: Call) -> Answer {
        if call.kind == CallKind::Begin as u16 {
            let begin: Begin = serde_json::from_slice(&call.header).unwrap();
            begin.new.into_iter().for_each(|new| *self.group.lock().unwrap() = Some(new.group));
        }
        let mut answer = self.calls().answer(&call);
        match CallKind::of(call.kind).unwrap() {
            CallKind::Find => {
                let found: Option<Found> = serde_json::from_slice(&answer.header).unwrap();
                *self.group.lock().unwrap() = found.map(|found| found.group);
            }
            CallKind::Digests => {
                let hashes = answer.tail.len() as u64 / 32;
                self.hashed[0].fetch_add(1, Ordering::Relaxed);
                self.hashed[1].fetch_add(if hashes > 1 { hashes } else { 0 }, Ordering::Relaxed);
            }
            _ => {}
        }
        // A call may come twice.
        let again = [CallKind::Begin, CallKind::Trust, CallKind::Disks, CallKind::SeedEnd, CallKind::Seeded];
        if call.kind == CallKind::Mark as u16 && answer.status == CallStatus::Done {
            // Its answer was lost.
            answer = self.calls().answer(&call);
        }
        if again.iter().any(|kind| *kind as u16 == call.kind) {
            let first = std::mem::replace(&mut answer, self.calls().answer(&call));
            assert_eq!(first, answer, "{call:?}");
        }
        answer
    }
}

impl Wire for Cable {
    fn frames(&self) -> Frames {
        let (me, encoder) = (Weak::clone(&self.me), Mutex::new(Encoder::new()));
        Box::new(move |raw| {
            let Some(me) = me.upgrade() else { return };
            let group = me.group.lock().unwrap();
            // Before it begins it has none; then it is in what is found, or made.
            let frame =
                encoder.lock().unwrap().encode(raw, group.expect("a filter with a group"), Compression::Zstd(1));
            drop(group);
            let mut kept = me.kept.lock().unwrap();
            kept.push_back(frame.clone());
            me.keeper().packed(frame);
        })
    }

    fn lends(&self) -> Lends {
        // Nobody stands between the two.
        Box::new(|_| {})
    }

    fn listen(&self, near: Option<Arc<dyn Near>>) {
        *self.near.lock().unwrap() = near;
    }

    fn patience(&self, _: Duration) {}

    fn seed(&self, seed: &SeedBegin, begun: &SeedBegun, handle: SeedHandle) -> Box<dyn SeedWay> {
        // What is left of an attempt that was given up is passed over, whatever it is.
        assert!(self.calls().copy(seed.disk, seed.first - 1, 0, |_| unreachable!("it is passed over")));
        // So is what does not belong where the copy is: one before it did not verify.
        assert!(
            self.calls()
                .copy(seed.disk, seed.first, begun.position + 4096, |_| unreachable!("it would be in another place"))
        );
        let (calls, disk, position) = (self.calls(), seed.disk, begun.position);
        Box::new(Way { calls, disk, position, given: 0, told: 0, handle, number: seed.first })
    }

    fn next_seed(&self) -> u64 {
        100
    }

    fn standing(&self) -> Standing {
        ask(self, CallKind::Standing, &()).unwrap().0
    }

    fn failure(&self) -> Option<String> {
        self.keeper().failure()
    }

    fn broken(&self) -> Option<String> {
        None
    }
}

/// The way of a first copy's pieces.
struct Way {
    calls: Arc<Calls>,
    disk: DiskId,
    /// What was there before.
    position: u64,
    given: u64,
    told: u64,
    handle: SeedHandle,
    number: u64,
}

impl Way {
    fn give(&mut self, length: u64, write: impl FnOnce(&mut dyn Seeding) -> bool) -> bool {
        // As over a network.
        std::thread::sleep(Duration::from_millis(20));
        let taken = !self.handle.stop.load(Ordering::Relaxed)
            && self.calls.copy(self.disk, self.number, self.position + self.given, write);
        self.number += 1;
        self.given += length;
        self.tell();
        taken
    }

    /// Counts what was taken since.
    fn tell(&mut self) {
        let done = self.calls.copied(self.disk);
        self.handle.done.fetch_add(done - self.told, Ordering::Relaxed);
        self.told = done;
    }
}

impl SeedWay for Way {
    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool {
        let length = data.iter().map(|data| data.len() as u64).sum();
        self.give(length, |copy| copy.data(data, lsn))
    }
    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool {
        self.give(length, |copy| copy.zeros(length, lsn))
    }
    fn flush(&mut self) -> bool {
        let taken = || self.calls.copied(self.disk) == self.given;
        let all = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            taken()
        });
        self.tell();
        all
    }
}

impl Back {
    fn near(&self) -> Option<Arc<dyn Near>> {
        self.0.upgrade()?.near.lock().unwrap().clone()
    }
}

impl Caller for Back {
    fn call(&self, call: Call) -> Answer {
        match self.near() {
            Some(near) => answer_near(near.as_ref(), &call),
            None => {
                let (kind, status) = (call.kind, CallStatus::Unreachable);
                Answer { kind, status, header: Bytes::new(), tail: Bytes::new() }
            }
        }
    }
}

impl Acks for Back {
    fn durable(&self, lsn: Lsn) {
        let Some(cable) = self.0.upgrade() else { return };
        let mut kept = cable.kept.lock().unwrap();
        while kept.pop_front_if(|frame| frame.info.last_lsn <= lsn).is_some() {}
        drop(kept);
        self.near().into_iter().for_each(|near| near.durable(lsn));
    }

    fn room(&self, room: Room) {
        self.near().into_iter().for_each(|near| near.room(room));
    }
}

/// Both halves while they go on.
struct Chain {
    protection: Protection,
    far: Arc<Cable>,
}

fn start(place: &Place, names: &[&str]) -> Chain {
    let keeper = Keeper::new(Home::acquire(&place.replica()).unwrap(), KeeperOptions::default());
    let cable = Cable::new(Arc::clone(&keeper));
    let far: Arc<dyn Far> = Arc::new(Remote::new(Arc::clone(&cable) as _));
    let protection = place.protect(&place.options_for_far(names), &far, |_| {}).unwrap();
    keeper.serve().unwrap();
    Chain { protection, far: cable }
}

impl Chain {
    fn seeded(&self) {
        seeded(&self.protection);
    }

    fn write(&self, name: &str, model: &mut [u8], offset: usize, data: Vec<u8>) {
        let exports = self.protection.exports();
        let export = exports.iter().find(|export| export.name == name).unwrap();
        write_to(export.device.as_ref(), model, offset as u64, data);
    }

    fn stop(self) {
        let summary = self.protection.stop(Duration::from_secs(20), &|| false);
        assert!(summary.drained && summary.manifest_stored, "{summary:?}");
        assert!(summary.stored_bytes > 0, "{summary:?}");
        self.let_go();
    }

    /// As a crash of both ends.
    fn let_go(self) {
        let Self { protection, far } = self;
        drop(protection);
        far.keeper().let_go();
    }
}

#[test]
fn a_replica_at_the_other_end_holds_what_the_filter_wrote_through_stops_and_crashes() {
    let place = Place::new();
    let mut model = place.make_source("disk", 1);
    let first = start(&place, &["disk"]);
    assert!(matches!(Owner::acquire(&place.state()), Err(OwnerError::Owned { .. })));
    first.seeded();
    let timeline = first.protection.opened().timeline;
    first.write("disk", &mut model, 4096, noise(5, 300 << 10));
    let marked = first.protection.mark(&label("first")).unwrap();
    let at_first = model.clone();
    assert_eq!(first.protection.mark(&label("first")).unwrap_err().code, "label-taken");
    first.write("disk", &mut model, 6 << 20, noise(6, 8192));
    // Who asks the replica's owner hears what the filter knows.
    let mut client = ControlClient::connect(&place.replica()).unwrap();
    let status: report::Status = client.call(&Request::Status).unwrap();
    assert_eq!((status.state, status.lsn), (report::State::Protecting, first.protection.status().lsn));
    drop(client);
    first.stop();
    assert!(!place.replica().join("state/activity.log").exists(), "the log is where the filter is");
    assert!(place.state().join("state/activity.log").exists());

    let second = start(&place, &["disk"]);
    let opened = second.protection.opened();
    assert_eq!((opened.timeline, opened.clean, opened.compared), (timeline, true, Compared::Nothing));
    second.write("disk", &mut model, 1 << 20, noise(7, 4096));
    second.protection.mark(&label("second")).unwrap();
    let at_second = model.clone();
    second.write("disk", &mut model, 9 << 20, noise(8, 300 << 10));
    second.let_go();

    let third = start(&place, &["disk"]);
    let opened = third.protection.opened();
    assert_eq!((opened.resumed, opened.clean, opened.compared), (true, false, Compared::ActivityLog));
    assert_ne!(opened.timeline, timeline);
    third.seeded();
    let counters = third.protection.status().counters;
    assert!(counters.bytes_reread > 0 && counters.bytes_reread < DISK as u64, "{counters:?}");
    let [asked, blocks] = [0, 1].map(|at: usize| third.far.hashed[at].load(Ordering::Relaxed));
    assert!(asked > 0 && blocks > 0 && blocks * BLOCK < counters.bytes_reread, "{asked} {blocks}: most by one hash");
    assert!(counters.bytes_repaired <= 1 << 20, "{counters:?}: only what differs is sent");
    third.stop();
    let replica = place.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
    assert!(restored(&replica, &When::Label(label("second")), "disk") == at_second);
    assert!(restored(&replica, &When::Lsn { timeline: None, lsn: marked }, "disk") == at_first);
}

#[test]
fn disks_join_grow_and_leave_at_the_other_end_too() {
    let place = Place::new();
    let (mut one, mut two) = (place.make_source("one", 2), place.make_source("two", 3));
    let chain = start(&place, &["one"]);
    chain.seeded();
    let mut client = ControlClient::connect(&place.replica()).unwrap();
    let add = Request::AddDisk { name: "two".into(), source: place.source("two") };
    let added: DiskChanged = client.call(&add).unwrap();
    assert_eq!(added.disk.name, "two");
    let status = || chain.far.keeper().host().unwrap().status().unwrap();
    wait_for("the copy of the second disk", || status().disks.iter().all(|disk| !disk.incomplete));
    chain.write("two", &mut two, 0, noise(9, 4096));
    chain.write("one", &mut one, 8192, noise(10, 4096));
    let size = DISK + (4 << 20);
    std::fs::File::options().write(true).open(place.source("two")).unwrap().set_len(size as u64).unwrap();
    two.resize(size, 0);
    let grown = Request::ResizeDisk { name: "two".into(), size: None, force: false };
    client.call::<DiskChanged>(&grown).unwrap();
    chain.write("two", &mut two, DISK + 4096, noise(11, 4096));
    chain.protection.mark(&label("both")).unwrap();
    client.call::<DiskChanged>(&Request::RemoveDisk { name: "one".into() }).unwrap();
    drop(client);
    chain.stop();
    let replica = place.load();
    let both = When::Label(label("both"));
    assert!(restored(&replica, &both, "one") == one);
    assert!(restored(&replica, &both, "two") == two);
    assert!(restored(&replica, &When::Latest, "two") == two);
    drop(replica);
    let again = start(&place, &["two"]);
    assert_eq!(again.protection.opened().compared, Compared::Nothing);
    again.stop();
}

/// The copy is begun anew; what was recorded meanwhile is kept.
#[test]
fn a_keeper_that_is_replaced_while_the_first_copy_is_made_gets_it_again() {
    let place = Place::new();
    let mut model = place.make_source("disk", 8);
    let chain = start(&place, &["disk"]);
    let timeline = chain.protection.opened().timeline;
    let done = || chain.protection.progress().done.load(Ordering::Relaxed);
    for round in 0..2 {
        wait_for("a part of the copy", || done() > 3 << 20);
        chain.write("disk", &mut model, round << 20, noise(20 + round as u64, 8192));
        let seen = chain.protection.status().durable;
        assert!(chain.far.replace(&place, timeline, seen) >= seen);
        wait_for("the copy to begin again", || done() <= 3 << 20);
    }
    chain.seeded();
    assert_eq!(done(), DISK as u64);
    chain.write("disk", &mut model, 3 << 20, noise(30, 8192));
    chain.protection.mark(&label("whole")).unwrap();
    chain.stop();
    let replica = place.load();
    assert!(restored(&replica, &When::Label(label("whole")), "disk") == model);
    assert_eq!(replica.catalogue().trunk().unwrap().timeline, timeline);
}

/// What nobody knows, and what is no call, is answered as that.
#[test]
fn calls_that_are_none_are_refused_by_what_is_wrong_with_them() {
    let place = Place::new();
    let keeper = Keeper::new(Home::acquire(&place.source("nothing")).unwrap(), KeeperOptions::default());
    let calls = calls(&keeper, &Weak::new());
    let ask = |kind: u16, header: &str| {
        calls.answer(&Call { kind, header: Bytes::from(header.to_owned()), tail: Bytes::new() })
    };
    for kind in [0, 18, 33, 39, 64, 65, 68, 69, u16::MAX] {
        assert_eq!(ask(kind, "null").status, CallStatus::UnknownKind, "{kind}");
    }
    for kind in CallKind::ALL.into_iter().filter(|kind| kind.is_of_filter()) {
        let answers = ["", "{", "[1,2", "7", "{\"disk\":0}"].map(|header| ask(kind as u16, header));
        let told = |answer: &Answer| matches!(answer.status, CallStatus::Done | CallStatus::Refused);
        assert!(answers.iter().all(told), "{kind:?}: {answers:?}");
    }
    let long = ask(CallKind::Find as u16, &format!("\"{}\"", "x".repeat(1 << 20)));
    let problem: report::Problem = serde_json::from_slice(&long.header).unwrap();
    assert_eq!((long.status, problem.code.as_str()), (CallStatus::Refused, "call"));
    assert!(ask(CallKind::Find as u16, r#"{"name":null,"policy":{},"witness":null}"#).header == "null", "nothing yet");
}

/// A log that came back from another replica's life says nothing of this one.
#[test]
fn the_log_of_another_replica_is_not_believed() {
    let place = Place::new();
    place.make_source("disk", 4);
    let first = start(&place, &["disk"]);
    first.seeded();
    first.protection.mark(&label("one")).unwrap();
    first.stop();
    let log = place.state().join("state/activity.log");
    let stale = std::fs::read(&log).unwrap();
    std::fs::remove_dir_all(place.replica()).unwrap();
    let second = start(&place, &["disk"]);
    assert!(!second.protection.opened().resumed);
    second.seeded();
    second.protection.mark(&label("two")).unwrap();
    second.stop();
    std::fs::write(&log, stale).unwrap();
    let third = start(&place, &["disk"]);
    let opened = third.protection.opened();
    assert_eq!((opened.resumed, opened.clean, opened.compared), (true, false, Compared::Everything));
    third.let_go();
}

/// The manifest's last word comes once, whoever asks how often; and a keeper has one filter.
#[test]
fn a_keeper_is_of_one_filter_and_closes_once() {
    let place = Place::new();
    place.make_source("disk", 6);
    let chain = start(&place, &["disk"]);
    chain.seeded();
    let again = chain.far.keeper().find(&Find::default()).unwrap_err();
    assert_eq!(again.code, "begun");
    chain.protection.mark(&label("last")).unwrap();
    let keeper = chain.far.keeper();
    let summary = chain.protection.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained && summary.points > 0, "{summary:?}");
    assert_eq!(keeper.close(&Close { clean: false }), Closed::Stored, "it is closed, and was cleanly");
    chain.let_go();
    assert!(place.load().manifest().clean);
    assert_eq!(keeper.close(&Close { clean: true }), Closed::Failed, "who let go of the directory says nothing of it");
    let fresh = Keeper::new(Home::acquire(&place.replica()).unwrap(), KeeperOptions::default());
    assert_eq!(fresh.reach(Reach { lsn: Lsn(1) }), Reached { reached: false });
    assert_eq!(fresh.group().unwrap_err().code, "not-begun");
    let named = Find { name: Some("another".into()), ..Find::default() };
    assert_eq!(fresh.find(&named).unwrap_err().code, "other-name");
    let found = fresh.find(&Find::default()).unwrap().unwrap();
    assert!(found.clean && found.open.is_some() && found.disks.len() == 1, "{found:?}");
}

/// What was acknowledged is there, what was not comes again: no gap, no other timeline, and the guest is not asked.
#[test]
fn a_keeper_that_is_replaced_under_load_goes_on_where_its_journal_ends() {
    let place = Place::new();
    let mut model = place.make_source("disk", 7);
    let chain = start(&place, &["disk"]);
    chain.seeded();
    let timeline = chain.protection.opened().timeline;
    chain.protection.mark(&label("before")).unwrap();
    let at_before = model.clone();
    let mut step = 0;
    let mut load = |chain: &Chain, model: &mut Vec<u8>, writes: u64| {
        for _ in 0..writes {
            step += 1;
            chain.write("disk", model, (step * 37 % 5000) as usize * 4096, noise(step, 8192));
        }
    };
    for round in 0..5 {
        load(&chain, &mut model, 200);
        let seen = chain.protection.status().durable;
        let have = std::thread::scope(|scope| {
            let replaced = scope.spawn(|| chain.far.replace(&place, timeline, seen));
            load(&chain, &mut model, 200);
            replaced.join().unwrap()
        });
        assert!(have >= seen, "round {round}: {have} is there, {seen} was acknowledged");
    }
    chain.protection.mark(&label("after")).unwrap();
    let at_after = model.clone();
    load(&chain, &mut model, 10);
    chain.stop();
    let replica = place.load();
    let trunk = replica.catalogue().trunk().unwrap();
    assert_eq!((trunk.timeline, trunk.gaps()), (timeline, &[][..]));
    assert!(restored(&replica, &When::Latest, "disk") == model);
    assert!(restored(&replica, &When::Label(label("after")), "disk") == at_after);
    assert!(restored(&replica, &When::Label(label("before")), "disk") == at_before);
}
