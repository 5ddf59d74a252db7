//! Block devices as source and as target: opened exclusively, compared at every start, restored in place.

use crate::support::{Guest, Place, Running, cdp, hash, mark, noise, restore};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const DISK: usize = 8 << 20;

/// A loop device over a file, detached when this is dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None`, and a word about it, where this machine does not allow it.
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let made = made.ok().filter(|made| made.status.success());
        let Some(made) = made else {
            println!("skipped: losetup makes no loop device here (it takes root)");
            return None;
        };
        Some(Self(String::from_utf8(made.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn protect(device: &Loop, replica: &Path, listen: &str, more: &[&str]) -> Running {
    Running::protect(&[&device.0], replica, listen, more)
}

fn compared(running: &Running) -> Value {
    running.wait_event("the start", |event| event["event"] == "opened")["compared"].clone()
}

#[test]
fn a_block_device_is_protected_and_compared_at_each_start_unless_it_is_trusted() {
    let place = Place::new();
    let image = place.source("disk.img", 71, DISK);
    let Some(device) = Loop::over(&image) else { return };
    let (replica, listen) = (place.path("replica"), place.socket("nbd"));
    let mut running = protect(&device, &replica, &listen, &[]).protecting();
    // Exclusively: nobody mounts it, and no second protection begins.
    let other = Running::try_protect(&[&device.0], &place.path("other"), &place.socket("other"), &[]).err().unwrap();
    assert_eq!((other.0, other.1["error"]["code"].as_str()), (4, Some("source-in-use")), "{}", other.1);
    let mut guest = Guest::connect(running.uri(), &device.0, 71);
    guest.work(40);
    mark(&replica, "before");
    let before = guest.hash();
    guest.work(40);
    running.stop_clean();
    assert_eq!(hash(&device.0), guest.hash());
    // Somebody writes to it while nobody protects it: the times of a device do not tell.
    let written = noise(72, 64 << 10);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&device.0).unwrap(),
        &written,
        1 << 20,
    )
    .unwrap();
    let mut running = protect(&device, &replica, &listen, &[]);
    assert_eq!(compared(&running), "everything");
    running = running.protecting();
    running.stop_clean();
    let output = place.path("out.img");
    restore(&replica, "latest", &output).done();
    assert_eq!(hash(&output), hash(&device.0));
    restore(&replica, "before", &output).done();
    assert_eq!(hash(&output), before);
    let mut running = protect(&device, &replica, &listen, &["--trust-source"]);
    assert_eq!(compared(&running), "nothing");
    running = running.protecting();
    running.stop_clean();
}

#[test]
fn a_moment_is_restored_onto_a_block_device_only_by_force_and_never_onto_a_smaller_one() {
    let place = Place::new();
    let (source, target) = (place.source("disk.img", 73, DISK), place.source("target.img", 74, DISK + (1 << 20)));
    let small = place.source("small.img", 75, DISK / 2);
    let (Some(target), Some(small)) = (Loop::over(&target), Loop::over(&small)) else { return };
    let replica = place.path("replica");
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    let mut guest = Guest::connect(running.uri(), &source, 73);
    guest.work(40);
    running.stop_clean();
    let before = hash(&target.0);
    let (directory, device) = (replica.to_str().unwrap(), target.0.to_str().unwrap());
    cdp(&["restore", directory, "--at", "latest", "--output", device]).failed(4, "output-exists");
    assert_eq!(hash(&target.0), before);
    let before = hash(&small.0);
    assert_ne!(restore(&replica, "latest", &small.0).status, 0);
    assert_eq!(hash(&small.0), before, "too small: not a byte is written");
    restore(&replica, "latest", &target.0).done();
    let written = std::fs::read(&target.0).unwrap();
    assert_eq!(blake3::hash(&written[..DISK]), guest.hash());
}
