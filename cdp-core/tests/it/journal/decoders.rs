//! Every decoder of bytes from outside against garbage, and against valid files that somebody or something has changed.
//!
//! `CDP_DECODER_CASES` is how many cases each of them gets (256), `CDP_FUZZ_CORPUS` a directory into which the valid examples are
//! written as seeds for the fuzzers of `cdp-core/fuzz`.

use cdp_core::frame::{Compression, EncodedFrame, Encoder, FrameHead, Mark, Note, Part, Payload, RawFrame, RecordKind};
use cdp_core::fuzz::{Decoder, decode_any};
use cdp_core::journal::{Executor, MANIFEST_NAME};
use cdp_core::link::message::{Code, Farewell};
use cdp_core::link::preamble::Preamble;
use cdp_core::link::spool::{Spool, SpoolOptions};
use cdp_core::media::{Disk, Memory, Storage};
use cdp_core::types::*;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// A store with a segment of two frames and some events.
const STORE: &str = include_str!("golden-v1.txt");
/// The same store, sealed at rest.
const STORE_AT_REST: &str = include_str!("golden-at-rest-v1.txt");
/// A base that was merged into.
const BASES: &str = include_str!("golden-bases-v1.txt");
/// A run of the levelled index, and the manifest's entry of it.
const RUN: &str = include_str!("../../../src/journal/level/golden-v1.txt");
/// A message of each kind on a link: what a source end sends, what a target end sends, an error.
const LINK: &str = include_str!("../../../src/link/codec/golden-v1.txt");
/// A ticket of the key that the fuzzers' entry knows.
const TICKET: &str = include_str!("../../../src/trust/ticket/golden-v1.hex");
const BLOCK_MAGIC: &[u8] = b"CDPBLOK\x01";

/// The bytes of a file in a golden text, which names it and its length and has its rows that are not zeros.
fn file(text: &str, name: &str) -> Vec<u8> {
    let mut lines = text.lines().skip_while(|line| !line.contains(name));
    let length = lines.next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let mut bytes = vec![0; length];
    for line in lines {
        let Some((at, hex)) = line.split_once(' ').filter(|(at, _)| at.len() == 6) else { break };
        let at = usize::from_str_radix(at, 16).unwrap();
        (0..hex.len() / 2).for_each(|n| bytes[at + n] = u8::from_str_radix(&hex[n * 2..n * 2 + 2], 16).unwrap());
    }
    bytes
}

/// So many bytes from each place on that begins so.
fn pieces(bytes: &[u8], magic: &[u8], length: usize) -> Vec<Vec<u8>> {
    let places = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(magic));
    places.map(|at| bytes[at..bytes.len().min(at + length)].to_vec()).collect()
}

/// Every frame of a segment or of a footer's events.
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let whole = |frame: Vec<u8>| {
        let head = FrameHead::parse(&frame).unwrap();
        frame[..(head.info.head_bytes + head.info.body_bytes) as usize].to_vec()
    };
    pieces(bytes, b"CDPFRAM\x01", bytes.len()).into_iter().map(whole).collect()
}

/// A frame with a compressed chunk, a raw one, and every kind of note.
fn rich_frame() -> Vec<u8> {
    let timeline = Timeline::new([1; 16]).unwrap();
    let notes = [
        (RecordKind::Mark, Note::Mark(Mark { label: "before".into(), ..Mark::default() })),
        (RecordKind::Time, Note::Time { mono: MonoTime(5) }),
        (RecordKind::Resize, Note::Resize { from: 1 << 20, to: 1 << 21 }),
        (RecordKind::DiskAdded, Note::DiskAdded { name: "data".into(), size: 1 << 30 }),
        (RecordKind::TimelineStart, Note::TimelineStart { parent: Some(timeline), fork: Lsn(3) }),
        (RecordKind::GapBegin, Note::GapBegin { from: Lsn(3), reason: cdp_core::frame::GapReason::Overload }),
        (RecordKind::ResyncBegin, Note::ResyncBegin { from: Lsn(3), reason: cdp_core::frame::ResyncReason::Gap }),
        (RecordKind::ResyncEnd, Note::ResyncEnd { bytes_read: 7, bytes_changed: 5 }),
    ];
    let (disk, time) = (DiskId::new(1), WallTime(1_000));
    let mut parts = Vec::new();
    for (number, bytes) in
        [vec![7; 70_000 / 512 * 512], (0..4096u32).map(|n| ((n * n) >> 5) as u8).collect()].into_iter().enumerate()
    {
        let payload = Payload::new(8192, bytes::Bytes::from(bytes)).unwrap();
        parts.extend(payload.into_parts(RecordKind::Write, disk.unwrap(), Lsn(10 + number as u64), time));
    }
    parts.push(Part::plain(RecordKind::Discard, disk, Extent::new(0, 1 << 20), Lsn(12), time));
    parts.extend((13..).zip(notes).map(|(lsn, (kind, note))| Part::noted(kind, disk, Lsn(lsn), time, note)));
    let plain_bytes = parts.iter().map(|part| part.data.len() as u64).sum();
    let raw = RawFrame { timeline, prev_lsn: Lsn(9), settled: Lsn(12), epoch: ClockEpoch(1), parts, plain_bytes };
    let frame = Encoder::new().encode(raw, GroupId::new([2; 16]).unwrap(), Compression::Zstd(1));
    [&frame.head[..], &frame.body.concat()].concat()
}

