//! Calls and seeds that nobody means: who is let in can say what he likes, and costs nobody but himself anything.

use crate::dice::Dice;
use crate::kit::{DISK, Sites, far_options, label, noise, settled, stop, write};
use bytes::Bytes;
use cdp_core::link::message::{Answer, Call, CallStatus};
use cdp_core::types::{BLOCK, DISK_MAX, DiskId, Extent, Lsn};
use cdp_core::when::When;
use cdp_net::far::{
    CallKind, Caller, Far, Frames, Lends, Near, OpenView, ReadName, Remote, SeedBegin, SeedBegun, SeedHandle, SeedWay,
    Standing, ViewName, ViewRange, Wire, WriteHow, WriteView, header,
};
use cdp_net::services::far_link::FarLink;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Passes on what a filter asks, and keeps it.
struct Overheard {
    link: Arc<FarLink>,
    calls: Mutex<BTreeMap<u16, Call>>,
    /// First copies so far, if they are to be strange.
    strange: Option<AtomicU64>,
}

impl Overheard {
    fn new(link: Arc<FarLink>) -> Self {
        Self { link, calls: Mutex::default(), strange: None }
    }
}

/// Gives seeds that nobody means, of another kind in each attempt at the copy.
struct StrangeWay {
    way: Box<dyn SeedWay>,
    attempt: u64,
    at: u64,
    size: u64,
}

impl SeedWay for StrangeWay {
    fn data(&mut self, data: Vec<Bytes>, lsn: Lsn) -> bool {
        let begin = self.at;
        let whole = Bytes::from(data.concat());
        self.at += whole.len() as u64;
        match self.attempt {
            // All that a disk may have, of which this one has a little.
            0 => self.way.zeros(DISK_MAX - begin, lsn),
            1 => self.way.zeros(self.size - begin + BLOCK, lsn),
            // Ends within a block.
            2 => self.way.data(vec![whole.slice(..512)], lsn),
            // Reaches beyond the disk's end.
            3 if self.at == self.size => {
                let (right, last) = (whole.len() - BLOCK as usize, Bytes::from(vec![9; 2 * BLOCK as usize]));
                self.way.data(vec![whole.slice(..right)], lsn) && self.way.data(vec![last], lsn)
            }
            _ => self.way.data(vec![whole], lsn),
        }
    }

    fn zeros(&mut self, length: u64, lsn: Lsn) -> bool {
        self.at += length;
        self.way.zeros(length, lsn)
    }

    fn flush(&mut self) -> bool {
        self.way.flush()
    }
}

impl Caller for Overheard {
    fn call(&self, call: Call) -> Answer {
        self.calls.lock().unwrap().insert(call.kind, call.clone());
        self.link.call(call)
    }
}

impl Wire for Overheard {
    fn frames(&self) -> Frames {
        self.link.frames()
    }
    fn lends(&self) -> Lends {
        self.link.lends()
    }
    fn listen(&self, near: Option<Arc<dyn Near>>) {
        self.link.listen(near);
    }
    fn patience(&self, patience: Duration) {
        self.link.patience(patience);
    }

    fn next_seed(&self) -> u64 {
        self.link.next_seed()
    }
    fn seed(&self, seed: &SeedBegin, begun: &SeedBegun, handle: SeedHandle) -> Box<dyn SeedWay> {
        let way = self.link.seed(seed, begun, handle);
        let Some(strange) = &self.strange else { return way };
        let attempt = strange.fetch_add(1, Ordering::Relaxed);
        Box::new(StrangeWay { way, attempt, at: begun.position, size: seed.size })
    }
    fn standing(&self) -> Standing {
        self.link.standing()
    }
    fn failure(&self) -> Option<String> {
        self.link.failure()
    }
    fn broken(&self) -> Option<String> {
        self.link.broken()
    }
}

