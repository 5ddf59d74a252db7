//! `cdp diff`: two moments of a replica, with and without an owner, and a moment against a file.

use crate::support::{Answer, Guest, Place, Running, Scene, cdp, command, flip, mark, noise, restore};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DISK: usize = 2 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every line of a comparison that was made.
fn diff(replica: &Path, more: &[&str]) -> Vec<Value> {
    let output = command(&[&["diff", text(replica)], more].concat()).output().unwrap();
    let _ = Answer::of(&output).done();
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What whole reads of both say.
fn naive(disk: &str, from: &[u8], to: &[u8]) -> Vec<Value> {
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    for (number, (_, new)) in from.chunks(4096).zip(to.chunks(4096)).enumerate().filter(|(_, (old, new))| old != new) {
        let (at, zero) = (number * 4096, new.iter().all(|byte| *byte == 0));
        match runs.last_mut().filter(|(offset, length, kind)| *kind == zero && offset + length == at) {
            Some((_, length, _)) => *length += new.len(),
            None => runs.push((at, new.len(), zero)),
        }
    }
    let line = |(offset, length, zero): &(usize, usize, bool)| json!({"disk": disk, "offset": offset, "length": length, "kind": if *zero { "zero" } else { "data" }});
    runs.iter().map(line).collect()
}

#[test]
fn two_moments_while_protection_goes_on_and_without_an_owner() {
    let mut scene = Scene::begin(301, DISK);
    let one = scene.marked("one");
    let two = scene.marked("two");
    scene.running.stop_clean();
    // A second life, on another timeline.
    scene.begin_again(99);
    let three = scene.marked("three");
    let pairs = [("one", &one), ("two", &two), ("three", &three)];
    let check = |case: &str| {
        for (from, old) in &pairs {
            for (to, new) in &pairs {
                let lines = diff(&scene.replica, &["--from", from, "--to", to, "--disk", "disk"]);
                assert_eq!(lines, naive("disk", old, new), "{case}: {from} to {to}");
                assert_eq!(lines.is_empty(), from == to, "{case}");
            }
        }
    };
    // Somebody writes all the while.
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            let mut guest = Guest::connect(scene.running.uri(), &scene.source, 7);
            (0..20).for_each(|_| guest.work(20));
        });
        check("owned");
        writer.join().unwrap();
    });
    scene.running.stop_clean();
    check("nobody owns it");
    // What is left of the journal behind the mark is a difference too.
    let latest = std::fs::read(&scene.source).unwrap();
    assert_eq!(diff(&scene.replica, &["--from", "three", "--to", "latest"]), naive("disk", &three, &latest));
}

#[test]
fn a_restored_file_is_the_same_and_a_changed_byte_is_found() {
    let mut scene = Scene::begin(302, DISK);
    let one = scene.marked("one");
    let two = scene.marked("two");
    let file = scene.place.path("out.img");
    restore(&scene.replica, "two", &file).done();
    let with = |from: &str| diff(&scene.replica, &["--from", from, "--with", text(&file)]);
    assert_eq!(with("two"), [] as [Value; 0]);
    assert_eq!(with("one"), naive("disk", &one, &two));
    let digests = |more: &[&str]| {
        let lines = diff(&scene.replica, &[&["--from", "two", "--digest"], more].concat());
        lines.into_iter().map(|line| (line["of"].clone(), line["digest"].clone())).collect::<Vec<_>>()
    };
    let expected: Value = digest_by_the_text(&two).into();
    assert_eq!(digests(&[]), [("from".into(), expected.clone())]);
    assert_eq!(
        digests(&["--with", text(&file)]),
        [("from".into(), expected.clone()), ("with".into(), expected.clone())]
    );
    let other: Value = digest_by_the_text(&one).into();
    assert_eq!(digests(&["--to", "one"]), [("from".into(), expected.clone()), ("to".into(), other)]);
    flip(&file, 1_000_001, 3);
    assert_eq!(
        with("two"),
        [json!({"disk": "disk", "offset": 1_000_001 / 4096 * 4096, "length": 4096, "kind": "data"})]
    );
    assert_ne!(digests(&["--with", text(&file)])[1].1, expected);
    flip(&file, 1_000_001, 3);
    // A file that is longer by zeros has no extent that differs, and is not the same.
    let longer = DISK as u64 + 1000;
    std::fs::File::options().write(true).open(&file).unwrap().set_len(longer).unwrap();
    assert_eq!(with("two"), [json!({"disk": "disk", "from_size": DISK, "to_size": longer})]);
    scene.running.stop_clean();
    assert_eq!(with("two").len(), 1);
}

/// As `cdp-core` describes it, from nothing but BLAKE3.
fn digest_by_the_text(bytes: &[u8]) -> String {
    let mut table = b"CDP-DISK-DIGEST\x01".to_vec();
    table.extend((bytes.len() as u64).to_le_bytes());
    table.extend((1u64 << 20).to_le_bytes());
    bytes.chunks(1 << 20).for_each(|leaf| table.extend(blake3::hash(leaf).as_bytes()));
    blake3::hash(&table).to_hex().to_string()
}

