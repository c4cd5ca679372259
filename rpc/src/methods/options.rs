//! Blocks of options that are stored, read by the parts that use them, and dumped as they were set.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::app::{App, Local};
use crate::config::Entry;
use crate::decode::Params;
use crate::error::{EINVAL, INVALID_PARAMS, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::methods::bdev_nvme::NvmeOptions;
use crate::methods::sock::SockOptions;
use crate::{choices, params};

params! {
    /// Buffer pools.
    struct Iobuf {
        /// Buffers in the pool of small ones.
        small_pool_count: u64 = 8192,
        /// Buffers in the pool of large ones.
        large_pool_count: u64 = 1024,
        /// Size of a small buffer, bytes.
        small_bufsize: u32 = 8192,
        /// Size of a large buffer, bytes.
        large_bufsize: u32 = 135168,
        /// A pool per NUMA node.
        enable_numa: bool = false,
    }
}

params! {
    /// Acceleration framework.
    struct Accel {
        /// Small buffers kept per thread.
        small_cache_size: u32 = 128,
        /// Large buffers kept per thread.
        large_cache_size: u32 = 16,
        /// Tasks per channel.
        task_count: u32 = 2048,
        /// Sequences per channel.
        sequence_count: u32 = 2048,
        /// Buffers per channel.
        buf_count: u32 = 2048,
    }
}

params! {
    /// Block device layer.
    struct BdevOptions {
        /// Requests in the pool.
        bdev_io_pool_size: u32 = 65535,
        /// Requests kept per thread.
        bdev_io_cache_size: u32 = 256,
        /// Look at new block devices for what lies on them.
        bdev_auto_examine: bool = true,
        /// Small buffers kept per thread.
        iobuf_small_cache_size: u32 = 128,
        /// Large buffers kept per thread.
        iobuf_large_cache_size: u32 = 16,
    }
}

impl BdevOptions {
    /// The size at which each core keeps a pool of its own choice.
    pub(crate) fn default_pool_size() -> u32 {
        65535
    }
}

params! {
    /// RAID.
    struct Raid {
        /// Window of a background process, KiB.
        process_window_size_kb: u32 = 1024,
        /// Bandwidth of a background process, MiB/s; 0: not limited.
        process_max_bandwidth_mb_sec: u32 = 0,
    }
}

params! {
    struct Hotplug {
        /// Look for new local controllers.
        enable: bool,
        /// How often, us; 0: the default of 100000.
        period_us: u64 = 0,
    }
}

params! {
    /// Command retry delays, in units of 100 ms.
    struct Crdt {
        /// First delay, which hosts that can are asked for with Namespace Not Ready; 0: they try again at once.
        crdt1: u16 = 50,
        /// Second delay.
        crdt2: u16 = 0,
        /// Third delay.
        crdt3: u16 = 0,
    }
}

params! {
    struct Fsdev {
        /// Requests in the pool.
        fsdev_io_pool_size: u32,
        /// Requests kept per thread.
        fsdev_io_cache_size: u32,
    }
}

params! {
    struct MaxSubsystems {
        /// NVMe-oF subsystems at most.
        max_subsystems: u32,
    }
}

choices! {
    /// What a discovery entry must match.
    enum DiscoveryFilter { Transport = "transport", Address = "address", Svcid = "svcid" }
}

choices! {
    /// Two connections of one host.
    enum DupHostPolicy { Allow = "allow", RestrictPerListener = "restrict_per_listener" }
}

choices! {
    /// Digests of in-band authentication.
    enum DhchapDigest { Sha256 = "sha256", Sha384 = "sha384", Sha512 = "sha512" }
}

choices! {
    /// Groups of in-band authentication.
    enum DhchapGroup {
        Null = "null", Ffdhe2048 = "ffdhe2048", Ffdhe3072 = "ffdhe3072", Ffdhe4096 = "ffdhe4096", Ffdhe6144 = "ffdhe6144", Ffdhe8192 = "ffdhe8192",
    }
}

params! {
    /// Admin commands passed to the device beneath.
    struct Passthru {
        /// Identify Controller.
        identify_ctrlr: bool = false,
        /// Identify UUID list.
        identify_uuid_list: bool = false,
        /// Get Log Page.
        get_log_page: bool = false,
        /// Get and Set Features.
        get_set_features: bool = false,
        /// Sanitize.
        sanitize: bool = false,
        /// Security Send and Receive.
        security_send_recv: bool = false,
        /// Firmware Download and Commit.
        fw_update: bool = false,
        /// NVMe-MI.
        nvme_mi: bool = false,
        /// Vendor-specific.
        vendor_specific: bool = false,
    }
}

pub(super) fn all_digests() -> Vec<DhchapDigest> {
    vec![DhchapDigest::Sha256, DhchapDigest::Sha384, DhchapDigest::Sha512]
}

pub(super) fn all_groups() -> Vec<DhchapGroup> {
    use DhchapGroup::*;
    vec![Null, Ffdhe2048, Ffdhe3072, Ffdhe4096, Ffdhe6144, Ffdhe8192]
}

params! {
    /// NVMe-oF target.
    struct NvmfConfig {
        /// Cores of the poll groups, a hexadecimal mask.
        poll_groups_mask: Option<String>,
        /// Old form of `discovery_filters`: words joined by commas, or `match_any`.
        discovery_filter: Option<String>,
        /// What an address must match for its listener to be shown to a host by the discovery service.
        discovery_filters: Vec<DiscoveryFilter> = Vec::new(),
        /// Admin commands passed to the device beneath; not built: only false is accepted.
        admin_cmd_passthru: Passthru = Passthru::from_json(None, None).expect("every member has a default"),
        /// Digests for in-band authentication. (Kept; authentication is not built.)
        dhchap_digests: Vec<DhchapDigest> = all_digests(),
        /// Groups for in-band authentication. (Kept; authentication is not built.)
        dhchap_dhgroups: Vec<DhchapGroup> = all_groups(),
        /// What happens when a host connects twice; only `allow` is built.
        dup_host_policy: DupHostPolicy = DupHostPolicy::Allow,
        /// Percent of a core's shared buffers and requests that one host may hold, 1 to 100; its queue pairs have no more than that (or a tenth) of a core for themselves. Without it 50.
        host_share: Option<u8>,
    }
}

params! {
    /// Everything is optional and dumped as it was given.
    struct Iscsi {
        /// File of CHAP secrets.
        auth_file: Option<String>,
        /// Prefix of target names.
        node_base: Option<String>,
        /// Seconds to wait for a NOP.
        nop_timeout: Option<i32>,
        /// Seconds between NOPs.
        nop_in_interval: Option<i32>,
        /// No CHAP.
        disable_chap: Option<bool>,
        /// CHAP is required.
        require_chap: Option<bool>,
        /// CHAP both ways.
        mutual_chap: Option<bool>,
        /// Group of secrets.
        chap_group: Option<i32>,
        /// Sessions at most.
        max_sessions: Option<u32>,
        /// Depth of a queue.
        max_queue_depth: Option<u32>,
        /// Connections of a session.
        max_connections_per_session: Option<u32>,
        /// DefaultTime2Wait.
        default_time2wait: Option<u32>,
        /// DefaultTime2Retain.
        default_time2retain: Option<u32>,
        /// FirstBurstLength.
        first_burst_length: Option<u32>,
        /// ImmediateData.
        immediate_data: Option<bool>,
        /// ErrorRecoveryLevel.
        error_recovery_level: Option<u32>,
        /// Allow one ISID twice.
        allow_duplicated_isid: Option<bool>,
        /// Large reads of a connection in progress.
        max_large_datain_per_connection: Option<u32>,
        /// R2Ts of a connection in progress.
        max_r2t_per_connection: Option<u32>,
        /// PDUs in the pool.
        pdu_pool_size: Option<u32>,
        /// Immediate data buffers in the pool.
        immediate_data_pool_size: Option<u32>,
        /// Data-out buffers in the pool.
        data_out_pool_size: Option<u32>,
    }
}

fn defaults<P: Params>() -> Mutex<P> {
    Mutex::new(P::from_json(None, None).expect("every member has a default"))
}

/// All blocks.
pub struct Options {
    /// Buffer pools.
    pub iobuf: Mutex<Iobuf>,
    /// Acceleration framework.
    pub accel: Mutex<Accel>,
    /// Block device layer.
    pub bdev: Mutex<BdevOptions>,
    /// RAID.
    pub raid: Mutex<Raid>,
    /// Remote controllers.
    pub nvme: Mutex<NvmeOptions>,
    /// Hot plug of local controllers: enable and period.
    pub hotplug: Mutex<(bool, u64)>,
    /// Retry delays.
    pub crdt: Mutex<Crdt>,
    /// NVMe-oF target.
    pub nvmf: Mutex<NvmfConfig>,
    /// NVMe-oF subsystems at most.
    pub max_subsystems: Mutex<u32>,
    fsdev: Mutex<Option<Fsdev>>,
    iscsi: Mutex<Option<Iscsi>>,
    pub(super) sock: Mutex<SockOptions>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            iobuf: defaults(),
            accel: defaults(),
            bdev: defaults(),
            raid: defaults(),
            nvme: Mutex::new(NvmeOptions::defaults()),
            hotplug: Mutex::new((false, 100_000)),
            crdt: defaults(),
            nvmf: defaults(),
            max_subsystems: Mutex::new(1024),
            fsdev: Mutex::default(),
            iscsi: Mutex::default(),
            sock: Mutex::default(),
        }
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("iobuf_set_options", When::Startup, set_iobuf)
            .doc(
                "Sizes of the buffer pools. Stored and dumped, so that saved configurations load; no pool is made from them. I/O memory is one pool \
                 per core with buffers of 4 KiB to 2 MiB, each size taking what it needs: an equal share of the start-up option `-s`, or 256 MiB, reserved as \
                 addresses at start, before any method can be called, and committed in steps of 2 MiB as it is used. What has an effect: \
                 `small_bufsize` divides the sizes that `iobuf_get_stats` counts as small from those it counts as large. If the pools asked for are \
                 more than `-s` allows, the log says so, with the value of `-s` that would hold them.",
            )
            .refusal(Refusal::PARAMS_OBJECT)
            .changes()
            .error(-EINVAL, "a pool or a buffer is too small")
            .example(json!({"small_pool_count": 16384}), json!(true)),
    );
    registry.add(
        Method::new("bdev_set_options", When::Startup, set_bdev)
            .doc(
                "Sizes in the block device layer, and whether new devices are examined. `bdev_io_pool_size`, if it is set, is shared out among \
                 the cores; the other sizes are stored and dumped.",
            )
            .refusal(Refusal::PARAMS)
            .changes()
            .error(INVALID_PARAMS, "Pool size 1 too small for cache size 256")
            .example(json!({"bdev_io_pool_size": 65535, "bdev_io_cache_size": 256}), json!(true)),
    );
    registry.add(
        Method::options("bdev_raid_set_options", When::Any, |app| &app.options.raid)
            .doc("Background processes of RAID bdevs. Stored and dumped.")
            .refusal(Refusal::PARSE_OBJECT),
    );
    registry.add(
        Method::new("bdev_nvme_set_hotplug", When::Runtime, |app, p: Hotplug| async move {
            let period = if p.period_us == 0 { 100_000 } else { p.period_us };
            *App::lock(&app.options.hotplug) = (p.enable, period);
            Ok(json!(true))
        })
        .doc("Whether new local NVMe controllers are looked for. Stored and dumped: there is no driver for local controllers yet.")
        .refusal(Refusal::ARGUMENT)
        .changes()
        .example(json!({"enable": false, "period_us": 100000}), json!(true)),
    );
    registry.add(
        Method::new("nvmf_set_config", When::Startup, set_nvmf)
            .doc("Options of the NVMe-oF target as a whole.")
            .refusal(Refusal::PARAMS)
            .changes()
            .error(-95, "a function that is not built")
            .example(json!({"discovery_filters": ["transport"]}), json!(true)),
    );
    registry.add(
        Method::new("nvmf_set_max_subsystems", When::Startup, |app, p: MaxSubsystems| async move {
            *App::lock(&app.options.max_subsystems) = p.max_subsystems;
            Ok(json!(true))
        })
        .doc("How many NVMe-oF subsystems there may be.")
        .refusal(Refusal::PARAMS)
        .changes()
        .example(json!({"max_subsystems": 1024}), json!(true)),
    );
    registry.add(
        Method::options("nvmf_set_crdt", When::Startup, |app| &app.options.crdt)
            .doc("Command retry delays that controllers report, in units of 100 ms.")
            .refusal(Refusal::PARAMS),
    );
    registry.add(
        Method::new("fsdev_set_opts", When::Runtime, |app, p: Fsdev| async move {
            *App::lock(&app.options.fsdev) = Some(p);
            Ok(json!(true))
        })
        .doc("Sizes in the file system layer. Stored and dumped: the layer is not built yet.")
        .refusal(Refusal::PARAMS_OBJECT)
        .changes(),
    );
    registry.add(
        Method::new("iscsi_set_options", When::Startup, |app, p: Iscsi| async move {
            *App::lock(&app.options.iscsi) = Some(p);
            Ok(json!(true))
        })
        .doc("Options of an iSCSI target. Stored and dumped as given, because saved configurations hold them: there is no iSCSI here.")
        .refusal(Refusal::PARAMS)
        .changes(),
    );
}

