use super::message::OPERATIONS;
use super::*;
use crate::report::{Policy, Problem, ProblemClass, Status};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CHILD_ROLE: &str = "CDP_TEST_OWNER_ROLE";
const CHILD_DIR: &str = "CDP_TEST_OWNER_DIR";
const NOW: Duration = Duration::ZERO;

/// Counts what is held; some requests misbehave on purpose.
#[derive(Default)]
struct Counting {
    held: Arc<AtomicUsize>,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Handler for Counting {
    fn handle(&self, request: Request, connection: &Connection) -> Result<Value, Problem> {
        match request {
            Request::Ping => reply(()),
            Request::Status => reply(Status { owner_pid: Some(std::process::id()), ..Status::default() }),
            Request::PinAll => {
                self.held.fetch_add(1, Ordering::SeqCst);
                connection.hold(Guard(Arc::clone(&self.held))).and_then(reply)
            }
            Request::Unpin { pin } => match connection.release(pin) {
                Some(_) => reply(()),
                None => Err(Problem::new(ProblemClass::Refused, "no-pin", "no such pin")),
            },
            Request::DropSession { name } => panic!("on purpose: {name}"),
            Request::OpenSession { .. } => reply("x".repeat(super::server::ANSWER_MAX)),
            _ => reply(Policy::default()),
        }
    }
}

struct Served {
    dir: TempDir,
    held: Arc<AtomicUsize>,
    _server: ControlServer,
    _owner: Owner,
}

fn serve() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner::acquire(dir.path()).unwrap();
    let handler = Counting::default();
    let held = Arc::clone(&handler.held);
    let server = ControlServer::start(&owner, Arc::new(handler)).unwrap();
    Served { dir, held, _server: server, _owner: owner }
}

impl Served {
    fn client(&self) -> ControlClient {
        ControlClient::connect(self.dir.path()).unwrap()
    }
    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join(SOCKET_FILE)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
    fn alive(&self) {
        self.client().call::<()>(&Request::Ping).unwrap();
    }
    fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The part that a test kills: this same test binary in another role. Does nothing when it runs as a test.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(CHILD_ROLE), std::env::var(CHILD_DIR)) else { return };
    let dir = PathBuf::from(dir);
    let kept: Box<dyn std::any::Any> = match role.as_str() {
        "owner" => {
            let owner = Owner::acquire(&dir).unwrap();
            let server = ControlServer::start(&owner, Arc::new(Counting::default())).unwrap();
            Box::new((owner, server))
        }
        _ => {
            let mut client = ControlClient::connect(&dir).unwrap();
            client.call::<u64>(&Request::PinAll).unwrap();
            Box::new(client)
        }
    };
    println!("\nready");
    std::thread::sleep(Duration::from_secs(60));
    drop(kept);
}

fn spawn(role: &str, dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner::tests::child_process", "--nocapture"])
        .env(CHILD_ROLE, role)
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"), "the child did not become ready");
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!is_owned(dir.path()).unwrap());
    let owner = Owner::acquire(dir.path()).unwrap();
    assert!(is_owned(dir.path()).unwrap());
    match Owner::acquire(dir.path()) {
        Err(OwnerError::Owned { pid, since, .. }) => {
            assert_eq!(pid, Some(std::process::id()));
            assert_eq!(since, Some(owner.since()));
        }
        other => panic!("{other:?}"),
    }
    drop(owner);
    assert!(!is_owned(dir.path()).unwrap());
    Owner::acquire(dir.path()).unwrap();
}

#[test]
fn a_look_never_disturbs_an_owner_that_begins() {
    let dir = tempfile::tempdir().unwrap();
    drop(Owner::acquire(dir.path()).unwrap());
    let path = dir.path().to_owned();
    let looking = std::thread::spawn(move || {
        for _ in 0..2000 {
            is_owned(&path).unwrap();
        }
    });
    while !looking.is_finished() {
        Owner::acquire(dir.path()).unwrap();
    }
    looking.join().unwrap();
}

