//! What a tenant may have at a gateway: connections at once and bytes a second, of all its tickets together and of each.

use crate::services::pace::{Member, Pace};
use crate::services::role::TenantReport;
use cdp_core::link::message::{Code, Farewell};
use cdp_core::policy::throttle::RateTooLow;
use cdp_core::trust::ticket::Ticket;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tenants whose counts are kept, at most. One more takes the place of one that has no connection, whose counts begin anew; where all
/// have one it is refused as busy.
const TENANTS_MAX: usize = 10_000;
/// Tickets of a tenant that are known while no connection has them, at most: what they used of their rate is not forgotten by hanging up.
/// One more takes the place of another one.
const IDLE_TICKETS_MAX: usize = 16;

/// What every tenant may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections: u32,
    /// Bytes a second, both ways together; none: no limit but those of its tickets.
    pub(super) rate: Option<u64>,
}

/// Bytes that went.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// To the provider.
    pub(super) up: AtomicU64,
    /// Back.
    pub(super) down: AtomicU64,
}

/// What the tenants have.
#[derive(Debug)]
pub(super) struct Tenants(Mutex<Book>);

#[derive(Debug)]
struct Book {
    limits: Limits,
    /// At most [`TENANTS_MAX`].
    tenants: BTreeMap<String, Tenant>,
}

#[derive(Debug)]
struct Tenant {
    open: u32,
    limited: u64,
    traffic: Arc<Traffic>,
    pace: Arc<Pace>,
    /// By their serials: those that connections have, and [`IDLE_TICKETS_MAX`].
    tickets: BTreeMap<[u8; 16], Used>,
}

#[derive(Debug)]
struct Used {
    open: u16,
    /// None: the ticket has no rate of its own.
    pace: Option<Arc<Pace>>,
}

/// A connection's place among those of its tenant and ticket; free again when it goes.
#[derive(Debug)]
pub(super) struct Place {
    tenants: Arc<Tenants>,
    tenant: String,
    serial: [u8; 16],
    /// Where its bytes are counted.
    pub(super) traffic: Arc<Traffic>,
    paces: Vec<Arc<Pace>>,
}

impl Place {
    /// Its shares of the limits that hold for it, for one direction.
    pub(super) fn shares(&self) -> Vec<Member> {
        self.paces.iter().map(Pace::join).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut book = self.tenants.lock();
        let Some(tenant) = book.tenants.get_mut(&self.tenant) else { return };
        tenant.open -= 1;
        if let Some(used) = tenant.tickets.get_mut(&self.serial) {
            used.open -= 1;
        }
        let idle = |used: &&Used| used.open == 0;
        if tenant.tickets.values().filter(idle).count() > IDLE_TICKETS_MAX {
            let other = |(serial, used): &(&[u8; 16], &Used)| idle(used) && **serial != self.serial;
            let goes = tenant.tickets.iter().find(other).map(|(serial, _)| *serial);
            goes.map(|serial| tenant.tickets.remove(&serial));
        }
    }
}

