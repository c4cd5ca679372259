//! Disaggregation: one daemon serves on what another one owns. The lower one is killed with SIGKILL again and again under
//! verified load on the upper one.
//!
//! `TWO_DAEMONS_KILLS` sets how often (20 unless set).

mod served;

use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;
use served::verified::{self, PATIENCE, attach, call, ended, grown, journaled};
use served::{NQN, Place, text};

/// Seconds after which the upper daemon gives the lower one up.
const LOSS: u64 = 12;

/// Of each load that is met by kills: enough for several.
const SECONDS: f64 = 6.0;

/// Waits until the journal has more than so many bytes. False: the load ended first.
fn goes_on(place: &Place, load: &mut Child, bytes: u64, what: &str) -> bool {
    let start = Instant::now();
    while journaled(place) <= bytes {
        if load.try_wait().expect("wait").is_some() {
            return false;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: nothing is written any more");
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Verified writes for `seconds`.
fn load(upper: &Place, seconds: f64, seed: u64) -> Child {
    verified::load(upper, &format!("-o 4K --span 8M -t {seconds} --fua 20 --flush-every 64 --seed {seed}"))
}

/// Writes that the journal says were acknowledged: all are there, seen through `place`.
fn check(upper: &Place, place: &Place) -> u64 {
    verified::checked_by(place, upper, "", "what was written")["acknowledged"].as_u64().expect("a count")
}

#[test]
fn a_daemon_on_a_namespace_of_another_one_loses_nothing_however_often_that_is_killed() {
    let kills = std::env::var("TWO_DAEMONS_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    // With an identity that it keeps: a namespace with another one is another namespace.
    let file = r#"{"method": "bdev_uring_create", "params": {"name": "D", "filename": "DIR/disk", "block_size": 512,
        "uuid": "7c1f3f6a-58d6-4a0e-9d5f-3f0a5b7f2c11"}}"#;
    let lower = Place::new("two-lower", file, &["D"]);
    std::fs::write(lower.dir.join("disk"), vec![0; 16 << 20]).expect("a file to serve");
    let remote = json!({"method": "bdev_nvme_attach_controller", "params": attach("Nvme0", &lower, LOSS)});
    let upper = Place::new("two-upper", &remote.to_string(), &["Nvme0n1"]);
    let mut below = lower.daemon();
    let _above = upper.daemon();

    // A kill counts if the same load wrote before it and, with the lower daemon back, after it: whatever takes how long, that load met it.
    let (mut met, mut tries, mut loads) = (0, 0, 0);
    while met < kills {
        let before = journaled(&upper);
        let mut running = load(&upper, SECONDS, loads);
        loads += 1;
        let mut what = format!("load {loads}");
        grown(&upper, &mut running, before, &what);
        while met < kills {
            what = format!("load {loads}, try {tries}, after {met} kills");
            std::thread::sleep(Duration::from_micros(tries * 7919 % 200_000));
            if running.try_wait().expect("wait").is_some() {
                break;
            }
            drop(below); // SIGKILL
            below = lower.daemon();
            tries += 1;
            // What was answered before the kill is in the journal by now: a daemon has started since.
            let before = journaled(&upper);
            if !goes_on(&upper, &mut running, before, &what) {
                break;
            }
            met += 1;
        }
        let out = ended(running, &what);
        assert_eq!(out.status.code(), Some(0), "{what}: the load on the upper daemon must not notice:\n{}", text(&out));
        assert!(tries < 2 * kills + 10, "only {met} of {tries} kills met a load");
    }
    assert_eq!(met, kills, "kills under verified load");
    let acknowledged = check(&upper, &upper);
    assert!(acknowledged > 10 * kills, "{acknowledged} writes were acknowledged");
    assert_eq!(check(&upper, &lower), acknowledged);

    // It stays away for too long: I/O fails, the device goes, and the upper daemon lives.
    let before = journaled(&upper);
    let mut last = load(&upper, 3600.0, kills);
    grown(&upper, &mut last, before, "the last load");
    drop(below);
    let gone = Instant::now();
    let out = ended(last, "the load whose device is gone");
    assert_eq!(
        out.status.code(),
        Some(3),
        "the load has to find its device gone, and nothing wrong before:\n{}",
        text(&out)
    );
    assert!(gone.elapsed() > Duration::from_secs(LOSS / 2), "I/O failed after {:?} already", gone.elapsed());
    let start = Instant::now();
    while call(&upper, "bdev_nvme_get_controllers", json!({})) != json!([]) {
        assert!(start.elapsed() < PATIENCE, "the lost controller is still there");
        std::thread::sleep(Duration::from_millis(20));
    }

    // It is back, and attached again.
    let _below = lower.daemon();
    assert_eq!(call(&upper, "bdev_nvme_attach_controller", attach("Nvme0", &lower, LOSS)), json!(["Nvme0n1"]));
    call(&upper, "nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "Nvme0n1", "nsid": 1}}));
    assert!(check(&upper, &upper) >= acknowledged);
    let out = ended(load(&upper, 0.4, kills + 1), "the load after recovery");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    check(&upper, &upper);
}

/// Who uses the subsystem of `place`, by what it says of its controllers.
fn hosts(place: &Place) -> Vec<(String, String)> {
    let all = call(place, "nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    let field = |c: &serde_json::Value, name: &str| c[name].as_str().expect("a string").to_owned();
    all.as_array().expect("a list").iter().map(|c| (field(c, "hostnqn"), field(c, "hostid"))).collect()
}

#[test]
fn a_daemon_that_was_killed_comes_back_as_the_same_host_and_no_other_daemon_is_it() {
    if !std::fs::read_to_string("/etc/machine-id").is_ok_and(|t| t.trim().len() == 32) {
        return served::void(
            "identity of a daemon",
            "this machine has none in /etc/machine-id: systemd-machine-id-setup writes it",
        );
    }
    let file = r#"{"method": "bdev_malloc_create", "params": {"name": "M", "num_blocks": 8192, "block_size": 512}}"#;
    let lower = Place::new("hosts-lower", file, &["M"]);
    let _below = lower.daemon();
    let mut found = Vec::new();
    for name in ["hosts-upper", "hosts-other"] {
        let remote = json!({"method": "bdev_nvme_attach_controller", "params": attach("Nvme0", &lower, LOSS)});
        let upper = Place::new(name, &remote.to_string(), &["Nvme0n1"]);
        let of_life = || {
            let _above = upper.daemon();
            let mut all = hosts(&lower);
            // The controller of the life before may not have ended yet.
            all.dedup();
            assert_eq!(all.len(), 1, "{all:?}");
            all.remove(0)
        };
        let (first, second) = (of_life(), of_life());
        assert_eq!(first, second, "the same in each life");
        assert_eq!(first.0, format!("nqn.2014-08.org.nvmexpress:uuid:{}", first.1));
        found.push(first);
        let start = Instant::now();
        while !hosts(&lower).is_empty() {
            assert!(start.elapsed() < PATIENCE, "a killed daemon is still connected");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_ne!(found[0], found[1]);
}
