//! `--report`: a run as one page for a browser. Everything is in the file: no script, no network.

mod chart;
mod style;

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::latency::{Latency, PERCENTILES};
use crate::report::{CoreResult, Figures, Report};
use crate::units;
use chart::{Curve, Frame};

/// Points of the throughput curve at most.
const POINTS: usize = 300;

/// Text as it may stand in an element or in an attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A figure with the value that stands behind what is shown.
fn figure(id: &str, value: f64, shown: &str) -> String {
    if value.is_finite() {
        format!("<data id=\"{}\" value=\"{value}\">{}</data>", escape(id), escape(shown))
    } else {
        "–".into()
    }
}

/// Digits in groups of three.
fn grouped(n: f64) -> String {
    let digits = format!("{:.0}", n.abs());
    let mut out = String::from(if n < 0.0 { "-" } else { "" });
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// A time in microseconds, in the unit that suits it.
fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e4 => format!("{:.1} ms", us / 1e3),
        us if us >= 100.0 => format!("{us:.0} µs"),
        us => format!("{us:.1} µs"),
    }
}

/// A point in time: UTC, to the second.
fn date(t: SystemTime) -> String {
    let secs = t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // Days since 1 March of year 0, in eras of 400 years: a leap day is the last of its year then.
    let days = secs / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC")
}

/// Requests per second of all cores, at evenly spaced times.
fn throughput(cores: &[CoreResult]) -> Vec<(f64, f64)> {
    let length = cores.iter().map(|c| c.seconds).fold(0.0, f64::max);
    let most = cores.iter().map(|c| c.samples.len()).max().unwrap_or(0);
    // As fine as what was sampled, and never finer.
    let n = most.min(POINTS);
    if n == 0 || length <= 0.0 {
        return Vec::new();
    }
    let step = length / n as f64;
    let done = |c: &CoreResult, t: f64| {
        let next = c.samples.partition_point(|s| s.0 < t);
        let (t0, n0) = next.checked_sub(1).map_or((0.0, 0), |i| c.samples[i]);
        match c.samples.get(next) {
            Some(&(t1, n1)) if t1 > t0 => n0 as f64 + (n1 - n0) as f64 * (t - t0) / (t1 - t0),
            Some(&(_, n1)) => n1 as f64,
            None => n0 as f64,
        }
    };
    let rate = |i: usize| {
        let (from, to) = (i as f64 * step, (i + 1) as f64 * step);
        let sum: f64 = cores.iter().map(|c| done(c, to) - done(c, from)).sum();
        ((from + to) / 2.0, sum / step)
    };
    (0..n).map(rate).collect()
}

/// Latency by the share of requests that took longer: x is the number of nines.
fn distribution(l: &Latency) -> Vec<(f64, f64)> {
    let nines = (l.count() as f64).log10().clamp(1.0, 6.0);
    let n = (nines * 25.0) as usize;
    (0..=n)
        .map(|i| {
            let x = i as f64 / 25.0;
            (x, l.percentile_us(100.0 * (1.0 - 10f64.powf(-x))).max(0.001))
        })
        .collect()
}

/// The page.
pub(crate) fn page(report: &Report, command: &str) -> String {
    let (cores, total) = report.rows();
    let json = report.to_json();
    let mut out = String::new();
    let title = escape(&report.title);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>longshore-perf: {title}</title>\n\
         <style>{}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n<p>longshore-perf {}, {}</p>\n</header>\n",
        style::CSS,
        env!("CARGO_PKG_VERSION"),
        date(SystemTime::now()),
    );
    tiles(&mut out, report, &total);
    over_time(&mut out, report, &total);
    latency(&mut out, report, &total);
    if cores.len() > 1 {
        by_core(&mut out, &cores);
    }
    configuration(&mut out, &json["job"], command);
    let _ = write!(
        out,
        "<details>\n<summary>All figures as JSON</summary>\n<pre>{}</pre>\n</details>\n</main>\n</body>\n</html>\n",
        escape(&format!("{json:#}"))
    );
    out
}

fn tiles(out: &mut String, report: &Report, f: &Figures) {
    out.push_str("<section class=\"tiles\">\n");
    let mut tile = |name: &str, value: String, more: String| {
        let more = if more.is_empty() { more } else { format!("<small>{more}</small>") };
        let _ = writeln!(out, "<div><span>{name}</span><b>{value}</b>{more}</div>");
    };
    let mix = if f.read_iops > 0.0 && f.write_iops > 0.0 {
        format!("{} read, {} write", grouped(f.read_iops), grouped(f.write_iops))
    } else {
        String::new()
    };
    tile("IOPS", figure("iops", f.iops, &grouped(f.iops)), mix);
    tile("MiB/s", figure("mib_per_s", f.mib, &grouped(f.mib)), String::new());
    tile("Average latency", figure("latency-average", f.average_us, &time(f.average_us)), String::new());
    if let Some(l) = f.latency.as_ref().filter(|l| l.count() > 0) {
        tile("99 % within", time(l.percentile_us(99.0)), String::new());
    }
    let cpu = format!("{:.0} % user, {:.0} % kernel", f.user * 100.0, f.kernel * 100.0);
    tile("CPU of the load", format!("{:.0} %", (f.user + f.kernel) * 100.0), cpu);
    let failed = figure("errors", f.errors as f64, &grouped(f.errors as f64));
    tile(if f.errors > 0 { "<em>Failed</em>" } else { "Failed" }, failed, String::new());
    if let (Some(rate), Some(backlog)) = (report.rate, report.backlog()) {
        let asked = format!("of {} IOPS asked for", units::si(rate).trim());
        tile("Not started in time", figure("backlog", backlog as f64, &grouped(backlog as f64)), escape(&asked));
    }
    out.push_str("</section>\n");
}

