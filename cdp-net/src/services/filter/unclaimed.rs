//! Spool files of groups that the file does not name any more. Nobody reads them, and nobody removes them: the group may come back, and
//! what is in its directory beside them counts then.

use crate::services::config::FilterConfig;
use cdp_core::when::format_bytes;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// So many directories are named, and no more.
const FEW: usize = 8;
/// A block of a file's size, as systems count it.
const COUNTED: u64 = 512;

/// What somebody has to know of them; none: there are no such files. `state` has a directory of each group.
pub(super) fn sentence(state: &Path, filter: &FilterConfig) -> Option<String> {
    // A group without room on disk does not look at files that it had.
    let is_swept = |name: &str| filter.spool.disk.0 > 0 && filter.groups.iter().any(|group| group.name == name);
    // Of a state directory that is new, or cannot be read, there is nothing to be said here.
    let groups = fs::read_dir(state).into_iter().flatten().flatten();
    let others = groups.filter(|group| !group.file_name().to_str().is_some_and(is_swept));
    let spools = others.map(|group| group.path().join("spool"));
    let mut found: Vec<_> = spools.map(|spool| (bytes(&spool), spool)).filter(|(bytes, _)| *bytes > 0).collect();
    if found.is_empty() {
        return None;
    }
    found.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    let sum = found.iter().fold(0_u64, |sum, (bytes, _)| sum.saturating_add(*bytes));
    let one = |(bytes, spool): &(u64, std::path::PathBuf)| format!("{} ({})", spool.display(), format_bytes(*bytes));
    let named: Vec<_> = found.iter().take(FEW).map(one).collect();
    let more = match found.len().saturating_sub(FEW) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "filter: {} are taken by spool files that no group of this file uses: {}{more}. They may be removed: what was not durable \
         is read from the disks again should the group come back",
        format_bytes(sum),
        named.join(", "),
    ))
}

/// What the spool files of a directory take of their disk.
fn bytes(spool: &Path) -> u64 {
    let files = fs::read_dir(spool).into_iter().flatten().flatten();
    let ours = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "spool"));
    ours.filter_map(|file| file.metadata().ok()).map(|found| found.blocks().saturating_mul(COUNTED)).sum()
}
