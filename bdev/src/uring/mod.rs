//! Files and block devices through the reactor's ring.
//!
//! What was written is durable after a flush (`fdatasync`) or if the write carried FUA (`RWF_DSYNC`; on a file system without direct
//! I/O a flush that the write waits for). Once a flush has failed,
//! nobody knows which acknowledged writes are lost: every later flush and FUA write fails too, until the device is opened anew.

mod channel;
#[cfg(test)]
mod durability;
#[cfg(not(test))]
mod honest;
mod lock;
#[cfg(test)]
mod mutant;
mod open;
mod status;
mod sync;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;

use longshore_reactor::Reactor;
use uuid::Uuid;

use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::Op;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};
use channel::UringChannel;
#[cfg(not(test))]
use honest as faults;
#[cfg(test)]
use mutant as faults;
use open::Medium;

/// Largest read or write given to the kernel at once, in bytes: what a bounce buffer can hold.
const MAX_IO: u32 = 2 << 20;

/// Under which family of methods a device was made. They differ in name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `bdev_uring_*`
    Uring,
    /// `bdev_aio_*`
    Aio,
}

/// How to make a file device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// The file or block device.
    pub filename: String,
    /// Bytes of a block; 0 = what suits the file.
    pub block_size: u32,
    /// Its UUID; by default a random one.
    pub uuid: Option<Uuid>,
    /// Under which name it is known.
    pub family: Family,
    /// Refuse to change it.
    pub readonly: bool,
    /// Deallocate by `fallocate`. Without it, an [`Aio`](Family::Aio) device does not offer unmap.
    pub fallocate: bool,
    /// Accepted for the sake of clients: the ring never blocks.
    pub nowait: bool,
}

impl Options {
    /// A device with everything else left to its default.
    pub fn new(name: impl Into<String>, filename: impl Into<String>, family: Family) -> Options {
        Options {
            name: name.into(),
            filename: filename.into(),
            block_size: 0,
            uuid: None,
            family,
            readonly: false,
            fallocate: false,
            nowait: false,
        }
    }
}

/// Opens the file and registers the device. Blocks for as long as opening takes.
///
/// # Errors
/// The file cannot be opened, is served by another process, or does not consist of whole blocks; the name is taken.
pub fn create(registry: &Arc<Registry>, options: Options) -> Result<Arc<BdevNode>, BdevError> {
    if registry.find(&options.name).is_some() {
        return Err(BdevError::Exists(options.name));
    }
    let medium = Medium::open(&options)?;
    let blocks = medium.num_blocks(&options.name)?;
    let (name, uuid) = (options.name.clone(), options.uuid);
    let dev = FileDev { geometry: FileDev::shape(&medium, &options, blocks), medium: Arc::new(medium), options };
    registry.register(&name, uuid, Arc::new(dev))
}

/// Looks at the size of the file anew.
///
/// # Errors
/// No such device, not a file device, or its size is not whole blocks any more.
pub fn rescan(registry: &Arc<Registry>, name: &str) -> Result<(), BdevError> {
    let node = registry.find(name).ok_or_else(|| BdevError::NotFound(name.to_owned()))?;
    let dev = node.device().as_any().downcast_ref::<FileDev>().ok_or_else(|| BdevError::NotFound(name.to_owned()))?;
    let blocks = dev.medium.num_blocks(name)?;
    registry.resized(&node, blocks);
    Ok(())
}

/// A file or block device.
pub struct FileDev {
    options: Options,
    geometry: Geometry,
    medium: Arc<Medium>,
}

impl FileDev {
    /// How it was made.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// It goes past the page cache.
    pub fn direct(&self) -> bool {
        self.medium.direct
    }

    /// It is a block device, not a regular file.
    pub fn block_device(&self) -> bool {
        self.medium.block_device
    }

    /// Fewer blocks were allocated than its size says when it was opened: writes allocate, and are slower for it.
    pub fn sparse(&self) -> bool {
        self.medium.sparse
    }

    /// A flush has failed, and so does every later one.
    pub fn failed(&self) -> bool {
        self.medium.health.poisoned()
    }

    fn shape(m: &Medium, o: &Options, blocks: u64) -> Geometry {
        let bs = m.block_size;
        Geometry {
            max_io_blocks: MAX_IO / bs,
            buf_align: m.mem_align,
            volatile_cache: !o.readonly,
            ..Geometry::plain(bs, blocks)
        }
    }
}

impl Bdev for FileDev {
    fn product_name(&self) -> &'static str {
        match self.options.family {
            Family::Uring => "URING bdev",
            Family::Aio => "AIO disk",
        }
    }

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn supported(&self) -> SupportedOps {
        let ops = SupportedOps::of(&[Op::Read, Op::Flush, Op::Reset]);
        if self.options.readonly {
            return ops;
        }
        let ops = ops.with(Op::Write).with(Op::WriteZeroes);
        let unmap = self.options.family == Family::Uring || self.options.fallocate;
        if unmap { ops.with(Op::Unmap) } else { ops }
    }

    fn read_only(&self) -> bool {
        self.options.readonly
    }

    fn open_channel(&self, reactor: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(Box::new(UringChannel::new(reactor, self.medium.clone(), node)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
