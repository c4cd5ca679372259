//! A target in this process: two reactors, a 64 MiB malloc device as namespace 1 of one subsystem, one listener.
#![allow(dead_code, unreachable_pub)]

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use longshore_bdev::{CoreOptions, CoreState, Geometry, PoolStats, Registry, delay, malloc::Malloc, null::Null};
use longshore_nvme::wire::AnaState;
use longshore_nvmf::{Address, NamespaceOptions, SubsystemOptions, Target, TargetError, TrType, TransportOptions};
use longshore_reactor::{CoreHandle, Options, Runtime};
use longshore_tcp::{TcpOptions, TcpTransport};

pub const NQN: &str = "nqn.2016-06.io.longshore:test";
/// Blocks of namespace 1, of 512 bytes.
pub const BLOCKS: u64 = 64 << 11;

/// Runs a future of the control plane to its end on this thread.
pub fn block_on<F: Future>(f: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut f = pin!(f);
    loop {
        match f.as_mut().poll(&mut cx) {
            Poll::Ready(v) => return v,
            Poll::Pending => std::thread::park(),
        }
    }
}

pub fn free_port(host: &str) -> SocketAddr {
    std::net::TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

pub struct Setup {
    pub tcp: TcpOptions,
    pub transport: TransportOptions,
    pub runtime: Options,
    /// Latency of the device.
    pub delay: Option<Duration>,
    /// Sizes of each core's request pool.
    pub requests: CoreOptions,
    /// Where to listen; by default anywhere.
    pub addr: Option<SocketAddr>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            tcp: TcpOptions::default(),
            transport: TransportOptions::new(TrType::Tcp),
            runtime: Options { cores: vec![0, 1], pin: false, ..Options::default() },
            delay: None,
            requests: CoreOptions::default(),
            addr: None,
        }
    }
}

pub struct World {
    rt: Option<Runtime>,
    pub target: Arc<Target>,
    pub tcp: Arc<TcpTransport>,
    pub addr: SocketAddr,
}

impl Setup {
    pub fn start(self) -> World {
        let rt = Runtime::start(self.runtime).unwrap();
        for c in rt.cores() {
            c.call(move |r| drop(CoreState::init(r, self.requests))).wait().unwrap();
        }
        let bdevs = Registry::new();
        let malloc = Malloc::new(Geometry::plain(512, BLOCKS)).unwrap();
        bdevs.register("Malloc0", None, malloc).unwrap();
        bdevs.register("Null0", None, Null::new(Geometry::plain(512, BLOCKS))).unwrap();
        let mut name = "Malloc0";
        if let Some(d) = self.delay {
            name = "Slow";
            let us = d.as_micros() as u64;
            let o = delay::Options {
                name: name.into(),
                base: "Malloc0".into(),
                uuid: None,
                avg_read_us: us,
                p99_read_us: us,
                avg_write_us: us,
                p99_write_us: us,
            };
            delay::create(&bdevs, o).unwrap().expect("its base is there");
        }
        let tcp = TcpTransport::new(self.tcp);
        let cores = rt.cores().to_vec();
        let addr = self.addr.unwrap_or_else(|| free_port("127.0.0.1"));
        let target = block_on(async {
            let t = Target::start(cores, bdevs).await?;
            t.register_transport(tcp.clone());
            t.create_transport(self.transport).await?;
            let mut s = SubsystemOptions::new(NQN);
            s.allow_any_host = true;
            t.create_subsystem(s).await?;
            let ns = NamespaceOptions { bdev_name: name.into(), ..NamespaceOptions::default() };
            t.add_namespace(NQN, ns).await?;
            t.add_listener(NQN, Address::tcp(addr), AnaState::Optimized).await?;
            Ok::<_, TargetError>(t)
        })
        .unwrap();
        World { rt: Some(rt), target, tcp, addr }
    }
}

impl World {
    pub fn new() -> World {
        Setup::default().start()
    }

    pub fn listen(&self, addr: SocketAddr) -> Result<(), TargetError> {
        block_on(self.target.add_listener(NQN, Address::tcp(addr), AnaState::Optimized))
    }

    pub fn unlisten(&self, addr: SocketAddr) -> Result<(), TargetError> {
        block_on(self.target.remove_listener(NQN, &Address::tcp(addr)))
    }

    /// Adds a device as the next namespace.
    pub fn add_namespace(&self, bdev: &str) {
        let ns = NamespaceOptions { bdev_name: bdev.into(), ..NamespaceOptions::default() };
        block_on(self.target.add_namespace(NQN, ns)).unwrap();
    }

    pub fn cores(&self) -> &[CoreHandle] {
        self.rt.as_ref().unwrap().cores()
    }

    /// The core of the queue pair `qid`, of which there is one.
    pub fn core_of(&self, qid: u16) -> usize {
        let all = block_on(self.target.qpairs(NQN)).unwrap();
        all.iter().find(|q| q.qid == qid).expect("the queue pair is there").core
    }

    /// Buffers in use on all cores.
    pub fn buffers(&self) -> u64 {
        let of = |c: &CoreHandle| c.call(|r| r.dma().stats().classes.iter().map(|s| s.in_use as u64).sum::<u64>());
        self.cores().iter().map(|c| of(c).wait().unwrap()).sum()
    }

    /// The request pools of all cores.
    pub fn pools(&self) -> Vec<PoolStats> {
        self.cores().iter().map(|c| c.call(|_| CoreState::current().pool_stats()).wait().unwrap()).collect()
    }

    /// Requests of the block layer in use on all cores.
    pub fn requests(&self) -> u32 {
        self.pools().iter().map(|p| p.in_use).sum()
    }

    /// Times that a command had to wait for a request of the block layer.
    pub fn request_waits(&self) -> u64 {
        block_on(self.target.stats()).iter().map(|s| s.traffic.request_waits).sum()
    }

    /// Waits until `f` holds.
    pub fn wait(&self, what: &str, f: impl Fn(&World) -> bool) {
        let start = Instant::now();
        while !f(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "it did not come about: {what}");
            std::thread::yield_now();
        }
    }

    /// Waits until at least `n` buffers are in use.
    pub fn settled_at_least(&self, n: u64) {
        self.wait("enough buffers are in use", |w| w.buffers() >= n);
    }

    /// Stops the reactors, without a shutdown of the target.
    pub fn stop_at_once(&mut self) {
        if let Some(rt) = self.rt.take() {
            rt.stop();
        }
    }

    /// Waits until no more than `n` buffers are in use.
    pub fn settled(&self, n: u64) {
        let start = Instant::now();
        loop {
            let b = self.buffers();
            if b <= n {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{b} buffers are in use, not {n}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.rt.is_some() {
            block_on(self.target.shutdown());
            assert_eq!(self.buffers(), 0, "buffers in use after shutdown");
        }
        if let Some(rt) = self.rt.take() {
            rt.stop();
        }
    }
}
