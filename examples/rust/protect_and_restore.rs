//! Protects a disk from a program of your own, breaks it, and brings a moment of it back: the library without the command.
//!
//! `cargo run --example protect_and_restore`

use bytes::Bytes;
use cdp_core::media::{Disk, Storage};
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::host::load_idle;
use cdp_net::nbd::{Address, Server, ServerOptions};
use cdp_net::protect::{ProtectOptions, Protector, SourceOptions};
use cdp_net::restore::{RestoreOptions, restore};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::temp_dir().join(format!("cdp-example-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let outcome = story(&directory);
    std::fs::remove_dir_all(&directory)?;
    outcome
}

fn story(directory: &std::path::Path) -> Result<(), Box<dyn Error>> {
    // A disk: any raw image or block device will do.
    let (disk, replica) = (directory.join("disk.img"), directory.join("replica"));
    std::fs::write(&disk, vec![0x55; 16 << 20])?;

    // Protect it. Its first copy is made in the background; the disk can be used at once.
    let source = SourceOptions { name: "disk".into(), path: disk };
    let protector = Protector::start(&ProtectOptions::new(vec![source], replica.clone()), |notice| {
        println!("  {notice:?}");
    })?;

    // Serve it to real clients over NBD, or write to it yourself: both take the same way.
    let address = Address::Unix(directory.join("socket"));
    let server = Server::start(ServerOptions::new(address, protector.exports().to_vec()))?;
    println!("served at {}", server.uris()[0]);
    let device = Arc::clone(&protector.exports()[0].device);
    device.write(1 << 20, Bytes::from(vec![0xaa; 4096]), true)?;

    // A moment to come back to. Before the first copy is complete no moment can be restored: wait for it.
    while protector.status().state == cdp_core::capture::State::Seeding {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = "before-the-accident".parse()?;
    let lsn = protector.mark(&before)?;
    println!("marked at LSN {lsn}");

    // The accident.
    device.write(0, Bytes::from(vec![0xee; 8 << 20]), true)?;
    server.stop(Duration::from_secs(5));
    let summary = protector.stop(Duration::from_secs(30), &|| false);
    println!("stopped, everything durable: {}", summary.drained);

    // Bring the moment back.
    let storage: Arc<dyn Storage> = Arc::new(Disk::open(&replica)?);
    let kept = load_idle(&storage, &KeyHolder::default())?;
    let moment = kept.resolve(&When::Label(before))?;
    let view = kept.view(moment.timeline, moment.lsn)?;
    let output = directory.join("restored.img");
    let options = RestoreOptions { output: output.clone(), disk: None, force: false };
    restore(&view, &options, &mut |_, _| true)?;
    let restored = std::fs::read(output)?;
    let right = |at: usize, byte: u8| restored[at..at + 4096].iter().all(|found| *found == byte);
    if !(right(0, 0x55) && right(1 << 20, 0xaa) && right((1 << 20) + 4096, 0x55)) {
        return Err("the restored disk is not what was marked".into());
    }
    println!("the disk is back as it was at the mark");
    Ok(())
}
