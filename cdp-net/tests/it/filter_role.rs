//! The filter's role in this process: its disks over NBD, its replicas at a host over TLS.

use crate::kit::{Host, Place, Told, identity, label, noise, restored, wait_for};
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::Replica;
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::host::load_idle;
use cdp_net::nbd::{Client, ClientOptions, Uri};
use cdp_net::owner::{ControlClient, Request};
use cdp_net::report::{At, Points, State, Status};
use cdp_net::services::config::Config;
use cdp_net::services::filter::Filter;
use cdp_net::services::peers::PeerBook;
use cdp_net::services::role::{Context, GroupReport, Role, RoleError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A filter's machine and a replica host.
struct Site {
    place: Place,
    host: Host,
    told: Told,
}

impl Site {
    fn new() -> Self {
        let place = Place::new();
        let host = Host::start(place.directory.path(), &[("state", "acme")]);
        Self { place, host, told: Told::default() }
    }

    /// A file with these groups, each `NAME DISK...`, and more text.
    fn config(&self, groups: &[&[&str]], more: &str) -> Config {
        let (state, to) = (self.place.path("state"), self.host.address);
        let host = identity(self.place.directory.path(), "host").fingerprint();
        let mut text = format!(
            "state = {state:?}\n[[peer]]\nname = \"host\"\nfingerprint = \"{host}\"\n{more}\n[filter]\nto = [\"cdp://{to}\"]\n\
             spool = {{ memory = \"256MiB\" }}\n"
        );
        for group in groups {
            let (name, uri) = (group[0], self.uri(group[0], ""));
            text.push_str(&format!("[[filter.group]]\nname = {name:?}\nlisten = \"{uri}\"\n"));
            for disk in &group[1..] {
                let source = self.place.source(disk);
                text.push_str(&format!("[[filter.group.disk]]\nname = {disk:?}\nsource = {source:?}\n"));
            }
        }
        Config::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn uri(&self, group: &str, disk: &str) -> Uri {
        format!("nbd+unix:///{disk}?socket={}", self.place.path(&format!("{group}.sock")).display()).parse().unwrap()
    }

    fn start(&self, config: &Config) -> Result<Filter, RoleError> {
        let context = Context {
            runtime: self.host.runtime.handle().clone(),
            identity: identity(self.place.directory.path(), "state"),
            peers: PeerBook::new(&config.peers),
            state: config.state.clone(),
            notes: self.told.notes(),
        };
        Filter::start(config, &context)
    }

    fn write(&self, group: &str, disk: &str, model: &mut [u8], offset: usize, data: &[u8]) {
        let mut client = Client::connect(&self.uri(group, disk), &ClientOptions::default()).unwrap();
        client.write(offset as u64, data, false).unwrap();
        model[offset..offset + data.len()].copy_from_slice(data);
        client.disconnect().unwrap();
    }

    fn control(&self, group: &str) -> ControlClient {
        ControlClient::connect(&self.place.path("state").join("filter").join(group)).unwrap()
    }

    /// The replica of a group, once nobody keeps it.
    fn replica(&mut self, group: &str) -> Replica {
        self.host.stop();
        let storage: Arc<dyn Storage> = Arc::new(Disk::open(self.place.path("replicas/acme").join(group)).unwrap());
        load_idle(&storage, &KeyHolder::default()).unwrap()
    }
}

fn group(filter: &Filter, name: &str) -> GroupReport {
    filter.report().groups.into_iter().find(|group| group.group == name).unwrap_or_default()
}

fn protecting(filter: &Filter, name: &str) {
    wait_for(&format!("{name} to be protected"), || group(filter, name).state == "protecting");
}

fn drain(filter: Filter) {
    assert_eq!(filter.drain(Duration::from_secs(20)).left_bytes, 0, "{:?}", filter.report());
}

#[test]
fn what_guests_of_two_groups_write_is_at_the_replica_host() {
    let mut site = Site::new();
    let [mut root, mut data, mut db] =
        [1, 2, 3].map(|seed| site.place.make_source(["root", "data", "db"][seed - 1], seed as u64));
    let config = site.config(&[&["web", "root", "data"], &["base", "db"]], "");
    let filter = site.start(&config).unwrap();
    protecting(&filter, "web");
    protecting(&filter, "base");
    site.write("web", "root", &mut root, 4096, &noise(4, 100 << 10));
    site.write("web", "data", &mut data, 1 << 20, &noise(5, 8192));
    // Who asks in the state directory is answered there.
    let mut control = site.control("web");
    let at: At = control.call(&Request::Mark { label: label("monday"), app_consistent: false }).unwrap();
    let at_monday = root.clone();
    site.write("web", "root", &mut root, 0, &noise(6, 4096));
    site.write("base", "db", &mut db, 12 << 20, &noise(7, 4096));
    let status: Status = control.call(&Request::Status).unwrap();
    assert_eq!((status.group.as_str(), status.state), ("web", State::Protecting));
    let remote = status.remote.unwrap();
    assert_eq!((remote.address, remote.linked, remote.problem), (site.host.address.to_string(), true, None));
    assert!(status.disks[0].uri.as_ref().is_some_and(|uri| uri.contains("web.sock")), "{:?}", status.disks);
    let refused = control.call::<serde_json::Value>(&Request::Compact).unwrap_err().to_string();
    assert!(refused.contains("kept at another site"), "{refused}");
    let report = group(&filter, "web");
    assert_eq!((report.linked, report.state), (Some(true), "protecting"));
    assert!(report.in_bytes >= 112 << 10, "{report:?}");
    assert!(filter.report().held_max.memory > 0);
    drain(filter);
    // The first disk of the file is the empty export, whatever the replica counts it as.
    let filter = site.start(&site.config(&[&["web", "data", "root"]], "")).unwrap();
    protecting(&filter, "web");
    site.write("web", "", &mut data, 2 << 20, &noise(9, 4096));
    drain(filter);
    let replica = site.replica("web");
    assert!(restored(&replica, &When::Latest, "root") == root);
    assert!(restored(&replica, &When::Latest, "data") == data);
    assert!(restored(&replica, &When::Label(label("monday")), "root") == at_monday);
    assert_eq!(replica.catalogue().labelled("monday")[0].id.lsn, at.lsn);
    assert!(restored(&site.replica("base"), &When::Latest, "db") == db);
}

/// The guest comes first: its disk is served at once, and protected once the host is there.
#[test]
fn a_replica_host_that_is_away_at_the_start_keeps_no_guest_from_its_disk() {
    let mut site = Site::new();
    let mut model = site.place.make_source("disk", 1);
    let config = site.config(&[&["machine", "disk"]], "");
    let filter = site.start(&config).unwrap();
    protecting(&filter, "machine");
    drain(filter);
    site.host.stop();
    let filter = site.start(&config).unwrap();
    let report = group(&filter, "machine");
    assert_eq!((report.state, report.linked, report.rpo), ("tracking", Some(false), None));
    site.write("machine", "disk", &mut model, 1 << 20, &noise(8, 8192));
    let mut control = site.control("machine");
    let status: Status = control.call(&Request::Status).unwrap();
    assert_eq!((status.state, status.hot_bytes), (State::Tracking, model.len() as u64), "all is compared later");
    let mark = Request::Mark { label: label("too early"), app_consistent: false };
    let refused = control.call::<At>(&mark).unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
    // A guest that is connected stays so over the beginning of the protection.
    let mut client = Client::connect(&site.uri("machine", ""), &ClientOptions::default()).unwrap();
    let mut write = |model: &mut [u8], offset: usize, seed| {
        let data = noise(seed, 4096);
        client.write(offset as u64, &data, false).unwrap();
        model[offset..offset + 4096].copy_from_slice(&data);
    };
    write(&mut model, 3 << 20, 9);
    // As by a crash of the filter's machine: what was written meanwhile is known nowhere.
    drop(filter);
    let filter = site.start(&config).unwrap();
    let mut client = Client::connect(&site.uri("machine", ""), &ClientOptions::default()).unwrap();
    site.host.again();
    let mut seed = 10;
    wait_for("the protection to begin", || {
        seed += 1;
        let (offset, data) = ((seed as usize % 100) << 12, noise(seed, 4096));
        client.write(offset as u64, &data, false).unwrap();
        model[offset..offset + 4096].copy_from_slice(&data);
        group(&filter, "machine").state == "protecting"
    });
    assert!(site.told.count("its disks are served and not protected") > 0);
    client.disconnect().unwrap();
    drain(filter);
    assert!(std::fs::read(site.place.source("disk")).unwrap() == model);
    assert!(restored(&site.replica("machine"), &When::Latest, "disk") == model);
}

#[test]
fn a_group_that_is_refused_stops_no_other_and_its_disks_are_served() {
    let mut site = Site::new();
    for name in ["one", "two", "three"] {
        site.place.make_source(name, 1);
    }
    drain({
        let filter = site.start(&site.config(&[&["a", "one"]], "")).unwrap();
        protecting(&filter, "a");
        filter
    });
    // The replica of `a` is of another disk; `gone` has no disk.
    let config = site.config(&[&["a", "two"], &["b", "three"], &["c", "gone"]], "");
    let filter = site.start(&config).unwrap();
    protecting(&filter, "b");
    let states = ["a", "b", "c"].map(|name| group(&filter, name).state);
    assert_eq!(states, ["tracking", "protecting", "stopped"]);
    assert!(site.told.count("group a: its disks are served and not protected") > 0);
    assert!(site.told.count("group c: its disks are not served") > 0);
    let mut two = std::fs::read(site.place.source("two")).unwrap();
    site.write("a", "two", &mut two, 8192, &noise(3, 4096));
    assert!(std::fs::read(site.place.source("two")).unwrap() == two);
    // One that is there later is served then.
    let gone = site.place.make_source("gone", 5);
    protecting(&filter, "c");
    let left = filter.drain(Duration::from_secs(20)).left_bytes;
    assert_eq!(left, two.len() as u64, "what was not protected is compared later");
    assert!(restored(&site.replica("c"), &When::Latest, "gone") == gone);
}

#[test]
fn nothing_that_can_be_served_is_an_error_of_the_start() {
    let site = Site::new();
    let refused = site.start(&site.config(&[&["a", "none"]], "")).err().unwrap();
    assert!(refused.what.contains("no group can be served") && refused.what.contains("none"), "{refused}");
}

#[test]
fn a_new_file_adds_groups_and_takes_others_out() {
    let mut site = Site::new();
    let [mut one, mut two] = [("one", 1), ("two", 2)].map(|(name, seed)| site.place.make_source(name, seed));
    let filter = site.start(&site.config(&[&["a", "one"]], "")).unwrap();
    protecting(&filter, "a");
    site.write("a", "one", &mut one, 0, &noise(3, 4096));
    let unchanged = filter.reload(&site.config(&[&["b", "two"]], "")).unwrap();
    assert_eq!(unchanged, Vec::<String>::new());
    protecting(&filter, "b");
    assert_eq!(filter.report().groups.len(), 1);
    assert!(Client::connect(&site.uri("a", ""), &ClientOptions::default()).is_err(), "a is served no more");
    site.write("b", "two", &mut two, 0, &noise(4, 4096));
    // What cannot be changed under a guest is named, and stays.
    let mut config = site.config(&[&["b", "two", "one"], &["a", "one"]], "");
    config.filter.as_mut().unwrap().connections = 2;
    assert_eq!(filter.reload(&config).unwrap(), ["filter.connections", "filter.group \"b\""]);
    protecting(&filter, "a");
    assert!(
        site.told.count("group a: resyncing") == 0,
        "the stop was clean and nobody changed the disk: nothing is compared"
    );
    drain(filter);
    assert!(restored(&site.replica("a"), &When::Latest, "one") == one);
    assert!(restored(&site.replica("b"), &When::Latest, "two") == two);
}

#[test]
fn a_set_of_groups_has_common_points() {
    let site = Site::new();
    for name in ["one", "two"] {
        site.place.make_source(name, 1);
    }
    let set = "[[set]]\nname = \"shop\"\ngroups = [\"a\", \"b\"]\nevery = \"1s\"\n";
    let filter = site.start(&site.config(&[&["a", "one"], &["b", "two"]], set)).unwrap();
    protecting(&filter, "a");
    protecting(&filter, "b");
    // The owner of each replica tells what can be restored there.
    let common = |name: &str| -> Vec<String> {
        let mut owner = ControlClient::connect(&site.place.path("replicas/acme").join(name)).unwrap();
        let points: Points = owner.call(&Request::Points { since: None, until: None, limit: None }).unwrap();
        let set = points.points.into_iter().filter(|point| point.set_consistent);
        set.filter_map(|point| point.label).rev().collect()
    };
    wait_for("common points", || {
        let [a, b] = ["a", "b"].map(common);
        a.iter().filter(|label| label.starts_with("shop ") && b.contains(label)).count() >= 2
    });
    drain(filter);
}

/// Guests notice nothing of another place in the file.
#[test]
fn a_new_place_in_the_file_is_gone_to_under_running_guests() {
    let mut site = Site::new();
    let mut model = site.place.make_source("disk", 1);
    let wan = crate::wan::network::Wan::start(site.host.address);
    let mut config = site.config(&[&["machine", "disk"]], "");
    let set = |config: &mut Config, address: SocketAddr| {
        config.filter.as_mut().unwrap().to = vec![format!("cdp://{address}").parse().unwrap()];
    };
    set(&mut config, wan.address());
    let filter = site.start(&config).unwrap();
    protecting(&filter, "machine");
    set(&mut config, site.host.address);
    assert_eq!(filter.reload(&config).unwrap(), Vec::<String>::new());
    let said = format!("{} does not take records any more: {} does now", wan.address(), site.host.address);
    wait_for("the other place", || site.told.count(&said) > 0);
    // Nothing goes the way that the file does not name.
    drop(wan);
    site.write("machine", "disk", &mut model, 0, &noise(3, 4096));
    let mut control = site.control("machine");
    control.call::<At>(&Request::Mark { label: label("there"), app_consistent: false }).unwrap();
    drain(filter);
    assert!(restored(&site.replica("machine"), &When::Label(label("there")), "disk") == model);
}

/// The list names who is wanted most first: who does not answer is passed over, and that is told.
#[test]
fn the_next_of_the_list_is_taken_and_both_are_named() {
    let mut site = Site::new();
    let model = site.place.make_source("disk", 1);
    let wan = crate::wan::network::Wan::start(site.host.address);
    let mut config = site.config(&[&["machine", "disk"]], "");
    let hops = [wan.address(), site.host.address].map(|address| format!("cdp://{address}").parse().unwrap());
    config.filter.as_mut().unwrap().to = hops.to_vec();
    let filter = site.start(&config).unwrap();
    protecting(&filter, "machine");
    let first = wan.address();
    drop(wan);
    let said = format!("{first} does not take records any more: {} does now", site.host.address);
    wait_for("the other one", || site.told.count(&said) > 0);
    wait_for("its session", || group(&filter, "machine").linked == Some(true));
    drain(filter);
    assert!(restored(&site.replica("machine"), &When::Latest, "disk") == model);
}
