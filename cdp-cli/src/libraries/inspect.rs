//! `inspect`: which file of ours it is, and what stands in it.

use super::open_storage;
use crate::exit::{Exit, Failure};
use crate::json::Inspected;
use cdp_core::capture::{LogContents, LogState};
use cdp_core::journal::{self, Manifest, read_manifest};
use cdp_core::media::{Disk, File, MediaError, Storage};
use cdp_core::replica::BaseFile;
use cdp_core::replica::sidecar::{self, Layout, PAGE_BYTES, PageDigest, Root};
use cdp_core::types::GroupId;
use cdp_net::protect::LOG_BYTES_MAX;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// What the file is and what stands in it.
pub(super) fn run(path: &Path) -> Result<Inspected, Failure> {
    let media = |error: MediaError| Failure::new(Exit::Failed, "unreadable", error.to_string());
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let message = format!("{} is a directory", path.display());
            let hint = "give a file in it: of a replica, MANIFEST or what lies in journal/, base/ and state/";
            return Err(Failure::new(Exit::Failed, "not-ours", message).hint(hint));
        }
        Ok(_) => {}
        Err(error) => {
            let message = format!("cannot open {}: {error}", path.display());
            return Err(Failure::new(Exit::Failed, "unreadable", message));
        }
    }
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = open_storage(directory)?.open(&name, false).map_err(media)?;
    let inspected = |text: String| {
        let mut lines = text.lines().map(str::to_owned);
        let kind = lines.next().unwrap_or_default();
        Inspected { path: path.to_owned(), kind, lines: lines.collect() }
    };
    let of_journal = journal::inspect(file.as_ref());
    let of_journal = of_journal.map_err(|error| Failure::new(Exit::Failed, "unreadable", error.to_string()))?;
    if let Some(text) = of_journal {
        return Ok(inspected(text));
    }
    // The other files name no owner that could be checked: their replica's manifest, a directory above, does.
    let replica: Option<Arc<dyn Storage>> = above(directory).and_then(|above| open_storage(&above).ok());
    let manifest = replica.and_then(|storage| read_manifest(storage.as_ref()).ok());
    let is_log = path.extension().is_some_and(|ending| ending == "log");
    let text = match (BaseFile::of(&name), &manifest) {
        (None, Some(manifest)) if is_log => activity_log(file.as_ref(), manifest.group).map_err(media)?,
        (Some(BaseFile::Image(_)), Some(_)) => base_image(file.as_ref()).map_err(media)?,
        (Some(BaseFile::Rests), Some(manifest)) => rests(file.as_ref(), manifest).map_err(media)?,
        (Some(BaseFile::Sidecar(disk) | BaseFile::EvenTable(disk) | BaseFile::OddTable(disk)), Some(manifest)) => {
            match manifest.disks.iter().find(|info| info.id == disk).and_then(|info| info.base) {
                Some(base) => of_sidecar(directory, path, base.into()).map_err(media)?,
                None => "a sidecar whose disk the manifest does not name, or not as complete\n".to_owned(),
            }
        }
        _ => {
            let message = format!("{} is none of our files", path.display());
            let hint =
                "a manifest, a segment, an activity log, a base image or a sidecar inside a replica's directory is";
            return Err(Failure::new(Exit::Failed, "not-ours", message).hint(hint));
        }
    };
    Ok(inspected(text))
}

/// The directory above another one, also where the path to that one does not name it.
fn above(directory: &Path) -> Option<PathBuf> {
    let climbs = directory.components().any(|part| part == Component::ParentDir);
    let whole = if climbs { directory.canonicalize() } else { std::path::absolute(directory) };
    whole.ok()?.parent().map(Path::to_owned)
}

fn state_word(state: LogState) -> &'static str {
    match state {
        LogState::Open => "open: what is marked may differ",
        LogState::Clean => "after a clean stop: nothing differs",
        LogState::AllUnknown => "of disks that were not compared to the end: anything may differ",
    }
}

fn activity_log(file: &dyn File, group: GroupId) -> Result<String, MediaError> {
    let mut bytes = vec![0; file.len()?.min(LOG_BYTES_MAX) as usize];
    file.read_exact_at(0, &mut bytes)?;
    let log = match LogContents::read(&bytes, group) {
        Ok(log) => log,
        Err(error) => return Ok(format!("an activity log that cannot be believed\n{error}\n")),
    };
    let mut text = format!(
        "an activity log, generation {}, {}\ngroup {}\ntimeline {}\nLSNs reserved up to {}, durable up to {}\n",
        log.generation,
        state_word(log.state),
        log.group,
        log.timeline,
        log.reserved_through,
        log.durable
    );
    for disk in &log.disks {
        let hot: u64 = disk.hot.iter().map(|run| run.length).sum();
        text.push_str(&format!("disk {}, {} bytes: {hot} bytes are marked\n", disk.id, disk.size));
        if disk.damaged_sectors > 0 {
            text.push_str(&format!("  {} sectors are damaged and count as marked\n", disk.damaged_sectors));
        }
        disk.hot.iter().for_each(|run| text.push_str(&format!("  bytes {} to {}\n", run.offset, run.end())));
    }
    Ok(text)
}

