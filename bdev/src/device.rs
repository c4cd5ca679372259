//! What a device implements: [`Bdev`] for control, [`IoChannel`] for data.

use std::any::Any;
use std::sync::Arc;

use longshore_reactor::Reactor;

use crate::base::Base;
use crate::channel::Channel;
use crate::io::{IoId, IoRef, Op};
use crate::node::BdevNode;
use crate::registry::BdevError;

/// Shape and limits of a device. Block counts are in the device's own blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of one block, interleaved metadata included.
    pub block_size: u32,
    /// Blocks of the device.
    pub num_blocks: u64,
    /// Bytes of metadata per block; 0 if there is none.
    pub md_size: u32,
    /// Metadata lies behind each block's data in the same buffer.
    pub md_interleave: bool,
    /// Bytes that the medium writes at once; a multiple of the data size.
    pub physical_block_size: u32,
    /// Requests that cross a multiple of this many blocks are split; 0 = none.
    pub optimal_io_boundary: u32,
    /// Largest read, write or compare, in blocks; 0 = no limit.
    pub max_io_blocks: u32,
    /// Most pieces of memory in a request; 0 = no limit.
    pub max_segments: u32,
    /// Largest unmap, in blocks; 0 = no limit.
    pub max_unmap_blocks: u32,
    /// Largest native write zeroes, in blocks; 0 = no limit.
    pub max_write_zeroes_blocks: u32,
    /// Largest native copy, in blocks; 0 = no limit.
    pub max_copy_blocks: u32,
    /// Writes must start at and cover multiples of this many blocks; 1 = any.
    pub write_unit: u32,
    /// Memory of requests starts at multiples of this many bytes (power of two).
    pub buf_align: u32,
    /// Completed writes are lost at power loss until a flush or unless FUA.
    pub volatile_cache: bool,
    /// Preferred granularity of writes, in blocks; 0 = not stated. Likewise the fields below.
    pub preferred_write_granularity: u32,
    /// Preferred alignment of writes, in blocks.
    pub preferred_write_alignment: u32,
    /// Optimal size of writes, in blocks.
    pub optimal_write_size: u32,
    /// Preferred granularity of unmaps, in blocks.
    pub preferred_unmap_granularity: u32,
    /// Preferred alignment of unmaps, in blocks.
    pub preferred_unmap_alignment: u32,
}

impl Geometry {
    /// A plain device: no metadata, no limits, no volatile cache.
    pub fn plain(block_size: u32, num_blocks: u64) -> Geometry {
        Geometry {
            block_size,
            num_blocks,
            md_size: 0,
            md_interleave: false,
            physical_block_size: block_size,
            optimal_io_boundary: 0,
            max_io_blocks: 0,
            max_segments: 0,
            max_unmap_blocks: 0,
            max_write_zeroes_blocks: 0,
            max_copy_blocks: 0,
            write_unit: 1,
            buf_align: 1,
            volatile_cache: false,
            preferred_write_granularity: 0,
            preferred_write_alignment: 0,
            optimal_write_size: 0,
            preferred_unmap_granularity: 0,
            preferred_unmap_alignment: 0,
        }
    }

    /// True if requests have to be looked at one by one for limits other than their length.
    pub(crate) fn needs_shaping(&self) -> bool {
        self.optimal_io_boundary != 0 || self.max_segments != 0 || self.write_unit > 1
    }

    /// Bytes of data in one block, without interleaved metadata.
    pub fn data_size(&self) -> u32 {
        if self.md_interleave { self.block_size - self.md_size } else { self.block_size }
    }
}

/// A set of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SupportedOps(u16);

impl SupportedOps {
    /// The set of `ops`.
    pub const fn of(ops: &[Op]) -> SupportedOps {
        let mut bits = 0;
        let mut i = 0;
        while i < ops.len() {
            bits |= 1 << ops[i] as u16;
            i += 1;
        }
        SupportedOps(bits)
    }

    /// True if `op` is in the set.
    #[inline]
    pub const fn has(self, op: Op) -> bool {
        self.0 & (1 << op as u16) != 0
    }

    /// This set and `op`.
    pub const fn with(self, op: Op) -> SupportedOps {
        SupportedOps(self.0 | 1 << op as u16)
    }

    /// This set without `op`.
    pub const fn without(self, op: Op) -> SupportedOps {
        SupportedOps(self.0 & !(1 << op as u16))
    }
}

