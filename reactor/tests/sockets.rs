//! Connections: echo, direct receives, back-pressure, close, hand-over.

use longshore_reactor::sock::{Next, Sock, SockHandler};
use longshore_reactor::{DmaBuf, Options, Reactor, RingOptions, Runtime, net, oneshot};
use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

fn runtime(ring: RingOptions) -> Runtime {
    let o = Options { cores: vec![0], ring, pin: false, ..Options::default() };
    Runtime::start(o).unwrap_or_else(|e| panic!("{e}"))
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A connected pair: the descriptor for the reactor and a blocking peer.
fn pair() -> (OwnedFd, TcpStream) {
    let l = StdListener::bind(any()).unwrap();
    let peer = TcpStream::connect(l.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (l.accept().unwrap().0.into(), peer)
}

struct Echo;

impl SockHandler for Echo {
    fn on_recv(&self, s: &Sock, data: &[u8]) -> Next {
        s.send_bytes(data);
        Next::Ring
    }
    fn on_direct(&self, _: &Sock, _: DmaBuf, _: usize, _: &[u8]) -> Next {
        unreachable!()
    }
    fn on_close(&self, _: &Sock, _: io::Error) {}
}

/// Listens on `rt`'s first core; the listener is leaked to the reactor until it stops.
fn listen(rt: &Runtime, f: impl Fn(&Reactor, OwnedFd, SocketAddr) + Send + 'static) -> SocketAddr {
    rt.cores()[0]
        .call(move |r| {
            let l = net::TcpListener::bind(r, any(), 128, f).unwrap();
            let addr = l.local_addr();
            std::mem::forget(l);
            addr
        })
        .wait()
        .unwrap()
}

fn echo_round_trip(addr: SocketAddr, bytes: usize) {
    let mut c = TcpStream::connect(addr).unwrap();
    c.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let data: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut w, send) = (c.try_clone().unwrap(), data.clone());
    let t = std::thread::spawn(move || w.write_all(&send).unwrap());
    let mut back = vec![0; bytes];
    c.read_exact(&mut back).unwrap();
    t.join().unwrap();
    assert!(back == data, "the echo differs");
}

#[test]
fn what_is_sent_comes_back() {
    let rt = runtime(RingOptions::default());
    let addr = listen(&rt, |r, fd, _| Sock::from_fd(r, fd, Rc::new(Echo)).unwrap().start(Next::Ring));
    echo_round_trip(addr, 10);
    echo_round_trip(addr, 3_000_000);
    rt.stop();
}

#[test]
fn tiny_rings_and_a_single_receive_slice_lose_nothing() {
    // Real shortages: the submission queue fills, completions overflow, receives find no slice.
    let rt = runtime(RingOptions {
        sq_entries: 2,
        cq_entries: 4,
        rx_slice: 4096,
        rx_slices: 1,
        rx_slices_max: 2,
        ..RingOptions::default()
    });
    let addr = listen(&rt, |r, fd, _| {
        r.inject_sq_full(3);
        Sock::from_fd(r, fd, Rc::new(Echo)).unwrap().start(Next::Ring)
    });
    let clients: Vec<_> = (0..16).map(|_| std::thread::spawn(move || echo_round_trip(addr, 200_000))).collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
    assert!(rt.cores()[0].stats().sq_full > 0);
    rt.stop();
}

/// Reads frames of a fixed size: 4 header bytes, then a payload received directly.
struct Framed {
    payload: usize,
    got: Cell<usize>,
    head: RefCell<Vec<u8>>,
    out: RefCell<Vec<u8>>,
    done: RefCell<Option<oneshot::Sender<Vec<u8>>>>,
}

impl Framed {
    fn feed(&self, s: &Sock, mut data: &[u8]) -> Next {
        loop {
            let mut head = self.head.borrow_mut();
            let need = 4usize.saturating_sub(head.len()).min(data.len());
            head.extend_from_slice(&data[..need]);
            data = &data[need..];
            if head.len() < 4 {
                return Next::Ring;
            }
            let have = data.len().min(self.payload);
            let mut buf = s.reactor().dma().alloc(self.payload).unwrap();
            buf.get_mut().unwrap()[..have].copy_from_slice(&data[..have]);
            data = &data[have..];
            self.got.set(have);
            if have < self.payload {
                return Next::Direct { buf, off: have, len: self.payload - have };
            }
            drop(head);
            if self.frame(&buf) {
                return Next::Close;
            }
        }
    }

    fn frame(&self, buf: &DmaBuf) -> bool {
        self.out.borrow_mut().extend_from_slice(&self.head.borrow());
        self.out.borrow_mut().extend_from_slice(&buf.as_slice()[..self.payload]);
        self.head.borrow_mut().clear();
        self.out.borrow().len() >= 8 * (self.payload + 4)
    }
}

impl SockHandler for Framed {
    fn on_recv(&self, s: &Sock, data: &[u8]) -> Next {
        self.feed(s, data)
    }
    fn on_direct(&self, s: &Sock, buf: DmaBuf, n: usize, tail: &[u8]) -> Next {
        self.got.set(self.got.get() + n);
        if self.got.get() < self.payload {
            assert!(tail.is_empty());
            let off = self.got.get();
            return Next::Direct { buf, off, len: self.payload - off };
        }
        if self.frame(&buf) { Next::Close } else { self.feed(s, tail) }
    }
    fn on_close(&self, _: &Sock, e: io::Error) {
        assert_eq!(e.kind(), io::ErrorKind::ConnectionAborted, "{e}");
        self.done.take().unwrap().send(self.out.take()).unwrap();
    }
}

#[test]
fn payloads_are_received_where_they_belong_whatever_the_segmentation() {
    for (payload, cut) in [(100_000, 100_000 + 4), (20_000, 7_000), (9_000, 50_000)] {
        let rt = runtime(RingOptions::default());
        let (fd, mut peer) = pair();
        let (tx, rx) = oneshot::channel();
        rt.cores()[0].send(move |r| {
            let h = Framed {
                payload,
                got: Cell::new(0),
                head: RefCell::default(),
                out: RefCell::default(),
                done: RefCell::new(Some(tx)),
            };
            Sock::from_fd(r, fd, Rc::new(h)).unwrap().start(Next::Ring);
        });
        let data: Vec<u8> = (0..8 * (payload + 4)).map(|i| (i / 3) as u8).collect();
        for part in data.chunks(cut) {
            peer.write_all(part).unwrap();
        }
        assert!(rx.wait().unwrap() == data, "frames differ (payload {payload}, cut {cut})");
        rt.stop();
    }
}

/// Tells how the connection ended.
struct Watch {
    closed: RefCell<Option<oneshot::Sender<io::ErrorKind>>>,
    sent: Cell<u32>,
}

impl Watch {
    fn new() -> (Rc<Watch>, oneshot::Receiver<io::ErrorKind>) {
        let (tx, rx) = oneshot::channel();
        (Rc::new(Watch { closed: RefCell::new(Some(tx)), sent: Cell::new(0) }), rx)
    }
}

impl SockHandler for Watch {
    fn on_recv(&self, s: &Sock, data: &[u8]) -> Next {
        match data {
            b"close" => s.close(),
            b"pause" => {
                let (s, r) = (s.clone(), s.reactor().clone());
                r.defer(move |_| s.resume(Next::Ring));
                return Next::Pause;
            }
            b"resume" => {
                s.resume(Next::Ring);
                return Next::Pause;
            }
            b"finish" => {
                s.send_bytes(&[1; 100_000]);
                return Next::Close;
            }
            _ => s.send_bytes(data),
        }
        Next::Ring
    }
    fn on_direct(&self, _: &Sock, _: DmaBuf, _: usize, _: &[u8]) -> Next {
        unreachable!()
    }
    fn on_sent(&self, _: &Sock) {
        self.sent.set(self.sent.get() + 1);
    }
    fn on_close(&self, s: &Sock, e: io::Error) {
        s.close();
        s.send_bytes(b"ignored");
        let _ = self.closed.take().expect("on_close comes once").send(e.kind());
    }
}

#[test]
fn a_handler_may_close_pause_resume_and_finish_from_its_callbacks() {
    let rt = runtime(RingOptions::default());
    for (say, answer, kind) in [
        (&b"close"[..], 0, io::ErrorKind::ConnectionAborted),
        (b"finish", 100_000, io::ErrorKind::ConnectionAborted),
        (b"pause", 0, io::ErrorKind::UnexpectedEof),
        (b"resume", 0, io::ErrorKind::UnexpectedEof),
    ] {
        let (fd, mut peer) = pair();
        let (done, rx) = oneshot::channel();
        rt.cores()[0].send(move |r| {
            let (h, rx) = Watch::new();
            Sock::from_fd(r, fd, h).unwrap().start(Next::Ring);
            done.send(rx).ok().unwrap();
        });
        let closed = rx.wait().unwrap();
        peer.write_all(say).unwrap();
        if kind == io::ErrorKind::UnexpectedEof {
            // Still alive and echoing afterwards; what follows may arrive in one piece with the word.
            let mut all = Vec::new();
            while !all.ends_with(b"ping") {
                peer.write_all(b"ping").unwrap();
                let mut part = [0; 64];
                let n = peer.read(&mut part).unwrap();
                all.extend_from_slice(&part[..n]);
            }
            drop(peer);
        } else {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            assert_eq!(all.len(), answer);
            drop(peer);
        }
        assert_eq!(closed.wait(), Ok(kind), "after {:?}", std::str::from_utf8(say));
    }
    rt.stop();
}

#[test]
fn a_peer_that_has_said_its_last_still_hears_everything() {
    let rt = runtime(RingOptions::default());
    let (fd, peer) = pair();
    // It closes its sending half before it reads: more than the socket's buffers hold is still to come.
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    rt.cores()[0].send(move |r| {
        let s = Sock::from_fd(r, fd, Watch::new().0).unwrap();
        s.send_bytes(&vec![7; 20 << 20]);
        s.finish();
    });
    let (mut peer, mut all) = (peer, Vec::new());
    peer.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 20 << 20);
    rt.stop();
}

