//! A disk under protection and a guest that writes to it: what most tests begin with.

use super::{Guest, Place, Running, hash, mark, restore};
use std::path::PathBuf;

pub(crate) struct Scene {
    pub(crate) guest: Guest,
    pub(crate) running: Running,
    pub(crate) source: PathBuf,
    pub(crate) replica: PathBuf,
    pub(crate) place: Place,
}

impl Scene {
    /// A disk of so many bytes, protected into a replica beside it.
    pub(crate) fn begin(seed: u64, bytes: usize) -> Self {
        let place = Place::new();
        let replica = place.path("replica");
        Self::begin_with(place, replica, &[], seed, bytes)
    }

    /// The same, with the replica elsewhere and more arguments.
    pub(crate) fn begin_with(place: Place, replica: PathBuf, more: &[&str], seed: u64, bytes: usize) -> Self {
        let source = place.source("disk.img", seed, bytes);
        let running = Running::protect(&[&source], &replica, &place.socket("nbd"), more).protecting();
        let guest = Guest::connect(running.uri(), &source, seed);
        Self { guest, running, source, replica, place }
    }

    /// Protects again after an end, with another guest.
    pub(crate) fn begin_again(&mut self, seed: u64) {
        self.running = Running::protect(&[&self.source], &self.replica, &self.place.socket("nbd"), &[]).protecting();
        self.guest = Guest::connect(self.running.uri(), &self.source, seed);
    }

    /// The guest goes on, and the moment is named: what the disk holds then.
    pub(crate) fn marked(&mut self, label: &str) -> Vec<u8> {
        self.guest.work(25);
        mark(&self.replica, label);
        self.guest.model.clone()
    }

    /// What a restored moment holds, in short.
    pub(crate) fn restored(&self, at: &str) -> blake3::Hash {
        let output = self.place.path("out.img");
        restore(&self.replica, at, &output).done();
        hash(&output)
    }
}
