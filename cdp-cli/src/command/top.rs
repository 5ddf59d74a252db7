//! `cdp top`: how the groups stand at each part of the chain, from the metrics of its processes.

mod rows;

use self::rows::{Row, rows};
use super::serve::{chain, load};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::output::Output;
use crate::stop::Stop;
use crate::table::{Side, Table};
use anyhow::Context;
use cdp_core::when::format_bytes;
use cdp_net::services::http::fetch_all;
use clap::Args;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where the examples have the metrics.
const USUAL: &str = "http://127.0.0.1:9464/metrics";
/// The most processes that are looked at.
const PROCESSES_MAX: usize = 256;
/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Clears the terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Show how each group stands at each part of the chain, anew every second; one table where nobody watches a terminal
#[derive(Args, Debug)]
pub struct Arguments {
    /// The metrics of processes: http://HOST:PORT/metrics, or HOST:PORT
    #[arg(value_name = "URL", default_value = USUAL, num_args = 1..=PROCESSES_MAX)]
    urls: Vec<String>,
    /// The process that runs this file of `cdp serve`
    #[arg(long, value_name = "FILE", conflicts_with = "urls")]
    config: Option<PathBuf>,
    /// One table, then end; with --json each group once, else again every second
    #[arg(long)]
    once: bool,
}

impl Arguments {
    /// Shows it until it is told to end.
    ///
    /// # Errors
    /// When the file names no metrics, or a process did not answer the one time that it was asked.
    pub fn run(self, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let urls = self.urls()?;
        let terminal = std::io::stdout().is_terminal() && !output.is_json();
        let once = self.once || !(terminal || output.is_json());
        let stop = Stop::on_signals().context("cannot handle signals")?;
        let look = || fetch_all(&urls).context("cannot start what asks for the metrics");
        let (mut before, mut at) = (look()?, Instant::now());
        loop {
            if stop.wait(EVERY) {
                return Ok(Exit::Done);
            }
            let (now, taken) = (look()?, Instant::now());
            let between = taken.duration_since(at);
            let mut all = Vec::new();
            let mut silent = Vec::new();
            for ((url, now), before) in urls.iter().zip(&now).zip(&before) {
                match now {
                    Ok(now) => all.extend(rows(url, now, before.as_deref().ok(), between)),
                    Err(error) => silent.push(chain(error)),
                }
            }
            show(&all, &silent, terminal && !once, output);
            if once {
                return match silent.is_empty() {
                    true => Ok(Exit::Done),
                    false => Err(Failure::new(Exit::Failed, "no-metrics", silent.join("; "))
                        .hint("`metrics` in the file of `cdp serve` says where they are")),
                };
            }
            if output.is_unheard() {
                return Ok(Exit::Done);
            }
            (before, at) = (now, taken);
        }
    }

    fn urls(&self) -> Result<Vec<String>, Failure> {
        if let Some(file) = &self.config {
            let config = load(file)?;
            let metrics = config.metrics.ok_or_else(|| {
                Failure::new(Exit::Usage, "no-metrics", format!("{} names no place of metrics", file.display()))
                    .hint("add metrics = \"127.0.0.1:9464\" and start the process again")
            })?;
            return Ok(vec![format!("http://{metrics}/metrics")]);
        }
        let whole = |url: &String| if url.contains("://") { url.clone() } else { format!("http://{url}/metrics") };
        Ok(self.urls.iter().map(whole).collect())
    }
}

/// A table, or a line for each group.
fn show(rows: &[Row], silent: &[String], clear: bool, output: &mut Output<'_>) {
    if output.is_json() {
        rows.iter().for_each(|row| output.answer(row, |_| String::new()));
        return;
    }
    let begin = if clear { CLEAR } else { "" };
    let mut text = format!("{begin}{}", table(rows));
    if clear {
        silent.iter().for_each(|why| text.push_str(&format!("{why}\n")));
    }
    output.answer(&(), |()| text);
}

fn table(rows: &[Row]) -> String {
    let (left, right) = (Side::Left, Side::Right);
    let mut table = Table::new(&[
        ("TENANT", left),
        ("GROUP", left),
        ("ROLE", left),
        ("STATE", left),
        ("RPO", right),
        ("P99", right),
        ("LAG", right),
        ("IN", right),
        ("OUT", right),
        ("COALESCED", right),
        ("ZSTD", right),
        ("SPOOL", right),
        ("TRACKING IN", right),
    ]);
    let unknown = || "-".to_owned();
    let span = |millis: Option<u64>| millis.map_or_else(unknown, |ms| human::span(Duration::from_millis(ms)));
    let rate = |rate: Option<u64>| rate.map_or_else(unknown, human::rate);
    let percent = |percent: Option<f64>| percent.map_or_else(unknown, |percent| format!("{percent:.0}%"));
    for row in rows {
        let p99 = match row.rpo_p99_ms {
            None if row.rpo_looks > 0 => "> 1 h".into(),
            millis => span(millis),
        };
        let limit = row.spool_limit_bytes.map(|limit| format!(" of {}", format_bytes(limit))).unwrap_or_default();
        table.row([
            row.tenant.clone(),
            row.group.clone(),
            row.role.clone(),
            if row.linked == Some(false) { format!("{} (no link)", row.state) } else { row.state.clone() },
            span(row.rpo_ms),
            p99,
            span(row.lag_ms),
            rate(row.in_bytes_per_s),
            rate(row.out_bytes_per_s),
            percent(row.coalesced_percent),
            percent(row.compressed_percent),
            format!("{}{limit}", format_bytes(row.spool_bytes)),
            span(row.tracking_in_ms),
        ]);
    }
    if table.is_empty() { "no group is known there\n".into() } else { table.render() }
}
