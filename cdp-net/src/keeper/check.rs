//! Whether what a filter asks for can be written down: it may be somebody else's process, at another site.

use crate::far::{Begin, DisksEdit, NewDisk, SizeOf};
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::Manifest;
use cdp_core::types::{DISK_MAX, DISKS_MAX, DiskId, NAME_MAX};
use std::collections::BTreeSet;

/// Bytes of a source's path, at most: it is for people.
const SOURCE_MAX: usize = 4096;

fn refused(message: String) -> Problem {
    Problem::new(ProblemClass::Usage, "bounds", message)
}

fn within(what: &str, found: usize, most: usize) -> Result<(), Problem> {
    if found <= most { Ok(()) } else { Err(refused(format!("there are {found} {what}: {most} are the most"))) }
}

/// Whether somebody or something can be called so.
pub(super) fn check_name(name: &str) -> Result<(), Problem> {
    if (1..=NAME_MAX).contains(&name.len()) {
        return Ok(());
    }
    Err(refused(format!("a name has 1 to {NAME_MAX} bytes, not {}", name.len())))
}

fn check_size(size: u64) -> Result<(), Problem> {
    if size <= DISK_MAX { Ok(()) } else { Err(refused(format!("no disk has {size} bytes: {DISK_MAX} are the most"))) }
}

fn check_disk(disk: &NewDisk) -> Result<(), Problem> {
    check_name(&disk.name)?;
    within("bytes of a source's path", disk.source.len(), SOURCE_MAX)?;
    check_size(disk.size)
}

fn check_sizes(sizes: &[SizeOf]) -> Result<(), Problem> {
    within("sizes of disks", sizes.len(), DISKS_MAX)?;
    sizes.iter().try_for_each(|to| check_size(to.size))
}

/// Disks that are new to a group that has `known` ones: each has a number and a name of its own.
fn check_new<'a>(disks: &'a [NewDisk], known: impl Iterator<Item = (DiskId, &'a str)>) -> Result<(), Problem> {
    let (mut ids, mut names): (BTreeSet<_>, BTreeSet<_>) = known.unzip();
    for disk in disks {
        check_disk(disk)?;
        if !ids.insert(disk.id) || !names.insert(&disk.name) {
            return Err(refused(format!("the group has a disk {} or one called {:?} already", disk.id, disk.name)));
        }
    }
    within("disks", names.len(), DISKS_MAX)
}

/// The disks that are not gone, but for those that are forgotten.
fn current<'a>(manifest: &'a Manifest, dropped: &'a [DiskId]) -> impl Iterator<Item = (DiskId, &'a str)> {
    let there = manifest.disks.iter().filter(|disk| disk.removed.is_none() && !dropped.contains(&disk.id));
    there.map(|disk| (disk.id, disk.name.as_str()))
}

/// Whether a filter can begin so on a replica of this manifest; none: it is new.
pub(super) fn check_begin(begin: &Begin, manifest: Option<&Manifest>) -> Result<(), Problem> {
    if let Some(new) = &begin.new {
        check_name(&new.name)?;
        within("disks", new.disks.len(), DISKS_MAX)?;
        check_new(&new.disks, std::iter::empty())?;
        if new.disks.is_empty() {
            return Err(refused("a group has at least one disk".into()));
        }
    }
    within("disks that are forgotten", begin.dropped.len(), DISKS_MAX)?;
    check_sizes(&begin.sizes)?;
    let Some(manifest) = manifest else { return Ok(()) };
    let taken = |disk: &&NewDisk| manifest.disks.iter().any(|info| info.id == disk.id);
    if let Some(disk) = begin.joining.iter().find(taken) {
        return Err(refused(format!("the number {} is of another disk, or was", disk.id)));
    }
    check_new(&begin.joining, current(manifest, &begin.dropped))
}

