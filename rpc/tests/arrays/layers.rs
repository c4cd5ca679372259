//! Members that are layers on other devices.

use super::*;

/// How often a daemon is started on one configuration.
const STARTS: usize = 20;

fn entry(method: &str, params: Value) -> Value {
    json!({"method": method, "params": params})
}

/// The layer on the device of disk `i`, and its name.
fn layer(i: usize) -> (Value, String) {
    let (name, base) = (format!("l{i}"), format!("d{i}"));
    match i % 4 {
        0 => {
            let latency = json!({"name": name, "base_bdev_name": base, "avg_read_latency": 0, "p99_read_latency": 0,
                "avg_write_latency": 0, "p99_write_latency": 0});
            (entry("bdev_delay_create", latency), name)
        }
        1 => (entry("bdev_error_create", json!({"base_name": base})), format!("EE_{base}")),
        2 => (entry("bdev_passthru_create", json!({"name": name, "base_bdev_name": base})), name),
        _ => (entry("bdev_volatile_create", json!({"name": name, "base_bdev_name": base, "seed": 7})), name),
    }
}

/// The subsystem of a configuration that has `calls`, which make the arrays.
fn apply(rig: &Rig, calls: &[Value]) {
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": calls}]}).to_string();
    block_on(Config::parse(config.as_bytes()).unwrap().apply(&rig.app, false)).unwrap_or_else(|e| panic!("{e}"));
}

fn names(array: &Value) -> Vec<&str> {
    array["base_bdevs"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap()).collect()
}

#[test]
fn a_configuration_that_makes_devices_before_their_layers_starts_the_array_on_the_layers_each_time() {
    let disks = Disks::new("layers", 6);
    let file =
        |i| entry("bdev_uring_create", json!({"name": format!("d{i}"), "filename": disks.path(i), "block_size": 512}));
    let examined = entry("bdev_wait_for_examine", Value::Null);
    let mut calls: Vec<Value> = (0..6).map(file).collect();
    // Asked for at a moment at which all that an array needs is there, but for its layers.
    calls.push(examined.clone());
    calls.extend((0..6).map(|i| layer(i).0));
    let members: Vec<String> = (0..6).map(|i| layer(i).1).collect();
    let key = json!({"name": "layers", "cipher": "AES_XTS", "key": "11".repeat(32), "key2": "22".repeat(32)});
    let crypto = json!({"name": "C", "base_bdev_name": "Ec0", "key_name": "layers"});
    let mut saved = String::new();
    for start in 0..STARTS {
        let rig = Rig::new();
        block_on(rig.app.init()).unwrap();
        rig.call("accel_crypto_key_create", key.clone()).unwrap();
        let mut calls = calls.clone();
        if start == 0 {
            let create = json!({"name": "Ec0", "data_chunk_count": 4, "parity_chunk_count": 2, "strip_size_kb": 4, "base_bdevs": members});
            calls.push(entry("bdev_ec_create", create));
        }
        calls.push(entry("bdev_crypto_create", crypto.clone()));
        calls.push(examined.clone());
        apply(&rig, &calls);
        let a = rig.array();
        assert_eq!(
            (states(&a), names(&a)),
            (vec!["normal"; 6], members.iter().map(|m| &m[..]).collect()),
            "start {start}"
        );
        let c = rig.call("bdev_get_bdevs", json!({"name": "C"})).unwrap();
        assert_eq!(c[0]["product_name"], json!("crypto"), "start {start}");
        if start == 0 {
            saved = block_on(config::dump(&rig.app));
        }
    }
    for start in 0..STARTS {
        let rig = Rig::new();
        block_on(rig.app.init()).unwrap();
        rig.call("accel_crypto_key_create", key.clone()).unwrap();
        let mut config: Value = serde_json::from_str(&saved).unwrap();
        config["subsystems"].as_array_mut().unwrap().retain(|s| s["subsystem"] == "bdev");
        let text = config.to_string();
        block_on(Config::parse(text.as_bytes()).unwrap().apply(&rig.app, false)).unwrap_or_else(|e| panic!("{e}"));
        let a = rig.array();
        assert_eq!(
            (states(&a), names(&a)),
            (vec!["normal"; 6], members.iter().map(|m| &m[..]).collect()),
            "start {start}"
        );
        assert!(rig.call("bdev_get_bdevs", json!({"name": "C"})).is_ok(), "start {start}");
    }
}

