//! `cdp diff` by the libraries.

use super::moments::{Moment, TwoMoments, behind};
use crate::engine::{DiffSpec, DiffTo};
use crate::exit::Failure;
use crate::json::{DiffEvent, Of};
use crate::place::Way;
use cdp_core::trust::KeyHolder;
use cdp_net::diff::{Raw, differences_with, digest_with};
use cdp_net::restore::OnProgress;

pub(super) fn run(
    mut way: Way,
    spec: &DiffSpec,
    key: &KeyHolder,
    progress: OnProgress<'_>,
    events: &mut dyn FnMut(DiffEvent),
) -> Result<(), Failure> {
    let second = match &spec.to {
        Some(DiffTo::Moment(to)) => to,
        _ => &spec.from,
    };
    let behind = behind(&mut way, [&spec.from, second]);
    let disk = spec.disk.as_deref();
    match &spec.to {
        Some(DiffTo::Moment(to)) => {
            let moments = TwoMoments::open(way, [&spec.from, to], spec.nearest, disk, key)?;
            let [from, to] = moments.at().map(Clone::clone);
            events(DiffEvent::Begin { from, to: Some(to), behind });
            if spec.digest {
                return moments.digests(disk, progress, &mut |digest| events(DiffEvent::Digest(digest)));
            }
            moments.differences(disk, progress, &mut |difference| events(DiffEvent::Difference(difference)))
        }
        Some(DiffTo::File(path)) => {
            let raw = Raw::open(path)?;
            let moment = Moment::open(way, &spec.from, spec.nearest, disk, key)?;
            let view = moment.disks();
            events(DiffEvent::Begin { from: moment.at().clone(), to: None, behind });
            if !spec.digest {
                let mut found = |difference| events(DiffEvent::Difference(difference));
                return Ok(differences_with(view.as_ref(), &raw, disk, progress, &mut found)?);
            }
            let with = digest_with(view.as_ref(), &raw, disk, progress)?;
            // Only the disk that the file counts as.
            let found = moment.digests(Of::From, Some(&with.disk), progress)?;
            found.into_iter().chain([with]).for_each(|digest| events(DiffEvent::Digest(digest)));
            Ok(())
        }
        None => {
            let moment = Moment::open(way, &spec.from, spec.nearest, disk, key)?;
            events(DiffEvent::Begin { from: moment.at().clone(), to: None, behind });
            let found = moment.digests(Of::From, disk, progress)?;
            found.into_iter().for_each(|digest| events(DiffEvent::Digest(digest)));
            Ok(())
        }
    }
}
