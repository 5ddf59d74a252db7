//! What a configuration must hold beside being TOML.

use super::{Cache, Config, ConfigError, FilterConfig, FilterGroup, SetConfig};
use crate::link::pin::Fingerprint;
use crate::services::proxy::{DISK_MIN, MEMORY_MIN};
use crate::services::url::CdpUrl;
use cdp_core::capture::QUEUE_BYTES_MIN;
use cdp_core::link::message::DATA_CONNECTIONS_MAX;
use cdp_core::policy::throttle::RATE_MIN;
use cdp_core::types::{DISKS_MAX, NAME_MAX, is_name};
use cdp_core::when::format_bytes;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The most peers, rules, sets and next hops of a file.
const LIST_MAX: usize = 4096;
/// The shortest and the longest time between two common moments of a set.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

fn wrong<T>(place: impl Into<String>, what: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Value { place: place.into(), what: what.into() })
}

/// A place's name among a gateway's says something where its tickets are looked at only.
fn route(place: &str, route: Option<&String>, key: Option<&PathBuf>) -> Result<(), ConfigError> {
    if route.is_some() && key.is_none() {
        return wrong(place, "it says which tickets are taken, and without `ticket-key` none is looked at");
    }
    Ok(())
}

pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    if config.roles().is_empty() {
        return wrong("file", "it has none of [filter], [source-proxy], [gateway], [target-proxy], [replica-host]");
    }
    for (name, count) in [("peer", config.peers.len()), ("rule", config.rules.len()), ("set", config.sets.len())] {
        if count > LIST_MAX {
            return wrong(name, format!("{count} are more than the {LIST_MAX} that a file may have"));
        }
    }
    peers(config)?;
    listeners(config)?;
    config.traffic()?;
    if let Some(filter) = &config.filter {
        check_filter(filter)?;
    }
    if let Some(proxy) = &config.source_proxy {
        hops("source-proxy.to", &proxy.to)?;
        connections("source-proxy.connections", proxy.connections)?;
        cache("source-proxy.cache", &proxy.cache)?;
        if !(-7..=19).contains(&proxy.level) {
            return wrong("source-proxy.level", format!("{} is no level of zstd: -7 to 19", proxy.level));
        }
    }
    if let Some(gateway) = &config.gateway {
        if gateway.to.is_empty() {
            return wrong("gateway.to", "no target proxy is named: NAME = \"HOST:PORT\"");
        }
        if gateway.to.len() > LIST_MAX {
            return wrong("gateway.to", format!("at most {LIST_MAX} next hops may stand there"));
        }
        for (name, place) in &gateway.to {
            self::name("gateway.to", name)?;
            if let Err(error) = format!("cdp://{place}").parse::<CdpUrl>() {
                return wrong(format!("gateway.to.{name}"), format!("{place:?} is no HOST:PORT ({error})"));
            }
        }
        if gateway.connections_per_tenant == 0 {
            return wrong("gateway.connections-per-tenant", "0 would let nobody in");
        }
        if gateway.rate_per_tenant.is_some_and(|rate| rate.0 < RATE_MIN) {
            let text = format!("a tenant needs at least {} a second", format_bytes(RATE_MIN));
            return wrong("gateway.rate-per-tenant", text);
        }
    }
    if let Some(proxy) = &config.target_proxy {
        hops("target-proxy.to", &proxy.to)?;
        route("target-proxy.route", proxy.route.as_ref(), proxy.ticket_key.as_ref())?;
        cache("target-proxy.cache", &proxy.cache)?;
    }
    if let Some(host) = &config.replica_host {
        if host.groups_max == 0 {
            return wrong("replica-host.groups-max", "0 would keep nothing");
        }
        route("replica-host.route", host.route.as_ref(), host.ticket_key.as_ref())?;
    }
    sets(config)
}

