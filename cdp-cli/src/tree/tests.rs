use super::*;
use crate::engine::{DiffSpec, DiffTo, MountSpec, ProtectSpec, RestoreSpec};
use crate::json::tests::at;
use crate::json::{DiffEvent, Inspected, MountEvent, ProtectEvent, Restored, Stopped, Verified};
use crate::output::tests::capture;
use crate::place::Way;
use crate::progress::Progress;
use crate::stop::Stop;
use cdp_net::owner::{Connection, ControlServer, Handler, Owner, Request, reply};
use cdp_net::report::{Policy, Problem, ProblemClass, Pruned};
use clap::CommandFactory;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Answers as a replica would that knows one label.
struct Replica;

impl Handler for Replica {
    fn handle(&self, request: Request, _: &Connection) -> Result<Value, Problem> {
        match request {
            Request::Mark { label, .. } if label.as_str() == "taken" => {
                Err(Problem::new(ProblemClass::Refused, "label-taken", "the label is taken"))
            }
            Request::Mark { .. } | Request::Keep { .. } | Request::LetGo { .. } => reply(at()),
            Request::Prune { .. } | Request::Compact => reply(Pruned::default()),
            Request::Policy { change } => {
                reply(Policy { rpo_ms: change.rpo_ms.unwrap_or(15_000), ..Policy::default() })
            }
            _ => reply(()),
        }
    }
}

struct Fake;

impl Engine for Fake {
    fn open(&self, _: Owner) -> Result<Box<dyn Handler>, Failure> {
        Ok(Box::new(Replica))
    }
    fn protect(&self, _: &ProtectSpec, _: &Stop, _: &mut dyn FnMut(ProtectEvent)) -> Result<Stopped, Failure> {
        Ok(Stopped { drained: false, ..Stopped::default() })
    }
    fn mount(&self, _: Way, _: &MountSpec, _: &Stop, events: &mut dyn FnMut(MountEvent)) -> Result<(), Failure> {
        events(MountEvent::Stopped { kept: false });
        Ok(())
    }
    fn restore(
        &self,
        _: Way,
        spec: &RestoreSpec,
        _: &Stop,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Restored, Failure> {
        progress(Progress { done: 1, total: 1 });
        assert_eq!(spec.at, "-15m".parse().unwrap());
        Ok(Restored { at: at(), outputs: vec![], incomplete: vec![], behind: None })
    }
    fn diff(
        &self,
        _: Way,
        spec: &DiffSpec,
        _: &Stop,
        progress: &mut dyn FnMut(Progress),
        events: &mut dyn FnMut(DiffEvent),
    ) -> Result<(), Failure> {
        progress(Progress { done: 1, total: 1 });
        let to = match &spec.to {
            Some(DiffTo::Moment(_)) => Some(at()),
            Some(DiffTo::File(path)) => {
                return Err(Failure::new(Exit::Failed, "with", format!("cannot open {}", path.display())));
            }
            None => None,
        };
        assert_eq!(to.is_none(), spec.digest);
        events(DiffEvent::Begin { from: at(), to, behind: None });
        Ok(())
    }
    fn verify(&self, _: Way, _: &Stop, _: &mut dyn FnMut(Progress)) -> Result<Verified, Failure> {
        Ok(Verified::default())
    }
    fn inspect(&self, path: &Path) -> Result<Inspected, Failure> {
        Err(Failure::new(Exit::Failed, "not-ours", format!("{} is no file of ours", path.display())))
    }
}

/// Exit status, stdout and stderr of a command line.
fn cdp(line: &[&str]) -> (u8, String, String) {
    let mut exit = None;
    let json = line.contains(&"--json");
    let (out, err) = capture(json, |output| {
        exit = Some(match Cli::try_parse_from([&["cdp"], line].concat()) {
            Ok(cli) => finish(cli.command.run(&Fake, output), output),
            Err(error) => end_of_parsing(&error, output),
        });
    });
    (exit.unwrap() as u8, out, err)
}

#[test]
fn the_tree_is_sound() {
    Cli::command().debug_assert();
}

/// A command's own options come first.
#[test]
fn help_begins_with_what_is_the_commands_own() {
    for command in Cli::command().get_subcommands() {
        let mut cli = Cli::command();
        cli.build();
        let help = cli.find_subcommand(command.get_name()).unwrap().clone().render_long_help().to_string();
        let options: Vec<_> = help.lines().map(str::trim).filter(|line| line.starts_with("--")).collect();
        let common = options.iter().position(|option| option.starts_with("--json")).unwrap();
        assert_eq!(options.len(), common + 2, "{options:?}");
        assert!(options[common + 1].starts_with("--key-file"), "{options:?}");
    }
}

/// What this version refuses whenever it is asked for is not offered.
#[test]
fn help_offers_nothing_that_is_always_refused() {
    for command in ["protect", "policy", "mark"] {
        let help = Cli::command().find_subcommand(command).unwrap().clone().render_long_help().to_string();
        assert!(!help.contains("--app-consistent"), "{command}: {help}");
    }
}

#[test]
fn every_command_by_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    std::fs::write(dir.path().join("MANIFEST"), "").unwrap();
    assert_eq!(cdp(&["mark", path, "--label", "x", "--json"]).0, 0);
    assert_eq!(cdp(&["mark", path, "--label", "taken"]).0, 4);
    assert_eq!(cdp(&["mark", path, "--label", "a:b"]).0, 2);
    assert!(cdp(&["policy", path, "--rpo", "2s"]).1.starts_with("RPO        2s\npoints     every write\n"));
    assert_eq!(cdp(&["policy", path, "--long-term", "off", "--max-bytes", "1GiB", "--keep", "3d"]).0, 0);
    assert!(cdp(&["pin", path, "--at", "-1h", "--label", "court"]).1.starts_with("pinned: "));
    assert!(cdp(&["unpin", path, "--at", "-1h"]).1.starts_with("not pinned any more: "));
    assert!(cdp(&["prune", path, "--dry-run"]).1.starts_with("nothing is old enough"));
    assert_eq!(cdp(&["compact", path]).0, 0);
    assert_eq!(cdp(&["restore", path, "--at", "-15m", "--output", "x"]).0, 0);
    assert_eq!(cdp(&["mount", path, "--at", "latest"]).1, "stopped\n");
    assert_eq!(cdp(&["mount", path, "--drop", "lab"]).1, "the session \"lab\" is gone\n");
    let compared = cdp(&["diff", path, "--from", "-15m", "--to", "latest"]);
    assert!(compared.0 == 0 && compared.1.contains("nothing differs"), "{compared:?}");
    assert_eq!(cdp(&["diff", path, "--from", "latest", "--digest", "--json"]), (0, String::new(), String::new()));
    assert_eq!(cdp(&["diff", path, "--from", "latest", "--with", "x"]).0, 1);
    assert_eq!(cdp(&["verify", path]).0, 5);
    assert_eq!(cdp(&["protect", "disk.img", "--replica", path]).0, 1, "not drained");
    let (status, out, err) = cdp(&["inspect", "x", "--json"]);
    assert_eq!((status, err.as_str()), (1, "cdp: x is no file of ours\n"));
    assert!(out.starts_with("{\"error\":{\"code\":\"not-ours\""), "{out}");
}

