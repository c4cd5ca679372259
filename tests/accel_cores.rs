//! A daemon with accel cores: an array's large computations are done there, and what it serves is right.

mod served;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use served::verified::{PATIENCE, call, checked, ended, grown, journaled, load, written};
use served::{Place, cpus, void};

/// Ec0, 4+2 with strips of 512 KiB on six files, served with requests of up to a mebibyte.
fn place(test: &str) -> Place {
    let disk = |i| json!({"method": "bdev_uring_create", "params": {"name": format!("d{i}"), "filename": format!("DIR/disk{i}"), "block_size": 4096}});
    let mut calls: Vec<Value> = (0..6).map(disk).collect();
    let bases: Vec<String> = (0..6).map(|i| format!("d{i}")).collect();
    calls.push(
        json!({"method": "bdev_ec_create", "params": {"name": "Ec0", "data_chunk_count": 4, "parity_chunk_count": 2,
        "strip_size_kb": 512, "base_bdevs": bases, "uuid": "0a4b8f0e-6f5b-4f0c-8a50-7d0d1a2c3e50"}}),
    );
    let config: Vec<String> = calls.iter().map(Value::to_string).collect();
    let place = Place::new(test, &config.join(",\n"), &["Ec0"]);
    let path = place.dir.join("config.json");
    let config = std::fs::read_to_string(&path).expect("the configuration");
    let large = config.replace(r#""trtype": "TCP"}}"#, r#""trtype": "TCP", "max_io_size": 1048576}}"#);
    assert!(large != config);
    std::fs::write(path, large).expect("the configuration");
    for i in 0..6 {
        let disk = std::fs::File::create(place.dir.join(format!("disk{i}"))).expect("a disk");
        disk.set_len(64 << 20).expect("room for a disk");
    }
    place
}

/// Verified writes of a mebibyte over the first 32 MiB.
fn write(place: &Place, seed: u64) {
    written(place, &format!("-o 1M --span 32M -d 150 --flush-every 16 --seed {seed}"));
}

fn check(place: &Place) {
    checked(place, "", "what was written");
}

/// How often accel cores did an operation.
fn offloaded(place: &Place, op: &str) -> u64 {
    let stats = call(place, "accel_get_stats", Value::Null);
    let all = stats["operations"].as_array().expect("operations").clone();
    all.iter().find(|o| o["opcode"] == op).map_or(0, |o| o["offloaded"].as_u64().expect("a number"))
}

#[test]
fn an_array_that_encodes_and_decodes_on_an_accel_core_holds_what_was_written() {
    let all = cpus();
    let [first, second, ..] = &all[..] else {
        return void("accel cores of a daemon", "this process may use one CPU only");
    };
    let place = place("accel-cores");
    let daemon = place.daemon_on(first, &["--accel-mask", &format!("[{second}]")]);
    write(&place, 1);
    check(&place);
    assert!(offloaded(&place, "ec_encode") > 0 && offloaded(&place, "crc32c") > 0);
    // Whole stripes are checked, two strips of each decoded.
    call(&place, "bdev_uring_delete", json!({"name": "d1"}));
    call(&place, "bdev_uring_delete", json!({"name": "d4"}));
    write(&place, 2);
    check(&place);
    assert!(offloaded(&place, "ec_decode") > 0);
    let stats = call(&place, "accel_get_stats", Value::Null);
    let core = &stats["cores"][0];
    assert_eq!((core["lcore"].to_string(), core["queued"].as_u64()), (second.clone(), Some(0)), "{stats:#}");
    assert!(core["jobs"].as_u64() > Some(0) && core["num_bytes"].as_u64() > Some(4 << 20), "{stats:#}");
    // One of the members comes back and is rebuilt: without it two of the others can be missed.
    let file = place.dir.join("disk1");
    call(&place, "bdev_uring_create", json!({"name": "d1", "filename": file, "block_size": 4096}));
    let start = Instant::now();
    loop {
        let array = call(&place, "bdev_ec_get_bdevs", json!({"name": "Ec0"}))[0].clone();
        if array["failed_count"] == 1 && array["replace_in_progress"] == false {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{array:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
    call(&place, "bdev_uring_delete", json!({"name": "d0"}));
    check(&place);
    assert!(daemon.stop().success(), "it ends in order");
}

#[test]
fn a_daemon_that_is_told_to_stop_while_accel_cores_compute_ends_in_order_and_loses_nothing() {
    let all = cpus();
    let [first, second, ..] = &all[..] else {
        return void("accel cores of a daemon", "this process may use one CPU only");
    };
    let place = place("accel-stop");
    let options = ["--accel-mask", &format!("[{second}]")];
    for round in 0..3 {
        let daemon = place.daemon_on(first, &options);
        let before = journaled(&place);
        let mut writes = load(&place, &format!("-o 1M --span 32M -t 600 --seed {round}"));
        grown(&place, &mut writes, before + 4096, "writes before the end");
        assert!(offloaded(&place, "ec_encode") > 0);
        assert!(daemon.stop().success(), "it ends in order");
        assert!(!ended(writes, "the load").status.success(), "its target went");
        let daemon = place.daemon_on(first, &options);
        checked(&place, "--verify-settle", "after the end");
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_daemon_whose_accel_mask_cannot_be_had_says_why_and_ends() {
    let place = place("accel-mask");
    for (mask, why) in [
        (format!("[{}]", place.cpu), format!("core {} is one of those that serve requests (-m)", place.cpu)),
        ("[1000]".into(), "--accel-mask: CPU 1000 is not among those this process may run on".into()),
        ("0xz".into(), "--accel-mask: core mask '0xz' is not hexadecimal".into()),
    ] {
        let log = place.dir.join("log");
        let file = std::fs::File::create(&log).expect("a log");
        let mut daemon = place.launch(&place.cpu, &["--accel-mask", &mask], Stdio::from(file));
        assert!(daemon.ready().is_err(), "{mask} was taken");
        let said = std::fs::read_to_string(log).expect("the log");
        assert!(said.contains(&why), "{mask}: {said}");
    }
}
