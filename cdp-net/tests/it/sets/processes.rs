//! The same with real processes: two filters as `cdp serve` runs them, each with a guest's disk, and a replica host.

use super::{BLOCK, WRITERS, is_causal, p99, told_apart};
use crate::kit::wait_for;
use cdp_core::media::{Disk, Storage};
use cdp_core::replica::Replica;
use cdp_core::trust::KeyHolder;
use cdp_net::host::load_idle;
use cdp_net::link::identity::Identity;
use cdp_net::nbd::{Client, ClientOptions, Uri};
use cdp_net::owner::{ControlClient, Request};
use cdp_net::report::{Points, State, Status};
use cdp_net::services::config::Config;
use cdp_net::services::filter::Filter;
use cdp_net::services::inbox::Inbox;
use cdp_net::services::replica_host::role::ReplicaHostRole;
use cdp_net::services::run::{Context, Drained, Event, Kind, Report, Role, RoleError, serve};
use cdp_net::services::supervisor::Supervisor;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CHILD: &str = "CDP_TEST_SETS_CHILD";
/// How often cuts are taken: a file says 1 s at least, and a test has no time for that.
const EVERY: Duration = Duration::from_millis(120);

/// A filter whose sets are cut more often than a file may say.
struct Often(Filter);

fn often(config: &Config) -> Config {
    let mut config = config.clone();
    config.sets.iter_mut().for_each(|set| set.every.0 = EVERY);
    config
}

impl Role for Often {
    fn start(config: &Config, context: &Context) -> Result<Self, RoleError> {
        Filter::start(&often(config), context).map(Self)
    }
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError> {
        self.0.reload(&often(config))
    }
    fn drain(&self, within: Duration) -> Drained {
        self.0.drain(within)
    }
    fn report(&self) -> Report {
        self.0.report()
    }
}

/// What the children run: the roles of the file that the environment names, which is read again at each byte of stdin, until that ends. Without one it is no test.
#[test]
fn child_process() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    let kinds = [Kind::of::<ReplicaHostRole>("replica-host"), Kind::of::<Often>("filter")];
    let inbox = Inbox::default();
    let ending = inbox.clone();
    std::thread::spawn(move || {
        // It ends with whoever started this; what is said there is that the file is another one.
        while matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
            ending.reload();
        }
        ending.stop();
    });
    let mut tell = |event: Event| println!("\nevent {}", serde_json::to_string(&event).unwrap());
    serve(Path::new(&file), &kinds, &inbox, &Supervisor::new(None, None), &mut tell).unwrap();
}

