//! Block devices through the methods, on a running reactor.

use std::sync::Arc;

use longshore_bdev::Registry;
use longshore_reactor::{Options, Runtime};
use longshore_rpc::app::{App, Parts};
use longshore_rpc::config::{self, Config};
use longshore_rpc::exec::block_on;
use longshore_rpc::json::Json;
use serde_json::{Value, json};

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

    fn running() -> Rig {
        let rig = Rig::new();
        block_on(rig.app.init()).unwrap();
        rig
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, (i32, String)> {
        let params = (!params.is_null()).then(|| Json::from_value(&params));
        block_on(self.app.call(method, params.as_ref())).map_err(|e| (e.code, e.message.into_owned()))
    }

    fn fails(&self, method: &str, params: Value) -> (i32, String) {
        self.call(method, params).unwrap_err()
    }

    fn names(&self) -> Vec<String> {
        let list = self.call("bdev_get_bdevs", Value::Null).unwrap();
        list.as_array().unwrap().iter().map(|bdev| bdev["name"].as_str().unwrap().to_string()).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        block_on(self.app.shutdown());
        self.runtime.take().unwrap().stop();
    }
}

#[test]
fn a_malloc_device_is_made_listed_and_deleted() {
    let rig = Rig::running();
    let make = json!({"name": "Malloc0", "num_blocks": 16384, "block_size": 4096});
    assert_eq!(rig.call("bdev_malloc_create", make.clone()), Ok(json!("Malloc0")));
    assert_eq!(rig.fails("bdev_malloc_create", make), (-17, "File exists".into()));
    let unnamed = json!({"num_blocks": 8, "block_size": 512});
    assert_eq!(
        rig.fails("bdev_malloc_create", unnamed.clone()).0,
        -17,
        "the first without a name is Malloc0, which is taken"
    );
    assert_eq!(rig.call("bdev_malloc_create", unnamed), Ok(json!("Malloc1")));
    let bad = (-32603, "spdk_json_decode_object failed".to_string());
    assert_eq!(rig.fails("bdev_malloc_create", json!({"num_blocks": 16384})), bad);
    assert_eq!(rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": "16", "block_size": 512})), bad);
    assert_eq!(
        rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": 16, "block_size": 512, "nope": 1})),
        bad
    );
    assert_eq!(
        rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": 16, "block_size": 500})),
        (-22, "Invalid argument".into())
    );
    assert_eq!(
        rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": 16, "block_size": 512, "dif_type": 1})),
        (-95, "Operation not supported".into())
    );
    let bdev = &rig.call("bdev_get_bdevs", json!({"name": "Malloc0"})).unwrap()[0];
    assert_eq!(
        (&bdev["product_name"], &bdev["claimed"], &bdev["num_blocks"]),
        (&json!("Malloc disk"), &json!(false), &json!(16384))
    );
    assert_eq!(bdev["aliases"][0], bdev["uuid"]);
    assert_eq!(rig.fails("bdev_null_delete", json!({"name": "Malloc0"})), (-19, "No such device".into()));
    assert_eq!(rig.call("bdev_malloc_delete", json!({"name": "Malloc0"})), Ok(json!(true)));
    assert_eq!(rig.fails("bdev_malloc_delete", json!({"name": "Malloc0"})), (-19, "No such device".into()));
    assert_eq!(rig.fails("bdev_get_bdevs", json!({"name": "Malloc0"})), (-19, "No such device".into()));
    let kinds: Vec<Value> = rig
        .call("notify_get_notifications", json!({}))
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["type"].clone())
        .collect();
    assert_eq!(kinds, ["bdev_register", "bdev_register", "bdev_unregister"]);
}