/// Every call that a filter makes in its life, and those of one who reads.
fn all_calls(sites: &Sites) -> Vec<Call> {
    let link = FarLink::start(sites.identity("stranger"), far_options(&[sites.host.address], &sites.identity("host")));
    let heard = Arc::new(Overheard::new(link.unwrap()));
    let mut model = sites.place.make_source("theirs", 3);
    let far: Arc<dyn Far> = Arc::new(Remote::new(Arc::clone(&heard) as _));
    let options = sites.place.options_for_far(&["theirs"]);
    let protection = sites.place.protect(&options, &far, |_| {}).unwrap();
    settled(&protection);
    write(&protection, &mut model, 4096, noise(4, 64 << 10));
    protection.mark(&label("one")).unwrap();
    stop(protection);
    let mut calls: Vec<Call> = heard.calls.lock().unwrap().values().cloned().collect();
    let (view, disk) = (ReadName::draw(), DiskId::new(1).unwrap());
    let range = Extent::new(0, 64 << 10);
    let mut ask = |kind: CallKind, question: &dyn erased::Header, tail: &'static [u8]| {
        calls.push(Call { kind: kind as u16, header: question.header(), tail: Bytes::from_static(tail) });
    };
    let at = Some("latest".parse().unwrap());
    let open = OpenView { view, at, nearest: None, disk: None, writable: true, session: Some("theirs".into()) };
    ask(CallKind::OpenView, &open, b"");
    ask(CallKind::ReadView, &ViewRange { view, disk, range }, b"");
    ask(CallKind::Extents, &ViewRange { view, disk, range }, b"");
    let one = Extent::new(0, 512);
    let written = WriteView { view, disk, range: one, how: WriteHow::Data, fua: true, number: 1, settled: 0 };
    ask(CallKind::WriteView, &written, &[7; 512]);
    ask(CallKind::TouchView, &ViewName { view }, b"");
    ask(CallKind::CloseView, &ViewName { view }, b"");
    calls
}

mod erased {
    use super::header;
    use bytes::Bytes;

    /// Whatever a call's header is made of.
    pub(super) trait Header {
        fn header(&self) -> Bytes;
    }

    impl<T: serde::Serialize> Header for T {
        fn header(&self) -> Bytes {
            header(self).unwrap()
        }
    }
}

/// Something that nobody would say there.
fn strange(dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => Value::Null,
        1 => true.into(),
        2 => 0.into(),
        3 => u64::MAX.into(),
        4 => i64::MIN.into(),
        5 => (1u64 << dice.below(64)).into(),
        6 => 1e308.into(),
        7 => "".into(),
        8 => "../../\0\u{202e}".into(),
        9 => "x".repeat(dice.below(4096) as usize).into(),
        10 => vec![Value::from(511); dice.below(300) as usize].into(),
        _ => serde_json::json!({ "x": {} }),
    }
}

/// One of the values in it becomes a strange one.
fn spoil(value: &mut Value, dice: &mut Dice) {
    let deeper = match value {
        Value::Array(items) if !items.is_empty() => {
            let at = dice.below(items.len() as u64) as usize;
            items.get_mut(at)
        }
        Value::Object(items) if !items.is_empty() => {
            let at = dice.below(items.len() as u64) as usize;
            items.values_mut().nth(at)
        }
        _ => None,
    };
    match deeper.filter(|_| !dice.permille(100)) {
        Some(deeper) => spoil(deeper, dice),
        None => *value = strange(dice),
    }
}

fn spoilt(calls: &[Call], dice: &mut Dice) -> Call {
    let mut call = calls[dice.below(calls.len() as u64) as usize].clone();
    match dice.below(8) {
        0 => call.kind = dice.below(100) as u16,
        1 => call.header = dice.bytes(dice.clone().below(300) as usize).into(),
        // Deeper than any parser would go.
        2 => call.header = Bytes::from("[".repeat(dice.below(60_000) as usize)),
        3 => call.header = call.header.slice(..dice.below(call.header.len() as u64 + 1) as usize),
        4 => call.tail = dice.bytes(dice.clone().below(64 << 10) as usize).into(),
        _ => {
            let mut value: Value = serde_json::from_slice(&call.header).unwrap();
            spoil(&mut value, dice);
            let long = serde_json::to_vec(&value).unwrap();
            call.header = long[..long.len().min(64 << 10)].to_vec().into();
        }
    }
    call
}

