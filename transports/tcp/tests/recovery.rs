//! What a controller says when it is connected again, and when it is lost while that is found out.

mod relay;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use longshore_bdev::nvme::{AttachOptions, Controllers, PathFilter, TransportId};
use longshore_bdev::{Channel, Registry, Status};
use longshore_nvmf::SubsystemOptions;
use longshore_reactor::Reactor;
use relay::{C2H_DATA, Relay, Way, command};
use world::{NQN, World, block_on};

const PATIENCE: Duration = Duration::from_secs(60);
const FLUSH: u8 = 0;
const GET_LOG_PAGE: u8 = 2;
/// Log identifier of the changed namespaces: what a look at the namespaces begins with.
const CHANGED_NAMESPACES: u32 = 4;
/// Where Identify Controller says whether there is a volatile write cache.
const VWC: usize = 525;

struct Remote {
    w: World,
    relay: Relay,
    registry: Arc<Registry>,
    controllers: Arc<Controllers>,
}

impl Remote {
    /// `Nvme0` by way of `tap`; it is tried once to connect it again.
    fn attach(tap: impl Fn(Way, &mut [u8]) -> bool + Send + Sync + 'static) -> Remote {
        let w = World::new();
        let (registry, relay) = (Registry::new(), Relay::to(w.addr, tap));
        let controllers = Controllers::new(registry.clone(), w.cores().to_vec());
        let id = TransportId::tcp(relay.addr, NQN);
        let names = block_on(controllers.attach("Nvme0", id, AttachOptions::default())).unwrap();
        assert_eq!(names, ["Nvme0n1"]);
        Remote { w, relay, registry, controllers }
    }

    fn run<Fut: Future<Output = Status> + 'static>(
        &self,
        f: impl FnOnce(Reactor, Channel) -> Fut + Send + 'static,
    ) -> Status {
        let registry = self.registry.clone();
        let run = self.w.cores()[1].spawn(move |r| async move {
            let desc = registry.open("Nvme0n1", true, Box::new(|_| {})).unwrap();
            f(r, desc.channel().unwrap()).await
        });
        run.wait_timeout(PATIENCE).expect("in time").unwrap()
    }

    fn read(&self) -> Status {
        self.run(|r, ch| async move { ch.read(0, 8, r.dma().alloc(4096).unwrap()).await.0 })
    }

    fn state(&self) -> &'static str {
        self.controllers.list(None).unwrap()[0].state
    }

    fn done(self) {
        block_on(self.controllers.detach("Nvme0", &PathFilter::default())).unwrap();
        self.w.settled(0);
    }
}

#[test]
fn a_namespace_counts_as_cached_whatever_its_controller_says_and_flushes_are_sent_once_it_has_a_cache() {
    let (cached, flushes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (says, seen) = (cached.clone(), flushes.clone());
    let remote = Remote::attach(move |way, p| {
        if way == Way::ToTarget && command(p).is_some_and(|(op, _)| op == FLUSH) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        // Identify Controller, by its model number.
        if p[0] == C2H_DATA && p.len() == 24 + 4096 && p[24 + 24..].starts_with(SubsystemOptions::MODEL.as_bytes()) {
            p[24 + VWC] = u8::from(says.load(Ordering::SeqCst));
        }
        true
    });
    let geometry = remote.registry.find("Nvme0n1").unwrap().geometry().clone();
    assert!(geometry.volatile_cache, "its users may not do without flushes");
    let flush = || {
        remote.run(|r, ch| async move {
            // Now there is a queue.
            assert_eq!(ch.read(0, 8, r.dma().alloc(4096).unwrap()).await.0, Status::SUCCESS);
            ch.flush().await.0
        })
    };
    assert_eq!(flush(), Status::SUCCESS);
    assert_eq!(flushes.load(Ordering::SeqCst), 0, "there was nothing to flush");
    cached.store(true, Ordering::SeqCst);
    block_on(remote.controllers.reset("Nvme0")).unwrap();
    assert_eq!(flush(), Status::SUCCESS);
    assert_eq!(flushes.load(Ordering::SeqCst), 1, "the controller has a cache now");
    remote.done();
}

#[test]
fn a_controller_that_is_lost_three_times_while_its_namespaces_are_looked_at_is_back_and_after_four_times_given_up() {
    let losses = Arc::new(AtomicUsize::new(0));
    let left = losses.clone();
    let remote = Remote::attach(move |way, p| {
        let look = way == Way::ToTarget
            && command(p).is_some_and(|(op, dw10)| op == GET_LOG_PAGE && dw10 & 0xff == CHANGED_NAMESPACES);
        let lose = |n: usize| n.checked_sub(1);
        !look || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).is_err()
    });
    assert_eq!(remote.read(), Status::SUCCESS);
    for (times, back) in [(3, true), (4, false)] {
        losses.store(times, Ordering::SeqCst);
        remote.relay.cut();
        let start = Instant::now();
        while losses.load(Ordering::SeqCst) > 0 || !matches!(remote.state(), "enabled" | "failed") {
            assert!(
                start.elapsed() < PATIENCE,
                "{} losses are left, it is {}",
                losses.load(Ordering::SeqCst),
                remote.state()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let s = remote.read();
        assert!(if back { s.is_ok() } else { s.is_path_error() }, "lost {times} times: {s}");
    }
    block_on(remote.controllers.reset("Nvme0")).unwrap();
    assert_eq!(remote.read(), Status::SUCCESS);
    remote.done();
}
