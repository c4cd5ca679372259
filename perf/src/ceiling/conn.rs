//! One connection of the raw-socket loop: where bytes are received, what they mean, and what is to be sent.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::TcpStream;
use std::rc::Rc;

use super::message::{Kind, Message, Parser};
use crate::cli::{CeilingShape, Payload};

/// Memory that payload is drawn from.
pub(super) struct Region {
    bytes: Vec<u8>,
    places: u64,
    payload: usize,
}

impl Region {
    pub(super) fn new(shape: &CeilingShape, sends_payload: bool) -> Rc<Region> {
        let payload = shape.io_size as usize;
        let places = match shape.payload {
            Payload::Region(n) if sends_payload => (n / payload as u64).max(1),
            _ => 1,
        };
        let len = if sends_payload { places as usize * payload } else { 0 };
        // Written, not only reserved: untouched memory would all be the one zero page, and hot.
        Rc::new(Region { bytes: vec![0xa5; len], places, payload })
    }

    #[inline]
    fn place(&self, random: u64) -> usize {
        (random % self.places) as usize * self.payload
    }
}

/// What a side does about a message.
pub(super) trait Role {
    fn on(&mut self, m: Message, tx: &mut Tx);
    /// Sends what this side sends of its own accord.
    fn start(&mut self, _tx: &mut Tx) {}
}

/// A header, or several adjoining ones, and at most one payload behind.
struct Out {
    head: usize,
    head_len: usize,
    payload: usize,
    payload_len: usize,
}

impl Out {
    fn len(&self) -> usize {
        self.head_len + self.payload_len
    }
}

/// What is queued to send.
pub(super) struct Tx {
    heads: Box<[u8]>,
    at: usize,
    queue: VecDeque<Out>,
    /// Bytes of the first entry that are sent already.
    sent: usize,
    region: Rc<Region>,
}

impl Tx {
    /// Queues a message, with the payload that `m.place` names if `payload`.
    #[inline]
    pub(super) fn push(&mut self, m: Message, payload: bool) {
        let len = m.kind.header_len();
        if self.at + len > self.heads.len() {
            self.at = 0;
        }
        let head = self.at;
        self.at += len;
        let payload_len = if payload { self.region.payload } else { 0 };
        m.write(&mut self.heads[head..head + len], payload_len as u32);
        let place = if payload { self.region.place(m.place) } else { 0 };
        match self.queue.back_mut() {
            Some(last) if last.payload_len == 0 && last.head + last.head_len == head => {
                last.head_len += len;
                (last.payload, last.payload_len) = (place, payload_len);
            }
            _ => self.queue.push_back(Out { head, head_len: len, payload: place, payload_len }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What is to be sent, in order.
    #[inline]
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.sent;
        self.queue
            .iter()
            .flat_map(|o| {
                [&self.heads[o.head..o.head + o.head_len], &self.region.bytes[o.payload..o.payload + o.payload_len]]
            })
            .filter_map(move |mut piece| {
                let n = skip.min(piece.len());
                skip -= n;
                piece = &piece[n..];
                (!piece.is_empty()).then_some(piece)
            })
    }

    /// `n` more bytes were sent.
    pub(super) fn advance(&mut self, n: usize) {
        self.sent += n;
        while let Some(first) = self.queue.front()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            self.queue.pop_front();
        }
    }
}

/// One connection.
pub(super) struct Conn<R> {
    pub(super) stream: TcpStream,
    pub(super) tx: Tx,
    pub(super) closed: bool,
    parser: Parser,
    rx: Box<[u8]>,
    at: usize,
    role: R,
}

/// Most bytes asked for in one receive.
const RX_CHUNK: usize = 1 << 20;

impl<R: Role> Conn<R> {
    /// A connection that carries up to `depth` requests. `receives`: payload arrives here, into a buffer of its own per request.
    pub(super) fn new(
        stream: TcpStream,
        depth: usize,
        shape: &CeilingShape,
        receives: bool,
        region: Rc<Region>,
        role: R,
    ) -> Conn<R> {
        let rx = if receives { (depth * (shape.io_size as usize + 72)).max(64 << 10) } else { 64 << 10 };
        // A request has at most a command and a data header queued; room for twice that never wraps onto one in use.
        let heads = filled((depth * 2 * (72 + 24)).max(4096));
        let tx = Tx { heads, at: 0, queue: VecDeque::with_capacity(depth * 2), sent: 0, region };
        let mut c = Conn { stream, tx, closed: false, parser: Parser::default(), rx: filled(rx), at: 0, role };
        c.role.start(&mut c.tx);
        c
    }

    /// The socket, and where its next bytes go.
    #[inline]
    pub(super) fn rx_space(&mut self) -> (&TcpStream, &mut [u8]) {
        let end = self.rx.len().min(self.at + RX_CHUNK);
        (&self.stream, &mut self.rx[self.at..end])
    }

    /// `n` bytes lie in `rx_space`. 0, or bytes that make no sense, close the connection.
    #[inline]
    pub(super) fn received(&mut self, n: usize) {
        let Conn { parser, rx, role, tx, .. } = self;
        if n == 0 || !parser.feed(&rx[self.at..self.at + n], |m| role.on(m, tx)) {
            self.closed = true;
        }
        self.at += n;
        if self.at == self.rx.len() {
            self.at = 0;
        }
    }
}

/// Memory that is really there: the first touch does not fall into the measurement.
fn filled(len: usize) -> Box<[u8]> {
    vec![0xff; len].into_boxed_slice()
}

/// The side that answers.
pub(super) struct Server {
    reads: bool,
    in_capsule: bool,
}

impl Server {
    pub(super) fn new(shape: &CeilingShape) -> Server {
        Server { reads: super::reads(shape), in_capsule: u64::from(shape.io_size) <= shape.in_capsule }
    }
}

impl Role for Server {
    #[inline]
    fn on(&mut self, m: Message, tx: &mut Tx) {
        match m.kind {
            Kind::Command if self.reads => tx.push(Message { kind: Kind::ControllerData, ..m }, true),
            Kind::Command if !self.in_capsule => tx.push(Message { kind: Kind::ReadyToTransfer, ..m }, false),
            _ => tx.push(Message { kind: Kind::Response, ..m }, false),
        }
    }
}

/// The side that asks, and keeps its depth full.
pub(super) struct Client {
    depth: usize,
    payload_with_command: bool,
    random: u64,
    done: Rc<Cell<u64>>,
}

impl Client {
    pub(super) fn new(shape: &CeilingShape, depth: usize, seed: u64, done: Rc<Cell<u64>>) -> Client {
        let in_capsule = u64::from(shape.io_size) <= shape.in_capsule;
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Client { depth, payload_with_command: !super::reads(shape) && in_capsule, random, done }
    }

    #[inline]
    fn command(&mut self, cid: u16, tx: &mut Tx) {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        tx.push(Message { kind: Kind::Command, cid, place: self.random >> 8 }, self.payload_with_command);
    }
}

impl Role for Client {
    #[inline]
    fn on(&mut self, m: Message, tx: &mut Tx) {
        if m.kind == Kind::ReadyToTransfer {
            return tx.push(Message { kind: Kind::HostData, ..m }, true);
        }
        self.done.set(self.done.get() + 1);
        self.command(m.cid, tx);
    }

    fn start(&mut self, tx: &mut Tx) {
        for cid in 0..self.depth {
            self.command(cid as u16, tx);
        }
    }
}
