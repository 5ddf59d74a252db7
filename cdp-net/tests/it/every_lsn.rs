//! Any moment means any: at every single LSN what is restored is what a model holds that applied the records up to it.
//!
//! Two models that know nothing of each other: one applies the records as the journal gives them back, the other applies what
//! the test itself wrote, one op after another, and knows between which two LSNs each op took its place.

use crate::dice::Dice;
use crate::held::{Access, Gate, Held};
use crate::history::{self, Disks};
use crate::kit::{Place, label, seeded, wait_for};
use bytes::Bytes;
use cdp_core::journal::{Looked, look};
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::{JOURNAL_DIRECTORY, Replica, ResolveError};
use cdp_core::types::{Lsn, Timeline, WallTime};
use cdp_core::when::When;
use cdp_net::device::{Device, ZeroFlags};
use cdp_net::protect::{ProtectOptions, Protector};
use cdp_net::restore::{RestoreOptions, restore};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Small, so that looking at all of it at every LSN is quick; no multiple of anything but sectors.
const DISK: usize = (768 << 10) + 512 * 37;
const NAMES: [&str; 3] = ["one", "two", "three"];

/// What the disks held before and after each op, and the LSNs that were the last ones given then.
struct Step {
    before: Lsn,
    after: Lsn,
    disks: Disks,
}

/// Protected disks under a load of one op at a time.
struct Story {
    place: Place,
    options: ProtectOptions,
    dice: Dice,
    now: Disks,
    steps: Vec<Step>,
    marks: Vec<(String, Lsn)>,
}

impl Story {
    fn new(disks: usize, seed: u64) -> Self {
        let place = Place::new();
        let mut dice = Dice::new(seed);
        let mut contents = Vec::new();
        for name in &NAMES[..disks] {
            let mut content = dice.bytes(DISK);
            content[300 << 10..500 << 10].fill(0);
            std::fs::write(place.source(name), &content).unwrap();
            contents.push(content);
        }
        // Segments roll a few times in a run.
        let options = ProtectOptions { segment_bytes: 1 << 20, ..place.options(&NAMES[..disks]) };
        Self { place, options, dice, now: Disks::new(contents), steps: Vec::new(), marks: Vec::new() }
    }

    fn start(&self) -> Protector {
        let protector = Protector::start(&self.options, |_| {}).unwrap();
        seeded(protector.protection());
        protector
    }

    /// An extent of whole sectors: mostly small and anywhere, now and then longer than a frame.
    fn extent(&mut self) -> (usize, usize) {
        let sectors = match self.dice.below(10) {
            0..=2 => 1,
            3..=5 => 1 + self.dice.below(16),
            6 => 8,
            7 | 8 => 1 + self.dice.below(200),
            _ => 513 + self.dice.below(600),
        };
        let offset = self.dice.below((DISK / 512) as u64 - sectors + 1);
        (offset as usize * 512, sectors as usize * 512)
    }

    fn op(&mut self, protector: &Protector) {
        let which = self.dice.below(self.options.sources.len() as u64) as usize;
        let exports = protector.exports();
        let device: &dyn Device = exports[which].device.as_ref();
        let (offset, length) = self.extent();
        let range = offset..offset + length;
        let before = protector.status().lsn;
        let content = self.now.0.values_mut().nth(which).unwrap();
        let (at, long) = (offset as u64, length as u64);
        match self.dice.below(12) {
            0 => {
                device.trim(at, long, false).unwrap();
                content[range].fill(0);
            }
            1 => {
                let no_hole = self.dice.permille(500);
                device.write_zeroes(at, long, ZeroFlags { no_hole, ..ZeroFlags::default() }).unwrap();
                content[range].fill(0);
            }
            2 => device.flush().unwrap(),
            3 if self.dice.permille(300) => {
                let name = format!("mark {}", self.marks.len());
                let lsn = protector.mark(&label(&name)).unwrap();
                self.marks.push((name, lsn));
            }
            kind => {
                let data = self.dice.bytes(length);
                content[range].copy_from_slice(&data);
                device.write(at, Bytes::from(data), kind == 4).unwrap();
            }
        }
        let after = protector.status().lsn;
        self.steps.push(Step { before, after, disks: self.now.clone() });
    }

    fn ops(&mut self, protector: &Protector, count: usize) {
        (0..count).for_each(|_| self.op(protector));
    }

