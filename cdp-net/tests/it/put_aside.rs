//! A write that has to wait for another one holds up nobody else of its client.

use crate::held::{Access, Gate, Held};
use crate::kit::{Place, noise, wait_for};
use cdp_core::capture::State;
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Address, Client, ClientOptions, Server, ServerOptions, Uri};
use cdp_net::protect::Protector;

const BLOCK: usize = 4096;

fn client(uri: &Uri) -> Client {
    Client::connect(uri, &ClientOptions::default()).unwrap()
}

fn submit(client: &mut Client, cookie: u64, offset: u64, data: &[u8]) {
    client.submit(cookie, Command::Write { offset, data, flags: 0 }).unwrap();
    client.send().unwrap();
}

fn complete(client: &mut Client) -> u64 {
    let completion = client.complete(true).unwrap().expect("it was waited for");
    completion.result.unwrap();
    completion.cookie
}

#[test]
fn what_is_behind_a_write_that_waits_goes_before_it() {
    let place = Place::new();
    place.make_source("disk", 1);
    let gate = Gate::new();
    let wrap = |_, inner| Held::over(inner, &gate, |access| access == Access::Write(0));
    let protector = Protector::start_over(&place.options(&["disk"]), wrap, |_| {}).unwrap();
    wait_for("the first copy", || protector.status().state == State::Protecting);
    let address = Address::Unix(place.directory.path().join("nbd.sock"));
    let server = Server::start(ServerOptions::new(address, protector.exports().to_vec())).unwrap();
    let uri = server.uris().remove(0);
    let [first, second, third] = [2, 3, 4].map(|seed| noise(seed, BLOCK));
    let (mut one, mut other) = (client(&uri), client(&uri));
    // What is not marked in the activity log waits for that, which is not what this is about.
    submit(&mut one, 1, BLOCK as u64, &first);
    assert_eq!(complete(&mut one), 1);
    gate.close();
    submit(&mut one, 2, 0, &first);
    wait_for("the first one at the source", || protector.status().counters.ops_recorded == 2);
    submit(&mut other, 3, 0, &second);
    submit(&mut other, 4, BLOCK as u64, &third);
    assert_eq!(complete(&mut other), 4, "it waits for nothing");
    gate.open();
    assert_eq!((complete(&mut one), complete(&mut other)), (2, 3));
    let source = std::fs::read(place.source("disk")).unwrap();
    assert!(source[..2 * BLOCK] == [second, third].concat());
    drop(server);
}
