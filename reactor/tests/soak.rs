//! Random traffic over random behaviour: what arrives is what was sent, in order, whatever the handlers, the ring and the
//! kernel do; and at the end nothing is left.

use longshore_reactor::sim::Random;
use longshore_reactor::sock::{Next, Sock, SockHandler};
use longshore_reactor::{DmaBuf, OpKind, Options, Reactor, RingOptions, Runtime, Timer};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

/// The byte at position `i` of the stream of `seed`.
fn byte(seed: u64, i: u64) -> u8 {
    (i.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 7) as u8
}

/// What the ends of one connection tell each other outside of it.
#[derive(Default)]
struct Ledger {
    sent: Cell<u64>,
    received: Cell<u64>,
    /// The sender said that everything queued shall arrive.
    finished: Cell<bool>,
    /// Some end gave up before: bytes may be missing.
    cut: Cell<bool>,
}

/// One end: sends its stream, checks the other's, and misbehaves.
struct End {
    random: RefCell<Random>,
    out: (u64, Rc<Ledger>),
    inp: (u64, Rc<Ledger>),
    actions_left: Cell<u32>,
    timer: RefCell<Option<Timer>>,
    closed: Rc<Cell<u32>>,
    /// Bytes that arrived, on all connections; and whole streams among them.
    totals: Rc<Cell<(u64, u32)>>,
}

impl End {
    fn below(&self, n: u64) -> u64 {
        self.random.borrow_mut().below(n)
    }

    fn check(&self, data: &[u8]) {
        let (seed, l) = &self.inp;
        let at = l.received.get();
        for (i, &b) in data.iter().enumerate() {
            assert_eq!(b, byte(*seed, at + i as u64), "byte {} of stream {seed}", at + i as u64);
        }
        l.received.set(at + data.len() as u64);
        assert!(l.received.get() <= l.sent.get());
    }

    fn send(&self, s: &Sock) {
        if s.is_closed() || s.queued() > 2 << 20 {
            return;
        }
        let (seed, l) = &self.out;
        let (at, n) = (l.sent.get(), self.below(if self.below(4) == 0 { 150_000 } else { 300 }) as usize);
        let bytes: Vec<u8> = (0..n).map(|i| byte(*seed, at + i as u64)).collect();
        match s.reactor().dma().alloc(n.max(1)) {
            Some(mut b) if self.below(2) == 0 => {
                b.get_mut().unwrap()[..n].copy_from_slice(&bytes);
                s.send_buf(b.slice(0, n));
            }
            _ => s.send_bytes(&bytes),
        }
        l.sent.set(at + n as u64);
    }

    /// Does something and says what to receive next.
    fn act(self: &Rc<Self>, s: &Sock) -> Next {
        for _ in 0..self.below(4) {
            self.send(s);
        }
        if self.actions_left.get() == 0 {
            self.out.1.finished.set(true);
            return Next::Close;
        }
        self.actions_left.set(self.actions_left.get() - 1);
        match self.below(100) {
            0 if self.below(4) == 0 => {
                self.cut();
                s.close();
                Next::Ring
            }
            1..15 => {
                let (me, sock) = (self.clone(), s.clone());
                let after = Duration::from_micros(self.below(300));
                let timer = s.reactor().timer(after, move |_| {
                    let next = me.act(&sock);
                    sock.resume(if matches!(next, Next::Pause) { Next::Ring } else { next });
                });
                *self.timer.borrow_mut() = Some(timer);
                Next::Pause
            }
            15..20 => {
                s.resume(Next::Ring);
                Next::Pause
            }
            20..60 => {
                let len = 1 + self.below(60_000) as usize;
                let off = self.below(100) as usize;
                match s.reactor().dma().alloc(off + len) {
                    Some(buf) => Next::Direct { buf, off, len },
                    None => Next::Ring,
                }
            }
            _ => Next::Ring,
        }
    }

    fn cut(&self) {
        self.out.1.cut.set(true);
        self.inp.1.cut.set(true);
    }
}

struct Handler(Rc<End>);

impl SockHandler for Handler {
    fn on_recv(&self, s: &Sock, data: &[u8]) -> Next {
        self.0.check(data);
        self.0.act(s)
    }

    fn on_direct(&self, s: &Sock, buf: DmaBuf, n: usize, tail: &[u8]) -> Next {
        // The offset is not told back: the end of the buffer tells where the part asked for began.
        let end = buf.len();
        let start = self.0.inp.1.received.get();
        let off = (0..=100).find(|&off| {
            off + n <= end && (0..n).all(|i| buf.as_slice()[off + i] == byte(self.0.inp.0, start + i as u64))
        });
        let off = off.expect("the bytes received directly are not the stream's next");
        self.0.check(&buf.as_slice()[off..off + n]);
        self.0.check(tail);
        drop(buf);
        self.0.act(s)
    }

