//! The crash points find what they are for: with each of these faults in the code they fail.

use super::{enumerate, tell};
use cdp_core::mistakes::{Mistake, make};

/// Lives that are told, at most, and every so many changes of each are looked at, in so many ways.
const LIVES: u64 = 12;
const STRIDE: usize = 3;
const WAYS: u64 = 4;

/// What a code with this fault does wrong.
fn caught(mistake: Mistake) -> Option<String> {
    make(Some(mistake));
    // Where to begin, so that it is soon seen: one life in four is sealed at rest, and few have the order of completions that it takes.
    let first = match mistake {
        Mistake::KeyUsedAgain => 3,
        Mistake::SyncCoversMore => 6,
        _ => 0,
    };
    let told = |seed| tell(seed).and_then(|told| enumerate(&told, WAYS, (seed % STRIDE as u64, STRIDE)));
    let found = (first..first + LIVES).find_map(|seed| told(seed).err());
    make(None);
    found
}

fn is_caught(mistake: Mistake) {
    let why = caught(mistake);
    println!("{mistake:?} is caught: {}", why.as_deref().unwrap_or("no"));
    assert!(why.is_some(), "{mistake:?} goes unnoticed");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn copies_of_a_kept_moment_that_are_not_flushed() {
    is_caught(Mistake::KeptNotFlushed);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn rests_of_blocks_that_are_not_synced() {
    is_caught(Mistake::RestsNotSynced);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn pages_of_checksums_in_the_place_in_use() {
    is_caught(Mistake::PagesInPlace);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn bases_that_are_named_before_they_are_synced() {
    is_caught(Mistake::BasesNotSynced);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn segments_that_go_before_the_manifest_says_so() {
    is_caught(Mistake::SegmentsRemovedEarly);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn a_footer_that_is_believed_without_its_sync() {
    is_caught(Mistake::FooterNotSynced);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn a_manifest_that_is_not_synced() {
    is_caught(Mistake::ManifestNotSynced);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn a_sync_that_covers_what_came_later() {
    is_caught(Mistake::SyncCoversMore);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn segments_behind_a_gap() {
    is_caught(Mistake::GapsPassed);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn a_key_that_is_used_again() {
    is_caught(Mistake::KeyUsedAgain);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn an_index_run_that_is_not_synced() {
    is_caught(Mistake::RunNotSynced);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow where nothing is optimised: .ci/run has it in its part points")]
fn footers_that_are_emptied_before_their_run_is_named_for_good() {
    is_caught(Mistake::EmptiedEarly);
}