async fn set_iobuf(app: Arc<App>, p: Iobuf) -> Reply {
    let least = [
        ("small_pool_count", p.small_pool_count, 64),
        ("large_pool_count", p.large_pool_count, 8),
        ("small_bufsize", p.small_bufsize.into(), 4096),
        ("large_bufsize", p.large_bufsize.into(), 8192),
    ];
    if let Some((name, value, least)) = least.iter().find(|(_, value, least)| value < least) {
        return Err(RpcError::errno_because(EINVAL, format!("{name} is {value}; it is at least {least}")));
    }
    let asked = p.small_pool_count.saturating_mul(p.small_bufsize.into());
    let asked = asked.saturating_add(p.large_pool_count.saturating_mul(p.large_bufsize.into()));
    *App::lock(&app.options.iobuf) = p;
    let mut limit = 0;
    for core in &app.cores {
        limit += core.call(|reactor| reactor.dma().stats().limit).await.map_or(0, |bytes| bytes as u64);
    }
    if limit != 0 && asked > limit {
        tracing::warn!(
            "iobuf_set_options asks for pools of {} MiB together, and the cores have {} MiB: waits for buffers are counted in iobuf_get_stats; \
             start with -s {} to have as much",
            asked >> 20,
            limit >> 20,
            asked.div_ceil(1 << 20)
        );
    }
    Ok(json!(true))
}