#[test]
fn a_layer_may_be_asked_for_before_its_base_and_goes_with_it() {
    let rig = Rig::running();
    assert_eq!(rig.call("bdev_passthru_create", json!({"name": "PT0", "base_bdev_name": "Null0"})), Ok(json!("PT0")));
    assert_eq!(
        rig.fails("bdev_passthru_create", json!({"name": "PT0", "base_bdev_name": "Null0"})),
        (-17, "File exists".into())
    );
    assert_eq!(rig.fails("bdev_get_bdevs", json!({"name": "PT0"})).0, -19);
    rig.call("bdev_null_create", json!({"name": "Null0", "num_blocks": 256, "block_size": 4096})).unwrap();
    let bdev = rig.call("bdev_get_bdevs", json!({"name": "PT0"})).unwrap();
    assert_eq!(bdev[0]["driver_specific"], json!({"passthru": {"name": "PT0", "base_bdev_name": "Null0"}}));
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "Null0"})).unwrap()[0]["claim_type"], "exclusive_write");
    assert_eq!(rig.fails("bdev_passthru_create", json!({"name": "PT1", "base_bdev_name": "Null0"})).0, -1, "claimed");
    assert_eq!(rig.call("bdev_null_resize", json!({"name": "Null0", "new_size": 2})), Ok(json!(true)));
    assert_eq!(
        rig.call("bdev_get_bdevs", json!({"name": "PT0"})).unwrap()[0]["num_blocks"],
        512,
        "a layer grows with its base"
    );
    assert_eq!(rig.fails("bdev_null_resize", json!({"name": "Null0", "new_size": 1})).0, -22);
    rig.call("bdev_null_delete", json!({"name": "Null0"})).unwrap();
    assert!(rig.names().is_empty());
    rig.call("bdev_null_create", json!({"name": "Null0", "num_blocks": 256, "block_size": 4096})).unwrap();
    assert_eq!(rig.names(), ["Null0", "PT0"], "the layer comes back with its base");
    rig.call("bdev_passthru_delete", json!({"name": "PT0"})).unwrap();
    assert_eq!(rig.names(), ["Null0"]);
}

#[test]
fn a_dump_makes_the_same_devices_again() {
    let first = Rig::running();
    first
        .call(
            "bdev_malloc_create",
            json!({"name": "M", "num_blocks": 64, "block_size": 512, "md_size": 8, "md_interleave": true}),
        )
        .unwrap();
    first.call("bdev_passthru_create", json!({"name": "P", "base_bdev_name": "M"})).unwrap();
    first.call("bdev_null_create", json!({"name": "N", "num_blocks": 256, "block_size": 4096})).unwrap();
    first.call("bdev_null_resize", json!({"name": "N", "new_size": 8})).unwrap();
    let text = block_on(config::dump(&first.app));
    let second = Rig::new();
    block_on(Config::parse(text.as_bytes()).unwrap().apply(&second.app, false)).unwrap();
    assert_eq!(block_on(config::dump(&second.app)), text);
    let mut names = second.names();
    names.sort();
    assert_eq!(names, ["M", "N", "P"]);
    assert_eq!(
        second.call("bdev_get_bdevs", json!({"name": "P"})).unwrap()[0]["uuid"],
        first.call("bdev_get_bdevs", json!({"name": "P"})).unwrap()[0]["uuid"]
    );
}

#[test]
fn counters_have_the_known_shape() {
    let rig = Rig::running();
    rig.call("bdev_null_create", json!({"name": "N", "num_blocks": 256, "block_size": 4096})).unwrap();
    for params in [json!({"names": ["N"]}), json!({"name": "N"}), Value::Null] {
        let stat = rig.call("bdev_get_iostat", params).unwrap();
        assert_eq!((&stat["bdevs"][0]["name"], &stat["bdevs"][0]["num_read_ops"]), (&json!("N"), &json!(0)));
        assert_eq!(stat["bdevs"][0]["min_read_latency_ticks"], 0);
    }
    assert_eq!(
        rig.call("bdev_get_iostat", json!({"names": ["N"], "per_channel": true})).unwrap()["channels"],
        json!([])
    );
    assert_eq!(rig.fails("bdev_get_iostat", json!({"per_channel": true})).0, -22);
    assert_eq!(rig.fails("bdev_get_iostat", json!({"names": ["x"]})), (-19, "No such device".into()));
    assert_eq!(rig.call("bdev_reset_iostat", json!({"mode": "maxmin"})), Ok(json!(true)));
}

