//! Questions on their way: they pass every part of the chain, are lost with any of them, and are asked again. So one may come late, and
//! twice.

use super::super::calls::{Ask, Begun, Given, Reply};
use super::super::host::Life;
use super::super::part::MS;
use super::{Event, World};
use cdp_core::types::Timeline;

/// After so long without an answer it is asked again.
const PATIENCE_NS: u64 = 400 * MS;
/// What is not done yet is looked at again after so long.
const NOT_YET_NS: u64 = 15 * MS;
/// A question in so many comes twice, the second one so much later at most.
const TWICE_ONE_IN: u64 = 8;
const LATE_NS: u64 = 600 * MS;

/// A question without an answer.
pub struct Asked {
    group: usize,
    /// Whose it is: of a host that fell nobody waits.
    life: u64,
    ask: Ask,
    sendings: u64,
}

impl World {
    pub fn order_begin(&mut self, group: usize, starts: bool) {
        let timeline = Timeline::new(self.rng.identity()).expect("not 0");
        let given = self.groups[group].host.given();
        self.note([group as u64, 3, self.next_ask, 0], || format!("group {group} wants timeline {timeline}"));
        // The one before, if it is still asked for, is not wanted any more.
        self.groups[group].begins = Some(self.next_ask);
        self.ask(group, Ask::Begin { timeline, starts, given });
    }

    pub fn ask(&mut self, group: usize, ask: Ask) {
        let number = self.next_ask;
        self.next_ask += 1;
        self.asked.insert(number, Asked { group, life: self.groups[group].life, ask, sendings: 0 });
        self.ask_again(number);
    }

    pub fn ask_again(&mut self, number: u64) {
        let Some(Asked { group, life, ask, sendings }) = self.asked.get(&number) else { return };
        let (group, life, ask, sendings) = (*group, *life, ask.clone(), *sendings);
        // What a comparison asks it asks again by itself.
        let given_up = matches!(ask, Ask::Hashes(_)) && sendings > 0;
        if given_up || life != self.groups[group].life || !self.is_wanted(group, number, &ask) {
            self.asked.remove(&number);
            return;
        }
        let sending = sendings + 1;
        self.asked.insert(number, Asked { group, life, ask: ask.clone(), sendings: sending });
        self.at(self.now + PATIENCE_NS, Event::AskAgain(number));
        if self.reaches(group) {
            let arrives = self.now + self.whole_way();
            self.at(arrives, Event::Ask { group, number, ask: ask.clone(), sending });
            if self.rng.one_in(TWICE_ONE_IN) {
                let late = arrives + self.rng.below(LATE_NS);
                self.at(late, Event::Ask { group, number, ask, sending: 0 });
            }
        }
    }

    /// Of orders for a timeline only the newest counts; what was to be written down is, of the timeline before, said anew.
    fn is_wanted(&self, group: usize, number: u64, ask: &Ask) -> bool {
        match ask {
            Ask::Begin { .. } => self.groups[group].begins == Some(number),
            Ask::Disks { timeline, .. } => self.groups[group].host.any_world().options.timeline == *timeline,
            _ => true,
        }
    }

    /// Whether everybody between a host and its replica passes on what is asked.
    fn reaches(&self, group: usize) -> bool {
        let dark = self.hops.iter().any(|hop| hop.dark_until > self.now);
        !dark && (1..self.width).all(|part| self.is_up(group * self.width + part))
    }

    fn whole_way(&mut self) -> u64 {
        (0..self.hops.len()).map(|hop| self.way(hop)).sum()
    }

    pub fn ask_arrives(&mut self, group: usize, number: u64, ask: Ask, sending: u64) {
        if !self.reaches(group) || !self.is_wanted(group, number, &ask) {
            return;
        }
        let part = (group + 1) * self.width - 1;
        let clock = self.clock(part);
        let reply = self.groups[group].replica.ask(clock, number, &ask);
        self.touched.insert(part);
        match reply {
            Some(reply) => {
                let arrives = self.now + self.whole_way();
                self.at(arrives, Event::Answer { group, number, reply: Box::new(reply) });
            }
            None if self.asked.get(&number).is_some_and(|asked| asked.sendings == sending) => {
                self.at(self.now + NOT_YET_NS, Event::Ask { group, number, ask, sending });
            }
            None => {}
        }
    }

    pub fn answer_arrives(&mut self, group: usize, number: u64, reply: Reply) {
        if !self.reaches(group) {
            return;
        }
        let Some(asked) = self.asked.remove(&number).filter(|asked| asked.life == self.groups[group].life) else {
            return;
        };
        if let (Ask::Begin { timeline, given, .. }, Reply::Begun(begun)) = (&asked.ask, reply.clone()) {
            return self.begun(group, *timeline, (begun, given.as_slice()));
        }
        let part = group * self.width;
        self.note([part as u64, 9, number, 0], || format!("{part} is answered: {reply:?}"));
        let clock = self.clock(part);
        self.groups[group].host.answered(clock, asked.ask, reply);
        self.touched.insert(part);
    }

    fn begun(&mut self, group: usize, timeline: Timeline, (begun, given): (Begun, &[Given])) {
        self.groups[group].begins = None;
        self.note([6, group as u64, begun.after.map_or(0, |(_, fork)| fork.0), 0], || {
            format!("group {group} goes on on {timeline} after {:?}, uncopied {:?}", begun.after, begun.uncopied)
        });
        let now = self.now;
        let host = &mut self.groups[group].host;
        if matches!(host.life, Life::Down(_)) {
            self.mending -= 1;
        }
        host.begin(timeline, begun, given);
        let (calm, world) = (self.calm, host.world_mut().expect("it began"));
        world.calm |= calm;
        let part = group * self.width;
        self.ahead[part] = world.now as i64 - now as i64;
        self.touched.insert(part);
    }
}
