//! The common points of a file's consistency sets: those whose cuts this filter takes, and those that the filter of another host takes.
//!
//! A set whose groups are all served here, or whose file names the others as `members`, is cut from here. Of any other set
//! the groups that are served here wait for the filter that takes its cuts, at `filter.listen`.

mod attending;
mod cutting;

use self::attending::Attending;
use self::cutting::{Cutting, Members};
use super::group::Group;
use crate::services::config::{FilterConfig, SetConfig};
use crate::services::role::Context;
use crate::sets::link::member::Attendance;
use cdp_core::replica::digest::hash;
use cdp_core::types::SetId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The sets of a file, by their names. As many as it names.
#[derive(Default)]
pub(super) struct Sets {
    cutting: BTreeMap<String, Cutting>,
    /// The groups that others take the cuts of, by their names.
    attending: BTreeMap<String, Attending>,
    /// Of these it was told why they are not cut.
    told: BTreeSet<String>,
    ended: bool,
}

/// What the set is called by its members: the same at every start and in the files of all its filters, and another one for every other set of
/// groups.
fn identity(config: &SetConfig) -> SetId {
    let groups: BTreeSet<_> = config.groups.iter().collect();
    let mut text = config.name.as_bytes().to_vec();
    // No name has a zero in it.
    for group in groups {
        text.push(0);
        text.extend_from_slice(group.as_bytes());
    }
    let digest = hash(&text);
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    // Zero is no identity, and no more likely than any other.
    id[0] |= 1;
    let Some(id) = SetId::new(id) else { unreachable!("it is not zero") };
    id
}

impl Sets {
    /// Begins, ends and changes what the file, and what runs, have changed.
    pub(super) fn look(
        &mut self,
        (filter, sets): &(FilterConfig, Vec<SetConfig>),
        groups: &[Arc<Group>],
        attendance: Option<&Arc<Attendance>>,
        context: &Context,
    ) {
        if self.ended {
            return;
        }
        self.cutting.retain(|name, _| sets.iter().any(|set| set.name == *name));
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        let mut attended = BTreeSet::new();
        for set in sets {
            let is_here = |name: &String| filter.groups.iter().any(|group| group.name == *name);
            let here = set.groups.iter().filter(|name| is_here(name)).count();
            // All names count, so that of two sets with a group the same one is cut at each look.
            let twice = set.groups.iter().filter(|group| !taken.insert(group)).count() > 0;
            if twice {
                self.cutting.remove(&set.name);
                let why = "a group of it is in another set already, and a group is in one set at a time";
                self.tell(&set.name, why, context);
                continue;
            }
            let member = |name: &String| groups.iter().find(|group| group.name() == name)?.protection();
            let members: Members = set.groups.iter().filter_map(|name| Some((name.clone(), member(name)?))).collect();
            if here < set.groups.len() && set.members.is_empty() {
                self.cutting.remove(&set.name);
                // Without a place to be found at there is no such set in a file, unless it was changed: a restart takes that.
                let Some(attendance) = attendance else {
                    let why = "others take its cuts, and this filter was started without `filter.listen`: restart it";
                    self.tell(&set.name, why, context);
                    continue;
                };
                for (name, protection) in members {
                    attended.insert(name.clone());
                    if !self.attending.get(&name).is_some_and(|known| known.is_of(set, &protection)) {
                        // The one before lets go first.
                        self.attending.remove(&name);
                        let begun = Attending::begin(set, &name, &protection, attendance, context);
                        self.attending.insert(name, begun);
                    }
                }
                continue;
            }
            // Whoever took the cuts of these before has no say any more.
            set.groups.iter().for_each(|name| drop(self.attending.remove(name)));
            // One that has not begun has no moments yet: it is looked again.
            if members.len() < here {
                self.cutting.remove(&set.name);
                continue;
            }
            if !self.cutting.get(&set.name).is_some_and(|cutting| cutting.is_of(set, &members)) {
                // The one before lets go first.
                self.cutting.remove(&set.name);
                self.cutting.insert(set.name.clone(), Cutting::new(set, &members, context));
            }
            if let Some(cutting) = self.cutting.get_mut(&set.name)
                && let Err(why) = cutting.look(context)
            {
                self.tell(&set.name, &why, context);
            }
        }
        self.attending.retain(|name, _| attended.contains(name));
    }

    /// Tells once why a set is not cut.
    fn tell(&mut self, name: &str, why: &str, context: &Context) {
        if self.told.insert(name.to_owned()) {
            context.notes.say(&format!("set {name}: {why}"));
        }
    }

    /// Nothing is cut any more.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.cutting.clear();
        self.attending.clear();
    }
}
