//! From a member's device to its array: what happens to the one is told to the other.

use std::sync::{Arc, OnceLock, Weak};

use super::array;
use crate::ec::create::Told;
use crate::event::{BdevEvent, EventSink};
use crate::node::BdevNode;

/// Leads to an array that is about to start.
#[derive(Clone, Default)]
pub(super) struct Link(Arc<OnceLock<Weak<BdevNode>>>);

impl Link {
    /// To an array that is not there yet.
    pub(super) fn new() -> Link {
        Link::default()
    }

    /// The array is there. Events until now found nobody to tell.
    pub(super) fn tie(&self, node: &Arc<BdevNode>, members: &[Option<Arc<BdevNode>>]) {
        let _ = self.0.set(Arc::downgrade(node));
        for (slot, member) in members.iter().enumerate() {
            if let Some(member) = member {
                catch_up(node, slot, member);
            }
        }
    }

    /// As [`tie`](Link::tie), for an array that has taken `member` into `slot`.
    pub(super) fn tie_one(&self, node: &Arc<BdevNode>, slot: usize, member: &BdevNode) {
        let _ = self.0.set(Arc::downgrade(node));
        catch_up(node, slot, member);
    }

    /// Told of the members by their slots.
    pub(super) fn told(&self) -> Told {
        let upper = self.0.clone();
        Arc::new(move |slot, event| {
            if let Some(node) = upper.get().and_then(Weak::upgrade) {
                tell(&node, slot, event);
            }
        })
    }

    /// Told of the member in `slot`.
    pub(super) fn sink(&self, slot: usize) -> EventSink {
        let told = self.told();
        Box::new(move |event| told(slot, event))
    }
}

fn catch_up(node: &BdevNode, slot: usize, member: &BdevNode) {
    match member.is_removing() {
        true => tell(node, slot, BdevEvent::Remove),
        false => tell(node, slot, BdevEvent::Resize { num_blocks: member.num_blocks() }),
    }
}

fn tell(node: &BdevNode, slot: usize, event: BdevEvent) {
    let Some(ec) = array(node) else { return };
    match event {
        BdevEvent::Remove => ec.device_changed(slot, "its device was removed"),
        BdevEvent::Resize { num_blocks } => {
            let (Some((shift, _)), needed) = (ec.shared.below(slot), ec.shared.layout.member_bytes()) else { return };
            let bytes = num_blocks.saturating_mul(1 << shift);
            if bytes < needed {
                tracing::error!("array '{}': member {slot} shrank to {bytes} bytes, {needed} are needed", node.name());
                ec.device_changed(slot, "its device shrank to less than the array needs");
            }
        }
    }
}
