//! Whether what a filter asks for can be written down: it may be somebody else's process, at another site.

use crate::far::{Begin, DisksEdit, NewDisk, SeedBegin, SizeOf};
use crate::host::check_policy_over;
use crate::report::{Problem, ProblemClass};
use cdp_core::journal::{DiskInfo, Manifest};
use cdp_core::types::{DISK_MAX, DISKS_MAX, DiskId, Lsn, NAME_MAX};
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
    let mut disks = BTreeSet::new();
    if let Some(twice) = sizes.iter().find(|to| !disks.insert(to.disk)) {
        return Err(refused(format!("the disk {} has two sizes", twice.disk)));
    }
    sizes.iter().try_for_each(|to| check_size(to.size))
}

/// Of a disk that nobody knows nothing is written down.
fn check_known(disk: DiskId, manifest: &Manifest) -> Result<(), Problem> {
    if manifest.disk(disk).is_some() { Ok(()) } else { Err(refused(format!("the group has no disk {disk}"))) }
}

/// So many more are listed beside those that were there, and those that are gone.
fn check_listed(manifest: &Manifest, dropped: &[DiskId], more: usize) -> Result<(), Problem> {
    let stays = manifest.disks.iter().filter(|disk| !dropped.contains(&disk.id)).count();
    within("disks, with those that are gone", stays + more, Manifest::DISKS_LISTED)
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
    check_policy_over(&begin.policy, &manifest.map(|manifest| manifest.policy).unwrap_or_default())?;
    let Some(manifest) = manifest else { return Ok(()) };
    if let Some(to) = begin.sizes.iter().find(|to| begin.dropped.contains(&to.disk)) {
        return Err(refused(format!("the disk {} is forgotten, and has no size", to.disk)));
    }
    let joins = |disk: DiskId| begin.joining.iter().any(|joining| joining.id == disk);
    begin.sizes.iter().filter(|to| !joins(to.disk)).try_for_each(|to| check_known(to.disk, manifest))?;
    check_listed(manifest, &begin.dropped, begin.joining.len())?;
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
            let same = |info: &DiskInfo| (info.id, &info.name) == (disk.id, &disk.name);
            let known = manifest.disks.iter().any(same);
            if known { Ok(()) } else { Err(refused(format!("the number {} is of another disk, or was", disk.id))) }
        }
        DisksEdit::Joins(disk) => {
            check_listed(manifest, &[], 1)?;
            check_new(std::slice::from_ref(disk), current(manifest, &[]))
        }
        DisksEdit::Announce(to) => {
            check_known(to.disk, manifest)?;
            check_size(to.size)
        }
        DisksEdit::Sizes(sizes) => check_sizes(sizes),
        // Written down so it would be one that did not leave.
        DisksEdit::Left { lsn: Lsn::ZERO, .. } => Err(refused("no disk leaves before there is a record".into())),
        DisksEdit::Forget(_) | DisksEdit::Left { .. } => Ok(()),
    }
}

/// Of a disk that left meanwhile, or has its base: that is nothing to be begun anew.
pub(super) fn nothing_to_copy(disk: DiskId) -> Problem {
    let message = format!("the disk {disk} is not one whose first copy is to be made");
    Problem::new(ProblemClass::Refused, "not-uncopied", message)
}

