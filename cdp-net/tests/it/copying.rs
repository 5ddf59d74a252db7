//! First copies over a link go on where they were: neither a cut line nor a host that is killed has them begin again.

use crate::kit::{Sites, host_options, identity, noise, peers, restored, seeded, stop, wait_for, when_free, write};
use crate::wan::network::{Wan, Weather};
use cdp_core::when::When;
use cdp_net::protect::Protection;
use cdp_net::services::replica_host::ReplicaHost;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;

const SIZE: usize = 64 << 20;
/// What is on its way at most, what is read ahead of the writer there, and a page of the sidecar.
const UNACKNOWLEDGED: u64 = (16 + 8 + 2) << 20;

/// A disk without a hole, and the line to its replica's site.
fn scene(sites: &Sites, seed: u64) -> (Vec<u8>, Wan) {
    let model = noise(seed, SIZE);
    std::fs::write(sites.place.source("disk"), &model).unwrap();
    let wan = Wan::start(sites.host.address);
    // So that a copy takes long enough to be cut.
    wan.set(Weather { rate: 24 << 20, ..Weather::default() });
    (model, wan)
}

/// Waits until so much of the copy is there, in fifths, and writes what was copied and what was not.
fn fifth(protection: &Protection, model: &mut [u8], number: usize) {
    let goal = (SIZE / 5 * number) as u64;
    wait_for("a part of the copy", || protection.progress().done.load(Ordering::Relaxed) >= goal);
    write(protection, model, number << 16, noise(number as u64, 8192));
    write(protection, model, SIZE - (number << 20), noise(number as u64 + 50, 8192));
}

/// No more was sent than the disk and what was not acknowledged at each of the cuts.
fn ended(protection: Protection, wan: &Wan, most_again: u64) {
    seeded(&protection);
    let sent = wan.bytes().0;
    stop(protection);
    // Headers, checksums and the guest's writes.
    let most = SIZE as u64 / 100 * 102 + most_again;
    assert!(sent <= most, "{sent} bytes were sent, {most} would be right");
}

fn equal(sites: Sites, model: &[u8]) {
    assert!(std::fs::read(sites.place.source("disk")).unwrap() == model, "the source");
    assert!(restored(&sites.load().0, &When::Latest, "disk") == model, "the replica");
}

#[test]
fn a_first_copy_goes_on_where_it_was_when_its_line_was_cut() {
    let sites = Sites::new();
    let (mut model, wan) = scene(&sites, 1);
    let protection = sites.protect(wan.address(), "disk").unwrap();
    for number in 1..5 {
        fifth(&protection, &mut model, number);
        wan.cut();
        write(&protection, &mut model, (number << 20) + 4096, noise(number as u64 + 100, 4096));
        std::thread::sleep(Duration::from_millis(100));
        wan.mend();
    }
    ended(protection, &wan, 4 * UNACKNOWLEDGED);
    equal(sites, &model);
}

/// The process of the next test: a replica host, until it is killed.
#[test]
fn the_host_that_is_killed() {
    let (Some(directory), Ok(address)) = (std::env::var_os("CDP_HOST_PLACE"), std::env::var("CDP_HOST_ADDRESS")) else {
        return;
    };
    let (directory, runtime) = (Path::new(&directory), Runtime::new().unwrap());
    let options = host_options(directory, address.parse().unwrap(), peers(directory, &[("filter", "acme")]));
    // Who dials it meanwhile may have been given that very port.
    let own = identity(directory, "host");
    let host = when_free(|| runtime.block_on(ReplicaHost::start(Arc::clone(&own), options.clone())));
    println!("ready {}", host.address());
    loop {
        std::thread::park();
    }
}

fn host_process(directory: &Path, address: SocketAddr) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "copying::the_host_that_is_killed", "--nocapture"])
        .env("CDP_HOST_PLACE", directory)
        .env("CDP_HOST_ADDRESS", address.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("ready ")).expect("a host that listens").unwrap();
    child
}

#[test]
fn a_first_copy_goes_on_where_it_was_synced_when_its_host_was_killed() {
    let mut sites = Sites::new();
    let (mut model, wan) = scene(&sites, 2);
    sites.host.stop();
    let directory = sites.place.directory.path().to_owned();
    let mut host = host_process(&directory, sites.host.address);
    let protection = sites.protect(wan.address(), "disk").unwrap();
    for number in [2, 4] {
        fifth(&protection, &mut model, number);
        host.kill().unwrap();
        host.wait().unwrap();
        write(&protection, &mut model, (number << 20) + 4096, noise(number as u64 + 100, 4096));
        host = host_process(&directory, sites.host.address);
    }
    // What was taken since the last sync goes too.
    ended(protection, &wan, 2 * (UNACKNOWLEDGED + (6 << 20)));
    host.kill().unwrap();
    host.wait().unwrap();
    equal(sites, &model);
}
