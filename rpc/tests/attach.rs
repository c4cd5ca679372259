//! One daemon's namespaces as another one's devices, over NVMe/TCP on the loopback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_bdev::{IoFlags, Registry, Status};
use longshore_reactor::{Options, Runtime};
use longshore_rpc::app::{App, Parts};
use longshore_rpc::config::{self, Config};
use longshore_rpc::exec::block_on;
use longshore_rpc::json::Json;
use serde_json::{Value, json};

const NQN: &str = "nqn.2016-06.io.spdk:cnode1";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:6c6f6e67-0000-4000-8000-000000000001";

struct Daemon {
    app: Arc<App>,
    runtime: Option<Runtime>,
}

impl Daemon {
    fn new() -> Daemon {
        let runtime = Runtime::start(Options { pin: false, ..Options::default() }).expect("a reactor");
        let app = App::new(Parts { cores: runtime.cores().to_vec(), bdevs: Registry::new(), ..Parts::default() });
        Daemon { app, runtime: Some(runtime) }
    }

    fn running() -> Daemon {
        let daemon = Daemon::new();
        block_on(daemon.app.init()).unwrap();
        daemon
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, (i32, String)> {
        let params = (!params.is_null()).then(|| Json::from_value(&params));
        block_on(self.app.call(method, params.as_ref())).map_err(|e| (e.code, format!("{} {:?}", e.message, e.data)))
    }

    fn ok(&self, method: &str, params: Value) -> Value {
        self.call(method, params).unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    fn names(&self) -> Vec<String> {
        let list = self.ok("bdev_get_bdevs", Value::Null);
        list.as_array().unwrap().iter().map(|bdev| bdev["name"].as_str().unwrap().to_string()).collect()
    }

    /// Waits for what comes by an event of the other daemon.
    fn until(&self, what: &str, reached: impl Fn(&Daemon) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !reached(self) {
            assert!(Instant::now() < end, "{what} did not happen");
            std::thread::yield_now();
        }
    }

    /// Writes a pattern over a device and reads it back.
    fn verify(&self, name: &str, blocks: u32) -> Status {
        let (bdevs, name) = (self.app.bdevs.clone(), name.to_string());
        let done = self.app.cores[0].spawn(move |reactor| async move {
            let desc = bdevs.open(&name, true, Box::new(|_| {})).expect("open");
            let channel = desc.channel().expect("a channel");
            let length = blocks as usize * desc.node().geometry().block_size as usize;
            let mut buf = reactor.dma().alloc(length).expect("memory").slice(0, length);
            buf.get_mut().expect("unique").iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 7 % 251) as u8);
            let (status, _) = channel.write(3, blocks, buf, IoFlags::FUA).await;
            if status != Status::SUCCESS {
                return status;
            }
            let buf = reactor.dma().alloc(length).expect("memory").slice(0, length);
            let (status, read) = channel.read(3, blocks, buf).await;
            let read = read.expect("the buffer");
            assert!(
                read.as_slice().iter().enumerate().all(|(i, byte)| *byte == (i * 7 % 251) as u8),
                "what was written is read"
            );
            status
        });
        block_on(done).expect("the reactor runs")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        block_on(self.app.shutdown());
        self.runtime.take().unwrap().stop();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A daemon that exports a malloc device as namespace 1 and a null device as namespace 3.
fn exporter(port: u16) -> Daemon {
    let daemon = Daemon::running();
    daemon.ok("bdev_malloc_create", json!({"name": "M", "num_blocks": 4096, "block_size": 512}));
    daemon.ok("bdev_null_create", json!({"name": "N", "num_blocks": 256, "block_size": 4096}));
    daemon.ok("nvmf_create_transport", json!({"trtype": "TCP"}));
    daemon.ok("nvmf_create_subsystem", json!({"nqn": NQN}));
    daemon.ok("nvmf_subsystem_add_host", json!({"nqn": NQN, "host": HOST}));
    daemon.ok("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "M", "nsid": 1}}));
    daemon.ok("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "N", "nsid": 3}}));
    let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
    daemon.ok("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address}));
    daemon
}

fn there(port: u16) -> Value {
    json!({
        "name": "X", "trtype": "tcp", "traddr": "127.0.0.1", "adrfam": "ipv4", "trsvcid": port.to_string(), "subnqn": NQN, "hostnqn": HOST,
    })
}

#[test]
fn namespaces_are_devices_that_come_go_and_grow() {
    let port = free_port();
    let (target, host) = (exporter(port), Daemon::running());
    assert_eq!(host.ok("bdev_nvme_attach_controller", there(port)), json!(["Xn1", "Xn3"]));
    assert_eq!(host.verify("Xn1", 8), Status::SUCCESS);
    assert_eq!(host.verify("Xn1", 1024), Status::SUCCESS, "more than one command takes");
    let uuid = |daemon: &Daemon, name: &str| daemon.ok("bdev_get_bdevs", json!({"name": name}))[0]["uuid"].clone();
    assert_eq!(uuid(&host, "Xn1"), uuid(&target, "M"));
    let controllers = host.ok("bdev_nvme_get_controllers", json!({"name": "X"}));
    assert_eq!(
        (&controllers[0]["ctrlrs"][0]["state"], &controllers[0]["ctrlrs"][0]["host"]["nqn"]),
        (&json!("enabled"), &json!(HOST))
    );
    assert_eq!(target.ok("nvmf_subsystem_get_controllers", json!({"nqn": NQN}))[0]["hostnqn"], HOST);
    target.ok("bdev_null_resize", json!({"name": "N", "new_size": 4}));
    host.until("the resize", |host| host.ok("bdev_get_bdevs", json!({"name": "Xn3"}))[0]["num_blocks"] == 1024);
    target.ok("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 3}));
    host.until("the removal", |host| host.names() == ["Xn1"]);
    target.ok("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "N", "nsid": 2}}));
    host.until("the addition", |host| host.names() == ["Xn1", "Xn2"]);
    assert_eq!(host.ok("bdev_nvme_reset_controller", json!({"name": "X"})), json!(true));
    assert_eq!(host.verify("Xn1", 16), Status::SUCCESS, "a queue is made anew after a reset");
    assert_eq!(
        host.ok("bdev_nvme_detach_controller", json!({"name": "X", "trtype": "TCP", "traddr": "127.0.0.1"})),
        json!(true)
    );
    assert!(host.names().is_empty());
    assert_eq!(host.call("bdev_nvme_detach_controller", json!({"name": "X"})).unwrap_err().0, -19);
}

#[test]
fn what_cannot_be_attached_says_why() {
    let port = free_port();
    let (_target, host) = (exporter(port), Daemon::running());
    let with = |key: &str, value: Value| {
        let mut params = there(port);
        params[key] = value;
        params
    };
    let fails = |params: Value| host.call("bdev_nvme_attach_controller", params).unwrap_err();
    assert_eq!(fails(with("trsvcid", json!(free_port().to_string()))).0, -5);
    assert_eq!(fails(with("subnqn", json!("nqn.2016-06.io.spdk:none"))).0, -5);
    assert_eq!(fails(with("hostnqn", json!("nqn.2016-06.io.spdk:stranger"))).0, -5);
    assert_eq!(fails(with("trtype", json!("x"))).0, -22);
    assert_eq!(fails(with("traddr", json!("x"))).0, -22);
    assert_eq!(fails(with("psk", json!("/key"))).0, -95);
    assert_eq!(fails(with("max_bdevs", json!(0))).0, -22);
    assert!(host.names().is_empty() && host.ok("bdev_nvme_get_controllers", Value::Null) == json!([]));
    host.ok("bdev_nvme_attach_controller", there(port));
    assert_eq!(fails(there(port)).0, -114);
    assert_eq!(fails(with("trsvcid", json!("1"))).0, -95, "a second path is not built");
    let mut other = with("trsvcid", json!("1"));
    other["multipath"] = json!("disable");
    assert_eq!(fails(other).0, -114);
    assert_eq!(host.call("bdev_nvme_set_options", json!({})).unwrap_err().0, -1);
}

#[test]
fn an_attached_controller_comes_back_from_a_dump() {
    let port = free_port();
    let (_target, first) = (exporter(port), Daemon::running());
    first.ok("bdev_nvme_attach_controller", there(port));
    first.ok("bdev_passthru_create", json!({"name": "P", "base_bdev_name": "Xn1"}));
    let text = block_on(config::dump(&first.app));
    drop(first);
    let second = Daemon::new();
    block_on(Config::parse(text.as_bytes()).unwrap().apply(&second.app, false)).unwrap();
    assert_eq!(block_on(config::dump(&second.app)), text);
    assert_eq!(second.verify("P", 8), Status::SUCCESS);
}

#[test]
fn what_a_discovery_service_lists_is_attached_and_what_it_does_not_list_any_more_is_detached() {
    let number = free_port();
    let (target, host, port) = (exporter(number), Daemon::running(), number.to_string());
    let there = json!({"trtype": "tcp", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": port});
    let with = |more: Value| {
        let mut all = there.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let add = |nqn: &str, bdev: &str| {
        target.ok("bdev_malloc_create", json!({"name": bdev, "num_blocks": 2048, "block_size": 512}));
        target.ok("nvmf_create_subsystem", json!({"nqn": nqn, "allow_any_host": true}));
        target.ok("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": {"bdev_name": bdev}}));
        target.ok("nvmf_subsystem_add_listener", json!({"nqn": nqn, "listen_address": there}));
    };
    let start = json!({"name": "disc", "wait_for_attach": true, "hostnqn": HOST,
        "ctrlr_loss_timeout_sec": 30, "reconnect_delay_sec": 1});
    assert_eq!(host.ok("bdev_nvme_start_discovery", with(start.clone())), json!(true));
    assert_eq!(host.names(), ["disc0n1", "disc0n3"]);
    assert_eq!(host.verify("disc0n1", 64), Status::SUCCESS);

    let (code, why) = host.call("bdev_nvme_start_discovery", with(start)).unwrap_err();
    assert!(code == -17 && why.contains("File exists"), "{code} {why}");
    let (code, _) = host.call("bdev_nvme_start_discovery", with(json!({"name": "other"}))).unwrap_err();
    assert_eq!(code, -17, "one service for an address");
    let bad = json!({"name": "d", "trtype": "TCP", "traddr": "127.0.0.2", "reconnect_delay_sec": 1});
    assert_eq!(host.call("bdev_nvme_start_discovery", bad).unwrap_err().0, -22);
    let nobody = json!({"name": "d", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "1", "attach_timeout_ms": 300});
    let (code, why) = host.call("bdev_nvme_start_discovery", nobody).unwrap_err();
    assert!(code == -110 && why.contains("Connection timed out"), "{code} {why}");

    let info = host.ok("bdev_nvme_get_discovery_info", Value::Null);
    assert_eq!(
        info,
        json!([{"name": "disc", "referrals": [], "trid": {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": port, "subnqn": "nqn.2014-08.org.nvmexpress.discovery"}}])
    );

    add("nqn.2016-06.io.spdk:late", "Late");
    host.until("the new subsystem", |h| h.names() == ["disc0n1", "disc0n3", "disc1n1"]);
    target.ok("nvmf_delete_subsystem", json!({"nqn": NQN}));
    host.until("its end", |h| h.names() == ["disc1n1"]);

    // The service is dumped, what it attached is not; and the dump does it all again.
    let dump = host.ok("framework_get_config", json!({"name": "bdev"}));
    let calls: Vec<&Value> =
        dump.as_array().unwrap().iter().filter(|c| c["method"].as_str().unwrap().contains("nvme_")).collect();
    assert!(!calls.iter().any(|c| c["method"] == "bdev_nvme_attach_controller"), "{calls:?}");
    let call = calls.iter().find(|c| c["method"] == "bdev_nvme_start_discovery").expect("the service is dumped");
    assert_eq!(
        call["params"],
        json!({"name": "disc", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port,
            "hostnqn": HOST, "wait_for_attach": true, "ctrlr_loss_timeout_sec": 30, "reconnect_delay_sec": 1, "fast_io_fail_timeout_sec": 0})
    );
    assert_eq!(host.ok("bdev_nvme_stop_discovery", json!({"name": "disc"})), json!(true));
    assert!(host.names().is_empty());
    assert_eq!(host.call("bdev_nvme_stop_discovery", json!({"name": "disc"})).unwrap_err().0, -2);
    host.ok("bdev_nvme_start_discovery", call["params"].clone());
    assert_eq!(host.names(), ["disc0n1"]);
}

#[test]
fn a_controller_that_was_given_up_comes_back_through_its_discovery_service() {
    let port = free_port();
    let (target, host) = (exporter(port), Daemon::running());
    let start = json!({
        "name": "disc", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port.to_string(), "hostnqn": HOST,
        "attach_timeout_ms": 20000, "ctrlr_loss_timeout_sec": 1, "reconnect_delay_sec": 1,
    });
    host.ok("bdev_nvme_start_discovery", start);
    assert_eq!(host.names(), ["disc0n1", "disc0n3"]);
    drop(target);
    host.until("the removal", |host| host.names().is_empty());
    let _target = exporter(port);
    host.until("the return", |host| host.names() == ["disc0n1", "disc0n3"]);
    assert_eq!(host.verify("disc0n1", 64), Status::SUCCESS);
}

#[test]
fn a_namespace_that_grows_is_seen_to_grow_two_daemons_above() {
    let (below, above) = (free_port(), free_port());
    let (target, middle, host) = (exporter(below), Daemon::running(), Daemon::running());
    middle.ok("bdev_nvme_attach_controller", there(below));
    middle.ok("nvmf_create_transport", json!({"trtype": "TCP"}));
    middle.ok("nvmf_create_subsystem", json!({"nqn": NQN, "allow_any_host": true}));
    middle.ok("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "Xn3"}}));
    let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": above.to_string()});
    middle.ok("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address}));
    assert_eq!(host.ok("bdev_nvme_attach_controller", there(above)), json!(["Xn1"]));
    target.ok("bdev_null_resize", json!({"name": "N", "new_size": 4}));
    host.until("the resize", |host| host.ok("bdev_get_bdevs", json!({"name": "Xn1"}))[0]["num_blocks"] == 1024);
    target.ok("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 3}));
    host.until("the removal", |host| host.names().is_empty());
}
