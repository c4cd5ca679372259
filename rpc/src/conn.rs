//! One connection: bytes in, requests out; answers in, bytes out. The server moves the bytes and runs the requests.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::epoll::EventFlags;
use zeroize::Zeroize;

use crate::error::{INVALID_REQUEST, PARSE_ERROR, Reply, RpcError};
use crate::jsonrpc::{Envelope, Frame, Framer, Id, Rejected, Request, answer};

/// Bytes of answers that a client may leave unread before its connection is closed.
pub(crate) const MAX_UNSENT: usize = 32 << 20;
/// Bytes of answers from which no more requests are read.
const BUSY_UNSENT: usize = 1 << 20;
/// Requests in progress from which no more are read.
const BUSY_REQUESTS: usize = 1024;

/// Where an answer belongs.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    id: Id,
    batch: Option<u64>,
}

/// A request ready to run.
pub(crate) struct Start {
    pub(crate) slot: Slot,
    pub(crate) request: Request,
    /// Whether it changes something: requests after it wait for its end.
    pub(crate) mutates: bool,
}

struct Batch {
    left: usize,
    answers: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are read.
    Open,
    /// The peer sends no more; answers still go out.
    HalfClosed,
    /// The peer sent what is not JSON: answers go out, then the connection ends.
    Broken,
    /// Everything is answered and our side is shut; what the peer still sends is thrown away so that it can read the answer.
    Lingering,
    Closed,
}