    /// Checks every LSN from `first` on against both models; returns how many were restorable.
    fn check_every_lsn(&self, replica: &Replica, mut model: Disks, first: Lsn) -> usize {
        let mut checked = 0;
        let mut steps = self.steps.iter().peekable();
        let mut previous = model.clone();
        for record in history::path(replica) {
            model.apply(&record);
            if record.lsn < first || replica.exact_at(record.timeline, record.lsn).is_err() {
                continue;
            }
            let found = history::at(replica, record.timeline, record.lsn);
            found.check(&model, &format_args!("LSN {} against the records", record.lsn));
            while let Some(done) = steps.next_if(|step| step.after <= record.lsn) {
                previous = done.disks.clone();
            }
            match steps.peek().filter(|step| step.before < record.lsn) {
                // Inside an op's window lie its own record and those that time brings: before it or after it.
                Some(step) => assert!(found == previous || found == step.disks, "LSN {} in an op", record.lsn),
                None => found.check(&previous, &format_args!("LSN {} against the ops", record.lsn)),
            }
            checked += 1;
        }
        assert!(steps.next().is_none(), "every op was reached");
        checked
    }
}

/// A short way to ask whether an LSN of a timeline is restorable.
trait ExactAt {
    fn exact_at(&self, timeline: Timeline, lsn: Lsn) -> Result<cdp_core::replica::catalogue::Moment, ResolveError>;
}

impl ExactAt for Replica {
    fn exact_at(&self, timeline: Timeline, lsn: Lsn) -> Result<cdp_core::replica::catalogue::Moment, ResolveError> {
        self.resolve(&When::Lsn { timeline: Some(timeline.into()), lsn })
    }
}

fn refused(replica: &Replica, when: &When) -> cdp_core::replica::catalogue::Neighbours {
    match replica.resolve(when) {
        Err(ResolveError::NotRestorable(lost)) => lost.nearest,
        other => panic!("{when} is not restorable, and gave {other:?}"),
    }
}

/// Every stamp, the nanoseconds beside it, and times between: each means what the definition says.
fn check_every_time(replica: &Replica) -> (usize, usize) {
    let records = history::path(replica);
    let mut times: Vec<u64> =
        records.iter().flat_map(|record| [-1, 0, 1].map(|by| record.stamp.time.0.saturating_add_signed(by))).collect();
    times.extend(records.windows(2).map(|pair| pair[0].stamp.time.0.midpoint(pair[1].stamp.time.0)));
    times.extend([
        0,
        records[0].stamp.time.0 - 3_600_000_000_000,
        records.last().unwrap().stamp.time.0 + 3_600_000_000_000,
    ]);
    let restorable: Vec<bool> =
        records.iter().map(|record| replica.exact_at(record.timeline, record.lsn).is_ok()).collect();
    let mut counts = (0, 0);
    for time in times {
        let when = When::Time(WallTime(time));
        // The order of stamps is the order of records: the clock does not step in a test.
        let upto = records.partition_point(|record| record.stamp.time.0 <= time);
        // Behind the last record of a range a time means something that is not known, though its LSN would be the same.
        let inside = |at: usize| records[at].stamp.time.0 == time || restorable.get(at + 1) == Some(&true);
        // Of records with one stamp some may lie behind the end of their range.
        let same = (0..upto).rev().take_while(|at| *at + 1 == upto || records[*at].stamp.time.0 == time);
        let meant = same.filter(|at| restorable[*at] && inside(*at)).max();
        match meant {
            Some(at) => {
                let expected = (records[at].timeline, records[at].lsn);
                let moment = replica.resolve(&when).unwrap_or_else(|lost| panic!("{when} means {expected:?}: {lost}"));
                assert_eq!((moment.timeline, moment.lsn, moment.stamp), (expected.0, expected.1, records[at].stamp));
                // As a person would type it.
                let typed: When = WallTime(time).to_string().parse().unwrap();
                assert_eq!(replica.resolve(&typed).unwrap(), moment);
                counts.0 += 1;
            }
            None => {
                let nearest = refused(replica, &when);
                let sides = [nearest.before, nearest.after];
                for moment in sides.iter().flatten() {
                    assert!(replica.exact_at(moment.timeline, moment.lsn).is_ok(), "{moment:?} is named as restorable");
                }
                assert!(nearest.before.is_none_or(|moment| moment.stamp.time.0 <= time), "{when}: {nearest:?}");
                assert!(nearest.after.is_none_or(|moment| moment.stamp.time.0 >= time), "{when}: {nearest:?}");
                counts.1 += 1;
            }
        }
    }
    counts
}

