//! What the daemon exports to Prometheus: whether it is well formed, whether it is true, and what it costs.

mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use longshore::rpc::metrics::{FAMILIES, Kind};
use served::{Daemon, NQN, Place, text};

const BDEVS: &str = r#"
    {"method": "bdev_null_create", "params": {"name": "N", "num_blocks": 262144, "block_size": 4096}},
    {"method": "bdev_malloc_create", "params": {"name": "M\"\\\n", "num_blocks": 32768, "block_size": 512}}"#;

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the metrics port");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
    let mut all = String::new();
    stream.read_to_string(&mut all).expect("an answer in UTF-8");
    let (head, body) = all.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

/// Scrapes until what was looked at is not that of an earlier scrape: looks are 100 ms apart at least.
fn fresh(address: &str) -> Scrape {
    std::thread::sleep(Duration::from_millis(120));
    Scrape::read(&get(address))
}

type Labels = BTreeMap<String, String>;

#[derive(Default)]
struct Scrape {
    samples: BTreeMap<String, BTreeMap<Labels, f64>>,
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl Scrape {
    /// Reads the exposition as strictly as its specification allows, and panics at whatever is not right.
    fn read(text: &str) -> Scrape {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut out = Scrape::default();
        let mut current: Option<(&str, &str)> = None;
        let mut help = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').expect(line);
                assert!(is_name(name) && !words.is_empty() && !words.contains('\\'), "{line}");
                assert!(help.replace(name).is_none(), "two HELP lines: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                assert_eq!(help.take(), Some(name), "{line}: HELP comes first");
                assert!(["counter", "gauge"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(out.samples.insert(name.to_owned(), BTreeMap::new()).is_none(), "{line}: twice");
                current = Some((name, kind));
            } else {
                let (name, kind) = current.expect("TYPE comes before samples");
                let rest = line.strip_prefix(name).unwrap_or_else(|| panic!("{line}: not of the family {name}"));
                let (labels, value) = labels(rest);
                let value: f64 = value.strip_prefix(' ').expect(line).parse().expect(line);
                assert!(value.is_finite() && (kind != "counter" || value >= 0.0), "{line}");
                let family = out.samples.get_mut(name).expect("inserted above");
                assert!(family.insert(labels, value).is_none(), "{line}: twice");
            }
        }
        assert!(help.is_none());
        out
    }

    /// The one sample with these labels among others.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let family = self.samples.get(name).unwrap_or_else(|| panic!("no family {name}"));
        let mut found = family.iter().filter(|(of, _)| labels.iter().all(|(k, v)| of.get(*k).is_some_and(|x| x == v)));
        let value = *found.next().unwrap_or_else(|| panic!("{name}{labels:?} is not there: {family:?}")).1;
        assert!(found.next().is_none(), "{name}{labels:?} is there more than once");
        value
    }
}

fn labels(mut rest: &str) -> (Labels, &str) {
    let mut out = Labels::new();
    let Some(inner) = rest.strip_prefix('{') else { return (out, rest) };
    rest = inner;
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label");
        assert!(is_name(name), "{name}");
        let (mut value, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().expect("the value ends") {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next().expect("an escape").1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c} is no escape"),
                }),
                (_, c) => value.push(c),
            }
        };
        assert!(out.insert(name.to_owned(), value).is_none(), "label {name} twice");
        match after[end..].split_at(1) {
            (",", more) => rest = more,
            ("}", more) => return (out, more),
            (c, _) => panic!("'{c}' after a label"),
        }
    }
}

