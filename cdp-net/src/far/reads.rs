//! Calls of somebody who reads a replica from afar: a moment opened, read and let go of, and jobs that take their time.
//!
//! Indexes, keys and decisions stay where the replica is; only what is read goes over the line. Who reads gives what he opens a random
//! name, so that a call that comes twice does nothing twice, and so that a cut of the line ends nothing by itself: whatever has such a
//! name lives as long as it is asked for at least once in [`LEASE`].

use super::ids;
use crate::diff::Of;
use crate::owner::{Request, Side};
use crate::report::{At, Problem, Session, text};
use cdp_core::replica::{Run, ViewDisk};
use cdp_core::types::{DiskId, Extent};
use cdp_core::when::When;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// What nobody asked for so long is let go of: pins, temporary sessions, jobs.
pub const LEASE: Duration = Duration::from_secs(60);

/// The code of the problem that a name is not, or no more, that of a view or a job.
pub const NO_VIEW: &str = "no-view";

/// Bytes that one call reads or writes, at most: the tail of a call.
pub const VIEW_BYTES_MAX: u64 = cdp_core::link::message::CALL_TAIL_MAX as u64;

/// What something is called that who reads has opened: 128 random bits, so that nobody else knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadName(u128);

impl ReadName {
    /// A new one.
    #[must_use]
    pub fn draw() -> Self {
        Self(u128::from_le_bytes(crate::random::identity()))
    }
}

/// Not shown: who knows it may use it.
impl fmt::Debug for ReadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadName")
    }
}

/// As 32 hex digits.
impl Serialize for ReadName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for ReadName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let whole = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let name = whole.then(|| u128::from_str_radix(&digits, 16).ok()).flatten();
        name.map(Self).ok_or_else(|| serde::de::Error::custom("a name is 32 hex digits"))
    }
}

/// Begins a job, or asks what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub job: ReadName,
    /// What to do. None: it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// So many bytes of what it tells have arrived, and need not be kept.
    pub taken: u64,
    /// It is to end where it is, and to say so.
    #[serde(default)]
    pub stop: bool,
    /// Nobody asks any more: it may be forgotten.
    #[serde(default)]
    pub forget: bool,
}

/// What takes its time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// A request to the directory's owner; its answer is the result.
    Ask(Request),
    /// Reads and checks everything: a [`Verified`](crate::verify::Verified).
    Verify,
    /// What differs between two moments: [`Difference`](crate::diff::Difference)s as they are found.
    Diff(DiffOrder),
    /// The digests of a moment's disks: [`DiskDigest`](crate::diff::DiskDigest)s.
    Digest(DigestOrder),
}

/// Two moments that were opened, to be compared.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiffOrder {
    /// What counts as before.
    pub from: ReadName,
    /// What it is compared with.
    pub to: ReadName,
    /// One disk of several.
    #[serde(default)]
    pub disk: Option<String>,
}

/// A moment that was opened, to be digested.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DigestOrder {
    /// Which.
    pub view: ReadName,
    /// Which side of a comparison it is.
    pub of: Of,
    /// One disk of several.
    #[serde(default)]
    pub disk: Option<String>,
}

/// How a job stands. In the tail is what it tells, from the byte on that was asked for: lines of JSON, cut anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct JobStands {
    /// Bytes that it has looked at.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// It has ended, and everything that it told is in this tail.
    pub ended: bool,
}

/// A line of what a job tells.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobLine {
    /// Something was found.
    Found(Value),
    /// The last line: what came of it.
    Ok(Value),
    /// The last line: why nothing came of it.
    Error(Problem),
}

/// Opens a moment and holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenView {
    /// What it will be called.
    pub view: ReadName,
    /// The moment; a named session that exists has its own.
    #[serde(with = "text::option", default)]
    pub at: Option<When>,
    /// Which neighbour to take if it is not restorable.
    #[serde(default)]
    pub nearest: Option<Side>,
    /// Refused if nothing can be restored of this disk then.
    #[serde(default)]
    pub disk: Option<String>,
    /// To be written, in a session: temporary if it has no name.
    #[serde(default)]
    pub writable: bool,
    /// The session's name.
    #[serde(default)]
    pub session: Option<String>,
}

/// What was opened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenedView {
    /// The moment.
    pub at: At,
    /// The disks that are there.
    pub disks: Vec<ViewDiskInfo>,
    /// Disks that were there, and of which nothing can be restored.
    pub incomplete: Vec<String>,
    /// The session that takes writes, if there is one.
    pub session: Option<Session>,
}

/// A disk at the moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ViewDiskInfo {
    /// Its number in the group.
    #[serde(with = "ids::disk")]
    pub id: DiskId,
    /// Its name in the group.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