/// The first restorable moment of a replica: the end of its seeding.
fn first_moment(replica: &Replica) -> Lsn {
    replica.catalogue().branches()[0].ranges()[0].from()
}

#[test]
fn every_lsn_and_every_time_of_a_run_is_what_the_records_say() {
    let mut story = Story::new(1, 11);
    let initial = story.now.clone();
    let protector = story.start();
    story.ops(&protector, 330);
    assert!(protector.stop(Duration::from_secs(30), &|| false).drained);
    let replica = story.place.load();
    let checked = story.check_every_lsn(&replica, initial, first_moment(&replica));
    assert!(checked >= 300, "{checked} LSNs");
    let (inside, outside) = check_every_time(&replica);
    assert!(inside >= 900 && outside >= 3, "{inside} times restorable, {outside} not");
    for (name, lsn) in &story.marks {
        assert_eq!(replica.resolve(&When::Label(label(name))).unwrap().lsn, *lsn);
    }
    assert!(!story.marks.is_empty());
}

#[test]
fn what_restore_writes_is_what_the_view_shows() {
    let mut story = Story::new(2, 12);
    let protector = story.start();
    story.ops(&protector, 60);
    assert!(protector.stop(Duration::from_secs(30), &|| false).drained);
    let replica = story.place.load();
    let output = story.place.directory.path().join("restored");
    std::fs::create_dir(&output).unwrap();
    for step in story.steps.iter().step_by(7) {
        let moment = replica.resolve(&When::Lsn { timeline: None, lsn: step.after }).unwrap();
        let view = replica.view(moment.timeline, moment.lsn).unwrap();
        let options = RestoreOptions { output: output.clone(), disk: None, force: true };
        restore(&view, &options, &mut |_, _| true).unwrap();
        let files = NAMES[..2].iter().map(|name| std::fs::read(output.join(format!("{name}.img"))).unwrap());
        Disks::new(files).check(&step.disks, &format_args!("restore of LSN {}", step.after));
    }
}

#[test]
fn all_disks_of_a_group_are_restored_to_the_same_lsn() {
    for disks in [2, 3] {
        let mut story = Story::new(disks, 20 + disks as u64);
        let initial = story.now.clone();
        let protector = story.start();
        story.ops(&protector, 120);
        assert!(protector.stop(Duration::from_secs(30), &|| false).drained);
        let replica = story.place.load();
        assert!(story.check_every_lsn(&replica, initial, first_moment(&replica)) >= 100);
    }
}

#[test]
fn every_lsn_stays_restorable_over_clean_and_unclean_restarts() {
    let mut story = Story::new(2, 31);
    let initial = story.now.clone();
    let first = story.start();
    story.ops(&first, 60);
    assert!(first.stop(Duration::from_secs(30), &|| false).drained);
    let second = story.start();
    assert!(second.opened().clean);
    story.ops(&second, 60);
    let kept = second.mark(&label("kept")).unwrap();
    let old = second.opened().timeline;
    story.ops(&second, 20);
    // What a crash leaves, without the crash of the whole test.
    drop(second);
    let third = story.start();
    assert!(!third.opened().clean);
    let new = third.opened().timeline;
    story.ops(&third, 60);
    assert!(third.stop(Duration::from_secs(30), &|| false).drained);

    let replica = story.place.load();
    let fork = replica.catalogue().branch(new).unwrap().fork;
    assert!(fork >= kept);
    // Ops behind the fork have no record; the new timeline begins with what they left on the disks.
    let begin = replica.catalogue().branch(new).unwrap().ranges()[0].from();
    let checked = story.check_every_lsn(&replica, initial, first_moment(&replica));
    assert!(checked >= 150, "{checked}");
    check_every_time(&replica);

    for lsn in [fork.next(), Lsn(fork.0.midpoint(begin.0)), begin.prev()] {
        let nearest = refused(&replica, &When::Lsn { timeline: None, lsn });
        let (before, after) = (nearest.before.unwrap(), nearest.after.unwrap());
        assert_eq!((before.timeline, after.timeline, after.lsn), (old, new, begin));
        assert!(before.lsn <= fork);
    }
}

