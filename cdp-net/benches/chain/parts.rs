//! The parts of a chain as processes: started, asked how they stand, and what they cost.

use super::image::{Pool, directory, program};
use super::serve::{PART, TLS};
use cdp_net::nbd::Uri;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const PATIENCE: Duration = Duration::from_secs(120);
/// Where parts listen that only others beside them reach.
const LOOPBACK: &str = "127.0.0.1";

/// What is loaded and where everything lies.
pub(crate) struct Place {
    pub(crate) source: PathBuf,
    pub(crate) pool: Pool,
    pub(crate) root: PathBuf,
}

impl Place {
    pub(crate) fn new(source: PathBuf, pool: Pool) -> Result<Self, Failure> {
        let root = directory().join("chain");
        let place = Self { source, pool, root };
        place.clear();
        Part::start(&place.root, &["identities"], Run::Usual)?.wait()?;
        Ok(place)
    }

    /// Nothing is left of the runs before but identities.
    pub(crate) fn clear(&self) {
        for name in ["state", "replicas"] {
            // The first run finds none.
            let _ = std::fs::remove_dir_all(self.root.join(name));
        }
    }
}

/// How the system treats a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Run {
    Usual,
    /// Only when nobody else wants a core.
    Idle,
    /// The same, on this core alone.
    IdleOn(u8),
    /// On this core alone.
    Pinned(u8),
}

impl Run {
    /// The command that starts another one like this.
    fn words(self) -> Vec<String> {
        match self {
            Self::Usual => Vec::new(),
            Self::Idle => ["chrt", "--idle", "0"].map(str::to_owned).to_vec(),
            Self::IdleOn(core) => [Self::Pinned(core).words(), Self::Idle.words()].concat(),
            Self::Pinned(core) => vec!["taskset".into(), "--cpu-list".into(), core.to_string()],
        }
    }
}

/// Puts a process among those that together count as one idle thread. Each of some dozens would get its share else, and takes it a tick
/// at a time. Where the system gives nobody such a group each counts for itself.
fn set_idle(process: u32) {
    for hierarchy in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"] {
        let group = Path::new(hierarchy).join("cdp-bench-idle");
        // It may be there from a run before; what cannot be had shows when the process is to go into it.
        let _ = std::fs::create_dir(&group);
        let _ = std::fs::write(group.join("cpu.idle"), "1");
        if std::fs::write(group.join("cgroup.procs"), process.to_string()).is_ok() {
            return;
        }
    }
    eprintln!("    no control group to be had: other parts are idle thread by thread");
}

/// Network namespaces of the two sides, with a line between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sides<'a> {
    /// Where filter and source proxy are.
    pub(crate) source: &'a str,
    /// Where target proxy and replica host are.
    pub(crate) target: &'a str,
    /// The address that the other side has for the target's.
    pub(crate) target_ip: &'a str,
}

/// A process.
pub(crate) struct Part {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Part {
    pub(crate) fn start(root: &Path, words: &[&str], run: Run) -> Result<Self, Failure> {
        Self::start_in(None, root, words, run)
    }

    /// In a network namespace, or where this process is.
    pub(crate) fn start_in(namespace: Option<&str>, root: &Path, words: &[&str], run: Run) -> Result<Self, Failure> {
        std::fs::create_dir_all(root)?;
        let ip = || program("ip").ok_or("there is no program ip");
        let entered = namespace.map(|name| Ok::<_, Failure>([ip()?, "netns".into(), "exec".into(), name.into()]));
        // Each of these becomes the next one: the process stays the same.
        let entered = entered.transpose()?.into_iter().flatten().map(OsString::from);
        let mut line: Vec<OsString> = entered.chain(run.words().into_iter().map(OsString::from)).collect();
        line.push(std::env::current_exe()?.into());
        let (kind, rest) = words.split_first().ok_or("a part has a kind")?;
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg(PART).arg(kind).arg(root).args(rest);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if matches!(run, Run::Idle | Run::IdleOn(_)) {
            set_idle(child.id());
        }
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        Ok(Self { child, input: Some(input), output: BufReader::new(output) })
    }

