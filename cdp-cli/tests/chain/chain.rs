//! The parts and what lies between them.

use crate::support::{Answer, Place, Running, cdp, command, wait_for};
use crate::wan::Wan;
use rustix::process::Signal;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// What the group is called.
const GROUP: &str = "machine";
/// The first part's port; the others have those behind it.
const PORT: u16 = 10820;

/// Whatever is wrong behind the filter, each guest is answered within this: before the filter takes a side that is silent for dead, which
/// is after five seconds, so that no guest waits for that.
pub(crate) const GUESTS_WAIT_MAX: Duration = Duration::from_secs(4);

/// A process of the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Filter,
    /// The source proxy that the filter wants most.
    First,
    /// Who takes over from it.
    Second,
    Gateway,
    Target,
    Host,
}

pub(crate) const PARTS: [Part; 6] = [Part::Filter, Part::First, Part::Second, Part::Gateway, Part::Target, Part::Host];

impl Part {
    /// Its file and its state directory are called so.
    fn name(self) -> &'static str {
        ["filter", "first", "second", "gateway", "target", "host"][self as usize]
    }

    /// Whether it is at the site of whoever is protected.
    pub(crate) fn is_here(self) -> bool {
        matches!(self, Self::Filter | Self::First | Self::Second)
    }
}

/// Whether these gaps are all due: one, of the activity log, for each kill of the filter, and none for whatever else was killed. The journal
/// of a replica host may end within a write of several frames then, and goes on there.
pub(crate) fn check_gaps(points: &Value, filter_kills: usize) {
    let gaps = points["gaps"].as_array().unwrap();
    let unclean = gaps.iter().filter(|gap| gap["cause"] == "unclean-stop").count();
    assert!(unclean == filter_kills && gaps.len() == filter_kills, "{filter_kills} kills of the filter: {points}");
}

/// Where the parts run.
#[derive(Clone, Debug)]
pub(crate) struct Sites {
    /// Where everybody of a site is found, by part.
    pub(crate) address: [Ipv4Addr; 6],
    /// Network namespaces of the two sites.
    pub(crate) namespaces: Option<[String; 2]>,
    /// With cables that can be cut before and behind the gateway.
    pub(crate) cables: bool,
}

impl Sites {
    /// On this machine. Every part has an address of its own, so that no port of its can be taken while it is away.
    pub(crate) fn loopback() -> Self {
        static CHAINS: AtomicU8 = AtomicU8::new(0);
        let (pid, chain) = (std::process::id(), CHAINS.fetch_add(1, Ordering::Relaxed));
        let net = [64 | (pid >> 8) as u8 & 63, pid as u8];
        let address = [1, 2, 3, 4, 5, 6].map(|part| Ipv4Addr::new(127, net[0], net[1], chain * 8 + part));
        Self { address, namespaces: None, cables: true }
    }

    pub(crate) fn of(&self, part: Part) -> SocketAddr {
        (IpAddr::V4(self.address[part as usize]), PORT + part as u16).into()
    }
}

/// All parts, running.
pub(crate) struct Chain {
    /// Before the gateway, and behind it.
    pub(crate) near: Option<Wan>,
    pub(crate) far: Option<Wan>,
    sites: Sites,
    running: [Option<Running>; 6],
    pub(crate) place: Place,
}

