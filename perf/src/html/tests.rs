use super::*;
use crate::cpu::CpuTime;
use serde_json::json;

fn core(cpu: u32, samples: &[(f64, u64)]) -> CoreResult {
    let mut reads = Latency::new(1_000_000);
    (1..=1000).for_each(|us| reads.record(us));
    CoreResult {
        cpu,
        seconds: 2.0,
        reads: samples.last().map_or(0, |s| s.1),
        writes: 0,
        errors: 0,
        cpu_time: CpuTime { user: 1.0, kernel: 0.5 },
        latency: Some([reads, Latency::new(1_000_000)]),
        depth: 8.0,
        backlog: 0,
        samples: samples.to_vec(),
    }
}

fn report(title: &str, cores: Vec<CoreResult>) -> Report {
    Report {
        title: title.into(),
        job: json!({"target": [{"nqn": title}]}),
        io_size: 4096,
        rate: None,
        histogram: false,
        counters: serde_json::Value::Null,
        cores,
    }
}

#[test]
fn a_rate_over_time_is_the_sum_of_the_cores_whenever_each_was_looked_at() {
    // 100 and 300 a second, sampled at different times.
    let a = core(0, &[(0.5, 50), (1.0, 100), (1.5, 150), (2.0, 200)]);
    let b = core(1, &[(0.7, 210), (1.3, 390), (2.0, 600)]);
    let points = throughput(&[a, b]);
    assert_eq!(points.len(), 4);
    for (i, (t, n)) in points.iter().enumerate() {
        assert!((t - (0.25 + 0.5 * i as f64)).abs() < 1e-9 && (n - 400.0).abs() < 1e-6, "{t} s: {n}");
    }
    assert!(throughput(&[core(0, &[])]).is_empty());
}

#[test]
fn whatever_names_contain_is_text_on_the_page() {
    let evil = "</title><script>alert(1)</script>\"'&\u{1b}[0m";
    let page = page(&report(evil, vec![core(0, &[(2.0, 800)])]), evil);
    assert!(!page.contains("<script") && !page.contains('\u{1b}'), "{page}");
    assert_eq!(page.matches("&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;").count(), 4);
}

#[test]
fn a_run_without_anything_is_a_page_too() {
    let mut nothing = core(0, &[]);
    (nothing.latency, nothing.seconds) = (None, 0.0);
    let page = page(&report("nothing", vec![nothing]), "");
    assert!(page.contains("too short to be sampled") && page.ends_with("</html>\n"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn figures_are_shown_in_units_that_people_read() {
    assert_eq!(grouped(1_234_567.4), "1\u{202f}234\u{202f}567");
    assert_eq!(grouped(999.0), "999");
    assert_eq!([time(0.25), time(512.3), time(12_345.0), time(2e6)], ["0.2 µs", "512 µs", "12.3 ms", "2.00 s"]);
    assert_eq!([0.0, 2f64.log10(), 1.0, 2.0, 3.0, 4.0].map(chart::percent), ["0", "50", "90", "99", "99.9", "99.99"]);
    let at = |secs| date(UNIX_EPOCH + std::time::Duration::from_secs(secs));
    assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
    assert_eq!(at(951_826_154), "2000-02-29 12:09:14 UTC");
    assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59 UTC");
}