/// A process that runs the roles of a file. Killed when it is dropped.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Writes the file and starts it.
    fn run(file: &Path, text: &str) -> Self {
        std::fs::write(file, text).unwrap();
        Self::start(file)
    }

    fn start(file: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sets::processes::child_process", "--nocapture"])
            .env(CHILD, file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (hear, lines) = (Arc::clone(&said), BufReader::new(child.stdout.take().unwrap()).lines());
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| hear.lock().unwrap().push(line));
        });
        let stdin = child.stdin.take();
        Self { child, stdin, said }
    }

    fn has_said(&self, what: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(what))
    }

    /// Where it listens.
    fn address(&self, role: &str) -> String {
        let begins = format!("{role}: listens at ");
        wait_for(&begins, || self.has_said(&begins));
        let said = self.said.lock().unwrap();
        let rest = said.iter().find_map(|line| line.split_once(&begins)).unwrap().1;
        rest.split('"').next().unwrap().to_owned()
    }

    /// Has it read its file again.
    fn reload(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"r").unwrap();
    }

    /// Drains and ends.
    fn stop(mut self) {
        drop(self.stdin.take());
        wait_for("the end", || self.child.try_wait().unwrap().is_some());
        assert!(self.has_said("\"left_bytes\":0"), "{:?}", self.said);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As the other filter's file has it.
const SET: &str = "[[set]]\nname = \"shop\"\ngroups = [\"debits\", \"credits\"]\nevery = \"1s\"\n";

/// Files and processes: the host, the filter that takes the cuts, and the other one.
struct Scene {
    directory: tempfile::TempDir,
    host: Process,
    taker: Process,
    member: Process,
    /// As the file of who takes the cuts has it.
    set: String,
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let print = |name: &str| {
            let identity = Identity::open_or_make(&path(name), name).unwrap();
            format!("[[peer]]\nname = \"{name}\"\nfingerprint = \"{}\"\n", identity.fingerprint())
        };
        let names = ["host", "taker", "member"].map(path);
        let [host, taker, member] = ["host", "taker", "member"].map(print);
        let head = |state: &Path, peers: &str| format!("state = {state:?}\n{peers}");
        let tenant = "tenant = \"acme\"\n";
        let text = head(&names[0], &format!("{taker}{tenant}{member}{tenant}"))
            + &format!("[replica-host]\nlisten = \"127.0.0.1:0\"\ndirectory = {:?}\n", path("replicas"));
        let host_process = Process::run(&path("host.toml"), &text);
        let to = host_process.address("replica-host");
        let filter = |group: &str, listen: &str| {
            let disk = path(&format!("{group}.img"));
            std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
            format!(
                "[filter]\nto = [\"cdp://{to}\"]\nspool = {{ memory = \"128MiB\" }}\n{listen}[[filter.group]]\nname = {group:?}\n\
                 listen = \"nbd+unix:///?socket={}\"\n[[filter.group.disk]]\nname = \"disk\"\nsource = {disk:?}\n",
                path(&format!("{group}.sock")).display()
            )
        };
        let text = head(&names[2], &format!("{host}{taker}")) + &filter("credits", "listen = \"127.0.0.1:0\"\n") + SET;
        let member_process = Process::run(&path("member.toml"), &text);
        let at = member_process.address("filter");
        // It is found there again after it was killed.
        std::fs::write(path("member.toml"), text.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{at}\"")))
            .unwrap();
        let text = head(&names[1], &format!("{host}{member}")) + &filter("debits", "");
        let taker_process = Process::run(&path("taker.toml"), &text);
        let set = format!("{SET}members = [\"cdp://{at}/credits\"]\n");
        Self { host: host_process, taker: taker_process, member: member_process, set, directory }
    }

    /// The file of who takes the cuts names the set from now on.
    fn begin_set(&mut self) {
        let text = std::fs::read_to_string(self.path("taker.toml")).unwrap();
        std::fs::write(self.path("taker.toml"), text + &self.set).unwrap();
        self.taker.reload();
    }

    fn protected(&self) {
        for (state, group) in [("taker", "debits"), ("member", "credits")] {
            wait_for(&format!("{group} to be protected"), || {
                let owner = ControlClient::connect(&self.path(state).join("filter").join(group));
                let status = owner.ok().and_then(|mut owner| owner.call::<Status>(&Request::Status).ok());
                status.is_some_and(|status| status.state == State::Protecting)
            });
        }
    }

    fn uri(&self, group: &str) -> Uri {
        format!("nbd+unix:///?socket={}", self.path(&format!("{group}.sock")).display()).parse().unwrap()
    }

    /// The labels of common points that the owner of a group's replica tells of.
    fn common(&self, group: &str) -> BTreeSet<String> {
        let mut owner = ControlClient::connect(&self.path("replicas/acme").join(group)).unwrap();
        let points: Points = owner.call(&Request::Points { since: None, until: None, limit: Some(100_000) }).unwrap();
        points.points.into_iter().filter(|point| point.set_consistent).filter_map(|point| point.label).collect()
    }

    /// The labels that both have: only these are common points.
    fn common_of_both(&self) -> BTreeSet<String> {
        &self.common("debits") & &self.common("credits")
    }

    /// Every writer debits and, when that is done, credits, with the next number, until `done` returns. Gives the times that writes took.
    fn transfer(&self, numbers: &mut [u64; WRITERS], done: impl FnOnce()) -> Vec<Duration> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (stop, uris) = (&stop, ["debits", "credits"].map(|group| self.uri(group)));
            let run = |(writer, number): (usize, &mut u64)| {
                let mut disks = uris.each_ref().map(|uri| Client::connect(uri, &ClientOptions::default()).unwrap());
                let mut now = *number;
                scope.spawn(move || {
                    let mut took = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        now += 1;
                        for disk in &mut disks {
                            let begun = Instant::now();
                            disk.write((writer * BLOCK) as u64, &now.to_le_bytes().repeat(BLOCK / 8), false).unwrap();
                            took.push(begun.elapsed());
                            // As a network between machines takes its time.
                            std::thread::sleep(Duration::from_micros(200));
                        }
                    }
                    (now, took)
                })
            };
            let writers: Vec<_> = numbers.iter_mut().enumerate().map(run).collect();
            done();
            stop.store(true, Ordering::Relaxed);
            let mut took = Vec::new();
            for (number, thread) in numbers.iter_mut().zip(writers) {
                let (last, times) = thread.join().unwrap();
                *number = last;
                took.extend(times);
            }
            took
        })
    }

    /// Stops everything, the filters first, and gives the replicas as a reader sees them.
    fn stop(self) -> (tempfile::TempDir, [Replica; 2]) {
        self.taker.stop();
        self.member.stop();
        self.host.stop();
        let replicas = ["debits", "credits"].map(|group| {
            let storage: Arc<dyn Storage> =
                Arc::new(Disk::open(self.directory.path().join("replicas/acme").join(group)).unwrap());
            load_idle(&storage, &KeyHolder::default()).unwrap()
        });
        (self.directory, replicas)
    }
}

