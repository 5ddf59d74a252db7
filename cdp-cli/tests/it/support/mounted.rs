//! A small file system of a test's own, without root: made in a mount namespace that a helper process keeps alive, and
//! reached through that process's root. It is gone when the helper is.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Says so when it is there, and waits for its end.
const WAIT: &str = "echo mounted; exec sleep 1000000";

pub(crate) struct Mounted {
    holder: Child,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Mounted {
    /// A file system in memory with so much room. `None`, and a word about it, where this machine does not allow it.
    pub(crate) fn tmpfs(bytes: u64) -> Option<Self> {
        Self::new(&format!("mount -t tmpfs -o size={bytes},mode=700 tmpfs \"$0\""))
    }

    /// A directory that cannot be written to, also by root.
    pub(crate) fn read_only() -> Option<Self> {
        Self::new("mount -t tmpfs -o size=1m tmpfs \"$0\" && mkdir \"$0/replica\" && mount -o remount,ro \"$0\"")
    }

    fn new(script: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("{script} && {WAIT}");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(directory.path());
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(mut holder) = spawned else {
            println!("skipped: unshare is not installed");
            return None;
        };
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "mounted\n" {
            let _ = holder.kill();
            let said = std::io::read_to_string(holder.stderr.take().unwrap()).unwrap();
            let _ = holder.wait();
            println!("skipped: unshare cannot mount here: {said}");
            return None;
        }
        let inside = directory.path().strip_prefix("/").unwrap();
        let path = PathBuf::from(format!("/proc/{}/root", holder.id())).join(inside);
        Some(Self { holder, path, _directory: directory })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.path).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Takes all room but this.
    pub(crate) fn fill(&self, leave: u64) {
        let file = std::fs::File::create(self.path("filler")).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, self.free_bytes() - leave).unwrap();
    }

    pub(crate) fn make_room(&self) {
        std::fs::remove_file(self.path("filler")).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The mount goes with its last process.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
