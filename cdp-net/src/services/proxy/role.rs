//! The two proxies as roles of a process.

use super::{Mode, Proxy, ProxyOptions, Standing};
use crate::link::listener::AcceptOptions;
use crate::services::config::{Cache, Config, SourceProxyConfig, TargetProxyConfig};
use crate::services::door::{BehindGateway, Judge};
use crate::services::role::{Context, DoorReport, Drained, GroupReport, Held, Report, Role, RoleError, ticket_of};
use crate::services::tickets::TicketFileError;
use crate::services::traffic::rules;
use crate::services::url::CdpUrl;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Connections to a proxy at once, at most: those of all groups.
const CONNECTIONS_MAX: usize = 8192;

/// Takes records from filters, prepares and sends them.
#[derive(Debug)]
pub struct SourceProxy(Running<SourceProxyConfig>);

/// Takes records from gateways and source proxies and hands them to replica hosts.
#[derive(Debug)]
pub struct TargetProxy(Running<TargetProxyConfig>, Option<Judge>);

/// A proxy and the table that it follows.
#[derive(Debug)]
struct Running<C> {
    proxy: Proxy,
    config: Mutex<C>,
    held_max: Held,
}

fn failed(name: &str) -> impl FnOnce(std::io::Error) -> RoleError + '_ {
    move |error| {
        let failed = RoleError::new(error.to_string());
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                failed.hint(format!("stop what listens there, or give another place in [{name}] listen"))
            }
            _ => failed,
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn wrong_keys(error: TicketFileError) -> RoleError {
    RoleError::new(format!("target-proxy.ticket-key: {error}")).hint("it is a copy of the gateway's file of keys")
}

fn places(to: &[CdpUrl]) -> Vec<String> {
    to.iter().map(CdpUrl::authority).collect()
}

impl<C> Running<C> {
    fn start(
        config: &Config,
        context: &Context,
        table: C,
        cache: &Cache,
        options: ProxyOptions,
    ) -> Result<Self, RoleError> {
        let directory = cache.directory.clone().unwrap_or_else(|| context.state.join(options.name).join("cache"));
        let options = ProxyOptions { cache: Some(directory), ..options };
        let held_max = Held { memory: options.memory_bytes, disk: options.disk_bytes };
        let Context { runtime, identity, peers, notes, .. } = context;
        let name = options.name;
        let proxy = Proxy::start(runtime, identity.clone(), peers.clone(), notes.clone(), rules(config)?, options)
            .map_err(failed(name))?;
        notes.say(&format!("{name}: listens at {}", proxy.address()));
        Ok(Self { proxy, config: Mutex::new(table), held_max })
    }

    fn drain(&self, within: Duration) -> Drained {
        Drained { left_bytes: self.proxy.stop(within) }
    }

    fn report(&self) -> Report {
        let stats = self.proxy.door();
        let door =
            DoorReport { let_in: stats.let_in, refused: stats.refused, dawdled: stats.dawdled, errors: stats.errors };
        Report {
            groups: self.proxy.groups(),
            held_max: self.held_max,
            door: Some(door),
            dropped_bytes: Some(self.proxy.dropped_bytes()),
            tenants: Vec::new(),
        }
    }
}

/// A timeline's numbers to those of its group.
fn add(group: &mut GroupReport, standing: &Standing) {
    let Standing { status, stats, .. } = standing;
    let lag = Duration::from_nanos(status.below.lag_ns);
    group.lag = Some(group.lag.map_or(lag, |other| other.max(lag)));
    group.linked = Some(group.linked.unwrap_or(false) || status.below.up);
    group.state = if group.linked == Some(true) { "passing" } else { "waiting" };
    group.in_bytes += status.above.taken_bytes;
    group.out_bytes += status.below.sent_bytes;
    group.coalesced_bytes += stats.bytes_coalesced;
    let sent = stats.bytes_out + stats.bytes_coalesced;
    group.compressed_bytes += stats.bytes_in.saturating_sub(sent);
    group.held.memory += status.memory_bytes + status.waiting_bytes;
    group.held.disk += status.disk_bytes;
}

