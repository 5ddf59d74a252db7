//! `cdp protect`: serve disks, keep every write.

use super::gap_line;
use super::policy::PolicyFlags;
use super::there::ThereFlags;
use crate::engine::{Engine, ProtectSpec, SourceSpec, SourceTrust};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{Compared, History, PointKind, ProtectEvent, Stopped};
use crate::output::Output;
use crate::progress::{Meter, Progress};
use crate::stop::Stop;
use anyhow::Context as _;
use cdp_core::capture::QUEUE_BYTES_MIN;
use cdp_core::types::{DISKS_MAX, NAME_MAX, is_name};
use cdp_core::when::{format_bytes, parse_bytes, parse_duration};
use cdp_net::nbd::Uri;
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Protect disks: serve them over NBD and keep every write in a replica
#[derive(Args, Debug)]
pub struct Arguments {
    /// Raw images or block devices, in one write order; NAME=SOURCE names the disk
    #[arg(required = true, value_name = "SOURCE", value_parser = source)]
    sources: Vec<SourceSpec>,
    /// Directory of the replica; made if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "to", conflicts_with = "to")]
    replica: Option<PathBuf>,
    #[command(flatten)]
    there: ThereFlags,
    /// Where to serve the disks: nbd://HOST:PORT or nbd+unix:///?socket=PATH
    #[arg(long, value_name = "URI", default_value = "nbd://127.0.0.1:10809")]
    listen: Uri,
    /// Directory of server-cert.pem, server-key.pem and, to know clients by their certificates, ca-cert.pem
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,
    /// Name of the group
    #[arg(long, value_parser = name)]
    name: Option<String>,
    #[command(flatten)]
    policy: PolicyFlags,
    /// Believe that nobody changed the sources since the last clean stop
    #[arg(long, conflicts_with = "full_check")]
    trust_source: bool,
    /// Compare everything with the replica in the background
    #[arg(long)]
    full_check: bool,
    /// Keep so much in memory of what is not yet durable, such as 1GiB; beyond it only which blocks change is kept
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = memory)]
    memory: u64,
    /// At the end, wait at most so long until everything is durable
    #[arg(long, value_name = "D", default_value = "30s", value_parser = parse_duration)]
    drain: Duration,
    /// Make the journal's segments this large, such as 64MiB; each is reserved on the replica's disk in full
    #[arg(long, value_name = "N", value_parser = segment_size, conflicts_with = "to")]
    segment_size: Option<u64>,
}

/// The smallest and the largest segment, in bytes.
const SEGMENT: std::ops::RangeInclusive<u64> = 1 << 20..=4 << 30;

fn segment_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    if SEGMENT.contains(&bytes) { Ok(bytes) } else { Err("a segment has between 1MiB and 4GiB".into()) }
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    if bytes >= QUEUE_BYTES_MIN {
        Ok(bytes)
    } else {
        Err(format!("at least {} are needed", format_bytes(QUEUE_BYTES_MIN)))
    }
}

/// A name of a disk, a group or a session.
pub(super) fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.into());
    }
    Err(format!(
        "a name has 1 to {NAME_MAX} bytes without slashes and control characters, and is neither \".\" nor \"..\""
    ))
}

/// `NAME=SOURCE` or `SOURCE`. Before the `=` there is no slash, so that a path may hold one.
pub(super) fn source(text: &str) -> Result<SourceSpec, String> {
    if let Some((before, path)) = text.split_once('=').filter(|(before, _)| !before.contains('/')) {
        return match path {
            "" => Err("after NAME= a path is missing".into()),
            _ => Ok(SourceSpec { name: name(before)?, path: path.into() }),
        };
    }
    let stem = Path::new(text).file_stem().and_then(|stem| stem.to_str());
    let stem = stem.ok_or("the path has no file name to call the disk by: give NAME=SOURCE")?;
    Ok(SourceSpec { name: name(stem)?, path: text.into() })
}

impl Arguments {
    fn spec(self) -> Result<ProtectSpec, Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, "usage", message);
        let mut names = BTreeSet::new();
        if let Some(twice) = self.sources.iter().find(|source| !names.insert(source.name.as_str())) {
            let message = format!("two disks are called {:?}", twice.name);
            return Err(usage(message).hint("name one of them otherwise with NAME=SOURCE"));
        }
        if self.sources.len() > DISKS_MAX {
            return Err(usage(format!("{} disks are more than the {DISKS_MAX} of a group", self.sources.len())));
        }
        let trust = match (self.trust_source, self.full_check) {
            (true, _) => SourceTrust::Trust,
            (_, true) => SourceTrust::Check,
            _ => SourceTrust::Default,
        };
        let first = self.sources[0].name.clone();
        let there = self.there.spec(self.name.as_deref(), &first)?;
        let Self { sources, replica, there: flags, listen, tls_certificates: tls, name, policy, memory, drain, .. } =
            self;
        let Some(replica) = replica.or(flags.state) else {
            return Err(usage("--to needs --state, the directory of the protection's own state".into()));
        };
        let (policy, segment_bytes) = (policy.into(), self.segment_size);
        Ok(ProtectSpec { sources, replica, there, listen, tls, name, policy, trust, memory, drain, segment_bytes })
    }

    /// Protects until a signal.
    ///
    /// # Errors
    /// What the engine says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let spec = self.spec()?;
        let stop = Stop::on_signals().context("cannot handle signals")?;
        run(&spec, &stop, engine, output)
    }
}

