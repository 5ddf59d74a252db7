//! Whoever started the process and wants to know how it does: the protocol of `sd_notify(3)`, datagrams to `$NOTIFY_SOCKET`.
//!
//! Nobody waits for it: what cannot be sent is not sent, and a process without a supervisor sends nothing.

use crate::clock;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// During a drain more time is asked for, so much at once.
const EXTEND: Duration = Duration::from_secs(15);

/// See the module's text.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that the environment names.
    #[must_use]
    pub fn of_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        // The watchdog is meant for the process with this number, if one is given.
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| meant).map(Duration::from_micros);
        Self::new(std::env::var_os("NOTIFY_SOCKET").as_deref(), watchdog)
    }

    /// One that listens on this socket, a path or `@` and an abstract name, and restarts what is silent for so long.
    #[must_use]
    pub fn new(socket: Option<&OsStr>, watchdog: Option<Duration>) -> Self {
        let address = socket.and_then(|name| match name.as_bytes().split_first()? {
            (b'@', name) => SocketAddr::from_abstract_name(name).ok(),
            (b'/', _) => SocketAddr::from_pathname(name).ok(),
            _ => None,
        });
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        Self { socket, watchdog: watchdog.filter(|time| !time.is_zero()) }
    }

    /// How often it wants to hear that the process is alive: twice in the time that it waits.
    #[must_use]
    pub fn alive_every(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog).map(|time| time / 2)
    }

    /// Everything is started, or a new file is taken, or was refused.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// The file is being read again.
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::mono().0 / 1000));
    }

    /// The end has begun.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", line(status)));
    }

    /// How it stands, for people.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    /// The process is alive.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// A drain goes on as it should.
    pub fn draining(&self) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", EXTEND.as_micros()));
        self.alive();
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            // A supervisor that is gone or does not read is not waited for.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

/// One line: each of its lines would be a message of its own.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn what_is_said_arrives_at_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor::new(Some(path.as_os_str()), Some(Duration::from_secs(4)));
        assert_eq!(supervisor.alive_every(), Some(Duration::from_secs(2)));
        supervisor.ready("2 groups\nSTOPPING=1");
        assert_eq!(received(&socket), "READY=1\nSTATUS=2 groups STOPPING=1");
        supervisor.reloading();
        let said = received(&socket);
        let stamp = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(stamp.parse::<u64>().unwrap() > 0);
        supervisor.draining();
        assert_eq!(
            (received(&socket), received(&socket)),
            ("EXTEND_TIMEOUT_USEC=15000000".into(), "WATCHDOG=1".into())
        );
        drop(socket);
        supervisor.stopping("nobody hears it");
    }

    #[test]
    fn abstract_names_are_heard_and_what_is_no_socket_is_not_used() {
        let name = format!("cdp-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Supervisor::new(Some(OsStr::new(&format!("@{name}"))), None).status("x");
        assert_eq!(received(&socket), "STATUS=x");
        for wrong in ["", "relative", "vsock:2:1"] {
            let supervisor = Supervisor::new(Some(OsStr::new(wrong)), Some(Duration::from_secs(1)));
            assert_eq!(supervisor.alive_every(), None);
            supervisor.alive();
        }
    }

    #[test]
    fn a_supervisor_that_does_not_read_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _silent = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor::new(Some(path.as_os_str()), None);
        (0..10_000).for_each(|_| supervisor.status("a message"));
    }
}
