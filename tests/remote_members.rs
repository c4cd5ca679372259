//! Arrays on members of other machines: two lower daemons serve six files over NVMe/TCP, an upper one makes 4+2 of them and serves that. Under verified
//! load the lower daemon that holds two members is killed, for a moment, for longer than a member may take, and until its controller is given up;
//! then the upper one, too, which starts again from its saved configuration, also without the two members. Nothing is lost, and each time the array becomes whole again.

mod served;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use served::verified::{self, PATIENCE, attach, call, checked, ended, grown, journaled};
use served::{Daemon, NQN, Place, rpc, text};

/// Bytes of a file.
const DISK: u64 = 24 << 20;
/// Data and parity strips of the array; the second lower daemon holds as many members as there is parity.
const K: usize = 4;
const M: usize = 2;
/// Milliseconds that a member may take. A member of the daemon that stays must not fail because the machine is busy.
const MEMBER: u64 = 3000;
/// Seconds after which the upper daemon gives up a controller, where it is to.
const LOSS: u64 = 2;

/// A lower daemon's place with `n` files.
fn lower(test: &str, n: usize, number: u64) -> Place {
    let disk = |i| {
        // An identity that it keeps: a namespace with another one is another namespace.
        let uuid = format!("7c1f3f6a-58d6-4a0e-9d5f-3f0a5b7f{number:02x}{i:02x}");
        let params =
            json!({"name": format!("d{i}"), "filename": format!("DIR/disk{i}"), "block_size": 512, "uuid": uuid});
        json!({"method": "bdev_uring_create", "params": params}).to_string()
    };
    // As saved configurations end it: whatever is to be found on the devices is.
    let examined = json!({"method": "bdev_wait_for_examine"}).to_string();
    let calls: Vec<String> = (0..n).map(disk).chain([examined]).collect();
    let names: Vec<String> = (0..n).map(|i| format!("d{i}")).collect();
    let place = Place::new(test, &calls.join(",\n"), &names.iter().map(String::as_str).collect::<Vec<_>>());
    for i in 0..n {
        let disk = std::fs::File::create(place.dir.join(format!("disk{i}"))).expect("a disk");
        disk.set_len(DISK).expect("room for a disk");
    }
    place
}

fn array(upper: &Place) -> Value {
    call(upper, "bdev_ec_get_bdevs", json!({"name": "Ec0"}))[0].take()
}

