//! The tool as its users run it: exit status, JSON, and what it says when something is wrong.

use std::process::{Command, Output};

use serde_json::Value;

fn perf(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longshore-perf")).args(line.split_whitespace()).output().expect("the binary runs")
}

fn json(line: &str) -> Value {
    let out = perf(line);
    let text = String::from_utf8_lossy(&out.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{line}: {e}: {text}{}", String::from_utf8_lossy(&out.stderr)))
}

fn number(v: &Value, path: &str) -> f64 {
    v.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {path} of {v:#}"))
}

/// The first CPU that this process may use: `-c` must not name another.
fn core() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let list =
        status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).expect("allowed CPUs").trim().to_owned();
    format!("[{}]", list.split([',', '-']).next().expect("a CPU"))
}

#[test]
fn a_run_prints_the_schema_that_docs_perf_md_describes() {
    let v = json(&format!("--bdev null -c {} -q 16 -w randrw -M 70 -t 0.3 -LL --json", core()));
    assert_eq!((v["schema"].as_str(), v["kind"].as_str()), (Some("longshore-perf/1"), Some("run")));
    for path in [
        "/seconds",
        "/total/ios",
        "/total/errors",
        "/total/iops",
        "/total/read_iops",
        "/total/write_iops",
        "/total/mib_per_s",
        "/total/cpu/user",
        "/total/cpu/kernel",
        "/total/latency_us/average",
        "/total/latency_us/min",
        "/total/latency_us/p50",
        "/total/latency_us/p99",
        "/total/latency_us/p99.9",
        "/total/latency_us/p99.99",
        "/total/latency_us/max",
        "/cores/0/cpu_number",
        "/cores/0/iops",
        "/job/io_size",
        "/job/io_depth",
        "/job/seed",
    ] {
        number(&v, path);
    }
    assert!(v["histogram_us"].as_array().is_some_and(|h| !h.is_empty()));
    let share = number(&v, "/total/read_iops") / number(&v, "/total/iops");
    assert!((0.68..0.72).contains(&share), "70 % of reads were asked for, {share} are");
    assert_eq!(number(&v, "/total/errors"), 0.0);
}

#[test]
fn a_number_of_requests_ends_the_run() {
    let v = json(&format!("--bdev malloc:1M -c {} -q 4 -w write -d 5000 -t 60 --json", core()));
    assert_eq!(v["total"]["ios"], 5000);
}

#[test]
fn a_request_may_be_in_several_pieces_of_memory() {
    let v = json(&format!("--bdev malloc:1M -c {} -q 4 -o 16K -O 1000 -w randrw -d 2000 -t 60 --json", core()));
    assert_eq!((v["total"]["ios"].as_u64(), v["total"]["errors"].as_u64()), (Some(2000), Some(0)));
}

#[test]
fn an_open_loop_holds_its_rate() {
    let v = json(&format!("--bdev null -c {} -q 64 --rate 20k -t 0.5 --json", core()));
    let iops = number(&v, "/total/iops");
    // What was due and not started yet is missing from the count, so that both together are the rate.
    let due = iops + number(&v, "/backlog") / number(&v, "/seconds");
    assert!((19_000.0..21_000.0).contains(&due), "{iops} IOPS, {} due: {v:#}", v["backlog"]);
    assert!(number(&v, "/total/latency_us/p99") > 0.0, "an open loop measures latency without -L");
}

#[test]
fn verification_passes_on_a_device_that_stores_and_fails_on_one_that_does_not() {
    let v =
        json(&format!("--bdev malloc:4M -c {} -q 8 -w verify -d 3000 -t 60 --flush-every 16 --fua 10 --json", core()));
    assert_eq!((v["kind"].as_str(), v["mismatches"].as_u64()), (Some("verify"), Some(0)));
    assert_eq!(v["writes"], 3000);
    assert!(number(&v, "/reads") > 3000.0 && number(&v, "/flushes") > 100.0);

    let out = perf(&format!("--bdev null:1M -c {} -q 2 -w verify -d 10 --json", core()));
    assert_eq!(out.status.code(), Some(2));
    let v: Value = serde_json::from_slice(&out.stdout).expect("JSON in spite of the mismatches");
    assert_eq!(v["mismatches"], v["blocks_compared"]);
}

