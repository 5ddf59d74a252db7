use super::*;
use crate::services::http::fetch;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

/// Writes down what is asked of it in a file of the state directory. What it does is in its table: the most groups of a replica host,
/// or the connections of a gateway's tenant.
struct Probe {
    name: &'static str,
    context: Context,
    orders: std::sync::Mutex<u32>,
}

/// It does not start.
const NO_START: u32 = 13;
/// It does not take the file.
const NO_RELOAD: u32 = 14;
/// It fails.
const FAILS: u32 = 15;
/// It panics when asked how it stands.
const PANICS: u32 = 16;
/// Its drain takes a second.
const SLOW: u32 = 17;

impl Probe {
    fn log(&self, what: &str) {
        let path = self.context.state.join("log");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{} {what}", self.name).unwrap();
    }

    fn orders(&self) -> u32 {
        *self.orders.lock().unwrap()
    }

    fn begin(name: &'static str, orders: u32, context: &Context) -> Result<Self, RoleError> {
        let probe = Self { name, context: context.clone(), orders: orders.into() };
        probe.log("start");
        context.notes.say(&format!("{name} says hello"));
        if orders == NO_START { Err(RoleError::new("it has no mind to").hint("ask nicely")) } else { Ok(probe) }
    }

    fn again(&self, orders: u32) -> Result<Vec<String>, RoleError> {
        self.log(&format!("reload {orders}"));
        if orders == NO_RELOAD {
            return Err(RoleError::new("not this one"));
        }
        *self.orders.lock().unwrap() = orders;
        Ok(vec![format!("{}.listen", self.name)])
    }

    fn end(&self) -> Drained {
        if self.orders() == SLOW {
            std::thread::sleep(Duration::from_secs(1));
        }
        self.log("drain");
        Drained { left_bytes: 7 }
    }

    fn state(&self) -> Report {
        assert!(self.orders() != PANICS, "as ordered");
        let group = GroupReport { group: "web".into(), state: "passing", ..GroupReport::default() };
        Report { groups: vec![group], ..Report::default() }
    }
}

macro_rules! probe {
    ($name:ident, $table:literal, $orders:expr) => {
        struct $name(Probe);
        impl Role for $name {
            fn start(config: &Config, context: &Context) -> Result<Self, RoleError> {
                Probe::begin($table, $orders(config), context).map(Self)
            }
            fn name(&self) -> &'static str {
                $table
            }
            fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError> {
                self.0.again($orders(config))
            }
            fn drain(&self, _: Duration) -> Drained {
                self.0.end()
            }
            fn report(&self) -> Report {
                self.0.state()
            }
            fn failed(&self) -> Option<String> {
                (self.0.orders() == FAILS).then(|| "as ordered".into())
            }
        }
    };
}
probe!(Keeper, "replica-host", |config: &Config| config.replica_host.as_ref().unwrap().groups_max);
probe!(Door, "gateway", |config: &Config| config.gateway.as_ref().unwrap().connections_per_tenant);

const KINDS: [Kind; 2] = [Kind::of::<Keeper>("replica-host"), Kind::of::<Door>("gateway")];

/// A file with both roles.
fn file(directory: &Path, keeper: u32, door: u32, more: &str) -> PathBuf {
    let path = directory.join("cdp.toml");
    let text = format!(
        "state = \"state\"\nmetrics = \"127.0.0.1:0\"\ndrain = \"5s\"\n{more}\n\
         [[peer]]\nname = \"p\"\nfingerprint = \"sha256:{}\"\n\
         [replica-host]\nlisten = \"127.0.0.1:1\"\ndirectory = \"d\"\ngroups-max = {keeper}\n\
         [gateway]\nlisten = \"127.0.0.1:2\"\nticket-key = \"k\"\nconnections-per-tenant = {door}\nto = {{ a = \"h:1\" }}\n",
        "a".repeat(64)
    );
    fs::write(&path, text).unwrap();
    path
}

struct Serving {
    inbox: Inbox,
    events: Receiver<Event>,
    thread: JoinHandle<Result<(), RunError>>,
}

fn start(path: &Path, supervisor: Supervisor) -> Serving {
    let (inbox, (told, events)) = (Inbox::default(), channel());
    let (own, path) = (inbox.clone(), path.to_owned());
    let thread =
        std::thread::spawn(move || serve(&path, &KINDS, &own, &supervisor, &mut |event| drop(told.send(event))));
    Serving { inbox, events, thread }
}

impl Serving {
    /// The next event that is no sentence.
    fn event(&self) -> Event {
        loop {
            match self.events.recv_timeout(Duration::from_secs(60)).unwrap() {
                Event::Note { .. } => {}
                event => return event,
            }
        }
    }

    fn ready(&self) -> SocketAddr {
        loop {
            if let Event::Ready { roles, fingerprint, metrics } = self.event() {
                assert_eq!(roles, ["replica-host", "gateway"]);
                assert!(fingerprint.starts_with("sha256:"));
                return metrics.unwrap();
            }
        }
    }

    fn end(self) -> (Vec<Event>, Result<(), RunError>) {
        self.inbox.stop();
        let ended = self.thread.join().unwrap();
        (self.events.iter().filter(|event| !matches!(event, Event::Note { .. })).collect(), ended)
    }
}

