//! Writers whose every sector says who wrote it and when, so that what is on the disk can be judged after a kill.
//!
//! Each writer has a connection and slots of its own, of many sizes. A write fills a slot with its next version; the version
//! that was answered last must be there after a kill, or a later one that was sent.

use crate::Dice;
use cdp_net::nbd::client::Command;
use cdp_net::nbd::protocol::command_flag;
use cdp_net::nbd::{Client, ClientError, ClientOptions, Uri};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// All writers' slots together, in bytes.
pub(crate) const LOADED: usize = WRITERS * REGION;
const WRITERS: usize = 4;
const REGION: usize = 3 << 19;
const SECTOR: usize = 512;
const DEPTH: usize = 4;

/// A range that is only written as a whole.
#[derive(Clone, Debug)]
struct Slot {
    offset: usize,
    length: usize,
    /// The last version that was answered.
    answered: u64,
    /// The last version that was sent.
    sent: u64,
}

#[derive(Debug)]
struct Writer {
    slots: Vec<Slot>,
    dice: Dice,
}

impl std::fmt::Debug for Dice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dice")
    }
}

/// Fills a slot's bytes: every sector names offset and version, the rest follows from them.
fn fill(offset: usize, version: u64, bytes: &mut [u8]) {
    for (number, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        let at = (offset + number * SECTOR) as u64;
        sector[..8].copy_from_slice(&at.to_le_bytes());
        sector[8..16].copy_from_slice(&version.to_le_bytes());
        // Every third version compresses.
        let mut dice = Dice::new(if version.is_multiple_of(3) { version } else { at ^ version << 32 });
        for word in sector[16..].chunks_mut(8) {
            word.copy_from_slice(&dice.below(u64::MAX).to_le_bytes()[..word.len()]);
        }
    }
}

/// All of them.
pub(crate) struct Writers {
    writers: Vec<Writer>,
}

