//! A real disk to protect: an ext4 file system with files of this machine, and a ledger inside one of them.
//!
//! The ledger's blocks belong to a file, so writers may change them at will and the file system stays what it was: `e2fsck`
//! has to find every moment of the disk clean. Without `mke2fs` the disk holds text and no file system.

use super::layout::BLOCK;
use super::port::Port;
use super::sector::Rng;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where real files are taken from, in this order, as far as they are there: only what everybody may read anyway.
const SOURCES: [&str; 3] = ["/usr/share/doc", "/usr/include", "/usr/share"];
/// First bytes of each block of the ledger's file before there is a ledger.
const MARKER: &[u8; 16] = b"cdp ledger block";
/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// What a disk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// An ext4 file system.
    Ext4,
    /// Text.
    Raw,
}

/// A disk that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Made {
    /// What it holds.
    pub content: Content,
    /// Files that were put into it.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Where the ledger may begin.
    pub ledger: u64,
}

/// Where a program is: in `PATH`, `/sbin` or `/usr/sbin`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// Makes a disk of `size` bytes in the new file `path`, with room for a ledger of `ledger` bytes and about `files` bytes of
/// real files. Uses a directory beside `path` for a while.
///
/// # Errors
/// When the file cannot be made, or `mke2fs` is there and fails.
pub fn make(path: &Path, size: u64, ledger: u64, files: u64) -> Result<Made> {
    let image = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let image = image.with_context(|| format!("cannot make the disk {}", path.display()))?;
    image.set_len(size)?;
    match find_program("mke2fs") {
        Some(mke2fs) => make_ext4(&mke2fs, path, &image, ledger, files),
        None => make_raw(&image, size, ledger, files),
    }
}

fn make_raw(image: &File, size: u64, ledger: u64, files: u64) -> Result<Made> {
    let mut rng = Rng::new(size);
    let text = fill(files.min(size - ledger), &mut rng);
    image.write_all_at(&text, 0)?;
    let at = (size - ledger) / BLOCK * BLOCK;
    Ok(Made { content: Content::Raw, files: 0, bytes: text.len() as u64, ledger: at })
}

/// Lines that compress about as documents do.
fn fill(bytes: u64, rng: &mut Rng) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes as usize + 64);
    while (text.len() as u64) < bytes {
        text.extend_from_slice(format!("{:08} the quick brown fox {:x}\n", rng.below(10_000), rng.next()).as_bytes());
    }
    text.truncate(bytes as usize);
    text
}

fn make_ext4(mke2fs: &Path, path: &Path, image: &File, ledger: u64, files: u64) -> Result<Made> {
    let mut staging = path.as_os_str().to_owned();
    staging.push(".files");
    let staging = Staging(staging.into());
    fs::create_dir(&staging.0)?;
    // First, so that it lies in one piece.
    write_marked(&staging.0.join("0-ledger"), ledger)?;
    let (mut count, mut bytes) = (0, 0);
    for source in SOURCES.map(Path::new) {
        copy_files(source, &staging.0, files, &mut count, &mut bytes);
    }
    let output = Command::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "root_owner=0:0", "-d"])
        .arg(&staging.0)
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", mke2fs.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed on {}: {}", mke2fs.display(), path.display(), said.trim());
    }
    let at = match find_marked(image, ledger / BLOCK)? {
        Some(at) => at,
        None => {
            // It lies in pieces: the ledger gets a place behind the file system.
            let end = image.metadata()?.len().next_multiple_of(BLOCK);
            image.set_len(end + ledger)?;
            end
        }
    };
    Ok(Made { content: Content::Ext4, files: count, bytes, ledger: at })
}

/// A directory that is removed in the end.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn marker(index: u64) -> [u8; BLOCK as usize] {
    let mut block = [b'.'; BLOCK as usize];
    block[..16].copy_from_slice(MARKER);
    block[16..24].copy_from_slice(&index.to_le_bytes());
    block
}

fn write_marked(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = io::BufWriter::new(File::create_new(path)?);
    (0..bytes / BLOCK).try_for_each(|index| file.write_all(&marker(index)))?;
    file.flush()
}

/// Where the marked blocks lie one after the other, if they do.
fn find_marked(image: &File, blocks: u64) -> io::Result<Option<u64>> {
    let size = image.metadata()?.len();
    let mut buffer = vec![0; CHUNK];
    let (mut begin, mut found) = (None, 0);
    let mut at = 0;
    while at < size {
        let length = CHUNK.min((size - at) as usize);
        image.read_exact_at(&mut buffer[..length], at)?;
        for (number, block) in buffer[..length].chunks(BLOCK as usize).enumerate() {
            let offset = at + number as u64 * BLOCK;
            if !block.starts_with(MARKER) {
                continue;
            }
            if block.starts_with(&marker(0)[..24]) {
                begin = Some(offset);
            }
            let in_place = begin.is_some_and(|begin| offset == begin + found * BLOCK) && block == marker(found);
            found += u64::from(in_place);
        }
        at += length as u64;
    }
    Ok(begin.filter(|_| found == blocks))
}