/// Protects until `stop` is wished; status 1 when something was left in the activity log.
///
/// # Errors
/// What the engine says.
pub fn run(spec: &ProtectSpec, stop: &Stop, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
    let meter = Meter::new("seeding", output.shows_progress());
    let stopped = engine.protect(spec, stop, &mut |event| {
        show_progress(&meter, &event);
        output.answer(&event, for_people);
    })?;
    meter.finish();
    let drained = stopped.drained;
    output.answer(&ProtectEvent::Stopped(stopped), for_people);
    Ok(if drained { Exit::Done } else { Exit::Failed })
}

fn show_progress(meter: &Meter, event: &ProtectEvent) {
    match event {
        ProtectEvent::Seeding { done, total, .. } if done < total => {
            meter.set(Progress { done: *done, total: *total });
        }
        ProtectEvent::Seeding { .. } => meter.finish(),
        _ => {}
    }
}

/// People see what needs their eyes; the points that the policy closes are only counted at the end.
fn for_people(event: &ProtectEvent) -> String {
    match event {
        ProtectEvent::Opened { timeline, resumed, clean, compared } => {
            opened(*resumed, *clean, *compared, &timeline.to_string())
        }
        ProtectEvent::Ready { exports } => {
            let line = |export: &crate::json::Export| {
                format!("{} ({}) is served at {}\n", export.name, format_bytes(export.size), export.uri)
            };
            exports.iter().map(line).collect()
        }
        ProtectEvent::Seeding { done, total, bytes_per_s } if done >= total => {
            format!("seeded: {} at {}\n", format_bytes(*total), human::rate(*bytes_per_s))
        }
        ProtectEvent::Point { point } if point.kinds.iter().any(|kind| *kind != PointKind::Short) => {
            let kind = if point.kinds.contains(&PointKind::Long) { "long-term" } else { "without a label" };
            let label = point.label.as_deref().unwrap_or(kind);
            format!("point {} at {}: {label}\n", point.id, human::local_time(point.time))
        }
        ProtectEvent::Seeding { .. } | ProtectEvent::Point { .. } => String::new(),
        ProtectEvent::Gap { gap } => gap_line(gap),
        ProtectEvent::State { state, reason, .. } => match reason {
            Some(reason) => format!("{}: {reason}\n", state.as_str()),
            None => format!("{}\n", state.as_str()),
        },
        ProtectEvent::History { history } => history_line(history),
        ProtectEvent::Stopped(stopped) => summary(stopped),
    }
}

fn history_line(history: &History) -> String {
    let window = human::span(Duration::from_millis(history.window_ms));
    let limit = human::limit(history.limit);
    if history.limit.is_none() {
        return format!("history: nothing limits the {window} that the policy asks for any more\n");
    }
    if let Some(ms) = history.forecast_ms.filter(|_| history.cut_forecast()) {
        let left = human::span(Duration::from_millis(ms));
        return format!("history: at this rate {limit} will leave {left} of the {window} that the policy asks for\n");
    }
    let room = format_bytes(history.room_bytes.unwrap_or(0));
    format!("history: {limit} leaves {room} more: the oldest of the {window} is merged away before that is used up\n")
}

fn opened(resumed: bool, clean: bool, compared: Compared, timeline: &str) -> String {
    let mut text = match (resumed, clean) {
        (false, _) => format!("new replica, timeline {timeline}\n"),
        (true, true) => format!("resumed on timeline {timeline}\n"),
        (true, false) => format!("the last stop was unclean: resumed on the new timeline {timeline}\n"),
    };
    text.push_str(match compared {
        Compared::Nothing => "",
        Compared::ActivityLog => {
            "what the activity log names is read again; changes that others made to the source in between would be found \
             only with --full-check\n"
        }
        Compared::Everything => "the whole source is compared with the replica in the background\n",
    });
    text
}

