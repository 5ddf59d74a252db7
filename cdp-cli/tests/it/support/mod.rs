//! What every test of the command needs: a place of its own, the command, and programs that may not be installed.

#[path = "../../../../cdp-net/tests/kit/basics.rs"]
mod basics;
mod guest;
#[path = "../../../../cdp-net/tests/kit/host.rs"]
mod host;
mod mounted;
mod running;
mod scene;
mod serving;

pub(crate) use basics::{PATIENCE, noise, wait_for};
pub(crate) use guest::{Guest, client, raw, write_request};
pub(crate) use host::{Host, identity};
pub(crate) use mounted::Mounted;
pub(crate) use running::{Inject, Running};
pub(crate) use scene::Scene;
pub(crate) use serving::Serving;

use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Loops run this often, unless the environment asks for more.
pub(crate) fn times(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// A directory of a test's own, gone at its end.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A source with data and holes.
    pub(crate) fn source(&self, name: &str, seed: u64, length: usize) -> PathBuf {
        let path = self.path(name);
        let mut content = noise(seed, length);
        content[length / 4..length / 2].fill(0);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Where the disks of a server called so are found.
    pub(crate) fn socket(&self, name: &str) -> String {
        format!("nbd+unix:///?socket={}", self.path(&format!("{name}.sock")).display())
    }
}

/// What a file holds, in short.
pub(crate) fn hash(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    std::io::copy(&mut &file, &mut hasher).unwrap();
    hasher.finalize()
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn of(output: &Output) -> Self {
        let (out, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // A panic is never an answer, whatever status it ends with.
        assert!(!stderr.contains("panicked"), "{stderr}");
        let status = output.status.code().unwrap_or_else(|| panic!("ended by a signal: {stderr}"));
        let json = out.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
        Self { status, json, stderr: stderr.into_owned() }
    }

    /// The document, of a command that succeeded.
    pub(crate) fn done(self) -> Value {
        assert_eq!(self.status, 0, "{self:?}");
        self.json
    }

    /// Checks that the command failed as it should, and said so to scripts and to people.
    pub(crate) fn failed(self, status: i32, code: &str) -> Value {
        assert_eq!((self.status, self.json["error"]["code"].as_str()), (status, Some(code)), "{self:?}");
        let message = self.json["error"]["message"].as_str().unwrap();
        assert!(self.stderr.contains(message) && !message.is_empty(), "{self:?}");
        self.json["error"].clone()
    }
}

/// The command, asked for JSON.
pub(crate) fn command<A: AsRef<OsStr>>(arguments: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdp"));
    command.arg("--json").args(arguments);
    command
}

/// Runs the command to its end.
pub(crate) fn cdp<A: AsRef<OsStr>>(arguments: &[A]) -> Answer {
    Answer::of(&command(arguments).output().unwrap())
}

/// `cdp restore` of one moment into a file.
pub(crate) fn restore(replica: &Path, at: &str, output: &Path) -> Answer {
    let (replica, output) = (replica.as_os_str(), output.as_os_str());
    let [verb, at_flag, at, output_flag, force] = ["restore", "--at", at, "--output", "--force"].map(OsStr::new);
    cdp(&[verb, replica, at_flag, at, output_flag, output, force])
}

/// `cdp mark`; whether the present can be marked is for the caller to know.
pub(crate) fn mark(replica: &Path, label: &str) -> Value {
    cdp(&[OsStr::new("mark"), replica.as_os_str(), OsStr::new("--label"), OsStr::new(label)]).done()
}

/// Where programs are: those for file systems are not in everybody's path.
fn path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Whether a program can be started; says `skipped` by name if not.
pub(crate) fn installed(program: &str) -> bool {
    let found = Command::new(program).env("PATH", path()).arg("--version").stdin(Stdio::null()).output().is_ok();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Runs somebody else's program, which must succeed and end.
pub(crate) fn run<A: AsRef<OsStr> + std::fmt::Debug>(program: &str, arguments: &[A]) -> String {
    let limit = PATIENCE.as_secs().to_string();
    let mut command = Command::new("timeout");
    command.env("PATH", path()).stdin(Stdio::null()).arg(limit).arg(program).args(arguments);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}\n{error}", output.status);
    text
}

/// Changes one bit of a file, in place; doing it again undoes it.
pub(crate) fn flip(path: &Path, offset: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], offset).unwrap();
}
