//! `cdp diff` by the libraries.

use super::behind;
use crate::engine::{DiffSpec, DiffTo};
use crate::exit::Failure;
use crate::json::{DiffEvent, Of};
use cdp_core::trust::KeyHolder;
use cdp_net::diff::{Against, Raw, differences, digest_with, digests};
use cdp_net::owner::Access;
use cdp_net::reading::{Reading, ReadingTwo};
use cdp_net::restore::OnProgress;
use std::path::Path;

pub(super) fn run(
    dir: &Path,
    spec: &DiffSpec,
    (mut access, key): (Access, &KeyHolder),
    progress: OnProgress<'_>,
    events: &mut dyn FnMut(DiffEvent),
) -> Result<(), Failure> {
    let second = match &spec.to {
        Some(DiffTo::Moment(to)) => to,
        _ => &spec.from,
    };
    let behind = behind(&mut access, &[&spec.from, second]);
    match &spec.to {
        Some(DiffTo::Moment(to)) => {
            let reading = ReadingTwo::open(dir, access, [&spec.from, to], spec.nearest, key)?;
            reading.check_disk(spec.disk.as_deref())?;
            let [from, to] = reading.views()?;
            let [at_from, at_to] = &reading.at;
            events(DiffEvent::Begin { from: at_from.clone(), to: Some(at_to.clone()), behind });
            if !spec.digest {
                return differences_of(spec, &from, Against::Moment(&to), progress, events);
            }
            for (view, side) in [(&from, (Of::From, at_from)), (&to, (Of::To, at_to))] {
                let found = digests(view, side, spec.disk.as_deref(), progress)?;
                found.into_iter().for_each(|digest| events(DiffEvent::Digest(digest)));
            }
            Ok(())
        }
        Some(DiffTo::File(path)) => {
            let raw = Raw::open(path)?;
            let mut reading = Reading::open(dir, access, &spec.from, spec.nearest, key)?;
            reading.check_disk(spec.disk.as_deref())?;
            let view = reading.view()?;
            events(DiffEvent::Begin { from: reading.at.clone(), to: None, behind });
            if !spec.digest {
                return differences_of(spec, &view, Against::Raw(&raw), progress, events);
            }
            let with = digest_with(&view, &raw, spec.disk.as_deref(), progress)?;
            // Only the disk that the file counts as.
            let found = digests(&view, (Of::From, &reading.at), Some(&with.disk), progress)?;
            found.into_iter().chain([with]).for_each(|digest| events(DiffEvent::Digest(digest)));
            Ok(())
        }
        None => {
            let mut reading = Reading::open(dir, access, &spec.from, spec.nearest, key)?;
            reading.check_disk(spec.disk.as_deref())?;
            events(DiffEvent::Begin { from: reading.at.clone(), to: None, behind });
            let found = digests(&reading.view()?, (Of::From, &reading.at), spec.disk.as_deref(), progress)?;
            found.into_iter().for_each(|digest| events(DiffEvent::Digest(digest)));
            Ok(())
        }
    }
}

fn differences_of(
    spec: &DiffSpec,
    from: &cdp_core::replica::ReplicaView,
    to: Against<'_>,
    progress: OnProgress<'_>,
    events: &mut dyn FnMut(DiffEvent),
) -> Result<(), Failure> {
    let mut found = |difference| events(DiffEvent::Difference(difference));
    Ok(differences(from, to, spec.disk.as_deref(), progress, &mut found)?)
}
