//! A device that never completes harms nobody but those who use it: RPC and the other namespaces go on, and its removal ends.

mod served;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use served::{NQN, Place, rpc as call, text};

/// Patience with anything that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds that requests of a namespace which goes away have before they are aborted.
const ABORT: u64 = 5;

const BDEVS: &str = r#"
    {"method": "bdev_malloc_create", "params": {"name": "A", "num_blocks": 32768, "block_size": 512}},
    {"method": "bdev_malloc_create", "params": {"name": "B", "num_blocks": 32768, "block_size": 512}},
    {"method": "bdev_malloc_create", "params": {"name": "Good", "num_blocks": 32768, "block_size": 512}},
    {"method": "bdev_malloc_create", "params": {"name": "Spare", "num_blocks": 32768, "block_size": 512}},
    {"method": "bdev_error_create", "params": {"base_name": "A"}},
    {"method": "bdev_error_create", "params": {"base_name": "B"}}"#;

fn ok(place: &Place, method: &str, params: &Value) -> Value {
    call(place, method, params).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
}

/// Hangs everything that `bdev` is asked from now on, and loads it as namespace `nsid`; returns when requests hang.
fn hang(place: &Place, bdev: &str, nsid: u32) -> Child {
    ok(
        place,
        "bdev_error_inject_error",
        &json!({"name": bdev, "io_type": "all", "error_type": "pending", "num": 4_000_000_000u32}),
    );
    ok(place, "bdev_set_qd_sampling_period", &json!({"name": bdev, "period": 1000}));
    let mut perf = place.perf(&format!("ns:{nsid}"), "-q 16 -P 2 -w randrw -t 600");
    let load = perf.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the load starts");
    in_flight(place, bdev, 16);
    load
}

/// Waits until so many requests are in flight on a device.
fn in_flight(place: &Place, bdev: &str, want: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stat = ok(place, "bdev_get_iostat", &json!({"name": bdev}));
        if stat["bdevs"][0]["queue_depth"].as_u64() == Some(want) {
            return;
        }
        assert!(Instant::now() < deadline, "there are not {want} requests on the device: {stat:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Does I/O to a namespace, to its end, without an error.
fn works(place: &Place, nsid: u32) {
    let out = place.perf(&format!("ns:{nsid}"), "-q 8 -P 2 -w randrw -d 2000 -t 60 --json").output().expect("it runs");
    let v: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out)));
    assert_eq!(
        (v["total"]["ios"].as_u64(), v["total"]["errors"].as_u64()),
        (Some(2000), Some(0)),
        "namespace {nsid}: {v:#}"
    );
}

/// Everything that an operator would call while a device hangs.
fn all_is_answered(place: &Place) {
    let nqn = json!({"nqn": NQN});
    for (method, params) in [
        ("bdev_get_bdevs", Value::Null),
        ("bdev_get_iostat", Value::Null),
        ("bdev_get_iostat", json!({"name": "Good", "per_channel": true})),
        ("nvmf_get_subsystems", Value::Null),
        ("nvmf_subsystem_get_controllers", nqn.clone()),
        ("nvmf_subsystem_get_qpairs", nqn),
        ("nvmf_get_stats", Value::Null),
        ("thread_get_stats", Value::Null),
        ("iobuf_get_stats", Value::Null),
        ("framework_get_config", json!({"name": "bdev"})),
        ("framework_get_config", json!({"name": "nvmf"})),
        ("bdev_set_qos_limit", json!({"name": "Good", "rw_ios_per_sec": 1_000_000})),
        ("bdev_set_qos_limit", json!({"name": "Good", "rw_ios_per_sec": 0})),
    ] {
        ok(place, method, &params);
    }
}

/// Adds a namespace, uses it, and removes it.
fn another_comes_and_goes(place: &Place) {
    let nsid = ok(place, "nvmf_subsystem_add_ns", &json!({"nqn": NQN, "namespace": {"bdev_name": "Spare", "nsid": 7}}));
    assert_eq!(nsid, 7);
    works(place, 7);
    assert_eq!(ok(place, "nvmf_subsystem_remove_ns", &json!({"nqn": NQN, "nsid": 7})), true);
}

fn namespaces(place: &Place) -> Vec<u64> {
    let all = ok(place, "nvmf_get_subsystems", &json!({"nqn": NQN}));
    let list = all[0]["namespaces"].as_array().unwrap_or_else(|| panic!("no namespaces in {all:#}")).clone();
    list.iter().map(|n| n["nsid"].as_u64().expect("nsid")).collect()
}

