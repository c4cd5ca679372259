//! Framing and envelope of JSON-RPC 2.0 over a byte stream, as pure functions: no socket, no clock.
//!
//! There is no framing but JSON itself: values follow each other, with or without blanks between. See `docs/rpc.md`.

use std::mem::take;

use serde_json::{Value, json};

use crate::error::RpcError;
use crate::json::{Json, Limits, Scan, Scanner, build};
use crate::secret::{Secret, wipe};

/// Bytes of one request at most; also what a connection buffers.
pub const MAX_REQUEST: usize = 256 * 1024;
/// Characters of an id at most.
pub const MAX_ID: usize = 128;

/// Cuts a byte stream into JSON values.
#[derive(Debug)]
pub struct Framer {
    buffer: Secret,
    /// Where the value being scanned begins in `buffer`; what is before is done with.
    start: usize,
    /// Bytes from `start` that the scanner has seen.
    seen: usize,
    scanner: Scanner,
    broken: bool,
}

/// What the framer found.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// One complete value.
    Value(Json),
    /// The stream is not JSON (or one value is too large): nothing after this can be understood.
    Broken(&'static str),
}

impl Default for Framer {
    fn default() -> Framer {
        Framer { buffer: Secret::default(), start: 0, seen: 0, scanner: Scanner::new(Limits::REQUEST), broken: false }
    }
}

impl Framer {
    /// Bytes that fit in now, once the frames that are complete have been taken out.
    pub fn room(&self) -> usize {
        MAX_REQUEST.saturating_sub(self.buffer.len() - self.start)
    }

    /// Bytes that belong to no frame yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Takes received bytes, as many as there is room for, and says how many. Zero never lasts: `next_frame` then yields something.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if self.broken {
            return bytes.len();
        }
        self.buffer.discard(self.start);
        self.start = 0;
        let fits = bytes.len().min(self.room());
        self.buffer.append(&bytes[..fits]);
        fits
    }

    /// The next value, or `None` until more bytes come.
    pub fn next_frame(&mut self) -> Option<Frame> {
        if self.broken {
            return None;
        }
        match self.scanner.feed(&self.buffer[self.start + self.seen..]) {
            Scan::End(n) => Some(self.take(self.seen + n)),
            Scan::Error(why) => Some(self.fail(why)),
            Scan::More => {
                self.seen = self.buffer.len() - self.start;
                if !self.scanner.started() {
                    // Only blanks so far.
                    self.start = self.buffer.len();
                    self.seen = 0;
                }
                if self.seen >= MAX_REQUEST { Some(self.fail("the request is larger than 256 KiB")) } else { None }
            }
        }
    }

    /// The stream has ended: a number at its very end is a value, anything else unfinished is dropped.
    pub fn finish(&mut self) -> Option<Frame> {
        if self.broken || !self.scanner.finish() {
            return None;
        }
        Some(self.take(self.seen))
    }

    fn take(&mut self, len: usize) -> Frame {
        let text = &mut self.buffer[self.start..self.start + len];
        let built = build(text);
        wipe(text); // it may hold keys
        self.start += len;
        self.seen = 0;
        self.scanner = Scanner::new(Limits::REQUEST);
        match built {
            Ok(value) => Frame::Value(value),
            Err(error) => self.fail(error.why),
        }
    }

    fn fail(&mut self, why: &'static str) -> Frame {
        self.broken = true;
        self.buffer = Secret::default();
        (self.start, self.seen) = (0, 0);
        Frame::Broken(why)
    }
}

/// A request's id, as it goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// None, or null: a notification.
    None,
    /// A number, in its own text.
    Number(Box<str>),
    /// A string.
    String(String),
}

/// One well-formed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Id to answer with.
    pub id: Id,
    /// Method asked for.
    pub method: String,
    /// Parameters: an object or an array; null and none are the same.
    pub params: Option<Json>,
}

/// A value whose shape is not a request's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The id, where it could be read.
    pub id: Id,
    /// What is wrong.
    pub why: String,
}

/// What one top-level value asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Envelope {
    /// One request.
    Single(Result<Request, Rejected>),
    /// A batch: answered by one array.
    Batch(Vec<Result<Request, Rejected>>),
}

impl Envelope {
    /// Reads the envelope of a value.
    pub fn read(mut value: Json) -> Envelope {
        let Json::Array(items) = &mut value else { return Envelope::Single(request(value)) };
        if items.is_empty() {
            return Envelope::Single(Err(Rejected { id: Id::None, why: "the batch is empty".into() }));
        }
        Envelope::Batch(take(items).into_iter().map(request).collect())
    }
}

