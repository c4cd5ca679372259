//! Strict JSON: an incremental scanner that finds the end of a value, and a tree that hides nothing.
//!
//! Requests are decoded strictly: a duplicate key, an unknown key or a number out of range is an error. A map-based tree would
//! lose the duplicates and a float-based number the digits, so objects are lists here and numbers keep their text.

mod parse;
mod scan;

pub(crate) use parse::build;
pub use parse::{ParseError, parse, strip_comments};
pub use scan::{Limits, Scan, Scanner};

use serde_json::Value;
use zeroize::Zeroize;

use crate::secret::wipe_text;

/// One JSON value, as it was written: keys in order with duplicates, numbers as text. Its texts are wiped when it is dropped: they may be secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// The number's own text, already checked against the grammar.
    Number(Box<str>),
    /// A string, unescaped.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object: members in the order they came, duplicates kept.
    Object(Vec<(String, Json)>),
}

impl Drop for Json {
    fn drop(&mut self) {
        match self {
            Json::String(text) => wipe_text(text),
            Json::Number(digits) => digits.zeroize(),
            // Values in it are dropped after it.
            Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => {}
        }
    }
}

impl Json {
    /// The kind of value, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }

    /// First member of that name, if this is an object.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(s) => Some(s),
            _ => None,
        }
    }

    /// The number as an integer, if it is one: `12`, `12.0` and `1.2e1` are, `1.5` is not.
    pub fn as_integer(&self) -> Option<i128> {
        match self {
            Json::Number(text) => integer(text),
            _ => None,
        }
    }

    /// The same value for code that speaks `serde_json` (the last of duplicate keys wins there).
    pub fn to_value(&self) -> Value {
        match self {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(text) => match integer(text) {
                Some(n) if u64::try_from(n).is_ok() => Value::from(n as u64),
                Some(n) if i64::try_from(n).is_ok() => Value::from(n as i64),
                _ => text.parse::<f64>().ok().map_or(Value::Null, Value::from),
            },
            Json::String(s) => Value::String(s.clone()),
            Json::Array(items) => Value::Array(items.iter().map(Json::to_value).collect()),
            Json::Object(members) => Value::Object(members.iter().map(|(k, v)| (k.clone(), v.to_value())).collect()),
        }
    }

    /// The tree of a `serde_json` value.
    pub fn from_value(value: &Value) -> Json {
        match value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Number(n) => Json::Number(n.to_string().into()),
            Value::String(s) => Json::String(s.clone()),
            Value::Array(items) => Json::Array(items.iter().map(Json::from_value).collect()),
            Value::Object(map) => Json::Object(map.iter().map(|(k, v)| (k.clone(), Json::from_value(v))).collect()),
        }
    }
}

/// Value of a number's text when it is whole and fits; the text has passed the grammar.
fn integer(text: &str) -> Option<i128> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((m, e)) => (m, e.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    let mut scale = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    while scale < 0 && digits.len() > 1 && digits.ends_with('0') {
        digits.pop();
        scale += 1;
    }
    let magnitude: i128 = digits.parse().ok()?;
    if magnitude == 0 {
        return Some(0);
    }
    if !(0..=30).contains(&scale) {
        return None;
    }
    let n = magnitude.checked_mul(10i128.checked_pow(scale as u32)?)?;
    Some(if negative { -n } else { n })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_only_when_they_are() {
        for (text, want) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("18446744073709551615", Some(18446744073709551615)),
            ("1e3", Some(1000)),
            ("1.50e1", Some(15)),
            ("12.0", Some(12)),
            ("1.5", None),
            ("1e-1", None),
            ("1e999999999", None),
            ("-7", Some(-7)),
        ] {
            assert_eq!(Json::Number(text.into()).as_integer(), want, "{text}");
        }
    }

    #[test]
    fn duplicates_survive() {
        let json = parse(br#"{"a":1,"a":2}"#).unwrap();
        assert_eq!(
            json,
            Json::Object(vec![("a".into(), Json::Number("1".into())), ("a".into(), Json::Number("2".into()))])
        );
    }
}