/// Lets `remove` end, which takes until requests are aborted, while everything else goes on.
fn removed_meanwhile(place: &Place, mut load: Child, gone: u64, method: &str, params: Value) {
    std::thread::scope(|s| {
        let removal = s.spawn(|| {
            let start = Instant::now();
            assert_eq!(ok(place, method, &params), true);
            start.elapsed()
        });
        while namespaces(place).contains(&gone) {
            assert!(!removal.is_finished());
        }
        all_is_answered(place);
        works(place, 3);
        another_comes_and_goes(place);
        let took = removal.join().expect("the removal");
        assert!(took >= Duration::from_secs(ABORT), "requests were given {ABORT} s, but {method} took {took:?}");
    });
    let deadline = Instant::now() + PATIENCE;
    while load.try_wait().expect("wait").is_none() {
        assert!(Instant::now() < deadline, "the load of a namespace that is gone does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = load.wait_with_output().expect("its output");
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
}

#[test]
fn a_device_that_hangs_freezes_neither_rpc_nor_other_namespaces_and_can_be_removed() {
    let place = Place::new("hung", BDEVS, &["EE_A", "EE_B", "Good"]);
    let config = place.dir.join("config.json");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    let patient =
        text.replace(r#""trtype": "TCP"}}"#, &format!(r#""trtype": "TCP", "abort_timeout_sec": {ABORT}}}}}"#));
    assert_ne!(patient, text);
    std::fs::write(config, patient).expect("the configuration");
    let _daemon = place.daemon();

    let first = hang(&place, "EE_A", 1);
    // A host that is killed leaves nothing behind.
    let mut killed = hang(&place, "EE_B", 2);
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    in_flight(&place, "EE_B", 0);
    let second = hang(&place, "EE_B", 2);
    all_is_answered(&place);
    works(&place, 3);
    another_comes_and_goes(&place);

    // A namespace is removed, then the device; or the device is removed under the namespace.
    removed_meanwhile(&place, first, 1, "nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 1}));
    assert_eq!(ok(&place, "bdev_error_delete", &json!({"name": "EE_A"})), true);
    removed_meanwhile(&place, second, 2, "bdev_error_delete", json!({"name": "EE_B"}));
    for name in ["A", "B"] {
        assert_eq!(ok(&place, "bdev_malloc_delete", &json!({"name": name})), true);
    }
    assert_eq!(namespaces(&place), [3]);
    works(&place, 3);
    for core in ok(&place, "iobuf_get_stats", &Value::Null).as_array().expect("cores") {
        let classes = core["classes"].as_array().expect("classes");
        assert!(classes.iter().all(|c| c["in_use"] == 0), "buffers are left: {core:#}");
    }
}

#[test]
fn a_queue_pair_whose_host_has_died_is_listed_until_what_it_asked_for_is_done() {
    let mut bdevs: Vec<String> = Vec::new();
    for name in ["A", "B", "C"] {
        let disk = json!({"name": name, "num_blocks": 32768, "block_size": 512});
        bdevs.push(json!({"method": "bdev_malloc_create", "params": disk}).to_string());
        bdevs.push(json!({"method": "bdev_error_create", "params": {"base_name": name}}).to_string());
    }
    let array = json!({"name": "Ec0", "data_chunk_count": 2, "parity_chunk_count": 1, "strip_size_kb": 4,
        "base_bdevs": ["EE_A", "EE_B", "EE_C"]});
    bdevs.push(json!({"method": "bdev_ec_create", "params": array}).to_string());
    let place = Place::new("dying", &bdevs.join(","), &["Ec0"]);
    let _daemon = place.daemon();
    let hangs = json!({"name": "EE_A", "io_type": "write", "error_type": "pending", "num": 4_000_000_000u32});
    ok(&place, "bdev_error_inject_error", &hangs);
    ok(&place, "bdev_set_qd_sampling_period", &json!({"name": "Ec0", "period": 1000}));
    let mut load = place.perf("ns:1", "-q 4 -w randwrite -t 600");
    let mut load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the load starts");
    in_flight(&place, "Ec0", 4);
    load.kill().expect("killed");
    load.wait().expect("ended");
    let pairs = || ok(&place, "nvmf_subsystem_get_qpairs", &json!({"nqn": NQN})).as_array().expect("a list").clone();
    let deadline = Instant::now() + PATIENCE;
    // A write of an array that has begun cannot be taken back.
    loop {
        let all = pairs();
        assert!(!all.is_empty(), "its writes are under way still");
        if all.iter().all(|q| q["state"] == "deactivating") {
            break;
        }
        assert!(Instant::now() < deadline, "nobody notices that the host has died: {all:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Without the member the writes go on.
    ok(&place, "bdev_error_delete", &json!({"name": "EE_A"}));
    while !pairs().is_empty() {
        assert!(Instant::now() < deadline, "they do not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
