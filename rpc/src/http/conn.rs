//! One HTTP connection: bytes in, one request at a time out; its answer in, bytes out. `server` moves it along.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use zeroize::Zeroize;

use super::parse::{Decoder, Event, Head, MAX_BODY, Method};
use super::{Pages, Serve};
use crate::error::{PARSE_ERROR, RpcError};
use crate::jsonrpc::{Envelope, Frame, Framer, Id, answer};

/// How long a connection may stay without a request.
const IDLE: Duration = Duration::from_secs(75);
/// How long a request may take to come.
const REQUEST: Duration = Duration::from_secs(10);
/// How long an answer may make no progress.
const STALLED: Duration = Duration::from_secs(30);
/// How long a whole answer may take to be taken.
const ANSWER: Duration = Duration::from_secs(120);
/// How long an answer makes no progress before its connection may be given up for another one.
const SLOW: Duration = Duration::from_secs(1);
/// How long a client that was refused may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// Memory of an answer that is kept for the next one.
const KEPT: usize = 64 * 1024;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a complete request asks for.
pub(crate) enum Act {
    /// Requests to run.
    Rpc(Envelope),
    /// The metrics.
    Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests, or in one.
    Reading,
    /// A request runs.
    Running,
    /// Its answer goes out.
    Sending,
    /// Our side is shut; what still comes is thrown away so that the client can read the answer.
    Lingering,
    Closed,
}

/// A refusal by this server.
struct Refused {
    status: u16,
    field: &'static str,
    why: &'static str,
}

const fn refused<T>(status: u16, field: &'static str, why: &'static str) -> Result<T, Refused> {
    Err(Refused { status, field, why })
}

