//! The `cdp` command as a process, and the one that protects.

use cdp_net::nbd::Uri;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const CDP: &str = env!("CARGO_BIN_EXE_cdp");
/// The longest anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) document: Value,
    errors: String,
}

impl Answer {
    /// The document of a command that must succeed.
    #[track_caller]
    pub(crate) fn good(self) -> Value {
        assert_eq!(self.status, 0, "{} {}", self.document, self.errors);
        self.document
    }
}

pub(crate) fn cdp(arguments: &[&str]) -> Answer {
    let output = Command::new(CDP).args(arguments).output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Answer { status: output.status.code().unwrap_or(-1), document, errors }
}

/// A `cdp protect` that runs.
pub(crate) struct Protection {
    process: Child,
    events: Receiver<Value>,
    opened: Option<Value>,
}

impl Protection {
    pub(crate) fn start(source: &Path, replica: &Path, socket: &Path) -> Self {
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let mut process = Command::new(CDP)
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
        loop {
            let event = self.events.recv_timeout(PATIENCE).expect("the protection did not become ready");
            match event["event"].as_str() {
                Some("opened") => self.opened = Some(event),
                Some("ready") => return event["exports"][0]["uri"].as_str().unwrap().parse().unwrap(),
                _ => {}
            }
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

    /// SIGTERM: it ends well.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.process.wait().unwrap();
        let events: Vec<_> = self.events.iter().collect();
        assert!(status.success(), "{status}: {events:?}");
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        self.kill();
    }
}
