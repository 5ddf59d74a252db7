//! What the levelled index is for: long journals that open and read like short ones.

use crate::figure::{Figure, Reach, median};
use crate::frames::{Dice, WRITE, disk, timeline};
use crate::store::{DIRECTORY, Long, long};
use crate::{Failure, Plan, Scratch};
use cdp_core::journal::*;
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::Replica;
use cdp_core::types::*;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of the disk that is written to at random: each block of it six times by a hundred million records.
const DISK: u64 = 64 << 30;
const MILLION: u64 = 1_000_000;
/// A hundred GiB of writes of 4 KiB.
const RESTART_RECORDS: u64 = (100 << 30) / WRITE;
/// What is not sealed when the process is killed: half of a segment.
const TAIL: u64 = (128 << 20) / WRITE;

/// Makes a long journal and says how long that took.
fn made(scratch: &Scratch, records: u64, tail: u64) -> Result<(PathBuf, Lsn), Failure> {
    let path = scratch.path(&format!("long-{records}"));
    let begin = Instant::now();
    let lsn = long(&path, Long { records, disk: DISK, tail })?;
    eprintln!("  {records} records made in {:.0} s", begin.elapsed().as_secs_f64());
    Ok((path, lsn))
}

fn open_replica(path: &Path) -> Result<Replica, Failure> {
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(path)?);
    let Looked { manifest, snapshot, .. } = look(storage.as_ref(), DIRECTORY, None)?;
    Ok(Replica::load(storage, manifest, snapshot, Lsn(u64::MAX))?)
}

fn read(view: &View, dice: &mut Dice, region: u64) -> Result<(), Failure> {
    let offset = region * (64 << 20) + dice.below((64 << 20) / WRITE) * WRITE;
    Ok(view.read(disk(), offset, &mut [0; WRITE as usize], &Nothing)?)
}

/// `open-view`: ms from a directory's path to a view of a random moment, against the same with a tenth of the records; and with
/// the first bytes read.
pub(crate) fn open_view(plan: &Plan) -> Result<(), Failure> {
    let scratch = Scratch::new()?;
    let stores = [made(&scratch, 10 * MILLION / plan.fewer, 0)?, made(&scratch, MILLION / plan.fewer, 0)?];
    let mut dice = Dice(2);
    let mut found = [const { (Vec::new(), Vec::new()) }; 2];
    for _ in 0..(plan.rounds * 5) {
        for ((path, last), times) in stores.iter().zip(&mut found) {
            let moment = Lsn(1 + dice.below(last.0));
            let region = dice.below(DISK >> 26);
            let begin = Instant::now();
            let replica = open_replica(path)?;
            let view = View::open(&replica.path(timeline(), moment)?, 64 << 20)?;
            times.0.push(begin.elapsed().as_secs_f64() * 1e3);
            read(&view, &mut dice, region)?;
            times.1.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [(ours, first), (few, _)] = &found;
    let most = median(first);
    let conditions = [("first-bytes", format!("{most:.2}ms"))];
    let (id, unit, reach) = ("open-view", "ms", Reach::AtMost(1.5));
    let (limit, conditions_hold) = (Some(median(few)), most < 50.0);
    println!("{}", Figure { id, unit, ours, limit, reach, conditions: &conditions, conditions_hold });
    Ok(())
}

/// `first-touch`: the 99th of a hundred first reads in a region of 64 MiB, in ms, against 5 ms.
pub(crate) fn first_touch(plan: &Plan) -> Result<(), Failure> {
    for (id, records) in [("first-touch-10M", 10 * MILLION), ("first-touch-100M", 100 * MILLION)] {
        let scratch = Scratch::new()?;
        let (path, last) = made(&scratch, records / plan.fewer, 0)?;
        let mut ours = Vec::new();
        let mut middle = Vec::new();
        for _ in 0..plan.rounds.min(3) {
            let replica = open_replica(&path)?;
            let view = View::open(&replica.path(timeline(), last)?, 64 << 20)?;
            let mut dice = Dice(4);
            let mut regions: Vec<u64> = (0..DISK >> 26).collect();
            let mut times = Vec::new();
            for _ in 0..plan.reads {
                let region = regions.swap_remove(dice.below(regions.len() as u64) as usize);
                let begin = Instant::now();
                read(&view, &mut dice, region)?;
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            ours.push(times[times.len() * 99 / 100]);
            middle.push(median(&times));
        }
        let conditions = [("median", format!("{:.2}ms", median(&middle)))];
        let (unit, reach) = ("ms", Reach::AtMost(1.0));
        let limit = Some(5.0);
        println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &conditions, conditions_hold: true });
    }
    Ok(())
}

/// Bytes of memory that the process has.
fn resident() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).ok_or("no pages in statm")?.parse()?;
    Ok(pages * 4096)
}