pub(crate) struct Connection {
    stream: TcpStream,
    /// Number of the listener that it came by.
    pub(crate) listener: usize,
    serve: Arc<Serve>,
    decoder: Decoder,
    phase: Phase,
    /// The request that is read or answered.
    head: Option<Head>,
    unsent: Vec<u8>,
    sent: usize,
    /// What is still to come of an answer, and whether it goes in chunks.
    pages: Option<Pages>,
    chunks: bool,
    deadline: Option<Instant>,
    /// By when the answer must have been taken.
    answer_by: Instant,
    /// Since when the client is waited for.
    pub(crate) since: Instant,
    /// Statuses that were answered and are not counted yet.
    pub(crate) answered: Vec<u16>,
    /// What epoll was last told.
    pub(crate) interest: EventFlags,
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, listener: usize, serve: Arc<Serve>, now: Instant) -> Connection {
        // Answers are written whole: waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        Connection {
            stream,
            listener,
            serve,
            decoder: Decoder::default(),
            phase: Phase::Reading,
            head: None,
            unsent: Vec::new(),
            sent: 0,
            pages: None,
            chunks: false,
            deadline: Some(now + REQUEST),
            answer_by: now,
            since: now,
            answered: Vec::new(),
            interest: EventFlags::IN,
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn close(&mut self) {
        self.phase = Phase::Closed;
    }

    pub(crate) fn closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Nothing is in progress and nothing is left to send.
    pub(crate) fn quiet(&self) -> bool {
        !matches!(self.phase, Phase::Running | Phase::Sending)
    }

    /// It may be given up for another one: nothing is in progress, or its client does not take the answer.
    pub(crate) fn evictable(&self, now: Instant) -> bool {
        self.quiet() || self.phase == Phase::Sending && now.saturating_duration_since(self.since) >= SLOW
    }

    /// The client took too long.
    pub(crate) fn overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// What to wait for.
    pub(crate) fn wanted(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        if matches!(self.phase, Phase::Reading | Phase::Lingering) {
            flags |= EventFlags::IN;
        }
        if self.phase == Phase::Sending || self.sent < self.unsent.len() {
            flags |= EventFlags::OUT;
        }
        flags
    }

    fn enter(&mut self, phase: Phase, limit: Option<Duration>) {
        let now = Instant::now();
        self.phase = phase;
        self.since = now;
        self.deadline = limit.map(|limit| now + limit);
    }

    /// An answer starts to go out.
    fn send(&mut self) {
        self.enter(Phase::Sending, Some(STALLED));
        self.answer_by = self.since + ANSWER;
    }

    /// The client took a part of it.
    fn progress(&mut self) {
        self.since = Instant::now();
        self.deadline = Some((self.since + STALLED).min(self.answer_by));
    }

    /// Reads what has come, until a request is complete.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Option<Act> {
        loop {
            if self.phase == Phase::Reading {
                match self.decoder.next_event() {
                    Some(Event::Head(head)) => {
                        self.begin(head);
                        continue;
                    }
                    Some(Event::Body(body)) => return self.complete(&body),
                    Some(Event::Refused(r)) => {
                        self.refuse(Refused { status: r.status, field: "", why: r.why });
                        continue;
                    }
                    None => {}
                }
            }
            let room = match self.phase {
                Phase::Reading => self.decoder.room().min(scratch.len()),
                Phase::Lingering => scratch.len(),
                _ => return None,
            };
            match self.stream.read(&mut scratch[..room]) {
                Ok(0) => self.close(),
                Ok(n) if self.phase == Phase::Reading => {
                    if self.decoder.is_empty() {
                        self.enter(Phase::Reading, Some(REQUEST));
                    }
                    self.decoder.push(&scratch[..n]);
                    scratch[..n].zeroize(); // it may hold keys
                }
                // One piece at a time: somebody who sends without end must not keep the others waiting.
                Ok(n) => {
                    scratch[..n].zeroize();
                    return None;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => self.close(),
            }
        }
    }

    fn begin(&mut self, head: Head) {
        match self.admit(&head) {
            Ok(()) => {
                if head.expects_continue && self.decoder.lacking() > 0 {
                    self.unsent.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                self.head = Some(head);
            }
            Err(refused) => {
                self.head = Some(head);
                self.refuse(refused);
            }
        }
    }

    /// Whether the request may come at all.
    fn admit(&self, head: &Head) -> Result<(), Refused> {
        let is_metrics = head.path == "/metrics" && matches!(head.method, Method::Get | Method::Head);
        match &*self.serve {
            Serve::Rpc(Some(credentials))
                if !head.authorization.as_deref().is_some_and(|field| credentials.accept(field)) =>
            {
                let field = "WWW-Authenticate: Basic realm=\"longshore\", charset=\"UTF-8\"\r\n";
                return refused(401, field, "user or password is wrong, or there is none");
            }
            Serve::Rpc(None) if head.has_origin => {
                return refused(403, "", "requests of web pages need credentials: start with --rpc-http-auth");
            }
            _ => {}
        }
        match (&*self.serve, head.method) {
            (Serve::Rpc(_), Method::Post) if head.length.is_none() => {
                return refused(411, "", "a request needs Content-Length; chunks are not taken");
            }
            (Serve::Rpc(_), Method::Post) => {}
            _ if is_metrics => {}
            (Serve::Metrics, Method::Get | Method::Head) => return refused(404, "", "the metrics are at /metrics"),
            (Serve::Metrics, _) => return refused(405, "Allow: GET, HEAD\r\n", "only /metrics is served here"),
            (Serve::Rpc(_), _) => return refused(405, "Allow: POST\r\n", "JSON-RPC requests come by POST"),
        }
        if head.chunked {
            return refused(411, "", "a body needs Content-Length; chunks are not taken");
        }
        if head.length.is_some_and(|length| length > MAX_BODY) {
            return refused(413, "", "the body is larger than 256 KiB");
        }
        Ok(())
    }

    /// A request is there as a whole.
    fn complete(&mut self, body: &[u8]) -> Option<Act> {
        let method = self.head.as_ref().map(|head| head.method);
        match method {
            Some(Method::Post) => match envelope(body) {
                Ok(envelope) => {
                    self.enter(Phase::Running, None);
                    return Some(Act::Rpc(envelope));
                }
                Err(why) => {
                    let error = RpcError::new(PARSE_ERROR, "Parse error").because(why);
                    self.rpc_answer(400, answer(&Id::None, &Err(error)));
                }
            },
            Some(Method::Head) => self.metrics(Some(Box::new(std::iter::empty()))),
            _ => {
                self.enter(Phase::Running, Some(STALLED));
                return Some(Act::Metrics);
            }
        }
        None
    }

    fn refuse(&mut self, refused: Refused) {
        if let Some(head) = &mut self.head {
            head.keep_alive = false;
        }
        self.answer(refused.status, refused.field, TEXT, format!("{}\n", refused.why).as_bytes());
    }

    /// The answer to requests, if one is due.
    pub(crate) fn rpc_answer(&mut self, status: u16, text: Option<String>) {
        match text {
            Some(mut text) => {
                text.push('\n');
                let kind = if status == 500 { TEXT } else { JSON };
                self.answer(status, "", kind, text.as_bytes());
            }
            None => self.answer(204, "", "", b""),
        }
    }

    fn fields(&mut self, status: u16, kind: &str) -> String {
        self.answered.push(status);
        let head = self.head.as_ref();
        let mut out = format!("HTTP/1.1 {status} {}\r\nServer: longshore\r\n", reason(status));
        if !kind.is_empty() {
            let _ = write!(out, "Content-Type: {kind}\r\nCache-Control: no-store\r\n");
        }
        match head {
            Some(head) if head.keep_alive && head.chunks => {}
            Some(head) if head.keep_alive => out.push_str("Connection: keep-alive\r\n"),
            _ => out.push_str("Connection: close\r\n"),
        }
        out
    }

    fn answer(&mut self, status: u16, field: &str, kind: &str, body: &[u8]) {
        let mut text = self.fields(status, kind);
        text.push_str(field);
        if status != 204 {
            let _ = write!(text, "Content-Length: {}\r\n", body.len());
        }
        text.push_str("\r\n");
        self.unsent.extend_from_slice(text.as_bytes());
        if self.head.as_ref().is_none_or(|head| head.method != Method::Head) {
            self.unsent.extend_from_slice(body);
        }
        self.send();
    }

    /// The answer to a request for metrics.
    pub(crate) fn metrics(&mut self, pages: Option<Pages>) {
        let Some(pages) = pages else {
            return self.refuse(Refused {
                status: 503,
                field: "",
                why: "cores do not answer, or there are no metrics",
            });
        };
        self.chunks = self.head.as_ref().is_some_and(|head| head.chunks);
        if let (Some(head), false) = (&mut self.head, self.chunks) {
            head.keep_alive = false; // the end of the connection is the end of the answer
        }
        let mut text = self.fields(200, EXPOSITION);
        if self.chunks {
            text.push_str("Transfer-Encoding: chunked\r\n");
        }
        text.push_str("\r\n");
        self.unsent.extend_from_slice(text.as_bytes());
        let wants_body = self.head.as_ref().is_none_or(|head| head.method != Method::Head);
        self.pages = wants_body.then_some(pages);
        self.send();
    }

    /// Appends the next page. False when there was none.
    fn turn_page(&mut self) -> bool {
        let Some(pages) = &mut self.pages else { return false };
        match pages.next() {
            Some(page) if self.chunks && !page.is_empty() => {
                self.unsent.extend_from_slice(format!("{:x}\r\n", page.len()).as_bytes());
                self.unsent.extend_from_slice(page.as_bytes());
                self.unsent.extend_from_slice(b"\r\n");
            }
            Some(page) => self.unsent.extend_from_slice(page.as_bytes()),
            None => {
                self.pages = None;
                if self.chunks {
                    self.unsent.extend_from_slice(b"0\r\n\r\n");
                }
            }
        }
        true
    }

    /// Writes what fits, one page at most, and moves on when all is said. True: the next request may be looked for.
    pub(crate) fn flush(&mut self) -> bool {
        let mut turned = false;
        loop {
            while self.sent < self.unsent.len() && self.phase != Phase::Closed {
                match self.stream.write(&self.unsent[self.sent..]) {
                    Ok(n) => {
                        self.sent += n;
                        if self.phase == Phase::Sending {
                            self.progress();
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                    Err(_) => self.close(),
                }
            }
            self.sent = 0;
            self.unsent.clear();
            self.unsent.shrink_to(KEPT);
            if self.phase != Phase::Sending {
                return false;
            }
            if self.pages.is_some() {
                if turned {
                    return false; // others first
                }
                turned = self.turn_page();
                continue;
            }
            return self.settle();
        }
    }

    /// An answer is sent as a whole.
    fn settle(&mut self) -> bool {
        if self.head.take().is_some_and(|head| head.keep_alive) {
            let limit = if self.decoder.is_empty() { IDLE } else { REQUEST };
            self.enter(Phase::Reading, Some(limit));
            return true;
        }
        let _ = self.stream.shutdown(Shutdown::Write);
        self.enter(Phase::Lingering, Some(LINGER));
        false
    }
}

/// The one JSON value of a body.
fn envelope(body: &[u8]) -> Result<Envelope, &'static str> {
    let mut framer = Framer::default();
    framer.push(body);
    match framer.next_frame().or_else(|| framer.finish()) {
        Some(Frame::Value(value)) => match framer.next_frame() {
            None if framer.buffered() == 0 => Ok(Envelope::read(value)),
            _ => Err("a body holds one request, or an array of them"),
        },
        Some(Frame::Broken(why)) => Err(why),
        None => Err("the body ends before its request does"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_holds_exactly_one_value() {
        assert!(envelope(b" {\"method\":\"m\"}\r\n").is_ok());
        assert!(envelope(b"[{\"method\":\"m\"}]").is_ok());
        assert!(matches!(envelope(b"17"), Ok(Envelope::Single(Err(_)))));
        for (body, part) in [
            ("", "ends before"),
            ("  ", "ends before"),
            ("{", "ends before"),
            ("{}{}", "one request"),
            ("{} x", "one request"),
            ("{} {", "one request"),
        ] {
            let why = envelope(body.as_bytes()).unwrap_err();
            assert!(why.contains(part), "{body}: {why}");
        }
        assert!(envelope(b"nonsense").is_err());
    }
}
