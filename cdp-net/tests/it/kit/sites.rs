//! A filter and its replica at two sites, with proxies between them where a test wants some.

use super::{Host, Place, identity, peers, replicas, wait_for, when_free, write_to};
use bytes::Bytes;
use cdp_core::capture::State;
use cdp_core::policy::traffic::Rules;
use cdp_core::replica::Replica;
use cdp_net::far::{Far, Remote};
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::AcceptOptions;
use cdp_net::link::pin::Peers;
use cdp_net::protect::{Notice, ProtectError, Protection, ProtectionOptions};
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::proxy::{Mode, Proxy, ProxyOptions};
use cdp_net::services::role::Notes;
use cdp_net::services::traffic::Traffic;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// As the filter of `machine`, to whoever is `peer` at one of these places.
pub(crate) fn far_options(to: &[SocketAddr], peer: &Identity) -> FarOptions {
    FarOptions {
        to: to.iter().map(ToString::to_string).collect(),
        peers: Peers::new([peer.fingerprint()]),
        tenant: String::new(),
        name: "machine".into(),
        spool: None,
        memory_bytes: 1 << 30,
        silence_ms: 1_500,
        connections: 0,
        ticket: Bytes::new(),
        traffic: Traffic::encrypted(),
    }
}

/// What parts say to people.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    /// Where they say it; a test that fails shows it.
    pub(crate) fn notes(&self) -> Notes {
        let told = Arc::clone(&self.0);
        Notes::new(move |sentence| {
            eprintln!("{sentence}");
            told.lock().unwrap().push(sentence.to_owned());
        })
    }

    /// How often this was said.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|sentence| sentence.contains(what)).count()
    }
}

/// Sites with identities of their own.
pub(crate) struct Sites {
    pub(crate) place: Place,
    pub(crate) host: Host,
    pub(crate) queue_bytes: u64,
    pub(crate) full_check: bool,
    /// By the proxies.
    pub(crate) told: Told,
}

impl Sites {
    /// The filter sends straight to the host.
    pub(crate) fn new() -> Self {
        Self::listing(&[("filter", "acme")])
    }

    /// The host lets in these.
    pub(crate) fn listing(listed: &[(&'static str, &'static str)]) -> Self {
        let place = Place::new();
        let host = Host::start(place.directory.path(), listed);
        Self { place, host, queue_bytes: 64 << 20, full_check: false, told: Told::default() }
    }

    pub(crate) fn identity(&self, name: &str) -> Arc<Identity> {
        identity(self.place.directory.path(), name)
    }

    pub(crate) fn replicas(&self) -> PathBuf {
        replicas(self.place.directory.path())
    }

    pub(crate) fn far_options(&self, to: SocketAddr) -> FarOptions {
        far_options(&[to], &self.identity("host"))
    }

    pub(crate) fn protect(&self, to: SocketAddr, name: &str) -> Result<Protection, ProtectError> {
        self.protect_over(self.far_options(to), name, |_| {})
    }

    pub(crate) fn protect_over(
        &self,
        far: FarOptions,
        name: &str,
        notices: impl Fn(Notice) + Send + 'static,
    ) -> Result<Protection, ProtectError> {
        self.protect_by(FarLink::start(self.identity("filter"), far).unwrap(), name, notices)
    }

    pub(crate) fn protect_by(
        &self,
        link: Arc<FarLink>,
        name: &str,
        notices: impl Fn(Notice) + Send + 'static,
    ) -> Result<Protection, ProtectError> {
        let far: Arc<dyn Far> = Arc::new(Remote::new(link));
        let options = ProtectionOptions {
            full_check: self.full_check,
            queue_bytes: self.queue_bytes,
            ..self.place.options_for_far(&[name])
        };
        self.place.protect(&options, &far, notices)
    }

    /// A proxy that is called so, with a cache that is called so; dropping it loses what it has in memory.
    pub(crate) fn proxy(
        &self,
        name: &'static str,
        cache: &str,
        at: SocketAddr,
        listed: &[(&str, &str)],
        to: &[SocketAddr],
        mode: Mode,
    ) -> Proxy {
        let options = ProxyOptions {
            name,
            listen: at.to_string(),
            to: to.iter().map(ToString::to_string).collect(),
            ticket: Bytes::new(),
            mode,
            cache: Some(self.place.path(cache)),
            memory_bytes: 64 << 20,
            disk_bytes: 1 << 30,
            connections: 1,
            tickets: None,
            accept: AcceptOptions::default(),
        };
        when_free(|| {
            let book = peers(self.place.directory.path(), listed);
            let notes = self.told.notes();
            let runtime = self.host.runtime.handle();
            Proxy::start(runtime, self.identity(name), book, notes, Rules::default(), options.clone())
        })
    }

    /// The replica, once nobody keeps it, and the place in which it is.
    pub(crate) fn load(mut self) -> (Replica, Place) {
        self.host.stop();
        std::fs::rename(self.replicas().join("acme/machine"), self.place.replica()).unwrap();
        (self.place.load(), self.place)
    }
}

/// Waits until everything is durable and nothing is compared any more.
pub(crate) fn settled(protection: &Protection) {
    let lsn = protection.status().lsn;
    wait_for("everything to be restorable", || {
        let status = protection.status();
        status.state == State::Protecting && status.restorable >= lsn
    });
}

/// Ends it; nothing is left to do.
pub(crate) fn stop(protection: Protection) {
    let summary = protection.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained && summary.manifest_stored, "{summary:?}");
}

/// Writes to the first disk, and to what somebody knows of it.
pub(crate) fn write(protection: &Protection, model: &mut [u8], offset: usize, data: Vec<u8>) {
    write_to(protection.exports()[0].device.as_ref(), model, offset as u64, data);
}
