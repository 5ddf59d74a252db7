//! Not a byte is free where the replica lives, or where a disk is to be restored, the reserve included: whichever file is
//! written next, the guest goes on, and what stopped comes back by itself.

use crate::support::{Guest, Inject, Mounted, Place, Running, cdp, client, hash, mark, noise, restore, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const DISK: usize = 8 << 20;
const SEGMENT: u64 = 8 * MIB;
/// What stays free behind the segments.
const RESERVE: u64 = 256 * MIB;
const ROOM: u64 = 1 << 30;
/// After so much, what is in memory and in segments that were reserved is full.
const TOO_MUCH: u64 = 128 * MIB;
const MORE: [&str; 10] =
    ["--memory", "8MiB", "--segment-size", "8MiB", "--rpo", "1s", "--drain", "1s", "--when-full", "stop"];

fn ask(command: &str, replica: &Path) -> Value {
    cdp(&[OsStr::new(command), replica.as_os_str()]).done()
}

fn is_state(event: &Value, state: &str) -> bool {
    event["event"] == "state" && event["state"] == state
}

/// Writes here and there; no trims, which a file system that is made to lack them does not do.
fn scribble(guest: &mut Guest, writes: u64) {
    for write in 0..writes {
        let place = u64::from_le_bytes(noise(write + 1, 8).try_into().unwrap());
        guest.write(place % (DISK as u64 / 4096 - 8) * 4096, noise(place, 32 << 10));
    }
    guest.flush();
}

struct Scene {
    mounted: Mounted,
    place: Place,
    source: PathBuf,
    replica: PathBuf,
}

impl Scene {
    fn new(seed: u64, room: u64) -> Option<Self> {
        let mounted = Mounted::tmpfs(room)?;
        let place = Place::new();
        let (source, replica) = (place.source("disk.img", seed, DISK), mounted.path("replica"));
        Some(Self { mounted, place, source, replica })
    }

    fn protect(&self) -> Running {
        Running::protect(&[&self.source], &self.replica, &self.place.socket("nbd"), &MORE)
    }

    fn guest(&self, running: &Running, seed: u64) -> Guest {
        Guest::connect(running.uri(), &self.source, seed)
    }

    /// Writes until nothing more is stored.
    fn overflow(&self, guest: &mut Guest) {
        let mut written = 0;
        while ask("status", &self.replica)["state"] != "no-space" {
            assert!(written < TOO_MUCH, "{written} bytes were written and there is still room");
            guest.write(written % DISK as u64, noise(written + 1, MIB as usize));
            written += MIB;
        }
        scribble(guest, 30);
    }

    fn restored(&self, at: &str) -> blake3::Hash {
        let output = self.place.path("out.img");
        restore(&self.replica, at, &output).done();
        hash(&output)
    }

    /// Ends a protection that has come back, and looks at everything that it kept.
    fn end(&self, mut running: Running, guest: &Guest, known: &[(&str, blake3::Hash)]) {
        running.stop_clean();
        let end = guest.hash();
        assert_eq!((self.restored("latest"), hash(&self.source)), (end, end));
        known.iter().for_each(|(at, expected)| assert_eq!(self.restored(at), *expected, "{at}"));
        assert_eq!(ask("verify", &self.replica)["ok"], true);
    }
}

/// The manifest's replacement fails first, segments are reserved already; then they are full too.
#[test]
fn a_program_that_takes_the_last_byte_stops_the_recording_and_not_the_guest() {
    let Some(scene) = Scene::new(31, RESERVE + 60 * MIB) else { return };
    let running = scene.protect().protecting();
    let mut guest = scene.guest(&running, 31);
    guest.work(50);
    mark(&scene.replica, "before");
    let before = guest.hash();
    scene.mounted.fill();
    let policy = ["policy", scene.replica.to_str().unwrap(), "--rpo", "3s"];
    let refused = cdp(&policy).failed(1, "no-space");
    assert!(refused["message"].as_str().unwrap().contains("no room"), "{refused}");
    // What was reserved is used: this is kept.
    guest.work(20);
    mark(&scene.replica, "full");
    let full = guest.hash();
    scene.overflow(&mut guest);
    assert_eq!((hash(&scene.source), scene.restored("before"), scene.restored("full")), (guest.hash(), before, full));
    let heard = running.events().len();
    scene.mounted.empty();
    running.wait_event_after(heard, "protection again", |event| is_state(event, "protecting"));
    assert_eq!(ask("policy", &scene.replica)["rpo_ms"], 3000, "what could not be stored then is now");
    guest.work(20);
    mark(&scene.replica, "after");
    let known = [("before", before), ("full", full), ("after", guest.hash())];
    guest.work(10);
    scene.end(running, &guest, &known);
}

/// What is not recorded is seen while it is not, and by whoever takes `latest` for the present.
#[test]
fn what_is_not_recorded_now_is_a_gap_and_latest_is_not_the_present() {
    let Some(scene) = Scene::new(45, RESERVE + 60 * MIB) else { return };
    let running = scene.protect().protecting();
    let mut guest = scene.guest(&running, 45);
    guest.work(50);
    let open = |points: &Value| points["gaps"].as_array().unwrap().iter().find(|gap| gap["open"] == true).cloned();
    let output = scene.place.path("out.img");
    let latest = || restore(&scene.replica, "latest", &output);
    assert_eq!(ask("status", &scene.replica)["journal"]["driver"].as_str().map(str::is_empty), Some(false));
    let answer = latest();
    assert!(!answer.stderr.contains("latest moment"), "{answer:?}");
    assert_eq!((open(&ask("points", &scene.replica)), &answer.done()["behind"]), (None, &Value::Null));
    scene.mounted.fill();
    scene.overflow(&mut guest);
    let gap = open(&ask("points", &scene.replica)).expect("the gap that goes on");
    let answer = latest();
    assert!(answer.stderr.contains("since can be restored now (no-space)"), "{answer:?}");
    let restored = answer.done();
    assert_eq!((gap["reason"].as_str(), restored["behind"]["reason"].as_str()), (Some("no-space"), Some("no-space")));
    assert_eq!(restored["at"]["lsn"].as_u64().map(|lsn| lsn + 1), gap["from_lsn"].as_u64(), "{gap} {restored}");
    let since = ["points", scene.replica.to_str().unwrap(), "--until", gap["from_time"].as_str().unwrap()];
    assert!(open(&cdp(&since).done()).is_some());
    let replica = scene.replica.to_str().unwrap();
    for diff in [vec!["--to", "latest"], vec!["--with", output.to_str().unwrap()]] {
        let from = if diff[0] == "--to" { "lsn:10" } else { "latest" };
        let answer = cdp(&[&["diff", replica, "--from", from][..], &diff].concat());
        assert!(answer.status == 0 && answer.stderr.contains("latest moment"), "{answer:?}");
    }
    let another = cdp(&["diff", replica, "--from", "lsn:10", "--to", "lsn:11"]);
    assert!(another.status == 0 && !another.stderr.contains("latest moment"), "{another:?}");
    let mount = Running::mount(&scene.replica, &scene.place.socket("mount"), &["--at", "latest"]);
    let ready = mount.wait_event("ready", |event| event["event"] == "ready");
    assert_eq!(ready["behind"]["open"], true, "{ready}");
    drop(mount);
    let heard = running.events().len();
    scene.mounted.empty();
    running.wait_event_after(heard, "protection again", |event| is_state(event, "protecting"));
    assert_eq!(open(&ask("points", &scene.replica)), None);
    scene.end(running, &guest, &[]);
}

/// Neither a segment nor the reserve fit: it is said at once and in numbers, and begins by itself.
#[test]
fn a_first_start_without_room_says_how_much_is_needed_serves_and_begins_by_itself() {
    let room = 100 * MIB;
    let Some(mut scene) = Scene::new(32, room) else { return };
    let running = scene.protect();
    let mut guest = scene.guest(&running, 32);
    let said = running.wait_event("no-space", |event| is_state(event, "no-space"));
    // The first copy needs some too, beside the reserve.
    let needed = said["lacks"]["needed_bytes"].as_u64().unwrap();
    assert!((SEGMENT + RESERVE..ROOM).contains(&needed), "{said}");
    let free = said["lacks"]["free_bytes"].as_u64().unwrap();
    assert!(free <= room && said["reason"].as_str().unwrap().contains("are needed"), "{said}");
    guest.work(30);
    let status = ask("status", &scene.replica);
    assert_eq!((status["state"].as_str(), status["lacks"]["needed_bytes"].is_u64()), (Some("no-space"), true));
    assert_eq!(status["durable_lsn"], 0);
    assert!(!running.events().iter().any(|event| is_state(event, "protecting")), "{:?}", running.events());
    scene.mounted.leave(ROOM);
    let running = running.protecting();
    assert!(ask("status", &scene.replica)["lacks"].is_null());
    guest.work(30);
    mark(&scene.replica, "begun");
    let known = [("begun", guest.hash())];
    guest.work(10);
    scene.end(running, &guest, &known);
}

/// Where nothing was ever protected nothing can be: not even the manifest fits.
#[test]
fn a_new_replica_without_a_free_byte_is_refused_in_words() {
    let Some(mut scene) = Scene::new(43, ROOM) else { return };
    std::fs::create_dir(&scene.replica).unwrap();
    // Without anything in it, a file system of size nothing would be one without a bound.
    std::fs::write(scene.mounted.path("other"), "other").unwrap();
    scene.mounted.leave(0);
    let listen = scene.place.socket("nbd");
    let end = Running::try_protect(&[&scene.source], &scene.replica, &listen, &MORE).err().expect("it is refused");
    assert_eq!((end.0, end.1["error"]["code"].as_str()), (1, Some("no-space")), "{end:?}");
    let message = end.1["error"]["message"].as_str().unwrap();
    assert!(message.contains("MANIFEST") && message.contains("No space left"), "{message}");
    scene.mounted.leave(ROOM);
    scene.protect().protecting().stop_clean();
}

/// Lock, manifest and activity log find no byte either; the guest's machine boots all the same, and boots again.
#[test]
fn a_replica_is_resumed_where_not_a_byte_is_free() {
    for with_log in [true, false] {
        let Some(mut scene) = Scene::new(33, ROOM) else { return };
        let running = scene.protect().protecting();
        let mut guest = scene.guest(&running, 33);
        guest.work(40);
        mark(&scene.replica, "before");
        let before = guest.hash();
        let mut running = running;
        running.stop_clean();
        if !with_log {
            std::fs::remove_file(scene.replica.join("state/activity.log")).unwrap();
        }
        for life in 0..2 {
            // Its owner's name takes room too.
            std::fs::write(scene.replica.join("LOCK"), "").unwrap();
            scene.mounted.leave(0);
            let running = scene.protect();
            let said = running.wait_event("no-space", |event| is_state(event, "no-space"));
            assert!(said["lacks"]["needed_bytes"].as_u64().unwrap() > 0, "{said}");
            if !with_log {
                let log = |event: &Value| event["reason"].as_str().is_some_and(|why| why.contains("activity log"));
                let said = running.wait_event("the log's loss", log);
                assert!(said["reason"].as_str().unwrap().contains("No space left"), "{said}");
            }
            guest = scene.guest(&running, 34 + life);
            guest.work(40);
            assert_eq!(hash(&scene.source), guest.hash());
            assert_eq!(scene.restored("before"), before);
            // Killed, as by a power cut.
        }
        let running = scene.protect();
        running.wait_event("no-space", |event| is_state(event, "no-space"));
        guest = scene.guest(&running, 36);
        guest.work(20);
        scene.mounted.leave(ROOM);
        let running = running.protecting();
        guest.work(20);
        mark(&scene.replica, "after");
        let known = [("before", before), ("after", guest.hash())];
        scene.end(running, &guest, &known);
    }
}

/// The manifest that opens the timeline, and every one after it until there is room.
#[test]
fn a_manifest_that_finds_no_room_at_the_start_is_written_later() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 44, DISK), place.path("replica"));
    let manifest = [replica.join("MANIFEST.tmp")];
    let inject = Inject { calls: "pwritev", how: "error=ENOSPC", paths: &manifest };
    let listen = place.socket("nbd");
    // The next start finds a stop that was not clean, and opens another timeline.
    drop(Running::protect(&[&source], &replica, &listen, &MORE).protecting());
    let Some(running) = Running::protect_with_failing_calls(&[&source], &replica, &listen, &MORE, &inject) else {
        return;
    };
    running.wait_event("no-space", |event| is_state(event, "no-space"));
    let mut guest = Guest::connect(running.uri(), &source, 44);
    guest.work(20);
    running.let_calls_pass();
    let mut running = running.protecting();
    guest.work(20);
    mark(&replica, "after");
    let after = guest.hash();
    running.stop_clean();
    let output = place.path("out.img");
    for at in ["after", "latest"] {
        restore(&replica, at, &output).done();
        assert_eq!((hash(&output), hash(&source)), (after, after), "{at}");
    }
}