impl Chain {
    /// Starts everything, with these disks, which are called as their files are. Nothing was written yet.
    pub(crate) fn start(place: Place, sites: Sites, disks: &[&Path]) -> Self {
        let cable = |to| sites.cables.then(|| Wan::start(sites.of(to)));
        let (near, far) = (cable(Part::Gateway), cable(Part::Target));
        let mut chain = Self { near, far, sites, running: Default::default(), place };
        let keys = chain.file("ticket.key");
        cdp(&["ticket".as_ref(), "--new-key".as_ref(), keys.as_os_str()]).done();
        for proxy in [Part::First, Part::Second] {
            let certificate = chain.fingerprint(proxy.name());
            let arguments =
                ["ticket", "--ticket-key", keys.to_str().unwrap(), "--tenant", "acme", "--route", "target-1"];
            let made = cdp(&[&arguments[..], &["--certificate", &certificate]].concat()).done();
            std::fs::write(chain.file(&format!("{}.ticket", proxy.name())), made["ticket"].as_str().unwrap()).unwrap();
        }
        for part in PARTS {
            let text = chain.toml(part, disks);
            std::fs::write(chain.file(&format!("{}.toml", part.name())), text).unwrap();
        }
        for part in PARTS.into_iter().rev() {
            chain.begin(part);
        }
        chain.wait_protecting();
        chain
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// Of an identity, which is made where there is none.
    fn fingerprint(&self, name: &str) -> String {
        let shown = cdp(&["identity".as_ref(), self.file(name).as_os_str()]).done();
        shown["fingerprint"].as_str().unwrap().to_owned()
    }

    fn toml(&self, part: Part, disks: &[&Path]) -> String {
        let name = part.name();
        let drain = if part == Part::Filter { 60 } else { 1 };
        let mut text = format!("state = \"{name}\"\ndrain = \"{drain}s\"\n");
        let peers: &[(&str, &str)] = match part {
            Part::Filter => &[("first", "*"), ("second", "*")],
            Part::First | Part::Second => &[("filter", "*"), ("reader", "*"), ("target", "*")],
            Part::Gateway => &[],
            Part::Target => &[("first", "acme"), ("second", "acme"), ("host", "*")],
            Part::Host => &[("target", "*")],
        };
        for (peer, tenant) in peers {
            let fingerprint = self.fingerprint(peer);
            write!(text, "[[peer]]\nname = \"{peer}\"\nfingerprint = \"{fingerprint}\"\ntenant = \"{tenant}\"\n")
                .unwrap();
        }
        let (at, of) = (self.sites.of(part), |part| self.sites.of(part));
        let through = |cable: &Option<Wan>, to| cable.as_ref().map_or_else(|| of(to), Wan::address);
        let role = match part {
            Part::Filter => {
                let (first, second, listen) = (of(Part::First), of(Part::Second), self.uri(""));
                let mut role = format!(
                    "[filter]\nto = [\"cdp://{first}\", \"cdp://{second}\"]\nspool = {{ memory = \"64MiB\", disk = \"1GiB\" }}\n\
                     [[filter.group]]\nname = \"{GROUP}\"\nlisten = \"{listen}\"\npolicy = {{ rpo = \"1s\" }}\n"
                );
                for disk in disks {
                    let (name, source) = (disk.file_stem().unwrap().display(), disk.display());
                    write!(role, "[[filter.group.disk]]\nname = \"{name}\"\nsource = \"{source}\"\n").unwrap();
                }
                role
            }
            Part::First | Part::Second => format!(
                "[source-proxy]\nlisten = \"{at}\"\nto = [\"cdp://{}\"]\nticket = \"{name}.ticket\"\n\
                 cache = {{ memory = \"64MiB\", disk = \"1GiB\" }}\n",
                through(&self.near, Part::Gateway)
            ),
            Part::Gateway => format!(
                "[gateway]\nlisten = \"{at}\"\nticket-key = \"ticket.key\"\n[gateway.to]\ntarget-1 = \"{}\"\n",
                through(&self.far, Part::Target)
            ),
            Part::Target => format!(
                "[target-proxy]\nlisten = \"{at}\"\nto = [\"cdp://{}\"]\nticket-key = \"ticket.key\"\nroute = \"target-1\"\n\
                 cache = {{ memory = \"64MiB\", disk = \"1GiB\" }}\n",
                of(Part::Host)
            ),
            Part::Host => format!("[replica-host]\nlisten = \"{at}\"\ndirectory = \"replicas\"\n"),
        };
        text + &role
    }

    /// Starts a part, and waits until it is there.
    pub(crate) fn begin(&mut self, part: Part) {
        let plain = command(&["serve".as_ref(), self.file(&format!("{}.toml", part.name())).as_os_str()]);
        let running = Running::spawn(self.at_site(part.is_here(), plain));
        running.wait_event("ready", |event| event["event"] == "ready");
        self.running[part as usize] = Some(running);
    }

    /// A command as it is given at one of the two sites.
    pub(crate) fn at_site(&self, here: bool, plain: Command) -> Command {
        let Some(namespaces) = &self.sites.namespaces else { return plain };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespaces[usize::from(!here)]]);
        command.arg(plain.get_program()).args(plain.get_args());
        command
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, part: Part) {
        self.running[part as usize].take().unwrap().kill();
    }

    pub(crate) fn signal(&self, part: Part, signal: Signal) {
        self.running[part as usize].as_ref().unwrap().signal(signal);
    }

    /// SIGTERM: it ends well, if it runs. Who writes the order or keeps it has nothing left then; a proxy may have what came to the
    /// replica by another one, or what a new timeline made void.
    pub(crate) fn stop(&mut self, part: Part) {
        let Some(mut running) = self.running[part as usize].take() else { return };
        let (status, last) = running.stop();
        let events = running.events();
        assert_eq!((status, last["event"].as_str()), (0, Some("stopped")), "{part:?}: {events:?}");
        let drained = events.iter().find(|event| event["event"] == "drained");
        if matches!(part, Part::Filter | Part::Host) {
            assert_eq!(drained.unwrap()["left_bytes"], 0, "{part:?}: {events:?}");
        }
    }

    /// What a part has said, for whoever looks why something failed.
    pub(crate) fn said(&self, part: Part) -> Vec<Value> {
        self.running[part as usize].as_ref().map(Running::events).unwrap_or_default()
    }

    /// Where a disk is served; without a name the first one.
    pub(crate) fn uri(&self, disk: &str) -> String {
        format!("nbd+unix:///{disk}?socket={}", self.file("nbd.sock").display())
    }

    /// Where the filter keeps what it knows of the group, with its control socket.
    fn group(&self) -> PathBuf {
        self.file("filter").join("filter").join(GROUP)
    }

    /// The directory of the replica.
    pub(crate) fn replica(&self) -> PathBuf {
        self.file("replicas").join("acme").join(GROUP)
    }

    /// How the filter's group stands; none while there is no filter.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let answer = cdp(&["status".as_ref(), self.group().as_os_str()]);
        (answer.status != 4).then_some(answer.json)
    }

    pub(crate) fn status(&self) -> Value {
        self.try_status().expect("there is a filter")
    }

    pub(crate) fn wait_protecting(&self) {
        self.wait("the protection", || self.try_status().is_some_and(|status| status["state"] == "protecting"));
    }

    /// Waits until all is durable that was written before now.
    pub(crate) fn wait_durable(&self) {
        let written = self.status()["lsn"].as_u64().unwrap();
        self.wait("what was written", || {
            let status = self.status();
            status["durable_lsn"].as_u64() >= Some(written) && status["state"] == "protecting"
        });
    }

    /// Waits; whoever waits too long reads what everybody said.
    fn wait(&self, what: &str, holds: impl FnMut() -> bool) {
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(what, holds)));
        if let Err(panic) = waited {
            for part in PARTS {
                eprintln!("{part:?}: {:?}", self.said(part));
            }
            eprintln!("{:?}", self.try_status());
            std::panic::resume_unwind(panic);
        }
    }

    pub(crate) fn mark(&self, label: &str) -> Value {
        cdp(&["mark".as_ref(), self.group().as_os_str(), "--label".as_ref(), label.as_ref()]).done()
    }

    /// The source proxy that the filter sends to.
    pub(crate) fn source_in_use(&self) -> Part {
        let second = self.sites.of(Part::Second).to_string();
        if self.status()["remote"]["address"] == second { Part::Second } else { Part::First }
    }

    /// A command on the group as somebody has it who is where the source proxies are: through the whole chain.
    pub(crate) fn read_afar(&self, verb: &str, more: &[&OsStr]) -> Answer {
        let proxy = if self.running[Part::First as usize].is_some() { Part::First } else { Part::Second };
        let url = format!("cdp://{}/{GROUP}", self.sites.of(proxy));
        let peer = self.fingerprint(proxy.name());
        let mut arguments: Vec<OsString> = vec![verb.into(), url.into()];
        arguments.extend(more.iter().map(OsString::from));
        arguments.extend(["--state".into(), self.file("reader").into(), "--peer".into(), peer.into()]);
        Answer::of(&self.at_site(true, command(&arguments)).output().unwrap())
    }

    /// The disks of a moment, read through the whole chain, as files in a directory that is called so.
    pub(crate) fn restore(&self, at: &str, output: &str) -> PathBuf {
        let output = self.file(output);
        std::fs::create_dir_all(&output).unwrap();
        let more = ["--at".as_ref(), at.as_ref(), "--output".as_ref(), output.as_os_str(), "--force".as_ref()];
        self.read_afar("restore", &more).done();
        output
    }
}
