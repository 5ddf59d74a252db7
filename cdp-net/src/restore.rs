//! Writing the disks of a moment into files and devices: whole or not at all.
//!
//! A file is written sparse under a temporary name in its own directory, synced, and only then given its name; what a killed
//! restore left there goes with the next one of that name. A block device is opened exclusively; what it must hold is written and
//! zeroed in place.

mod copy;
mod temporary;

use self::copy::{Sink, copy};
use crate::device::{Device, ZeroFlags};
use crate::file_device::FileDevice;
use crate::host::place;
use crate::moment::MomentDisks;
use crate::report::{Problem, ProblemClass};
use crate::source::{SourceError, lock_image};
use bytes::Bytes;
use cdp_core::replica::ViewDisk;
use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// What to write where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreOptions {
    /// A file, a block device, or a directory for several disks.
    pub output: PathBuf,
    /// One disk of several.
    pub disk: Option<String>,
    /// Overwrite what is there.
    pub force: bool,
}

/// A disk that was written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RestoredDisk {
    /// Its name in the group.
    pub disk: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The size in bytes of what was there, if it was larger: a device keeps what lies behind the disk's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over: Option<u64>,
}

/// Told bytes done and bytes in all; says whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Writes the disks of the view.
///
/// # Errors
/// When something is there and not to be overwritten, the output cannot be written, or a byte does not verify. The disk that
/// was being written leaves nothing behind then, unless it was going to a block device; those before it are complete.
pub fn restore(
    view: &dyn MomentDisks,
    options: &RestoreOptions,
    progress: OnProgress<'_>,
) -> Result<Vec<RestoredDisk>, Problem> {
    let made = options.output.as_os_str().as_encoded_bytes().ends_with(b"/") && make_directory(&options.output)?;
    let restored = restore_all(view, options, progress);
    if restored.is_err() && made {
        // With a complete disk in it, it stays.
        let _ = std::fs::remove_dir(&options.output);
    }
    restored
}

fn restore_all(
    view: &dyn MomentDisks,
    options: &RestoreOptions,
    progress: OnProgress<'_>,
) -> Result<Vec<RestoredDisk>, Problem> {
    let targets = targets(view, options)?;
    for (_, path) in &targets {
        check_target(path, options)?;
    }
    let total = targets.iter().map(|(disk, _)| disk.size).sum();
    let mut done = 0;
    let mut restored = Vec::new();
    for (disk, path) in targets {
        let mut of_disk = |here: u64| progress(done + here, total);
        let over = size_of(&path).filter(|there| *there > disk.size);
        if is_block_device(&path) {
            write_device(view, &disk, &path, &mut of_disk)?;
        } else {
            write_file(view, &disk, (&path, options.force), &mut of_disk)?;
        }
        done += disk.size;
        restored.push(RestoredDisk { disk: disk.name, path, bytes: disk.size, over });
    }
    Ok(restored)
}

/// Bytes of what is there, if it can be asked.
fn size_of(path: &Path) -> Option<u64> {
    io::Seek::seek(&mut File::open(path).ok()?, io::SeekFrom::End(0)).ok()
}

/// Makes the directory that was asked for by a slash at its end; whether it was not there.
fn make_directory(path: &Path) -> Result<bool, Problem> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => {
            made.map_err(|error| failed("make", path, &error))?;
            sync_around(path).map(|()| true).map_err(|error| {
                let _ = std::fs::remove_dir(path);
                failed("sync the directory of", path, &error)
            })
        }
    }
}

