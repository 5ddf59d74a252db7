//! One writer, one write after the other: a machine without threads, so that tests can stop it between any two writes.

use super::bank::{Account, Bank, Transfer};
use super::layout::{Extra, INTENT_SECTORS, Layout, PAD_SECTORS};
use super::sector::{Kind, Rng, SECTOR, Stamp, longs, push};

/// What a writer asks of the disk next; the one after it is asked for only when this one is acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Data.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// Durable when acknowledged.
        fua: bool,
    },
    /// A range to give up.
    Trim {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// A range to read as zeros.
    Zero {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Everything acknowledged becomes durable.
    Flush,
}

/// Where a writer is within a movement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Intent,
    Debit,
    Credit,
    Extra,
    Flush,
    End,
}

/// One writer.
#[derive(Debug)]
pub struct Writer<'a> {
    layout: Layout,
    bank: &'a Bank,
    number: u16,
    rng: Rng,
    stage: Stage,
    seq: u64,
    transfer: Option<Transfer>,
}

impl<'a> Writer<'a> {
    /// A writer of a new ledger.
    #[must_use]
    pub fn new(layout: Layout, bank: &'a Bank, number: u16) -> Self {
        let rng = Rng::new(layout.seed ^ (u64::from(number) + 1) << 40);
        Self { layout, bank, number, rng, stage: Stage::Intent, seq: 1, transfer: None }
    }

    #[expect(clippy::should_implement_trait, reason = "its None is a pause, not an end")]
    /// What to do next; the step before is acknowledged with this call. `None` when a movement has ended with everything that
    /// goes with it, which is a good place to stop; the next call begins another.
    pub fn next(&mut self) -> Option<Step> {
        loop {
            let (stage, seq) = (self.stage, self.seq);
            match stage {
                Stage::Intent => {
                    self.stage = Stage::Debit;
                    let transfer = self.bank.begin(self.number, seq, &mut self.rng);
                    let data = self.intent(&transfer);
                    self.transfer = Some(transfer);
                    let offset = self.layout.intent(self.number, seq);
                    return Some(Step::Write { offset, data, fua: self.layout.fua(seq) });
                }
                Stage::Debit => {
                    self.stage = Stage::Credit;
                    return self.transfer.as_ref().map(|transfer| self.account(transfer.from, transfer.from_after()));
                }
                Stage::Credit => {
                    self.stage = Stage::Extra;
                    return self.transfer.as_ref().map(|transfer| self.account(transfer.to, transfer.to_after()));
                }
                Stage::Extra => {
                    self.stage = Stage::Flush;
                    if let Some(transfer) = self.transfer.take() {
                        self.bank.complete(self.number, &transfer);
                    }
                    if let Some(step) = self.extra() {
                        return Some(step);
                    }
                }
                Stage::Flush => {
                    self.stage = Stage::End;
                    if self.layout.flushes(self.number, seq) {
                        return Some(Step::Flush);
                    }
                }
                Stage::End => {
                    self.stage = Stage::Intent;
                    self.seq += 1;
                    return None;
                }
            }
        }
    }

    fn sectors(&self, kind: Kind, count: u16, first: &[u8]) -> Vec<u8> {
        let mut data = Vec::with_capacity(usize::from(count) * SECTOR);
        for index in 0..count {
            let stamp = Stamp { kind, writer: self.number, index, count, seq: self.seq };
            push(&mut data, stamp, if index == 0 { first } else { &[] });
        }
        data
    }

    fn intent(&self, transfer: &Transfer) -> Vec<u8> {
        let Transfer { from, from_before, to, to_before, amount, seen, .. } = transfer;
        let numbers = [
            u64::from(*from),
            from_before.version,
            from_before.balance,
            u64::from(*to),
            to_before.version,
            to_before.balance,
            *amount,
        ];
        self.sectors(Kind::Intent, INTENT_SECTORS, &longs(numbers.into_iter().chain(seen.iter().copied())))
    }

    fn account(&self, account: u32, after: Account) -> Step {
        let data = self.sectors(Kind::Account, 1, &longs([u64::from(account), after.version, after.balance]));
        Step::Write { offset: self.layout.account(account), data, fua: false }
    }

    fn extra(&self) -> Option<Step> {
        let length = u32::try_from(self.layout.document_bytes).unwrap_or(u32::MAX);
        match self.layout.extra(self.number, self.seq) {
            Extra::Write { document, sectors } => {
                let offset = self.layout.document(self.number, document);
                Some(Step::Write { offset, data: self.sectors(Kind::Document, sectors, &[]), fua: false })
            }
            Extra::Erase { document, trim } => {
                let offset = self.layout.document(self.number, document);
                Some(if trim { Step::Trim { offset, length } } else { Step::Zero { offset, length } })
            }
            Extra::Pad => {
                let data = self.sectors(Kind::Pad, PAD_SECTORS, &[]);
                Some(Step::Write { offset: self.layout.pad(), data, fua: false })
            }
            Extra::Nothing => None,
        }
    }
}