/// `index`: bytes on the disk for a record beside its frame; and what an open journal that nobody reads holds in memory.
pub(crate) fn size(plan: &Plan) -> Result<(), Failure> {
    let scratch = Scratch::new()?;
    let records = 10 * MILLION / plan.fewer;
    let (path, _) = made(&scratch, records, 0)?;
    let mut bytes = std::fs::metadata(path.join(MANIFEST_NAME))?.len();
    for entry in std::fs::read_dir(path.join(DIRECTORY))? {
        // Frames are holes.
        bytes += entry?.metadata()?.blocks() * 512;
    }
    let before = resident()?;
    let replica = open_replica(&path)?;
    let held = resident()?.saturating_sub(before);
    let segments = replica.manifest().segments.len();
    let ours = [bytes as f64 / records as f64];
    let memory = format!("{:.2}B/record in {segments} segments", held as f64 / records as f64);
    let conditions = [("memory", memory.replace(' ', "_"))];
    let (id, unit, reach, limit) = ("index", "B", Reach::AtMost(1.0), Some(24.0));
    // An index entry takes 20 bytes: less than one for each is none.
    let conditions_hold = held < records;
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &conditions, conditions_hold });
    Ok(())
}

/// `restart`: seconds from a kill under load until frames are taken again and moments can be opened, against one.
pub(crate) fn restart(plan: &Plan) -> Result<(), Failure> {
    let scratch = Scratch::new()?;
    let (path, last) = made(&scratch, RESTART_RECORDS / plan.fewer, TAIL)?;
    // What a start changes, so that it can be done again.
    let (manifest, journal) = (path.join(MANIFEST_NAME), path.join(DIRECTORY));
    let before = read_manifest(&Disk::open(&path)?)?;
    let unsealed = before.segments.iter().filter(|segment| segment.summary().is_none());
    let mut changed: Vec<PathBuf> = unsealed.map(|segment| journal.join(segment_name(segment.number))).collect();
    changed.push(manifest);
    let kept: Vec<_> = changed.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    let mut ours = Vec::new();
    for _ in 0..plan.rounds {
        for (path, bytes) in changed.iter().zip(&kept) {
            std::fs::write(path, bytes)?;
        }
        let begin = Instant::now();
        let storage: Arc<dyn Storage> = Arc::new(Disk::open(&path)?);
        let opened = open(storage.as_ref(), DIRECTORY, Some(last))?;
        let snapshot = opened.snapshot();
        let replica = Replica::load(storage, opened.manifest.clone(), snapshot, opened.durable.lsn())?;
        let writer = Writer::new(opened, Options::default(), Box::new(|| [1; 16]));
        ours.push(begin.elapsed().as_secs_f64());
        if writer.durable().lsn() != last || !replica.catalogue().branches().iter().any(|b| b.is_restorable(last)) {
            return Err("the last record is not restorable".into());
        }
    }
    let (id, unit, reach, limit) = ("restart", "s", Reach::AtMost(1.0), Some(1.0));
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &[], conditions_hold: true });
    Ok(())
}
