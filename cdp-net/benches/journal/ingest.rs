//! What the journal takes: frames against the same bytes written and synced by themselves.

use crate::figure::{Figure, Reach, median};
use crate::frames::{Dice, Frames, RECORDS, WRITE, noise};
use crate::rig::{Kind, Rig};
use crate::{Failure, Plan, Scratch};
use bytes::Bytes;
use cdp_core::frame::{Compression, EncodedFrame, Payload};
use cdp_core::media::{Disk, Storage};
use cdp_core::types::FRAME_PLAIN_MAX;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

/// A sync for so many bytes.
const CADENCE: u64 = 16 << 20;
/// Of the disk that is written to.
const DISK: u64 = 64 << 30;
/// Bytes of data that are written again and again.
const POOL: u64 = 64 << 20;
/// Packed frames that wait for the journal at most: 8 MiB.
const PACKED_MAX: usize = 32;

/// Writes of 4 KiB as capture hands them over: their checksums are made, their places random.
fn captured(pool: &Bytes) -> Result<Vec<Payload>, Failure> {
    let mut dice = Dice(3);
    let cut = |at: u64| pool.slice((at * WRITE) as usize..((at + 1) * WRITE) as usize);
    let place = |dice: &mut Dice| dice.below(DISK / WRITE) * WRITE;
    (0..pool.len() as u64 / WRITE).map(|at| Ok(Payload::new(place(&mut dice), cut(at))?)).collect()
}

/// Packs frames of the payloads, again and again, until there are so many bytes of them.
fn pack(payloads: &[Payload], bytes: u64, packed: &SyncSender<EncodedFrame>) {
    let mut frames = Frames::new(Compression::None);
    for batch in payloads.chunks(RECORDS).cycle().take((bytes / FRAME_PLAIN_MAX) as usize) {
        // The other end ends early where it fails, and says why.
        if packed.send(frames.writes(batch.iter().cloned())).is_err() {
            return;
        }
    }
}

/// Seconds from the first frame until all is durable. Frames are packed by a thread of their own, as the product does it where the
/// disk is behind.
fn ingest(rig: &mut Rig, payloads: &[Payload], bytes: u64) -> Result<f64, Failure> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let (packed, frames) = sync_channel(PACKED_MAX);
        scope.spawn(move || pack(payloads, bytes, &packed));
        frames.into_iter().try_for_each(|frame| rig.append(frame))
    })?;
    rig.sync()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Processor time of this process, the kernel's threads for it included, in seconds.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Seconds of `write` and `fdatasync` of the same bytes.
fn plain(path: &Path, pool: &Bytes, bytes: u64) -> Result<f64, Failure> {
    let mut raw = std::fs::File::create(path)?;
    let begin = Instant::now();
    for at in 0..bytes / FRAME_PLAIN_MAX {
        let from = (at * FRAME_PLAIN_MAX % POOL) as usize;
        raw.write_all(&pool[from..from + FRAME_PLAIN_MAX as usize])?;
        if ((at + 1) * FRAME_PLAIN_MAX).is_multiple_of(CADENCE) {
            raw.sync_data()?;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    drop(raw);
    std::fs::remove_file(path)?;
    Ok(seconds)
}

/// `ingest-file`: MB/s of data with each driver, against `write` and `fdatasync` of the same bytes in the same cadence.
pub(crate) fn file(plan: &Plan) -> Result<(), Failure> {
    let (pool, scratch) = (noise(POOL), Scratch::new()?);
    let payloads = captured(&pool)?;
    let rate = |seconds: f64| plan.bytes as f64 / 1e6 / seconds;
    let mut drivers: Vec<_> = Kind::ALL.iter().map(|kind| (*kind, Vec::new(), Vec::new())).collect();
    let mut limit = Vec::new();
    for _ in 0..plan.rounds {
        limit.push(rate(plain(&scratch.path("raw"), &pool, plan.bytes)?));
        for (kind, rates, cpu) in &mut drivers {
            let path = scratch.path("replica");
            let storage: Arc<dyn Storage> = Arc::new(Disk::create(&path)?);
            let mut rig = Rig::create(*kind, &storage, CADENCE)?;
            let before = cpu_seconds();
            rates.push(rate(ingest(&mut rig, &payloads, plan.bytes)?));
            cpu.push((cpu_seconds() - before) * 1e12 / plan.bytes as f64);
            drop(rig);
            std::fs::remove_dir_all(path)?;
        }
    }
    let (id, unit, reach) = ("ingest-file", "MB/s", Reach::AtLeast(0.9));
    let limit = Some(median(&limit));
    for (kind, ours, cpu) in &drivers {
        let conditions = [("driver", kind.name().to_owned()), ("cpu", format!("{:.0}ms/GB", median(cpu)))];
        println!("{}", Figure { id, unit, ours, limit, reach, conditions: &conditions, conditions_hold: true });
    }
    Ok(())
}