/// The notes of a frame, each behind its record's kind.
fn notes(frame: &[u8]) -> Vec<Vec<u8>> {
    let head = FrameHead::parse(frame).unwrap();
    let body = &frame[head.info.head_bytes as usize..];
    let noted = head.records.iter().filter_map(|record| {
        let chunk = head.chunk(record.chunk).filter(|chunk| chunk.notes)?;
        let at = (chunk.offset + record.chunk_offset) as usize;
        Some([&[record.kind? as u8], &body[at..at + record.chunk_length as usize]].concat())
    });
    noted.collect()
}

fn of_hex(hex: &str) -> Vec<u8> {
    let hex = hex.trim();
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap()).collect()
}

/// What an end sends from its first message, which is called so, to its last: the first, the first two, and so on.
fn said(first: &str) -> Vec<Vec<u8>> {
    let lines: Vec<_> = LINK.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let begin = lines.iter().position(|(name, _)| *name == first).unwrap();
    let end = begin + lines[begin..].iter().position(|(name, _)| *name == "close").unwrap();
    let upto = |last| lines[begin..=last].iter().flat_map(|(_, hex)| of_hex(hex)).collect();
    (begin..=end).map(upto).collect()
}

fn preambles() -> Vec<Vec<u8>> {
    let session = SessionId::new([3; 16]).unwrap();
    let tls = [of_hex(TICKET).into(), bytes::Bytes::new()].map(|ticket| Preamble::Tls { ticket });
    let refusal = Preamble::Refusal(Farewell::new(Code::Busy, "later"));
    let all = tls.into_iter().chain([Preamble::Plain { session, connection: 1 }, refusal]);
    all.map(|preamble| preamble.encode().unwrap()).collect()
}

/// By the text of `ACTIVITY.md`: two headers, a sector of the bitmap with one extent marked. Its checksums are left to be made.
fn activity_log() -> Vec<u8> {
    let mut header = vec![0; 8192];
    header[..12].copy_from_slice(b"CDPACTLG\x01\0\x01\0");
    header[12] = 1;
    header[16..48].fill(7);
    header[48] = 1;
    header[72..76].copy_from_slice(&(4u32 << 20).to_le_bytes());
    header[128] = 1;
    header[128 + 8..128 + 16].copy_from_slice(&(1u64 << 30).to_le_bytes());
    let mut sector = vec![0; 512];
    sector[1] = 4;
    [&header[..], &header, &sector].concat()
}

/// What a spool writes of such a frame: the header of its file, and its first entry without padding.
fn spooled(decoder: Decoder, frame: &[u8]) -> Vec<u8> {
    let info = FrameHead::parse(frame).unwrap().info;
    let (head, body) = frame.split_at(info.head_bytes as usize);
    let (head, body) = (bytes::Bytes::copy_from_slice(head), vec![bytes::Bytes::copy_from_slice(body)]);
    let storage = Memory::new();
    let options = SpoolOptions {
        memory_bytes_max: 0,
        disk_bytes_max: u64::MAX,
        file_bytes: 0,
        directory: String::new(),
        ahead_bytes: 0,
        always: true,
        ids: 0,
    };
    let mut spool = Spool::new(options);
    spool.push(EncodedFrame { info, head, body }).unwrap();
    let executor = Executor::new(std::sync::Arc::new(storage.clone()));
    while let Some((id, effect)) = spool.poll(MonoTime(0)) {
        spool.completed(MonoTime(0), id, executor.run(&effect));
    }
    let file = storage.open(&storage.list("").unwrap()[0], false).unwrap();
    let mut bytes = vec![0; 512 + 64 + frame.len()];
    file.read_exact_at(0, &mut bytes).unwrap();
    if decoder == Decoder::SpoolHeader { bytes[..512].to_vec() } else { bytes.split_off(512) }
}

