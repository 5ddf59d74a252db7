//! What merges leave, looked at from close by: what is kept beside the bases, what is damaged, and where a kept moment is found.

use super::corruption::{damage_one_of, read};
use super::kit::*;
use super::points::check::{Found, check};
use super::points::life::{Life, NOW, Outcome};
use super::points::step::{Kind, Record, Step};
use cdp_core::journal::{StampedMoment, WriterState};
use cdp_core::media::{Memory, Storage};
use cdp_core::replica::merge::{Merge, MergeError};
use cdp_core::replica::{Replica, ReplicaView, kept, retention};
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use cdp_core::when::When;
use std::collections::BTreeSet;
use std::sync::Arc;

/// So many records of any place, sealed and durable.
fn write(life: &mut Life, dice: &mut Dice, records: u64) {
    let record = |_| {
        let kind = if dice.below(6) == 0 { Kind::Discard } else { Kind::Data(dice.next() as u8) };
        Record { disk: dice.next() as u8, sector: dice.next() as u16, sectors: 1 + dice.below(30) as u8, kind }
    };
    let records = (0..records).map(record).collect();
    life.play(&Step::Write { records, roll: true, wait: true }).unwrap();
}

/// Every file of the directory, also of the stores inside it.
fn contents(storage: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let of = |directory: &str| {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let names = storage.list(directory).unwrap_or_default().into_iter();
        names.map(|name| format!("{prefix}{name}")).collect::<Vec<_>>()
    };
    let mut names: Vec<_> = of("").into_iter().chain(of("journal")).chain(of("base")).collect();
    names.extend(of("kept").iter().flat_map(|directory| of(directory)));
    let read = |name: String| {
        let file = storage.open(&name, false).ok()?;
        let mut bytes = vec![0; file.len().ok()? as usize];
        file.read_exact_at(0, &mut bytes).ok()?;
        Some((name, bytes))
    };
    names.into_iter().filter_map(read).collect()
}

/// Blocks that say a secret are in a base, then changed in parts while their moment is kept: nothing of it is plain in any file, in
/// the midst of the merge too; and a block that is torn then is read from where the merge keeps it.
#[test]
fn what_a_merge_keeps_is_sealed_and_used_when_a_block_is_torn() {
    for at_rest in AtRest::both() {
        let (mut life, mut dice) = (Life::new(3, 96 * BLOCK, &at_rest), Dice(3));
        let secret = |number: u64| [b'a' + number as u8; 64];
        (0..10).for_each(|number| life.bytes(1, number * 8 * BLOCK, &secret(number).repeat(64)));
        life.flush().unwrap();
        write(&mut life, &mut Dice(u64::MAX), 0);
        let first = life.source.lsn;
        life.advance(first, None).unwrap();
        life.pin_at(first).unwrap();
        (0..10).for_each(|number| life.bytes(1, number * 8 * BLOCK + SECTOR, &[7; SECTOR as usize]));
        life.flush().unwrap();
        write(&mut life, &mut Dice(u64::MAX), 0);
        let upto = life.source.lsn;
        // As an owner does it, up to where the merge has written everything and the manifest does not say so.
        life.advance(upto, Some(u8::MAX)).unwrap();
        assert!(life.rig.writer.manifest().merge.is_some());
        let said = |life: &Life| {
            let files = contents(&life.disk);
            let windows = files.iter().flat_map(|(_, bytes)| bytes.windows(64));
            let may = windows.filter(|window| window[0].is_ascii_lowercase() && window[0] == window[63]);
            let found = may.filter(|window| (0..10).any(|number| *window == secret(number)));
            let (found, kept) = (found.count(), life.rig.writer.manifest().kept.len());
            assert_eq!((found > 0, kept), (at_rest.key.is_none(), 1));
        };
        said(&life);
        let image = life.disk.open("base/1.img", true).unwrap();
        for number in 0..10 {
            let at = number * 8 * BLOCK + if at_rest.key.is_some() { 0 } else { SECTOR };
            image.write_all_at(at, &[0x5a; 8]).unwrap();
        }
        check(&life, &mut dice, true).unwrap();
        life.advance(upto, None).unwrap();
        said(&life);
        check(&life, &mut dice, true).unwrap();
        at_rest.check().unwrap();
    }
}