#[test]
fn a_file_keeps_what_its_journal_says_from_one_run_to_the_next() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let disk = dir.join(format!("disk-{}", std::process::id()));
    let journal = dir.join(format!("journal-{}", std::process::id()));
    std::fs::write(&disk, vec![0; 1 << 20]).expect("a file");
    let (d, j, c) = (disk.display(), journal.display(), core());
    for seed in 1..3 {
        let v = json(&format!(
            "--bdev file:{d} -c {c} -q 4 -w verify -d 300 -t 60 --seed {seed} --fua 50 --verify-journal {j} --json"
        ));
        assert_eq!((v["writes"].as_u64(), v["mismatches"].as_u64()), (Some(300), Some(0)));
        let v = json(&format!("--bdev file:{d} -c {c} --verify-check {j} --json"));
        assert_eq!(v["mismatches"], 0);
    }
    // One block of what was written, put back to zeroes behind its back.
    let mut bytes = std::fs::read(&disk).expect("the file");
    let at = bytes.chunks(512).position(|b| b.iter().any(|&x| x != 0)).expect("something was written") * 512;
    bytes[at..at + 512].fill(0);
    std::fs::write(&disk, bytes).expect("the file");
    let out = perf(&format!("--bdev file:{d} -c {c} --verify-check {j}"));
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
    std::fs::remove_file(disk).and_then(|()| std::fs::remove_file(journal)).expect("both are there");
}

#[test]
fn what_a_check_settled_must_stay_though_it_was_never_flushed() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = |what: &str| dir.join(format!("{what}-settled-{}", std::process::id()));
    let (disk, journal, unsettled) = (name("disk"), name("journal"), name("unsettled"));
    std::fs::write(&disk, vec![0; 1 << 20]).expect("a file");
    let (d, j, c) = (disk.display(), journal.display(), core());
    json(&format!("--bdev file:{d} -c {c} -q 4 -w verify -d 300 -t 60 --verify-journal {j} --json"));
    std::fs::copy(&journal, &unsettled).expect("a copy");
    let check = |journal: &std::path::Path, more: &str| {
        perf(&format!("--bdev file:{d} -c {c} --verify-power-loss --verify-check {} {more}", journal.display()))
    };
    let out = check(&journal, "--verify-settle");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(check(&journal, "").status.success());
    std::fs::write(&disk, vec![0; 1 << 20]).expect("the file as it was before");
    assert!(check(&unsettled, "").status.success(), "nothing was flushed: it may all be lost");
    let out = check(&journal, "");
    assert_eq!(out.status.code(), Some(2), "what was seen is gone");
    assert!(String::from_utf8_lossy(&out.stderr).contains("a write is lost"));
    for file in [disk, journal, unsettled] {
        std::fs::remove_file(file).expect("it is there");
    }
}

#[test]
fn a_journal_tells_a_device_that_lost_its_writes() {
    let journal = std::env::temp_dir().join(format!("longshore-perf-tool-{}", std::process::id()));
    let path = journal.display();
    let v = json(&format!("--bdev malloc:1M -c {} -q 4 -w verify -d 200 --verify-journal {path} --json", core()));
    assert_eq!(v["writes"], 200);
    // A fresh device of the same shape: everything acknowledged is gone.
    let out = perf(&format!("--bdev malloc:1M -c {} --verify-check {path}", core()));
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stdout));
    assert!(String::from_utf8_lossy(&out.stderr).contains("a write is lost"));
    std::fs::remove_file(journal).expect("the journal is there");
}

#[test]
fn a_configuration_makes_the_devices_and_opens_no_port() {
    let config = std::env::temp_dir().join(format!("longshore-perf-config-{}.json", std::process::id()));
    let text = r#"{"subsystems": [
        {"subsystem": "bdev", "config": [
            {"method": "bdev_malloc_create", "params": {"name": "M", "num_blocks": 8192, "block_size": 512}},
            {"method": "bdev_passthru_create", "params": {"name": "P", "base_bdev_name": "M"}}]},
        {"subsystem": "nvmf", "config": [{"method": "no_such_method", "params": {}}]}]}"#;
    std::fs::write(&config, text).expect("temporary file");
    let path = config.display();
    let v = json(&format!("--config {path} --bdev P -c {} -q 8 -w verify -d 500 -t 60 --json", core()));
    assert_eq!((v["mismatches"].as_u64(), v["writes"].as_u64()), (Some(0), Some(500)));
    let out = perf(&format!("--config {path} --bdev Q -c {}", core()));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && err.contains("M, P"), "{err}");
    std::fs::remove_file(config).expect("temporary file");
}

