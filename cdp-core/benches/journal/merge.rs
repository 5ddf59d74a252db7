//! What retention costs: old records into the base, against reading the same segments and writing the same blocks by hand.

use crate::figure::{Figure, Reach, median};
use crate::frames::{Dice, Frames, RECORDS, WRITE, disk, noise, timeline};
use crate::store::{DIRECTORY, Rig};
use crate::{Failure, Plan, Scratch};
use bytes::Bytes;
use cdp_core::frame::Compression;
use cdp_core::journal::{DiskInfo, PathElement, Reader, StampedMoment};
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::base::{Base, BaseWriter};
use cdp_core::replica::merge::Merge;
use cdp_core::replica::{Bases, retention};
use cdp_core::types::*;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Each block of the disk is written so often.
const TIMES: u64 = 2;
/// Bytes of one piece of the merge.
const PIECE: u64 = 8 << 20;
/// Bytes of one read by hand.
const READ: usize = 1 << 20;
/// An entry of a sidecar, in bytes.
const ENTRY: u64 = 12;

/// A replica with an empty base and a journal of random writes; gives the blocks that were written.
fn made(storage: &Arc<dyn Storage>, pool: &Bytes, bytes: u64) -> Result<(Rig, Vec<bool>), Failure> {
    let size = bytes / TIMES;
    let mut rig = Rig::create(Arc::clone(storage), 64 << 20)?;
    let mut base = BaseWriter::create(storage.as_ref(), rig.writer.manifest().replica, disk(), size)?;
    base.zeros(size, Lsn::ZERO)?;
    let base = base.finish(storage.as_ref(), Lsn::ZERO)?.named(Lsn::ZERO);
    let (name, source, added, removed, stopped) = ("disk".into(), String::new(), Lsn::ZERO, None, None);
    let info = DiskInfo { id: disk(), name, size, source, added, removed, stopped, base: Some(base) };
    rig.writer.edit(|manifest| manifest.disks.push(info));
    let (mut frames, mut dice) = (Frames::new(Compression::None), Dice(11));
    let mut written = vec![false; (size / WRITE) as usize];
    for _ in 0..bytes / WRITE / RECORDS as u64 {
        let mut payloads = Vec::with_capacity(RECORDS);
        for _ in 0..RECORDS {
            let (block, from) = (dice.below(size / WRITE), dice.below(pool.len() as u64 / WRITE) * WRITE);
            written[block as usize] = true;
            payloads.push(Frames::payload(block * WRITE, pool.slice(from as usize..(from + WRITE) as usize))?);
        }
        rig.append(frames.writes(payloads))?;
    }
    rig.writer.roll();
    rig.sync();
    Ok((rig, written))
}

/// Everything that was written goes into the base; gives the seconds.
fn ours(storage: &Arc<dyn Storage>, rig: &mut Rig) -> Result<f64, Failure> {
    let (wall, mono) = (WallTime(1), MonoTime(1));
    let now = Now { wall, mono };
    let to = StampedMoment {
        timeline: timeline(),
        lsn: rig.writer.durable().lsn(),
        stamp: Stamp { epoch: ClockEpoch(1), time: wall },
    };
    let begin = Instant::now();
    retention::begin(&mut rig.writer, to, None, None);
    rig.drain();
    let (manifest, snapshot) = (rig.writer.manifest().clone(), rig.writer.snapshot());
    let mut bases = Bases::default();
    let base = manifest.disks[0].base.ok_or("a base was made")?;
    bases.insert(disk(), Arc::new(Base::open(storage.as_ref(), manifest.replica, disk(), base.into())?));
    let reader = Arc::new(Reader::new(Arc::clone(storage), DIRECTORY, 64 << 20));
    let path = [PathElement { reader, snapshot, timeline: timeline(), upto: to.lsn }];
    let mut merge = Merge::begin(storage, &manifest, to, &path, &Arc::new(bases.changed_by(to)), None)?;
    while merge.step(now, PIECE)? {}
    let bases = merge.finish(now)?;
    retention::end(&mut rig.writer, &bases);
    rig.drain();
    Ok(begin.elapsed().as_secs_f64())
}

/// The same by hand: segments are read, and the blocks that were written go to their places with what a sidecar would say.
fn by_hand(directory: &Path, pool: &Bytes, written: &[bool]) -> Result<f64, Failure> {
    let begin = Instant::now();
    let mut buffer = vec![0; READ];
    for entry in std::fs::read_dir(directory.join(DIRECTORY))? {
        let (file, mut at) = (std::fs::File::open(entry?.path())?, 0);
        loop {
            let length = file.read_at(&mut buffer, at)?;
            if length == 0 {
                break;
            }
            black_box(&buffer[..length]);
            at += length as u64;
        }
    }
    let image = std::fs::File::create(directory.join("by-hand.img"))?;
    let (mut at, mut blocks) = (0, 0);
    for run in written.chunk_by(|a, b| a == b) {
        let bytes = run.len() as u64 * WRITE;
        if run[0] {
            for piece in (0..bytes).step_by(READ) {
                let length = (bytes - piece).min(READ as u64);
                image.write_all_at(&pool[..length as usize], at + piece)?;
            }
            blocks += run.len() as u64;
        }
        at += bytes;
    }
    let sidecar = std::fs::File::create(directory.join("by-hand.sum"))?;
    sidecar.write_all_at(&pool[..(blocks * ENTRY).min(pool.len() as u64) as usize], 0)?;
    image.sync_data()?;
    sidecar.sync_data()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Nothing of the segments is in memory: either side reads them from media, whoever is first.
fn forget_cached(directory: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(directory.join(DIRECTORY))? {
        let file = std::fs::File::open(entry?.path())?;
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// `merge`: MB/s of segments that are merged, against reading them and writing what is left of them.
pub(crate) fn merge(plan: &Plan) -> Result<(), Failure> {
    let (pool, scratch) = (noise(64 << 20), Scratch::new()?);
    let (mut found, mut limit) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds.min(5) {
        let path = scratch.path(&format!("replica-{round}"));
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(&path)?);
        let (mut rig, written) = made(&storage, &pool, plan.bytes)?;
        forget_cached(&path)?;
        limit.push(plan.bytes as f64 / 1e6 / by_hand(&path, &pool, &written)?);
        forget_cached(&path)?;
        found.push(plan.bytes as f64 / 1e6 / ours(&storage, &mut rig)?);
        drop((rig, storage));
        std::fs::remove_dir_all(path)?;
    }
    let (limit, conditions) = (Some(median(&limit)), &[][..]);
    let (id, unit, reach) = ("merge", "MB/s", Reach::AtLeast(0.7));
    println!("{}", Figure { id, unit, ours: &found, limit, reach, conditions, conditions_hold: true });
    Ok(())
}