async fn set_bdev(app: Arc<App>, p: BdevOptions) -> Reply {
    // One share for every thread and one for the pool itself, as a client expects of a single core.
    if u64::from(p.bdev_io_pool_size) < u64::from(p.bdev_io_cache_size) * 2 {
        let message = format!("Pool size {} too small for cache size {}", p.bdev_io_pool_size, p.bdev_io_cache_size);
        return Err(RpcError::new(INVALID_PARAMS, message));
    }
    app.bdevs.set_auto_examine(p.bdev_auto_examine);
    *App::lock(&app.options.bdev) = p;
    Ok(json!(true))
}

async fn set_nvmf(app: Arc<App>, mut p: NvmfConfig) -> Reply {
    if let Value::Object(passthru) = p.admin_cmd_passthru.to_value()
        && let Some((key, _)) = passthru.iter().find(|(_, on)| **on == json!(true))
    {
        return Err(RpcError::not_built(&format!("admin_cmd_passthru.{key}")));
    }
    if let Some(percent) = p.host_share.filter(|percent| !(1..=100).contains(percent)) {
        return Err(RpcError::invalid_params(format!("host_share: {percent} is not a percentage from 1 to 100")));
    }
    if p.dup_host_policy != DupHostPolicy::Allow {
        let reason = "dup_host_policy 'restrict_per_listener' is not built: a host may connect more than once to a listener; use 'allow', \
                      or leave it out";
        return Err(RpcError::not_built_because("dup_host_policy", reason));
    }
    if let Some(words) = p.discovery_filter.take() {
        for word in words.split(',').filter(|word| *word != "match_any") {
            p.discovery_filters.push(match word {
                "transport" => DiscoveryFilter::Transport,
                "address" => DiscoveryFilter::Address,
                "svcid" => DiscoveryFilter::Svcid,
                other => {
                    return Err(RpcError::invalid_params(format!(
                        "discovery_filter: '{other}' is none of match_any transport address svcid"
                    )));
                }
            });
        }
    }
    *App::lock(&app.options.nvmf) = p;
    Ok(json!(true))
}

