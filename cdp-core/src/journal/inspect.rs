//! Any file of the journal in words, as far as it can be read: for people who look at a broken one.

use super::bytes::FormatError;
use super::layout::{FIXED_BYTES, Opening, SegmentHeader, Summary, decode_trailer};
use super::level;
use super::manifest::{MANIFEST_MAX, Manifest, SegmentState, TimelineRole, TimelineState};
use super::reader::ReadError;
use super::scan::{AtRest, Depth, Stop, scan};
use crate::media::File;
use std::fmt::Write;

/// Describes a manifest, a segment or a run of the levelled index, whole or damaged; none for any other file.
///
/// # Errors
/// When the file cannot be read at all.
pub fn inspect(file: &dyn File) -> Result<Option<String>, ReadError> {
    let mut front = vec![0; FIXED_BYTES];
    let length = file.read_at(0, &mut front)?;
    front.truncate(length);
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = match front.get(..8) {
        Some(b"CDPMANI\x01") => manifest(file, &mut out)?,
        Some(b"CDPSEGM\x01") => segment(file, &front, &mut out)?,
        Some(b"CDPRUNH\x01") => level::describe(file, &front, &mut out)?,
        _ => return Ok(None),
    };
    Ok(Some(out))
}

fn manifest(file: &dyn File, out: &mut String) -> Result<std::fmt::Result, ReadError> {
    let length = file.len()?.min(MANIFEST_MAX);
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(0, &mut bytes)?;
    Ok(match Manifest::decode(&bytes) {
        Ok(manifest) => write_manifest(&manifest, length, out),
        Err(error) => writeln!(out, "manifest, {length} bytes: {error}"),
    })
}

fn role(role: TimelineRole) -> &'static str {
    match role {
        TimelineRole::Trunk => "trunk",
        TimelineRole::Session => "session",
        TimelineRole::Failover => "failover",
    }
}

fn write_manifest(manifest: &Manifest, length: u64, out: &mut String) -> std::fmt::Result {
    let Manifest { generation, replica, group, name, durable, floor, reserved, clean, .. } = manifest;
    writeln!(out, "manifest, {length} bytes, generation {}", generation.0)?;
    writeln!(out, "replica {replica} of group {group} {name:?}")?;
    writeln!(out, "durable up to LSN {durable}, dropped up to {floor}, reserved up to {reserved}")?;
    writeln!(out, "stopped {}", if *clean { "cleanly" } else { "uncleanly, or is running" })?;
    for disk in &manifest.disks {
        writeln!(
            out,
            "disk {} {:?}, {} bytes, source {:?}, from LSN {}",
            disk.id, disk.name, disk.size, disk.source, disk.added
        )?;
        if let Some(end) = disk.removed {
            writeln!(out, "  gone from LSN {end} on")?;
        }
        if let Some(base) = &disk.base {
            writeln!(out, "  base at LSN {}, generation {}, {} bytes", base.lsn, base.generation, base.size)?;
        }
    }
    for resizing in &manifest.resizing {
        writeln!(out, "disk {} may have {} bytes soon", resizing.disk, resizing.size)?;
    }
    for timeline in &manifest.timelines {
        let state = if timeline.state == TimelineState::Open { "open" } else { "closed" };
        write!(out, "timeline {} {} ({}, {state})", timeline.number, timeline.id, role(timeline.role))?;
        match timeline.parent {
            Some(parent) => writeln!(out, ", forked from {} at LSN {}", parent.short(), timeline.fork)?,
            None => writeln!(out, ", the first")?,
        }
    }
    for key in &manifest.keys {
        let bases = if key.bases { ", also of bases" } else { "" };
        writeln!(out, "replica key {}, wrapped, of {}{bases}", key.generation, key.created.0)?;
    }
    for segment in &manifest.segments {
        write!(out, "segment {} {}", segment.number, segment.id)?;
        if segment.key != 0 {
            write!(out, ", at rest under key {}", segment.key)?;
        }
        match &segment.state {
            SegmentState::Prepared => writeln!(out, ", prepared")?,
            SegmentState::Active => writeln!(out, ", active")?,
            SegmentState::Sealed(summary) => {
                writeln!(out, ", sealed")?;
                write_summary(summary, out)?;
            }
        }
    }
    for run in &manifest.runs {
        writeln!(out, "index run {} {}", run.number, run.id)?;
        level::write_run(run, out)?;
        level::write_totals(&run.totals, out)?;
        let emptied = if run.emptied { ", footers emptied" } else { "" };
        writeln!(out, "  in {} ranges of regions{emptied}", run.regions.len())?;
    }
    manifest
        .sessions
        .iter()
        .try_for_each(|session| writeln!(out, "session {:?} at LSN {}", session.name, session.fork))?;
    manifest.pins.iter().try_for_each(|pin| writeln!(out, "pin {:?} at LSN {}", pin.label, pin.lsn))?;
    writeln!(out, "policy {:?}", manifest.policy)
}

