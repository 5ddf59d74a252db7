//! The roles that this build has.

use super::filter::Filter;
use super::gateway::Gateway;
use super::proxy::{SourceProxy, TargetProxy};
use super::replica_host::role::ReplicaHostRole;
use super::run::Kind;

/// All of them, from the end of the chain to its beginning.
pub const ALL: &[Kind] = &[
    Kind::of::<ReplicaHostRole>("replica-host"),
    Kind::of::<TargetProxy>("target-proxy"),
    Kind::of::<Gateway>("gateway"),
    Kind::of::<SourceProxy>("source-proxy"),
    Kind::of::<Filter>("filter"),
];
