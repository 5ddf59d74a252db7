//! What the journal gives back: reads through a view, against the same bytes of a file, checked and inflated.

use crate::figure::{Figure, Reach, median};
use crate::frames::{Dice, Frames, WRITE, disk, noise, real, timeline};
use crate::store::{DIRECTORY, filled};
use crate::{Failure, Plan, Scratch};
use bytes::Bytes;
use cdp_core::frame::{Compression, Payload};
use cdp_core::journal::*;
use cdp_core::media::{Disk, Storage};
use cdp_core::types::*;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a sequential write and of a sequential read.
const LARGE: u64 = 64 << 10;
const REQUEST: u64 = 1 << 20;
/// Memory for decoded chunks: little beside the data, so that a chunk is inflated for the one read.
const CACHE: u64 = 4 << 20;

fn view(path: &Path, last: Lsn) -> Result<View, Failure> {
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(path)?);
    let looked = look(storage.as_ref(), DIRECTORY, None)?;
    let reader = Arc::new(Reader::new(storage, DIRECTORY, CACHE));
    let element = PathElement { reader, snapshot: looked.snapshot, timeline: timeline(), upto: last };
    Ok(View::open(&[element], 256 << 20)?)
}

/// The writes of a whole disk, by pieces of the pool, in random order or one after another.
fn writes(pool: &Bytes, length: u64, size: u64, shuffled: bool) -> Result<Vec<Payload>, Failure> {
    let mut order: Vec<u64> = (0..length / size).collect();
    let mut dice = Dice(8);
    for at in (1..order.len()).rev().filter(|_| shuffled) {
        order.swap(at, dice.below(at as u64 + 1) as usize);
    }
    let cut = |at: u64| {
        let from = (at * size % pool.len() as u64) as usize;
        pool.slice(from..from + size as usize)
    };
    order.into_iter().map(|at| Frames::payload(at * size, cut(at))).collect()
}

/// Stored chunks one after another in a file, and where they are.
struct Chunks {
    file: std::fs::File,
    places: Vec<(u64, usize)>,
}

impl Chunks {
    fn write(path: &Path, pool: &Bytes, level: i32) -> Result<Self, Failure> {
        let mut zstd = zstd::bulk::Compressor::new(level)?;
        let (mut places, mut all) = (Vec::new(), Vec::new());
        for piece in pool.chunks(CHUNK_PLAIN_MAX as usize) {
            let stored = zstd.compress(piece)?;
            places.push((all.len() as u64, stored.len()));
            all.extend_from_slice(&stored);
        }
        std::fs::write(path, all)?;
        Ok(Self { file: std::fs::File::open(path)?, places })
    }
}

/// Reads of 4 KiB at random places in a second, through a view.
fn random_ours(view: &View, length: u64, reads: usize) -> Result<f64, Failure> {
    let mut dice = Dice(6);
    let mut out = [0; WRITE as usize];
    let begin = Instant::now();
    for _ in 0..reads {
        view.read(disk(), dice.below(length / WRITE) * WRITE, &mut out, &Nothing)?;
        black_box(&out);
    }
    Ok(reads as f64 / begin.elapsed().as_secs_f64())
}

