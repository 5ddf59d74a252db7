//! What the journal takes: frames against the same bytes copied or compressed by themselves. Against the same bytes written and
//! synced they are measured in `cdp-net`, where writes and syncs overlap.

use crate::figure::{Figure, Reach, median};
use crate::frames::{Dice, Frames, RECORDS, WRITE, noise, real};
use crate::sparse::Sparse;
use crate::store::Rig;
use crate::{Failure, Plan};
use bytes::Bytes;
use cdp_core::frame::{Compression, Payload};
use cdp_core::media::Memory;
use cdp_core::types::{CHUNK_PLAIN_MAX, FRAME_PLAIN_MAX};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// A sync for so many bytes.
const CADENCE: u64 = 16 << 20;
/// Of the disk that is written to.
const DISK: u64 = 64 << 30;
/// Bytes of data that are written again and again.
const POOL: u64 = 64 << 20;
/// The level that protecting begins with.
const LEVEL: i32 = 1;

/// Writes of 4 KiB as capture hands them over: their checksums are made, their places random.
fn captured(pool: &Bytes) -> Result<Vec<Payload>, Failure> {
    let mut dice = Dice(3);
    let cut = |at: u64| pool.slice((at * WRITE) as usize..((at + 1) * WRITE) as usize);
    (0..pool.len() as u64 / WRITE).map(|at| Frames::payload(dice.below(DISK / WRITE) * WRITE, cut(at))).collect()
}

/// Appends frames of the payloads, again and again, until so many bytes are in; gives the seconds.
fn ingest(rig: &mut Rig, compression: Compression, payloads: &[Payload], bytes: u64) -> Result<f64, Failure> {
    let mut frames = Frames::new(compression);
    let begin = Instant::now();
    for batch in payloads.chunks(RECORDS).cycle().take((bytes / FRAME_PLAIN_MAX) as usize) {
        rig.append(frames.writes(batch.iter().cloned()))?;
    }
    rig.sync();
    Ok(begin.elapsed().as_secs_f64())
}

/// Copies and checksums the pool, again and again, into memory that grows; gives the seconds.
fn copy(pool: &Bytes, bytes: u64, checksums: bool) -> f64 {
    let mut kept = Vec::new();
    let begin = Instant::now();
    for at in 0..bytes / CHUNK_PLAIN_MAX {
        let from = (at * CHUNK_PLAIN_MAX % POOL) as usize;
        let piece = black_box(&pool[from..from + CHUNK_PLAIN_MAX as usize]);
        if checksums {
            black_box(crc32c::crc32c(piece));
        }
        kept.push(black_box(piece.to_vec()));
    }
    begin.elapsed().as_secs_f64()
}

/// `ingest-memory`: MB/s into memory, against a copy and a checksum of the same bytes; and bookkeeping by itself.
pub(crate) fn memory(plan: &Plan) -> Result<(), Failure> {
    let pool = noise(POOL);
    let payloads = captured(&pool)?;
    let records = plan.bytes / WRITE;
    let [mut ours, mut limit, mut bookkeeping] = [const { Vec::new() }; 3];
    for _ in 0..plan.rounds {
        limit.push(plan.bytes as f64 / 1e6 / copy(&pool, plan.bytes, true));
        let mut rig = Rig::create(Arc::new(Memory::new()), CADENCE)?;
        let begin = Instant::now();
        let mut frames = Frames::new(Compression::None);
        let piece = |at: u64| pool.slice((at * WRITE % POOL) as usize..(at * WRITE % POOL + WRITE) as usize);
        let mut pieces = (0..records).map(piece);
        for batch in payloads.chunks(RECORDS).cycle().take((plan.bytes / FRAME_PLAIN_MAX) as usize) {
            // The one checksum is made at capture, and moves along.
            let again = batch.iter().zip(pieces.by_ref());
            let again = again.map(|(payload, data)| Frames::payload(payload.extent().offset, data));
            rig.append(frames.writes(again.collect::<Result<Vec<_>, _>>()?))?;
        }
        rig.sync();
        ours.push(plan.bytes as f64 / 1e6 / begin.elapsed().as_secs_f64());
        drop(rig);
        let mut rig = Rig::create(Arc::new(Sparse::new(Arc::new(Memory::new()))), CADENCE)?;
        // Frames go nowhere, and their checksums are there.
        bookkeeping.push(ingest(&mut rig, Compression::None, &payloads, plan.bytes)?);
    }
    let record = median(&bookkeeping) * 1e9 / records as f64;
    let conditions = [("bookkeeping", format!("{record:.0}ns"))];
    let (id, unit, reach) = ("ingest-memory", "MB/s", Reach::AtLeast(0.7));
    let (limit, conditions_hold) = (Some(median(&limit)), record <= 250.0);
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &conditions, conditions_hold });
    Ok(())
}

/// `ingest-zstd`: MB/s of real data, against zstd at the same level on blocks of a chunk's size.
pub(crate) fn zstd(plan: &Plan) -> Result<(), Failure> {
    let pool = real(POOL)?;
    let payloads = captured(&pool)?;
    let bytes = plan.bytes / 4;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let mut zstd = zstd::bulk::Compressor::new(LEVEL)?;
        let mut out = vec![0; zstd::zstd_safe::compress_bound(CHUNK_PLAIN_MAX as usize)];
        let begin = Instant::now();
        for piece in pool.chunks(CHUNK_PLAIN_MAX as usize).cycle().take((bytes / CHUNK_PLAIN_MAX) as usize) {
            black_box(zstd.compress_to_buffer(black_box(piece), &mut out)?);
        }
        limit.push(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64());
        // Frames go nowhere: the other side keeps nothing either.
        let mut rig = Rig::create(Arc::new(Sparse::new(Arc::new(Memory::new()))), CADENCE)?;
        ours.push(bytes as f64 / 1e6 / ingest(&mut rig, Compression::Zstd(LEVEL), &payloads, bytes)?);
    }
    let (limit, conditions) = (Some(median(&limit)), &[][..]);
    let (id, unit, reach) = ("ingest-zstd", "MB/s", Reach::AtLeast(0.9));
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions, conditions_hold: true });
    Ok(())
}
