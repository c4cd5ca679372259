//! What transports, subsystems, namespaces and the target are configured with.

use uuid::Uuid;

use crate::address::{Address, TrType};

/// Options of one transport. Defaults are those clients expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// Kind.
    pub trtype: TrType,
    /// Entries of an I/O queue, 2 to 65535.
    pub max_queue_depth: u16,
    /// I/O queues of one controller.
    pub max_io_qpairs_per_ctrlr: u16,
    /// Bytes of data that an I/O command capsule may carry.
    pub in_capsule_data_size: u32,
    /// Bytes that one command may transfer: 4096 times a power of two (gives MDTS).
    pub max_io_size: u32,
    /// Entries of an admin queue.
    pub max_aq_depth: u32,
    /// Buffers cached per core; stored and shown only.
    pub iobuf_small_cache_size: u32,
    /// Buffers cached per core; stored and shown only.
    pub iobuf_large_cache_size: u32,
    /// Zero-copy requests to devices that can.
    pub zcopy: bool,
    /// Permission to end a read with the SUCCESS flag instead of a response.
    pub c2h_success: bool,
    /// SO_PRIORITY of sockets.
    pub sock_priority: u32,
    /// Buffers for control messages; stored and shown only.
    pub control_msg_num: u32,
    /// Seconds that removing a namespace waits for its requests before it aborts them.
    pub abort_timeout_sec: u32,
    /// TCP_USER_TIMEOUT-like limit in milliseconds, 0 = none.
    pub ack_timeout: u32,
    /// Stored and shown only.
    pub data_wr_pool_size: u32,
    /// Stored and shown only.
    pub disable_command_passthru: bool,
    /// Granularity of keep-alive timeouts, in units of 100 ms (KAS).
    pub kas: u16,
    /// Shortest keep-alive timeout granted, in milliseconds.
    pub min_kato: u32,
    /// ONCS bits that are not offered.
    pub masked_oncs: u16,
    /// FUSES bits that are not offered.
    pub masked_fuses: u16,
}

impl TransportOptions {
    /// The defaults of `trtype`.
    pub fn new(trtype: TrType) -> TransportOptions {
        TransportOptions {
            trtype,
            max_queue_depth: 128,
            max_io_qpairs_per_ctrlr: 127,
            in_capsule_data_size: 4096,
            max_io_size: 131_072,
            max_aq_depth: 128,
            iobuf_small_cache_size: u32::MAX,
            iobuf_large_cache_size: u32::MAX,
            zcopy: false,
            c2h_success: true,
            sock_priority: 0,
            control_msg_num: 32,
            abort_timeout_sec: 1,
            ack_timeout: 0,
            data_wr_pool_size: 0,
            disable_command_passthru: false,
            kas: 100,
            min_kato: 10_000,
            masked_oncs: 0,
            masked_fuses: 0,
        }
    }

    /// MDTS: log2 of `max_io_size` in units of 4 KiB.
    pub fn mdts(&self) -> u8 {
        (self.max_io_size / 4096).max(1).ilog2() as u8
    }
}

/// What a subsystem is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemOptions {
    /// NVMe Qualified Name.
    pub nqn: String,
    /// Serial number, at most 20 printable ASCII characters; empty for the default.
    pub serial_number: String,
    /// Model number, at most 40 printable ASCII characters; empty for the default.
    pub model_number: String,
    /// Highest namespace identifier; 0 for the default.
    pub max_namespaces: u32,
    /// Hosts need not be on the list.
    pub allow_any_host: bool,
    /// Asymmetric namespace access is reported.
    pub ana_reporting: bool,
    /// Lowest controller identifier.
    pub min_cntlid: u16,
    /// Highest controller identifier.
    pub max_cntlid: u16,
    /// Longest dataset management range, in blocks.
    pub dmrsl: u32,
    /// Largest write zeroes: 4 KiB times two to this power.
    pub wzsl: u8,
    /// Stored and shown only.
    pub passthrough: bool,
    /// NVM subsystem reset is accepted; stored and shown only.
    pub enable_nssr: bool,
    /// Label shown in discovery; stored and shown only.
    pub admin_label: Option<String>,
}

impl SubsystemOptions {
    /// Default serial number.
    pub const SERIAL: &'static str = "00000000000000000000";
    /// Default model number.
    pub const MODEL: &'static str = "SPDK bdev Controller";
    /// Default for the highest namespace identifier.
    pub const MAX_NAMESPACES: u32 = 32;

    /// The defaults, for `nqn`.
    pub fn new(nqn: &str) -> SubsystemOptions {
        SubsystemOptions {
            nqn: nqn.to_owned(),
            serial_number: Self::SERIAL.to_owned(),
            model_number: Self::MODEL.to_owned(),
            max_namespaces: Self::MAX_NAMESPACES,
            allow_any_host: false,
            ana_reporting: false,
            min_cntlid: 1,
            max_cntlid: 0xffef,
            dmrsl: 2_097_152,
            wzsl: 12,
            passthrough: false,
            enable_nssr: false,
            admin_label: None,
        }
    }
}

/// What a namespace is added with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// Name of the device.
    pub bdev_name: String,
    /// Identifier; `None` or 0 for the first free one.
    pub nsid: Option<u32>,
    /// NGUID; `None` for the UUID's bytes.
    pub nguid: Option<[u8; 16]>,
    /// EUI-64.
    pub eui64: Option<[u8; 8]>,
    /// UUID; `None` for the device's.
    pub uuid: Option<Uuid>,
    /// ANA group; `None` or 0 for the namespace identifier.
    pub anagrpid: Option<u32>,
    /// Only hosts that were given access see it.
    pub no_auto_visible: bool,
}

/// A pointer to another discovery service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referral {
    /// Where.
    pub address: Address,
    /// NQN of the subsystem there.
    pub subnqn: String,
    /// Always false until TLS is built; stored and shown.
    pub secure_channel: bool,
}

/// Which of its addresses a discovery log page shows, by what must equal the address the host came in by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryFilter {
    /// Same transport.
    pub transport: bool,
    /// Same address.
    pub address: bool,
    /// Same service id.
    pub svcid: bool,
}

/// Options of the target as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Command Retry Delay Times 1 to 3 that Identify Controller reports, in units of 100 ms. The first is asked for with Namespace Not
    /// Ready, of hosts that enabled Advanced Command Retry; 0: no delay is asked for. Base Specification, "Identify Controller data
    /// structure" (CRDT1), "Host Behavior Support".
    pub crdt: [u16; 3],
    /// Most subsystems.
    pub max_subsystems: u32,
    /// What discovery shows.
    pub discovery_filter: DiscoveryFilter,
    /// Percent, 1 to 100, that one host may hold of what a core shares among all hosts; and of the whole core, or a tenth if that is more, that
    /// its queue pairs may have for themselves.
    pub host_share: u8,
}

impl Default for TargetConfig {
    fn default() -> Self {
        TargetConfig {
            // Linux tries five times more: for 25 s, in which most of what keeps a namespace from being ready passes.
            crdt: [50, 0, 0],
            max_subsystems: 1024,
            discovery_filter: DiscoveryFilter::default(),
            host_share: 50,
        }
    }
}