#[test]
fn a_run_on_an_array_counts_what_the_array_sent_to_its_members_and_not_the_prefill() {
    let path = std::env::temp_dir().join(format!("longshore-perf-array-{}.json", std::process::id()));
    let member = |i| serde_json::json!({"method": "bdev_malloc_create", "params": {"name": format!("M{i}"), "num_blocks": 4096, "block_size": 4096}});
    let mut calls: Vec<_> = (0..3).map(member).collect();
    calls.push(serde_json::json!({"method": "bdev_ec_create", "params": {"name": "Ec0", "data_chunk_count": 2,
        "parity_chunk_count": 1, "strip_size_kb": 16, "base_bdevs": ["M0", "M1", "M2"]}}));
    let config = serde_json::json!({"subsystems": [{"subsystem": "bdev", "config": calls}]});
    std::fs::write(&path, config.to_string()).expect("a file");
    let run = |more: &str| {
        json(&format!(
            "--bdev Ec0 --config {} -c {} -q 1 -w write -d 64 -t 60 --span 4M --json {more}",
            path.display(),
            core()
        ))
    };
    let counts = |v: &Value| {
        ["host_writes", "member_reads", "member_writes", "journal_writes"].map(|k| number(v, &format!("/counters/{k}")))
    };
    // One strip and parity of what it holds: both written after both were recorded.
    let v = run("--prefill write");
    assert_eq!(counts(&v), [64.0, 64.0, 128.0, 128.0]);
    // A stripe that holds nothing is written whole at its first write, and kept up by the other seven.
    let v = run("--prefill unmap");
    assert_eq!(counts(&v), [64.0, 56.0, 8.0 * 3.0 + 56.0 * 2.0, 0.0]);
    std::fs::remove_file(path).expect("the configuration is there");
}

#[test]
fn the_ceiling_prints_the_schema_that_docs_perf_md_describes() {
    let v = json("ceiling -q 8 -P 2 -t 0.1 --json");
    assert_eq!(v["kind"], "ceiling");
    for path in ["/iops", "/mib_per_s", "/engines/0/iops", "/engines/0/client_cpu/user", "/engines/0/server_cpu/kernel"]
    {
        number(&v, path);
    }
    assert!(number(&v, "/iops") > 0.0);
    assert!(v["engines"].as_array().expect("engines").iter().any(|e| e["engine"] == v["best"]));
}

#[test]
fn mistakes_are_answered_with_one_line_and_a_status() {
    for (line, part) in [
        ("", "--bdev"),
        ("--bdev flash", "flash"),
        ("--bdev malloc", "malloc:64M"),
        ("--bdev null -o 1000", "512-byte blocks"),
        ("--bdev null -o 4M", "2 MiB"),
        ("--bdev malloc:1M --span 2M", "1 MiB"),
        ("--bdev null -M 10", "-M"),
        ("--bdev null -w read -F 1", "-F"),
        ("--bdev null -O 510", "multiple of 4"),
        ("--bdev null -o 64K -O 4", "pieces"),
        ("--bdev null --fua 10", "--fua"),
        ("--bdev null -c 0x80000000000000000000", "CPU 79"),
        ("--bdev null --verify-check /nonexistent", "/nonexistent"),
        ("ceiling -w randrw", "one way"),
    ] {
        let out = perf(line);
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{line}: {err}");
        assert!(err.contains(part) && err.lines().count() == 1, "{line}: {err}");
    }
}

/// An element of a page: name, attributes, and the text directly in it.
type Element = (String, Vec<(String, String)>, String);

