//! Where rounds of teardown take place: a target with a device of every kind, what it has handed out, and the ways it can lose
//! something. Test files that use this have `host` and `world` too.
//!
//! `TEARDOWN_SEED` is the first round's seed, `TEARDOWN_ROUNDS` how many follow; a failure says both, and so does a round that hangs.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use longshore_bdev::delay::{Delay, Latency};
use longshore_bdev::malloc::Malloc;
use longshore_bdev::null::Null;
use longshore_bdev::{Bdev, CoreOptions, CoreState, Geometry, Registry, delay};
use longshore_nvmf::{
    Address, AnaState, NamespaceOptions, PollGroup, SubsystemOptions, Target, TrType, TransportOptions,
};
use longshore_reactor::{CoreHandle, DmaOptions, Options, Reactor};

use crate::host::{Host, Ic};
use crate::world::{BLOCKS, NQN, Setup, World, block_on};

/// The namespaces, from 1.
pub const DEVICES: [&str; 3] = ["Malloc0", "Slow1", "Null0"];
/// Usual latency of the slow one, in microseconds.
const LATENCY: u64 = 4000;

pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A moment of at most 3 ms, often none.
    pub fn pause(&mut self) -> Duration {
        Duration::from_micros([0, 0, 50, 400, 1000, 3000][self.below(6)])
    }
}

/// What one core has handed out.
#[derive(Clone, Debug, PartialEq)]
pub struct CoreCount {
    pub requests: u32,
    /// By size.
    pub buffers: Vec<usize>,
    /// Those whose memory devices lend.
    pub lent: usize,
    pub connections: usize,
    pub operations: usize,
    /// Neither queue pairs nor controllers.
    pub idle: bool,
}

/// What is handed out.
#[derive(Clone, Debug, PartialEq)]
pub struct Counters {
    pub cores: Vec<CoreCount>,
    /// By device: how many hold it open, and on how many cores.
    pub devices: Vec<(String, usize, usize)>,
}

/// What is handed out on `cores`, by `target` too, and of the devices of `bdevs`.
pub fn count(cores: &[CoreHandle], target: Option<&Arc<Target>>, bdevs: &Arc<Registry>) -> Counters {
    let of = |target: Option<&Arc<Target>>, r: &Reactor| CoreCount {
        requests: CoreState::current().pool_stats().in_use,
        buffers: r.dma().stats().classes.iter().map(|c| c.in_use).collect(),
        lent: r.dma().stats().adopted,
        connections: r.sock_stats().connections,
        operations: r.in_flight(),
        idle: target.and_then(PollGroup::of).is_none_or(|g| g.is_idle()),
    };
    let cores = cores.iter().map(|c| {
        let target = target.cloned();
        c.call(move |r| of(target.as_ref(), r)).wait().unwrap()
    });
    let cores = cores.collect();
    let all = bdevs.list();
    let mut devices: Vec<_> =
        all.iter().map(|n| (n.name().to_owned(), n.open_count(), n.channel_stats().len())).collect();
    devices.sort();
    Counters { cores, devices }
}

fn count_world(w: &World) -> Counters {
    count(w.cores(), Some(&w.target), w.target.bdevs())
}

