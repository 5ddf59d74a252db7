//! Bytes of the activity log. Only this file knows its offsets; `ACTIVITY.md` beside the capture room describes them.

use crate::types::{ACTIVITY_EXTENT, DISK_MAX, DISKS_MAX, DiskId, Extent, GroupId, Lsn, SECTOR, Timeline};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Bytes of one header copy.
pub(crate) const HEADER_BYTES: u64 = 8192;
/// Where the bitmap begins, in bytes: after both header copies.
pub(crate) const BITMAP_OFFSET: u64 = 2 * HEADER_BYTES;
/// Bits in one sector of the bitmap.
pub(crate) const SECTOR_BITS: u64 = (SECTOR - 4) * 8;
/// Words in memory for one sector's bits; the last one is half used.
pub(crate) const SECTOR_WORDS: usize = 64;
/// The longest opaque facts about a source, in bytes.
pub const FACTS_MAX: usize = 64;

const MAGIC: [u8; 8] = *b"CDPACTLG";
const VERSION: u16 = 1;
const TABLE_OFFSET: usize = 128;
const ENTRY_BYTES: usize = 96;
const CRC_OFFSET: usize = HEADER_BYTES as usize - 4;

const _: () = assert!(TABLE_OFFSET + DISKS_MAX * ENTRY_BYTES <= CRC_OFFSET, "the table of disks fits into a header");
const _: () = assert!(SECTOR_WORDS as u64 * 64 >= SECTOR_BITS, "the words of a sector hold its bits");

/// What the log says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LogState {
    /// A filter runs, or stopped without saying so: what is marked may differ.
    Open = 1,
    /// The last stop was clean: nothing differs, if nobody else changed the sources.
    Clean = 2,
    /// The disks were not compared to the end (seeding, full check): anything may differ.
    AllUnknown = 3,
}

/// A disk in the header's table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) id: DiskId,
    pub(crate) size: u64,
    /// Number of its first sector in the bitmap.
    pub(crate) first_sector: u64,
    pub(crate) facts: Vec<u8>,
}

/// A header, in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) state: LogState,
    pub(crate) group: GroupId,
    pub(crate) timeline: Timeline,
    pub(crate) generation: u64,
    pub(crate) reserved_through: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) disks: Vec<Entry>,
}

/// Bits of the log's bitmap for a disk of `size` bytes.
pub(crate) fn extents_of(size: u64) -> u64 {
    size.div_ceil(ACTIVITY_EXTENT)
}

/// Sectors of the log's bitmap for a disk of `size` bytes.
pub(crate) fn sectors_of(size: u64) -> u64 {
    extents_of(size).div_ceil(SECTOR_BITS)
}

/// Where a sector of the bitmap lies in the file, in bytes.
pub(crate) fn sector_offset(sector: u64) -> u64 {
    BITMAP_OFFSET + sector * SECTOR
}

/// Where a header copy (0 or 1) lies in the file, in bytes.
pub(crate) fn header_offset(copy: usize) -> u64 {
    copy as u64 * HEADER_BYTES
}

pub(crate) fn encode_header(header: &Header) -> Bytes {
    let mut out = vec![0u8; HEADER_BYTES as usize];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10] = header.state as u8;
    out[12..14].copy_from_slice(&(header.disks.len() as u16).to_le_bytes());
    out[16..32].copy_from_slice(header.group.bytes());
    out[32..48].copy_from_slice(header.timeline.bytes());
    out[48..56].copy_from_slice(&header.generation.to_le_bytes());
    out[56..64].copy_from_slice(&header.reserved_through.0.to_le_bytes());
    out[64..72].copy_from_slice(&header.durable.0.to_le_bytes());
    out[72..76].copy_from_slice(&(ACTIVITY_EXTENT as u32).to_le_bytes());
    for (at, disk) in header.disks.iter().enumerate() {
        let entry = &mut out[TABLE_OFFSET + at * ENTRY_BYTES..][..ENTRY_BYTES];
        entry[0..2].copy_from_slice(&disk.id.get().to_le_bytes());
        entry[2] = disk.facts.len() as u8;
        entry[8..16].copy_from_slice(&disk.size.to_le_bytes());
        entry[16..24].copy_from_slice(&disk.first_sector.to_le_bytes());
        entry[24..24 + disk.facts.len()].copy_from_slice(&disk.facts);
    }
    let crc = crc32c::crc32c(&out[..CRC_OFFSET]);
    out[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
    Bytes::from(out)
}

