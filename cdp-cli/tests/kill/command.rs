//! `cdp protect` as a process that is killed.

use crate::aim::Aim;
use cdp_net::nbd::Uri;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const CDP: &str = env!("CARGO_BIN_EXE_cdp");
/// The longest anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `cdp protect` that runs.
pub(crate) struct Protection {
    process: Child,
    events: Receiver<Value>,
    opened: Option<Value>,
}

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
        let mut process = command
            .arg("protect")
            .arg(source)
            .arg("--replica")
            .arg(replica)
            // Segments roll and manifests are written all the time.
            .args(["--listen", &uri, "--json", "--rpo", "500ms", "--segment-size", "1MiB"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else { return };
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self { process, events, opened: None }
    }

    /// Waits until the disk is served.
    pub(crate) fn ready(&mut self) -> Uri {
        self.ready_unless_killed().expect("the protection did not become ready")
    }

    /// The same; `None` when it ended before.
    pub(crate) fn ready_unless_killed(&mut self) -> Option<Uri> {
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok(event) if event["event"] == "opened" => self.opened = Some(event),
                Ok(event) if event["event"] == "ready" => {
                    return Some(event["exports"][0]["uri"].as_str().unwrap().parse().unwrap());
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("waited too long for the protection to become ready"),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it was killed, waiting so long for that; one that ends otherwise must end well.
    pub(crate) fn is_killed_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success() || status.signal() == Some(9), "{status}: {:?}", self.events.try_iter());
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
        self.opened.clone().expect("it is ready")
    }

    /// SIGKILL: nothing of it runs on.
    pub(crate) fn kill(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }

    /// SIGTERM.
    pub(crate) fn ask_to_stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// SIGTERM: it ends well.
    pub(crate) fn stop(mut self) {
        let asked = Instant::now();
        self.ask_to_stop();
        let status = self.process.wait().unwrap();
        let events: Vec<_> = self.events.iter().collect();
        assert!(status.success(), "{status} after {:?}: {events:?}", asked.elapsed());
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        self.kill();
    }
}
