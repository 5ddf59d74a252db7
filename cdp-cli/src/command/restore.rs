//! `cdp restore`: write the disks of a moment into files or devices.

use super::{Nearest, behind_said, incomplete_line};
use crate::engine::{Engine, RestoreSpec};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::Restored;
use crate::output::Output;
use crate::place::Place;
use crate::progress::Meter;
use crate::stop::Stop;
use anyhow::Context as _;
use cdp_core::when::{When, format_bytes};
use clap::Args;
use std::path::PathBuf;

/// Write the disks of a moment
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// The moment: latest, a time, -15m, lsn:N, point:ID or a label
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    at: When,
    /// If the moment is not restorable, take its neighbour
    #[arg(long, value_enum)]
    nearest: Option<Nearest>,
    /// The file or block device to write; for several disks a directory, made if it ends with a slash
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Only this disk
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// Overwrite a file that exists, or a block device
    #[arg(long)]
    force: bool,
}

impl Arguments {
    /// Writes them.
    ///
    /// # Errors
    /// What the owner or the engine says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let Self { place, at, nearest, output: target, disk, force } = self;
        let spec = RestoreSpec { at, nearest: nearest.map(Into::into), output: target, disk, force };
        let stop = Stop::on_signals().context("cannot handle signals")?;
        let meter = Meter::new("restoring", output.shows_progress());
        let restored = engine.restore(place.way()?, &spec, &stop, &mut |progress| meter.set(progress))?;
        meter.finish();
        output.answer(&restored, for_people);
        behind_said(&restored.at, restored.behind.as_ref(), output);
        Ok(Exit::Done)
    }
}

fn for_people(restored: &Restored) -> String {
    let mut text = format!("restored {}\n", human::moment(&restored.at));
    for written in &restored.outputs {
        let (size, path) = (format_bytes(written.bytes), written.path.display());
        text.push_str(&format!("{} ({size}) is in {path}\n", written.disk));
        if let Some(over) = written.over {
            let (over, bytes) = (format_bytes(over), written.bytes);
            text.push_str(&format!(
                "  what was there had {over}: a file is shorter now, a device unchanged from byte {bytes} on\n"
            ));
        }
    }
    text.push_str(&incomplete_line(&restored.incomplete));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::RestoredDisk;
    use crate::json::tests::at;

    #[test]
    fn a_restore_in_words() {
        let disk = RestoredDisk { disk: "root".into(), path: "out.img".into(), bytes: 1 << 30, over: None };
        let text =
            for_people(&Restored { at: at(), outputs: vec![disk.clone()], incomplete: Vec::new(), behind: None });
        assert!(text.ends_with("root (1.00 GiB) is in out.img\n"), "{text}");
        let text = for_people(&Restored {
            at: at(),
            outputs: vec![RestoredDisk { over: Some(2 << 30), ..disk }],
            incomplete: vec!["late".into()],
            behind: None,
        });
        assert!(text.contains("late was not complete"), "{text}");
        assert!(text.contains("had 2.00 GiB") && text.contains("from byte 1073741824 on"), "{text}");
    }
}
