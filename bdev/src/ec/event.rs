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
}

impl Event {
    /// The name by which clients know it.
    pub fn name(&self) -> &'static str {
        match self {
            Event::MemberFailed { .. } => "bdev_ec_member_failed",
            Event::Degraded { .. } => "bdev_ec_degraded",
            Event::Offline { .. } => "bdev_ec_offline",
            Event::Started { .. } => "bdev_ec_started",
        }
    }
}
