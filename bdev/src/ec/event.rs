//! What an array tells its owner.

/// Something happened to an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A member is not used any more.
    MemberFailed {
        /// Its slot.
        slot: usize,
        /// Why.
        why: &'static str,
    },
    /// Superblocks name every member that failed: the array goes on without them.
    Degraded {
        /// Members that are in sync.
        in_sync: usize,
    },
    /// No request is served any more.
    Offline {
        /// Why.
        why: &'static str,
    },
    /// Recovery is done, and requests are served.
    Started {
        /// Transactions that were rolled forward.
        rolled_forward: u64,
        /// Transactions that were discarded.
        discarded: u64,
    },
    /// A member is being rebuilt.
    RebuildStarted {
        /// Its slot.
        slot: usize,
    },
    /// A member was rebuilt, and is in sync.
    RebuildFinished {
        /// Its slot.
        slot: usize,
    },
    /// A rebuild was stopped.
    RebuildStopped {
        /// The member's slot.
        slot: usize,
    },
    /// A rebuild cannot go on: the member failed, or a stripe has lost too much.
    RebuildFailed {
        /// The member's slot.
        slot: usize,
        /// Why.
        why: &'static str,
    },
    /// A scrub began.
    ScrubStarted,
    /// A scrub found strips that do not fit together. Only the first stripes of a scrub are told one by one.
    ScrubMismatch {
        /// The stripe.
        stripe: u64,
        /// Strips that were rewritten; 0: it is not known which are wrong, and nothing was changed.
        repaired: u32,
    },
    /// A scrub has looked at every stripe.
    ScrubFinished,
    /// A scrub ended before.
    ScrubStopped,
}

impl Event {
    /// The name by which clients know it.
    pub fn name(&self) -> &'static str {
        match self {
            Event::MemberFailed { .. } => "bdev_ec_member_failed",
            Event::Degraded { .. } => "bdev_ec_degraded",
            Event::Offline { .. } => "bdev_ec_offline",
            Event::Started { .. } => "bdev_ec_started",
            Event::RebuildStarted { .. } => "bdev_ec_rebuild_started",
            Event::RebuildFinished { .. } => "bdev_ec_rebuild_finished",
            Event::RebuildStopped { .. } => "bdev_ec_rebuild_stopped",
            Event::RebuildFailed { .. } => "bdev_ec_rebuild_failed",
            Event::ScrubStarted => "bdev_ec_scrub_started",
            Event::ScrubMismatch { repaired: 0, .. } => "bdev_ec_scrub_ambiguous",
            Event::ScrubMismatch { .. } => "bdev_ec_scrub_repaired",
            Event::ScrubFinished => "bdev_ec_scrub_finished",
            Event::ScrubStopped => "bdev_ec_scrub_stopped",
        }
    }
}
