//! `cdp inspect`: any file of ours in words.

use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::json::Inspected;
use crate::output::Output;
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;

/// Print any file of a replica in words
#[derive(Args, Debug)]
pub struct Arguments {
    /// The file
    path: PathBuf,
}

impl Arguments {
    /// Prints it.
    ///
    /// # Errors
    /// What the engine says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        output.answer(&engine.inspect(&self.path)?, for_people);
        Ok(Exit::Done)
    }
}

fn for_people(inspected: &Inspected) -> String {
    let mut text = format!("{}: {}\n", inspected.path.display(), inspected.kind);
    for section in &inspected.sections {
        text.push_str(&format!("\n{}\n", section.title));
        let width = section.facts.iter().map(|fact| fact.name.chars().count()).max().unwrap_or(0);
        for fact in &section.facts {
            let value = match &fact.value {
                Value::String(value) => value.clone(),
                other => other.to_string(),
            };
            text.push_str(&format!("  {:<width$}  {value}\n", fact.name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{Fact, Section};

    #[test]
    fn a_file_in_words() {
        let fact = |name: &str, value: Value| Fact { name: name.into(), value };
        let section =
            Section { title: "header".into(), facts: vec![fact("version", 1.into()), fact("id", "00ff".into())] };
        let inspected = Inspected { path: "x.seg".into(), kind: "a sealed segment".into(), sections: vec![section] };
        assert_eq!(for_people(&inspected), "x.seg: a sealed segment\n\nheader\n  version  1\n  id       00ff\n");
    }
}
