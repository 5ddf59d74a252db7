//! From what a person typed to a moment, or to the nearest ones that can be restored.

use super::catalogue::{AtTime, Branch, Moment, Neighbours, Point};
use super::{Replica, ReplicaError};
use crate::journal::Damage;
use crate::types::{Lsn, Timeline, WallTime};
use crate::when::{Label, PointName, TimelineName, When};

/// A moment that cannot be restored, and those next to it that can.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}")]
pub struct NotRestorable {
    /// What is not there, as a sentence.
    pub what: Box<str>,
    /// The nearest on both sides.
    pub nearest: Neighbours,
    /// Nobody ever gave a moment that name: what is called nearest is only what there is, and nobody meant it.
    pub unknown: bool,
}

/// Why a moment was not found.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It lies in a gap, before the first or after the last.
    #[error(transparent)]
    NotRestorable(#[from] NotRestorable),
    /// What was asked for may have been in what is damaged; only what is good is among the nearest.
    #[error("{damage}")]
    Damaged {
        /// What is wrong, and where.
        damage: Box<Damage>,
        /// The nearest on both sides.
        nearest: Neighbours,
    },
    /// Two timelines begin with these digits.
    #[error("{name} is the beginning of {count} timelines")]
    Ambiguous {
        /// What was given.
        name: TimelineName,
        /// How many.
        count: usize,
    },
    /// The journal could not be read.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
}

impl From<crate::journal::ReadError> for ResolveError {
    fn from(error: crate::journal::ReadError) -> Self {
        Self::Replica(error.into())
    }
}

impl Replica {
    /// The moment that is meant, with the exact stamp of its record.
    ///
    /// # Errors
    /// When it is not restorable (the nearest that are, are named), may be among what is damaged, or the journal cannot be read.
    pub fn resolve(&self, when: &When) -> Result<Moment, ResolveError> {
        let found = self.find(when);
        let Some(damage) = &self.damage else { return found };
        let lost = |nearest| Err(ResolveError::Damaged { damage: Box::new(damage.clone()), nearest });
        match (when, found) {
            // Both count from an end that is not there any more: an older moment would pass for what was meant.
            (When::Latest | When::Back(_), Ok(_)) => lost(Neighbours { before: self.catalogue.latest(), after: None }),
            (_, Err(ResolveError::NotRestorable(NotRestorable { nearest, .. }))) => lost(nearest),
            (_, found) => found,
        }
    }

    fn find(&self, when: &When) -> Result<Moment, ResolveError> {
        let none = |what: String| NotRestorable { what: what.into(), nearest: Neighbours::default(), unknown: false };
        match when {
            When::Latest => {
                let latest = self.catalogue.latest().ok_or_else(|| none("the latest moment".into()))?;
                self.exact(latest.timeline, latest.lsn)
            }
            When::Lsn { timeline: None, lsn } => {
                let branch =
                    self.catalogue.on_path(*lsn).ok_or_else(|| none(format!("LSN {lsn} is not restorable")))?;
                self.restorable(branch, *lsn)
            }
            When::Lsn { timeline: Some(name), lsn } => self.restorable(self.named(*name)?, *lsn),
            When::Point(point) => self.point(self.named(point.timeline)?, point),
            When::Label(label) => {
                let found = self.catalogue.labelled(label.as_str());
                let point = found.first().ok_or_else(|| self.unlabelled(label))?;
                self.exact(point.id.timeline, point.id.lsn)
            }
            When::Back(back) => {
                let latest = self.catalogue.latest().ok_or_else(|| none("the latest moment".into()))?;
                let back = u64::try_from(back.as_nanos()).unwrap_or(u64::MAX);
                self.at_time(WallTime(latest.stamp.time.0.saturating_sub(back)))
            }
            When::Time(time) => self.at_time(*time),
        }
    }

    /// A moment of the catalogue with the exact stamp of its record, as far as that can be read: the moment is what its LSN says.
    ///
    /// # Errors
    /// When the timeline is not known.
    pub fn exact(&self, timeline: Timeline, lsn: Lsn) -> Result<Moment, ResolveError> {
        // Of moments whose records are merged only the manifest knows when they were.
        let oldest = self.manifest.oldest().filter(|moment| (moment.timeline, moment.lsn) == (timeline, lsn));
        let merged = oldest.or_else(|| self.manifest.kept_at(timeline, lsn).map(|kept| kept.moment));
        let stamp = match merged {
            Some(moment) => Some(moment.stamp),
            None => self.reader.stamp(&self.snapshot, timeline, lsn),
        };
        let last = || self.catalogue.branch(timeline).and_then(|branch| branch.frontier().stamp);
        let unknown = ReplicaError::UnknownTimeline { timeline };
        Ok(Moment { timeline, lsn, stamp: stamp.or_else(last).ok_or(unknown)? })
    }

