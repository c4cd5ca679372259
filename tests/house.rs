//! The rules of the house: who may depend on whom, and where `unsafe` lives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each room with the rooms it may use. See ARCHITECTURE.md.
const ROOMS: &[(&str, &[&str])] = &[
    ("longshore-sys-isal", &[]),
    ("longshore-reactor", &[]),
    ("longshore-nvme", &["longshore-reactor"]),
    ("longshore-accel", &["longshore-reactor", "longshore-sys-isal"]),
    ("longshore-bdev", &["longshore-reactor", "longshore-nvme", "longshore-accel"]),
    ("longshore-nvmf", &["longshore-reactor", "longshore-nvme", "longshore-bdev"]),
    ("longshore-tcp", &["longshore-reactor", "longshore-nvme", "longshore-bdev", "longshore-nvmf"]),
    (
        "longshore-rpc",
        &[
            "longshore-reactor",
            "longshore-nvme",
            "longshore-accel",
            "longshore-bdev",
            "longshore-nvmf",
            "longshore-tcp",
        ],
    ),
    (
        "longshore-perf",
        &[
            "longshore-reactor",
            "longshore-nvme",
            "longshore-accel",
            "longshore-bdev",
            "longshore-nvmf",
            "longshore-tcp",
            "longshore-rpc",
        ],
    ),
    (
        "longshore",
        &[
            "longshore-reactor",
            "longshore-nvme",
            "longshore-accel",
            "longshore-bdev",
            "longshore-nvmf",
            "longshore-tcp",
            "longshore-rpc",
        ],
    ),
];

/// JSON is known to `rpc` and what stands above it only.
const JSON_ROOMS: &[&str] = &["longshore-rpc", "longshore-perf", "longshore"];

