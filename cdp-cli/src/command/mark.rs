//! `cdp mark`: a named point now.

use crate::ask::ask;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{At, Marked};
use crate::output::Output;
use crate::place::Place;
use cdp_core::when::Label;
use cdp_net::owner::Request;
use clap::Args;

/// Make a named point now
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Name of the point
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    label: Label,
    /// Refuse unless a hook really froze the applications for it. Not offered until there are hooks
    #[arg(long, hide = true)]
    app_consistent: bool,
}

impl Arguments {
    /// Makes it, and says when it is durable.
    ///
    /// # Errors
    /// What the owner says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let request = Request::Mark { label: self.label.clone(), app_consistent: self.app_consistent };
        let at: At = ask(engine, &self.place, request)?;
        output.answer(&Marked { at, label: self.label.to_string() }, for_people);
        Ok(Exit::Done)
    }
}

fn for_people(marked: &Marked) -> String {
    format!("{:?} is {}\n", marked.label, human::moment(&marked.at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::at;

    #[test]
    fn a_mark_in_words() {
        let text = for_people(&Marked { at: at(), label: "before upgrade".into() });
        assert!(text.starts_with("\"before upgrade\" is point 00112233445566ff-7 (19"), "{text}");
    }
}
