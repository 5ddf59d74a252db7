//! `cdp demo`: the whole story, on a machine where nothing is prepared.

use crate::demo::Layout;
use crate::demo::story::{DemoEvent, Ending, Plan, tell};
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::output::Output;
use crate::stop::Stop;
use anyhow::Context as _;
use cdp_core::when::{format_bytes, parse_bytes, parse_duration};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Make a real disk, protect it under load, ruin it, bring back moments of it and check each
#[derive(Args, Debug)]
pub struct Arguments {
    /// Leave everything in this new directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Size of the disk
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = size)]
    size: u64,
    /// How long the writers work
    #[arg(long, value_name = "D", default_value = "8s", value_parser = parse_duration)]
    work: Duration,
    /// How many random moments are brought back
    #[arg(long, value_name = "N", default_value_t = 12)]
    moments: usize,
    /// Which moments, and which movements of the ledger
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    let sizes = 128 << 20..=1 << 40;
    if sizes.contains(&bytes) { Ok(bytes / 4096 * 4096) } else { Err("a disk has 128MiB to 1TiB here".into()) }
}

impl Arguments {
    /// Tells the story; status 0 only when every claim held.
    ///
    /// # Errors
    /// When it cannot be told to its end.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let temporary = || std::env::temp_dir().join(format!("cdp-demo-{}", std::process::id()));
        let dir = self.keep.clone().unwrap_or_else(temporary);
        fs::create_dir(&dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
        let plan = Plan {
            dir: dir.clone(),
            size: self.size,
            files: self.size / 4,
            layout: Layout::standard(0, self.seed),
            work: self.work,
            rpo: Duration::from_secs(2),
            moments: self.moments,
            seed: self.seed,
        };
        let stop = Stop::on_signals().context("cannot handle signals")?;
        let told = tell(engine, &plan, &stop, &mut |event| output.answer(&event, for_people));
        let good = told.as_ref().is_ok_and(|ending| ending.ok);
        if self.keep.is_some() {
            output.note(&what_to_try(&dir));
        } else if good || stop.is_wished() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        } else {
            output.note(&format!("everything is left in {} to look at", dir.display()));
        }
        told.map(|ending| if ending.ok { Exit::Done } else { Exit::Failed })
    }
}

fn for_people(event: &DemoEvent) -> String {
    match event {
        DemoEvent::Made { ext4, files, bytes, size } => {
            let what = if *ext4 { "an ext4 file system" } else { "text (mke2fs is not there)" };
            let of = format!("{} in {}", format_bytes(*bytes), human::count(*files as usize, "file"));
            format!("a disk of {} with {what}: {of}, and a ledger\n", format_bytes(*size))
        }
        DemoEvent::Protected { uri, ms } => format!("protected after {}, served at {uri}\n", span(*ms)),
        DemoEvent::Worked { movements, ms } => format!("writers moved money {movements} times in {}\n", span(*ms)),
        DemoEvent::Marked { at, label } => format!("marked {label:?}: LSN {}\n", at.lsn),
        DemoEvent::Ruined { bytes } => format!("ruined the disk: {} overwritten\n", format_bytes(*bytes)),
        DemoEvent::Check(check) => {
            let verdict = if check.ok { "ok   " } else { "WRONG" };
            format!("  {verdict} {}: {} ({})\n", check.what, check.found, span(check.ms))
        }
        DemoEvent::Done(ending) => for_people_at_last(ending),
    }
}

fn for_people_at_last(ending: &Ending) -> String {
    let verdict = if ending.ok {
        format!("all {} checks held", ending.checks)
    } else {
        format!("{} of {} checks did NOT hold", ending.failed, ending.checks)
    };
    let gaps = if ending.gaps == 0 { String::new() } else { format!(", {}", human::count(ending.gaps, "gap")) };
    format!(
        "\nload    {} in {} requests/s, {}\nRPO     {} at worst (policy {}){gaps}\nmount   {}\nspace   base {}, journal {} for {} \
         written\n\n{verdict}\n",
        human::rate(ending.write_bytes_per_s),
        ending.requests_per_s,
        human::count(ending.requests as usize, "request"),
        span(ending.rpo_worst_ms),
        span(ending.rpo_policy_ms),
        span(ending.mount_ms),
        format_bytes(ending.base_bytes),
        format_bytes(ending.journal_bytes),
        format_bytes(ending.written_bytes),
    )
}

fn span(ms: u64) -> String {
    human::span(Duration::from_millis(ms))
}

fn what_to_try(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "everything is left in {dir}; try\n  cdp points {dir}/replica\n  cdp mount {dir}/replica --at 'before the ruin' \
         --writable\n  cdp restore {dir}/replica --at 'before the ruin' --output {dir}/good.img && e2fsck -fn {dir}/good.img\n  \
         cdp verify {dir}/replica\n  cdp protect disk={dir}/disk.img --replica {dir}/replica"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_in_words() {
        let ending = Ending { ok: true, checks: 18, rpo_worst_ms: 900, rpo_policy_ms: 2000, ..Ending::default() };
        let text = for_people_at_last(&ending);
        assert!(text.contains("RPO     900 ms at worst (policy 2.0 s)\n"), "{text}");
        assert!(text.ends_with("\n\nall 18 checks held\n"), "{text}");
        let text = for_people_at_last(&Ending { ok: false, failed: 1, gaps: 2, ..ending });
        assert!(text.contains(", 2 gaps\n") && text.ends_with("1 of 18 checks did NOT hold\n"), "{text}");
    }

    #[test]
    fn sizes_that_hold_a_ledger() {
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert!(size("1MiB").is_err() && size("x").is_err());
    }
}
