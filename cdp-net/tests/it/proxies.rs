//! A filter, two proxies and a replica host: nothing is lost, whichever of them goes.

use crate::protect::{Place, label, noise, restored, wait_for};
use crate::wan::network::{Wan, Weather};
use bytes::Bytes;
use cdp_core::capture::State as Filtering;
use cdp_core::media::{Disk, Storage};
use cdp_core::policy::traffic::Rules;
use cdp_core::replica::Replica;
use cdp_core::when::When;
use cdp_net::far::{Far, OpenView, ReadName, Remote};
use cdp_net::keeper::KeeperOptions;
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::AcceptOptions;
use cdp_net::link::pin::Peers;
use cdp_net::moment::MomentDisks;
use cdp_net::owner::Owner;
use cdp_net::protect::{GivenSources, Protection, ProtectionOptions, SourceOptions, State};
use cdp_net::services::config::Peer;
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::peers::PeerBook;
use cdp_net::services::proxy::{Mode, Proxy, ProxyOptions};
use cdp_net::services::remote_reading::{RemoteOptions, RemoteReplica};
use cdp_net::services::replica_host::{ReplicaHost, ReplicaHostOptions};
use cdp_net::services::role::Notes;
use cdp_net::services::traffic::Traffic;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The chain, each part with an identity of its own.
struct Chain {
    place: Place,
    runtime: Runtime,
    host: Option<ReplicaHost>,
    host_at: SocketAddr,
}

impl Chain {
    fn new() -> Self {
        let (place, runtime) = (Place::new(), Runtime::new().unwrap());
        let mut chain = Self { place, runtime, host: None, host_at: ([127, 0, 0, 1], 0).into() };
        chain.start_host();
        chain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.directory.path().join(name)
    }

    fn identity(&self, name: &str) -> Arc<Identity> {
        Arc::new(Identity::open_or_make(&self.path(name), name).unwrap())
    }

    fn book(&self, peers: &[(&str, &str)]) -> PeerBook {
        let peer = |(name, tenant): &(&str, &str)| Peer {
            name: (*name).into(),
            fingerprint: self.identity(name).fingerprint().to_string(),
            tenant: (*tenant).into(),
        };
        PeerBook::new(&peers.iter().map(peer).collect::<Vec<_>>())
    }

