//! The engine that is real: every call goes straight to the libraries.

mod diff;
mod inspect;
mod moments;
mod protect;
mod session;

use self::moments::{Moment, behind};
use self::session::OpenedSession;
use crate::engine::{DiffSpec, Engine, MountSpec, ProtectSpec, RestoreSpec};
use crate::exit::{Exit, Failure};
use crate::json::{DiffEvent, Export, Inspected, MountEvent, ProtectEvent, Restored, Stopped, Verified};
use crate::place::Way;
use crate::progress::Progress;
use crate::stop::Stop;
use cdp_core::media::{Disk, Storage};
use cdp_core::trust::{KeyHolder, WrappingKey};
use cdp_net::device::Device;
use cdp_net::host::{Host, Looking, ReadWhole, read_only};
use cdp_net::mount::ViewDevice;
use cdp_net::nbd::{self, Address, ListenError, Place, ServeError, Server, ServerOptions, TlsError, TlsServer, Uri};
use cdp_net::owner::{Access, Handler, Owner, Request};
use cdp_net::restore::{RestoreOptions, restore};
use cdp_net::verify::{verify, verify_beside_owner};
use std::error::Error as _;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Where a mount is served when nobody says.
const MOUNT_HOST: &str = "127.0.0.1";
const MOUNT_PORT: u16 = 10810;
/// How long requests that are under way at the end of a mount may take.
const CLOSE: Duration = Duration::from_secs(10);

/// cdp-core and cdp-net.
#[derive(Debug, Default)]
pub struct Libraries {
    /// Opens what is sealed at rest.
    key: OnceLock<KeyHolder>,
}

impl Libraries {
    fn key(&self) -> KeyHolder {
        self.key.get().cloned().unwrap_or_default()
    }
}

fn open_storage(dir: &Path) -> Result<Arc<dyn Storage>, Failure> {
    let disk = Disk::open(dir).map_err(|error| Failure::new(Exit::Failed, "replica-directory", error.to_string()))?;
    Ok(Arc::new(disk))
}

/// Serves exports where a URI says, or at the default place of mounts.
fn serve(
    listen: Option<&Uri>,
    tls: Option<&Path>,
    exports: Vec<nbd::Export>,
) -> Result<(Server, Vec<Export>), Failure> {
    listen_at(listen, tls)?.serve(exports)
}

/// A place that is listened on, where nobody is answered yet.
struct Listening {
    place: Place,
    options: ServerOptions,
}

fn unserved(error: &ServeError) -> Failure {
    Failure::new(Exit::Failed, "listen", error.to_string()).hint(listen_hint(error))
}

impl Listening {
    fn serve(mut self, exports: Vec<nbd::Export>) -> Result<(Server, Vec<Export>), Failure> {
        let sizes: Vec<_> = exports.iter().map(|export| (export.name.clone(), export.size())).collect();
        self.options.exports = exports;
        let server = Server::start_at(self.place, self.options).map_err(|error| unserved(&error))?;
        let served =
            server.uris().into_iter().zip(sizes).map(|(uri, (name, size))| Export { name, uri: uri.to_string(), size });
        let served = served.collect();
        Ok((server, served))
    }
}

/// Listens where a URI says, or at the default place of mounts.
fn listen_at(listen: Option<&Uri>, tls: Option<&Path>) -> Result<Listening, Failure> {
    let default = || Address::Tcp { host: MOUNT_HOST.into(), port: MOUNT_PORT };
    let mut options = ServerOptions::new(listen.map_or_else(default, |uri| uri.address.clone()), Vec::new());
    options.next_free = listen.is_none();
    let usage = |code: &str, message: &str| Failure::new(Exit::Usage, code, message);
    options.tls = match (tls, listen.is_some_and(|uri| uri.tls)) {
        (Some(directory), _) => {
            let tls = TlsServer::from_directory(directory);
            let why = |error: TlsError| match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            Some(tls.map_err(|error| Failure::new(Exit::Failed, "tls", why(error)))?)
        }
        (None, true) => {
            let message = "the URI asks for TLS, and there are no certificates";
            return Err(usage("tls", message).hint("give their directory with --tls-certificates"));
        }
        (None, false) => None,
    };
    let place = Place::take(&options.address, options.next_free).map_err(|error| unserved(&error))?;
    Ok(Listening { place, options })
}

