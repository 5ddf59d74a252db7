//! The C library as a C programmer meets it: the header is the one in the repository, it compiles alone and strictly, and the
//! example links and runs. Without a compiler the tests say `skipped` by name.

mod c;
mod header;

use std::path::PathBuf;

/// The repository.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
