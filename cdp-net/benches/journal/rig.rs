//! A journal on a real directory, and a driver that carries out what its writer wants.

use crate::Failure;
use crate::frames::{Dice, group, timeline};
use cdp_core::frame::EncodedFrame;
use cdp_core::journal::*;
use cdp_core::media::Storage;
use cdp_core::types::*;
use std::sync::Arc;

/// A journal with the in-order driver.
pub(crate) struct Rig {
    pub(crate) writer: Writer,
    executor: Executor,
    now: MonoTime,
    /// Bytes that were appended and not handed to the driver: in order, a large write costs media less than many small ones.
    held: u64,
}

/// Bytes that are written at once in order.
const WRITE_BYTES: u64 = 4 << 20;

impl Rig {
    /// A new store with an open timeline; it syncs when `commit_bytes` are written.
    pub(crate) fn create(storage: &Arc<dyn Storage>, commit_bytes: u64) -> Result<Self, Failure> {
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
        let mut rig = Self { writer, executor: Executor::new(Arc::clone(storage)), now: MonoTime(1), held: 0 };
        let (state, role) = (TimelineState::Open, TimelineRole::Trunk);
        rig.writer.open_timeline(TimelineInfo {
            id: timeline(),
            number: 1,
            parent: None,
            fork: Lsn::ZERO,
            last: None,
            state,
            role,
            opened: WallTime(1),
        });
        rig.drive();
        Ok(rig)
    }

    fn drive(&mut self) {
        self.held = 0;
        drain(&mut self.writer, &self.executor, self.now);
    }

    /// Appends a frame.
    pub(crate) fn append(&mut self, frame: EncodedFrame) -> Result<(), Failure> {
        let mut frame = frame;
        self.held += frame.len();
        loop {
            match self.writer.append(self.now, frame) {
                Ok(_) if self.held < WRITE_BYTES => return Ok(()),
                Ok(_) => {
                    self.drive();
                    return Ok(());
                }
                Err(Refused { frame: back, why: Refusal::NotNow(_) }) => frame = back,
                Err(refused) => return Err(refused.why.into()),
            }
            self.drive();
            if self.writer.state() != WriterState::Running {
                return Err(format!("the writer does not go on: {:?}", self.writer.state()).into());
            }
        }
    }

    /// Waits until everything is durable.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        self.writer.request_sync();
        self.drive();
        let (durable, last) = (self.writer.durable().lsn(), self.writer.last_lsn());
        if durable == last { Ok(()) } else { Err(format!("LSN {durable} of {last} is durable").into()) }
    }
}
