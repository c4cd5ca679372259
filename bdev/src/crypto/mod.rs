//! A layer that encrypts: what the base holds is cipher text, block by block (AES-XTS).
//!
//! Every block is encrypted by itself, under its own number, so the base needs no room beside the data and nothing is written but
//! what is asked for. Nothing tells whether a block was changed below: this hides data, it does not authenticate it.
//!
//! Reads are decrypted where they are when the base has read them. Writes are encrypted into memory of the core's pool: what the
//! writer gave stays as it is. Unmap goes to the base as it is: what such a block reads afterwards is not defined, as that of a block
//! which was never written. Write zeroes, compare, compare-and-write and copy are done by the core with reads and writes through
//! this layer, so zeroes are written encrypted.

mod channel;

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use longshore_accel::Accel;
use longshore_accel::crypto::Key;
use longshore_reactor::Reactor;
use uuid::Uuid;

use crate::base::Base;
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::Op;
use crate::node::BdevNode;
use crate::registry::{BdevError, Registry};
use crate::vbdev::Vbdev;

/// Product name of encrypting devices.
pub const PRODUCT_NAME: &str = "crypto";

/// Name of the module, in claims and configurations.
pub const MODULE: &str = "crypto";

/// Bytes of a request at most, unless the base's write unit is larger: longer ones are cut.
const LARGEST: u32 = 256 << 10;

/// Bytes of a write unit at most: what one buffer of the pool holds.
const LARGEST_UNIT: u32 = 2 << 20;

/// How to build an encrypting device.
#[derive(Clone)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// The device below.
    pub base: String,
    /// Its UUID; by default one derived from the base's and the name.
    pub uuid: Option<Uuid>,
    /// The key. It cannot be destroyed while the device is configured.
    pub key: Arc<Key>,
    /// What computes.
    pub accel: Arc<Accel>,
}

/// Configures an encrypting device; `None` if it waits for its base.
///
/// # Errors
/// The name is taken; the base is in use, has metadata, or blocks that the key's tweak mode does not take.
pub fn create(registry: &Arc<Registry>, options: Options) -> Result<Option<Arc<BdevNode>>, BdevError> {
    registry.configure(Arc::new(options))
}

/// The geometry above a base of geometry `g`, or why there is none.
fn geometry(base: &str, g: Geometry) -> Result<Geometry, BdevError> {
    if g.md_size != 0 {
        return Err(BdevError::Invalid(format!(
            "bdev '{base}' has {} bytes of metadata per block, which would not be encrypted: use one without",
            g.md_size
        )));
    }
    let unit = u64::from(g.write_unit.max(1)) * u64::from(g.block_size);
    if unit > u64::from(LARGEST_UNIT) {
        return Err(BdevError::Invalid(format!(
            "bdev '{base}' takes writes of {unit} bytes only; {LARGEST_UNIT} bytes at most can be encrypted at once"
        )));
    }
    let most = (u64::from(LARGEST) / unit).max(1) as u32 * g.write_unit.max(1);
    let max_io_blocks = if g.max_io_blocks == 0 { most } else { most.min(g.max_io_blocks) };
    Ok(Geometry { max_io_blocks, ..g })
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
            let g = geometry(&self.base, base.geometry().clone())?;
            let crypt = self.accel.channel().crypt(&self.key, g.block_size as usize);
            crypt.map_err(|e| BdevError::Invalid(format!("bdev '{}': {e}", self.base)))?;
        }
        Base::build(registry, &self.base, MODULE, &self.name, self.uuid, |base| {
            Arc::new(Crypto {
                base,
                accel: self.accel.clone(),
                key_name: self.key.name().to_owned(),
                key: Mutex::new(Some(self.key.clone())),
                waits: Arc::default(),
            })
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A device whose data is encrypted on the one below.
pub struct Crypto {
    base: Base,
    accel: Arc<Accel>,
    key_name: String,
    /// Given up with the base, so that it can be destroyed when the device is deleted.
    key: Mutex<Option<Arc<Key>>>,
    /// Writes that waited for memory.
    waits: Arc<AtomicU64>,
}

impl Crypto {
    /// Name of the device below.
    pub fn base_name(&self) -> &str {
        self.base.node().name()
    }

    /// Name of the key.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The key, while there is a base.
    fn key(&self) -> Option<Arc<Key>> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes that waited for memory to be encrypted into, since the device was built.
    pub fn waits(&self) -> u64 {
        self.waits.load(Relaxed)
    }
}

impl Bdev for Crypto {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        let g = self.base.geometry();
        // `build` saw that it can be had.
        geometry(self.base_name(), g.clone()).unwrap_or(g)
    }

    fn supported(&self) -> SupportedOps {
        let below = self.base.supported();
        let passed = [Op::Read, Op::Write, Op::Flush, Op::Unmap, Op::Reset];
        passed.into_iter().filter(|op| below.has(*op)).fold(SupportedOps::default(), SupportedOps::with)
    }

    fn base(&self) -> Option<&Base> {
        Some(&self.base)
    }

    fn destruct(&self) {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.base.close();
    }

    fn open_channel(&self, reactor: &Reactor, node: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        channel::open(reactor, node, self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
