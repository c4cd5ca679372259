//! One namespace as a device.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use longshore_nvme::host::{Info, Namespace};
use longshore_nvme::wire::identify::oncs;
use longshore_reactor::Reactor;

use super::channel::NvmeChannel;
use super::core_queue::{CoreQueue, Tag};
use super::entry::Entry;
use crate::device::{Bdev, Geometry, IoChannel, SupportedOps};
use crate::io::Op;
use crate::node::BdevNode;
use crate::registry::BdevError;

/// Product name of remote namespaces.
pub const PRODUCT_NAME: &str = "NVMe disk";

/// Blocks that NLB of a command can say.
const NLB_MAX: u64 = 1 << 16;
/// FUSES bit 0: fused compare and write.
const FUSES_COMPARE_WRITE: u16 = 1;

/// A namespace of a remote controller.
pub struct NvmeBdev {
    pub(crate) entry: Arc<Entry>,
    nsid: u32,
    serial: u32,
    namespace: Namespace,
    geometry: Geometry,
    supported: SupportedOps,
    /// The namespace is not there any more.
    gone: Arc<AtomicBool>,
}

impl NvmeBdev {
    /// The device that `namespace` is.
    ///
    /// # Errors
    /// It is of a kind that is not supported: says which.
    pub(crate) fn new(entry: Arc<Entry>, namespace: Namespace, info: &Info) -> Result<NvmeBdev, String> {
        let (data, format) = (&namespace.data, namespace.format());
        if namespace.csi != 0 {
            return Err(format!("its I/O command set {} is not the NVM command set", namespace.csi));
        }
        if format.ms.get() != 0 {
            return Err(format!("its LBA format has {} bytes of metadata", format.ms.get()));
        }
        let bs = namespace.block_size().ok_or_else(|| format!("its blocks of 2^{} bytes", format.lbads))?;
        if data.nsze.get() == 0 {
            return Err("it has no blocks".into());
        }
        let limit = match info.max_transfer {
            0 => NLB_MAX,
            n => (n / u64::from(bs)).clamp(1, NLB_MAX),
        };
        let on = info.identify.oncs.get();
        let copies = on & oncs::COPY != 0 && data.mssrl.get() != 0;
        let mut supported = SupportedOps::of(&[Op::Read, Op::Write, Op::Flush, Op::Reset]);
        for (bit, op) in
            [(oncs::COMPARE, Op::Compare), (oncs::DATASET_MANAGEMENT, Op::Unmap), (oncs::WRITE_ZEROES, Op::WriteZeroes)]
        {
            if on & bit != 0 {
                supported = supported.with(op);
            }
        }
        if on & oncs::COMPARE != 0 && info.identify.fuses.get() & FUSES_COMPARE_WRITE != 0 {
            supported = supported.with(Op::CompareAndWrite);
        }
        if copies {
            supported = supported.with(Op::Copy);
        }
        let mut geometry = Geometry::plain(bs, data.nsze.get());
        geometry.max_io_blocks = limit as u32;
        // Limits of these stand in pages that not every controller has; what a transfer may be is never above them in practice.
        geometry.max_write_zeroes_blocks = limit as u32;
        geometry.max_unmap_blocks = NLB_MAX as u32;
        geometry.max_copy_blocks = data.mssrl.get().into();
        geometry.optimal_io_boundary = data.noiob.get().into();
        // Whatever the controller says today: see the module's "Caches".
        geometry.volatile_cache = true;
        // Told apart from one that may take its place under the same identifier.
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed) & Tag::MAX_SERIAL;
        Ok(NvmeBdev { entry, serial, nsid: namespace.nsid, geometry, supported, namespace, gone: Arc::default() })
    }

    /// Name of the controller.
    pub fn controller(&self) -> &str {
        &self.entry.name
    }

    /// The controller.
    pub fn host(&self) -> &Arc<longshore_nvme::host::Controller> {
        &self.entry.ctrl
    }

    pub(super) fn serial(&self) -> u32 {
        self.serial
    }

    /// Namespace identifier.
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// From now on requests fail: what has its identifier is other storage, or none.
    pub(super) fn retire(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// What the controller said of the namespace when it was found.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Bdev for NvmeBdev {
    fn product_name(&self) -> &'static str {
        PRODUCT_NAME
    }

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn supported(&self) -> SupportedOps {
        self.supported
    }

    fn read_only(&self) -> bool {
        // Bit 0 of NSATTR: currently write protected.
        self.namespace.data.nsattr & 1 != 0
    }

    fn open_channel(&self, reactor: &Reactor, _: &Arc<BdevNode>) -> Result<Box<dyn IoChannel>, BdevError> {
        let queue = CoreQueue::of(reactor, &self.entry);
        let tag = Tag::new(self.nsid, self.serial, self.geometry.block_size);
        Ok(Box::new(NvmeChannel::new(queue, tag, self.gone.clone())))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
