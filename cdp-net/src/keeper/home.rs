//! The directory of a replica, owned.

use crate::host::place;
use crate::owner::{Owner, OwnerError};
use cdp_core::media::{Disk, MediaError, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A replica's directory and the right to change it.
#[derive(Debug)]
pub struct Home {
    pub(super) owner: Arc<Owner>,
    pub(super) storage: Arc<dyn Storage>,
}

/// Why a directory cannot be a replica's.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It holds what is not a replica's.
    #[error("{path} is no directory of a replica: it holds {}", found.display())]
    Occupied {
        /// The directory.
        path: String,
        /// Something in it.
        found: PathBuf,
    },
    /// It cannot be listed.
    #[error("cannot list the replica's directory: {0}")]
    Unlisted(std::io::Error),
    /// It cannot be made.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// Another process owns it.
    #[error(transparent)]
    Owner(#[from] OwnerError),
}

impl Home {
    /// Makes the directory if it is not there, and takes its lock.
    ///
    /// # Errors
    /// When it is somebody else's.
    pub fn acquire(dir: &Path) -> Result<Self, HomeError> {
        if let Some(found) = place::stranger(dir).map_err(HomeError::Unlisted)? {
            return Err(HomeError::Occupied { path: dir.display().to_string(), found });
        }
        let storage: Arc<dyn Storage> = Arc::new(Disk::create(dir)?);
        Ok(Self { owner: Arc::new(Owner::acquire(dir)?), storage })
    }

    /// The right to it.
    #[must_use]
    pub fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// What is in it.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
}