pub(crate) struct Connection {
    stream: UnixStream,
    framer: Framer,
    phase: Phase,
    unsent: Vec<u8>,
    sent: usize,
    running: usize,
    mutating: bool,
    waiting: VecDeque<Start>,
    batches: HashMap<u64, Batch>,
    next_batch: u64,
    /// What epoll was last told.
    pub(crate) interest: EventFlags,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Connection {
        Connection {
            stream,
            framer: Framer::default(),
            phase: Phase::Open,
            unsent: Vec::new(),
            sent: 0,
            running: 0,
            mutating: false,
            waiting: VecDeque::new(),
            batches: HashMap::new(),
            next_batch: 0,
            interest: EventFlags::IN,
        }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(crate) fn closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    pub(crate) fn lingering(&self) -> bool {
        self.phase == Phase::Lingering
    }

    pub(crate) fn close(&mut self) {
        self.phase = Phase::Closed;
    }

    fn busy(&self) -> bool {
        self.unsent.len() - self.sent > BUSY_UNSENT || self.running + self.waiting.len() > BUSY_REQUESTS
    }

    fn idle(&self) -> bool {
        self.running == 0 && self.waiting.is_empty() && self.batches.is_empty() && self.sent == self.unsent.len()
    }

    /// What to wait for.
    pub(crate) fn wanted(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        if self.phase == Phase::Lingering || (self.phase == Phase::Open && !self.busy()) {
            flags |= EventFlags::IN;
        }
        if self.sent < self.unsent.len() {
            flags |= EventFlags::OUT;
        }
        flags
    }

    /// Reads what has come and appends the requests in it that may start now.
    pub(crate) fn receive(&mut self, scratch: &mut [u8], mutates: &dyn Fn(&str) -> bool, starts: &mut Vec<Start>) {
        loop {
            self.requests(mutates, starts);
            let room = match self.phase {
                Phase::Open if !self.busy() => self.framer.room().min(scratch.len()),
                Phase::Lingering => scratch.len(),
                _ => return,
            };
            match self.stream.read(&mut scratch[..room]) {
                Ok(0) if self.phase == Phase::Lingering => self.close(),
                Ok(0) => {
                    if let Some(frame) = self.framer.finish() {
                        self.frame(frame, mutates, starts);
                    }
                    if self.phase == Phase::Open {
                        self.phase = Phase::HalfClosed;
                    }
                }
                Ok(n) if self.phase == Phase::Lingering => scratch[..n].zeroize(),
                Ok(n) => {
                    self.framer.push(&scratch[..n]);
                    scratch[..n].zeroize(); // it may hold keys
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.close(),
            }
        }
    }

    fn requests(&mut self, mutates: &dyn Fn(&str) -> bool, starts: &mut Vec<Start>) {
        while self.phase == Phase::Open && !self.busy() {
            match self.framer.next_frame() {
                Some(frame) => self.frame(frame, mutates, starts),
                None => return,
            }
        }
    }

    fn frame(&mut self, frame: Frame, mutates: &dyn Fn(&str) -> bool, starts: &mut Vec<Start>) {
        match frame {
            Frame::Value(value) => match Envelope::read(value) {
                Envelope::Single(item) => self.item(item, None, mutates, starts),
                Envelope::Batch(items) => {
                    let number = self.next_batch;
                    self.next_batch += 1;
                    self.batches.insert(number, Batch { left: items.len(), answers: Vec::new() });
                    for item in items {
                        self.item(item, Some(number), mutates, starts);
                    }
                }
            },
            Frame::Broken(why) => {
                self.phase = Phase::Broken;
                let error = RpcError::new(PARSE_ERROR, "Parse error").because(why);
                self.put(&Slot { id: Id::None, batch: None }, &Err(error));
            }
        }
    }

    fn item(
        &mut self,
        item: Result<Request, Rejected>,
        batch: Option<u64>,
        mutates: &dyn Fn(&str) -> bool,
        starts: &mut Vec<Start>,
    ) {
        match item {
            Ok(request) => {
                let slot = Slot { id: request.id.clone(), batch };
                let start = Start { mutates: mutates(&request.method), slot, request };
                if self.mutating || !self.waiting.is_empty() {
                    self.waiting.push_back(start)
                } else {
                    self.start(start, starts)
                }
            }
            Err(Rejected { id, why }) => {
                self.put(&Slot { id, batch }, &Err(RpcError::new(INVALID_REQUEST, "Invalid request").because(why)));
            }
        }
    }

    fn start(&mut self, start: Start, starts: &mut Vec<Start>) {
        self.running += 1;
        self.mutating = start.mutates;
        starts.push(start);
    }

    /// A request has ended: queues its answer and appends the requests that waited for it.
    pub(crate) fn finish(&mut self, slot: &Slot, mutated: bool, reply: &Reply, starts: &mut Vec<Start>) {
        self.running -= 1;
        self.put(slot, reply);
        if mutated {
            self.mutating = false;
            while !self.mutating {
                match self.waiting.pop_front() {
                    Some(next) => self.start(next, starts),
                    None => break,
                }
            }
        }
    }

    fn put(&mut self, slot: &Slot, reply: &Reply) {
        let text = answer(&slot.id, reply);
        match slot.batch {
            None => self.send(text),
            Some(number) => {
                let Some(batch) = self.batches.get_mut(&number) else { return };
                batch.answers.extend(text);
                batch.left -= 1;
                if batch.left == 0 {
                    let answers = std::mem::take(&mut batch.answers);
                    self.batches.remove(&number);
                    self.send((!answers.is_empty()).then(|| format!("[{}]", answers.join(","))));
                }
            }
        }
    }

    fn send(&mut self, text: Option<String>) {
        let Some(text) = text else { return };
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
        }
        if self.unsent.len() - self.sent + text.len() > MAX_UNSENT {
            tracing::warn!("an RPC client left 32 MiB of answers unread: its connection is closed");
            return self.close();
        }
        self.unsent.extend_from_slice(text.as_bytes());
        self.unsent.push(b'\n');
    }

    /// Writes what fits and moves on to the next phase when all is said.
    pub(crate) fn flush(&mut self) {
        while self.sent < self.unsent.len() && self.phase != Phase::Closed {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.close(),
            }
        }
        if self.sent > 0 && self.sent == self.unsent.len() {
            // A large answer is rare: its memory is not kept.
            if self.unsent.capacity() > BUSY_UNSENT {
                self.unsent = Vec::new()
            } else {
                self.unsent.clear()
            }
            self.sent = 0;
        }
        if self.idle() {
            match self.phase {
                Phase::HalfClosed => self.close(),
                Phase::Broken => {
                    let _ = self.stream.shutdown(std::net::Shutdown::Write);
                    self.phase = Phase::Lingering;
                }
                _ => {}
            }
        }
    }

    /// Nothing is in progress and nothing is left to send.
    pub(crate) fn quiet(&self) -> bool {
        self.idle()
    }
}
