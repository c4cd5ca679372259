//! Methods that need no devices, called as a client would call them.

use std::sync::Arc;

use longshore_rpc::app::{App, Parts, Phase};
use longshore_rpc::config::{self, Config};
use longshore_rpc::exec::block_on;
use longshore_rpc::json::{Json, parse};
use serde_json::{Value, json};

fn call(app: &Arc<App>, method: &str, params: Value) -> Result<Value, (i32, String)> {
    let params = (!params.is_null()).then(|| Json::from_value(&params));
    block_on(app.call(method, params.as_ref())).map_err(|e| (e.code, e.message.into_owned()))
}

fn running() -> Arc<App> {
    let app = App::new(Parts::default());
    block_on(app.init()).unwrap();
    app
}

#[test]
fn methods_have_their_time() {
    let app = App::new(Parts::default());
    let names = |app: &Arc<App>| call(app, "rpc_get_methods", json!({"current": true})).unwrap();
    assert!(names(&app).as_array().unwrap().contains(&json!("iobuf_set_options")));
    assert_eq!(
        call(&app, "framework_get_subsystems", Value::Null).unwrap_err(),
        (-1, "Method may only be called after framework is initialized using framework_start_init RPC.".into())
    );
    assert_eq!(call(&app, "framework_start_init", Value::Null), Ok(json!(true)));
    assert_eq!(call(&app, "framework_wait_init", Value::Null), Ok(json!(true)));
    assert!(!names(&app).as_array().unwrap().contains(&json!("iobuf_set_options")));
    let (code, message) = call(&app, "framework_start_init", Value::Null).unwrap_err();
    assert_eq!(code, -1);
    assert_eq!(
        message,
        "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter and then issue \
         this RPC before the framework_start_init RPC."
    );
    assert_eq!(call(&app, "nope", Value::Null).unwrap_err(), (-32601, "Method not found".into()));
}

#[test]
fn methods_that_are_not_allowed_do_not_exist() {
    let allowed = Some(["rpc_get_methods".to_string()].into());
    let app = App::new(Parts { allowed, ..Parts::default() });
    assert_eq!(call(&app, "rpc_get_methods", Value::Null), Ok(json!(["rpc_get_methods"])));
    assert_eq!(call(&app, "spdk_get_version", Value::Null).unwrap_err(), (-32601, "Method not found".into()));
}

#[test]
fn parameters_are_refused_as_each_module_does() {
    let app = App::new(Parts::default());
    let fails = |method: &str, params: Value| call(&app, method, params).unwrap_err();
    assert_eq!(fails("spdk_get_version", json!({})), (-32602, "spdk_get_version method requires no parameters".into()));
    assert_eq!(fails("log_set_level", json!({"level": 3})), (-32603, "spdk_json_decode_object failed".into()));
    assert_eq!(fails("accel_set_options", json!({"x": 3})), (-32700, "spdk_json_decode_object failed".into()));
    assert_eq!(
        fails("iobuf_set_options", json!({"enable_numa": 1})),
        (-32602, "spdk_json_decode_object failed".into())
    );
    assert_eq!(fails("sock_impl_get_options", json!({"impl_name": "none"})), (-32602, "Invalid parameters".into()));
    assert_eq!(
        fails("bdev_set_options", json!({"bdev_io_pool_size": 1, "bdev_io_cache_size": 1})),
        (-32602, "Pool size 1 too small for cache size 1".into())
    );
    assert_eq!(fails("log_set_flag", json!({"flag": "nope"})), (-32602, "invalid log flag".into()));
    assert_eq!(
        fails("nvmf_set_config", json!({"admin_cmd_passthru": {"sanitize": true}})),
        (-95, "Operation not supported".into())
    );
}

#[test]
fn unknown_subsystems_are_named() {
    let app = running();
    let fails = |params: Value| call(&app, "framework_get_config", params).unwrap_err();
    assert_eq!(fails(json!({"name": "nope"})), (-32602, "Subsystem 'nope' not found".into()));
    assert_eq!(fails(json!({})), (-32602, "Invalid arguments".into()));
}

