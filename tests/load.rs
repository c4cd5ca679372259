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

    let v = json(place.perf("", "--idle 9 -U 0 -t 0.2 --json"));
    assert_eq!((v["controllers"].as_u64(), v["lost"].as_u64()), (Some(9), Some(0)), "{v:#}");
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
        ("ns:1", "-q 30000", "use more -P"),
    ] {
        let out = place.perf(more, options).output().expect("it runs");
        assert_eq!(out.status.code(), Some(1), "{more} {options}: {}", text(&out));
        assert!(text(&out).contains(part) && text(&out).lines().count() == 1, "{more} {options}: {}", text(&out));
    }
    let nobody = place.trid.replace(NQN, "nqn.2024-01.io.longshore:nobody");
    let out = place.ask("identify", &nobody).output().expect("it runs");
    assert!(out.status.code() == Some(1) && text(&out).contains("Connect"), "{}", text(&out));
}
