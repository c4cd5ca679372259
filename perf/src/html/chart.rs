//! Charts as inline SVG. What a curve says at a place is a native tooltip.

use std::fmt::Write;

use super::{escape, grouped};

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 34.0;

/// One line of a chart.
pub(super) struct Curve<'a> {
    /// Empty if it is the only one.
    pub(super) name: &'a str,
    pub(super) points: &'a [(f64, f64)],
    /// What the tooltip says of a point.
    pub(super) told: &'a dyn Fn((f64, f64)) -> String,
    /// The area under it is tinted.
    pub(super) filled: bool,
}

/// The axes.
pub(super) struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    log_y: bool,
    x_ticks: Vec<(f64, String)>,
    y_ticks: Vec<(f64, String)>,
    x_name: &'static str,
    y_name: &'static str,
}

/// Round numbers from 0 to `high`, about `n` of them.
fn ticks(high: f64, n: f64) -> Vec<f64> {
    let raw = (high / n).max(1e-9);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= raw * 0.999).unwrap_or(raw);
    (0..).map(|i| f64::from(i) * step).take_while(|v| *v <= high * 1.0001).collect()
}

/// A round time in microseconds.
fn round_time(us: f64) -> String {
    let (v, unit) = match us {
        us if us >= 0.999e6 => (us / 1e6, "s"),
        us if us >= 0.999e3 => (us / 1e3, "ms"),
        us if us >= 0.999 => (us, "µs"),
        us => (us * 1e3, "ns"),
    };
    format!("{v:.0} {unit}")
}

/// The percentage of `x` nines, with no more digits than it needs.
pub(super) fn percent(x: f64) -> String {
    let p = 100.0 * (1.0 - 10f64.powf(-x));
    let digits = (x.ceil() as usize).saturating_sub(1);
    let text = format!("{p:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

impl Frame {
    /// Seconds from 0 to `length`, and a rate from 0 to `high`.
    pub(super) fn over_time(length: f64, high: f64) -> Frame {
        let high = if high > 0.0 { high * 1.05 } else { 1.0 };
        let short = |v: f64| match v {
            v if v >= 1e6 => format!("{} M", v / 1e6),
            v if v >= 1e4 => format!("{} k", v / 1e3),
            v => grouped(v),
        };
        let digits = usize::from(length < 8.0);
        Frame {
            x: (0.0, length),
            y: (0.0, high),
            log_y: false,
            x_ticks: ticks(length, 8.0).into_iter().map(|t| (t, format!("{t:.digits$}"))).collect(),
            y_ticks: ticks(high, 5.0).into_iter().map(|v| (v, short(v))).collect(),
            x_name: "seconds",
            y_name: "IOPS",
        }
    }

    /// Nines, and microseconds on a log scale.
    pub(super) fn percentiles(curves: &[Vec<(f64, f64)>]) -> Frame {
        let all = || curves.iter().flatten();
        let nines = all().map(|p| p.0).fold(1.0, f64::max);
        let (low, high) = all().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.1), h.max(p.1)));
        let (low, high) = (low / 1.3, high * 1.3);
        let decades = (high / low).log10();
        let marks: &[f64] = if decades < 1.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let from = low.log10().floor() as i32;
        let y_ticks = (from..=high.log10().ceil() as i32)
            .flat_map(|d| marks.iter().map(move |m| m * 10f64.powi(d)))
            .filter(|v| (low..=high).contains(v))
            .map(|v| (v, round_time(v)))
            .collect();
        let mut x_ticks = vec![(0.0, "0".to_owned()), (2f64.log10(), "50".to_owned())];
        x_ticks.extend((1..=nines as u32).map(|n| (f64::from(n), percent(f64::from(n)))));
        Frame {
            x: (0.0, nines),
            y: (low, high),
            log_y: true,
            x_ticks,
            y_ticks,
            x_name: "percent of requests",
            y_name: "within",
        }
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let share = |v: f64, (a, b): (f64, f64)| if b > a { ((v - a) / (b - a)).clamp(0.0, 1.0) } else { 0.5 };
        let up = if self.log_y { share(y.ln(), (self.y.0.ln(), self.y.1.ln())) } else { share(y, self.y) };
        (LEFT + share(x, self.x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    /// The chart; `label` is what it shows, for those who cannot see it.
    pub(super) fn draw(&self, out: &mut String, label: &str, curves: &[Curve<'_>]) {
        let _ = writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(label));
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (v, text) in &self.y_ticks {
            let y = self.at((self.x.0, *v)).1;
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(text)
            );
        }
        for (v, text) in &self.x_ticks {
            let x = self.at((*v, self.y.0)).0;
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{floor}\"/>\
                 <text class=\"mid\" x=\"{x:.1}\" y=\"{}\">{}</text>",
                floor + 16.0,
                escape(text)
            );
        }
        let _ = writeln!(out, "<text class=\"end\" x=\"{}\" y=\"12\">{}</text>", LEFT - 8.0, self.y_name);
        let _ = writeln!(out, "<text class=\"end\" x=\"{right}\" y=\"{}\">{}</text>", HEIGHT - 3.0, self.x_name);
        for (i, c) in curves.iter().enumerate() {
            self.curve(out, i, c);
        }
        if let Some(c) = curves.first() {
            self.strips(out, curves, c.points);
        }
        out.push_str("</svg>\n");
    }

    fn curve(&self, out: &mut String, i: usize, c: &Curve<'_>) {
        let line: Vec<String> = c.points.iter().map(|p| self.at(*p)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let ends = c.points.first().zip(c.points.last());
        if let (true, Some((first, last))) = (c.filled, ends) {
            let (a, b) = (self.at((first.0, self.y.0)), self.at((last.0, self.y.0)));
            let _ = writeln!(
                out,
                "<polygon class=\"area\" points=\"{:.1},{:.1} {} {:.1},{:.1}\"/>",
                a.0,
                a.1,
                line.join(" "),
                b.0,
                b.1
            );
        }
        let _ = writeln!(out, "<polyline class=\"c{i} curve\" points=\"{}\"/>", line.join(" "));
        if !c.name.is_empty() {
            let x = LEFT + 20.0 + 110.0 * i as f64;
            let _ = writeln!(
                out,
                "<line class=\"c{i} curve\" x1=\"{x}\" x2=\"{}\" y1=\"10\" y2=\"10\"/><text x=\"{}\" y=\"14\">{}</text>",
                x + 24.0,
                x + 30.0,
                escape(c.name)
            );
        }
    }

    /// Invisible strips over the chart that say what is there.
    fn strips(&self, out: &mut String, curves: &[Curve<'_>], points: &[(f64, f64)]) {
        let half = (WIDTH - LEFT - RIGHT) / points.len().max(1) as f64 / 2.0;
        for (i, p) in points.iter().enumerate() {
            let told = curves.iter().filter_map(|c| {
                let text = (c.told)(*c.points.get(i)?);
                Some(if c.name.is_empty() { text } else { format!("{}: {text}", c.name) })
            });
            let text: Vec<String> = told.collect();
            let x = self.at(*p).0;
            let _ = writeln!(
                out,
                "<rect class=\"strip\" x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"><title>{}</title></rect>",
                x - half,
                half * 2.0,
                HEIGHT - TOP - BOTTOM,
                escape(&text.join("\n"))
            );
        }
    }
}
