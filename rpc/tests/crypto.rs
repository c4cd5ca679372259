//! Engines, keys and encrypting devices through the methods.

use longshore_bdev::Registry;
use longshore_reactor::{Options, Runtime};
use longshore_rpc::app::{App, Parts};
use longshore_rpc::config;
use longshore_rpc::exec::block_on;
use longshore_rpc::json::Json;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

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
        block_on(self.app.call(method, params.as_ref())).map_err(|e| {
            let data = e.data.map_or_else(String::new, |data| format!(" {data}"));
            (e.code, format!("{}{data}", e.message))
        })
    }

    fn fails(&self, method: &str, params: Value, code: i32, parts: &[&str]) {
        let (got, text) = self.call(method, params).unwrap_err();
        assert_eq!(got, code, "{text}");
        for part in parts {
            assert!(text.contains(part), "no '{part}' in {text}");
        }
        assert!(!text.contains(KEY) && !text.contains(KEY2), "{text}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        block_on(self.app.shutdown());
        self.runtime.take().unwrap().stop();
    }
}

const KEY: &str = "00112233445566778899aabbccddeeff";
const KEY2: &str = "102132435465768798a9bacbdcedfe0f";

fn key(name: &str) -> Value {
    json!({"name": name, "cipher": "AES_XTS", "key": KEY, "key2": KEY2})
}

#[test]
fn keys_are_made_listed_without_what_they_are_made_of_and_destroyed() {
    let rig = Rig::running();
    assert_eq!(rig.call("accel_crypto_key_create", key("k0")), Ok(json!(true)));
    rig.fails("accel_crypto_key_create", key("k0"), -32602, &["failed to create DEK, rc -17"]);
    let shown = json!([{"name": "k0", "cipher": "AES_XTS", "key_bits": 128, "tweak_mode": "SIMPLE_LBA"}]);
    assert_eq!(rig.call("accel_crypto_keys_get", Value::Null), Ok(shown.clone()));
    assert_eq!(rig.call("accel_crypto_keys_get", json!({"key_name": "k0"})), Ok(shown));
    rig.fails("accel_crypto_keys_get", json!({"key_name": "k1"}), -32602, &["key was not found"]);
    rig.fails("accel_crypto_key_destroy", json!({"key_name": "k1"}), -32602, &["No key object found"]);
    assert_eq!(rig.call("accel_crypto_key_destroy", json!({"key_name": "k0"})), Ok(json!(true)));
    assert_eq!(rig.call("accel_crypto_keys_get", Value::Null), Ok(json!([])));
}

#[test]
fn keys_that_are_no_good_are_refused_and_not_repeated() {
    let rig = Rig::running();
    let no = |changes: Value, code, parts: &[&str]| {
        let mut params = key("k");
        for (name, value) in changes.as_object().unwrap() {
            params[name] = value.clone();
        }
        params.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        rig.fails("accel_crypto_key_create", params, code, parts);
    };
    no(json!({"key2": KEY}), -32602, &["rc -22", "equal"]);
    no(json!({"key2": format!("{KEY2}00")}), -32602, &["rc -22", "AES_XTS takes two keys"]);
    no(json!({"key": "zz", "key2": "yy"}), -32602, &["rc -22", "hexadecimal"]);
    no(json!({"key2": null}), -32602, &["rc -22", "key2"]);
    no(json!({"cipher": "AES_CBC"}), -32602, &["rc -95", "AES_XTS"]);
    no(json!({"cipher": "ROT13"}), -32700, &["spdk_json_decode_object failed"]);
    no(json!({"key": [KEY]}), -32700, &["spdk_json_decode_object failed"]);
    no(json!({"tweak_mode": "NONE"}), -32700, &["spdk_json_decode_object failed"]);
    no(json!({"key_file": "/nowhere"}), -32602, &["rc -22", "key_file"]);
    no(json!({"key": null, "key2": null, "key_file": "/nowhere"}), -32602, &["rc -22", "/nowhere"]);
    assert_eq!(rig.call("accel_crypto_keys_get", Value::Null), Ok(json!([])));
}

