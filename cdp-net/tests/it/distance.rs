//! A filter and its replica at two sites, joined by a link over TLS: cut, silent, started anew.

use crate::protect::{DISK, Place, label, noise, restored, wait_for};
use crate::wan::network::{Wan, Weather};
use bytes::Bytes;
use cdp_core::capture::State as Filtering;
use cdp_core::media::{Disk, Storage};
use cdp_core::when::When;
use cdp_net::far::{Far, Remote};
use cdp_net::keeper::KeeperOptions;
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::AcceptOptions;
use cdp_net::link::pin::Peers;
use cdp_net::owner::Owner;
use cdp_net::protect::{
    Compared, GivenSources, Notice, ProtectError, Protection, ProtectionOptions, SourceOptions, State,
};
use cdp_net::services::config::Peer;
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::peers::PeerBook;
use cdp_net::services::replica_host::{ReplicaHost, ReplicaHostOptions};
use cdp_net::services::traffic::Traffic;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Two sites with identities of their own.
pub(crate) struct Sites {
    pub(crate) place: Place,
    pub(crate) runtime: Runtime,
    pub(crate) queue_bytes: u64,
    pub(crate) host: Option<ReplicaHost>,
    pub(crate) address: SocketAddr,
    pub(crate) full_check: bool,
}

impl Sites {
    pub(crate) fn new() -> Self {
        let (place, runtime) = (Place::new(), Runtime::new().unwrap());
        let mut sites = Self {
            place,
            runtime,
            queue_bytes: 64 << 20,
            host: None,
            address: ([127, 0, 0, 1], 0).into(),
            full_check: false,
        };
        sites.start_host();
        sites
    }

    pub(crate) fn identity(&self, name: &str) -> Arc<Identity> {
        Arc::new(Identity::open_or_make(&self.place.directory.path().join(name), name).unwrap())
    }

    pub(crate) fn replicas(&self) -> PathBuf {
        self.place.directory.path().join("replicas")
    }

    pub(crate) fn start_host(&mut self) {
        let filter = self.identity("filter");
        let options = ReplicaHostOptions {
            listen: self.address.to_string(),
            directory: self.replicas(),
            peers: PeerBook::new(&[Peer {
                name: "filter".into(),
                fingerprint: filter.fingerprint().to_string(),
                tenant: "acme".into(),
            }]),
            tickets: None,
            groups_max: 10,
            keeper: KeeperOptions { waiting_bytes_max: 32 << 20, ..KeeperOptions::default() },
            accept: AcceptOptions::default(),
        };
        // The one before lets go of its port when its tasks have ended.
        let mut tries = 0;
        let host = loop {
            match self.runtime.block_on(ReplicaHost::start(self.identity("host"), options.clone())) {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries < 100 => tries += 1,
                started => break started.unwrap(),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        self.address = host.address();
        self.host = Some(host);
    }

    /// As by a crash of the whole process, but for the page cache.
    pub(crate) fn stop_host(&mut self) {
        let host = self.host.take().unwrap();
        self.runtime.block_on(host.stop());
    }

    pub(crate) fn protect(&self, to: SocketAddr, name: &str) -> Result<Protection, ProtectError> {
        self.protect_over(self.far_options(to), name, |_| {})
    }

    pub(crate) fn far_options(&self, to: SocketAddr) -> FarOptions {
        FarOptions {
            to: vec![to.to_string()],
            peers: Peers::new([self.identity("host").fingerprint()]),
            tenant: String::new(),
            name: "machine".into(),
            memory_bytes: 1 << 30,
            spool: None,
            silence_ms: 1_500,
            connections: 0,
            ticket: Bytes::new(),
            traffic: Traffic::encrypted(),
        }
    }

    pub(crate) fn protect_over(
        &self,
        options: FarOptions,
        name: &str,
        notices: impl Fn(Notice) + Send + 'static,
    ) -> Result<Protection, ProtectError> {
        let link = FarLink::start(self.identity("filter"), options).unwrap();
        let far: Arc<dyn Far> = Arc::new(Remote::new(link));
        let sources = vec![SourceOptions { name: name.to_owned(), path: self.place.source(name) }];
        let options = ProtectionOptions {
            sources: sources.clone(),
            name: Some("machine".into()),
            policy: Default::default(),
            trust_source: false,
            full_check: self.full_check,
            queue_bytes: self.queue_bytes,
            reread_threads: 3,
        };
        let directory = self.place.directory.path().join("state");
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(&directory).unwrap());
        let state = State { storage, owner: Some(Owner::acquire(&directory).unwrap()) };
        Protection::start(&options, GivenSources::open(&sources).unwrap(), state, &far, notices)
    }

    /// The replica, once nobody keeps it.
    pub(crate) fn load(mut self) -> cdp_core::replica::Replica {
        self.stop_host();
        let replica = self.replicas().join("acme/machine");
        std::fs::rename(replica, self.place.replica()).unwrap();
        self.place.load()
    }
}

pub(crate) fn seeded(protection: &Protection) {
    wait_for("the first copy", || protection.status().state == Filtering::Protecting);
}

pub(crate) fn write(protection: &Protection, model: &mut [u8], offset: usize, data: Vec<u8>) {
    model[offset..offset + data.len()].copy_from_slice(&data);
    protection.exports()[0].device.write(offset as u64, Bytes::from(data), false).unwrap();
}

pub(crate) fn stop(protection: Protection) {
    let summary = protection.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained && summary.manifest_stored, "{summary:?}");
}