    pub(crate) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("a part ended".into());
        }
        Ok(line.trim().to_owned())
    }

    /// What it answers to a word.
    pub(crate) fn ask(&mut self, word: &str) -> Result<String, Failure> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{word}")?;
        }
        self.line()
    }

    fn numbers(&mut self) -> Result<Vec<u64>, Failure> {
        Ok(self.ask("?")?.split_whitespace().filter_map(|number| number.parse().ok()).collect())
    }

    /// Seconds of processor time that it has used.
    pub(crate) fn cpu(&self) -> f64 {
        cpu(self.child.id())
    }

    /// Until it has ended by itself.
    pub(crate) fn wait(mut self) -> Result<(), Failure> {
        drop(self.input.take());
        self.child.wait()?;
        Ok(())
    }

    /// Tells it to end; its last line.
    pub(crate) fn stop(mut self) -> Result<Vec<u64>, Failure> {
        drop(self.input.take());
        let mut last = Vec::new();
        while let Ok(line) = self.line() {
            last = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        }
        self.child.wait()?;
        Ok(last)
    }
}

/// Seconds of processor time that a process has used, its threads that have ended too.
pub(crate) fn cpu(process: u32) -> f64 {
    ticks(process, 11)
}

/// The same of all children of this process that have ended and were waited for.
pub(crate) fn cpu_of_children() -> f64 {
    ticks(std::process::id(), 13)
}

/// Two numbers of a process's `stat` together, in seconds: those so far behind its name, which may hold blanks.
fn ticks(process: u32, skipped: usize) -> f64 {
    /// A second, for programs, on every architecture of Linux that we know.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = text.rsplit(')').next().into_iter().flat_map(str::split_whitespace);
    fields.skip(skipped).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}

impl Drop for Part {
    fn drop(&mut self) {
        // One that was stopped is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a filter stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) lsn: u64,
    pub(crate) durable: u64,
    pub(crate) gaps: u64,
    pub(crate) tracked: u64,
    pub(crate) protecting: bool,
    pub(crate) queued: u64,
    pub(crate) rpo: Duration,
    /// Ops that waited for the activity log.
    pub(crate) held: u64,
}

impl Facts {
    /// Asks a filter.
    pub(crate) fn of(filter: &mut Part) -> Result<Self, Failure> {
        let [lsn, durable, gaps, tracked, protecting, queued, rpo, held] = filter.numbers()?[..] else {
            return Err("a status that is none".into());
        };
        let (protecting, rpo) = (protecting == 1, Duration::from_nanos(rpo));
        Ok(Self { lsn, durable, gaps, tracked, protecting, queued, rpo, held })
    }

    /// Waits until everything that was given an LSN by now is durable.
    pub(crate) fn when_durable(filter: &mut Part) -> Result<Self, Failure> {
        let begin = Instant::now();
        let mut facts = Self::of(filter)?;
        let until = facts.lsn;
        while facts.durable < until {
            if begin.elapsed() > PATIENCE {
                return Err(format!("not durable after {PATIENCE:?}: {facts:?}").into());
            }
            std::thread::sleep(Duration::from_millis(2));
            facts = Self::of(filter)?;
        }
        Ok(facts)
    }

    /// What must not be: writes that are not in the history.
    pub(crate) fn lost(&self) -> u64 {
        self.gaps + self.tracked + u64::from(!self.protecting)
    }
}

/// What a proxy had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    pub(crate) came: u64,
    pub(crate) went: u64,
    pub(crate) coalesced: u64,
    pub(crate) compressed: u64,
}

/// A filter, two proxies and a replica host.
pub(crate) struct Chain {
    pub(crate) filter: Part,
    pub(crate) source: Part,
    pub(crate) target: Part,
    pub(crate) host: Part,
    pub(crate) uri: Uri,
}

/// How a chain is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made<'a> {
    /// The level of the source proxy, or `pass`.
    pub(crate) level: &'a str,
    /// `every-write` or `per-point`.
    pub(crate) points: &'a str,
    pub(crate) filter: Run,
    pub(crate) others: Run,
    /// None: everything is where this process is, on loopback.
    pub(crate) sides: Option<Sides<'a>>,
}

pub(crate) const USUAL: Made<'static> =
    Made { level: "1", points: "every-write", filter: Run::Usual, others: Run::Usual, sides: None };

