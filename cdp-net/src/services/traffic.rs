//! The network traffic rules of a process, as who sends frames follows them: what a connection is guarded by, and how fast frames go.

use super::config::Config;
use super::pace::Pace;
use super::role::RoleError;
use crate::clock::wall;
use crate::sys::local_time::utc_offset_s;
use cdp_core::policy::traffic::{Flow, LocalTime, Rules, Traffic as Decided};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module's text. Clones share it; a new file changes it for all.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    rules: Rules,
    /// By the rule's name, so that a new file with the same rule goes on with what was granted. As many as there are rules.
    paces: BTreeMap<String, Arc<Pace>>,
}

/// What holds for a flow now.
#[derive(Clone, Debug, Default)]
pub(super) struct Now {
    /// TLS for frames; without it they go plain, with a MAC.
    pub(super) encrypt: bool,
    /// Frames wait for it.
    pub(super) pace: Option<Arc<Pace>>,
}

/// The rules of a file, for a role of it.
pub(super) fn rules(config: &Config) -> Result<Rules, RoleError> {
    config.traffic().map_err(|error| RoleError::new(error.to_string()))
}

impl Traffic {
    /// That of these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        let traffic = Self { held: Arc::default() };
        traffic.set(rules);
        traffic
    }

    /// Everything is encrypted, and nothing limited.
    #[must_use]
    pub fn encrypted() -> Self {
        Self::new(Rules::encrypting())
    }

    /// Other rules from now on. Flows ask anew every few seconds.
    pub fn set(&self, rules: Rules) {
        let mut held = self.lock();
        held.paces.retain(|name, _| rules.as_slice().iter().any(|rule| rule.name == *name && rule.limit.is_some()));
        held.rules = rules;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds between these addresses now.
    pub(super) fn decide(&self, source: IpAddr, target: IpAddr, gateway: bool) -> Now {
        let now = wall();
        let local = LocalTime::new(now, utc_offset_s(now));
        let mut held = self.lock();
        let decision = held.rules.decide(Flow { source, target, gateway }, local);
        let Decided { encrypt, limit } = decision.traffic;
        let name = decision.limit.and_then(|rule| Some(held.rules.as_slice().get(rule)?.name.clone()));
        let pace = match (limit, name) {
            (Some(rate), Some(name)) => pace(&mut held, name, rate),
            _ => None,
        };
        Now { encrypt, pace }
    }
}

/// None where the rate is too low for any: such a rule is refused where it is read.
fn pace(held: &mut Held, name: String, rate: u64) -> Option<Arc<Pace>> {
    if let Some(pace) = held.paces.get(&name) {
        pace.set_rate(Some(rate)).ok()?;
        return Some(Arc::clone(pace));
    }
    let pace = Arc::new(Pace::new(Some(rate)).ok()?);
    held.paces.insert(name, Arc::clone(&pace));
    Some(pace)
}

/// Which of our addresses a connection to `address` (HOST:PORT) would have, and the other side's; none where the name is not known or
/// nothing leads there. Nothing is sent. May wait for the resolver.
pub(super) fn addresses(address: &str) -> Option<(IpAddr, IpAddr)> {
    let far = address.to_socket_addrs().ok()?.next()?;
    let any: SocketAddr = if far.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(far).ok()?;
    Some((socket.local_addr().ok()?.ip(), far.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_in_private_networks_goes_plain_unless_a_rule_or_a_gateway_says_otherwise() {
        let (own, far) = addresses("127.0.0.1:9").unwrap();
        assert_eq!((own, far), ([127, 0, 0, 1].into(), [127, 0, 0, 1].into()));
        let traffic = Traffic::new(Rules::default());
        assert!(!traffic.decide(own, far, false).encrypt);
        assert!(traffic.decide(own, far, true).encrypt);
        let file = "state = \"s\"\n[[peer]]\nname = \"a\"\nfingerprint = \"sha256:".to_owned()
            + &"0".repeat(64)
            + "\"\n[[rule]]\nname = \"r\"\nfrom = \"127.0.0.0/8\"\nto = \"127.0.0.1\"\nencrypt = true\nlimit = \"1MiB\"\n"
            + "[replica-host]\nlisten = \"127.0.0.1:0\"\ndirectory = \"d\"\n";
        traffic.set(Config::parse(&file).unwrap().traffic().unwrap());
        let now = traffic.decide(own, far, false);
        assert!(now.encrypt && now.pace.is_some());
        let again = traffic.decide(own, far, false).pace.unwrap();
        assert!(Arc::ptr_eq(&again, &now.pace.unwrap()), "the limit is shared");
    }
}
