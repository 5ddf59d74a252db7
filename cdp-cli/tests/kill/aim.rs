//! A kill that strikes at one system call, or calls that take long: `strace` sends SIGKILL before the call is carried out, or
//! waits.
//!
//! Nothing in the product knows of it. Threads count for themselves: the n-th call is that of the thread that comes first to
//! its n-th one.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The longest that attaching may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect {
    /// The n-th one, from 1, kills.
    Kill { nth: u64 },
    /// Up to the n-th one each takes longer.
    Delay { nth: u64, by: Duration },
}

/// Which calls.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    /// Names of system calls, with commas.
    pub(crate) calls: &'static str,
    /// Only those that touch one of these files.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) effect: Effect,
    /// Where the calls that matched are written down.
    pub(crate) log: PathBuf,
}

/// Whether kills can be aimed here; says `skipped` and why if not.
pub(crate) fn can_aim() -> bool {
    if cfg!(feature = "uring") {
        println!("skipped: what io_uring writes and syncs is no system call to aim at");
        return false;
    }
    // Some systems let nobody trace a process that is not below the tracer.
    let mut traced = Command::new("sleep").arg("3600").spawn().unwrap();
    let pid = traced.id();
    let mut strace = Command::new("strace");
    strace.args(["-o", "/dev/null", "-p", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let can = match strace.spawn() {
        Ok(tracer) => Tracer(tracer).has_attached_to(pid),
        Err(_) => {
            println!("skipped: strace is not installed");
            false
        }
    };
    traced.kill().unwrap();
    traced.wait().unwrap();
    can
}

impl Aim {
    fn strace(&self) -> Command {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(&self.log);
        command.args(["-e", &format!("trace={}", self.calls)]);
        let effect = match self.effect {
            Effect::Kill { nth } => format!("signal=SIGKILL:when={nth}"),
            Effect::Delay { nth, by } => format!("delay_enter={}:when=1..{nth}", by.as_micros()),
        };
        command.args(["-e", &format!("inject={}:{effect}", self.calls)]);
        for path in &self.paths {
            command.arg("-P").arg(path);
        }
        command
    }

    /// To be followed by the command that is to be killed, which will be the process that is started.
    pub(crate) fn over_a_command(&self) -> Command {
        let mut command = self.strace();
        command.arg("-D");
        command
    }

    /// Aims at a process that runs; its calls count from now on.
    pub(crate) fn at(&self, pid: u32) -> Tracer {
        let mut strace = self.strace();
        strace.args(["-p", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut tracer = Tracer(strace.spawn().unwrap());
        assert!(tracer.has_attached_to(pid), "strace does not attach to {pid}");
        tracer
    }

    /// The calls that matched, a line each.
    pub(crate) fn calls_so_far(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last ones.
    pub(crate) fn last_calls(&self) -> String {
        let log = self.calls_so_far();
        let lines: Vec<_> = log.lines().filter(|line| !line.contains("+++")).collect();
        lines[lines.len().saturating_sub(2)..].join("\n")
    }
}

/// Whether every thread of a process has its tracer.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let traced = |status: String| status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
    // A thread that has ended meanwhile needs none.
    threads.flatten().all(|thread| std::fs::read_to_string(thread.path().join("status")).map_or(true, traced))
}

/// A tracer of a process that is not its child.
pub(crate) struct Tracer(Child);

impl Tracer {
    /// Waits until it has attached; says so if it may not.
    fn has_attached_to(&mut self, pid: u32) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !is_traced(pid) {
            if self.0.try_wait().unwrap().is_some() {
                println!("skipped: strace may not trace here");
                return false;
            }
            assert!(Instant::now() < deadline, "strace takes too long to attach to {pid}");
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It may have ended with the process that it traced.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}
