//! A consistency set over two `cdp serve`, as their files say it.

use super::support::{Place, Running, Serving, cdp, command, wait_for};
use std::collections::BTreeSet;
use std::path::Path;

/// The labels of the common points that `cdp points` knows of.
fn common(replica: &Path) -> BTreeSet<String> {
    let answer = cdp(&["points".as_ref(), replica.as_os_str()]).done();
    let points = answer["points"].as_array().unwrap().iter().filter(|point| point["set_consistent"] == true);
    points.filter_map(|point| point["label"].as_str().map(ToOwned::to_owned)).collect()
}

#[test]
fn two_filters_have_common_points_and_points_tells_them() {
    let place = Place::new();
    let identity = |name: &str| {
        let shown = cdp(&["identity".as_ref(), place.path(name).as_os_str()]).done();
        shown["fingerprint"].as_str().unwrap().to_owned()
    };
    let [taker, member] = ["taker", "member"].map(identity);
    let host = Serving::start(&place, &[&taker, &member]);
    let start = |state: &str, other: &str, group: &str, listen: &str, members: &str| {
        let disk = place.source(&format!("{group}.img"), 1, 1 << 20);
        let text = format!(
            "state = {state:?}\n[[peer]]\nname = \"host\"\nfingerprint = \"{}\"\n[[peer]]\nname = \"other\"\nfingerprint = \"{other}\"\n\
             [filter]\nto = [\"cdp://{}\"]\n{listen}[[filter.group]]\nname = {group:?}\nlisten = \"nbd+unix:///?socket={}\"\n\
             [[filter.group.disk]]\nname = \"disk\"\nsource = {disk:?}\n\
             [[set]]\nname = \"shop\"\ngroups = [\"web\", \"db\"]\nevery = \"1s\"\n{members}",
            host.fingerprint,
            host.address,
            place.path(&format!("{group}.sock")).display(),
        );
        let file = place.path(&format!("{state}.toml"));
        std::fs::write(&file, text).unwrap();
        Running::spawn(command(&["serve".as_ref(), file.as_os_str()]))
    };
    let mut second = start("member", &taker, "db", "listen = \"127.0.0.1:0\"\n", "");
    let listens = "filter: listens at ";
    let note = second.wait_event("where it listens", |event| {
        event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.starts_with(listens))
    });
    let at = note["text"].as_str().unwrap().trim_start_matches(listens).to_owned();
    let mut first = start("taker", &member, "web", "", &format!("members = [\"cdp://{at}/db\"]\n"));
    let [web, db] = ["web", "db"].map(|group| place.path("replicas/acme").join(group));
    wait_for("the replicas", || [&web, &db].iter().all(|replica| replica.join("MANIFEST").exists()));
    wait_for("common points", || {
        let both = &common(&web) & &common(&db);
        both.iter().filter(|label| label.starts_with("shop ")).count() >= 2
    });
    for running in [&mut first, &mut second] {
        let (status, last) = running.stop();
        assert_eq!((status, last["event"].as_str()), (0, Some("stopped")), "{last}");
    }
}
