//! A journal on a real directory, and a driver that carries out what its writer wants.

use crate::Failure;
use crate::frames::{Dice, group, timeline};
use cdp_core::frame::EncodedFrame;
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::types::*;
use cdp_net::drive::{Driver, Threads, Waker};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// Which driver is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Threads,
    #[cfg(feature = "uring")]
    Ring,
}

impl Kind {
    pub(crate) const ALL: &[Self] = &[
        Self::Threads,
        #[cfg(feature = "uring")]
        Self::Ring,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            #[cfg(feature = "uring")]
            Self::Ring => "io_uring",
        }
    }

    fn start(self, executor: Executor, wake: Waker) -> Result<Box<dyn Driver>, Failure> {
        Ok(match self {
            Self::Threads => Box::new(Threads::start(executor, wake)?),
            #[cfg(feature = "uring")]
            Self::Ring => Box::new(cdp_net::drive::Ring::start(executor, wake)?),
        })
    }
}

/// A journal with its driver.
pub(crate) struct Rig {
    pub(crate) writer: Writer,
    driver: Box<dyn Driver>,
    woken: Receiver<()>,
    now: MonoTime,
}

impl Rig {
    /// A new store with an open timeline; it syncs when `commit_bytes` are written.
    pub(crate) fn create(kind: Kind, storage: &Arc<dyn Storage>, commit_bytes: u64) -> Result<Self, Failure> {
        let replica = ReplicaId::new([5; 16]).ok_or("an id of zeros")?;
        let made = create(storage.as_ref(), Manifest::new(replica, group(), "bench"))?;
        let mut dice = Dice(1);
        let ids = Box::new(move || {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&dice.next().to_le_bytes());
            id[8..].copy_from_slice(&dice.next().to_le_bytes());
            id
        });
        let options = Options { keep_free_bytes: 0, commit_bytes, commit_ns: u64::MAX / 2, ..Options::default() };
        let writer = Writer::new(made, options, ids);
        let (wake, woken) = channel();
        let wake: Waker = Box::new(move || {
            // Who waits may be gone before the driver is.
            let _ = wake.send(());
        });
        let driver = kind.start(Executor::new(Arc::clone(storage)), wake)?;
        let mut rig = Self { writer, driver, woken, now: MonoTime(1) };
        let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
        let opened = rig.writer.open_timeline(TimelineInfo {
            id: timeline(),
            number: 1,
            parent: None,
            fork: Lsn::ZERO,
            last: None,
            state,
            role,
            opened: WallTime(1),
        });
        rig.until(|writer| writer.manifest_durable() >= opened)?;
        Ok(rig)
    }

    /// Has done what the writer wants, and tells it what came of what it wanted before.
    fn drive(&mut self) {
        for (id, outcome) in self.driver.take() {
            self.writer.completed(self.now, id, outcome);
        }
        while let Some((id, effect)) = self.writer.poll(self.now) {
            self.driver.start(id, effect);
        }
    }

    /// Waits until something came of what is under way.
    fn wait(&mut self) -> Result<(), Failure> {
        let state = self.writer.state();
        if state != WriterState::Running {
            return Err(format!("the writer does not go on: {state:?}").into());
        }
        Ok(self.woken.recv()?)
    }

    /// Goes on until it is so.
    fn until(&mut self, there: impl Fn(&Writer) -> bool) -> Result<(), Failure> {
        self.drive();
        while !there(&self.writer) {
            self.wait()?;
            self.drive();
        }
        Ok(())
    }

    /// Appends a frame.
    pub(crate) fn append(&mut self, frame: EncodedFrame) -> Result<(), Failure> {
        let mut frame = frame;
        let mut waits = false;
        loop {
            match self.writer.append(self.now, frame) {
                Ok(_) => break,
                Err(Refused { frame: back, why: Refusal::NotNow(_) }) => frame = back,
                Err(refused) => return Err(refused.why.into()),
            }
            if std::mem::replace(&mut waits, true) {
                self.wait()?;
            }
            self.drive();
        }
        self.drive();
        Ok(())
    }

    /// Waits until everything is durable.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        self.writer.request_sync();
        let last = self.writer.last_lsn();
        self.until(|writer| writer.durable().lsn() == last)
    }
}
