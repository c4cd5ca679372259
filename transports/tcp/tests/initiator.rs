//! The initiator of `longshore-nvme` against the target of this crate.

mod world;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use longshore_nvme::host::{
    Completer, Controller, ControllerEvent, ControllerState, Data, Done, HostError, HostOptions, IoQueue, TransportId,
};
use longshore_nvme::wire::opcode::io;
use longshore_nvme::wire::{Sqe, Status};
use longshore_reactor::{DmaBuf, Reactor};
use longshore_tcp::TcpOptions;
use world::{BLOCKS, NQN, Setup, World, block_on};

/// Collects the ends of commands.
#[derive(Default)]
struct Ends {
    all: RefCell<Vec<Done>>,
    wanted: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl Completer for Ends {
    fn completed(&self, done: &Done) {
        self.all.borrow_mut().push(*done);
        if self.all.borrow().len() >= self.wanted.get()
            && let Some(w) = self.waker.take()
        {
            w.wake();
        }
    }
}

impl Ends {
    async fn reach(&self, n: usize) -> Vec<Done> {
        self.wanted.set(n);
        std::future::poll_fn(|cx| {
            if self.all.borrow().len() >= n {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.all.take()
    }
}

fn command(opcode: u8, lba: u64, bytes: usize) -> Sqe {
    let mut s = Sqe::new(opcode, 0, 1);
    s.set_slba(lba);
    s.set_nblocks((bytes / 512) as u32);
    s
}

async fn one(q: &IoQueue, sqe: Sqe, data: Data<'_>) -> Done {
    let ends = Rc::new(Ends::default());
    q.submit(&sqe, data, ends.clone(), 7).unwrap();
    ends.reach(1).await[0]
}

fn pattern(r: &Reactor, len: usize, seed: u8) -> DmaBuf {
    let mut b = r.dma().alloc(len).unwrap();
    for (i, x) in b.get_mut().unwrap().iter_mut().enumerate() {
        *x = seed.wrapping_add((i / 512) as u8).wrapping_mul(31).wrapping_add(i as u8);
    }
    b
}

fn blank(r: &Reactor, len: usize) -> DmaBuf {
    let mut b = r.dma().alloc(len).unwrap();
    b.get_mut().unwrap().fill(0xee);
    b
}

fn connect(w: &World, o: HostOptions) -> Result<Arc<Controller>, HostError> {
    block_on(Controller::connect(&w.cores()[0], TransportId::tcp(w.addr, NQN), o))
}

/// Writes and reads back every size on a queue of core 1.
fn round_trip(w: &World, o: HostOptions) {
    let ctrl = connect(w, o).unwrap();
    assert_eq!(block_on(ctrl.active_namespaces()).unwrap(), [1]);
    let ns = block_on(ctrl.namespace(1)).unwrap();
    assert_eq!((ns.data.nsze.get(), ns.block_size()), (BLOCKS, Some(512)));
    assert!(ns.uuid.is_some() || ns.nguid.is_some());
    let c = ctrl.clone();
    let run = w.cores()[1].spawn(move |r| async move {
        let q = c.io_queue(&r, None).await.unwrap();
        for (i, len) in [512, 4096, 8192, 12288, 65536, 131072].into_iter().enumerate() {
            let (lba, seed) = (i as u64 * 1000, i as u8);
            let buf = pattern(&r, len, seed);
            let done = one(&q, command(io::WRITE, lba, len), Data::Write(buf.clone())).await;
            assert_eq!((done.status, done.tag), (Status::SUCCESS, 7), "write of {len}");
            let mut got = blank(&r, len);
            assert_eq!(one(&q, command(io::READ, lba, len), Data::Read(got.clone())).await.status, Status::SUCCESS);
            assert!(got.as_slice() == buf.as_slice(), "read of {len}");
            assert!(got.get_mut().is_some(), "nobody else holds the memory of a command that ended");
            // In pieces.
            if len > 4096 {
                let mut parts: Vec<_> = (0..3).map(|_| blank(&r, 4096)).collect();
                parts[2] = blank(&r, len - 4096 - 512);
                parts[1] = blank(&r, 512);
                let sent = parts.clone();
                let done = one(&q, command(io::READ, lba, len), Data::ReadMany(&mut parts)).await;
                assert_eq!(done.status, Status::SUCCESS);
                let all: Vec<u8> = sent.iter().flat_map(|b| b.as_slice().to_vec()).collect();
                assert!(all == buf.as_slice(), "scattered read of {len}");
                let mut parts = sent;
                let done = one(&q, command(io::WRITE, lba + 500, len), Data::WriteMany(&mut parts)).await;
                assert_eq!(done.status, Status::SUCCESS);
                let done = one(&q, command(io::COMPARE, lba + 500, len), Data::Write(buf)).await;
                assert_eq!(done.status, Status::SUCCESS, "scattered write of {len}");
            }
        }
        let done = one(&q, command(io::READ, BLOCKS, 4096), Data::Read(blank(&r, 4096))).await;
        assert_eq!(done.status.code(), Status::LBA_OUT_OF_RANGE);
        assert_eq!(one(&q, Sqe::new(io::FLUSH, 0, 1), Data::None).await.status, Status::SUCCESS);
        q.disconnect().await;
    });
    run.wait_timeout(Duration::from_secs(60)).expect("in time").unwrap();
    block_on(ctrl.disconnect(true));
    assert_eq!(ctrl.state(), ControllerState::Closed);
}

#[test]
fn what_is_written_is_read_with_any_digests_and_flow_control() {
    let w = World::new();
    for bits in 0..8 {
        let o = HostOptions {
            hdgst: bits & 1 != 0,
            ddgst: bits & 2 != 0,
            disable_sq_flow_control: bits & 4 == 0,
            ..HostOptions::default()
        };
        round_trip(&w, o);
    }
    w.settled(0);
}

#[test]
fn a_full_queue_takes_no_more_and_every_command_ends_once() {
    let w = World::new();
    let ctrl = connect(&w, HostOptions { io_depth: 32, ..HostOptions::default() }).unwrap();
    let c = ctrl.clone();
    let run = w.cores()[1].spawn(move |r| async move {
        let q = c.io_queue(&r, None).await.unwrap();
        let ends = Rc::new(Ends::default());
        let mut taken = 0;
        while q.room() > 0 {
            let sqe = command(io::READ, taken * 8, 4096);
            q.submit(&sqe, Data::Read(blank(&r, 4096)), ends.clone(), taken).unwrap();
            taken += 1;
        }
        assert_eq!(taken, 32);
        assert!(q.submit(&command(io::READ, 0, 4096), Data::Read(blank(&r, 4096)), ends.clone(), 99).is_err());
        let mut tags: Vec<u64> = ends.reach(32).await.iter().map(|d| d.tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..32).collect::<Vec<_>>());
        assert_eq!((q.room(), q.outstanding()), (32, 0));
        q.disconnect().await;
    });
    run.wait_timeout(Duration::from_secs(60)).expect("in time").unwrap();
    block_on(ctrl.disconnect(true));
}

#[test]
fn a_lost_connection_ends_what_is_outstanding_and_a_reset_brings_the_controller_back() {
    let w = Setup { delay: Some(Duration::from_millis(300)), ..Setup::default() }.start();
    let ctrl = connect(&w, HostOptions::default()).unwrap();
    let c = ctrl.clone();
    let run = w.cores()[1].spawn(move |r| async move {
        let q = c.io_queue(&r, None).await.unwrap();
        let ends = Rc::new(Ends::default());
        for i in 0..8 {
            q.submit(&command(io::READ, 0, 4096), Data::Read(blank(&r, 4096)), ends.clone(), i).unwrap();
        }
        let c2 = c.clone();
        let reset = r.spawn(async move { c2.reset().await });
        let all = ends.reach(8).await;
        assert!(all.iter().all(|d| d.status == Status::ABORTED_BY_HOST), "{all:?}");
        assert!(!q.is_open());
        reset.await.unwrap().unwrap();
        drop(q);
        let q = c.io_queue(&r, None).await.unwrap();
        let done = one(&q, command(io::READ, 0, 4096), Data::Read(blank(&r, 4096))).await;
        assert_eq!(done.status, Status::SUCCESS);
        q.disconnect().await;
    });
    run.wait_timeout(Duration::from_secs(60)).expect("in time").unwrap();
    assert_eq!((ctrl.state(), ctrl.generation()), (ControllerState::Ready, 2));
    block_on(ctrl.disconnect(true));
    w.settled(0);
}

#[test]
fn an_abort_ends_a_slow_command() {
    let w = Setup { delay: Some(Duration::from_secs(20)), ..Setup::default() }.start();
    let ctrl = connect(&w, HostOptions::default()).unwrap();
    let c = ctrl.clone();
    let run = w.cores()[1].spawn(move |r| async move {
        let q = c.io_queue(&r, None).await.unwrap();
        let ends = Rc::new(Ends::default());
        let cid = q.submit(&command(io::READ, 0, 4096), Data::Read(blank(&r, 4096)), ends.clone(), 0).unwrap();
        c.abort(q.qid(), cid);
        let done = ends.reach(1).await[0];
        assert_eq!(done.status.code(), Status::ABORT_REQUESTED);
        q.disconnect().await;
    });
    run.wait_timeout(Duration::from_secs(15)).expect("in time").unwrap();
    block_on(ctrl.disconnect(true));
}

#[test]
fn the_discovery_log_names_the_subsystem_and_events_arrive() {
    let w = World::new();
    let ctrl = block_on(Controller::connect(
        &w.cores()[0],
        TransportId::discovery(w.addr),
        HostOptions { keep_alive: Duration::ZERO, ..HostOptions::default() },
    ))
    .unwrap();
    let log = block_on(ctrl.discovery_log()).unwrap();
    assert!(log.entries.iter().any(|e| e.subnqn.get() == Some(NQN)), "{:?}", log.entries.len());
    assert!(ctrl.info().unwrap().is_discovery());
    block_on(ctrl.disconnect(true));

    let (tx, rx) = std::sync::mpsc::channel();
    let events = Arc::new(move |e| drop(tx.send(e)));
    let ctrl = connect(&w, HostOptions { events: Some(events), ..HostOptions::default() }).unwrap();
    block_on(w.target.remove_namespace(NQN, 1)).unwrap();
    match rx.recv_timeout(Duration::from_secs(10)).expect("an event") {
        ControllerEvent::Async(e) => assert_eq!(e, longshore_nvme::wire::AsyncEvent::NAMESPACE_CHANGED),
        e => panic!("{e:?}"),
    }
    assert!(block_on(ctrl.active_namespaces()).unwrap().is_empty());
    block_on(ctrl.disconnect(true));
}

#[test]
fn what_the_target_refuses_is_said() {
    let w = World::new();
    let id = TransportId::tcp(w.addr, "nqn.2016-06.io.longshore:absent");
    let e = block_on(Controller::connect(&w.cores()[0], id, HostOptions::default())).unwrap_err();
    let HostError::Refused { what: "Connect", status, .. } = &e else { panic!("{e}") };
    assert!(status.is(Status::CONNECT_INVALID_PARAMETERS), "{e}");
    assert_eq!(e.errno(), 5);
    let nobody = world::free_port("127.0.0.1");
    let id = TransportId::tcp(nobody, NQN);
    let e = block_on(Controller::connect(&w.cores()[0], id, HostOptions::default())).unwrap_err();
    assert!(matches!(e, HostError::Connect { .. }), "{e}");
    let o = HostOptions { hostnqn: "x".repeat(300), ..HostOptions::default() };
    assert!(matches!(connect(&w, o), Err(HostError::Invalid(_))));
}

#[test]
fn large_in_capsule_data_and_small_h2c_data_are_cut_as_agreed() {
    let tcp = TcpOptions::default();
    let w = Setup { tcp, ..Setup::default() }.start();
    round_trip(&w, HostOptions { io_depth: 1, ..HostOptions::default() });
}
