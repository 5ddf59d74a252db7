//! What becomes of a timeline's frames between a relay's two ends: prepared by the pool, in order.

use super::pool::Pool;
use super::{Mode, Shared};
use cdp_core::frame::EncodedFrame;
use cdp_core::link::message::Features;
use cdp_core::link::prepare::{Done, Options, Prepare, PrepareError, Stats};
use cdp_core::link::relay::{RelayBounds, RelayStatus, Run};
use cdp_core::link::source::SourceStatus;
use cdp_core::types::{GroupId, MonoTime, Position, Timeline};
use std::collections::VecDeque;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A window at most, in bytes: what is written again within it goes once. Of pages of which a fifth gets four fifths of all writes, 48 MiB
/// leave six tenths of what 16 MiB do.
const WINDOW_MAX: u64 = 64 << 20;
/// Bytes in preparation at most: a window that is gathered, one that is being packed, and what of one is packed and not sent.
const INSIDE_MAX: u64 = 160 << 20;

/// See the module's text.
pub(super) struct Prepared {
    of: (GroupId, Timeline),
    mode: Mode,
    run: Run,
    prepare: Prepare,
    done: UnboundedReceiver<Done>,
    to_done: UnboundedSender<Done>,
    /// Frames that came while the preparation was full: within the relay's window.
    waiting: VecDeque<EncodedFrame>,
    /// Of preparations that ended.
    before: Stats,
    looked: u64,
    /// Where the far side stood, and whether it has said so and nothing was lost since. Else nothing is left out: it may have a part of
    /// anything.
    have: Option<Position>,
    known: bool,
    zstd: bool,
}

impl Prepared {
    /// None where frames go on as they came.
    pub(super) fn new(shared: &Shared, of: (GroupId, Timeline)) -> Option<Self> {
        let zstd = match shared.mode {
            Mode::Pass => return None,
            Mode::Raw => false,
            Mode::Compress { .. } => true,
        };
        let (to_done, done) = unbounded_channel();
        let mut prepared = Self {
            of,
            mode: shared.mode,
            run: Run::default(),
            prepare: Prepare::new(Options::new(of.0, of.1)),
            done,
            to_done,
            waiting: VecDeque::new(),
            before: Stats::default(),
            looked: 0,
            have: None,
            known: false,
            zstd,
        };
        prepared.prepare = prepared.fresh();
        Some(prepared)
    }

    fn fresh(&self) -> Prepare {
        let level_max = match self.mode {
            Mode::Compress { level } => level,
            Mode::Raw | Mode::Pass => 0,
        };
        let usual = Options::new(self.of.0, self.of.1);
        Prepare::new(Options {
            have: self.have,
            inside_bytes_max: INSIDE_MAX,
            zstd: self.zstd,
            level_max,
            whole: !self.known,
            ..usual
        })
    }

    /// A frame came.
    pub(super) fn take(&mut self, run: Run, frame: EncodedFrame) {
        if run != self.run {
            self.forget();
            self.run = run;
        }
        self.waiting.push_back(frame);
    }

    /// What is inside is not wanted any more.
    pub(super) fn forget(&mut self) {
        self.before.add(&self.prepare.stats());
        self.known = false;
        self.prepare = self.fresh();
        // Work of the old one that comes back goes nowhere.
        (self.to_done, self.done) = unbounded_channel();
        self.waiting.clear();
    }

    /// Gives work to the pool; the next frame that is ready. Where nobody is there who could send more (`all_came`) nothing is waited for.
    ///
    /// # Errors
    /// When a frame that came is none that can be prepared.
    pub(super) fn work(
        &mut self,
        now: MonoTime,
        pool: &Pool,
        all_came: bool,
    ) -> Result<Option<(Run, EncodedFrame)>, PrepareError> {
        while !self.prepare.is_full()
            && let Some(frame) = self.waiting.pop_front()
        {
            self.prepare.push(now, frame)?;
        }
        if all_came {
            self.prepare.flush();
        }
        while let Some(work) = self.prepare.poll(now) {
            pool.give(work, self.to_done.clone());
        }
        Ok(self.prepare.next().map(|frame| (self.run, frame)))
    }

    /// Work that is done.
    pub(super) async fn done(&mut self) -> Done {
        match self.done.recv().await {
            Some(done) => done,
            // A sender is kept here.
            None => std::future::pending().await,
        }
    }

    /// Takes work back.
    ///
    /// # Errors
    /// When a frame does not verify.
    pub(super) fn back(&mut self, done: Done) -> Result<(), PrepareError> {
        self.prepare.done(done)
    }

    /// A session below holds. Whether the far side takes what is made here; else all of it is to be made anew.
    pub(super) fn up(&mut self, below: &SourceStatus) -> bool {
        (self.have, self.known) = (below.have, true);
        self.prepare.set_have(self.have);
        self.prepare.set_whole(false);
        let zstd = self.mode != Mode::Raw && below.features.has(Features::ZSTD);
        let fits = zstd || !self.zstd;
        self.zstd = zstd;
        self.prepare.set_zstd(zstd);
        fits
    }

    /// The session below does not hold any more: how much of what was sent is there the next one will say.
    pub(super) fn down(&mut self) {
        self.known = false;
        self.prepare.set_whole(true);
    }

    /// Looked at now and then: how crowded the cores are, what waits to be sent, and how much may be gathered.
    pub(super) fn look(&mut self, pool: &Pool, status: &RelayStatus, bounds: &RelayBounds) {
        let (number, running, waiting) = pool.crowding();
        if number != self.looked {
            self.looked = number;
            self.prepare.look(running, waiting);
        }
        self.prepare.set_unsent(status.below.bytes.saturating_sub(status.below.far_bytes));
        self.prepare.set_window((bounds.window_bytes / 4 * 3).min(WINDOW_MAX));
        // A source without credit sends nothing more for which it would be worth to wait.
        if status.waiting_bytes > bounds.window_bytes / 8 * 7 {
            self.prepare.flush();
        }
    }

    /// What was saved since the relay's start.
    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.before;
        stats.add(&self.prepare.stats());
        stats
    }

    /// When there is something to do without anything else having happened.
    pub(super) fn next_deadline(&self) -> Option<MonoTime> {
        self.prepare.next_deadline()
    }
}
