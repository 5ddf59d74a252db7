//! The tree of commands, and the way from arguments to an exit status.

use crate::command::{
    demo, diff, disk, identity, inspect, mark, mount, pin, points, policy, protect, prune, restore, serve, status,
    ticket, top, verify,
};
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::key;
use crate::output::Output;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

/// Options that every command has stand behind its own in its help.
const LAST: usize = 100;

/// Continuous data protection: every write of a disk is kept, and any moment of it can be brought back.
#[derive(Parser, Debug)]
#[command(name = "cdp", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// Answer with JSON for scripts: one document, or one object a line
    #[arg(long, global = true, display_order = LAST)]
    pub json: bool,
    /// The key of a replica that is sealed at rest: 32 bytes, or 64 hexadecimal digits; else the variable CDP_KEY has it in digits.
    /// `protect` seals a new replica with it
    #[arg(long, global = true, value_name = "FILE", display_order = LAST)]
    pub key_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Protect(protect::Arguments),
    Policy(policy::Arguments),
    Points(points::Arguments),
    Mark(mark::Arguments),
    Disk(disk::Arguments),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Mount(mount::Arguments),
    Restore(restore::Arguments),
    Diff(diff::Arguments),
    Verify(verify::Arguments),
    Inspect(inspect::Arguments),
    Prune(prune::Prune),
    Compact(prune::Compact),
    Status(status::Arguments),
    Serve(serve::Arguments),
    Identity(identity::Arguments),
    Ticket(ticket::Arguments),
    Top(top::Arguments),
    Demo(demo::Arguments),
}

impl Command {
    /// Whether what it tells is by the way, and what it does goes on whoever listens.
    fn serves(&self) -> bool {
        matches!(self, Self::Protect(_) | Self::Mount(_) | Self::Serve(_))
    }

    fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        match self {
            Self::Protect(arguments) => arguments.run(engine, output),
            Self::Policy(arguments) => arguments.run(engine, output),
            Self::Points(arguments) => arguments.run(engine, output),
            Self::Mark(arguments) => arguments.run(engine, output),
            Self::Disk(arguments) => arguments.run(engine, output),
            Self::Pin(arguments) => arguments.run(engine, output),
            Self::Unpin(arguments) => arguments.run(engine, output),
            Self::Mount(arguments) => arguments.run(engine, output),
            Self::Restore(arguments) => arguments.run(engine, output),
            Self::Diff(arguments) => arguments.run(engine, output),
            Self::Verify(arguments) => arguments.run(engine, output),
            Self::Inspect(arguments) => arguments.run(engine, output),
            Self::Prune(arguments) => arguments.run(engine, output),
            Self::Compact(arguments) => arguments.run(engine, output),
            Self::Status(arguments) => arguments.run(engine, output),
            Self::Serve(arguments) => arguments.run(output),
            Self::Identity(arguments) => arguments.run(output),
            Self::Ticket(arguments) => arguments.run(output),
            Self::Top(arguments) => arguments.run(output),
            Self::Demo(arguments) => arguments.run(engine, output),
        }
    }
}

/// Does what the arguments (the program's name first) say, on stdout and stderr.
pub fn run(arguments: impl IntoIterator<Item = OsString>, engine: &dyn Engine) -> Exit {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let terminal = err.is_terminal();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    let mut output = Output::new(wants_json, terminal, &mut out, &mut err);
    match Cli::try_parse_from(arguments) {
        Ok(cli) => {
            let serves = cli.command.serves();
            let done = key::given(cli.key_file.as_deref()).and_then(|key| {
                engine.take_key(key);
                cli.command.run(engine, &mut output)
            });
            let exit = finish(done, &mut output);
            match output.lost().filter(|_| !serves && exit == Exit::Done) {
                Some(failure) => finish(Err(failure), &mut output),
                None => exit,
            }
        }
        Err(error) => end_of_parsing(&error, &mut output),
    }
}

fn finish(result: Result<Exit, Failure>, output: &mut Output<'_>) -> Exit {
    result.unwrap_or_else(|failure| {
        output.failure(&failure);
        failure.status
    })
}

/// Help and version are answers; everything else is wrong usage, which clap words best itself.
fn end_of_parsing(error: &clap::Error, output: &mut Output<'_>) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return Exit::Done;
    }
    let rendered = error.render();
    if output.is_json() {
        let text = rendered.to_string();
        let lines = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
        let sentence = lines.map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        let failure = Failure::new(Exit::Usage, "usage", sentence.trim_start_matches("error: "));
        output.failure(&failure.hint("cdp --help shows every command, cdp COMMAND --help its arguments"));
    } else if output.shows_progress() {
        output.note(rendered.ansi().to_string().trim_end());
    } else {
        output.note(rendered.to_string().trim_end());
    }
    Exit::Usage
}

#[cfg(test)]
mod tests;