    fn start_host(&mut self) {
        let options = ReplicaHostOptions {
            listen: self.host_at.to_string(),
            directory: self.path("replicas"),
            peers: self.book(&[("target", "*")]),
            tickets: None,
            groups_max: 10,
            keeper: KeeperOptions { waiting_bytes_max: 32 << 20, ..KeeperOptions::default() },
            accept: AcceptOptions::default(),
        };
        let mut tries = 0;
        let host = loop {
            match self.runtime.block_on(ReplicaHost::start(self.identity("host"), options.clone())) {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries < 100 => tries += 1,
                started => break started.unwrap(),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        self.host_at = host.address();
        self.host = Some(host);
    }

    fn stop_host(&mut self) {
        let host = self.host.take().unwrap();
        self.runtime.block_on(host.stop());
    }

    fn proxy(
        &self,
        name: &'static str,
        cache: &str,
        at: SocketAddr,
        peers: &[(&str, &str)],
        to: &[SocketAddr],
        mode: Mode,
    ) -> Proxy {
        let options = ProxyOptions {
            name,
            listen: at.to_string(),
            to: to.iter().map(ToString::to_string).collect(),
            ticket: Bytes::new(),
            mode,
            cache: Some(self.path(cache)),
            memory_bytes: 64 << 20,
            disk_bytes: 1 << 30,
            connections: 1,
            tickets: None,
            accept: AcceptOptions::default(),
        };
        let mut tries = 0;
        loop {
            let (peers, notes) = (self.book(peers), Notes::new(|sentence| eprintln!("{sentence}")));
            let runtime = self.runtime.handle();
            match Proxy::start(runtime, self.identity(name), peers, notes, Rules::default(), options.clone()) {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries < 100 => tries += 1,
                started => break started.unwrap(),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The provider's: its source proxies speak for the tenant.
    fn target(&self, at: SocketAddr, to: SocketAddr) -> Proxy {
        self.proxy("target", "target-cache", at, &[("source", "acme"), ("host", "*")], &[to], Mode::Pass)
    }

    fn source(&self, cache: &str, at: SocketAddr, to: &[SocketAddr]) -> Proxy {
        self.proxy("source", cache, at, &[("filter", "*"), ("target", "*")], to, Mode::Compress { level: 3 })
    }

    fn protect(&self, to: &[SocketAddr]) -> Protection {
        let options = FarOptions {
            to: to.iter().map(ToString::to_string).collect(),
            peers: Peers::new([self.identity("source").fingerprint()]),
            tenant: String::new(),
            name: "machine".into(),
            spool: None,
            memory_bytes: 1 << 30,
            silence_ms: 1_500,
            connections: 0,
            ticket: Bytes::new(),
            traffic: Traffic::default(),
        };
        let link = FarLink::start(self.identity("filter"), options).unwrap();
        let far: Arc<dyn Far> = Arc::new(Remote::new(link));
        let sources = vec![SourceOptions { name: "disk".into(), path: self.place.source("disk") }];
        let options = ProtectionOptions {
            sources: sources.clone(),
            name: Some("machine".into()),
            policy: Default::default(),
            trust_source: false,
            full_check: false,
            queue_bytes: 64 << 20,
            reread_threads: 3,
        };
        let directory = self.path("state");
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(&directory).unwrap());
        let state = State { storage, owner: Some(Owner::acquire(&directory).unwrap()) };
        Protection::start(&options, GivenSources::open(&sources).unwrap(), state, &far, |_| {}).unwrap()
    }

    /// The replica, once nobody keeps it, and the place in which it is.
    fn load(mut self) -> (Replica, Place) {
        self.stop_host();
        std::fs::rename(self.path("replicas").join("acme/machine"), self.place.replica()).unwrap();
        (self.place.load(), self.place)
    }
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn write(protection: &Protection, model: &mut [u8], offset: usize, data: Vec<u8>) {
    model[offset..offset + data.len()].copy_from_slice(&data);
    protection.exports()[0].device.write(offset as u64, Bytes::from(data), false).unwrap();
}

fn stop(protection: Protection) {
    let summary = protection.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained && summary.manifest_stored, "{summary:?}");
}

/// Each part in turn is lost under load, with what it had in memory; proxies come back with their caches, or not at all.
#[test]
fn whichever_part_is_lost_nothing_is_and_no_gap_is_made() {
    let mut chain = Chain::new();
    let mut model = chain.place.make_source("disk", 4);
    let wan = Wan::start(chain.host_at);
    let mut target = chain.target(any(), wan.address());
    let far = Wan::start(target.address());
    let mut source = chain.source("first", any(), &[far.address()]);
    let second = chain.source("second", any(), &[far.address()]);
    let protection = chain.protect(&[source.address(), second.address()]);
    wait_for("the first copy", || protection.status().state == Filtering::Protecting);
    far.set(Weather { delay: Duration::from_millis(2), rate: 60 << 20, loss_ppm: 300 });
    let mut marks = Vec::new();
    for round in 0..10 {
        for piece in 0..12_u64 {
            let at = (piece as usize * 41 + round * 13) << 12;
            write(&protection, &mut model, at, noise(round as u64 * 100 + piece, 48 << 10));
        }
        match round % 5 {
            0 => far.cut(),
            1 => {
                let at = source.address();
                drop(source);
                source = chain.source("first", at, &[far.address()]);
            }
            2 => {
                let at = target.address();
                drop(target);
                target = chain.target(at, wan.address());
            }
            3 => {
                chain.stop_host();
                chain.start_host();
            }
            _ => wan.silence(),
        }
        write(&protection, &mut model, round << 20, noise(round as u64, 8192));
        std::thread::sleep(Duration::from_millis(300));
        far.mend();
        wan.mend();
        let written = protection.status().lsn;
        wait_for("what was written meanwhile", || protection.status().durable >= written);
        let name = format!("round {round}");
        protection.mark(&label(&name)).unwrap_or_else(|why| panic!("{name}: {why:?}: {:?}", protection.status()));
        marks.push((name, model.clone()));
    }
    let status = protection.status();
    assert_eq!((status.counters.gaps, status.counters.resyncs), (0, 1), "only the first copy was one: {status:?}");
    stop(protection);
    assert_eq!((source.stop(Duration::from_secs(20)), second.stop(Duration::from_secs(20))), (0, 0));
    assert_eq!(target.stop(Duration::from_secs(20)), 0);
    drop((source, second, target, far, wan));
    let (replica, _place) = chain.load();
    for (name, model) in marks {
        assert!(restored(&replica, &When::Label(label(&name)), "disk") == model, "{name}");
    }
    assert_eq!(replica.manifest().timelines.len(), 1);
}

/// The cache of a proxy is what is left when the source is gone and the line comes back.
#[test]
fn what_a_proxy_has_stored_comes_through_without_its_source() {
    let chain = Chain::new();
    let mut model = chain.place.make_source("disk", 5);
    let target = chain.target(any(), chain.host_at);
    let far = Wan::start(target.address());
    let source = chain.source("first", any(), &[far.address()]);
    let at = source.address();
    let protection = chain.protect(&[at]);
    wait_for("the first copy", || protection.status().state == Filtering::Protecting);
    far.cut();
    (0..40).for_each(|piece| write(&protection, &mut model, piece << 16, noise(piece as u64, 40 << 10)));
    let written = protection.status().lsn;
    wait_for("the cache", || source.stored("machine") >= Some(written));
    // The source is gone for good, and the proxy is started anew.
    drop((protection, source));
    let source = chain.source("first", at, &[far.address()]);
    far.mend();
    assert_eq!(source.stop(Duration::from_secs(20)), 0);
    drop((source, target));
    let (replica, _place) = chain.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}

/// What is read has a lease at the host: proxies come and go between, and nothing has to be opened again.
#[test]
fn a_moment_is_read_through_proxies_one_of_which_is_started_anew() {
    let chain = Chain::new();
    let mut model = chain.place.make_source("disk", 9);
    let target = chain.target(any(), chain.host_at);
    let target_at = target.address();
    let source = chain.source("first", any(), &[target_at]);
    let protection = chain.protect(&[source.address()]);
    wait_for("the first copy", || protection.status().state == Filtering::Protecting);
    write(&protection, &mut model, 4096, noise(3, 64 << 10));
    protection.mark(&label("one")).unwrap();
    let at_one = model.clone();
    let url = format!("cdp://{}/machine", source.address()).parse().unwrap();
    let peers = Peers::new([chain.identity("source").fingerprint()]);
    let options = RemoteOptions { url, tenant: String::new(), peers, ticket: Bytes::new() };
    let replica = RemoteReplica::open(chain.identity("filter"), options).unwrap();
    let at = Some(When::Label(label("one")));
    let lab = Some("lab".to_owned());
    let order = OpenView { view: ReadName::draw(), at, nearest: None, disk: None, writable: true, session: lab };
    let session = replica.view(order.clone()).unwrap();
    let view = replica.view(OpenView { writable: false, session: None, ..order }).unwrap();
    let read = |view: &dyn MomentDisks| {
        let mut content = vec![0; at_one.len()];
        view.read(view.disks()[0].id, 0, &mut content).unwrap();
        content
    };
    assert!(read(view.as_ref()) == at_one);
    write(&protection, &mut model, 1 << 20, noise(4, 64 << 10));
    drop(target);
    let _target = chain.target(target_at, chain.host_at);
    assert!(read(view.as_ref()) == at_one && read(session.as_ref()) == at_one);
    assert!(replica.verify(&mut |_, _| true).unwrap().ok);
    stop(protection);
}

/// The first of each list does not let them in, for good: the second one does.
#[test]
fn who_is_refused_by_one_turns_to_the_next() {
    let chain = Chain::new();
    let mut model = chain.place.make_source("disk", 9);
    let target = chain.target(any(), chain.host_at);
    let strange_target = chain.proxy("target", "strange-target", any(), &[("host", "*")], &[chain.host_at], Mode::Pass);
    let source = chain.source("first", any(), &[strange_target.address(), target.address()]);
    let strange_source = chain.proxy(
        "source",
        "strange-source",
        any(),
        &[("target", "*")],
        &[target.address()],
        Mode::Compress { level: 3 },
    );
    let protection = chain.protect(&[strange_source.address(), source.address()]);
    wait_for("the first copy", || protection.status().state == Filtering::Protecting);
    write(&protection, &mut model, 8192, noise(1, 64 << 10));
    stop(protection);
    assert_eq!(source.stop(Duration::from_secs(20)), 0);
    drop((source, strange_source, target, strange_target));
    let (replica, _place) = chain.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
}
