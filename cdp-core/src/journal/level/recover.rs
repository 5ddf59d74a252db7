//! What a start makes of runs: those that are not as the manifest says are forgotten, for their footers are there.

use super::codec::{check_header, check_trailer};
use super::read::broken;
use super::{RunInfo, run_name};
use crate::journal::layout::FIXED_BYTES;
use crate::journal::manifest::Manifest;
use crate::journal::reader::ReadError;
use crate::journal::scan::twice;
use crate::media::{self, Storage};

/// A run that the manifest named and a start dropped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::journal) struct Fault {
    pub(in crate::journal) name: String,
    pub(in crate::journal) what: String,
}

/// Drops runs of which file, header, length or trailer are not as the manifest says, or whose segments are all gone. A read that
/// fails twice is as good as a missing file here: nothing is lost by it.
pub(in crate::journal) fn drop_unsound(storage: &dyn Storage, directory: &str, manifest: &mut Manifest) -> Vec<Fault> {
    let mut faults = Vec::new();
    let segments = &manifest.segments;
    manifest.runs.retain(|run| {
        let name = media::join(directory, &run_name(run.number));
        let first = segments.partition_point(|segment| segment.number < run.first_segment);
        let needed = segments.get(first).is_some_and(|segment| segment.number <= run.last_segment);
        if !needed {
            let what = "the segments that it was made of are gone".to_owned();
            faults.push(Fault { name, what });
            return false;
        }
        match twice(|| check(storage, &name, run)) {
            Ok(()) => true,
            Err(error) => {
                faults.push(Fault { name, what: error.to_string() });
                false
            }
        }
    });
    faults
}

fn check(storage: &dyn Storage, name: &str, run: &RunInfo) -> Result<(), ReadError> {
    let file = storage.open(name, false)?;
    let mut bytes = [0; FIXED_BYTES];
    file.read_exact_at(0, &mut bytes)?;
    check_header(&bytes, run).map_err(broken(run, 0))?;
    file.read_exact_at(run.trailer_at(), &mut bytes)?;
    check_trailer(&bytes, run).map_err(broken(run, run.trailer_at()))
}
