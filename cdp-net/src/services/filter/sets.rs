//! The common points of a file's consistency sets, where all groups of a set are served here.

use super::group::Group;
use crate::protect::{Protection, SetOptions};
use crate::services::config::SetConfig;
use crate::services::role::Notes;
use crate::sets::{Taking, Way, reports};
use cdp_core::replica::digest::hash;
use cdp_core::set::{Ended, Verdict};
use cdp_core::types::{GroupId, SetId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

/// The sets of a file, by their names. As many as it names.
#[derive(Default)]
pub(super) struct Sets {
    cutting: BTreeMap<String, Cutting>,
    /// Of these it was told why they are not cut.
    told: BTreeSet<String>,
    ended: bool,
}

/// A set whose cuts are taken.
struct Cutting {
    config: SetConfig,
    members: Vec<Weak<Protection>>,
    /// Dropped first, so that nothing is ordered any more.
    taking: Option<Taking>,
}

impl Drop for Cutting {
    fn drop(&mut self) {
        self.taking = None;
        self.members.iter().filter_map(Weak::upgrade).for_each(|member| member.leave_set());
    }
}

impl Cutting {
    /// Whether it is this very set, of these very protections.
    fn is_of(&self, config: &SetConfig, members: &[Arc<Protection>]) -> bool {
        let same = |(known, member): (&Weak<Protection>, &Arc<Protection>)| {
            known.upgrade().is_some_and(|known| Arc::ptr_eq(&known, member))
        };
        self.config == *config && self.members.len() == members.len() && self.members.iter().zip(members).all(same)
    }

    fn start(config: &SetConfig, members: &[Arc<Protection>], notes: &Notes) -> Result<Self, String> {
        let set = identity(&config.name, members);
        let (give, inbox) = reports();
        let mut ways: BTreeMap<GroupId, Way> = BTreeMap::new();
        for member in members {
            let (give, order_to) = (give.clone(), Arc::downgrade(member));
            let reports = Box::new(move |report| give.give(report));
            member.join_set(SetOptions { set, name: config.name.clone(), reports });
            let way: Way =
                Box::new(move |order| order_to.upgrade().into_iter().for_each(|member| member.set_order(order)));
            ways.insert(member.group(), way);
        }
        // Made before what may fail: dropping it lets the members go.
        let mut cutting =
            Self { config: config.clone(), members: members.iter().map(Arc::downgrade).collect(), taking: None };
        let (name, notes, told) = (config.name.clone(), notes.clone(), std::sync::Mutex::new(false));
        // The first of a row of misses is told, and that it is over.
        let ended = move |end: Ended| {
            let mut missed = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match end.verdict {
                Verdict::Missed(why) if !*missed => {
                    notes.say(&format!("set {name}: the cut {} is no common point: {why:?}", end.cut.number));
                    *missed = true;
                }
                Verdict::Common(_) if *missed => {
                    notes.say(&format!("set {name}: common points are cut again"));
                    *missed = false;
                }
                _ => {}
            }
        };
        let taking = Taking::start(set, ways, config.every.0, (give, inbox), ended);
        cutting.taking = Some(taking.map_err(|error| error.to_string())?);
        Ok(cutting)
    }
}

/// What the set is called by its members: the same at every start, and another one for every other set of groups.
fn identity(name: &str, members: &[Arc<Protection>]) -> SetId {
    let groups: BTreeSet<_> = members.iter().map(|member| member.group()).collect();
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    groups.iter().for_each(|group| text.extend_from_slice(group.bytes()));
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
    pub(super) fn look(&mut self, sets: &[SetConfig], groups: &[Arc<Group>], notes: &Notes) {
        if self.ended {
            return;
        }
        self.cutting.retain(|name, _| sets.iter().any(|set| set.name == *name));
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        for set in sets {
            let found: Vec<_> =
                set.groups.iter().map(|name| groups.iter().find(|group| group.name() == name)).collect();
            let why = if found.iter().any(Option::is_none) {
                Some("not all of its groups are this filter's: common points with other hosts are not cut")
            } else if set.groups.iter().any(|group| !taken.insert(group)) {
                Some("a group of it is in another set already, and a group is in one set at a time")
            } else {
                None
            };
            if let Some(why) = why {
                self.cutting.remove(&set.name);
                if self.told.insert(set.name.clone()) {
                    notes.say(&format!("set {}: {why}", set.name));
                }
                continue;
            }
            let members: Vec<_> = found.into_iter().flatten().filter_map(|group| group.protection()).collect();
            let runs = self.cutting.get(&set.name).is_some_and(|cutting| cutting.is_of(set, &members));
            if runs {
                continue;
            }
            self.cutting.remove(&set.name);
            // One that has not begun has no moments yet: it is looked again.
            if members.len() < set.groups.len() {
                continue;
            }
            match Cutting::start(set, &members, notes) {
                Ok(cutting) => drop(self.cutting.insert(set.name.clone(), cutting)),
                Err(why) if self.told.insert(set.name.clone()) => notes.say(&format!("set {}: {why}", set.name)),
                Err(_) => {}
            }
        }
    }

    /// Nothing is cut any more.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.cutting.clear();
    }
}