fn request(mut value: Json) -> Result<Request, Rejected> {
    let members = match &mut value {
        Json::Object(members) => take(members),
        other => return Err(Rejected { id: Id::None, why: format!("a request is an object, not {}", other.kind()) }),
    };
    let (mut version, mut method, mut params, mut id) = (None, None, None, None);
    let mut fault = None;
    for (key, value) in members {
        let slot = match key.as_str() {
            "jsonrpc" => &mut version,
            "method" => &mut method,
            "params" => &mut params,
            "id" => &mut id,
            _ => {
                fault.get_or_insert_with(|| format!("unknown member '{}'", short(&key)));
                continue;
            }
        };
        if slot.is_some() {
            fault.get_or_insert_with(|| format!("member '{key}' stands twice"));
        }
        *slot = Some(value);
    }
    // The id first: it goes back even when something else is wrong.
    let id = match &mut id {
        None | Some(Json::Null) => Id::None,
        Some(Json::Number(text)) if text.len() <= MAX_ID => Id::Number(take(text)),
        Some(Json::String(text)) if text.chars().count() <= MAX_ID => Id::String(take(text)),
        Some(Json::Number(_) | Json::String(_)) => {
            return Err(Rejected { id: Id::None, why: format!("'id' is longer than {MAX_ID} characters") });
        }
        Some(other) => {
            return Err(Rejected {
                id: Id::None,
                why: format!("'id' is a string, a number or null, not {}", other.kind()),
            });
        }
    };
    let reject = |why: String| Err(Rejected { id: id.clone(), why });
    if let Some(why) = fault {
        return reject(why);
    }
    if version.is_some_and(|v| v.as_str() != Some("2.0")) {
        return reject("'jsonrpc' is not \"2.0\"".into());
    }
    let method = match &mut method {
        Some(Json::String(method)) => take(method),
        Some(other) => return reject(format!("'method' is a string, not {}", other.kind())),
        None => return reject("'method' is missing".into()),
    };
    let params = match params {
        None | Some(Json::Null) => None,
        Some(value @ (Json::Object(_) | Json::Array(_))) => Some(value),
        Some(other) => return reject(format!("'params' is an object or an array, not {}", other.kind())),
    };
    Ok(Request { id, method, params })
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The answer to one request as compact text without the newline; `None` where none is due: a notification that succeeded.
pub fn answer(id: &Id, outcome: &Result<Value, RpcError>) -> Option<String> {
    let id_text = match id {
        Id::None => "null".to_string(),
        Id::Number(text) => text.to_string(),
        Id::String(text) => Value::from(text.as_str()).to_string(),
    };
    match outcome {
        Ok(_) if *id == Id::None => None,
        Ok(result) => Some(format!(r#"{{"jsonrpc":"2.0","id":{id_text},"result":{result}}}"#)),
        Err(error) => {
            let mut body = json!({"code": error.code, "message": error.message});
            if let Some(data) = &error.data {
                body["data"] = data.clone();
            }
            Some(format!(r#"{{"jsonrpc":"2.0","id":{id_text},"error":{body}}}"#))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::parse;
    use crate::secret::watched;

    fn frames(chunks: &[&[u8]]) -> Vec<Frame> {
        let mut framer = Framer::default();
        let mut out = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            while !rest.is_empty() {
                let taken = framer.push(rest);
                rest = &rest[taken..];
                out.extend(std::iter::from_fn(|| framer.next_frame()));
            }
        }
        out.extend(framer.finish());
        out
    }

    fn read(text: &str) -> Envelope {
        Envelope::read(parse(text.as_bytes()).unwrap())
    }

    fn why(text: &str) -> (Id, String) {
        match read(text) {
            Envelope::Single(Err(rejected)) => (rejected.id, rejected.why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_follow_each_other_without_framing() {
        let want = frames(&[b"{\"a\":1}[]\n {}"]);
        assert_eq!(want.len(), 3);
        assert_eq!(frames(&[b"{\"a\"", b":1}", b"[", b"]\n", b" {", b"}"]), want);
        assert_eq!(frames(&[b"  \n\t"]), []);
        assert_eq!(frames(&[b"12"]), [Frame::Value(Json::Number("12".into()))]);
    }

    #[test]
    fn a_parse_error_breaks_the_stream_once() {
        let got = frames(&[b"{}{x}{}", b"{}"]);
        assert_eq!(got.len(), 2);
        assert!(matches!(got[1], Frame::Broken(_)));
    }

    #[test]
    fn one_request_may_fill_the_buffer_but_not_more() {
        let mut fits = vec![b' '; MAX_REQUEST - 3];
        fits.splice(0..0, *b"[1");
        fits.push(b']');
        assert_eq!(fits.len(), MAX_REQUEST);
        assert_eq!(frames(&[&fits]).len(), 1);
        assert!(matches!(frames(&[&fits])[0], Frame::Value(_)));
        fits.insert(2, b' ');
        assert_eq!(frames(&[&fits]), [Frame::Broken("the request is larger than 256 KiB")]);
        // Blanks between requests take no room.
        let blanks = vec![b'\n'; MAX_REQUEST];
        assert_eq!(frames(&[&blanks[..1000], &blanks, b"{}"]).len(), 1);
    }

    const KEY: &str = "00112233445566778899aabbccddeeff";

    /// How often the key was wiped when these came in, and the connection ended.
    fn wiped(chunks: &[&[u8]]) -> usize {
        watched::times(KEY.as_bytes(), || {
            let mut framer = Framer::default();
            for chunk in chunks {
                assert_eq!(framer.push(chunk), chunk.len());
                while let Some(frame) = framer.next_frame() {
                    drop(frame);
                }
                assert!(watched::is_clean(&framer.buffer));
            }
        })
    }

    #[test]
    fn requests_are_wiped_however_they_come_and_end() {
        let whole = format!("{{\"method\":\"m\",\"params\":{{\"key\":\"{KEY}\"}}}}");
        assert_eq!(wiped(&[whole.as_bytes()]), 2, "the text, and the value made of it");
        let (head, tail) = whole.as_bytes().split_at(whole.len() - 2);
        assert_eq!(wiped(&[head]), 1, "the connection ends in the middle");
        assert_eq!(wiped(&[head, b"]"]), 1, "a fault of the grammar after the key");
        assert_eq!(wiped(&[head, b",\"a\":\"\\ud834\"", tail]), 2, "half of a surrogate pair after the key");
        let blanks = vec![b' '; 16 << 10];
        assert_eq!(wiped(&[head, &blanks, tail]), 4, "the buffer grew twice meanwhile");
        let pipelined = format!("{whole}{whole}[");
        assert_eq!(wiped(&[pipelined.as_bytes(), b"]"]), 4, "several in one piece");
    }

    #[test]
    fn requests_that_are_refused_or_not_answered_are_wiped() {
        let times = |text: String| watched::times(KEY.as_bytes(), || drop(read(&text)));
        assert_eq!(times(format!("{{\"params\":[\"{KEY}\"]}}")), 1, "no method");
        assert_eq!(
            times(format!("{{\"method\":\"m\",\"x\":\"{KEY}\",\"params\":[\"{KEY}\"]}}")),
            2,
            "an unknown member"
        );
        assert_eq!(times(format!("{{\"method\":\"m\",\"params\":\"{KEY}\"}}")), 1, "no parameters");
        assert_eq!(times(format!("[{{\"method\":\"m\",\"params\":[\"{KEY}\"]}},\"{KEY}\"]")), 2, "a batch");
    }

    #[test]
    fn the_envelope_is_strict() {
        assert_eq!(
            read(r#"{"method":"m","id":"x","params":null}"#),
            Envelope::Single(Ok(Request { id: Id::String("x".into()), method: "m".into(), params: None }))
        );
        assert_eq!(why(r#"{"method":"m","id":7,"more":1}"#), (Id::Number("7".into()), "unknown member 'more'".into()));
        assert_eq!(why(r#"{"method":"m","id":7,"method":"n"}"#).1, "member 'method' stands twice");
        assert_eq!(why(r#"{"jsonrpc":"1.0","method":"m"}"#).1, "'jsonrpc' is not \"2.0\"");
        assert_eq!(why(r#"{"jsonrpc":2.0,"method":"m"}"#).1, "'jsonrpc' is not \"2.0\"");
        assert_eq!(why(r#"{"id":1}"#).1, "'method' is missing");
        assert_eq!(why(r#"{"method":1}"#).1, "'method' is a string, not a number");
        assert_eq!(why(r#"{"method":"m","params":3}"#).1, "'params' is an object or an array, not a number");
        assert_eq!(why(r#"{"method":"m","id":{}}"#).1, "'id' is a string, a number or null, not an object");
        assert_eq!(why("[]").1, "the batch is empty");
        assert_eq!(why("17").1, "a request is an object, not a number");
        let long = "x".repeat(129);
        assert_eq!(why(&format!(r#"{{"method":"m","id":"{long}"}}"#)).1, "'id' is longer than 128 characters");
    }

    #[test]
    fn a_batch_keeps_its_elements_apart() {
        let Envelope::Batch(items) = read(r#"[{"method":"m"},3,[]]"#) else { panic!() };
        assert!(items[0].is_ok() && items[1].is_err() && items[2].is_err());
    }

    #[test]
    fn answers_are_compact_and_a_silent_notification_stays_silent() {
        let ok = Ok(json!({"a": [1, true]}));
        assert_eq!(
            answer(&Id::Number("1".into()), &ok).unwrap(),
            r#"{"jsonrpc":"2.0","id":1,"result":{"a":[1,true]}}"#
        );
        assert_eq!(answer(&Id::None, &ok), None);
        let bad = Err(RpcError::new(-19, "No such device"));
        assert_eq!(
            answer(&Id::None, &bad).unwrap(),
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-19,"message":"No such device"}}"#
        );
        assert_eq!(
            answer(&Id::String("q\"".into()), &ok).unwrap(),
            r#"{"jsonrpc":"2.0","id":"q\"","result":{"a":[1,true]}}"#
        );
    }
}
