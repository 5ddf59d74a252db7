//! What goes wrong, and who notices.

use super::super::host::DOWN_NS;
use super::super::part::MS;
use super::super::plan::{Fault, Ill};
use super::net::Pipe;
use super::{Event, World};
use cdp_core::link::source::ConnId;

impl World {
    pub fn crashed(&mut self, part: usize) {
        let (group, number) = (part / self.width, part % self.width);
        let touches = |(_, pipe): &(&ConnId, &Pipe)| {
            pipe.group == group && !pipe.dead && (pipe.hop == number || pipe.hop + 1 == number)
        };
        let broken: Vec<ConnId> = self.pipes.iter().filter(touches).map(|(conn, _)| *conn).collect();
        broken.into_iter().for_each(|conn| self.break_pipe(conn));
        self.due[part] = u64::MAX;
    }

    pub fn crash_replica(&mut self, group: usize) {
        let replica = &mut self.groups[group].replica;
        if replica.is_down {
            return;
        }
        replica.crash();
        self.mending += 1;
        self.crashed((group + 1) * self.width - 1);
        let time = self.now + self.rng.between(MS, 1_000 * MS);
        self.at(time, Event::ReplicaBack(group));
    }

    pub fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Cut { hop, one } => {
                let of_hop: Vec<ConnId> = self.pipes.iter().filter(|(_, p)| p.hop == hop).map(|(id, _)| *id).collect();
                let chosen = one.then(|| self.rng.below(of_hop.len().max(1) as u64) as usize);
                let chosen = |at: usize| chosen.is_none_or(|chosen| chosen == at);
                let cut = of_hop.into_iter().enumerate().filter(|(at, _)| chosen(*at));
                cut.for_each(|(_, conn)| self.break_pipe(conn));
            }
            Fault::Dark { hop, ns } => {
                let until = self.now + ns;
                self.hops[hop].dark_until = self.hops[hop].dark_until.max(until);
                self.pipes.values_mut().filter(|pipe| pipe.hop == hop).for_each(|pipe| pipe.dead = true);
                self.mending += 1;
                self.at(until, Event::Heal(hop));
            }
            Fault::Host { group, end } => {
                if self.is_up(group * self.width) {
                    self.groups[group].host.crash(end);
                    self.groups[group].life += 1;
                    self.groups[group].begins = None;
                    self.mending += 1;
                    self.crashed(group * self.width);
                    let time = self.now + self.rng.between(MS, DOWN_NS);
                    self.at(time, Event::Start(group));
                }
            }
            Fault::Proxy { hop, keeps } => {
                if self.is_up(hop) {
                    for group in 0..self.groups.len() {
                        self.groups[group].proxies[hop - 1].crash();
                        self.crashed(group * self.width + hop);
                    }
                    self.mending += 1;
                    let time = self.now + self.rng.between(MS, DOWN_NS);
                    self.at(time, Event::ProxyBack { hop, keeps });
                }
            }
            Fault::Replica { group } => self.crash_replica(group),
            Fault::ReplicaWrite { group, after } => self.groups[group].replica.writes_fail = after,
            Fault::ReplicaFull { group, ns, at_all } => {
                let clock = self.clock((group + 1) * self.width - 1);
                let replica = &mut self.groups[group].replica;
                (replica.no_space_until, replica.no_space_at_all) = (clock.after(ns), at_all);
            }
            Fault::ProxyDisk { hop, ns, ill } => {
                for group in 0..self.groups.len() {
                    let until = self.clock(group * self.width + hop).after(ns);
                    let proxy = &mut self.groups[group].proxies[hop - 1];
                    *match ill {
                        Ill::Reads => &mut proxy.reads_fail_until,
                        Ill::Writes => &mut proxy.writes_fail_until,
                        Ill::Full => &mut proxy.full_until,
                    } = until;
                }
            }
        }
    }
}
