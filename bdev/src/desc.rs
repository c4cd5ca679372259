//! An open handle of a device.

use std::sync::Arc;

use crate::channel::Channel;
use crate::core::CoreState;
use crate::event::EventSink;
use crate::node::{BdevNode, Claim, ClaimKind};
use crate::registry::BdevError;

/// An open handle of a device. Dropping it closes the device and gives up its claim; channels taken from it keep the device
/// alive until they are dropped too.
pub struct BdevDesc {
    node: Arc<BdevNode>,
    id: u64,
}

impl BdevDesc {
    pub(crate) fn open(node: Arc<BdevNode>, write: bool, sink: EventSink) -> Result<BdevDesc, BdevError> {
        let id = node.open(write, sink)?;
        Ok(BdevDesc { node, id })
    }

    /// The device.
    pub fn node(&self) -> &Arc<BdevNode> {
        &self.node
    }

    /// Claims the device for `module`: nobody else can open it for writing until the claim is released or the handle closed.
    ///
    /// # Errors
    /// Somebody else has claimed it or holds it open for writing.
    pub fn claim(&self, kind: ClaimKind, module: &'static str) -> Result<(), BdevError> {
        self.node.set_claim(self.id, Claim { kind, module })
    }

    /// Gives up the claim.
    pub fn release_claim(&self) {
        self.node.release_claim(self.id);
    }

    /// The device on the calling core; opened on first use, shared by all handles of the core.
    ///
    /// # Errors
    /// The device cannot be used from this core.
    pub fn channel(&self) -> Result<Channel, BdevError> {
        Channel::get(&CoreState::current(), &self.node)
    }
}

impl Drop for BdevDesc {
    fn drop(&mut self) {
        self.node.close(self.id);
    }
}

impl Channel {
    pub(crate) fn get(core: &std::rc::Rc<CoreState>, node: &Arc<BdevNode>) -> Result<Channel, BdevError> {
        let key = Arc::as_ptr(node) as usize;
        if let Some(c) = core.channels().borrow().get(&key).and_then(Channel::upgrade) {
            return Ok(c);
        }
        let module = node.device().open_channel(core.reactor(), node)?;
        let (stat, gate, locked) = node.channel_opened(core.reactor().handle())?;
        let c = Channel::open(core, node, module, stat, gate, locked);
        let mut map = core.channels().borrow_mut();
        map.retain(|_, w| w.strong_count() > 0);
        map.insert(key, c.downgrade());
        Ok(c)
    }
}
