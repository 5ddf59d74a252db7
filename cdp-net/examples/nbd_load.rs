//! Loads an NBD export and prints the rate: `nbd_load URI read|write DEPTH BLOCK_BYTES SECONDS [SPIN_US]`.
//!
//! 256 MiB of the export are used; blocks up to 16 KiB at random places, longer ones in sequence.

use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Client, ClientOptions, Uri};
use std::time::{Duration, Instant};

const RANGE_BYTES: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [uri, mode, depth, block, seconds, rest @ ..] = &arguments[..] else {
        return Err("usage: nbd_load URI read|write DEPTH BLOCK_BYTES SECONDS [SPIN_US]".into());
    };
    let (uri, depth, block): (Uri, usize, usize) = (uri.parse()?, depth.parse()?, block.parse()?);
    let seconds = Duration::from_secs_f64(seconds.parse()?);
    let mut options = ClientOptions::default();
    if let Some(spin) = rest.first() {
        options.spin = Duration::from_micros(spin.parse()?);
    }
    let mut client = Client::connect(&uri, &options)?;
    let data = vec![0x5a; block];
    let blocks = client.size().min(RANGE_BYTES) / block as u64;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = 0;
    let begin = Instant::now();
    let mut done = 0u64;
    while begin.elapsed() < seconds {
        for _ in 0..64 {
            while client.in_flight() < depth {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                next += 1;
                let number = if block <= 16 << 10 { random % blocks } else { next % blocks };
                let offset = number * block as u64;
                let command = match mode.as_str() {
                    "read" => Command::Read { offset, length: u32::try_from(block)?, flags: 0 },
                    _ => Command::Write { offset, data: &data, flags: 0 },
                };
                client.submit(next, command)?;
            }
            if let Some(completion) = client.complete(true)? {
                completion.result?;
                done += 1;
            }
        }
    }
    let elapsed = begin.elapsed();
    // nbdkit 1.32 aborts when a client leaves with requests in flight.
    while client.complete(true)?.is_some() {}
    client.disconnect()?;
    let rate = done as f64 / elapsed.as_secs_f64();
    println!("{mode:5} {block:8} depth {depth:3} {rate:10.0} IOPS {:8.1} MiB/s", rate * block as f64 / 1_048_576.0);
    Ok(())
}
