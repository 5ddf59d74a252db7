//! The load: our own client, one connection, the same for every server.

use super::cpu;
use super::image::{MIB, Pool, SOURCE_BYTES, next};
use super::rows::{Pattern, Row};
use cdp_core::buffer::BufferPool;
use cdp_core::media::{Disk, Storage};
use cdp_core::types::Extent;
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Client, ClientError, ClientOptions, Uri};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a load found.
pub(crate) struct Loaded {
    /// Requests a second, the draining of the last ones included.
    pub(crate) rate: f64,
    /// What the server's threads used for each, as text.
    pub(crate) cpu: String,
}

/// Loads the export of this process for this long.
pub(crate) fn run(uri: &Uri, process: u32, row: &Row, time: Duration, pool: &Pool) -> Result<Loaded, ClientError> {
    let mut client = Client::connect(uri, &ClientOptions::default())?;
    let length = u32::try_from(row.block).unwrap_or(0);
    let blocks = SOURCE_BYTES / u64::from(length);
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let (mut submitted, mut done) = (0_u64, 0_u64);
    let used = cpu::used(process);
    let begin = Instant::now();
    // The clock is not read for each small request: that would be a part of what is measured.
    let looks = if row.block < 64 << 10 { 64 } else { 1 };
    while begin.elapsed() < time {
        for _ in 0..looks {
            while client.in_flight() < row.depth {
                let number = match row.pattern {
                    Pattern::SequentialWrite => submitted % blocks,
                    _ => next(&mut random) % blocks,
                };
                let offset = number * u64::from(length);
                let command = match row.pattern {
                    Pattern::RandomRead => Command::Read { offset, length, flags: 0 },
                    // Another piece at another time, so that no write repeats what stands there.
                    _ => Command::Write { offset, data: pool.piece(submitted, row.block), flags: 0 },
                };
                submitted += 1;
                client.submit(submitted, command)?;
            }
            done += completed(&mut client)?;
        }
    }
    // nbdkit aborts when a client leaves with requests in flight.
    while client.in_flight() > 0 {
        done += completed(&mut client)?;
    }
    let rate = done as f64 / begin.elapsed().as_secs_f64();
    let cpu = cpu::each(&used, &cpu::used(process), done as f64);
    client.disconnect()?;
    Ok(Loaded { rate, cpu })
}

fn completed(client: &mut Client) -> Result<u64, ClientError> {
    match client.complete(true)? {
        Some(completion) => completion.result.map(|()| 1).map_err(ClientError::from),
        None => Ok(0),
    }
}

/// Bytes a second of writing the pool's data into a new file, past the page cache where that can be, and syncing it: what the
/// disk takes.
pub(crate) fn disk_rate(directory: &Path, pool: &Pool) -> io::Result<f64> {
    const PIECE: usize = 4 * MIB;
    let storage = Disk::open(directory).map_err(io::Error::other)?;
    let file = storage.create_streamed("rate.tmp").map_err(io::Error::other)?;
    file.preallocate(Extent::new(0, SOURCE_BYTES)).map_err(io::Error::other)?;
    let mut buffer = BufferPool::new(PIECE, 1).take();
    let begin = Instant::now();
    for number in 0..SOURCE_BYTES / PIECE as u64 {
        buffer.copy_from_slice(pool.piece(number, PIECE));
        file.write_all_at(number * PIECE as u64, &buffer).map_err(io::Error::other)?;
    }
    file.sync().map_err(io::Error::other)?;
    let rate = SOURCE_BYTES as f64 / begin.elapsed().as_secs_f64();
    storage.remove("rate.tmp").map_err(io::Error::other)?;
    Ok(rate)
}
