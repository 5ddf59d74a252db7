//! A real file system, written by the programs that people use while it is protected: every mark brings back what was there.

use crate::support::{Place, Running, cdp, client, hash, installed, mark, noise, restore, run};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Bytes of the file system, and of the disk: what lies behind is free for programs that write anything.
const FILE_SYSTEM: u64 = 32 << 20;
const DISK: u64 = 40 << 20;

/// Directories that are on most machines, hold real files of many sizes, and fit.
const REAL_FILES: [&str; 4] = ["/usr/include/linux", "/usr/share/perl5", "/usr/lib/python3", "/etc"];

/// An ext4 image filled from a real directory, followed by nothing.
fn make_file_system(image: &Path) {
    let fits = |path: &&&str| {
        let bytes = |text: String| text.split_whitespace().next()?.parse::<u64>().ok();
        Path::new(path).is_dir() && bytes(run("du", &["-sb", path])).is_some_and(|bytes| bytes < FILE_SYSTEM / 2)
    };
    let from = REAL_FILES.iter().find(fits).expect("a directory with real files");
    let blocks = format!("{}k", FILE_SYSTEM >> 10);
    run("mke2fs", &["-q", "-t", "ext4", "-d", from, image.to_str().unwrap(), &blocks]);
    std::fs::File::options().write(true).open(image).unwrap().set_len(DISK).unwrap();
}

/// A later state of the file system: a copy of the image with files written and removed in it, as its driver would.
fn change_file_system(image: &Path, changed: &Path, round: u64) {
    std::fs::copy(image, changed).unwrap();
    let file = changed.with_extension("file");
    for number in 0..4 {
        std::fs::write(&file, noise(round * 10 + number, 60_000 * (number as usize + 1))).unwrap();
        let write = format!("write {} /round-{round}-{number}", file.display());
        run("debugfs", &["-w", "-R", &write, changed.to_str().unwrap()]);
    }
    if round > 1 {
        run("debugfs", &["-w", "-R", &format!("rm /round-{}-0", round - 1), changed.to_str().unwrap()]);
    }
}

/// One mark: what the source held, and whether its file system was whole then.
struct Marked {
    label: String,
    hash: blake3::Hash,
    whole: bool,
}

struct Story {
    place: Place,
    source: PathBuf,
    replica: PathBuf,
    running: Running,
    marks: Vec<Marked>,
    whole: bool,
}

impl Story {
    fn begin() -> Self {
        let place = Place::new();
        let (source, replica) = (place.path("disk.img"), place.path("replica"));
        make_file_system(&source);
        let running = Running::protect(&[&source], &replica, &place.socket("nbd"), &["--rpo", "1s"]).protecting();
        Self { place, source, replica, running, marks: Vec::new(), whole: true }
    }

    fn mark(&mut self, label: &str) {
        let at = mark(&self.replica, label);
        assert_eq!(at["label"], label);
        self.marks.push(Marked { label: label.to_owned(), hash: hash(&self.source), whole: self.whole });
    }

    fn qemu_io(&mut self, label: &str, commands: &[&str]) {
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        let uri = self.running.uri().to_owned();
        arguments.push(&uri);
        let text = run("qemu-io", &arguments);
        assert!(!text.contains("failed"), "{text}");
        self.mark(label);
    }

