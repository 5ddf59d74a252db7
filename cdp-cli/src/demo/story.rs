//! The whole story: make a real disk, protect it, work on it, mark, ruin, bring moments back, and judge each.
//!
//! It goes the way of the commands (the same calls, the same questions to the owner), so that what it shows is what a person
//! gets. Every claim is a [`Checked`] that holds or does not.

mod judge;
mod moments;

use super::Layout;
use super::image::{self, Content, Made};
use super::load::{Bounds, Load, LoadOptions, LoadReport, format};
use super::port::{ImageFile, Port};
use crate::ask::ask;
use crate::engine::{Engine, ProtectSpec, SourceSpec, SourceTrust};
use crate::exit::{Exit, Failure};
use crate::json::{Export, ProtectEvent, State, Status, Stopped};
use crate::place::Place;
use crate::stop::Stop;
use anyhow::Context as _;
use cdp_core::types::WallTime;
use cdp_core::when::Label;
use cdp_net::clock;
use cdp_net::nbd::{Client, ClientOptions, Uri};
use cdp_net::owner::{PolicyChange, Request};
use cdp_net::report::At;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// How long the disk may take to be served, and to be seeded.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the protection while writers work.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The name of the disk.
const DISK: &str = "disk";

/// What the story needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// An empty directory for everything.
    pub dir: PathBuf,
    /// Bytes of the disk.
    pub size: u64,
    /// About so many bytes of real files.
    pub files: u64,
    /// The ledger, wherever it will lie.
    pub layout: Layout,
    /// How long the writers work.
    pub work: Duration,
    /// How often a point is closed.
    pub rpo: Duration,
    /// How many random moments are brought back.
    pub moments: usize,
    /// Makes random moments repeatable, as far as machines are.
    pub seed: u64,
}

/// A claim, and whether it holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Checked {
    /// What was brought back or looked at.
    pub what: String,
    /// The moment that it was, if there was one.
    pub at: Option<At>,
    /// It is as it has to be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Ending {
    /// Every claim held.
    pub ok: bool,
    /// Claims.
    pub checks: usize,
    /// Claims that did not hold.
    pub failed: usize,
    /// Movements of the ledger.
    pub movements: u64,
    /// Requests of the writers.
    pub requests: u64,
    /// Bytes that the writers wrote.
    pub written_bytes: u64,
    /// Bytes that they wrote in a second.
    pub write_bytes_per_s: u64,
    /// Requests in a second.
    pub requests_per_s: u64,
    /// The RPO of the policy, in milliseconds.
    pub rpo_policy_ms: u64,
    /// The most that would have been lost at any look, in milliseconds.
    pub rpo_worst_ms: u64,
    /// From asking for a moment to its disk being served, in milliseconds.
    pub mount_ms: u64,
    /// Gaps while the writers worked.
    pub gaps: usize,
    /// Bytes of base and sidecar.
    pub base_bytes: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
}

/// A line of `demo --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum DemoEvent {
    /// The disk was made.
    Made {
        /// It holds a file system.
        ext4: bool,
        /// Files in it.
        files: u64,
        /// Bytes of these files.
        bytes: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// The disk is served and seeded.
    Protected {
        /// Where.
        uri: String,
        /// How long that took, in milliseconds.
        ms: u64,
    },
    /// The writers have ended.
    Worked {
        /// Movements of the ledger.
        movements: u64,
        /// How long they worked, in milliseconds.
        ms: u64,
    },
    /// A point was made.
    Marked {
        /// The moment.
        at: At,
        /// Its name.
        label: String,
    },
    /// The disk was ruined.
    Ruined {
        /// Bytes that were overwritten.
        bytes: u64,
    },
    /// A claim was checked.
    Check(Checked),
    /// The end.
    Done(Ending),
}

/// Where things are.
struct Stage<'a> {
    engine: &'a dyn Engine,
    plan: &'a Plan,
    stop: &'a Stop,
    made: Made,
    layout: Layout,
    replica: PathBuf,
    disk: PathBuf,
    pristine: PathBuf,
}

/// Tells what happens, and the claims that were checked.
struct Teller<'a> {
    events: &'a mut dyn FnMut(DemoEvent),
    checks: usize,
    failed: usize,
}

impl Teller<'_> {
    fn tell(&mut self, event: DemoEvent) {
        (self.events)(event);
    }

    fn check(&mut self, checked: Checked) {
        self.checks += 1;
        self.failed += usize::from(!checked.ok);
        self.tell(DemoEvent::Check(checked));
    }
}

/// A moment with a name, and between which progress it must lie.
struct Marked {
    at: At,
    label: Label,
    bounds: Bounds,
}

