//! The device below a layer: opened, claimed, and followed when it is resized or removed.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use uuid::Uuid;

use crate::channel::Channel;
use crate::desc::BdevDesc;
use crate::device::{Bdev, Geometry, SupportedOps};
use crate::event::BdevEvent;
use crate::io::Op;
use crate::node::{BdevNode, ClaimKind};
use crate::registry::{BdevError, Registry};

/// Name space of the UUIDs that layers get by default.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b1d_2f0a_53c8_4e0b_9a57_c1d0_77e4_2b96);

/// A UUID that stays the same for a layer of this name on this base.
pub fn derived_uuid(base: Uuid, name: &str) -> Uuid {
    let mut bytes = base.as_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    Uuid::new_v5(&NAMESPACE, &bytes)
}

/// The device below a layer of one base. The layer is resized and removed with it.
pub struct Base {
    node: Arc<BdevNode>,
    desc: Mutex<Option<BdevDesc>>,
    upper: Arc<OnceLock<Weak<BdevNode>>>,
}

impl Base {
    /// Builds the layer `name` of `module` on the device `base` and registers it, under a UUID derived from its base unless one is
    /// given. `make` gets the base, claimed, and makes the layer.
    ///
    /// # Errors
    /// The base does not exist, is claimed, or is open for writing elsewhere; or as [`Registry::register`].
    pub fn build(
        registry: &Arc<Registry>,
        base: &str,
        module: &'static str,
        name: &str,
        uuid: Option<Uuid>,
        make: impl FnOnce(Base) -> Arc<dyn Bdev>,
    ) -> Result<Arc<BdevNode>, BdevError> {
        let base = Base::open(registry, base, module)?;
        let (upper, below) = (base.upper.clone(), base.node.clone());
        let uuid = uuid.unwrap_or_else(|| derived_uuid(below.uuid(), name));
        let node = registry.register(name, Some(uuid), make(base))?;
        let _ = upper.set(Arc::downgrade(&node));
        // Events until here found nobody to tell.
        if below.is_removing() {
            drop(registry.remove(&node));
        } else {
            registry.resized(&node, below.num_blocks());
        }
        Ok(node)
    }

    fn open(registry: &Arc<Registry>, name: &str, module: &'static str) -> Result<Base, BdevError> {
        let upper = Arc::new(OnceLock::<Weak<BdevNode>>::new());
        let (reg, up) = (Arc::downgrade(registry), upper.clone());
        let sink = move |ev| {
            let (Some(registry), Some(node)) = (reg.upgrade(), up.get().and_then(Weak::upgrade)) else { return };
            match ev {
                BdevEvent::Remove => drop(registry.remove(&node)),
                BdevEvent::Resize { num_blocks } => registry.resized(&node, num_blocks),
            }
        };
        let desc = registry.open(name, true, Box::new(sink))?;
        desc.claim(ClaimKind::ExclusiveWrite, module)?;
        Ok(Base { node: desc.node().clone(), desc: Mutex::new(Some(desc)), upper })
    }

    /// The layer itself, once it is registered.
    pub fn upper(&self) -> Option<Arc<BdevNode>> {
        self.upper.get().and_then(Weak::upgrade)
    }

    /// The device.
    pub fn node(&self) -> &Arc<BdevNode> {
        &self.node
    }

    /// Its channel on this core.
    ///
    /// # Errors
    /// It was closed, or cannot be used from this core.
    pub fn channel(&self) -> Result<Channel, BdevError> {
        let g = self.desc.lock().unwrap_or_else(PoisonError::into_inner);
        g.as_ref().ok_or_else(|| BdevError::NotFound(self.node.name().to_owned()))?.channel()
    }

    /// Gives the device up.
    pub fn close(&self) {
        let desc = self.desc.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(desc);
    }

    /// Its shape with its size of now.
    pub fn geometry(&self) -> Geometry {
        Geometry { num_blocks: self.node.num_blocks(), ..self.node.geometry().clone() }
    }

    /// All it can do, by emulation or by itself.
    pub fn supported(&self) -> SupportedOps {
        Op::ALL.into_iter().filter(|&o| self.node.supports(o)).fold(SupportedOps::default(), SupportedOps::with)
    }
}
