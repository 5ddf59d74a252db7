//! Replicas that are sealed at rest: nobody reads them without the key, and whoever has it has everything.

use crate::support::{Answer, Guest, Place, Running, Scene, cdp, client, command, hash, restore, wait_for};
use cdp_core::journal::read_manifest;
use cdp_core::media::Disk;
use std::path::{Path, PathBuf};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A key file: as bytes, or as digits with a line's end.
fn key(place: &Place, name: &str, fill: u8, digits: bool) -> PathBuf {
    let path = place.path(name);
    let digits = digits.then(|| format!("{}\n", format!("{fill:02x}").repeat(32)));
    std::fs::write(&path, digits.map_or_else(|| vec![fill; 32], String::into_bytes)).unwrap();
    path
}

/// Every file of a directory and those inside it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(of).filter(|path| path.is_file()).collect()
}

fn restore_with(replica: &Path, key: &Path, output: &Path) -> Answer {
    let more = ["--at", "latest", "--output", text(output), "--force", "--key-file", text(key)];
    cdp(&[&["restore", text(replica)], &more[..]].concat())
}

#[test]
fn a_sealed_replica_is_read_with_its_key_and_with_no_other() {
    let place = Place::new();
    let (first, second) = (key(&place, "first.key", 0x11, false), key(&place, "second.key", 0x22, true));
    let replica = place.path("replica");
    let secret = b"this stands in the disk and nowhere in its replica";
    let mut scene = Scene::begin_with(place, replica.clone(), &["--key-file", text(&first)], 5, 4 << 20);
    let out = scene.place.path("out.img");
    let content = scene.marked("secret moment");
    // Who asks the owner needs no key; who reads the files does.
    assert_eq!(cdp(&["status", text(&replica)]).done()["sealed_at_rest"], true);
    restore(&replica, "latest", &out).failed(4, "key-missing");
    let hint = restore(&replica, "latest", &out).failed(4, "key-missing")["hint"].to_string();
    assert!(hint.contains("--key-file") && hint.contains("CDP_KEY"), "{hint}");
    // Also where nothing would be opened yet, or in the end.
    let unopened: [&[&str]; 3] = [
        &["mount", text(&replica), "--at", "latest"],
        &["diff", text(&replica), "--from", "latest", "--to", "latest"],
        &["mount", text(&replica), "--at", "latest", "--writable"],
    ];
    unopened.iter().for_each(|reads| drop(cdp(reads).failed(4, "key-missing")));
    let session = ["mount", text(&replica), "--at", "latest", "--writable", "--session", "never"];
    cdp(&session).failed(4, "key-missing");
    cdp(&[&session[..], &["--key-file", text(&second)]].concat()).failed(4, "key-wrong");
    assert_eq!(cdp(&["status", text(&replica)]).done()["sessions"].as_array().map(Vec::len), Some(0), "none was made");
    // Whom the owner answers needs none.
    let label = "label:secret moment";
    for asks in [
        &["points"][..],
        &["pin", "--at", label],
        &["unpin", "--at", label],
        &["policy", "--rpo", "3s"],
        &["prune", "--dry-run"],
    ] {
        cdp(&[&[asks[0], text(&replica)], &asks[1..]].concat()).done();
    }
    restore_with(&replica, &second, &out).failed(4, "key-wrong");
    restore_with(&replica, &first, &out).done();
    assert_eq!(hash(&out), blake3::hash(&content));
    std::fs::remove_file(&out).unwrap();
    let mut by_variable = command(&["restore", text(&replica), "--at", "label:secret moment", "--output", text(&out)]);
    Answer::of(&by_variable.env("CDP_KEY", "11".repeat(32)).output().unwrap()).done();
    assert_eq!(hash(&out), blake3::hash(&content));
    // Checksums are looked at without a key, and everything with it.
    let shut = cdp(&["verify", text(&replica)]).done();
    assert_eq!((shut["ok"].as_bool(), shut["unopened"].as_bool()), (Some(true), Some(true)), "{shut}");
    let opened = cdp(&["verify", text(&replica), "--key-file", text(&first)]).done();
    assert_eq!((opened["ok"].as_bool(), opened["unopened"].as_bool()), (Some(true), None), "{opened}");
    // A session is sealed as its replica is.
    let session = ["--session", "try", "--at", "latest", "--writable", "--key-file"];
    let socket = scene.place.socket("session");
    let mut mounted = Running::mount(&replica, &socket, &[&session[..], &[text(&first)]].concat());
    let mut guest = client(mounted.uri());
    guest.write(4096, &secret.repeat(82)[..4096], false).unwrap();
    guest.flush().unwrap();
    drop(guest);
    assert_eq!(mounted.stop().0, 0);
    scene.running.stop_clean();
    let (plain, window) = (content.chunks(512).find(|sector| sector.iter().any(|byte| *byte != 0)).unwrap(), 64);
    for file in files(&replica) {
        let bytes = std::fs::read(&file).unwrap();
        for said in [&plain[..window], &secret[..], b"secret moment"] {
            assert!(bytes.windows(said.len()).all(|window| window != said), "{} is not sealed", file.display());
        }
    }
    for asks in [&["points"][..], &["policy"], &["unpin", "--at", label], &["compact"], &["mount", "--drop", "try"]] {
        cdp(&[&[asks[0], text(&replica)], &asks[1..]].concat()).failed(4, "key-missing");
    }
    let protect = |more: &[&str]| Running::try_protect(&[&scene.source], &replica, &scene.place.socket("nbd"), more);
    let refused = |more: &[&str]| {
        let (status, last) = protect(more).err().unwrap();
        (status, last["error"]["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused(&[]), (4, "key-missing".to_owned()));
    assert_eq!(refused(&["--key-file", text(&second)]), (4, "key-wrong".to_owned()));
    // Another wrapping key: the old one opens nothing any more, in the session neither.
    let rotate =
        |old: &Path, new: &Path| cdp(&["policy", text(&replica), "--key-file", text(old), "--new-key-file", text(new)]);
    rotate(&second, &key(&scene.place, "third.key", 0x33, false)).failed(4, "key-wrong");
    rotate(&first, &first).failed(2, "same-key");
    restore_with(&replica, &first, &out).done();
    assert_eq!(rotate(&first, &second).done()["rotated"], true);
    assert_eq!(rotate(&first, &second).done()["rotated"], false, "nothing was left to rotate");
    restore_with(&replica, &first, &out).failed(4, "key-wrong");
    restore_with(&replica, &second, &out).done();
    assert_eq!(hash(&out), blake3::hash(&content));
    let again = ["--session", "try", "--writable", "--key-file", text(&second)];
    assert_eq!(Running::mount(&replica, &socket, &again).stop().0, 0);
    // It goes on, is killed in the midst of it, and goes on.
    drop(protect(&["--key-file", text(&second)]).unwrap().protecting());
    protect(&["--key-file", text(&second)]).unwrap().protecting().stop_clean();
    restore_with(&replica, &second, &out).done();
    assert_eq!(hash(&out), hash(&scene.source));
    let verified = cdp(&["verify", text(&replica), "--key-file", text(&second)]).done();
    assert_eq!(verified["ok"].as_bool(), Some(true), "{verified}");
}

/// The first LSN from which on every write can be restored, as the owner says.
fn oldest(replica: &Path, more: &[&str]) -> u64 {
    let points = cdp(&[&["points", text(replica), "--limit", "1"], more].concat()).done();
    let every = points["ranges"].as_array().unwrap().iter().filter(|range| range["kind"] == "every");
    every.map(|range| range["from_lsn"].as_u64().unwrap()).min().unwrap()
}

/// Merges, kept moments and an owner for a moment: all of it is sealed, and the key opens all of it.
#[test]
fn retention_of_a_sealed_replica_leaves_nothing_plain_and_loses_nothing() {
    let place = Place::new();
    let (first, second) = (key(&place, "first.key", 0x11, false), key(&place, "second.key", 0x22, false));
    let replica = place.path("replica");
    let more = ["--key-file", text(&first), "--rpo", "200ms", "--segment-size", "1MiB", "--window", "16s"];
    let mut scene = Scene::begin_with(place, replica.clone(), &more, 7, 2 << 20);
    let out = scene.place.path("out.img");
    let kept = scene.marked("kept");
    cdp(&["pin", text(&replica), "--at", "label:kept"]).done();
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 3 {
        scene.guest.work(10);
    }
    scene.running.stop_clean();
    let restored = |key: &Path, at: &str| {
        let more = ["--at", at, "--output", text(&out), "--force", "--key-file", text(key)];
        cdp(&[&["restore", text(&replica)], &more[..]].concat()).done();
        hash(&out)
    };
    let sector = kept.chunks(512).rfind(|sector| sector.iter().any(|byte| *byte != 0)).unwrap();
    let source = scene.source.clone();
    let check = |key: &Path, case: &str| {
        assert_eq!(restored(key, "label:kept"), blake3::hash(&kept), "{case}");
        assert_eq!(restored(key, "latest"), hash(&source), "{case}");
        for more in [&[][..], &["--key-file", text(key)]] {
            let verified = cdp(&[&["verify", text(&replica)], more].concat()).done();
            assert_eq!((&verified["ok"], verified["unopened"] == true), (&true.into(), more.is_empty()), "{case}");
        }
        for file in files(&replica) {
            let bytes = std::fs::read(&file).unwrap();
            assert!(bytes.windows(64).all(|window| window != &sector[..64]), "{case}: {}", file.display());
        }
    };
    check(&first, "stopped");
    // A process that owns the directory for a moment merges, with a key of its own.
    let prune = |key: &Path| cdp(&["prune", text(&replica), "--key-file", text(key)]).done();
    let since = oldest(&replica, &["--key-file", text(&first)]);
    cdp(&["policy", text(&replica), "--key-file", text(&first), "--window", "1s"]).done();
    prune(&first);
    let merged = oldest(&replica, &["--key-file", text(&first)]);
    let is_kept = files(&replica).iter().any(|file| file.starts_with(replica.join("kept")));
    assert!(merged > since && is_kept, "{since} {merged} {is_kept}");
    check(&first, "pruned");
    // And one that protects.
    let socket = scene.place.socket("nbd");
    let more = ["--key-file", text(&first), "--window", "1s", "--segment-size", "1MiB"];
    scene.running = Running::protect(&[&source], &replica, &socket, &more).protecting();
    scene.guest = Guest::connect(scene.running.uri(), &source, 8);
    wait_for("the window to move on", || {
        scene.guest.work(10);
        oldest(&replica, &[]) > merged + 100
    });
    assert_eq!(restored(&first, "label:kept"), blake3::hash(&kept), "under protection");
    scene.running.stop_clean();
    check(&first, "in another life");
    // The wrapping key is rotated for kept moments too.
    cdp(&["policy", text(&replica), "--key-file", text(&first), "--new-key-file", text(&second)]).done();
    check(&second, "rotated");
    cdp(&["unpin", text(&replica), "--at", "label:kept", "--key-file", text(&second)]).done();
    prune(&second);
    assert_eq!(restored(&second, "latest"), hash(&source));
    assert_eq!(std::fs::read_dir(replica.join("kept")).unwrap().count(), 0);
}

#[test]
fn keys_that_are_none_and_replicas_that_have_none_are_refused_by_name() {
    let place = Place::new();
    let good = key(&place, "good.key", 0x11, false);
    let short = place.path("short.key");
    std::fs::write(&short, "1234").unwrap();
    let source = place.source("disk.img", 1, 1 << 20);
    let replica = place.path("replica");
    cdp(&["status", text(&replica), "--key-file", text(&short)]).failed(2, "key-malformed");
    cdp(&["status", text(&replica), "--key-file", text(&place.path("nowhere"))]).failed(1, "key-file");
    let mut by_variable = command(&["status", text(&replica)]);
    Answer::of(&by_variable.env("CDP_KEY", "x".repeat(32)).output().unwrap()).failed(2, "key-malformed");
    Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting().stop_clean();
    let more = ["--key-file", text(&good)];
    let (status, last) = Running::try_protect(&[&source], &replica, &place.socket("nbd"), &more).err().unwrap();
    assert_eq!((status, last["error"]["code"].as_str()), (4, Some("not-sealed")), "{last}");
    // A wrap that is damaged behind a right checksum is told from a key that is another.
    let sealed = place.path("sealed");
    Running::protect(&[&source], &sealed, &place.socket("nbd"), &more).protecting().stop_clean();
    let storage = Disk::open(&sealed).unwrap();
    let mut manifest = read_manifest(&storage).unwrap();
    manifest.keys.iter_mut().for_each(|key| key.sealed[3] ^= 1);
    std::fs::write(sealed.join("MANIFEST"), manifest.encode()).unwrap();
    restore_with(&sealed, &good, &place.path("out.img")).failed(5, "key-damaged");
    // Where nothing is sealed a key does no harm.
    restore_with(&replica, &good, &place.path("out.img")).done();
    assert_eq!(hash(&place.path("out.img")), hash(&source));
    let rotate = ["policy", text(&replica), "--key-file", text(&good), "--new-key-file", text(&good)];
    cdp(&rotate).failed(4, "not-sealed");
}