/// Tells the story. Claims that do not hold are in the answer; the last event is [`DemoEvent::Done`].
///
/// # Errors
/// When it cannot be told to its end.
pub fn tell(
    engine: &dyn Engine,
    plan: &Plan,
    stop: &Stop,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<Ending, Failure> {
    let mut teller = Teller { events, checks: 0, failed: 0 };
    let stage = prepare(engine, plan, stop, &mut teller)?;
    let protecting = Stop::new();
    let spec = ProtectSpec {
        sources: vec![SourceSpec { name: DISK.into(), path: stage.disk.clone() }],
        replica: stage.replica.clone(),
        there: None,
        listen: Uri::unix(plan.dir.join("nbd.sock")),
        tls: None,
        name: Some("demo".into()),
        policy: PolicyChange { rpo_ms: Some(plan.rpo.as_millis() as u64), ..PolicyChange::default() },
        trust: SourceTrust::Default,
        memory: 1 << 30,
        segment_bytes: None,
        drain: Duration::from_secs(30),
    };
    let mut ending = std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        let (spec, until) = (&spec, &protecting);
        let protector = scope.spawn(move || {
            // Whoever listened may have gone: the protection goes on until it is told to end.
            engine.protect(spec, until, &mut |event| drop(sender.send(event)))
        });
        let told = under_protection(&stage, &receiver, &mut teller);
        protecting.wish();
        end_protection(told, protector, &mut teller)
    })?;
    teller.check(judge::verified(&stage)?);
    ending.checks = teller.checks;
    ending.failed = teller.failed;
    ending.ok = teller.failed == 0;
    teller.tell(DemoEvent::Done(ending.clone()));
    Ok(ending)
}

fn prepare<'a>(
    engine: &'a dyn Engine,
    plan: &'a Plan,
    stop: &'a Stop,
    teller: &mut Teller<'_>,
) -> Result<Stage<'a>, Failure> {
    let disk = plan.dir.join("disk.img");
    let made = image::make(&disk, plan.size, Layout { base: 0, ..plan.layout }.end(), plan.files)?;
    let layout = Layout { base: made.ledger, ..plan.layout };
    let file = OpenOptions::new().read(true).write(true).open(&disk).context("cannot open the new disk")?;
    format(&mut ImageFile(file), &layout).context("cannot begin the ledger")?;
    let pristine = plan.dir.join("pristine.img");
    fs::copy(&disk, &pristine).context("cannot copy the new disk")?;
    let (ext4, size) = (made.content == Content::Ext4, plan.size);
    teller.tell(DemoEvent::Made { ext4, files: made.files, bytes: made.bytes, size });
    Ok(Stage { engine, plan, stop, made, layout, replica: plan.dir.join("replica"), disk, pristine })
}

/// The protector's own end is worth more than what followed from it.
fn end_protection(
    told: Result<Ending, Failure>,
    protector: ScopedJoinHandle<'_, Result<Stopped, Failure>>,
    teller: &mut Teller<'_>,
) -> Result<Ending, Failure> {
    let panicked = || Err(Failure::new(Exit::Failed, "internal", "the protection ended by an error of its own"));
    let begin = Instant::now();
    let stopped = protector.join().unwrap_or_else(|_| panicked())?;
    let ending = told?;
    let found = format!("LSN {} of {} is durable", stopped.durable_lsn, stopped.lsn);
    let what = "the protection ended with everything durable".into();
    teller.check(Checked { what, at: None, ok: stopped.drained, found, ms: millis(begin) });
    Ok(ending)
}

fn under_protection(
    stage: &Stage<'_>,
    events: &Receiver<ProtectEvent>,
    teller: &mut Teller<'_>,
) -> Result<Ending, Failure> {
    let begin = Instant::now();
    let uri = wait_until_served(events)?;
    wait_until_seeded(stage)?;
    teller.tell(DemoEvent::Protected { uri: uri.to_string(), ms: millis(begin) });

    let connect = || connect(&uri).map(|client| Box::new(client) as Box<dyn Port>);
    let mut load = Load::start(stage.layout, LoadOptions::default(), &mut { connect })
        .context("cannot set the writers to work")?;
    let mut ending = Ending { rpo_policy_ms: stage.plan.rpo.as_millis() as u64, ..Ending::default() };
    work(stage, &load, stage.plan.work / 4, &mut ending)?;
    let (first, began) = (stage.mark(Some(&load), "writers at work", teller)?, clock::wall());
    work(stage, &load, stage.plan.work / 4 * 3, &mut ending)?;
    let ended = clock::wall();
    let middle = stage.mark(Some(&load), "writers still at work", teller)?;
    let report = load.finish().context("a writer failed")?;
    tell_load(&report, &mut ending, teller);

    let last = stage.mark(Some(&load), "before the ruin", teller)?;
    let mut client = connect_to(&uri)?;
    let bytes = image::ruin(&mut client, stage.plan.size, stage.plan.seed).context("cannot ruin the disk")?;
    teller.tell(DemoEvent::Ruined { bytes });
    stage.mark(None, "ruined", teller)?;

    teller.check(judge::is_ruined(stage));
    teller.check(judge::latest_is_the_source(stage)?);
    for marked in [&first, &middle, &last] {
        teller.check(judge::restored(stage, &marked.label.to_string(), &marked.bounds, "mark")?);
    }
    let moments = moments::Between { first: &first.at, last: &last.at, began, ended };
    for moment in moments::random(stage, &moments, &load) {
        stage.go_on()?;
        teller.check(judge::restored(stage, &moment.when, &moment.bounds, moment.what)?);
    }
    let (mounted, mount_ms) = judge::mounted(stage, &last.label.to_string(), &last.bounds)?;
    teller.check(mounted);

    let status: Status = stage.status()?;
    ending.mount_ms = mount_ms;
    ending.gaps = events.try_iter().filter(|event| matches!(event, ProtectEvent::Gap { .. })).count();
    ending.base_bytes = status.space.base;
    ending.journal_bytes = status.space.segments;
    Ok(ending)
}

