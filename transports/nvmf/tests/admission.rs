//! A host whose admission ends while the Connect of one of its I/O queues is under way: the queue does not go live.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use longshore_bdev::{Geometry, Registry, malloc::Malloc};
use longshore_nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectCmd, ConnectData, PropertySetCmd};
use longshore_nvme::wire::register::{Cc, offset};
use longshore_nvme::wire::{Cqe, Sqe, Status};
use longshore_nvmf::{
    Address, AnaState, Begin, Disconnect, ListenError, NamespaceOptions, PollGroup, Qpair, QpairTransport,
    SubsystemOptions, Target, TargetError, TrType, TransportKind, TransportOptions,
};
use longshore_reactor::{Options, Reactor, Runtime, oneshot};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const NQN: &str = "nqn.2016-06.io.longshore:test";
const HOST: &str = "nqn.2014-08.org.example:host";

/// A transport that listens nowhere.
struct Nowhere;

fn at_once<T>(v: T) -> oneshot::Receiver<T> {
    let (tx, rx) = oneshot::channel();
    let _ = tx.send(v);
    rx
}

impl TransportKind for Nowhere {
    fn trtype(&self) -> TrType {
        TrType::Tcp
    }
    fn listen(
        &self,
        _: &Arc<Target>,
        _: &Arc<TransportOptions>,
        _: &Address,
    ) -> oneshot::Receiver<Result<(), ListenError>> {
        at_once(Ok(()))
    }
    fn unlisten(&self, _: &Address) -> oneshot::Receiver<()> {
        at_once(())
    }
}

/// A connection without a wire: responses are kept.
struct Wire {
    qp: RefCell<Weak<Qpair>>,
    listener: Address,
    responses: RefCell<Vec<Cqe>>,
}

impl QpairTransport for Wire {
    fn respond(&self, slot: u16) {
        let Some(qp) = self.qp.borrow().upgrade() else { return };
        self.responses.borrow_mut().push(qp.cqe(slot));
        qp.release(slot);
    }
    fn buffer_ready(&self, _: u16) {}
    fn buffer_needed(&self, _: u16) {}
    fn disconnect(&self, _: Disconnect) {
        if let Some(qp) = self.qp.borrow().upgrade() {
            Reactor::current().defer(move |_| qp.shutdown(|| {}));
        }
    }
    fn listener(&self) -> &Address {
        &self.listener
    }
    fn peer(&self) -> Address {
        self.listener.clone()
    }
}

/// A host's end of a connection.
struct Host {
    qp: Rc<Qpair>,
    wire: Rc<Wire>,
}

impl Host {
    /// A connection whose Connect has been executed; it may not be decided yet.
    fn connect(target: &Arc<Target>, listener: &Address, qid: u16, cntlid: u16) -> Host {
        let sqe = Sqe::read_from_bytes(ConnectCmd::new(1, qid, 31, 0, 0).as_bytes()).unwrap();
        let mut data = ConnectData::new_zeroed();
        data.cntlid = cntlid.into();
        data.as_mut_bytes()[256..256 + NQN.len()].copy_from_slice(NQN.as_bytes());
        data.as_mut_bytes()[512..512 + HOST.len()].copy_from_slice(HOST.as_bytes());
        let wire = Rc::new(Wire { qp: RefCell::default(), listener: listener.clone(), responses: RefCell::default() });
        let group = PollGroup::of(target).unwrap();
        let place = target.place(ConnectCmd::of(&sqe), &data);
        let options = target.transport(TrType::Tcp).unwrap();
        let qp = Qpair::new(&group, wire.clone(), options, ConnectCmd::of(&sqe), place);
        *wire.qp.borrow_mut() = Rc::downgrade(&qp);
        let slot = qp.alloc_slot().unwrap();
        assert!(matches!(qp.begin(slot, &sqe, 1024), Begin::NeedData { in_capsule: true, .. }));
        assert!(qp.get_buffer(slot));
        qp.with_buffer(slot, |b| b[..1024].copy_from_slice(data.as_bytes())).unwrap();
        qp.execute(slot);
        Host { qp, wire }
    }

    fn run(&self, sqe: &Sqe) {
        let slot = self.qp.alloc_slot().unwrap();
        assert_eq!(self.qp.begin(slot, sqe, 0), Begin::Execute);
        self.qp.execute(slot);
    }

    /// The next response.
    async fn response(&self, r: &Reactor) -> Cqe {
        while self.wire.responses.borrow().is_empty() {
            r.yield_now().await;
        }
        self.wire.responses.borrow_mut().remove(0)
    }

