//! `cdp serve` of a replica host while it runs.

use super::{Place, Running, command};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

/// A process that keeps replicas.
pub(crate) struct Serving {
    pub(crate) running: Running,
    pub(crate) file: PathBuf,
    /// Where filters find it.
    pub(crate) address: SocketAddr,
    /// Where it has its metrics.
    pub(crate) metrics: SocketAddr,
    pub(crate) fingerprint: String,
}

impl Serving {
    /// Its file, with these peers of the tenant `acme`: a fingerprint, or the byte that one is made of.
    pub(crate) fn write(place: &Place, peers: &[&str]) -> PathBuf {
        let mut text = "state = \"state\"\nmetrics = \"127.0.0.1:0\"\n".to_owned();
        for (number, peer) in peers.iter().enumerate() {
            let fingerprint = if peer.len() == 2 { format!("sha256:{}", peer.repeat(32)) } else { (*peer).to_owned() };
            text.push_str(&format!(
                "[[peer]]\nname = \"peer {number}\"\nfingerprint = \"{fingerprint}\"\ntenant = \"acme\"\n"
            ));
        }
        text.push_str("[replica-host]\nlisten = \"127.0.0.1:0\"\ndirectory = \"replicas\"\ngroups-max = 5\n");
        text.push_str("quota = \"1GiB\"\nkey-file = \"at-rest.key\"\n");
        std::fs::write(place.path("at-rest.key"), [7; 32]).unwrap();
        let file = place.path("host.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Starts it.
    pub(crate) fn start(place: &Place, peers: &[&str]) -> Self {
        let file = Self::write(place, peers);
        let running = Running::spawn(command(&["serve".as_ref(), file.as_os_str()]));
        let ready = running.wait_event("ready", |event| event["event"] == "ready");
        let listens = "replica-host: listens at ";
        let note = running.wait_event("where it listens", |event| {
            event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.starts_with(listens))
        });
        let address = note["text"].as_str().unwrap().trim_start_matches(listens).parse().unwrap();
        let metrics = ready["metrics"].as_str().unwrap().parse().unwrap();
        let fingerprint = ready["fingerprint"].as_str().unwrap().to_owned();
        Self { running, file, address, metrics, fingerprint }
    }

    /// Has it read its file again; what came of it.
    pub(crate) fn reload(&self, event: &str) -> Value {
        let heard = self.running.events().len();
        self.running.signal(Signal::HUP);
        self.running.wait_event_after(heard, event, |found| found["event"] == event)
    }

    /// What Prometheus reads.
    pub(crate) fn metrics(&self) -> String {
        let mut tcp = TcpStream::connect(self.metrics).unwrap();
        tcp.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).unwrap();
        text
    }
}
