//! `cdp serve` and what it is set up with: files, identities, tickets.

use super::support::{Place, Running, Serving, cdp, wait_for};
use cdp_core::types::WallTime;
use cdp_net::services::config::{Config, example};
use cdp_net::services::tickets::{KeyFile, read_ticket};
use std::process::Command;

#[test]
fn a_process_runs_takes_new_files_refuses_bad_ones_and_drains() {
    let place = Place::new();
    let mut serving = Serving::start(&place, &["aa"]);
    assert!(serving.metrics().contains("cdp_role_up{role=\"replica-host\"} 1"));
    // A second one has no business in the same state directory.
    let answer = cdp(&["serve".as_ref(), serving.file.as_os_str()]);
    let error = answer.failed(4, "owned");
    assert!(error["hint"].as_str().unwrap().contains("state directory"), "{error}");

    let good = std::fs::read_to_string(&serving.file).unwrap();
    std::fs::write(&serving.file, good.replace("groups-max", "groups-most")).unwrap();
    let refused = serving.reload("not-reloaded");
    assert!(refused["why"].as_str().unwrap().contains("groups-most"), "{refused}");
    wait_for("the refusal among the metrics", || {
        serving.metrics().contains("cdp_reloads_total{outcome=\"refused\"} 1")
    });
    assert!(serving.metrics().contains("cdp_role_up{role=\"replica-host\"} 1"), "the old file holds");

    std::fs::write(&serving.file, good.replace("groups-max = 5", "groups-max = 6")).unwrap();
    let reloaded = serving.reload("reloaded");
    assert_eq!(reloaded["unchanged"], serde_json::json!(["replica-host.groups-max"]), "{reloaded}");
    let (status, last) = serving.running.stop();
    assert_eq!((status, last["event"].as_str()), (0, Some("stopped")), "{last}");
    assert!(serving.running.events().iter().any(|event| event["event"] == "drained" && event["left_bytes"] == 0));
}

#[test]
fn people_read_on_stderr_how_it_goes() {
    let place = Place::new();
    let file = Serving::write(&place, &["aa"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdp"));
    command.arg("serve").arg(&file);
    let mut running = Running::spawn(command);
    running.wait_stderr("cdp: ready, metrics at http://127.0.0.1:");
    let (status, said) = running.stop();
    assert_eq!((status, said.is_null()), (0, true), "stdout is for scripts: {said}");
    // Else whoever waits for the end does not know for what, and how long.
    running.wait_stderr("cdp: ends; waits 30.0 s at most until what is under way is safe, and a second signal ends it");
    running.wait_stderr("cdp: stopped");
}

#[test]
fn a_file_that_cannot_be_meant_is_wrong_usage_and_its_line_is_said() {
    let place = Place::new();
    let file = Serving::write(&place, &["aa"]);
    cdp(&["serve".as_ref(), "--check".as_ref(), file.as_os_str()]).done();
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{good}\nnonsense = 1\n")).unwrap();
    let line = format!("line {}", good.lines().count() + 2);
    for check in [&["--check"][..], &[]] {
        let mut arguments = vec!["serve".as_ref(), file.as_os_str()];
        arguments.extend(check.iter().map(std::ffi::OsStr::new));
        let error = cdp(&arguments).failed(2, "config");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&line) && message.contains("nonsense"), "{message}");
    }
    assert!(!place.path("state").exists(), "nothing was begun");
    cdp(&["serve", "/there/is/no/such.toml"]).failed(1, "config-file");
    cdp(&["serve"]).failed(2, "usage");
}

