//! `cdp disk`: disks that join a group, leave it, or get another size.

use super::protect::{name, source};
use crate::ask::ask_patiently;
use crate::engine::{Engine, SourceSpec};
use crate::exit::{Exit, Failure};
use crate::json::{DiskChanged, DiskVerb};
use crate::output::Output;
use crate::place::Place;
use cdp_core::when::{format_bytes, parse_bytes};
use cdp_net::owner::Request;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// How long a change may take: what a large disk has grown by is read first.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Change the disks of a group
#[derive(Args, Debug)]
pub struct Arguments {
    /// Directory of the replica
    dir: PathBuf,
    #[command(subcommand)]
    change: Change,
}

#[derive(Subcommand, Debug)]
enum Change {
    /// Add a disk: it is served and copied while the others go on
    Add {
        /// A raw image or block device; NAME=SOURCE names the disk
        #[arg(value_name = "SOURCE", value_parser = source)]
        source: SourceSpec,
    },
    /// Remove a disk: moments before can still be restored with it
    Remove {
        /// Its name
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
    /// Let a disk have the size that its source has got; with --size and --force a smaller one
    Grow {
        /// Its name
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
        /// The new size, such as 20GiB; without it that of the source
        #[arg(long, value_name = "BYTES", value_parser = size)]
        size: Option<u64>,
        /// Cut off what holds data
        #[arg(long)]
        force: bool,
    },
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|error| error.to_string())
}

impl Arguments {
    /// Changes it, and says when that is recorded.
    ///
    /// # Errors
    /// What the owner or the replica says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let request = match self.change {
            Change::Add { source: SourceSpec { name, path } } => {
                // The owner may have another directory to start from.
                let source = std::fs::canonicalize(&path).map_err(|error| {
                    Failure::new(Exit::Failed, "source", format!("cannot open {}: {error}", path.display()))
                })?;
                Request::AddDisk { name, source }
            }
            Change::Remove { name } => Request::RemoveDisk { name },
            Change::Grow { name, size, force } => Request::ResizeDisk { name, size, force },
        };
        let changed: DiskChanged = ask_patiently(engine, &Place::directory(&self.dir), request, PATIENCE)?;
        output.answer(&changed, for_people);
        Ok(Exit::Done)
    }
}

fn for_people(changed: &DiskChanged) -> String {
    let (name, size) = (&changed.disk.name, format_bytes(changed.disk.size));
    let what = match (changed.verb, changed.lsn) {
        (DiskVerb::Added, Some(_)) => format!("{name} ({size}) is served, and is being copied"),
        (DiskVerb::Added, None) => format!("{name} ({size}) joins at the next `cdp protect`: give its source too"),
        (DiskVerb::Removed, Some(_)) => format!("{name} is gone; moments before still have it"),
        (DiskVerb::Removed, None) => format!("{name} is gone at the next `cdp protect`: leave its source out"),
        (DiskVerb::Grown | DiskVerb::Cut, Some(_)) => format!("{name} has {size}"),
        (DiskVerb::Grown | DiskVerb::Cut, None) => {
            format!("the next `cdp protect` takes the source of {name} if it was cut to {size}")
        }
    };
    let lsn = changed.lsn.map(|lsn| format!(" (recorded up to lsn {lsn})")).unwrap_or_default();
    format!("{what}{lsn}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Disk;

    #[test]
    fn every_change_is_said_in_words() {
        let disk = Disk { name: "data".into(), size: 1 << 30, ..Disk::default() };
        let say = |verb, lsn| for_people(&DiskChanged { verb, disk: disk.clone(), lsn });
        assert_eq!(
            say(DiskVerb::Added, Some(7)),
            "data (1.00 GiB) is served, and is being copied (recorded up to lsn 7)\n"
        );
        assert!(say(DiskVerb::Removed, Some(7)).contains("moments before"));
        for verb in [DiskVerb::Added, DiskVerb::Removed, DiskVerb::Cut] {
            assert!(say(verb, None).contains("the next `cdp protect`"));
        }
    }
}
