//! What can be chosen each time an array is started.

use std::time::Duration;

/// What can be chosen each time an array is started.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// A member that takes longer than this for a request has failed.
    pub write_timeout: Duration,
    /// How often the progress of a rebuild is stored.
    pub rebuild_checkpoint: Duration,
    /// The writer's number in superblocks; a random one by default.
    pub nonce: Option<u64>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { write_timeout: Duration::from_secs(30), rebuild_checkpoint: Duration::from_secs(2), nonce: None }
    }
}
