//! `cdp serve`: the parts of the chain, as one file names them.

use crate::exit::{Exit, Failure};
use crate::human;
use crate::output::Output;
use anyhow::Context;
use cdp_core::types::SECTOR;
use cdp_core::when::format_bytes;
use cdp_net::owner::OwnerError;
use cdp_net::services::config::{Config, ConfigError, example};
use cdp_net::services::inbox::Inbox;
use cdp_net::services::roles;
use cdp_net::services::run::{self, Event, RunError};
use cdp_net::services::supervisor::Supervisor;
use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Run parts of the chain: what FILE has tables of. SIGHUP reads it again, SIGTERM and SIGINT drain and end, a second one ends at once
#[derive(Args, Debug)]
pub struct Arguments {
    /// The configuration: `--example` prints one to begin with
    #[arg(required_unless_present = "example")]
    file: Option<PathBuf>,
    /// Only read FILE and say what is wrong with it
    #[arg(long)]
    check: bool,
    /// Print a commented file for this part of the chain
    #[arg(long, value_name = "ROLE", value_parser = clap::builder::PossibleValuesParser::new(example::ROLES),
          conflicts_with_all = ["file", "check"])]
    example: Option<String>,
}

/// The answer of `serve --example`.
#[derive(Serialize)]
struct Example {
    role: String,
    text: String,
}

/// The answer of `serve --check`.
#[derive(Serialize)]
struct Checked {
    file: PathBuf,
    roles: Vec<&'static str>,
}

impl Arguments {
    /// Runs them until it is told to end.
    ///
    /// # Errors
    /// Why nothing was started, or why nothing works any more.
    pub fn run(self, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let Some(file) = self.file else {
            let role = self.example.unwrap_or_default();
            let text = example::of(&role).unwrap_or_default();
            output.answer(&Example { role, text }, |example| example.text.clone());
            return Ok(Exit::Done);
        };
        if self.check {
            return check(file, output);
        }
        let inbox = Inbox::default();
        on_signals(&inbox).context("cannot handle signals")?;
        let supervisor = Supervisor::of_environment();
        run::serve(&file, roles::ALL, &inbox, &supervisor, &mut |event| tell(&event, output))?;
        Ok(Exit::Done)
    }
}

fn check(file: PathBuf, output: &mut Output<'_>) -> Result<Exit, Failure> {
    let config = Config::load(&file).map_err(|source| RunError::Config { path: file.clone(), source })?;
    let roles = config.roles();
    if let Some(role) = roles.iter().find(|role| roles::ALL.iter().all(|kind| kind.name != **role)) {
        return Err(RunError::NotBuilt { path: file, role }.into());
    }
    let text =
        |checked: &Checked| format!("{} is as it should be: {}\n", checked.file.display(), checked.roles.join(", "));
    output.answer(&Checked { file, roles }, text);
    Ok(Exit::Done)
}

/// SIGHUP wishes that the file is read again; SIGTERM or SIGINT wish the end, and the second of them ends the process at once with
/// status 1.
fn on_signals(inbox: &Inbox) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    let inbox = inbox.clone();
    let told = move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => inbox.reload(),
                _ if inbox.is_stopping() => std::process::exit(1),
                _ => inbox.stop(),
            }
        }
    };
    std::thread::Builder::new().name("cdp-signals".into()).spawn(told).map(drop)
}

/// Scripts hear it on stdout, people on stderr: there it is a log.
fn tell(event: &Event, output: &mut Output<'_>) {
    if output.is_json() {
        output.answer(event, |_| String::new());
    } else {
        output.note(&format!("cdp: {}", sentence(event)));
    }
}

fn sentence(event: &Event) -> String {
    match event {
        Event::Started { role } => format!("{role} is started"),
        Event::Ready { fingerprint, metrics, .. } => {
            let metrics = metrics.map(|place| format!(", metrics at http://{place}/metrics")).unwrap_or_default();
            format!("ready{metrics}; others know this process as {fingerprint}")
        }
        Event::Reloaded { unchanged, refused } => {
            let mut text = "the file was read again and is taken".to_owned();
            if !unchanged.is_empty() {
                text.push_str(&format!("; until the next start this stays as it was: {}", unchanged.join(", ")));
            }
            if !refused.is_empty() {
                text.push_str(&format!("; not taken by {}", refused.join("; ")));
            }
            text
        }
        Event::NotReloaded { why } => {
            format!("the file was read again and is not taken, everything stays as it was: {why}")
        }
        Event::Failed { role, why } => format!("{role} does not work any more: {why}"),
        Event::Note { text } => text.clone(),
        Event::Draining { within_s } => format!(
            "ends; waits {} at most until what is under way is safe, and a second signal ends it at once",
            human::span(Duration::from_secs(*within_s))
        ),
        Event::Drained { role, left_bytes: 0 } => format!("{role} is drained"),
        Event::Drained { role, left_bytes } => format!("{role} is ended; {}", left(role, *left_bytes)),
        Event::Stopped => "stopped".into(),
        // An event of a newer library.
        other => format!("{other:?}"),
    }
}