fn write_summary(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let Summary { timeline, first_lsn, last_lsn, whole_lsn, settled, first, last, .. } = summary;
    writeln!(
        out,
        "  timeline {}, LSN {first_lsn} to {last_lsn}, whole to {whole_lsn}, settled to {settled}",
        timeline.short()
    )?;
    writeln!(out, "  stamps {} to {} (epochs {} to {})", first.time.0, last.time.0, first.epoch.0, last.epoch.0)?;
    let Summary { frames, chunks, entries, records, plain_bytes, frames_end, file_bytes, .. } = summary;
    writeln!(
        out,
        "  {frames} frames with {records} parts in {chunks} chunks, {plain_bytes} bytes of data, {entries} index entries"
    )?;
    writeln!(out, "  frames end at byte {frames_end}, the file at {file_bytes}")
}

fn segment(file: &dyn File, front: &[u8], out: &mut String) -> Result<std::fmt::Result, ReadError> {
    let length = file.len()?;
    let header = match SegmentHeader::decode(front) {
        Ok(header) => header,
        Err(error) => return Ok(writeln!(out, "segment, {length} bytes: {error}")),
    };
    let at_rest = if header.key == 0 { AtRest::Plain } else { AtRest::Sealed(None) };
    let scan = scan(file, (header.number, header.id), Depth::Bodies, at_rest)?;
    let trailer = trailer(file, length)?;
    let write = |out: &mut String| -> std::fmt::Result {
        writeln!(out, "segment {} {} of replica {}, {length} bytes", header.number, header.id, header.replica)?;
        if header.key != 0 {
            writeln!(out, "sealed at rest by the replica key of generation {}", header.key)?;
        }
        if let Some(Opening { timeline, prev_lsn, prev_segment, durable, .. }) = &scan.opening {
            write!(out, "timeline {timeline}, after LSN {prev_lsn}")?;
            match prev_segment {
                Some(segment) => writeln!(out, " in segment {segment}; durable up to LSN {durable} then")?,
                None => writeln!(out, ", the first; durable up to LSN {durable} then")?,
            }
        }
        for frame in scan.runs.iter().flat_map(|run| &run.frames) {
            let (bytes, parts) = (frame.frame_bytes, frame.records);
            let (first, last, settled) = (frame.first_lsn, frame.last_lsn, frame.settled);
            writeln!(
                out,
                "{:>12} frame of {bytes} bytes: LSN {first} to {last}, {parts} part{}, settled to {settled}",
                frame.offset,
                if parts == 1 { "" } else { "s" }
            )?;
        }
        if let Some(unfinished) = &scan.unfinished {
            writeln!(out, "{:>12} the frames end {unfinished}", scan.end)?;
        }
        match (&trailer, &scan.stop) {
            (Ok((id, summary)), _) if *id == header.id => {
                writeln!(out, "{:>12} footer: sealed", scan.end)?;
                write_summary(summary, out)
            }
            (_, Stop::Clean) => writeln!(out, "{:>12} end: not sealed", scan.end),
            (_, Stop::Torn(error)) => writeln!(out, "{:>12} end: not sealed, or torn: {error}", scan.end),
        }
    };
    Ok(write(out))
}

type Trailer = Result<(crate::types::SegmentId, Summary), FormatError>;

fn trailer(file: &dyn File, length: u64) -> Result<Trailer, ReadError> {
    let mut bytes = vec![0; FIXED_BYTES];
    let found = file.read_at(length.saturating_sub(FIXED_BYTES as u64), &mut bytes)?;
    bytes.truncate(found);
    Ok(decode_trailer(&bytes))
}
