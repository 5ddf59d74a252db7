//! A replica at another site is read as one in a directory is, while protection goes on, whatever the line between does.

use crate::protect::{DISK, Place, label, noise, wait_for};
use crate::wan::network::{Wan, Weather};
use bytes::Bytes;
use cdp_core::capture::State as Filtering;
use cdp_core::media::{Disk, Storage};
use cdp_core::trust::KeyHolder;
use cdp_core::types::{DiskId, Extent};
use cdp_core::when::When;
use cdp_net::device::Device;
use cdp_net::diff::{Difference, Of, Raw, differences, differences_with, digests};
use cdp_net::far::{self, CallKind, Far, NO_VIEW, OpenView, ReadName, Remote, ViewRange, WriteHow, WriteView};
use cdp_net::keeper::KeeperOptions;
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::AcceptOptions;
use cdp_net::link::pin::Peers;
use cdp_net::moment::MomentDisks;
use cdp_net::mount::ViewDevice;
use cdp_net::nbd::{Address, Client, ClientOptions, Export, Server, ServerOptions};
use cdp_net::owner::{Access, ControlClient, Owner, PolicyChange, Request};
use cdp_net::protect::{GivenSources, Protection, ProtectionOptions, SourceOptions, State};
use cdp_net::reading::ReadingTwo;
use cdp_net::report::{At, Points, Policy, Problem, Status};
use cdp_net::restore::{RestoreOptions, restore};
use cdp_net::services::config::Peer;
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::peers::PeerBook;
use cdp_net::services::remote_reading::{RemoteOptions, RemoteReplica, RemoteSessionDevice, RemoteView};
use cdp_net::services::replica_host::{ReplicaHost, ReplicaHostOptions};
use cdp_net::services::traffic::Traffic;
use cdp_net::services::url::CdpUrl;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Two sites and a third one that reads, with identities of their own.
struct Sites {
    place: Place,
    runtime: Runtime,
    host: Option<ReplicaHost>,
    address: SocketAddr,
}

impl Sites {
    fn new() -> Self {
        let (place, runtime) = (Place::new(), Runtime::new().unwrap());
        let mut sites = Self { place, runtime, host: None, address: ([127, 0, 0, 1], 0).into() };
        sites.start_host();
        sites
    }

    fn identity(&self, name: &str) -> Arc<Identity> {
        Arc::new(Identity::open_or_make(&self.place.directory.path().join(name), name).unwrap())
    }

    fn replica(&self) -> PathBuf {
        self.place.directory.path().join("replicas/acme/machine")
    }

    fn start_host(&mut self) {
        let peer = |(name, tenant): (&str, &str)| Peer {
            name: name.into(),
            fingerprint: self.identity(name).fingerprint().to_string(),
            tenant: tenant.into(),
        };
        let options = ReplicaHostOptions {
            listen: self.address.to_string(),
            directory: self.place.directory.path().join("replicas"),
            peers: PeerBook::new(&[("filter", "acme"), ("reader", "acme"), ("stranger", "other")].map(peer)),
            tickets: None,
            groups_max: 10,
            keeper: KeeperOptions { waiting_bytes_max: 32 << 20, ..KeeperOptions::default() },
            accept: AcceptOptions::default(),
        };
        // The one before lets go of its port when its tasks have ended.
        let mut started = Err(std::io::ErrorKind::AddrInUse.into());
        wait_for("the replica host", || {
            started = self.runtime.block_on(ReplicaHost::start(self.identity("host"), options.clone()));
            !matches!(&started, Err(error) if error.kind() == std::io::ErrorKind::AddrInUse)
        });
        let host = started.unwrap();
        self.address = host.address();
        self.host = Some(host);
    }

    fn stop_host(&mut self) {
        let host = self.host.take().unwrap();
        self.runtime.block_on(host.stop());
    }

    fn link(&self, name: &str) -> Arc<FarLink> {
        let options = FarOptions {
            to: vec![self.address.to_string()],
            peers: Peers::new([self.identity("host").fingerprint()]),
            tenant: String::new(),
            name: "machine".into(),
            spool: None,
            memory_bytes: 1 << 30,
            silence_ms: 1_500,
            connections: 0,
            ticket: Bytes::new(),
            traffic: Traffic::encrypted(),
        };
        FarLink::start(self.identity(name), options).unwrap()
    }

