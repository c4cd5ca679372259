//! Verification: writes that can be told from each other, read back and compared, during a run and after a crash.

mod check;
mod journal;
mod pattern;
pub(crate) mod session;
mod work;

use longshore_bdev::{Channel, Data, IoFlags, Status};
use longshore_reactor::DmaBuf;

/// A device on one core, for code that waits.
pub(crate) trait Disk: Clone + 'static {
    /// Reads into `buf`.
    fn read(&self, lba: u64, blocks: u32, buf: DmaBuf) -> impl Future<Output = (Status, Data)>;
    /// Writes from `buf`.
    fn write(&self, lba: u64, blocks: u32, buf: DmaBuf, fua: bool) -> impl Future<Output = (Status, Data)>;
    /// Makes what was written durable.
    fn flush(&self) -> impl Future<Output = Status>;
    /// Lets go of the device; nothing is in flight.
    fn close(&self) -> impl Future<Output = ()>;
}

impl Disk for Channel {
    fn read(&self, lba: u64, blocks: u32, buf: DmaBuf) -> impl Future<Output = (Status, Data)> {
        Channel::read(self, lba, blocks, buf)
    }

    fn write(&self, lba: u64, blocks: u32, buf: DmaBuf, fua: bool) -> impl Future<Output = (Status, Data)> {
        Channel::write(self, lba, blocks, buf, if fua { IoFlags::FUA } else { IoFlags::NONE })
    }

    async fn flush(&self) -> Status {
        Channel::flush(self).await.0
    }

    async fn close(&self) {}
}