/// Whoever finds a port taken is told which, and of which table.
#[test]
fn a_part_whose_port_is_taken_says_so_and_of_nothing_else() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let key = place.path("ticket.key");
    cdp(&["ticket".as_ref(), "--new-key".as_ref(), key.as_os_str()]).done();
    let hop = "to = [\"cdp://127.0.0.1:1\"]\n";
    let disk = place.source("disk.img", 1, 1 << 20);
    for (role, more) in [
        ("source-proxy", hop.to_owned()),
        ("target-proxy", hop.to_owned()),
        ("gateway", format!("ticket-key = {key:?}\nto = {{ a = \"127.0.0.1:1\" }}\n")),
        ("replica-host", "directory = \"replicas\"\n".to_owned()),
        (
            "filter",
            format!(
                "{hop}[[filter.group]]\nname = \"g\"\nlisten = \"nbd://{at}\"\ndisk = [{{ name = \"d\", source = {disk:?} }}]\n"
            ),
        ),
    ] {
        let listen = if role == "filter" { String::new() } else { format!("listen = \"{at}\"\n") };
        let peer = "ab".repeat(32);
        let text = format!(
            "state = \"{role}\"\n[[peer]]\nname = \"p\"\nfingerprint = \"sha256:{peer}\"\n[{role}]\n{listen}{more}"
        );
        let file = place.path(&format!("{role}.toml"));
        std::fs::write(&file, text).unwrap();
        let error = cdp(&["serve".as_ref(), file.as_os_str()]).failed(1, "role");
        let (message, hint) = (error["message"].as_str().unwrap(), error["hint"].as_str().unwrap());
        assert!(message.contains(&at.to_string()) && message.contains("in use"), "{error}");
        assert!(
            !message.contains("cache") && (hint.contains(&format!("[{role}] listen")) || role == "filter"),
            "{error}"
        );
        assert!(hint.contains("listen"), "{error}");
    }
}

#[test]
fn each_role_has_an_example_that_can_be_meant() {
    for role in example::ROLES {
        let example = cdp(&["serve", "--example", role]).done();
        let config = Config::parse(example["text"].as_str().unwrap()).unwrap();
        assert_eq!(config.roles(), [role]);
    }
    cdp(&["serve", "--example", "nobody"]).failed(2, "usage");
}

#[test]
fn an_identity_is_made_once_and_a_ticket_says_what_was_asked() {
    let place = Place::new();
    let identity = || {
        let shown = cdp(&["identity".as_ref(), place.path("proxy").as_os_str()]).done();
        shown["fingerprint"].as_str().unwrap().to_owned()
    };
    let fingerprint = identity();
    assert_eq!(fingerprint, identity());

    let (keys, keys_text) = (place.path("ticket.key"), place.path("ticket.key").display().to_string());
    for number in [1, 2] {
        assert_eq!(cdp(&["ticket", "--new-key", &keys_text]).done()["key"], number);
    }
    let mut arguments = vec!["ticket", "--ticket-key", &keys_text, "--tenant", "acme", "--certificate", &fingerprint];
    cdp(&arguments).failed(2, "usage");
    arguments.extend(["--route", "target-1", "--valid", "1h", "--connections", "3", "--limit", "1MiB"]);
    // Nobody could keep anything under a name that is no directory's.
    let strange: Vec<_> = arguments.iter().map(|argument| if *argument == "acme" { "a/b" } else { argument }).collect();
    cdp(&strange).failed(2, "usage");
    let made = cdp(&arguments).done();
    let file = place.path("a.ticket");
    std::fs::write(&file, made["ticket"].as_str().unwrap()).unwrap();
    let keys = KeyFile::read(&keys).unwrap().keys;
    let bytes = read_ticket(&file).unwrap();
    let ticket = keys.verify(&bytes, cdp_net::clock::wall()).unwrap();
    assert_eq!((ticket.tenant.as_str(), ticket.route.as_str()), ("acme", "target-1"));
    assert_eq!((ticket.connections, ticket.bytes_per_second), (3, Some(1 << 20)));
    assert_eq!(made["certificate"], fingerprint.as_str());
    let later = WallTime(cdp_net::clock::wall().0 + 3_700_000_000_000);
    keys.verify(&bytes, later).unwrap_err();
    cdp(&[
        "ticket",
        "--ticket-key",
        "/there/is/no/key",
        "--tenant",
        "a",
        "--certificate",
        &fingerprint,
        "--route",
        "b",
    ])
    .failed(1, "ticket-key");
}
