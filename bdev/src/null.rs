//! A device that takes every write and reads nothing: buffers of reads keep what they held.

use std::any::Any;
use std::sync::Arc;

use longshore_nvme::wire::Status;
use longshore_reactor::Reactor;

use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::{IoId, IoRef, Op};
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

    fn open_channel(&self, _: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(NullChannel))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct NullChannel;

impl IoChannel for NullChannel {
    #[inline(never)]
    fn submit(&self, io: IoRef) {
        io.complete_later(Status::SUCCESS);
    }

    fn abort(&self, _: IoId) -> bool {
        false // every request already has its outcome
    }
}