/// What to do about an address that cannot be listened on.
fn listen_hint(error: &ServeError) -> &'static str {
    let ServeError::Listen(error) = error else { return "give another place with --listen" };
    match error {
        ListenError::InUse { .. } => "stop what listens there, or give another place with --listen",
        ListenError::NotASocket { .. } => "remove that file, or give another place with --listen",
        ListenError::Io { address, source } => match (source.kind(), address) {
            (ErrorKind::PermissionDenied, Address::Tcp { .. }) => {
                "ports below 1024 are for root: give a higher one with --listen, such as nbd://127.0.0.1:10809"
            }
            (ErrorKind::PermissionDenied, Address::Unix(_)) => {
                "give a path with --listen in a directory that you may write to"
            }
            (ErrorKind::NotFound, Address::Unix(_)) => "make the directory of that path, or give another with --listen",
            (ErrorKind::AddrNotAvailable, _) => {
                "that address is none of this machine's: give one that is with --listen, or 0.0.0.0 for all"
            }
            _ => "give another place with --listen",
        },
    }
}

impl Engine for Libraries {
    fn take_key(&self, key: KeyHolder) {
        // The first one counts: a command line has one.
        let _ = self.key.set(key);
    }

    fn rotate_key(&self, dir: &Path, access: Access, new: &WrappingKey) -> Result<bool, Failure> {
        match access {
            Access::Owner(owner) => Ok(cdp_net::host::rotate_key(&owner, &open_storage(dir)?, &self.key(), new)?),
            Access::Client(_) => {
                let message = "the replica is in use, and whoever uses it has the old key";
                Err(Failure::new(Exit::Refused, "in-use", message)
                    .hint("end `cdp protect`, rotate the key, start it again"))
            }
        }
    }

    fn open(&self, owner: Owner) -> Result<Box<dyn Handler>, Failure> {
        let host = Host::idle(open_storage(owner.dir())?, &self.key())?;
        let read_only = owner.is_read_only().then(|| read_only(owner.dir()));
        let answers: Arc<dyn Handler> = match read_only {
            Some(refusal) => Arc::new(Looking::new(host, refusal)),
            None => host,
        };
        Ok(Box::new(OwnedHost { answers, _owner: owner }))
    }

    fn protect(
        &self,
        spec: &ProtectSpec,
        stop: &Stop,
        events: &mut dyn FnMut(ProtectEvent),
    ) -> Result<Stopped, Failure> {
        protect::run(spec, self.key(), stop, events)
    }

    fn mount(
        &self,
        way: Way,
        spec: &MountSpec,
        stop: &Stop,
        events: &mut dyn FnMut(MountEvent),
    ) -> Result<(), Failure> {
        if spec.writable {
            mount_session(way, spec, &self.key(), stop, events)
        } else {
            mount_view(way, spec, &self.key(), stop, events)
        }
    }

