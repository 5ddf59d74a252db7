//! This very program as one part of the chain.

use super::null::Null;
use super::wan::{Wan, Weather};
use cdp_core::capture::State as Filtering;
use cdp_core::media::{Disk, Storage};
use cdp_core::policy::traffic::Rules;
use cdp_net::device::Device;
use cdp_net::far::{Far, Remote};
use cdp_net::file_device::FileDevice;
use cdp_net::keeper::KeeperOptions;
use cdp_net::link::identity::Identity;
use cdp_net::link::listener::AcceptOptions;
use cdp_net::link::pin::Peers;
use cdp_net::nbd::{Address, Export, Server, ServerOptions};
use cdp_net::owner::{Owner, PolicyChange};
use cdp_net::protect::{GivenSources, Protection, ProtectionOptions, SourceOptions, State};
use cdp_net::report::PointPolicy;
use cdp_net::services::config::Peer;
use cdp_net::services::far_link::{FarLink, FarOptions};
use cdp_net::services::peers::PeerBook;
use cdp_net::services::proxy::{Mode, Proxy, ProxyOptions};
use cdp_net::services::replica_host::{ReplicaHost, ReplicaHostOptions};
use cdp_net::services::role::Notes;
use cdp_net::services::traffic::Traffic;
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

type Failure = Box<dyn std::error::Error>;

/// Tells this program to be a part: its kind, its directory, and what else it needs follow.
pub(crate) const PART: &str = "--part";
/// How the filter guards its frames: by TLS, or as the rules have it where none is written, on loopback by a MAC alone.
pub(crate) const TLS: &str = "tls";
pub(crate) const PLAIN: &str = "plain";
/// Tells a line that it is cut.
pub(crate) const CUT: &str = "cut";
/// The spool bound of every row, in bytes.
const QUEUE_BYTES: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(120);
/// Everybody's.
pub(crate) const NAMES: [&str; 4] = ["filter", "source", "target", "host"];

fn identity(root: &Path, name: &str) -> Result<Arc<Identity>, Failure> {
    Ok(Arc::new(Identity::open_or_make(&root.join("identities").join(name), name)?))
}

/// Everybody knows everybody.
fn book(root: &Path) -> Result<PeerBook, Failure> {
    let peer = |name: &&str| {
        let fingerprint = identity(root, name)?.fingerprint().to_string();
        Ok(Peer { name: (*name).into(), fingerprint, tenant: "*".into() })
    };
    Ok(PeerBook::new(&NAMES.iter().map(peer).collect::<Result<Vec<_>, Failure>>()?))
}

/// Is a part, if that is what the arguments say; whether it was.
pub(crate) fn serve_if_told(arguments: &[String]) -> Result<bool, Failure> {
    let [word, kind, root, rest @ ..] = arguments else { return Ok(false) };
    if word != PART {
        return Ok(false);
    }
    let root = Path::new(root);
    match (kind.as_str(), rest) {
        ("identities", []) => NAMES.iter().try_for_each(|name| identity(root, name).map(drop))?,
        ("host", [ip]) => host(root, ip)?,
        ("proxy", [name, mode, to, ip]) => proxy(root, name, mode, to, ip)?,
        ("filter", [source, socket, points, to, guard]) => filter(root, source, socket, points, to, guard)?,
        ("plain", [source, socket]) => plain(source, socket)?,
        ("null", [source, socket]) => null(root, source, socket)?,
        ("line", [to]) => line(to.parse()?)?,
        _ => return Err(format!("no part is called {kind} with {} words", rest.len()).into()),
    }
    Ok(true)
}

/// Says a line for each one that comes, until no more do.
fn answer(mut say: impl FnMut() -> String) {
    for line in std::io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        println!("{}", say());
    }
}

fn host(root: &Path, ip: &str) -> Result<(), Failure> {
    let runtime = Runtime::new()?;
    let options = ReplicaHostOptions {
        listen: format!("{ip}:0"),
        directory: root.join("replicas"),
        peers: book(root)?,
        tickets: None,
        groups_max: 10,
        keeper: KeeperOptions::default(),
        accept: AcceptOptions::default(),
    };
    let host = runtime.block_on(ReplicaHost::start(identity(root, "host")?, options))?;
    println!("{}", host.address());
    answer(|| "0".into());
    runtime.block_on(host.stop());
    Ok(())
}

