//! `bdev_nvme_*`: remote controllers as block devices.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore_bdev::nvme::{self, AttachError, AttachOptions, PathFilter, Reconnect, TransportId};
use serde_json::{Value, json};

use crate::app::App;
use crate::config::Entry;
use crate::decode::{Ignored, NotBuilt, Params};
use crate::error::{EALREADY, EINVAL, EIO, ENODEV, EPERM, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::methods::nvmf::object;
use crate::methods::options::{DhchapDigest, DhchapGroup, all_digests, all_groups};
use crate::{choices, params};

choices! {
    /// What happens to a command that took too long.
    enum TimeoutAction { None = "none", Reset = "reset", Abort = "abort" }
}

choices! {
    /// Which paths are used.
    enum Policy { ActivePassive = "active_passive", ActiveActive = "active_active" }
}

choices! {
    /// How a path is chosen.
    enum Selector { RoundRobin = "round_robin", QueueDepth = "queue_depth" }
}

params! {
    /// How paths are used.
    struct Multipath {
        /// Which paths are used.
        policy: Policy = Policy::ActivePassive,
        /// How one of them is chosen.
        selector: Option<Selector>,
        /// Requests after which round robin changes the path.
        min_io: Option<u32>,
    }
}

params! {
    /// Options of all controllers.
    struct NvmeOptions {
        /// What happens to a command that took too long.
        action_on_timeout: TimeoutAction = TimeoutAction::None,
        /// How long an I/O command may take, us; 0: for ever.
        timeout_us: u64 = 0,
        /// How long an admin command may take, us; 0: as an I/O command.
        timeout_admin_us: u64 = 0,
        /// Keep-alive timeout, ms; 0: none.
        keep_alive_timeout_ms: u32 = 10000,
        /// Arbitration burst; no effect.
        arbitration_burst: u32 = 0,
        /// Weight of low priority; no effect.
        low_priority_weight: u32 = 0,
        /// Weight of medium priority; no effect.
        medium_priority_weight: u32 = 0,
        /// Weight of high priority; no effect.
        high_priority_weight: u32 = 0,
        /// How often the admin queue is polled, us; no effect: the ring says when.
        nvme_adminq_poll_period_us: u64 = 10000,
        /// How often I/O queues are polled, us; no effect: the ring says when.
        nvme_ioq_poll_period_us: u64 = 0,
        /// Requests of an I/O queue; 0: the default.
        io_queue_requests: u32 = 0,
        /// Gather commands of a turn; always done.
        delay_cmd_submit: bool = true,
        /// How often a command is sent again by the transport; no effect: commands of a lost connection wait for the next one.
        transport_retry_count: u32 = 4,
        /// How often an I/O is tried again that the controller failed for a passing reason; -1: for ever. (A lost connection does not count, nor a namespace that is not ready: both are waited for.)
        bdev_retry_count: i32 = 3,
        /// Transport acknowledge timeout (rdma); no effect.
        transport_ack_timeout: u8 = 0,
        /// Seconds after which a lost controller is removed, with its devices; 0: it is tried once to connect it again, -1: never.
        ctrlr_loss_timeout_sec: i32 = 0,
        /// Seconds between attempts to reconnect.
        reconnect_delay_sec: u32 = 0,
        /// Seconds after which I/O to a lost controller fails; 0: as long as the controller is not given up.
        fast_io_fail_timeout_sec: u32 = 0,
        /// Do not go back to a preferred path.
        disable_auto_failback: bool = false,
        /// Derive UUIDs for namespaces without one.
        generate_uuids: bool = false,
        /// Type of service (rdma); no effect.
        transport_tos: u8 = 0,
        /// Count errors by status; always done.
        nvme_error_stat: bool = false,
        /// Shared receive queue (rdma); no effect.
        rdma_srq_size: u32 = 0,
        /// Counters for each path.
        io_path_stat: bool = false,
        /// Hand work to the acceleration framework; no effect.
        allow_accel_sequence: bool = false,
        /// Completion queue (rdma); no effect.
        rdma_max_cq_size: u32 = 0,
        /// Connection events (rdma), ms; no effect.
        rdma_cm_event_timeout_ms: u16 = 0,
        /// Digests for in-band authentication. (Kept; authentication is not built.)
        dhchap_digests: Vec<DhchapDigest> = all_digests(),
        /// Groups for in-band authentication. (Kept; authentication is not built.)
        dhchap_dhgroups: Vec<DhchapGroup> = all_groups(),
        /// Memory keys (rdma); no effect.
        rdma_umr_per_io: bool = false,
        /// How long a connection may take, ms; 0: the default.
        tcp_connect_timeout_ms: u32 = 0,
        /// Send flushes to controllers without a volatile write cache too.
        enable_flush: bool = false,
        /// How paths are used.
        multipath_opts: Multipath = Multipath::from_json(None, None).expect("every member has a default"),
    }
}

choices! {
    /// What to do with a second path.
    enum PathMode { Failover = "failover", Multipath = "multipath", Disable = "disable" }
}

params! {
    struct Attach {
        /// Name: the devices are called this, `n`, and the number of the namespace.
        name: String,
        /// Transport: tcp.
        trtype: String,
        /// Address.
        traddr: String,
        /// Family: ipv4 or ipv6; without it what the address looks like.
        adrfam: Option<String>,
        /// Port.
        trsvcid: Option<String>,
        /// Priority of sockets; no effect.
        priority: Ignored<String>,
        /// NQN of the subsystem.
        subnqn: Option<String>,
        /// NQN of this host; without it one that follows from /etc/machine-id and the path of the RPC socket.
        hostnqn: Option<String>,
        /// Address to connect from.
        hostaddr: Option<String>,
        /// Port to connect from.
        hostsvcid: Option<String>,
        /// Check reference tags; not built: only false is accepted.
        prchk_reftag: NotBuilt<bool>,
        /// Check guards; not built: only false is accepted.
        prchk_guard: NotBuilt<bool>,
        /// Header digests.
        hdgst: bool = false,
        /// Data digests.
        ddgst: bool = false,
        /// How long Connect may take, us.
        fabrics_connect_timeout_us: u64 = 500000,
        /// What to do if a controller of that name exists; further paths are not built.
        multipath: PathMode = PathMode::Multipath,
        /// I/O queues at most.
        num_io_queues: u32 = 1024,
        /// Seconds after which a lost controller is removed; 0: it is not reconnected, -1: never. Without it as bdev_nvme_set_options says, like the next two.
        ctrlr_loss_timeout_sec: Option<i32>,
        /// Seconds between attempts to reconnect.
        reconnect_delay_sec: Option<u32>,
        /// Seconds after which I/O to a lost controller fails; 0: when it is removed.
        fast_io_fail_timeout_sec: Option<u32>,
        /// Key for TLS; not built.
        psk: NotBuilt<String>,
        /// Namespaces that become devices, at most.
        max_bdevs: u32 = 128,
        /// Key of this host for in-band authentication; not built.
        dhchap_key: NotBuilt<String>,
        /// Key of the controller for in-band authentication; not built.
        dhchap_ctrlr_key: NotBuilt<String>,
        /// Accept namespaces of unknown command sets; no effect: they are passed over.
        allow_unrecognized_csi: bool = false,
        /// How paths are used; stored and dumped.
        multipath_opts: Option<Multipath>,
        /// Ask for flow control of submission queues to be disabled.
        disable_sq_flow_control: bool = false,
    }
}

params! {
    struct Get {
        /// Name of a controller; without it all are listed.
        name: Option<String>,
    }
}

params! {
    struct Detach {
        /// Name of the controller.
        name: String,
        /// Transport of the path that goes.
        trtype: Option<String>,
        /// Its address.
        traddr: Option<String>,
        /// Its family.
        adrfam: Option<String>,
        /// Its port.
        trsvcid: Option<String>,
        /// Its subsystem.
        subnqn: Option<String>,
        /// The address it is connected from.
        hostaddr: Option<String>,
        /// The port it is connected from.
        hostsvcid: Option<String>,
    }
}

params! {
    struct Reset {
        /// Name of the controller.
        name: String,
        /// Controller identifier; there is one path.
        cntlid: Option<u16>,
    }
}

impl From<AttachError> for RpcError {
    fn from(error: AttachError) -> RpcError {
        let errno = error.errno();
        match error {
            // Clients compare these messages.
            AttachError::SamePath(_) | AttachError::Exists(_) | AttachError::Attached => {
                RpcError::new(-errno, error.to_string())
            }
            _ => RpcError::errno_because(errno, error.to_string()),
        }
    }
}

/// Calls by which controllers were attached, by name: a dump repeats what the target of it does not need to know.
pub(crate) type Attached = Mutex<BTreeMap<String, Attach>>;

impl NvmeOptions {
    pub(super) fn defaults() -> NvmeOptions {
        NvmeOptions::from_json(None, None).expect("every member has a default")
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::checked_options("bdev_nvme_set_options", When::Any, |app| &app.options.nvme, check_options)
            .doc("Options of all remote controllers; what is not given keeps its value. Before any controller is attached.")
            .error(-EPERM, "RPC not permitted with nvme controllers already attached")
            .error(-EINVAL, "Invalid argument: timeouts that contradict each other")
            .example(json!({"bdev_retry_count": 5, "timeout_us": 1000000}), json!(true)),
    );
    let there = json!({
        "name": "Nvme0", "trtype": "TCP", "traddr": "127.0.0.1", "adrfam": "IPv4", "trsvcid": "4420",
        "subnqn": "nqn.2016-06.io.spdk:cnode1",
    });
    registry.add(
        Method::new("bdev_nvme_attach_controller", When::Runtime, attach)
            .doc("Connects to an NVMe-oF subsystem; its namespaces become devices, and follow it when they come, go or grow.")
            .changes()
            .result("array of names of devices")
            .error(-EALREADY, "A controller named %s already exists with the specified network path")
            .error(-EALREADY, "A controller named %s already exists and multipath is disabled")
            .error(-EIO, "Input/output error: `data` says why")
            .error(-EINVAL, "Failed to parse trtype: %s; likewise for other parameters")
            .error(-95, "a protection, or a second path, that is not built")
            .example(there, json!(["Nvme0n1"])),
    );
    registry.add(
        Method::new("bdev_nvme_get_controllers", When::Runtime, get)
            .doc("The controllers that are attached.")
            .result("array of {name, ctrlrs[{state, trid{}, cntlid, host{nqn, addr, svcid}, numa_id}]}")
            .error(-EINVAL, "Controller %s does not exist")
            .example(
                json!({"name": "Nvme0"}),
                json!([{"name": "Nvme0", "ctrlrs": [{"state": "enabled", "cntlid": 1}]}]),
            ),
    );
    registry.add(
        Method::new("bdev_nvme_detach_controller", When::Runtime, detach)
            .doc("Removes the devices of a controller and disconnects. It answers when nobody uses them any more.")
            .changes()
            .error(-ENODEV, "No such device")
            .example(json!({"name": "Nvme0"}), json!(true)),
    );
    registry.add(
        Method::new("bdev_nvme_reset_controller", When::Runtime, reset)
            .doc("Connects a controller again. What is in flight waits, and is sent again.")
            .refusal(Refusal::ARGUMENT)
            .error(-ENODEV, "No such device")
            .error(-EIO, "Input/output error: `data` says why")
            .example(json!({"name": "Nvme0"}), json!(true)),
    );
}

/// The reconnect timeouts of a call; what is not given is as for all controllers.
pub(super) fn reconnect(
    app: &App,
    loss: Option<i32>,
    delay: Option<u32>,
    fast: Option<u32>,
) -> Result<Reconnect, RpcError> {
    let all = App::lock(&app.options.nvme);
    let r = Reconnect {
        ctrlr_loss_timeout_sec: loss.unwrap_or(all.ctrlr_loss_timeout_sec),
        reconnect_delay_sec: delay.unwrap_or(all.reconnect_delay_sec),
        fast_io_fail_timeout_sec: fast.unwrap_or(all.fast_io_fail_timeout_sec),
    };
    r.check().map_err(|why| RpcError::errno_because(EINVAL, why))?;
    Ok(r)
}

fn check_options(app: &App, o: &NvmeOptions) -> Result<(), RpcError> {
    let reconnect = Reconnect {
        ctrlr_loss_timeout_sec: o.ctrlr_loss_timeout_sec,
        reconnect_delay_sec: o.reconnect_delay_sec,
        fast_io_fail_timeout_sec: o.fast_io_fail_timeout_sec,
    };
    reconnect.check().map_err(|why| RpcError::errno_because(EINVAL, why))?;
    app.controllers.set_options(nvme::NvmeOptions {
        action_on_timeout: match o.action_on_timeout {
            TimeoutAction::None => nvme::TimeoutAction::None,
            TimeoutAction::Reset => nvme::TimeoutAction::Reset,
            TimeoutAction::Abort => nvme::TimeoutAction::Abort,
        },
        timeout: Duration::from_micros(o.timeout_us),
        timeout_admin: Duration::from_micros(o.timeout_admin_us),
        keep_alive: Duration::from_millis(o.keep_alive_timeout_ms.into()),
        io_queue_requests: o.io_queue_requests,
        bdev_retry_count: o.bdev_retry_count,
        connect_timeout: Duration::from_millis(o.tcp_connect_timeout_ms.into()),
    })?;
    Ok(())
}

fn wrong(message: String) -> RpcError {
    RpcError::new(-EINVAL, message)
}

/// An address as calls give it; `port` unless they give one.
pub(super) fn address(
    trtype: &str,
    traddr: &str,
    adrfam: Option<&str>,
    trsvcid: Option<&str>,
    port: &str,
) -> Result<SocketAddr, RpcError> {
    match trtype.to_ascii_uppercase().as_str() {
        "TCP" => {}
        "PCIE" | "RDMA" | "FC" | "VFIOUSER" => return Err(RpcError::not_built("trtype")),
        _ => return Err(wrong(format!("Failed to parse trtype: {trtype}"))),
    }
    let ip: IpAddr = traddr.parse().map_err(|_| wrong(format!("Failed to parse traddr: {traddr}")))?;
    if let Some(family) = adrfam {
        let fits = match family.to_ascii_lowercase().as_str() {
            "ipv4" => ip.is_ipv4(),
            "ipv6" => ip.is_ipv6(),
            _ => return Err(wrong(format!("Failed to parse adrfam: {family}"))),
        };
        if !fits {
            return Err(RpcError::errno_because(EINVAL, format!("adrfam {family} is not that of traddr {ip}")));
        }
    }
    let service = trsvcid.unwrap_or(port);
    let port = service.parse().map_err(|_| wrong(format!("Failed to parse trsvcid: {service}")))?;
    Ok(SocketAddr::new(ip, port))
}

/// A host NQN that is not too long.
pub(super) fn hostnqn(given: Option<&String>) -> Result<String, RpcError> {
    let hostnqn = given.cloned().unwrap_or_default();
    if hostnqn.len() > 223 {
        return Err(wrong(format!("hostnqn too long: {hostnqn}")));
    }
    Ok(hostnqn)
}

/// The address that an attach means.
fn transport_id(p: &Attach) -> Result<TransportId, RpcError> {
    let at = address(&p.trtype, &p.traddr, p.adrfam.as_deref(), p.trsvcid.as_deref(), "4420")?;
    let Some(subnqn) = p.subnqn.as_deref().filter(|nqn| !nqn.is_empty()) else {
        return Err(RpcError::errno_because(EINVAL, "subnqn is missing: discovery is not followed by attaching"));
    };
    if subnqn.len() > 223 {
        return Err(wrong(format!("subnqn too long: {subnqn}")));
    }
    Ok(TransportId::tcp(at, subnqn))
}

fn attach_options(app: &App, p: &Attach) -> Result<AttachOptions, RpcError> {
    let hostnqn = hostnqn(p.hostnqn.as_ref())?;
    let source = match p.hostaddr.as_deref().filter(|address| !address.is_empty()) {
        None => None,
        Some(address) => {
            let ip: IpAddr = address.parse().map_err(|_| wrong(format!("Failed to parse hostaddr: {address}")))?;
            let service = p.hostsvcid.as_deref().filter(|service| !service.is_empty()).unwrap_or("0");
            let port = service.parse().map_err(|_| wrong(format!("Failed to parse hostsvcid: {service}")))?;
            Some(SocketAddr::new(ip, port))
        }
    };
    Ok(AttachOptions {
        hostnqn,
        source,
        hdgst: p.hdgst,
        ddgst: p.ddgst,
        num_io_queues: p.num_io_queues,
        max_bdevs: p.max_bdevs as usize,
        disable_sq_flow_control: p.disable_sq_flow_control,
        reconnect: reconnect(app, p.ctrlr_loss_timeout_sec, p.reconnect_delay_sec, p.fast_io_fail_timeout_sec)?,
        discovered: false,
    })
}

async fn attach(app: Arc<App>, p: Attach) -> Reply {
    if p.max_bdevs == 0 {
        return Err(wrong("max_bdevs cannot be zero".into()));
    }
    if p.num_io_queues == 0 || p.num_io_queues > 65536 {
        return Err(wrong("num_io_queues out of bounds, min: 1 max: 65536".into()));
    }
    let id = transport_id(&p)?;
    let options = attach_options(&app, &p)?;
    let other = App::lock(&app.attached).get(&p.name).cloned();
    // One that was lost for too long is not there any more.
    if let Some(other) = other.filter(|_| app.controllers.list(Some(&p.name)).is_ok()) {
        return Err(second_path(&other, &p, &id));
    }
    let names = app.controllers.attach(&p.name, id, options).await?;
    App::lock(&app.attached).insert(p.name.clone(), p);
    Ok(json!(names))
}

/// What a name that is taken answers.
fn second_path(other: &Attach, p: &Attach, id: &TransportId) -> RpcError {
    let name = &p.name;
    if transport_id(other).is_ok_and(|other| other == *id) {
        let message = format!("A controller named {name} already exists with the specified network path");
        return RpcError::new(-EALREADY, message);
    }
    if p.multipath == PathMode::Disable {
        return RpcError::new(-EALREADY, format!("A controller named {name} already exists and multipath is disabled"));
    }
    if other.subnqn != p.subnqn {
        let theirs = other.subnqn.as_deref().unwrap_or_default();
        return wrong(format!("A controller named {name} already exists, but uses a different subnqn ({theirs})"));
    }
    RpcError::not_built("multipath")
}

pub(super) fn trid(id: &TransportId) -> Value {
    json!({
        "trtype": "TCP", "adrfam": id.adrfam(), "traddr": id.traddr().to_string(), "trsvcid": id.addr.port().to_string(),
        "subnqn": id.subnqn,
    })
}

async fn get(app: Arc<App>, p: Get) -> Reply {
    let list = app.controllers.list(p.name.as_deref());
    let list =
        list.map_err(|_| wrong(format!("Controller {} does not exist", p.name.as_deref().unwrap_or_default())))?;
    let list = list.iter().map(|c| {
        let (addr, svcid) = match c.source {
            None => (String::new(), String::new()),
            Some(at) => (at.ip().to_string(), at.port().to_string()),
        };
        json!({"name": c.name, "ctrlrs": [{
            "state": c.state, "trid": trid(&c.trid), "cntlid": c.cntlid,
            "host": {"nqn": c.hostnqn, "addr": addr, "svcid": svcid, "no_shn_notification": false}, "numa_id": -1,
        }]})
    });
    Ok(list.collect())
}

async fn detach(app: Arc<App>, p: Detach) -> Reply {
    let given = |value: Option<String>| value.filter(|value| !value.is_empty());
    if given(p.trtype).is_some_and(|trtype| !trtype.eq_ignore_ascii_case("tcp")) {
        return Err(RpcError::errno_because(ENODEV, "only tcp is attached here"));
    }
    let path = PathFilter { traddr: given(p.traddr), trsvcid: given(p.trsvcid), subnqn: given(p.subnqn) };
    app.controllers.detach(&p.name, &path).await?;
    App::lock(&app.attached).remove(&p.name);
    Ok(json!(true))
}

async fn reset(app: Arc<App>, p: Reset) -> Reply {
    let cntlid = app.controllers.list(Some(&p.name))?.first().map(|c| c.cntlid);
    if p.cntlid.is_some() && p.cntlid != cntlid {
        return Err(RpcError::errno_because(ENODEV, format!("its controller identifier is {}", cntlid.unwrap_or(0))));
    }
    app.controllers.reset(&p.name).await?;
    Ok(json!(true))
}

/// The calls that attach all controllers again.
pub(super) fn dump_controllers(app: &App) -> Vec<Entry> {
    let calls = App::lock(&app.attached).clone();
    let mut out = Vec::new();
    for c in app.controllers.list(None).unwrap_or_default() {
        // One that was attached by the program itself, or by a discovery service, is their affair.
        let Some(p) = calls.get(&c.name).filter(|_| !c.options.discovered) else { continue };
        let mut params = object(&[("name", json!(p.name))]);
        let mut put = |values: Value| {
            if let Value::Object(values) = values {
                params.extend(values);
            }
        };
        put(trid(&c.trid));
        let r = &c.options.reconnect;
        put(json!({
            "prchk_reftag": false, "prchk_guard": false, "ctrlr_loss_timeout_sec": r.ctrlr_loss_timeout_sec,
            "reconnect_delay_sec": r.reconnect_delay_sec, "fast_io_fail_timeout_sec": r.fast_io_fail_timeout_sec,
            "hostnqn": c.hostnqn, "hdgst": p.hdgst, "ddgst": p.ddgst, "multipath": p.multipath.as_str(),
            "fabrics_connect_timeout_us": p.fabrics_connect_timeout_us, "num_io_queues": p.num_io_queues,
            "disable_sq_flow_control": p.disable_sq_flow_control,
            "multipath_opts": p.multipath_opts.as_ref().map_or_else(|| json!({"policy": "active_passive"}), Params::to_value),
        }));
        if p.max_bdevs != 128 {
            put(json!({"max_bdevs": p.max_bdevs}));
        }
        for (key, value) in [("hostaddr", &p.hostaddr), ("hostsvcid", &p.hostsvcid)] {
            if let Some(value) = value {
                put(json!({key: value}));
            }
        }
        out.push(Entry::new("bdev_nvme_attach_controller", Value::Object(params)));
    }
    out
}

/// The options as a call.
pub(super) fn dump_options(app: &App) -> Entry {
    Entry::new("bdev_nvme_set_options", App::lock(&app.options.nvme).to_value())
}
