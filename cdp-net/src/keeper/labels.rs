//! Labels that are given, and that the catalogue does not show yet.

use crate::host::{Host, label_taken};
use crate::report::{Problem, ProblemClass};
use cdp_core::types::Lsn;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How many marks may wait to become durable; one more is refused.
const UNDER_WAY_MAX: usize = 1024;

/// The labels of marks that are under way, with their LSNs. One whose caller was told that it is not durable yet stays here too:
/// it may become so at any time.
#[derive(Debug, Default)]
pub(super) struct Labels(Mutex<BTreeMap<String, Lsn>>);

impl Labels {
    /// Makes the mark, if no point has its label and none that is under way: of two who ask at once one gets it.
    pub(super) fn take(
        &self,
        label: &str,
        host: &Host,
        mark: impl FnOnce() -> Result<Lsn, Problem>,
    ) -> Result<Lsn, Problem> {
        if label.is_empty() {
            return mark();
        }
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let replica = host.replica();
            let frontier = replica.catalogue().trunk().map_or(Lsn::ZERO, |branch| branch.frontier().lsn);
            // Of those behind it the catalogue knows what they became.
            under_way.retain(|_, lsn| *lsn > frontier);
            if under_way.contains_key(label) || !replica.catalogue().labelled(label).is_empty() {
                return Err(label_taken(label));
            }
        }
        if under_way.len() >= UNDER_WAY_MAX {
            let message = format!("{UNDER_WAY_MAX} marks wait to become durable, which is the most");
            return Err(Problem::new(ProblemClass::Refused, "busy", message).hint("see `cdp status`"));
        }
        let lsn = mark()?;
        under_way.insert(label.to_owned(), lsn);
        Ok(lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::journal::{Manifest, create};
    use cdp_core::media::{Memory, Storage};
    use cdp_core::trust::KeyHolder;
    use cdp_core::types::{GroupId, ReplicaId};
    use std::sync::Arc;

    /// Nothing becomes durable here.
    #[test]
    fn a_label_stays_taken_until_it_is_known_what_became_of_its_mark() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let (replica, group) = (ReplicaId::new([1; 16]).unwrap(), GroupId::new([2; 16]).unwrap());
        create(storage.as_ref(), Manifest::new(replica, group, "group")).unwrap();
        let host = Host::idle(storage, &KeyHolder::default()).unwrap();
        let labels = Labels::default();
        let mut lsn = 0;
        let mut take = |label: &str| {
            labels.take(label, &host, || {
                lsn += 1;
                Ok(Lsn(lsn))
            })
        };
        assert_eq!((take("one"), take("two")), (Ok(Lsn(1)), Ok(Lsn(2))));
        // Whoever was told that it is not durable yet asks again.
        assert_eq!(take("one").unwrap_err().code, "label-taken");
        assert_eq!((take(""), take("")), (Ok(Lsn(3)), Ok(Lsn(4))), "points without a label have none to share");
        for number in 2..UNDER_WAY_MAX {
            take(&number.to_string()).unwrap();
        }
        assert_eq!(take("one more").unwrap_err().code, "busy");
        let labels = Labels::default();
        let refused = || Err(Problem::new(ProblemClass::Refused, "not-marked", "no"));
        assert_eq!(labels.take("three", &host, refused).unwrap_err().code, "not-marked");
        assert_eq!(labels.take("three", &host, || Ok(Lsn(9))), Ok(Lsn(9)), "what was not made has taken nothing");
    }
}
