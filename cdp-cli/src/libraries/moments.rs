//! Moments to be read, wherever their replica is.

use crate::exit::Failure;
use crate::json::{At, Difference, DiskDigest, Gap, Of, Points};
use crate::place::Way;
use cdp_core::replica::ReplicaView;
use cdp_core::trust::KeyHolder;
use cdp_core::when::When;
use cdp_net::diff::{differences, digests};
use cdp_net::far::{OpenView, ReadName};
use cdp_net::moment::MomentDisks;
use cdp_net::owner::{Access, Request, Side};
use cdp_net::reading::{Reading, ReadingTwo};
use cdp_net::restore::OnProgress;
use cdp_net::services::remote_reading::{RemoteReplica, RemoteView};
use std::sync::Arc;

/// What nobody can restore now, if one of the moments is the latest and that is not the present. Where nobody protects there is no
/// present; who does not answer says why when he is asked for the moment.
pub(super) fn behind<'a>(way: &mut Way, moments: impl IntoIterator<Item = &'a When>) -> Option<Gap> {
    moments.into_iter().find(|moment| **moment == When::Latest)?;
    let request = Request::Points { since: Some(When::Latest), until: None, limit: Some(1) };
    let points: Points = match way {
        Way::Here { access: Access::Client(client), .. } => client.call(&request).ok()?,
        Way::Here { access: Access::Owner(_), .. } => return None,
        Way::Far(replica) => replica.request(&request).ok()?,
    };
    points.gaps.into_iter().find(|gap| gap.open)
}

/// What is opened at a replica host.
pub(super) fn order(at: Option<&When>, nearest: Option<Side>, disk: Option<&str>) -> OpenView {
    OpenView {
        view: ReadName::draw(),
        at: at.cloned(),
        nearest,
        disk: disk.map(str::to_owned),
        writable: false,
        session: None,
    }
}

/// A moment that is held while this lives.
pub(super) enum Moment {
    /// In a directory.
    Here { view: Arc<ReplicaView>, reading: Box<Reading> },
    /// At a replica host.
    Far { replica: Arc<RemoteReplica>, view: Arc<RemoteView> },
}

impl Moment {
    /// Opens it. Of `disk`, if one is named, something must be restorable.
    pub(super) fn open(
        way: Way,
        at: &When,
        nearest: Option<Side>,
        disk: Option<&str>,
        key: &KeyHolder,
    ) -> Result<Self, Failure> {
        match way {
            Way::Here { dir, access } => {
                let mut reading = Box::new(Reading::open(&dir, access, at, nearest, key)?);
                reading.check_disk(disk)?;
                Ok(Self::Here { view: Arc::new(reading.view()?), reading })
            }
            Way::Far(replica) => {
                let view = replica.view(order(Some(at), nearest, disk))?;
                Ok(Self::Far { replica, view })
            }
        }
    }

    pub(super) fn at(&self) -> &At {
        match self {
            Self::Here { reading, .. } => &reading.at,
            Self::Far { view, .. } => &view.opened.at,
        }
    }

    pub(super) fn incomplete(&self) -> Vec<String> {
        match self {
            Self::Here { reading, .. } => reading.incomplete(),
            Self::Far { view, .. } => view.opened.incomplete.clone(),
        }
    }

    pub(super) fn disks(&self) -> Arc<dyn MomentDisks> {
        match self {
            Self::Here { view, .. } => Arc::clone(view) as _,
            Self::Far { view, .. } => Arc::clone(view) as _,
        }
    }

    pub(super) fn digests(
        &self,
        of: Of,
        disk: Option<&str>,
        progress: OnProgress<'_>,
    ) -> Result<Vec<DiskDigest>, Failure> {
        match self {
            Self::Here { view, reading } => Ok(digests(view, (of, &reading.at), disk, progress)?),
            Self::Far { replica, view } => Ok(replica.digests((view, of), disk, progress)?),
        }
    }
}

/// Two moments of one replica.
pub(super) enum TwoMoments {
    /// In a directory.
    Here { views: Box<[ReplicaView; 2]>, reading: Box<ReadingTwo> },
    /// At a replica host.
    Far { replica: Arc<RemoteReplica>, views: [Arc<RemoteView>; 2] },
}

impl TwoMoments {
    /// Opens them. Of `disk`, if one is named, the first copy must have been through.
    pub(super) fn open(
        way: Way,
        [from, to]: [&When; 2],
        nearest: Option<Side>,
        disk: Option<&str>,
        key: &KeyHolder,
    ) -> Result<Self, Failure> {
        match way {
            Way::Here { dir, access } => {
                let reading = Box::new(ReadingTwo::open(&dir, access, [from, to], nearest, key)?);
                reading.check_disk(disk)?;
                Ok(Self::Here { views: Box::new(reading.views()?), reading })
            }
            Way::Far(replica) => {
                let open = |when| {
                    let view = replica.view(order(Some(when), nearest, None))?;
                    // Why nothing of it can be restored is said there.
                    let incomplete = disk.filter(|disk| view.opened.incomplete.iter().any(|name| name == disk));
                    incomplete.map(|disk| replica.view(order(Some(when), nearest, Some(disk)))).transpose()?;
                    Ok::<_, Failure>(view)
                };
                let views = [open(from)?, open(to)?];
                Ok(Self::Far { replica, views })
            }
        }
    }

    pub(super) fn at(&self) -> [&At; 2] {
        match self {
            Self::Here { reading, .. } => reading.at.each_ref(),
            Self::Far { views, .. } => views.each_ref().map(|view| &view.opened.at),
        }
    }

    pub(super) fn differences(
        &self,
        disk: Option<&str>,
        progress: OnProgress<'_>,
        found: &mut dyn FnMut(Difference),
    ) -> Result<(), Failure> {
        match self {
            Self::Here { views, .. } => Ok(differences(&views[0], &views[1], disk, progress, found)?),
            Self::Far { replica, views: [from, to] } => Ok(replica.differences([from, to], disk, progress, found)?),
        }
    }

    /// Of both, one after the other.
    pub(super) fn digests(
        &self,
        disk: Option<&str>,
        progress: OnProgress<'_>,
        found: &mut dyn FnMut(DiskDigest),
    ) -> Result<(), Failure> {
        for (side, of) in [Of::From, Of::To].into_iter().enumerate() {
            let made = match self {
                Self::Here { views, reading } => digests(&views[side], (of, &reading.at[side]), disk, progress)?,
                Self::Far { replica, views } => replica.digests((&views[side], of), disk, progress)?,
            };
            made.into_iter().for_each(&mut *found);
        }
        Ok(())
    }
}
