//! The disks that a server offers, by name.

use super::protocol::{BLOCK_MIN, transmission};
use crate::device::Device;
use std::fmt;
use std::sync::Arc;

/// One disk under its name.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for, at most 4096 bytes. The first export of a server also answers to the empty name.
    pub name: String,
    /// Shown to people by `nbdinfo`, at most 4096 bytes; may be empty.
    pub description: String,
    /// The disk.
    pub device: Arc<dyn Device>,
}

impl Export {
    /// A disk under a name, without description.
    #[must_use]
    pub fn new(name: impl Into<String>, device: Arc<dyn Device>) -> Self {
        Self { name: name.into(), description: String::new(), device }
    }

    /// The size that clients see, in bytes: whole sectors.
    #[must_use]
    pub fn size(&self) -> u64 {
        let sector = u64::from(BLOCK_MIN);
        self.device.size() / sector * sector
    }

    /// The transmission flags of the protocol.
    #[must_use]
    pub(crate) fn flags(&self, structured: bool) -> u16 {
        use transmission::*;
        let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_CACHE | SEND_FAST_ZERO;
        let read_only = if self.device.read_only() { READ_ONLY } else { 0 };
        // DF makes sense only where replies come in chunks. Multi-conn holds because a flush is one call on the one device.
        let dont_fragment = if structured { SEND_DF } else { 0 };
        always | CAN_MULTI_CONN | read_only | dont_fragment
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("name", &self.name).field("size", &self.size()).finish_non_exhaustive()
    }
}

/// The index of the export that a name means.
#[must_use]
pub(crate) fn find(exports: &[Export], name: &str) -> Option<usize> {
    let by_name = exports.iter().position(|export| export.name == name);
    by_name.or_else(|| (name.is_empty() && !exports.is_empty()).then_some(0))
}