/// Copies regular files, in the order of their names, until there are enough. What cannot be read is left out.
fn copy_files(from: &Path, to: &Path, bytes_max: u64, count: &mut u64, bytes: &mut u64) {
    let Ok(entries) = fs::read_dir(from) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if *bytes >= bytes_max {
            return;
        }
        let Ok(kind) = path.symlink_metadata() else { continue };
        if kind.is_dir() {
            copy_files(&path, to, bytes_max, count, bytes);
        } else if kind.is_file() && kind.len() > 0 && *bytes + kind.len() <= bytes_max {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.chars().take(100).collect::<String>();
            // A directory of its own for every hundred files.
            let dir = to.join(format!("{:04}", *count / 100));
            if fs::create_dir_all(&dir).is_ok() && fs::copy(&path, dir.join(format!("{count:06}-{name}"))).is_ok() {
                *count += 1;
                *bytes += kind.len();
            }
        }
    }
}

/// What `e2fsck -fn` says of an image: clean, or its words. `None` where there is no `e2fsck`.
///
/// # Errors
/// When it cannot be started.
pub fn check_file_system(image: &Path) -> Result<Option<std::result::Result<(), String>>> {
    let Some(e2fsck) = find_program("e2fsck") else { return Ok(None) };
    let output = Command::new(&e2fsck).arg("-fn").arg(image).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", e2fsck.display()))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(Some(if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).trim().to_owned()) }))
}

/// The first byte outside the run `ledger` of `length` bytes in which two images differ.
///
/// # Errors
/// When they cannot be read.
pub fn first_difference_outside(one: &File, other: &File, ledger: u64, length: u64) -> io::Result<Option<u64>> {
    let sizes = (one.metadata()?.len(), other.metadata()?.len());
    let size = sizes.0.min(sizes.1);
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    while at < size {
        if (ledger..ledger + length).contains(&at) {
            at = ledger + length;
            continue;
        }
        let end = if at < ledger { size.min(ledger) } else { size };
        let count = CHUNK.min((end - at) as usize);
        one.read_exact_at(&mut left[..count], at)?;
        other.read_exact_at(&mut right[..count], at)?;
        // As slices first: byte by byte only where something is wrong.
        let (left, right) = (&left[..count], &right[..count]);
        if left != right {
            let byte = left.iter().zip(right).position(|(left, right)| left != right).unwrap_or(0);
            return Ok(Some(at + byte as u64));
        }
        at += count as u64;
    }
    Ok((sizes.0 != sizes.1).then_some(size))
}

/// Ruins a disk as an encrypting virus does: its beginning, and blocks all over it. How many bytes were overwritten.
///
/// # Errors
/// What the disk says.
pub fn ruin(port: &mut dyn Port, size: u64, seed: u64) -> io::Result<u64> {
    const STRIDE: u64 = 1 << 20;
    let mut rng = Rng::new(seed);
    let mut noise = vec![0; 64 << 10];
    let mut bytes = 0;
    for at in (0..size).step_by(STRIDE as usize) {
        noise.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]));
        let count = (size - at).min(noise.len() as u64) / 512 * 512;
        port.write(at, &noise[..count as usize], false)?;
        bytes += count;
    }
    port.flush()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::port::ImageFile;
    use crate::demo::{Layout, check, format};

    #[test]
    fn a_file_system_around_a_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let size = 96 << 20;
        let length = Layout::standard(0, 1).end();
        let made = make(&path, size, length, 4 << 20).unwrap();
        let layout = Layout::standard(made.ledger, 1);
        if find_program("mke2fs").is_none() {
            println!("skipped: an ext4 image, mke2fs is not there");
            assert_eq!(made.content, Content::Raw);
        } else {
            assert_eq!(made.content, Content::Ext4);
            assert!(made.ledger + length <= size, "the ledger lies in a file: {made:?}");
        }
        let pristine = dir.path().join("pristine.img");
        fs::copy(&path, &pristine).unwrap();
        let mut disk = ImageFile(OpenOptions::new().read(true).write(true).open(&path).unwrap());
        format(&mut disk, &layout).unwrap();
        assert_eq!(check(&mut disk.0, made.ledger).unwrap().movements(), 0);
        let other = File::open(&pristine).unwrap();
        assert_eq!(first_difference_outside(&disk.0, &other, made.ledger, length).unwrap(), None);
        expect_clean(&path, made.content, true);
        assert!(ruin(&mut disk, size, 1).unwrap() >= size / 16);
        assert_eq!(first_difference_outside(&disk.0, &other, made.ledger, length).unwrap(), Some(0));
        assert!(check(&mut disk.0, made.ledger).is_err());
        expect_clean(&path, made.content, false);
        assert!(!dir.path().join("disk.img.files").exists());
    }

    fn expect_clean(path: &Path, content: Content, clean: bool) {
        match check_file_system(path).unwrap() {
            None => println!("skipped: e2fsck is not there"),
            Some(found) => assert_eq!(found.is_ok(), clean && content == Content::Ext4, "{found:?}"),
        }
    }
}
