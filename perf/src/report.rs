//! What a run reached: as a table for people, as JSON for machines (`docs/perf.md` describes both).

use serde_json::{Map, Value, json};

use crate::cpu::CpuTime;
use crate::latency::{Latency, PERCENTILES};
use crate::units;

/// What one core counted between the end of the warm-up and the end of the run.
#[derive(Clone)]
pub(crate) struct CoreResult {
    /// CPU it ran on.
    pub(crate) cpu: u32,
    /// Length of the measurement.
    pub(crate) seconds: f64,
    /// Reads that succeeded.
    pub(crate) reads: u64,
    /// Writes that succeeded.
    pub(crate) writes: u64,
    /// Requests that failed.
    pub(crate) errors: u64,
    /// CPU time of the core's thread.
    pub(crate) cpu_time: CpuTime,
    /// Latencies of reads and of writes, with -L.
    pub(crate) latency: Option<[Latency; 2]>,
    /// Requests outstanding, on average: what the depth was set to. The average latency follows from it without -L.
    pub(crate) depth: f64,
    /// Open loop: requests that were due before the end and had not been started.
    pub(crate) backlog: u64,
    /// Seconds since the measurement began, and requests that had succeeded by then.
    pub(crate) samples: Vec<(f64, u64)>,
}

impl CoreResult {
    fn ios(&self) -> u64 {
        self.reads + self.writes
    }
}

/// A whole run.
pub(crate) struct Report {
    /// What was loaded, one line.
    pub(crate) title: String,
    /// The options of the run, for the JSON output.
    pub(crate) job: Value,
    /// Bytes per request.
    pub(crate) io_size: u32,
    /// Open loop: the rate asked for.
    pub(crate) rate: Option<f64>,
    /// Print the histogram.
    pub(crate) histogram: bool,
    /// What the device itself counted meanwhile; null if nothing.
    pub(crate) counters: Value,
    /// By core.
    pub(crate) cores: Vec<CoreResult>,
}

/// Figures of a core or of all of them.
pub(crate) struct Figures {
    pub(crate) label: String,
    ios: u64,
    pub(crate) errors: u64,
    pub(crate) iops: f64,
    pub(crate) read_iops: f64,
    pub(crate) write_iops: f64,
    pub(crate) mib: f64,
    /// Not a number where nothing ended.
    pub(crate) average_us: f64,
    /// CPUs in use.
    pub(crate) user: f64,
    pub(crate) kernel: f64,
    pub(crate) latency: Option<Latency>,
}

impl Report {
    fn figures(&self, label: &str, cores: &[CoreResult]) -> Figures {
        let rate = |f: &dyn Fn(&CoreResult) -> f64| cores.iter().map(|c| f(c) / c.seconds.max(1e-9)).sum::<f64>();
        let iops = rate(&|c| c.ios() as f64);
        let mut latency: Option<Latency> = None;
        for l in cores.iter().filter_map(|c| c.latency.as_ref()).flatten() {
            match &mut latency {
                Some(sum) => sum.merge(l),
                None => latency = Some(l.clone()),
            }
        }
        let depth: f64 = cores.iter().map(|c| c.depth).sum();
        let average_us = match &latency {
            Some(l) => l.average_us(),
            // Little's law; in an open loop the depth is not known.
            None if self.rate.is_some() || iops == 0.0 => f64::NAN,
            None => depth / iops * 1e6,
        };
        Figures {
            label: label.into(),
            ios: cores.iter().map(CoreResult::ios).sum(),
            errors: cores.iter().map(|c| c.errors).sum(),
            iops,
            read_iops: rate(&|c| c.reads as f64),
            write_iops: rate(&|c| c.writes as f64),
            mib: iops * f64::from(self.io_size) / f64::from(1 << 20),
            average_us,
            user: rate(&|c| c.cpu_time.user),
            kernel: rate(&|c| c.cpu_time.kernel),
            latency,
        }
    }

    /// Latencies of reads and of writes, each if there were any.
    pub(crate) fn by_kind(&self) -> [Option<Latency>; 2] {
        [0, 1].map(|kind| {
            let mut each = self.cores.iter().filter_map(|c| Some(&c.latency.as_ref()?[kind])).filter(|l| l.count() > 0);
            let mut sum = each.next()?.clone();
            each.for_each(|l| sum.merge(l));
            Some(sum)
        })
    }

    /// Open loop: requests that were due and not started.
    pub(crate) fn backlog(&self) -> Option<u64> {
        self.rate.map(|_| self.cores.iter().map(|c| c.backlog).sum())
    }

    /// Figures of each core, and of all of them.
    pub(crate) fn rows(&self) -> (Vec<Figures>, Figures) {
        let cores =
            self.cores.iter().map(|c| self.figures(&format!("core {}", c.cpu), std::slice::from_ref(c))).collect();
        (cores, self.figures("total", &self.cores))
    }

    /// Requests that failed during the measurement.
    pub(crate) fn errors(&self) -> u64 {
        self.cores.iter().map(|c| c.errors).sum()
    }

