//! A replica host in the test's own process, and the identities of those who come to it.

use super::wait_for;
use cdp_net::keeper::KeeperOptions;
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::AcceptOptions;
use cdp_net::services::config::Peer;
use cdp_net::services::peers::PeerBook;
use cdp_net::services::replica_host::{ReplicaHost, ReplicaHostOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Of whoever is called so in this test; made where there is none.
pub(crate) fn identity(root: &Path, name: &str) -> Arc<Identity> {
    Arc::new(Identity::open_or_make(&root.join(name), name).unwrap())
}

/// Each of those who may come, with the tenant that he speaks for.
pub(crate) fn peers(root: &Path, listed: &[(&str, &str)]) -> PeerBook {
    let peer = |(name, tenant): &(&str, &str)| Peer {
        name: (*name).into(),
        fingerprint: identity(root, name).fingerprint().to_string(),
        tenant: (*tenant).into(),
    };
    PeerBook::new(&listed.iter().map(peer).collect::<Vec<_>>())
}

/// Any port of this machine.
pub(crate) fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Where all replicas of a test are.
pub(crate) fn replicas(root: &Path) -> PathBuf {
    root.join("replicas")
}

pub(crate) fn host_options(root: &Path, listen: SocketAddr, peers: PeerBook) -> ReplicaHostOptions {
    ReplicaHostOptions {
        listen: listen.to_string(),
        directory: replicas(root),
        peers,
        tickets: None,
        groups_max: 10,
        keeper: KeeperOptions { waiting_bytes_max: 32 << 20, seed_sync_bytes: 2 << 20, ..KeeperOptions::default() },
        accept: AcceptOptions::default(),
    }
}

/// Starts what listens at the port of one before: that one lets go of it when its tasks have ended.
pub(crate) fn when_free<T>(mut start: impl FnMut() -> std::io::Result<T>) -> T {
    let mut started = None;
    wait_for("the port", || match start() {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => false,
        result => {
            started = Some(result.unwrap());
            true
        }
    });
    started.unwrap()
}

/// A replica host that can be stopped and started again where it was.
pub(crate) struct Host {
    root: PathBuf,
    /// Who may come from the next start on, each for his tenant.
    pub(crate) listed: Vec<(&'static str, &'static str)>,
    pub(crate) runtime: Runtime,
    running: Option<ReplicaHost>,
    pub(crate) address: SocketAddr,
}

impl Host {
    /// Lets these in, each for his tenant, by the identities that they have below `root`.
    pub(crate) fn start(root: &Path, listed: &[(&'static str, &'static str)]) -> Self {
        let runtime = Runtime::new().unwrap();
        let mut host = Self { root: root.into(), listed: listed.into(), runtime, running: None, address: any() };
        host.again();
        host
    }

    /// After it was stopped.
    pub(crate) fn again(&mut self) {
        let options = host_options(&self.root, self.address, peers(&self.root, &self.listed));
        let own = identity(&self.root, "host");
        let host = when_free(|| self.runtime.block_on(ReplicaHost::start(Arc::clone(&own), options.clone())));
        self.address = host.address();
        self.running = Some(host);
    }

    /// As by a crash of the whole process, but for the page cache.
    pub(crate) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            self.runtime.block_on(running.stop());
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Before the runtime that it stands on.
        self.running = None;
    }
}
