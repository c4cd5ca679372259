//! `nvmf_*` that concern the target as a whole: transports, discovery, counters.

use std::sync::Arc;

use longshore_nvmf::{
    Address, AdrFam, DiscoveryFilter, Referral, SubsystemView, Target, TargetConfig, TargetError, TrType, Traffic,
    TransportOptions,
};
use longshore_reactor::tick_rate;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::{App, Local};
use crate::config::{Call, Entry};
use crate::decode::{Ignored, NotBuilt};
use crate::error::{ENODEV, INTERNAL_ERROR, INVALID_PARAMS, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::methods::{nvmf_subsystem, options};
use crate::{choices, params};

/// The name of the only target.
const TARGET: &str = "nvmf_tgt";

choices! {
    /// Optional commands that can be hidden.
    enum Oncs { Nvmcmps = "nvmcmps", Nvmdsmsv = "nvmdsmsv", Nvmwzsv = "nvmwzsv", Reservs = "reservs", Nvmcpys = "nvmcpys" }
}

choices! {
    /// Fused commands that can be hidden.
    enum Fuses { Fcws = "fcws" }
}

params! {
    /// Where a transport listens.
    struct ListenAddress {
        /// Transport: tcp.
        trtype: String,
        /// Family: ipv4 or ipv6; without it what the address looks like.
        adrfam: Option<String>,
        /// Address.
        traddr: String,
        /// Port.
        trsvcid: Option<String>,
    }
}

params! {
    relaxed struct CreateTransport {
        /// Transport: tcp.
        trtype: String,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Entries of an I/O queue.
        max_queue_depth: u16 = 128,
        /// I/O queues of a controller.
        max_io_qpairs_per_ctrlr: u16 = 127,
        /// Bytes of data in a command capsule.
        in_capsule_data_size: u32 = 4096,
        /// Bytes that one command may transfer.
        max_io_size: u32 = 131072,
        /// Entries of an admin queue.
        max_aq_depth: u32 = 128,
        /// Old name of a buffer's size; no effect.
        io_unit_size: Ignored<u32>,
        /// Old name of a pool's size; no effect.
        num_shared_buffers: Ignored<u32>,
        /// Old name of a cache's size; no effect.
        buf_cache_size: Ignored<u32>,
        /// Small buffers kept per core; no effect.
        iobuf_small_cache_size: u32 = u32::MAX,
        /// Large buffers kept per core; no effect.
        iobuf_large_cache_size: u32 = u32::MAX,
        /// Data of devices that allow it is sent without a copy.
        zcopy: bool = false,
        /// Reads may be ended without a response capsule.
        c2h_success: bool = true,
        /// Protection information inserted by the target; not built: only false is accepted.
        dif_insert_or_strip: NotBuilt<bool>,
        /// Priority of sockets.
        sock_priority: u32 = 0,
        /// Seconds after which a request of a namespace that is removed is aborted.
        abort_timeout_sec: u32 = 1,
        /// Milliseconds after which unacknowledged data ends a connection; 0: the kernel's choice.
        ack_timeout: u32 = 0,
        /// Buffers for control messages.
        control_msg_num: u32 = 32,
        /// Write requests in a pool (rdma); no effect.
        data_wr_pool_size: u32 = 0,
        /// No vendor commands are passed through.
        disable_command_passthru: bool = false,
        /// Granularity of keep-alive timeouts, units of 100 ms.
        kas: u16 = 100,
        /// Shortest keep-alive timeout, ms.
        min_kato: u32 = 10000,
        /// Optional commands that are hidden.
        masked_oncs: Vec<Oncs> = Vec::new(),
        /// Fused commands that are hidden.
        masked_fuses: Vec<Fuses> = Vec::new(),
        /// Connections that may wait to be accepted.
        acceptor_backlog: Ignored<i32>,
        /// How often connections are accepted, us; no effect.
        acceptor_poll_rate: Ignored<u32>,
    }
}

params! {
    struct GetTransports {
        /// Transport; without it all are listed.
        trtype: Option<String>,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct TargetName {
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct AddReferral {
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Where the other discovery service listens.
        address: ListenAddress,
        /// TLS there; not built: only false is accepted.
        secure_channel: NotBuilt<bool>,
        /// NQN there; without it that of discovery.
        subnqn: Option<String>,
    }
}

params! {
    struct RemoveReferral {
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Where the other discovery service listens.
        address: ListenAddress,
        /// NQN there; without it that of discovery.
        subnqn: Option<String>,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    let on_params = |method: Method| method.refusal(Refusal::PARAMS);
    registry.add(
        on_params(Method::new("nvmf_create_transport", When::Runtime, create_transport))
            .doc("Creates a transport. Subsystems can listen on it then.")
            .changes()
            .error(INVALID_PARAMS, "Invalid transport type 'BAD'")
            .error(INTERNAL_ERROR, "Transport type 'TCP' already exists")
            .error(-95, "a protection that is not built")
            .example(json!({"trtype": "TCP", "in_capsule_data_size": 8192}), json!(true)),
    );
    registry.add(
        on_params(Method::new("nvmf_get_transports", When::Runtime, get_transports))
            .doc("The transports that were created, and their options.")
            .result("array of options")
            .error(-ENODEV, "No such device")
            .example(json!({"trtype": "TCP"}), json!([{"trtype": "TCP", "max_queue_depth": 128}])),
    );
    registry.add(
        on_params(Method::new("nvmf_get_stats", When::Runtime, get_stats))
            .doc("Counters of the target, for each core.")
            .result("{tick_rate, poll_groups[{name, admin_qpairs, io_qpairs, current_*, pending_bdev_io, completed_nvme_io, refused_connects, num_read_ops, bytes_read, num_write_ops, bytes_written, buffer_waits, request_waits, transports[], hosts[{hostnqn, hostid, buffer_bytes, max_buffer_bytes, requests, max_requests}]}]}"),
    );
    registry.add(
        Method::bare("nvmf_get_targets", When::Runtime, "nvmf_get_targets has no parameters.", |_| async {
            Ok(json!([TARGET]))
        })
        .doc("The targets: there is one.")
        .result("array of names"),
    );
    let address = json!({"trtype": "tcp", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": "4430"});
    registry.add(
        on_params(Method::new("nvmf_discovery_add_referral", When::Runtime, add_referral))
            .doc("Adds another discovery service to what this one tells hosts.")
            .changes()
            .error(INVALID_PARAMS, "Invalid subsystem NQN")
            .error(INTERNAL_ERROR, "Service ID is required.")
            .example(json!({"address": address}), json!(true)),
    );
    registry.add(
        on_params(Method::new("nvmf_discovery_remove_referral", When::Runtime, remove_referral))
            .doc("Removes a referral.")
            .changes()
            .error(INTERNAL_ERROR, "Unable to remove a referral.")
            .example(json!({"address": address}), json!(true)),
    );
    registry.add(
        on_params(Method::new("nvmf_discovery_get_referrals", When::Runtime, get_referrals))
            .doc("The referrals.")
            .result("array of {address{}, secure_channel, subnqn}"),
    );
}

/// The target, if the name means it; `missing` is what the method says otherwise.
pub(super) fn target<'a>(
    app: &'a App,
    name: Option<&str>,
    missing: impl FnOnce(&str) -> RpcError,
) -> Result<&'a Arc<Target>, RpcError> {
    match name {
        None | Some(TARGET) => app.target(),
        Some(other) => Err(missing(other)),
    }
}

fn any_target<'a>(app: &'a App, name: Option<&str>) -> Result<&'a Arc<Target>, RpcError> {
    target(app, name, |_| RpcError::new(INTERNAL_ERROR, "Unable to find a target."))
}

impl ListenAddress {
    /// As the target understands it.
    pub(super) fn parse(&self) -> Result<Address, RpcError> {
        let invalid = RpcError::invalid_params;
        let trtype = self.trtype.parse().map_err(|()| invalid(format!("trtype '{}' is not known", self.trtype)))?;
        let adrfam = match &self.adrfam {
            Some(name) => name.parse().map_err(|()| invalid(format!("adrfam '{name}' is not known")))?,
            None if self.traddr.contains(':') => AdrFam::Ipv6,
            None => AdrFam::Ipv4,
        };
        Ok(Address { trtype, adrfam, traddr: self.traddr.clone(), trsvcid: self.trsvcid.clone().unwrap_or_default() })
    }
}

/// An address as clients read it.
pub(super) fn address_value(address: &Address) -> Value {
    let mut out = json!({"trtype": address.trtype.name(), "adrfam": address.adrfam.name(), "traddr": address.traddr});
    if !address.trsvcid.is_empty() {
        out["trsvcid"] = json!(address.trsvcid);
    }
    out
}

async fn create_transport(app: Arc<App>, p: CreateTransport) -> Reply {
    let target = any_target(&app, p.tgt_name.as_deref())?;
    let invalid = || RpcError::new(INVALID_PARAMS, format!("Invalid transport type '{}'", p.trtype));
    let trtype: TrType = p.trtype.parse().map_err(|()| invalid())?;
    let oncs = |oncs: &Oncs| match oncs {
        Oncs::Nvmcmps => 1 << 0,
        Oncs::Nvmdsmsv => 1 << 2,
        Oncs::Nvmwzsv => 1 << 3,
        Oncs::Reservs => 1 << 5,
        Oncs::Nvmcpys => 1 << 8,
    };
    let created = target
        .create_transport(TransportOptions {
            max_queue_depth: p.max_queue_depth,
            max_io_qpairs_per_ctrlr: p.max_io_qpairs_per_ctrlr,
            in_capsule_data_size: p.in_capsule_data_size,
            max_io_size: p.max_io_size,
            max_aq_depth: p.max_aq_depth,
            iobuf_small_cache_size: p.iobuf_small_cache_size,
            iobuf_large_cache_size: p.iobuf_large_cache_size,
            zcopy: p.zcopy,
            c2h_success: p.c2h_success,
            sock_priority: p.sock_priority,
            control_msg_num: p.control_msg_num,
            abort_timeout_sec: p.abort_timeout_sec,
            ack_timeout: p.ack_timeout,
            data_wr_pool_size: p.data_wr_pool_size,
            disable_command_passthru: p.disable_command_passthru,
            kas: p.kas,
            min_kato: p.min_kato,
            masked_oncs: p.masked_oncs.iter().map(oncs).fold(0, |all, bit| all | bit),
            masked_fuses: u16::from(!p.masked_fuses.is_empty()),
            ..TransportOptions::new(trtype)
        })
        .await;
    match created {
        Ok(()) => Ok(json!(true)),
        Err(TargetError::TransportExists(_)) => {
            Err(RpcError::new(INTERNAL_ERROR, format!("Transport type '{}' already exists", p.trtype)))
        }
        Err(error @ TargetError::TransportUnknown(_)) => Err(invalid().because(error.to_string())),
        Err(error) => Err(RpcError::new(INTERNAL_ERROR, format!("Transport type '{}' create failed", p.trtype))
            .because(error.to_string())),
    }
}

fn transport_value(o: &TransportOptions) -> Value {
    let mut out = json!({
        "trtype": o.trtype.name(), "max_queue_depth": o.max_queue_depth, "max_io_qpairs_per_ctrlr": o.max_io_qpairs_per_ctrlr,
        "in_capsule_data_size": o.in_capsule_data_size, "max_io_size": o.max_io_size, "max_aq_depth": o.max_aq_depth,
        "iobuf_small_cache_size": o.iobuf_small_cache_size, "iobuf_large_cache_size": o.iobuf_large_cache_size,
        "dif_insert_or_strip": false, "zcopy": o.zcopy, "c2h_success": o.c2h_success, "sock_priority": o.sock_priority,
        "abort_timeout_sec": o.abort_timeout_sec, "ack_timeout": o.ack_timeout, "data_wr_pool_size": o.data_wr_pool_size,
        "disable_command_passthru": o.disable_command_passthru, "kas": o.kas, "min_kato": o.min_kato,
    });
    let hidden = [(0, "nvmcmps"), (2, "nvmdsmsv"), (3, "nvmwzsv"), (5, "reservs"), (8, "nvmcpys")];
    let hidden: Vec<&str> =
        hidden.iter().filter(|(bit, _)| o.masked_oncs & 1 << bit != 0).map(|(_, name)| *name).collect();
    if !hidden.is_empty() {
        out["masked_oncs"] = json!(hidden);
    }
    if o.masked_fuses != 0 {
        out["masked_fuses"] = json!(["fcws"]);
    }
    if o.control_msg_num != 32 {
        out["control_msg_num"] = json!(o.control_msg_num);
    }
    out
}

async fn get_transports(app: Arc<App>, p: GetTransports) -> Reply {
    let target = any_target(&app, p.tgt_name.as_deref())?;
    let only = match &p.trtype {
        None => None,
        Some(name) => Some(name.parse::<TrType>().map_err(|()| RpcError::errno(ENODEV))?),
    };
    let list = target.transports(only).map_err(|error| RpcError::errno_because(ENODEV, error.to_string()))?;
    Ok(list.iter().map(|options| transport_value(options)).collect())
}

async fn get_stats(app: Arc<App>, p: TargetName) -> Reply {
    let target = any_target(&app, p.tgt_name.as_deref())?;
    let groups = target.stats().await.into_iter().map(|group| {
        let transports: Value = group.transports.iter().map(|transport| json!({"trtype": transport.name()})).collect();
        let hosts = group.hosts.iter().map(|host| {
            json!({
                "hostnqn": host.hostnqn, "hostid": uuid_text(host.hostid), "buffer_bytes": host.buffer_bytes,
                "max_buffer_bytes": host.max_buffer_bytes, "requests": host.requests, "max_requests": host.max_requests,
            })
        });
        let hosts: Value = hosts.collect();
        let mut out = json!({
            "name": format!("nvmf_tgt_poll_group_{:03}", group.core), "admin_qpairs": group.admin_qpairs, "io_qpairs": group.io_qpairs,
            "current_admin_qpairs": group.current_admin_qpairs, "current_io_qpairs": group.current_io_qpairs,
            "current_unassociated_qpairs": group.current_unassociated_qpairs, "pending_bdev_io": group.pending_bdev_io,
            "completed_nvme_io": group.completed_nvme_io, "refused_connects": group.refused_connects,
            "transports": transports, "hosts": hosts,
        });
        out.as_object_mut().expect("an object").extend(traffic(&group.traffic));
        out
    });
    Ok(json!({"tick_rate": tick_rate(), "poll_groups": groups.collect::<Value>()}))
}

/// Counters of queue pairs, by the names that bdevs have for theirs.
pub(super) fn traffic(traffic: &Traffic) -> Map<String, Value> {
    object(&[
        ("num_read_ops", json!(traffic.reads)),
        ("bytes_read", json!(traffic.read_bytes)),
        ("num_write_ops", json!(traffic.writes)),
        ("bytes_written", json!(traffic.written_bytes)),
        ("buffer_waits", json!(traffic.buffer_waits)),
        ("request_waits", json!(traffic.request_waits)),
    ])
}

async fn add_referral(app: Arc<App>, p: AddReferral) -> Reply {
    let target = any_target(&app, p.tgt_name.as_deref())?;
    let address = p.address.parse()?;
    if address.trsvcid.is_empty() && matches!(address.trtype, TrType::Tcp | TrType::Rdma) {
        return Err(RpcError::new(INTERNAL_ERROR, "Service ID is required."));
    }
    match target.add_referral(Referral { address, subnqn: p.subnqn.unwrap_or_default(), secure_channel: false }).await {
        Ok(()) | Err(TargetError::ReferralExists(_)) => Ok(json!(true)),
        Err(error @ TargetError::InvalidNqn(_)) => {
            Err(RpcError::new(INVALID_PARAMS, "Invalid subsystem NQN").because(error.to_string()))
        }
        Err(error) => Err(RpcError::new(INTERNAL_ERROR, "Internal error").because(error.to_string())),
    }
}

async fn remove_referral(app: Arc<App>, p: RemoveReferral) -> Reply {
    let target = any_target(&app, p.tgt_name.as_deref())?;
    let removed = target.remove_referral(&p.address.parse()?, p.subnqn.as_deref().unwrap_or_default()).await;
    removed
        .map_err(|error| RpcError::new(INTERNAL_ERROR, "Unable to remove a referral.").because(error.to_string()))?;
    Ok(json!(true))
}

fn referral_value(referral: &Referral) -> Value {
    json!({"address": address_value(&referral.address), "secure_channel": referral.secure_channel, "subnqn": referral.subnqn})
}

async fn get_referrals(app: Arc<App>, p: TargetName) -> Reply {
    let target = target(&app, p.tgt_name.as_deref(), |_| RpcError::new(INTERNAL_ERROR, "Unable to find a target"))?;
    Ok(target.referrals().iter().map(referral_value).collect())
}

/// Gives the target what was set before the initialisation.
pub(crate) async fn configure(app: &App, target: &Arc<Target>) -> Result<(), TargetError> {
    let (filters, host_share) = {
        let o = App::lock(&app.options.nvmf);
        (o.discovery_filters.clone(), o.host_share.unwrap_or(TargetConfig::default().host_share))
    };
    let crdt = App::lock(&app.options.crdt).clone();
    let most = *App::lock(&app.options.max_subsystems);
    target
        .set_config(|config| {
            config.crdt = [crdt.crdt1, crdt.crdt2, crdt.crdt3];
            // One more: discovery is not counted by clients.
            config.max_subsystems = most.saturating_add(1);
            config.host_share = host_share;
            config.discovery_filter = DiscoveryFilter {
                transport: filters.contains(&options::DiscoveryFilter::Transport),
                address: filters.contains(&options::DiscoveryFilter::Address),
                svcid: filters.contains(&options::DiscoveryFilter::Svcid),
            };
        })
        .await
}

/// Everything about the target, listeners of a subsystem last.
pub(super) fn dump(app: Arc<App>) -> Local<Vec<Entry>> {
    Box::pin(async move {
        let mut out = options::nvmf_options(&app);
        let Ok(target) = app.target() else { return out };
        let view = target.view();
        out.extend(
            view.transports.values().map(|options| Entry::new("nvmf_create_transport", transport_value(options))),
        );
        out.extend(
            view.referrals.iter().map(|referral| Entry::new("nvmf_discovery_add_referral", referral_value(referral))),
        );
        out.extend(
            view.subsystems
                .values()
                .map(|subsystem| Entry::Batch(nvmf_subsystem::dump(subsystem)))
                .filter(|batch| *batch != Entry::Batch(Vec::new())),
        );
        out
    })
}

/// Members of one object, for calls that only add to it.
pub(super) fn object(pairs: &[(&str, Value)]) -> Map<String, Value> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.clone())).collect()
}

/// A call about a subsystem.
pub(super) fn call(method: &'static str, subsystem: &SubsystemView, more: &[(&str, Value)]) -> Call {
    let mut params = object(&[("nqn", json!(subsystem.nqn()))]);
    params.extend(object(more));
    Call::new(method, Value::Object(params))
}

/// An identifier as clients read it.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// 16 bytes in the form of a UUID.
pub(crate) fn uuid_text(bytes: [u8; 16]) -> String {
    Uuid::from_bytes(bytes).to_string()
}
