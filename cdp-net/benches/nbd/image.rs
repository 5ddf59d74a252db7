//! The data: blocks of a real file system, made once and kept beside the build's own temporary files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) const MIB: usize = 1 << 20;
/// The working set of every row.
pub(crate) const SOURCE_BYTES: u64 = 1 << 30;
/// What writes are taken from: more than the caches hold.
const POOL_BYTES: usize = 64 * MIB;
const BLOCK: usize = 4096;

/// Non-zero blocks of a real image.
pub(crate) struct Pool(Vec<u8>);

impl Pool {
    /// `length` bytes, the `number`th such piece.
    pub(crate) fn piece(&self, number: u64, length: usize) -> &[u8] {
        let at = usize::try_from(number % (self.0.len() / length) as u64).unwrap_or(0) * length;
        &self.0[at..at + length]
    }
}

/// Where everything of the benches lies: on the build's disk.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("nbd-bench")
}

/// A program of PATH, or of where administrators have theirs.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The image that everything is made of, sparse as the file system left it.
fn base() -> io::Result<PathBuf> {
    let image = directory().join("base.img");
    if image.exists() {
        return Ok(image);
    }
    let draft = directory().join("base.tmp");
    let made = program("mke2fs").is_some_and(|mke2fs| {
        ["/usr/share", "/usr/lib", "/usr"].iter().any(|from| {
            let _ = std::fs::remove_file(&draft);
            let mut command = Command::new(&mke2fs);
            command.args(["-q", "-t", "ext4", "-d", from]).arg(&draft).arg("1G");
            let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        })
    });
    if !made {
        eprintln!("no file system could be made of a real directory: half-compressible data instead");
        synthetic(&draft)?;
    }
    std::fs::rename(&draft, &image)?;
    Ok(image)
}

/// Half of each block random, half of it text-like; every third megabyte is a hole.
fn synthetic(path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(SOURCE_BYTES)?;
    let mut random = 1;
    let mut piece = vec![0; MIB];
    for at in (0..SOURCE_BYTES).step_by(MIB).filter(|at| at / MIB as u64 % 3 != 2) {
        for (number, word) in piece.chunks_mut(8).enumerate() {
            let bytes = if number % 2 == 0 { next(&mut random).to_le_bytes() } else { *b"the same" };
            word.copy_from_slice(&bytes);
        }
        file.write_all_at(&piece, at)?;
    }
    Ok(())
}

/// xorshift64: quick, and the same every time.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The disk that is loaded: every block allocated, so that no server has to allocate any, and warm in the cache.
pub(crate) fn source() -> io::Result<(PathBuf, Pool)> {
    std::fs::create_dir_all(directory())?;
    let base = File::open(base()?)?;
    let mut blocks = vec![0; SOURCE_BYTES as usize];
    let length = base.metadata()?.len().min(SOURCE_BYTES) as usize;
    base.read_exact_at(&mut blocks[..length], 0)?;
    let mut pool = Vec::with_capacity(POOL_BYTES);
    let zero = [0; BLOCK];
    // Evenly from the whole image: its beginning alone is the file system's own tables.
    let data: Vec<_> = blocks.chunks(BLOCK).filter(|block| *block != zero).collect();
    let stride = (data.len() * BLOCK / POOL_BYTES).max(1);
    data.chunks(64 * stride).for_each(|run| run.iter().take(64).for_each(|block| pool.extend_from_slice(block)));
    pool.truncate(POOL_BYTES.min(pool.len() / MIB * MIB));
    let mut filler = pool.chunks(BLOCK).cycle();
    for block in blocks.chunks_mut(BLOCK).filter(|block| **block == zero) {
        if let Some(data) = filler.next() {
            block.copy_from_slice(data);
        }
    }
    let path = directory().join("source.img");
    let file = File::create(&path)?;
    // Block by block, as a guest does it: what is written in large pieces is cached in large folios, and a write of 4 KiB
    // into such a one costs the kernel up to 70 us, which no server can do anything about.
    for (at, block) in (0..).step_by(BLOCK).zip(blocks.chunks(BLOCK)) {
        file.write_all_at(block, at)?;
    }
    file.sync_all()?;
    Ok((path, Pool(pool)))
}

/// An image of 2 GiB to be copied: the base twice, with its holes.
pub(crate) fn sparse() -> io::Result<PathBuf> {
    std::fs::create_dir_all(directory())?;
    let base = File::open(base()?)?;
    let path = directory().join("sparse.img");
    let file = File::create(&path)?;
    file.set_len(2 * SOURCE_BYTES)?;
    let mut piece = vec![0; BLOCK * 16];
    for at in (0..base.metadata()?.len().min(SOURCE_BYTES)).step_by(piece.len()) {
        base.read_exact_at(&mut piece, at)?;
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece, at)?;
            file.write_all_at(&piece, SOURCE_BYTES + at)?;
        }
    }
    file.sync_all()?;
    Ok(path)
}

/// Writes out what earlier runs left in the cache, so that no run pays for another.
pub(crate) fn settle() {
    rustix::fs::sync();
    std::thread::sleep(std::time::Duration::from_millis(200));
}