/// `read-random`: thousands a second, against `pread` and a checksum; `read-random-zstd`: the same of compressed chunks.
pub(crate) fn random(plan: &Plan) -> Result<(), Failure> {
    let (scratch, length, reads) = (Scratch::new()?, plan.bytes, plan.reads * 200);
    let pool = noise(64 << 20);
    let path = scratch.path("raw");
    std::fs::write(&path, (0..length / pool.len() as u64).flat_map(|_| pool.to_vec()).collect::<Vec<_>>())?;
    let raw = std::fs::File::open(&path)?;
    let replica = scratch.path("replica");
    let last = filled(&replica, Compression::None, writes(&pool, length, WRITE, true)?, crate::frames::RECORDS)?;
    cached(&path)?;
    cached_all(&replica)?;
    let view_of = view(&replica, last)?;
    // Everything is in memory, and the regions' maps are made.
    whole(&view_of, length)?;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let mut dice = Dice(6);
        let mut out = [0; WRITE as usize];
        let begin = Instant::now();
        for _ in 0..reads {
            raw.read_exact_at(&mut out, dice.below(length / WRITE) * WRITE)?;
            black_box(crc32c::crc32c(black_box(&out)));
        }
        limit.push(reads as f64 / begin.elapsed().as_secs_f64() / 1e3);
        ours.push(random_ours(&view_of, length, reads)? / 1e3);
    }
    let (id, unit, reach) = ("read-random", "k/s", Reach::AtLeast(0.8));
    let limit = Some(median(&limit));
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &[], conditions_hold: true });
    drop((view_of, raw));
    let pool = real(64 << 20)?;
    let chunks = Chunks::write(&scratch.path("chunks"), &pool, 1)?;
    let replica = scratch.path("packed");
    let last = filled(&replica, Compression::Zstd(1), writes(&pool, length, WRITE, false)?, crate::frames::RECORDS)?;
    cached(&scratch.path("chunks"))?;
    cached_all(&replica)?;
    let view_of = view(&replica, last)?;
    whole(&view_of, length)?;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    let reads = reads / 8;
    for _ in 0..plan.rounds {
        let mut dice = Dice(6);
        let mut zstd = zstd::bulk::Decompressor::new()?;
        let (mut stored, mut plain) = (vec![0; 128 << 10], vec![0; CHUNK_PLAIN_MAX as usize]);
        let begin = Instant::now();
        for _ in 0..reads {
            let (at, bytes) = chunks.places[dice.below(chunks.places.len() as u64) as usize];
            chunks.file.read_exact_at(&mut stored[..bytes], at)?;
            zstd.decompress_to_buffer(&stored[..bytes], &mut plain)?;
            black_box(crc32c::crc32c(black_box(&plain[..WRITE as usize])));
        }
        limit.push(reads as f64 / begin.elapsed().as_secs_f64() / 1e3);
        ours.push(random_ours(&view_of, length, reads)? / 1e3);
    }
    let (id, limit) = ("read-random-zstd", Some(median(&limit)));
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &[], conditions_hold: true });
    Ok(())
}

/// A file of the pool's bytes over and over, made as a segment is: past the system's cache, by large writes.
fn streamed(scratch: &Scratch, pool: &Bytes, length: u64) -> Result<PathBuf, Failure> {
    let (path, storage) = (scratch.path("raw"), Disk::create(scratch.path(""))?);
    let file = storage.create_streamed("raw")?;
    file.preallocate(Extent::new(0, length))?;
    for at in 0..length / pool.len() as u64 {
        file.write_at(at * pool.len() as u64, std::slice::from_ref(pool))?;
    }
    file.sync()?;
    Ok(path)
}

