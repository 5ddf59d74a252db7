//! A segment that was cut or removed, and a tail that was damaged after a kill.

use super::built::{Built, SEGMENT};
use crate::support::{Guest, cdp, flip, mark, times, wait_for};
use std::fs::File;
use std::path::PathBuf;

#[test]
fn a_truncated_segment_is_named_by_every_command() {
    let built = Built::new();
    let kept = built.keep();
    for file in built.files("journal", ".seg") {
        let length = std::fs::metadata(&file).unwrap().len();
        for left in [0, 511, 4096, length / 2, length - 512, length - 1] {
            let case = format!("{} cut to {left}", file.display());
            File::options().write(true).open(&file).unwrap().set_len(left).unwrap();
            built.read_everything(&case);
            built.verify_finds(&case, &file, None);
            assert!(!built.restart(&case), "{case}");
            built.put_back(&kept);
        }
    }
    assert!(built.restart("mended"));
}

#[test]
fn a_removed_segment_is_named_by_every_command() {
    let built = Built::new();
    for file in built.files("journal", ".seg") {
        let case = format!("{} removed", file.display());
        let aside = file.with_extension("aside");
        std::fs::rename(&file, &aside).unwrap();
        built.read_everything(&case);
        built.verify_finds(&case, &file, None);
        assert!(!built.restart(&case), "{case}");
        std::fs::rename(&aside, &file).unwrap();
    }
    assert!(built.read_everything("mended"));
}

#[test]
fn a_removed_base_is_named_by_every_command() {
    let built = Built::new();
    for file in [built.files("base", ".sum"), built.files("base", ".img")].concat() {
        let case = format!("{} removed", file.display());
        let aside = file.with_extension("aside");
        std::fs::rename(&file, &aside).unwrap();
        built.read_everything(&case);
        built.verify_finds(&case, &file, None);
        std::fs::rename(&aside, &file).unwrap();
    }
    assert!(built.read_everything("mended"));
}

/// What looks like a torn tail may have been acknowledged: the activity log remembers how far it was, and forgets no extent
/// before that.
#[test]
fn a_tail_that_is_damaged_after_a_kill_is_not_taken_for_torn_where_that_would_diverge() {
    let built = Built::new();
    // Time records, which tell what is durable too, come at their slowest.
    let running = built.protect_with(&["--rpo", "10m"]).protecting();
    let mut guest = Guest::connect(running.uri(), built.source(), 77);
    guest.work(40);
    mark(&built.replica, "durable");
    guest.work(5);
    let log = built.replica.join("state/activity.log");
    let inspected = || cdp(&["inspect".as_ref(), log.as_os_str()]).done().to_string();
    wait_for("a clean activity log", || inspected().contains(" 0 bytes are marked"));
    drop((guest, running));
    let kept = built.keep();
    let end_of = |file: PathBuf| (std::fs::read(&file).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0), file);
    let is_active = |file: &PathBuf| std::fs::metadata(file).unwrap().len() == SEGMENT;
    let active = built.files("journal", ".seg").into_iter().filter(is_active);
    let (end, file) = active.map(end_of).max().unwrap();
    assert!(end > 4096, "{end}");
    let many = times("CDP_TEST_TAILS", 8);
    for number in 0..many {
        // Densest at the end, where the last frames are.
        let at = end as u64 - (number * number * (end as u64 - 4096) / (many * many));
        flip(&file, at, 3);
        built.restart(&format!("byte {at} of {end}"));
        built.put_back(&kept);
    }
    assert!(built.restart("whole"));
}

/// A clean stop says where history ends; whoever goes on from there takes that back.
#[test]
fn what_was_written_after_a_clean_stop_is_lost_with_the_head_of_its_segment() {
    let built = Built::new();
    let running = built.protect_with(&[]).protecting();
    let mut guest = Guest::connect(running.uri(), built.source(), 78);
    guest.work(10);
    mark(&built.replica, "after the stop");
    drop((guest, running));
    let length = |file: &PathBuf| std::fs::metadata(file).unwrap().len();
    let heads: Vec<_> = built.files("journal", ".seg").into_iter().filter(|file| length(file) == SEGMENT).collect();
    heads.iter().for_each(|file| flip(file, 300, 3));
    let verified = built.verify();
    assert_eq!(verified.status, 5, "{verified:?}");
    let lost: Vec<_> =
        verified.json["damage"].as_array().unwrap().iter().flat_map(|at| at["lost"].as_array()).collect();
    assert!(lost.iter().any(|ranges| !ranges.is_empty()), "{verified:?}");
    for disk in verified.json["disks"].as_array().unwrap() {
        assert!(!disk["lost"].as_array().unwrap().is_empty(), "{verified:?}");
    }
}
