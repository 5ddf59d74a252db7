//! The programs that are compared: servers of a file over NBD, and QEMU's storage daemon, told what to do over QMP.

use super::image::program;
use super::parts::{cpu, text};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(2);
/// Every export's name here.
pub(crate) const EXPORT: &str = "disk";
/// The node that is mirrored.
const NODE: &str = "source";
/// The node that it is mirrored to.
const TARGET: &str = "target";
const JOB: &str = "mirror";

/// Who serves a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    QemuNbd,
    Nbdkit,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::QemuNbd => "qemu-nbd",
            Self::Nbdkit => "nbdkit",
        }
    }
}

/// A file that is served over TCP on loopback.
pub(crate) struct Served {
    child: Child,
    pub(crate) port: u16,
}

impl Served {
    /// `None` where the program is not on this machine.
    pub(crate) fn start(kind: Kind, file: &Path) -> Result<Option<Self>, Failure> {
        let Some(path) = program(kind.name()) else { return Ok(None) };
        // Nobody else asks for ports meanwhile; who cannot have this one ends, which is an error here.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(path);
        match kind {
            // As many connections as nbdcopy wants.
            Kind::QemuNbd => command.args(["-t", "-e", "8", "-f", "raw", "-b", "127.0.0.1", "-x", EXPORT, "-p"]),
            Kind::Nbdkit => command.args(["-f", "-i", "127.0.0.1", "-e", EXPORT, "-p"]),
        };
        command.arg(port.to_string());
        if kind == Kind::Nbdkit {
            command.arg("file");
        }
        let child = command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut served = Self { child, port };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begin.elapsed() > PATIENCE || served.child.try_wait()?.is_some() {
                return Err(format!("{} does not serve {} at port {port}", kind.name(), file.display()).into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(Some(served))
    }

    /// Seconds of processor time.
    pub(crate) fn cpu(&self) -> f64 {
        cpu(self.child.id())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a mirror goes.
pub(crate) enum Goes<'a> {
    /// To a file beside the source.
    File(&'a Path),
    /// To what is served on loopback.
    Port(u16),
}

/// `qemu-storage-daemon` with a source, a target, and in time a mirror between them.
pub(crate) struct StorageDaemon {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl StorageDaemon {
    /// `None` where the program is not on this machine. `export`: the socket at which the source is served, writable.
    pub(crate) fn start(source: &Path, goes: &Goes<'_>, export: Option<&Path>) -> Result<Option<Self>, Failure> {
        let Some(path) = program("qemu-storage-daemon") else { return Ok(None) };
        let file = |node: &str, path: &Path| -> Result<String, Failure> {
            Ok(format!("driver=raw,node-name={node},file.driver=file,file.filename={}", text(path)?))
        };
        let target = match goes {
            Goes::File(path) => file(TARGET, path)?,
            Goes::Port(port) => format!(
                "driver=raw,node-name={TARGET},file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,\
                 file.server.port={port},file.export={EXPORT}"
            ),
        };
        let mut command = Command::new(path);
        command.args(["--blockdev", &file(NODE, source)?, "--blockdev", &target]);
        if let Some(socket) = export {
            // The run before left one, unless this is the first.
            let _ = std::fs::remove_file(socket);
            command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", text(socket)?));
            command.arg("--export").arg(format!("nbd,id=export,node-name={NODE},name={EXPORT},writable=on"));
        }
        command.args(["--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let mut daemon = Self { child, input, output: BufReader::new(output) };
        daemon.until(|line| line.get("QMP").is_some())?;
        daemon.ask("qmp_capabilities", &json!({}))?;
        Ok(Some(daemon))
    }

    /// Begins a mirror of everything. `blocking`: a write of the guest is at both when it is answered.
    pub(crate) fn mirror(&mut self, blocking: bool) -> Result<(), Failure> {
        let mode = if blocking { "write-blocking" } else { "background" };
        let how = json!({ "job-id": JOB, "device": NODE, "target": TARGET, "sync": "full", "copy-mode": mode });
        self.ask("blockdev-mirror", &how)
    }

    /// Waits until both are the same but for what is on its way.
    pub(crate) fn ready(&mut self) -> Result<(), Failure> {
        self.until(|line| line["event"] == "BLOCK_JOB_READY")
    }

    /// Ends the mirror when both are the same.
    pub(crate) fn complete(&mut self) -> Result<(), Failure> {
        self.send("job-complete", &json!({ "id": JOB }))?;
        self.until(|line| line["event"] == "BLOCK_JOB_COMPLETED")
    }

    /// Seconds of processor time.
    pub(crate) fn cpu(&self) -> f64 {
        cpu(self.child.id())
    }

    fn send(&mut self, command: &str, arguments: &Value) -> Result<(), Failure> {
        writeln!(self.input, "{}", json!({ "execute": command, "arguments": arguments }))?;
        Ok(())
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<(), Failure> {
        self.send(command, arguments)?;
        self.until(|line| line.get("return").is_some())
    }

    /// Reads up to such a line; what else comes says nothing here, except for errors.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<(), Failure> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err("qemu-storage-daemon ended".into());
            }
            let said: Value = serde_json::from_str(&line)?;
            let failed = said.get("error").or_else(|| said.pointer("/data/error"));
            if failed.is_some() || said["event"] == "BLOCK_JOB_ERROR" {
                return Err(format!("qemu-storage-daemon says {}", line.trim()).into());
            }
            if wanted(&said) {
                return Ok(());
            }
        }
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of so many bytes without any data, in place of what was there.
pub(crate) fn empty(path: PathBuf, bytes: u64) -> Result<PathBuf, Failure> {
    // The run before left one, unless this is the first.
    let _ = std::fs::remove_file(&path);
    std::fs::File::create(&path)?.set_len(bytes)?;
    Ok(path)
}
