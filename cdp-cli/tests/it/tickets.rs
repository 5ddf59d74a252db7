//! `cdp serve` at two sites with a gateway between them, as their files say it.

use super::support::{Place, Running, cdp, command, mark, wait_for};
use rustix::process::Signal;

fn fingerprint(place: &Place, state: &str) -> String {
    let shown = cdp(&["identity".as_ref(), place.path(state).as_os_str()]).done();
    shown["fingerprint"].as_str().unwrap().to_owned()
}

/// A process with this file, which is called as its state directory is.
fn start(place: &Place, state: &str, text: &str) -> Running {
    let file = place.path(&format!("{state}.toml"));
    std::fs::write(&file, format!("state = {state:?}\n{text}")).unwrap();
    let running = Running::spawn(command(&["serve".as_ref(), file.as_os_str()]));
    running.wait_event("ready", |event| event["event"] == "ready");
    running
}

fn address(running: &Running, role: &str) -> String {
    let listens = format!("{role}: listens at ");
    let note = running.wait_event("where it listens", |event| {
        event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.starts_with(&listens))
    });
    note["text"].as_str().unwrap().trim_start_matches(&listens).to_owned()
}

/// The host lists nobody: it knows the filter by its ticket only, which may be put into the file later.
#[test]
fn a_filter_of_a_file_sends_through_a_gateway_straight_to_a_replica_host() {
    let place = Place::new();
    let [keys, ticket] = ["ticket.key", "acme.ticket"].map(|name| place.path(name));
    cdp(&["ticket".as_ref(), "--new-key".as_ref(), keys.as_os_str()]).done();
    let host = start(
        &place,
        "host",
        "[replica-host]\nlisten = \"127.0.0.1:0\"\ndirectory = \"replicas\"\nticket-key = \"ticket.key\"\nroute = \"host-1\"\n",
    );
    let to = address(&host, "replica-host");
    let text = "[gateway]\nlisten = \"127.0.0.1:0\"\nticket-key = \"ticket.key\"\n";
    let gateway = start(&place, "gateway", &format!("{text}to = {{ host-1 = \"{to}\" }}\n"));
    let certificate = fingerprint(&place, "filter");
    let arguments = ["ticket", "--ticket-key", keys.to_str().unwrap(), "--tenant", "acme", "--route", "host-1"];
    let made = cdp(&[&arguments[..], &["--certificate", &certificate]].concat()).done();
    std::fs::write(&ticket, made["ticket"].as_str().unwrap()).unwrap();

    let disk = place.source("disk.img", 1, 1 << 20);
    let peer = format!("[[peer]]\nname = \"host\"\nfingerprint = \"{}\"\n", fingerprint(&place, "host"));
    let group = format!(
        "[[filter.group]]\nname = \"web\"\nlisten = \"{}\"\n[[filter.group.disk]]\nname = \"disk\"\nsource = {disk:?}\n",
        place.socket("web")
    );
    let table = format!("{peer}[filter]\nto = [\"cdp://{}\"]\n", address(&gateway, "gateway"));
    let mut filter = start(&place, "filter", &format!("{table}{group}"));
    filter.wait_event("that nobody lets it in", |event| {
        event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.contains("not protected"))
    });
    let with_ticket = format!("{table}ticket = \"acme.ticket\"\n{group}");
    std::fs::write(place.path("filter.toml"), format!("state = \"filter\"\n{with_ticket}")).unwrap();
    filter.signal(Signal::HUP);
    filter.wait_event("the new file", |event| event["event"] == "reloaded");
    let state = place.path("filter").join("filter").join("web");
    let protecting = || {
        wait_for("the protection", || cdp(&["status".as_ref(), state.as_os_str()]).json["state"] == "protecting");
    };
    protecting();
    assert_eq!(filter.stop().0, 0);
    // And from the start on.
    let filter = start(&place, "filter", &with_ticket);
    protecting();
    mark(&state, "monday");
    assert!(place.path("replicas/acme/web/MANIFEST").exists());
    for mut running in [filter, gateway, host] {
        let (status, last) = running.stop();
        assert_eq!((status, last["event"].as_str()), (0, Some("stopped")), "{last}");
    }
}