#[test]
fn whatever_a_call_is_made_of_it_is_answered_and_another_tenant_is_protected_meanwhile() {
    let sites = Sites::listing(&[("filter", "acme"), ("stranger", "other")]);
    let calls = all_calls(&sites);
    assert!(
        calls.len() > 15,
        "a filter makes more calls: {:?}",
        calls.iter().map(|call| call.kind).collect::<Vec<_>>()
    );
    let mut model = sites.place.make_source("disk", 1);
    std::fs::remove_dir_all(sites.place.state()).unwrap();
    let protection = sites.protect(sites.host.address, "disk").unwrap();
    settled(&protection);
    let link = FarLink::start(sites.identity("stranger"), far_options(&[sites.host.address], &sites.identity("host")));
    let link = link.unwrap();
    let mut dice = Dice::new(11);
    let mut told = BTreeMap::new();
    for round in 0..600 {
        let call = spoilt(&calls, &mut dice);
        let answer = link.call(call.clone());
        let answered = !matches!(answer.status, CallStatus::Unreachable | CallStatus::TimedOut);
        assert!(answered, "{:?} in round {round}, {:?}: {call:?}", answer.status, link.road());
        *told.entry(format!("{:?}", answer.status)).or_insert(0) += 1;
        if round % 10 == 0 {
            let at = dice.below(DISK as u64 / 4096 - 4) as usize * 4096;
            write(&protection, &mut model, at, dice.bytes(8192));
        }
    }
    eprintln!("{told:?}");
    assert!(told["Refused"] > 100 && told["UnknownKind"] > 0, "{told:?}");
    // Those who ask what can be meant are answered as ever.
    drop(link);
    settled(&protection);
    assert_eq!(std::fs::read(sites.place.source("disk")).unwrap(), model);
    stop(protection);
    let (replica, _place) = sites.load();
    assert_eq!(crate::kit::restored(&replica, &"latest".parse().unwrap(), "disk"), model);
}

#[test]
fn seeds_that_nobody_means_hold_nobody_up_and_their_copy_is_right_when_it_is_whole() {
    let sites = Sites::new();
    let mut model = sites.place.make_source("disk", 1);
    let link = FarLink::start(sites.identity("filter"), far_options(&[sites.host.address], &sites.identity("host")));
    let wire = Arc::new(Overheard { strange: Some(AtomicU64::new(0)), ..Overheard::new(link.unwrap()) });
    let far: Arc<dyn Far> = Arc::new(Remote::new(Arc::clone(&wire) as _));
    let protection = sites.place.protect(&sites.place.options_for_far(&["disk"]), &far, |_| {}).unwrap();
    settled(&protection);
    assert_eq!(wire.strange.as_ref().unwrap().load(Ordering::Relaxed), 5, "the last one is right");
    // What has its base is not copied again, however long somebody says that it is.
    let disk = DiskId::new(1).unwrap();
    for size in [DISK as u64, DISK as u64 + BLOCK, DISK_MAX + 1, u64::MAX] {
        let begun = far.seed(&SeedBegin { disk, size, first: 1 }, SeedHandle::default());
        let code = begun.err().map(|problem| problem.code);
        assert!(matches!(code.as_deref(), Some("not-uncopied" | "bounds")), "{size}: {code:?}");
    }
    write(&protection, &mut model, 4096, noise(4, 64 << 10));
    settled(&protection);
    stop(protection);
    let (replica, _place) = sites.load();
    assert!(crate::kit::restored(&replica, &When::Latest, "disk") == model);
}
