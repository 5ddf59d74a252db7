//! When what of the activity log is written, and whether it can be trusted.
//!
//! One write is under way at a time; whatever becomes due meanwhile goes into the next one. A header goes to one copy, and
//! when that is synced to the other; what it says counts when both have it. Phases:
//!
//! ```text
//! Settling --sectors, then both headers written--> Good --a write fails or is late--> Lost --pause--> Probing
//!    ^                                                                                  ^                |
//!    +------------------------------ every sector was written --------------------------)----------------+
//! ```
//! Ops wait for their bits in `Settling` and `Good`. In `Lost` and `Probing` they don't: nobody believes the log then.

use super::codec::{
    Entry, Header, LogContents, LogState, SECTOR_WORDS, encode_header, encode_sector, header_offset, sector_offset,
};
use super::{FACTS_MAX, Limits, Region};
use crate::capture::output::{Failed, LogToken, LogTrust, LogWrite};
use crate::types::{DiskId, GroupId, Lsn, MonoTime, SECTOR, Timeline};
use bytes::Bytes;

/// How many LSNs are reserved at a time, ahead of need.
pub(crate) const RESERVATION: u64 = 1 << 24;
/// How far above the generations that the replica knows a log begins when none was found (or none that is believed): an older
/// one that was only unreadable for a while, and comes back, is below.
const GENERATION_JUMP: u64 = 1 << 32;
/// The first pause after the log was lost, in nanoseconds; it doubles.
const RETRY_NS_MIN: u64 = 1_000_000_000;
/// The longest pause before the log is tried again, in nanoseconds.
const RETRY_NS_MAX: u64 = 30_000_000_000;