/// The array, once it is as `until` says.
fn array_when(upper: &Place, what: &str, until: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let a = array(upper);
        if until(&a) {
            return a;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {a:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn whole(upper: &Place, what: &str) {
    array_when(upper, what, |a| a["failed_count"] == 0 && a["replace_in_progress"] == false);
}

/// The array becomes whole; failed members whose devices stayed are asked for.
fn mend(upper: &Place, what: &str) {
    array_when(upper, what, |a| {
        if a["base_bdevs"].as_array().is_some_and(|all| all.iter().any(|m| m["state"] == "failed")) {
            // Not yet, as long as the device is away.
            let _ = rpc(upper, "bdev_ec_start_rebuild", &json!({"ec_name": "Ec0"}));
        }
        a["failed_count"] == 0 && a["replace_in_progress"] == false
    });
}

/// Members that are not in sync.
fn lost(a: &Value) -> Vec<usize> {
    let members = a["base_bdevs"].as_array().expect("members");
    (0..members.len()).filter(|&slot| members[slot]["state"] != "normal").collect()
}

/// Verified writes until the load is told to end, or its target is gone.
fn load(upper: &Place, seed: u64) -> Child {
    verified::load(upper, &format!("-o 16K --span 16M -t 3600 --fua 10 --flush-every 32 --seed {seed}"))
}

/// Waits until `load` has written more.
fn writes(upper: &Place, load: &mut Child, what: &str) {
    grown(upper, load, journaled(upper) + 4096, what);
}

/// Nobody is connected any more: a queue pair is there until what the daemon had received on it is done, also when its host has died. `docs/ec.md` says why
/// an array must not be started before.
fn drained(place: &Place) {
    let start = Instant::now();
    let pairs = || call(place, "nvmf_subsystem_get_qpairs", json!({"nqn": NQN}));
    while pairs() != json!([]) {
        assert!(start.elapsed() < PATIENCE, "requests of who is gone do not end: {}", pairs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the load, which has to run still: it ends by itself if anything is wrong. All that was acknowledged is there.
fn stop(upper: &Place, mut load: Child, what: &str) {
    if load.try_wait().expect("wait").is_some() {
        panic!("{what}: the load must not notice:\n{}", text(&ended(load, what)));
    }
    load.kill().expect("it runs");
    ended(load, what);
    drained(upper);
    check(upper, "", what);
}

/// All that was acknowledged is there, or, with an option that says so, all that a flush covered; and it stays as it is read now.
fn check(upper: &Place, option: &str, what: &str) {
    checked(upper, &format!("{option} --verify-settle"), what);
}

/// Strips of all stripes agree.
fn scrub(upper: &Place, what: &str) {
    call(upper, "bdev_ec_start_scrub", json!({"ec_name": "Ec0", "max_stripes_per_sec": 0}));
    let start = Instant::now();
    let found = loop {
        let found = call(upper, "bdev_ec_get_scrub_progress", json!({"ec_name": "Ec0"}));
        if found["state"] == "finished" {
            break found;
        }
        assert!(start.elapsed() < PATIENCE && found["state"] == "running", "{what}: {found}");
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!((&found["mismatches"], &found["unreadable"]), (&json!(0), &json!(0)), "{what}: {found}");
}

/// Saves the configuration as clients do, for the next start.
fn save(upper: &Place) {
    let subsystems = call(upper, "framework_get_subsystems", Value::Null);
    let names = subsystems.as_array().expect("subsystems").iter().map(|s| s["subsystem"].clone());
    let saved = names
        .map(|name| json!({"subsystem": name, "config": call(upper, "framework_get_config", json!({"name": name}))}));
    let config = json!({"subsystems": saved.collect::<Vec<_>>()});
    std::fs::write(upper.dir.join("config.json"), config.to_string()).expect("the configuration");
}

/// The daemon; what it logs is added to a file in its place.
fn start(place: &Place, cpu: &str) -> Daemon {
    let log = std::fs::File::options().create(true).append(true).open(place.dir.join("log")).expect("a log");
    let mut daemon = place.launch(cpu, &[], Stdio::from(log));
    if let Err(said) = daemon.ready() {
        panic!("the daemon said: {said}{}", std::fs::read_to_string(place.dir.join("log")).unwrap_or_default());
    }
    daemon
}

/// As [`start`], whatever of its configuration fails.
fn start_anyway(place: &Place, cpu: &str) -> Daemon {
    place.daemon_on(cpu, &["--json-ignore-init-errors"])
}

/// The place of a daemon with an array of 4+2 on namespaces of others, which are attached by `attached`.
fn upper(test: &str, attached: Vec<Value>, bases: Vec<String>, options: Value) -> Place {
    let mut calls = vec![json!({"method": "bdev_ec_set_options", "params": options})];
    calls.extend(attached.into_iter().map(|a| json!({"method": "bdev_nvme_attach_controller", "params": a})));
    calls.push(json!({"method": "bdev_ec_create", "params": {"name": "Ec0", "data_chunk_count": K,
        "parity_chunk_count": M, "strip_size_kb": 32, "base_bdevs": bases}}));
    let config: Vec<String> = calls.iter().map(Value::to_string).collect();
    Place::new(test, &config.join(",\n"), &["Ec0"])
}

/// The files of all `places` are members of one sound array.
fn sound(places: &[(&Place, usize)]) {
    let files = places.iter().flat_map(|(place, n)| (0..*n).map(|i| place.dir.join(format!("disk{i}"))));
    let out = Command::new(env!("CARGO_BIN_EXE_longshore")).arg("check").args(files).output().expect("the check runs");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
}

/// The load ends because its target is gone, and nothing was wrong before.
fn died(load: Child, what: &str) {
    let out = ended(load, what);
    assert_eq!(out.status.code(), Some(3), "{what}: the load has to find its target gone:\n{}", text(&out));
}

#[test]
fn an_array_on_members_of_other_daemons_outlives_each_of_them_and_its_own_and_becomes_whole() {
    let (most, some) = (lower("remote-most", K, 1), lower("remote-some", M, 2));
    let bases = (1..=K).map(|i| format!("An{i}")).chain((1..=M).map(|i| format!("Bn{i}")));
    let attached = vec![attach("A", &most, 3600), attach("B", &some, 3600)];
    let options = json!({"member_timeout_ms": MEMBER, "assemble_timeout_sec": 1});
    let upper = upper("remote-upper", attached, bases.collect(), options);
    let (first, last) = (served::cpus().swap_remove(0), served::cpus().pop().expect("a CPU"));
    let most_daemon = start(&most, &first);
    let mut below = start(&some, &first);
    let mut above = start(&upper, &last);
    let b: Vec<usize> = (K..K + M).collect();

    // For a moment: who asks for its members waits.
    let mut running = load(&upper, 1);
    for round in 0..2 {
        writes(&upper, &mut running, "before a short outage");
        drop(below); // SIGKILL
        below = start(&some, &first);
        writes(&upper, &mut running, &format!("after short outage {round}"));
    }
    mend(&upper, "after short outages");

    // For longer than a member may take: it fails, and is taken back when that is asked for.
    drop(below);
    let a = array_when(&upper, "an outage", |a| lost(a) == b);
    assert_eq!(a["offline"], false);
    writes(&upper, &mut running, "without two members");
    below = start(&some, &first);
    mend(&upper, "after an outage");
    stop(&upper, running, "outages");
    scrub(&upper, "after outages");

    // Until its controller is given up: its devices go, and when they come again so do the members, by themselves.
    call(&upper, "bdev_nvme_detach_controller", json!({"name": "B"}));
    call(&upper, "bdev_nvme_attach_controller", attach("B", &some, LOSS));
    whole(&upper, "members that were detached");
    let mut running = load(&upper, 2);
    writes(&upper, &mut running, "before a loss");
    drop(below);
    let began = Instant::now();
    while call(&upper, "bdev_nvme_get_controllers", Value::Null).as_array().is_some_and(|all| all.len() > 1) {
        assert!(began.elapsed() < PATIENCE, "the controller is not given up");
        std::thread::sleep(Duration::from_millis(20));
    }
    array_when(&upper, "a loss", |a| lost(a) == b);
    writes(&upper, &mut running, "after a loss");
    below = start(&some, &first);
    call(&upper, "bdev_nvme_attach_controller", attach("B", &some, 3600));
    whole(&upper, "after a loss");
    writes(&upper, &mut running, "whole again");

    // The upper daemon dies with the lower one, and starts without that.
    save(&upper);
    drop(above);
    died(running, "the load on the daemon that died");
    drop(below);
    drained(&most);
    above = start_anyway(&upper, &last);
    array_when(&upper, "a start without two members", |a| lost(a) == b);
    check(&upper, "--verify-power-loss", "a start without two members");
    let mut running = load(&upper, 3);
    writes(&upper, &mut running, "started without two members");
    let below = start(&some, &first);
    call(&upper, "bdev_nvme_attach_controller", attach("B", &some, 3600));
    // It dies again, while the members are brought up to date or after.
    writes(&upper, &mut running, "with members that are brought up to date");
    drop(above);
    died(running, "the load on the daemon that died again");
    drained(&most);
    drained(&some);
    let above = start(&upper, &last);
    check(&upper, "--verify-power-loss", "after the upper daemon died");
    whole(&upper, "after the upper daemon died");
    scrub(&upper, "after the upper daemon died");
    check(&upper, "", "after all");

    assert!(above.stop().success(), "the daemon does not end well");
    drop((below, most_daemon));
    sound(&[(&most, K), (&some, M)]);
}

#[test]
fn a_daemon_that_serves_all_members_is_killed_and_takes_the_array_for_none_of_its_own() {
    let place = lower("remote-all", K + M, 3);
    let options = json!({"assemble_timeout_sec": 1});
    let bases = (1..=K + M).map(|i| format!("An{i}")).collect();
    let upper = upper("remote-upper-of-all", vec![attach("A", &place, 3600)], bases, options);
    let (first, last) = (served::cpus().swap_remove(0), served::cpus().pop().expect("a CPU"));
    let mut below = start(&place, &first);
    let above = start(&upper, &last);
    let mut running = load(&upper, 1);
    for round in 0..2 {
        writes(&upper, &mut running, "before an outage");
        drop(below); // SIGKILL
        below = start(&place, &first);
        assert_eq!(call(&place, "bdev_ec_get_bdevs", Value::Null), json!([]), "round {round}");
        writes(&upper, &mut running, &format!("after outage {round}"));
    }
    whole(&upper, "after outages of all members");
    stop(&upper, running, "outages of all members");
    assert!(above.stop().success(), "the daemon does not end well");
    drop(below);
    sound(&[(&place, K + M)]);
}
