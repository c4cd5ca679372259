//! HTTP/1.x requests out of a byte stream, as pure functions: no socket, no clock. Tokens are httparse's business; framing is decided here.

use httparse::{Error, Status};

use crate::jsonrpc::MAX_REQUEST;
use crate::secret::Secret;

/// Bytes of request line and header fields at most.
pub const MAX_HEAD: usize = 16 * 1024;
/// Header fields at most.
pub const MAX_FIELDS: usize = 64;
/// Bytes of a body at most.
pub const MAX_BODY: usize = MAX_REQUEST;

/// Methods that mean something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// Any other.
    Other,
}

/// Request line and header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Method.
    pub method: Method,
    /// Path, without the query.
    pub path: String,
    /// HTTP/1.1: the client understands chunks.
    pub chunks: bool,
    /// The connection stays open after the answer.
    pub keep_alive: bool,
    /// Bytes of the body, where the request says so.
    pub length: Option<usize>,
    /// A body comes in pieces of a length that is not said before.
    pub chunked: bool,
    /// The client waits to be told before it sends the body.
    pub expects_continue: bool,
    /// A page of a browser sends this.
    pub has_origin: bool,
    /// Value of `Authorization`.
    pub authorization: Option<Vec<u8>>,
}

/// A request that is refused before it is looked at; the connection cannot go on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What is wrong, for people.
    pub why: &'static str,
}

const fn refuse<T>(status: u16, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, why })
}

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A request begins.
    Head(Head),
    /// Its body is complete; empty where there is none.
    Body(Secret),
    /// The stream is no HTTP that is spoken here: nothing after this can be understood.
    Refused(Refusal),
}

/// Cuts a byte stream into requests.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Secret,
    /// Bytes of the body that follows, once its head was yielded.
    body: Option<usize>,
    broken: bool,
}

impl Decoder {
    /// Bytes that fit in now. Zero never lasts once the events that are complete have been taken.
    pub fn room(&self) -> usize {
        (MAX_HEAD + MAX_BODY).saturating_sub(self.buffer.len())
    }

    /// Takes received bytes, as many as there is room for, and says how many.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if self.broken {
            return bytes.len();
        }
        let fits = bytes.len().min(self.room());
        self.buffer.append(&bytes[..fits]);
        fits
    }

    /// Nothing of a request has come that was not yielded.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.body.is_none()
    }

    /// Bytes that the body in progress still lacks.
    pub fn lacking(&self) -> usize {
        self.body.map_or(0, |length| length.saturating_sub(self.buffer.len()))
    }

    /// The next event, or `None` until more bytes come.
    pub fn next_event(&mut self) -> Option<Event> {
        if self.broken {
            return None;
        }
        if let Some(length) = self.body {
            if self.buffer.len() < length {
                return None;
            }
            self.body = None;
            let mut body = Secret::default();
            body.append(&self.buffer[..length]);
            self.buffer.discard(length);
            return Some(Event::Body(body));
        }
        match head(&self.buffer) {
            Ok(None) => None,
            Ok(Some((head, used))) => {
                self.buffer.discard(used);
                self.body = Some(head.length.unwrap_or(0));
                Some(Event::Head(head))
            }
            Err(refusal) => {
                self.broken = true;
                self.buffer = Secret::default();
                Some(Event::Refused(refusal))
            }
        }
    }
}

/// The head at the start of `bytes` and its length; `None`: not complete.
fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let bytes = &bytes[..bytes.len().min(MAX_HEAD)];
    match request.parse(bytes) {
        Ok(Status::Partial) if bytes.len() >= MAX_HEAD => refuse(431, "the header fields exceed 16 KiB"),
        Ok(Status::Partial) => Ok(None),
        Ok(Status::Complete(used)) => Ok(Some((read(&request)?, used))),
        Err(Error::TooManyHeaders) => refuse(431, "there are more than 64 header fields"),
        Err(Error::Version) => refuse(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"),
        Err(_) => refuse(400, "this is not an HTTP request"),
    }
}

fn read(request: &httparse::Request<'_, '_>) -> Result<Head, Refusal> {
    let newer = request.version == Some(1);
    let mut head = Head {
        method: match request.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            Some("POST") => Method::Post,
            _ => Method::Other,
        },
        path: path(request.path.unwrap_or_default()).to_owned(),
        chunks: newer,
        keep_alive: newer,
        length: None,
        chunked: false,
        expects_continue: false,
        has_origin: false,
        authorization: None,
    };
    let mut hosts = 0;
    for field in request.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            // Twice, or a list: proxies do not agree on which counts.
            if head.length.replace(length(field.value)?).is_some() {
                return refuse(400, "there are two Content-Length fields");
            }
        } else if is("transfer-encoding") {
            head.chunked = true;
        } else if is("host") {
            hosts += 1;
        } else if is("connection") {
            for token in field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                if token.eq_ignore_ascii_case(b"close") {
                    head.keep_alive = false;
                } else if token.eq_ignore_ascii_case(b"keep-alive") && !newer {
                    head.keep_alive = true;
                }
            }
        } else if is("expect") {
            if !field.value.eq_ignore_ascii_case(b"100-continue") {
                return refuse(417, "the only expectation that can be met is 100-continue");
            }
            head.expects_continue = newer;
        } else if is("origin") {
            head.has_origin = true;
        } else if is("authorization") && head.authorization.replace(field.value.to_vec()).is_some() {
            return refuse(400, "there are two Authorization fields");
        }
    }
    if head.chunked && (head.length.is_some() || !newer) {
        return refuse(400, "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0");
    }
    if newer && hosts != 1 {
        return refuse(400, "HTTP/1.1 wants one Host field");
    }
    Ok(head)
}

