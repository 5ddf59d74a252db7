//! What `cdp serve` is told: one TOML file, a table for each role.
//!
//! Unknown names are refused, so that a slip of the pen does not pass for a default. What belongs together is checked when the
//! file is read, before anything is opened: whoever has a [`Config`] has one that can be meant.

mod amounts;
mod check;
pub mod example;
mod roles;
mod rules;
#[cfg(test)]
mod tests;

pub use amounts::{Bytes, Span};
pub use roles::{
    Cache, DiskConfig, FilterConfig, FilterGroup, FilterPolicy, GatewayConfig, Peer, ReplicaHostConfig, Rule,
    SetConfig, SourceProxyConfig, Spool, TargetProxyConfig,
};

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The most bytes of a configuration.
const FILE_MAX: u64 = 1 << 20;

/// Everything of one file.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the process keeps its identity, and caches that have no place of their own.
    pub state: PathBuf,
    /// Where Prometheus finds the metrics; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How long a stop waits for what is under way.
    #[serde(default = "roles::drain")]
    pub drain: Span,
    /// Who is let in.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
    /// Network traffic rules, in the order in which they are read.
    #[serde(default, rename = "rule")]
    pub rules: Vec<Rule>,
    /// Groups whose moments are cut together.
    #[serde(default, rename = "set")]
    pub sets: Vec<SetConfig>,
    /// Serves disks and captures what is written to them.
    pub filter: Option<FilterConfig>,
    /// Takes records from filters, prepares and sends them.
    pub source_proxy: Option<SourceProxyConfig>,
    /// The provider's one open port.
    pub gateway: Option<GatewayConfig>,
    /// Takes records from gateways and source proxies and hands them to replica hosts.
    pub target_proxy: Option<TargetProxyConfig>,
    /// Keeps replicas.
    pub replica_host: Option<ReplicaHostConfig>,
}

/// Why a configuration cannot be meant.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] std::io::Error),
    /// It is longer than any configuration.
    #[error("it has {bytes} bytes, and a configuration has at most {FILE_MAX}")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// It is no TOML, or holds what is not known. What stands there is not shown: the file may be another one, with keys in it.
    #[error("line {line}, column {column}{}: {what}", key.as_ref().map(|key| format!(", {key}")).unwrap_or_default())]
    Toml {
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What the line sets, if it is one that sets something.
        key: Option<String>,
        /// What is wrong.
        what: String,
    },
    /// A value cannot be what it says.
    #[error("{place}: {what}")]
    Value {
        /// The tables and the name, joined by dots.
        place: String,
        /// What is wrong, and what may stand there.
        what: String,
    },
}

/// The longest name of a setting, in bytes; and of anything that is shown of a line.
const KEY_MAX: usize = 32;

impl ConfigError {
    fn toml(text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..at).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let key = text[start..].lines().next().and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
        let is_key = |key: &&str| {
            (1..=KEY_MAX).contains(&key.len()) && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        Self::Toml {
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            key: key.filter(is_key).map(ToOwned::to_owned),
            what: error.message().to_owned(),
        }
    }
}

impl Config {
    /// Reads and checks a file. Paths in it are from its directory on.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = std::fs::metadata(path).map_err(ConfigError::Read)?.len();
        if bytes > FILE_MAX {
            return Err(ConfigError::TooLong { bytes });
        }
        let text = std::fs::read_to_string(path).map_err(ConfigError::Read)?;
        let mut config = Self::parse(&text)?;
        let directory = std::path::absolute(path).map_err(ConfigError::Read)?;
        config.place_in(directory.parent().unwrap_or(Path::new("/")));
        Ok(config)
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::toml(text, &error))?;
        check::check(&config)?;
        Ok(config)
    }

    /// Every path begins at `directory` that does not begin at the root.
    fn place_in(&mut self, directory: &Path) {
        let place = |path: &mut PathBuf| *path = directory.join(&*path);
        place(&mut self.state);
        if let Some(filter) = &mut self.filter {
            filter.ticket.iter_mut().for_each(place);
            filter.groups.iter_mut().flat_map(|group| &mut group.disks).for_each(|disk| place(&mut disk.source));
        }
        if let Some(proxy) = &mut self.source_proxy {
            proxy.ticket.iter_mut().chain(&mut proxy.cache.directory).for_each(place);
        }
        if let Some(gateway) = &mut self.gateway {
            place(&mut gateway.ticket_key);
        }
        if let Some(proxy) = &mut self.target_proxy {
            proxy.ticket_key.iter_mut().chain(&mut proxy.cache.directory).for_each(place);
        }
        if let Some(host) = &mut self.replica_host {
            place(&mut host.directory);
            host.key_file.iter_mut().chain(&mut host.ticket_key).for_each(place);
        }
    }

    /// The roles that it has, as they are called.
    #[must_use]
    pub fn roles(&self) -> Vec<&'static str> {
        let roles = [
            ("filter", self.filter.is_some()),
            ("source-proxy", self.source_proxy.is_some()),
            ("gateway", self.gateway.is_some()),
            ("target-proxy", self.target_proxy.is_some()),
            ("replica-host", self.replica_host.is_some()),
        ];
        roles.into_iter().filter(|(_, has)| *has).map(|(role, _)| role).collect()
    }
}
