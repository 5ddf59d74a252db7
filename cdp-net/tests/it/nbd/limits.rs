//! Limits, several exports and connections, sockets' files, and the graceful stop.

use super::{Memory, closes, eventually, serve, soon};
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{
    Address, Channel, Client, ClientError, ClientOptions, Export, ListenError, ServeError, Server, ServerOptions, Uri,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn too_many_connections_are_closed_at_once() {
    let served = serve(Memory::new(1 << 20), |options| options.limits.connections_max = 2);
    let (mut one, two) = (served.client(), served.client());
    let mut three = Channel::connect(&served.uri, Duration::from_secs(5)).unwrap();
    assert!(closes(&mut three));
    one.flush().unwrap();
    drop(two);
    eventually(|| served.server.stats().connections_open == 1);
    served.check_alive();
    assert_eq!(served.server.stats().connections_refused, 1);
}

#[test]
fn the_idle_limit_spares_who_waits_for_the_disk() {
    let memory = Memory::new(1 << 20);
    let served = serve(Arc::clone(&memory) as _, |options| options.limits.idle = Some(Duration::from_millis(200)));
    let mut idle = served.raw();
    let mut waiting = served.client();
    memory.hold(true);
    waiting.submit(1, Command::Flush).unwrap();
    // A second request makes the flush a worker's.
    waiting.submit(2, Command::Read { offset: 0, length: 512, flags: 0 }).unwrap();
    assert_eq!(waiting.complete(true).unwrap().unwrap().cookie, 2, "the flush holds nobody up");
    assert!(closes(&mut idle));
    std::thread::sleep(Duration::from_millis(300));
    memory.hold(false);
    assert_eq!(waiting.complete(true).unwrap().unwrap().cookie, 1);
}

#[test]
fn requests_in_flight_are_bounded() {
    let memory = Memory::new(1 << 20);
    let served = serve(Arc::clone(&memory) as _, |options| options.limits.requests_max = 4);
    memory.hold(true);
    let mut client = served.client();
    for cookie in 0..100 {
        client.submit(cookie, Command::Flush).unwrap();
    }
    client.send().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    memory.hold(false);
    for _ in 0..100 {
        client.complete(true).unwrap().unwrap().result.unwrap();
    }
    assert_eq!(memory.flushes.load(Ordering::SeqCst), 100);
}

#[test]
fn several_exports_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let exports = vec![
        Export { name: "system disk".into(), description: "of vm1".into(), device: Memory::new(1 << 20) },
        Export::new("data/é", Memory::new(2 << 20)),
    ];
    let address = Address::Unix(directory.path().join("s"));
    let server = Server::start(ServerOptions::new(address, exports)).unwrap();
    let uris = server.uris();
    let options = ClientOptions::default();
    let list = Client::list(&uris[0], &options).unwrap();
    assert_eq!(list, [("system disk".into(), "of vm1".into()), ("data/é".into(), String::new())]);
    for (uri, size) in [(&uris[0], 1 << 20), (&uris[1], 2 << 20), (&uris[0].with_export(""), 1 << 20)] {
        let parsed: Uri = uri.to_string().parse().unwrap();
        assert_eq!(Client::info_of(&parsed, &options).unwrap().size, size);
        assert_eq!(Client::connect(&parsed, &options).unwrap().size(), size);
    }
    let missing = Client::connect(&uris[0].with_export("x"), &options);
    assert!(matches!(missing, Err(ClientError::Refused { kind: 0x8000_0006, .. })), "{missing:?}");
}

#[test]
fn names_are_checked() {
    let address = Address::Unix("/nonexistent/x".into());
    let start = |exports| Server::start(ServerOptions::new(address.clone(), exports)).unwrap_err();
    assert!(matches!(start(vec![]), ServeError::NoExports));
    let twice = vec![Export::new("a", Memory::new(512)), Export::new("a", Memory::new(512))];
    assert!(matches!(start(twice), ServeError::Name { .. }));
    assert!(matches!(start(vec![Export::new("a", Memory::new(512))]), ServeError::Listen(ListenError::Io { .. })));
}

