//! Sources that are not what they were, or not what somebody thinks: given twice, in each other's place, exchanged, empty.

use crate::support::{Guest, Place, Running, hash, mark, restore};
use serde_json::Value;
use std::path::{Path, PathBuf};

const DISK: usize = 6 << 20;

/// The error of a protection that must not begin.
fn refused(sources: &[String], replica: &Path, listen: &str, more: &[&str], status: i32, code: &str) -> Value {
    let sources: Vec<&Path> = sources.iter().map(Path::new).collect();
    let end = Running::try_protect(&sources, replica, listen, more).err().unwrap_or_else(|| panic!("no {code}"));
    assert_eq!((end.0, end.1["error"]["code"].as_str()), (status, Some(code)), "{end:?}");
    end.1["error"].clone()
}

/// Two disks of one size under names of their own.
struct Two {
    place: Place,
    files: [PathBuf; 2],
    replica: PathBuf,
}

impl Two {
    fn new(seed: u64) -> Self {
        let place = Place::new();
        let files = [place.source("one.img", seed, DISK), place.source("two.img", seed + 1, DISK)];
        let replica = place.path("replica");
        Self { place, files, replica }
    }

    /// The sources as arguments: the file that stands for `root`, then that for `data`.
    fn named(&self, root: usize, data: usize) -> [String; 2] {
        [format!("root={}", self.files[root].display()), format!("data={}", self.files[data].display())]
    }

    fn run(&self, root: usize, data: usize, more: &[&str]) -> Running {
        let named = self.named(root, data);
        let paths: Vec<&Path> = named.iter().map(Path::new).collect();
        Running::protect(&paths, &self.replica, &self.place.socket("nbd"), more)
    }

    fn check(&self) {
        let directory = format!("{}/", self.place.path("out").display());
        restore(&self.replica, "latest", Path::new(&directory)).done();
        for (name, file) in ["root.img", "data.img"].iter().zip(&self.files) {
            assert_eq!(hash(&self.place.path("out").join(name)), hash(file), "{name}");
        }
    }
}

#[test]
fn sources_of_one_size_that_changed_places_are_refused() {
    for killed in [false, true] {
        let two = Two::new(50);
        let mut running = two.run(0, 1, &[]).protecting();
        Guest::connect(running.uri(), &two.files[0], 50).work(20);
        if killed {
            drop(running)
        } else {
            running.stop_clean()
        }
        let listen = two.place.socket("nbd");
        for more in [&[][..], &["--trust-source"]] {
            let refused = refused(&two.named(1, 0), &two.replica, &listen, more, 4, "sources-swapped");
            let message = refused["message"].as_str().unwrap();
            assert!(message.contains("two.img") && message.contains("data") && message.contains("root"), "{refused}");
        }
        // In the right order nothing has happened.
        two.run(0, 1, &[]).protecting().stop_clean();
        two.check();
    }
}

/// Whoever means it gets what is really there.
#[test]
fn a_swap_that_is_meant_is_compared_wholly() {
    let mut two = Two::new(52);
    two.run(0, 1, &[]).protecting().stop_clean();
    two.run(1, 0, &["--full-check"]).protecting().stop_clean();
    two.files.swap(0, 1);
    two.check();
}

/// After a crash the log names what was hot at the old file, which says nothing about the new one.
#[test]
fn a_source_that_was_exchanged_after_a_kill_is_compared_wholly() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 54, DISK), place.path("replica"));
    let running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    Guest::connect(running.uri(), &source, 54).work(5);
    mark(&replica, "before");
    drop(running);
    let other = place.source("other.img", 55, DISK);
    std::fs::rename(&other, &source).unwrap();
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    let opened = running.wait_event("opened", |event| event["event"] == "opened");
    assert_eq!((opened["clean"].as_bool(), opened["compared"].as_str()), (Some(false), Some("everything")));
    running.stop_clean();
    let output = place.path("out.img");
    restore(&replica, "latest", &output).done();
    assert_eq!(hash(&output), hash(&source));
}

#[test]
fn a_source_that_is_given_twice_is_said_to_be() {
    let place = Place::new();
    let source = place.source("disk.img", 56, DISK);
    let (linked, pointed) = (place.path("linked.img"), place.path("pointed.img"));
    std::fs::hard_link(&source, &linked).unwrap();
    std::os::unix::fs::symlink(&source, &pointed).unwrap();
    for again in [&source, &linked, &pointed] {
        let sources = [format!("a={}", source.display()), format!("b={}", again.display())];
        let (replica, listen) = (place.path("replica"), place.socket("nbd"));
        let refused = refused(&sources, &replica, &listen, &[], 2, "source-twice");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(again.to_str().unwrap()) && message.contains("same disk"), "{refused}");
    }
    assert!(!place.path("replica").exists(), "nothing was begun");
}

#[test]
fn an_empty_source_is_told_what_it_needs() {
    let place = Place::new();
    let source = place.path("empty.img");
    std::fs::write(&source, "").unwrap();
    let sources = [source.display().to_string()];
    let refused = refused(&sources, &place.path("replica"), &place.socket("nbd"), &[], 1, "source");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("is empty") && message.contains("truncate -s 10G"), "{refused}");
}
