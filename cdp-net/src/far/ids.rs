//! How identities, LSNs and extents stand in the headers of calls.

use cdp_core::types::{DiskId, Extent, GroupId, Lsn, ReplicaId, Timeline};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What has 16 bytes: as 32 hex digits.
pub(super) mod identity {
    use super::{Deserialize, Deserializer, Error, Identity, Serializer};

    pub(crate) fn serialize<T: Identity, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(crate) fn deserialize<'de, T: Identity, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| D::Error::custom("an identity is 32 hex digits, not all zeros"))
    }

    pub(crate) fn parse<T: Identity>(text: &str) -> Option<T> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        T::of(bytes)
    }
}

/// The same where there may be none.
pub(super) mod option {
    use super::{Deserialize, Deserializer, Error, Identity, Serializer, identity};

    pub(crate) fn serialize<T: Identity, S: Serializer>(id: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.collect_str(id),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T: Identity, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let id = identity::parse(&text);
        id.map(Some).ok_or_else(|| D::Error::custom("an identity is 32 hex digits, not all zeros"))
    }
}

/// 128 random bits.
pub(super) trait Identity: Sized + std::fmt::Display {
    fn of(bytes: [u8; 16]) -> Option<Self>;
}

macro_rules! identities {
    ($($name:ident),*) => {
        $(impl Identity for $name {
            fn of(bytes: [u8; 16]) -> Option<Self> {
                Self::new(bytes)
            }
        })*
    };
}

identities!(GroupId, ReplicaId, Timeline);

/// A disk's number.
pub(super) mod disk {
    use super::{Deserialize, Deserializer, DiskId, Error, Serializer};

    pub(crate) fn serialize<S: Serializer>(disk: &DiskId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(disk.get())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DiskId, D::Error> {
        DiskId::new(u16::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("no disk has the number 0"))
    }
}

/// Numbers of disks.
pub(super) mod disks {
    use super::{Deserialize, Deserializer, DiskId, Error, Serializer};

    pub(crate) fn serialize<S: Serializer>(disks: &[DiskId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(disks.iter().map(|disk| disk.get()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DiskId>, D::Error> {
        let numbers = Vec::<u16>::deserialize(deserializer)?.into_iter().map(DiskId::new);
        numbers.collect::<Option<_>>().ok_or_else(|| D::Error::custom("no disk has the number 0"))
    }
}

/// A disk's number, or none.
pub(super) mod option_disk {
    use super::{Deserialize, Deserializer, DiskId, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(disk: &Option<DiskId>, serializer: S) -> Result<S::Ok, S::Error> {
        disk.map(DiskId::get).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DiskId>, D::Error> {
        Ok(Option::<u16>::deserialize(deserializer)?.and_then(DiskId::new))
    }
}

/// A range of a disk.
pub(super) mod extent {
    use super::{Deserialize, Deserializer, Error, Extent, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(extent: &Extent, serializer: S) -> Result<S::Ok, S::Error> {
        [extent.offset, extent.length].serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Extent, D::Error> {
        let [offset, length] = <[u64; 2]>::deserialize(deserializer)?;
        let ends = offset.checked_add(length).is_some_and(|end| end <= cdp_core::types::DISK_MAX);
        ends.then(|| Extent::new(offset, length)).ok_or_else(|| D::Error::custom("no disk is that large"))
    }
}

/// An LSN, as a number.
pub(super) use crate::report::text::lsn;

/// Where an LSN may be none.
pub(super) mod option_lsn {
    use super::{Deserialize, Deserializer, Lsn, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(lsn: &Option<Lsn>, serializer: S) -> Result<S::Ok, S::Error> {
        lsn.map(|lsn| lsn.0).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Lsn>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Lsn))
    }
}

/// What a point was made for: short-term, long-term, by a mark, with applications frozen.
pub(super) mod kinds {
    use super::{Deserialize, Deserializer, Serialize, Serializer};
    use cdp_core::frame::PointKinds;

    pub(crate) fn serialize<S: Serializer>(kinds: &PointKinds, serializer: S) -> Result<S::Ok, S::Error> {
        [kinds.short, kinds.long, kinds.mark, kinds.app].serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PointKinds, D::Error> {
        let [short, long, mark, app] = <[bool; 4]>::deserialize(deserializer)?;
        // Only a record that says so makes a point common to a set.
        Ok(PointKinds { short, long, mark, app, set: false })
    }
}