#[test]
fn another_owner_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    std::fs::write(dir.path().join("MANIFEST"), "").unwrap();
    let owner = Owner::acquire(dir.path()).unwrap();
    let (status, _, err) = cdp(&["mark", path, "--label", "x"]);
    assert_eq!(status, 4, "an owner that never answers");
    assert!(err.contains(&format!("belongs to process {}", std::process::id())), "{err}");
    let _server = ControlServer::start(&owner, Arc::new(Replica)).unwrap();
    let (status, out, _) = cdp(&["mark", path, "--label", "x", "--json"]);
    assert_eq!(status, 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["at"]["lsn"], 7);
    assert_eq!(cdp(&["mark", path, "--label", "taken", "--json"]).0, 4);
}

#[test]
fn wrong_usage_is_status_2() {
    for line in [
        &[][..],
        &["nothing"],
        &["protect"],
        &["protect", "x"],
        &["protect", "x", "y/x", "--replica", "d"],
        &["protect", "x", "--replica", "d", "--rpo", "1ms"],
        &["protect", "x", "--replica", "d", "--trust-source", "--full-check"],
        &["protect", "x", "--replica", "d", "--listen", "127.0.0.1:10809"],
        &["mount", "d"],
        &["identity"],
        &["serve"],
        &["serve", "f", "--example", "gateway"],
        &["ticket"],
        &["ticket", "--new-key", "k", "--tenant", "a"],
        &["top", "h:1", "--config", "f"],
        &["mount", "d", "--at", "latest", "--session", "s"],
        &["mount", "d", "--drop", "s", "--at", "latest"],
        &["restore", "d", "--at", "latest"],
        &["restore", "d", "--at", "-5", "--output", "x"],
        &["restore", "d", "--at", "2026-01-01T00:00:00", "--output", "x"],
        &["points", "d", "--since", "--json"],
        &["diff", "d", "--from", "latest"],
        &["diff", "d", "--to", "latest"],
        &["diff", "d", "--from", "latest", "--to", "latest", "--with", "x"],
    ] {
        assert_eq!(cdp(line).0, 2, "{line:?}");
    }
    let (status, out, err) = cdp(&["restore", "d", "--json"]);
    assert_eq!(status, 2);
    assert!(out.starts_with("{\"error\":{\"code\":\"usage\""), "{out}");
    assert!(err.starts_with("cdp: "), "{err}");
}
