//! Disaggregation: one daemon serves on what another one owns. The lower one is killed with SIGKILL again and again under
//! verified load on the upper one.
//!
//! `TWO_DAEMONS_KILLS` sets how often (20 unless set).

mod served;

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use served::{NQN, Place, text};

/// Patience with anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds after which the upper daemon gives the lower one up.
const LOSS: u64 = 12;

/// Calls a daemon.
fn call(place: &Place, method: &str, params: Value) -> Value {
    served::rpc(place, method, &params).unwrap_or_else(|e| panic!("{method}: {e}"))
}

fn address(place: &Place) -> Value {
    let of =
        |key: &str| place.trid.split_whitespace().find_map(|w| w.strip_prefix(key)).expect("in every transport ID");
    json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": of("traddr:"), "trsvcid": of("trsvcid:")})
}

fn attach(lower: &Place) -> Value {
    let mut params = address(lower);
    params["name"] = "Nvme0".into();
    params["subnqn"] = NQN.into();
    params["ctrlr_loss_timeout_sec"] = LOSS.into();
    params["reconnect_delay_sec"] = 1.into();
    params
}

/// Verified writes for `seconds`, journaled.
fn load(upper: &Place, seconds: f64, seed: u64) -> Child {
    upper
        .perf("", &format!("-w verify -q 16 -o 4K --span 8M -t {seconds} --fua 20 --flush-every 64 --seed {seed}"))
        .arg("--verify-journal")
        .arg(upper.dir.join("journal"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the load starts")
}

/// Waits until the load of `seed` has written.
fn writes(upper: &Place, load: &mut Child, before: u64, what: &str) {
    let start = Instant::now();
    while upper.dir.join("journal").metadata().map_or(0, |m| m.len()) <= before.max(32) {
        assert!(start.elapsed() < PATIENCE, "{what}: nothing is written");
        assert!(load.try_wait().expect("wait").is_none(), "{what}: the load ended at once");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn end(load: Child, what: &str) -> (i32, Output) {
    let id = load.id();
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || tx.send(load.wait_with_output()));
    let out = rx.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: the load {id} did not end"));
    let out = out.expect("output");
    (out.status.code().unwrap_or(-1), out)
}

/// Everything that the journal says was acknowledged is there, seen through `place`.
fn check(upper: &Place, place: &Place) -> u64 {
    let mut c = place.perf("", "-q 16 --json --verify-check");
    let out = c.arg(upper.dir.join("journal")).output().expect("the check runs");
    assert!(out.status.success(), "{}", text(&out));
    let v: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    v["acknowledged"].as_u64().expect("a count")
}

#[test]
fn a_daemon_on_a_namespace_of_another_one_loses_nothing_however_often_that_is_killed() {
    let kills = std::env::var("TWO_DAEMONS_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    // With an identity that it keeps: a namespace with another one is another namespace.
    let file = r#"{"method": "bdev_uring_create", "params": {"name": "D", "filename": "DIR/disk", "block_size": 512,
        "uuid": "7c1f3f6a-58d6-4a0e-9d5f-3f0a5b7f2c11"}}"#;
    let lower = Place::new("two-lower", file, &["D"]);
    std::fs::write(lower.dir.join("disk"), vec![0; 16 << 20]).expect("a file to serve");
    let remote = json!({"method": "bdev_nvme_attach_controller", "params": attach(&lower)});
    let upper = Place::new("two-upper", &remote.to_string(), &["Nvme0n1"]);
    let mut below = lower.daemon();
    let _above = upper.daemon();
    let journal = || upper.dir.join("journal").metadata().map_or(0, |m| m.len());

    let mut under_load = 0;
    for round in 0..kills {
        let what = format!("kill {round}");
        let before = journal();
        let mut load = load(&upper, 0.4, round);
        writes(&upper, &mut load, before, &what);
        std::thread::sleep(Duration::from_micros(round * 7919 % 200_000));
        under_load += u64::from(load.try_wait().expect("wait").is_none());
        drop(below); // SIGKILL
        below = lower.daemon();
        let (status, out) = end(load, &what);
        assert_eq!(status, 0, "{what}: the load on the upper daemon must not notice:\n{}", text(&out));
    }
    assert!(4 * under_load > kills, "only {under_load} of {kills} kills met a load");
    let acknowledged = check(&upper, &upper);
    assert!(acknowledged > 10 * kills, "{acknowledged} writes were acknowledged");
    assert_eq!(check(&upper, &lower), acknowledged);

    // It stays away for too long: I/O fails, the device goes, and the upper daemon lives.
    let before = journal();
    let mut last = load(&upper, 3600.0, kills);
    writes(&upper, &mut last, before, "the last load");
    drop(below);
    let gone = Instant::now();
    let (status, out) = end(last, "the load whose device is gone");
    assert_eq!(status, 3, "the load has to find its device gone, and nothing wrong before:\n{}", text(&out));
    assert!(gone.elapsed() > Duration::from_secs(LOSS / 2), "I/O failed after {:?} already", gone.elapsed());
    let start = Instant::now();
    while call(&upper, "bdev_nvme_get_controllers", json!({})) != json!([]) {
        assert!(start.elapsed() < PATIENCE, "the lost controller is still there");
        std::thread::sleep(Duration::from_millis(20));
    }

    // It is back, and attached again.
    let _below = lower.daemon();
    assert_eq!(call(&upper, "bdev_nvme_attach_controller", attach(&lower)), json!(["Nvme0n1"]));
    call(&upper, "nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "Nvme0n1", "nsid": 1}}));
    assert!(check(&upper, &upper) >= acknowledged);
    let (status, out) = end(load(&upper, 0.4, kills + 1), "the load after recovery");
    assert_eq!(status, 0, "{}", text(&out));
    check(&upper, &upper);
}
