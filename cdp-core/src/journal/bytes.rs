//! Small codec tools: every block of ours begins with the same sixteen bytes and is covered by one CRC32C.
//!
//! | offset | bytes | field |
//! |---:|---:|---|
//! | 0 | 8 | magic, the last byte is 1 |
//! | 8 | 2 | version, from 1 |
//! | 10 | 2 | flags; bits a reader does not know are refused |
//! | 12 | 4 | CRC32C of the whole block with this field as zeros |

/// What is wrong with bytes that should be a block of the journal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than needed.
    #[error("{what} cut short: {found} bytes of {expected}")]
    Short {
        /// Which block.
        what: &'static str,
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The first bytes are others.
    #[error("not a {what}: the first bytes are {found:02x?}")]
    Magic {
        /// Which block was expected.
        what: &'static str,
        /// What stands there.
        found: [u8; 8],
    },
    /// Made by another version of the software.
    #[error("{what} of format version {found}; this software reads version {expected}")]
    Version {
        /// Which block.
        what: &'static str,
        /// The version this software reads.
        expected: u16,
        /// What stands there.
        found: u16,
    },
    /// The bytes are not what was written.
    #[error("{what} damaged: CRC32C {found:08x}, expected {expected:08x}")]
    Checksum {
        /// Which block.
        what: &'static str,
        /// What stands there.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// A field has a value that no writer gives it.
    #[error("{what}: field `{field}` has the impossible value {value}")]
    Field {
        /// Which block.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// A whole and valid block that belongs to another file or place.
    #[error("{what}: `{field}` is {found}, expected {expected}: it belongs elsewhere")]
    Foreign {
        /// Which block.
        what: &'static str,
        /// Which field says so.
        field: &'static str,
        /// What it should say.
        expected: String,
        /// What it says.
        found: String,
    },
}

/// Bytes of the common prefix.
pub(super) const PREFIX: usize = 16;
const CRC_AT: std::ops::Range<usize> = 12..16;
/// Memory for so many entries of a list is taken before the first is looked at; for more when they are there.
const LIST_AT_ONCE: usize = 1024;

/// Appends fields, little endian.
#[derive(Default)]
pub(super) struct Put(pub(super) Vec<u8>);

impl Put {
    /// Begins a block.
    pub(super) fn begin(magic: [u8; 8], version: u16, flags: u16) -> Self {
        let mut put = Self(Vec::with_capacity(512));
        put.bytes(&magic).u16(version).u16(flags).u32(0);
        put
    }
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }
    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.u16(text.len() as u16).bytes(text.as_bytes())
    }
    /// Fills up to `length` with zeros and sets the checksum.
    pub(super) fn finish(mut self, length: usize) -> Vec<u8> {
        debug_assert!(self.0.len() <= length, "a block of {} bytes has no room in {length}", self.0.len());
        self.0.resize(length, 0);
        let crc = crc32c::crc32c(&self.0);
        self.0[CRC_AT].copy_from_slice(&crc.to_le_bytes());
        self.0
    }
}

/// Takes fields, trusting nothing.
#[derive(Clone, Debug)]
pub(super) struct Take<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Take<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// Begins a block of `bytes.len()` bytes: magic, version, checksum and flags are checked; gives the flags.
    pub(super) fn begin(
        what: &'static str,
        bytes: &'a [u8],
        magic: [u8; 8],
        version: u16,
        known_flags: u16,
    ) -> Result<(Self, u16), FormatError> {
        let mut take = Self::new(what, bytes);
        let found: [u8; 8] = take.array()?;
        if found != magic {
            return Err(FormatError::Magic { what, found });
        }
        let found = take.u16()?;
        if found != version {
            return Err(FormatError::Version { what, expected: version, found });
        }
        let flags = take.u16()?;
        let expected = take.u32()?;
        let crc = crc32c::crc32c(&bytes[..CRC_AT.start]);
        let found = crc32c::crc32c_append(crc32c::crc32c_append(crc, &[0; 4]), &bytes[CRC_AT.end..]);
        if found != expected {
            return Err(FormatError::Checksum { what, expected, found });
        }
        if flags & !known_flags != 0 {
            return Err(take.field("flags", u64::from(flags)));
        }
        Ok((take, flags))
    }
    pub(super) fn field(&self, field: &'static str, value: u64) -> FormatError {
        FormatError::Field { what: self.what, field, value }
    }
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else {
            return Err(FormatError::Short { what: self.what, expected: count as u64, found: self.rest.len() as u64 });
        };
        self.rest = rest;
        Ok(bytes)
    }
    /// Takes so many bytes, for fields of their own.
    pub(super) fn part(&mut self, count: usize) -> Result<Self, FormatError> {
        Ok(Self::new(self.what, self.bytes(count)?))
    }
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }
    pub(super) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }
    pub(super) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// A number that must hold a condition.
    pub(super) fn u64_if(&mut self, field: &'static str, holds: impl Fn(u64) -> bool) -> Result<u64, FormatError> {
        let value = self.u64()?;
        if holds(value) { Ok(value) } else { Err(self.field(field, value)) }
    }
    pub(super) fn u32_if(&mut self, field: &'static str, holds: impl Fn(u32) -> bool) -> Result<u32, FormatError> {
        let value = self.u32()?;
        if holds(value) { Ok(value) } else { Err(self.field(field, u64::from(value))) }
    }
    /// A number of a small set; `None` from `of` is refused.
    pub(super) fn kind<T>(&mut self, field: &'static str, of: impl Fn(u8) -> Option<T>) -> Result<T, FormatError> {
        let value = self.u8()?;
        of(value).ok_or_else(|| self.field(field, u64::from(value)))
    }
    /// An identity, which is never zero.
    pub(super) fn id<T>(&mut self, field: &'static str, of: impl Fn([u8; 16]) -> Option<T>) -> Result<T, FormatError> {
        of(self.array()?).ok_or_else(|| self.field(field, 0))
    }
    /// Text of at most `max` bytes.
    pub(super) fn text(&mut self, field: &'static str, max: usize) -> Result<String, FormatError> {
        let length = usize::from(self.u16()?);
        if length > max {
            return Err(self.field(field, length as u64));
        }
        let bytes = self.bytes(length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.field(field, length as u64))
    }
    /// A list: its count was checked against the bytes that are left, so that no length sizes an allocation unchecked.
    pub(super) fn list<T>(
        &mut self,
        field: &'static str,
        max: usize,
        mut each: impl FnMut(&mut Self) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, FormatError> {
        let count = self.u32()? as usize;
        if count > max || count > self.rest.len() {
            return Err(self.field(field, count as u64));
        }
        let mut list = Vec::with_capacity(count.min(LIST_AT_ONCE));
        for _ in 0..count {
            list.push(each(self)?);
        }
        Ok(list)
    }
}