/// The seed of a bitmap sector's CRC: a sector that belongs elsewhere, or to another group, never passes.
fn sector_seed(group: GroupId, disk: DiskId, sector_of_disk: u64) -> u32 {
    let mut seed = [0u8; 26];
    seed[..16].copy_from_slice(group.bytes());
    seed[16..18].copy_from_slice(&disk.get().to_le_bytes());
    seed[18..].copy_from_slice(&sector_of_disk.to_le_bytes());
    crc32c::crc32c(&seed)
}

pub(crate) fn encode_sector(group: GroupId, disk: DiskId, sector_of_disk: u64, words: &[u64], out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out.truncate(begin + SECTOR as usize - 4);
    let crc = crc32c::crc32c_append(sector_seed(group, disk, sector_of_disk), &out[begin..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Makes the fixed fields and the checksum of a header right, whatever else stands in it.
#[cfg(feature = "fuzzing")]
pub(crate) fn seal_header(bytes: &mut [u8]) {
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[72..76].copy_from_slice(&(ACTIVITY_EXTENT as u32).to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
    bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
}

/// Makes the checksum of a sector of the bitmap right.
#[cfg(feature = "fuzzing")]
pub(crate) fn seal_sector(group: GroupId, disk: DiskId, sector_of_disk: u64, bytes: &mut [u8]) {
    let (bits, crc) = bytes.split_at_mut(SECTOR as usize - 4);
    let right = crc32c::crc32c_append(sector_seed(group, disk, sector_of_disk), bits);
    crc.copy_from_slice(&right.to_le_bytes());
}

/// What is wrong with one header copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderFault {
    /// The file ends inside it.
    #[error("the file ends inside it")]
    Short,
    /// It does not begin as an activity log does.
    #[error("it is not a header of an activity log")]
    Magic,
    /// Made by a newer release.
    #[error("it has version {found}, this release reads {VERSION}")]
    Version {
        /// What it says.
        found: u16,
    },
    /// Torn, or flipped.
    #[error("its checksum is {found:08x}, not {expected:08x}")]
    Checksum {
        /// Over what is there.
        expected: u32,
        /// What is stored.
        found: u32,
    },
    /// It passes its checksum and says something impossible.
    #[error("its field `{field}` is impossible")]
    Field {
        /// Which.
        field: &'static str,
    },
}

/// Why a log cannot be used: everything is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// Neither header copy is good.
    #[error("the activity log has no good header (first: {first}; second: {second}): everything may differ")]
    Headers {
        /// The copy at the file's begin.
        first: HeaderFault,
        /// The copy after it.
        second: HeaderFault,
    },
    /// The log is that of another group.
    #[error("the activity log belongs to group {found}, not to {expected}")]
    OtherGroup {
        /// Whose log was wanted.
        expected: GroupId,
        /// Whose it is.
        found: GroupId,
    },
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn identity(bytes: &[u8], at: usize) -> [u8; 16] {
    std::array::from_fn(|i| bytes[at + i])
}

pub(crate) fn decode_header(bytes: &[u8]) -> Result<Header, HeaderFault> {
    let field = |field| HeaderFault::Field { field };
    let bytes = bytes.get(..HEADER_BYTES as usize).ok_or(HeaderFault::Short)?;
    if bytes[..8] != MAGIC {
        return Err(HeaderFault::Magic);
    }
    let found = u32::from_le_bytes(std::array::from_fn(|i| bytes[CRC_OFFSET + i]));
    let expected = crc32c::crc32c(&bytes[..CRC_OFFSET]);
    if found != expected {
        return Err(HeaderFault::Checksum { expected, found });
    }
    let version = u16_at(bytes, 8);
    if version != VERSION {
        return Err(HeaderFault::Version { found: version });
    }
    let state = [LogState::Open, LogState::Clean, LogState::AllUnknown];
    let state = state.into_iter().find(|state| *state as u8 == bytes[10]).ok_or(field("state"))?;
    if u32::from_le_bytes(std::array::from_fn(|i| bytes[72 + i])) != ACTIVITY_EXTENT as u32 {
        return Err(field("extent bytes"));
    }
    let generation = u64_at(bytes, 48);
    if generation == 0 {
        return Err(field("generation"));
    }
    Ok(Header {
        state,
        group: GroupId::new(identity(bytes, 16)).ok_or(field("group"))?,
        timeline: Timeline::new(identity(bytes, 32)).ok_or(field("timeline"))?,
        generation,
        reserved_through: Lsn(u64_at(bytes, 56)),
        durable: Lsn(u64_at(bytes, 64)),
        disks: decode_table(bytes, usize::from(u16_at(bytes, 12)))?,
    })
}

fn decode_table(bytes: &[u8], count: usize) -> Result<Vec<Entry>, HeaderFault> {
    let field = |field| HeaderFault::Field { field };
    if count == 0 || count > DISKS_MAX {
        return Err(field("disk count"));
    }
    let mut disks: Vec<Entry> = Vec::with_capacity(count);
    let mut first_sector = 0;
    let mut seen = BTreeSet::new();
    for at in 0..count {
        let entry = &bytes[TABLE_OFFSET + at * ENTRY_BYTES..][..ENTRY_BYTES];
        let id = DiskId::new(u16_at(entry, 0)).filter(|id| seen.insert(*id)).ok_or(field("disk id"))?;
        let size = u64_at(entry, 8);
        if size == 0 || size > DISK_MAX || !size.is_multiple_of(SECTOR) {
            return Err(field("disk size"));
        }
        if u64_at(entry, 16) != first_sector {
            return Err(field("first sector"));
        }
        let facts = entry[24..].get(..usize::from(entry[2])).filter(|facts| facts.len() <= FACTS_MAX);
        let facts = facts.ok_or(field("facts"))?.to_vec();
        disks.push(Entry { id, size, first_sector, facts });
        first_sector += sectors_of(size);
    }
    Ok(disks)
}

/// A disk as the log found knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogDisk {
    /// The disk.
    pub id: DiskId,
    /// Its size then, in bytes.
    pub size: u64,
    /// What the driver said about the source at the clean stop.
    pub facts: Vec<u8>,
    /// What may differ from the replica: runs of whole 4 MiB extents, ascending, cut at the disk's end.
    pub hot: Vec<Extent>,
    /// Sectors of the bitmap that were missing or damaged; all their extents are in `hot`.
    pub damaged_sectors: u64,
}

/// A log that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogContents {
    /// Whose it is.
    pub group: GroupId,
    /// The timeline of the filter that wrote it.
    pub timeline: Timeline,
    /// Of the header; grows with each header written.
    pub generation: u64,
    /// What it says.
    pub state: LogState,
    /// No LSN above this was ever given, if the log is to be believed.
    pub reserved_through: Lsn,
    /// What was known to be durable when the header was written.
    pub durable: Lsn,
    /// The group's disks.
    pub disks: Vec<LogDisk>,
    /// Which header copy this is from; the other one is rewritten first.
    pub(crate) copy: usize,
}

impl LogContents {
    /// Reads a whole log. `bytes` are the file's; a file that is too short counts as damaged where it ends.
    ///
    /// # Errors
    /// When no header copy is good or the log is another group's: then everything may differ.
    pub fn read(bytes: &[u8], group: GroupId) -> Result<Self, LogError> {
        let (header, copy) = newest_header(bytes)?;
        if header.group != group {
            return Err(LogError::OtherGroup { expected: group, found: header.group });
        }
        Ok(Self::of(bytes, &header, copy))
    }

    /// The same of a log of whichever group: what it says is of [`LogContents::group`] and of nobody else.
    ///
    /// # Errors
    /// When no header copy is good.
    pub fn read_any(bytes: &[u8]) -> Result<Self, LogError> {
        let (header, copy) = newest_header(bytes)?;
        Ok(Self::of(bytes, &header, copy))
    }

    fn of(bytes: &[u8], header: &Header, copy: usize) -> Self {
        Self {
            group: header.group,
            timeline: header.timeline,
            generation: header.generation,
            state: header.state,
            reserved_through: header.reserved_through,
            durable: header.durable,
            disks: header.disks.iter().map(|disk| read_disk(bytes, header.group, disk)).collect(),
            copy,
        }
    }

    /// How many bytes may differ, over all disks.
    #[must_use]
    pub fn hot_bytes(&self) -> u64 {
        self.disks.iter().flat_map(|disk| &disk.hot).map(|run| run.length).sum()
    }
}

/// The good header of the higher generation, and which copy it is.
fn newest_header(bytes: &[u8]) -> Result<(Header, usize), LogError> {
    let copy_at = |copy| decode_header(bytes.get(header_offset(copy) as usize..).unwrap_or_default());
    match (copy_at(0), copy_at(1)) {
        (Ok(first), Ok(second)) if second.generation > first.generation => Ok((second, 1)),
        (Ok(first), _) => Ok((first, 0)),
        (Err(_), Ok(second)) => Ok((second, 1)),
        (Err(first), Err(second)) => Err(LogError::Headers { first, second }),
    }
}

fn read_disk(bytes: &[u8], group: GroupId, disk: &Entry) -> LogDisk {
    let mut runs = Runs { size: disk.size, hot: Vec::new() };
    let mut damaged_sectors = 0;
    let extents = extents_of(disk.size);
    let sectors = sectors_of(disk.size);
    // Beyond the file's end everything is damaged at once: the work is bounded by the file, not by what the header says.
    let present = (bytes.len() as u64).saturating_sub(sector_offset(disk.first_sector)) / SECTOR;
    for sector in 0..sectors.min(present) {
        let first = sector * SECTOR_BITS;
        let here = SECTOR_BITS.min(extents - first);
        let at = sector_offset(disk.first_sector + sector) as usize;
        match read_sector(&bytes[at..at + SECTOR as usize], sector_seed(group, disk.id, sector), here) {
            Some(bits) => (0..here)
                .filter(|bit| bits[(bit / 8) as usize] >> (bit % 8) & 1 == 1)
                .for_each(|bit| runs.add(first + bit, 1)),
            None => {
                damaged_sectors += 1;
                runs.add(first, here);
            }
        }
    }
    if present < sectors {
        damaged_sectors += sectors - present;
        runs.add(present * SECTOR_BITS, extents - present * SECTOR_BITS);
    }
    LogDisk { id: disk.id, size: disk.size, facts: disk.facts.clone(), hot: runs.hot, damaged_sectors }
}

/// The bits of a sector that passes its checksum and sets no bit beyond `here`, where the disk ends.
fn read_sector(sector: &[u8], seed: u32, here: u64) -> Option<&[u8]> {
    let (bits, crc) = sector.split_at(SECTOR as usize - 4);
    let clean_tail = (here..SECTOR_BITS).all(|bit| bits[(bit / 8) as usize] >> (bit % 8) & 1 == 0);
    (crc32c::crc32c_append(seed, bits).to_le_bytes() == crc && clean_tail).then_some(bits)
}

struct Runs {
    size: u64,
    hot: Vec<Extent>,
}

impl Runs {
    fn add(&mut self, extent: u64, count: u64) {
        let offset = extent * ACTIVITY_EXTENT;
        let end = ((extent + count) * ACTIVITY_EXTENT).min(self.size);
        match self.hot.last_mut() {
            Some(run) if run.end() == offset => run.length = end - run.offset,
            _ => self.hot.push(Extent::new(offset, end - offset)),
        }
    }
}
