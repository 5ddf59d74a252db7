//! Points that are made by order of the filter's side, once however often its question has to be asked: an answer may be lost on its way.

use super::Shared;
use crate::far::MarkOrder;
use crate::host::label_taken;
use crate::report::{Problem, ProblemClass};
use cdp_core::capture::Event;
use cdp_core::types::Lsn;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a point whose answer was lost may take to become durable.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what became of it.
const LOOK: Duration = Duration::from_millis(5);

/// What became of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stand {
    Asked,
    Made(Lsn),
    Durable(Lsn),
    Lost,
}

/// The labels of orders that are under way: one for each caller who waits.
#[derive(Default)]
pub(super) struct Marking(Mutex<BTreeMap<String, Stand>>);

impl Marking {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Stand>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the record of an order, but for one of this side that has it.
    pub(super) fn make(&self, label: &str, make: impl FnOnce() -> Result<Lsn, Problem>) -> Result<Lsn, Problem> {
        let mut orders = self.lock();
        let Some(stand) = orders.get_mut(label) else {
            drop(orders);
            return make();
        };
        if let Stand::Made(lsn) | Stand::Durable(lsn) = *stand {
            return Ok(lsn);
        }
        let lsn = make()?;
        *stand = Stand::Made(lsn);
        Ok(lsn)
    }

    /// Hears what became of points.
    pub(super) fn hear(&self, event: &Event) {
        let (lsn, stand) = match *event {
            Event::PointDurable { lsn } => (lsn, Stand::Durable(lsn)),
            Event::PointLost { lsn } => (lsn, Stand::Lost),
            _ => return,
        };
        self.lock().values_mut().filter(|known| **known == Stand::Made(lsn)).for_each(|known| *known = stand);
    }

    /// Whether nobody else has ordered this one.
    fn begin(&self, label: &str) -> bool {
        let mut orders = self.lock();
        let is_new = !orders.contains_key(label);
        orders.entry(label.to_owned()).or_insert(Stand::Asked);
        is_new
    }

    fn stand(&self, label: &str) -> Option<Stand> {
        self.lock().get(label).copied()
    }
}

impl Shared {
    /// Makes a point and returns its LSN when it can be restored.
    pub(super) fn order_mark(&self, order: &MarkOrder) -> Result<Lsn, Problem> {
        let label = order.label.as_str();
        if label.is_empty() {
            return self.far.mark(order);
        }
        if !self.marking.begin(label) {
            return Err(label_taken(label));
        }
        let told = self.far.mark(order);
        let told = match told {
            Err(problem) if problem.code == "label-taken" => self.own_mark(label).unwrap_or(Err(problem)),
            told => told,
        };
        self.marking.lock().remove(label);
        told
    }

    /// Where the label is taken by the very point that was ordered: what became of that.
    fn own_mark(&self, label: &str) -> Option<Result<Lsn, Problem>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lost = match self.marking.stand(label)? {
                Stand::Durable(lsn) => return Some(Ok(lsn)),
                Stand::Asked => return None,
                Stand::Lost => true,
                Stand::Made(_) => false,
            };
            if lost || self.is_over() || Instant::now() > deadline {
                let message = match lost {
                    true => "a write before the mark failed: this moment cannot be restored",
                    false => "the mark was made and is not durable yet: the replica does not keep up",
                };
                return Some(Err(Problem::new(ProblemClass::Failed, "not-durable", message).hint("see `cdp status`")));
            }
            std::thread::sleep(LOOK);
        }
    }
}