#[test]
fn a_replica_at_another_site_holds_what_was_written() {
    let sites = Sites::new();
    let mut model = sites.place.make_source("disk", 1);
    let first = sites.protect(sites.address, "disk").unwrap();
    seeded(&first);
    write(&first, &mut model, 4096, noise(5, 300 << 10));
    first.mark(&label("first")).unwrap();
    let at_first = model.clone();
    write(&first, &mut model, 6 << 20, noise(6, 8192));
    let timeline = first.opened().timeline;
    stop(first);
    let second = sites.protect(sites.address, "disk").unwrap();
    let opened = second.opened();
    assert_eq!((opened.timeline, opened.clean, opened.compared), (timeline, true, Compared::Nothing));
    write(&second, &mut model, 1 << 20, noise(7, 4096));
    // Frames of the same timeline reach the keeper that was found for this filter, not the one before.
    second.mark(&label("second")).unwrap();
    let at_second = model.clone();
    // As by a crash.
    drop(second);
    let third = sites.protect(sites.address, "disk").unwrap();
    assert_eq!(third.opened().compared, Compared::ActivityLog);
    seeded(&third);
    write(&third, &mut model, 2 << 20, noise(8, 4096));
    stop(third);
    let replica = sites.load();
    assert!(restored(&replica, &When::Latest, "disk") == model);
    assert!(restored(&replica, &When::Label(label("first")), "disk") == at_first);
    assert!(restored(&replica, &When::Label(label("second")), "disk") == at_second);
}

/// The timeline that was closed goes on with a resync, on the replica host that closed it.
#[test]
fn a_clean_start_that_compares_everything_goes_on() {
    let mut sites = Sites::new();
    let mut model = sites.place.make_source("disk", 4);
    let first = sites.protect(sites.address, "disk").unwrap();
    seeded(&first);
    write(&first, &mut model, 4096, noise(5, 8192));
    stop(first);
    // Somebody else wrote to it meanwhile.
    model[9 << 20..][..4096].fill(7);
    std::fs::write(sites.place.source("disk"), &model).unwrap();
    sites.full_check = true;
    let second = sites.protect(sites.address, "disk").unwrap();
    assert_eq!((second.opened().clean, second.opened().compared), (true, Compared::Everything));
    wait_for("what is compared", || {
        let status = second.status();
        status.state == Filtering::Protecting && status.rpo_ns.is_some()
    });
    stop(second);
    assert!(restored(&sites.load(), &When::Latest, "disk") == model);
}

/// Nothing is lost and no gap is made, whatever the cable does and however often the other site is started anew.
#[test]
fn a_cable_that_is_cut_and_a_host_that_is_started_anew_leave_no_gap() {
    let mut sites = Sites::new();
    let mut model = sites.place.make_source("disk", 2);
    let wan = Wan::start(sites.address);
    let protection = sites.protect(wan.address(), "disk").unwrap();
    seeded(&protection);
    wan.set(Weather { delay: Duration::from_millis(3), rate: 40 << 20, loss_ppm: 500 });
    let mut marks = Vec::new();
    for round in 0..6 {
        for piece in 0..12_u64 {
            write(
                &protection,
                &mut model,
                (piece as usize * 37 + round * 11) << 12,
                noise(round as u64 * 100 + piece, 64 << 10),
            );
        }
        match round % 3 {
            0 => wan.cut(),
            1 => wan.silence(),
            _ => {
                sites.stop_host();
                sites.start_host();
            }
        }
        write(&protection, &mut model, round << 20, noise(round as u64, 8192));
        std::thread::sleep(Duration::from_millis(300));
        wan.mend();
        let durable = protection.status().lsn;
        wait_for("what was written meanwhile", || protection.status().durable >= durable);
        let name = format!("round {round}");
        protection.mark(&label(&name)).unwrap_or_else(|why| panic!("{name}: {why:?}: {:?}", protection.status()));
        marks.push((name, model.clone()));
    }
    let status = protection.status();
    assert_eq!((status.counters.gaps, status.counters.resyncs), (0, 1), "only the first copy was one: {status:?}");
    stop(protection);
    drop(wan);
    let replica = sites.load();
    for (name, model) in marks {
        assert!(restored(&replica, &When::Label(label(&name)), "disk") == model, "{name}");
    }
    assert_eq!(replica.manifest().timelines.len(), 1);
}

#[test]
fn who_is_not_listed_keeps_nothing_there_and_is_told_so() {
    let sites = Sites::new();
    sites.place.make_source("disk", 3);
    // Another filter than the one that is listed.
    std::fs::rename(sites.place.directory.path().join("filter"), sites.place.directory.path().join("listed")).unwrap();
    let refused = sites.protect(sites.address, "disk").unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
    assert!(!sites.replicas().exists() && DISK > 0);
}
