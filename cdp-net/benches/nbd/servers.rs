//! The servers that are compared, each a process of its own: ours is this very program, told to serve.

use super::image::program;
use super::rows::Peer;
use cdp_core::capture::{State, Status};
use cdp_net::nbd::{Address, Server, ServerOptions, Uri};
use cdp_net::protect::{ProtectOptions, Protector, SourceOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Tells this program to serve: source, replica and socket follow.
const SERVE: &str = "--serve";
/// The spool bound of every row, in bytes.
const QUEUE_BYTES: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

type Failure = Box<dyn std::error::Error>;

/// Serves, if that is what the arguments say; whether it was.
pub(crate) fn serve_if_told(arguments: &[String]) -> Result<bool, Failure> {
    let [word, source, replica, socket] = arguments else { return Ok(false) };
    if word != SERVE {
        return Ok(false);
    }
    let sources = vec![SourceOptions { name: "disk".to_owned(), path: source.into() }];
    let options = ProtectOptions { queue_bytes: QUEUE_BYTES, ..ProtectOptions::new(sources, replica.into()) };
    let begin = Instant::now();
    let protector = Protector::start(&options, |_| {})?;
    while protector.status().state != State::Protecting {
        if let Some(failure) = protector.failure() {
            return Err(failure.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let seeded = begin.elapsed();
    let server = Server::start(ServerOptions::new(Address::Unix(socket.into()), protector.exports().to_vec()))?;
    println!("{}", seeded.as_secs_f64());
    for line in io::stdin().lock().lines() {
        if line? != "status" {
            break;
        }
        println!("{}", Facts::of(&protector.status()).line());
    }
    drop(server);
    let summary = protector.stop(PATIENCE, &|| false);
    println!("{} {} {}", u8::from(summary.drained), summary.written_bytes, summary.stored_bytes);
    Ok(true)
}

/// What a condition looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) lsn: u64,
    pub(crate) durable: u64,
    pub(crate) gaps: u64,
    pub(crate) tracked: u64,
    pub(crate) protecting: bool,
    pub(crate) queued: u64,
    pub(crate) holds_log: u64,
}

impl Facts {
    fn of(status: &Status) -> Self {
        Self {
            lsn: status.lsn.0,
            durable: status.durable.0,
            gaps: status.counters.gaps,
            tracked: status.counters.ops_tracked,
            protecting: status.state == State::Protecting,
            queued: status.queued_bytes,
            holds_log: status.counters.holds_log,
        }
    }

    fn line(self) -> String {
        let Self { lsn, durable, gaps, tracked, protecting, queued, holds_log } = self;
        format!("{lsn} {durable} {gaps} {tracked} {} {queued} {holds_log}", u8::from(protecting))
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let mut number = || numbers.next()?.ok();
        Some(Self {
            lsn: number()?,
            durable: number()?,
            gaps: number()?,
            tracked: number()?,
            protecting: number()? == 1,
            queued: number()?,
            holds_log: number()?,
        })
    }
}

/// How our server's life ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) drained: bool,
    pub(crate) written_bytes: u64,
    pub(crate) stored_bytes: u64,
}

/// Our server: capture and journal on, the replica on the same disk.
pub(crate) struct Ours {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub(crate) uri: Uri,
    /// How long the first copy took, from the start to the first restorable moment.
    pub(crate) seeded: Duration,
}

impl Ours {
    pub(crate) fn start(source: &Path, replica: &Path) -> Result<Self, Failure> {
        let socket = replica.with_extension("sock");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).arg(source).arg(replica).arg(&socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let uri = Uri::unix(socket);
        let mut ours =
            Self { child, input: Some(input), output: BufReader::new(output), uri, seeded: Duration::default() };
        ours.seeded = Duration::from_secs_f64(ours.line()?.parse()?);
        Ok(ours)
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let line = line.trim();
        if line.is_empty() { Err("our server ended".into()) } else { Ok(line.to_owned()) }
    }

    pub(crate) fn facts(&mut self) -> Result<Facts, Failure> {
        if let Some(input) = &mut self.input {
            writeln!(input, "status")?;
        }
        Facts::parse(&self.line()?).ok_or_else(|| "a status that is none".into())
    }

    /// Waits until everything that was given an LSN by now is durable; how long that took.
    pub(crate) fn wait_durable(&mut self) -> Result<(Duration, Facts), Failure> {
        let begin = Instant::now();
        let mut facts = self.facts()?;
        let target = facts.lsn;
        while facts.durable < target && begin.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
            facts = self.facts()?;
        }
        Ok((begin.elapsed(), facts))
    }

    pub(crate) fn stop(mut self) -> Result<Ended, Failure> {
        drop(self.input.take());
        let line = self.line()?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [drained, written_bytes, stored_bytes] = numbers[..] else { return Err("an end that is none".into()) };
        self.child.wait()?;
        Ok(Ended { drained: drained == 1, written_bytes, stored_bytes })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // One that was stopped is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Another server on the same file.
pub(crate) struct Other {
    child: Child,
    pub(crate) uri: Uri,
    socket: PathBuf,
}

impl Other {
    /// `None` where the program is not on this machine.
    pub(crate) fn start(peer: Peer, source: &Path) -> Result<Option<Self>, Failure> {
        let socket = source.with_extension(peer.name());
        let _ = std::fs::remove_file(&socket);
        let mut command = match peer {
            Peer::Qemu => {
                let Some(program) = program("qemu-nbd") else { return Ok(None) };
                let mut command = Command::new(program);
                // While the reads are compared we hold the locks that QEMU would take; nobody writes then.
                let image = format!("driver=raw,file.driver=file,file.locking=off,file.filename={}", source.display());
                command.arg("--image-opts").args(["-t", "-k"]).arg(&socket).arg(image);
                command
            }
            Peer::Nbdkit => {
                let Some(program) = program("nbdkit") else { return Ok(None) };
                let mut command = Command::new(program);
                command.arg("-f").arg("-U").arg(&socket).arg("file").arg(source);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let other = Self { child, uri: Uri::unix(&socket), socket };
        let begin = Instant::now();
        while !other.socket.exists() {
            if begin.elapsed() > PATIENCE {
                return Err(format!("{} does not listen", peer.name()).into());
            }
            std::thread::sleep(LOOK);
        }
        std::thread::sleep(LOOK);
        Ok(Some(other))
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