    fn unlabelled(&self, label: &Label) -> NotRestorable {
        let what = format!("no restorable point has the label {:?}", label.as_str());
        NotRestorable {
            what: what.into(),
            nearest: Neighbours { before: self.catalogue.latest(), after: None },
            unknown: true,
        }
    }

    fn named(&self, name: TimelineName) -> Result<&Branch, ResolveError> {
        let branches = self.catalogue.branches();
        let mut found = branches.into_iter().filter(|branch| name.matches(&branch.timeline));
        match (found.next(), found.count()) {
            (Some(branch), 0) => Ok(branch),
            (Some(_), more) => Err(ResolveError::Ambiguous { name, count: more + 1 }),
            (None, _) => {
                let nearest = Neighbours { before: self.catalogue.latest(), after: None };
                Err(NotRestorable {
                    what: format!("the timeline {name} is unknown: no moment of it is restorable").into(),
                    nearest,
                    unknown: true,
                }
                .into())
            }
        }
    }

    /// A moment that somebody made a point of; another one of the same timeline has to be asked for as an LSN.
    fn point(&self, branch: &Branch, name: &PointName) -> Result<Moment, ResolveError> {
        let known = branch.points().binary_search_by_key(&name.lsn, |point| point.id.lsn).is_ok();
        if known || !branch.is_restorable(name.lsn) {
            return self.restorable(branch, name.lsn);
        }
        let what = format!("there is no point {name}; that moment can be restored as lsn:{name}");
        Err(NotRestorable { what: what.into(), nearest: self.nearest_points(branch, name.lsn), unknown: false }.into())
    }

    /// The points that can be restored next to an LSN; where the timelines on its way have none, its neighbours.
    fn nearest_points(&self, branch: &Branch, lsn: Lsn) -> Neighbours {
        let path = self.catalogue.path(branch.timeline);
        let on_path = path.iter().flat_map(|(branch, upto)| {
            let counts = move |point: &&Point| point.id.lsn <= *upto && branch.is_restorable(point.id.lsn);
            branch.points().iter().filter(counts)
        });
        let moments =
            on_path.map(|point| Moment { timeline: point.id.timeline, lsn: point.id.lsn, stamp: point.stamp });
        let (before, after): (Vec<_>, Vec<_>) = moments.partition(|moment| moment.lsn < lsn);
        let by_lsn = |moment: &Moment| moment.lsn;
        let nearest =
            Neighbours { before: before.into_iter().max_by_key(by_lsn), after: after.into_iter().min_by_key(by_lsn) };
        let none = nearest.before.is_none() && nearest.after.is_none();
        if none { self.catalogue.neighbours(branch.timeline, lsn) } else { nearest }
    }

    fn restorable(&self, branch: &Branch, lsn: Lsn) -> Result<Moment, ResolveError> {
        if branch.is_restorable(lsn) {
            return self.exact(branch.timeline, lsn);
        }
        let nearest = self.catalogue.neighbours(branch.timeline, lsn);
        Err(NotRestorable {
            what: format!("LSN {lsn} of timeline {} is not restorable", branch.timeline.short()).into(),
            nearest,
            unknown: false,
        }
        .into())
    }

    fn at_time(&self, time: WallTime) -> Result<Moment, ResolveError> {
        match self.catalogue.at_time(time) {
            AtTime::Inside { timeline, span, .. } if span.from == span.to => self.exact(timeline, span.from),
            AtTime::Inside { timeline, span, .. } => {
                // What the time means, restorable or not: behind the end of the span lie records that cannot be restored.
                let moments = self.reader.moments(&self.snapshot, timeline, Lsn(u64::MAX), time)?;
                let found = moments.into_iter().find(|moment| moment.stamp.epoch == span.epoch);
                // The span's first stamp is at or before the time, so its first LSN is the least that can be meant.
                let lsn = found.map_or(span.from, |moment| moment.lsn.max(span.from));
                if lsn <= span.to {
                    return self.exact(timeline, lsn);
                }
                let last = self.exact(timeline, span.to)?;
                if time <= last.stamp.time {
                    return Ok(last);
                }
                let after = self.catalogue.neighbours(timeline, span.to.next()).after;
                let nearest = Neighbours { before: Some(last), after };
                Err(NotRestorable { what: "that time is not restorable".into(), nearest, unknown: false }.into())
            }
            AtTime::Outside(nearest) => {
                Err(NotRestorable { what: "that time is not restorable".into(), nearest, unknown: false }.into())
            }
        }
    }
}
