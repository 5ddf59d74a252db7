//! `cdp policy`: show or change which moments are kept.

use super::protect::PolicyFlags;
use crate::ask::ask;
use crate::engine::{Engine, PolicySpec};
use crate::exit::{Exit, Failure};
use crate::json::Policy;
use crate::output::Output;
use cdp_core::when::format_duration;
use cdp_net::owner::{PolicyChange, Request};
use cdp_net::report::PointPolicy;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Show or durably change which moments are kept
#[derive(Args, Debug)]
pub struct Arguments {
    /// Directory of the replica
    dir: PathBuf,
    #[command(flatten)]
    flags: PolicyFlags,
}

impl Arguments {
    /// Changes what was given and shows the whole.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let PolicySpec { rpo, points } = self.flags.into();
        let rpo_ms = rpo.map(|rpo| u64::try_from(rpo.as_millis()).unwrap_or(u64::MAX));
        let request = Request::Policy { change: PolicyChange { rpo_ms, points } };
        let policy: Policy = ask(engine, &self.dir, request)?;
        output.answer(&policy, for_people);
        Ok(Exit::Done)
    }
}

fn for_people(policy: &Policy) -> String {
    let kept = match policy.points {
        PointPolicy::EveryWrite => "every write",
        PointPolicy::PerPoint => "points only",
    };
    format!("RPO     {}\npoints  {kept}\n", format_duration(Duration::from_millis(policy.rpo_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_in_words() {
        assert_eq!(for_people(&Policy::default()), "RPO     15s\npoints  every write\n");
    }
}
