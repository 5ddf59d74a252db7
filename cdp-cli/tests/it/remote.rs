//! The reading commands with `cdp://HOST:PORT/GROUP` say what they say with the directory.

use crate::support::{Answer, Guest, Host, Place, Running, Scene, command, hash, identity, mark};
use serde_json::Value;
use std::path::Path;

const DISK: usize = 4 << 20;

/// A replica host beside `cdp protect`, which keeps the replica of the group `machine`.
struct Far {
    _host: Host,
    scene: Scene,
    url: String,
    state: String,
    peer: String,
}

impl Far {
    fn begin(seed: u64) -> Self {
        let place = Place::new();
        let replica = place.path("replicas/acme/machine");
        std::fs::create_dir_all(replica.parent().unwrap()).unwrap();
        let host = Host::start(place.root(), &[("state", "acme")]);
        let peer = identity(place.root(), "host").fingerprint().to_string();
        let url = format!("cdp://{}/machine", host.address);
        let state = place.path("state").to_str().unwrap().to_owned();
        let scene = Scene::begin_with(place, replica, &[], seed, DISK);
        Self { scene, _host: host, url, state, peer }
    }

    fn far<'a>(&'a self, line: &[&'a str]) -> Vec<&'a str> {
        let (verb, rest) = line.split_first().unwrap();
        [&[*verb, &self.url], rest, &["--state", &self.state, "--peer", &self.peer]].concat()
    }

    fn here<'a>(&'a self, line: &[&'a str]) -> Vec<&'a str> {
        let (verb, rest) = line.split_first().unwrap();
        [&[*verb, self.scene.replica.to_str().unwrap()], rest].concat()
    }

    /// The command's status and every line, there and here.
    fn both(&self, line: &[&str]) -> [(i32, Vec<Value>); 2] {
        [self.far(line), self.here(line)].map(|line| lines(&line))
    }

    fn same(&self, line: &[&str]) -> Vec<Value> {
        let [far, here] = self.both(line);
        assert_eq!(far, here, "{line:?}");
        far.1
    }
}

fn lines(line: &[&str]) -> (i32, Vec<Value>) {
    let output = command(line).output().unwrap();
    let status = Answer::of(&output).status;
    let text = String::from_utf8(output.stdout).unwrap();
    (status, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn what_is_said_of_a_replica_is_the_same_from_afar() {
    let mut host = Far::begin(501);
    host.scene.marked("one");
    host.scene.marked("two");
    let marked = lines(&host.far(&["mark", "--label", "afar"]));
    assert!(marked.0 == 0 && marked.1[0]["at"]["point"].is_string(), "{marked:?}");
    // While somebody protects, what can be restored grows between two questions: what lies behind does not change.
    let past = |(status, lines): (i32, Vec<Value>)| (status, lines[0]["points"].clone(), lines[0]["gaps"].clone());
    let [far, here] = host.both(&["points", "--until", "label:afar"]).map(past);
    assert_eq!(far, here);
    assert!(far.1.as_array().unwrap().iter().any(|point| point["label"] == "afar"), "{far:?}");
    assert_eq!(host.same(&["mark", "--label", "afar"])[0]["error"]["code"], "label-taken");
    let [from, to] = ["label:one", "label:two"];
    assert!(!host.same(&["diff", "--from", from, "--to", to]).is_empty());
    host.same(&["diff", "--from", from, "--to", to, "--digest"]);
    host.same(&["diff", "--from", from, "--digest"]);
    assert_eq!(host.same(&["diff", "--from", from, "--to", to, "--disk", "none"])[0]["error"]["code"], "no-disk");
    let pinned = lines(&host.far(&["pin", "--at", from, "--label", "court"]));
    assert_eq!((pinned.0, &pinned.1[0]["label"]), (0, &Value::from("court")));
    // It is one pin, taken there and let go of here.
    assert_eq!(lines(&host.here(&["unpin", "--at", from])).1[0]["at"], pinned.1[0]["at"]);
    assert_eq!(host.same(&["unpin", "--at", from])[0]["error"]["code"], "not-pinned");
    assert_eq!(host.same(&["policy", "--window", "2h"])[0]["window_ms"], 2 * 3_600_000);
    assert_eq!(host.same(&["prune", "--dry-run"])[0]["dry_run"], true);
    host.same(&["compact"]);
    for gone in host.both(&["diff", "--from", "lsn:99999999", "--digest"]) {
        assert!(gone.0 == 3 && gone.1[0]["error"]["nearest"].is_array(), "{gone:?}");
    }
    let refused = lines(&host.far(&["policy", "--quota", "1GiB"]));
    assert_eq!((refused.0, &refused.1[0]["error"]["code"]), (4, &Value::from("not-from-afar")));
    let status =
        host.both(&["status"]).map(|(status, lines)| (status, lines[0]["group"].clone(), lines[0]["disks"].clone()));
    assert_eq!(status[0], status[1]);
    host.scene.running.stop_clean();
    // Nobody protects any more: the host itself answers.
    host.same(&["points"]);
    host.same(&["status"]);
    assert_eq!(host.same(&["verify"])[0]["ok"], true);
    let protected = lines(&host.far(&["mark", "--label", "late"]));
    assert_eq!(protected.0, 4, "{protected:?}");
}

#[test]
fn a_moment_is_restored_compared_and_served_from_afar() {
    let mut host = Far::begin(502);
    let one = host.scene.marked("one");
    let two = host.scene.marked("two");
    let out = host.scene.place.path("out.img");
    let output = out.to_str().unwrap().to_owned();
    let args = ["restore", "--at", "label:one", "--output", &output, "--force"];
    let restored = host.same(&args);
    assert!(restored[0]["outputs"][0]["bytes"] == DISK, "{restored:?}");
    std::fs::remove_file(&out).unwrap();
    assert_eq!(lines(&host.far(&args)).0, 0);
    assert!(std::fs::read(&out).unwrap() == one);
    assert!(!host.same(&["diff", "--from", "label:two", "--with", &output]).is_empty());
    assert!(host.same(&["diff", "--from", "label:one", "--with", &output]).is_empty());
    host.same(&["diff", "--from", "label:one", "--with", &output, "--digest"]);
    assert_eq!(host.same(&args[..5])[0]["error"]["code"], "output-exists");
    let far = ["--state", &host.state, "--peer", &host.peer];
    let socket = host.scene.place.socket("mount");
    let mut mounted = Running::mount(Path::new(&host.url), &socket, &[&["--at", "label:two"], &far[..]].concat());
    let mut content = vec![0; DISK];
    crate::support::client(mounted.uri()).read(0, &mut content).unwrap();
    assert!(content == two);
    assert_eq!(mounted.stop().0, 0);
    let writable = ["--writable", "--session", "lab"];
    let again = [&writable[..], &far].concat();
    let more = [&["--at", "label:one"], &again[..]].concat();
    let mut mounted = Running::mount(Path::new(&host.url), &socket, &more);
    let mut guest = Guest::of(mounted.uri(), &one, 7);
    guest.work(50);
    drop(mounted.stop());
    let model = guest.model;
    let mut mounted = Running::mount(Path::new(&host.url), &socket, &again);
    crate::support::client(mounted.uri()).read(0, &mut content).unwrap();
    assert!(content == model, "a named session has what was written in it");
    // As by a power cut: the lease ends it, and whoever comes meanwhile is told that it is open.
    mounted.kill();
    let here = lines(&host.here(&["mount", "--drop", "lab"]));
    assert_eq!((here.0, &here.1[0]["error"]["code"]), (4, &Value::from("session-open")));
    mark(&host.scene.replica, "after");
    assert!(hash(&out) == blake3::hash(&one));
}

#[test]
fn what_is_missing_to_reach_a_host_is_said() {
    let place = Place::new();
    let state = place.path("state");
    let url = "cdp://127.0.0.1:1/machine";
    let failed = |more: &[&str]| lines(&[&["status", url], more].concat());
    let (status, said) = failed(&[]);
    assert!(status == 2 && said[0]["error"]["message"].as_str().unwrap().contains("--state"), "{said:?}");
    let state = ["--state", state.to_str().unwrap()];
    let (status, said) = failed(&state);
    assert!(status == 2 && said[0]["error"]["message"].as_str().unwrap().contains("--peer"), "{said:?}");
    let peer = format!("sha256:{}", "7".repeat(64));
    let (status, said) = failed(&[&state[..], &["--peer", &peer]].concat());
    assert_eq!((status, &said[0]["error"]["code"]), (1, &Value::from("unreachable")));
    assert!(said[0]["error"]["hint"].as_str().unwrap().contains("whose certificate is sha256:"), "{said:?}");
}