#[test]
fn a_lock_file_that_says_nothing_still_locks() {
    let dir = tempfile::tempdir().unwrap();
    let _owner = Owner::acquire(dir.path()).unwrap();
    fs::write(dir.path().join(LOCK_FILE), [0xff; 4096]).unwrap();
    let error = Owner::acquire(dir.path()).unwrap_err();
    assert!(matches!(error, OwnerError::Owned { pid: None, since: None, .. }));
    assert!(error.to_string().ends_with("belongs to another process"), "{error}");
}

#[test]
fn what_is_no_replica_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(Owner::acquire(&missing).unwrap_err().to_string().contains("missing"));
    assert!(matches!(ControlClient::connect(&missing), Err(ClientError::Io { .. })));
    let linked = dir.path().join("linked");
    fs::create_dir(&linked).unwrap();
    std::os::unix::fs::symlink("/dev/null", linked.join(LOCK_FILE)).unwrap();
    assert!(matches!(Owner::acquire(&linked), Err(OwnerError::Io { .. })), "a lock file is never a link");
}

#[test]
fn a_killed_owner_leaves_the_lock_free() {
    let dir = tempfile::tempdir().unwrap();
    let child = spawn("owner", dir.path());
    let pid = child.id();
    match Owner::acquire(dir.path()) {
        Err(OwnerError::Owned { pid: owner, .. }) => assert_eq!(owner, Some(pid)),
        other => panic!("{other:?}"),
    }
    let mut client = ControlClient::connect(dir.path()).unwrap();
    assert_eq!(client.owner().pid, pid);
    assert_eq!(client.call::<Status>(&Request::Status).unwrap().owner_pid, Some(pid));
    kill(child);
    assert!(matches!(client.call::<Status>(&Request::Status), Err(ClientError::Io { .. })));
    assert!(dir.path().join(SOCKET_FILE).exists(), "kill -9 leaves the socket file");
    assert!(matches!(ControlClient::connect(dir.path()), Err(ClientError::NoOwner { .. })));
    let owner = Owner::acquire(dir.path()).unwrap();
    let _server = ControlServer::start(&owner, Arc::new(Counting::default())).unwrap();
    ControlClient::connect(dir.path()).unwrap();
}

#[test]
fn a_killed_reader_loses_its_hold() {
    let served = serve();
    let child = spawn("reader", served.dir.path());
    assert_eq!(served.held(), 1);
    kill(child);
    eventually("the hold is gone", || served.held() == 0);
}

#[test]
fn a_hold_lives_as_long_as_its_connection() {
    let served = serve();
    let (mut one, mut two) = (served.client(), served.client());
    let pin: u64 = one.call(&Request::PinAll).unwrap();
    let _: u64 = two.call(&Request::PinAll).unwrap();
    assert_eq!(served.held(), 2);
    one.call::<()>(&Request::Unpin { pin }).unwrap();
    assert_eq!(served.held(), 1);
    assert!(matches!(one.call::<()>(&Request::Unpin { pin }), Err(ClientError::Refused(_))));
    drop(two);
    eventually("the other's hold is gone", || served.held() == 0);
    for _ in 0..64 {
        one.call::<u64>(&Request::PinAll).unwrap();
    }
    match one.call::<u64>(&Request::PinAll) {
        Err(ClientError::Refused(problem)) => assert_eq!(problem.code, "too-many-holds"),
        other => panic!("{other:?}"),
    }
    assert_eq!(served.held(), 64);
}

#[test]
fn the_end_of_the_server_ends_its_connections() {
    let Served { dir, held, _server: server, _owner: owner } = serve();
    let mut client = ControlClient::connect(dir.path()).unwrap();
    client.call::<u64>(&Request::PinAll).unwrap();
    drop(server);
    assert_eq!(held.load(Ordering::SeqCst), 0);
    assert!(client.call::<()>(&Request::Ping).is_err());
    assert!(!dir.path().join(SOCKET_FILE).exists());
    drop(owner);
}