/// Of a sidecar, or of a digest table itself.
fn of_sidecar(directory: &Path, path: &Path, root: Root) -> Result<String, MediaError> {
    let ending = format!("dig{}", root.generation % 2);
    if path.extension().is_some_and(|found| found != "sum" && found != ending.as_str()) {
        return Ok("a digest table of a base that is not in use\n".to_owned());
    }
    let name = path.with_extension(ending);
    let table = Disk::open(directory)?.open(&name.file_name().unwrap_or_default().to_string_lossy(), false)?;
    let mut bytes = vec![0; root.layout.table_bytes(root.size)];
    let length = table.read_at(0, &mut bytes)?;
    let Some(digests) = sidecar::decode_table(&bytes[..length], root) else {
        return Ok("a sidecar whose digest table does not match the root in the manifest\n".to_owned());
    };
    let at_rest = if root.layout == Layout::AtRest { ", sealed at rest" } else { "" };
    let absent = digests.iter().filter(|digest| **digest == PageDigest::Absent).count();
    Ok(format!(
        "the sidecar of a base of {} bytes, generation {}{at_rest}\n{} pages of {PAGE_BYTES} bytes, {absent} absent (all zeros there)\nroot {}\n",
        root.size,
        root.generation,
        digests.len(),
        root.digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    ))
}

/// What a merge wrote down before it changed blocks in parts.
fn rests(file: &dyn File, manifest: &Manifest) -> Result<String, MediaError> {
    let use_of_it = match manifest.merge {
        Some(merge) => format!("a merge up to LSN {} is under way", merge.lsn),
        None => "no merge is under way: nobody needs it".to_owned(),
    };
    Ok(format!("what a merge leaves of blocks that it changes in parts\n{} bytes; {use_of_it}\n", file.len()?))
}

fn base_image(file: &dyn File) -> Result<String, MediaError> {
    let (mut stored, mut at) = (0, 0);
    while let Some(run) = file.next_data(at)? {
        stored += run.length;
        at = run.end();
    }
    Ok(format!("a base image, raw\n{} bytes, {stored} of them stored\n", file.len()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::journal::DiskInfo;
    use cdp_core::replica::base::BaseWriter;
    use cdp_core::types::{BLOCK, DiskId, Lsn, ReplicaId};

    #[test]
    fn every_file_of_a_base_is_explained_and_a_stranger_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let storage = Disk::open(directory.path()).unwrap();
        let (replica, disk) = (ReplicaId::new([1; 16]).unwrap(), DiskId::new(1).unwrap());
        let mut base = BaseWriter::create(&storage, replica, disk, 2 * BLOCK).unwrap();
        base.data(&[7; BLOCK as usize], Lsn(1)).unwrap();
        let root = base.finish(&storage, Lsn(1)).unwrap();
        let mut manifest = Manifest::new(replica, GroupId::new([2; 16]).unwrap(), "group");
        manifest.disks.push(DiskInfo {
            id: disk,
            name: "disk".to_owned(),
            size: root.size,
            source: String::new(),
            added: Lsn::ZERO,
            removed: None,
            stopped: None,
            base: Some(root.named(Lsn(1))),
        });
        journal::create(&storage, manifest).unwrap();
        for name in ["2.sum", "1.dig0", "merge.rests", "backup.img"] {
            storage.create(&format!("base/{name}")).unwrap();
        }
        let ask = |name: &str| run(&directory.path().join("base").join(name));
        for (name, kind) in [
            ("1.img", "a base image, raw"),
            ("1.sum", "the sidecar of a base of 8192 bytes, generation 1"),
            ("1.dig1", "the sidecar of a base of 8192 bytes, generation 1"),
            ("1.dig0", "a digest table of a base that is not in use"),
            ("2.sum", "a sidecar whose disk the manifest does not name, or not as complete"),
            ("merge.rests", "what a merge leaves of blocks that it changes in parts"),
        ] {
            assert_eq!(ask(name).unwrap().kind, kind, "{name}");
        }
        assert_eq!(ask("backup.img").unwrap_err().code, "not-ours");
        let (directory, nothing) = (run(directory.path()).unwrap_err(), ask("none.img").unwrap_err());
        assert!(directory.code == "not-ours" && directory.message.ends_with(" is a directory"), "{directory:?}");
        assert!(nothing.code == "unreadable" && nothing.message.contains("none.img: No such file"), "{nothing:?}");
    }
}