/// Everything is durable in segments that were reserved, and the manifest cannot say that the stop was clean.
#[test]
fn a_stop_without_room_for_the_manifest_says_so_and_loses_nothing() {
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 37, DISK), place.path("replica"));
    let manifest = [replica.join("MANIFEST.tmp")];
    let inject = Inject { calls: "pwritev", how: "error=ENOSPC", paths: &manifest };
    let listen = place.socket("nbd");
    let mut running = Running::protect(&[&source], &replica, &listen, &MORE).protecting();
    let mut guest = Guest::connect(running.uri(), &source, 37);
    guest.work(20);
    mark(&replica, "before");
    let before = guest.hash();
    if !running.fail_calls(&inject) {
        return;
    }
    cdp(&["policy", replica.to_str().unwrap(), "--rpo", "2s"]).failed(1, "no-space");
    guest.work(20);
    let (status, stopped) = running.stop();
    let said = (status, stopped["drained"].as_bool(), stopped["manifest_stored"].as_bool());
    assert_eq!(said, (1, Some(false), Some(false)), "{stopped}");
    assert_eq!(stopped["lsn"], stopped["durable_lsn"], "{stopped}");
    assert!(stopped["lacks"]["needed_bytes"].as_u64().unwrap() > 0, "{stopped}");
    let output = place.path("out.img");
    let restored = |at: &str| {
        restore(&replica, at, &output).done();
        hash(&output)
    };
    assert_eq!((restored("latest"), restored("before")), (guest.hash(), before));
    Running::protect(&[&source], &replica, &listen, &MORE).protecting().stop_clean();
    assert_eq!((restored("latest"), restored("before"), hash(&source)), (guest.hash(), before, guest.hash()));
}