#[test]
fn a_path_longer_than_a_socket_address() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a".repeat(120)).join("b".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    let owner = Owner::acquire(&deep).unwrap();
    let _server = ControlServer::start(&owner, Arc::new(Counting::default())).unwrap();
    ControlClient::connect(&deep).unwrap().call::<()>(&Request::Ping).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(deep.join(SOCKET_FILE)).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "only the owner's user may ask");
}

#[test]
fn access_either_way() {
    let served = serve();
    assert!(matches!(Access::open(served.dir.path(), NOW), Ok(Access::Client(_))));
    let dir = tempfile::tempdir().unwrap();
    let owned = Access::open(dir.path(), NOW).unwrap();
    assert!(matches!(owned, Access::Owner(_)));
    let error = Access::open(dir.path(), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, AccessError::Owner(OwnerError::Owned { .. })), "locked and silent: {error}");
    let path = dir.path().to_owned();
    let waiting = std::thread::spawn(move || Access::open(&path, Duration::from_secs(20)));
    std::thread::sleep(Duration::from_millis(50));
    drop(owned);
    assert!(matches!(waiting.join().unwrap(), Ok(Access::Owner(_))), "a short command is waited for");
}

/// What the owner answers to these bytes (after a good greeting), up to the end of the connection or `lines` lines.
fn talk(served: &Served, bytes: &[u8], lines: usize) -> Vec<Value> {
    let mut stream = served.raw();
    let hello = json!({"protocol": PROTOCOL, "version": VERSION, "pid": 1, "new-field": true});
    stream.write_all(format!("{hello}\n").as_bytes()).unwrap();
    let _ = stream.write_all(bytes);
    let reader = BufReader::new(stream).lines().skip(1).take(lines);
    reader.map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap()).collect()
}

#[test]
fn malformed_requests_are_answered_by_number() {
    let served = serve();
    for (line, id, code) in [
        ("{}", 0, "bad-request"),
        ("[]", 0, "bad-request"),
        ("\u{0}", 0, "bad-request"),
        ("", 0, "bad-request"),
        ("{\"id\":-1,\"op\":\"ping\"}", 0, "bad-request"),
        ("{\"id\":7}", 7, "unknown-operation"),
        ("{\"id\":7,\"op\":5}", 7, "unknown-operation"),
        ("{\"id\":7,\"op\":\"format-all\"}", 7, "unknown-operation"),
        ("{\"id\":7,\"op\":\"mark\"}", 7, "bad-request"),
        ("{\"id\":7,\"op\":\"mark\",\"label\":\"a:b\"}", 7, "bad-request"),
        ("{\"id\":7,\"op\":\"pin\",\"at\":\"lsn:\"}", 7, "bad-request"),
        ("{\"id\":7,\"op\":\"drop-session\",\"name\":\"x\"}", 7, "internal"),
        ("{\"id\":7,\"op\":\"open-session\"}", 7, "too-large"),
    ] {
        let answers = talk(&served, format!("{line}\n{{\"id\":8,\"op\":\"ping\",\"more\":1}}\n").as_bytes(), 2);
        assert_eq!(answers[0]["id"], id, "{line}");
        assert_eq!(answers[0]["error"]["code"], code, "{line}: {}", answers[0]);
        assert_eq!(answers[1], json!({"id": 8, "ok": null}), "the connection goes on after {line}");
    }
    served.alive();
}