/// What is not known to be durable at the end, and who has it: whoever reads this may be about to throw something away.
fn left(role: &str, bytes: u64) -> String {
    let amount = format_bytes(bytes);
    match role {
        // What guests wrote is at the source. A part of a sector stands for what only could not be written down.
        "filter" if (SECTOR..u64::MAX).contains(&bytes) => {
            format!("not everything is durable: the next start reads {amount} of the disks again")
        }
        "filter" => "not everything is known to be durable: the next start finds what it has to read again".into(),
        // A filter that was short of room forgot what this one has on disk.
        "source-proxy" | "target-proxy" => format!(
            "{amount} are not known to be durable: they are in its cache, or still with whoever sent them. Keep the cache: the next \
             start sends what is in it"
        ),
        _ => format!("{amount} that came here are not known to be durable: whoever sent them still has them"),
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let (failed, message) = (|code, message| Self::new(Exit::Failed, code, message), chain(&error));
        match &error {
            RunError::Config { source: ConfigError::Read(_), .. } => {
                failed("config-file", message).hint("`cdp serve --example ROLE` prints a file to begin with")
            }
            RunError::Config { .. } => Self::new(Exit::Usage, "config", message.trim_end())
                .hint("`cdp serve --check FILE` tries it, `cdp serve --example ROLE` shows what there is"),
            RunError::NotBuilt { .. } => Self::new(Exit::Usage, "not-built", message),
            RunError::Owner(OwnerError::Owned { .. }) => Self::new(Exit::Refused, "owned", message)
                .hint("stop that process, or give this one a state directory of its own"),
            RunError::Owner(_) | RunError::State { .. } => {
                failed("state-directory", message).hint("give a directory that you may write to as `state`")
            }
            RunError::Identity(_) => failed("identity", message),
            RunError::Metrics { .. } => {
                failed("metrics", message).hint("give another place as `metrics`, or leave it out")
            }
            RunError::Role { source, .. } => {
                let failure = failed("role", message);
                source.hint.iter().fold(failure, |failure, hint| failure.hint(hint))
            }
            RunError::Runtime(_) => failed("threads", message),
            RunError::Failed { .. } => failed("no-role", message),
        }
    }
}

/// What went wrong and why, where the sentence does not say so itself.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(&format!(": {cause_text}"));
        }
        source = cause.source();
    }
    text
}

/// The configuration of a file, for other commands.
pub(super) fn load(file: &Path) -> Result<Config, Failure> {
    Config::load(file).map_err(|source| RunError::Config { path: file.to_owned(), source }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::capture;

    #[test]
    fn events_are_documents_for_scripts_and_sentences_for_people() {
        let event = Event::Reloaded { unchanged: vec!["state".into()], refused: vec!["gateway: no".into()] };
        let document = r#"{"event":"reloaded","unchanged":["state"],"refused":["gateway: no"]}"#;
        assert_eq!(capture(true, |output| tell(&event, output)), (format!("{document}\n"), String::new()));
        let said = "cdp: the file was read again and is taken; until the next start this stays as it was: state; \
                    not taken by gateway: no\n";
        assert_eq!(capture(false, |output| tell(&event, output)), (String::new(), said.into()));
    }

    /// A guest has no copy of what its disk has, and a filter that lent keeps nothing of what a proxy has.
    #[test]
    fn the_last_word_of_a_role_says_who_has_what_is_not_durable() {
        for (role, left_bytes, says) in [
            (
                "filter",
                3 << 20,
                "filter is ended; not everything is durable: the next start reads 3.00 MiB of the disks",
            ),
            ("filter", 1, "filter is ended; not everything is known to be durable: the next start finds"),
            ("filter", u64::MAX, "filter is ended; not everything is known to be durable: the next start finds"),
            ("source-proxy", 1 << 20, "1.00 MiB are not known to be durable: they are in its cache, or still with"),
            ("target-proxy", 1 << 20, "1.00 MiB are not known to be durable: they are in its cache, or still with"),
            (
                "replica-host",
                1 << 20,
                "1.00 MiB that came here are not known to be durable: whoever sent them still has",
            ),
        ] {
            let said = sentence(&Event::Drained { role, left_bytes });
            assert!(said.contains(says), "{said}");
            assert_eq!(said.ends_with("whoever sent them still has them"), role == "replica-host", "{said}");
        }
        assert_eq!(sentence(&Event::Drained { role: "filter", left_bytes: 0 }), "filter is drained");
    }
}