impl Tenants {
    /// Nobody is there yet.
    pub(super) fn new(limits: Limits) -> Self {
        Self(Mutex::new(Book { limits, tenants: BTreeMap::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These limits from now on. Connections above them stay.
    pub(super) fn set(&self, limits: Limits) -> Result<(), RateTooLow> {
        let mut book = self.lock();
        book.limits = limits;
        book.tenants.values().try_for_each(|tenant| tenant.pace.set_rate(limits.rate))
    }

    /// A place for a connection with this ticket.
    ///
    /// # Errors
    /// Which limit is reached.
    pub(super) fn enter(self: &Arc<Self>, ticket: &Ticket) -> Result<Place, Farewell> {
        let mut book = self.lock();
        let limits = book.limits;
        if !book.tenants.contains_key(&ticket.tenant) {
            book.add(&ticket.tenant)?;
        }
        let Some(tenant) = book.tenants.get_mut(&ticket.tenant) else { return Err(full()) };
        let of_ticket = tenant.tickets.get(&ticket.serial).map_or(0, |used| used.open);
        let reached = if tenant.open >= limits.connections {
            Some((format!("tenant {:?} has {} connections", ticket.tenant, tenant.open), limits.connections))
        } else if of_ticket >= ticket.connections {
            Some((format!("{of_ticket} connections are open with this ticket"), ticket.connections.into()))
        } else {
            None
        };
        if let Some((text, most)) = reached {
            tenant.limited += 1;
            return Err(Farewell::new(Code::Busy, text).with(most.into(), most.into()));
        }
        let rate = ticket.bytes_per_second;
        let pace = || rate.map(|rate| Pace::new(Some(rate)).map(Arc::new)).transpose();
        let used = match tenant.tickets.entry(ticket.serial) {
            std::collections::btree_map::Entry::Occupied(used) => used.into_mut(),
            std::collections::btree_map::Entry::Vacant(none) => {
                none.insert(Used { open: 0, pace: pace().map_err(|error| internal(&error))? })
            }
        };
        used.open += 1;
        tenant.open += 1;
        let paces = used.pace.iter().chain([&tenant.pace]).cloned().collect();
        let (traffic, tenant) = (Arc::clone(&tenant.traffic), ticket.tenant.clone());
        Ok(Place { tenants: Arc::clone(self), tenant, serial: ticket.serial, traffic, paces })
    }

    /// How they stand.
    pub(super) fn report(&self) -> Vec<TenantReport> {
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let report = |(name, tenant): (&String, &Tenant)| TenantReport {
            tenant: name.clone(),
            connections: tenant.open.into(),
            in_bytes: read(&tenant.traffic.up),
            out_bytes: read(&tenant.traffic.down),
            limited: tenant.limited,
        };
        self.lock().tenants.iter().map(report).collect()
    }
}

impl Book {
    /// Makes room for one more tenant and takes it in.
    fn add(&mut self, name: &str) -> Result<(), Farewell> {
        if self.tenants.len() >= TENANTS_MAX {
            let idle = self.tenants.iter().find(|(_, tenant)| tenant.open == 0).map(|(name, _)| name.clone());
            self.tenants.remove(&idle.ok_or_else(full)?);
        }
        let pace = Arc::new(Pace::new(self.limits.rate).map_err(|error| internal(&error))?);
        let (traffic, tickets) = (Arc::default(), BTreeMap::new());
        self.tenants.insert(name.to_owned(), Tenant { open: 0, limited: 0, traffic, pace, tickets });
        Ok(())
    }
}

fn full() -> Farewell {
    Farewell::new(Code::Busy, format!("{TENANTS_MAX} tenants have connections here"))
}

fn internal(error: &RateTooLow) -> Farewell {
    Farewell::new(Code::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::types::WallTime;

    fn ticket(tenant: &str, serial: u8) -> Ticket {
        Ticket {
            serial: [serial; 16],
            tenant: tenant.into(),
            group: None,
            timeline: None,
            route: "target-1".into(),
            certificate: [2; 32],
            not_before: WallTime(10),
            not_after: WallTime(20),
            connections: 2,
            bytes_per_second: Some(1),
        }
    }

    #[test]
    fn a_tenant_at_its_limits_is_refused_and_counted_and_no_other_is() {
        let tenants = Arc::new(Tenants::new(Limits { connections: 3, rate: None }));
        let enter = |tenant: &str, serial| tenants.enter(&ticket(tenant, serial));
        let mut open = vec![enter("acme", 1).unwrap(), enter("acme", 1).unwrap()];
        let refused = enter("acme", 1).unwrap_err();
        assert_eq!((refused.code, refused.expected), (Code::Busy, 2), "the ticket's limit: {refused}");
        open.push(enter("acme", 2).unwrap());
        let refused = enter("acme", 2).unwrap_err();
        assert_eq!((refused.code, refused.expected), (Code::Busy, 3), "the tenant's limit: {refused}");
        open.push(enter("other", 1).unwrap());
        let counts: Vec<_> = tenants.report().into_iter().map(|of| (of.tenant, of.connections, of.limited)).collect();
        assert_eq!(counts, [("acme".into(), 3, 2), ("other".into(), 1, 0)]);
        tenants.set(Limits { connections: 1, rate: Some(1 << 20) }).unwrap();
        open.remove(0);
        assert!(enter("acme", 1).is_err(), "a lower limit holds for who comes");
        open.clear();
        assert!(enter("acme", 1).is_ok());
        assert_eq!(tenants.report()[0].connections, 0);
    }

    #[test]
    fn tickets_and_tenants_that_are_idle_give_way_and_those_in_use_do_not() {
        let tenants = Arc::new(Tenants::new(Limits { connections: 100, rate: None }));
        let stays = tenants.enter(&ticket("acme", 0)).unwrap();
        for serial in 1..=100 {
            tenants.enter(&ticket("acme", serial)).unwrap();
            assert!(tenants.lock().tenants["acme"].tickets.len() <= 1 + IDLE_TICKETS_MAX);
        }
        assert!(tenants.lock().tenants["acme"].tickets.contains_key(&[0; 16]));
        assert!(tenants.lock().tenants["acme"].tickets.contains_key(&[100; 16]), "the last one is not forgotten");
        for number in 0..TENANTS_MAX {
            tenants.enter(&ticket(&format!("tenant {number}"), 1)).unwrap();
        }
        assert_eq!(tenants.report().len(), TENANTS_MAX);
        assert!(tenants.report().iter().any(|of| of.tenant == "acme" && of.connections == 1));
        drop(stays);
    }
}