#[test]
fn a_peer_that_takes_nothing_is_closed_and_stop_frees_what_it_held() {
    let rt = runtime(RingOptions::default());
    let (fd, peer) = pair();
    let (done, rx) = oneshot::channel();
    rt.cores()[0].send(move |r| {
        let (h, rx) = Watch::new();
        let s = Sock::from_fd(r, fd, h).unwrap();
        s.set_send_timeout(Duration::from_millis(50));
        for _ in 0..64 {
            s.send_buf(r.dma().alloc(1 << 20).unwrap());
        }
        done.send(rx).ok().unwrap();
    });
    assert_eq!(rx.wait().unwrap().wait(), Ok(io::ErrorKind::TimedOut));
    let used = rt.cores()[0].call(|r| r.dma().stats().classes.iter().map(|c| c.in_use).sum::<usize>());
    assert_eq!(used.wait(), Ok(0));
    drop(peer);
    rt.stop();
}

#[test]
fn falling_below_the_low_water_mark_is_told() {
    let rt = runtime(RingOptions::default());
    let (fd, mut peer) = pair();
    let t = std::thread::spawn(move || io::copy(&mut peer, &mut io::sink()).unwrap());
    let told = rt.cores()[0].spawn(move |r| async move {
        let (h, closed) = Watch::new();
        let s = Sock::from_fd(&r, fd, h.clone()).unwrap();
        s.set_low_water(1000);
        s.send_bytes(&[0; 5_000_000]);
        while h.sent.get() == 0 {
            r.yield_now().await;
        }
        assert!(s.queued() <= 1000);
        s.finish();
        assert_eq!(closed.await, Ok(io::ErrorKind::ConnectionAborted));
        h.sent.get()
    });
    assert_eq!(told.wait(), Ok(1));
    assert_eq!(t.join().unwrap(), 5_000_000);
}

