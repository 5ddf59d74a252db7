//! `cdp diff`: what differs between two moments, or between a moment and a file.

use super::{Nearest, behind_said};
use crate::engine::{DiffSpec, DiffTo, Engine};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::{DiffEvent, Difference, DiskDigest, Kind};
use crate::output::Output;
use crate::place::Place;
use crate::progress::Meter;
use crate::stop::Stop;
use crate::table::plain;
use anyhow::Context as _;
use cdp_core::when::{When, format_bytes};
use clap::Args;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Show what differs between two moments, or between a moment and a file
///
/// Blocks of 4 KiB are compared, and only those that were written in between are read; a block that was written again with what
/// it held does not differ. Status 0 means that the comparison was made, whatever it found.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// The first moment: latest, a time, -15m, lsn:N, point:ID or a label
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    from: When,
    /// The second moment; what is shown is how it differs from the first
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, required_unless_present_any = ["with", "digest"])]
    to: Option<When>,
    /// Compare with a raw image or a block device in place of a second moment: it is only read, all of it, and should not
    /// change meanwhile
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    with: Option<PathBuf>,
    /// Only this disk; wanted with --with when the group has several
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// Of a moment that is not restorable, take its neighbour
    #[arg(long, value_enum)]
    nearest: Option<Nearest>,
    /// Show a digest of each disk (the root of a BLAKE3 tree) and no differences: disks are the same exactly when their
    /// digests are, also on two machines. Reads everything; without --to and --with of the first moment only
    #[arg(long)]
    digest: bool,
}

impl Arguments {
    /// Compares.
    ///
    /// # Errors
    /// What the owner or the engine says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let Self { place, from, to, with, disk, nearest, digest } = self;
        let to = to.map(DiffTo::Moment).or(with.map(DiffTo::File));
        let spec = DiffSpec { from, to, nearest: nearest.map(Into::into), disk, digest };
        let stop = Stop::on_signals().context("cannot handle signals")?;
        let meter = Meter::new(if digest { "reading" } else { "comparing" }, output.shows_progress());
        let begun = Instant::now();
        let mut seen = Seen::default();
        let mut told = |event: DiffEvent| {
            meter.aside(|| seen.tell(&spec, event, output));
            if output.is_unheard() {
                stop.wish();
            }
        };
        let compared = engine.diff(place.way()?, &spec, &stop, &mut |progress| meter.set(progress), &mut told);
        meter.finish();
        match compared {
            Ok(()) => seen.end(&spec, begun.elapsed(), output),
            // Whoever read has enough.
            Err(_) if output.is_unheard() => {}
            Err(failure) => return Err(failure),
        }
        Ok(Exit::Done)
    }
}

/// What was told, for the words at the end.
#[derive(Default)]
struct Seen {
    extents: usize,
    bytes: u64,
    sizes: usize,
    /// Digests of the first side, whose counterparts are still to come, and names of disks that were not the same.
    first: Vec<DiskDigest>,
    unlike: Vec<String>,
}

impl Seen {
    fn tell(&mut self, spec: &DiffSpec, event: DiffEvent, output: &mut Output<'_>) {
        match event {
            DiffEvent::Begin { from, to, behind } => {
                let latest = to.as_ref().filter(|to| to.lsn > from.lsn).unwrap_or(&from);
                behind_said(latest, behind.as_ref(), output);
                if output.is_json() {
                    return;
                }
                let to = match (&spec.to, to) {
                    (Some(DiffTo::File(path)), _) => Some(path.display().to_string()),
                    (_, to) => to.map(|at| human::moment(&at)),
                };
                let to = to.map(|to| format!("to    {}\n", plain(&to))).unwrap_or_default();
                output.answer(&(), |()| format!("from  {}\n{to}\n", human::moment(&from)));
            }
            DiffEvent::Difference(difference) => {
                let heading = if self.extents + self.sizes == 0 { HEADING } else { "" };
                match &difference {
                    Difference::Extent { length, .. } => {
                        self.extents += 1;
                        self.bytes += length;
                    }
                    Difference::Size { .. } => self.sizes += 1,
                }
                output.answer(&difference, |difference| format!("{heading}{}", line(difference)));
            }
            DiffEvent::Digest(digest) => {
                output.answer(&digest, |digest| {
                    let what = if digest.at.is_some() { "" } else { ", the file" };
                    format!("{}  {} ({}{what})\n", digest.digest, plain(&digest.disk), format_bytes(digest.size))
                });
                match self.first.iter().find(|first| first.disk == digest.disk) {
                    Some(first) if (first.size, &first.digest) == (digest.size, &digest.digest) => {}
                    Some(_) => self.unlike.push(digest.disk),
                    None => self.first.push(digest),
                }
            }
        }
    }

    fn end(&self, spec: &DiffSpec, took: Duration, output: &mut Output<'_>) {
        if output.is_json() {
            return;
        }
        output.answer(&(), |()| match (spec.digest, &spec.to) {
            (true, None) => format!("\nread in {}\n", human::span(took)),
            (true, Some(_)) if self.unlike.is_empty() => format!("\nthe same; read in {}\n", human::span(took)),
            (true, Some(_)) => {
                format!("\nnot the same: {}; read in {}\n", plain(&self.unlike.join(", ")), human::span(took))
            }
            (false, _) => self.summary(took),
        });
    }

