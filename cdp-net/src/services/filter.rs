//! The filter's role: serves the disks of many groups, and protects each group into a replica at another site.
//!
//! The guest comes first: a group that cannot be protected now is served all the same ([`RemoteProtection`]), and one whose disks cannot
//! be opened holds up no other. A thread of the role's own opens those again, and cuts the common points of consistency sets.
//!
//! [`RemoteProtection`]: super::remote::RemoteProtection

mod group;
mod sets;
#[cfg(test)]
mod tests;
mod unclaimed;

use self::group::Group;
use self::sets::Sets;
use super::config::{Config, FilterConfig, FilterGroup, SetConfig};
use super::role::{Context, DoorReport, Drained, Held, Report, Role, RoleError, ticket_of};
use super::traffic::{Traffic, rules};
use crate::link::listener::AcceptStats;
use crate::protect::SharedBudget;
use crate::sets::link::member::Attendance;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How often groups that do not run, and sets whose groups may be there by now, are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How many looks later a group is opened again whose disks could not be opened.
const OPEN_AGAIN: u32 = 10;
/// What a group that is taken out of the file may take to become durable.
const TAKEN_OUT: Duration = Duration::from_secs(10);

/// See the module's text.
pub struct Filter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}

/// What the role's calls and its thread share.
struct Shared {
    context: Context,
    /// Of all groups together.
    memory: Arc<SharedBudget>,
    /// The rules of the file, for all groups.
    traffic: Traffic,
    /// What the file's ticket is, for all groups; empty: it names none.
    ticket: Mutex<Bytes>,
    /// As many as the file names.
    groups: Mutex<BTreeMap<String, Arc<Group>>>,
    config: Mutex<(FilterConfig, Vec<SetConfig>)>,
    sets: Mutex<Sets>,
    /// Where the filters of other hosts find the groups of their sets, if anywhere.
    attendance: Option<Arc<Attendance>>,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The role's table, which a file that starts it has.
fn table(config: &Config) -> Result<&FilterConfig, RoleError> {
    config.filter.as_ref().ok_or_else(|| RoleError::new("the file has no table [filter]"))
}

impl Shared {
    fn groups(&self) -> Vec<Arc<Group>> {
        lock(&self.groups).values().cloned().collect()
    }

    /// Makes groups and opens them, all at once: each may wait for its replica for a while. Gives why the first one of those does not
    /// work, and whether any does.
    fn add(&self, config: &FilterConfig, groups: Vec<FilterGroup>) -> (Option<String>, bool) {
        let ticket = lock(&self.ticket).clone();
        let made: Vec<_> = groups
            .into_iter()
            .map(|group| Group::new(config, group, &self.context, &self.memory, &self.traffic, ticket.clone()))
            .map(Arc::new)
            .collect();
        std::thread::scope(|scope| {
            for group in &made {
                scope.spawn(|| group.open());
            }
        });
        let first = made.iter().find_map(|group| group.problem());
        let any = made.iter().any(|group| group.problem().is_none());
        lock(&self.groups).extend(made.into_iter().map(|group| (group.name().to_owned(), group)));
        (first, any)
    }

    fn run(&self) {
        let mut looks = 0_u32;
        while !self.stop.load(Ordering::Relaxed) {
            let groups = self.groups();
            looks = looks.wrapping_add(1);
            for group in &groups {
                if looks.is_multiple_of(OPEN_AGAIN) && group.problem().is_some() {
                    group.open();
                }
                group.look();
            }
            self.look_at_sets(&groups);
            crate::threads::pause(&self.stop, LOOK);
        }
    }

    fn look_at_sets(&self, groups: &[Arc<Group>]) {
        let config = lock(&self.config).clone();
        lock(&self.sets).look(&config, groups, self.attendance.as_ref(), &self.context);
    }

    fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        lock(&self.sets).end();
    }
}

/// Listens for those who take the cuts of sets with groups of other hosts.
fn attendance(listen: SocketAddr, context: &Context) -> Result<Arc<Attendance>, RoleError> {
    let (own, peers) = (Arc::clone(&context.identity), context.peers.pinned());
    let listening = context.runtime.block_on(Attendance::listen(&listen.to_string(), own, peers));
    let attendance = listening.map_err(|error| {
        RoleError::new(format!("filter.listen: cannot listen at {listen}: {error}"))
            .hint("end what listens there, or name another address")
    })?;
    context.notes.say(&format!("filter: listens at {}", attendance.address()));
    Ok(Arc::new(attendance))
}

