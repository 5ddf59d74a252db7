//! Every LSN that was called durable before a kill, looked at after it: it holds exactly the writes up to it.

use crate::Dice;
use crate::drill::{Drill, Found};
use crate::ledger::{self, LEDGER, LEDGER_AT, Name, Round, first_difference};
use crate::number;
use cdp_core::trust::KeyHolder;
use cdp_core::types::{DiskId, Lsn, Timeline};
use cdp_core::when::{TimelineName, When};
use cdp_net::owner::{Access, ControlClient, Request};
use cdp_net::reading::Reading;
use cdp_net::report::{At, Status};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The last LSN that was given, as the owner told it.
struct Given {
    /// Writes that were answered by then have no higher one.
    asked: Instant,
    lsn: Lsn,
    /// Writes that were sent later have no lower one, nor this one.
    heard: Instant,
}

/// What the owner said while it lived.
#[derive(Default)]
struct Told {
    timeline: Option<TimelineName>,
    /// The highest LSN that was called durable.
    durable: Lsn,
    /// The last LSN at a time between two others.
    given: Vec<Given>,
}

impl Told {
    /// Asks until told to stop, or until nobody answers.
    fn listen(directory: &Path, stop: &AtomicBool) -> Self {
        let mut told = Self::default();
        let Ok(mut client) = ControlClient::connect(directory) else { return told };
        while !stop.load(Ordering::SeqCst) {
            let asked = Instant::now();
            let Ok(status) = client.call::<Status>(&Request::Status) else { break };
            told.timeline = status.timeline;
            told.durable = told.durable.max(status.durable_lsn);
            told.given.push(Given { asked, lsn: status.lsn, heard: Instant::now() });
            let ranges = status.ranges.iter().filter(|range| Some(range.timeline) == status.timeline);
            let restorable = ranges.map(|range| range.to_lsn).max().unwrap_or(Lsn::ZERO);
            assert!(restorable <= status.durable_lsn, "{status:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        told
    }

    /// The same with marks, which are called durable by being answered.
    fn mark(directory: &Path, round: u64, stop: &AtomicBool) -> Self {
        let mut told = Self::default();
        let Ok(mut client) = ControlClient::connect(directory) else { return told };
        while !stop.load(Ordering::SeqCst) {
            let (asked, label) = (Instant::now(), format!("mark {} of {round}", told.given.len()));
            let mark = Request::Mark { label: label.parse().unwrap(), app_consistent: false };
            let Ok(at) = client.call::<At>(&mark) else { break };
            told.given.push(Given { asked, lsn: at.lsn, heard: Instant::now() });
            told.durable = at.lsn;
        }
        told
    }

    fn and(mut self, other: Self) -> Self {
        self.timeline = self.timeline.or(other.timeline);
        self.durable = self.durable.max(other.durable);
        self.given.extend(other.given);
        self
    }
}

/// Which moments hold which writes.
struct Walk<'a> {
    round: &'a Round,
    told: &'a Told,
    model: Vec<u8>,
    /// How far each writer is, and whether one more op of it may be there unseen.
    reached: Vec<(usize, bool)>,
}

impl<'a> Walk<'a> {
    fn begin(round: &'a Round, told: &'a Told, content: Vec<u8>) -> Self {
        let reached = round.recognise(&content);
        round.check_shared(&content, &reached);
        let walk = Self { round, told, model: content, reached };
        for (writer, (number, _)) in walk.reached.iter().enumerate() {
            walk.check_order(Name { writer, number: *number });
        }
        walk
    }

    /// The next LSN holds what the one before held and one write more, or none. Which one.
    fn step(&mut self, lsn: Lsn, content: &[u8]) -> Option<Name> {
        let next = self.round.next_op(&self.model, content, &self.reached);
        if let Some(name) = next {
            let (last, unseen) = self.reached[name.writer];
            let expected = name.number == last + 1 || (unseen && name.number == last + 2);
            assert!(expected && self.round.op(name).is_some(), "{name:?} at {lsn} follows {last}");
            self.round.apply(name, &mut self.model);
            self.reached[name.writer] = (name.number, false);
            self.check_order(name);
        }
        let differs = first_difference(&self.model, content);
        assert_eq!(differs, None, "at {lsn}, with {next:?}: the ledger differs from there on");
        next
    }

    /// Every op that was over before this one was sent is there.
    fn check_order(&self, name: Name) {
        let Some(op) = self.round.op(name) else { return };
        self.check_answered(op.sent, &format_args!("{name:?}"));
    }

    /// Every op that was answered before `by` is there.
    fn check_answered(&self, by: Instant, what: &dyn std::fmt::Display) {
        for (writer, (last, unseen)) in self.reached.iter().enumerate() {
            let missing = Name { writer, number: last + 1 + usize::from(*unseen) };
            let answered = self.round.op(missing).and_then(|op| op.answered);
            assert!(
                answered.is_none_or(|answered| answered >= by),
                "{what} is there, and {missing:?} before it is not"
            );
        }
    }

