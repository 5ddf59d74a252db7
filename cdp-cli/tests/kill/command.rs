//! `cdp protect` as a process that is killed.

use crate::aim::Aim;
use crate::support::{PATIENCE, Running};
use cdp_net::nbd::Uri;
use rustix::process::Signal;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const CDP: &str = env!("CARGO_BIN_EXE_cdp");

/// A `cdp protect` that runs.
pub(crate) struct Protection(Running);

impl Protection {
    pub(crate) fn start(source: &Path, replica: &Path, socket: &Path) -> Self {
        Self::spawn(Command::new(CDP), source, replica, socket)
    }

    /// Starts it under a tracer that kills it where it is aimed at.
    pub(crate) fn start_aimed(aim: &Aim, source: &Path, replica: &Path, socket: &Path) -> Self {
        let mut command = aim.over_a_command();
        command.arg(CDP);
        Self::spawn(command, source, replica, socket)
    }

    fn spawn(mut command: Command, source: &Path, replica: &Path, socket: &Path) -> Self {
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        command
            .arg("protect")
            .arg(source)
            .arg("--replica")
            .arg(replica)
            // Segments roll and manifests are written all the time.
            .args(["--listen", &uri, "--json", "--rpo", "500ms", "--segment-size", "1MiB"]);
        Self(Running::spawn(command))
    }

    fn event(&self, name: &str) -> Option<Value> {
        self.0.events().into_iter().find(|event| event["event"] == name)
    }

    /// Waits until the disk is served.
    pub(crate) fn ready(&mut self) -> Uri {
        self.ready_unless_killed().expect("the protection did not become ready")
    }

    /// The same; `None` when it ended before.
    pub(crate) fn ready_unless_killed(&mut self) -> Option<Uri> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_alive = self.0.is_alive();
            if let Some(event) = self.event("ready") {
                return Some(event["exports"][0]["uri"].as_str().unwrap().parse().unwrap());
            }
            if !is_alive {
                return None;
            }
            assert!(Instant::now() < deadline, "waited too long for the protection to become ready");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.child.id()
    }

    /// Whether it was killed, waiting so long for that; one that ends otherwise must end well.
    pub(crate) fn is_killed_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.0.child.try_wait().unwrap() {
                assert!(status.success() || status.signal() == Some(9), "{status}: {:?}", self.0.events());
                return !status.success();
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it found at its start.
    pub(crate) fn opened(&self) -> Value {
        self.event("opened").expect("it is ready")
    }

    /// SIGKILL: nothing of it runs on.
    pub(crate) fn kill(&mut self) {
        self.0.kill();
    }

    /// SIGTERM.
    pub(crate) fn ask_to_stop(&self) {
        self.0.signal(Signal::TERM);
    }

    /// SIGTERM: it ends well.
    pub(crate) fn stop(mut self) {
        let asked = Instant::now();
        let (status, last) = self.0.stop();
        assert_eq!(status, 0, "after {:?}: {last}", asked.elapsed());
    }
}
