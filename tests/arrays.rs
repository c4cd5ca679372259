//! Erasure-coded arrays of real daemons, on files.

mod served;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use served::verified::{PATIENCE, checked, written};
use served::{Daemon, Place, rpc, text};

/// Bytes of a disk.
const DISK: u64 = 24 << 20;
/// The UUID of Ec0: with it a configuration starts the array also when members were replaced since it was written.
const UUID: &str = "0a4b8f0e-6f5b-4f0c-8a50-7d0d1a2c3e4f";

/// A daemon's place, with files and devices d0, d1... on them, and Ec0 of `k` and `m` on the first ones.
fn place(test: &str, disks: usize, k: usize, m: usize) -> Place {
    let disk = |i| {
        let params = json!({"name": format!("d{i}"), "filename": format!("DIR/disk{i}"), "block_size": 512});
        json!({"method": "bdev_uring_create", "params": params})
    };
    let mut calls: Vec<Value> = (0..disks).map(disk).collect();
    let bases: Vec<String> = (0..k + m).map(|i| format!("d{i}")).collect();
    calls.push(
        json!({"method": "bdev_ec_create", "params": {"name": "Ec0", "data_chunk_count": k, "parity_chunk_count": m,
        "strip_size_kb": 32, "base_bdevs": bases, "uuid": UUID}}),
    );
    let config: Vec<String> = calls.iter().map(Value::to_string).collect();
    let place = Place::new(test, &config.join(",\n"), &["Ec0"]);
    for i in 0..disks {
        let disk = std::fs::File::create(place.dir.join(format!("disk{i}"))).expect("a disk");
        disk.set_len(DISK).expect("room for a disk");
    }
    place
}

/// The answer to a call.
fn ask(place: &Place, request: &Value) -> Result<Value, (i64, String)> {
    let method = request["method"].as_str().expect("a method");
    rpc(place, method, &request["params"]).map_err(|e| (e["code"].as_i64().expect("a code"), e.to_string()))
}

fn call(place: &Place, method: &str, params: Value) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    ask(place, &request).unwrap_or_else(|(_, said)| panic!("{request}: {said}"))
}

