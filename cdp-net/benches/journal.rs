//! Figures of the journal that need writes and syncs to overlap: how fast it takes frames where packing, writing and syncing are
//! done by threads of their own.
//!
//! `cargo bench -p cdp-net --bench journal` prints all of them; `-- ROW...` those whose id begins so; `-- --quick` runs
//! everything once and with less, for whoever changes the code. README.md beside this file says what was found. The other rows of
//! the journal's table are in `cdp-core/benches`, under the same ids as there are in it.
//! A row is a function in [`ROWS`], in a file of its own. Everything is written under `CDP_BENCH_DIR`, or the system's directory
//! for temporary files, and removed.

#[path = "../../cdp-core/benches/figure/mod.rs"]
#[allow(dead_code, reason = "each bench uses the kinds that its figures have")]
mod figure;
#[path = "../../cdp-core/benches/journal/frames.rs"]
#[allow(dead_code, reason = "the rows of cdp-core's bench make more kinds of frames")]
mod frames;
#[path = "journal/ingest.rs"]
mod ingest;
#[path = "journal/rig.rs"]
mod rig;
#[path = "journal/steady.rs"]
mod steady;

use std::path::PathBuf;

type Failure = Box<dyn std::error::Error>;

/// How much and how often.
pub(crate) struct Plan {
    /// Alternated rounds of what is compared.
    pub(crate) rounds: usize,
    /// Bytes of data in a round.
    pub(crate) bytes: u64,
}

const FULL: Plan = Plan { rounds: 7, bytes: 1 << 30 };
const QUICK: Plan = Plan { rounds: 3, bytes: 256 << 20 };

type RowFn = fn(&Plan) -> Result<(), Failure>;

/// Rows of the table by id, in the order in which they run.
const ROWS: [(&str, RowFn); 2] = [("ingest-file", ingest::file), ("steady", steady::steady)];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let plan = if arguments.iter().any(|argument| argument == "--quick") { QUICK } else { FULL };
    let chosen: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |id: &str| chosen.is_empty() || chosen.iter().any(|prefix| id.starts_with(prefix.as_str()));
    ROWS.iter().filter(|(id, _)| wanted(id)).try_for_each(|(_, row)| row(&plan))
}

/// A directory of its own, removed with everything in it when it is dropped.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Result<Self, Failure> {
        let parent = std::env::var_os("CDP_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Ok(Self(tempfile::Builder::new().prefix("cdp-bench-").tempdir_in(parent)?))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
