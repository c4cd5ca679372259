//! What a target is told comes back from a dump, whole.

use std::sync::Arc;

use longshore_bdev::Registry;
use longshore_reactor::{Options, Runtime};
use longshore_rpc::app::{App, Parts};
use longshore_rpc::config::{self, Config};
use longshore_rpc::exec::block_on;
use longshore_rpc::json::Json;
use serde_json::{Value, json};

const NQN: &str = "nqn.2016-06.io.spdk:cnode1";

struct Rig {
    app: Arc<App>,
    runtime: Option<Runtime>,
}

impl Rig {
    fn new() -> Rig {
        let runtime = Runtime::start(Options { pin: false, ..Options::default() }).expect("a reactor");
        let app = App::new(Parts { cores: runtime.cores().to_vec(), bdevs: Registry::new(), ..Parts::default() });
        Rig { app, runtime: Some(runtime) }
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, (i32, String)> {
        let params = (!params.is_null()).then(|| Json::from_value(&params));
        block_on(self.app.call(method, params.as_ref())).map_err(|e| (e.code, e.message.into_owned()))
    }

    fn load(&self, text: &str) -> Result<(), String> {
        block_on(Config::parse(text.as_bytes()).unwrap().apply(&self.app, false)).map_err(|e| e.to_string())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        block_on(self.app.shutdown());
        self.runtime.take().unwrap().stop();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn address(port: u16) -> Value {
    json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()})
}

/// A target with everything that can be set.
fn built(rig: &Rig, port: u16) {
    let ok = |method: &str, params: Value| drop(rig.call(method, params).unwrap());
    ok("nvmf_set_crdt", json!({"crdt1": 1, "crdt2": 2, "crdt3": 3}));
    ok("nvmf_set_config", json!({"discovery_filter": "transport,address"}));
    ok("nvmf_set_max_subsystems", json!({"max_subsystems": 2}));
    ok("framework_start_init", Value::Null);
    for name in ["A", "B"] {
        ok("bdev_null_create", json!({"name": name, "num_blocks": 256, "block_size": 4096}));
    }
    ok(
        "nvmf_create_transport",
        json!({"trtype": "tcp", "c2h_success": false, "masked_oncs": ["nvmcmps", "nvmcpys"], "unknown": [1]}),
    );
    let address = address(port);
    ok("nvmf_discovery_add_referral", json!({"address": {"trtype": "tcp", "traddr": "::1", "trsvcid": "8009"}}));
    ok(
        "nvmf_create_subsystem",
        json!({"nqn": NQN, "ana_reporting": true, "max_namespaces": 4, "admin_label": "tenant one"}),
    );
    let host = "nqn.2016-06.io.spdk:host1";
    ok("nvmf_subsystem_add_host", json!({"nqn": NQN, "host": host}));
    ok(
        "nvmf_subsystem_add_ns",
        json!({"nqn": NQN, "namespace": {"bdev_name": "A", "anagrpid": 3, "eui64": "0011223344556677"}}),
    );
    ok(
        "nvmf_subsystem_add_ns",
        json!({"nqn": NQN, "namespace": {"bdev_name": "B", "nsid": 4, "no_auto_visible": true}}),
    );
    ok("nvmf_ns_add_host", json!({"nqn": NQN, "nsid": 4, "host": host}));
    ok("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address}));
    ok(
        "nvmf_subsystem_listener_set_ana_state",
        json!({"nqn": NQN, "listen_address": address, "ana_state": "non_optimized", "anagrpid": 3}),
    );
    ok("nvmf_create_subsystem", json!({"nqn": "nqn.2016-06.io.spdk:cnode2"}));
    let third = rig.call("nvmf_create_subsystem", json!({"nqn": "nqn.2016-06.io.spdk:cnode3"}));
    assert_eq!(
        third,
        Err((-32603, "Unable to create subsystem nqn.2016-06.io.spdk:cnode3".into())),
        "two are the limit"
    );
}

#[test]
fn all_that_was_set_comes_back_from_a_dump() {
    let first = Rig::new();
    built(&first, free_port());
    let text = block_on(config::dump(&first.app));
    for word in
        ["non_optimized", "0011223344556677", "nvmf_ns_add_host", "masked_oncs", "tenant one", "::1", "\"transport\""]
    {
        assert!(text.contains(word), "{word} is lost in {text}");
    }
    drop(first);
    let second = Rig::new();
    second.load(&text).unwrap();
    assert_eq!(block_on(config::dump(&second.app)), text);
    let listeners = second.call("nvmf_subsystem_get_listeners", json!({"nqn": NQN})).unwrap();
    let states: Vec<&str> =
        listeners[0]["ana_states"].as_array().unwrap().iter().map(|s| s["ana_state"].as_str().unwrap()).collect();
    assert_eq!(states, ["optimized", "optimized", "non_optimized", "optimized"]);
}

#[test]
fn batches_hold_a_subsystem_together() {
    let rig = Rig::new();
    built(&rig, free_port());
    let with = rig.call("framework_get_config", json!({"name": "nvmf", "with_batches": true})).unwrap();
    let flat = rig.call("framework_get_config", json!({"name": "nvmf"})).unwrap();
    let batches: Vec<&Vec<Value>> = with.as_array().unwrap().iter().filter_map(Value::as_array).collect();
    assert_eq!(batches.len(), 2);
    assert_eq!(batches[0][0]["method"], "nvmf_create_subsystem");
    let joined: Vec<Value> = with
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|e| e.as_array().cloned().unwrap_or_else(|| vec![e.clone()]))
        .collect();
    assert_eq!(Value::Array(joined), flat);
}

#[test]
fn the_port_opens_when_the_whole_configuration_is_applied() {
    let port = free_port();
    let (first, bad) =
        (Rig::new(), r#"{"method":"bdev_null_create","params":{"name":"A","num_blocks":1,"block_size":512}}"#);
    built(&first, port);
    let text = block_on(config::dump(&first.app));
    let broken = text.replacen(
        "{\n      \"subsystem\": \"iscsi\",\n      \"config\": []",
        &format!("{{\"subsystem\":\"iscsi\",\"config\":[{bad}]"),
        1,
    );
    assert_ne!(broken, text);
    drop(first);
    let second = Rig::new();
    let why = second.load(&broken).unwrap_err();
    assert!(why.contains("bdev_null_create of subsystem iscsi failed: File exists"), "{why}");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "half a configuration is not served");
}

#[test]
fn a_port_in_use_is_told() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let first = Rig::new();
    let port = free_port();
    built(&first, port);
    let taken = held.local_addr().unwrap().port();
    let text = block_on(config::dump(&first.app)).replace(&format!("\"{port}\""), &format!("\"{taken}\""));
    let listener = json!({"nqn": "nqn.2016-06.io.spdk:cnode2", "listen_address": address(taken)});
    assert_eq!(first.call("nvmf_subsystem_add_listener", listener), Err((-32602, "Invalid parameters".into())));
    let second = Rig::new();
    let why = second.load(&text).unwrap_err();
    assert!(why.contains(&taken.to_string()) && why.contains("in use"), "{why}");
}
