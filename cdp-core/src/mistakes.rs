//! Deliberate faults, for tests of the tests: behind the feature `mistakes`, a thread can be told to do one thing wrong, and the crash
//! tests have to notice. Without the feature every question is answered at compile time.

#![cfg_attr(not(feature = "mistakes"), allow(unreachable_pub, reason = "only tests make mistakes"))]

/// A fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A merge changes blocks of a base before the kept moment's copies of them are durable.
    KeptNotFlushed,
    /// What stays of blocks that are changed in parts is not synced before they are changed.
    RestsNotSynced,
    /// A merge writes pages of checksums to the place that is in use.
    PagesInPlace,
    /// The manifest names bases whose images and checksums were not synced.
    BasesNotSynced,
    /// Segments are removed before the manifest without them is durable.
    SegmentsRemovedEarly,
    /// A segment counts as sealed before its footer is synced.
    FooterNotSynced,
    /// A manifest is renamed over the old one before it is synced.
    ManifestNotSynced,
    /// A sync is taken to cover what was written while it was under way.
    SyncCoversMore,
    /// A start keeps segments behind a gap.
    GapsPassed,
    /// A start seals with a key that was used, counting nonces from zero again.
    KeyUsedAgain,
    /// An index run is named before it is synced.
    RunNotSynced,
    /// Footers are emptied before the manifest that names their run is durable.
    EmptiedEarly,
    /// A member of a consistency set that released on its timer says that it released on go.
    TimerIsGo,
    /// A member of a consistency set withholds completions only after it named the LSN of its cut.
    CutBeforeHold,
    /// The go of a consistency set's cut goes out when the first member is prepared.
    GoEarly,
    /// Completions of ops above the cut are let through.
    AboveLetThrough,
    /// Ops that overlap one in flight go to the disk at once.
    OverlapsPass,
    /// No record says that writes are only tracked from now on.
    GapUnsaid,
    /// A resync counts as over while something is still to be read.
    ResyncEndsEarly,
    /// A write that failed at the source is not read again.
    FailureForgotten,
    /// What was read again, or copied, is laid over what guests wrote meanwhile.
    CopyOverWrites,
    /// What was lent to a proxy that is lost is not read again.
    LentForgotten,
    /// What a disk has grown by is not read.
    GrowthUnread,
    /// A disk is cut while ops still run on what is cut off.
    CutUnderOps,
    /// A relay says of what its disk has that it is durable.
    StoredIsDurable,
    /// A member of a consistency set keeps what it was cut at, whatever the taker was told.
    KeepUnchecked,
}

#[cfg(feature = "mistakes")]
std::thread_local! {
    static MADE: std::cell::Cell<Option<Mistake>> = const { std::cell::Cell::new(None) };
}

/// From now on this thread makes this mistake, or none.
#[cfg(feature = "mistakes")]
pub fn make(mistake: Option<Mistake>) {
    MADE.set(mistake);
}

#[cfg(feature = "mistakes")]
pub(crate) fn is(mistake: Mistake) -> bool {
    MADE.get() == Some(mistake)
}

#[cfg(not(feature = "mistakes"))]
pub(crate) const fn is(_: Mistake) -> bool {
    false
}