/// What is read of a damaged store: the right bytes, or an error.
fn read_damaged(life: &Life, storage: &Memory, moments: &BTreeSet<Lsn>) -> Outcome<()> {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    let Ok(looked) = life.rig.at_rest.look(storage.as_ref(), None) else { return Ok(()) };
    let safe = looked.snapshot.durable().lsn();
    let Ok(replica) = Replica::load_with(storage, looked.manifest, looked.snapshot, safe, looked.keys) else {
        return Ok(());
    };
    for lsn in moments {
        let timeline = life.timeline_of(*lsn);
        let offered = replica.catalogue().branch(timeline).is_some_and(|branch| branch.is_restorable(*lsn));
        let Some(Ok(view)) = offered.then(|| replica.view(timeline, *lsn)) else { continue };
        for (number, then) in life.past.at(*lsn) {
            let mut found = vec![0xee; then.bytes.len()];
            if view.read(disk(number), 0, &mut found).is_ok() && found != then.bytes {
                return Err(format!("wrong bytes of disk {number} at LSN {lsn}"));
            }
        }
    }
    Ok(())
}

#[test]
fn whatever_is_done_to_any_file_no_wrong_byte_is_given() {
    AtRest::both().iter().for_each(no_wrong_byte_is_given);
}

fn no_wrong_byte_is_given(at_rest: &AtRest) {
    // More than one page of checksums, and no whole block at the end.
    let mut life = Life::new(2, 3 << 19, at_rest);
    let mut dice = Dice(3);
    while life.rig.writer.manifest().kept.len() < 2 {
        write(&mut life, &mut dice, 40);
        life.play(&Step::Pin(dice.next() as u16)).unwrap();
        life.play(&Step::Merge { to: dice.next() as u16, pieces: None }).unwrap();
    }
    let (from, to) = life.span();
    let moments: BTreeSet<_> = life.held().into_iter().chain([from, to]).collect();
    let files = contents(&life.disk);
    let mut dice = Dice(5);
    let rounds = std::env::var("CDP_CORRUPTIONS").map_or(40, |text| text.parse::<u64>().expect("a number").min(400));
    for round in 0..rounds {
        let copy = Memory::new();
        files.iter().for_each(|(name, bytes)| copy.create(name).unwrap().write_all_at(0, bytes).unwrap());
        // As many of each kind: there are far more segments than others.
        let kinds = ["MANIFEST", DIRECTORY, "base/", kept::KEPT_DIRECTORY];
        let kind = kinds[dice.below(4) as usize];
        let names = files.iter().map(|(name, _)| name).filter(|name| name.starts_with(kind));
        let names: Vec<_> = names.filter(|name| !read(&copy, name).is_empty()).cloned().collect();
        let (what, _) = damage_one_of(&copy, &names, &mut dice);
        read_damaged(&life, &copy, &moments).unwrap_or_else(|why| panic!("round {round}, {what}: {why}"));
    }
}

/// Whatever timelines lie behind it, of which nothing else is left.
#[test]
fn a_kept_moment_is_found_by_its_lsn_and_by_its_time() {
    let (at_rest, mut dice) = (AtRest::default(), Dice(8));
    let mut life = Life::new(8, 8 * BLOCK, &at_rest);
    write(&mut life, &mut dice, 4);
    let lsn = life.source.lsn;
    life.pin_at(lsn).unwrap();
    for start in 0..3 {
        let disk = life.disk.after_cut(Survival::Everything);
        let Life { past, belief, overlays, .. } = life;
        life = Found { disk, past, belief, overlays }.open(&at_rest, start, &mut dice, true).unwrap().unwrap();
        write(&mut life, &mut dice, 4);
    }
    let newest = life.source.lsn;
    life.advance(newest, None).unwrap();
    let (replica, done) = (life.replica().unwrap(), life.past.0.iter().find(|done| done.lsn == lsn).unwrap());
    for when in [When::Lsn { timeline: None, lsn }, When::Time(done.stamp.time)] {
        let found = replica.resolve(&when).unwrap_or_else(|why| panic!("{when}: {why}"));
        assert_eq!((found.timeline, found.lsn), (timeline(1), lsn), "{when}");
    }
    let timelines: Vec<_> = life.rig.writer.manifest().timelines.iter().map(|info| info.number).collect();
    assert_eq!(timelines, [1, 2, 3, 4]);
}

