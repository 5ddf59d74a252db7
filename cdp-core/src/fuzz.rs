//! Every decoder of bytes from outside, by one name, for fuzzers and for tests that do their work on stable.
//!
//! Bytes are decoded twice: as they are, and with their prefix, length and checksums made right, because behind a checksum a
//! fuzzer would get nowhere and somebody who means harm would. What is taken for valid must survive being written and read again.

use crate::link::codec::Party;
use crate::{capture, frame, journal, link, replica, trust};

/// A decoder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Decoder {
    /// A frame, head and body, and the index that a segment makes of it.
    Frame,
    /// What a record without disk data says; the first byte is the record's kind.
    Note,
    /// Header of a segment.
    SegmentHeader,
    /// Opening of a segment.
    Opening,
    /// What stands before a frame.
    Envelope,
    /// A block of a segment's footer, of any kind.
    FooterBlock,
    /// The events of a footer.
    Events,
    /// Trailer of a segment.
    Trailer,
    /// Header of a run of the levelled index.
    RunHeader,
    /// A block of a run, of any kind.
    RunBlock,
    /// Trailer of a run.
    RunTrailer,
    /// The manifest.
    Manifest,
    /// A page of a base's checksums.
    SidecarPage,
    /// The digest table of a base.
    DigestTable,
    /// What a merge leaves of blocks that it changes in parts.
    Rests,
    /// The activity log.
    ActivityLog,
    /// Header of a spool's file.
    SpoolHeader,
    /// An entry of a spool's file, with its frame.
    SpoolEntry,
    /// What a source end sends on a link.
    LinkSource,
    /// What a target end sends on a link.
    LinkTarget,
    /// What a connection of a link begins with.
    Preamble,
    /// A ticket.
    Ticket,
}

/// What a decoder made of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// They are valid as they are.
    pub as_they_are: bool,
    /// They are valid once their checksums are right.
    pub resealed: bool,
}

impl Decoder {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::Frame,
        Self::Note,
        Self::SegmentHeader,
        Self::Opening,
        Self::Envelope,
        Self::FooterBlock,
        Self::Events,
        Self::Trailer,
        Self::RunHeader,
        Self::RunBlock,
        Self::RunTrailer,
        Self::Manifest,
        Self::SidecarPage,
        Self::DigestTable,
        Self::Rests,
        Self::ActivityLog,
        Self::SpoolHeader,
        Self::SpoolEntry,
        Self::LinkSource,
        Self::LinkTarget,
        Self::Preamble,
        Self::Ticket,
    ];

    /// What its fuzz target is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Note => "note",
            Self::SegmentHeader => "segment_header",
            Self::Opening => "opening",
            Self::Envelope => "envelope",
            Self::FooterBlock => "footer_block",
            Self::Events => "events",
            Self::Trailer => "trailer",
            Self::RunHeader => "run_header",
            Self::RunBlock => "run_block",
            Self::RunTrailer => "run_trailer",
            Self::Manifest => "manifest",
            Self::SidecarPage => "sidecar_page",
            Self::DigestTable => "digest_table",
            Self::Rests => "rests",
            Self::ActivityLog => "activity_log",
            Self::SpoolHeader => "spool_header",
            Self::SpoolEntry => "spool_entry",
            Self::LinkSource => "link_source",
            Self::LinkTarget => "link_target",
            Self::Preamble => "preamble",
            Self::Ticket => "ticket",
        }
    }

    fn decode(self, bytes: &[u8]) -> bool {
        match self {
            Self::Frame => frame::fuzz::frame(bytes) && journal::fuzz::index_of_frame(bytes),
            Self::Note => frame::fuzz::note(bytes),
            Self::SegmentHeader => journal::fuzz::segment_header(bytes),
            Self::Opening => journal::fuzz::opening(bytes),
            Self::Envelope => journal::fuzz::envelope(bytes),
            Self::FooterBlock => journal::fuzz::footer_block(bytes),
            Self::Events => journal::fuzz::events(bytes),
            Self::Trailer => journal::fuzz::trailer(bytes),
            Self::RunHeader => journal::fuzz::run_header(bytes),
            Self::RunBlock => journal::fuzz::run_block(bytes),
            Self::RunTrailer => journal::fuzz::run_trailer(bytes),
            Self::Manifest => journal::fuzz::manifest(bytes),
            Self::SidecarPage => replica::fuzz::sidecar_page(bytes),
            Self::DigestTable => replica::fuzz::digest_table(bytes),
            Self::Rests => replica::fuzz::rests(bytes),
            Self::ActivityLog => capture::fuzz_activity::log(bytes),
            Self::SpoolHeader => link::spool::fuzz::header(bytes),
            Self::SpoolEntry => link::spool::fuzz::entry(bytes),
            Self::LinkSource => link::codec::fuzz::messages(Party::Source, bytes),
            Self::LinkTarget => link::codec::fuzz::messages(Party::Target, bytes),
            Self::Preamble => link::preamble::fuzz::preamble(bytes),
            Self::Ticket => trust::ticket::fuzz::ticket(bytes),
        }
    }

    fn seal(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Frame | Self::Events => frame::fuzz::seal(bytes),
            // Nothing of its own guards a note; the frame's checksums do.
            Self::Note => bytes.to_vec(),
            Self::SegmentHeader
            | Self::Opening
            | Self::Envelope
            | Self::FooterBlock
            | Self::Trailer
            | Self::RunHeader
            | Self::RunBlock
            | Self::RunTrailer
            | Self::Manifest => journal::fuzz::seal(self, bytes),
            Self::SidecarPage => replica::fuzz::seal_page(bytes),
            Self::DigestTable => replica::fuzz::seal_table(bytes),
            Self::Rests => replica::fuzz::seal_rests(bytes),
            Self::ActivityLog => capture::fuzz_activity::seal(bytes),
            Self::SpoolHeader => link::spool::fuzz::seal_header(bytes),
            Self::SpoolEntry => link::spool::fuzz::seal_entry(bytes),
            Self::LinkSource => link::codec::fuzz::seal(Party::Source, bytes),
            Self::LinkTarget => link::codec::fuzz::seal(Party::Target, bytes),
            Self::Preamble => link::preamble::fuzz::seal(bytes),
            Self::Ticket => trust::ticket::fuzz::seal(bytes),
        }
    }
}

/// These bytes with prefix, length and checksums made right: what somebody who means harm writes.
#[must_use]
pub fn sealed(decoder: Decoder, bytes: &[u8]) -> Vec<u8> {
    decoder.seal(bytes)
}

/// Decodes bytes as they are, and with right checksums.
///
/// # Panics
/// When a decoder is wrong: that is what it is for.
#[must_use]
pub fn decode_any(decoder: Decoder, bytes: &[u8]) -> Outcome {
    Outcome { as_they_are: decoder.decode(bytes), resealed: decoder.decode(&decoder.seal(bytes)) }
}
