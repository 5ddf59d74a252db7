//! `cdp serve` of a filter: what its operator is told.

use super::support::{Place, Running, Serving, cdp, client, command, noise, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The fingerprint of whoever has this state directory.
fn fingerprint(place: &Place, state: &str) -> String {
    let shown = cdp(&["identity".as_ref(), place.path(state).as_os_str()]).done();
    shown["fingerprint"].as_str().unwrap().to_owned()
}

/// The file of a filter with these groups, whose next hop is at `to` and has this fingerprint.
fn filter(place: &Place, groups: &[&str], to: &str, peer: &str) -> PathBuf {
    let mut text = format!(
        "state = \"filter\"\ndrain = \"1s\"\n[[peer]]\nname = \"next\"\nfingerprint = \"{peer}\"\n\
         [filter]\nto = [\"cdp://{to}\"]\nspool = {{ memory = \"64MiB\", disk = \"64MiB\" }}\n"
    );
    for group in groups {
        let (disk, listen) = (place.source(&format!("{group}.img"), 1, 4 << 20), place.socket(group));
        text.push_str(&format!(
            "[[filter.group]]\nname = {group:?}\nlisten = \"{listen}\"\n\
             [[filter.group.disk]]\nname = \"disk\"\nsource = {disk:?}\n"
        ));
    }
    let file = place.path("filter.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// A source proxy whose next hop is the host, with so much of a cache. Where filters find it, and where its metrics are.
fn proxy(place: &Place, host: &Serving, disk: &str) -> (Running, String, String) {
    let text = format!(
        "state = \"proxy\"\nmetrics = \"127.0.0.1:0\"\ndrain = \"1s\"\n[[peer]]\nname = \"host\"\nfingerprint = \"{}\"\n\
         [[peer]]\nname = \"filter\"\nfingerprint = \"{}\"\ntenant = \"*\"\n\
         [source-proxy]\nlisten = \"127.0.0.1:0\"\nto = [\"cdp://{}\"]\ncache = {{ memory = \"64MiB\", disk = \"{disk}\" }}\n",
        host.fingerprint,
        fingerprint(place, "filter"),
        host.address,
    );
    let file = place.path("proxy.toml");
    std::fs::write(&file, text).unwrap();
    let proxy = Running::spawn(command(&["serve".as_ref(), file.as_os_str()]));
    let listens = "source-proxy: listens at ";
    let note = proxy.wait_event("where it listens", |event| {
        event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.starts_with(listens))
    });
    let at = note["text"].as_str().unwrap().trim_start_matches(listens).to_owned();
    let ready = proxy.wait_event("its metrics", |event| event["event"] == "ready");
    let metrics = ready["metrics"].as_str().unwrap().to_owned();
    (proxy, at, metrics)
}

/// What a filter says of one of its groups.
fn status(place: &Place, group: &str) -> Value {
    cdp(&["status".as_ref(), place.path(&format!("filter/filter/{group}")).as_os_str()]).json
}

/// `cdp serve` as people have it.
fn serve(file: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdp"));
    command.arg("serve").arg(file);
    Running::spawn(command)
}

/// Nobody else has what a filter has not brought to anybody: its disks are read again.
#[test]
fn a_filter_that_reached_nobody_says_at_its_end_that_its_disks_are_read_again() {
    let place = Place::new();
    let file = filter(&place, &["web"], "127.0.0.1:1", &format!("sha256:{}", "01".repeat(32)));
    let mut running = serve(&file);
    running.wait_stderr("cdp: ready");
    assert_eq!(running.stop().0, 0);
    running.wait_stderr(
        "cdp: filter is ended; not everything is durable: the next start reads 4.00 MiB of the disks again\n",
    );
}

/// A proxy whose next hop is away has what the filter may have forgotten.
#[test]
fn a_proxy_that_ends_before_its_next_hop_is_back_says_that_its_cache_is_to_be_kept() {
    let place = Place::new();
    let mut host = Serving::start(&place, &[&fingerprint(&place, "proxy")]);
    let (mut proxy, at, metrics) = proxy(&place, &host, "256MiB");
    let file = filter(&place, &["web"], &at, &fingerprint(&place, "proxy"));
    let mut running = Running::spawn(command(&["serve".as_ref(), file.as_os_str()]));
    wait_for("the protection", || status(&place, "web")["state"] == "protecting");
    host.running.kill();
    let mut guest = client(&place.socket("web"));
    guest.write(0, &noise(7, 1 << 20), false).unwrap();
    guest.flush().unwrap();
    let held = || cdp(&["top", "--once", &metrics]).done()["spool_bytes"].as_u64();
    wait_for("the proxy to have it", || held() >= Some(1 << 20));
    drop(guest);
    let left = |running: &mut Running| {
        assert_eq!(running.stop().0, 0);
        let drained = running.wait_event("the end", |event| event["event"] == "drained");
        drained["left_bytes"].as_u64().unwrap()
    };
    let (filter, proxy) = (left(&mut running), left(&mut proxy));
    assert!(filter > 0 && proxy > 0, "{filter} {proxy}");
}

/// A cache that is too small for one more group refuses that for ever: both who runs it and who waits for it read why.
#[test]
fn a_proxy_without_room_for_one_more_group_says_so_and_the_filter_does_too() {
    let place = Place::new();
    let host = Serving::start(&place, &[&fingerprint(&place, "proxy")]);
    let (proxy, at, _) = proxy(&place, &host, "100MiB");
    let file = filter(&place, &["web", "db"], &at, &fingerprint(&place, "proxy"));
    let running = Running::spawn(command(&["serve".as_ref(), file.as_os_str()]));
    let why = "the cache has 100 MiB on disk for all timelines: one more would have ";
    let note = proxy.wait_event("that it is refused", |event| {
        event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.contains(why))
    });
    let text = note["text"].as_str().unwrap();
    let refused = ["web", "db"].into_iter().find(|group| text.contains(&format!("/{group} are not taken"))).unwrap();
    let is_said = || status(&place, refused)["remote"]["problem"].as_str().is_some_and(|problem| problem.contains(why));
    wait_for("the filter's word", is_said);
    running.wait_event("the same in its log", |event| {
        let text = event["text"].as_str().unwrap_or_default();
        text.contains(&format!("group {refused}: "))
            && text.contains("records are not taken there")
            && text.contains(why)
    });
}

/// They stay, as the group may come back, and somebody has to know what takes the room.
#[test]
fn spool_files_of_groups_that_are_in_no_file_are_named_at_the_start_and_stay() {
    let place = Place::new();
    let file = filter(&place, &["web"], "127.0.0.1:1", &format!("sha256:{}", "01".repeat(32)));
    let spool = |group: &str| {
        let directory = place.path(&format!("filter/filter/{group}/spool"));
        std::fs::create_dir_all(&directory).unwrap();
        let name = directory.join(format!("{:032x}-{:016x}.spool", 7, 1));
        std::fs::write(&name, noise(1, 1 << 20)).unwrap();
        name
    };
    let (gone, web) = (spool("gone"), spool("web"));
    std::fs::create_dir_all(place.path("filter/filter/empty/spool")).unwrap();
    let mut running = serve(&file);
    running.wait_stderr("cdp: ready");
    let named = format!(
        "cdp: filter: 1.00 MiB are taken by spool files that no group of this file uses: {} (1.00 MiB). They may be removed: ",
        gone.parent().unwrap().display()
    );
    running.wait_stderr(&named);
    assert_eq!((gone.exists(), web.exists()), (true, false), "those of a group that runs are its own to remove");
    assert_eq!(running.stop().0, 0);
}
