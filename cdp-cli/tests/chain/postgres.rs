//! A database goes on while its replica host is killed, and comes back as it was at a mark.

use crate::chain::{Chain, PARTS, Part, Sites, check_gaps};
use crate::database::{Fused, Mount, Postgres, cannot_mount, programs};
use crate::support::{Place, run};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

const DISK: u64 = 256 << 20;

#[test]
fn postgres_comes_back_from_a_mark_that_was_taken_under_load() {
    if let Some(why) = cannot_mount() {
        println!("skipped: {why}");
        return;
    }
    let Some(bin) = programs() else {
        println!("skipped: postgresql is not installed");
        return;
    };
    let place = Place::new();
    // The database's user goes through it.
    std::fs::set_permissions(place.path(""), std::fs::Permissions::from_mode(0o711)).unwrap();
    let source = place.path("data.img");
    std::fs::File::create(&source).unwrap().set_len(DISK).unwrap();
    let mut chain = Chain::start(place, Sites::loopback(), &[&source]);
    let fused = Fused::start(&chain.uri(""), &chain.place.path("disk"));
    run("mkfs.ext4", &["-q", "-F", fused.file().to_str().unwrap()]);
    let mount = Mount::of(fused.file(), &chain.place.path("live"));
    let postgres = Postgres::make(&bin, &mount);
    postgres.make_accounts();
    let mut load = postgres.transactions(6);
    chain.kill(Part::Host);
    std::thread::sleep(Duration::from_secs(1));
    chain.begin(Part::Host);
    chain.wait_durable();
    // What is committed here is there at the mark; what is committed at the end is more.
    let before = postgres.ask("select count(*) from pgbench_history");
    chain.mark("under load");
    let after = postgres.ask("select count(*) from pgbench_history");
    assert!(load.wait().unwrap().success(), "pgbench failed");
    let at_end = postgres.check();
    postgres.stop();
    mount.end();
    fused.end();
    chain.wait_durable();
    for (at, counts) in [("label:under load", before..=after), ("latest", at_end..=at_end)] {
        let image = chain.restore(at, "restored").join("data.img");
        // The journal is replayed, and what the kernel counts again at each mount is counted; then there is nothing to mend.
        let preened = Command::new("/sbin/e2fsck").arg("-fp").arg(&image).output().unwrap();
        assert!(preened.status.code() <= Some(1), "{}", String::from_utf8_lossy(&preened.stdout));
        run("e2fsck", &["-fn", image.to_str().unwrap()]);
        let mount = Mount::of(&image, &chain.place.path("back"));
        let postgres = Postgres::start(&bin, &mount);
        let found = postgres.check();
        assert!(counts.contains(&found), "{at}: {found} transactions, not {counts:?}");
        println!("{at}: {found} transactions");
        postgres.stop();
        mount.end();
    }
    check_gaps(&chain.read_afar("points", &[]).done(), 0);
    for part in PARTS {
        chain.stop(part);
    }
}