/// The first time behind a write that never ended means that write, or one after it: none of them can be restored.
#[test]
fn a_time_behind_a_write_that_was_in_flight_is_not_restorable() {
    let mut story = Story::new(1, 41);
    let gate = Gate::new();
    let wrap = |_, inner| Held::over(inner, &gate, |access| access == Access::Write(0));
    let first = Protector::start_over(&story.options, wrap, |_| {}).unwrap();
    seeded(first.protection());
    story.ops(&first, 10);
    let settled = first.mark(&label("settled")).unwrap();
    gate.close();
    let device = Arc::clone(&first.exports()[0].device);
    let begun = first.status().lsn;
    let in_flight = {
        let device = Arc::clone(&device);
        std::thread::spawn(move || device.write(0, Bytes::from(vec![1; 512]), false).unwrap())
    };
    wait_for("the write to be in flight", || first.status().lsn > begun);
    std::thread::sleep(Duration::from_millis(3));
    for at in 1..=20u64 {
        device.write(at * 4096, Bytes::from(vec![2; 4096]), false).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    let last = first.status().lsn;
    wait_for("the writes behind it to be durable", || first.status().durable >= last.prev());
    let under_owner = check_under_owner(&first);
    assert!(under_owner.lsn >= settled && under_owner.lsn <= begun);
    drop(device);
    drop(first);
    gate.open();
    in_flight.join().unwrap();
    check_every_time(&story.place.load());
    let second = story.start();
    assert!(second.stop(Duration::from_secs(30), &|| false).drained);
    check_every_time(&story.place.load());
}

/// What the owner itself answers, for every time of what it has.
fn check_under_owner(protector: &Protector) -> cdp_core::replica::catalogue::Moment {
    let replica = protector.host().replica();
    check_every_time(&replica);
    replica.resolve(&When::Latest).unwrap()
}

/// Somebody else reads the files while the protector writes them: what the owner vouches for is there, and stays what it was.
#[test]
fn a_second_reader_sees_every_moment_while_the_protector_runs() {
    let mut story = Story::new(2, 51);
    let initial = story.now.clone();
    let protector = story.start();
    let stop = AtomicBool::new(false);
    let directory = story.place.replica();
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let storage: Arc<dyn Storage> = Arc::new(Disk::open(&directory).unwrap());
            let mut dice = Dice::new(52);
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let Ok(latest) = protector.host().moment(&When::Latest, None) else { continue };
                let safe = latest.lsn;
                let looked = look(storage.as_ref(), JOURNAL_DIRECTORY, None).unwrap();
                let Looked { manifest, snapshot, damage, .. } = looked;
                assert!(damage.is_none(), "{damage:?}");
                let replica = Replica::load(Arc::clone(&storage), manifest, snapshot, safe).unwrap();
                let latest = replica.resolve(&When::Latest).unwrap();
                assert_eq!(latest.lsn, safe, "what the owner says can be restored is there");
                let first = first_moment(&replica);
                let lsn = Lsn(first.0 + dice.below(latest.lsn.0 - first.0 + 1));
                seen.push((lsn, history::at(&replica, latest.timeline, lsn)));
            }
            seen
        });
        story.ops(&protector, 300);
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(protector.stop(Duration::from_secs(30), &|| false).drained);
    assert!(!seen.is_empty());
    let replica = story.place.load();
    let timeline = replica.catalogue().trunk().unwrap().timeline;
    let mut model = initial;
    let mut seen_by_lsn: std::collections::BTreeMap<Lsn, Vec<Disks>> = std::collections::BTreeMap::new();
    seen.into_iter().for_each(|(lsn, disks)| seen_by_lsn.entry(lsn).or_default().push(disks));
    for record in history::records(&replica, timeline) {
        model.apply(&record);
        for disks in seen_by_lsn.remove(&record.lsn).into_iter().flatten() {
            disks.check(&model, &format_args!("LSN {} as it was seen by a second reader", record.lsn));
        }
    }
    assert!(seen_by_lsn.is_empty(), "LSNs without a record: {:?}", seen_by_lsn.keys().collect::<Vec<_>>());
}