fn summary(stopped: &Stopped) -> String {
    let Stopped { lsn, durable_lsn, written_bytes, stored_bytes, hot_bytes, points, seconds, .. } = stopped;
    let mut text = format!(
        "stopped after {}: {} written, {} stored, {}, durable up to LSN {durable_lsn}\n",
        human::span(Duration::from_secs(*seconds)),
        format_bytes(*written_bytes),
        format_bytes(*stored_bytes),
        human::count(usize::try_from(*points).unwrap_or(usize::MAX), "point"),
    );
    if !stopped.hanging.is_empty() {
        text.push_str(&format!("what hangs was not waited for: {}\n", stopped.hanging.join(", ")));
    }
    if stopped.drained {
        return text;
    }
    if let Some(lacks) = &stopped.lacks {
        text.push_str(&format!("the replica's disk has no room: {}\n", human::lack(lacks)));
    }
    if lsn > durable_lsn {
        text.push_str(&format!("not durable: LSN {} to {lsn}\n", durable_lsn.next()));
    }
    if *hot_bytes > 0 {
        let hot = format_bytes(*hot_bytes);
        text.push_str(&format!("the activity log names {hot} that the next start reads again\n"));
    } else if !stopped.manifest_stored {
        text.push_str("the replica's manifest could not be written: the next start takes this stop for a crash\n");
    } else {
        text.push_str("the disks were not copied or compared to the end: the next start does that again\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{Lack, Point};
    use cdp_core::types::Lsn;

    #[test]
    fn names_of_disks() {
        for (text, name, path) in [
            ("disk.img", "disk", "disk.img"),
            ("/dev/sdb", "sdb", "/dev/sdb"),
            ("root=/dev/sdb", "root", "/dev/sdb"),
            ("a=b=c", "a", "b=c"),
            ("/x=y/disk.raw", "disk", "/x=y/disk.raw"),
            ("./a=b.img", "a=b", "./a=b.img"),
        ] {
            assert_eq!(source(text), Ok(SourceSpec { name: name.into(), path: path.into() }), "{text}");
        }
        for text in ["", "/", "..", "=x", "name=", ".=x"] {
            assert!(source(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_segment_has_bounds() {
        assert_eq!(segment_size("1MiB"), Ok(1 << 20));
        for text in ["1023KiB", "5GiB", "x"] {
            assert!(segment_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_end_says_what_was_not_durable() {
        let clean =
            Stopped { drained: true, lsn: Lsn(9), durable_lsn: Lsn(9), seconds: 61, points: 1, ..Stopped::default() };
        assert_eq!(
            summary(&clean),
            "stopped after 1 min 01 s: 0 B written, 0 B stored, 1 point, durable up to LSN 9\n"
        );
        let unclean = Stopped { drained: false, lsn: Lsn(12), hot_bytes: 4 << 20, ..clean };
        let expect = "not durable: LSN 10 to 12\nthe activity log names 4.00 MiB that the next start reads again\n";
        assert!(summary(&unclean).ends_with(expect));
        let lacks = Some(Lack { needed_bytes: 2 << 20, free_bytes: 1 << 20 });
        let full = Stopped { lacks, manifest_stored: true, hot_bytes: 0, ..unclean.clone() };
        let text = summary(&full);
        assert!(text.contains("has no room: 2.00 MiB are needed, 1.00 MiB are free\nnot durable: LSN 10"), "{text}");
        assert!(text.ends_with("not copied or compared to the end: the next start does that again\n"), "{text}");
        let unsaid = Stopped { manifest_stored: false, lsn: Lsn(9), ..full };
        assert!(summary(&unsaid).ends_with("the next start takes this stop for a crash\n"));
        let hangs = Stopped { hanging: vec!["cdp-log".into(), "cdp-flush".into()], ..unsaid };
        assert!(summary(&hangs).contains("LSN 9\nwhat hangs was not waited for: cdp-log, cdp-flush\n"));
    }

    #[test]
    fn an_unclean_start_says_what_it_cannot_see() {
        let text = opened(true, false, Compared::ActivityLog, "00ff");
        assert!(text.contains("unclean") && text.contains("--full-check"), "{text}");
    }
    #[test]
    fn points_that_somebody_wanted_are_told_with_what_they_are() {
        let named = crate::json::tests::point();
        let of = |kinds: &[PointKind], label: Option<&str>| {
            let point = Point { kinds: kinds.to_vec(), label: label.map(Into::into), ..named.clone() };
            for_people(&ProtectEvent::Point { point })
        };
        assert_eq!(of(&[PointKind::Short], None), "");
        assert!(of(&[PointKind::Long], None).ends_with(": long-term\n"));
        assert!(of(&[PointKind::Mark], Some("before upgrade")).ends_with(": before upgrade\n"));
    }
}
