//! PostgreSQL, and a file system on a disk that somebody serves over NBD: what a machine without a virtual disk would have.

use crate::support::{installed, run, wait_for};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The programs of the newest PostgreSQL that is installed.
pub(crate) fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.map_while(Result::ok);
    versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("pgbench").exists()).max()
}

/// Why a file system on a disk of NBD cannot be mounted here, if so.
pub(crate) fn cannot_mount() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        Some("only root mounts")
    } else if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        Some("there is no /dev/fuse or no loop device")
    } else if !["nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck", "runuser"]
        .iter()
        .all(|name| installed(name))
    {
        Some("a program is missing")
    } else {
        None
    }
}

/// What is undone when the test ends, however it does; the last first.
#[derive(Debug, Default)]
struct Undo(Vec<Vec<String>>);

impl Undo {
    fn later(&mut self, line: &[&str]) {
        self.0.push(line.iter().map(|word| (*word).to_owned()).collect());
    }

    /// Undoes all of it; what fails is tried again, because somebody may still have it open for a moment.
    fn all(&mut self) {
        while let Some(line) = self.0.pop() {
            let done = || Command::new(&line[0]).args(&line[1..]).stderr(Stdio::null()).status();
            let mut tries = 0;
            while !done().is_ok_and(|status| status.success()) && tries < 100 {
                std::thread::sleep(std::time::Duration::from_millis(50));
                tries += 1;
            }
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.all();
    }
}

/// A disk as a file: what a loop device takes.
#[derive(Debug)]
pub(crate) struct Fused {
    nbdfuse: Child,
    file: PathBuf,
    undo: Undo,
}

impl Fused {
    pub(crate) fn start(uri: &str, file: &Path) -> Self {
        std::fs::write(file, "").unwrap();
        let nbdfuse = Command::new("nbdfuse").arg(file).arg(uri).spawn().unwrap();
        let mut undo = Undo::default();
        undo.later(&["fusermount3", "-u", file.to_str().unwrap()]);
        wait_for("nbdfuse", || std::fs::metadata(file).is_ok_and(|found| found.len() > 0));
        Self { nbdfuse, file: file.to_owned(), undo }
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Everything is written, and the connection is closed.
    pub(crate) fn end(mut self) {
        self.undo.all();
        let status = self.nbdfuse.wait().unwrap();
        assert!(status.success(), "nbdfuse: {status}");
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        self.undo.all();
        // It may have ended by itself.
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

/// A mounted file system in a file.
#[derive(Debug)]
pub(crate) struct Mount {
    directory: PathBuf,
    undo: Undo,
}

impl Mount {
    pub(crate) fn of(file: &Path, directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().to_owned();
        let mut undo = Undo::default();
        undo.later(&["losetup", "-d", &device]);
        run("mount", &[&device, directory.to_str().unwrap()]);
        undo.later(&["umount", directory.to_str().unwrap()]);
        Self { directory: directory.to_owned(), undo }
    }

    pub(crate) fn end(mut self) {
        self.undo.all();
        assert!(!self.directory.join("pg").exists(), "it is still mounted");
    }
}

/// A database on a mounted file system.
#[derive(Debug)]
pub(crate) struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    undo: Undo,
}

impl Postgres {
    /// Makes a new one there.
    pub(crate) fn make(bin: &Path, mount: &Mount) -> Self {
        let data = mount.directory.join("pg");
        std::fs::create_dir(&data).unwrap();
        chown(&data, Some(Self::user("-u")), Some(Self::user("-g"))).unwrap();
        Self::run_as(bin, "initdb", &["-D", data.to_str().unwrap(), "--no-locale", "-A", "trust"]);
        Self::start(bin, mount)
    }

    /// Starts the one that is there, as it was left.
    pub(crate) fn start(bin: &Path, mount: &Mount) -> Self {
        let (data, sockets) = (mount.directory.join("pg"), mount.directory.with_extension("sockets"));
        std::fs::create_dir_all(&sockets).unwrap();
        std::fs::set_permissions(&sockets, std::fs::Permissions::from_mode(0o777)).unwrap();
        // What the one before it left, which was killed as it seems to this one.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        let options = format!(
            "-k {} -c listen_addresses= -c shared_buffers=16MB -c max_wal_size=64MB -c min_wal_size=32MB \
             -c dynamic_shared_memory_type=mmap",
            sockets.display()
        );
        let log = sockets.join("log");
        let data_text = data.to_str().unwrap();
        Self::run_as(bin, "pg_ctl", &["start", "-w", "-D", data_text, "-l", log.to_str().unwrap(), "-o", &options]);
        let mut undo = Undo::default();
        let stop = bin.join("pg_ctl");
        undo.later(&[
            "runuser",
            "-u",
            "postgres",
            "--",
            stop.to_str().unwrap(),
            "stop",
            "-s",
            "-D",
            data_text,
            "-m",
            "fast",
        ]);
        Self { bin: bin.to_owned(), data, sockets, undo }
    }

    fn user(flag: &str) -> u32 {
        run("id", &[flag, "postgres"]).trim().parse().unwrap()
    }

    /// Runs a program of PostgreSQL as whom it wants to be run.
    fn run_as(bin: &Path, program: &str, arguments: &[&str]) -> String {
        let program = bin.join(program);
        run("runuser", &[&["-u", "postgres", "--", program.to_str().unwrap()], arguments].concat())
    }

    /// What the first column of the first row says.
    pub(crate) fn ask(&self, question: &str) -> i64 {
        let arguments = ["-h", self.sockets.to_str().unwrap(), "-d", "postgres", "-Atqc", question];
        let answer = Self::run_as(&self.bin, "psql", &arguments);
        answer.trim().parse().unwrap_or_else(|error| panic!("{question}: {answer}: {error}"))
    }

    pub(crate) fn make_accounts(&self) {
        let made = self.pgbench(&["-i", "-q"]).stderr(Stdio::null()).status().unwrap();
        assert!(made.success(), "{made}");
    }

    /// Transactions of several clients for so many seconds, in the background.
    pub(crate) fn transactions(&self, seconds: u32) -> Child {
        let seconds = seconds.to_string();
        self.pgbench(&["-n", "-c", "4", "-T", &seconds]).stdout(Stdio::null()).spawn().unwrap()
    }

    fn pgbench(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(self.bin.join("pgbench"));
        command.arg("-h").arg(&self.sockets).args(arguments).arg("postgres");
        command
    }

    /// What pgbench keeps: each transaction adds one amount to an account, a teller and a branch, and to the history. Gives how many
    /// transactions there were.
    pub(crate) fn check(&self) -> i64 {
        let history = self.ask("select coalesce(sum(delta), 0) from pgbench_history");
        for (balance, table) in [("a", "accounts"), ("t", "tellers"), ("b", "branches")] {
            let sum = self.ask(&format!("select sum({balance}balance) from pgbench_{table}"));
            assert_eq!(sum, history, "{table}");
        }
        self.ask("select count(*) from pgbench_history")
    }

    pub(crate) fn stop(mut self) {
        self.undo.all();
        assert!(!self.data.join("postmaster.pid").exists(), "it did not end");
    }
}
