//! Any one read gives a flipped bit: no wrong byte comes of it and no panic, what fails says of which file, and nothing that is on
//! the media is destroyed by what one read said of it.

use super::kit::*;
use super::points::check::{Found, check_moment};
use super::points::life::{Life, Outcome, said};
use super::points::step::{After, Kind, Record, Step};
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::replica::Replica;
use cdp_core::sim::{SimDisk, Survival};
use cdp_core::types::*;
use std::sync::Arc;

fn record(dice: &mut Dice) -> Record {
    let kind = if dice.below(4) == 0 { Kind::Mark } else { Kind::Data(dice.next() as u8) };
    Record { disk: dice.next() as u8, sector: dice.next() as u16, sectors: 1 + dice.below(20) as u8, kind }
}

fn write(dice: &mut Dice, roll: bool) -> Step {
    Step::Write { records: vec![record(dice), record(dice)], roll, wait: true }
}

/// A life with everything that is read: bases, a kept moment, a session, a run with emptied footers, a merge that was left, and an
/// unsealed end.
fn lived(seed: u64, at_rest: &AtRest) -> Life {
    let mut dice = Dice(seed);
    let mut life = Life::new(seed, 8 * BLOCK, at_rest);
    let writes = vec![(0, 1), (1, 2)];
    let session = Step::Session { which: 0, fork: u16::MAX, writes, flush: true, after: After::Closed };
    let mut steps = vec![write(&mut dice, false), Step::Merge { to: u16::MAX, pieces: None }, Step::Pin(0), session];
    steps.push(write(&mut dice, true));
    steps.push(Step::Merge { to: u16::MAX, pieces: None });
    steps.extend((0..9).map(|_| write(&mut dice, true)));
    steps.push(Step::Index);
    steps.push(Step::Merge { to: 3, pieces: Some(1) });
    steps.extend((0..2).map(|_| write(&mut dice, false)));
    steps.iter().for_each(|step| life.play(step).unwrap_or_else(|why| panic!("{step:?}: {why}")));
    assert!(life.done.contains_key("emptied") && !life.kept.is_empty());
    life
}

/// Whether an error says of which file it is.
fn names(said: &str, file: &str) -> bool {
    // A record of a merge's rests that does not verify counts as torn: what it would have said is missed at its block.
    if file.ends_with("merge.rests") && said.contains("base/") {
        return true;
    }
    // A run that does not say what its segments do: either may be wrong.
    if file.ends_with(".seg") && said.contains(".idx: index run") {
        return true;
    }
    let name = file.rsplit('/').next().unwrap_or(file);
    let number = name.split_once('.').and_then(|(stem, _)| u64::from_str_radix(stem, 16).ok());
    said.contains(name) || number.is_some_and(|number| said.contains(&format!("segment {number}")))
}

/// One reading of a replica that nobody owns, of one of its moments: as far as it goes, and what stopped it. A wrong byte is a panic.
fn read_moment(life: &Life, disk: &SimDisk, lsn: Lsn) -> Outcome<()> {
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let looked = life.rig.at_rest.look(disk, None).map_err(said)?;
    if let Some(damage) = looked.damage {
        return Err(said(damage));
    }
    let safe = looked.snapshot.durable().lsn().max(life.belief.durable).min(looked.snapshot.written());
    let replica = Replica::load_with(storage, looked.manifest, looked.snapshot, safe, looked.keys).map_err(said)?;
    check_moment(life, &replica, lsn, &life.past.at(lsn)).inspect_err(|why| {
        assert!(!why.starts_with("disk ") || !why.contains(" is not "), "a wrong byte: {why}");
    })
}

