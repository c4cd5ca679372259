//! Something that load is made on, whatever it is.

use longshore_reactor::Reactor;
use serde_json::Value;

use crate::lane::Port;
use crate::verify::Disk;

/// A bdev or a remote namespace, shared by the cores of a run.
pub(crate) trait Device: Send + Sync + 'static {
    /// The device on one core, for lanes.
    type Port: Port;
    /// The device on one core, for verification.
    type Disk: Disk;

    /// What to call it.
    fn name(&self) -> String;

    /// Bytes per block.
    fn block_size(&self) -> u32;

    /// Blocks.
    fn num_blocks(&self) -> u64;

    /// What the device counts of its own, by name; null if it counts nothing.
    fn counters(&self) -> Value {
        Value::Null
    }

    /// Opens it on the calling core.
    fn open_port(&self, r: &Reactor) -> impl Future<Output = Result<Self::Port, String>>;

    /// Opens it on the calling core.
    fn open_disk(&self, r: &Reactor) -> impl Future<Output = Result<Self::Disk, String>>;
}
