//! `protect --to`: the same where the replica is kept at another site.

use super::shown::Told;
use super::teller::{self, Teller};
use super::{CLOSE, Waits, owned, stopped, watch};
use crate::engine::{ProtectSpec, SourceTrust, ThereSpec};
use crate::exit::{Exit, Failure};
use crate::json::{ProtectEvent, Stopped};
use crate::libraries::listen_at;
use crate::stop::Stop;
use cdp_net::link::identity::Identity;
use cdp_net::link::pin::Peers;
use cdp_net::protect::{ProtectionOptions, SourceOptions};
use cdp_net::services::far_link::FarOptions;
use cdp_net::services::remote::{PATIENCE, RemoteNotice, RemoteOptions, RemoteProtection};
use cdp_net::services::traffic::Traffic;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// After so long without a word the other side is taken for dead.
const SILENCE_MS: u32 = 5_000;
/// Threads that read sources again: each comparison waits for a network.
const REREAD_THREADS: usize = 4;

fn options(spec: &ProtectSpec, there: &ThereSpec) -> Result<RemoteOptions, Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failed, what, format!("{}: {error}", spec.replica.display()))
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&spec.replica);
    made.map_err(|error| failed("state", &error))?;
    let identity = Identity::open_or_make(&spec.replica, &format!("cdp protect {}", there.group));
    let source =
        |source: &crate::engine::SourceSpec| SourceOptions { name: source.name.clone(), path: source.path.clone() };
    Ok(RemoteOptions {
        identity: Arc::new(identity?),
        link: FarOptions {
            to: there.to.iter().map(|url| url.authority()).collect(),
            peers: Peers::new(there.peers.iter().copied()),
            tenant: String::new(),
            name: there.group.clone(),
            memory_bytes: FarOptions::memory_for(spec.memory),
            silence_ms: SILENCE_MS,
            connections: 0,
            ticket: there.ticket.clone().into(),
            traffic: Traffic::encrypted(),
            spool: None,
        },
        protection: ProtectionOptions {
            sources: spec.sources.iter().map(source).collect(),
            name: Some(there.group.clone()),
            policy: spec.policy,
            trust_source: spec.trust == SourceTrust::Trust,
            full_check: spec.trust == SourceTrust::Check,
            queue_bytes: spec.memory,
            reread_threads: REREAD_THREADS,
        },
        state: spec.replica.clone(),
        memory: None,
        patience: PATIENCE,
        // Somebody sits in front of it: what the other side refuses is an error, as where the replica is here.
        serve_refused: false,
    })
}

/// Protects until `stop` is wished.
pub(super) fn run(
    spec: &ProtectSpec,
    there: &ThereSpec,
    stop: &Stop,
    events: &mut dyn FnMut(ProtectEvent),
) -> Result<Stopped, Failure> {
    // Before anything is made: clients that come too early wait.
    let listening = listen_at(Some(&spec.listen), spec.tls.as_deref());
    let listening = listening.map_err(|failure| owned(&spec.replica).unwrap_or(failure))?;
    let (notices, told) = channel();
    let tell = move |notice| {
        let told = match notice {
            RemoteNotice::Protection(notice) => Told::Notice(notice),
            RemoteNotice::Began(opened) => Told::Began(opened),
            RemoteNotice::Waiting(why) => Told::Because(format!(
                "the disks are served and not protected: {why}; that begins by itself, and everything is compared then"
            )),
            RemoteNotice::Road(text) => Told::Because(text),
            // That is looked at all the time.
            RemoteNotice::Disks => return,
        };
        // Who showed them has ended: nobody misses the rest.
        let _ = notices.send(told);
    };
    let mut remote = RemoteProtection::start(options(spec, there)?, tell)?;
    // What is known already comes before where the disks are served.
    let mut early = Vec::new();
    while let Ok(first) = told.try_recv() {
        match first {
            Told::Began(opened) => events(teller::opened(opened)),
            other => early.push(other),
        }
    }
    let (server, exports) = match listening.serve(remote.exports()) {
        Ok(served) => served,
        Err(failure) => {
            remote.stop(Duration::ZERO, &|| true);
            return Err(failure);
        }
    };
    remote.set_uris(exports.iter().map(|export| (export.name.clone(), export.uri.clone())).collect());
    events(ProtectEvent::Ready { exports });
    let mut teller = Teller::new(&remote, 0);
    early.iter().for_each(|first| teller.told(&remote, first, events));
    watch(&remote, teller, &server, &told, stop, events);
    server.stop(CLOSE);
    let waits = Waits::new(spec.drain, events);
    Ok(stopped(&remote.stop(spec.drain, &|| waits.looked())))
}