fn log(directory: &Path) -> Vec<String> {
    fs::read_to_string(directory.join("state/log")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_end_of_the_chain_starts_first_and_is_drained_last() {
    let directory = tempfile::tempdir().unwrap();
    let serving = start(&file(directory.path(), 1, SLOW, ""), Supervisor::default());
    serving.ready();
    let (events, ended) = serving.end();
    ended.unwrap();
    let drained = |role| Event::Drained { role, left_bytes: 7 };
    let draining = Event::Draining { within_s: 5 };
    assert_eq!(events, [draining, drained("gateway"), drained("replica-host"), Event::Stopped]);
    let log = log(directory.path());
    assert_eq!(log, ["replica-host start", "gateway start", "gateway drain", "replica-host drain"]);
}

#[test]
fn a_new_file_is_told_to_all_and_what_stays_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), 1, 2, "");
    let serving = start(&path, Supervisor::default());
    serving.ready();
    fs::write(&path, "state = 1").unwrap();
    serving.inbox.reload();
    let Event::NotReloaded { why } = serving.event() else { panic!("it is no configuration") };
    assert!(why.contains("cdp.toml"), "{why}");
    file(directory.path(), NO_RELOAD, 4, "");
    let text = fs::read_to_string(&path).unwrap().replace("\"state\"", "\"elsewhere\"");
    fs::write(&path, text).unwrap();
    serving.inbox.reload();
    let unchanged = vec!["state".to_owned(), "gateway.listen".to_owned()];
    let refused = vec!["replica-host: not this one".to_owned()];
    assert_eq!(serving.event(), Event::Reloaded { unchanged, refused });
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.split("[gateway]").next().unwrap()).unwrap();
    serving.inbox.reload();
    let Event::Reloaded { unchanged, .. } = serving.event() else { panic!("it is a configuration") };
    assert_eq!(unchanged, ["state", "[gateway], which is not ended"], "it still differs");
    let (_, ended) = serving.end();
    ended.unwrap();
    assert!(log(directory.path()).contains(&"gateway reload 4".to_owned()));
    assert!(!directory.path().join("elsewhere").exists());
}

#[test]
fn a_role_that_fails_does_not_take_the_others_along() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), PANICS, 1, "");
    let serving = start(&path, Supervisor::default());
    let url = format!("http://{}/metrics", serving.ready());
    file(directory.path(), 1, FAILS, "");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let samples = runtime.block_on(fetch(&url)).unwrap();
    let up = |role: &str| {
        let of =
            |sample: &&crate::services::scrape::Sample| sample.name == "cdp_role_up" && sample.labels["role"] == role;
        samples.iter().find(of).unwrap().value
    };
    assert_eq!((up("replica-host"), up("gateway")), (0.0, 1.0));
    assert!(samples.iter().any(|sample| sample.name == "cdp_group_state" && sample.labels["group"] == "web"));
    serving.inbox.reload();
    loop {
        // The second one to fail is the last one: then the process ends by itself.
        if let Event::Failed { role: "gateway", why } = serving.event() {
            assert_eq!(why, "as ordered");
            break;
        }
    }
    let error = serving.thread.join().unwrap().unwrap_err().to_string();
    assert_eq!(error, "no role works any more: replica-host: it ended by a panic; gateway: as ordered");
    assert!(log(directory.path()).ends_with(&["gateway drain".into(), "replica-host drain".into()]));
}

#[test]
fn nothing_is_left_of_a_start_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), 1, NO_START, "");
    let error = start(&path, Supervisor::default()).thread.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the role gateway does not start: it has no mind to");
    let RunError::Role { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.hint.as_deref(), Some("ask nicely"));
    file(directory.path(), 1, 1, "");
    let one = start(&path, Supervisor::default());
    one.ready();
    let two = start(&path, Supervisor::default()).thread.join().unwrap().unwrap_err();
    assert!(matches!(two, RunError::Owner(OwnerError::Owned { .. })), "the state directory is free again, but once");
    one.end().1.unwrap();
    let serve = |kinds: &[Kind]| serve(&path, kinds, &Inbox::default(), &Supervisor::default(), &mut drop).unwrap_err();
    assert!(matches!(serve(&KINDS[..1]), RunError::NotBuilt { role: "gateway", .. }));
}

#[test]
fn the_supervisor_hears_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket_path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&socket_path).unwrap();
    let supervisor = Supervisor::new(Some(socket_path.as_os_str()), Some(Duration::from_millis(100)));
    let serving = start(&file(directory.path(), 1, 1, ""), supervisor);
    let hear = |wanted: &str| {
        let mut bytes = [0; 1024];
        loop {
            let length = socket.recv(&mut bytes).unwrap();
            let said = String::from_utf8_lossy(&bytes[..length]);
            if said.starts_with(wanted) {
                return said.into_owned();
            }
        }
    };
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(hear("READY=1"), "READY=1\nSTATUS=replica-host: 1 passing; gateway: 1 passing");
    (0..3).for_each(|_| drop(hear("WATCHDOG=1")));
    serving.inbox.reload();
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1");
    serving.inbox.stop();
    assert_eq!(hear("STOPPING=1"), "STOPPING=1\nSTATUS=draining");
    hear("EXTEND_TIMEOUT_USEC=");
    serving.thread.join().unwrap().unwrap();
}
