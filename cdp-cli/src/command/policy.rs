//! `cdp policy`: show or change which moments are kept.

use super::protect::PolicyFlags;
use crate::ask::{access, ask};
use crate::engine::{Engine, PolicySpec};
use crate::exit::{Exit, Failure};
use crate::json::Policy;
use crate::output::Output;
use cdp_core::when::format_duration;
use cdp_net::owner::{PolicyChange, Request};
use cdp_net::report::PointPolicy;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Show or durably change which moments are kept
#[derive(Args, Debug)]
pub struct Arguments {
    /// Directory of the replica
    dir: PathBuf,
    #[command(flatten)]
    flags: PolicyFlags,
    /// Rotate the key of a replica that is sealed at rest: from now on it opens with this one, and not with that of --key-file
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
}

impl Arguments {
    /// Changes what was given and shows the whole.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let PolicySpec { rpo, points } = self.flags.into();
        if let Some(file) = &self.new_key_file {
            let new = crate::key::read(file)?;
            if (rpo, points) != (None, None) {
                let message = "a key is rotated by itself: the replica opens with another key afterwards";
                return Err(Failure::new(Exit::Usage, "usage", message).hint("give the policy in a command of its own"));
            }
            engine.rotate_key(&self.dir, access(&self.dir)?, &new)?;
            output.answer(&Rotated { rotated: true }, |_| {
                "the key is rotated: from now on the replica opens with the new one\n".to_owned()
            });
            return Ok(Exit::Done);
        }
        let rpo_ms = rpo.map(|rpo| u64::try_from(rpo.as_millis()).unwrap_or(u64::MAX));
        let request = Request::Policy { change: PolicyChange { rpo_ms, points } };
        let policy: Policy = ask(engine, &self.dir, request)?;
        output.answer(&policy, for_people);
        Ok(Exit::Done)
    }
}

/// The answer to a rotation, for scripts.
#[derive(Serialize)]
struct Rotated {
    rotated: bool,
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
