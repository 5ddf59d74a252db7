//! Which directories hold a replica: what must neither be written over nor protected nor made a replica of something else.

use super::sessions::SESSIONS_DIRECTORY;
use crate::owner::READERS_FILE;
use cdp_core::journal::{MANIFEST_COPY, MANIFEST_MAGIC, MANIFEST_NAME};
use cdp_core::replica::kept::KEPT_DIRECTORY;
use cdp_core::replica::{BASE_DIRECTORY, JOURNAL_DIRECTORY};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What a replica's directory holds at its top, or may hold when it was only begun; and what a new file system holds.
const OWN: [&str; 13] = [
    MANIFEST_NAME,
    MANIFEST_COPY,
    "MANIFEST.tmp",
    "MANIFEST.copy.tmp",
    "LOCK",
    "control.sock",
    READERS_FILE,
    "state",
    BASE_DIRECTORY,
    JOURNAL_DIRECTORY,
    SESSIONS_DIRECTORY,
    KEPT_DIRECTORY,
    "lost+found",
];

/// The replica inside whose directory this path lies, there or not; none if there is none around it.
pub(crate) fn replica_around(path: &Path) -> Option<PathBuf> {
    let whole = std::fs::canonicalize(path).or_else(|_| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::canonicalize(parent).map(|parent| parent.join(path.file_name().unwrap_or_default()))
    });
    let whole = whole.ok()?;
    whole.ancestors().skip(1).find(|directory| holds_replica(directory)).map(Path::to_owned)
}

fn holds_replica(directory: &Path) -> bool {
    let mut begins = [0; MANIFEST_MAGIC.len()];
    [MANIFEST_NAME, MANIFEST_COPY].into_iter().any(|name| {
        let read = std::fs::File::open(directory.join(name)).and_then(|mut file| file.read_exact(&mut begins));
        read.is_ok() && begins == MANIFEST_MAGIC
    })
}

/// Something in this directory that no replica put there; none too where there is no such directory.
///
/// # Errors
/// When it cannot be listed.
pub(crate) fn stranger(directory: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if !OWN.iter().any(|own| name == **own) {
            return Ok(Some(directory.join(name)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_seen_from_anything_inside_it() {
        let directory = tempfile::tempdir().unwrap();
        let replica = std::fs::canonicalize(directory.path()).unwrap().join("replica");
        std::fs::create_dir_all(replica.join("base")).unwrap();
        assert_eq!(replica_around(&replica.join("base/1.img")), None);
        std::fs::write(replica.join("MANIFEST"), [&MANIFEST_MAGIC[..], b"more"].concat()).unwrap();
        for inside in ["base/1.img", "MANIFEST", "new"] {
            assert_eq!(replica_around(&replica.join(inside)), Some(replica.clone()), "{inside}");
        }
        assert_eq!(replica_around(&replica), None, "beside it is not inside it");
        assert_eq!(stranger(&replica).unwrap(), None);
        std::fs::write(replica.join("passwd"), "x").unwrap();
        assert_eq!(stranger(&replica).unwrap(), Some(replica.join("passwd")));
        assert_eq!(stranger(&replica.join("nothing")).unwrap(), None);
    }
}
