//! The names of the files of bases: one place says which are ours, for whoever makes, removes, counts or explains them.

use crate::types::DiskId;

/// Directory of the bases inside the replica's.
pub const BASE_DIRECTORY: &str = "base";

/// What stays of blocks that a merge changes in parts, inside the replica's directory.
pub(super) const RESTS: &str = "base/merge.rests";

/// A file in [`BASE_DIRECTORY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BaseFile {
    /// A disk's image.
    Image(DiskId),
    /// Its checksums.
    Sidecar(DiskId),
    /// The digest table of its even generations.
    EvenTable(DiskId),
    /// The digest table of its odd generations.
    OddTable(DiskId),
    /// What a merge leaves of blocks that it changes in parts.
    Rests,
}

impl BaseFile {
    /// The file that has this name in [`BASE_DIRECTORY`]; none if no replica gives a file that name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let of_disk = || {
            let (stem, ending) = name.split_once('.')?;
            let disk = DiskId::new(stem.parse().ok()?)?;
            match ending {
                "img" => Some(Self::Image(disk)),
                "sum" => Some(Self::Sidecar(disk)),
                "dig0" => Some(Self::EvenTable(disk)),
                "dig1" => Some(Self::OddTable(disk)),
                _ => None,
            }
        };
        // A number that is written otherwise, such as 01, is not ours.
        let file = of_disk().unwrap_or(Self::Rests);
        (file.path().strip_prefix(BASE_DIRECTORY)?.strip_prefix('/')? == name).then_some(file)
    }

    /// The digest table of a disk's base in that generation.
    #[must_use]
    pub fn table(disk: DiskId, generation: u64) -> Self {
        if generation.is_multiple_of(2) { Self::EvenTable(disk) } else { Self::OddTable(disk) }
    }

    /// Whose it is; none for a merge's.
    #[must_use]
    pub fn disk(self) -> Option<DiskId> {
        match self {
            Self::Image(disk) | Self::Sidecar(disk) | Self::EvenTable(disk) | Self::OddTable(disk) => Some(disk),
            Self::Rests => None,
        }
    }

    /// Its name inside the replica's directory.
    #[must_use]
    pub fn path(self) -> String {
        match self {
            Self::Image(disk) => format!("{BASE_DIRECTORY}/{disk}.img"),
            Self::Sidecar(disk) => format!("{BASE_DIRECTORY}/{disk}.sum"),
            Self::EvenTable(disk) => format!("{BASE_DIRECTORY}/{disk}.dig0"),
            Self::OddTable(disk) => format!("{BASE_DIRECTORY}/{disk}.dig1"),
            Self::Rests => RESTS.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_the_file_that_has_it_and_of_no_other() {
        for disk in [1, 7, 65_535].map(|number| DiskId::new(number).unwrap()) {
            let files = [BaseFile::Image(disk), BaseFile::Sidecar(disk), BaseFile::table(disk, 4)];
            for file in files.into_iter().chain([BaseFile::table(disk, 5), BaseFile::Rests]) {
                assert_eq!(BaseFile::of(file.path().strip_prefix("base/").unwrap()), Some(file));
            }
        }
        for stranger in
            ["", ".img", "0.img", "01.img", "+1.img", "65536.img", "1.dig2", "1.img.gz", "a.sum", "rests", "base/1.img"]
        {
            assert_eq!(BaseFile::of(stranger), None, "{stranger}");
        }
    }
}
