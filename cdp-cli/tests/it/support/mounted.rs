//! A small file system of a test's own, without root: made in a mount namespace that a helper process keeps alive, and
//! reached through that process's root. It is gone when the helper is.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Does what it is told, a line each, and says so; ends with whoever tells it.
const OBEY: &str = "while read -r line; do if eval \"$line\"; then echo done; else echo failed; fi; done";

pub(crate) struct Mounted {
    holder: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    path: PathBuf,
    mount_point: tempfile::TempDir,
}

impl Mounted {
    /// A file system in memory with so much room. `None`, and a word about it, where this machine does not allow it.
    pub(crate) fn tmpfs(bytes: u64) -> Option<Self> {
        let mount_point = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", OBEY]);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut holder) = spawned else {
            println!("skipped: unshare is not installed");
            return None;
        };
        let (orders, answers) = (holder.stdin.take().unwrap(), BufReader::new(holder.stdout.take().unwrap()));
        let inside = mount_point.path().strip_prefix("/").unwrap();
        let path = PathBuf::from(format!("/proc/{}/root", holder.id())).join(inside);
        let mut mounted = Self { holder, orders, answers, path, mount_point };
        let mount = format!("mount -t tmpfs -o size={bytes} tmpfs {}", mounted.mount_point.path().display());
        if !mounted.order(&mount) {
            println!("skipped: unshare and mount do not work here: a user namespace may not mount");
            return None;
        }
        Some(mounted)
    }

    fn order(&mut self, line: &str) -> bool {
        let mut answer = String::new();
        // A helper that could not even begin answers nothing.
        let told = writeln!(self.orders, "{line}").and_then(|()| self.answers.read_line(&mut answer));
        told.is_ok() && answer == "done\n"
    }

    fn remount(&mut self, option: &str) {
        let order = format!("mount -o remount,{option} {}", self.mount_point.path().display());
        assert!(self.order(&order), "{order}");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// From now on nobody writes to it, root neither.
    pub(crate) fn make_read_only(&mut self) {
        self.remount("ro");
    }

    /// Another program takes all that is free, to the last byte.
    pub(crate) fn fill(&self) {
        let mut file = std::fs::File::create(self.path("filler")).unwrap();
        let mut piece = vec![1; 1 << 20];
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => piece.truncate(piece.len() / 2),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// It gives that back.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.path("filler")).unwrap();
    }

    /// Leaves so much free.
    pub(crate) fn leave(&mut self, bytes: u64) {
        let found = rustix::fs::statvfs(&self.path).unwrap();
        let used = (found.f_blocks - found.f_bfree) * found.f_frsize;
        self.remount(&format!("size={}", used + bytes));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The mount goes with its last process.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
