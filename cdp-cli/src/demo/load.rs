//! Writers at work, a thread and a connection each, and what is known of their progress at any time.

use super::bank::Bank;
use super::layout::{BLOCK, Layout};
use super::port::Port;
use super::sector::{Kind, Stamp, longs, push};
use super::writer::{Step, Writer};
use cdp_core::types::WallTime;
use cdp_net::clock;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two notes of how far everybody is.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// The most notes that are kept: a run of hours; then every second one is dropped.
const SAMPLES_MAX: usize = 1 << 18;

/// Makes a new ledger: its header and accounts; everything else reads as zeros. Durable on return.
///
/// # Errors
/// What the disk says.
pub fn format(port: &mut dyn Port, layout: &Layout) -> io::Result<()> {
    if !layout.is_possible() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "these parameters make no ledger"));
    }
    let mut at = layout.base;
    while at < layout.end() {
        let length = (layout.end() - at).min(16 << 20);
        port.write_zeroes(at, u32::try_from(length).map_err(io::Error::other)?)?;
        at += length;
    }
    let mut accounts = Vec::new();
    for account in 0..layout.accounts {
        let stamp = Stamp { kind: Kind::Account, writer: 0, index: 0, count: 1, seq: 0 };
        push(&mut accounts, stamp, &longs([u64::from(account), 0, layout.balance]));
    }
    port.write(layout.account(0), &accounts, false)?;
    port.flush()?;
    port.write(layout.base, &layout.header(), false)?;
    port.flush()
}

/// Between which progress a moment must lie, for each writer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bounds {
    /// These movements were complete before the moment.
    pub at_least: Vec<u64>,
    /// Later ones began after it.
    pub at_most: Vec<u64>,
}

/// How to work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadOptions {
    /// A writer rests so long after each movement.
    pub rest: Duration,
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadReport {
    /// Complete movements.
    pub movements: u64,
    /// Writes, trims, zeroes and flushes.
    pub requests: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How long it took.
    pub time: Duration,
}

/// Who was how far at a time.
#[derive(Clone, Debug)]
struct Sample {
    /// Complete before `time`.
    acknowledged: Vec<u64>,
    time: WallTime,
    /// Announced up to a little after `time`.
    submitted: Vec<u64>,
}

#[derive(Debug)]
struct Shared {
    layout: Layout,
    bank: Bank,
    options: LoadOptions,
    trims: bool,
    stop: AtomicBool,
    requests: AtomicU64,
    bytes: AtomicU64,
    samples: Mutex<Vec<Sample>>,
}

/// Writers at work. Dropping it stops them.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    began: Instant,
    writers: Vec<JoinHandle<io::Result<()>>>,
    sampler: Option<JoinHandle<()>>,
}

impl Load {
    /// Sets writers to work on a new ledger; `connect` gives each a connection of its own.
    ///
    /// # Errors
    /// When a connection or a thread cannot be had.
    pub fn start(
        layout: Layout,
        options: LoadOptions,
        connect: &mut dyn FnMut() -> io::Result<Box<dyn Port>>,
    ) -> io::Result<Self> {
        let mut ports = (0..layout.writers).map(|_| connect()).collect::<io::Result<Vec<_>>>()?;
        let trims = match ports.first_mut() {
            Some(port) => trim_zeroes(port.as_mut(), &layout)?,
            None => false,
        };
        let shared = Arc::new(Shared {
            layout,
            bank: Bank::new(&layout),
            options,
            trims,
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            samples: Mutex::default(),
        });
        let mut load = Self { shared, began: Instant::now(), writers: Vec::new(), sampler: None };
        let shared = Arc::clone(&load.shared);
        let sampler = std::thread::Builder::new().name("ledger-samples".into());
        load.sampler = Some(sampler.spawn(move || sample_all(&shared))?);
        for (number, mut port) in (0..layout.writers).zip(ports) {
            let shared = Arc::clone(&load.shared);
            let thread = std::thread::Builder::new().name(format!("ledger-{number}"));
            load.writers.push(thread.spawn(move || write_all(&shared, number, port.as_mut()))?);
        }
        Ok(load)
    }

    /// For a moment that is made between two calls: `at_least` of the first and `at_most` of the second bound it.
    #[must_use]
    pub fn progress(&self) -> Bounds {
        let bank = &self.shared.bank;
        Bounds { at_least: bank.acknowledged(), at_most: bank.submitted() }
    }

    /// What bounds the moment of a time of this machine's wall clock, as far as it was noted.
    #[must_use]
    pub fn at(&self, time: WallTime) -> Bounds {
        let samples = self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.iter().rev().find(|sample| sample.time <= time);
        let after = samples.iter().find(|sample| sample.time > time);
        let at_least = before.map(|sample| sample.acknowledged.clone()).unwrap_or_default();
        Bounds { at_least, at_most: after.map(|sample| sample.submitted.clone()).unwrap_or_default() }
    }

    /// Whether a writer has ended, which none does before it is told unless its disk failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished)
    }

    /// What was done so far.
    #[must_use]
    pub fn report(&self) -> LoadReport {
        LoadReport {
            movements: self.shared.bank.acknowledged().iter().sum(),
            requests: self.shared.requests.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            time: self.began.elapsed(),
        }
    }

    /// Lets every writer end its movement and waits for that.
    ///
    /// # Errors
    /// The first error that the disk gave a writer.
    pub fn finish(&mut self) -> io::Result<LoadReport> {
        let report = self.report();
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut result = Ok(());
        for writer in self.writers.drain(..) {
            let ended = writer.join().unwrap_or_else(|_| Err(io::Error::other("a writer of the ledger panicked")));
            result = result.and(ended);
        }
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
        result.map(|()| LoadReport { time: report.time, ..self.report() })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// Whether a trim makes the range read as zeros here; where it does not, writers write zeros instead.
fn trim_zeroes(port: &mut dyn Port, layout: &Layout) -> io::Result<bool> {
    let mut block = vec![0xa5; BLOCK as usize];
    port.write(layout.probe(), &block, false)?;
    if port.trim(layout.probe(), BLOCK as u32).is_err() {
        return Ok(false);
    }
    port.read(layout.probe(), &mut block)?;
    Ok(block.iter().all(|byte| *byte == 0))
}

fn write_all(shared: &Shared, number: u16, port: &mut dyn Port) -> io::Result<()> {
    let mut writer = Writer::new(shared.layout, &shared.bank, number);
    loop {
        let Some(step) = writer.next() else {
            if shared.stop.load(Ordering::Relaxed) {
                return port.flush();
            }
            if !shared.options.rest.is_zero() {
                std::thread::sleep(shared.options.rest);
            }
            continue;
        };
        shared.requests.fetch_add(1, Ordering::Relaxed);
        match &step {
            Step::Write { offset, data, fua } => {
                shared.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                port.write(*offset, data, *fua)?;
            }
            Step::Trim { offset, length } if shared.trims => port.trim(*offset, *length)?,
            Step::Trim { offset, length } | Step::Zero { offset, length } => port.write_zeroes(*offset, *length)?,
            Step::Flush => port.flush()?,
        }
    }
}

fn sample_all(shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        let acknowledged = shared.bank.acknowledged();
        let time = clock::now().wall;
        let submitted = shared.bank.submitted();
        let mut samples = shared.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push(Sample { acknowledged, time, submitted });
        if samples.len() >= SAMPLES_MAX {
            let mut keep = false;
            samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
        drop(samples);
        std::thread::sleep(SAMPLE_EVERY);
    }
}
