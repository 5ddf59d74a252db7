//! The two sites as two machines: network namespaces with one cable between them that has a rate.

use crate::chain::{Chain, GUESTS_WAIT_MAX, PARTS, Part, Sites};
use crate::support::{Place, hash, installed};
use crate::writers::Writers;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the cable carries.
const RATE: &str = "100mbit";

/// Two namespaces and the cable between them. Gone when it is dropped.
#[derive(Debug)]
struct Namespaces([String; 2]);

impl Namespaces {
    /// None, and a word about it, where there can be none.
    fn make() -> Option<Self> {
        if !installed("ip") || !installed("tc") {
            return None;
        }
        let names = ["here", "there"].map(|site| format!("cdp-{site}-{}", std::process::id()));
        if !rustix::process::geteuid().is_root() || !ip(&["netns", "add", &names[0]]) {
            println!("skipped: this process may make no network namespaces");
            return None;
        }
        let [here, there] = &names;
        let made = Self(names.clone());
        let cable = ["link", "add", "cable", "netns", here, "type", "veth", "peer", "name", "cable", "netns", there];
        if !ip(&["netns", "add", there]) || !ip(&cable) {
            println!("skipped: this kernel has no veth");
            return None;
        }
        for (name, address) in [(here, "10.77.0.1/24"), (there, "10.77.0.2/24")] {
            assert!(ip(&["-n", name, "addr", "add", address, "dev", "cable"]));
            assert!(ip(&["-n", name, "link", "set", "cable", "up"]));
            assert!(ip(&["-n", name, "link", "set", "lo", "up"]));
            let shape =
                ["qdisc", "add", "dev", "cable", "root", "tbf", "rate", RATE, "burst", "64k", "latency", "50ms"];
            if !done(Command::new("tc").args(["-n", name]).args(shape)) {
                println!("this kernel has no tbf: the cable has no bound");
            }
        }
        Some(made)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            // There may be only the first of them.
            ip(&["netns", "del", name]);
        }
    }
}

fn done(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn ip(arguments: &[&str]) -> bool {
    done(Command::new("ip").args(arguments))
}

#[test]
fn two_sites_with_a_network_of_their_own_each_end_equal() {
    let Some(namespaces) = Namespaces::make() else { return };
    let (near, far) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 77, 0, 2));
    // The gateway alone is found from outside.
    let address = [near, near, near, far, near, near];
    let names = Some([namespaces.0[0].clone(), namespaces.0[1].clone()]);
    let place = Place::new();
    let source = place.path("data.img");
    let mut writers = Writers::new(3);
    std::fs::write(&source, writers.initial()).unwrap();
    let mut chain = Chain::start(place, Sites { address, namespaces: names, cables: false }, &[&source]);
    let load = writers.begin_paced(&chain.uri("").parse().unwrap(), Duration::from_millis(50));
    std::thread::sleep(Duration::from_secs(1));
    chain.kill(Part::Gateway);
    load.goes_on("when the gateway is gone", GUESTS_WAIT_MAX);
    std::thread::sleep(Duration::from_millis(300));
    load.goes_on("while it is", GUESTS_WAIT_MAX);
    chain.begin(Part::Gateway);
    chain.wait_durable();
    writers.end(load);
    chain.wait_durable();
    writers.check(&std::fs::read(&source).unwrap());
    assert_eq!(hash(&chain.restore("latest", "restored").join("data.img")), hash(&source));
    assert_eq!(chain.read_afar("points", &[]).done()["gaps"], serde_json::json!([]));
    chain.stop(Part::Filter);
    for part in PARTS {
        chain.stop(part);
    }
}
