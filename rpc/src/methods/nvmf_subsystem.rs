//! `nvmf_*` that concern one subsystem: itself, its hosts, listeners and namespaces.

use std::sync::Arc;
use std::time::Duration;

use longshore_nvme::wire::AnaState;
use longshore_nvmf::{NamespaceOptions, SubsystemOptions, SubsystemView, Target, TargetError};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::config::Call;
use crate::decode::{Ignored, NotBuilt};
use crate::error::{INTERNAL_ERROR, INVALID_PARAMS, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::methods::nvmf::{ListenAddress, address_value, call, hex, target, traffic, uuid_text};
use crate::{choices, params};

choices! {
    /// ANA states that can be set.
    enum Ana { Optimized = "optimized", NonOptimized = "non_optimized", Inaccessible = "inaccessible" }
}

impl Ana {
    fn state(self) -> AnaState {
        match self {
            Ana::Optimized => AnaState::Optimized,
            Ana::NonOptimized => AnaState::NonOptimized,
            Ana::Inaccessible => AnaState::Inaccessible,
        }
    }
}

fn ana_name(state: AnaState) -> &'static str {
    match state {
        AnaState::Optimized => "optimized",
        AnaState::NonOptimized => "non_optimized",
        AnaState::Inaccessible => "inaccessible",
        AnaState::PersistentLoss => "persistent_loss",
        AnaState::Change => "change",
    }
}

params! {
    struct Create {
        /// NQN.
        nqn: String,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Serial number, up to 20 printable characters; empty: the default.
        serial_number: String = SubsystemOptions::SERIAL.to_string(),
        /// Model number, up to 40 printable characters; empty: the default.
        model_number: String = SubsystemOptions::MODEL.to_string(),
        /// A label for people.
        admin_label: Option<String>,
        /// Highest namespace identifier; 0: the default.
        max_namespaces: u32 = 32,
        /// Every host may connect.
        allow_any_host: bool = false,
        /// Asymmetric namespace access is reported.
        ana_reporting: bool = false,
        /// Lowest controller identifier.
        min_cntlid: u16 = 1,
        /// Highest controller identifier.
        max_cntlid: u16 = 0xffef,
        /// Longest range of a deallocation, blocks.
        dmrsl: u32 = 2097152,
        /// Largest write of zeroes: 4 KiB times 2 to this power.
        wzsl: u8 = 12,
        /// Commands go to the device as they are; not built: only false is accepted.
        passthrough: NotBuilt<bool>,
        /// Subsystem reset is offered.
        enable_nssr: bool = false,
    }
}