fn peers(config: &Config) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for peer in &config.peers {
        let place = format!("peer {:?}", peer.name);
        name(&place, &peer.name)?;
        if peer.fingerprint.parse::<Fingerprint>().is_err() {
            return wrong(
                place,
                "its fingerprint is not \"sha256:\" and 64 hexadecimal digits, as `cdp identity` prints it",
            );
        }
        if peer.tenant.is_empty() || (peer.tenant != "*" && name(&place, &peer.tenant).is_err()) {
            return wrong(place, format!("{:?} is no name of a tenant, nor \"*\"", peer.tenant));
        }
        if !seen.insert(peer.fingerprint.to_ascii_lowercase()) {
            return wrong(place, "its fingerprint stands there twice");
        }
    }
    let links = config.filter.is_some()
        || config.source_proxy.is_some()
        || config.target_proxy.is_some()
        || config.replica_host.as_ref().is_some_and(|host| host.ticket_key.is_none());
    if links && config.peers.is_empty() {
        return wrong(
            "peer",
            "nobody is let in and nobody may be dialled: each other part needs a [[peer]] with its fingerprint",
        );
    }
    Ok(())
}

/// Two roles cannot have one port.
fn listeners(config: &Config) -> Result<(), ConfigError> {
    let all = [
        ("metrics", config.metrics),
        ("filter.listen", config.filter.as_ref().and_then(|role| role.listen)),
        ("source-proxy.listen", config.source_proxy.as_ref().map(|role| role.listen)),
        ("gateway.listen", config.gateway.as_ref().map(|role| role.listen)),
        ("target-proxy.listen", config.target_proxy.as_ref().map(|role| role.listen)),
        ("replica-host.listen", config.replica_host.as_ref().map(|role| role.listen)),
    ];
    let mut seen: Vec<(&str, SocketAddr)> = Vec::new();
    for (place, address) in all.into_iter().filter_map(|(place, address)| Some((place, address?))) {
        if let Some((other, _)) = seen.iter().find(|(_, taken)| *taken == address && address.port() != 0) {
            return wrong(place, format!("{address} is that of {other}"));
        }
        seen.push((place, address));
    }
    Ok(())
}

fn check_filter(filter: &FilterConfig) -> Result<(), ConfigError> {
    hops("filter.to", &filter.to)?;
    connections("filter.connections", filter.connections)?;
    memory("filter.spool.memory", filter.spool.memory.0)?;
    if filter.groups.is_empty() {
        return wrong("filter.group", "no group is protected: [[filter.group]] names one");
    }
    let least = QUEUE_BYTES_MIN.saturating_mul(filter.groups.len() as u64);
    if filter.spool.memory.0 < least {
        let text = format!("{} groups share it and need {} at least", filter.groups.len(), format_bytes(least));
        return wrong("filter.spool.memory", text);
    }
    let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
    for group in &filter.groups {
        check_group(group)?;
        if !names.insert(&group.name) {
            return wrong(format!("filter.group {:?}", group.name), "it is there twice");
        }
        if !places.insert(group.listen.to_string()) {
            return wrong(format!("filter.group {:?}", group.name), format!("{} is another group's", group.listen));
        }
    }
    Ok(())
}

fn check_group(group: &FilterGroup) -> Result<(), ConfigError> {
    let place = format!("filter.group {:?}", group.name);
    name(&place, &group.name)?;
    if group.disks.is_empty() || group.disks.len() > DISKS_MAX {
        return wrong(place, format!("a group has 1 to {DISKS_MAX} disks, not {}", group.disks.len()));
    }
    let mut names = BTreeSet::new();
    for disk in &group.disks {
        name(&format!("{place}, disk {:?}", disk.name), &disk.name)?;
        if !names.insert(&disk.name) {
            return wrong(place, format!("two disks are called {:?}", disk.name));
        }
    }
    Ok(())
}

