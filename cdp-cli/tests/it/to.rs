//! `cdp protect --to`: a process of its own, and a replica host in this one.

use crate::support::{Guest, Host, Place, Running, cdp, command, identity, mark, restore};
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const DISK: usize = 16 << 20;

/// A replica host, and a disk that somebody protects.
struct Site {
    place: Place,
    host: Host,
    source: PathBuf,
}

impl Site {
    fn new(seed: u64) -> Self {
        let place = Place::new();
        let host = Host::start(place.root(), &[("state", "acme")]);
        let source = place.source("disk.img", seed, DISK);
        Self { place, host, source }
    }

    fn state(&self) -> PathBuf {
        self.place.path("state")
    }

    fn replica(&self) -> PathBuf {
        self.place.path("replicas/acme/machine")
    }

    fn try_protect(&self, more: &[&str]) -> Result<Running, (i32, Value)> {
        let mut arguments: Vec<OsString> = vec!["protect".into(), self.source.clone().into()];
        let to = format!("cdp://{}/machine", self.host.address);
        let (state, peer) = (self.state(), identity(self.place.root(), "host").fingerprint().to_string());
        arguments.extend(["--to".into(), to.into(), "--state".into(), state.into(), "--peer".into(), peer.into()]);
        arguments.extend(["--listen".into(), self.place.socket("disk").into()]);
        arguments.extend(more.iter().map(OsString::from));
        Running::spawn(command(&arguments)).ready()
    }

    fn protect(&self) -> Running {
        self.try_protect(&[]).unwrap_or_else(|end| panic!("{end:?}"))
    }

    fn guest(&self, running: &Running, seed: u64) -> Guest {
        Guest::connect(running.uri(), &self.source, seed)
    }

    fn check(&self, at: &str, model: &[u8]) {
        let output = self.place.path("restored");
        restore(&self.replica(), at, &output).done();
        assert!(std::fs::read(&output).unwrap() == model, "{at}");
    }
}

