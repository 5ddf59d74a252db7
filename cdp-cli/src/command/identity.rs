//! `cdp identity`: who a part of the chain is.

use super::serve::chain;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use cdp_net::link::identity::{Identity, IdentityError};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Show the fingerprint of the part of the chain whose state is in DIR; its identity is made if there is none
#[derive(Args, Debug)]
pub struct Arguments {
    /// The state directory
    dir: PathBuf,
}

/// The answer.
#[derive(Serialize)]
struct Shown {
    directory: PathBuf,
    fingerprint: String,
}

impl Arguments {
    /// Shows it.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub fn run(self, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let identity = Identity::open_or_make(&self.dir, "cdp")?;
        let shown = Shown { directory: self.dir, fingerprint: identity.fingerprint().to_string() };
        output.answer(&shown, |shown| format!("{}\n", shown.fingerprint));
        Ok(Exit::Done)
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        let failure = Self::new(Exit::Failed, "identity", chain(&error));
        match error {
            IdentityError::File { .. } => {
                failure.hint("give a directory that you may write to: it is made if it is not there")
            }
            _ => failure,
        }
    }
}