fn sets(config: &Config) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for set in &config.sets {
        let place = format!("set {:?}", set.name);
        name(&place, &set.name)?;
        if !seen.insert(&set.name) {
            return wrong(place, "it is there twice");
        }
        let groups: BTreeSet<_> = set.groups.iter().collect();
        if groups.len() != set.groups.len() {
            return wrong(place, "a group stands there twice");
        }
        if groups.len() < 2 {
            return wrong(place, "one group is always consistent with itself: a set has at least two");
        }
        if set.every.0 < EVERY.0 || set.every.0 > EVERY.1 {
            return wrong(place, format!("{} is not between 1s and 1h", set.every));
        }
        let here = |group: &str| config.filter.iter().flat_map(|f| &f.groups).any(|known| known.name == group);
        if !set.groups.iter().any(|group| here(group)) {
            return wrong(place, "none of its groups is one of this file's [filter]");
        }
        let away: BTreeSet<_> = set.groups.iter().filter(|group| !here(group)).collect();
        members(&place, set, away, config.filter.as_ref().is_some_and(|filter| filter.listen.is_some()))?;
    }
    Ok(())
}

/// Each group of another host has one place, or this host waits for who takes the cuts.
fn members(place: &str, set: &SetConfig, away: BTreeSet<&String>, listens: bool) -> Result<(), ConfigError> {
    let mut missing = away.clone();
    for member in &set.members {
        if !away.contains(&member.group) {
            let text =
                format!("member {member} is not cdp://HOST:PORT/GROUP with a group of the set that is not served here");
            return wrong(place, text);
        }
        if !missing.remove(&member.group) {
            return wrong(place, format!("two members are the group {:?}", member.group));
        }
    }
    match missing.first() {
        Some(group) if !set.members.is_empty() => {
            wrong(place, format!("none of its members is the group {group:?}, and this [filter] does not serve it"))
        }
        Some(group) if !listens => wrong(
            place,
            format!(
                "the group {group:?} is another filter's: name it in `members` (cdp://HOST:PORT/GROUP), or set filter.listen, where \
                 the filter that takes the cuts finds this one"
            ),
        ),
        _ => Ok(()),
    }
}

fn hops(place: &str, hops: &[CdpUrl]) -> Result<(), ConfigError> {
    if hops.is_empty() || hops.len() > LIST_MAX {
        return wrong(place, format!("1 to {LIST_MAX} next hops may stand there: [\"cdp://HOST:PORT\"]"));
    }
    let mut seen = BTreeSet::new();
    for hop in hops {
        if !hop.group.is_empty() {
            return wrong(place, format!("{hop} names a group: a next hop is cdp://HOST:PORT"));
        }
        if !seen.insert(hop) {
            return wrong(place, format!("{hop} stands there twice"));
        }
    }
    Ok(())
}

fn connections(place: &str, count: u16) -> Result<(), ConfigError> {
    if count == 0 || count > DATA_CONNECTIONS_MAX {
        return wrong(place, format!("{count} is not between 1 and {DATA_CONNECTIONS_MAX}"));
    }
    Ok(())
}

fn memory(place: &str, bytes: u64) -> Result<(), ConfigError> {
    if bytes < QUEUE_BYTES_MIN {
        return wrong(place, format!("at least {} are needed", format_bytes(QUEUE_BYTES_MIN)));
    }
    Ok(())
}

/// With less than one timeline needs none would ever be taken.
fn cache(place: &str, cache: &Cache) -> Result<(), ConfigError> {
    memory(&format!("{place}.memory"), cache.memory.0)?;
    match (cache.memory.0, cache.disk.0) {
        (memory, 0) if memory < MEMORY_MIN => {
            wrong(format!("{place}.memory"), format!("without `disk` at least {} are needed", format_bytes(MEMORY_MIN)))
        }
        (_, 1..DISK_MIN) => {
            let text = format!("at least {} are needed for each group, or 0 for none", format_bytes(DISK_MIN));
            wrong(format!("{place}.disk"), text)
        }
        _ => Ok(()),
    }
}

/// A name that is also one of a directory.
fn name(place: &str, text: &str) -> Result<(), ConfigError> {
    if !is_name(text) {
        return wrong(
            place,
            format!("{text:?} is no name: 1 to {NAME_MAX} bytes without slashes and control characters"),
        );
    }
    Ok(())
}
