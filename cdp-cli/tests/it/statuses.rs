//! Exit statuses and error documents, which scripts rely on.

use crate::support::{Answer, Place, Running, Scene, cdp, hash, mark, restore};
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn protect(source: &Path, replica: &Path, listen: &str) -> Answer {
    cdp(&["protect", text(source), "--replica", text(replica), "--listen", listen])
}

#[test]
fn wrong_usage_is_status_2_and_a_document() {
    let place = Place::new();
    let (a, b) = (place.source("one.img", 1, 4096), place.source("two.img", 2, 4096));
    let same_name = [place.source("x.img", 1, 4096), place.path("x.raw")];
    std::fs::copy(&same_name[0], &same_name[1]).unwrap();
    let cases: [&[&str]; 9] = [
        &[],
        &["no-such-command"],
        &["protect", text(&a)],
        &["protect", text(&a), "--replica", "x", "--rpo", "soon"],
        &["protect", text(&a), text(&b), "--replica", "x", "--listen", "http://here"],
        &["protect", text(&same_name[0]), text(&same_name[1]), "--replica", "x"],
        &["restore", "x", "--at", "-5x", "--output", "y"],
        &["restore", "x", "--at", "lsn:none", "--output", "y"],
        &["mark", "x", "--label", "a:b"],
    ];
    for arguments in cases {
        cdp(arguments).failed(2, "usage");
    }
    let protect = ["protect", text(&a), "--replica", "x", "--trust-source", "--full-check"];
    cdp(&protect).failed(2, "usage");
    for answer in ["--help", "--version"] {
        let mut command = crate::support::command(&[answer]);
        assert!(command.output().unwrap().status.success());
    }
}

#[test]
fn what_is_not_there_is_status_1_and_named() {
    let place = Place::new();
    let nowhere = place.path("nowhere");
    for command in ["status", "points", "verify"] {
        let answer = cdp(&[command, text(&nowhere)]);
        assert_eq!(answer.status, 1, "{answer:?}");
        assert!(answer.json["error"]["message"].as_str().unwrap().contains("nowhere"), "{answer:?}");
    }
    std::fs::create_dir(&nowhere).unwrap();
    for command in ["status", "points", "verify"] {
        let answer = cdp(&[command, text(&nowhere)]);
        assert_eq!(answer.status, 1, "{answer:?}");
    }
    assert!(!nowhere.join("MANIFEST").exists(), "a look makes nothing");
    let answer = protect(&place.path("no.img"), &place.path("replica"), &place.socket("nbd"));
    assert!(answer.status == 1 && answer.stderr.contains("no.img"), "{answer:?}");
    let odd = place.path("odd.img");
    std::fs::write(&odd, [1; 1000]).unwrap();
    let answer = protect(&odd, &place.path("replica"), &place.socket("nbd"));
    assert!(answer.status == 1 && answer.stderr.contains("1000 bytes"), "{answer:?}");
    let qcow2 = place.path("disk.qcow2");
    std::fs::write(&qcow2, [b"QFI\xfb".as_slice(), &[0; 4092]].concat()).unwrap();
    let answer = protect(&qcow2, &place.path("replica"), &place.socket("nbd"));
    assert!(answer.status == 1 && answer.stderr.contains("qcow2"), "{answer:?}");
}