fn array_when(place: &Place, until: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let array = call(place, "bdev_ec_get_bdevs", json!({"name": "Ec0"}))[0].clone();
        if until(&array) {
            return array;
        }
        assert!(start.elapsed() < PATIENCE, "{array:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn whole(place: &Place) -> Value {
    array_when(place, |a| a["failed_count"] == 0 && a["replace_in_progress"] == false)
}

/// Verified writes over the first 8 MiB, and what they left in the journal.
fn write(place: &Place, seed: u64) {
    written(place, &format!("-o 16K --span 8M -d 600 --flush-every 16 --seed {seed}"));
}

fn check(place: &Place) {
    checked(place, "", "what was written");
}

fn pull(place: &Place, device: &str) {
    call(place, "bdev_uring_delete", json!({"name": device}));
}

fn put_back(place: &Place, i: usize) {
    let file = place.dir.join(format!("disk{i}"));
    call(place, "bdev_uring_create", json!({"name": format!("d{i}"), "filename": file, "block_size": 512}));
}

/// Status and words of a daemon that has to end by itself; its socket is not the place's.
fn ends(place: &Place) -> (Option<i32>, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_longshore"))
        .arg("-c")
        .arg(place.dir.join("config.json"))
        .arg("-r")
        .arg(place.dir.join("second.sock"))
        .args(["-m", &format!("[{}]", place.cpu)])
        .stdin(Stdio::null())
        .output()
        .expect("the daemon runs");
    (out.status.code(), text(&out))
}

#[test]
fn a_second_daemon_on_the_same_files_is_refused_and_says_why() {
    let place = place("arrays-second", 3, 2, 1);
    let _first = place.daemon();
    let (code, said) = ends(&place);
    assert_eq!(code, Some(1), "{said}");
    let disk = place.dir.join("disk0").display().to_string();
    let why = format!("bdev '{disk}' is busy: another process has locked it: is a second daemon serving it?");
    assert!(said.contains(&why), "{said}");
}

#[test]
fn a_configuration_that_fails_when_an_array_runs_ends_the_daemon_in_order_and_it_says_why() {
    let place = place("arrays-fails", 3, 2, 1);
    let good = std::fs::read_to_string(place.dir.join("config.json")).expect("the configuration");
    let bad = good.replace(r#""bdev_name": "Ec0""#, r#""bdev_name": "Ec1""#);
    assert!(bad != good);
    std::fs::write(place.dir.join("config.json"), bad).expect("the configuration");
    let (code, said) = ends(&place);
    assert!(code == Some(1) && said.contains("nvmf_subsystem_add_ns of subsystem nvmf failed"), "{code:?}: {said}");
    std::fs::write(place.dir.join("config.json"), good).expect("the configuration");
    let _daemon = place.daemon();
    assert_eq!(call(&place, "bdev_ec_get_bdevs", json!({"name": "Ec0"}))[0]["failed_count"], 0);
}

/// The requests in a section of `docs/ec.md`.
fn requests(section: &str) -> Vec<Value> {
    let text = include_str!("../docs/ec.md");
    let from = text.find(&format!("\n## {section}\n")).expect("the section");
    let section = &text[from + 4..];
    let section = &section[..section.find("\n## ").unwrap_or(section.len())];
    let indented: Vec<&str> = section.lines().filter(|l| l.starts_with("    ")).collect();
    let text = indented.join("\n");
    serde_json::Deserializer::from_str(&text).into_iter().map(|r| r.expect("JSON")).collect()
}

#[test]
fn what_the_documentation_says_to_replace_a_member_works_under_load() {
    let place = place("arrays-replaced", 8, 4, 2);
    let _daemon = place.daemon();
    write(&place, 1);
    let mut requests = requests("Replacing a member").into_iter();
    let mut next = |ids: std::ops::RangeInclusive<u64>| {
        for id in ids {
            let request = requests.next().expect("one more request");
            assert_eq!(request["id"], id);
            match ask(&place, &request) {
                // It may have ended already.
                Err((-2 | -16 | -22, _)) if (4..=6).contains(&id) => {}
                answer => drop(answer.unwrap_or_else(|(_, said)| panic!("{request}: {said}"))),
            }
        }
    };
    pull(&place, "d2");
    next(1..=7);
    write(&place, 2);
    let a = whole(&place);
    assert_eq!(a["base_bdevs"][2]["name"], "d6");
    // A member with errors, and then without.
    pull(&place, "d1");
    put_back(&place, 1);
    whole(&place);
    pull(&place, "d1");
    write(&place, 3);
    let file = place.dir.join("disk1");
    call(&place, "bdev_ec_set_rebuild_qos", json!({"ec_name": "Ec0", "paused": true}));
    call(&place, "bdev_uring_create", json!({"name": "d1", "filename": file, "block_size": 512}));
    ask(&place, &json!({"jsonrpc": "2.0", "id": 1, "method": "bdev_wait_for_examine"})).expect("an answer");
    assert_eq!(call(&place, "bdev_ec_get_rebuild_progress", json!({"ec_name": "Ec0"}))["mode"], "wib");
    next(8..=8);
    call(&place, "bdev_ec_set_rebuild_qos", json!({"ec_name": "Ec0"}));
    whole(&place);
    next(9..=9);
    pull(&place, "d0");
    let a = array_when(&place, |a| a["base_bdevs"][0]["name"] == "d7" && a["failed_count"] == 0);
    assert_eq!(a["spares"], json!([]));
    // All data are on members that joined, if two of the others go.
    pull(&place, "d3");
    pull(&place, "d4");
    check(&place);
    assert!(requests.next().is_none(), "a request that is not tried");
}

/// A daemon whose log goes to a file.
fn logged(place: &Place) -> Daemon {
    let log = std::fs::File::create(place.dir.join("log")).expect("a log");
    let mut daemon = place.launch(&place.cpu, &[], Stdio::from(log));
    if let Err(said) = daemon.ready() {
        panic!("the daemon said: {said}{}", std::fs::read_to_string(place.dir.join("log")).unwrap_or_default());
    }
    daemon
}

#[test]
fn a_rebuild_goes_on_where_it_was_when_the_daemon_was_killed() {
    let place = place("arrays-resumed", 4, 2, 1);
    let daemon = logged(&place);
    // Every stripe holds data.
    let out = place.perf("", "-w write -q 4 -o 64K -d 700").output().expect("the load runs");
    assert!(out.status.success(), "{}", text(&out));
    write(&place, 1);
    pull(&place, "d1");
    write(&place, 2);
    let of = json!({"ec_name": "Ec0"});
    call(&place, "bdev_ec_set_rebuild_qos", json!({"ec_name": "Ec0", "max_stripes_per_sec": 40}));
    call(&place, "bdev_ec_replace_base_bdev", json!({"ec_name": "Ec0", "slot": 1, "new_bdev_name": "d3"}));
    let progress = || call(&place, "bdev_ec_get_rebuild_progress", of.clone());
    let total = progress()["stripes_total"].as_u64().expect("a count");
    let start = Instant::now();
    let killed_at = loop {
        let done = progress()["stripes_done"].as_u64().expect("a count");
        // What was done for some seconds is stored.
        if done >= 160 {
            break done;
        }
        assert!(start.elapsed() < PATIENCE, "{done} stripes of {total} only");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(killed_at < total, "{killed_at} of {total}");
    drop(daemon); // SIGKILL
    let _daemon = logged(&place);
    let a = whole(&place);
    assert_eq!(a["base_bdevs"][1]["name"], "d3");
    let log = std::fs::read_to_string(place.dir.join("log")).expect("the log");
    let resumed = log.lines().find_map(|l| l.split_once("member 1 is rebuilt from stripe ")?.1.split_once(" on:"));
    let at: u64 = resumed.and_then(|(n, _)| n.parse().ok()).unwrap_or_else(|| panic!("{log}"));
    assert!(at > 0 && at <= killed_at + 16, "it went on at {at}, and was at {killed_at}");
    pull(&place, "d0");
    check(&place);
}