#[test]
fn absent_members_are_not_given_up_on_while_a_configuration_has_more_devices() {
    let disks = Disks::new("tocome", 3);
    drop({
        let rig = Rig::on(&disks, 3);
        rig.call("bdev_ec_create", create()).unwrap();
        rig
    });
    for there in [3, 2] {
        let rig = Rig::new();
        let file = |i: usize| {
            entry("bdev_uring_create", json!({"name": format!("d{i}"), "filename": disks.path(i), "block_size": 512}))
        };
        let mut calls = vec![entry("bdev_ec_set_options", json!({"assemble_timeout_sec": 0}))];
        calls.extend((0..there).map(file));
        calls.push(entry("bdev_wait_for_examine", Value::Null));
        apply(&rig, &calls);
        let lost = 3 - there;
        assert_eq!(
            rig.array()["failed_count"],
            json!(lost),
            "{there} of 3, and nothing is waited for that is not there"
        );
    }
}

#[test]
fn a_saved_configuration_with_settings_of_an_array_that_no_call_makes_is_applied() {
    let disks = Disks::new("settings", 3);
    drop({
        let rig = Rig::on(&disks, 3);
        rig.call("bdev_ec_create", create()).unwrap();
        rig
    });
    let saved = {
        let rig = Rig::on(&disks, 3);
        rig.settle();
        rig.call("bdev_ec_set_rebuild_qos", json!({"ec_name": "Ec0", "paused": true})).unwrap();
        rig.call("bdev_set_qos_limit", json!({"name": "Ec0", "rw_ios_per_sec": 10000})).unwrap();
        rig.call("bdev_enable_histogram", json!({"name": "Ec0", "enable": true})).unwrap();
        block_on(config::dump(&rig.app))
    };
    assert!(!saved.contains("bdev_ec_create") && saved.contains("bdev_ec_set_rebuild_qos"), "{saved}");
    let rig = Rig::new();
    block_on(Config::parse(saved.as_bytes()).unwrap().apply(&rig.app, false)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(states(&rig.array()), ["normal"; 3]);
    assert_eq!(block_on(config::dump(&rig.app)), saved);
}

#[test]
fn a_configuration_that_fails_shows_nobody_a_device_whose_layer_was_to_come() {
    let disks = Disks::new("fails", 3);
    drop({
        let rig = Rig::on(&disks, 3);
        rig.call("bdev_ec_create", create()).unwrap();
        rig
    });
    let rig = Rig::new();
    block_on(rig.app.init()).unwrap();
    let file = |i: usize| {
        entry("bdev_uring_create", json!({"name": format!("d{i}"), "filename": disks.path(i), "block_size": 512}))
    };
    let mut calls = vec![entry("bdev_ec_set_options", json!({"assemble_timeout_sec": 0}))];
    calls.extend((0..3).map(file));
    calls.push(entry("bdev_ec_get_bdevs", json!({"name": "none"})));
    calls.push(layer(2).0);
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": calls}]}).to_string();
    assert!(block_on(Config::parse(config.as_bytes()).unwrap().apply(&rig.app, false)).is_err());
    // Of those that nobody set aside an array may start now, as somebody asks.
    rig.settle();
    let claimed = rig.call("bdev_get_bdevs", json!({"name": "d2"})).unwrap()[0]["claimed"].clone();
    assert_eq!(claimed, json!(false), "nobody was shown it");
}

#[test]
fn a_configuration_that_serves_devices_finds_no_array_on_them_that_another_daemon_has_made() {
    let disks = Disks::new("served", 3);
    drop({
        let rig = Rig::on(&disks, 3);
        rig.call("bdev_ec_create", create()).unwrap();
        rig
    });
    let before: Vec<_> = (0..3).map(|i| std::fs::read(disks.path(i)).unwrap()).collect();
    let nqn = "nqn.2024-01.io.longshore:lower";
    let file = |i: usize| {
        entry("bdev_uring_create", json!({"name": format!("d{i}"), "filename": disks.path(i), "block_size": 512}))
    };
    let mut bdev: Vec<Value> = (0..3).map(file).collect();
    bdev.push(entry("bdev_wait_for_examine", Value::Null));
    let mut nvmf = vec![entry("nvmf_create_subsystem", json!({"nqn": nqn}))];
    let namespace =
        |i| entry("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": {"bdev_name": format!("d{i}")}}));
    nvmf.extend((0..3).map(namespace));
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": bdev}, {"subsystem": "nvmf", "config": nvmf}]});
    {
        let rig = Rig::new();
        let text = config.to_string();
        block_on(Config::parse(text.as_bytes()).unwrap().apply(&rig.app, false)).unwrap_or_else(|e| panic!("{e}"));
        rig.settle();
        assert_eq!(rig.call("bdev_ec_get_bdevs", Value::Null), Ok(json!([])));
        let saved = block_on(config::dump(&rig.app));
        drop(rig);
        let rig = Rig::new();
        block_on(Config::parse(saved.as_bytes()).unwrap().apply(&rig.app, false)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(rig.call("bdev_ec_get_bdevs", Value::Null), Ok(json!([])), "nor of what it saves");
    }
    let after = (0..3).map(|i| std::fs::read(disks.path(i)).unwrap());
    assert!(before.into_iter().zip(after).all(|(b, a)| b == a), "nothing is written");
}
