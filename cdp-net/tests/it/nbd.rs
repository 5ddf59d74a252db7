//! The NBD server and our own client, over real sockets.

mod bad_servers;
mod basic;
mod devices;
mod hostile;
mod limits;
mod refusals;
pub(crate) mod tls;

pub(crate) use devices::{Faulty, Memory};

use cdp_net::nbd::{Address, Channel, Client, ClientOptions, Export, Server, ServerOptions, Uri};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A server with one export on a unix socket of its own.
pub(crate) struct Served {
    pub(crate) directory: TempDir,
    pub(crate) server: Server,
    pub(crate) uri: Uri,
}

pub(crate) fn serve(device: Arc<dyn cdp_net::device::Device>, change: impl FnOnce(&mut ServerOptions)) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("nbd.sock"));
    let mut options = ServerOptions::new(address, vec![Export::new("disk", device)]);
    change(&mut options);
    let server = Server::start(options).unwrap();
    let uri = server.uris().remove(0);
    Served { directory, server, uri }
}

impl Served {
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.uri, &ClientOptions::default()).unwrap()
    }

    /// A connection in the transmission phase whose bytes the test chooses; structured replies are on.
    pub(crate) fn raw(&self) -> Channel {
        self.client().into_channel()
    }

    /// The server still works for others.
    pub(crate) fn check_alive(&self) {
        let mut client = self.client();
        let mut buffer = [0; 512];
        client.read(0, &mut buffer).unwrap();
        client.disconnect().unwrap();
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Whether the server closes the connection soon; what it sends before is read and forgotten.
pub(crate) fn closes(channel: &mut Channel) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match channel.recv(&mut buffer, soon()) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::TimedOut,
        }
    }
}

/// Waits for something that happens on another thread.
pub(crate) fn eventually(mut what: impl FnMut() -> bool) {
    let until = soon();
    while !what() {
        assert!(Instant::now() < until, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}
