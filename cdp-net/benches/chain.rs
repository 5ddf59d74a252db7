//! Figures of the chain, every part a process of its own on loopback: `chain`, `saturation`, `latency`, `latency-cut`,
//! `latency-catchup`, `catch-up`, `wire-rewrite`, `wire-noise`.
//!
//! `cargo bench -p cdp-net --features services --bench chain` prints all of them; `-- ID` those whose id begins so; `-- --quick` runs
//! everything once and shortly, for whoever changes the code. README.md beside this file says what was found.

#[path = "chain/catch_up.rs"]
mod catch_up;
#[path = "chain/costs.rs"]
mod costs;
#[path = "../../cdp-core/benches/figure/mod.rs"]
mod figure;
#[path = "nbd/image.rs"]
#[allow(dead_code, reason = "each bench uses what its figures need")]
mod image;
#[path = "chain/latency.rs"]
mod latency;
#[path = "chain/load.rs"]
#[allow(dead_code, reason = "each bench uses what its figures need")]
mod load;
#[path = "chain/null.rs"]
mod null;
#[path = "chain/parts.rs"]
#[allow(dead_code, reason = "each bench uses what its figures need")]
mod parts;
#[path = "chain/serve.rs"]
mod serve;
#[path = "chain/through.rs"]
mod through;
#[path = "../tests/wan/mod.rs"]
#[allow(dead_code, reason = "the tests cut it too")]
mod wan;
#[path = "chain/wire.rs"]
mod wire;

use std::time::Duration;

type Failure = Box<dyn std::error::Error>;

/// How long and how often.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Of a load at full speed.
    pub(crate) load: Duration,
    /// Of a load at a given rate.
    pub(crate) paced: Duration,
    /// How long the line is cut.
    pub(crate) cut: Duration,
}

const FULL: Plan =
    Plan { rounds: 5, load: Duration::from_secs(10), paced: Duration::from_secs(10), cut: Duration::from_secs(60) };

const QUICK: Plan =
    Plan { rounds: 1, load: Duration::from_secs(3), paced: Duration::from_secs(3), cut: Duration::from_secs(5) };

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if serve::serve_if_told(&arguments)? {
        return Ok(());
    }
    let plan = if arguments.iter().any(|argument| argument == "--quick") { QUICK } else { FULL };
    let chosen: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |id: &str| chosen.is_empty() || chosen.iter().any(|prefix| id.starts_with(prefix.as_str()));
    let (source, pool) = image::source()?;
    let place = parts::Place::new(source, pool)?;
    if wanted("chain") {
        through::chain(&place, &plan)?;
    }
    if wanted("saturation") {
        through::saturation(&place, &plan)?;
    }
    for kind in latency::Kind::ALL.into_iter().filter(|kind| wanted(kind.id())) {
        latency::run(&place, &plan, kind)?;
    }
    if wanted("catch-up") {
        catch_up::run(&place, &plan)?;
    }
    for kind in wire::Kind::ALL.into_iter().filter(|kind| wanted(kind.id())) {
        wire::run(&place, &plan, kind)?;
    }
    Ok(())
}
