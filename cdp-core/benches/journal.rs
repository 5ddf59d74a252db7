//! Figures of the journal: how fast it takes frames, how fast it gives them back, and what its index costs.
//!
//! `cargo bench -p cdp-core --bench journal` prints all of them in about ten minutes; `-- ROW...` those whose id begins so;
//! `-- --quick` runs everything once and with less, for whoever changes the code. README.md beside this file says what was found.
//! A row is a function in [`ROWS`]. Everything is written under `CDP_BENCH_DIR`, or the system's directory for temporary files, and
//! removed.

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock; the crate does not")]

mod figure;
#[path = "journal/frames.rs"]
mod frames;
#[path = "journal/index.rs"]
mod index;
#[path = "journal/ingest.rs"]
mod ingest;
#[path = "journal/merge.rs"]
mod merge;
#[path = "journal/points.rs"]
mod points;
#[path = "journal/read.rs"]
mod read;
#[path = "journal/sparse.rs"]
mod sparse;
#[path = "journal/store.rs"]
mod store;

use std::path::PathBuf;

type Failure = Box<dyn std::error::Error>;

/// How much and how often.
pub(crate) struct Plan {
    /// Alternated rounds of what is compared.
    pub(crate) rounds: usize,
    /// Bytes of data in a round.
    pub(crate) bytes: u64,
    /// What numbers of records are divided by.
    pub(crate) fewer: u64,
    /// Reads, or first reads, in a round.
    pub(crate) reads: usize,
}

const FULL: Plan = Plan { rounds: 7, bytes: 1 << 30, fewer: 1, reads: 1000 };
const QUICK: Plan = Plan { rounds: 3, bytes: 128 << 20, fewer: 10, reads: 200 };

type RowFn = fn(&Plan) -> Result<(), Failure>;

/// Rows of the table by id, in the order in which they run.
const ROWS: [(&str, RowFn); 10] = [
    ("ingest-memory", ingest::memory),
    ("ingest-zstd", ingest::zstd),
    ("read-random", read::random),
    ("read-sequential", read::sequential),
    ("merge", merge::merge),
    ("open-view", index::open_view),
    ("first-touch", index::first_touch),
    ("index", index::size),
    ("restart", index::restart),
    ("points", points::points),
];

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
