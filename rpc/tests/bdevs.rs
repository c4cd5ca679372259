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
        self.runtime.take().unwrap().stop();
    }
}

#[test]
fn a_malloc_device_is_made_listed_and_deleted() {
    let rig = Rig::running();
    let make = json!({"name": "Malloc0", "num_blocks": 16384, "block_size": 4096});
    assert_eq!(rig.call("bdev_malloc_create", make.clone()), Ok(json!("Malloc0")));
    assert_eq!(rig.fails("bdev_malloc_create", make), (-17, "File exists".into()));
    assert_eq!(rig.call("bdev_malloc_create", json!({"num_blocks": 8, "block_size": 512})), Ok(json!("Malloc1")));
    let bad = (-32603, "spdk_json_decode_object failed".to_string());
    assert_eq!(rig.fails("bdev_malloc_create", json!({"num_blocks": 16384})), bad);
    assert_eq!(rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": "16", "block_size": 512})), bad);
    assert_eq!(rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": 16, "block_size": 512, "nope": 1})), bad);
    assert_eq!(rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": 16, "block_size": 500})), (-22, "Invalid argument".into()));
    assert_eq!(
        rig.fails("bdev_malloc_create", json!({"name": "x", "num_blocks": 16, "block_size": 512, "dif_type": 1})),
        (-95, "Operation not supported".into())
    );
    let bdev = &rig.call("bdev_get_bdevs", json!({"name": "Malloc0"})).unwrap()[0];
    assert_eq!((&bdev["product_name"], &bdev["claimed"], &bdev["num_blocks"]), (&json!("Malloc disk"), &json!(false), &json!(16384)));
    assert_eq!(bdev["aliases"][0], bdev["uuid"]);
    assert_eq!(rig.fails("bdev_null_delete", json!({"name": "Malloc0"})), (-19, "No such device".into()));
    assert_eq!(rig.call("bdev_malloc_delete", json!({"name": "Malloc0"})), Ok(json!(true)));
    assert_eq!(rig.fails("bdev_malloc_delete", json!({"name": "Malloc0"})), (-19, "No such device".into()));
    assert_eq!(rig.fails("bdev_get_bdevs", json!({"name": "Malloc0"})), (-19, "No such device".into()));
    let kinds: Vec<Value> = rig.call("notify_get_notifications", json!({})).unwrap().as_array().unwrap().iter().map(|n| n["type"].clone()).collect();
    assert_eq!(kinds, ["bdev_register", "bdev_register", "bdev_unregister"]);
}

#[test]
fn a_layer_may_be_asked_for_before_its_base_and_goes_with_it() {
    let rig = Rig::running();
    assert_eq!(rig.call("bdev_passthru_create", json!({"name": "PT0", "base_bdev_name": "Null0"})), Ok(json!("PT0")));
    assert_eq!(rig.fails("bdev_passthru_create", json!({"name": "PT0", "base_bdev_name": "Null0"})), (-17, "File exists".into()));
    assert_eq!(rig.fails("bdev_get_bdevs", json!({"name": "PT0"})).0, -19);
    rig.call("bdev_null_create", json!({"name": "Null0", "num_blocks": 256, "block_size": 4096})).unwrap();
    let bdev = rig.call("bdev_get_bdevs", json!({"name": "PT0"})).unwrap();
    assert_eq!(bdev[0]["driver_specific"], json!({"passthru": {"name": "PT0", "base_bdev_name": "Null0"}}));
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "Null0"})).unwrap()[0]["claim_type"], "exclusive_write");
    assert_eq!(rig.fails("bdev_passthru_create", json!({"name": "PT1", "base_bdev_name": "Null0"})).0, -1, "claimed");
    assert_eq!(rig.call("bdev_null_resize", json!({"name": "Null0", "new_size": 2})), Ok(json!(true)));
    assert_eq!(rig.call("bdev_get_bdevs", json!({"name": "PT0"})).unwrap()[0]["num_blocks"], 512, "a layer grows with its base");
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
    first.call("bdev_malloc_create", json!({"name": "M", "num_blocks": 64, "block_size": 512, "md_size": 8, "md_interleave": true})).unwrap();
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
    assert_eq!(rig.call("bdev_get_iostat", json!({"names": ["N"], "per_channel": true})).unwrap()["channels"], json!([]));
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