/// The directory that a path is in.
fn around(path: &Path) -> &Path {
    path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a new name durable.
fn sync_around(path: &Path) -> io::Result<()> {
    File::open(around(path)).and_then(|directory| directory.sync_all())
}

fn refused(code: &str, message: String) -> Problem {
    Problem::new(ProblemClass::Refused, code, message)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Problem {
    let problem = Problem::new(ProblemClass::Failed, "output", format!("cannot {what} {}: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            problem.hint("make room there, or give a place on another disk")
        }
        _ => problem,
    }
}

/// Refuses what must not be written over, before the first byte of any disk is written.
fn check_target(path: &Path, options: &RestoreOptions) -> Result<(), Problem> {
    let force = options.force;
    if let Some(replica) = place::replica_around(path) {
        let message = format!("{} lies inside the replica {}", path.display(), replica.display());
        return Err(refused("output-in-replica", message).hint("give a place outside of it"));
    }
    let Ok(found) = std::fs::metadata(path) else { return Ok(()) };
    let kind = found.file_type();
    if kind.is_block_device() && !force {
        let message = format!("{} is a block device: what it holds would be lost", path.display());
        return Err(refused("output-exists", message).hint("--force writes over it"));
    }
    if kind.is_file() && !force {
        return Err(exists(path));
    }
    if kind.is_file() {
        // An image that a machine or a protection has open would go on living without a name.
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| failed("open", path, &error))?;
        if let Err(error @ SourceError::Locked { .. }) = lock_image(&file, path) {
            return Err(refused("output-busy", error.to_string()));
        }
    }
    if !kind.is_file() && !kind.is_block_device() {
        let message = format!("{} is neither a file nor a block device", path.display());
        return Err(refused("output-kind", message).hint("give the name of a new file"));
    }
    Ok(())
}

fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

fn targets(view: &dyn MomentDisks, options: &RestoreOptions) -> Result<Vec<(ViewDisk, PathBuf)>, Problem> {
    // What a link names is written, not the link.
    let resolved = std::fs::canonicalize(&options.output).unwrap_or_else(|_| options.output.clone());
    let output = &resolved;
    let in_directory = |disk: &ViewDisk| output.join(format!("{}.img", disk.name));
    let names = || view.disks().iter().map(|disk| disk.name.clone()).collect::<Vec<_>>();
    let chosen: Vec<&ViewDisk> = match &options.disk {
        Some(name) => view.disks().iter().filter(|disk| disk.name == *name).collect(),
        None => view.disks().iter().collect(),
    };
    if chosen.is_empty() {
        return Err(no_disk(options.disk.as_deref().unwrap_or_default(), &names()));
    }
    match (&chosen[..], output.is_dir()) {
        (disks, true) => Ok(disks.iter().map(|disk| ((*disk).clone(), in_directory(disk))).collect()),
        ([disk], false) => Ok(vec![((*disk).clone(), output.clone())]),
        (_, false) => {
            let message = format!(
                "the moment has several disks ({}) and {} is no directory",
                names().join(", "),
                output.display()
            );
            Err(refused("several-disks", message)
                .hint("choose one with --disk, or give a directory: one that ends with a slash is made"))
        }
    }
}

/// Why a disk that was asked for by name was not found.
pub(crate) fn no_disk(name: &str, names: &[String]) -> Problem {
    let message = format!("there is no disk {name:?} at that moment; there are: {}", names.join(", "));
    Problem::new(ProblemClass::Usage, "no-disk", message)
}

fn stopped() -> Problem {
    Problem::new(ProblemClass::Failed, "stopped", "stopped before the end: nothing was left behind")
}

/// Gives a file the owner and the permissions of the one that it is going to replace. Who may not give files away keeps it to
/// itself: what was readable for others only because of its owner does not become so for more.
fn take_after(file: &File, replaced: &Path) {
    let Ok(found) = std::fs::metadata(replaced) else { return };
    if fchown(file, Some(found.uid()), Some(found.gid())).is_ok() {
        let _ = file.set_permissions(found.permissions());
    }
}

/// Gives what was written its name. What came there since it was looked for is only replaced by force.
fn name_it(temporary: &Path, path: &Path, force: bool) -> Result<(), Problem> {
    let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    let renamed = match renameat_with(CWD, temporary, CWD, path, flags) {
        // A file system that cannot refuse by itself is asked first.
        Err(Errno::INVAL | Errno::NOSYS) if !force && path.symlink_metadata().is_ok() => Err(Errno::EXIST),
        Err(Errno::INVAL | Errno::NOSYS) => renameat(CWD, temporary, CWD, path),
        renamed => renamed,
    };
    renamed.map_err(|errno| match errno {
        Errno::EXIST => exists(path),
        errno => failed("rename to", path, &errno.into()),
    })
}

/// Why a file is not written over.
fn exists(path: &Path) -> Problem {
    let message = format!("{} is there already", path.display());
    refused("output-exists", message).hint("give another file, or --force to replace it")
}

fn write_file(
    view: &dyn MomentDisks,
    disk: &ViewDisk,
    (path, force): (&Path, bool),
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), Problem> {
    // First, so that their room is there.
    temporary::remove_left(path);
    let (file, temporary) = temporary::make(path)?;
    let written = fill_file(view, disk, &file, &temporary, progress).and_then(|()| {
        take_after(&file, path);
        name_it(&temporary, path, force)?;
        sync_around(path).map_err(|error| failed("sync", around(path), &error))
    });
    if written.is_err() {
        // What cannot be removed now goes with the next restore.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn fill_file(
    view: &dyn MomentDisks,
    disk: &ViewDisk,
    file: &File,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), Problem> {
    let problem = |error: io::Error| failed("write", path, &error);
    file.set_len(disk.size).map_err(problem)?;
    // It is new: where nothing is written it is all zeros.
    let sink = Sink { data: &|offset, bytes| file.write_all_at(&bytes, offset).map_err(problem), zero: &|_| Ok(()) };
    copy(view, disk, &sink, &mut |at| if progress(at) { Ok(()) } else { Err(stopped()) })?;
    file.sync_all().map_err(problem)?;
    if progress(disk.size) { Ok(()) } else { Err(stopped()) }
}

fn write_device(
    view: &dyn MomentDisks,
    disk: &ViewDisk,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), Problem> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => refused("output-busy", format!("{} is mounted or in use", path.display())),
        _ => failed("open", path, &error),
    })?;
    let device = FileDevice::new(file, false).map_err(|error| failed("open", path, &error))?;
    if device.size() < disk.size {
        let message = format!("{} has {} bytes, the disk has {}", path.display(), device.size(), disk.size);
        return Err(refused("output-too-small", message));
    }
    fill_device(view, disk, &device, path, progress)
}

fn fill_device(
    view: &dyn MomentDisks,
    disk: &ViewDisk,
    device: &FileDevice,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), Problem> {
    let problem = |error: io::Error| failed("write", path, &error);
    let sink = Sink {
        data: &|offset, bytes| device.write(offset, Bytes::from(bytes), false).map_err(problem),
        zero: &|run| {
            let flags = ZeroFlags { no_hole: !run.hole, ..ZeroFlags::default() };
            device.write_zeroes(run.extent.offset, run.extent.length, flags).map_err(problem)
        },
    };
    copy(view, disk, &sink, &mut |at| {
        if progress(at) {
            return Ok(());
        }
        let message = format!("stopped before the end: {} holds a part of the disk", path.display());
        Err(Problem::new(ProblemClass::Failed, "stopped", message))
    })?;
    device.flush().map_err(problem)
}
