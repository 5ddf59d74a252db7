//! Damage in the store of a writable session: what somebody worked on is read by `verify` like everything else.

use super::built::Built;
use super::flips::{flips, places};
use crate::support::client;

#[test]
fn a_flipped_bit_of_a_session_is_found() {
    let built = Built::new();
    let name = ["--session", "work"];
    let mut mounted = built.mount(&[&["--at", "run 2"], &name[..]].concat());
    let write = |offset: u64| {
        let mut client = client(mounted.uri());
        client.write(offset, &[7; 64 << 10], false).unwrap();
        client.flush().unwrap();
    };
    write(1 << 20);
    // While it is written it is no damage, whether this or another process owns the replica.
    let verified = built.verify().done();
    assert_eq!(verified["ok"], true, "{verified}");
    write(0);
    assert_eq!(mounted.stop().0, 0);
    assert_eq!(built.verify().done()["ok"], true);
    let of_session = built.files("sessions", "").pop().unwrap();
    let directory = of_session.strip_prefix(&built.replica).unwrap().to_str().unwrap();
    let files = [built.files(directory, ".seg"), built.files(directory, "MANIFEST")].concat();
    for file in files {
        for at in places(&file, flips()) {
            built.with_flip(&file, at, |case| {
                let answer = built.verify();
                assert_eq!((answer.status, answer.json["ok"].as_bool()), (5, Some(false)), "{case}: {answer:?}");
                let damage = answer.json["damage"].as_array().unwrap();
                let named = |found: &serde_json::Value| {
                    found["file"].as_str().unwrap().contains(directory) && found["session"] == "work"
                };
                assert!(!damage.is_empty() && damage.iter().all(named), "{case}: {damage:?}");
                assert!(!answer.json["good"].as_array().unwrap().is_empty(), "{case}: the disks do not suffer");
            });
        }
    }
    // Not opened again: what was written last may be torn, and is nobody's damage. A store that is gone is.
    let mounted = built.mount(&name);
    client(mounted.uri()).write(0, &[9; 4096], true).unwrap();
    drop(mounted);
    assert_eq!(built.verify().done()["ok"], true);
    std::fs::remove_dir_all(&of_session).unwrap();
    assert_eq!(built.verify().status, 5);
    assert!(!of_session.exists(), "to look makes nothing");
}
