//! The immutable picture of the configuration that every core works from. A change makes a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_bdev::BdevDesc;
use longshore_nvme::wire::{AnaState, DISCOVERY_NQN};
use uuid::Uuid;

use crate::address::{Address, TrType};
use crate::options::{Referral, SubsystemOptions, TargetConfig, TransportOptions};

/// A device that is exported as a namespace, for as long as it is.
pub struct Namespace {
    /// Never used again for another namespace.
    pub(crate) key: u64,
    /// Name of the device.
    pub bdev_name: String,
    /// The open device.
    pub desc: BdevDesc,
    /// UUID reported to hosts.
    pub uuid: Uuid,
    /// NGUID reported to hosts.
    pub nguid: [u8; 16],
    /// EUI-64 reported to hosts; zero for none.
    pub eui64: [u8; 8],
    /// Bytes of a block on the wire, interleaved metadata included.
    pub block_size: u32,
    /// Bytes of interleaved metadata per block.
    pub md_size: u32,
}

impl Namespace {
    /// Blocks of now.
    pub fn num_blocks(&self) -> u64 {
        self.desc.node().num_blocks()
    }

    /// Data bytes of a block.
    pub fn data_size(&self) -> u32 {
        self.block_size - self.md_size
    }
}

/// A namespace as one subsystem shows it.
#[derive(Clone)]
pub struct NamespaceView {
    /// Identifier.
    pub nsid: u32,
    /// ANA group.
    pub anagrpid: u32,
    /// Every host sees it; otherwise those in `hosts`.
    pub auto_visible: bool,
    /// Hosts that were given access.
    pub hosts: BTreeSet<String>,
    /// Size when the view was made: a change of it is a change of the namespace.
    pub num_blocks: u64,
    /// The device.
    pub ns: Arc<Namespace>,
}

impl NamespaceView {
    /// True if the host sees it.
    pub fn visible_to(&self, hostnqn: &str) -> bool {
        self.auto_visible || self.hosts.contains(hostnqn)
    }
}

/// A listener of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerView {
    /// Where.
    pub address: Address,
    /// ANA state of each group; group 1 first.
    pub ana: Vec<AnaState>,
    /// Counts changes of `ana`.
    pub ana_changes: u64,
}

impl ListenerView {
    /// State of a group.
    pub fn ana_state(&self, group: u32) -> AnaState {
        self.ana.get(group.wrapping_sub(1) as usize).copied().unwrap_or_default()
    }
}

/// A subsystem.
#[derive(Clone)]
pub struct SubsystemView {
    /// Never used again for another subsystem.
    pub id: u64,
    /// What it was created with; `allow_any_host` as it is now.
    pub options: Arc<SubsystemOptions>,
    /// True for the discovery subsystem.
    pub discovery: bool,
    /// Hosts need not be on the list.
    pub allow_any_host: bool,
    /// Hosts on the list.
    pub hosts: BTreeSet<String>,
    /// Where it listens, in the order of addition.
    pub listeners: Vec<ListenerView>,
    /// By identifier.
    pub namespaces: BTreeMap<u32, NamespaceView>,
    /// Counts changes that the ANA log page shows.
    pub ana_changes: u64,
}

impl SubsystemView {
    /// NQN.
    pub fn nqn(&self) -> &str {
        &self.options.nqn
    }

    /// True if the host may connect.
    pub fn allows(&self, hostnqn: &str) -> bool {
        self.allow_any_host || (!hostnqn.is_empty() && self.hosts.contains(hostnqn))
    }

    /// The listener at an address.
    pub fn listener(&self, at: &Address) -> Option<&ListenerView> {
        self.listeners.iter().find(|l| l.address == *at)
    }
}

/// The whole configuration.
#[derive(Clone)]
pub struct TargetView {
    /// Rises with every change.
    pub generation: u64,
    /// By NQN, the discovery subsystem first.
    pub subsystems: BTreeMap<SubsystemKey, Arc<SubsystemView>>,
    /// Transports that were created.
    pub transports: BTreeMap<TrType, Arc<TransportOptions>>,
    /// Other discovery services.
    pub referrals: Arc<Vec<Referral>>,
    /// Generation counter of the discovery log page.
    pub genctr: u64,
    /// Options of the target.
    pub config: Arc<TargetConfig>,
}

/// An NQN, sorted so that discovery comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubsystemKey(bool, String);

impl SubsystemKey {
    /// The key of an NQN.
    pub fn new(nqn: &str) -> Self {
        SubsystemKey(nqn != DISCOVERY_NQN, nqn.to_owned())
    }
}

impl TargetView {
    /// The subsystem of this name.
    pub fn subsystem(&self, nqn: &str) -> Option<&Arc<SubsystemView>> {
        self.subsystems.get(&SubsystemKey::new(nqn))
    }
}