    /// Every op is there that was answered before somebody asked for this LSN, and none that was sent after that was heard.
    fn check_given(&self, lsn: Lsn) {
        for given in self.told.given.iter().filter(|given| given.lsn == lsn) {
            self.check_answered(given.asked, &format_args!("LSN {lsn}"));
            for (writer, (number, _)) in self.reached.iter().enumerate() {
                let name = Name { writer, number: *number };
                let sent = self.round.op(name).map(|op| op.sent);
                assert!(
                    sent.is_none_or(|sent| sent < given.heard),
                    "{name:?} is in LSN {lsn}, which was given before it"
                );
            }
        }
    }
}

/// What was looked at.
#[derive(Default)]
struct Seen {
    lsns: u64,
    writes: u64,
    /// Of the journal's last ones: behind a write that had not ended at the source when the last frame was closed. Their
    /// content is right, nobody called them durable, and nobody is offered them.
    unsettled: u64,
}

/// Looks at the last `count` LSNs that were called durable, and at what the journal has beyond. `alone`: nobody else wrote.
fn look_at_every_lsn(directory: &Path, round: &Round, told: &Told, count: u64, alone: bool) -> Seen {
    let access = Access::open(directory, Duration::from_secs(10)).unwrap();
    let reading = Reading::open(directory, access, &When::Latest, None, &KeyHolder::default()).unwrap();
    let replica = &reading.replica;
    let branches = replica.catalogue().branches();
    let is_killed = |timeline: &Timeline| told.timeline.is_some_and(|name| name.matches(timeline));
    let killed = branches.iter().find(|branch| is_killed(&branch.timeline)).unwrap();
    let last = branches.iter().find(|branch| branch.parent == Some(killed.timeline)).unwrap().fork;
    assert!(last >= told.durable, "{} was called durable, and the next timeline forks at {last}", told.durable);
    let content = |lsn: Lsn| {
        let mut content = vec![0; LEDGER];
        let view = replica.view(killed.timeline, lsn).unwrap();
        view.read(DiskId::new(1).unwrap(), LEDGER_AT, &mut content).unwrap();
        content
    };
    let is_restorable = |lsn| replica.resolve(&When::Lsn { timeline: Some(killed.timeline.into()), lsn }).is_ok();
    let first = killed.ranges()[0].from().max(Lsn((told.durable.0 + 1).saturating_sub(count)));
    let mut walk = Walk::begin(round, told, content(first));
    walk.check_given(first);
    let mut seen = Seen { lsns: 1, ..Seen::default() };
    // The write that keeps what is behind it from being restorable, and when the newest write was sent.
    let (mut in_flight, mut newest) = (None, None);
    for lsn in (first.0 + 1..=last.0).map(Lsn) {
        let name = walk.step(lsn, &content(lsn));
        walk.check_given(lsn);
        let restorable = is_restorable(lsn);
        assert!(restorable || lsn > told.durable, "LSN {lsn} was called durable, up to {}", told.durable);
        if !restorable && in_flight.is_none() {
            in_flight = Some(name);
        }
        let sent = name.and_then(|name| round.op(name)).map(|op| op.sent);
        newest = newest.max(sent);
        seen.lsns += 1;
        seen.writes += u64::from(name.is_some());
        seen.unsettled += u64::from(!restorable);
    }
    // All that the journal has is restorable but for that.
    if let Some(name) = in_flight.filter(|name| alone || name.is_some()) {
        let op = name.and_then(|name| round.op(name)).expect("only a write keeps others from being restorable");
        let over = op.answered.filter(|answered| newest.is_some_and(|newest| *answered < newest));
        assert!(over.is_none(), "{name:?} was over before the newest write was sent, and is not restorable");
    }
    seen
}

fn ledger_of(source: &Path) -> Vec<u8> {
    let mut content = vec![0; LEDGER];
    std::fs::File::open(source).unwrap().read_exact_at(&mut content, LEDGER_AT).unwrap();
    content
}

#[test]
fn every_lsn_that_was_called_durable_holds_the_writes_up_to_it() {
    let (kills, lsns, seed) = (number("CDP_LSN_KILLS", 4), number("CDP_LSNS", 200), number("CDP_KILL_SEED", 1));
    eprintln!("CDP_LSN_KILLS={kills} CDP_LSNS={lsns} CDP_KILL_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut drill = Drill::new(seed);
    let (directory, source) = (drill.path("replica"), drill.path("disk"));
    drill.check(&[Found::Nothing]);
    let mut recognised = 0;
    for kill in 1..=kills {
        let mut protection = drill.start();
        let uri = protection.ready();
        drill.wait_for("protecting");
        let writing = ledger::begin(&uri, kill, seed, ledger_of(&source));
        // Now and then others write elsewhere.
        let load = (dice.below(3) == 0).then(|| drill.writers.begin(&uri));
        let stop = AtomicBool::new(false);
        let told = std::thread::scope(|scope| {
            let listening = scope.spawn(|| Told::listen(&directory, &stop));
            let marking = scope.spawn(|| Told::mark(&directory, kill, &stop));
            std::thread::sleep(Duration::from_millis(300 + dice.below(900)));
            protection.kill();
            stop.store(true, Ordering::SeqCst);
            listening.join().unwrap().and(marking.join().unwrap())
        });
        let round = writing.end();
        let alone = load.is_none();
        load.into_iter().for_each(|load| drill.writers.end_with_server(load));
        drill.check_source();
        round.check_source(&ledger_of(&source));
        let timeline = told.timeline.expect("it was asked before it was killed").to_string();
        drill.promised.push((timeline, told.durable.0));
        drill.check(&[Found::Killed]);
        let seen = look_at_every_lsn(&directory, &round, &told, lsns, alone);
        let sent: usize = round.ops.iter().map(Vec::len).sum();
        let Seen { lsns, writes, unsettled } = seen;
        eprintln!(
            "kill {kill}: {sent} ops were sent, {} answers; looked at {lsns} LSNs with {writes} writes, {unsettled} unsettled",
            told.given.len()
        );
        // On a busy machine a kill may come before anything was durable, not all of them.
        recognised += writes;
    }
    assert!(recognised > 0, "nothing was durable");
}
