//! The file of the key that somebody outside keeps: of a replica that is sealed at rest.

use cdp_core::trust::{KeyError, WrappingKey};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// No key file is longer, in bytes: 64 digits and white space.
const FILE_MAX: u64 = 1 << 10;

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the key file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it is no key.
    #[error("{}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
}

impl KeyFileError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "let the user that this runs as read it, and nobody else"
            }
            Self::Read { .. } => "give the file that the replica was made with; a new replica takes a new key",
            Self::Content { .. } => "make one with: (umask 077; head -c 32 /dev/urandom > FILE)",
        }
    }
}

/// The key in a file.
///
/// # Errors
/// When it cannot be read or holds no key.
pub fn read(path: &Path) -> Result<WrappingKey, KeyFileError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes))
        .map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    WrappingKey::parse(&bytes).map_err(|source| KeyFileError::Content { path: path.to_owned(), source })
}
