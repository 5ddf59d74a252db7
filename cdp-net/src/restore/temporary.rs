//! The hidden file that an image is written into before it gets its name: `.NAME.cdp-XXXXXXXX` in its own directory.
//!
//! Who writes it holds its lock (`flock`) from the first moment on. So what a killed restore left is told from what is being
//! written, and the next restore of that name removes it.

use super::{around, failed};
use crate::report::Problem;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Digits of what makes its name unlike that of others who write the same at a time.
const DIGITS: usize = 8;
/// How often a file is made that somebody takes for a leftover before it is locked.
const TRIES: usize = 16;

fn prefix(path: &Path) -> String {
    format!(".{}.cdp-", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Makes the file for what will be at `path`.
pub(super) fn make(path: &Path) -> Result<(File, PathBuf), Problem> {
    let prefix = prefix(path);
    let mut tries = 0;
    loop {
        tries += 1;
        let unique: String = crate::random::identity()[..DIGITS / 2].iter().map(|byte| format!("{byte:02x}")).collect();
        let temporary = around(path).join(format!("{prefix}{unique}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.map_err(|error| failed("make", &temporary, &error))?;
        // Where a file system knows no such lock, nobody gets it to remove the file either.
        let is_taken = flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK);
        let is_gone = file.metadata().is_ok_and(|found| found.nlink() == 0);
        if !(is_taken || is_gone) || tries == TRIES {
            return Ok((file, temporary));
        }
    }
}

/// Removes what killed restores of this path left. What cannot be removed is a hidden file that says by its name what it is.
pub(super) fn remove_left(path: &Path) {
    let prefix = prefix(path);
    let is_ours = |name: &str| {
        let unique = name.strip_prefix(&prefix);
        unique.is_some_and(|unique| unique.len() == DIGITS && unique.bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    let entries = std::fs::read_dir(around(path)).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_ours)) {
        let left = entry.path();
        // Neither a link is followed nor a pipe waited for.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(&left) else { continue };
        let is_file = file.metadata().is_ok_and(|found| found.is_file());
        if is_file && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_file(&left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_writes_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let (file, being_written) = make(&path).unwrap();
        let (dropped, left) = make(&path).unwrap();
        drop(dropped);
        let others = [".disk.img.cdp-0123456", ".disk.img.cdp-0123456x", ".other.img.cdp-01234567", "disk.img"];
        others.iter().for_each(|name| std::fs::write(directory.path().join(name), name).unwrap());
        std::os::unix::fs::symlink(&path, directory.path().join(".disk.img.cdp-01234567")).unwrap();
        remove_left(&path);
        assert!(!left.exists() && being_written.exists());
        for name in others.iter().chain(&[".disk.img.cdp-01234567"]) {
            assert!(directory.path().join(name).symlink_metadata().is_ok(), "{name}");
        }
        drop(file);
        remove_left(&path);
        assert!(!being_written.exists());
    }
}
