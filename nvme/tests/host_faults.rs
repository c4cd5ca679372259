//! A host and a controller that misbehaves: no command is lost, none ends twice, nothing is written where it should not be.

mod fake;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use fake::{Fake, Link};
use longshore_nvme::host::{
    Completer, Controller, ControllerEvent, ControllerState, Data, Done, HostOptions, IoQueue, Qpair, TimeoutAction,
    TransportId,
};
use longshore_nvme::wire::opcode::io;
use longshore_nvme::wire::{Cqe, Sqe, Status};
use longshore_reactor::{DmaBuf, Options, Reactor, Runtime};

#[derive(Default)]
struct Ends(RefCell<(Vec<Done>, Option<Waker>)>);

impl Completer for Ends {
    fn completed(&self, done: &Done) {
        let mut s = self.0.borrow_mut();
        s.0.push(*done);
        if let Some(w) = s.1.take() {
            w.wake();
        }
    }
}

impl Ends {
    async fn reach(&self, n: usize) -> Vec<Done> {
        poll_fn(|cx| {
            let mut s = self.0.borrow_mut();
            if s.0.len() >= n {
                return Poll::Ready(s.0.clone());
            }
            s.1 = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

fn buffer(r: &Reactor, len: usize) -> DmaBuf {
    let mut b = r.dma().alloc(len).unwrap();
    b.get_mut().unwrap().fill(0xee);
    b
}

/// Runs `f` with a queue of the controller that `fake` is.
fn with_queue<Fut: Future<Output = ()> + 'static>(
    fake: &Fake,
    o: HostOptions,
    f: impl FnOnce(Reactor, IoQueue) -> Fut + Send + 'static,
) {
    let mut options = Options { cores: vec![0], pin: false, ..Options::default() };
    options.dma.max_bytes = 16 << 20;
    let rt = Runtime::start(options).unwrap();
    let (core, id) = (rt.cores()[0].clone(), TransportId::tcp(fake.addr, "nqn.2016-06.io.longshore:fake"));
    let run = rt.cores()[0].spawn(move |r: Reactor| async move {
        let ctrl = Controller::connect(&core, id, o).await.unwrap();
        let q = ctrl.io_queue(&r, None).await.unwrap();
        f(r.clone(), q).await;
        ctrl.disconnect(false).await;
        assert_eq!(r.dma().stats().classes.iter().map(|c| c.in_use).sum::<usize>(), 0, "memory is kept");
    });
    run.wait_timeout(Duration::from_secs(30)).expect("in time").unwrap();
    rt.stop();
}

fn plain() -> HostOptions {
    HostOptions { keep_alive: Duration::ZERO, ..HostOptions::default() }
}

/// One read of 16 KiB: its status, and what is in the memory afterwards.
fn read_of(o: HostOptions, script: impl Fn(&mut Link, &Sqe) + Send + Sync + 'static) -> (Status, Vec<u8>, bool, u32) {
    let fake = Fake::new(script);
    let (tx, rx) = std::sync::mpsc::channel();
    with_queue(&fake, o, move |r, q| async move {
        let buf = buffer(&r, 16384);
        let ends = Rc::new(Ends::default());
        q.submit(&Sqe::new(io::READ, 0, 1), Data::Read(buf.clone()), ends.clone(), 3).unwrap();
        let all = ends.reach(1).await;
        let bytes = buf.as_slice().to_vec();
        let open = q.is_open();
        let gone = q.qpair().clone();
        drop(q);
        gone.gone().await;
        assert_eq!((ends.0.borrow().0.len(), all[0].tag), (1, 3), "it ends once");
        tx.send((all[0].status, bytes, open)).unwrap();
    });
    let (status, bytes, open) = rx.recv().unwrap();
    // The termination request was sent before the connection was closed, and is read before its end.
    let start = Instant::now();
    while !open && fake.terminated.load(Ordering::SeqCst) == 0 && start.elapsed() < Duration::from_millis(300) {
        std::thread::yield_now();
    }
    (status, bytes, open, fake.terminated.load(Ordering::SeqCst))
}

const DATA: [u8; 16384] = [0x5a; 16384];

#[test]
fn data_in_one_pdu_or_many_arrives_with_and_without_response() {
    for (hdgst, ddgst, success) in
        [(false, false, false), (true, true, false), (false, true, true), (true, false, true)]
    {
        for piece in [16384, 8192, 4096, 512, 12] {
            let o = HostOptions { hdgst, ddgst, ..plain() };
            let (status, bytes, open, _) = read_of(o, move |l, s| {
                let (cid, mut at) = (s.cid.get(), 0);
                for c in DATA.chunks(piece) {
                    let last = at + c.len() == DATA.len();
                    l.c2h(cid, at as u32, c, last, last && success);
                    at += c.len();
                }
                if !success {
                    l.respond(cid, Status::SUCCESS);
                }
            });
            assert_eq!((status, open), (Status::SUCCESS, true), "pieces of {piece}");
            assert!(bytes == DATA);
        }
    }
}

/// What breaks the protocol, by name.
#[test]
fn a_broken_protocol_ends_the_connection_with_a_termination_request() {
    type Break = fn(&mut Link, &Sqe);
    let breaks: [(&str, Break); 9] = [
        ("a response to no command", |l, s| l.respond(s.cid.get() ^ 0x40, Status::SUCCESS)),
        ("a response with a command identifier beyond the queue", |l, _| l.respond(0xfff0, Status::SUCCESS)),
        ("data for no command", |l, s| l.c2h(s.cid.get() ^ 0x40, 0, &DATA[..512], false, false)),
        ("data beyond the length", |l, s| l.c2h(s.cid.get(), 0, &[1; 16388], true, false)),
        ("data far beyond the length", |l, s| l.c2h(s.cid.get(), 0xffff_f000, &DATA[..512], true, false)),
        ("data out of order", |l, s| l.c2h(s.cid.get(), 4096, &DATA[..512], false, false)),
        ("data twice", |l, s| {
            l.c2h(s.cid.get(), 0, &DATA, true, false);
            l.c2h(s.cid.get(), 0, &DATA, true, false);
        }),
        ("a request for the data of a read", |l, s| l.r2t(s.cid.get(), 1, 0, 4096)),
        ("a PDU that only hosts send", |l, _| l.raw(&[6, 0, 24, 24, 28, 0, 0, 0])),
    ];
    for (name, f) in breaks {
        let (status, bytes, open, terminated) = read_of(plain(), f);
        assert_eq!((status, open, terminated), (Status::ABORTED_BY_HOST, false, 1), "{name}");
        assert!(bytes.iter().all(|&b| b == 0xee) || name == "data twice", "{name}: something was written");
    }
}

#[test]
fn a_wrong_header_digest_ends_the_connection_and_a_wrong_data_digest_the_command() {
    let o = HostOptions { hdgst: true, ddgst: true, ..plain() };
    let (status, _, open, terminated) = read_of(o.clone(), |l, s| {
        let mut out = [0; 28];
        l.encoder.capsule_resp(&Cqe::new(s.cid.get(), Status::SUCCESS), &mut out);
        out[25] ^= 1;
        l.raw(&out);
    });
    assert_eq!((status, open, terminated), (Status::ABORTED_BY_HOST, false, 1));
    for success in [false, true] {
        let (status, _, open, _) = read_of(o.clone(), move |l, s| {
            l.c2h_with(s.cid.get(), 0, &DATA, true, success, [1, 2, 3, 4]);
            if !success {
                l.respond(s.cid.get(), Status::SUCCESS);
            }
        });
        assert_eq!((status, open), (Status::TRANSIENT_TRANSPORT_ERROR, true));
    }
}

#[test]
fn success_with_less_data_is_no_success() {
    let (status, _, open, _) = read_of(plain(), |l, s| {
        l.c2h(s.cid.get(), 0, &DATA[..8192], false, false);
        l.respond(s.cid.get(), Status::SUCCESS);
    });
    assert_eq!((status, open), (Status::DATA_TRANSFER_ERROR, true));
    let (status, ..) = read_of(plain(), |l, s| l.c2h(s.cid.get(), 0, &DATA[..8192], true, true));
    assert_eq!(status, Status::DATA_TRANSFER_ERROR);
    let error = Status::UNRECOVERED_READ_ERROR.with_dnr().with_more();
    let (status, _, open, _) = read_of(plain(), move |l, s| l.respond(s.cid.get(), error));
    assert_eq!((status, open), (error, true), "a failure is passed on as it is");
}

#[test]
fn a_connection_that_closes_within_a_pdu_ends_the_command_once() {
    for cut in [1, 7, 8, 23, 24, 1000, 9000] {
        let (status, _, open, _) = read_of(plain(), move |l, s| {
            let mut out = vec![0; 24];
            let d =
                longshore_nvme::tcp_pdu::Data { cccid: s.cid.get(), length: 16384, last: true, ..Default::default() };
            l.encoder.c2h_data(&d, &mut out);
            out.extend_from_slice(&DATA);
            l.raw(&out[..cut]);
            l.close();
        });
        assert_eq!((status, open), (Status::ABORTED_BY_HOST, false), "cut after {cut} bytes");
    }
}

/// One write of 32 KiB, which the controller has to ask for.
fn write_of(script: impl Fn(&mut Link, &Sqe) + Send + Sync + 'static) -> (Status, bool) {
    let fake = Fake::new(script);
    let (tx, rx) = std::sync::mpsc::channel();
    with_queue(&fake, HostOptions { ddgst: true, ..plain() }, move |r, q| async move {
        let buf = buffer(&r, 32768);
        let ends = Rc::new(Ends::default());
        q.submit(&Sqe::new(io::WRITE, 0, 1), Data::Write(buf), ends.clone(), 0).unwrap();
        let all = ends.reach(1).await;
        tx.send((all[0].status, q.is_open())).unwrap();
        let gone = q.qpair().clone();
        drop(q);
        gone.gone().await;
        assert_eq!(ends.0.borrow().0.len(), 1);
    });
    rx.recv().unwrap()
}

#[test]
fn data_is_sent_as_it_is_asked_for_and_nothing_else() {
    // 8 KiB per PDU, as agreed; the end of each is told to the script.
    let cid = std::sync::atomic::AtomicU32::new(0);
    let end = write_of(move |l, s| {
        if s.opcode == 0xff {
            assert!(l.data.iter().all(|&b| b == 0xee));
            match l.data.len() {
                16384 => l.r2t(cid.load(Ordering::SeqCst) as u16, 9, 16384, 16384),
                32768 => l.respond(cid.load(Ordering::SeqCst) as u16, Status::SUCCESS),
                _ => {}
            }
        } else {
            assert!(l.data.is_empty(), "more than a capsule holds is not sent unasked");
            cid.store(s.cid.get().into(), Ordering::SeqCst);
            l.r2t(s.cid.get(), 9, 0, 16384);
        }
    });
    assert_eq!(end, (Status::SUCCESS, true));
    let lost = (Status::ABORTED_BY_HOST, false);
    assert_eq!(write_of(|l, s| l.r2t(s.cid.get(), 1, 0, 32772)), lost, "beyond the data");
    assert_eq!(write_of(|l, s| l.r2t(s.cid.get(), 1, 4096, 4096)), lost, "not at its beginning");
    assert_eq!(write_of(|l, s| l.r2t(s.cid.get() ^ 0x40, 1, 0, 4096)), lost, "for no command");
    let end = write_of(|l, s| l.respond(s.cid.get(), Status::SUCCESS));
    assert_eq!(end, (Status::DATA_TRANSFER_ERROR, true), "a write whose data was never asked for");
    let end = write_of(|l, s| l.respond(s.cid.get(), Status::NAMESPACE_WRITE_PROTECTED));
    assert_eq!(end, (Status::NAMESPACE_WRITE_PROTECTED, true));
}

#[test]
fn a_command_that_is_never_answered_ends_with_its_connection() {
    let fake = Fake::new(|_, _| {});
    let (tx, events) = std::sync::mpsc::channel();
    let o = HostOptions {
        io_timeout: Duration::from_millis(100),
        on_timeout: TimeoutAction::Abort,
        events: Some(Arc::new(move |e| drop(tx.send(e)))),
        ..plain()
    };
    with_queue(&fake, o, |r, q| async move {
        let ends = Rc::new(Ends::default());
        for i in 0..5 {
            q.submit(&Sqe::new(io::READ, 0, 1), Data::Read(buffer(&r, 4096)), ends.clone(), i).unwrap();
        }
        let all = ends.reach(5).await;
        assert!(all.iter().all(|d| d.status == Status::ABORTED_BY_HOST), "{all:?}");
    });
    let timed_out = |e: ControllerEvent| matches!(e, ControllerEvent::TimedOut { qid: 1 });
    assert!(events.try_iter().any(timed_out));
}

#[test]
fn a_controller_that_stops_answering_keep_alives_is_lost() {
    let fake = Fake::new(|_, _| {});
    // Two answers, then silence.
    fake.keep_alives.store(3, Ordering::SeqCst);
    let (tx, events) = std::sync::mpsc::channel();
    let o = HostOptions {
        keep_alive: Duration::from_millis(100),
        events: Some(Arc::new(move |e| drop(tx.send(e)))),
        ..HostOptions::default()
    };
    with_queue(&fake, o, |r, q| async move {
        let ends = Rc::new(Ends::default());
        q.submit(&Sqe::new(io::READ, 0, 1), Data::Read(buffer(&r, 4096)), ends.clone(), 0).unwrap();
        assert_eq!(ends.reach(1).await[0].status, Status::ABORTED_BY_HOST, "its I/O queues go with it");
        assert_eq!(q.controller().state(), ControllerState::Lost);
    });
    let lost = |e: ControllerEvent| matches!(e, ControllerEvent::Lost { why } if why.contains("Keep Alive"));
    assert!(events.try_iter().any(lost));
}

#[test]
fn a_queue_lost_with_commands_unanswered_is_replaced_only_after_a_controller_level_reset() {
    // The first write is neither fetched nor answered: its connection ends.
    let fake = Fake::new(|l, s| match s.opcode {
        io::WRITE => l.close(),
        _ => l.respond(s.cid.get(), Status::SUCCESS),
    });
    let seen = fake.seen.clone();
    with_queue(&fake, plain(), |r, q| async move {
        let ends = Rc::new(Ends::default());
        q.submit(&Sqe::new(io::WRITE, 0, 1), Data::Write(buffer(&r, 16384)), ends.clone(), 0).unwrap();
        assert_eq!(ends.reach(1).await[0].status, Status::ABORTED_BY_HOST);
        q.qpair().gone().await;
        let ctrl = q.controller().clone();
        drop(q);
        let e = ctrl.io_queue(&r, None).await.unwrap_err();
        assert!(e.to_string().contains("reset first"), "{e}");
        ctrl.reset().await.unwrap();
        let q = ctrl.io_queue(&r, None).await.unwrap();
        q.submit(&Sqe::new(io::FLUSH, 0, 1), Data::None, ends.clone(), 1).unwrap();
        assert_eq!(ends.reach(2).await[1].status, Status::SUCCESS);
        q.disconnect().await;
        // One whose commands were all answered leaves nothing behind.
        ctrl.io_queue(&r, None).await.unwrap().disconnect().await;
    });
    let seen = seen.lock().unwrap();
    let expected = ["connect 0", "enable", "connect 1", "disable", "connect 0", "enable", "connect 1", "connect 1"];
    assert_eq!(*seen, expected);
}

#[test]
fn a_controller_that_may_not_know_of_its_loss_is_left_alone_for_its_keep_alive_timeout() {
    const KATO: Duration = Duration::from_millis(400);
    // One that says nothing of it, and one that granted more.
    for granted in [0, 1200] {
        let fake = Fake::new(|_, _| {});
        fake.keep_alives.store(1, Ordering::SeqCst); // never answered
        fake.granted.store(granted, Ordering::SeqCst);
        let lost = Arc::new(OnceLock::new());
        let told = lost.clone();
        let events = move |e| {
            if matches!(e, ControllerEvent::Lost { .. }) {
                let _ = told.set(Instant::now());
            }
        };
        let o = HostOptions { keep_alive: KATO, events: Some(Arc::new(events)), ..plain() };
        with_queue(&fake, o, move |_, q| async move {
            q.qpair().gone().await;
            let ctrl = q.controller().clone();
            assert_eq!(ctrl.state(), ControllerState::Lost);
            ctrl.reset().await.unwrap();
            let after = lost.get().expect("it was reported").elapsed();
            let kato = KATO.max(Duration::from_millis(granted.into()));
            assert!(after > kato * 9 / 10, "{granted} ms granted: connected again after {after:?}");
        });
    }
}

/// Sends a flush for each that ended, while there is a queue.
struct Stream {
    q: Rc<Qpair>,
    me: Weak<Stream>,
    ends: RefCell<Vec<Status>>,
}

impl Stream {
    fn send(&self) {
        if let Some(me) = self.me.upgrade() {
            let _ = self.q.submit(&Sqe::new(io::FLUSH, 0, 1), Data::None, me, 0);
        }
    }
}

impl Completer for Stream {
    fn completed(&self, done: &Done) {
        self.ends.borrow_mut().push(done.status);
        self.send();
    }
}

#[test]
fn io_under_a_reset_ends_with_its_queue_and_never_by_a_controller_that_is_disabled() {
    let fake = Fake::new(|l, s| l.respond(s.cid.get(), Status::SUCCESS));
    with_queue(&fake, plain(), |r, q| async move {
        let new = |me: &Weak<Stream>| Stream { q: q.qpair().clone(), me: me.clone(), ends: RefCell::default() };
        let stream = Rc::new_cyclic(new);
        (0..8).for_each(|_| stream.send());
        while stream.ends.borrow().len() < 100 {
            r.yield_now().await;
        }
        q.controller().reset().await.unwrap();
        q.qpair().gone().await;
        let ends = stream.ends.borrow();
        let failed: Vec<_> = ends.iter().filter(|&&s| s != Status::SUCCESS && s != Status::ABORTED_BY_HOST).collect();
        assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), ends.len(), failed[0]);
    });
}