fn proxy(root: &Path, name: &str, mode: &str, to: &str, ip: &str) -> Result<(), Failure> {
    let runtime = Runtime::new()?;
    let options = ProxyOptions {
        name: if name == "source" { "source-proxy" } else { "target-proxy" },
        listen: format!("{ip}:0"),
        to: vec![to.to_owned()],
        ticket: Default::default(),
        mode: match mode {
            "pass" => Mode::Pass,
            level => Mode::Compress { level: level.parse()? },
        },
        cache: None,
        memory_bytes: 1 << 30,
        disk_bytes: 0,
        connections: 1,
        tickets: None,
        accept: AcceptOptions::default(),
    };
    let notes = Notes::new(|sentence| eprintln!("    {sentence}"));
    // As the limit has it: on loopback frames would go without.
    let rules = Rules::encrypting();
    let proxy = Proxy::start(runtime.handle(), identity(root, name)?, book(root)?, notes, rules, options)?;
    println!("{}", proxy.address());
    answer(|| {
        let groups = proxy.groups();
        let sum = |of: fn(&cdp_net::services::role::GroupReport) -> u64| groups.iter().map(of).sum::<u64>();
        let held = sum(|group| group.held.memory + group.held.disk);
        let (came, went) = (sum(|group| group.in_bytes), sum(|group| group.out_bytes));
        let (coalesced, compressed) = (sum(|group| group.coalesced_bytes), sum(|group| group.compressed_bytes));
        format!("{came} {went} {coalesced} {compressed} {held}")
    });
    proxy.stop(Duration::from_secs(10));
    Ok(())
}

fn filter(root: &Path, source: &str, socket: &str, points: &str, to: &str, guard: &str) -> Result<(), Failure> {
    let options = FarOptions {
        to: vec![to.to_owned()],
        peers: Peers::new(
            NAMES.iter().map(|name| Ok(identity(root, name)?.fingerprint())).collect::<Result<Vec<_>, Failure>>()?,
        ),
        tenant: String::new(),
        name: "machine".into(),
        memory_bytes: FarOptions::memory_for(QUEUE_BYTES),
        spool: None,
        silence_ms: 10_000,
        connections: 0,
        ticket: Default::default(),
        traffic: if guard == PLAIN { Traffic::default() } else { Traffic::encrypted() },
    };
    let link = FarLink::start(identity(root, "filter")?, options)?;
    protect(root, source, socket, points, &(Arc::new(Remote::new(link)) as _))
}

/// Captured, and thrown away once the disk is seeded.
fn null(root: &Path, source: &str, socket: &str) -> Result<(), Failure> {
    for name in ["state", "replicas"] {
        // The first run finds none.
        let _ = std::fs::remove_dir_all(root.join(name));
    }
    protect(root, source, socket, "every-write", &(Arc::new(Null::new(&root.join("replicas"))?) as _))
}

fn protect(root: &Path, source: &str, socket: &str, points: &str, far: &Arc<dyn Far>) -> Result<(), Failure> {
    let sources = vec![SourceOptions { name: "disk".into(), path: source.into() }];
    let points = if points == "per-point" { PointPolicy::PerPoint } else { PointPolicy::EveryWrite };
    let options = ProtectionOptions {
        sources: sources.clone(),
        name: Some("machine".into()),
        policy: PolicyChange { points: Some(points), ..Default::default() },
        trust_source: false,
        full_check: false,
        queue_bytes: QUEUE_BYTES,
        reread_threads: 3,
    };
    let directory = root.join("state");
    let storage: Arc<dyn Storage> = Arc::new(Disk::create(&directory)?);
    let state = State { storage, owner: Some(Arc::new(Owner::acquire(&directory)?)) };
    let protection = Protection::start(&options, GivenSources::open(&sources)?, state, far, |_| {})?;
    while protection.status().state != Filtering::Protecting {
        if let Some(failure) = protection.failure() {
            return Err(failure.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let server = Server::start(ServerOptions::new(Address::Unix(socket.into()), protection.exports().to_vec()))?;
    println!("seeded");
    answer(|| {
        let status = protection.status();
        let protecting = u8::from(status.state == Filtering::Protecting);
        let rpo = status.rpo_ns.unwrap_or(0);
        format!(
            "{} {} {} {} {protecting} {} {rpo} {}",
            status.lsn.0,
            status.durable.0,
            status.counters.gaps,
            status.counters.ops_tracked,
            status.queued_bytes,
            status.counters.holds_log
        )
    });
    drop(server);
    let summary = protection.stop(PATIENCE, &|| false);
    println!("{} {} {}", u8::from(summary.drained), summary.written_bytes, summary.stored_bytes);
    Ok(())
}

/// A line to one of the others. It is told [`CUT`], or how many bytes a second it takes from now on: 0 are as many as come.
fn line(to: SocketAddr) -> Result<(), Failure> {
    let wan = Wan::start(to);
    println!("{}", wan.address());
    for word in std::io::stdin().lock().lines().map_while(Result::ok) {
        if word == CUT {
            wan.cut();
        } else {
            wan.set(Weather { rate: word.parse()?, ..Weather::default() });
            wan.mend();
        }
        println!("{word}");
    }
    Ok(())
}

/// The same server on the same file, with nothing between.
fn plain(source: &str, socket: &str) -> Result<(), Failure> {
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(Path::new(source), false)?);
    let export = Export::new("disk", device);
    let server = Server::start(ServerOptions::new(Address::Unix(socket.into()), vec![export]))?;
    println!("serves");
    answer(String::new);
    drop(server);
    Ok(())
}