#[test]
fn cores_are_described() {
    let rig = Rig::running();
    let reactors = rig.call("framework_get_reactors", Value::Null).unwrap();
    assert_eq!(reactors["pid"], std::process::id());
    assert_eq!(reactors["reactors"][0]["lw_threads"][0]["name"], "nvmf_tgt_poll_group_000");
    let threads = rig.call("thread_get_stats", Value::Null).unwrap();
    assert!(threads["threads"][0]["busy"].is_u64() && threads["threads"][0]["idle"].is_u64());
    assert_eq!(rig.call("thread_get_io_channels", Value::Null).unwrap()["threads"][0]["io_channels"], json!([]));
    assert!(rig.call("thread_get_pollers", Value::Null).unwrap()["threads"][0]["active_pollers"].is_array());
    assert!(rig.call("iobuf_get_stats", Value::Null).unwrap()[0]["large_pool"]["retry"].is_u64());
    assert_eq!(rig.fails("thread_get_stats", json!({})), (-32602, "'thread_get_stats' requires no arguments".into()));
}

#[test]
fn delays_and_errors_are_made_changed_and_deleted() {
    let rig = Rig::running();
    assert_eq!(rig.call("bdev_error_create", json!({"base_name": "Malloc1"})), Ok(json!(true)), "it may come later");
    let failure = json!({"name": "EE_Malloc1", "io_type": "read", "error_type": "failure", "num": 1});
    assert_eq!(rig.fails("bdev_error_inject_error", failure.clone()), (-19, "No such device".into()));
    rig.call("bdev_malloc_create", json!({"name": "Malloc1", "num_blocks": 16, "block_size": 512})).unwrap();
    assert_eq!(rig.call("bdev_error_inject_error", failure), Ok(json!(true)));
    let nvme = json!({"name": "EE_Malloc1", "io_type": "all", "error_type": "nvme_failure"});
    let message = "nvme_sct or nvme_sc should be specified for NVMe error injection";
    assert_eq!(rig.fails("bdev_error_inject_error", nvme), (-22, message.into()));
    assert_eq!(rig.call("bdev_error_resume_pending", json!({"name": "EE_Malloc1"})), Ok(json!(true)));
    let delay = json!({
        "name": "D0", "base_bdev_name": "EE_Malloc1", "avg_read_latency": 10, "p99_read_latency": 20, "avg_write_latency": 10,
        "p99_write_latency": 20,
    });
    assert_eq!(rig.call("bdev_delay_create", delay), Ok(json!("D0")));
    let update = |name: &str, us: u64| json!({"delay_bdev_name": name, "latency_type": "avg_read", "latency_us": us});
    assert_eq!(rig.call("bdev_delay_update_latency", update("D0", 15)), Ok(json!(true)));
    assert_eq!(rig.call("bdev_delay_update_latency", update("D0", 25)), Ok(json!(true)));
    let latencies = rig.call("bdev_get_bdevs", json!({"name": "D0"})).unwrap()[0]["driver_specific"]["delay"].clone();
    assert_eq!((&latencies["avg_read_latency"], &latencies["p99_read_latency"]), (&json!(25), &json!(25)));
    assert_eq!(rig.call("bdev_delay_update_latency", update("D0", 15)), Ok(json!(true)));
    assert_eq!(
        rig.fails("bdev_delay_update_latency", update("none", 1)),
        (-32602, "The requested bdev does not exist.".into())
    );
    assert_eq!(rig.fails("bdev_delay_update_latency", update("Malloc1", 1)).0, -32600);
    let bdev = &rig.call("bdev_get_bdevs", json!({"name": "D0"})).unwrap()[0];
    assert_eq!(bdev["driver_specific"]["delay"]["avg_read_latency"], 15);
    let config = rig.call("framework_get_config", json!({"name": "bdev"})).unwrap();
    assert_eq!(config[1]["params"]["avg_read_latency"], 15, "{config}");
    assert_eq!(rig.call("bdev_delay_delete", json!({"name": "D0"})), Ok(json!(true)));
    assert_eq!(rig.call("bdev_error_delete", json!({"name": "EE_Malloc1"})), Ok(json!(true)));
    assert_eq!(rig.fails("bdev_error_delete", json!({"name": "EE_Malloc1"})).0, -19);
    assert_eq!(rig.names(), ["Malloc1"]);
}

