//! Who is let in, and for whom each may speak.

use super::config::Peer;
use crate::link::pin::{Fingerprint, Peers};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Somebody who is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// For people.
    pub name: String,
    /// The only tenant for whom he speaks; none: for everybody, as one's own proxies do.
    pub tenant: Option<String>,
}

impl Known {
    /// Whether he may name groups of this tenant.
    #[must_use]
    pub fn speaks_for(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|own| own == tenant)
    }
}

/// The `[[peer]]` tables. Clones share them: a new file changes them for everybody, from the next handshake on.
#[derive(Clone, Debug, Default)]
pub struct PeerBook {
    pinned: Peers,
    known: Arc<RwLock<BTreeMap<Fingerprint, Known>>>,
}

impl PeerBook {
    /// These.
    #[must_use]
    pub fn new(peers: &[Peer]) -> Self {
        let book = Self::default();
        book.set(peers);
        book
    }

    /// These instead. How many there are is bounded by the configuration.
    pub fn set(&self, peers: &[Peer]) {
        let known = |peer: &Peer| {
            let tenant = Some(peer.tenant.clone()).filter(|tenant| tenant != "*");
            // A configuration that was checked has no others.
            let fingerprint = peer.fingerprint.parse::<Fingerprint>().ok()?;
            Some((fingerprint, Known { name: peer.name.clone(), tenant }))
        };
        let known: BTreeMap<_, _> = peers.iter().filter_map(known).collect();
        let fingerprints: Vec<_> = known.keys().copied().collect();
        let mut held = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *held = known;
        // Under the lock: whoever is let in is known.
        self.pinned.set(fingerprints);
    }

    /// Their certificates, for handshakes. It follows what is set.
    #[must_use]
    pub fn pinned(&self) -> Peers {
        self.pinned.clone()
    }

    /// Who has this certificate; none: he is known no more.
    #[must_use]
    pub fn who(&self, fingerprint: &Fingerprint) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(fingerprint).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, digit: char, tenant: &str) -> Peer {
        let fingerprint = format!("sha256:{}", digit.to_string().repeat(64));
        Peer { name: name.into(), fingerprint, tenant: tenant.into() }
    }

    #[test]
    fn who_is_taken_off_the_list_is_let_in_no_more() {
        let book = PeerBook::new(&[peer("proxy", 'a', "*"), peer("acme's", 'b', "acme")]);
        let (pinned, clone) = (book.pinned(), book.clone());
        let [proxy, acme] = [Fingerprint([0xaa; 32]), Fingerprint([0xbb; 32])];
        let known = book.who(&acme).unwrap();
        assert_eq!(known.name, "acme's");
        assert!(known.speaks_for("acme") && !known.speaks_for("other") && !known.speaks_for(""));
        assert!(book.who(&proxy).unwrap().speaks_for("other"));
        assert!(pinned.admits(&acme));
        clone.set(&[peer("proxy", 'a', "*")]);
        assert!(pinned.admits(&proxy) && !pinned.admits(&acme));
        assert_eq!(book.who(&acme), None);
    }
}