#[test]
fn hostile_bytes_never_hurt_the_owner() {
    let served = serve();
    let nested = [b"{\"id\":1,\"op\":".to_vec(), vec![b'['; 60_000], b"\n".to_vec()].concat();
    assert_eq!(talk(&served, &nested, 1)[0]["error"]["code"], "bad-request");
    let endless = vec![b'x'; 1 << 20];
    let answers = talk(&served, &endless, 2);
    assert!(answers.len() <= 1, "an endless line ends the connection: {answers:?}");
    for greeting in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\0\n", b"{\"protocol\":\"other\",\"version\":1,\"pid\":1}\n"]
    {
        let mut stream = served.raw();
        stream.write_all(greeting).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert!(text.contains("\"error\""), "{text}");
    }
    for half in [&b""[..], b"{", b"{\"protocol\":\"cdp-control\",\"version\":1,\"pid\":1}\n{\"id\":1"] {
        served.raw().write_all(half).unwrap();
    }
    served.alive();
}

#[test]
fn slow_greetings_are_not_waited_for() {
    let served = serve();
    let mut stream = served.raw();
    let began = Instant::now();
    // One byte a second would go on for ever if each byte restarted the clock.
    while stream.write_all(b"{").is_ok() && began.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(began.elapsed() < Duration::from_secs(12), "closed after {:?}", began.elapsed());
    served.alive();
}

#[test]
fn too_many_connections_are_told_so() {
    let served = serve();
    let mut all: Vec<_> = (0..64).map(|_| served.client()).collect();
    match ControlClient::connect(served.dir.path()) {
        Err(ClientError::Refused(problem)) => assert_eq!(problem.code, "busy"),
        other => panic!("{other:?}"),
    }
    all.pop();
    eventually("there is room again", || ControlClient::connect(served.dir.path()).is_ok());
}

#[test]
fn a_newer_client_is_answered_in_the_older_version() {
    let served = serve();
    let mut stream = served.raw();
    stream.write_all(b"{\"protocol\":\"cdp-control\",\"version\":99,\"pid\":1}\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(answer["ok"]["version"], VERSION);
}

#[test]
fn every_request_survives_its_line() {
    let when = || "2026-01-02T03:04:05Z".parse().unwrap();
    let requests = [
        Request::Ping,
        Request::Status,
        Request::Points { since: Some(when()), until: None, limit: Some(5) },
        Request::Mark { label: "before upgrade".parse().unwrap(), app_consistent: true },
        Request::Pin { at: when(), nearest: Some(Side::Before) },
        Request::PinAll,
        Request::Keep { at: when(), nearest: None, label: Some("court".parse().unwrap()) },
        Request::LetGo { at: when(), nearest: Some(Side::After) },
        Request::Prune { dry_run: true },
        Request::Compact,
        Request::Unpin { pin: 3 },
        Request::Policy { change: PolicyChange { rpo_ms: Some(1000), ..PolicyChange::default() } },
        Request::OpenSession { at: Some(when()), nearest: None, name: Some("lab".into()) },
        Request::DropSession { name: "lab".into() },
        Request::AddDisk { name: "logs".into(), source: "/dev/vg/logs".into() },
        Request::RemoveDisk { name: "logs".into() },
        Request::ResizeDisk { name: "logs".into(), size: Some(512), force: true },
    ];
    let operations: Vec<String> = requests
        .iter()
        .map(|request| {
            let line = serde_json::to_vec(&super::message::Envelope { id: 5, request }).unwrap();
            assert_eq!(super::message::parse(&line), (5, Ok(request.clone())));
            serde_json::from_slice::<Value>(&line).unwrap()["op"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(operations, OPERATIONS);
}

/// A short command that owned the directory closes its socket, and lets go of the lock a moment after.
#[test]
fn an_owner_that_ends_as_somebody_comes_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner::acquire(dir.path()).unwrap();
    let listener = UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap();
    let ending = std::thread::spawn(move || {
        // Accepted and not greeted.
        drop(listener.accept().unwrap());
        drop(listener);
        std::thread::sleep(Duration::from_millis(300));
        drop(owner);
    });
    let access = Access::open(dir.path(), Duration::from_secs(60));
    assert!(matches!(access, Ok(Access::Owner(_))), "{access:?}");
    ending.join().unwrap();
}