params! {
    struct Nqn {
        /// NQN of the subsystem.
        nqn: String,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct GetSubsystems {
        /// NQN; without it all are listed.
        nqn: Option<String>,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct AddHost {
        /// NQN of the subsystem.
        nqn: String,
        /// NQN of the host.
        host: String,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Key for TLS; not built.
        psk: NotBuilt<String>,
        /// Key of the host for in-band authentication; not built.
        dhchap_key: NotBuilt<String>,
        /// Key of the controller for in-band authentication; not built.
        dhchap_ctrlr_key: NotBuilt<String>,
    }
}

params! {
    struct RemoveHost {
        /// NQN of the subsystem.
        nqn: String,
        /// NQN of the host.
        host: String,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Milliseconds to wait for its connections to end; 0: until they did.
        timeout_ms: u64 = 0,
    }
}

params! {
    struct AllowAny {
        /// NQN of the subsystem.
        nqn: String,
        /// Every host may connect, or only those on the list.
        allow_any_host: bool,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    relaxed struct AddListener {
        /// NQN of the subsystem.
        nqn: String,
        /// Where it listens.
        listen_address: ListenAddress,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// TLS; not built: only false is accepted.
        secure_channel: NotBuilt<bool>,
        /// ANA state of all groups at this listener.
        ana_state: Ana = Ana::Optimized,
        /// Socket implementation; `ssl` is not built, others have no effect.
        sock_impl: Option<String>,
        /// NUMA node; no effect.
        numa_id: Ignored<i32>,
    }
}

params! {
    struct RemoveListener {
        /// NQN of the subsystem.
        nqn: String,
        /// Where it listens.
        listen_address: ListenAddress,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Sent by some clients; no effect.
        secure_channel: Ignored<bool>,
    }
}

params! {
    struct SetAna {
        /// NQN of the subsystem.
        nqn: String,
        /// Where it listens.
        listen_address: ListenAddress,
        /// State.
        ana_state: Ana,
        /// ANA group; without it all of them.
        anagrpid: Option<u32>,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct NewNamespace {
        /// Name of the block device.
        bdev_name: String,
        /// Identifier; 0 or none: the first free one.
        nsid: Option<u32>,
        /// NGUID, 32 hexadecimal digits; without it the UUID's.
        nguid: Option<String>,
        /// EUI-64, 16 hexadecimal digits.
        eui64: Option<String>,
        /// UUID; without it the block device's.
        uuid: Option<Uuid>,
        /// File for persistent reservations; not built.
        ptpl_file: NotBuilt<String>,
        /// ANA group; without it the one of the same number.
        anagrpid: Option<u32>,
        /// Only hosts that were given access see it.
        no_auto_visible: bool = false,
        /// Old; no effect.
        hide_metadata: Ignored<bool>,
    }
}

params! {
    struct AddNs {
        /// NQN of the subsystem.
        nqn: String,
        /// The namespace.
        namespace: NewNamespace,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct Ns {
        /// NQN of the subsystem.
        nqn: String,
        /// Namespace identifier.
        nsid: u32,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct NsHost {
        /// NQN of the subsystem.
        nqn: String,
        /// Namespace identifier.
        nsid: u32,
        /// NQN of the host.
        host: String,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    struct NsGroup {
        /// NQN of the subsystem.
        nqn: String,
        /// Namespace identifier.
        nsid: u32,
        /// ANA group.
        anagrpid: u32,
        /// Target; there is one, `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Sent by one client; only 0 has been seen, no effect.
        transit_anagrpid: Ignored<u32>,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    const CNODE: &str = "nqn.2016-06.io.spdk:cnode1";
    let address = json!({"trtype": "tcp", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": "4420"});
    let asks =
        |method: Method| method.refusal(Refusal::PARAMS).error(INVALID_PARAMS, "Subsystem with NQN '%s' not found");
    let sets = |method: Method| asks(method).changes();
    registry.add(
        Method::new("nvmf_create_subsystem", When::Runtime, create)
            .refusal(Refusal::PARAMS)
            .changes()
            .doc("Creates a subsystem without hosts, listeners and namespaces.")
            .error(INVALID_PARAMS, "Invalid cntlid range [5-4]")
            .error(INTERNAL_ERROR, "Unable to create subsystem %s")
            .error(INTERNAL_ERROR, "Unable to find target %s")
            .example(json!({"nqn": CNODE, "serial_number": "LS0001", "max_namespaces": 8}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_delete_subsystem", When::Runtime, |app, p: Nqn| async move {
            let target = find_target(&app, p.tgt_name.as_deref())?;
            done(target.delete_subsystem(&p.nqn).await)
        }))
        .doc("Deletes a subsystem: its hosts are disconnected, its devices given up.")
        .error(INTERNAL_ERROR, "Subsystem is already being destroyed.")
        .example(json!({"nqn": CNODE}), json!(true)),
    );
    registry.add(
        asks(Method::new("nvmf_get_subsystems", When::Runtime, list))
            .doc("Subsystems, discovery first.")
            .result("array of subsystems"),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_add_ns", When::Runtime, add_ns))
            .doc("Exports a block device as a namespace. Hosts are told.")
            .result("namespace identifier")
            .error(INVALID_PARAMS, "Invalid parameters: no such device, in use, or the identifier is taken")
            .error(INVALID_PARAMS, "Invalid nguid")
            .error(INVALID_PARAMS, "Invalid eui64")
            .example(json!({"nqn": CNODE, "namespace": {"bdev_name": "Malloc0", "nsid": 1}}), json!(1)),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_remove_ns", When::Runtime, |app, p: Ns| async move {
            let target = find_target(&app, p.tgt_name.as_deref())?;
            done(target.remove_namespace(&p.nqn, p.nsid).await)
        }))
        .doc("Takes a namespace away. Hosts are told; what is in flight ends or is aborted.")
        .example(json!({"nqn": CNODE, "nsid": 1}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_ns_add_host", When::Runtime, |app, p: NsHost| async move {
            let target = find_target(&app, p.tgt_name.as_deref())?;
            done(target.namespace_add_host(&p.nqn, p.nsid, &p.host).await)
        }))
        .doc("Lets a host see a namespace that was added with no_auto_visible.")
        .example(json!({"nqn": CNODE, "nsid": 1, "host": "nqn.2016-06.io.spdk:host1"}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_ns_remove_host", When::Runtime, |app, p: NsHost| async move {
            let target = find_target(&app, p.tgt_name.as_deref())?;
            done(target.namespace_remove_host(&p.nqn, p.nsid, &p.host).await)
        }))
        .doc("Hides a namespace from a host again."),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_set_ns_ana_group", When::Runtime, |app, p: NsGroup| async move {
            let target = find_target(&app, p.tgt_name.as_deref())?;
            done(target.set_ana_group(&p.nqn, p.nsid, p.anagrpid).await)
        }))
        .doc("Moves a namespace to another ANA group. Hosts are told.")
        .example(json!({"nqn": CNODE, "nsid": 1, "anagrpid": 2}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_add_host", When::Runtime, add_host))
            .doc("Lets a host connect.")
            .error(INTERNAL_ERROR, "Internal error: on the list already, or not an NQN")
            .error(-95, "a protection that is not built")
            .example(json!({"nqn": CNODE, "host": "nqn.2016-06.io.spdk:host1"}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_remove_host", When::Runtime, remove_host))
            .doc("Takes a host off the list and disconnects it.")
            .error(INTERNAL_ERROR, "Timeout reached during host removal")
            .example(json!({"nqn": CNODE, "host": "nqn.2016-06.io.spdk:host1"}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_allow_any_host", When::Runtime, |app, p: AllowAny| async move {
            let target = find_target(&app, p.tgt_name.as_deref())?;
            done(target.allow_any_host(&p.nqn, p.allow_any_host).await)
        }))
        .doc("Lets every host connect, or only those on the list.")
        .example(json!({"nqn": CNODE, "allow_any_host": true}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_add_listener", When::Runtime, add_listener))
            .doc("Lets a subsystem listen on an address.")
            .error(INVALID_PARAMS, "Invalid parameters: it listens there, or the address cannot be opened")
            .error(-95, "a protection that is not built")
            .example(json!({"nqn": CNODE, "listen_address": address}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_remove_listener", When::Runtime, |app, p: RemoveListener| async move {
            let target = find_target(&app, p.tgt_name.as_deref())?;
            done(target.remove_listener(&p.nqn, &p.listen_address.parse()?).await)
        }))
        .doc("Ends listening on an address and disconnects the hosts that came in by it.")
        .example(json!({"nqn": CNODE, "listen_address": address}), json!(true)),
    );
    registry.add(
        sets(Method::new("nvmf_subsystem_listener_set_ana_state", When::Runtime, set_ana))
            .doc("Sets the ANA state of one group, or of all, at a listener. Hosts are told.")
            .error(INTERNAL_ERROR, "error setting ANA state: -22")
            .example(json!({"nqn": CNODE, "listen_address": address, "ana_state": "inaccessible"}), json!(true)),
    );
    registry.add(
        asks(Method::new("nvmf_subsystem_get_listeners", When::Runtime, |app, p: Nqn| async move {
            let subsystem = find_target(&app, p.tgt_name.as_deref())?.subsystem(&p.nqn).map_err(refused)?;
            Ok(listeners(&subsystem))
        }))
        .doc("Where a subsystem listens, with ANA states if it reports them.")
        .result("array of {address{}, ana_states[{ana_group, ana_state}]?}"),
    );
    registry.add(
        asks(Method::new("nvmf_subsystem_get_controllers", When::Runtime, controllers))
            .doc("Controllers of a subsystem: one for each connected host.")
            .result("array of {cntlid, cntrltype, hostnqn, hostid, num_io_qpairs}"),
    );
    registry.add(
        asks(Method::new("nvmf_subsystem_get_qpairs", When::Runtime, qpairs))
            .doc("Queue pairs of a subsystem. One whose connection has ended is listed as `deactivating` until all that it asked for is done: from then on nothing of it can land any more.")
            .result("array of {cntlid, qid, state, thread, hostnqn, listen_address{}, peer_address{}, num_read_ops, bytes_read, num_write_ops, bytes_written, buffer_waits, request_waits}"),
    );
}

fn find_target<'a>(app: &'a App, name: Option<&str>) -> Result<&'a Arc<Target>, RpcError> {
    target(app, name, |name| RpcError::new(INVALID_PARAMS, format!("NVMf target '{name}' not found")))
}

/// What clients expect of most faults.
fn refused(error: TargetError) -> RpcError {
    match error {
        TargetError::SubsystemNotFound(nqn) => {
            RpcError::new(INVALID_PARAMS, format!("Subsystem with NQN '{nqn}' not found"))
        }
        TargetError::SubsystemDestroyed(_) => RpcError::new(INTERNAL_ERROR, "Subsystem is already being destroyed."),
        TargetError::Stopped => RpcError::new(INTERNAL_ERROR, "Internal error").because("the target is shut down"),
        other => RpcError::invalid_params(other.to_string()),
    }
}

fn done(result: Result<(), TargetError>) -> Reply {
    result.map(|()| json!(true)).map_err(refused)
}

async fn create(app: Arc<App>, p: Create) -> Reply {
    let target = target(&app, p.tgt_name.as_deref(), |name| {
        RpcError::new(INTERNAL_ERROR, format!("Unable to find target {name}"))
    })?;
    let nqn = p.nqn.clone();
    let created = target
        .create_subsystem(SubsystemOptions {
            nqn: p.nqn,
            serial_number: p.serial_number,
            model_number: p.model_number,
            max_namespaces: p.max_namespaces,
            allow_any_host: p.allow_any_host,
            ana_reporting: p.ana_reporting,
            min_cntlid: p.min_cntlid,
            max_cntlid: p.max_cntlid,
            dmrsl: p.dmrsl,
            wzsl: p.wzsl,
            passthrough: false,
            enable_nssr: p.enable_nssr,
            admin_label: p.admin_label,
        })
        .await;
    created.map(|()| json!(true)).map_err(|error| match error {
        TargetError::CntlidRange { min, max } => {
            RpcError::new(INVALID_PARAMS, format!("Invalid cntlid range [{min}-{max}]"))
        }
        TargetError::Invalid(why) => RpcError::invalid_params(why),
        other => RpcError::new(INTERNAL_ERROR, format!("Unable to create subsystem {nqn}")).because(other.to_string()),
    })
}

async fn list(app: Arc<App>, p: GetSubsystems) -> Reply {
    let target = find_target(&app, p.tgt_name.as_deref())?;
    let list = match p.nqn {
        Some(nqn) => vec![target.subsystem(&nqn).map_err(refused)?],
        None => target.subsystems(),
    };
    Ok(list.iter().map(|subsystem| describe(subsystem)).collect())
}

fn describe(s: &SubsystemView) -> Value {
    let o = &s.options;
    let mut out = json!({
        "nqn": s.nqn(),
        "subtype": if s.discovery { "Discovery" } else { "NVMe" },
        "listen_addresses": s.listeners.iter().map(|listener| address_value(&listener.address)).collect::<Value>(),
        "allow_any_host": s.allow_any_host,
        "hosts": s.hosts.iter().map(|host| json!({"nqn": host})).collect::<Value>(),
    });
    if s.discovery {
        return out;
    }
    for (key, value) in [
        ("serial_number", json!(o.serial_number)),
        ("model_number", json!(o.model_number)),
        ("max_namespaces", json!(o.max_namespaces)),
        ("passthrough", json!(o.passthrough)),
        ("min_cntlid", json!(o.min_cntlid)),
        ("max_cntlid", json!(o.max_cntlid)),
        ("dmrsl", json!(o.dmrsl)),
        ("wzsl", json!(o.wzsl)),
    ] {
        out[key] = value;
    }
    if let Some(label) = &o.admin_label {
        out["admin_label"] = json!(label);
    }
    let namespaces = s.namespaces.values().map(|n| {
        let mut ns =
            json!({"nsid": n.nsid, "bdev_name": n.ns.bdev_name, "name": n.ns.bdev_name, "nguid": hex(&n.ns.nguid)});
        if n.ns.eui64 != [0; 8] {
            ns["eui64"] = json!(hex(&n.ns.eui64));
        }
        ns["uuid"] = json!(n.ns.uuid.to_string());
        if o.ana_reporting {
            ns["anagrpid"] = json!(n.anagrpid);
        }
        if !n.auto_visible {
            ns["no_auto_visible"] = json!(true);
            ns["hosts"] = n.hosts.iter().map(|host| json!({"nqn": host})).collect();
        }
        ns
    });
    out["namespaces"] = namespaces.collect();
    out
}

fn bytes<const N: usize>(key: &str, text: Option<&str>) -> Result<Option<[u8; N]>, RpcError> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || {
        RpcError::new(INVALID_PARAMS, format!("Invalid {key}"))
            .because(format!("'{text}' is not {} hexadecimal digits", N * 2))
    };
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    if digits.len() != N * 2 {
        return Err(wrong());
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Ok(Some(out))
}

async fn add_ns(app: Arc<App>, p: AddNs) -> Reply {
    let target = find_target(&app, p.tgt_name.as_deref())?;
    let n = p.namespace;
    let options = NamespaceOptions {
        nguid: bytes("nguid", n.nguid.as_deref())?,
        eui64: bytes("eui64", n.eui64.as_deref())?,
        bdev_name: n.bdev_name,
        nsid: n.nsid,
        uuid: n.uuid,
        anagrpid: n.anagrpid,
        no_auto_visible: n.no_auto_visible,
    };
    target.add_namespace(&p.nqn, options).await.map(|nsid| json!(nsid)).map_err(refused)
}

async fn add_host(app: Arc<App>, p: AddHost) -> Reply {
    let target = find_target(&app, p.tgt_name.as_deref())?;
    target.add_host(&p.nqn, &p.host).await.map(|()| json!(true)).map_err(|error| match error {
        TargetError::HostExists(_) | TargetError::InvalidNqn(_) => {
            RpcError::new(INTERNAL_ERROR, "Internal error").because(error.to_string())
        }
        other => refused(other),
    })
}

async fn remove_host(app: Arc<App>, p: RemoveHost) -> Reply {
    let target = find_target(&app, p.tgt_name.as_deref())?;
    let timeout = (p.timeout_ms != 0).then(|| Duration::from_millis(p.timeout_ms));
    target.remove_host(&p.nqn, &p.host, timeout).await.map(|()| json!(true)).map_err(|error| match error {
        TargetError::HostNotFound(_) => RpcError::new(INTERNAL_ERROR, "Internal error").because(error.to_string()),
        TargetError::Timeout(_) => {
            RpcError::new(INTERNAL_ERROR, "Timeout reached during host removal").because(error.to_string())
        }
        other => refused(other),
    })
}

async fn add_listener(app: Arc<App>, p: AddListener) -> Reply {
    let target = find_target(&app, p.tgt_name.as_deref())?;
    match p.sock_impl.as_deref() {
        Some("ssl") => return Err(RpcError::not_built("sock_impl")),
        None | Some("posix" | "uring") => {}
        Some(other) => return Err(RpcError::invalid_params(format!("there is no socket implementation '{other}'"))),
    }
    done(target.add_listener(&p.nqn, p.listen_address.parse()?, p.ana_state.state()).await)
}

async fn set_ana(app: Arc<App>, p: SetAna) -> Reply {
    let target = find_target(&app, p.tgt_name.as_deref())?;
    let set = target.set_ana_state(&p.nqn, &p.listen_address.parse()?, p.ana_state.state(), p.anagrpid).await;
    set.map(|()| json!(true)).map_err(|error| match error {
        TargetError::ListenerNotFound(_) | TargetError::Invalid(_) => {
            RpcError::new(INTERNAL_ERROR, "error setting ANA state: -22").because(error.to_string())
        }
        other => refused(other),
    })
}

fn listeners(s: &SubsystemView) -> Value {
    let list = s.listeners.iter().map(|listener| {
        let mut out = json!({"address": address_value(&listener.address)});
        if s.options.ana_reporting {
            let states = listener
                .ana
                .iter()
                .zip(1..)
                .map(|(state, group): (_, u32)| json!({"ana_group": group, "ana_state": ana_name(*state)}));
            out["ana_states"] = states.collect();
        }
        out
    });
    list.collect()
}

async fn controllers(app: Arc<App>, p: Nqn) -> Reply {
    let list = find_target(&app, p.tgt_name.as_deref())?.controllers(&p.nqn).await.map_err(refused)?;
    let list = list.into_iter().map(|c| {
        json!({
            "cntlid": c.cntlid, "cntrltype": if c.discovery { "discovery" } else { "io" }, "hostnqn": c.hostnqn,
            "hostid": uuid_text(c.hostid), "num_io_qpairs": c.num_io_qpairs,
        })
    });
    Ok(list.collect())
}

async fn qpairs(app: Arc<App>, p: Nqn) -> Reply {
    let list = find_target(&app, p.tgt_name.as_deref())?.qpairs(&p.nqn).await.map_err(refused)?;
    let list = list.into_iter().map(|q| {
        let mut out = json!({
            "cntlid": q.cntlid, "qid": q.qid, "state": if q.enabled { "enabled" } else { "deactivating" },
            "thread": format!("nvmf_tgt_poll_group_{:03}", q.core), "hostnqn": q.hostnqn,
            "listen_address": address_value(&q.listen_address), "peer_address": address_value(&q.peer_address),
        });
        out.as_object_mut().expect("an object").extend(traffic(&q.traffic));
        out
    });
    Ok(list.collect())
}

/// The calls that make a subsystem again, listeners last.
pub(super) fn dump(s: &SubsystemView) -> Vec<Call> {
    let (mut out, o) = (Vec::new(), &s.options);
    if !s.discovery {
        let mut create = vec![
            ("allow_any_host", json!(s.allow_any_host)),
            ("serial_number", json!(o.serial_number)),
            ("model_number", json!(o.model_number)),
            ("max_namespaces", json!(o.max_namespaces)),
            ("min_cntlid", json!(o.min_cntlid)),
            ("max_cntlid", json!(o.max_cntlid)),
            ("ana_reporting", json!(o.ana_reporting)),
            ("dmrsl", json!(o.dmrsl)),
            ("wzsl", json!(o.wzsl)),
            ("passthrough", json!(o.passthrough)),
            ("enable_nssr", json!(o.enable_nssr)),
        ];
        create.extend(o.admin_label.as_ref().map(|label| ("admin_label", json!(label))));
        out.push(call("nvmf_create_subsystem", s, &create));
    }
    out.extend(s.hosts.iter().map(|host| call("nvmf_subsystem_add_host", s, &[("host", json!(host))])));
    for n in s.namespaces.values() {
        let mut ns = json!({"nsid": n.nsid, "bdev_name": n.ns.bdev_name, "nguid": hex(&n.ns.nguid)});
        if n.ns.eui64 != [0; 8] {
            ns["eui64"] = json!(hex(&n.ns.eui64));
        }
        ns["uuid"] = json!(n.ns.uuid.to_string());
        if o.ana_reporting {
            ns["anagrpid"] = json!(n.anagrpid);
        }
        ns["no_auto_visible"] = json!(!n.auto_visible);
        out.push(call("nvmf_subsystem_add_ns", s, &[("namespace", ns)]));
        out.extend(
            n.hosts.iter().map(|host| call("nvmf_ns_add_host", s, &[("nsid", json!(n.nsid)), ("host", json!(host))])),
        );
    }
    for listener in &s.listeners {
        let address = address_value(&listener.address);
        out.push(call(
            "nvmf_subsystem_add_listener",
            s,
            &[("listen_address", address.clone()), ("secure_channel", json!(false))],
        ));
        for (state, group) in
            listener.ana.iter().zip(1u32..).filter(|(state, _)| o.ana_reporting && **state != AnaState::Optimized)
        {
            let set = [
                ("listen_address", address.clone()),
                ("ana_state", json!(ana_name(*state))),
                ("anagrpid", json!(group)),
            ];
            out.push(call("nvmf_subsystem_listener_set_ana_state", s, &set));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_hexadecimal_digits_of_the_right_number() {
        assert_eq!(
            bytes::<8>("eui64", Some("0011223344556677")).unwrap(),
            Some([0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77])
        );
        assert_eq!(bytes::<8>("eui64", None).unwrap(), None);
        for wrong in ["", "00112233445566", "00112233445566778", "zz11223344556677"] {
            assert_eq!(bytes::<8>("eui64", Some(wrong)).unwrap_err().message, "Invalid eui64");
        }
    }
}
