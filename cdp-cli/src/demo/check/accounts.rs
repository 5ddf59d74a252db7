//! Accounts must be what the movements made of them.

use super::logs::{Log, effects};
use super::read;
use crate::demo::bank::{Account, Transfer};
use crate::demo::layout::Layout;
use crate::demo::port::Blocks;
use crate::demo::sector::{Fields, Found, Kind, SECTOR, Stamp, open};
use crate::demo::violation::{Place, Violation};
use std::collections::BTreeMap;

/// An account as it is on the disk.
#[derive(Clone, Copy)]
pub(super) struct AccountSector {
    pub(super) account: Account,
    /// Whose movement made it so.
    writer: u16,
    /// Which movement.
    seq: u64,
}

/// What the accounts hold together.
pub(super) struct Sums {
    pub(super) sum: u64,
    pub(super) on_the_way: u64,
}

pub(super) fn read_accounts(image: &mut dyn Blocks, layout: &Layout) -> Result<Vec<AccountSector>, Violation> {
    let bytes = read(image, layout.account(0), u64::from(layout.accounts) * SECTOR as u64)?;
    let decode = |(number, sector): (usize, &[u8])| {
        let number = number as u32;
        let garbage = Violation::Garbage { place: Place::Account(number), offset: layout.account(number) };
        decode(sector, number).ok_or(garbage)
    };
    bytes.chunks(SECTOR).enumerate().map(decode).collect()
}

fn decode(sector: &[u8], number: u32) -> Option<AccountSector> {
    let Found::Ours(Stamp { kind: Kind::Account, writer, seq, .. }, payload) = open(sector) else { return None };
    let mut fields = Fields(payload);
    let same = fields.long()? == u64::from(number);
    let account = Account { version: fields.long()?, balance: fields.long()? };
    same.then_some(AccountSector { account, writer, seq })
}

/// One side of a movement.
struct Effect {
    writer: u16,
    seq: u64,
    account: u32,
    before: Account,
    after: Account,
}

fn sides(writer: u16, transfer: &Transfer) -> [Effect; 2] {
    let Transfer { seq, from, from_before, to, to_before, .. } = transfer;
    [
        Effect { writer, seq: *seq, account: *from, before: *from_before, after: transfer.from_after() },
        Effect { writer, seq: *seq, account: *to, before: *to_before, after: transfer.to_after() },
    ]
}

pub(super) fn check_against_logs(layout: &Layout, accounts: &[AccountSector], logs: &[Log]) -> Result<(), Violation> {
    let mut effects_of: BTreeMap<(u32, u64), Effect> = BTreeMap::new();
    for log in logs {
        for transfer in &log.transfers {
            check_presence(layout, accounts, log, transfer)?;
            for effect in sides(log.writer, transfer) {
                let (account, version) = (effect.account, effect.before.version);
                if effects_of.insert((account, version), effect).is_some() {
                    return Err(Violation::Chain { account, version });
                }
            }
        }
    }
    for effect in effects_of.values() {
        check_chain(accounts, &effects_of, effect)?;
    }
    accounts
        .iter()
        .enumerate()
        .try_for_each(|(number, found)| check_origin(layout, number as u32, found, logs, &effects_of))
}

/// Both sides of a movement are there, unless it is its writer's last; then in their order.
fn check_presence(
    layout: &Layout,
    accounts: &[AccountSector],
    log: &Log,
    transfer: &Transfer,
) -> Result<(), Violation> {
    let (writer, seq) = (log.writer, transfer.seq);
    let lost = |account| {
        let (place, offset) = (Place::Account(account), layout.account(account));
        Err(Violation::Lost { place, writer, seq, offset })
    };
    match effects(transfer, accounts) {
        (true, true) => Ok(()),
        (true, false) | (false, false) if seq == log.last => Ok(()),
        (true, false) => lost(transfer.to),
        (false, _) => lost(transfer.from),
    }
}

/// What follows a movement on an account begins with what the movement left.
fn check_chain(
    accounts: &[AccountSector],
    effects_of: &BTreeMap<(u32, u64), Effect>,
    effect: &Effect,
) -> Result<(), Violation> {
    let Effect { account, before, after, .. } = *effect;
    let found = accounts[account as usize];
    let version = found.account.version;
    let wrong = Err(Violation::Chain { account, version: after.version });
    if version == before.version && found.account != before {
        return wrong;
    }
    if version == after.version && (found.account, found.writer, found.seq) != (after, effect.writer, effect.seq) {
        return wrong;
    }
    match effects_of.get(&(account, after.version)) {
        Some(next) if next.before != after => wrong,
        // The next movement began from a state that is not there.
        Some(_) if version < after.version => wrong,
        _ => Ok(()),
    }
}

/// The movement that an account names is announced, and about this account.
fn check_origin(
    layout: &Layout,
    account: u32,
    found: &AccountSector,
    logs: &[Log],
    effects_of: &BTreeMap<(u32, u64), Effect>,
) -> Result<(), Violation> {
    let AccountSector { account: Account { version, balance }, writer, seq } = *found;
    if version == 0 {
        let untouched = balance == layout.balance && seq == 0;
        return if untouched { Ok(()) } else { Err(Violation::Chain { account, version }) };
    }
    let log = logs.get(usize::from(writer)).ok_or(Violation::Chain { account, version })?;
    if seq > log.last {
        let (place, offset) = (Place::Account(account), layout.account(account));
        return Err(Violation::Early { place, writer, seq, offset });
    }
    let kept = seq.saturating_add(layout.intents) > log.last;
    match effects_of.get(&(account, version - 1)) {
        Some(effect) if (effect.writer, effect.seq) == (writer, seq) => Ok(()),
        None if !kept && seq > 0 => Ok(()),
        _ => Err(Violation::Chain { account, version }),
    }
}

/// Money and movements, also those that no log keeps any more.
pub(super) fn check_sums(layout: &Layout, accounts: &[AccountSector], logs: &[Log]) -> Result<Sums, Violation> {
    let (mut expected, mut on_the_way) = (0_u64, 0_u64);
    for log in logs {
        expected = expected.saturating_add(log.last.saturating_mul(2));
        if let Some(transfer) = log.transfers.last() {
            let (debit, credit) = effects(transfer, accounts);
            expected -= u64::from(!debit) + u64::from(!credit);
            on_the_way += if debit && !credit { transfer.amount } else { 0 };
        }
    }
    let found = accounts.iter().map(|found| found.account.version).fold(0, u64::saturating_add);
    if found != expected {
        return Err(Violation::Count { expected, found });
    }
    let held = accounts.iter().map(|found| found.account.balance).fold(0, u64::saturating_add);
    let sum = held.saturating_add(on_the_way);
    if sum != layout.total() {
        return Err(Violation::Sum { expected: layout.total(), found: sum });
    }
    Ok(Sums { sum, on_the_way })
}
