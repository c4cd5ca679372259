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
    /// Reads go past a member: it takes too long.
    MemberSlow {
        /// Its slot.
        slot: usize,
    },
    /// Reads go to the member again.
    MemberFast {
        /// Its slot.
        slot: usize,
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

/// The name by which clients know that a spare took the place of a member.
pub(super) const SPARE_USED: &str = "bdev_ec_spare_used";

impl Event {
    /// All names by which clients know events of arrays.
    pub const NAMES: [&str; 16] = [
        "bdev_ec_member_failed",
        "bdev_ec_degraded",
        "bdev_ec_offline",
        "bdev_ec_started",
        "bdev_ec_rebuild_started",
        "bdev_ec_rebuild_finished",
        "bdev_ec_rebuild_stopped",
        "bdev_ec_rebuild_failed",
        "bdev_ec_scrub_started",
        "bdev_ec_scrub_ambiguous",
        "bdev_ec_scrub_repaired",
        "bdev_ec_scrub_finished",
        "bdev_ec_scrub_stopped",
        SPARE_USED,
        "bdev_ec_member_slow",
        "bdev_ec_member_fast",
    ];

    /// The name by which clients know it.
    pub fn name(&self) -> &'static str {
        match self {
            Event::MemberFailed { .. } => Event::NAMES[0],
            Event::Degraded { .. } => Event::NAMES[1],
            Event::Offline { .. } => Event::NAMES[2],
            Event::Started { .. } => Event::NAMES[3],
            Event::RebuildStarted { .. } => Event::NAMES[4],
            Event::RebuildFinished { .. } => Event::NAMES[5],
            Event::RebuildStopped { .. } => Event::NAMES[6],
            Event::RebuildFailed { .. } => Event::NAMES[7],
            Event::ScrubStarted => Event::NAMES[8],
            Event::ScrubMismatch { repaired: 0, .. } => Event::NAMES[9],
            Event::ScrubMismatch { .. } => Event::NAMES[10],
            Event::ScrubFinished => Event::NAMES[11],
            Event::ScrubStopped => Event::NAMES[12],
            Event::MemberSlow { .. } => Event::NAMES[14],
            Event::MemberFast { .. } => Event::NAMES[15],
        }
    }
}