#[test]
fn no_common_point_of_two_processes_holds_a_credit_without_its_debit() {
    let cuts: usize = std::env::var("CDP_SET_CUTS").ok().map_or(80, |text| text.parse().expect("a number"));
    let mut scene = Scene::start();
    scene.protected();
    let mut numbers = [0; WRITERS];
    let without = scene.transfer(&mut numbers, || std::thread::sleep(Duration::from_secs(2)));
    assert_eq!(scene.common_of_both(), BTreeSet::new());
    scene.begin_set();
    let within = Duration::from_secs(20) + EVERY * 8 * u32::try_from(cuts).unwrap();
    let with = scene.transfer(&mut numbers, || {
        let until = Instant::now() + within;
        while scene.common_of_both().len() < cuts {
            assert!(Instant::now() < until, "{} common points in {within:?}", scene.common_of_both().len());
            // The host has to make the whole list each time.
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let number = |label: &String| label.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    // In the order in which they were cut, which is not that of their labels.
    let mut known: Vec<String> = scene.common_of_both().into_iter().collect();
    known.sort_by_key(number);
    let taken = number(&known[known.len() - 1]) - number(&known[0]) + 1;
    let (_directory, [debits, credits]) = scene.stop();
    let ledgers: Vec<_> =
        known.iter().map(|label| (super::ledger(&debits, label), super::ledger(&credits, label))).collect();
    for (label, (debit, credit)) in known.iter().zip(&ledgers) {
        assert!(is_causal(debit, credit), "{label}: {debit:?} {credit:?}");
    }
    println!(
        "{} of {taken} cuts over two processes are common points ({:.1} %); writes took {:?} at the 99th percentile without a set, \
         {:?} with cuts every {EVERY:?}",
        known.len(),
        known.len() as f64 * 100.0 / taken as f64,
        p99(without),
        p99(with),
    );
    assert!(told_apart(&ledgers) > cuts / 2, "the ledger moved between cuts");
}

/// Nobody waits for a member that is away, there is nothing that is called common, and it is told once.
#[test]
fn a_member_that_is_killed_means_no_common_points_until_it_is_back() {
    let mut scene = Scene::start();
    scene.protected();
    scene.begin_set();
    wait_for("common points", || scene.common_of_both().len() >= 3);
    scene.member.child.kill().unwrap();
    scene.member.child.wait().unwrap();
    wait_for("what is told", || scene.taker.has_said("no common points are cut while"));
    let before = scene.common("debits");
    let mut guest = Client::connect(&scene.uri("debits"), &ClientOptions::default()).unwrap();
    for number in 0..100_u64 {
        guest.write(0, &number.to_le_bytes().repeat(BLOCK / 8), false).unwrap();
        std::thread::sleep(EVERY / 10);
    }
    guest.disconnect().unwrap();
    assert_eq!(scene.common("debits"), before, "nobody is asked for a cut that cannot be one");
    scene.member = Process::start(&scene.path("member.toml"));
    scene.protected();
    wait_for("common points again", || !scene.common_of_both().is_subset(&before));
    let said = scene.taker.said.lock().unwrap().clone();
    let told = |what: &str| said.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        (told("no common points are cut while"), told("all members are there, common points are cut again")),
        (1, 1),
        "{said:?}"
    );
    scene.stop();
}
