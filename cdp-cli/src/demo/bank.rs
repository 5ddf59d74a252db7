//! What the writers know together: the accounts, and how far everybody is.

use super::layout::Layout;
use super::sector::Rng;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Account {
    /// How many movements changed it.
    pub version: u64,
    /// What is in it.
    pub balance: u64,
}

/// A movement between two accounts, which nobody else touches until it is complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Its number among those of its writer, from 1.
    pub seq: u64,
    /// Where it is taken from.
    pub from: u32,
    /// That account before.
    pub from_before: Account,
    /// Where it is given to.
    pub to: u32,
    /// That account before.
    pub to_before: Account,
    /// How much.
    pub amount: u64,
    /// For each writer, which of its movements were complete before this one was announced.
    pub seen: Vec<u64>,
}

impl Transfer {
    /// The account that it is taken from, after.
    #[must_use]
    pub fn from_after(&self) -> Account {
        let Account { version, balance } = self.from_before;
        Account { version: version.saturating_add(1), balance: balance.saturating_sub(self.amount) }
    }

    /// The account that it is given to, after.
    #[must_use]
    pub fn to_after(&self) -> Account {
        let Account { version, balance } = self.to_before;
        Account { version: version.saturating_add(1), balance: balance.saturating_add(self.amount) }
    }
}

/// Accounts and progress.
#[derive(Debug)]
pub struct Bank {
    accounts: Mutex<Vec<(Account, bool)>>,
    /// For each writer, its last movement whose intent may have been sent.
    submitted: Vec<AtomicU64>,
    /// For each writer, its last movement whose every write was acknowledged.
    acknowledged: Vec<AtomicU64>,
}

impl Bank {
    /// As a new ledger is.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        let zeros = || (0..layout.writers).map(|_| AtomicU64::new(0)).collect();
        let account = Account { version: 0, balance: layout.balance };
        let accounts = Mutex::new(vec![(account, false); layout.accounts as usize]);
        Self { accounts, submitted: zeros(), acknowledged: zeros() }
    }

    fn accounts(&self) -> MutexGuard<'_, Vec<(Account, bool)>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a movement between two accounts that are in no other one.
    pub fn begin(&self, writer: u16, seq: u64, rng: &mut Rng) -> Transfer {
        let mut accounts = self.accounts();
        let mut pick = |other: Option<usize>| loop {
            // There are four times as many accounts as writers: half of them at least are free.
            let account = rng.below(accounts.len() as u64) as usize;
            if !accounts[account].1 && other != Some(account) {
                return account;
            }
        };
        let from = pick(None);
        let to = pick(Some(from));
        for account in [from, to] {
            accounts[account].1 = true;
        }
        let (from_before, to_before) = (accounts[from].0, accounts[to].0);
        drop(accounts);
        let amount = rng.below(from_before.balance / 4 + 1);
        self.submitted[usize::from(writer)].store(seq, Ordering::SeqCst);
        let (from, to) = (from as u32, to as u32);
        Transfer { seq, from, from_before, to, to_before, amount, seen: self.acknowledged() }
    }

    /// Its last write was acknowledged.
    pub fn complete(&self, writer: u16, transfer: &Transfer) {
        let mut accounts = self.accounts();
        accounts[transfer.from as usize] = (transfer.from_after(), false);
        accounts[transfer.to as usize] = (transfer.to_after(), false);
        drop(accounts);
        self.acknowledged[usize::from(writer)].store(transfer.seq, Ordering::SeqCst);
    }

    /// For each writer, its last complete movement: a moment after this call holds them all.
    #[must_use]
    pub fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.iter().map(|seq| seq.load(Ordering::SeqCst)).collect()
    }

    /// For each writer, its last announced movement: a moment before this call holds no later ones.
    #[must_use]
    pub fn submitted(&self) -> Vec<u64> {
        self.submitted.iter().map(|seq| seq.load(Ordering::SeqCst)).collect()
    }
}