    fn protect(&self) -> Protection {
        let far: Arc<dyn Far> = Arc::new(Remote::new(self.link("filter")));
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
        let directory = self.place.directory.path().join("state");
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(&directory).unwrap());
        let state = State { storage, owner: Some(Owner::acquire(&directory).unwrap()) };
        let protection =
            Protection::start(&options, GivenSources::open(&sources).unwrap(), state, &far, |_| {}).unwrap();
        wait_for("the first copy", || protection.status().state == Filtering::Protecting);
        protection
    }

    fn url(&self, address: SocketAddr, group: &str) -> CdpUrl {
        format!("cdp://{address}/{group}").parse().unwrap()
    }

    fn reader(&self, who: &str, url: CdpUrl) -> Arc<RemoteReplica> {
        let peers = Peers::new([self.identity("host").fingerprint()]);
        let options = RemoteOptions { url, tenant: String::new(), peers, ticket: Bytes::new() };
        RemoteReplica::open(self.identity(who), options).unwrap()
    }

    fn read(&self) -> Arc<RemoteReplica> {
        self.reader("reader", self.url(self.address, "machine"))
    }

    fn owner(&self) -> ControlClient {
        ControlClient::connect(&self.replica()).unwrap()
    }
}

fn write(protection: &Protection, model: &mut [u8], offset: usize, data: Vec<u8>) {
    model[offset..offset + data.len()].copy_from_slice(&data);
    protection.exports()[0].device.write(offset as u64, Bytes::from(data), false).unwrap();
}

fn when(text: &str) -> When {
    text.parse().unwrap()
}

fn order(at: &str) -> OpenView {
    OpenView { view: ReadName::draw(), at: Some(when(at)), nearest: None, disk: None, writable: false, session: None }
}

fn content(view: &RemoteView) -> Vec<u8> {
    let mut content = vec![0; DISK];
    view.read(view.disks()[0].id, 0, &mut content).unwrap();
    content
}

fn restored(view: &RemoteView, output: PathBuf) -> Vec<u8> {
    let options = RestoreOptions { output: output.clone(), disk: None, force: true };
    let mut last = 0;
    let mut told = |done, total| {
        assert!(last <= done && done <= total, "{last}, then {done} of {total}");
        last = done;
        true
    };
    restore(view, &options, &mut told).unwrap();
    std::fs::read(output).unwrap()
}

/// Marks `one` and `two`, and what the disk held then.
fn marked(sites: &Sites, protection: &Protection) -> [Vec<u8>; 2] {
    let mut model = std::fs::read(sites.place.source("disk")).unwrap();
    write(protection, &mut model, 4096, noise(5, 300 << 10));
    protection.mark(&label("one")).unwrap();
    let one = model.clone();
    write(protection, &mut model, 6 << 20, noise(6, 8192));
    write(protection, &mut model, 20 << 20, vec![0; 64 << 10]);
    protection.mark(&label("two")).unwrap();
    [one, model]
}

fn stop(protection: Protection) {
    let summary = protection.stop(Duration::from_secs(20), &|| false);
    assert!(summary.drained && summary.manifest_stored, "{summary:?}");
}

#[test]
fn what_is_read_from_afar_is_what_is_read_here() {
    let sites = Sites::new();
    sites.place.make_source("disk", 1);
    let protection = sites.protect();
    let [one, two] = marked(&sites, &protection);
    let replica = sites.read();
    let at: At = replica.request(&Request::Mark { label: label("afar"), app_consistent: false }).unwrap();
    assert!(at.point.is_some());
    let again = replica.request::<At>(&Request::Mark { label: label("afar"), app_consistent: false }).unwrap_err();
    assert_eq!(again.code, "label-taken");
    let ask = Request::Points { since: None, until: Some(when("label:afar")), limit: Some(100) };
    let [far, here]: [Points; 2] = [replica.request(&ask).unwrap(), sites.owner().call(&ask).unwrap()];
    assert_eq!(far, here);
    assert!(["one", "two", "afar"].iter().all(|name| far.points.iter().any(|p| p.label.as_deref() == Some(name))));
    let mut of_writer = two.clone();
    write(&protection, &mut of_writer, 1 << 20, noise(7, 1 << 20));
    let views = ["label:one", "label:two"].map(|at| replica.view(order(at)).unwrap());
    assert!(content(&views[0]) == one && content(&views[1]) == two);
    let output = sites.place.directory.path().join("out.img");
    assert!(restored(&views[0], output.clone()) == one);
    assert!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&output).unwrap()) * 512 < DISK as u64);
    let key = KeyHolder::default();
    let moments = ["label:one", "label:two"].map(when);
    let access = Access::Client(sites.owner());
    let reading = ReadingTwo::open(&sites.replica(), access, moments.each_ref(), None, &key).unwrap();
    let local = reading.views().unwrap();
    let (mut far, mut here): (Vec<Difference>, Vec<Difference>) = Default::default();
    replica.differences([&views[0], &views[1]], None, &mut |_, _| true, &mut |found| far.push(found)).unwrap();
    differences(&local[0], &local[1], None, &mut |_, _| true, &mut |found| here.push(found)).unwrap();
    assert!(far == here && far.len() >= 2, "{far:?}, {here:?}");
    let far = replica.digests((&views[0], Of::From), None, &mut |_, _| true).unwrap();
    assert_eq!(far, digests(&local[0], (Of::From, &reading.at[0]), None, &mut |_, _| true).unwrap());
    // Against a file that only this site has.
    let raw = Raw::open(&output).unwrap();
    let mut found = Vec::new();
    differences_with(views[0].as_ref(), &raw, None, &mut |_, _| true, &mut |one| found.push(one)).unwrap();
    assert_eq!(found, []);
    differences_with(views[1].as_ref(), &raw, None, &mut |_, _| true, &mut |one| found.push(one)).unwrap();
    assert_eq!(found.len(), here.len());
    let mut told = 0;
    let verified = replica
        .verify(&mut |done, total| {
            assert!(told <= done && done <= total);
            told = done;
            true
        })
        .unwrap();
    assert!(verified.ok && verified.bytes > 0 && !verified.good.is_empty(), "{verified:?}");
    let status: Status = sites.owner().call(&Request::Status).unwrap();
    assert_eq!(status.pins, 2 + 2, "of both readers");
    drop(views);
    wait_for("pins to go with what was read", || sites.owner().call::<Status>(&Request::Status).unwrap().pins == 2);
    stop(protection);
}

