//! Kills while old history is merged into the base: moments that are pinned keep their bytes, and nothing is damaged.

use crate::drill::Drill;
use crate::number;
use std::time::Duration;

#[test]
fn a_kill_while_history_is_merged_changes_no_moment_that_is_kept() {
    let (kills, seed) = (number("CDP_RETENTION_KILLS", 5), number("CDP_KILL_SEED", 1));
    eprintln!("CDP_RETENTION_KILLS={kills} CDP_KILL_SEED={seed}");
    let mut drill = Drill::new(seed ^ 0x7e7e);
    let mut protection = drill.start();
    protection.ready();
    drill.wait_for("protecting");
    drill.ask(&["policy", "--window", "1s", "--long-term", "2s", "--keep", "1h"]).done();
    protection.stop();
    for round in 0..kills {
        let mut protection = drill.start();
        let uri = protection.ready();
        drill.wait_for("protecting");
        drill.check_known();
        let load = drill.writers.begin(&uri);
        std::thread::sleep(Duration::from_millis(200 + drill.dice.below(300)));
        let pause = load.pause();
        let known = drill.mark_now(format!("round {round}"));
        drill.ask(&["pin", "--at", &format!("label:{}", known.label)]).done();
        drill.known.push(known);
        drop(pause);
        std::thread::sleep(Duration::from_millis(drill.dice.below(2500)));
        protection.kill();
        drill.writers.end_with_server(load);
        drill.check_source();
        let verified = drill.ask(&["verify"]);
        assert_eq!(verified.status, 0, "round {round}: {}", verified.json);
        drill.check_known();
    }
    let mut protection = drill.start();
    protection.ready();
    let status = drill.wait_for("protecting");
    assert!(status["space"]["pinned"].as_u64().unwrap() > 0, "nothing was merged past a pin: {status}");
    drill.check_known();
    protection.stop();
    drill.check_known();
}