impl Role for Filter {
    fn start(config: &Config, context: &Context) -> Result<Self, RoleError> {
        let filter = table(config)?;
        let ticket = ticket_of("filter", filter.ticket.as_deref())?;
        let attendance = filter.listen.map(|listen| attendance(listen, context)).transpose()?;
        let shared = Arc::new(Shared {
            context: context.clone(),
            memory: SharedBudget::new(filter.spool.memory.0),
            traffic: Traffic::new(rules(config)?),
            ticket: Mutex::new(ticket),
            groups: Mutex::default(),
            config: Mutex::new((filter.clone(), config.sets.clone())),
            sets: Mutex::default(),
            attendance,
            stop: AtomicBool::new(false),
        });
        let (first, any) = shared.add(filter, filter.groups.clone());
        if let Some(why) = first.filter(|_| !any) {
            return Err(RoleError::new(format!("no group can be served; the first one: {why}"))
                .hint("each group needs a `listen` that is free, and as `source` of its disks raw images or block devices that nobody else uses"));
        }
        if let Some(sentence) = unclaimed::sentence(&context.state.join("filter"), filter) {
            context.notes.say(&sentence);
        }
        let for_thread = Arc::clone(&shared);
        let thread = Builder::new().name("cdp-filter".to_owned()).spawn(move || for_thread.run());
        let thread = thread.map_err(|error| RoleError::new(format!("cannot start the filter's thread: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn name(&self) -> &'static str {
        "filter"
    }

    fn reload(&self, config: &Config) -> Result<Vec<String>, RoleError> {
        let filter = table(config)?;
        let (ticket, rules) = (ticket_of("filter", filter.ticket.as_deref())?, rules(config)?);
        self.shared.traffic.set(rules);
        let mut known = lock(&self.shared.config);
        let before = known.0.clone();
        let mut unchanged = Vec::new();
        let mut name_if = |differs: bool, name: &str| {
            if differs {
                unchanged.push(name.to_owned());
            }
        };
        name_if(before.spool != filter.spool, "filter.spool");
        name_if(before.connections != filter.connections, "filter.connections");
        name_if(before.listen != filter.listen, "filter.listen");
        for group in &filter.groups {
            let differs = before.groups.iter().any(|known| known.name == group.name && known != group);
            name_if(differs, &format!("filter.group {:?}", group.name));
        }
        let is_in = |groups: &[FilterGroup], name: &str| groups.iter().any(|group| group.name == name);
        let out: Vec<_> = before.groups.iter().filter(|group| !is_in(&filter.groups, &group.name)).collect();
        let new: Vec<_> = filter.groups.iter().filter(|group| !is_in(&before.groups, &group.name)).cloned().collect();
        // What of the others stays as it was is remembered as it is.
        let stays = before.groups.iter().filter(|group| is_in(&filter.groups, &group.name)).cloned();
        let groups = stays.chain(new.iter().cloned()).collect();
        let now = FilterConfig { groups, to: filter.to.clone(), ticket: filter.ticket.clone(), ..before.clone() };
        *known = (now.clone(), config.sets.clone());
        drop(known);
        // Another place may be a gateway that wants it.
        self.shared.groups().iter().for_each(|group| group.set_ticket(&ticket));
        *lock(&self.shared.ticket) = ticket;
        if before.to != filter.to {
            self.shared.groups().iter().for_each(|group| group.set_places(&filter.to));
        }
        let gone: Vec<_> = out.iter().filter_map(|group| lock(&self.shared.groups).remove(&group.name)).collect();
        // Common points are not cut over what is about to end.
        self.shared.look_at_sets(&self.shared.groups());
        std::thread::scope(|scope| {
            for group in &gone {
                scope.spawn(|| group.close(TAKEN_OUT));
            }
        });
        // Those that stay give room to new ones first, or have that of those that went.
        let spool_bytes = group::spool_bytes(&now);
        self.shared.groups().iter().for_each(|group| group.set_spool_bytes(spool_bytes));
        // The places of those that went may be those of new ones.
        self.shared.add(&now, new);
        Ok(unchanged)
    }

    fn drain(&self, within: Duration) -> Drained {
        self.shared.end();
        let groups = self.shared.groups();
        let left = std::thread::scope(|scope| {
            let closing: Vec<_> = groups.iter().map(|group| scope.spawn(|| group.close(within))).collect();
            // What one that panicked left nobody knows: at least nothing is vouched for.
            closing.into_iter().map(|closing| closing.join().unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
        });
        Drained { left_bytes: left }
    }

    fn report(&self) -> Report {
        let groups = self.shared.groups().iter().map(|group| group.report()).collect();
        let spool = lock(&self.shared.config).0.spool.clone();
        let held_max = Held { memory: spool.memory.0, disk: spool.disk.0 };
        let door = self.shared.attendance.as_ref().map(|attendance| {
            let AcceptStats { let_in, refused, dawdled, errors, .. } = attendance.stats();
            DoorReport { let_in, refused, dawdled, errors }
        });
        Report { groups, held_max, door, ..Report::default() }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.shared.end();
        // One that panicked has ended too.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