#[test]
fn a_subsystem_comes_after_those_it_needs() {
    let app = running();
    let list = call(&app, "framework_get_subsystems", Value::Null).unwrap();
    let mut seen = Vec::new();
    for subsystem in list.as_array().unwrap() {
        assert!(subsystem["depends_on"].as_array().unwrap().iter().all(|need| seen.contains(need)), "{subsystem}");
        seen.push(subsystem["subsystem"].clone());
    }
}

#[test]
fn options_come_back_as_they_were_set() {
    let app = App::new(Parts::default());
    call(&app, "iobuf_set_options", json!({"small_pool_count": 4096})).unwrap();
    call(&app, "sock_impl_set_options", json!({"impl_name": "posix", "enable_quickack": true})).unwrap();
    call(&app, "nvmf_set_crdt", json!({"crdt2": 7})).unwrap();
    call(&app, "iscsi_set_options", json!({"node_base": "iqn.x", "max_sessions": 4})).unwrap();
    block_on(app.init()).unwrap();
    call(&app, "fsdev_set_opts", json!({"fsdev_io_pool_size": 1024, "fsdev_io_cache_size": 16})).unwrap();
    call(&app, "bdev_nvme_set_hotplug", json!({"enable": true})).unwrap();
    let config = |name: &str| call(&app, "framework_get_config", json!({"name": name})).unwrap();
    assert_eq!(
        config("iobuf")[0]["params"],
        json!({"small_pool_count": 4096, "large_pool_count": 1024, "small_bufsize": 8192, "large_bufsize": 135168, "enable_numa": false})
    );
    assert_eq!(config("sock")[3]["params"]["enable_quickack"], true);
    assert_eq!(
        config("iscsi"),
        json!([{"method": "iscsi_set_options", "params": {"node_base": "iqn.x", "max_sessions": 4}}])
    );
    assert_eq!(config("fsdev")[0]["params"], json!({"fsdev_io_pool_size": 1024, "fsdev_io_cache_size": 16}));
    let first = block_on(config::dump(&app));
    let again = App::new(Parts::default());
    block_on(Config::parse(first.as_bytes()).unwrap().apply(&again, false)).unwrap();
    assert_eq!(again.phase(), Phase::Runtime);
    assert_eq!(block_on(config::dump(&again)), first, "a dump that is loaded dumps the same");
}

#[test]
fn a_change_is_saved_before_it_is_answered() {
    let dir = std::env::temp_dir().join(format!("longshore-save-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("config.json");
    let app = App::new(Parts { save_to: Some(path.clone()), ..Parts::default() });
    block_on(app.init()).unwrap();
    call(&app, "log_get_level", Value::Null).unwrap();
    assert!(!path.exists(), "asking changes nothing");
    call(&app, "bdev_raid_set_options", json!({"process_window_size_kb": 512})).unwrap();
    let saved = parse(&std::fs::read(&path).unwrap()).unwrap().to_value();
    assert!(saved.to_string().contains(r#""process_window_size_kb":512"#));
    app.save_to(Some(dir.join("missing").join("config.json")));
    let (code, message) = call(&app, "bdev_raid_set_options", json!({})).unwrap_err();
    assert_eq!(code, -32603);
    assert!(message.contains("not saved"), "{message}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_bad_configuration_is_explained() {
    let fault = |text: &str| {
        let app = App::new(Parts::default());
        match Config::parse(text.as_bytes()) {
            Ok(config) => block_on(config.apply(&app, false)).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(fault("{"), "not JSON: the text ends in the middle of a value near byte 1");
    assert_eq!(fault("{}"), "it has no array 'subsystems' at its top");
    let unknown = fault(r#"{"subsystems":[{"subsystem":"bdev","config":[{"method":"nope"}]}]}"#);
    assert!(unknown.starts_with("nope of subsystem bdev failed: Method not found (code -32601)"), "{unknown}");
    let app = App::new(Parts::default());
    let text = r#"{"subsystems":[{"subsystem":"iobuf","config":[{"method":"nope"},[{"method":"accel_set_options","params":{"task_count":9}}]]},{"subsystem":"nbd","config":null}],"other":1}"#;
    block_on(Config::parse(text.as_bytes()).unwrap().apply(&app, true)).unwrap();
    assert_eq!(app.options.accel.lock().unwrap().task_count, 9);
}
