//! Those who come with harm in mind, alone and in thousands.

use super::*;
use cdp_core::link::preamble::Preamble;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// So many come at once.
const FLOOD: usize = 10_000;
/// Memory that all of them may take, in bytes: a few KiB each, the ends of those who come included, and no buffer for anybody.
const MEMORY_MAX: u64 = 64 << 20;
/// Set for the process that is flooded.
const FLOODED: &str = "CDP_TEST_FLOODED";

/// What somebody is told who says this before TLS.
async fn told(to: SocketAddr, said: &[u8]) -> Farewell {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.write_all(said).await.unwrap();
    let mut bytes = Vec::new();
    // How it ends is up to who ends it.
    let _ = within(30, tcp.read_to_end(&mut bytes)).await;
    match Preamble::decode(&bytes) {
        Ok(Preamble::Refusal(farewell)) => farewell,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_preamble_is_refused_by_its_code() {
    let (provider, host) = with_host("", AcceptOptions::default());
    let good = Preamble::Tls { ticket: provider.issue(&provider.ticket("acme", "filter")) }.encode().unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let plain = Preamble::Plain { session: SessionId::new([3; 16]).unwrap(), connection: 1 }.encode().unwrap();
    let refusing = Preamble::Refusal(Farewell::new(Code::Busy, "")).encode().unwrap();
    provider.runtime.block_on(async {
        let cases = [
            (b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec(), Code::Malformed),
            // Another version.
            (changed(7, 2), Code::Malformed),
            (changed(8, 9), Code::Malformed),
            // Sixty-five thousand bytes of ticket, of which none is waited for.
            (changed(11, 0xff), Code::TooLong),
            (changed(40, 0xff), Code::Malformed),
            (plain, Code::Unauthorized),
            (refusing, Code::Unexpected),
        ];
        for (said, code) in &cases {
            let farewell = told(provider.address, said).await;
            assert_eq!(farewell.code, *code, "{farewell:?}");
        }
        for (said, code) in cases.iter().filter(|(_, code)| *code != Code::Unauthorized) {
            assert_eq!(told(host.address(), said).await.code, *code);
        }
    });
    assert_eq!(provider.gateway().report().door.unwrap().refused, 7);
    assert!(provider.gateway().report().tenants.is_empty(), "nobody's");
    provider.runtime.block_on(host.stop());
}

/// Whoever says a byte now and then has as long as everybody, and holds a place that newer ones take from him.
#[test]
fn who_drips_is_cut_at_the_gateway() {
    let provider = Provider::new(([127, 0, 0, 1], 9).into(), "");
    let preamble = Preamble::Tls { ticket: provider.issue(&provider.ticket("acme", "filter")) }.encode().unwrap();
    provider.runtime.block_on(async {
        let tcp = TcpStream::connect(provider.address).await.unwrap();
        let (mut from, mut to) = tcp.into_split();
        let drip = async {
            for byte in &preamble {
                if to.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            // It is cut, or has said everything and would be told something.
            std::future::pending::<()>().await;
        };
        let mut bytes = Vec::new();
        tokio::select! {
            () = drip => {}
            _ = within(40, from.read_to_end(&mut bytes)) => {}
        }
        assert!(bytes.is_empty(), "it could say everything: {bytes:?}");
    });
    assert_eq!(provider.gateway().report().door.unwrap().dawdled, 1);
}

/// As many descriptors as the flood needs; whether this process may have them.
fn raise_descriptors() -> bool {
    let (limit, needed) = (getrlimit(Resource::Nofile), FLOOD as u64 + 4096);
    // More than the hard limit is for root alone.
    let maximum = limit.maximum.map(|most| most.max(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    if !raised {
        println!("skipped: {needed} descriptors are needed, and {limit:?} is all that this process may have");
    }
    raised
}

/// Memory of this process that is in use, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Opens [`FLOOD`] connections that say the one or the other thing and nothing more, and holds all of them until it is dropped. How
/// many are open is told.
fn flood(provider: &Provider, to: SocketAddr, says: [Vec<u8>; 2]) -> (watch::Receiver<usize>, FloodEnds) {
    let (told, open) = watch::channel(0);
    let task = provider.runtime.spawn(async move {
        let mut held = Vec::new();
        while held.len() < FLOOD {
            let Ok(mut tcp) = TcpStream::connect(to).await else {
                // The other side's queue is full.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            // It may be cut already.
            let _ = tcp.write_all(&says[held.len() % 2]).await;
            held.push(tcp);
            told.send_replace(held.len());
        }
        std::future::pending::<()>().await;
    });
    (open, FloodEnds(task))
}

struct FloodEnds(tokio::task::JoinHandle<()>);

impl Drop for FloodEnds {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Comes in while the flood comes, and once more when all of it is there.
async fn gets_in(provider: &Provider, to: SocketAddr, ticket: &Bytes, mut flood: watch::Receiver<usize>) {
    let mut tries = 0;
    for at_least in [FLOOD / 10, FLOOD] {
        within(120, flood.wait_for(|open| *open >= at_least)).await.unwrap();
        let enter = async {
            loop {
                tries += 1;
                match provider.enter(to, "filter", ticket, "acme", None).await {
                    Ok(hub) => return hub,
                    // As whoever dials does.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        drop(within(120, enter).await);
        println!("in with {} open, try {tries}", *flood.borrow());
    }
}

/// In a process of its own, whose memory and descriptors nobody else needs meanwhile.
#[test]
fn ten_thousand_connections_keep_nobody_out_and_take_little_memory() {
    let mut flooded = Command::new(std::env::current_exe().unwrap());
    flooded.args(["--exact", "gateway::flood::the_process_that_is_flooded", "--nocapture"]).env(FLOODED, "1");
    let output = flooded.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success(), "{err}");
}

/// The one of them is silent, the other replays a ticket that was seen on its way: it holds the places of that ticket's tenant, and
/// no other's. Without the variable it is no test.
#[test]
fn the_process_that_is_flooded() {
    if std::env::var_os(FLOODED).is_none() || !raise_descriptors() {
        return;
    }
    let (provider, host) = with_host("connections-per-tenant = 16", AcceptOptions::default());
    let ticket = provider.issue(&provider.ticket("acme", "filter"));
    let seen = Preamble::Tls { ticket: provider.issue(&provider.ticket("victim", "victim")) }.encode().unwrap();
    let before = resident();
    let (open, ends) = flood(&provider, provider.address, [Vec::new(), seen.clone()]);
    provider.runtime.block_on(gets_in(&provider, provider.address, &ticket, open));
    let door = provider.gateway().report().door.unwrap();
    let victim = provider.tenant("victim");
    let more = resident().saturating_sub(before);
    println!("gateway: {door:?}, {victim:?}, {} KiB more", more >> 10);
    assert!(more < MEMORY_MAX, "{more} bytes for {FLOOD} connections to the gateway");
    // What may be open of them: those that say nothing yet, and the victim's.
    assert!(door.refused + door.dawdled >= (FLOOD - 512 - 16) as u64 - door.let_in, "{door:?}");
    assert!(victim.connections <= 16 && victim.limited > 0, "{victim:?}");
    assert_eq!(provider.tenant("acme").limited, 0);
    drop(ends);
    // The same at the port behind: there a ticket that was seen ends in TLS that does not come up.
    let (open, ends) = flood(&provider, host.address(), [Vec::new(), seen]);
    provider.runtime.block_on(gets_in(&provider, host.address(), &ticket, open));
    let stats = host.door();
    let more = resident().saturating_sub(before);
    println!("host: {stats:?}, {} KiB more", more >> 10);
    assert!(more < MEMORY_MAX, "{more} bytes for {FLOOD} connections to the host");
    assert!(stats.refused + stats.dawdled >= (FLOOD - 128) as u64, "{stats:?}");
    drop(ends);
    assert!(!replicas(provider.directory.path()).join("victim").exists());
    provider.runtime.block_on(host.stop());
}