    /// An admin queue, enabled; and its controller.
    async fn admin(r: &Reactor, target: &Arc<Target>, listener: &Address) -> (Host, u16) {
        let h = Host::connect(target, listener, 0, CNTLID_DYNAMIC);
        let c = h.response(r).await;
        assert_eq!(c.status(), Status::SUCCESS);
        let cc = Cc(0).with_en(1).with_iosqes(6).with_iocqes(4);
        h.run(&Sqe::read_from_bytes(PropertySetCmd::new(2, offset::CC, cc.0).as_bytes()).unwrap());
        assert_eq!(h.response(r).await.status(), Status::SUCCESS);
        (h, c.dw0.get() as u16)
    }
}

struct World {
    reactor: Reactor,
    target: Arc<Target>,
    /// Two listeners of the subsystem.
    at: [Address; 2],
}

async fn subsystem(target: &Arc<Target>, at: &[Address; 2]) -> Result<(), TargetError> {
    target.create_subsystem(SubsystemOptions::new(NQN)).await?;
    target.add_host(NQN, HOST).await?;
    let ns = NamespaceOptions { bdev_name: "Malloc0".into(), ..NamespaceOptions::default() };
    target.add_namespace(NQN, ns).await?;
    for a in at {
        target.add_listener(NQN, a.clone(), AnaState::Optimized).await?;
    }
    Ok(())
}

/// Runs `f` on a reactor with a target.
fn with_target<Fut: Future<Output = ()> + 'static>(f: impl FnOnce(World) -> Fut + Send + 'static) {
    let rt = Runtime::start(Options { cores: vec![0], pin: false, ..Options::default() }).unwrap();
    let cores = rt.cores().to_vec();
    let run = rt.cores()[0].spawn(move |reactor| async move {
        let bdevs = Registry::new();
        bdevs.register("Malloc0", None, Malloc::new(Geometry::plain(512, 2048)).unwrap()).unwrap();
        let target = Target::start(cores, bdevs).await.unwrap();
        target.register_transport(Arc::new(Nowhere));
        target.create_transport(TransportOptions::new(TrType::Tcp)).await.unwrap();
        let at = ["127.0.0.1:4420", "127.0.0.1:4421"].map(|a| Address::tcp(a.parse().unwrap()));
        subsystem(&target, &at).await.unwrap();
        f(World { reactor: reactor.clone(), target: target.clone(), at }).await;
        target.shutdown().await;
        let in_use: usize = reactor.dma().stats().classes.iter().map(|c| c.in_use).sum();
        assert_eq!(in_use, 0, "buffers are kept");
    });
    run.wait_timeout(Duration::from_secs(60)).expect("in time").unwrap();
    rt.stop();
}

/// The I/O queue's Connect waits for an answer of its controller's owner while `change` takes effect: how it ends.
async fn connect_meanwhile(w: &World, cntlid: u16, change: impl Future<Output = Result<(), TargetError>>) -> Status {
    let io = Host::connect(&w.target, &w.at[1], 1, cntlid);
    assert!(io.wire.responses.borrow().is_empty(), "it was decided at once");
    change.await.unwrap();
    let status = io.response(&w.reactor).await.status();
    assert!(!io.qp.is_live());
    io.qp.shutdown(|| {});
    status
}

const REFUSED: Status = Status::ABORTED_SQ_DELETION;

#[test]
fn a_queue_whose_host_is_removed_while_it_connects_does_not_go_live() {
    with_target(|w| async move {
        let (_admin, cntlid) = Host::admin(&w.reactor, &w.target, &w.at[0]).await;
        let change = w.target.remove_host(NQN, HOST, None);
        assert_eq!(connect_meanwhile(&w, cntlid, change).await, REFUSED);
    });
}

#[test]
fn a_queue_whose_listener_is_removed_while_it_connects_does_not_go_live_and_its_number_is_free() {
    with_target(|w| async move {
        let (_admin, cntlid) = Host::admin(&w.reactor, &w.target, &w.at[0]).await;
        let change = w.target.remove_listener(NQN, &w.at[1]);
        assert_eq!(connect_meanwhile(&w, cntlid, change).await, REFUSED);
        // The controller lives, by the other listener, and so can its first queue.
        let io = Host::connect(&w.target, &w.at[0], 1, cntlid);
        assert_eq!(io.response(&w.reactor).await.status(), Status::SUCCESS);
        assert!(io.qp.is_live());
    });
}

#[test]
fn a_queue_whose_subsystem_is_deleted_or_another_one_while_it_connects_does_not_go_live() {
    for again in [false, true] {
        with_target(move |w| async move {
            let (_admin, cntlid) = Host::admin(&w.reactor, &w.target, &w.at[0]).await;
            let change = async {
                w.target.delete_subsystem(NQN).await?;
                // Another one of the same name is not the one that was asked for.
                if again { subsystem(&w.target, &w.at).await } else { Ok(()) }
            };
            assert_eq!(connect_meanwhile(&w, cntlid, change).await, REFUSED);
        });
    }
}