fn length(value: &[u8]) -> Result<usize, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return refuse(400, "Content-Length is not a number");
    }
    // More than fits is more than is allowed: the caller refuses it by its size.
    Ok(value.iter().fold(0usize, |sum, digit| sum.saturating_mul(10).saturating_add(usize::from(digit - b'0'))))
}

/// The path of a target in origin or absolute form.
fn path(target: &str) -> &str {
    let target = match target.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("http://") => {
            let rest = &target[7..];
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    let path = target.split('?').next().unwrap_or_default();
    if path.is_empty() { "/" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::watched;

    fn events(stream: &[u8], step: usize) -> Vec<Event> {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for piece in stream.chunks(step) {
            assert_eq!(decoder.push(piece), piece.len());
            out.extend(std::iter::from_fn(|| decoder.next_event()));
        }
        out
    }

    fn one(text: &str) -> Head {
        match events(text.as_bytes(), text.len()).remove(0) {
            Event::Head(head) => head,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn refused(text: &str) -> u16 {
        match events(text.as_bytes(), text.len()).pop() {
            Some(Event::Refused(refusal)) => refusal.status,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn requests_follow_each_other_however_the_stream_is_cut() {
        let stream = b"POST /a?b HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nabcGET /metrics HTTP/1.0\r\n\r\n\r\nPOST / HTTP/1.1\r\nHost: y\r\nContent-Length: 0\r\nConnection: foo, Close\r\n\r\n";
        let want = events(stream, stream.len());
        assert_eq!(want.len(), 6);
        assert!(matches!(&want[1], Event::Body(body) if **body == *b"abc"));
        for step in 1..40 {
            assert_eq!(events(stream, step), want, "{step}");
        }
        let Event::Head(last) = &want[4] else { panic!() };
        assert!(!last.keep_alive && last.path == "/" && last.length == Some(0));
        let Event::Head(old) = &want[2] else { panic!() };
        assert!(!old.keep_alive && !old.chunks && old.method == Method::Get && old.path == "/metrics");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
        for fields in [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Content-Length: 0x1",
            "Content-Length:",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Host: y",
            "Authorization: Basic a\r\nAuthorization: Basic b",
            "Content-Length : 1",
            " folded: 1",
            "a\0b: 1",
        ] {
            assert_eq!(refused(&post(fields)), 400, "{fields}");
        }
        assert_eq!(refused("POST / HTTP/1.1\r\n\r\n"), 400, "no Host");
        assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
        assert_eq!(refused("\x16\x03\x01\x02"), 400, "TLS");
        assert_eq!(refused("GET / HTTP/2.0\r\n\r\n"), 505);
        assert_eq!(refused(&post("Expect: cake")), 417);
        assert_eq!(refused(&post(&vec!["a: b"; MAX_FIELDS].join("\r\n"))), 431);
        assert_eq!(refused(&post(&format!("a: {}", "b".repeat(MAX_HEAD)))), 431);
    }

    #[test]
    fn bodies_are_wiped_however_they_come_and_end() {
        const KEY: &str = "00112233445566778899aabbccddeeff";
        let request = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{KEY}", KEY.len());
        let run = |pieces: &[&str]| {
            watched::times(KEY.as_bytes(), || {
                let mut decoder = Decoder::default();
                for piece in pieces {
                    decoder.push(piece.as_bytes());
                    while let Some(event) = decoder.next_event() {
                        drop(event);
                    }
                    assert!(watched::is_clean(&decoder.buffer));
                }
            })
        };
        assert_eq!(run(&[&request]), 3, "where it was received, where it is without its head, and the body");
        assert_eq!(run(&[&request, "x"]), 3, "and more after it");
        assert_eq!(run(&[&format!("{request}{request}")]), 6, "several in one piece");
        assert_eq!(run(&[&request.replace("Length: ", "Length: 1"), " "]), 2, "the connection ends in the middle");
        assert_eq!(run(&[&format!("{KEY}\r\n\r\n")]), 1, "no HTTP");
    }

    #[test]
    fn a_length_beyond_any_number_is_only_large() {
        let head = one("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n");
        assert!(head.length.is_some_and(|length| length > MAX_BODY));
    }

    #[test]
    fn the_path_is_found_in_every_form_of_target() {
        for (target, want) in [
            ("/metrics?x=1", "/metrics"),
            ("http://h:1/metrics", "/metrics"),
            ("HTTP://h?x", "/"),
            ("*", "*"),
            ("/", "/"),
        ] {
            assert_eq!(one(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).path, want);
        }
    }
}