#[test]
fn a_moment_and_a_session_are_served_over_nbd() {
    let sites = Sites::new();
    sites.place.make_source("disk", 2);
    let protection = sites.protect();
    let [one, _] = marked(&sites, &protection);
    let replica = sites.read();
    let serve = |device: Arc<dyn Device>| {
        let address = Address::Unix(sites.place.directory.path().join("nbd.sock"));
        let server = Server::start(ServerOptions::new(address, vec![Export::new("disk", device)])).unwrap();
        let client = Client::connect(&server.uris()[0], &ClientOptions::default()).unwrap();
        (server, client)
    };
    let view = replica.view(order("label:one")).unwrap();
    let disk = view.disks()[0].clone();
    let (server, mut client) = serve(Arc::new(ViewDevice::new(Arc::clone(&view) as _, disk.clone())));
    let mut read = vec![0; DISK];
    for (at, piece) in (0..).step_by(3 << 20).zip(read.chunks_mut(3 << 20)) {
        client.read(at, piece).unwrap();
    }
    assert!(read == one);
    assert!(client.write(0, &[1; 512], false).is_err(), "it is read-only");
    drop(client);
    server.stop(Duration::from_secs(5));
    let session = |at: Option<&str>| OpenView {
        at: at.map(when),
        writable: true,
        session: Some("lab".into()),
        ..order("latest")
    };
    let view = replica.view(session(Some("label:one"))).unwrap();
    let (server, mut client) = serve(Arc::new(RemoteSessionDevice::new(Arc::clone(&view), disk.clone())));
    let mut model = one;
    for (number, at) in [(1, 4096), (2, 3 << 20), (3, 4096)] {
        let data = noise(number, 2 << 20);
        client.write(at as u64, &data, number == 3).unwrap();
        model[at..at + data.len()].copy_from_slice(&data);
    }
    client.trim(8 << 20, 1 << 20, false).unwrap();
    model[8 << 20..9 << 20].fill(0);
    client.flush().unwrap();
    let mut piece = vec![0; 6 << 20];
    client.read(0, &mut piece).unwrap();
    assert!(piece == model[..6 << 20]);
    drop(client);
    server.stop(Duration::from_secs(5));
    let taken = replica.view(session(None)).unwrap_err();
    assert_eq!(taken.code, "session-open");
    view.close().unwrap();
    drop(view);
    let view = replica.view(session(None)).unwrap();
    assert!(content(&view) == model, "it has what was written");
    view.close().unwrap();
    let temporary = replica.view(OpenView { session: None, ..session(Some("label:one")) }).unwrap();
    let sessions = || replica.request::<Status>(&Request::Status).unwrap().sessions;
    assert_eq!(sessions().len(), 2);
    temporary.close().unwrap();
    wait_for("the temporary one to go", || sessions().len() == 1);
    let () = replica.request(&Request::DropSession { name: "lab".into() }).unwrap();
    assert_eq!(sessions(), []);
    stop(protection);
}

