//! Disks that join, change their size and leave, as a driver has it: what records may follow is written down at the replica before there
//! are any, and what was recorded when it is durable. One change at a time, and none while a new group is copied.

use super::super::calls::{Ask, DisksEdit, Given};
use super::copies::Copies;
use crate::capture::world::{DiskChange, World, index, spec};
use cdp_core::types::{DiskId, Lsn, SECTOR};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The replica has to be told, or was.
    Tells { edit: DisksEdit, asked: bool },
    /// The filter makes its record when nothing is in the way.
    Records,
    /// That record has to be durable.
    Waits(Lsn),
}

/// What becomes of the disks.
#[derive(Default, Debug)]
pub struct Changes {
    now: Option<(DiskChange, DiskId, Step)>,
    /// How many are through.
    pub made: u64,
}

fn id(disk: usize) -> DiskId {
    spec(disk, 0).id
}

fn bytes(sectors: usize) -> u64 {
    sectors as u64 * SECTOR
}

impl Changes {
    pub fn are_done(&self) -> bool {
        self.now.is_none()
    }

    /// Bytes that are about to be copied, or read.
    pub fn bytes(&self) -> u64 {
        match self.now {
            Some((DiskChange::Join { sectors } | DiskChange::Resize { to: sectors, .. }, ..)) => bytes(sectors),
            Some((DiskChange::Leave { .. }, ..)) | None => 0,
        }
    }

    /// Somebody wants something; what cannot be now is refused.
    pub fn begin(&mut self, world: &mut World, copies: &mut Copies, change: DiskChange) {
        self.now = match change {
            DiskChange::Join { sectors } => {
                let disk = id(world.reserve_disk());
                let added = world.filter.status(world.both()).lsn.next();
                let edit = DisksEdit::Joins { disk, size: bytes(sectors), added };
                Some((change, disk, Step::Tells { edit, asked: false }))
            }
            DiskChange::Leave { disk: at } if world.leave(at) => {
                copies.forget(id(at));
                Some((change, id(at), Step::Records))
            }
            DiskChange::Resize { disk: at, to } if !world.is_busy(at) && to != world.sizes[at] => {
                if to > world.sizes[at] {
                    world.grow_source(at, to);
                }
                let edit = DisksEdit::Announce { disk: id(at), size: bytes(to) };
                Some((change, id(at), Step::Tells { edit, asked: false }))
            }
            DiskChange::Leave { .. } | DiskChange::Resize { .. } => None,
        };
    }

    /// The machine ended: what was not through the next start finds.
    pub fn fell(&mut self) {
        self.now = None;
    }

    /// The filter goes on under another timeline: what was asked is asked again.
    pub fn forked(&mut self) {
        if let Some((.., Step::Tells { asked, .. })) = &mut self.now {
            *asked = false;
        }
    }

    /// The replica has written something down.
    pub fn told(&mut self, world: &mut World, edit: DisksEdit) {
        let Some((change, disk, _)) = self.now.filter(|now| now.2 == Step::Tells { edit, asked: true }) else { return };
        let at = index(disk);
        let next = match (change, edit) {
            (DiskChange::Join { sectors }, _) => Some(Step::Waits(world.join(at, sectors))),
            (DiskChange::Resize { to, .. }, DisksEdit::Announce { .. }) => {
                world.resize(at, to);
                Some(Step::Records)
            }
            (DiskChange::Resize { .. } | DiskChange::Leave { .. }, _) => None,
        };
        self.made += u64::from(next.is_none());
        self.now = next.map(|next| (change, disk, next));
    }

    /// Goes on; gives what is to be asked.
    pub fn go_on(&mut self, world: &World, copies: &mut Copies) -> Option<Ask> {
        loop {
            let (change, disk, step) = self.now.as_mut()?;
            let disk = *disk;
            *step = match (*change, *step) {
                (_, Step::Tells { asked: true, .. }) => return None,
                (_, Step::Tells { edit, asked: false }) => {
                    *step = Step::Tells { edit, asked: true };
                    return Some(Ask::Disks { timeline: world.options.timeline, edit });
                }
                (DiskChange::Resize { to, .. }, Step::Records) => {
                    (world.filter.disk_size(disk) == Some(bytes(to))).then_some(())?;
                    Step::Waits(world.filter.status(world.both()).lsn)
                }
                (_, Step::Records) => Step::Waits(world.filter.disk_left(disk)?),
                (_, Step::Waits(lsn)) if !world.has_reached(lsn) => return None,
                (DiskChange::Join { .. }, Step::Waits(lsn)) => {
                    copies.join(disk, lsn);
                    (self.now, self.made) = (None, self.made + 1);
                    return None;
                }
                (DiskChange::Resize { to, .. }, Step::Waits(_)) => {
                    Step::Tells { edit: DisksEdit::Sizes { disk, size: bytes(to) }, asked: false }
                }
                (DiskChange::Leave { .. }, Step::Waits(lsn)) => {
                    Step::Tells { edit: DisksEdit::Left { disk, lsn }, asked: false }
                }
            };
        }
    }
}

/// The sources of the disks that a filter has.
pub fn held(world: &World) -> Vec<Given> {
    let there = (0..world.disks.len()).filter(|at| !world.left.contains(at));
    there.map(|at| Given { disk: id(at), size: bytes(world.source_sizes[at]), anew: id(at) }).collect()
}

/// The sources that a start is given. One that left may be among them: whether its disk did only the replica knows.
pub fn given(world: &mut World) -> Vec<Given> {
    let mut given = Vec::new();
    for at in 0..world.disks.len() {
        let size = world.source_sizes[at];
        let has_left = world.left.contains(&at);
        if size == 0 || (has_left && world.rng.one_in(2)) {
            continue;
        }
        // Only one that joined may not have been copied to the end.
        let is_whole = world.was_whole(at);
        let anew = if is_whole { at } else { world.reserve_disk() };
        given.push(Given { disk: id(at), size: bytes(size), anew: id(anew) });
    }
    given
}