/// What is valid, for each decoder.
static EXAMPLES: LazyLock<Vec<(Decoder, Vec<Vec<u8>>)>> = LazyLock::new(|| {
    let (segment, run) = (file(STORE, ".seg"), file(RUN, "file"));
    let trailer = segment.len() - 512;
    let at_rest = file(STORE_AT_REST, ".seg");
    let blocks = |bytes: &[u8], of_run: bool| {
        let blocks = pieces(bytes, BLOCK_MAGIC, 4096).into_iter();
        blocks.filter(|block| [6, 7].contains(&block[36]) == of_run).collect::<Vec<_>>()
    };
    let footer = (0..segment.len()).rposition(|at| segment[at..].starts_with(BLOCK_MAGIC)).unwrap() + 4096;
    let rich = rich_frame();
    let sum = file(BASES, ".sum");
    Decoder::ALL
        .into_iter()
        .map(|decoder| {
            let examples = match decoder {
                Decoder::Frame => [frames(&segment), vec![rich.clone()]].concat(),
                Decoder::Note => notes(&rich),
                Decoder::SegmentHeader => {
                    [&segment, &at_rest].into_iter().flat_map(|bytes| pieces(bytes, b"CDPSEGM\x01", 512)).collect()
                }
                Decoder::Opening => pieces(&segment, b"CDPOPEN\x01", 512),
                Decoder::Envelope => pieces(&segment, b"CDPENVL\x01", 64),
                Decoder::FooterBlock => {
                    [blocks(&segment, false), blocks(&at_rest, false), blocks(&run, false)].concat()
                }
                Decoder::Events => frames(&segment[footer..]),
                Decoder::Trailer => vec![segment[trailer..].to_vec()],
                Decoder::RunHeader => pieces(&run, b"CDPRUNH\x01", 512),
                Decoder::RunBlock => blocks(&run, true),
                Decoder::RunTrailer => pieces(&run, b"CDPRUNT\x01", 512),
                Decoder::Manifest => {
                    let stores = [STORE, STORE_AT_REST].map(|store| file(store, MANIFEST_NAME));
                    stores.into_iter().chain([super::levels::manifest_with_runs()]).collect()
                }
                Decoder::SidecarPage => vec![sum[8192..12288].to_vec(), sum[12288..].to_vec()],
                Decoder::DigestTable => vec![file(BASES, ".dig0"), file(BASES, ".dig1")],
                Decoder::Rests => vec![file(BASES, "merge.rests")],
                Decoder::ActivityLog => vec![activity_log()],
                Decoder::SpoolHeader | Decoder::SpoolEntry => vec![spooled(decoder, &rich)],
                Decoder::LinkSource => said("hello"),
                Decoder::LinkTarget => said("welcome"),
                Decoder::Preamble => preambles(),
                Decoder::Ticket => vec![of_hex(TICKET)],
            };
            (decoder, examples)
        })
        .collect()
});

/// Any example, of each decoder as often.
fn example((decoder, which): (Index, Index)) -> (Decoder, Vec<u8>) {
    let (decoder, examples) = decoder.get(&EXAMPLES);
    (*decoder, which.get(examples).clone())
}

#[test]
fn every_example_is_valid() {
    for (decoder, examples) in EXAMPLES.iter() {
        assert!(!examples.is_empty(), "{decoder:?}");
        for bytes in examples {
            let outcome = decode_any(*decoder, bytes);
            // The log's checksums are made when it is sealed.
            let whole = outcome.as_they_are || *decoder == Decoder::ActivityLog;
            assert!(whole && outcome.resealed, "{decoder:?}: {outcome:?}");
        }
    }
    let Some(corpus) = std::env::var_os("CDP_FUZZ_CORPUS") else { return };
    for (decoder, examples) in EXAMPLES.iter() {
        let storage = Disk::create(std::path::Path::new(&corpus).join(decoder.name())).unwrap();
        for (number, bytes) in examples.iter().enumerate() {
            let name = number.to_string();
            let file = storage.open(&name, true).or_else(|_| storage.create(&name)).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            file.write_all_at(0, bytes).unwrap();
        }
    }
}