#[test]
fn an_encrypting_device_is_made_shown_and_deleted() {
    let rig = Rig::running();
    let make = json!({"base_bdev_name": "Malloc0", "name": "Crypto0", "key_name": "k0"});
    rig.fails("bdev_crypto_create", make.clone(), -32602, &["Key was not found", "k0"]);
    rig.fails("bdev_crypto_create", json!({"name": 3}), -32700, &["Failed to decode crypto disk create parameters."]);
    rig.fails("bdev_crypto_delete", json!({}), -32602, &["Invalid parameters"]);
    rig.call("accel_crypto_key_create", key("k0")).unwrap();
    rig.call("bdev_malloc_create", json!({"name": "Malloc0", "num_blocks": 64, "block_size": 512})).unwrap();
    assert_eq!(rig.call("bdev_crypto_create", make), Ok(json!("Crypto0")));
    let shown = rig.call("bdev_get_bdevs", json!({"name": "Crypto0"})).unwrap();
    assert_eq!(shown[0]["product_name"], "crypto");
    let specific = json!({"base_bdev_name": "Malloc0", "name": "Crypto0", "key_name": "k0", "buffer_waits": 0});
    assert_eq!(shown[0]["driver_specific"]["crypto"], specific);
    assert_eq!(shown[0]["supported_io_types"]["write_zeroes"], true);
    rig.fails("accel_crypto_key_destroy", json!({"key_name": "k0"}), -32602, &["Failed to destroy key, rc -16"]);
    let text = block_on(config::dump(&rig.app));
    assert!(text.contains("bdev_crypto_create") && !text.contains(KEY) && !text.contains("accel_crypto_key_create"));
    assert_eq!(rig.call("bdev_crypto_delete", json!({"name": "Crypto0"})), Ok(json!(true)));
    rig.fails("bdev_crypto_delete", json!({"name": "Crypto0"}), -19, &["No such device"]);
    assert_eq!(rig.call("accel_crypto_key_destroy", json!({"key_name": "k0"})), Ok(json!(true)));
}

#[test]
fn a_key_from_a_file_comes_back_with_a_saved_configuration() {
    let path = std::env::temp_dir().join(format!("longshore-key-{}", std::process::id()));
    std::fs::write(&path, (0..64).collect::<Vec<u8>>()).unwrap();
    let params = json!({"name": "k", "cipher": "AES_XTS", "tweak_mode": "INCR_512_FULL_LBA", "key_file": path});
    let rig = Rig::new();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    rig.fails("accel_crypto_key_create", params.clone(), -32602, &["rc -22", "0640"]);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    // Before the initialisation too.
    rig.call("accel_crypto_key_create", params).unwrap();
    rig.call("accel_assign_opc", json!({"opname": "crc32c", "module": "software"})).unwrap();
    block_on(rig.app.init()).unwrap();
    rig.call("bdev_malloc_create", json!({"name": "M", "num_blocks": 64, "block_size": 4096})).unwrap();
    rig.call("bdev_crypto_create", json!({"base_bdev_name": "M", "name": "C", "key_name": "k"})).unwrap();
    let text = block_on(config::dump(&rig.app));
    let again = Rig::new();
    block_on(config::Config::parse(text.as_bytes()).unwrap().apply(&again.app, false)).unwrap();
    assert_eq!(block_on(config::dump(&again.app)), text);
    let shown = again.call("accel_crypto_keys_get", Value::Null).unwrap();
    assert_eq!((&shown[0]["key_bits"], &shown[0]["tweak_mode"]), (&json!(256), &json!("INCR_512_FULL_LBA")));
    assert!(again.call("bdev_get_bdevs", json!({"name": "C"})).is_ok());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn operations_are_assigned_before_the_start_and_shown_after_it() {
    let rig = Rig::new();
    let assign = |op: &str, module: &str| json!({"opname": op, "module": module});
    rig.fails("accel_assign_opc", assign("crc32c", "dsa"), -32602, &["error assigning opcode", "software"]);
    rig.fails("accel_assign_opc", assign("teleport", "software"), -32602, &["error assigning opcode", "teleport"]);
    rig.fails("accel_assign_opc", assign("compress", "software"), -32602, &["error assigning opcode", "compress"]);
    rig.call("accel_assign_opc", assign("encrypt", "software")).unwrap();
    block_on(rig.app.init()).unwrap();
    rig.fails("accel_assign_opc", assign("encrypt", "software"), -1, &["before framework is initialized"]);
    let all = rig.call("accel_get_opc_assignments", Value::Null).unwrap();
    let spdks = ["copy", "fill", "dualcast", "compare", "crc32c", "copy_crc32c", "encrypt", "decrypt", "xor"];
    assert!(spdks.iter().chain(&["ec_encode", "ec_decode", "ec_update"]).all(|op| all[op] == "software"), "{all}");
    let undone = ["compress", "decompress", "dif_verify", "dix_verify"];
    assert!(undone.iter().all(|op| all.get(op).is_none()), "what no module does is assigned to none: {all}");
    let info = rig.call("accel_get_module_info", Value::Null).unwrap();
    let ops = info[0]["supported ops"].as_array().unwrap();
    assert!(ops.contains(&json!("encrypt")) && !ops.contains(&json!("compress")));
    let can = rig.call("accel_get_capabilities", Value::Null).unwrap();
    let encrypt = can[0]["operations"].as_array().unwrap().iter().find(|o| o["operation"] == "encrypt").unwrap();
    assert_eq!(encrypt["algorithms"], json!(["AES_XTS_128", "AES_XTS_256"]));
    assert_eq!((&encrypt["hardware"], &encrypt["limits"]["block_multiple_bytes"]), (&json!(false), &json!(16)));
    assert_eq!(rig.call("accel_get_stats", Value::Null).unwrap()["operations"], json!([]));
    let text = block_on(config::dump(&rig.app));
    assert!(text.contains("accel_assign_opc"), "{text}");
}