fn over_time(out: &mut String, report: &Report, total: &Figures) {
    let points = throughput(&report.cores);
    out.push_str("<section>\n<h2>Throughput over time</h2>\n");
    if points.is_empty() {
        out.push_str("<p>The run was too short to be sampled.</p>\n</section>\n");
        return;
    }
    let step = points.get(1).map_or(points[0].0 * 2.0, |p| p.0 - points[0].0);
    let kib = f64::from(report.io_size) / f64::from(1 << 20);
    let frame = Frame::over_time(step * points.len() as f64, points.iter().map(|p| p.1).fold(total.iops, f64::max));
    let told = |(t, n): (f64, f64)| format!("{t:.1} s: {} IOPS, {:.1} MiB/s", grouped(n), n * kib);
    frame.draw(out, "IOPS by second of the run", &[Curve { name: "", points: &points, told: &told, filled: true }]);
    let (low, high) = points.iter().fold((f64::MAX, 0.0f64), |(l, h), p| (l.min(p.1), h.max(p.1)));
    let _ = writeln!(
        out,
        "<p>IOPS, averages of {:.2} s: {} to {}.</p>\n</section>",
        step,
        figure("iops-lowest", low, &grouped(low)),
        figure("iops-highest", high, &grouped(high)),
    );
}

fn latency(out: &mut String, report: &Report, total: &Figures) {
    let Some(all) = total.latency.as_ref().filter(|l| l.count() > 0) else { return };
    let kinds = report.by_kind();
    let shown: Vec<(&str, &Latency)> = match &kinds {
        [Some(r), Some(w)] => vec![("reads", r), ("writes", w)],
        _ => vec![("", all)],
    };
    let points: Vec<Vec<(f64, f64)>> = shown.iter().map(|(_, l)| distribution(l)).collect();
    let told = |(x, us): (f64, f64)| format!("{} % within {}", chart::percent(x), time(us));
    let curves: Vec<Curve<'_>> = shown
        .iter()
        .zip(&points)
        .map(|((name, _), points)| Curve { name, points, told: &told, filled: false })
        .collect();
    out.push_str("<section>\n<h2>Latency distribution</h2>\n");
    Frame::percentiles(&points).draw(out, "Latency by percentile, both on a log scale", &curves);
    out.push_str("<table>\n<tr><th></th>");
    for p in PERCENTILES {
        let _ = write!(out, "<th>p{p}</th>");
    }
    out.push_str("<th>min</th><th>max</th><th>average</th></tr>\n");
    let several = shown.len() > 1;
    for (name, l) in shown.iter().filter(|_| several).chain([&("all", all)]) {
        let _ = write!(out, "<tr><th>{name}</th>");
        let cell = |what: &str, us: f64| {
            let id = if *name == "all" { format!("latency-{what}") } else { format!("latency-{name}-{what}") };
            format!("<td>{}</td>", figure(&id, us, &time(us)))
        };
        for p in PERCENTILES {
            out.push_str(&cell(&format!("p{p}"), l.percentile_us(p)));
        }
        out.push_str(&cell("min", l.min_us()));
        out.push_str(&cell("max", l.max_us()));
        out.push_str(&format!("<td>{}</td>", escape(&time(l.average_us()))));
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n</section>\n");
}

fn by_core(out: &mut String, cores: &[Figures]) {
    out.push_str("<section>\n<h2>By core</h2>\n<table>\n<tr><th></th><th>IOPS</th><th>MiB/s</th><th>average</th>");
    out.push_str("<th>p99</th><th>CPU user</th><th>CPU kernel</th><th>failed</th></tr>\n");
    for f in cores {
        let p99 = f.latency.as_ref().filter(|l| l.count() > 0).map_or("–".into(), |l| time(l.percentile_us(99.0)));
        let average = if f.average_us.is_finite() { time(f.average_us) } else { "–".into() };
        let _ = writeln!(
            out,
            "<tr><th>{}</th><td>{}</td><td>{}</td><td>{average}</td><td>{p99}</td><td>{:.0} %</td><td>{:.0} %</td><td>{}</td></tr>",
            escape(&f.label),
            grouped(f.iops),
            grouped(f.mib),
            f.user * 100.0,
            f.kernel * 100.0,
            f.errors,
        );
    }
    out.push_str("</table>\n</section>\n");
}

/// Every option as it was understood; members of members by their path.
fn configuration(out: &mut String, job: &Value, command: &str) {
    out.push_str("<section>\n<h2>Configuration</h2>\n<table class=\"names\">\n");
    let _ = writeln!(out, "<tr><th>command</th><td><code>{}</code></td></tr>", escape(command));
    options(out, "", job);
    out.push_str("</table>\n</section>\n");
}

fn options(out: &mut String, path: &str, v: &Value) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let text = match v {
        Value::Null => return,
        Value::Object(members) => return members.iter().for_each(|(k, v)| options(out, &below(k), v)),
        Value::Array(all) if all.iter().any(|v| v.is_object() || v.is_array()) => {
            return all.iter().enumerate().for_each(|(i, v)| options(out, &below(&i.to_string()), v));
        }
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => plain(other),
    };
    let _ = writeln!(out, "<tr><th>{}</th><td>{}</td></tr>", escape(path), escape(&text));
}

fn plain(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests;
