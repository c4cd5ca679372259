//! A device in memory.

mod store;

use std::any::Any;
use std::sync::Arc;

use longshore_nvme::wire::Status;
use longshore_reactor::Reactor;

use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::registry::BdevError;
use store::Store;

/// Product name of malloc devices.
pub const PRODUCT_NAME: &str = "Malloc disk";

/// A device in anonymous memory, committed as it is written. Metadata, interleaved or separate, is stored too.
pub struct Malloc {
    geometry: Geometry,
    store: Arc<Store>,
}

impl Malloc {
    /// A zeroed device of this shape.
    ///
    /// # Errors
    /// The address space for it cannot be reserved.
    pub fn new(geometry: Geometry) -> Result<Arc<Malloc>, BdevError> {
        let store = Arc::new(Store::new(&geometry)?);
        Ok(Arc::new(Malloc { geometry, store }))
    }
}

impl Bdev for Malloc {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[
            Op::Read,
            Op::Write,
            Op::Flush,
            Op::Unmap,
            Op::WriteZeroes,
            Op::Compare,
            Op::Copy,
            Op::Reset,
        ])
    }

    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(MallocChannel { store: self.store.clone() }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct MallocChannel {
    store: Arc<Store>,
}

impl IoChannel for MallocChannel {
    fn submit(&self, mut io: IoRef) {
        let (lba, n) = (io.lba(), io.nblocks());
        let status = match io.op() {
            Op::Read => self.store.read(lba, n, &mut io),
            Op::Write => self.store.write(lba, n, &io),
            Op::Compare => self.store.compare(lba, n, &io),
            Op::Unmap | Op::WriteZeroes => self.store.zero(lba, n),
            Op::Copy => self.store.copy(io.copy_source(), lba, n),
            Op::Flush | Op::Reset => Status::SUCCESS,
            Op::CompareAndWrite => Status::INVALID_OPCODE,
        };
        io.complete_later(status);
    }

    fn abort(&self, _: IoId) -> bool {
        false // every request already has its outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{filled, open, run};
    use crate::{IoFlags, Registry};

    #[test]
    fn what_was_written_is_read_and_what_was_not_is_zero() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            let (_desc, ch) = open(&reg, "m");
            let (st, _) = ch.write(3, 2, filled(&r, 1024, 7), IoFlags::NONE).await;
            assert_eq!(st, Status::SUCCESS);
            let (st, buf) = ch.read(2, 4, filled(&r, 2048, 9)).await;
            assert_eq!(st, Status::SUCCESS);
            let buf = buf.unwrap();
            assert!(buf.as_slice()[..512].iter().all(|&b| b == 0));
            assert!(buf.as_slice()[512..1536].iter().all(|&b| b == 7));
            assert!(buf.as_slice()[1536..].iter().all(|&b| b == 0));
            assert_eq!(ch.compare(3, 1, filled(&r, 512, 7)).await.0, Status::SUCCESS);
            assert_eq!(ch.compare(3, 1, filled(&r, 512, 8)).await.0, Status::COMPARE_FAILURE);
            assert_eq!(ch.copy(3, 10, 1).await.0, Status::SUCCESS);
            assert_eq!(ch.write_zeroes(3, 1, IoFlags::NONE).await.0, Status::SUCCESS);
            let (_, buf) = ch.read(3, 8, filled(&r, 4096, 9)).await;
            let buf = buf.unwrap();
            assert!(buf.as_slice()[..512].iter().all(|&b| b == 0));
            assert!(buf.as_slice()[7 * 512..].iter().all(|&b| b == 7));
        });
    }

    #[test]
    fn a_range_beyond_the_end_is_refused_and_counted() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
            let (_desc, ch) = open(&reg, "m");
            assert_eq!(ch.read(63, 2, filled(&r, 1024, 0)).await.0, Status::LBA_OUT_OF_RANGE);
            assert_eq!(ch.read(u64::MAX, 1, filled(&r, 512, 0)).await.0, Status::LBA_OUT_OF_RANGE);
            assert_eq!(ch.copy(63, 0, 2).await.0, Status::LBA_OUT_OF_RANGE);
            assert_eq!(ch.read(63, 1, filled(&r, 512, 0)).await.0, Status::SUCCESS);
            assert_eq!(ch.node().stats().op(crate::Op::Read).ops, 1);
        });
    }

    #[test]
    fn released_pages_read_as_zeroes_and_their_neighbours_stay() {
        run(|r| async move {
            let reg = Registry::new();
            reg.register("m", None, Malloc::new(Geometry::plain(512, 8192)).unwrap()).unwrap();
            let (_desc, ch) = open(&reg, "m");
            for lba in (0..8192).step_by(1024) {
                assert!(ch.write(lba, 1024, filled(&r, 512 << 10, 5), IoFlags::NONE).await.0.is_ok());
            }
            assert!(ch.unmap(3, 8000).await.0.is_ok());
            for (lba, want) in [(2u64, 5u8), (3, 0), (7, 0), (8, 0), (4000, 0), (8002, 0), (8003, 5), (8191, 5)] {
                let (_, buf) = ch.read(lba, 1, filled(&r, 512, 1)).await;
                assert!(buf.unwrap().as_slice().iter().all(|&b| b == want), "block {lba}");
            }
        });
    }
}
