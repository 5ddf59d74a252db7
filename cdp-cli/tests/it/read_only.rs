//! A replica on media that nobody writes to any more: everything that is in it can be had, and nothing else is tried.

use crate::support::{Answer, Mounted, Place, Running, Scene, cdp, client, hash, mark, restore};
use std::ffi::OsStr;

#[test]
fn what_lies_on_read_only_media_can_be_read() {
    let Some(mut mounted) = Mounted::tmpfs(256 << 20) else { return };
    let more = ["--segment-size", "4MiB", "--reserve", "8MiB"];
    let mut scene = Scene::begin_with(Place::new(), mounted.path("replica"), &more, 71, 2 << 20);
    scene.guest.work(40);
    mark(&scene.replica, "kept");
    let kept = scene.guest.hash();
    scene.guest.work(20);
    scene.running.stop_clean();
    let replica = scene.replica.clone();
    let ask = |arguments: &[&str]| -> Answer {
        let all = [OsStr::new(arguments[0]), replica.as_os_str()];
        cdp(&[&all[..], &arguments[1..].iter().map(OsStr::new).collect::<Vec<_>>()].concat())
    };
    ask(&["pin", "--at", "kept"]).done();
    mounted.make_read_only();
    let output = scene.place.path("out.img");
    let read = |case: &str| {
        restore(&replica, "kept", &output).done();
        assert_eq!(hash(&output), kept, "{case}");
        restore(&replica, "latest", &output).done();
        assert_eq!(hash(&output), hash(&scene.source), "{case}");
        assert_eq!(ask(&["verify"]).done()["ok"], true, "{case}");
        assert!(ask(&["points"]).done()["points"].as_array().unwrap().iter().any(|point| point["label"] == "kept"));
        assert_eq!(ask(&["status"]).done()["state"], "stopped", "{case}");
        ask(&["diff", "--from", "kept", "--to", "latest"]).done();
        ask(&["policy"]).done();
        ask(&["prune", "--dry-run"]).done();
    };
    read("alone");
    // Many read at a time, and none keeps another out.
    let mut served = Running::mount(&replica, &scene.place.socket("mount"), &["--at", "kept"]);
    let mut content = vec![0; 2 << 20];
    client(served.uri()).read(0, &mut content).unwrap();
    assert_eq!(blake3::hash(&content), kept);
    read("beside a mount");
    assert_eq!(served.stop().0, 0);
    for change in [
        &["policy", "--window", "1h"][..],
        &["mark", "--label", "now"],
        &["pin", "--at", "latest"],
        &["unpin", "--at", "kept"],
        &["prune"],
        &["compact"],
        &["disk", "remove", "disk"],
        &["mount", "--at", "kept", "--writable"],
    ] {
        ask(change).failed(4, "read-only");
    }
    let listen = scene.place.socket("nbd");
    for (directory, why) in [(&replica, "cannot be written to"), (&mounted.path("new"), "Read-only")] {
        let protect = ["protect", "--listen", &listen, "--replica"].map(OsStr::new);
        let protect = [&protect[..], &[directory.as_os_str(), scene.source.as_os_str()]].concat();
        let refused = cdp(&protect).failed(4, "read-only");
        assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
    }
}