#[test]
fn every_line_is_valid_and_counters_rise_by_what_was_done() {
    let place = Place::new("metrics", BDEVS, &["N", r#"M\"\\\n"#]);
    let daemon = place.daemon_on(&served::cpus()[0], &["--metrics", "0"]);
    let at = daemon.metrics();
    let before = Scrape::read(&get(at));
    let families: BTreeSet<&str> = before.samples.keys().map(String::as_str).collect();
    assert_eq!(families, FAMILIES.iter().map(|f| f.name).collect(), "as declared");
    for family in FAMILIES {
        assert_eq!(family.kind == Kind::Counter, family.name.ends_with("_total"), "{}", family.name);
        for labels in before.samples[family.name].keys() {
            let mut want: Vec<_> = family.labels.to_vec();
            want.sort_unstable();
            assert!(labels.keys().eq(want.iter()), "{}: {labels:?}", family.name);
        }
    }
    let strange = "M\"\\\n";
    assert_eq!(before.value("ceph_nvmeof_bdev_capacity_bytes", &[("bdev_name", strange)]), 32768.0 * 512.0);
    let namespace = [("nqn", NQN), ("nsid", "2"), ("bdev_name", strange)];
    assert_eq!(before.value("ceph_nvmeof_subsystem_namespace_metadata", &namespace), 1.0);

    let out = place.perf("ns:2", "-q 8 -o 512 -w randwrite -d 1000 -t 60").output().expect("it runs");
    assert!(out.status.success(), "{}", text(&out));
    let mut idle = place.perf("ns:2", "--idle 3 -U 0 -t 60").stdout(Stdio::null()).spawn().expect("it runs");
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let after = loop {
        let now = fresh(at);
        if now.samples["ceph_nvmeof_host_connection_state"].values().filter(|v| **v == 1.0).count() == 3 {
            break now;
        }
        assert!(std::time::Instant::now() < deadline, "the controllers do not show");
    };
    let _ = idle.kill();
    let _ = idle.wait();
    let device = [("bdev_name", strange)];
    let rise = |name| after.value(name, &device) - before.value(name, &device);
    assert_eq!(rise("ceph_nvmeof_bdev_writes_completed_total"), 1000.0);
    assert_eq!(rise("ceph_nvmeof_bdev_written_bytes_total"), 512_000.0);
    assert_eq!(rise("ceph_nvmeof_bdev_reads_completed_total"), 0.0);
    assert!(rise("ceph_nvmeof_bdev_write_seconds_total") > 0.0);
    let busy = [("name", "nvmf_tgt_poll_group_000"), ("mode", "busy")];
    let rise = |name, labels: &[_]| after.value(name, labels) - before.value(name, labels);
    assert!(rise("ceph_nvmeof_reactor_seconds_total", &busy) > 0.0);
    assert!(rise("longshore_nvmf_completed_total", &[]) >= 1000.0);
    assert_eq!(rise("longshore_nvmf_ops_total", &[("op", "write")]), 1000.0);
    assert_eq!(rise("longshore_nvmf_bytes_total", &[("op", "write")]), 512_000.0);
    assert!(after.value("longshore_http_answers_total", &[("code", "200")]) >= 1.0);
    assert_eq!(after.samples["longshore_qpair_info"].len(), 3, "idle controllers have an admin queue only");
    assert_eq!(after.value("longshore_listener_queue_pairs", &[("nqn", NQN)]), 3.0);
}

/// Nanoseconds that each thread of a process ran so far, by name.
fn ran(daemon: &Daemon) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("/proc");
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    tasks
        .flatten()
        .map(|task| {
            let ran = read(task.path().join("schedstat")).split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            (read(task.path().join("comm")).trim().to_owned(), ran)
        })
        .collect()
}

/// The time that a scrape takes from a reactor, and in all. Measured on a reactor that sleeps otherwise, so waking it is included: a
/// saturated one pays less.
#[test]
fn a_scrape_costs_less_than_a_percent_of_a_core() {
    let devices: Vec<String> = (0..64)
        .map(|n| format!(r#"{{"method": "bdev_null_create", "params": {{"name": "N{n}", "num_blocks": 8192, "block_size": 4096}}}}"#))
        .collect();
    let names: Vec<String> = (0..64).map(|n| format!("N{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = Place::new("scrape", &devices.join(","), &names[..32]);
    let daemon = place.daemon_on(&served::cpus()[0], &["--metrics", "0", "--spin-us", "0"]);
    let mut idle = place.perf("ns:1", "--idle 32 -U 0 -t 120").stdout(Stdio::null()).spawn().expect("it runs");
    let at = daemon.metrics();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while fresh(at).samples["longshore_qpair_info"].len() < 32 {
        assert!(std::time::Instant::now() < deadline, "the controllers do not show");
    }
    const SCRAPES: u64 = 20;
    // The lowest of several: cold caches, and a hypervisor's other guests, can only add to a thread's time.
    let mut lowest = (u64::MAX, u64::MAX);
    for _ in 0..5 {
        let before = ran(&daemon);
        for _ in 0..SCRAPES {
            fresh(at);
        }
        let after = ran(&daemon);
        let spent = |name: &dyn Fn(&str) -> bool| -> u64 {
            let threads = after.iter().filter(|(thread, _)| name(thread));
            threads.map(|(thread, ns)| ns - before.get(thread).unwrap_or(&0)).sum::<u64>() / SCRAPES
        };
        let (reactor, all) = (spent(&|thread| thread.starts_with("reactor")), spent(&|_| true));
        println!("a scrape of 64 devices and 32 queue pairs: {reactor} ns of the reactor, {all} ns of all threads");
        assert!(reactor > 0, "{after:?}");
        lowest = (lowest.0.min(reactor), lowest.1.min(all));
        if lowest.0 * 10 < 10_000_000 && lowest.1 < 10_000_000 {
            break;
        }
    }
    let _ = idle.kill();
    let _ = idle.wait();
    let (reactor, all) = lowest;
    // Whatever scrapers do, cores are asked ten times a second at most.
    assert!(reactor * 10 < 10_000_000, "{reactor} ns per scrape on the reactor");
    // One scrape a second, also where the RPC thread has to share the reactor's core.
    assert!(all < 10_000_000, "{all} ns per scrape in all");
}
