//! A segment that was cut or removed, and a tail that was damaged after a kill.

use super::built::Built;
use crate::support::{Guest, flip, mark, times};
use std::fs::File;

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
    let running = built.protect().protecting();
    let mut guest = Guest::connect(running.uri(), built.source(), 77);
    guest.work(40);
    mark(&built.replica, "durable");
    let log = built.replica.join("state/activity.log");
    let clean = || {
        crate::support::cdp(&["inspect".as_ref(), log.as_os_str()]).done().to_string().contains(" 0 bytes are marked")
    };
    crate::support::wait_for("a clean activity log", clean);
    drop((guest, running));
    let kept = built.keep();
    let active =
        built.files("journal", ".seg").into_iter().filter(|file| std::fs::metadata(file).unwrap().len() > 64 << 20);
    let bytes = |file: &std::path::PathBuf| {
        let end = std::fs::read(file).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        (file.clone(), end)
    };
    let (file, end) = active.map(|file| bytes(&file)).max_by_key(|(_, end)| *end).unwrap();
    assert!(end > 4096, "{end}");
    for number in 0..times("CDP_TEST_TAILS", 8) {
        let at = end - number * number * end / 100;
        flip(&file, at, 3);
        built.restart(&format!("byte {at} of {end}"));
        built.put_back(&kept);
    }
    assert!(built.restart("whole"));
}