fn dumped<P: Params>(method: &'static str, block: &Mutex<P>) -> Entry {
    Entry::new(method, App::lock(block).to_value())
}

pub(super) fn dump_iobuf(app: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async move { vec![dumped("iobuf_set_options", &app.options.iobuf)] })
}

pub(super) fn accel(app: &App) -> Entry {
    dumped("accel_set_options", &app.options.accel)
}

pub(super) fn dump_fsdev(app: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async move {
        App::lock(&app.options.fsdev).iter().map(|p| Entry::new("fsdev_set_opts", p.to_value())).collect()
    })
}

pub(super) fn dump_iscsi(app: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async move {
        App::lock(&app.options.iscsi).iter().map(|p| Entry::new("iscsi_set_options", p.to_value())).collect()
    })
}

pub(super) fn bdev_options(app: &App) -> Entry {
    dumped("bdev_set_options", &app.options.bdev)
}

pub(super) fn raid_options(app: &App) -> Entry {
    dumped("bdev_raid_set_options", &app.options.raid)
}

pub(super) fn hotplug(app: &App) -> Entry {
    let (enable, period_us) = *App::lock(&app.options.hotplug);
    Entry::new("bdev_nvme_set_hotplug", json!({"period_us": period_us, "enable": enable}))
}

/// What the target as a whole was told, in the order of a dump.
pub(super) fn nvmf_options(app: &App) -> Vec<Entry> {
    vec![
        dumped("nvmf_set_config", &app.options.nvmf),
        Entry::new("nvmf_set_max_subsystems", json!({"max_subsystems": *App::lock(&app.options.max_subsystems)})),
        dumped("nvmf_set_crdt", &app.options.crdt),
    ]
}
