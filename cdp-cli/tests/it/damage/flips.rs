//! One bit of one file is not what was stored.

use super::built::Built;
use crate::support::times;
use std::path::Path;

/// How many places of each file are tried.
pub(super) fn flips() -> u64 {
    times("CDP_TEST_FLIPS", 12)
}

/// Places all over a file: its first and last bytes, and others by a stride that meets every alignment.
pub(super) fn places(file: &Path, many: u64) -> Vec<u64> {
    let length = std::fs::metadata(file).unwrap().len();
    let mut places: Vec<u64> = (0..many).map(|n| (n * length / many + n * 131 + 7).min(length - 1)).collect();
    places.extend([0, length - 1]);
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn a_flipped_bit_of_one_manifest_costs_nothing_and_is_mended_by_the_next_start() {
    let built = Built::new();
    let files = ["MANIFEST", "MANIFEST.copy"].map(|name| built.replica.join(name));
    for file in &files {
        for at in places(file, flips()) {
            built.with_flip(file, at, |case| {
                assert!(built.read_everything(case), "{case}: the other one was not read");
                built.verify_finds(case, file, None);
            });
        }
        crate::support::flip(file, 1000, 3);
        assert!(built.restart("one is damaged"));
        assert_eq!(built.verify().status, 0, "the start did not mend it");
    }
}

#[test]
fn flipped_bits_of_both_manifests_are_named_by_every_command() {
    let built = Built::new();
    let (file, second) = (built.replica.join("MANIFEST"), built.replica.join("MANIFEST.copy"));
    for at in places(&file, flips()) {
        built.with_flip(&second, at, |_| {
            built.with_flip(&file, at, |case| {
                assert!(!built.read_everything(case), "{case}: nothing was noticed");
                built.verify_finds(case, &file, None);
                assert!(!built.restart(case), "{case}");
            });
        });
    }
    assert!(built.read_everything("mended") && built.restart("mended"));
}

#[test]
fn a_flipped_bit_of_a_segment_is_found_and_never_read() {
    let built = Built::new();
    for file in built.files("journal", ".seg") {
        for at in places(&file, flips()) {
            built.with_flip(&file, at, |case| {
                built.read_everything(case);
                built.verify_finds(case, &file, Some(at));
            });
        }
    }
    assert!(built.read_everything("mended"));
}

#[test]
fn a_flipped_bit_of_a_base_is_found_and_never_read() {
    let built = Built::new();
    for file in [built.files("base", ".sum"), built.files("base", ".img")].concat() {
        let bytes = std::fs::read(&file).unwrap();
        for at in places(&file, flips()) {
            built.with_flip(&file, at, |case| {
                let right = built.read_everything(case);
                // A hole is not stored: nobody reads what somebody puts there.
                let page = &bytes[at as usize / 4096 * 4096..][..4096.min(bytes.len() - at as usize / 4096 * 4096)];
                if page.iter().any(|byte| *byte != 0) {
                    built.verify_finds(case, &file, Some(at));
                } else {
                    assert!(right || built.verify().status == 5, "{case}");
                }
            });
        }
    }
    assert!(built.read_everything("mended"));
}

#[test]
fn a_restart_over_a_flipped_bit_refuses_it_or_diverges_nowhere() {
    let built = Built::new();
    let kept = built.keep();
    let mut files = built.files("journal", ".seg");
    files.extend([built.files("base", ".sum"), built.files("base", ".img")].concat());
    for file in files {
        for at in places(&file, times("CDP_TEST_RESTARTS", 3)) {
            built.with_flip(&file, at, |case| {
                built.restart(case);
                built.put_back(&kept);
                // Undone by the caller.
                crate::support::flip(&file, at, (at % 8) as u8);
            });
        }
    }
    assert!(built.restart("mended"));
}
