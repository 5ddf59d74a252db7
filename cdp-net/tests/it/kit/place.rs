//! A directory of a test's own: sources, a replica, and what a filter keeps whose replica is elsewhere.

use super::noise;
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::Replica;
use cdp_core::trust::KeyHolder;
use cdp_net::far::Far;
use cdp_net::host::load_idle;
use cdp_net::owner::Owner;
use cdp_net::protect::{
    GivenSources, Notice, ProtectError, ProtectOptions, Protection, ProtectionOptions, SourceOptions, State,
};
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) const DISK: usize = 24 << 20;

pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn source(&self, name: &str) -> PathBuf {
        self.path(name)
    }

    pub(crate) fn replica(&self) -> PathBuf {
        self.path("replica")
    }

    /// What a filter keeps whose replica is elsewhere.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn make_source(&self, name: &str, seed: u64) -> Vec<u8> {
        let mut content = noise(seed, DISK);
        // Holes and zeros, as disks have them.
        content[5 << 20..11 << 20].fill(0);
        std::fs::write(self.source(name), &content).unwrap();
        content
    }

    fn sources(&self, names: &[&str]) -> Vec<SourceOptions> {
        let source = |name: &&str| SourceOptions { name: (*name).to_owned(), path: self.source(name) };
        names.iter().map(source).collect()
    }

    /// With the replica here.
    pub(crate) fn options(&self, names: &[&str]) -> ProtectOptions {
        ProtectOptions::new(self.sources(names), self.replica())
    }

    /// With the replica elsewhere, as `machine`.
    pub(crate) fn options_for_far(&self, names: &[&str]) -> ProtectionOptions {
        ProtectionOptions {
            sources: self.sources(names),
            name: Some("machine".into()),
            policy: Default::default(),
            trust_source: false,
            full_check: false,
            queue_bytes: 64 << 20,
            reread_threads: 3,
        }
    }

    pub(crate) fn protect(
        &self,
        options: &ProtectionOptions,
        far: &Arc<dyn Far>,
        notices: impl Fn(Notice) + Send + 'static,
    ) -> Result<Protection, ProtectError> {
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(self.state()).unwrap());
        let state = State { storage, owner: Some(Arc::new(Owner::acquire(&self.state()).unwrap())) };
        Protection::start(options, GivenSources::open(&options.sources).unwrap(), state, far, notices)
    }

    /// The replica as a reader without an owner sees it.
    pub(crate) fn load(&self) -> Replica {
        let storage: Arc<dyn Storage> = Arc::new(Disk::open(self.replica()).unwrap());
        load_idle(&storage, &KeyHolder::default()).unwrap()
    }
}
