//! `kill -9` of `cdp protect`, again and again on one replica, with real writers on real connections.
//!
//! After every kill: it starts again, on a new timeline; the source holds what was acknowledged; every moment that was called
//! restorable still is, with the bytes that it had; the next start reads hot extents and not the disk; then replica and source
//! are the same, and what lies between is a gap that nobody restores into.
//!
//! Three ways: at times that dice say, at system calls that are aimed at ([`aimed`]), and under writers whose every write is
//! recognised again at every LSN that was called durable ([`every_lsn`]). How many and which ones say `CDP_KILLS`,
//! `CDP_AIMED_KILLS`, `CDP_LSN_KILLS`, `CDP_LSNS` and, for all of them, `CDP_KILL_SEED`; what was taken is printed when it fails.

mod aim;
mod aimed;
mod command;
mod dice;
mod drill;
mod every_lsn;
mod ledger;
mod retention;
mod sessions;
mod slow;
#[path = "../it/support/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "it is written for all tests of the command, and not each needs all of it"
)]
mod support;
#[expect(dead_code, reason = "chains need more of it")]
mod writers;

use dice::Dice;
use drill::{Drill, Found, Moment};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_killed_protection_loses_nothing_that_it_promised() {
    let (kills, seed) = (number("CDP_KILLS", 12), number("CDP_KILL_SEED", 1));
    eprintln!("CDP_KILLS={kills} CDP_KILL_SEED={seed}");
    let mut drill = Drill::new(seed);
    // A first copy that was never complete restores nothing: it is begun anew.
    drill.round(0, Moment::Start);
    drill.round(1, Moment::Seeding);
    for number in 2..kills {
        // Every second kill follows a kill.
        let (when, checked) = match number % 5 {
            2 | 0 => (Moment::Load, false),
            3 => (Moment::Resync, true),
            4 => (Moment::Load, true),
            _ => (Moment::Start, true),
        };
        eprintln!("kill {number}: {when:?}");
        drill.round(number, when);
        if checked || number + 1 == kills {
            drill.check(&[Found::Killed]);
        }
    }
    assert!(drill.by_log > 0, "the activity log was never believed");
    let verified = drill.ask(&["verify"]);
    assert_eq!(verified.status, 0, "{}", verified.json);
    drill.check_known();
}