/// A load that goes on.
pub(crate) struct Load {
    threads: Vec<JoinHandle<(Writer, Result<(), ClientError>)>>,
    /// Writes that were answered, by writer.
    answered: Vec<Arc<AtomicU64>>,
    gate: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Waits until nothing is in flight; nothing is sent while this lives.
    pub(crate) fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap()
    }

    /// Waits until every single writer was answered what it sent after this began; gives how long that took, which is no longer than
    /// `within`.
    pub(crate) fn goes_on(&self, what: &str, within: Duration) -> Duration {
        let counts = || self.answered.iter().map(|answered| answered.load(Ordering::SeqCst));
        // What was on its way already may be answered, or counted, only now.
        let goals: Vec<u64> = counts().map(|count| count + 2 * DEPTH as u64).collect();
        let begun = Instant::now();
        while counts().zip(&goals).any(|(count, goal)| count < *goal) {
            let so_far: Vec<u64> = counts().collect();
            assert!(begun.elapsed() < within, "guests are held up {what}: {so_far:?} of {goals:?} after {within:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        begun.elapsed()
    }
}

impl Writers {
    pub(crate) fn new(seed: u64) -> Self {
        let writer = |number: usize| {
            let mut dice = Dice::new(seed * 100 + number as u64);
            let (mut slots, mut offset) = (Vec::new(), number * REGION);
            let end = offset + REGION;
            while offset < end {
                let sectors = [1, 3, 8, 9, 64, 200, 700][dice.below(7) as usize];
                let length = (sectors * SECTOR).min(end - offset);
                slots.push(Slot { offset, length, answered: 0, sent: 0 });
                offset += length;
            }
            Writer { slots, dice }
        };
        Self { writers: (0..WRITERS).map(writer).collect() }
    }

    /// What the source holds before the first write.
    pub(crate) fn initial(&self) -> Vec<u8> {
        let mut content = vec![0; LOADED];
        for slot in self.writers.iter().flat_map(|writer| &writer.slots) {
            fill(slot.offset, 0, &mut content[slot.offset..slot.offset + slot.length]);
        }
        content
    }

    /// How many writes were answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.writers.iter().flat_map(|writer| &writer.slots).map(|slot| slot.answered).sum()
    }

    /// Writes until told to stop, or until the server is gone.
    pub(crate) fn begin(&mut self, uri: &Uri) -> Load {
        self.begin_paced(uri, Duration::ZERO)
    }

    /// The same, with so long a rest after every few writes.
    pub(crate) fn begin_paced(&mut self, uri: &Uri, rest: Duration) -> Load {
        let (gate, stop) = (Arc::new(RwLock::new(())), Arc::new(AtomicBool::new(false)));
        let answered: Vec<Arc<AtomicU64>> = self.writers.iter().map(|_| Arc::default()).collect();
        let threads = std::mem::take(&mut self.writers).into_iter().zip(&answered).map(|(mut writer, answered)| {
            let (uri, gate, stop) = (uri.clone(), Arc::clone(&gate), Arc::clone(&stop));
            let answered = Arc::clone(answered);
            std::thread::spawn(move || {
                let ended = writer.run(&uri, &gate, &stop, (rest, &answered));
                (writer, ended)
            })
        });
        Load { threads: threads.collect(), answered, gate, stop }
    }

    /// Every write was answered, and the server heard that there are no more.
    pub(crate) fn end(&mut self, load: Load) {
        for ended in self.join(load) {
            ended.expect("the server takes every write to the end");
        }
    }

    /// The server was killed while it was spoken to: whoever noticed has ended with it.
    pub(crate) fn end_with_server(&mut self, load: Load) {
        drop(self.join(load));
    }

    fn join(&mut self, load: Load) -> Vec<Result<(), ClientError>> {
        load.stop.store(true, Ordering::SeqCst);
        let joined = load.threads.into_iter().map(|thread| thread.join().unwrap());
        let (writers, ended) = joined.unzip();
        self.writers = writers;
        ended
    }

    /// Every sector is one that a write made which was answered, or may have been on its way.
    pub(crate) fn check(&self, content: &[u8]) {
        let mut expected = vec![0; SECTOR];
        for slot in self.writers.iter().flat_map(|writer| &writer.slots) {
            for offset in (slot.offset..slot.offset + slot.length).step_by(SECTOR) {
                let found = &content[offset..offset + SECTOR];
                let version = u64::from_le_bytes(found[8..16].try_into().unwrap());
                let possible = slot.answered..=slot.sent;
                assert!(possible.contains(&version), "version {version} at {offset}, not one of {possible:?}");
                fill(offset, version, &mut expected);
                assert!(found == expected, "the sector at {offset} is no version at all");
            }
        }
    }

    /// The same, through a connection.
    pub(crate) fn read_through(&self, uri: &Uri) {
        let mut client = Client::connect(uri, &ClientOptions::default()).unwrap();
        let mut content = vec![0; LOADED];
        client.read(0, &mut content).unwrap();
        client.disconnect().unwrap();
        self.check(&content);
    }
}

impl Writer {
    fn run(
        &mut self,
        uri: &Uri,
        gate: &RwLock<()>,
        stop: &AtomicBool,
        (rest, answered): (Duration, &AtomicU64),
    ) -> Result<(), ClientError> {
        let mut client = Client::connect(uri, &ClientOptions::default())?;
        while !stop.load(Ordering::SeqCst) {
            let open = gate.read().unwrap();
            let result = self.batch(&mut client, answered);
            drop(open);
            result?;
            std::thread::sleep(rest);
        }
        client.disconnect()
    }

    /// Some writes into different slots at once, all answered in the end; now and then a flush behind them.
    fn batch(&mut self, client: &mut Client, answered: &AtomicU64) -> Result<(), ClientError> {
        // Different slots: of two versions at once either may be the one that stays.
        let first = self.dice.below(self.slots.len() as u64);
        for slot in (first..self.slots.len() as u64).step_by(3).take(DEPTH) {
            let fua = self.dice.below(16) == 0;
            let Slot { offset, length, sent, .. } = &mut self.slots[slot as usize];
            *sent += 1;
            let mut data = vec![0; *length];
            fill(*offset, *sent, &mut data);
            let flags = if fua { command_flag::FUA } else { 0 };
            let cookie = slot << 32 | *sent;
            client.submit(cookie, Command::Write { offset: *offset as u64, data: &data, flags })?;
        }
        while client.in_flight() > 0 {
            let Some(done) = client.complete(true)? else { break };
            done.result.expect("the source takes every write");
            let slot = &mut self.slots[(done.cookie >> 32) as usize];
            slot.answered = slot.answered.max(done.cookie & 0xffff_ffff);
            answered.fetch_add(1, Ordering::SeqCst);
        }
        if self.dice.below(8) == 0 {
            client.flush()?;
        }
        Ok(())
    }
}
