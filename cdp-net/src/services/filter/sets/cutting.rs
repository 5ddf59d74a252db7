//! A set whose cuts are taken here, of members in this process and in others.

use super::identity;
use crate::protect::{Protection, SetOptions};
use crate::services::config::SetConfig;
use crate::services::role::{Context, Notes};
use crate::sets::link::taker::{FarMember, MemberPlace, Standing};
use crate::sets::{Taking, Way, reports};
use cdp_core::set::{Ended, Miss, Verdict};
use cdp_core::types::GroupId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Of what goes wrong with one set it is told again after so long at the earliest.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// What goes wrong and right again, and whether that is told.
#[derive(Default)]
struct Trouble {
    told: bool,
    last: Option<Instant>,
}

impl Trouble {
    /// It is there; gives whether that is to be told.
    fn is_there(&mut self) -> bool {
        let now = Instant::now();
        if self.told || self.last.is_some_and(|last| now.duration_since(last) < TELL_AGAIN) {
            return false;
        }
        (self.told, self.last) = (true, Some(now));
        true
    }

    /// It is over; gives whether that is to be told.
    fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }
}

/// Groups of this process by their names, and what protects them.
pub(super) type Members = Vec<(String, Arc<Protection>)>;

/// A member in another process, and its group's name.
struct Far {
    place: String,
    member: FarMember,
}

/// See the module's text.
pub(super) struct Cutting {
    config: SetConfig,
    members: Vec<(String, Weak<Protection>)>,
    far: Vec<Far>,
    /// Of whom the cuts are taken now. Dropped first, so that nothing is ordered any more.
    taking: Option<(Vec<GroupId>, Taking)>,
    away: Trouble,
    missed: Arc<Mutex<Trouble>>,
}

impl Drop for Cutting {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Cutting {
    /// Cuts of these groups of this process, and of those that the file names elsewhere. None is taken before all are there: see
    /// [`Cutting::look`].
    pub(super) fn new(config: &SetConfig, members: &Members, context: &Context) -> Self {
        let set = identity(config);
        let far = config.members.iter().map(|url| {
            let place =
                MemberPlace { address: url.authority(), group: url.group.clone(), peers: context.peers.pinned() };
            let own = Arc::clone(&context.identity);
            Far { place: url.to_string(), member: FarMember::reach(&context.runtime, own, place, set) }
        });
        Self {
            config: config.clone(),
            members: members.iter().map(|(name, member)| (name.clone(), Arc::downgrade(member))).collect(),
            far: far.collect(),
            taking: None,
            away: Trouble::default(),
            missed: Arc::default(),
        }
    }

    /// Whether it is this very set, of these very protections.
    pub(super) fn is_of(&self, config: &SetConfig, members: &Members) -> bool {
        let known = self.members.iter().map(|(_, member)| member.as_ptr());
        self.config == *config && known.eq(members.iter().map(|(_, member)| Arc::as_ptr(member)))
    }

    /// No cut is taken, and nobody here withholds anything.
    fn rest(&mut self) {
        if self.taking.take().is_some() {
            self.members.iter().filter_map(|(_, member)| member.upgrade()).for_each(|member| member.leave_set());
        }
    }

    /// Takes cuts as long as every member is there: while one is away no other withholds anything for nothing.
    ///
    /// # Errors
    /// Why no cuts can be taken of these members.
    pub(super) fn look(&mut self, context: &Context) -> Result<(), String> {
        let mut groups = Vec::new();
        for far in &self.far {
            match far.member.standing() {
                Standing::There(group) => groups.push(group),
                Standing::Reaching => return Ok(()),
                Standing::Away(why) => {
                    let (name, place) = (&self.config.name, &far.place);
                    if self.away.is_there() {
                        context
                            .notes
                            .say(&format!("set {name}: no common points are cut while {place} is away: {why}"));
                    }
                    self.rest();
                    return Ok(());
                }
            }
        }
        if self.taking.as_ref().is_some_and(|(known, _)| *known == groups) {
            return Ok(());
        }
        self.rest();
        if self.away.is_over() {
            context.notes.say(&format!("set {}: all members are there, common points are cut again", self.config.name));
        }
        self.begin(groups, &context.notes)
    }

    fn begin(&mut self, groups: Vec<GroupId>, notes: &Notes) -> Result<(), String> {
        let set = identity(&self.config);
        let (give, inbox) = reports();
        let members: Members =
            self.members.iter().filter_map(|(name, member)| Some((name.clone(), member.upgrade()?))).collect();
        let mut ways: BTreeMap<GroupId, Way> = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (far, group) in self.far.iter().zip(&groups) {
            ways.insert(*group, far.member.way(give.clone()));
            names.insert(*group, far.place.clone());
        }
        for (name, member) in &members {
            let order_to = Arc::downgrade(member);
            let way: Way =
                Box::new(move |order| order_to.upgrade().into_iter().for_each(|member| member.set_order(order)));
            ways.insert(member.group(), way);
            names.insert(member.group(), name.clone());
        }
        // A cut that counted one of two would be called common without the other.
        if ways.len() != self.config.groups.len() {
            return Err(format!(
                "its {} groups are only {} different ones: two names stand for one group, or one has just ended",
                self.config.groups.len(),
                ways.len()
            ));
        }
        for (_, member) in &members {
            let give = give.clone();
            let reports = Box::new(move |report| give.give(report));
            member.join_set(SetOptions { set, name: self.config.name.clone(), reports });
        }
        let (name, notes, missed) = (self.config.name.clone(), notes.clone(), Arc::clone(&self.missed));
        // The first of a row of misses is told, and that it is over.
        let ended = move |end: Ended| {
            let mut missed = missed.lock().unwrap_or_else(PoisonError::into_inner);
            match end.verdict {
                Verdict::Missed(why) if missed.is_there() => {
                    let why = sentence(&why, &names);
                    notes.say(&format!("set {name}: the cut {} is no common point: {why}", end.cut.number));
                }
                Verdict::Common(_) if missed.is_over() => {
                    notes.say(&format!("set {name}: common points are cut again"));
                }
                _ => {}
            }
        };
        match Taking::start(set, ways, self.config.every.0, (give, inbox), ended) {
            Ok(taking) => {
                self.taking = Some((groups, taking));
                Ok(())
            }
            Err(error) => {
                members.iter().for_each(|(_, member)| member.leave_set());
                Err(error.to_string())
            }
        }
    }
}

/// Why a cut is no common point, with the names of groups.
fn sentence(miss: &Miss, names: &BTreeMap<GroupId, String>) -> String {
    let name = |group: &GroupId| names.get(group).cloned().unwrap_or_else(|| group.to_string());
    let all = |groups: &[GroupId]| groups.iter().map(name).collect::<Vec<_>>().join(", ");
    match miss {
        Miss::NotPrepared(groups) => format!("not prepared within 5 ms: {}", all(groups)),
        Miss::Released(group, how) => format!("{} let go before it was told to ({})", name(group), how.as_str()),
        Miss::Changed(group) => format!("{} was started again meanwhile", name(group)),
        Miss::NotReleased(groups) => format!("it is not known why these let go: {}", all(groups)),
        Miss::NotKept(groups) => format!("not recorded by {}", all(groups)),
    }
}
