//! The replica host as a role of a process.

use super::frames::WINDOW;
use super::{ReplicaHost, ReplicaHostOptions};
use crate::keeper::KeeperOptions;
use crate::key_file::{self, KeyFileError};
use crate::link::listener::AcceptOptions;
use crate::services::config::{Config, ReplicaHostConfig};
use crate::services::door::{BehindGateway, Judge};
use crate::services::role::{Context, DoorReport, Drained, Held, Report, Role, RoleError};
use crate::services::tickets::TicketFileError;
use cdp_core::trust::KeyHolder;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Connections of a group: one that asks, one that reads, and those of its frames.
const CONNECTIONS_OF_GROUP: usize = 8;

/// See the module's text.
#[derive(Debug)]
pub struct ReplicaHostRole {
    config: ReplicaHostConfig,
    /// Of tickets.
    judge: Option<Judge>,
    runtime: Handle,
    /// None once it is drained.
    host: Mutex<Option<ReplicaHost>>,
}

impl ReplicaHostRole {
    fn host(&self) -> MutexGuard<'_, Option<ReplicaHost>> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn table(config: &Config) -> Result<&ReplicaHostConfig, RoleError> {
    config.replica_host.as_ref().ok_or_else(|| RoleError::new("there is no table [replica-host]"))
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn wrong_keys(error: TicketFileError) -> RoleError {
    RoleError::new(format!("replica-host.ticket-key: {error}"))
}

fn judge_by(path: &Path) -> Result<Judge, RoleError> {
    Judge::read(path).map_err(wrong_keys)
}

impl Role for ReplicaHostRole {
    fn start(config: &Config, context: &Context) -> Result<Self, RoleError> {
        let table = table(config)?;
        let key = table.key_file.as_deref().map(key_file::read).transpose();
        let wrong = |error: KeyFileError| RoleError::new(format!("replica-host.key-file: {error}")).hint(error.hint());
        let key: KeyHolder = key.map_err(wrong)?.into();
        let judge = table.ticket_key.as_deref().map(judge_by).transpose()?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&table.directory);
        made.map_err(|error| RoleError::new(format!("cannot make {}: {error}", table.directory.display())))?;
        let groups_max = usize::try_from(table.groups_max).unwrap_or(usize::MAX);
        let usual = AcceptOptions::default();
        let connections_max = usual.connections_max.max(groups_max.saturating_mul(CONNECTIONS_OF_GROUP));
        let options = ReplicaHostOptions {
            listen: table.listen.to_string(),
            directory: table.directory.clone(),
            peers: context.peers.clone(),
            tickets: judge.clone().map(|judge| BehindGateway::new(judge, table.route.clone())),
            groups_max,
            keeper: KeeperOptions {
                key,
                quota_bytes: table.quota.map_or(0, |quota| quota.0),
                ..KeeperOptions::default()
            },
            accept: AcceptOptions { connections_max, ..usual },
        };
        let started = context.runtime.block_on(ReplicaHost::start(context.identity.clone(), options));
        let host = started.map_err(|error| {
            RoleError::new(format!("cannot listen at {}: {error}", table.listen))
                .hint("stop what listens there, or give another place in [replica-host] listen")
        })?;
        context.notes.say(&format!("replica-host: listens at {}", host.address()));
        Ok(Self { config: table.clone(), judge, runtime: context.runtime.clone(), host: Mutex::new(Some(host)) })
    }

    fn name(&self) -> &'static str {
        "replica-host"
    }

    fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError> {
        let (new, old) = (table(config)?, &self.config);
        if let (Some(judge), Some(path)) = (&self.judge, &new.ticket_key) {
            judge.read_again(path).map_err(wrong_keys)?;
        }
        let differs = [
            ("listen", new.listen != old.listen),
            ("directory", new.directory != old.directory),
            ("groups-max", new.groups_max != old.groups_max),
            ("quota", new.quota != old.quota),
            ("key-file", new.key_file != old.key_file),
            ("ticket-key", new.ticket_key.is_some() != old.ticket_key.is_some()),
            ("route", new.route != old.route),
        ];
        Ok(differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| format!("replica-host.{name}")).collect())
    }

    /// What is not durable here is still with whoever sent it.
    fn drain(&self, _: Duration) -> Drained {
        let Some(host) = self.host().take() else { return Drained::default() };
        let left_bytes = host.groups().iter().map(|group| group.held.memory).sum();
        self.runtime.block_on(host.stop());
        Drained { left_bytes }
    }

    fn report(&self) -> Report {
        let host = self.host();
        let Some(host) = host.as_ref() else { return Report::default() };
        let door = host.door();
        let (let_in, refused, dawdled, errors) = (door.let_in, door.refused, door.dawdled, door.errors);
        Report {
            groups: host.groups(),
            held_max: Held { memory: WINDOW.saturating_mul(self.config.groups_max.into()), disk: 0 },
            door: Some(DoorReport { let_in, refused, dawdled, errors }),
            dropped_bytes: None,
            tenants: Vec::new(),
        }
    }
}
