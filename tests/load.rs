//! `longshore-perf` against the daemon over NVMe/TCP: what it finds, loads, verifies, and what it says of mistakes.

mod served;

use std::process::Command;

use serde_json::Value;
use served::{NQN, Place, text};

const BDEVS: &str = r#"
    {"method": "bdev_null_create", "params": {"name": "N", "num_blocks": 262144, "block_size": 4096}},
    {"method": "bdev_malloc_create", "params": {"name": "M", "num_blocks": 32768, "block_size": 512}}"#;

fn json(mut command: Command) -> Value {
    let out = command.output().expect("it runs");
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{command:?}: {e}: {}", text(&out)))
}

#[test]
fn a_target_is_found_described_loaded_and_verified() {
    let place = Place::new("load", BDEVS, &["N", "M"]);
    let _daemon = place.daemon();

    let all = place.trid.replace(&format!("subnqn:{NQN}"), "");
    let v = json(place.ask("discover", &all));
    let found =
        v["records"].as_array().expect("records").iter().any(|r| r["subnqn"] == NQN && r["traddr"] == "127.0.0.1");
    assert!(v["kind"] == "discover" && found, "{v:#}");

    let v = json(place.ask("identify", &place.trid));
    assert_eq!((v["kind"].as_str(), v["controller"]["subnqn"].as_str()), (Some("identify"), Some(NQN)));
    let ns = v["namespaces"].as_array().expect("namespaces");
    assert_eq!((ns[0]["block_size"].as_u64(), ns[1]["num_blocks"].as_u64()), (Some(4096), Some(32768)), "{v:#}");

    // Both namespaces, several queue pairs each, digests.
    let v = json(place.perf("", "-q 8 -P 3 -w randrw -M 30 -H -I -d 2000 -t 60 -L --json"));
    assert_eq!((v["total"]["ios"].as_u64(), v["total"]["errors"].as_u64()), (Some(4000), Some(0)), "{v:#}");
    assert!(v["total"]["latency_us"]["p99"].as_f64() > Some(0.0));
    assert_eq!(v["job"]["target"][1]["nsid"], 2);

    // In capsule, by R2T, in pieces, and all kinds of ends.
    for line in ["-o 512 -q 16", "-o 64K -q 4 -P 2", "-o 4K -q 8 -H -I --fua 30 --flush-every 8", "-o 64K -q 2 -I"] {
        let v = json(place.perf("ns:2", &format!("{line} -w verify -d 300 -t 60 --json")));
        assert_eq!((v["writes"].as_u64(), v["mismatches"].as_u64()), (Some(300), Some(0)), "{line}: {v:#}");
    }
    let v = json(place.perf("ns:2", "-o 32K -O 4000 -q 4 -w randrw -d 400 -t 60 --json"));
    assert_eq!((v["total"]["ios"].as_u64(), v["total"]["errors"].as_u64()), (Some(400), Some(0)), "{v:#}");

    // More than the target's queue pairs take: the others wait, and none is forgotten.
    for line in ["-q 300 -P 2 -w randwrite -d 5000 -t 60 --json", "-q 200 --rate 1M -L -t 0.2 --json"] {
        let v = json(place.perf("ns:2", line));
        assert!(v["total"]["ios"].as_u64() > Some(0) && v["total"]["errors"] == 0, "{line}: {v:#}");
    }
    let v = json(place.perf("ns:2", "-o 512 -q 300 -w verify -d 1000 -t 60 --json"));
    assert_eq!((v["writes"].as_u64(), v["mismatches"].as_u64()), (Some(1000), Some(0)), "{v:#}");

    let v = json(place.perf("", "--idle 9 -U 0 -t 0.2 --json"));
    assert_eq!((v["controllers"].as_u64(), v["lost"].as_u64()), (Some(9), Some(0)), "{v:#}");
}

#[test]
fn a_target_that_goes_away_ends_the_run() {
    let place = Place::new("gone", BDEVS, &["N", "M"]);
    let daemon = place.daemon();
    // More requests than the queue pair takes: those that wait end too.
    let run = |options: &str| {
        let mut c = place.perf("ns:1", options);
        c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        c.spawn().expect("it starts")
    };
    let loads = [run("-q 300 -t 20"), run("-q 300 -t 20 --rate 5k"), run("-q 4 -o 64K -w write -t 20")];
    // The controllers of all three are connected when the last of them is.
    let connected = || {
        let stat = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
        let port = place.trid.split("trsvcid:").nth(1).and_then(|t| t.split(' ').next()).expect("a port");
        let local = format!("0100007F:{:04X}", port.parse::<u16>().expect("a port"));
        stat.lines()
            .filter(|l| l.split_whitespace().nth(1) == Some(&local) && l.split_whitespace().nth(3) == Some("01"))
            .count()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while connected() < 6 {
        assert!(std::time::Instant::now() < deadline, "{} connections", connected());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(daemon);
    let gone = std::time::Instant::now();
    for load in loads {
        let out = load.wait_with_output().expect("it ends");
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains("failed"), "{}", text(&out));
    }
    assert!(gone.elapsed() < std::time::Duration::from_secs(10), "the loads did not notice at once");
}

#[test]
fn mistakes_are_answered_with_one_line_that_names_them() {
    let place = Place::new("mistakes", BDEVS, &["N", "M"]);
    let _daemon = place.daemon();
    for (more, options, part) in [
        ("ns:7", "", "namespace 7"),
        ("", "-w verify", "ns:NSID"),
        ("ns:2", "-o 1M", "at most 128 KiB"),
        ("ns:1", "-o 512", "4096-byte blocks"),
    ] {
        let out = place.perf(more, options).output().expect("it runs");
        assert_eq!(out.status.code(), Some(1), "{more} {options}: {}", text(&out));
        assert!(text(&out).contains(part) && text(&out).lines().count() == 1, "{more} {options}: {}", text(&out));
    }
    let nobody = place.trid.replace(NQN, "nqn.2024-01.io.longshore:nobody");
    let out = place.ask("identify", &nobody).output().expect("it runs");
    assert!(out.status.code() == Some(1) && text(&out).contains("Connect"), "{}", text(&out));
}
