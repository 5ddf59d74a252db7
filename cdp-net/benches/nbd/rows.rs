//! The rows of the table: what is loaded how, and what must be reached.

use super::figure::Reach;

/// Where the next request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pattern {
    RandomWrite,
    RandomRead,
    SequentialWrite,
}

impl Pattern {
    pub(crate) fn writes(self) -> bool {
        self != Self::RandomRead
    }
}

/// One way of loading an export.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The end of the figures' ids.
    pub(crate) name: &'static str,
    pub(crate) pattern: Pattern,
    pub(crate) block: usize,
    pub(crate) depth: usize,
    /// Of ours / nbdkit, which captures nothing.
    pub(crate) nbdkit_reach: f64,
}

pub(crate) const ROWS: [Row; 6] = [
    row("write-d1", Pattern::RandomWrite, 4 << 10, 1, 0.9),
    row("write-d32", Pattern::RandomWrite, 4 << 10, 32, 0.7),
    row("read-d1", Pattern::RandomRead, 4 << 10, 1, 0.9),
    row("read-d32", Pattern::RandomRead, 4 << 10, 32, 0.9),
    row("seq-64k", Pattern::SequentialWrite, 64 << 10, 8, 1.0),
    row("seq-1m", Pattern::SequentialWrite, 1 << 20, 4, 1.0),
];

const fn row(name: &'static str, pattern: Pattern, block: usize, depth: usize, nbdkit_reach: f64) -> Row {
    Row { name, pattern, block, depth, nbdkit_reach }
}

/// A server to compare with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    Qemu,
    Nbdkit,
}

impl Peer {
    pub(crate) const ALL: [Self; 2] = [Self::Qemu, Self::Nbdkit];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Nbdkit => "nbdkit",
        }
    }
}

impl Row {
    pub(crate) fn id(&self, peer: Peer) -> String {
        format!("nbd-{}-{}", peer.name(), self.name)
    }

    pub(crate) fn reach(&self, peer: Peer) -> Reach {
        Reach::AtLeast(if peer == Peer::Qemu { 1.0 } else { self.nbdkit_reach })
    }

    /// A rate in requests a second, in the row's unit.
    pub(crate) fn in_unit(&self, rate: f64) -> f64 {
        if self.pattern == Pattern::SequentialWrite { rate * self.block as f64 / f64::from(1 << 20) } else { rate }
    }

    pub(crate) fn unit(&self) -> &'static str {
        if self.pattern == Pattern::SequentialWrite { "MiB/s" } else { "IOPS" }
    }
}