#[test]
fn a_restore_outlasts_a_line_that_is_cut_and_a_host_that_is_started_anew() {
    let mut sites = Sites::new();
    sites.place.make_source("disk", 3);
    let protection = sites.protect();
    let [one, two] = marked(&sites, &protection);
    let wan = Wan::start(sites.address);
    wan.set(Weather { delay: Duration::from_millis(20), rate: 60 << 20, loss_ppm: 0 });
    let replica = sites.reader("reader", sites.url(wan.address(), "machine"));
    for (round, (name, model)) in
        [("label:one", &one), ("label:two", &two), ("label:one", &one)].into_iter().enumerate()
    {
        let view = replica.view(order(name)).unwrap();
        let output = sites.place.directory.path().join("out.img");
        let options = RestoreOptions { output: output.clone(), disk: None, force: true };
        let mut harmed = false;
        let mut told = |done: u64, total: u64| {
            if done > total / 4 && !harmed {
                harmed = true;
                match round {
                    0 => wan.cut(),
                    1 => wan.silence(),
                    _ => {
                        sites.stop_host();
                        sites.start_host();
                    }
                }
                if round < 2 {
                    std::thread::sleep(Duration::from_millis(200));
                    wan.mend();
                }
            }
            true
        };
        restore(view.as_ref(), &options, &mut told).unwrap();
        assert!(harmed && std::fs::read(output).unwrap() == *model, "{name}");
    }
    drop(wan);
    stop(protection);
}

/// The host itself answers while no filter writes, and gives way to one that comes.
#[test]
fn a_filter_comes_to_its_replica_while_that_is_read() {
    let sites = Sites::new();
    let mut model = sites.place.make_source("disk", 4);
    let protection = sites.protect();
    write(&protection, &mut model, 4096, noise(1, 4096));
    protection.mark(&label("one")).unwrap();
    stop(protection);
    let mut sites = sites;
    sites.stop_host();
    sites.start_host();
    let replica = sites.read();
    assert_eq!(
        replica.request::<Points>(&Request::Points { since: None, until: None, limit: None }).unwrap().group,
        "machine"
    );
    let nobody = replica.request::<At>(&Request::Mark { label: label("no"), app_consistent: false }).unwrap_err();
    let view = replica.view(order("label:one")).unwrap();
    let session = replica.view(OpenView { writable: true, session: Some("lab".into()), ..order("label:one") }).unwrap();
    let device = RemoteSessionDevice::new(Arc::clone(&session), session.disks()[0].clone());
    device.write(0, Bytes::from(noise(9, 4096)), true).unwrap();
    assert!(content(&view) == model);
    let at_one = model.clone();
    let protection = sites.protect();
    write(&protection, &mut model, 1 << 20, noise(2, 4096));
    protection.mark(&label("two")).unwrap();
    assert!(content(&view) == at_one, "{nobody}");
    device.write(4096, Bytes::from(noise(10, 4096)), true).unwrap();
    let mut read = vec![0; 8192];
    device.read(0, &mut read).unwrap();
    assert!(read == [noise(9, 4096), noise(10, 4096)].concat());
    assert!(content(&replica.view(order("label:two")).unwrap()) == model);
    stop(protection);
}

#[test]
fn whose_group_it_is_not_reads_nothing_of_it() {
    let sites = Sites::new();
    sites.place.make_source("disk", 5);
    let protection = sites.protect();
    marked(&sites, &protection);
    // The same name is another tenant's own group, and that one has none.
    let other = sites.reader("stranger", sites.url(sites.address, "machine"));
    assert_eq!(other.request::<Status>(&Request::Status).unwrap_err().code, "no-replica");
    assert_eq!(other.view(order("latest")).unwrap_err().code, "no-replica");
    let none = sites.reader("reader", sites.url(sites.address, "nothing"));
    assert_eq!(none.verify(&mut |_, _| true).unwrap_err().code, "no-replica");
    assert!(!sites.place.directory.path().join("replicas/acme/nothing").exists());
    let peers = Peers::new([sites.identity("host").fingerprint()]);
    let url = sites.url(sites.address, "machine");
    let options = RemoteOptions { url: url.clone(), tenant: "acme".into(), peers, ticket: Bytes::new() };
    let spoken = RemoteReplica::open(sites.identity("stranger"), options).unwrap();
    let refused = spoken.request::<Status>(&Request::Status).unwrap_err();
    assert!(refused.message.contains("speaks for \"other\", not for \"acme\""), "{refused}");
    let unknown = sites.reader("unknown", url).request::<Status>(&Request::Status).unwrap_err();
    assert!(unknown.code == far::UNREACHABLE && unknown.hint.is_some(), "{unknown:?}");
    let wrong = PolicyChange { quota: Some(0), ..PolicyChange::default() };
    let refused = sites.read().request::<Policy>(&Request::Policy { change: wrong }).unwrap_err();
    assert_eq!(refused.code, "not-from-afar");
    let pinned = sites.read().request::<serde_json::Value>(&Request::PinAll).unwrap_err();
    assert_eq!(pinned.code, "not-from-afar");
    stop(protection);
}