impl Proxy {
    /// How its groups stand.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupReport> {
        let mut groups: BTreeMap<(String, String), GroupReport> = BTreeMap::new();
        for (key, standing) in self.standings() {
            let names = (key.tenant.clone(), key.group.clone());
            let of = GroupReport { tenant: key.tenant_below(), group: key.group, ..GroupReport::default() };
            add(groups.entry(names).or_insert(of), &standing);
        }
        groups.into_values().collect()
    }
}

impl Role for SourceProxy {
    fn start(config: &Config, context: &Context) -> Result<Self, RoleError> {
        let table = config.source_proxy.clone().ok_or_else(|| RoleError::new("there is no [source-proxy]"))?;
        let options = ProxyOptions {
            name: "source-proxy",
            listen: table.listen.to_string(),
            to: places(&table.to),
            ticket: ticket_of("source-proxy", table.ticket.as_deref())?,
            tickets: None,
            mode: Mode::Compress { level: table.level },
            cache: None,
            memory_bytes: table.cache.memory.0,
            disk_bytes: table.cache.disk.0,
            connections: table.connections,
            accept: AcceptOptions { connections_max: CONNECTIONS_MAX, ..AcceptOptions::default() },
        };
        let cache = table.cache.clone();
        Running::start(config, context, table, &cache, options).map(Self)
    }

    fn name(&self) -> &'static str {
        "source-proxy"
    }

    fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError> {
        let Some(new) = &config.source_proxy else { return Ok(Vec::new()) };
        let (ticket, rules) = (ticket_of("source-proxy", new.ticket.as_deref())?, rules(config)?);
        self.0.proxy.set(&places(&new.to), &ticket, rules);
        let mut held = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = [
            ("listen", held.listen != new.listen),
            ("cache", held.cache != new.cache),
            ("level", held.level != new.level),
            ("connections", held.connections != new.connections),
        ];
        (held.to, held.ticket) = (new.to.clone(), new.ticket.clone());
        Ok(differs.into_iter().filter(|(_, is)| *is).map(|(name, _)| format!("source-proxy.{name}")).collect())
    }

    fn drain(&self, within: Duration) -> Drained {
        self.0.drain(within)
    }

    fn report(&self) -> Report {
        self.0.report()
    }
}

impl Role for TargetProxy {
    fn start(config: &Config, context: &Context) -> Result<Self, RoleError> {
        let table = config.target_proxy.clone().ok_or_else(|| RoleError::new("there is no [target-proxy]"))?;
        let judge = table.ticket_key.as_deref().map(Judge::read).transpose().map_err(wrong_keys)?;
        let options = ProxyOptions {
            name: "target-proxy",
            listen: table.listen.to_string(),
            to: places(&table.to),
            ticket: Bytes::new(),
            tickets: judge.clone().map(|judge| BehindGateway::new(judge, table.route.clone())),
            mode: if table.pass_compressed { Mode::Pass } else { Mode::Raw },
            cache: None,
            memory_bytes: table.cache.memory.0,
            disk_bytes: table.cache.disk.0,
            connections: 1,
            accept: AcceptOptions { connections_max: CONNECTIONS_MAX, ..AcceptOptions::default() },
        };
        let cache = table.cache.clone();
        Ok(Self(Running::start(config, context, table, &cache, options)?, judge))
    }

    fn name(&self) -> &'static str {
        "target-proxy"
    }

    fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError> {
        let Some(new) = &config.target_proxy else { return Ok(Vec::new()) };
        if let (Some(judge), Some(path)) = (&self.1, &new.ticket_key) {
            judge.read_again(path).map_err(wrong_keys)?;
        }
        self.0.proxy.set(&places(&new.to), &Bytes::new(), rules(config)?);
        let mut held = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = [
            ("listen", held.listen != new.listen),
            ("cache", held.cache != new.cache),
            ("pass-compressed", held.pass_compressed != new.pass_compressed),
            ("ticket-key", held.ticket_key.is_some() != new.ticket_key.is_some()),
            ("route", held.route != new.route),
        ];
        held.to.clone_from(&new.to);
        Ok(differs.into_iter().filter(|(_, is)| *is).map(|(name, _)| format!("target-proxy.{name}")).collect())
    }

    fn drain(&self, within: Duration) -> Drained {
        self.0.drain(within)
    }

    fn report(&self) -> Report {
        self.0.report()
    }
}