/// The last record of a segment makes a point; its segment goes when that moment is the oldest one.
#[test]
fn a_point_outlasts_the_record_that_made_it() {
    let (at_rest, mut dice) = (AtRest::default(), Dice(9));
    let mut life = Life::new(9, 8 * BLOCK, &at_rest);
    write(&mut life, &mut dice, 3);
    let mark = Record { disk: 0, sector: 0, sectors: 1, kind: Kind::Mark };
    life.play(&Step::Write { records: vec![mark], roll: true, wait: true }).unwrap();
    let lsn = life.source.lsn;
    life.pin_at(lsn).unwrap();
    write(&mut life, &mut dice, 3);
    let newest = life.source.lsn;
    for target in [lsn, newest] {
        life.advance(target, None).unwrap();
        // As somebody finds it who was not there.
        let replica = life.replica().unwrap();
        let found: Vec<_> =
            replica.catalogue().labelled(&format!("at {lsn}")).iter().map(|point| point.id.lsn).collect();
        assert_eq!(found, [lsn], "history begins at LSN {target}");
    }
    assert_eq!(life.kept.first(), Some(&lsn));
}

/// In one process: a view of the oldest moment has nothing above the base. A sector of a block is merged; what the merge knows of the
/// rest of the block proves nothing to that view.
#[test]
fn a_view_below_a_merge_in_this_process_fails_or_is_right() {
    for at_rest in AtRest::both() {
        let mut life = Life::new(4, 32 * BLOCK, &at_rest);
        (0..16).for_each(|block| life.bytes(1, 2 * block * BLOCK, &[7; BLOCK as usize]));
        // Its segment ends there, and goes with the first merge.
        write(&mut life, &mut Dice(u64::MAX), 0);
        let old = life.source.lsn;
        life.advance(old, None).unwrap();
        life.pin_at(old).unwrap();
        (0..16).for_each(|block| life.bytes(1, 2 * block * BLOCK + SECTOR, &[8; SECTOR as usize]));
        life.flush().unwrap();
        let mut replica = life.replica().unwrap();
        let (on, new) = (life.timeline_of(old), life.source.lsn);
        let (view, before) = (replica.view(on, old).unwrap(), Arc::clone(replica.bases()));
        let to = StampedMoment { timeline: on, lsn: new, stamp: replica.exact(on, new).unwrap().stamp };
        let (held, writer) = (life.held(), &mut life.rig.writer);
        let keep = retention::to_keep(writer.manifest(), &held, replica.catalogue()).unwrap();
        let (storage, number) = (Arc::clone(&life.rig.storage), keep.number);
        kept::create(storage.as_ref(), writer.manifest(), number, timeline(99), NOW).unwrap();
        retention::begin(writer, to, None, Some(keep));
        life.rig.drain();
        assert_eq!(life.rig.writer.state(), WriterState::Running);
        let manifest = life.rig.writer.manifest().clone();
        replica.update(Some(&manifest), life.rig.writer.snapshot()).unwrap();
        let path = replica.path(on, new).unwrap();
        let refused = Merge::begin(&storage, &manifest, to, &path, &before, None).unwrap_err();
        assert!(matches!(refused, MergeError::Shared), "{refused}");
        let mut dice = Dice(9);
        let ids = Box::new(move || std::array::from_fn(|_| dice.next() as u8));
        let space = kept::Space::open(storage.as_ref(), number, (0, u64::MAX), (&life.rig.keys, ids), NOW).unwrap();
        let mut merge = Merge::begin(&storage, &manifest, to, &path, replica.bases(), Some(space)).unwrap();
        while merge.step(NOW, 1).unwrap() {}
        let (then, now) = (life.past.at(old)[&1].bytes.clone(), life.past.at(new)[&1].bytes.clone());
        let read = |view: &ReplicaView, block: u64| {
            let mut bytes = vec![0xee; BLOCK as usize];
            view.read(disk(1), block * BLOCK, &mut bytes).map(|()| bytes)
        };
        let of = |content: &[u8], block: u64| content[(block * BLOCK) as usize..][..BLOCK as usize].to_vec();
        let (kept, newest) = (replica.view(on, old).unwrap(), replica.view(on, new).unwrap());
        for block in 0..32 {
            match read(&view, block) {
                Ok(bytes) => assert!(bytes == of(&then, block), "block {block} is not as it was"),
                Err(_) => assert!(of(&then, block) != of(&now, block), "block {block} was not changed"),
            }
            assert_eq!(
                (read(&kept, block).unwrap(), read(&newest, block).unwrap()),
                (of(&then, block), of(&now, block))
            );
        }
    }
}
