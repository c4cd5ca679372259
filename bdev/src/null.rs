//! A device that takes every write and reads zeroes.
//!
//! A reader that only measures says [`IoFlags::KEEP_BUFFER`], and no byte is touched.

use std::any::Any;
use std::sync::Arc;

use longshore_nvme::wire::Status;
use longshore_reactor::{DmaBuf, Reactor};

use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoFlags, IoId, IoRef, NOT_LENT, Op};
use crate::node::BdevNode;
use crate::registry::BdevError;

/// Product name of null devices.
pub const PRODUCT_NAME: &str = "Null disk";

/// A device without a medium.
pub struct Null {
    geometry: Geometry,
}

impl Null {
    /// A null device of this shape.
    pub fn new(geometry: Geometry) -> Arc<Null> {
        Arc::new(Null { geometry })
    }
}

impl Bdev for Null {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn supported(&self) -> SupportedOps {
        SupportedOps::of(&[Op::Read, Op::Write, Op::Flush, Op::Unmap, Op::WriteZeroes, Op::Reset])
    }

    fn open_channel(&self, r: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let zeroes = r.dma().alloc(LENT).and_then(|mut z| {
            z.get_mut()?.fill(0);
            Some(z)
        });
        Ok(Box::new(NullChannel { block_size: self.geometry.block_size, zeroes }))
    }

    fn holds_no_data(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Bytes of the zeroes that a channel lends.
const LENT: usize = 128 << 10;

struct NullChannel {
    block_size: u32,
    /// What reads are answered with that bring no buffer. Nobody writes to it.
    zeroes: Option<DmaBuf>,
}

impl NullChannel {
    #[inline(never)]
    fn zeroed(&self, mut io: IoRef) {
        if io.flags().has(IoFlags::LEND) {
            let len = io.nblocks() as usize * self.block_size as usize;
            let Some(z) = self.zeroes.as_ref().filter(|z| z.len() >= len) else {
                return io.complete_later(NOT_LENT);
            };
            io.set_buf(z.slice(0, len));
        } else {
            // Buffers come from a pool: without this a reader would see what others left in them.
            io.segments_mut().for_each(|s| s.fill(0));
        }
        io.complete_later(Status::SUCCESS);
    }
}

impl IoChannel for NullChannel {
    fn submit(&self, io: IoRef) {
        let wants = !io.iov().is_empty() || io.flags().has(IoFlags::LEND);
        if wants && io.op() == Op::Read && !io.flags().has(IoFlags::KEEP_BUFFER) {
            return self.zeroed(io);
        }
        io.complete_later(Status::SUCCESS);
    }

    fn lends(&self) -> bool {
        true
    }

    fn abort(&self, _: IoId) -> bool {
        false // every request already has its outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;
    use crate::testing::run;

    #[test]
    fn a_read_gives_zeroes_and_not_what_others_left_in_the_buffer() {
        let (status, clean) = run(|r| async move {
            let registry = Registry::new();
            registry.register("n", None, Null::new(Geometry::plain(512, 64))).expect("registered");
            let desc = registry.open("n", false, Box::new(|_| {})).expect("open");
            let mut buf = r.dma().alloc(4096).expect("memory");
            buf.get_mut().expect("unique").fill(0xa5);
            let (status, buf) = desc.channel().expect("channel").read(0, 8, buf).await;
            (status, buf.expect("buffer").as_slice().iter().all(|&b| b == 0))
        });
        assert_eq!(status, Status::SUCCESS);
        assert!(clean);
    }
}
