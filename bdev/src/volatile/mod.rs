//! A layer that loses what was not flushed: a disk with a volatile write cache, for trying what a power cut does.
//!
//! Writes are held in memory, but for a seeded random choice of blocks that goes on to the base at once. `kill -9` of the process
//! then leaves the base as a power cut leaves a disk: what was flushed or written with FUA is there, and of the rest any part.
//! (Without it, `kill -9` loses nothing, because the kernel keeps what a process wrote.) Deleting the device does the same.
//!
//! All cores share one cache behind a lock, and one core at a time writes to the base: this device is for tests, and slow.

mod cache;
mod channel;

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_reactor::{Reactor, oneshot};
use uuid::Uuid;

use crate::base::Base;
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::Op;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};
use crate::vbdev::Vbdev;
use cache::Cache;

/// Product name of volatile devices.
pub const PRODUCT_NAME: &str = "volatile";

/// Name of the module, in claims and configurations.
pub const MODULE: &str = "volatile";

/// Bytes that a device holds unless told otherwise.
pub const DEFAULT_CACHE_BYTES: u64 = 64 << 20;

/// Most bytes that a device may hold.
pub const MAX_CACHE_BYTES: u64 = 4 << 30;

/// How to build a volatile device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// The device below.
    pub base: String,
    /// Its UUID; by default one derived from the base's and the name.
    pub uuid: Option<Uuid>,
    /// Decides which blocks go on to the base at once.
    pub seed: u64,
    /// Bytes held in memory; when it is full, the oldest half is written to the base. 1 to [`MAX_CACHE_BYTES`].
    pub cache_bytes: u64,
}

/// Configures a volatile device; `None` if it waits for its base.
///
/// # Errors
/// The name is taken, the base is in use, has separate metadata or a write unit of more than a block, or the cache has no size.
pub fn create(registry: &Arc<Registry>, options: Options) -> Result<Option<Arc<BdevNode>>, BdevError> {
    if options.cache_bytes == 0 || options.cache_bytes > MAX_CACHE_BYTES {
        return Err(BdevError::Invalid(format!(
            "a cache of {} bytes is not between 1 and {MAX_CACHE_BYTES}",
            options.cache_bytes
        )));
    }
    registry.configure(Arc::new(options))
}

impl Vbdev for Options {
    fn module(&self) -> &'static str {
        MODULE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn base(&self) -> &str {
        &self.base
    }

    fn build(&self, registry: &Arc<Registry>) -> Result<Arc<BdevNode>, BdevError> {
        if let Some(base) = registry.find(&self.base) {
            let g = base.geometry();
            if (g.md_size != 0 && !g.md_interleave) || g.write_unit > 1 {
                return Err(BdevError::Invalid(format!(
                    "bdev '{}' has separate metadata or a write unit of {} blocks: a volatile device holds single blocks",
                    self.base, g.write_unit
                )));
            }
        }
        Base::build(registry, &self.base, MODULE, &self.name, self.uuid, |base| {
            let block_size = base.geometry().block_size as usize;
            let cache = Mutex::new(Cache::new(block_size, self.cache_bytes as usize, self.seed));
            let shared = Shared { base, cache, write_back: Mutex::default(), block_size };
            Arc::new(Volatile { options: self.clone(), shared: Arc::new(shared) })
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A device with a volatile write cache.
pub struct Volatile {
    options: Options,
    shared: Arc<Shared>,
}

impl Volatile {
    /// Name of the device below.
    pub fn base_name(&self) -> &str {
        self.shared.base.node().name()
    }

    /// How it was built.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Bytes held in memory that the base does not have.
    pub fn unflushed_bytes(&self) -> u64 {
        self.shared.cache().bytes() as u64
    }
}

impl Bdev for Volatile {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        Geometry { volatile_cache: true, ..self.shared.base.geometry() }
    }

    /// The core writes zeroes, compares and copies by reads and writes, so that these are held as any write is.
    fn supported(&self) -> SupportedOps {
        let own = SupportedOps::of(&[Op::Read, Op::Write, Op::Flush, Op::Reset]);
        if self.shared.base.supported().has(Op::Unmap) { own.with(Op::Unmap) } else { own }
    }

    fn base(&self) -> Option<&Base> {
        Some(&self.shared.base)
    }

    fn open_channel(&self, reactor: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        Ok(channel::open(reactor, self.shared.base.channel()?, self.shared.clone()))
    }

    /// What is not on the base now never will be. The base is given up when the last write to it has ended, which may be one that
    /// no request waits for: the next user's data must not be written over.
    fn destruct(&self) {
        let idle = {
            let mut w = self.shared.write_back();
            w.closed = true;
            !w.busy
        };
        if idle {
            self.shared.base.close();
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What the cores share.
struct Shared {
    base: Base,
    cache: Mutex<Cache>,
    write_back: Mutex<WriteBack>,
    block_size: usize,
}

/// Who changes the base. One at a time, so that an older version of a block never lands on a newer one.
#[derive(Default)]
struct WriteBack {
    busy: bool,
    /// The device is gone.
    closed: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

/// The right to change the base.
struct Turn(Arc<Shared>);

impl Drop for Turn {
    fn drop(&mut self) {
        let (waiting, closed) = {
            let mut w = self.0.write_back();
            w.busy = false;
            (std::mem::take(&mut w.waiting), w.closed)
        };
        if closed {
            self.0.base.close();
        }
        // All of them: one that was given up must not keep the others from their turn.
        for w in waiting {
            let _ = w.send(());
        }
    }
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_back(&self) -> MutexGuard<'_, WriteBack> {
        self.write_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the right to change the base; `None` if the device is gone.
    async fn turn(self: &Arc<Self>) -> Option<Turn> {
        loop {
            let rx = {
                let mut w = self.write_back();
                if w.closed {
                    return None;
                }
                if !std::mem::replace(&mut w.busy, true) {
                    return Some(Turn(self.clone()));
                }
                let (tx, rx) = oneshot::channel();
                w.waiting.push(tx);
                rx
            };
            let _ = rx.await;
        }
    }
}

#[cfg(test)]
mod tests;