/// A whole file; gives MB/s.
fn raw_whole(path: &Path, length: u64) -> Result<f64, Failure> {
    let (raw, mut out) = (std::fs::File::open(path)?, vec![0; REQUEST as usize]);
    let begin = Instant::now();
    for at in 0..length / REQUEST {
        raw.read_exact_at(&mut out, at * REQUEST)?;
        black_box(&out);
    }
    Ok(length as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

/// The whole view; gives MB/s.
fn whole(view: &View, length: u64) -> Result<f64, Failure> {
    let mut out = vec![0; REQUEST as usize];
    let begin = Instant::now();
    for at in 0..length / REQUEST {
        view.read(disk(), at * REQUEST, &mut out, &Nothing)?;
        black_box(&out);
    }
    Ok(length as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

/// Takes a file out of the system's cache.
fn forget(path: &Path) -> Result<(), Failure> {
    let file = std::fs::File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Reads a file into the system's cache, whatever way it was written: what was written through the cache lies in larger pieces of
/// memory there than what went past it and was read in later, and is read faster.
fn cached(path: &Path) -> Result<(), Failure> {
    forget(path)?;
    let (mut file, mut out) = (std::fs::File::open(path)?, vec![0; REQUEST as usize]);
    while std::io::Read::read(&mut file, &mut out)? > 0 {}
    Ok(())
}

fn cached_all(replica: &Path) -> Result<(), Failure> {
    std::fs::read_dir(replica.join(DIRECTORY))?.try_for_each(|entry| cached(&entry?.path()))
}

fn forget_all(replica: &Path) -> Result<(), Failure> {
    std::fs::read_dir(replica.join(DIRECTORY))?.try_for_each(|entry| forget(&entry?.path()))
}

/// `read-sequential`: MB/s of a whole view from cold media, against a file; `read-sequential-cached`: of compressed chunks from the
/// system's cache, against reading, checking and inflating them one after another.
pub(crate) fn sequential(plan: &Plan) -> Result<(), Failure> {
    let (scratch, length) = (Scratch::new()?, plan.bytes);
    let pool = noise(64 << 20);
    let path = streamed(&scratch, &pool, length)?;
    let replica = scratch.path("replica");
    let last = filled(&replica, Compression::None, writes(&pool, length, LARGE, false)?, 4)?;
    let cold_raw = || {
        forget(&path)?;
        raw_whole(&path, length)
    };
    let cold_ours = || {
        forget_all(&replica)?;
        whole(&view(&replica, last)?, length)
    };
    // Whatever lies below the system and remembers what it read has seen both.
    cold_raw()?;
    cold_ours()?;
    let (mut ours, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds * 3 {
        // Whoever comes second finds the media as the first one left them.
        let (limit, own) = if round % 2 == 0 {
            let limit = cold_raw()?;
            (limit, cold_ours()?)
        } else {
            let own = cold_ours()?;
            (cold_raw()?, own)
        };
        ours.push(own);
        ratios.push(own / limit);
    }
    let (id, unit, reach) = ("read-sequential", "MB/s", Reach::AtLeast(0.9));
    // The media are faster at one time than at another: what is compared lies side by side.
    let limit = Some(median(&ours) / median(&ratios));
    ratios.sort_by(f64::total_cmp);
    let quarters = [1, 3].map(|of| format!("{:.2}", ratios[ratios.len() * of / 4])).join("-");
    let conditions = [("half-of-pairs", quarters)];
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &conditions, conditions_hold: true });
    let pool = real(64 << 20)?;
    let chunks = Chunks::write(&scratch.path("chunks"), &pool, 1)?;
    let replica = scratch.path("packed");
    let last = filled(&replica, Compression::Zstd(1), writes(&pool, length, LARGE, false)?, 4)?;
    let view_of = view(&replica, last)?;
    whole(&view_of, length)?;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let mut zstd = zstd::bulk::Decompressor::new()?;
        let (mut stored, mut plain) = (vec![0; 128 << 10], vec![0; CHUNK_PLAIN_MAX as usize]);
        let mut out = vec![0; CHUNK_PLAIN_MAX as usize];
        let begin = Instant::now();
        for _ in 0..length / pool.len() as u64 {
            for &(at, bytes) in &chunks.places {
                chunks.file.read_exact_at(&mut stored[..bytes], at)?;
                black_box(crc32c::crc32c(black_box(&stored[..bytes])));
                zstd.decompress_to_buffer(&stored[..bytes], &mut plain)?;
                black_box(crc32c::crc32c(black_box(&plain)));
                out.copy_from_slice(black_box(&plain));
                black_box(&out);
            }
        }
        limit.push(length as f64 / 1e6 / begin.elapsed().as_secs_f64());
        ours.push(whole(&view_of, length)?);
    }
    let (id, reach, limit) = ("read-sequential-cached", Reach::AtLeast(0.7), Some(median(&limit)));
    println!("{}", Figure { id, unit, ours: &ours, limit, reach, conditions: &[], conditions_hold: true });
    Ok(())
}
