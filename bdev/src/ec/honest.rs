//! The array as it is outside of tests: see `mutant` for what they put in its place.

/// Faults that tests build in.
#[derive(Clone, Copy)]
pub(crate) enum Mutant {
    JournalBarrierSkipped,
    FlushIgnored,
    EpochNotChecked,
    AckBeforeEpoch,
    DiscardedNotVoided,
    BitLate,
    JournalOnTooFew,
    RebuildProgressEarly,
    FuaDropped,
    SuperblocksFirst,
    StandInsAsked,
}

/// Moments that tests count crashes in.
#[derive(Clone, Copy)]
pub(crate) enum Window {
    JournalDurableDataNot,
    BetweenMemberWrites,
    SuperblockUpdate,
    RebuildStep,
    Join,
    DegradedWrite,
    Recovery,
    BitmapCommit,
    Elsewhere,
}

#[inline(always)]
pub(crate) fn is(_: Mutant) -> bool {
    false
}

#[inline(always)]
pub(crate) fn enter(_: Window) {}

#[inline(always)]
pub(crate) fn leave(_: Window) {}