    fn on_sent(&self, s: &Sock) {
        self.0.send(s);
    }

    fn on_close(&self, s: &Sock, e: io::Error) {
        let k = e.kind();
        if !matches!(k, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionAborted) {
            self.0.cut();
        }
        if k == io::ErrorKind::UnexpectedEof && !self.0.out.1.finished.get() {
            // The peer ended first: what was on its way to it is lost.
            self.0.out.1.cut.set(true);
        }
        if k == io::ErrorKind::UnexpectedEof && self.0.inp.1.finished.get() && !self.0.inp.1.cut.get() {
            assert_eq!(self.0.inp.1.received.get(), self.0.inp.1.sent.get(), "finished, yet bytes are missing");
            self.0.totals.set((self.0.totals.get().0, self.0.totals.get().1 + 1));
        }
        self.0.totals.set((self.0.totals.get().0 + self.0.inp.1.received.get(), self.0.totals.get().1));
        s.close();
        s.resume(Next::Ring);
        let timer = self.0.timer.borrow_mut().take();
        drop(timer);
        self.0.closed.set(self.0.closed.get() + 1);
    }
}

fn connect(r: &Reactor, random: &mut Random, closed: &Rc<Cell<u32>>, totals: &Rc<Cell<(u64, u32)>>) {
    let (a, b) = UnixStream::pair().unwrap();
    let ledgers = [Rc::new(Ledger::default()), Rc::new(Ledger::default())];
    let seeds = [random.bits(), random.bits()];
    let both = random.chance(500);
    for (i, fd) in [OwnedFd::from(a), OwnedFd::from(b)].into_iter().enumerate() {
        let end = Rc::new(End {
            random: RefCell::new(Random::new(random.bits())),
            out: (seeds[i], ledgers[i].clone()),
            inp: (seeds[1 - i], ledgers[1 - i].clone()),
            // On half of the connections both ends finish at some time, on the others one does and must be heard out.
            actions_left: Cell::new(if i == 0 || both { 20 + random.below(30) as u32 } else { u32::MAX }),
            timer: RefCell::new(None),
            closed: closed.clone(),
            totals: totals.clone(),
        });
        let s = Sock::from_fd(r, fd, Rc::new(Handler(end.clone()))).unwrap();
        s.set_low_water(64 << 10);
        // Keeps the conversation alive when both wait for each other.
        let (weak, sock) = (Rc::downgrade(&end), s.clone());
        r.every(Duration::from_millis(1), move |_| {
            if let Some(end) = weak.upgrade() {
                end.send(&sock);
            }
        })
        .detach();
        s.start(Next::Ring);
    }
}

#[test]
fn streams_stay_intact_under_random_behaviour_scarcity_and_faults() {
    let tiny = RingOptions {
        sq_entries: 4,
        cq_entries: 8,
        rx_slice: 4096,
        rx_slices: 1,
        rx_slices_max: 4,
        ..RingOptions::default()
    };
    for (seed, ring, faults) in [
        (1, RingOptions::default(), false),
        (2, tiny.clone(), false),
        (3, tiny, true),
        (4, RingOptions::default(), true),
    ] {
        let rt = Runtime::start(Options { ring, pin: false, ..Options::default() }).unwrap();
        let done = rt.cores()[0].spawn(move |r| async move {
            let mut random = Random::new(seed);
            let (closed, totals) = (Rc::new(Cell::new(0)), Rc::new(Cell::new((0, 0))));
            if faults {
                let mut chance = Random::new(seed);
                r.inject_sq_full(5);
                r.inject(Some(Box::new(move |kind| match kind {
                    OpKind::Recv if chance.chance(30) => Some(-libc::ENOBUFS),
                    OpKind::Recv if chance.chance(20) => Some(-libc::EINTR),
                    OpKind::Recv if chance.chance(2) => Some(-libc::ECONNRESET),
                    OpKind::Send if chance.chance(30) => Some(-libc::EAGAIN),
                    OpKind::Send if chance.chance(2) => Some(-libc::EPIPE),
                    _ => None,
                })));
            }
            for _ in 0..30 {
                connect(&r, &mut random, &closed, &totals);
            }
            while closed.get() < 60 {
                r.sleep(Duration::from_millis(1)).await;
            }
            r.inject(None);
            while r.sock_stats().connections > 0 {
                r.yield_now().await;
            }
            let held: usize = r.dma().stats().classes.iter().map(|c| c.in_use).sum();
            let (bytes, whole) = totals.get();
            assert!(bytes > 5_000_000 && (faults || whole > 5), "{bytes} bytes, {whole} whole streams");
            (held, closed.get())
        });
        assert_eq!(done.wait_timeout(Duration::from_secs(60)), Some(Ok((0, 60))), "seed {seed}");
        rt.stop();
    }
}
