//! Faults that tests build into the array, to see that they are found: compiled into the tests of this crate only.

use std::cell::{Cell, RefCell};

/// One way to break the array's promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Data are overwritten in place before their records are durable.
    JournalBarrierSkipped,
    /// A round of flushes asks no member to flush.
    FlushIgnored,
    /// The superblock found on a member is overwritten whoever wrote it, and assembly believes members of any epoch.
    EpochNotChecked,
    /// Writes are acknowledged before the superblocks that name a failed member are durable.
    AckBeforeEpoch,
    /// Records that recovery discarded stay valid.
    DiscardedNotVoided,
    /// A flush is acknowledged before the map's bits are durable.
    BitLate,
    /// A member that missed writes is taken for one that did not.
    StaleMemberJoined,
    /// Records are written to one member less than `m + 1`.
    JournalOnTooFew,
    /// Progress of a rebuild is stored before the member was flushed.
    RebuildProgressEarly,
    /// FUA writes are plain ones.
    FuaDropped,
    /// An array is made superblocks first.
    SuperblocksFirst,
    /// After a salvage, recovery demands records of members that were out when they were written.
    StandInsAsked,
}

impl Mutant {
    /// All of them.
    pub(crate) const ALL: [Mutant; 12] = [
        Mutant::JournalBarrierSkipped,
        Mutant::FlushIgnored,
        Mutant::EpochNotChecked,
        Mutant::AckBeforeEpoch,
        Mutant::DiscardedNotVoided,
        Mutant::BitLate,
        Mutant::StaleMemberJoined,
        Mutant::JournalOnTooFew,
        Mutant::RebuildProgressEarly,
        Mutant::FuaDropped,
        Mutant::SuperblocksFirst,
        Mutant::StandInsAsked,
    ];
}

/// A moment in which a crash is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Window {
    /// Records are durable, data in place are not.
    JournalDurableDataNot,
    /// Some members have been written in place and others not.
    BetweenMemberWrites,
    /// Superblocks are being written.
    SuperblockUpdate,
    /// A member is being rebuilt.
    RebuildStep,
    /// A member joins.
    Join,
    /// A transaction is under way while a member is missing.
    DegradedWrite,
    /// The journal is being replayed.
    Recovery,
    /// Pages of the map are being written.
    BitmapCommit,
    /// The array is being made.
    Create,
    /// The array is being started with fewer members than it starts with by itself.
    Salvage,
    /// An accel core computes.
    Elsewhere,
}

impl Window {
    /// All of them.
    pub(crate) const ALL: [Window; 11] = [
        Window::JournalDurableDataNot,
        Window::BetweenMemberWrites,
        Window::SuperblockUpdate,
        Window::RebuildStep,
        Window::Join,
        Window::DegradedWrite,
        Window::Recovery,
        Window::BitmapCommit,
        Window::Create,
        Window::Salvage,
        Window::Elsewhere,
    ];
}

thread_local! {
    static MUTANT: Cell<Option<Mutant>> = const { Cell::new(None) };
    static OPEN: RefCell<[u32; Window::ALL.len()]> = const { RefCell::new([0; Window::ALL.len()]) };
}

/// Builds a fault in, or takes it out.
pub(crate) fn set(m: Option<Mutant>) {
    MUTANT.set(m);
}

pub(crate) fn is(m: Mutant) -> bool {
    MUTANT.get() == Some(m)
}

/// Windows that are open on this thread now: a crash at this moment falls into each of them.
pub(crate) fn open_windows() -> Vec<Window> {
    OPEN.with_borrow(|o| Window::ALL.into_iter().filter(|&w| o[w as usize] > 0).collect())
}

/// Closes all windows: after a crash nobody does.
pub(crate) fn close_windows() {
    OPEN.with_borrow_mut(|o| o.fill(0));
}

/// The window is open until [`leave`].
pub(crate) fn enter(w: Window) {
    OPEN.with_borrow_mut(|o| o[w as usize] += 1);
}

/// See [`enter`].
pub(crate) fn leave(w: Window) {
    OPEN.with_borrow_mut(|o| o[w as usize] = o[w as usize].saturating_sub(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fault_is_built_in_at_a_time_and_windows_are_open_until_they_are_left() {
        for m in Mutant::ALL {
            set(Some(m));
            assert_eq!(Mutant::ALL.into_iter().filter(|&o| is(o)).collect::<Vec<_>>(), [m]);
        }
        set(None);
        enter(Window::Recovery);
        enter(Window::Recovery);
        enter(Window::DegradedWrite);
        leave(Window::Recovery);
        assert_eq!(open_windows(), [Window::DegradedWrite, Window::Recovery]);
        close_windows();
        assert!(open_windows().is_empty());
    }
}