impl Chain {
    /// Starts everything, seeded. `between` gives another address for that of the target proxy.
    pub(crate) fn start(
        place: &Place,
        made: Made<'_>,
        between: impl FnOnce(SocketAddr) -> Result<SocketAddr, Failure>,
    ) -> Result<Self, Failure> {
        place.clear();
        let root = &place.root;
        let [near, far] = [made.sides.map(|sides| sides.source), made.sides.map(|sides| sides.target)];
        let mut host = Part::start_in(far, root, &["host", LOOPBACK], made.others)?;
        let at = host.line()?;
        let listen = made.sides.map_or(LOOPBACK, |sides| sides.target_ip);
        let mut target = Part::start_in(far, root, &["proxy", "target", "pass", &at, listen], made.others)?;
        let at = between(target.line()?.parse()?)?.to_string();
        let mut source = Part::start_in(near, root, &["proxy", "source", made.level, &at, LOOPBACK], made.others)?;
        let at = source.line()?;
        let socket = root.join("filter.sock");
        let (image, socket_text) = (text(&place.source)?, text(&socket)?);
        let words = ["filter", image, socket_text, made.points, &at, TLS];
        let mut filter = Part::start_in(near, root, &words, made.filter)?;
        filter.line()?;
        Ok(Self { filter, source, target, host, uri: Uri::unix(socket) })
    }

    pub(crate) fn facts(&mut self) -> Result<Facts, Failure> {
        Facts::of(&mut self.filter)
    }

    /// What the source proxy had.
    pub(crate) fn passed(&mut self) -> Result<Passed, Failure> {
        // Reports are looked at once a second.
        std::thread::sleep(Duration::from_millis(1100));
        let [came, went, coalesced, compressed, _] = self.source.numbers()?[..] else {
            return Err("a report that is none".into());
        };
        Ok(Passed { came, went, coalesced, compressed })
    }

    /// Waits until everything that was given an LSN by now is durable.
    pub(crate) fn wait_durable(&mut self) -> Result<Facts, Failure> {
        Facts::when_durable(&mut self.filter)
    }

    /// Seconds of processor time of filter, source proxy, target proxy and replica host.
    pub(crate) fn cpu(&self) -> [f64; 4] {
        [&self.filter, &self.source, &self.target, &self.host].map(Part::cpu)
    }

    /// From the filter on, which drains first.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        let Self { filter, source, target, host, .. } = self;
        let [drained, _, _] = filter.stop()?[..] else { return Err("an end that is none".into()) };
        source.stop()?;
        target.stop()?;
        host.stop()?;
        if drained == 1 { Ok(()) } else { Err("the filter did not drain".into()) }
    }
}

/// One hop: a filter and a replica host.
pub(crate) struct Hop {
    pub(crate) filter: Part,
    pub(crate) host: Part,
    pub(crate) uri: Uri,
    /// From the filter's start until its disk was protected: the first copy is whole and synced, and a moment can be restored.
    pub(crate) seeded: Duration,
}

impl Hop {
    /// Starts both with nothing from before, and waits for the first copy of this image. `guard` is that of the hop.
    pub(crate) fn start(place: &Place, image: &Path, guard: &str) -> Result<Self, Failure> {
        place.clear();
        let root = &place.root;
        let mut host = Part::start(root, &["host", LOOPBACK], Run::Usual)?;
        let at = host.line()?;
        let socket = root.join("filter.sock");
        let begin = Instant::now();
        let words = ["filter", text(image)?, text(&socket)?, "every-write", &at, guard];
        let mut filter = Part::start(root, &words, Run::Usual)?;
        filter.line()?;
        Ok(Self { filter, host, uri: Uri::unix(socket), seeded: begin.elapsed() })
    }

    /// Seconds of processor time of filter and replica host.
    pub(crate) fn cpu(&self) -> [f64; 2] {
        [self.filter.cpu(), self.host.cpu()]
    }

    pub(crate) fn stop(self) -> Result<(), Failure> {
        let [drained, _, _] = self.filter.stop()?[..] else { return Err("an end that is none".into()) };
        self.host.stop()?;
        if drained == 1 { Ok(()) } else { Err("the filter did not drain".into()) }
    }
}

pub(crate) fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| format!("{} is no text", path.display()).into())
}
