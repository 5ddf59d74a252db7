//! The roles that this build has.

use super::replica_host::role::ReplicaHostRole;
use super::run::Kind;

/// All of them, from the end of the chain to its beginning.
pub const ALL: &[Kind] = &[Kind::of::<ReplicaHostRole>("replica-host")];