#[test]
fn a_moment_that_is_not_restorable_is_status_3_with_its_neighbours() {
    let Scene { mut guest, running, source, replica, place } = Scene::begin(9, 1 << 20);
    guest.work(20);
    let marked = mark(&replica, "one");
    guest.work(20);
    // A kill: what lies between the last durable record and the end of the resync is a gap.
    drop((guest, running));
    let mut running = Running::protect(&[&source], &replica, &place.socket("nbd"), &[]).protecting();
    mark(&replica, "two");
    let output = place.path("out.img");
    let gaps = cdp(&["points", text(&replica)]).done()["gaps"].clone();
    let gap =
        gaps.as_array().unwrap().iter().find(|gap| gap["cause"] == "unclean-stop").unwrap_or_else(|| panic!("{gaps}"));
    let inside = format!("lsn:{}", gap["from_lsn"]);
    for at in [&inside, "lsn:1", "lsn:99999999999", "2001-02-03T04:05:06Z", "2191-02-03T04:05:06Z", "-3d"] {
        let error = restore(&replica, at, &output).failed(3, "not-restorable");
        let nearest = error["nearest"].as_array().unwrap();
        assert!(
            !nearest.is_empty() && nearest.iter().all(|at| at["lsn"].is_u64() && at["time"].is_string()),
            "{error}"
        );
        assert!(!output.exists());
        // What is named can be restored.
        for at in nearest {
            let named = format!("lsn:{}-{}", at["timeline"].as_str().unwrap(), at["lsn"]);
            restore(&replica, &named, &output).done();
        }
        std::fs::remove_file(&output).unwrap();
    }
    let nearest = ["--nearest", "before"];
    let arguments = ["restore", text(&replica), "--at", &inside, "--output", text(&output)];
    let taken = cdp(&[&arguments[..], &nearest].concat()).done();
    assert!(taken["at"]["lsn"].as_u64() >= marked["at"]["lsn"].as_u64(), "{taken}");
    for at in ["no such label", "point:0011223344556677-5", "lsn:0011223344556677-5"] {
        let answer = restore(&replica, at, &place.path("no.img"));
        assert_eq!(answer.status, 3, "{at}: {answer:?}");
    }
    running.stop_clean();
}

#[test]
fn what_state_or_ownership_forbid_is_status_4() {
    let mut scene = Scene::begin(9, 1 << 20);
    let Scene { place, source, replica, .. } = &scene;
    let listen = place.socket("other");
    protect(source, replica, &listen).failed(4, "owned");
    // The same source under another replica, however it is called.
    let alias = place.path("alias.img");
    std::fs::hard_link(source, &alias).unwrap();
    for source in [source, &alias] {
        let answer = protect(source, &place.path("second"), &listen);
        assert_eq!(answer.status, 4, "{answer:?}");
    }
    mark(replica, "taken");
    cdp(&["mark", text(replica), "--label", "taken"]).failed(4, "label-taken");
    cdp(&["mark", text(replica), "--label", "frozen", "--app-consistent"]).failed(4, "no-hook");
    let output = place.path("out.img");
    std::fs::write(&output, "precious").unwrap();
    let arguments = ["restore", text(replica), "--at", "taken", "--output", text(&output)];
    cdp(&arguments).failed(4, "output-exists");
    assert_eq!(std::fs::read(&output).unwrap(), b"precious");
    cdp(&[&arguments[..], &["--force"]].concat()).done();
    assert_eq!(hash(&output), hash(source));
    scene.running.stop_clean();
    let Scene { place, source, replica, .. } = &scene;
    cdp(&["mark", text(replica), "--label", "nobody"]).failed(4, "not-protecting");
    protect(&place.source("other.img", 8, 1 << 20), replica, &listen).failed(4, "other-disks");
    let named = ["protect", text(source), "--replica", text(replica), "--name", "another", "--listen", &listen];
    cdp(&named).failed(4, "other-name");
}

#[test]
fn several_disks_want_a_directory_or_a_choice() {
    let place = Place::new();
    let (one, two) = (place.source("one.img", 1, 1 << 20), place.source("two.img", 2, 2 << 20));
    let replica = place.path("replica");
    let mut running = Running::protect(&[&one, &two], &replica, &place.socket("nbd"), &[]).protecting();
    mark(&replica, "both");
    let output = place.path("out.img");
    restore(&replica, "both", &output).failed(4, "several-disks");
    assert!(!output.exists());
    let chosen = ["restore", text(&replica), "--at", "both", "--disk", "two", "--output", text(&output)];
    let restored = cdp(&chosen).done();
    assert_eq!((restored["outputs"][0]["disk"].as_str(), hash(&output)), (Some("two"), hash(&two)));
    let directory = place.path("out");
    std::fs::create_dir(&directory).unwrap();
    restore(&replica, "both", &directory).done();
    assert_eq!(hash(&directory.join("one.img")), hash(&one));
    assert_eq!(hash(&directory.join("two.img")), hash(&two));
    let nowhere = place.path("none.img");
    let nobody = ["restore", text(&replica), "--at", "both", "--disk", "three", "--output", text(&nowhere)];
    cdp(&nobody).failed(2, "no-disk");
    running.stop_clean();
}