/// The same for what verifies: findings are what stops it.
fn verify(life: &Life, disk: &SimDisk) -> Outcome<()> {
    let looked = life.rig.at_rest.look(disk, None).map_err(said)?;
    if let Some(damage) = looked.damage {
        return Err(said(damage));
    }
    let reader = Reader::new(Arc::new(disk.clone()), DIRECTORY, 1 << 20).with_keys(looked.keys);
    let findings = Arc::new(reader).verify(&looked.snapshot, |_| true).findings;
    findings.first().map_or(Ok(()), |finding| Err(format!("{}: {}", finding.file, finding.what)))
}

/// Each of its reads goes wrong once, or one in so many. How many did, and how many of them were noticed.
fn flip_each(disk: &SimDisk, one_in: u64, read: impl Fn(&SimDisk) -> Outcome<()>) -> (u64, u64) {
    let before = disk.reads();
    read(disk).unwrap_or_else(|why| panic!("without a flipped bit: {why}"));
    let (reads, mut noticed, mut flipped) = (disk.reads() - before, 0, 0);
    for number in (0..reads).step_by(one_in as usize) {
        disk.flip_read(number, number * 31 + reads);
        let read = read(disk);
        let file = disk.flipped().unwrap_or_else(|| panic!("read {number} of {reads} was never made"));
        flipped += 1;
        if let Err(why) = read {
            assert!(names(&why, &file), "read {number}, a bit of {file}: {why}");
            noticed += 1;
        }
    }
    (flipped, noticed)
}

#[test]
fn a_flipped_bit_in_any_read_gives_no_wrong_byte_and_what_fails_names_the_file() {
    let one_in = if cfg!(debug_assertions) { 4 } else { 1 };
    for at_rest in AtRest::both() {
        let life = lived(4, &at_rest);
        // As media are that nobody writes to.
        let disk = life.disk.after_cut(Survival::Everything);
        let (from, to) = life.span();
        let others = [from, to].into_iter().chain(life.past.lsns(from, to).into_iter().nth(5));
        let mut counted = (0, 0);
        for lsn in life.kept.iter().copied().chain(others) {
            let (flipped, noticed) = flip_each(&disk, one_in, |disk| read_moment(&life, disk, lsn));
            counted = (counted.0 + flipped, counted.1 + noticed);
        }
        let (flipped, noticed) = flip_each(&disk, one_in, |disk| verify(&life, disk));
        println!("{} reads with a flipped bit, {} noticed", counted.0 + flipped, counted.1 + noticed);
        // Not noticed are those in what nobody needs: the first of two manifests, places behind which nothing is stored.
        assert!(counted.1 > 15 && noticed > 10, "{counted:?} and {noticed} of {flipped}");
    }
}

/// A start of which each read goes wrong once, then a clean one: what the clean one would have had is there.
#[test]
fn a_start_that_reads_a_flipped_bit_destroys_nothing() {
    for at_rest in AtRest::both() {
        for seed in 0..3 {
            let life = lived(seed, &at_rest);
            let survival = if seed == 0 { Survival::Everything } else { Survival::Some(seed) };
            let media = || life.disk.after_cut(survival);
            let durable = {
                let clean = media();
                at_rest.open(&clean, None).unwrap().durable.lsn()
            };
            assert!(durable >= life.belief.durable);
            for number in 0.. {
                let disk = media();
                disk.flip_read(number, seed * 1000 + number);
                let opened = at_rest.open(&disk, None);
                let Some(file) = disk.flipped() else { break };
                match &opened {
                    Ok(opened) => {
                        let found = opened.durable.lsn();
                        assert!(found == durable, "seed {seed}, a bit of {file}: LSN {found} is there, not {durable}");
                    }
                    Err(error) => assert!(names(&error.to_string(), &file), "a bit of {file}: {error}"),
                }
                // Nothing of it is left for the next one.
                let belief = life.belief.clone();
                let found = Found { disk, past: life.past.clone(), belief, overlays: life.overlays.clone() };
                let opened = found.open(&at_rest, number, &mut Dice(number), true);
                opened.unwrap_or_else(|why| panic!("seed {seed}, read {number}, a bit of {file}: {why}"));
            }
        }
    }
}
