//! What is kept of one group: base disks, the journal above them, and the catalogue of what can be restored.

pub mod base;
pub mod catalogue;
pub mod sidecar;
