//! Damage that comes while a protection is going on: readers under its pin see it as any others do.

use super::built::Built;
use crate::support::{Guest, mark, times};

#[test]
fn a_flipped_bit_under_an_owner_is_never_read() {
    let mut built = Built::new();
    let mut running = built.protect().protecting();
    let mut guest = Guest::connect(running.uri(), built.source(), 91);
    guest.work(40);
    mark(&built.replica, "owned");
    built.marked("owned", guest.hash());
    let mut files = [built.files("base", ".sum"), built.files("base", ".img"), built.files("journal", ".seg")].concat();
    files.push(built.replica.join("MANIFEST"));
    let many = times("CDP_TEST_OWNED_FLIPS", 6);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        for number in 0..many {
            let at = number * end / many + number * 57 % 512;
            built.with_flip(&file, at.min(end), |case| {
                built.read_everything(case);
            });
        }
    }
    assert!(built.read_everything("mended"));
    guest.work(20);
    let _ = running.stop();
    assert!(built.read_everything("stopped"));
}
