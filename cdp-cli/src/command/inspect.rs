//! `cdp inspect`: any file of ours in words.

use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::json::Inspected;
use crate::output::Output;
use clap::Args;
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
    inspected.lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_words() {
        let lines = vec!["version 1".into(), "id 00ff".into()];
        let inspected = Inspected { path: "x.seg".into(), kind: "a sealed segment".into(), lines };
        assert_eq!(for_people(&inspected), "x.seg: a sealed segment\nversion 1\nid 00ff\n");
    }
}
