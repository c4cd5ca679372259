//! One namespace on one core.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::core_queue::{CoreQueue, Tag};
use super::waiting::GONE;
use crate::device::IoChannel;
use crate::io::{IoId, IoRef, Op};
use longshore_nvme::wire::Status;

pub(super) struct NvmeChannel {
    queue: Rc<CoreQueue>,
    tag: Tag,
    gone: Arc<AtomicBool>,
}

impl NvmeChannel {
    pub(super) fn new(queue: Rc<CoreQueue>, tag: Tag, gone: Arc<AtomicBool>) -> NvmeChannel {
        NvmeChannel { queue, tag, gone }
    }
}

impl IoChannel for NvmeChannel {
    fn submit(&self, mut io: IoRef) {
        if self.gone.load(Ordering::Acquire) {
            return io.complete_later(GONE);
        }
        if io.op() == Op::Flush && self.queue.needs_no_flush() {
            return io.complete_later(Status::SUCCESS);
        }
        io.set_words([0, self.tag.0]);
        self.queue.submit(io);
    }

    fn abort(&self, id: IoId) -> bool {
        self.queue.abort(id)
    }

    fn abort_all(&self) {
        self.queue.abort_all(self.tag);
    }
}