    fn summary(&self, took: Duration) -> String {
        let took = human::span(took);
        match (self.extents, self.sizes) {
            (0, 0) => format!("nothing differs; compared in {took}\n"),
            (0, _) => format!("\nno block differs, only sizes do; compared in {took}\n"),
            (extents, _) => {
                let (differ, bytes) = (if extents == 1 { "differs" } else { "differ" }, format_bytes(self.bytes));
                let extents = human::count(extents, "extent");
                format!("\n{extents} with {bytes} {differ}; compared in {took}\n")
            }
        }
    }
}

/// Widths are fixed, because lines are shown as they are found.
const HEADING: &str = "          OFFSET           LENGTH  KIND  DISK\n";

fn line(difference: &Difference) -> String {
    match difference {
        Difference::Extent { disk, offset, length, kind } => {
            let kind = match kind {
                Kind::Data => "data",
                Kind::Zero => "zero",
            };
            format!("{offset:>16} {length:>16}  {kind}  {}\n", plain(disk))
        }
        Difference::Size { disk, from_size, to_size } => {
            format!("{from_size:>16} bytes became {to_size}  {}\n", plain(disk))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Of;
    use crate::json::tests::at;
    use crate::output::tests::capture;

    fn spec(to: Option<DiffTo>, digest: bool) -> DiffSpec {
        DiffSpec { from: When::Latest, to, nearest: None, disk: None, digest }
    }

    fn shown(json: bool, spec: &DiffSpec, events: Vec<DiffEvent>) -> String {
        let work = |output: &mut Output<'_>| {
            let mut seen = Seen::default();
            events.into_iter().for_each(|event| seen.tell(spec, event, output));
            seen.end(spec, Duration::from_millis(12), output);
        };
        capture(json, work).0
    }

    fn begin() -> DiffEvent {
        DiffEvent::Begin { from: at(), to: Some(at()), behind: None }
    }

    fn extent(offset: u64, kind: Kind) -> DiffEvent {
        DiffEvent::Difference(Difference::Extent { disk: "root".into(), offset, length: 4096, kind })
    }

    #[test]
    fn differences_are_lines_with_a_sum_for_people() {
        let spec = spec(Some(DiffTo::Moment(When::Latest)), false);
        let size = DiffEvent::Difference(Difference::Size { disk: "root".into(), from_size: 512, to_size: 1024 });
        let events = vec![begin(), size.clone(), extent(0, Kind::Data), extent(8192, Kind::Zero)];
        let text = shown(false, &spec, events.clone());
        for part in [
            "from  point 00112233445566ff-7 (",
            "\nto    point 00112233445566ff-7 (",
            "          OFFSET           LENGTH  KIND  DISK\n",
            "             512 bytes became 1024  root\n",
            "            8192             4096  zero  root\n",
            "\n\n2 extents with 8.00 KiB differ; compared in 12 ms\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(text.matches("OFFSET").count(), 1);
        let one = shown(false, &spec, vec![begin(), extent(0, Kind::Data)]);
        assert!(one.ends_with("\n1 extent with 4.00 KiB differs; compared in 12 ms\n"), "{one}");
        let expected = concat!(
            "{\"disk\":\"root\",\"from_size\":512,\"to_size\":1024}\n",
            "{\"disk\":\"root\",\"offset\":0,\"length\":4096,\"kind\":\"data\"}\n",
            "{\"disk\":\"root\",\"offset\":8192,\"length\":4096,\"kind\":\"zero\"}\n",
        );
        assert_eq!(shown(true, &spec, events), expected);
        assert!(shown(false, &spec, vec![begin()]).ends_with("\n\nnothing differs; compared in 12 ms\n"));
        assert_eq!(shown(true, &spec, vec![begin()]), "");
        // A disk that only grew, by zeros.
        assert!(
            shown(false, &spec, vec![begin(), size])
                .ends_with("\n\nno block differs, only sizes do; compared in 12 ms\n")
        );
    }

    #[test]
    fn digests_say_whether_they_are_the_same() {
        let digest = |of, at, digest: &str| {
            DiffEvent::Digest(DiskDigest { disk: "root".into(), of, at, size: 1024, digest: digest.into() })
        };
        let spec = spec(Some(DiffTo::File("disk.img".into())), true);
        let (from, same, other) =
            (digest(Of::From, Some(at()), "aa"), digest(Of::With, None, "aa"), digest(Of::With, None, "bb"));
        let begin = DiffEvent::Begin { from: at(), to: None, behind: None };
        let text = shown(false, &spec, vec![begin.clone(), from.clone(), same]);
        assert!(text.contains("\nto    disk.img\n"), "{text}");
        assert!(
            text.ends_with("\naa  root (1.00 KiB)\naa  root (1.00 KiB, the file)\n\nthe same; read in 12 ms\n"),
            "{text}"
        );
        let text = shown(false, &spec, vec![begin, from, other.clone()]);
        assert!(text.ends_with("\nnot the same: root; read in 12 ms\n"), "{text}");
        let line = "{\"disk\":\"root\",\"of\":\"with\",\"at\":null,\"size\":1024,\"digest\":\"bb\"}\n";
        assert_eq!(shown(true, &spec, vec![other]), line);
    }
}
