//! What is due: the timers, and the one drain loop of outputs.

use super::{Doubt, Filter, Life, Room};
use crate::capture::activity::LogState;
use crate::capture::options::NotOpen;
use crate::capture::output::{Event, Failed, LogToken, LogTrust, Output};
use crate::types::{MonoTime, Now};

impl Filter {
    /// The next thing to do, or `None` until the next call or deadline.
    pub fn poll(&mut self, now: Now) -> Option<Output> {
        self.stuck_at = MonoTime(u64::MAX);
        loop {
            if std::mem::take(&mut self.kicked) || now.mono >= self.timer_due {
                self.timer_due = MonoTime(u64::MAX);
                self.tick(now);
                self.working = true;
            }
            if let Some(ticket) = self.ready.pop_front() {
                return Some(Output::Ready(ticket));
            }
            if self.working {
                if let Some(output) = self.work(now) {
                    return Some(output);
                }
                self.working = false;
                self.timer_due = self.next_deadline().unwrap_or(MonoTime(u64::MAX));
            }
            if !self.kicked {
                break;
            }
        }
        if let Some(event) = self.events.pop_front() {
            return Some(Output::Event(event));
        }
        let writer = self.activity.writer();
        self.gather.frames.pop_front_if(|frame| writer.may_give(frame.last_lsn())).map(Output::Frame)
    }

    fn work(&mut self, now: Now) -> Option<Output> {
        if self.activity.writer_mut().take_removal() {
            return Some(Output::RemoveLog);
        }
        let waiting = self.order.log_wanted_since().is_some();
        if let Some(write) = self.activity.next_write(now.mono, self.durable, waiting) {
            return Some(Output::Log(write));
        }
        if let Some(disk) = self.activity.next_flush() {
            return Some(Output::Flush(self.disks[disk].id, self.flush_ticket(disk, false)));
        }
        if let Some(lsn) = self.lend_due.take() {
            return Some(Output::Lend(lsn));
        }
        self.next_reread(now).map(Output::Reread)
    }

    /// When `poll` has something to do again, if nothing else is called before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        let retry = self.activity.writer().retry_due();
        let log = [retry, self.log_wait_due()];
        if matches!(self.life, Life::Closed { .. }) {
            return log.into_iter().flatten().min();
        }
        let running = self.life == Life::Running;
        let frame = self.gather.opened().map(|opened| opened.after(self.limits.frame_age_ns_max));
        let time = (running && self.gap.is_none()).then(|| self.clock.due());
        let point = running.then(|| self.points.due());
        let clean = Some(self.activity.clean_due());
        let records = [frame, time, point, clean, self.tell_due, self.reread_wait, self.rest_wait];
        log.into_iter().chain(records).flatten().min()
    }

    /// When ops have waited long enough for the log.
    fn log_wait_due(&self) -> Option<MonoTime> {
        self.activity.writer().wait_due(self.order.log_wanted_since())
    }

    fn tick(&mut self, now: Now) {
        let gathered = self.gather.gathered();
        self.rates.sample(now.mono.0, gathered, gathered - self.gather.queued(), self.gather.durable_cost());
        self.tick_log(now);
        self.look_detached();
        if !matches!(self.life, Life::Closed { .. }) {
            self.tick_records(now);
        }
        self.tell_state();
        self.tell_closed();
    }

    fn tick_log(&mut self, now: Now) {
        if self.log_wait_due().is_some_and(|due| due <= now.mono) {
            self.activity.lose(now.mono);
        }
        if let Some(trust) = self.activity.writer_mut().take_untold() {
            self.events.push_back(Event::Log(trust));
            if matches!(trust, LogTrust::Lost { .. }) {
                self.release(now);
            }
        }
        let over = |lsn, flushes: &[u64]| lsn <= self.restorable && self.activity.flushed_beyond(flushes);
        if let Some(Doubt::Ended { lsn, flushes }) = &self.doubt
            && over(*lsn, flushes)
        {
            self.doubt = None;
            self.activity.writer_mut().set_state(LogState::Open);
        }
        if now.mono >= self.activity.clean_due() && !matches!(self.life, Life::Closed { .. }) {
            // What is read again is not at the replica before the resync has ended durably: no bit is cleared until then.
            match self.window {
                Some(_) => self.activity.put_off_cleaning(now.mono),
                None => self.activity.clean(now.mono, self.restorable, &self.order, &self.mend),
            }
        }
    }

    fn tick_records(&mut self, now: Now) {
        let drained_enough = self.gather.queued() <= self.limits.queue_bytes() / 2;
        let wanted = !self.paused && self.detached.is_none();
        self.rest_wait = None;
        if self.gap.is_some() && wanted && self.room == Room::Ok && drained_enough {
            // Who drains has no guests any more that could be held up.
            if self.life != Life::Running || self.rest.until() <= now.mono {
                self.end_gap(now);
            } else {
                self.rest_wait = Some(self.rest.until());
            }
        }
        self.settle_disks(now);
        self.try_close_bracket(now);
        if self.life == Life::Running {
            self.tick_periodic(now);
        }
        if self.life == Life::Draining {
            // The filter makes no more points: what is there so far is a moment, and so is every one that follows.
            self.end_period(now);
        }
        self.drain(now);
        if self.tell_due.is_some_and(|due| due <= now.mono) {
            self.tell_due = None;
            if self.gather.has_untold(&self.order) {
                self.time_record(now);
                self.close_frame();
            }
        }
        if self.gather.opened().is_some_and(|opened| opened.after(self.limits.frame_age_ns_max) <= now.mono) {
            self.close_frame();
        }
    }

    fn tick_periodic(&mut self, now: Now) {
        if self.gap.is_none() && self.clock.due() <= now.mono {
            self.stamp(now);
            if self.clock.due() <= now.mono {
                self.time_record(now);
            }
        }
        if self.points.due() > now.mono {
            return;
        }
        let without_point = self.points.period_ended(now.mono);
        let can_be = self.is_protecting() && self.points.has_room();
        if without_point && can_be {
            self.short_point(now, false);
        }
        let rpo_ns = self.rpo_ns(now);
        if !can_be || rpo_ns.is_none_or(|rpo_ns| rpo_ns > self.age_allowed_ns()) {
            self.mention(Event::RpoViolated { rpo_ns });
        }
    }

    fn tell_closed(&mut self) {
        if let Life::Closed { clean: true, told } = &mut self.life
            && !*told
            && self.activity.writer().is_written()
        {
            *told = true;
            self.events.push_back(Event::Closed);
        }
    }

    /// A write of the activity log is synced, or failed. Ops that waited for it may go.
    ///
    /// # Errors
    /// When no such write is under way.
    pub fn log_written(&mut self, now: Now, token: LogToken, result: Result<(), Failed>) -> Result<(), NotOpen> {
        self.activity.written(now.mono, token, result).ok_or(NotOpen)?;
        self.release(now);
        self.kicked = true;
        Ok(())
    }

    /// The activity log's file is removed; or it cannot be: then its medium takes no change at all, and nothing is left that
    /// could be done. Ops that waited for it may go.
    ///
    /// # Errors
    /// When no removal is under way.
    pub fn log_removed(&mut self, now: Now) -> Result<(), NotOpen> {
        self.activity.removed(now.mono).ok_or(NotOpen)?;
        self.release(now);
        self.kicked = true;
        Ok(())
    }
}