/// Waits until `count` is `right`.
pub fn settled(want: &str, count: impl Fn() -> Counters, right: impl Fn(&Counters) -> bool) {
    let begin = Instant::now();
    loop {
        let now = count();
        if right(&now) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "handed out is\n  {now:?}\nand should be\n  {want}");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// A target with all devices, and its counters when nobody is connected.
pub struct Stage {
    pub w: World,
    start: Counters,
}

fn register(w: &World, name: &str, dev: Arc<dyn Bdev>) {
    w.target.bdevs().register(name, None, dev).unwrap();
}

/// The device `name`, as it is made at the start.
fn make(w: &World, name: &str) {
    let plain = || Geometry::plain(512, BLOCKS);
    match name {
        _ if w.target.bdevs().find(name).is_some() => {}
        "Null0" => register(w, name, Null::new(plain())),
        _ => register(w, name, Malloc::new(plain()).unwrap()),
    }
    if name == "Malloc1" && w.target.bdevs().find("Slow1").is_none() {
        let (name, base) = ("Slow1".into(), "Malloc1".into());
        let o = delay::Options {
            name,
            base,
            uuid: None,
            avg_read_us: LATENCY,
            p99_read_us: LATENCY,
            avg_write_us: LATENCY,
            p99_write_us: LATENCY,
        };
        delay::create(w.target.bdevs(), o).unwrap();
    }
}

fn add_namespace(w: &World, nsid: usize) {
    let o = NamespaceOptions {
        bdev_name: DEVICES[nsid - 1].into(),
        nsid: Some(nsid as u32),
        ..NamespaceOptions::default()
    };
    block_on(w.target.add_namespace(NQN, o)).unwrap();
}

impl Stage {
    pub fn new() -> Stage {
        let mut transport = TransportOptions::new(TrType::Tcp);
        // What does not end at once is aborted.
        transport.abort_timeout_sec = 0;
        let dma = DmaOptions { max_bytes: 6 << 20, ..DmaOptions::default() };
        let w = Setup {
            runtime: Options { cores: vec![0, 1], pin: false, dma, ..Options::default() },
            // Fewer than there are commands at times; memory, too.
            requests: CoreOptions { requests: 40, child_reserve: 8 },
            transport,
            ..Setup::default()
        }
        .start();
        make(&w, "Malloc1");
        make(&w, "Null0");
        add_namespace(&w, 2);
        add_namespace(&w, 3);
        // The first host makes what stays.
        for qid in 1..=2 {
            let admin = Host::admin(w.addr, Ic::default(), NQN);
            let mut io = Host::io(w.addr, Ic::default(), NQN, admin.cntlid, qid, 31, 0);
            assert!(io.read(0, 4096).status.is_ok());
        }
        w.wait("the first hosts are gone", |w| count_world(w).cores.iter().all(|c| c.idle && c.connections == 0));
        w.settled(0);
        let start = count_world(&w);
        Stage { w, start }
    }

    /// Waits until nothing more is handed out than at the start.
    pub fn settle(&self) {
        settled(&format!("{:?}", self.start), || count_world(&self.w), |now| *now == self.start);
    }

    /// Reads, or writes, of the slow device take as long as usual or `slowest`.
    pub fn pace(&self, rng: &mut Rng, slowest: Duration) {
        let node = self.w.target.bdevs().find("Slow1").expect("it is there between the rounds");
        let dev = node.device().as_any().downcast_ref::<Delay>().unwrap();
        for which in [[Latency::AvgRead, Latency::P99Read], [Latency::AvgWrite, Latency::P99Write]] {
            let us = if rng.chance(25) { slowest.as_micros() as u64 } else { LATENCY };
            which.into_iter().for_each(|l| dev.set_latency(l, us));
        }
    }

    /// Deletes the subsystem, and makes it again.
    pub fn delete_subsystem(&self) {
        block_on(self.w.target.delete_subsystem(NQN)).unwrap();
        restore_subsystem(&self.w);
    }

    /// Removes a device, and makes it again.
    pub fn remove_bdev(&self, rng: &mut Rng) {
        let name = ["Malloc0", "Malloc1", "Slow1", "Null0"][rng.below(4)];
        let nsid = DEVICES.iter().position(|d| *d == name).unwrap_or(1) + 1;
        let bdevs = self.w.target.bdevs();
        match name {
            "Slow1" => block_on(bdevs.unconfigure(delay::MODULE, name)).unwrap(),
            // Takes the slow one along, which comes back with it.
            _ => block_on(bdevs.unregister(name)).unwrap(),
        }
        make(&self.w, if name == "Slow1" { "Malloc1" } else { name });
        add_namespace(&self.w, nsid);
    }

    /// Stops the target, in order or, at times, at once; it is of no use any more.
    pub fn stop(&mut self, rng: &mut Rng) {
        if rng.chance(80) {
            let begin = Instant::now();
            block_on(self.w.target.shutdown());
            // Less than any of its time limits, the least of which is that for a Connect.
            assert!(begin.elapsed() < Duration::from_secs(8), "the shutdown took {:?}", begin.elapsed());
            // Channels, and what they keep, close in the next turn.
            let left = |c: &CoreCount| {
                let &CoreCount { requests, ref buffers, lent, connections, operations, idle } = c;
                requests != 0 || buffers.iter().any(|&b| b != 0) || lent + connections + operations != 0 || !idle
            };
            let open =
                |(name, opens, cores): &(String, usize, usize)| *opens != usize::from(name == "Malloc1") || *cores != 0;
            let none = |c: &Counters| !c.cores.iter().any(left) && !c.devices.iter().any(open);
            settled("nothing", || count_world(&self.w), none);
        }
        self.w.stop_at_once();
    }
}

fn restore_subsystem(w: &World) {
    block_on(async {
        let mut s = SubsystemOptions::new(NQN);
        s.allow_any_host = true;
        w.target.create_subsystem(s).await.unwrap();
    });
    (1..=DEVICES.len()).for_each(|n| add_namespace(w, n));
    block_on(w.target.add_listener(NQN, Address::tcp(w.addr), AnaState::Optimized)).unwrap();
}

static SEED: AtomicU64 = AtomicU64::new(0);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
}

/// What a round may take, or what comes before and after all of them. Waits that have a limit of their own fail long before.
const STUCK: Duration = Duration::from_secs(180);

/// Runs as many rounds as the environment asks for, or `rounds`, with what `start` makes and `end` takes down.
pub fn rounds<S>(
    rounds: u64,
    start: impl FnOnce() -> S,
    mut round: impl FnMut(&mut S, u64, &mut Rng),
    end: impl FnOnce(S),
) {
    let (first, rounds) = (number("TEARDOWN_SEED", 1), number("TEARDOWN_ROUNDS", rounds));
    // A reactor that panics ends the process: the seed is said first, past the capture of output.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |p| {
        say("");
        hook(p);
    }));
    SEED.store(first, Ordering::SeqCst);
    // Not every wait of a round has a limit of its own: somebody watches that it goes on.
    let (alive, watched) = channel::<()>();
    let watch = std::thread::spawn(move || {
        loop {
            match watched.recv_timeout(STUCK) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    say(&format!("nothing has ended for {STUCK:?} in this round, or just before or after it: "));
                    std::process::abort();
                }
            }
        }
    });
    let mut stage = start();
    for seed in first..first + rounds {
        let _ = alive.send(());
        SEED.store(seed, Ordering::SeqCst);
        // Neighbouring seeds must not begin alike.
        let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        round(&mut stage, seed, &mut Rng((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb)));
    }
    let _ = alive.send(());
    end(stage);
    drop(alive);
    watch.join().unwrap();
}

/// Says on stderr, past the capture of output, which round it is.
fn say(what: &str) {
    let line = format!("{what}TEARDOWN_SEED={} TEARDOWN_ROUNDS=1\n", SEED.load(Ordering::SeqCst));
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}