/// What comes twice, or late, is done once; what nobody opened, and what lies outside, is refused; what is open has a bound.
#[test]
fn calls_have_bounds_and_are_done_once() {
    let sites = Sites::new();
    sites.place.make_source("disk", 6);
    let protection = sites.protect();
    marked(&sites, &protection);
    let link = sites.link("reader");
    let disk = DiskId::new(1).unwrap();
    let order = OpenView { writable: true, session: Some("lab".into()), ..order("label:one") };
    let view = order.view;
    for _ in 0..2 {
        let _: ((), Bytes) = far::ask(link.as_ref(), CallKind::OpenView, &order).unwrap();
    }
    let put = |number: u64, settled: u64, text: u8| {
        let range = Extent::new(0, 512);
        let write = WriteView { view, disk, range, how: WriteHow::Data, fua: false, number, settled };
        let header = serde_json::to_vec(&write).unwrap().into();
        let tail = Bytes::from(vec![text; 512]);
        let call = cdp_core::link::message::Call { kind: CallKind::WriteView as u16, header, tail };
        let answer = link.begin_call(call, Duration::from_secs(30)).recv().unwrap();
        assert_eq!(answer.status, cdp_core::link::message::CallStatus::Done, "{answer:?}");
    };
    let holds = |range: Extent| -> Result<Bytes, Problem> {
        far::ask(link.as_ref(), CallKind::ReadView, &ViewRange { view, disk, range }).map(|((), bytes)| bytes)
    };
    let first = || holds(Extent::new(0, 512)).unwrap()[0];
    put(1, 1, b'a');
    put(2, 2, b'b');
    // Copies of the first that were late.
    put(1, 1, b'a');
    assert_eq!(first(), b'b');
    put(3, 3, b'c');
    put(3, 3, b'd');
    assert_eq!(first(), b'c');
    for (range, code) in [
        (Extent::new(0, (1 << 20) + 512), "call"),
        (Extent::new(DISK as u64, 512), "call"),
        (Extent::new(0, 0), "call"),
        (Extent::new(512, DISK as u64), "call"),
    ] {
        assert_eq!(holds(range).unwrap_err().code, code, "{range:?}");
    }
    let nothing = ViewRange { view: ReadName::draw(), disk, range: Extent::new(0, 512) };
    let unknown = far::ask::<()>(link.as_ref(), CallKind::ReadView, &nothing).unwrap_err();
    assert_eq!(unknown.code, NO_VIEW);
    let replica = sites.read();
    let open = || replica.view(OpenView { writable: false, session: None, ..order.clone() });
    let views: Vec<_> = (0..15).map(|_| open().unwrap()).collect();
    assert_eq!(open().unwrap_err().code, "busy");
    drop(views);
    wait_for("room for one more", || open().is_ok());
    stop(protection);
}

/// What was written and not flushed may be lost with the host: that is said, and nothing is pretended.
#[test]
fn a_session_does_not_go_on_as_if_nothing_was_lost() {
    let mut sites = Sites::new();
    sites.place.make_source("disk", 7);
    let protection = sites.protect();
    let [one, _] = marked(&sites, &protection);
    let replica = sites.read();
    let order = OpenView { writable: true, session: Some("lab".into()), ..order("label:one") };
    let view = replica.view(order.clone()).unwrap();
    let device = RemoteSessionDevice::new(Arc::clone(&view), view.disks()[0].clone());
    let data = noise(8, 4096);
    device.write(0, Bytes::from(data.clone()), true).unwrap();
    sites.stop_host();
    sites.start_host();
    for error in [device.write(0, Bytes::from(vec![0; 512]), true), device.flush(), device.read(0, &mut [0; 512])] {
        assert!(error.unwrap_err().to_string().contains("not flushed is lost"));
    }
    drop((device, view));
    let again = replica.view(OpenView { at: None, ..order }).unwrap();
    let content = content(&again);
    assert!(content[..4096] == data && content[4096..] == one[4096..], "what was flushed is there");
    stop(protection);
}