/// Whether an edit of a group's disks can be made.
pub(super) fn check_edit(edit: &DisksEdit, manifest: &Manifest) -> Result<(), Problem> {
    match edit {
        // A call may come twice.
        DisksEdit::Joins(disk) if manifest.disks.iter().any(|info| info.id == disk.id) => {
            let same = |info: &cdp_core::journal::DiskInfo| (info.id, &info.name) == (disk.id, &disk.name);
            let known = manifest.disks.iter().any(same);
            if known { Ok(()) } else { Err(refused(format!("the number {} is of another disk, or was", disk.id))) }
        }
        DisksEdit::Joins(disk) => check_new(std::slice::from_ref(disk), current(manifest, &[])),
        DisksEdit::Announce(to) => check_size(to.size),
        DisksEdit::Sizes(sizes) => check_sizes(sizes),
        DisksEdit::Forget(_) | DisksEdit::Left { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::far::{NewGroup, Origin};
    use crate::keeper::begin::info;
    use crate::owner::PolicyChange;
    use cdp_core::types::{GroupId, Lsn, ReplicaId, Timeline};

    fn disk(number: u16, name: &str) -> NewDisk {
        let id = DiskId::new(number).unwrap();
        NewDisk { id, name: name.into(), size: 512, source: "x".into(), added: Lsn(1) }
    }

    fn begin(new: Option<Vec<NewDisk>>, joining: Vec<NewDisk>) -> Begin {
        let id = [1; 16];
        let group = GroupId::new(id).unwrap();
        Begin {
            new: new.map(|disks| NewGroup { group, name: "group".into(), disks }),
            timeline: Timeline::new(id).unwrap(),
            origin: Origin::First,
            reserved: Lsn(1),
            dropped: Vec::new(),
            joining,
            sizes: Vec::new(),
            policy: PolicyChange::default(),
            stored: false,
        }
    }

    fn manifest(disks: &[NewDisk]) -> Manifest {
        let id = [1; 16];
        let mut manifest = Manifest::new(ReplicaId::new(id).unwrap(), GroupId::new(id).unwrap(), "group");
        manifest.disks = disks.iter().map(info).collect();
        manifest
    }

    #[test]
    fn a_group_has_some_disks_each_with_a_number_and_a_name_of_its_own() {
        let new = |disks: Vec<NewDisk>| check_begin(&begin(Some(disks), Vec::new()), None).is_ok();
        let all: Vec<_> = (1..=DISKS_MAX as u16).map(|number| disk(number, &number.to_string())).collect();
        assert!(new(all.clone()) && new(vec![disk(7, "a"), disk(3, "b")]));
        assert!(!new(Vec::new()));
        assert!(!new([all, vec![disk(65, "65")]].concat()));
        assert!(!new(vec![disk(1, "a"), disk(1, "b")]) && !new(vec![disk(1, "a"), disk(2, "a")]));
        assert!(!new(vec![disk(1, "")]) && !new(vec![disk(1, &"a".repeat(NAME_MAX + 1))]));
        assert!(!new(vec![NewDisk { size: DISK_MAX + 1, ..disk(1, "a") }]));
        assert!(!new(vec![NewDisk { source: "x".repeat(SOURCE_MAX + 1), ..disk(1, "a") }]));
    }

    #[test]
    fn who_joins_takes_nobodys_number_or_name() {
        let mut known = manifest(&[disk(1, "a"), disk(2, "b"), disk(3, "c")]);
        known.disks[1].removed = Some(Lsn(5));
        let joins = |given: NewDisk| {
            let by_edit = check_edit(&DisksEdit::Joins(given.clone()), &known).is_ok();
            (by_edit, check_begin(&begin(None, vec![given]), Some(&known)).is_ok())
        };
        assert_eq!(joins(disk(4, "d")), (true, true));
        assert_eq!(joins(disk(4, "b")), (true, true), "the name of one that is gone is free");
        assert_eq!(joins(disk(4, "a")), (false, false));
        assert_eq!(joins(disk(2, "d")), (false, false), "its number is not");
        assert_eq!(joins(disk(3, "c")), (true, false), "only an edit may come twice");
        let mut again = begin(None, vec![disk(4, "c")]);
        again.dropped = vec![DiskId::new(3).unwrap()];
        assert!(check_begin(&again, Some(&known)).is_ok(), "one that is begun anew keeps its name");
    }
}