#[test]
fn people_get_a_table_and_a_sum_and_may_have_enough() {
    let mut scene = Scene::begin(303, DISK);
    scene.guest.work(5);
    mark(&scene.replica, "one");
    scene.guest.write(8192, noise(9, 4096));
    mark(&scene.replica, "two");
    let people = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdp"));
        command.args(["diff", text(&scene.replica), "--from", "one"]).args(more);
        command
    };
    let output = people(&["--to", "two"]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{shown}");
    for part in ["from  point ", "\nto    point ", "OFFSET", "            8192             4096  data  disk\n"] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    assert!(shown.contains("\n1 extent with 4.00 KiB differ"), "{shown}");
    let same = String::from_utf8(people(&["--to", "one", "--digest"]).output().unwrap().stdout).unwrap();
    assert!(same.contains("\nthe same; read in "), "{same}");
    // Whoever reads goes away before the first line.
    let mut unheard = people(&["--to", "two"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(unheard.stdout.take());
    assert!(unheard.wait().unwrap().success());
    scene.running.stop_clean();
}

#[test]
fn what_cannot_be_compared_has_its_status() {
    let place = Place::new();
    let sources = [place.source("one.img", 1, 1 << 20), place.source("two.img", 2, 1 << 20)];
    let replica = place.path("replica");
    let mut running = Running::protect(&[&sources[0], &sources[1]], &replica, &place.socket("nbd"), &[]).protecting();
    mark(&replica, "both");
    let file = text(&sources[0]);
    let pipe = place.path("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let nowhere = place.path("none.img");
    let ask = |more: &[&str]| cdp(&[&["diff", text(&replica)], more].concat());
    let all = || {
        ask(&["--from", "both"]).failed(2, "usage");
        ask(&["--to", "both"]).failed(2, "usage");
        ask(&["--from", "both", "--to", "both", "--with", file]).failed(2, "usage");
        ask(&["--from", "both", "--to", "both", "--disk", "three"]).failed(2, "no-disk");
        ask(&["--from", "both", "--digest", "--disk", "three"]).failed(2, "no-disk");
        for [from, to] in [["lsn:99999999999", "both"], ["both", "2191-02-03T04:05:06Z"], ["no such label", "both"]] {
            let error = ask(&["--from", from, "--to", to]).failed(3, "not-restorable");
            assert!(!error["nearest"].as_array().unwrap().is_empty(), "{error}");
        }
        let nearest = ["--from", "both", "--to", "2191-02-03T04:05:06Z", "--nearest", "before"];
        assert_eq!(ask(&nearest).done(), Value::Null);
        ask(&["--from", "both", "--with", file]).failed(4, "several-disks");
        assert_eq!(ask(&["--from", "both", "--with", file, "--disk", "one"]).done(), Value::Null);
        // The one file against the other disk.
        assert_eq!(ask(&["--from", "both", "--with", file, "--disk", "two"]).done()["disk"], "two");
        for path in [&nowhere, &pipe, &replica] {
            let error = ask(&["--from", "both", "--with", text(path)]).failed(1, "with");
            assert!(error["message"].as_str().unwrap().contains(text(path)), "{error}");
        }
    };
    all();
    running.stop_clean();
    all();
    assert_eq!(
        cdp(&["diff", text(&nowhere), "--from", "both", "--to", "both"]).failed(1, "no-replica")["nearest"],
        json!([])
    );
}

#[test]
fn damage_is_status_5_wherever_it_would_have_been_read() {
    let mut scene = Scene::begin(304, DISK);
    scene.marked("one");
    let data = noise(77, 16 << 10);
    scene.guest.write(64 << 10, data.clone());
    scene.guest.flush();
    mark(&scene.replica, "two");
    let segments = std::fs::read_dir(scene.replica.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let place = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(512).position(|window| *window == data[..512])?;
        Some((path, at as u64))
    };
    let (segment, at) = segments.into_iter().find_map(place).expect("noise is stored as it is");
    let ask = |from: &str, to: &str| cdp(&["diff", text(&scene.replica), "--from", from, "--to", to]);
    let digest = |at: &str| cdp(&["diff", text(&scene.replica), "--from", at, "--digest"]);
    let base = std::fs::read_dir(scene.replica.join("base")).unwrap().map(|entry| entry.unwrap().path());
    let sums = base.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "sum")).unwrap();
    let all = || {
        let right = ask("one", "two").done();
        flip(&segment, at + 100, 5);
        for (from, to) in [("one", "two"), ("two", "one")] {
            let error = ask(from, to).failed(5, "damaged");
            assert!(error["hint"].as_str().unwrap().contains("cdp verify"), "{error}");
        }
        digest("two").failed(5, "damaged");
        // What is not read is not in the way: the same record is the same on both sides.
        assert_eq!(ask("two", "two").done(), Value::Null);
        flip(&segment, at + 100, 5);
        flip(&sums, 20, 1);
        digest("one").failed(5, "damaged");
        flip(&sums, 20, 1);
        assert_eq!(ask("one", "two").done(), right);
    };
    all();
    scene.running.stop_clean();
    all();
}
