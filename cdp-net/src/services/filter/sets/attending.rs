//! A group whose set is cut from another host's filter.

use super::identity;
use crate::protect::{Protection, SetOptions};
use crate::services::config::SetConfig;
use crate::services::role::Context;
use crate::sets::link::member::{Attendance, Present, reports_out};
use std::sync::{Arc, Weak};

/// Its place at the listener. Dropping it leaves the set.
pub(super) struct Attending {
    config: SetConfig,
    group: String,
    protection: Weak<Protection>,
    attendance: Arc<Attendance>,
}

impl Attending {
    pub(super) fn begin(
        config: &SetConfig,
        group: &str,
        protection: &Arc<Protection>,
        attendance: &Arc<Attendance>,
        context: &Context,
    ) -> Self {
        let set = identity(config);
        let (out, queue) = reports_out();
        // One too many is lost, and what it would have said is asked for again.
        let reports = Box::new(move |report| {
            let _ = out.try_send(report);
        });
        protection.join_set(SetOptions { set, name: config.name.clone(), reports });
        let order_to = Arc::downgrade(protection);
        let order =
            Box::new(move |order| order_to.upgrade().into_iter().for_each(|protection| protection.set_order(order)));
        let present = Present { set, group: protection.group(), order };
        attendance.sit(&context.runtime, group, present, queue);
        let (config, group, protection) = (config.clone(), group.to_owned(), Arc::downgrade(protection));
        Self { config, group, protection, attendance: Arc::clone(attendance) }
    }

    /// Whether it is of this very set and protection.
    pub(super) fn is_of(&self, config: &SetConfig, protection: &Arc<Protection>) -> bool {
        self.config == *config && self.protection.upgrade().is_some_and(|known| Arc::ptr_eq(&known, protection))
    }
}

impl Drop for Attending {
    fn drop(&mut self) {
        self.attendance.leave(&self.group);
        self.protection.upgrade().into_iter().for_each(|protection| protection.leave_set());
    }
}