/// Opaque facts about a source, at most [`FACTS_MAX`] bytes.
pub(in crate::capture) type Facts = (DiskId, Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The log on disk becomes that of this filter. Headers follow when the sectors that were due at first are written.
    Settling {
        sectors_done: bool,
    },
    Good,
    /// The log could not be written (in time), and its file still says what it said: ops wait for its removal, at most until
    /// then, unless the file marks what they touch.
    Removing {
        until: MonoTime,
        error: Option<Failed>,
    },
    Lost {
        retry_at: MonoTime,
    },
    Probing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Removal {
    None,
    Wanted,
    Asked,
}

/// The bits of a sector as they were written.
type Snapshot = [u64; SECTOR_WORDS];

#[derive(Debug)]
struct InFlight {
    token: LogToken,
    sectors: Vec<(usize, usize, Box<Snapshot>)>,
    header: Option<(usize, u64)>,
}

/// The log on disk.
#[derive(Debug)]
pub(in crate::capture) struct Writer {
    header: Header,
    facts: Vec<Facts>,
    /// The generation that is durable in each header copy.
    copies: [u64; 2],
    phase: Phase,
    /// Was good or lost once: the header on disk is of this filter, or not believed.
    ready: bool,
    /// What both copies of the header on disk say was durable at the replica.
    witnessed: Lsn,
    /// Since when the header on disk, in either copy, is of the timeline before: no record of this one leaves.
    forked: Option<MonoTime>,
    in_flight: Option<InFlight>,
    /// Whether the removal of the file is to be asked for, or was and is not answered. Nothing is written meanwhile.
    removal: Removal,
    tokens: u64,
    pause_ns: u64,
    wait_ns_max: u64,
    remove_ns_max: u64,
    /// When the first write was issued.
    begun: Option<MonoTime>,
    /// LSNs up to here may be given.
    reserved: Lsn,
    last_lsn: Lsn,
    trust: Option<LogTrust>,
    untold: Option<LogTrust>,
    pub(in crate::capture) writes: u64,
}

impl Writer {
    pub(super) fn new(group: GroupId, timeline: Timeline, found: Option<&LogContents>, limits: Limits) -> Self {
        let mut copies = [0; 2];
        if let Some(found) = found {
            copies[found.copy] = found.generation;
        }
        let above = limits.generation_least;
        let generation = found.map_or(above.saturating_add(GENERATION_JUMP), |found| found.generation.max(above)) + 1;
        let header = Header {
            state: LogState::Open,
            group,
            timeline,
            generation,
            reserved_through: Lsn::ZERO,
            durable: limits.durable,
            disks: Vec::new(),
        };
        Self {
            header,
            facts: Vec::new(),
            copies,
            phase: Phase::Settling { sectors_done: false },
            ready: false,
            witnessed: Lsn::ZERO,
            forked: None,
            in_flight: None,
            removal: Removal::None,
            tokens: 0,
            pause_ns: 0,
            wait_ns_max: limits.wait_ns_max,
            remove_ns_max: limits.remove_ns_max,
            begun: None,
            reserved: Lsn::ZERO,
            last_lsn: Lsn::ZERO,
            trust: None,
            untold: None,
            writes: 0,
        }
    }

    /// Up to where whoever reads the log on disk, either copy of its header, knows that the replica was durable.
    pub(super) fn witnessed(&self) -> Lsn {
        self.witnessed
    }

    /// Whether ops wait for their bits.
    pub(in crate::capture) fn holds(&self) -> bool {
        matches!(self.phase, Phase::Settling { .. } | Phase::Good | Phase::Removing { .. })
    }

    /// Whether an op whose bits are safe may run.
    pub(in crate::capture) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether LSNs up to this one may leave the filter. While the log is lost it does not limit them: the next start will not
    /// believe it and begin [`super::super::LSN_JUMP`] above everything that is known.
    pub(in crate::capture) fn may_give(&self, lsn: Lsn) -> bool {
        let counts = matches!(self.phase, Phase::Good | Phase::Removing { .. });
        self.forked.is_none() && (lsn <= self.reserved || !(counts || self.trust.is_none()))
    }

    /// The filter goes on under another timeline, with a replica that is durable up to `durable`, be that less than before.
    pub(in crate::capture) fn fork(&mut self, now: MonoTime, timeline: Timeline, durable: Lsn) {
        (self.header.timeline, self.header.durable) = (timeline, durable);
        self.witnessed = self.witnessed.min(durable);
        // While the log is lost no header of the parent lies anywhere that is believed.
        self.forked = self.holds().then_some(now);
        self.renew_header();
    }

    /// Whether a start that finds the file, or finds none, compares everything.
    pub(in crate::capture) fn says_all_unknown(&self) -> bool {
        let written = self.phase == Phase::Good && self.header_is_written();
        (written && self.header.state == LogState::AllUnknown) || !self.holds()
    }

    /// Renews the reservation when half of it is used. Returns the LSN at which to ask again.
    pub(in crate::capture) fn reserve(&mut self, last_lsn: Lsn) -> Lsn {
        self.last_lsn = last_lsn;
        if last_lsn.0 + RESERVATION / 2 >= self.header.reserved_through.0 {
            self.header.reserved_through = Lsn(last_lsn.0 + RESERVATION);
            self.renew_header();
        }
        let half = Lsn(self.header.reserved_through.0 - RESERVATION / 2);
        if self.phase == Phase::Good { half.min(self.reserved.next()) } else { half }
    }

    /// The header says something new.
    pub(in crate::capture) fn renew_header(&mut self) {
        // A generation that no copy has yet can still change; one that is being written or written cannot.
        let issued = self.in_flight.as_ref().and_then(|write| write.header).map_or(0, |(_, generation)| generation);
        if self.header.generation <= self.copies[0].max(self.copies[1]).max(issued) {
            self.header.generation += 1;
        }
    }

    pub(in crate::capture) fn set_state(&mut self, state: LogState) {
        if self.header.state != state {
            self.header.state = state;
            self.renew_header();
        }
    }

    pub(in crate::capture) fn set_facts(&mut self, mut facts: Vec<Facts>) {
        facts.iter_mut().for_each(|(_, facts)| facts.truncate(FACTS_MAX));
        self.facts = facts;
        self.renew_header();
    }

    /// Facts of one more source.
    pub(in crate::capture) fn add_facts(&mut self, disk: DiskId, mut facts: Vec<u8>) {
        facts.truncate(FACTS_MAX);
        self.facts.retain(|(known, _)| *known != disk);
        self.facts.push((disk, facts));
        self.renew_header();
    }

    /// The reservation ends with the last LSN: nothing above it was given, nothing will be.
    pub(in crate::capture) fn end_reservation(&mut self, last_lsn: Lsn) {
        self.header.reserved_through = last_lsn;
        self.renew_header();
    }

    pub(in crate::capture) fn trust(&self) -> Option<LogTrust> {
        self.trust
    }

    /// What is to be told about the log's trust, once.
    pub(in crate::capture) fn take_untold(&mut self) -> Option<LogTrust> {
        self.untold.take()
    }

    /// A lost log is tried again at once: it is its last word.
    pub(in crate::capture) fn hurry(&mut self) {
        if let Phase::Lost { retry_at } = &mut self.phase {
            *retry_at = MonoTime(0);
        }
    }

    /// When a lost log is tried again.
    pub(in crate::capture) fn retry_due(&self) -> Option<MonoTime> {
        match self.phase {
            Phase::Lost { retry_at } if self.in_flight.is_none() && self.removal == Removal::None => Some(retry_at),
            _ => None,
        }
    }

    /// When whoever waits has waited long enough. `op`: since when an op waits for its bits.
    pub(in crate::capture) fn wait_due(&self, op: Option<MonoTime>) -> Option<MonoTime> {
        if let Phase::Removing { until, .. } = self.phase {
            return Some(until);
        }
        // Until it is good for the first time everything waits for it; after a fork every record does.
        let settling = self.begun.filter(|_| self.trust.is_none());
        let since = op.into_iter().chain(self.forked).filter(|_| self.holds()).chain(settling).min()?;
        Some(since.after(self.wait_ns_max))
    }

    /// Whether the log's file is to be removed now.
    pub(in crate::capture) fn take_removal(&mut self) -> bool {
        let wanted = self.removal == Removal::Wanted;
        if wanted {
            self.removal = Removal::Asked;
        }
        wanted
    }

    /// The write under way says nothing about these regions: their sectors lie elsewhere now.
    pub(super) fn forget(&mut self, moved: impl Fn(usize) -> bool) {
        if let Some(write) = &mut self.in_flight {
            write.sectors.retain(|(at, ..)| !moved(*at));
        }
    }

    /// Whether both copies on disk say what it says.
    pub(super) fn header_is_written(&self) -> bool {
        self.copies == [self.header.generation; 2]
    }

    /// Whether everything that the log should say is on disk.
    pub(in crate::capture) fn is_written(&self) -> bool {
        self.phase == Phase::Good && self.in_flight.is_none() && self.header_is_written()
    }

    fn tell(&mut self, trust: LogTrust) {
        (self.trust, self.untold) = (Some(trust), Some(trust));
    }

    /// The log could not be written (in time), or its removal takes too long.
    pub(super) fn lose(&mut self, regions: &mut [Region], now: MonoTime, error: Option<Failed>) {
        match self.phase {
            Phase::Lost { .. } => {}
            Phase::Removing { until, error } if until <= now => self.lost(regions, now, error, true),
            Phase::Removing { .. } => {}
            // The file has no header yet that could be believed, and ops do not wait.
            Phase::Probing => self.lost(regions, now, error, false),
            Phase::Settling { .. } | Phase::Good => {
                self.phase = Phase::Removing { until: now.after(self.remove_ns_max), error };
                if self.removal == Removal::None {
                    self.removal = Removal::Wanted;
                }
            }
        }
    }

    /// From here on ops do not wait for the log, whether its file can be removed or not.
    pub(super) fn give_up(&mut self, regions: &mut [Region], now: MonoTime) {
        self.lose(regions, now, None);
        if let Phase::Removing { error, .. } = self.phase {
            self.lost(regions, now, error, true);
        }
    }

    /// From here on ops do not wait for the log.
    fn lost(&mut self, regions: &mut [Region], now: MonoTime, error: Option<Failed>, told: bool) {
        for region in regions {
            region.safe.fill(0);
            region.stale.fill(true);
        }
        (self.ready, self.witnessed, self.forked) = (true, Lsn::ZERO, None);
        self.pause_ns = (self.pause_ns * 2).clamp(RETRY_NS_MIN, RETRY_NS_MAX);
        // One that was only late, and has ended since, is tried again at once.
        let pause = if error.is_none() && self.in_flight.is_none() { 0 } else { self.pause_ns };
        self.phase = Phase::Lost { retry_at: now.after(pause) };
        if told {
            self.tell(LogTrust::Lost { generation: self.header.generation, error });
        }
    }

    /// The removal of the file ended, well or not.
    pub(super) fn removed(&mut self, regions: &mut [Region], now: MonoTime) -> Option<()> {
        if self.removal != Removal::Asked {
            return None;
        }
        self.removal = Removal::None;
        if let Phase::Removing { error, .. } = self.phase {
            self.lost(regions, now, error, true);
        }
        Some(())
    }

    pub(super) fn next_write(
        &mut self,
        regions: &mut [Region],
        now: MonoTime,
        durable: Lsn,
        due: bool,
    ) -> Option<LogWrite> {
        if self.in_flight.is_some() || self.removal != Removal::None {
            return None;
        }
        match self.phase {
            Phase::Lost { retry_at } if now < retry_at => return None,
            Phase::Lost { .. } => {
                self.phase = Phase::Probing;
                // Above all that may be on disk and was declared lost; probing itself writes no header.
                if matches!(self.trust, Some(LogTrust::Lost { generation, .. }) if generation >= self.header.generation)
                {
                    self.header.generation += 1;
                }
                if self.header.state != LogState::Clean {
                    self.header.reserved_through = Lsn(self.last_lsn.0 + RESERVATION);
                }
                self.copies = [0; 2];
            }
            _ => {}
        }
        let any_stale = regions.iter().any(|region| region.stale.contains(&true));
        if self.phase == (Phase::Settling { sectors_done: false }) && !any_stale {
            self.phase = Phase::Settling { sectors_done: true };
        }
        let with_header = match self.phase {
            Phase::Good | Phase::Settling { sectors_done: true } => !self.header_is_written(),
            _ => false,
        };
        let with_sectors = any_stale && (due || with_header || self.phase != Phase::Good);
        self.begun.get_or_insert(now);
        (with_header || with_sectors).then(|| self.issue(regions, durable, with_header))
    }

    fn issue(&mut self, regions: &mut [Region], durable: Lsn, with_header: bool) -> LogWrite {
        self.tokens += 1;
        self.writes += 1;
        let token = LogToken(self.tokens);
        let mut writes = Vec::new();
        let header = with_header.then(|| {
            let copy = usize::from(self.copies[1] < self.copies[0]);
            if self.copies[copy ^ 1] != self.header.generation {
                self.header.durable = self.header.durable.max(durable);
                self.header.disks = self.table(regions);
            }
            writes.push((header_offset(copy), encode_header(&self.header)));
            (copy, self.header.generation)
        });
        let mut sectors = Vec::new();
        for (at, region) in regions.iter_mut().enumerate() {
            issue_region(self.header.group, at, region, &mut writes, &mut sectors);
        }
        self.in_flight = Some(InFlight { token, sectors, header });
        LogWrite { token, begins: self.phase == Phase::Probing, writes }
    }

    fn table(&self, regions: &[Region]) -> Vec<Entry> {
        let facts = |disk| self.facts.iter().find(|(id, _)| *id == disk).map(|(_, facts)| facts.clone());
        let entry = |region: &Region| Entry {
            id: region.disk,
            size: region.size,
            first_sector: region.first_sector,
            facts: facts(region.disk).unwrap_or_default(),
        };
        regions.iter().filter(|region| !region.gone).map(entry).collect()
    }

    pub(super) fn written(
        &mut self,
        regions: &mut [Region],
        now: MonoTime,
        token: LogToken,
        result: Result<(), Failed>,
    ) -> Option<()> {
        let write = self.in_flight.take_if(|write| write.token == token)?;
        if let Err(error) = result {
            self.lose(regions, now, Some(error));
            return Some(());
        }
        if matches!(self.phase, Phase::Removing { .. }) {
            // Into a file that nobody finds any more, or soon will not.
            return Some(());
        }
        if let Phase::Lost { retry_at } = &mut self.phase {
            // It was only late: try again at once, with everything that changed since.
            *retry_at = now;
            return Some(());
        }
        for (at, sector, snapshot) in write.sectors {
            let region = &mut regions[at];
            let safe = &mut region.safe[sector * SECTOR_WORDS..][..SECTOR_WORDS];
            safe.iter_mut().zip(snapshot.iter()).for_each(|(safe, bits)| *safe |= bits);
        }
        if let Some((copy, generation)) = write.header {
            self.copies[copy] = generation;
        }
        self.advance();
        Some(())
    }

    fn advance(&mut self) {
        match self.phase {
            Phase::Probing => self.phase = Phase::Settling { sectors_done: false },
            Phase::Settling { sectors_done: false } => self.phase = Phase::Settling { sectors_done: true },
            _ if self.header_is_written() => {
                (self.reserved, self.witnessed) = (self.header.reserved_through, self.header.durable);
                self.forked = None;
                if self.phase != Phase::Good {
                    (self.phase, self.ready, self.pause_ns) = (Phase::Good, true, 0);
                    self.tell(LogTrust::Good { generation: self.header.generation });
                }
            }
            _ => {}
        }
    }
}

/// Encodes a region's stale sectors, neighbours in one buffer; what is not marked any more is no longer safe.
fn issue_region(
    group: GroupId,
    at: usize,
    region: &mut Region,
    writes: &mut Vec<(u64, Bytes)>,
    sectors: &mut Vec<(usize, usize, Box<Snapshot>)>,
) {
    let mut sector = 0;
    while sector < region.stale.len() {
        let begin = sector;
        let mut buffer = Vec::new();
        while region.stale.get(sector) == Some(&true) {
            let words = sector * SECTOR_WORDS..(sector + 1) * SECTOR_WORDS;
            let want = &region.want[words.clone()];
            encode_sector(group, region.disk, sector as u64, want, &mut buffer);
            let mut snapshot = Box::new([0; SECTOR_WORDS]);
            snapshot.copy_from_slice(want);
            region.safe[words].iter_mut().zip(snapshot.iter()).for_each(|(safe, bits)| *safe &= bits);
            region.stale[sector] = false;
            sectors.push((at, sector, snapshot));
            sector += 1;
        }
        if !buffer.is_empty() {
            debug_assert_eq!(buffer.len() as u64, (sector - begin) as u64 * SECTOR);
            writes.push((sector_offset(region.first_sector + begin as u64), Bytes::from(buffer)));
        }
        sector += 1;
    }
}