/// The control plane of a device. Shared by all threads; its methods are not on the I/O path.
pub trait Bdev: Any + Send + Sync {
    /// Name of the kind, as shown to users ("Malloc disk").
    fn product_name(&self) -> &'static str;

    /// Shape and limits when the device is registered. Later changes of size go through `BdevNode::resize`.
    fn geometry(&self) -> Geometry;

    /// The operations the device does itself. The core emulates write zeroes, compare, compare-and-write and copy on top of
    /// read and write where they are missing here.
    fn supported(&self) -> SupportedOps;

    /// Opens the data plane on the calling reactor.
    ///
    /// # Errors
    /// What keeps this core from using the device.
    fn open_channel(&self, reactor: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError>;

    /// The device below, for a layer of one base. What follows is answered from it by default.
    fn base(&self) -> Option<&Base> {
        None
    }

    /// Requests that would change the device are refused.
    fn read_only(&self) -> bool {
        self.base().is_some_and(|b| b.node().read_only())
    }

    /// The device holds no data: every read is zeroes, whatever was written.
    fn holds_no_data(&self) -> bool {
        false
    }

    /// Names of the devices directly below this one.
    fn base_names(&self) -> Vec<String> {
        self.base().iter().map(|b| b.node().name().to_owned()).collect()
    }

    /// Frames that a request needs from here down, this device's own included, before a fan-out starts afresh.
    fn stack_depth(&self) -> usize {
        1 + self.base().map_or(0, |b| b.node().device().stack_depth())
    }

    /// The device was unregistered and nothing is open any more: give up what it holds. Called once.
    fn destruct(&self) {
        if let Some(b) = self.base() {
            b.close();
        }
    }

    /// For those who know the concrete kind.
    fn as_any(&self) -> &dyn Any;
}

/// The data plane of a device on one core.
///
/// The core has checked before `submit`: the operation is supported, the range lies inside the device, limits and boundaries
/// of the geometry hold. It counts statistics and what is in flight.
pub trait IoChannel {
    /// Takes the request over. Must not complete it before returning: use [`IoRef::complete_later`] to end it at once.
    fn submit(&self, io: IoRef);

    /// True if [`completed`](IoChannel::completed) is to see requests on their way back up, also those that this channel ended
    /// itself before they came back the first time. Constant for a channel.
    fn hooks_completion(&self) -> bool {
        false
    }

    /// The lower channel, if this one passes every request there as it is, looks at no completion, and has the same limits and
    /// size. Requests then go past it: the core counts them for both. Constant for a channel.
    fn forwards(&self) -> Option<&Channel> {
        None
    }

    /// True if reads may ask for the device's own memory: see [`IoFlags::LEND`](crate::IoFlags::LEND). Constant for a channel.
    fn lends(&self) -> bool {
        self.forwards().is_some_and(Channel::lends)
    }

    /// True if reads may ask for other reconstructions: see [`Channel::read_alternate`]. A layer that passes these requests on
    /// unchanged, flags and all, says what the lower channel says; by default only one that [forwards](IoChannel::forwards) does.
    /// Constant for a channel.
    fn offers_alternates(&self) -> bool {
        self.forwards().is_some_and(Channel::offers_alternates)
    }

    /// A request that this channel passed to a lower one comes back with `io.status()`. End it with [`IoRef::complete`], or
    /// keep it and do so later, or call [`IoRef::hook_again`] and submit it below once more.
    fn completed(&self, io: IoRef) {
        let s = io.status();
        io.complete(s);
    }

    /// Tries to end the request early, with status `ABORT_REQUESTED`. True if it was found here or below and will end soon. The
    /// request still completes exactly once, possibly with its own outcome.
    fn abort(&self, id: IoId) -> bool;

    /// The device's control plane says something to its channels: see [`BdevNode::notify_channels`].
    fn notify(&self, word: u64) {
        let _ = word;
    }

    /// Ends all that is held here or below as soon as possible, for a reset: as `abort` for every request.
    fn abort_all(&self) {}
}

/// Lets a layer see again a request that it passes down a second time.
pub trait Layer {
    /// See [`IoChannel::completed`].
    fn hook_again(&mut self);
    /// The layer's own word in the request: kept from its submit to its completion.
    fn saved(&self) -> u64;
    /// Sets the layer's own word.
    fn set_saved(&mut self, word: u64);
    /// For a device that found that it cannot do the request itself after all: the core does it by reads and writes. Like
    /// `complete_later`, this ends the device's part.
    fn emulate(self);
}