    fn restore(
        &self,
        mut way: Way,
        spec: &RestoreSpec,
        stop: &Stop,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Restored, Failure> {
        let behind = behind(&mut way, [&spec.at]);
        let moment = Moment::open(way, &spec.at, spec.nearest, spec.disk.as_deref(), &self.key())?;
        let options = RestoreOptions { output: spec.output.clone(), disk: spec.disk.clone(), force: spec.force };
        let outputs = restore(moment.disks().as_ref(), &options, &mut |done, total| {
            progress(Progress { done, total });
            !stop.is_wished()
        })?;
        Ok(Restored { at: moment.at().clone(), outputs, incomplete: moment.incomplete(), behind })
    }

    fn diff(
        &self,
        way: Way,
        spec: &DiffSpec,
        stop: &Stop,
        progress: &mut dyn FnMut(Progress),
        events: &mut dyn FnMut(DiffEvent),
    ) -> Result<(), Failure> {
        let mut told = |done, total| {
            progress(Progress { done, total });
            !stop.is_wished()
        };
        diff::run(way, spec, &self.key(), &mut told, events)
    }

    fn verify(&self, way: Way, stop: &Stop, progress: &mut dyn FnMut(Progress)) -> Result<Verified, Failure> {
        let mut told = |done, total| {
            progress(Progress { done, total });
            !stop.is_wished()
        };
        match way {
            Way::Far(replica) => Ok(replica.verify(&mut told)?),
            Way::Here { dir, access: Access::Client(mut client) } => {
                Ok(verify_beside_owner(&open_storage(&dir)?, &mut client, &self.key(), &mut told)?)
            }
            Way::Here { dir, access: Access::Owner(owner) } => {
                let storage = open_storage(&dir)?;
                let _whole = ReadWhole::begin(owner, &storage, &self.key());
                Ok(verify(&storage, None, &self.key(), &mut told)?)
            }
        }
    }

    fn inspect(&self, path: &Path) -> Result<Inspected, Failure> {
        inspect::run(path)
    }
}

/// A host, and the lock under which it may answer.
struct OwnedHost {
    answers: Arc<dyn Handler>,
    _owner: Owner,
}

impl Handler for OwnedHost {
    fn handle(
        &self,
        request: Request,
        connection: &cdp_net::owner::Connection,
    ) -> Result<serde_json::Value, cdp_net::report::Problem> {
        self.answers.handle(request, connection)
    }
}

fn mount_view(
    mut way: Way,
    spec: &MountSpec,
    key: &KeyHolder,
    stop: &Stop,
    events: &mut dyn FnMut(MountEvent),
) -> Result<(), Failure> {
    let Some(at) = &spec.at else {
        return Err(Failure::new(Exit::Usage, "usage", "a mount that takes no writes needs --at"));
    };
    let behind = behind(&mut way, [at]);
    let moment = Moment::open(way, at, spec.nearest, None, key)?;
    let view = moment.disks();
    let exports = view.disks().iter().map(|disk| {
        let device: Arc<dyn Device> = Arc::new(ViewDevice::new(Arc::clone(&view), disk.clone()));
        nbd::Export::new(disk.name.clone(), device)
    });
    let (server, exports) = serve(spec.listen.as_ref(), spec.tls.as_deref(), exports.collect())?;
    let (at, incomplete) = (moment.at().clone(), moment.incomplete());
    events(MountEvent::Ready { at, exports, session: None, writable: false, incomplete, behind });
    wait_for(stop);
    server.stop(CLOSE);
    events(MountEvent::Stopped { kept: false });
    Ok(())
}

fn mount_session(
    mut way: Way,
    spec: &MountSpec,
    key: &KeyHolder,
    stop: &Stop,
    events: &mut dyn FnMut(MountEvent),
) -> Result<(), Failure> {
    let behind = behind(&mut way, spec.at.as_slice());
    let opened = OpenedSession::open(way, spec, key)?;
    let (server, exports) = serve(spec.listen.as_ref(), spec.tls.as_deref(), opened.exports())?;
    let (at, session, incomplete) = opened.said();
    let kept = session.is_some();
    events(MountEvent::Ready { at, exports, session, writable: true, incomplete, behind });
    wait_for(stop);
    server.stop(CLOSE);
    opened.close()?;
    events(MountEvent::Stopped { kept });
    Ok(())
}

fn wait_for(stop: &Stop) {
    while !stop.wait(Duration::from_secs(60)) {}
}