#[test]
fn volatile_devices_are_made_shown_dumped_and_deleted() {
    let rig = Rig::running();
    let create = json!({"name": "V", "base_bdev_name": "M", "seed": 7, "cache_size_mb": 2});
    assert_eq!(rig.call("bdev_volatile_create", create.clone()), Ok(json!("V")), "the device beneath may come later");
    assert_eq!(rig.fails("bdev_volatile_create", create), (-17, "File exists".into()));
    rig.call("bdev_malloc_create", json!({"name": "M", "num_blocks": 16, "block_size": 512})).unwrap();
    let bdev = &rig.call("bdev_get_bdevs", json!({"name": "V"})).unwrap()[0];
    let shown = json!({"name": "V", "base_bdev_name": "M", "seed": 7, "cache_size_mb": 2, "unflushed_bytes": 0});
    assert_eq!(bdev["driver_specific"]["volatile"], shown);
    let config = rig.call("framework_get_config", json!({"name": "bdev"})).unwrap();
    let entry = config.as_array().unwrap().iter().find(|e| e["method"] == "bdev_volatile_create").unwrap();
    assert_eq!((&entry["params"]["seed"], &entry["params"]["cache_size_mb"]), (&json!(7), &json!(2)));
    let none = json!({"name": "W", "base_bdev_name": "M", "seed": 7, "cache_size_mb": 0});
    assert_eq!(rig.fails("bdev_volatile_create", none), (-22, "Invalid argument".into()));
    assert_eq!(rig.call("bdev_volatile_delete", json!({"name": "V"})), Ok(json!(true)));
    assert_eq!(rig.fails("bdev_volatile_delete", json!({"name": "V"})).0, -19);
    assert_eq!(rig.names(), ["M"]);
}

#[test]
fn limits_and_histograms_are_set_shown_and_dumped() {
    let rig = Rig::running();
    rig.call("bdev_null_create", json!({"name": "N", "num_blocks": 256, "block_size": 4096})).unwrap();
    assert_eq!(rig.fails("bdev_set_qos_limit", json!({"name": "N"})), (-22, "No rate limits specified".into()));
    assert_eq!(rig.fails("bdev_set_qos_limit", json!({"name": "x", "r_mbytes_per_sec": 1})).0, -19);
    rig.call("bdev_set_qos_limit", json!({"name": "N", "rw_ios_per_sec": 20000, "w_mbytes_per_sec": 50})).unwrap();
    rig.call("bdev_set_qos_limit", json!({"name": "N", "r_mbytes_per_sec": 7})).unwrap();
    let want = json!({"rw_ios_per_sec": 20000, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 7, "w_mbytes_per_sec": 50});
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "N"})).unwrap()[0]["assigned_rate_limits"], want);
    assert_eq!(rig.fails("bdev_get_histogram", json!({"name": "N"})), (-32603, "Bad address".into()));
    assert_eq!(
        rig.fails("bdev_enable_histogram", json!({"name": "N", "enable": true, "opc": "x"})),
        (-32603, "Invalid Io type".into())
    );
    rig.call("bdev_enable_histogram", json!({"name": "N", "enable": true, "opc": "read"})).unwrap();
    let histogram = rig.call("bdev_get_histogram", json!({"name": "N"})).unwrap();
    let ranges = histogram["max_range"].as_u64().unwrap() - histogram["min_range"].as_u64().unwrap() + 1;
    assert_eq!(histogram["histogram"].as_str().unwrap().len() as u64, (ranges * 128 * 8).div_ceil(3) * 4);
    rig.call("bdev_set_qd_sampling_period", json!({"name": "N", "period": 1000})).unwrap();
    assert_eq!(
        rig.call("bdev_get_iostat", json!({"names": ["N"]})).unwrap()["bdevs"][0]["queue_depth_polling_period"],
        1000
    );
    let dump = block_on(config::dump(&rig.app));
    let again = Rig::new();
    block_on(Config::parse(dump.as_bytes()).unwrap().apply(&again.app, false)).unwrap();
    assert_eq!(block_on(config::dump(&again.app)), dump);
}
