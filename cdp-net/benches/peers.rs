//! Figures beside others who do the same: `seed-peer`, `mirror-peer`; and `rpo`, over a line of 1 Gbit/s.
//!
//! `cargo bench -p cdp-net --features services --bench peers` prints all of them; `-- ID` those whose id begins so; `-- --quick` runs
//! everything once and shortly, for whoever changes the code. README.md beside this file says what was found.

#[path = "../../cdp-core/benches/figure/mod.rs"]
mod figure;
#[path = "nbd/image.rs"]
mod image;
#[path = "peers/line.rs"]
mod line;
#[path = "chain/load.rs"]
#[allow(dead_code, reason = "each bench uses what its figures need")]
mod load;
#[path = "peers/mirror.rs"]
mod mirror;
#[path = "chain/null.rs"]
mod null;
#[path = "peers/others.rs"]
mod others;
#[path = "chain/parts.rs"]
#[allow(dead_code, reason = "each bench uses what its figures need")]
mod parts;
#[path = "peers/rpo.rs"]
mod rpo;
#[path = "peers/seed.rs"]
mod seed;
#[path = "chain/serve.rs"]
mod serve;
#[path = "../tests/wan/mod.rs"]
#[allow(dead_code, reason = "a part only cuts and mends it")]
mod wan;

use std::time::Duration;

type Failure = Box<dyn std::error::Error>;

/// How long and how often.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Of a load at full speed.
    pub(crate) load: Duration,
    /// Of a load at a given rate, behind its beginning.
    pub(crate) paced: Duration,
}

const FULL: Plan = Plan { rounds: 5, load: Duration::from_secs(15), paced: Duration::from_secs(30) };

const QUICK: Plan = Plan { rounds: 1, load: Duration::from_secs(4), paced: Duration::from_secs(6) };

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
    let run = || {
        if wanted("seed-peer") {
            seed::run(&place, &plan)?;
        }
        if wanted("mirror-peer") {
            mirror::run(&place, &plan)?;
        }
        if wanted("rpo") {
            rpo::run(&place, &plan)?;
        }
        Ok(())
    };
    let ran = run();
    // Whatever came of it. The image that everything is made of stays for the next time.
    std::fs::remove_dir_all(&place.root)?;
    std::fs::remove_file(&place.source)?;
    ran
}