/// A writable mount's writes fail as those of a full disk do, and succeed again; protection is not touched by that.
#[test]
fn a_session_without_room_fails_as_a_full_disk_does_and_goes_on() {
    let Some(mut scene) = Scene::new(38, ROOM) else { return };
    let running = scene.protect().protecting();
    let guest = scene.guest(&running, 38);
    mark(&scene.replica, "base");
    let listen = scene.place.socket("mount");
    let session = ["--at", "base", "--writable", "--session", "lab"];
    let mut mounted = Running::mount(&scene.replica, &listen, &session);
    let mut model = guest.model.clone();
    let mut tenant = client(mounted.uri());
    let mut put = |at: u64, seed: u64| {
        let data = noise(seed, MIB as usize);
        tenant.write(at, &data, false).map(|()| model[at as usize..][..data.len()].copy_from_slice(&data))
    };
    put(0, 1).unwrap();
    scene.mounted.leave(0);
    let mut written = 1;
    let error = loop {
        assert!(written < 200, "two hundred megabytes fit into nothing");
        match put(written % 8 * MIB, written) {
            Ok(()) => written += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("ENOSPC") || error.contains("No space"), "{error}");
    let second = scene.place.socket("second");
    let replica = scene.replica.to_str().unwrap();
    let another = cdp(&["mount", replica, "--listen", &second, "--at", "base", "--writable"]);
    assert!(
        another.status == 1 && another.stderr.contains("room") | another.stderr.contains("No space"),
        "{another:?}"
    );
    scene.mounted.leave(ROOM);
    wait_for("room", || put(written % 8 * MIB, written).is_ok());
    for at in 0..8 {
        put(at * MIB, 1000 + at).unwrap();
    }
    tenant.flush().unwrap();
    drop(tenant);
    let (status, _) = mounted.stop();
    assert_eq!(status, 0);
    let mounted = Running::mount(&scene.replica, &listen, &["--writable", "--session", "lab"]);
    let mut found = vec![0; DISK];
    client(mounted.uri()).read(0, &mut found).unwrap();
    assert!(found == model);
    drop(mounted);
    let known = [("base", guest.hash())];
    scene.end(running, &guest, &known);
}

#[test]
fn a_restore_to_a_full_disk_names_it_and_leaves_nothing_behind() {
    let Some(target) = Mounted::tmpfs(MIB) else { return };
    let place = Place::new();
    let (source, replica) = (place.source("disk.img", 39, DISK), place.path("replica"));
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &MORE).protecting();
    mark(&replica, "now");
    let output = target.path("out.img");
    std::fs::write(&output, "precious").unwrap();
    let refused = restore(&replica, "now", &output).failed(1, "output");
    assert!(refused["message"].as_str().unwrap().contains("No space left"), "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("make room"), "{refused}");
    let left: Vec<_> = std::fs::read_dir(target.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((left.len(), std::fs::read(&output).unwrap().as_slice()), (1, b"precious".as_slice()), "{left:?}");
    running.stop_clean();
}

/// A file system that cannot reserve room: the frames' own writes find none. The very next one does, in the middle of a segment.
fn without_reserving(scene: &mut Scene, seed: u64) -> Option<(Running, Guest, blake3::Hash)> {
    let inject = Inject { calls: "fallocate", how: "error=EOPNOTSUPP", paths: &[] };
    let listen = scene.place.socket("nbd");
    let running = Running::protect_with_failing_calls(&[&scene.source], &scene.replica, &listen, &MORE, &inject);
    let running = running?.protecting();
    let mut guest = scene.guest(&running, seed);
    scribble(&mut guest, 50);
    mark(&scene.replica, "before");
    let before = guest.hash();
    scene.mounted.leave(10 * 4096);
    guest.write(0, noise(5, MIB as usize));
    running.wait_event("no-space", |event| is_state(event, "no-space"));
    Some((running, guest, before))
}

#[test]
fn segments_that_could_not_be_reserved_are_waited_for() {
    let Some(mut scene) = Scene::new(40, ROOM) else { return };
    let Some((running, mut guest, before)) = without_reserving(&mut scene, 40) else { return };
    scene.overflow(&mut guest);
    assert_eq!((hash(&scene.source), scene.restored("before")), (guest.hash(), before));
    let heard = running.events().len();
    scene.mounted.leave(ROOM);
    running.wait_event_after(heard, "protection again", |event| is_state(event, "protecting"));
    scribble(&mut guest, 20);
    mark(&scene.replica, "after");
    let known = [("before", before), ("after", guest.hash())];
    scene.end(running, &guest, &known);
}

#[test]
fn a_kill_while_a_frame_finds_no_room_loses_nothing_that_was_durable() {
    let Some(mut scene) = Scene::new(41, ROOM) else { return };
    let Some((running, guest, before)) = without_reserving(&mut scene, 41) else { return };
    drop(running);
    assert_eq!(scene.restored("before"), before);
    scene.mounted.leave(ROOM);
    let running = scene.protect().protecting();
    scene.end(running, &guest, &[("before", before)]);
}

/// Image and sidecar of the first copy: another program is quicker than the look at what is free.
#[test]
fn a_first_copy_that_finds_no_room_waits_and_is_completed() {
    for name in ["img", "sum"] {
        let place = Place::new();
        let (source, replica) = (place.source("disk.img", 42, DISK), place.path("replica"));
        let file = [replica.join(format!("base/1.{name}"))];
        let inject = Inject { calls: "pwritev", how: "error=ENOSPC:when=2..4", paths: &file };
        let listen = place.socket("nbd");
        let Some(running) = Running::protect_with_failing_calls(&[&source], &replica, &listen, &MORE, &inject) else {
            return;
        };
        running.wait_event("no-space", |event| is_state(event, "no-space"));
        let mut guest = Guest::connect(running.uri(), &source, 42);
        guest.work(20);
        let mut running = running.protecting();
        guest.work(20);
        running.stop_clean();
        let output = place.path("out.img");
        restore(&replica, "latest", &output).done();
        assert_eq!((hash(&output), hash(&source)), (guest.hash(), guest.hash()), "{name}");
    }
}