/// Neither a replica's directory, nor one that is to be protected first.
fn nobody_protects(site: &Site) {
    let refused = cdp(&["status".as_ref(), site.state().as_os_str()]).failed(4, "no-owner");
    let message = refused["message"].as_str().unwrap();
    assert!(message.starts_with("nobody protects now with the state in "), "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("`cdp protect --to` or `cdp serve`"), "{refused}");
}

fn opened(running: &Running) -> Value {
    running.wait_event("that it began", |event| event["event"] == "opened")
}

#[test]
fn what_a_guest_wrote_is_at_the_other_site_after_a_kill_too() {
    let mut site = Site::new(1);
    let mut first = site.protect().protecting();
    let done = |event: &Value| event["event"] == "seeding" && event["done"] == event["total"];
    first.wait_event("the end of the first copy", done);
    let mut guest = site.guest(&first, 2);
    guest.work(50);
    let point = mark(&site.state(), "monday");
    let at_monday = guest.model.clone();
    let status = cdp(&["status".as_ref(), site.state().as_os_str()]).done();
    assert_eq!((status["state"].as_str(), status["group"].as_str()), (Some("protecting"), Some("machine")));
    assert_eq!((status["remote"]["linked"].as_bool(), status["remote"]["problem"].as_str()), (Some(true), None));
    // What only the replica can answer is answered there.
    let elsewhere = cdp(&["points".as_ref(), site.state().as_os_str()]).failed(4, "replica-elsewhere");
    assert!(elsewhere["hint"].as_str().unwrap().contains(&site.host.address.to_string()), "{elsewhere}");
    guest.work(50);
    let model = guest.model.clone();
    drop(guest);
    first.kill();
    nobody_protects(&site);
    let mut second = site.protect();
    let found = opened(&second);
    assert_eq!((found["resumed"].as_bool(), found["clean"].as_bool()), (Some(true), Some(false)));
    assert_eq!(found["compared"], "activity-log", "what was hot, not the disk");
    let second_guest = site.guest(&second, 3);
    assert!(second_guest.model == model);
    let protecting = |event: &Value| event["event"] == "state" && event["state"] == "protecting";
    second.wait_event("the protection", protecting);
    let mut second_guest = second_guest;
    second_guest.work(20);
    let model = second_guest.model.clone();
    drop(second_guest);
    second.stop_clean();
    nobody_protects(&site);
    site.host.stop();
    site.check("latest", &model);
    site.check("monday", &at_monday);
    site.check(&format!("lsn:{}", point["at"]["lsn"]), &at_monday);
    let points = cdp(&["points".as_ref(), site.replica().as_os_str()]).done();
    // Between the kill and the start it was unknown what is at the source; nothing else was ever lost.
    let causes: Vec<_> = points["gaps"].as_array().unwrap().iter().map(|gap| gap["cause"].as_str().unwrap()).collect();
    assert_eq!(causes, ["unclean-stop"], "{points}");
}

/// Whoever ends it does not wait longer for a host that is away than he said.
#[test]
fn an_end_without_the_replica_host_takes_as_long_as_it_may() {
    let mut site = Site::new(10);
    let mut running = site.try_protect(&["--drain", "3s"]).unwrap_or_else(|end| panic!("{end:?}")).protecting();
    site.host.stop();
    let mut guest = site.guest(&running, 11);
    guest.work(20);
    let model = guest.model.clone();
    drop(guest);
    let begun = Instant::now();
    let (status, stopped) = running.stop();
    // Each of several questions alone would wait for half a minute.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!((status, stopped["drained"].as_bool()), (1, Some(false)), "{stopped}");
    assert!(stopped["hot_bytes"].as_u64() > Some(0), "{stopped}");
    let waits = |event: &Value| event["reason"].as_str().is_some_and(|why| why.starts_with("waits 3.0 s at most"));
    assert!(running.events().iter().any(|event| event["state"] == "draining" && waits(event)), "nobody knows for what");
    site.host.again();
    let mut running = site.protect().protecting();
    running.stop_clean();
    site.host.stop();
    site.check("latest", &model);
}

/// The guest comes first: its disk is served before anybody is reached, and protected by itself after.
#[test]
fn a_replica_host_that_is_away_keeps_no_guest_from_its_disk() {
    let mut site = Site::new(4);
    site.protect().protecting().stop_clean();
    site.host.stop();
    let mut running = site.protect();
    let reason = |event: &Value| event["reason"].as_str().is_some_and(|why| why.contains("served and not protected"));
    let told = running.wait_event("why", reason);
    assert_eq!(told["state"], "tracking");
    let mut guest = site.guest(&running, 5);
    guest.work(30);
    // Ended now, it says that nothing of that is at the replica.
    drop(guest);
    let (status, stopped) = running.stop();
    assert_eq!(
        (status, stopped["drained"].as_bool(), stopped["hot_bytes"].as_u64()),
        (1, Some(false), Some(DISK as u64))
    );
    let mut running = site.protect();
    let mut guest = site.guest(&running, 6);
    guest.work(30);
    site.host.again();
    let found = opened(&running);
    assert_eq!(found["compared"], "everything");
    guest.work(30);
    running.wait_event("the protection", |event| event["event"] == "state" && event["state"] == "protecting");
    guest.work(30);
    let model = guest.model.clone();
    drop(guest);
    running.stop_clean();
    site.host.stop();
    site.check("latest", &model);
}

#[test]
fn who_is_not_listed_is_told_what_to_list() {
    let mut site = Site::new(7);
    site.host.stop();
    let listed = std::mem::replace(&mut site.host.listed, vec![("somebody-else", "acme")]);
    site.host.again();
    let running = site.protect();
    let own = identity(site.place.root(), "state").fingerprint().to_string();
    let told = running.wait_event("why", |event| event["reason"].as_str().is_some_and(|why| why.contains(&own)));
    assert!(told["reason"].as_str().unwrap().contains("[[peer]]"), "{told}");
    assert!(!site.place.path("replicas").exists());
    // Once it is listed the protection begins.
    site.host.stop();
    site.host.listed = listed;
    site.host.again();
    let mut running = running.protecting();
    running.stop_clean();
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let site = Site::new(8);
    let source = site.source.to_str().unwrap();
    let state = site.state();
    let (state, peer) = (state.to_str().unwrap(), identity(site.place.root(), "host").fingerprint().to_string());
    let base = ["protect", source, "--to", "cdp://127.0.0.1:1"];
    let run = |more: &[&str]| cdp(&base.iter().chain(more).collect::<Vec<_>>());
    assert_eq!(run(&["--peer", &peer]).status, 2, "without --state");
    run(&["--state", state]).failed(2, "usage");
    assert_eq!(run(&["--state", state, "--peer", &peer, "--replica", "x"]).status, 2, "both");
    assert_eq!(cdp(&["protect", source, "--state", state]).status, 2, "neither");
    // Who gives a key means that the replica is sealed: that is not for this side to do.
    let key = site.place.path("key");
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let sealed = run(&["--state", state, "--peer", &peer, "--key-file", key.to_str().unwrap()]).failed(2, "usage");
    assert!(sealed["message"].as_str().unwrap().contains("sealed at rest by who keeps it"), "{sealed}");
    // The replica is of a disk of another name: nobody is served yet, and it is an error as where the replica is here.
    site.protect().protecting().stop_clean();
    let other = site.place.source("other.img", 9, DISK);
    let to = format!("cdp://{}/machine", site.host.address);
    let listen = site.place.socket("other");
    let given =
        ["protect", other.to_str().unwrap(), "--to", &to, "--state", state, "--peer", &peer, "--listen", &listen];
    cdp(&given).failed(4, "other-disks");
}
