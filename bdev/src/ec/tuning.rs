//! What can be chosen each time an array is started.

use std::time::Duration;

/// How long a read takes before its member counts as slow, by default: longer than a disk in order is busy with one.
pub const SLOW_READ: Duration = Duration::from_millis(50);

/// What can be chosen each time an array is started.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// A member that takes longer than this for a request has failed.
    pub write_timeout: Duration,
    /// A member that takes longer than this for a read is slow: reads go past it until it is fast again. Zero: no member is.
    pub slow_read: Duration,
    /// How often the progress of a rebuild is stored.
    pub rebuild_checkpoint: Duration,
    /// The writer's number in superblocks; a random one by default.
    pub nonce: Option<u64>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            write_timeout: Duration::from_secs(30),
            slow_read: SLOW_READ,
            rebuild_checkpoint: Duration::from_secs(2),
            nonce: None,
        }
    }
}