/// The modules that may contain `unsafe`, each with why.
const UNSAFE: &[(&str, &str)] = &[
    ("accel/examples/erasure.rs", "calls of ISA-L, to compare with"),
    ("accel/src/cores/job.rs", "memory lent to accel cores"),
    ("accel/src/cores/lane.rs", "jobs that change hands"),
    ("accel/src/crypto/secret.rs", "memory that is kept from dumps and swap"),
    ("accel/src/crypto/xts.rs", "calls to the AES of AWS-LC"),
    ("accel/src/erasure/kernels/avx2.rs", "vector instructions"),
    ("accel/src/erasure/kernels/gfni_avx2.rs", "vector instructions"),
    ("accel/src/erasure/kernels/gfni_avx512.rs", "vector instructions"),
    ("accel/src/erasure/kernels/isal.rs", "calls of ISA-L"),
    ("accel/src/erasure/kernels/lanes.rs", "the loop around vector instructions"),
    ("accel/src/erasure/kernels/mod.rs", "kernels called where the processor can run them"),
    ("accel/src/erasure/kernels/neon.rs", "vector instructions"),
    ("accel/src/erasure/kernels/ssse3.rs", "vector instructions"),
    ("accel/src/stream.rs", "vector instructions"),
    ("accel/tests/cores.rs", "memory lent to accel cores"),
    ("accel/tests/isal.rs", "calls of ISA-L, to compare with"),
    ("bdev/src/channel.rs", "completion frames point to channels"),
    ("bdev/src/ec/memory.rs", "memory of hosts' requests lent to children"),
    ("bdev/src/ec/memory/work.rs", "memory lent to accel cores"),
    ("bdev/src/ec/remote.rs", "memory of requests lent to the home core"),
    ("bdev/src/ec/rows/elsewhere.rs", "memory lent to accel cores"),
    ("bdev/src/frame.rs", "completion frames"),
    ("bdev/src/io.rs", "slots reached by their handle"),
    ("bdev/src/job.rs", "children borrow their parent's memory"),
    ("bdev/src/malloc/lend.rs", "blocks lent as buffers"),
    ("bdev/src/malloc/store.rs", "blocks shared by cores"),
    ("bdev/src/memory.rs", "memory described by a request"),
    ("bdev/src/nvme/core_queue.rs", "memory of requests lent to the initiator"),
    ("bdev/src/pool.rs", "slots of requests"),
    ("bdev/src/queue.rs", "intrusive lists of requests"),
    ("bdev/src/uring/channel.rs", "memory of requests lent to the ring"),
    ("bdev/src/uring/mutant.rs", "faults that tests build in"),
    ("bdev/src/uring/open.rs", "ioctls of block devices"),
    ("bdev/src/uring/sync.rs", "a reference lent to the ring"),
    ("bdev/tests/ec_allocations.rs", "an allocator that counts"),
    ("nvme/src/host/memory.rs", "data copied to memory that a command owns"),
    ("perf/src/ceiling/uring.rs", "the raw ring of the ceiling"),
    ("perf/src/local.rs", "requests over several pieces of memory"),
    ("reactor/src/clock.rs", "the time stamp counter"),
    ("reactor/src/dma.rs", "pool memory"),
    ("reactor/src/dma/buf.rs", "slices of pool memory"),
    ("reactor/src/dma/reserve.rs", "pool memory set aside"),
    ("reactor/src/dma/space.rs", "pool memory mapped"),
    ("reactor/src/engine/seam.rs", "operations lent memory until they end"),
    ("reactor/src/engine/sim.rs", "the simulated ring"),
    ("reactor/src/engine/uring.rs", "the ring"),
    ("reactor/src/file.rs", "buffers lent to the ring by file I/O"),
    ("reactor/src/fixed.rs", "pool memory registered with the ring"),
    ("reactor/src/inbox.rs", "slots of the message queue"),
    ("reactor/src/net.rs", "addresses lent to the ring"),
    ("reactor/src/op.rs", "memory lent to the ring by futures"),
    ("reactor/src/reactor.rs", "completions of the ring"),
    ("reactor/src/sock/mod.rs", "memory lent to the ring by connections"),
    ("reactor/src/sock/stable.rs", "memory that the ring writes to"),
    ("reactor/src/sock/tx.rs", "vectors and headers of a send in flight"),
    ("reactor/src/turn.rs", "the loop: completions of the ring"),
    ("reactor/tests/limits.rs", "limits and filters that a test puts on itself"),
    ("sys/isal/src/lib.rs", "ISA-L's functions"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn metadata() -> serde_json::Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn dependencies_point_downward_only() {
    let meta = metadata();
    let rooms: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let mut seen = BTreeSet::new();
    for p in meta["packages"].as_array().expect("packages") {
        let name = p["name"].as_str().expect("name");
        if p["manifest_path"].as_str().is_some_and(|m| m.contains("/examples/")) {
            continue; // examples may use everything
        }
        let allowed = rooms.get(name).unwrap_or_else(|| panic!("room '{name}' is not in the table of tests/house.rs"));
        seen.insert(name.to_owned());
        for d in p["dependencies"].as_array().expect("dependencies") {
            let dep = d["name"].as_str().expect("name");
            let dev = d["kind"].as_str() == Some("dev");
            if dep.starts_with("longshore") {
                assert!(dev || allowed.contains(&dep), "'{name}' must not depend on '{dep}'");
            }
            if dep == "serde_json" {
                assert!(dev || JSON_ROOMS.contains(&name), "'{name}' must not know about JSON");
            }
        }
    }
    for (name, _) in ROOMS {
        assert!(seen.contains(*name), "room '{name}' of the table does not exist");
    }
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).expect("readable directory").flatten() {
        let p = e.path();
        let name = e.file_name();
        if p.is_dir() {
            if name != "target" && name != ".git" && name != "fuzz" {
                rust_files(&p, out);
            }
        } else if p.extension().is_some_and(|x| x == "rs") {
            out.push(p);
        }
    }
}

#[test]
fn unsafe_code_lives_in_the_named_modules_only() {
    let marker = concat!("allow(", "unsafe_code)");
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    let named: BTreeSet<&str> = UNSAFE.iter().map(|(f, _)| *f).collect();
    let mut found = BTreeSet::new();
    for f in files {
        let rel = f.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&f).expect("readable file");
        if text.contains(marker) {
            assert!(named.contains(rel.as_str()), "{rel} allows unsafe code but is not named in tests/house.rs");
            found.insert(rel);
        }
    }
    for n in named {
        assert!(found.contains(n), "{n} is named in tests/house.rs but allows no unsafe code");
    }
}

#[test]
fn every_package_takes_the_workspace_lints() {
    for p in metadata()["packages"].as_array().expect("packages") {
        let path = p["manifest_path"].as_str().expect("manifest_path");
        let text = std::fs::read_to_string(path).expect("readable manifest");
        assert!(text.contains("[lints]\nworkspace = true"), "{path} does not take the workspace's lints");
    }
}
