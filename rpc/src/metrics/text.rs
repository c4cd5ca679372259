//! The text exposition format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

/// What kind of number a family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, until a restart (or a reset by RPC) sets it back.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl Kind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

/// Where the samples of one family go.
pub(crate) struct Out<'a> {
    text: &'a mut String,
    name: &'static str,
    labels: &'static [&'static str],
}

impl<'a> Out<'a> {
    /// Begins a family with its description.
    pub(crate) fn new(text: &'a mut String, name: &'static str, labels: &'static [&'static str]) -> Out<'a> {
        Out { text, name, labels }
    }

    /// One sample, with a value for each label.
    pub(crate) fn put(&mut self, values: &[&str], number: impl Display) {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        self.text.push_str(self.name);
        for (i, (label, value)) in self.labels.iter().zip(values).enumerate() {
            self.text.push(if i == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(self.text, value);
            self.text.push('"');
        }
        if !self.labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {number}");
    }
}

/// Label values may hold anything; these three would end them.
fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// The two lines before the samples of a family.
pub(crate) fn head(out: &mut String, name: &str, help: &str, kind: Kind) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut text = String::new();
        Out::new(&mut text, "a_total", &["x", "y"]).put(&["b\\c\"d\ne{}", "é"], 1.5);
        Out::new(&mut text, "b", &[]).put(&[], u64::MAX);
        assert_eq!(text, "a_total{x=\"b\\\\c\\\"d\\ne{}\",y=\"é\"} 1.5\nb 18446744073709551615\n");
    }
}