impl From<&ViewDisk> for ViewDiskInfo {
    fn from(disk: &ViewDisk) -> Self {
        Self { id: disk.id, name: disk.name.clone(), size: disk.size }
    }
}

impl From<ViewDiskInfo> for ViewDisk {
    fn from(disk: ViewDiskInfo) -> Self {
        Self { id: disk.id, name: disk.name, size: disk.size }
    }
}

/// Names what was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ViewName {
    /// By its name.
    pub view: ReadName,
}

/// A range of a disk of what was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ViewRange {
    /// What was opened.
    pub view: ReadName,
    /// The disk.
    #[serde(with = "ids::disk")]
    pub disk: DiskId,
    /// Where on it, in bytes: for reads [`VIEW_BYTES_MAX`] at most.
    #[serde(with = "ids::extent")]
    pub range: Extent,
}

/// A change of what was opened to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WriteView {
    /// What was opened.
    pub view: ReadName,
    /// The disk.
    #[serde(with = "ids::disk")]
    pub disk: DiskId,
    /// Where on it, in bytes. For data it is as long as the tail.
    #[serde(with = "ids::extent")]
    pub range: Extent,
    /// What.
    pub how: WriteHow,
    /// It is durable when it is answered.
    pub fua: bool,
    /// Counted from 1 by who writes: however often it comes, it is done once, so that no late copy of it undoes a later one.
    pub number: u64,
    /// All with lower numbers were answered.
    pub settled: u64,
}

/// What is done to the range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteHow {
    /// It gets the bytes of the tail.
    Data,
    /// It becomes zeros, with their room kept.
    Zero,
    /// It becomes zeros.
    Discard,
    /// Nothing: everything before is made durable.
    Flush,
}

/// Bytes of a run.
const RUN_BYTES: usize = 17;
/// Runs of one answer, at most: 1 MiB less a little.
pub(crate) const RUNS_MAX: usize = VIEW_BYTES_MAX as usize / RUN_BYTES;

/// Runs as the tail of an answer: offset and length of each, little-endian, and a byte whose bit 0 says zeros and bit 1 hole.
#[must_use]
pub fn encode_runs(runs: &[Run]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(runs.len() * RUN_BYTES);
    for run in runs {
        bytes.extend_from_slice(&run.extent.offset.to_le_bytes());
        bytes.extend_from_slice(&run.extent.length.to_le_bytes());
        bytes.push(u8::from(run.zero) | u8::from(run.hole) << 1);
    }
    bytes
}

/// Reads them: at least one, from the beginning of `range` on, without a gap, none longer than it. None: they are not that.
#[must_use]
pub fn decode_runs(bytes: &[u8], range: Extent) -> Option<Vec<Run>> {
    let mut at = range.offset;
    let mut runs = Vec::with_capacity((bytes.len() / RUN_BYTES).min(RUNS_MAX));
    for run in bytes.chunks(RUN_BYTES) {
        let (offset, rest) = run.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (offset, length, &[how]) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*length), rest) else {
            return None;
        };
        let follows = offset == at && length > 0 && length <= range.end() - at && how < 4;
        if !follows {
            return None;
        }
        runs.push(Run { extent: Extent::new(offset, length), zero: how & 1 == 1, hole: how & 2 == 2 });
        at += length;
    }
    (!runs.is_empty()).then_some(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_survive_their_bytes_and_others_are_refused() {
        let run = |offset, length, zero, hole| Run { extent: Extent::new(offset, length), zero, hole };
        let runs = [run(512, 512, false, false), run(1024, 4096, true, false), run(5120, 512, true, true)];
        let (bytes, range) = (encode_runs(&runs), Extent::new(512, 5120));
        assert_eq!(decode_runs(&bytes, range).unwrap(), runs);
        // They may end before it does.
        assert_eq!(decode_runs(&bytes[..RUN_BYTES], range).unwrap(), runs[..1]);
        for (wrong, of) in [
            (&bytes[..0], range),
            (&bytes[..RUN_BYTES + 3], range),
            (&bytes[RUN_BYTES..], range),
            (&bytes[..], Extent::new(512, 4608)),
            (&[&bytes[..16], &[4]].concat()[..], range),
            (&encode_runs(&[run(512, 0, true, true)]), range),
            (&encode_runs(&[run(512, u64::MAX, true, true)]), range),
        ] {
            assert_eq!(decode_runs(wrong, of), None);
        }
    }

    #[test]
    fn names_are_read_as_they_are_written_and_not_shown() {
        let name = ReadName::draw();
        let text = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<ReadName>(&text).unwrap(), name);
        assert!(!format!("{name:?}").contains(&text[1..9]));
        for wrong in ["\"\"", "\"+0000000000000000000000000000000\"", "7"] {
            assert!(serde_json::from_str::<ReadName>(wrong).is_err(), "{wrong}");
        }
    }
}
