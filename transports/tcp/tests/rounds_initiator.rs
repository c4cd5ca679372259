//! As `rounds`, with this crate's initiator as the host: its block devices keep every kind of request in flight, then something
//! ends on either side, and both give everything back.

mod host;
mod stage;
mod world;

use longshore_bdev::nvme::{AttachOptions, Controllers, PathFilter, Reconnect, TransportId};
use longshore_bdev::{Channel, IoFlags, IoFuture, Registry};
use longshore_reactor::{DmaOptions, Options, Reactor, Runtime, oneshot};
use stage::{Counters, DEVICES, Rng, Stage, count, settled};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use world::{BLOCKS, NQN, World, block_on};

const SLOW: Duration = Duration::from_millis(20);

/// An initiator with reactors of its own.
struct Initiator {
    rt: Runtime,
    registry: Arc<Registry>,
    controllers: Arc<Controllers>,
    start: Counters,
}

impl Initiator {
    fn new() -> Initiator {
        let dma = DmaOptions { max_bytes: 16 << 20, ..DmaOptions::default() };
        let o = Options { cores: vec![0, 1], pin: false, name: "host".into(), dma, ..Options::default() };
        let rt = Runtime::start(o).unwrap();
        let registry = Registry::new();
        let controllers = Controllers::new(registry.clone(), rt.cores().to_vec());
        let start = count(rt.cores(), None, &registry);
        Initiator { rt, registry, controllers, start }
    }

    fn attach(&self, w: &World, rng: &mut Rng) {
        let mut o = AttachOptions { hdgst: rng.chance(50), ddgst: rng.chance(50), ..AttachOptions::default() };
        if rng.chance(20) {
            // What it loses is waited for until it is detached.
            o.reconnect = Reconnect { ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 1, ..Reconnect::default() };
        }
        let names = block_on(self.controllers.attach("Nvme0", TransportId::tcp(w.addr, NQN), o)).unwrap();
        assert_eq!(names.len(), DEVICES.len());
    }

    fn detach(&self) {
        if !self.controllers.list(None).unwrap().is_empty() {
            block_on(self.controllers.detach("Nvme0", &PathFilter::default())).unwrap();
        }
    }

    /// Loads on devices of the controller, until `enough`.
    fn loads(&self, rng: &mut Rng, enough: &Arc<AtomicBool>) -> Vec<oneshot::Receiver<()>> {
        let n = 1 + rng.below(5);
        let load = |_| {
            let name = format!("Nvme0n{}", 1 + rng.below(DEVICES.len()));
            let (core, seed) = (&self.rt.cores()[rng.below(2)], rng.below(1 << 30) as u64);
            let (registry, enough) = (self.registry.clone(), enough.clone());
            core.spawn(move |r| async move {
                let Ok(desc) = registry.open(&name, false, Box::new(|_| {})) else { return };
                let Ok(ch) = desc.channel() else { return };
                let mut rng = Rng(seed);
                while !enough.load(Ordering::SeqCst) && !desc.node().is_removing() {
                    let n = 1 + rng.below(24);
                    let all: Vec<_> = (0..n).filter_map(|_| request(&r, &ch, &mut rng)).collect();
                    if rng.chance(75) {
                        for end in all {
                            end.await; // its status depends on what ends when
                        }
                    }
                    r.yield_now().await;
                }
            })
        };
        (0..n).map(load).collect()
    }
}

/// Some request; `None`: no memory is left.
fn request(r: &Reactor, ch: &Channel, rng: &mut Rng) -> Option<IoFuture> {
    let blocks = [1, 8, 8, 64, 300][rng.below(5)];
    let lba = rng.below(BLOCKS as usize - 300) as u64;
    let buffer = || r.dma().alloc(blocks as usize * 512);
    Some(match rng.below(20) {
        0..=6 => ch.read(lba, blocks, buffer()?),
        7..=12 => ch.write(lba, blocks, buffer()?, IoFlags::NONE),
        13 => ch.compare(lba, blocks, buffer()?),
        14 | 15 => {
            let one = || r.dma().alloc(512);
            ch.compare_and_write(lba, 1, one()?, one()?, IoFlags::NONE)
        }
        16 => ch.unmap(lba, blocks),
        17 => ch.write_zeroes(lba, blocks, IoFlags::NONE),
        18 => ch.copy(lba, lba + 300, 8),
        _ => ch.flush(),
    })
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Detached,
    SubsystemDeleted,
    BdevRemoved,
    ControllerReset,
    TargetStopped,
}

const ENDS: [End; 5] =
    [End::Detached, End::SubsystemDeleted, End::BdevRemoved, End::ControllerReset, End::TargetStopped];

fn round(stage: &mut Stage, host: &Initiator, rng: &mut Rng) {
    let end = ENDS[rng.below(ENDS.len())];
    stage.pace(rng, SLOW);
    host.attach(&stage.w, rng);
    let enough = Arc::new(AtomicBool::new(false));
    let loads = host.loads(rng, &enough);
    std::thread::sleep(rng.pause());
    match end {
        End::Detached => {}
        End::SubsystemDeleted => stage.delete_subsystem(),
        End::BdevRemoved => stage.remove_bdev(rng),
        End::ControllerReset => {
            let resets: Vec<_> = (0..1 + rng.below(3))
                .map(|_| {
                    let controllers = host.controllers.clone();
                    host.rt.cores()[rng.below(2)].spawn(move |_| async move { controllers.reset("Nvme0").await })
                })
                .collect();
            // One may end the connection that another is just looking at; the last one succeeds.
            let ends =
                resets.into_iter().map(|r| r.wait_timeout(Duration::from_secs(20)).expect("a reset ends").unwrap());
            let ends: Vec<_> = ends.collect();
            assert!(ends.iter().any(Result::is_ok), "{ends:?}");
        }
        End::TargetStopped => stage.stop(rng),
    }
    // Whoever holds a device that is removed lets go of it; requests that wait for a lost controller end.
    if rng.chance(50) {
        enough.store(true, Ordering::SeqCst);
    }
    host.detach();
    enough.store(true, Ordering::SeqCst);
    for l in loads {
        l.wait_timeout(Duration::from_secs(20)).expect("every request ends").unwrap();
    }
    let now = || count(host.rt.cores(), None, &host.registry);
    settled(&format!("{:?}", host.start), now, |now| *now == host.start);
    if end == End::TargetStopped {
        *stage = Stage::new();
    }
    stage.settle();
}

#[test]
fn whatever_ends_under_load_of_an_initiator_gives_everything_back_on_both_sides() {
    let start = || (Stage::new(), Initiator::new());
    stage::rounds(300, start, |(stage, host), _, rng| round(stage, host, rng), |(_, host)| host.rt.stop());
}