#[test]
fn a_connection_is_handed_over_after_what_was_queued() {
    let rt = runtime(RingOptions::default());
    let (fd, mut peer) = pair();
    let task = rt.cores()[0].spawn(move |r| async move {
        let (tx, rx) = oneshot::channel();
        let (h, _closed) = Watch::new();
        let s = Sock::from_fd(&r, fd, h).unwrap();
        s.send_bytes(b"first");
        s.hand_over(move |r, fd| {
            let s = Sock::from_fd(r, fd, Rc::new(Echo)).unwrap();
            s.send_bytes(b"second");
            s.start(Next::Ring);
            tx.send(()).unwrap();
        });
        rx.await
    });
    let mut got = [0; 11];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"firstsecond");
    assert_eq!(task.wait(), Ok(Ok(())));
    rt.stop();
}

#[test]
fn connecting_reaches_a_listener_is_refused_without_one_and_times_out() {
    let rt = runtime(RingOptions::default());
    let addr = listen(&rt, |r, fd, _| Sock::from_fd(r, fd, Rc::new(Echo)).unwrap().start(Next::Ring));
    let got = rt.cores()[0].spawn(move |r| async move {
        let fd = net::connect(&r, addr, Duration::from_secs(5)).await.unwrap();
        let (h, closed) = Watch::new();
        let s = Sock::from_fd(&r, fd, h).unwrap();
        assert_eq!(s.peer_addr().unwrap(), addr);
        s.start(Next::Ring);
        s.close();
        assert_eq!(closed.await, Ok(io::ErrorKind::ConnectionAborted));
        let unused = StdListener::bind(any()).unwrap().local_addr().unwrap();
        net::connect(&r, unused, Duration::from_secs(5)).await.unwrap_err().kind()
    });
    assert_eq!(got.wait(), Ok(io::ErrorKind::ConnectionRefused));
    rt.stop();
}

#[test]
fn a_widened_receive_buffer_has_the_room_asked_for_unless_its_size_was_set() {
    use rustix::net::sockopt::{set_socket_recv_buffer_size, socket_recv_buffer_size};
    let rmem = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_rmem").unwrap();
    let most: usize = rmem.split_whitespace().last().unwrap().parse().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    net::widen_receive_buffer(&free, 1 << 20).unwrap();
    let room = socket_recv_buffer_size(&free).unwrap();
    assert!(room >= most.min(2 << 20) / 2, "{room} bytes of {most}");
    let fixed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    set_socket_recv_buffer_size(&fixed, 64 << 10).unwrap();
    let before = socket_recv_buffer_size(&fixed).unwrap();
    net::widen_receive_buffer(&fixed, 1 << 20).unwrap();
    assert_eq!(socket_recv_buffer_size(&fixed).unwrap(), before);
}