#[test]
fn several_connections_see_one_disk_that_grows() {
    let memory = Memory::new(1 << 20);
    let served = serve(Arc::clone(&memory) as _, |_| ());
    let (mut one, mut two) = (served.client(), served.client());
    assert!(one.info().has(cdp_net::nbd::protocol::transmission::CAN_MULTI_CONN));
    one.write(0, &[7; 4096], false).unwrap();
    two.flush().unwrap();
    let mut buffer = [0; 4096];
    two.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 4096]);
    memory.grow(2 << 20);
    two.write(1 << 20, &[8; 512], false).unwrap();
    assert_eq!(served.client().size(), 2 << 20);
}

#[test]
fn the_sockets_file() {
    let served = serve(Memory::new(1 << 20), |_| ());
    let path = served.directory.path().join("nbd.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let options = || ServerOptions::new(Address::Unix(path.clone()), vec![Export::new("", Memory::new(512))]);
    let busy = Server::start(options()).unwrap_err();
    assert!(matches!(busy, ServeError::Listen(ListenError::InUse { .. })), "{busy:?}");
    served.check_alive();
    served.server.stop(Duration::from_secs(5));
    assert!(!path.exists());
    // A killed server leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Server::start(options()).unwrap();
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let refused = Server::start(options()).unwrap_err();
    assert!(matches!(refused, ServeError::Listen(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn tcp_ports_taken_and_free() {
    let address = |port| Address::Tcp { host: "127.0.0.1".into(), port };
    let options = |port| ServerOptions::new(address(port), vec![Export::new("", Memory::new(1 << 20))]);
    let first = Server::start(options(0)).unwrap();
    let Address::Tcp { port, .. } = *first.address() else { panic!() };
    assert!(matches!(Server::start(options(port)), Err(ServeError::Listen(ListenError::InUse { .. }))));
    let second = Server::start(ServerOptions { next_free: true, ..options(port) }).unwrap();
    assert_ne!(first.address(), second.address());
    for server in [&first, &second] {
        let mut client = Client::connect(&server.uris()[0], &ClientOptions::default()).unwrap();
        client.write(0, &vec![1; 1 << 20], true).unwrap();
        client.read(0, &mut vec![0; 1 << 20]).unwrap();
    }
}

#[test]
fn a_stop_completes_what_has_arrived() {
    let memory = Memory::new(1 << 20);
    let served = serve(Arc::clone(&memory) as _, |_| ());
    let mut client = served.client();
    memory.hold(true);
    client.submit(1, Command::Flush).unwrap();
    client.submit(2, Command::Write { offset: 0, data: &[9; 512], flags: 0 }).unwrap();
    client.submit(3, Command::Write { offset: 512, data: &vec![9; 300 << 10], flags: 0 }).unwrap();
    client.send().unwrap();
    eventually(|| memory.writes.load(Ordering::SeqCst) >= 1);
    let device = Arc::clone(&memory);
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        device.hold(false);
    });
    let (stats, clean) = served.server.stop(Duration::from_secs(10));
    assert!(clean);
    assert_eq!((stats.requests, stats.connections_open), (3, 0));
    for _ in 0..3 {
        client.complete(true).unwrap().unwrap().result.unwrap();
    }
    assert!(closes(&mut client.into_channel()));
    release.join().unwrap();
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let memory = Memory::new(1 << 20);
    let served = serve(Arc::clone(&memory) as _, |_| ());
    let mut client = served.client();
    memory.hold(true);
    client.submit(1, Command::Flush).unwrap();
    client.send().unwrap();
    let mut resting = served.raw();
    std::thread::sleep(Duration::from_millis(50));
    let begin = Instant::now();
    let (_, clean) = served.server.stop(Duration::from_millis(100));
    assert!(!clean);
    assert!(begin.elapsed() < Duration::from_secs(3));
    assert!(closes(&mut resting));
    assert!(resting.recv(&mut [0], soon()).is_ok_and(|count| count == 0));
    memory.hold(false);
}