/// The elements of a page that is written as XML. Panics where it is not well formed.
fn elements(page: &str) -> Vec<Element> {
    let text = |t: &str| {
        let t = t.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
        t.replace("&amp;", "&")
    };
    let (mut all, mut open): (Vec<Element>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    while let Some(i) = rest.find('<') {
        if let Some(&o) = open.last() {
            all[o].2.push_str(&text(&rest[..i]));
        }
        let end = i + rest[i..].find('>').expect("a tag ends");
        let tag = &rest[i + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            let o = open.pop().expect("an element is open");
            assert_eq!(all[o].0, name, "elements end in order");
            continue;
        }
        let whole = tag.trim_end_matches('/');
        let (name, mut more) = whole.split_once(' ').unwrap_or((whole, ""));
        let mut attributes = Vec::new();
        while let Some((key, tail)) = more.trim_start().split_once("=\"") {
            let (value, tail) = tail.split_once('"').expect("a value ends");
            attributes.push((key.to_owned(), text(value)));
            more = tail;
        }
        assert_eq!(more.trim(), "", "attributes of <{tag}>");
        all.push((name.to_owned(), attributes, String::new()));
        if !tag.ends_with('/') {
            open.push(all.len() - 1);
        }
    }
    assert!(open.is_empty(), "{} elements are not closed", open.len());
    all
}

#[test]
fn a_report_is_one_page_that_says_what_the_json_says_and_needs_nothing_else() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{}.html", std::process::id()));
    let line =
        format!("--bdev null:1G -c {} -q 8 -w randrw -M 30 -t 0.6 -a 0.1 --json --report {}", core(), path.display());
    let v = json(&line);
    let page = std::fs::read_to_string(&path).expect("the page");
    let _ = std::fs::remove_file(&path);
    let all = elements(&page);
    let figure = |id: &str| {
        let found = all.iter().find(|(name, a, _)| name == "data" && a.iter().any(|(k, v)| k == "id" && v == id));
        let (_, attributes, _) = found.unwrap_or_else(|| panic!("no figure {id}"));
        let value = &attributes.iter().find(|(k, _)| k == "value").expect("a value").1;
        value.parse::<f64>().expect("a number")
    };
    let l = "/total/latency_us";
    for (id, at) in [
        ("iops", "/total/iops".to_owned()),
        ("mib_per_s", "/total/mib_per_s".to_owned()),
        ("errors", "/total/errors".to_owned()),
        ("latency-average", format!("{l}/average")),
        ("latency-min", format!("{l}/min")),
        ("latency-p50", format!("{l}/p50")),
        ("latency-p99", format!("{l}/p99")),
        ("latency-p99.99", format!("{l}/p99.99")),
        ("latency-max", format!("{l}/max")),
    ] {
        let (shown, meant) = (figure(id), number(&v, &at));
        // The JSON reader may be off by the last bit.
        assert!((shown - meant).abs() <= meant.abs() * 1e-12, "{id}: {shown}, not {meant}");
    }
    assert!(figure("latency-reads-p50") > 0.0 && figure("latency-writes-p50") > 0.0);
    // The curve is that of this run: its average lies between its lowest and its highest point.
    assert!(figure("iops-lowest") <= figure("iops") * 1.01 && figure("iops") <= figure("iops-highest") * 1.01);
    // Every option is there, with the value that was understood.
    let cells: Vec<&str> = all.iter().filter(|e| e.0 == "th" || e.0 == "td").map(|e| e.2.as_str()).collect();
    for (name, value) in [("workload", "randrw"), ("io_depth", "8"), ("rwmixread", "30"), ("target.bdev", "null:1G")] {
        assert!(cells.windows(2).any(|c| c == [name, value]), "{name} {value} is not in {cells:?}");
    }
    assert!(all.iter().any(|e| e.0 == "code" && e.2.contains("--report")), "the command");
    let whole: Value = serde_json::from_str(&all.iter().find(|e| e.0 == "pre").expect("the figures").2).expect("JSON");
    assert_eq!(whole, v);
    // Two charts; nothing is loaded from anywhere and nothing runs.
    assert_eq!(all.iter().filter(|e| e.0 == "svg").count(), 2);
    for (name, attributes, _) in &all {
        assert!(!matches!(name.as_str(), "script" | "link" | "img" | "iframe" | "object"), "<{name}>");
        let loads = |k: &str| k.starts_with("on") || k.ends_with("src") || k.ends_with("href") || k == "style";
        assert!(attributes.iter().all(|(k, _)| !loads(k)), "<{name}> {attributes:?}");
    }
    assert!(!page.contains("url(") && !page.contains("@import") && !page.contains("http"), "an address");
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_the_run() {
    for (line, part) in [
        ("--bdev null -t 60 --report /nowhere/r.html", "/nowhere/r.html"),
        ("--bdev malloc:1M -w verify -t 60 --report r.html", "not of verification"),
    ] {
        let started = std::time::Instant::now();
        let out = perf(line);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && text.contains(part), "{line}: {text}");
        assert!(started.elapsed() < std::time::Duration::from_secs(30), "{line}: it ran");
    }
}
