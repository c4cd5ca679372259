//! What a running array is, for whoever asks.

use super::{Arrays, Replacement, array};
use crate::ec::format::MemberState;
use crate::ec::layout::Layout;
use crate::ec::rebuild::RebuildProgress;
use crate::ec::stats::EcStats;
use crate::node::BdevNode;
use crate::registry::Registry;

/// A member of a running array.
pub struct MemberInfo {
    /// Its device; none if the slot was empty when the array started.
    pub name: Option<String>,
    /// How it is used at present.
    pub state: MemberState,
    /// Bytes of its device.
    pub bytes: Option<u64>,
    /// Why it failed, if it did since the array started.
    pub why: Option<&'static str>,
    /// The device that is being taken into its slot.
    pub replacement: Option<Replacement>,
}

/// What a running array is.
pub struct ArrayInfo {
    /// Its geometry.
    pub layout: Layout,
    /// Too few members are left to serve requests.
    pub offline: bool,
    /// Why.
    pub offline_because: Option<&'static str>,
    /// Devices that were found and are not used, and why.
    pub passed_over: Vec<(String, String)>,
    /// A device is being taken in, or a member is being rebuilt.
    pub replacing: bool,
    /// Rebuilds under way, by slot.
    pub rebuilds: Vec<RebuildProgress>,
    /// Names of spares that may become members.
    pub spares: Vec<String>,
    /// By slot.
    pub members: Vec<MemberInfo>,
    /// Stripes that members which are missing may lack writes of: those of the regions that the write-intent bitmap has.
    pub dirty_stripes: u64,
    /// Stripes that hold nothing.
    pub unmapped_stripes: u64,
    /// What the host asked for and what that cost.
    pub stats: EcStats,
}

impl Arrays {
    /// What the array `node` is; none for another device.
    pub fn describe(&self, registry: &Registry, node: &BdevNode) -> Option<ArrayInfo> {
        let ec = array(node)?;
        let layout = ec.shared.layout;
        let note = self.notes.of(node.uuid());
        // Those that were taken away since are of no interest.
        let passed_over = note.passed_over.into_iter().filter(|(name, _)| registry.find(name).is_some()).collect();
        let member = |slot| {
            let name = ec.shared.member_name(slot);
            let below = name.as_ref().and_then(|name| registry.find(name));
            let bytes = below.map(|n| n.num_blocks().saturating_mul(u64::from(n.geometry().block_size)));
            let state = ec.member_state(slot);
            let why = note.failed.get(&slot).copied().filter(|_| state == MemberState::Failed);
            MemberInfo { name, state, bytes, why, replacement: self.seats.of(node.uuid(), slot) }
        };
        let members = (0..layout.n()).map(member).collect();
        let (wib, unmap) = (ec.wib_status(), ec.unmap_status());
        let dirty = wib.dirty_regions.saturating_mul(wib.region_stripes).min(unmap.stripes);
        Some(ArrayInfo {
            layout,
            offline: ec.is_offline(),
            offline_because: note.offline,
            passed_over,
            replacing: self.seats.any(node.uuid()) || !ec.rebuild_progress().is_empty(),
            rebuilds: ec.rebuild_progress(),
            spares: self.spares_of(node.name()),
            members,
            dirty_stripes: dirty,
            unmapped_stripes: unmap.stripes - unmap.mapped,
            stats: ec.stats(),
        })
    }
}
