//! `cdp pin` and `cdp unpin`: moments that outlast the window, for as long as somebody wants them.

use super::Nearest;
use crate::ask::ask;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{At, Marked};
use crate::output::Output;
use crate::place::Place;
use cdp_core::when::{Label, When};
use cdp_net::owner::Request;
use clap::Args;

/// Keep a moment until it is unpinned, however old it gets
#[derive(Args, Debug)]
pub struct Pin {
    #[command(flatten)]
    place: Place,
    /// The moment: latest, lsn:N, point:ID, label:TEXT, -15m, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    at: When,
    /// Take this neighbour of a moment that is not restorable
    #[arg(long, value_enum)]
    nearest: Option<Nearest>,
    /// What the pin is for
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    label: Option<Label>,
}

/// Take the pin of a moment away
#[derive(Args, Debug)]
pub struct Unpin {
    #[command(flatten)]
    place: Place,
    /// The moment, as for pin
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    at: When,
    /// Take this neighbour of a moment that is not restorable
    #[arg(long, value_enum)]
    nearest: Option<Nearest>,
}

impl Pin {
    /// Pins it durably.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let label = self.label.as_ref().map(ToString::to_string).unwrap_or_default();
        let request = Request::Keep { at: self.at, nearest: self.nearest.map(Into::into), label: self.label };
        let at: At = ask(engine, &self.place, request)?;
        output.answer(&Marked { at, label }, |pinned| format!("pinned: {}\n", human::moment(&pinned.at)));
        Ok(Exit::Done)
    }
}

impl Unpin {
    /// Takes it away durably.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let request = Request::LetGo { at: self.at, nearest: self.nearest.map(Into::into) };
        let at: At = ask(engine, &self.place, request)?;
        let unpinned = Marked { at, label: String::new() };
        output.answer(&unpinned, |unpinned| format!("not pinned any more: {}\n", human::moment(&unpinned.at)));
        Ok(Exit::Done)
    }
}