    /// Writes behind the file system and reads it back.
    fn fio(&mut self, label: &str, rw: &str, sizes: &str, depth: u32) {
        let options = [
            format!("--uri={}", self.running.uri()),
            format!("--aux-path={}", self.place.path("").display()),
            format!("--offset={FILE_SYSTEM}"),
            format!("--size={}", DISK - FILE_SYSTEM),
            format!("--rw={rw}"),
            format!("--bsrange={sizes}"),
            format!("--iodepth={depth}"),
        ];
        let fixed = ["--name=x", "--ioengine=nbd", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
        let all: Vec<_> = fixed.iter().map(|text| (*text).to_owned()).chain(options).collect();
        run("fio", &all);
        self.mark(label);
    }

    /// Copies an image over the disk.
    fn copy_in(&mut self, label: &str, image: &Path, connections: u32) {
        let uri = self.running.uri().to_owned();
        let connections = format!("--connections={connections}");
        run("nbdcopy", &[&connections, "--flush", image.to_str().unwrap(), &uri]);
        assert_eq!(hash(image), hash(&self.source), "{label}");
        self.whole = true;
        self.mark(label);
    }

    fn check_restored(&self) {
        let output = self.place.path("restored.img");
        for marked in &self.marks {
            let restored = restore(&self.replica, &format!("label:{}", marked.label), &output).done();
            assert_eq!(restored["outputs"][0]["bytes"], DISK);
            assert_eq!(hash(&output), marked.hash, "{}", marked.label);
            if marked.whole {
                run("e2fsck", &["-fn", output.to_str().unwrap()]);
            }
        }
    }
}

#[test]
fn every_mark_of_a_real_file_system_comes_back() {
    if !["mke2fs", "debugfs", "e2fsck", "qemu-io", "qemu-img", "nbdcopy", "fio"].iter().all(|name| installed(name)) {
        return;
    }
    let mut story = Story::begin();
    let [first, second, third] = ["one", "two", "three"].map(|name| story.place.path(name));
    let begin = story.place.path("begin");
    std::fs::copy(&story.source, &begin).unwrap();
    change_file_system(&begin, &first, 1);
    change_file_system(&first, &second, 2);
    change_file_system(&second, &third, 3);
    story.mark("begin");
    story.qemu_io("patterns", &["write -P 0x11 33M 1M", "write -P 0x22 34M 512", "write -P 0x33 35M 64k", "flush"]);
    story.qemu_io("zeroes", &["write -z 33M 64k", "write -z -u 33280k 64k", "discard 35M 32k", "read -P 0 35M 32k"]);
    story.fio("fio random", "randwrite", "4k-4k", 32);
    story.copy_in("copied", &first, 1);
    story.fio("fio odd", "randwrite", "512-300k", 16);
    story.qemu_io("fua", &["write -f -P 0x44 36M 4k", "aio_write -P 0x55 37M 256k", "aio_flush"]);
    story.copy_in("copied again", &second, 4);
    story.fio("fio sequential", "write", "64k-64k", 8);
    let uri = story.running.uri().to_owned();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", third.to_str().unwrap(), &uri]);
    story.mark("converted");
    story.whole = false;
    story.qemu_io("ruined", &["write -P 0xff 0 2M", "write -z 5M 3M", "write -P 0xee 20M 4M"]);
    story.copy_in("mended", &begin, 2);
    assert!(story.marks.len() >= 10);
    // While the protection goes on, and when nobody owns the replica any more.
    story.check_restored();
    mounts_equal(&story, "ruined");
    story.running.stop_clean();
    story.check_restored();
    mounts_equal(&story, "fio odd");
    assert_eq!(cdp(&[OsStr::new("verify"), story.replica.as_os_str()]).done()["ok"], true);
}

/// What `cdp mount` serves of a mark is what `cdp restore` writes, for QEMU and for libnbd.
fn mounts_equal(story: &Story, label: &str) {
    let output = story.place.path("compare.img");
    restore(&story.replica, label, &output).done();
    let mut mounted = Running::mount(&story.replica, &story.place.socket("mount"), &["--at", label]);
    let file = output.to_str().unwrap();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", file, mounted.uri()]);
    let copied = story.place.path("copied.img");
    run("nbdcopy", &[mounted.uri(), copied.to_str().unwrap()]);
    assert_eq!(hash(&copied), hash(&output), "{label}");
    let (status, stopped) = mounted.stop();
    assert_eq!((status, stopped["event"].as_str()), (0, Some("stopped")));
}

#[test]
fn what_is_written_in_a_session_is_there_again_and_nowhere_else() {
    if !installed("qemu-io") {
        return;
    }
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 7, 4 << 20), place.path("replica"));
    let at_mark = hash(&source);
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    mark(&replica, "kept");
    session(&place, &replica, "under an owner");
    running.stop_clean();
    session(&place, &replica, "without an owner");
    let output = place.path("out.img");
    restore(&replica, "kept", &output).done();
    assert_eq!(hash(&output), at_mark, "a session changes nothing of the moment it began with");
    assert_eq!(hash(&source), at_mark);
}

/// A named session: written, closed, opened again, dropped.
fn session(place: &Place, replica: &Path, name: &str) {
    let socket = place.socket("mount");
    let writable = ["--writable", "--session", name];
    let with_at = [&["--at", "kept"][..], &writable].concat();
    let mut mounted = Running::mount(replica, &socket, &with_at);
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x77 1M 64k", "-c", "write -z 3M 4k", "-c", "flush", mounted.uri()]);
    let (status, stopped) = mounted.stop();
    assert_eq!((status, stopped["kept"].as_bool()), (0, Some(true)));
    let sessions = cdp(&[OsStr::new("status"), replica.as_os_str()]).done()["sessions"].clone();
    assert!(sessions.as_array().unwrap().iter().any(|session| session["name"] == name), "{sessions}");
    let mut mounted = Running::mount(replica, &socket, &writable);
    let read = ["-c", "read -P 0x77 1M 64k", "-c", "read -P 0 3M 4k"];
    let text = run("qemu-io", &[&["-f", "raw"][..], &read, &[mounted.uri()]].concat());
    assert!(!text.contains("verification failed"), "{text}");
    let mut again = vec![0; 512];
    client(mounted.uri()).read(1 << 20, &mut again).unwrap();
    assert!(again.iter().all(|byte| *byte == 0x77));
    // While it is open it is nobody else's, and is not dropped.
    let taken = cdp(&[OsStr::new("mount"), replica.as_os_str(), OsStr::new("--drop"), OsStr::new(name)]);
    assert_eq!(taken.status, 4, "{taken:?}");
    assert_eq!(mounted.stop().0, 0);
    cdp(&[OsStr::new("mount"), replica.as_os_str(), OsStr::new("--drop"), OsStr::new(name)]).done();
    let status = cdp(&[OsStr::new("status"), replica.as_os_str()]).done();
    assert_eq!(status["sessions"], serde_json::json!([]));
}
