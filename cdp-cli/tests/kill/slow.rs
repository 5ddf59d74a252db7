//! A stop while the media are slow: it takes the time that it may take, and says how it ended. And a kill.

use crate::aim::{Aim, Effect, can_aim};
use crate::drill::{Drill, Found};
use cdp_net::nbd::client::Command;
use cdp_net::nbd::{Client, ClientOptions};
use std::time::{Duration, Instant};

/// Stops while calls on a file are slow. Everything is durable, and `--drain` leaves time for the rest: it ends well and clean.
fn stops_clean_with_slow(calls: &'static str, file: &str, effect: Effect) {
    if !can_aim() {
        return;
    }
    let mut drill = Drill::new(1);
    let mut protection = drill.start();
    let uri = protection.ready();
    drill.wait_for("protecting");
    let load = drill.writers.begin(&uri);
    std::thread::sleep(Duration::from_millis(20));
    drill.writers.end(load);
    drill.ask(&["mark", "--label", "all of it"]).done();
    let paths = vec![drill.path("replica").join(file)];
    let aim = Aim { calls, paths, effect, log: drill.path("calls") };
    let tracer = aim.at(protection.pid());
    protection.stop();
    drop(tracer);
    assert!(aim.calls_so_far().contains("DELAYED"), "no call was slow");
    drill.check(&[Found::Clean]);
}

#[test]
fn a_stop_waits_for_slow_syncs_of_the_manifest() {
    stops_clean_with_slow("fdatasync", "MANIFEST.tmp", Effect::Delay { nth: 9, by: Duration::from_secs(6) });
}

#[test]
fn a_stop_waits_for_slow_syncs_of_the_activity_log() {
    stops_clean_with_slow("fdatasync", "state/activity.log", Effect::Delay { nth: 9, by: Duration::from_secs(6) });
}

/// The thread that owns the journal's writer answers nobody meanwhile.
#[test]
fn a_stop_is_not_called_clean_before_its_manifest_is_written() {
    stops_clean_with_slow(
        "pwrite64,pwritev,pwritev2",
        "MANIFEST.tmp",
        Effect::Delay { nth: 1, by: Duration::from_secs(12) },
    );
}

/// Guests go on without the activity log, and nothing that could be told to the replica's media gets there before the kill.
#[test]
fn a_kill_while_every_sync_is_slow_leaves_no_log_that_could_be_believed() {
    if !can_aim() {
        return;
    }
    let mut drill = Drill::new(3);
    drill.check(&[Found::Nothing]);
    let mut protection = drill.start();
    let uri = protection.ready();
    drill.wait_for("protecting");
    let effect = Effect::Delay { nth: 1000, by: Duration::from_secs(8) };
    let aim = Aim { calls: "fdatasync", paths: Vec::new(), effect, log: drill.path("calls") };
    let tracer = aim.at(protection.pid());
    // After a clean stop every extent is cold: the first writes wait for the log, and then for its removal.
    let load = drill.writers.begin(&uri);
    let log = drill.path("replica/state/activity.log");
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.exists() {
        assert!(Instant::now() < deadline, "the log cannot be written, and is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    protection.kill();
    drop(tracer);
    drill.writers.end_with_server(load);
    assert!(!log.exists());
    drill.check_source();
    drill.check(&[Found::Killed]);
}

/// Nanoseconds that threads of a name have run so far.
fn has_run(pid: u32, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let read = |task: &std::fs::DirEntry, file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
    let named = tasks.filter(|task| read(task, "comm").trim() == name);
    named.filter_map(|task| read(&task, "schedstat").split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Frames are packed by several threads then, and must come to the journal in their order all the same.
#[test]
fn a_disk_that_is_far_behind_gets_every_frame_in_order() {
    if !can_aim() {
        return;
    }
    const BLOCK: usize = 1 << 20;
    let mut drill = Drill::new(2);
    let mut protection = drill.start();
    let uri = protection.ready();
    drill.wait_for("protecting");
    let slow = Effect::Delay { nth: 60_000, by: Duration::from_millis(100) };
    let aim = Aim { calls: "pwritev", paths: Vec::new(), effect: slow, log: drill.path("calls") };
    let tracer = aim.at(protection.pid());
    let before = has_run(protection.pid(), "cdp-pack");
    // Behind the writers' own slots, over the same blocks again and again. First what no packing makes less of, until more
    // waits than the journal takes at once; then halves that shrink.
    let mut client = Client::connect(&uri, &ClientOptions::default()).unwrap();
    let mut data = vec![0; BLOCK];
    for number in 0..240_u64 {
        let (half, pattern) = data.split_at_mut(if number < 200 { BLOCK } else { BLOCK / 2 });
        half.iter_mut().for_each(|byte| *byte = u8::try_from(drill.dice.below(256)).unwrap());
        pattern.chunks_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
        let offset = (8 + number % 64) * BLOCK as u64;
        client.submit(number, Command::Write { offset, data: &data, flags: 0 }).unwrap();
        while client.in_flight() > 4 {
            client.complete(true).unwrap().unwrap().result.unwrap();
        }
    }
    while client.in_flight() > 0 {
        client.complete(true).unwrap().unwrap().result.unwrap();
    }
    client.disconnect().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while has_run(protection.pid(), "cdp-pack") < before + 1_000_000 {
        assert!(Instant::now() < deadline, "nothing was packed beside the pump: the disk was not far behind");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(tracer);
    drill.ask(&["mark", "--label", "all of it"]).done();
    protection.stop();
    drill.check(&[Found::Clean]);
}
