//! `cdp prune` and `cdp compact`: retention now instead of when it is worth its while.

use crate::ask::{ask, ask_patiently};
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::Pruned;
use crate::output::Output;
use crate::place::Place;
use cdp_core::when::format_bytes;
use cdp_net::owner::Request;
use clap::Args;
use std::time::Duration;

/// How long merging may take: all of a long history may go into the base.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Apply retention now: what is past the window or the bound goes into the base
#[derive(Args, Debug)]
pub struct Prune {
    #[command(flatten)]
    place: Place,
    /// Only say what that would do
    #[arg(long)]
    dry_run: bool,
}

/// Merge everything that waits to be merged
#[derive(Args, Debug)]
pub struct Compact {
    #[command(flatten)]
    place: Place,
}

impl Prune {
    /// Applies it.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let request = Request::Prune { dry_run: self.dry_run };
        let pruned: Pruned = match self.dry_run {
            true => ask(engine, &self.place, request)?,
            false => ask_patiently(engine, &self.place, request, PATIENCE)?,
        };
        output.answer(&pruned, for_people);
        Ok(Exit::Done)
    }
}

impl Compact {
    /// Merges it.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let pruned: Pruned = ask_patiently(engine, &self.place, Request::Compact, PATIENCE)?;
        output.answer(&pruned, for_people);
        Ok(Exit::Done)
    }
}

fn for_people(pruned: &Pruned) -> String {
    let (would, verb) = if pruned.dry_run { ("would be", "would take") } else { ("is", "takes") };
    let oldest = pruned.oldest.as_ref().map_or_else(
        || "nothing is old enough to be merged\n".into(),
        |at| format!("the oldest moment {would} {}\n", human::moment(at)),
    );
    let kept = if pruned.holds > 0 {
        format!("kept before it: {}\n", human::count(pruned.holds as usize, "moment"))
    } else {
        String::new()
    };
    format!("{oldest}{kept}the journal {verb} {} less\n", format_bytes(pruned.freed_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::at;

    #[test]
    fn what_was_done_and_what_would_be() {
        let pruned = Pruned { oldest: Some(at()), freed_bytes: 1 << 20, holds: 2, dry_run: true };
        let text = for_people(&pruned);
        assert!(
            text.starts_with("the oldest moment would be point 0011") && text.contains("kept before it: 2 moments\n"),
            "{text}"
        );
        assert!(text.ends_with("the journal would take 1.00 MiB less\n"), "{text}");
        assert_eq!(for_people(&Pruned::default()), "nothing is old enough to be merged\nthe journal takes 0 B less\n");
    }
}
