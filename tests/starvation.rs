//! A host that takes all it can get and gives nothing back does not slow another one down, and does not make the daemon grow.

mod served;

use std::io::Write;
use std::time::{Duration, Instant};

use longshore_nvme::wire::{SglDescriptor, Sqe};
use serde_json::{Value, json};
use served::raw::{self, Queue};
use served::{Daemon, NQN, Place, stats, text};

/// Queues of the greedy host, writes on each, bytes of each.
const QUEUES: u16 = 127;
const WRITES: u16 = 128;
const BYTES: u32 = 128 << 10;
/// Buffer memory of the daemon: what the host asks for is sixteen times as much.
const BUFFERS_MIB: u64 = 128;
/// Runs of the other host alone and beside it.
const PAIRS: usize = 7;
/// Times that all of them are made before a figure counts: bursts of other work on the machine hit one side of a pair only.
const TRIES: usize = 4;
/// Of a run, unless `STARVATION_SECONDS` says otherwise.
const SECONDS: f64 = 0.5;
/// Patience with anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// The greedy host, with all of its writes sent.
fn greedy(place: &Place) -> Vec<Queue> {
    let mut queues = raw::connect(place, QUEUES, WRITES);
    for q in &mut queues[1..] {
        let writes = (0..WRITES).flat_map(|i| {
            let mut sqe = Sqe::new(0x01, i, 1);
            sqe.set_slba(u64::from(i) * u64::from(BYTES / 4096));
            sqe.set_nblocks(BYTES / 4096);
            sqe.dptr = SglDescriptor::transport(BYTES);
            raw::capsule(&sqe, 0)
        });
        let writes: Vec<u8> = writes.collect();
        q.0.write_all(&writes).expect("writes");
    }
    queues
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v} is no number"))
}

/// IOPS and p99 in microseconds of the other host.
fn load(place: &Place, ns: u32, job: &str) -> (f64, f64) {
    let seconds = std::env::var("STARVATION_SECONDS").map_or(SECONDS, |s| s.parse().expect("seconds"));
    let job = format!("{job} -t {seconds} -a 0.1 -L --json");
    let out = place.perf(&format!("ns:{ns}"), &job).output().expect("it runs");
    let v: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{job}: {e}: {}", text(&out)));
    assert_eq!(v["total"]["errors"], 0);
    (number(&v["total"]["iops"]), number(&v["total"]["latency_us"]["p99"]))
}

fn median(v: &mut [f64]) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// Buffers and waits that the greedy host comes to: every write has a buffer, or waits for one.
fn until_flooded(place: &Place, waits_before: f64) {
    let (writes, deadline) = (f64::from(QUEUES) * f64::from(WRITES), Instant::now() + PATIENCE);
    loop {
        let s = &stats(place)[0];
        let held = s["hosts"][0]["buffer_bytes"].as_f64().unwrap_or(0.0);
        let waits = number(&s["buffer_waits"]) - waits_before;
        // Each queue has one of its own, which is no share.
        if waits + held / f64::from(BYTES) + f64::from(QUEUES) >= writes {
            // Its share was larger while fewer of its queues were connected.
            assert!(held > 0.0 && held <= (BUFFERS_MIB << 19) as f64, "{s:#}");
            // Each queue pair says how often it had to wait.
            let all = served::rpc(place, "nvmf_subsystem_get_qpairs", &json!({"nqn": NQN})).expect("queue pairs");
            let all = all.as_array().expect("queue pairs");
            let of_each: Vec<f64> = all.iter().map(|q| number(&q["buffer_waits"])).collect();
            // Those that came first had what they asked for.
            assert!(of_each.iter().filter(|&&n| n > 0.0).count() > usize::from(QUEUES / 2), "{of_each:?}");
            assert!(of_each.iter().sum::<f64>() >= waits, "{waits} waits, of each queue pair {of_each:?}");
            return;
        }
        assert!(Instant::now() < deadline, "{waits} of {writes} wait, {held} bytes are held");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn until_gone(place: &Place) {
    let deadline = Instant::now() + PATIENCE;
    while stats(place)[0]["current_io_qpairs"] != 0 {
        assert!(Instant::now() < deadline, "queues do not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The most memory that the daemon may take, in KiB, by the formula of docs/operations.md: one reactor, no device that keeps
/// data in memory.
fn formula_kib(connections: u64) -> u64 {
    let (depth, in_capsule_kib) = (128, 4);
    (16 + BUFFERS_MIB + 40) * 1024 + connections * (128 + depth * (1 + in_capsule_kib))
}

fn resident_kib(d: &Daemon) -> u64 {
    d.status_kib("VmRSS") + d.status_kib("HugetlbPages")
}

#[test]
fn a_host_that_never_answers_r2t_slows_nobody_down_and_takes_no_more_memory_than_the_formula_says() {
    // The second device answers after a millisecond: what it does depends on how many requests it is given at once.
    let bdevs = r#"
        {"method": "bdev_null_create", "params": {"name": "N", "num_blocks": 262144, "block_size": 4096}},
        {"method": "bdev_null_create", "params": {"name": "M", "num_blocks": 262144, "block_size": 4096}},
        {"method": "bdev_delay_create", "params": {"name": "D", "base_bdev_name": "M", "avg_read_latency": 1000,
            "p99_read_latency": 1000, "avg_write_latency": 1000, "p99_write_latency": 1000}}"#;
    let place = Place::new("starvation", bdevs, &["N", "D"]);
    let daemon = place.daemon_on(&place.cpu, &["-s", &BUFFERS_MIB.to_string()]);
    let may = formula_kib(u64::from(QUEUES) + 3);
    let mut took = 0;
    // Small requests in both directions, and large writes, which want the very buffers that the greedy host has.
    for (ns, job) in [(1, "-q 32 -w randrw"), (2, "-q 16 -o 128K -w randwrite")] {
        let (mut iops, mut p99, mut shown) = (Vec::new(), Vec::new(), Vec::new());
        let mut beside = || {
            let before = number(&stats(&place)[0]["buffer_waits"]);
            let host = greedy(&place);
            until_flooded(&place, before);
            let figures = load(&place, ns, job);
            took = took.max(resident_kib(&daemon));
            drop(host);
            until_gone(&place);
            figures
        };
        for tries in 1..=TRIES {
            iops.clear();
            p99.clear();
            shown.clear();
            for pair in 0..PAIRS {
                // Which of the two is first takes turns.
                let (a, b) = if pair % 2 == 0 {
                    let a = load(&place, ns, job);
                    (a, beside())
                } else {
                    let b = beside();
                    (load(&place, ns, job), b)
                };
                iops.push(b.0 / a.0);
                p99.push(b.1 / a.1);
                shown.push(format!("{:.0} of {:.0} IOPS, p99 {:.0} after {:.0} us", b.0, a.0, b.1, a.1));
            }
            let (iops, p99) = (median(&mut iops), median(&mut p99));
            println!("{job}: {iops:.2} of the IOPS, {p99:.2} times the p99: {shown:#?}");
            if iops >= 0.8 && p99 <= 2.0 {
                break;
            }
            assert!(tries < TRIES, "{job}: {iops:.2} of the IOPS, {p99:.2} times the p99: {shown:#?}");
        }
    }
    println!("resident: {took} KiB at most, the formula allows {may} KiB");
    assert!(took <= may, "{took} KiB were resident, the formula allows {may} KiB");
}
