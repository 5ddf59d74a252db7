//! The tables of the roles.

use super::amounts::{Bytes, Span};
use crate::report::PointPolicy;
use crate::services::url::CdpUrl;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Somebody who is let in, and whom is dialled.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Peer {
    /// For people, and for logs.
    pub name: String,
    /// `sha256:` and the SHA-256 of its certificate in hexadecimal, as `cdp identity` prints it.
    pub fingerprint: String,
    /// Whose groups it may name; `*`: it speaks for others, as one's own proxies do.
    #[serde(default = "anybody")]
    pub tenant: String,
}

/// A network traffic rule: the text of its ranges, and what holds between them.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// For people.
    pub name: String,
    /// Addresses of the side that sends: `10.1.0.0/16`, `10.0.0.5-10.0.0.9`, or one.
    pub from: String,
    /// Addresses of the side that takes.
    pub to: String,
    /// Whether what goes between them is encrypted; left out: as without the rule.
    pub encrypt: Option<bool>,
    /// Bytes a second that may go between them.
    pub limit: Option<Bytes>,
    /// When the limit holds: `mon-fri 08:00-18:00`; left out: always.
    #[serde(default)]
    pub times: Vec<String>,
    /// Off without being taken away.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// Groups whose moments are cut together.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SetConfig {
    /// Its name.
    pub name: String,
    /// The groups, by their names.
    pub groups: Vec<String>,
    /// How often a common moment is cut.
    #[serde(default = "every")]
    pub every: Span,
    /// Where the groups of other hosts are: `cdp://HOST:PORT/GROUP` of each, with the address that its filter has as `listen`. One file has it:
    /// that of the filter that takes the cuts. The others have the set without it.
    #[serde(default)]
    pub members: Vec<CdpUrl>,
}

/// Memory first, then disk.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Spool {
    /// Bytes in memory.
    pub memory: Bytes,
    /// Bytes on disk.
    pub disk: Bytes,
}

/// The filter's role.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterConfig {
    /// Source proxies (or replica hosts, or gateways before those), the one that is wanted most first.
    pub to: Vec<CdpUrl>,
    /// The ticket that a gateway asks for.
    pub ticket: Option<PathBuf>,
    /// What waits to become durable, shared by all groups.
    #[serde(default)]
    pub spool: Spool,
    /// Data connections for each group.
    #[serde(default = "one")]
    pub connections: u16,
    /// Where the filters that take the cuts of consistency sets find the groups of this one; left out: no other host's filter takes cuts of them.
    pub listen: Option<SocketAddr>,
    /// The groups.
    #[serde(rename = "group")]
    pub groups: Vec<FilterGroup>,
}

/// A group that a filter protects.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterGroup {
    /// Its name.
    pub name: String,
    /// Where its disks are served: an NBD URI.
    #[serde(deserialize_with = "parsed")]
    pub listen: crate::nbd::Uri,
    /// Its disks; the first is the empty export too.
    #[serde(rename = "disk")]
    pub disks: Vec<DiskConfig>,
    /// What of its policy is set here; the rest stays as the replica has it.
    #[serde(default)]
    pub policy: FilterPolicy,
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// Its name, and its export's.
    pub name: String,
    /// A raw image or a block device.
    pub source: PathBuf,
}

/// What of a policy a filter's file may set.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterPolicy {
    /// How often a point is closed.
    pub rpo: Option<Span>,
    /// Which moments are kept.
    pub points: Option<PointPolicy>,
    /// How long every moment is kept.
    pub window: Option<Span>,
    /// What the journal may take.
    pub max_bytes: Option<Bytes>,
    /// How often a long-term point is made.
    pub long_term: Option<Span>,
    /// How long long-term points are kept.
    pub keep: Option<Span>,
}

/// A proxy's frames on their way: memory first, then disk.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Cache {
    /// Where; left out: `cache` in the state directory.
    pub directory: Option<PathBuf>,
    /// Bytes in memory, shared by all groups.
    pub memory: Bytes,
    /// Bytes on disk, shared by all groups.
    pub disk: Bytes,
}

/// The source proxy's role.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SourceProxyConfig {
    /// Where filters find it.
    pub listen: SocketAddr,
    /// Gateways or target proxies, the one that is wanted most first.
    pub to: Vec<CdpUrl>,
    /// The ticket that a gateway asks for.
    pub ticket: Option<PathBuf>,
    /// Frames on their way.
    #[serde(default)]
    pub cache: Cache,
    /// The highest level of zstd; the level gives way to cores and link.
    #[serde(default = "level")]
    pub level: i32,
    /// Data connections for each group.
    #[serde(default = "one")]
    pub connections: u16,
}

/// The gateway's role.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GatewayConfig {
    /// The open port.
    pub listen: SocketAddr,
    /// What tickets are proved by.
    pub ticket_key: PathBuf,
    /// HOST:PORT of the target proxies, by the names that tickets have as their routes.
    pub to: BTreeMap<String, String>,
    /// Connections of one tenant at once.
    #[serde(default = "tenant_connections")]
    pub connections_per_tenant: u32,
    /// Bytes a second of one tenant, both ways and all tickets together; what a ticket says holds beside it, for that ticket.
    pub rate_per_tenant: Option<Bytes>,
}

/// The target proxy's role.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TargetProxyConfig {
    /// Where gateways and source proxies find it.
    pub listen: SocketAddr,
    /// Replica hosts, the one that is wanted most first.
    pub to: Vec<CdpUrl>,
    /// What tickets are proved by, where it stands behind a gateway.
    pub ticket_key: Option<PathBuf>,
    /// Its name in the gateway's table `to`: only tickets with this route are taken; left out: those of every route.
    pub route: Option<String>,
    /// Frames on their way.
    #[serde(default)]
    pub cache: Cache,
    /// Hands on compressed chunks where the replica host takes them; off: always plain ones.
    #[serde(default = "yes")]
    pub pass_compressed: bool,
}

/// The replica host's role.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReplicaHostConfig {
    /// Where target proxies, source proxies and filters find it.
    pub listen: SocketAddr,
    /// Holds a directory for each tenant, and in it one for each group.
    pub directory: PathBuf,
    /// Groups at once.
    #[serde(default = "groups")]
    pub groups_max: u32,
    /// What one group may take where its policy has no quota; left out: no bound.
    pub quota: Option<Bytes>,
    /// Seals new replicas at rest, and opens those that are sealed.
    pub key_file: Option<PathBuf>,
    /// What tickets are proved by, where it stands directly behind a gateway.
    pub ticket_key: Option<PathBuf>,
    /// Its name in the gateway's table `to`: only tickets with this route are taken; left out: those of every route.
    pub route: Option<String>,
}

impl Default for Spool {
    fn default() -> Self {
        Self { memory: Bytes(1 << 30), disk: Bytes(0) }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { directory: None, memory: Bytes(1 << 30), disk: Bytes(50 << 30) }
    }
}

impl<'de> Deserialize<'de> for CdpUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parsed(from)
    }
}

fn parsed<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<T, D::Error>
where
    T::Err: std::fmt::Display,
{
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

pub(super) fn drain() -> Span {
    Span(Duration::from_secs(30))
}

fn anybody() -> String {
    "*".into()
}

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

fn level() -> i32 {
    3
}

fn every() -> Span {
    Span(Duration::from_secs(15))
}

fn tenant_connections() -> u32 {
    256
}

fn groups() -> u32 {
    1000
}
