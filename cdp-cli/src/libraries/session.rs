//! A session that is open to be written, wherever its replica is.

use super::moments::order;
use crate::engine::MountSpec;
use crate::exit::{Exit, Failure};
use crate::json::At;
use crate::place::Way;
use cdp_core::trust::KeyHolder;
use cdp_net::far::OpenView;
use cdp_net::moment::MomentDisks;
use cdp_net::mount::SessionDevice;
use cdp_net::nbd;
use cdp_net::reading::Writing;
use cdp_net::services::remote_reading::{RemoteSessionDevice, RemoteView};
use std::sync::Arc;

pub(super) enum OpenedSession {
    /// In a directory.
    Here(Box<Writing>),
    /// At a replica host.
    Far(Arc<RemoteView>),
}

impl OpenedSession {
    /// Makes or opens it.
    pub(super) fn open(way: Way, spec: &MountSpec, key: &KeyHolder) -> Result<Self, Failure> {
        match way {
            Way::Here { dir, access } => {
                let (at, session) = (spec.at.as_ref(), spec.session.clone());
                Ok(Self::Here(Box::new(Writing::open(&dir, access, at, spec.nearest, session, key)?)))
            }
            Way::Far(replica) => {
                let order = order(spec.at.as_ref(), spec.nearest, None);
                let order = OpenView { writable: true, session: spec.session.clone(), ..order };
                Ok(Self::Far(replica.view(order)?))
            }
        }
    }

    /// Its disks.
    pub(super) fn exports(&self) -> Vec<nbd::Export> {
        match self {
            Self::Here(writing) => {
                let disks = writing.session.view().disks().iter().cloned();
                let device = |disk| Arc::new(SessionDevice::new(Arc::clone(&writing.session), disk));
                disks.map(|disk| nbd::Export::new(disk.name.clone(), device(disk))).collect()
            }
            Self::Far(view) => {
                let device = |disk| Arc::new(RemoteSessionDevice::new(Arc::clone(view), disk));
                let disks = view.disks().iter().cloned();
                disks.map(|disk| nbd::Export::new(disk.name.clone(), device(disk))).collect()
            }
        }
    }

    /// The moment that it began at, its name, and the disks of which nothing could be restored.
    pub(super) fn said(&self) -> (At, Option<String>, Vec<String>) {
        match self {
            Self::Here(writing) => (writing.report.at.clone(), writing.report.name.clone(), writing.incomplete.clone()),
            Self::Far(view) => {
                let name = view.opened.session.as_ref().and_then(|session| session.name.clone());
                (view.opened.at.clone(), name, view.opened.incomplete.clone())
            }
        }
    }

    /// Ends it, with everything durable that is to be kept.
    pub(super) fn close(self) -> Result<(), Failure> {
        match self {
            Self::Here(writing) => {
                let closed = writing.session.close(cdp_net::clock::now());
                closed.map_err(|error| Failure::new(Exit::Failed, "session", error.to_string()))
            }
            Self::Far(view) => Ok(view.close()?),
        }
    }
}