#[test]
fn each_decoder_has_a_fuzz_target() {
    let tree = Disk::open(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz")).unwrap();
    let targets: BTreeSet<String> = tree.list("fuzz_targets").unwrap().into_iter().collect();
    assert_eq!(targets, Decoder::ALL.map(|decoder| format!("{}.rs", decoder.name())).into());
    let read = |name: &str| {
        let file = tree.open(name, false).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let manifest = read("Cargo.toml");
    for decoder in Decoder::ALL {
        assert!(read(&format!("fuzz_targets/{}.rs", decoder.name())).contains(&format!("Decoder::{decoder:?},")));
        assert!(manifest.contains(&format!("name = \"{}\"", decoder.name())), "{decoder:?}");
    }
}

/// What somebody or something does to a file.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Flip(Index, u8),
    Number(Index, u64, usize),
    Truncate(Index),
    Extend(Vec<u8>),
    Copy(Index, Index, usize),
    Zero(Index, usize),
}

impl Change {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        match self {
            Self::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Self::Number(at, value, width) => {
                // Where fields are: on multiples of their length, or of four bytes.
                let at = at.index(length) / width.min(&4) * width.min(&4);
                let end = length.min(at + width);
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            Self::Truncate(at) => bytes.truncate(at.index(length)),
            Self::Extend(more) => bytes.extend(more),
            Self::Copy(from, to, count) => {
                let (from, to) = (from.index(length), to.index(length));
                let count = (*count).min(length - from).min(length - to);
                bytes.copy_within(from..from + count, to);
            }
            Self::Zero(at, count) => {
                let at = at.index(length);
                bytes[at..length.min(at + count)].fill(0);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => same_length(),
        1 => any::<Index>().prop_map(Change::Truncate),
        1 => prop::collection::vec(any::<u8>(), 1..600).prop_map(Change::Extend),
    ]
}

/// A change that leaves the length as it is.
pub(super) fn same_length() -> impl Strategy<Value = Change> {
    let near = (0u32..64, -2i64..3).prop_map(|(bits, off)| (1u64 << bits).wrapping_add_signed(off));
    let number = prop_oneof![Just(0), Just(u64::MAX), near, any::<u64>()];
    prop_oneof![
        1 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        3 => (any::<Index>(), number, prop_oneof![Just(1usize), Just(2), Just(4), Just(8)])
            .prop_map(|(at, value, width)| Change::Number(at, value, width)),
        1 => (any::<Index>(), any::<Index>(), 1usize..600).prop_map(|(from, to, count)| Change::Copy(from, to, count)),
        1 => (any::<Index>(), 1usize..600).prop_map(|(at, count)| Change::Zero(at, count)),
    ]
}

pub(super) fn cases() -> u32 {
    std::env::var("CDP_DECODER_CASES").map_or(256, |text| text.parse().expect("a number"))
}

/// Those whose checksums cover every byte that is looked at.
fn is_covered(decoder: Decoder) -> bool {
    use Decoder::{ActivityLog, DigestTable, LinkSource, LinkTarget, Note, Rests};
    !matches!(decoder, Note | DigestTable | Rests | ActivityLog | LinkSource | LinkTarget)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn garbage_ends_in_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        for decoder in Decoder::ALL {
            let _ = decode_any(decoder, &bytes);
        }
    }

    /// A few changes, so that what is checked last is reached.
    #[test]
    fn changed_files_end_in_a_value_or_an_error(
        which in prop::collection::vec(any::<(Index, Index)>(), 16),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        for which in which {
            let (decoder, mut bytes) = example(which);
            changes.iter().for_each(|change| change.apply(&mut bytes));
            let _ = decode_any(decoder, &bytes);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen(which in prop::collection::vec(any::<(Index, Index)>(), 16), at in any::<Index>(), bit in 0u8..8) {
        for which in which {
            let (decoder, mut bytes) = example(which);
            Change::Flip(at, bit).apply(&mut bytes);
            let seen = !decode_any(decoder, &bytes).as_they_are;
            prop_assert!(seen || !is_covered(decoder), "{decoder:?}: bit {bit} of byte {} of {}", at.index(bytes.len()), bytes.len());
        }
    }
}
