//! `cdp protect` and `cdp mount` while they run: their events, their end, and never a process left behind.

use super::{PATIENCE, command};
use rustix::process::Signal;
use serde_json::Value;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Default)]
struct Heard {
    events: Vec<Value>,
    stderr: String,
    ended: bool,
}

/// A test that failed while it held the lock is not to be hidden behind another failure.
fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// System calls that are to fail.
pub(crate) struct Inject<'a> {
    /// Their names, with commas.
    pub(crate) calls: &'a str,
    /// As strace takes it: `error=ENOSPC:when=3`.
    pub(crate) how: &'a str,
    /// On these files, which need not be there yet.
    pub(crate) paths: &'a [PathBuf],
}

/// A command that answers with one event a line. Killed when it is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    uri: String,
}

impl Running {
    /// Starts it and collects what it says.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let heard = Arc::<(Mutex<Heard>, Condvar)>::default();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let from_out = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                lock(&from_out.0).events.push(event);
                from_out.1.notify_all();
            }
            lock(&from_out.0).ended = true;
            from_out.1.notify_all();
        });
        let from_err = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut piece) {
                lock(&from_err.0).stderr.push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        Self { child, heard, uri: String::new() }
    }

    /// Waits until the disks are served; else gives the exit status and the last words.
    pub(crate) fn ready(mut self) -> Result<Self, (i32, Value)> {
        let deadline = Instant::now() + PATIENCE;
        let uri = loop {
            let mut heard = lock(&self.heard.0);
            if let Some(ready) = heard.events.iter().find(|event| event["event"] == "ready") {
                break ready["exports"][0]["uri"].as_str().unwrap().to_owned();
            }
            if heard.ended {
                drop(heard);
                return Err(self.end());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it is never ready: {:?}\n{}", heard.events, heard.stderr);
            heard = self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
            drop(heard);
        };
        self.uri = uri;
        Ok(self)
    }

    /// `cdp protect` of sources into a replica, served on a unix socket, with more arguments.
    pub(crate) fn protect(sources: &[&Path], replica: &Path, listen: &str, more: &[&str]) -> Self {
        Self::try_protect(sources, replica, listen, more).unwrap_or_else(|end| panic!("{end:?}"))
    }

    /// The same, where it may be refused: then its exit status and its last words.
    pub(crate) fn try_protect(
        sources: &[&Path],
        replica: &Path,
        listen: &str,
        more: &[&str],
    ) -> Result<Self, (i32, Value)> {
        Self::spawn(command(&Self::arguments(sources, replica, listen, more))).ready()
    }

    fn arguments(sources: &[&Path], replica: &Path, listen: &str, more: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["protect".into()];
        arguments.extend(sources.iter().map(OsString::from));
        arguments.extend(["--replica".into(), replica.into(), "--listen".into(), listen.into()]);
        arguments.extend(more.iter().map(OsString::from));
        arguments
    }

    /// `cdp protect` whose system calls fail as strace is told. `None`, and a word about it, where strace does not work.
    pub(crate) fn protect_with_failing_calls(
        sources: &[&Path],
        replica: &Path,
        listen: &str,
        more: &[&str],
        inject: &Inject<'_>,
    ) -> Option<Self> {
        // The tracer steps aside: signals go to the command itself.
        let mut traced = Command::new("strace");
        traced.args(["-D", "-f", "-qqq", "-o", "/dev/null", "-e"]).arg(format!("trace={}", inject.calls));
        for path in inject.paths {
            traced.arg("-P").arg(path);
        }
        traced.arg("-e").arg(format!("inject={}:{}", inject.calls, inject.how));
        let works = Command::new("strace").args(["-D", "-qqq", "-o", "/dev/null", "true"]).status();
        if !works.is_ok_and(|status| status.success()) {
            println!("skipped: strace is not installed, or may not trace here");
            return None;
        }
        let arguments = Self::arguments(sources, replica, listen, more);
        let plain = command(&arguments);
        traced.arg(plain.get_program()).args(plain.get_args());
        Some(Self::spawn(traced).ready().unwrap_or_else(|end| panic!("{end:?}")))
    }

    /// From here on system calls of the running command fail as strace is told. Whether they do: not where strace does not work.
    pub(crate) fn fail_calls(&self, inject: &Inject<'_>) -> bool {
        let mut tracer = Command::new("strace");
        tracer.args(["-f", "-qqq", "-o", "/dev/null", "-e"]).arg(format!("trace={}", inject.calls));
        for path in inject.paths {
            tracer.arg("-P").arg(path);
        }
        tracer.arg("-e").arg(format!("inject={}:{}", inject.calls, inject.how));
        let Ok(mut tracer) = tracer.arg("-p").arg(self.child.id().to_string()).spawn() else { return false };
        let threads = || std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().map_while(Result::ok);
        while tracer.try_wait().unwrap().is_none() {
            // All of them: they are taken one after another.
            if threads().all(|thread| tracer_of(&thread.path()).is_some()) {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        println!("skipped: strace may not trace here");
        false
    }

    /// From here on no system call fails that did not fail by itself: whoever traces the command is ended.
    pub(crate) fn let_calls_pass(&self) {
        let tracer = tracer_of(format!("/proc/{}", self.child.id()).as_ref()).expect("somebody makes calls fail");
        rustix::process::kill_process(tracer, Signal::KILL).unwrap();
    }

    /// `cdp mount` of a replica, served on a unix socket.
    pub(crate) fn mount(replica: &Path, listen: &str, more: &[&str]) -> Self {
        let mut arguments: Vec<OsString> = vec!["mount".into(), replica.into(), "--listen".into(), listen.into()];
        arguments.extend(more.iter().map(OsString::from));
        Self::spawn(command(&arguments)).ready().unwrap_or_else(|end| panic!("{end:?}"))
    }

    /// Of the first disk.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Everything that was said until now.
    pub(crate) fn events(&self) -> Vec<Value> {
        lock(&self.heard.0).events.clone()
    }

    /// The first event of which this holds, now or later.
    pub(crate) fn wait_event(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.wait_event_after(0, what, holds)
    }

    /// The first event, from this place in the list on, of which this holds.
    pub(crate) fn wait_event_after(&self, from: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let (heard, signal) = &*self.heard;
        let mut heard = lock(heard);
        loop {
            if let Some(event) = heard.events.iter().skip(from).find(|event| holds(event)) {
                return event.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !heard.ended, "no {what}: {:?}\n{}", heard.events, heard.stderr);
            heard = signal.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until every write is recorded.
    pub(crate) fn protecting(self) -> Self {
        self.wait_event("state protecting", |event| event["event"] == "state" && event["state"] == "protecting");
        self
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends it as nobody should.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has said this to people.
    pub(crate) fn wait_stderr(&self, said: &str) {
        super::wait_for(said, || lock(&self.heard.0).stderr.contains(said));
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it as people do; gives its exit status and its last event.
    pub(crate) fn stop(&mut self) -> (i32, Value) {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Waits for an end that it comes to by itself; gives its exit status and its last words.
    pub(crate) fn end(&mut self) -> (i32, Value) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let (heard, signal) = &*self.heard;
        let mut heard = lock(heard);
        while !heard.ended {
            heard = signal.wait(heard).unwrap_or_else(PoisonError::into_inner);
        }
        assert!(!heard.stderr.contains("panicked"), "{}", heard.stderr);
        let status = status.code().unwrap_or_else(|| panic!("ended by a signal: {}", heard.stderr));
        (status, heard.events.last().cloned().unwrap_or_default())
    }

    /// Stops a protection that must leave nothing behind.
    pub(crate) fn stop_clean(&mut self) {
        let (status, stopped) = self.stop();
        assert_eq!((status, stopped["drained"].as_bool()), (0, Some(true)), "{stopped}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr = &lock(&self.heard.0).stderr;
        assert!(std::thread::panicking() || !stderr.contains("panicked"), "{stderr}");
    }
}

/// Who traces a thread, from its directory in `/proc`.
fn tracer_of(thread: &Path) -> Option<rustix::process::Pid> {
    let status = std::fs::read_to_string(thread.join("status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    rustix::process::Pid::from_raw(tracer.trim().parse().ok()?)
}