    /// The table.
    pub(crate) fn print(&self) {
        let (cores, total) = self.rows();
        let us = |v: f64| if v.is_finite() { format!("{v:.1}") } else { "-".into() };
        println!("{}", self.title);
        println!("{:8} {:>13} {:>11} {:>11} {:>15}", "", "IOPS", "MiB/s", "average us", "CPU usr+sys %");
        let one = cores.len() == 1;
        for f in cores.iter().filter(|_| !one).chain([&total]) {
            println!(
                "{:8} {:>13.0} {:>11.1} {:>11} {:>15}",
                f.label,
                f.iops,
                f.mib,
                us(f.average_us),
                format!("{:.0} + {:.0}", f.user * 100.0, f.kernel * 100.0),
            );
        }
        if total.read_iops > 0.0 && total.write_iops > 0.0 {
            println!("reads {:.0} IOPS, writes {:.0} IOPS", total.read_iops, total.write_iops);
        }
        if total.latency.is_some() {
            println!();
            print!("{:8}", "us");
            for p in PERCENTILES {
                print!(" {:>9}", format!("p{p}"));
            }
            println!(" {:>9}", "max");
            for f in cores.iter().filter(|_| !one).chain([&total]) {
                let Some(l) = &f.latency else { continue };
                print!("{:8}", f.label);
                for p in PERCENTILES {
                    print!(" {:>9.1}", l.percentile_us(p));
                }
                println!(" {:>9.1}", l.max_us());
            }
        }
        if let Some(l) = total.latency.as_ref().filter(|_| self.histogram) {
            println!("\n{:>12} {:>12} {:>9}", "up to us", "requests", "share %");
            let mut sum = 0;
            for (upto, n) in l.ranges() {
                sum += n;
                println!("{upto:>12.2} {n:>12} {:>9.3}", 100.0 * sum as f64 / l.count().max(1) as f64);
            }
        }
        if let Some((rate, backlog)) = self.rate.zip(self.backlog()) {
            println!(
                "{} IOPS asked for, {backlog} requests were due and not started at the end",
                units::si(rate).trim()
            );
        }
        if total.errors > 0 {
            println!("{} requests failed", total.errors);
        }
    }

    /// The JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let (cores, total) = self.rows();
        let mut out = json!({
            "schema": "longshore-perf/1",
            "kind": "run",
            "version": env!("CARGO_PKG_VERSION"),
            "job": self.job,
            "seconds": self.cores.iter().map(|c| c.seconds).fold(0.0, f64::max),
            "total": figures_json(&total),
            "cores": self.cores.iter().zip(&cores).map(|(c, f)| {
                let mut v = figures_json(f);
                v["cpu_number"] = json!(c.cpu);
                v
            }).collect::<Vec<_>>(),
        });
        if let Some(backlog) = self.backlog() {
            out["backlog"] = json!(backlog);
        }
        if !self.counters.is_null() {
            out["counters"] = self.counters.clone();
        }
        if let Some(l) = total.latency.as_ref().filter(|_| self.histogram) {
            out["histogram_us"] = l.ranges().into_iter().map(|(upto, n)| json!([upto, n])).collect();
        }
        out
    }
}

fn figures_json(f: &Figures) -> Value {
    let mut latency = Map::new();
    if f.average_us.is_finite() {
        latency.insert("average".into(), json!(f.average_us));
    }
    if let Some(l) = f.latency.as_ref().filter(|l| l.count() > 0) {
        latency.insert("min".into(), json!(l.min_us()));
        for p in PERCENTILES {
            latency.insert(format!("p{p}"), json!(l.percentile_us(p)));
        }
        latency.insert("max".into(), json!(l.max_us()));
    }
    json!({
        "ios": f.ios,
        "errors": f.errors,
        "iops": f.iops,
        "read_iops": f.read_iops,
        "write_iops": f.write_iops,
        "mib_per_s": f.mib,
        "latency_us": latency,
        "cpu": { "user": f.user, "kernel": f.kernel },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(latency: bool) -> Report {
        let core = |cpu, reads| {
            let mut l = Latency::new(1_000_000);
            (0..100).for_each(|i| l.record(i + 1));
            CoreResult {
                cpu,
                seconds: 2.0,
                reads,
                writes: 1000,
                errors: 3,
                cpu_time: CpuTime { user: 1.0, kernel: 0.5 },
                latency: latency.then(|| [l.clone(), l]),
                depth: 8.0,
                backlog: 0,
                samples: Vec::new(),
            }
        };
        Report {
            title: String::new(),
            job: json!({}),
            io_size: 4096,
            rate: None,
            histogram: latency,
            counters: Value::Null,
            cores: vec![core(0, 1000), core(1, 3000)],
        }
    }

    #[test]
    fn totals_are_sums_over_the_cores_and_shares_of_the_time() {
        let v = report(false).to_json();
        assert_eq!(v["total"]["ios"], 6000);
        assert_eq!(v["total"]["iops"], 3000.0);
        assert_eq!(v["total"]["read_iops"], 2000.0);
        assert_eq!(v["total"]["mib_per_s"], 3000.0 / 256.0);
        assert_eq!(v["total"]["errors"], 6);
        assert_eq!(v["total"]["cpu"]["user"], 1.0);
        assert_eq!(v["cores"][1]["cpu_number"], 1);
        // depth 16 at 3000 requests per second
        assert!((v["total"]["latency_us"]["average"].as_f64().unwrap() - 16.0 / 3000.0 * 1e6).abs() < 1e-6);
        assert!(v["total"]["latency_us"].get("p99").is_none(), "no percentiles without -L");
    }

    #[test]
    fn percentiles_and_histogram_appear_with_latency_tracking() {
        let v = report(true).to_json();
        let l = &v["total"]["latency_us"];
        assert_eq!((l["average"].as_f64(), l["max"].as_f64()), (Some(50.5), Some(100.0)));
        for p in ["p50", "p75", "p90", "p95", "p99", "p99.5", "p99.9", "p99.99", "min"] {
            assert!(l[p].is_number(), "{p} is missing");
        }
        let n: u64 = v["histogram_us"].as_array().unwrap().iter().map(|r| r[1].as_u64().unwrap()).sum();
        assert_eq!(n, 400);
    }
}
