//! The crash points find what they are for: with each of these faults in the code they fail.

use super::{WAYS, enumerate, tell};
use cdp_core::mistakes::{Mistake, make};

/// What a code with this fault does wrong, found within so many lives.
fn caught(mistake: Mistake, lives: u64) -> Option<String> {
    make(Some(mistake));
    let found = (0..lives).find_map(|seed| tell(seed).and_then(|told| enumerate(&told, WAYS, (0, 1))).err());
    make(None);
    found
}

#[test]
fn a_code_with_a_fault_is_caught() {
    for mistake in Mistake::ALL {
        let why = caught(mistake, 8);
        assert!(why.is_some(), "{mistake:?} goes unnoticed");
        println!("{mistake:?}: {}", why.unwrap_or_default());
    }
}