/// Whether the first copy of a disk can begin so.
pub(super) fn check_seed(seed: &SeedBegin, manifest: &Manifest) -> Result<(), Problem> {
    check_size(seed.size)?;
    let is_uncopied = |info: &&DiskInfo| info.base.is_none() && info.removed.is_none();
    let info = manifest.disk(seed.disk).filter(is_uncopied).ok_or_else(|| nothing_to_copy(seed.disk))?;
    if info.size == seed.size {
        return Ok(());
    }
    Err(refused(format!("the disk {} has {} bytes, and not {}", info.id, info.size, seed.size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::far::{NewGroup, Origin};
    use crate::keeper::begin::{info, name_disks};
    use crate::keeper::far::apply;
    use crate::owner::PolicyChange;
    use cdp_core::journal::{BaseInfo, Retention, SeedingInfo};
    use cdp_core::policy::retention;
    use cdp_core::types::{GroupId, ReplicaId, Timeline};
    use proptest::prelude::*;

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

    /// What a filter may ask to be written down.
    #[derive(Clone, Debug)]
    enum Asked {
        Begin(Box<Begin>),
        Edit(DisksEdit),
        Seed(SeedBegin),
    }

    /// As many as nobody means, and those beside the bounds.
    fn number() -> impl Strategy<Value = u64> {
        let of_note = [0, 1, 511, 512, 1000, 8 << 20, DISK_MAX, DISK_MAX + 1, DISK_MAX + 512, u64::MAX];
        prop_oneof![4 => prop::sample::select(of_note.to_vec()), 1 => any::<u64>()]
    }

    /// Those that are there, those that were, and others.
    fn any_id() -> impl Strategy<Value = DiskId> {
        let id = prop_oneof![4 => 1u16..8, 2 => 4090u16..4100, 1 => 1u16..];
        id.prop_map(|id| DiskId::new(id).unwrap())
    }

    fn any_disk() -> impl Strategy<Value = NewDisk> {
        let name = prop_oneof![4 => "[a-h]{1,2}", 1 => (0..=NAME_MAX + 1).prop_map(|long| "x".repeat(long))];
        let source = prop_oneof![4 => Just(1), 1 => 0..=SOURCE_MAX + 1].prop_map(|long| "x".repeat(long));
        let parts = (any_id(), name, number(), source, number());
        parts.prop_map(|(id, name, size, source, added)| NewDisk { id, name, size, source, added: Lsn(added) })
    }

    fn any_size() -> impl Strategy<Value = SizeOf> {
        (any_id(), number()).prop_map(|(disk, size)| SizeOf { disk, size })
    }

    fn any_policy() -> impl Strategy<Value = PolicyChange> {
        let some = || prop::option::of(number());
        (some(), some(), some(), some(), some(), some()).prop_map(
            |(rpo_ms, window_ms, max_bytes, long_term_ms, keep_ms, quota)| PolicyChange {
                rpo_ms,
                window_ms,
                max_bytes,
                long_term_ms,
                keep_ms,
                quota,
                ..PolicyChange::default()
            },
        )
    }

    fn asked() -> impl Strategy<Value = Asked> {
        let sizes = || prop::collection::vec(any_size(), 0..4);
        let dropped = prop::collection::vec(any_id(), 0..3);
        let policy = prop_oneof![2 => Just(PolicyChange::default()), 1 => any_policy()];
        let begins = (dropped, prop::collection::vec(any_disk(), 0..3), sizes(), policy);
        let edits = prop_oneof![
            4 => any_disk().prop_map(DisksEdit::Joins),
            1 => any_id().prop_map(DisksEdit::Forget),
            2 => (any_id(), number()).prop_map(|(disk, lsn)| DisksEdit::Left { disk, lsn: Lsn(lsn) }),
            2 => any_size().prop_map(DisksEdit::Announce),
            1 => sizes().prop_map(DisksEdit::Sizes),
        ];
        prop_oneof![
            1 => begins.prop_map(|(dropped, joining, sizes, policy)| {
                Asked::Begin(Box::new(Begin { dropped, sizes, policy, ..begin(None, joining) }))
            }),
            3 => edits.prop_map(Asked::Edit),
            2 => any_size().prop_map(|SizeOf { disk, size }| Asked::Seed(SeedBegin { disk, size, first: 1 })),
        ]
    }

    /// Does what is asked, if it is not refused.
    fn carry_out(manifest: &mut Manifest, asked: &Asked) -> Result<(), Problem> {
        match asked {
            Asked::Begin(begin) => {
                check_begin(begin, Some(&*manifest))?;
                begin.policy.apply(&mut manifest.policy);
                name_disks(manifest, begin);
            }
            Asked::Edit(edit) => {
                check_edit(edit, manifest)?;
                apply(manifest, edit);
            }
            Asked::Seed(seed) => {
                check_seed(seed, manifest)?;
                let begun = SeedingInfo::new(seed.disk, seed.size, Timeline::new([1; 16]).unwrap());
                assert!(manifest.begin_seeding(begun).is_some(), "what was not refused is begun");
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_a_call_makes_of_a_manifest_can_be_written_and_read_back(
            all in prop::collection::vec(asked(), 1..24),
            gone in prop_oneof![3 => Just(0u16), 1 => Just(Manifest::DISKS_LISTED as u16 - 4)],
        ) {
            let mut manifest = manifest(&[disk(1, "a"), disk(2, "b"), disk(3, "c")]);
            let base = BaseInfo { lsn: Lsn(1), generation: 1, size: 512, root: [1; 32], at_rest: false };
            manifest.disks[0].base = Some(base);
            let removed = |number| DiskInfo { removed: Some(Lsn(9)), ..info(&disk(number + 100, "a")) };
            manifest.disks.extend((0..gone).map(removed));
            for asked in &all {
                // What is refused changes nothing.
                let before = manifest.clone();
                if carry_out(&mut manifest, asked).is_err() {
                    prop_assert_eq!(&manifest, &before);
                }
                prop_assert_eq!(manifest.too_long(), None, "after {:?}", asked);
                let read = Manifest::decode(&manifest.encode());
                prop_assert_eq!(read.as_ref(), Ok(&manifest), "after {:?}", asked);
                prop_assert!(retention::layers(&manifest.policy) <= Retention::LAYERS_MAX as u64, "after {:?}", asked);
            }
        }
    }

    #[test]
    fn no_more_disks_are_listed_than_a_manifest_takes_nor_sizes_of_disks_that_nobody_knows() {
        let mut known = manifest(&[disk(1, "a")]);
        for number in 2..=Manifest::DISKS_LISTED as u16 + 8 {
            let joins = DisksEdit::Joins(disk(number, "b"));
            if check_edit(&joins, &known).is_err() {
                break;
            }
            apply(&mut known, &joins);
            apply(&mut known, &DisksEdit::Left { disk: DiskId::new(number).unwrap(), lsn: Lsn(number.into()) });
        }
        assert_eq!(known.disks.len(), Manifest::DISKS_LISTED);
        // Of two that were checked before either was written down, one is not.
        apply(&mut known, &DisksEdit::Joins(disk(u16::MAX, "b")));
        let stranger = DisksEdit::Announce(SizeOf { disk: DiskId::new(u16::MAX).unwrap(), size: 512 });
        assert!(check_edit(&stranger, &known).is_err());
        apply(&mut known, &stranger);
        assert_eq!((known.disks.len(), known.resizing.len()), (Manifest::DISKS_LISTED, 0));
        assert_eq!(known.too_long(), None);
    }

    #[test]
    fn a_first_copy_begins_of_a_disk_that_has_none_and_is_as_long_as_that() {
        let mut known = manifest(&[disk(1, "a"), disk(2, "b"), disk(3, "c")]);
        known.disks[1].base = Some(BaseInfo { lsn: Lsn(1), generation: 1, size: 512, root: [1; 32], at_rest: false });
        known.disks[2].removed = Some(Lsn(5));
        let begins = |number: u16, size| {
            let seed = SeedBegin { disk: DiskId::new(number).unwrap(), size, first: 1 };
            check_seed(&seed, &known).map_err(|problem| problem.code)
        };
        assert_eq!(begins(1, 512), Ok(()));
        for size in [0, 511, 513, DISK_MAX, DISK_MAX + 1, u64::MAX] {
            assert_eq!(begins(1, size), Err("bounds".into()), "{size}");
        }
        for number in [2, 3, 4] {
            assert_eq!(begins(number, 512), Err("not-uncopied".into()), "{number}");
        }
    }
}