fn tell_load(report: &LoadReport, ending: &mut Ending, teller: &mut Teller<'_>) {
    let per_s = |count| crate::human::bytes_per_s(count, report.time);
    ending.movements = report.movements;
    ending.requests = report.requests;
    ending.written_bytes = report.bytes;
    ending.write_bytes_per_s = per_s(report.bytes);
    ending.requests_per_s = per_s(report.requests);
    teller.tell(DemoEvent::Worked { movements: report.movements, ms: report.time.as_millis() as u64 });
}

/// Lets the writers work, and looks how much would be lost.
fn work(stage: &Stage<'_>, load: &Load, time: Duration, ending: &mut Ending) -> Result<(), Failure> {
    let until = Instant::now() + time;
    while Instant::now() < until && !load.has_failed() {
        std::thread::sleep(LOOK_EVERY.min(time));
        stage.go_on()?;
        ending.rpo_worst_ms = ending.rpo_worst_ms.max(stage.status()?.rpo_ms.unwrap_or_default());
    }
    Ok(())
}

fn wait_until_served(events: &Receiver<ProtectEvent>) -> Result<Uri, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(ProtectEvent::Ready { exports }) => {
                let uri = exports.first().map(|Export { uri, .. }| uri.parse::<Uri>());
                let uri = uri.and_then(Result::ok);
                return uri.ok_or_else(|| Failure::new(Exit::Failed, "internal", "the disk is served at no address"));
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                return Err(Failure::new(Exit::Failed, "not-served", "the disk was not served within two minutes"));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::new(Exit::Failed, "not-served", "the protection ended before it served the disk"));
            }
        }
    }
}

fn wait_until_seeded(stage: &Stage<'_>) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        stage.go_on()?;
        let status = stage.status()?;
        if status.state == State::Protecting && !status.ranges.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let message = format!("the disk was not seeded within two minutes: {}", status.state.as_str());
            return Err(Failure::new(Exit::Failed, "not-seeded", message));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Stage<'_> {
    fn status(&self) -> Result<Status, Failure> {
        ask(self.engine, &Place::directory(&self.replica), Request::Status)
    }

    /// An error when somebody wishes the end.
    fn go_on(&self) -> Result<(), Failure> {
        if self.stop.is_wished() {
            return Err(Failure::new(Exit::Failed, "interrupted", "the demo was interrupted"));
        }
        Ok(())
    }

    /// Makes a point, and says between which progress of the writers it must lie.
    fn mark(&self, load: Option<&Load>, name: &str, teller: &mut Teller<'_>) -> Result<Marked, Failure> {
        let label: Label = name.parse()?;
        let at_least = load.map(|load| load.progress().at_least).unwrap_or_default();
        let request = Request::Mark { label: label.clone(), app_consistent: false };
        let at: At = ask(self.engine, &Place::directory(&self.replica), request)?;
        let at_most = load.map(|load| load.progress().at_most).unwrap_or_default();
        teller.tell(DemoEvent::Marked { at: at.clone(), label: name.into() });
        Ok(Marked { at, label, bounds: Bounds { at_least, at_most } })
    }

    fn open(&self, path: &std::path::Path) -> Result<File, Failure> {
        Ok(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    }
}

fn connect(uri: &Uri) -> io::Result<Client> {
    Client::connect(uri, &ClientOptions::default()).map_err(io::Error::other)
}

fn connect_to(uri: &Uri) -> Result<Client, Failure> {
    Ok(connect(uri).with_context(|| format!("cannot connect to {uri}"))?)
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

/// The wall clock between two times, by a fraction of 2^32.
fn between(from: WallTime, to: WallTime, fraction: u64) -> WallTime {
    let span = u128::from(to.0.saturating_sub(from.0));
    WallTime(from.0 + ((span * u128::from(fraction & 0xffff_ffff)) >> 32) as u64)
}
