//! Namespaces of this crate's target as block devices of the initiator.

mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_bdev::nvme::{AttachError, AttachOptions, Controllers, PathFilter, TransportId};
use longshore_bdev::{Channel, IoFlags, Op, Registry, Status};
use longshore_nvmf::NamespaceOptions;
use longshore_reactor::{DmaBuf, Reactor};
use world::{BLOCKS, NQN, Setup, World, block_on};

fn filled(r: &Reactor, len: usize, byte: u8) -> DmaBuf {
    let mut b = r.dma().alloc(len).unwrap();
    b.get_mut().unwrap().fill(byte);
    b
}

struct Remote {
    registry: Arc<Registry>,
    controllers: Arc<Controllers>,
}

impl Remote {
    fn new(w: &World) -> Remote {
        let registry = Registry::new();
        Remote { controllers: Controllers::new(registry.clone(), w.cores().to_vec()), registry }
    }

    fn attach(&self, name: &str, addr: SocketAddr) -> Result<Vec<String>, AttachError> {
        block_on(self.controllers.attach(name, TransportId::tcp(addr, NQN), AttachOptions::default()))
    }

    fn detach(&self, name: &str) -> Result<(), AttachError> {
        block_on(self.controllers.detach(name, &PathFilter::default()))
    }

    /// Runs `f` with the device's channel on core 1.
    fn on_channel<Fut: Future<Output = ()> + 'static>(
        &self,
        w: &World,
        f: impl FnOnce(Reactor, Channel) -> Fut + Send + 'static,
    ) {
        let registry = self.registry.clone();
        let run = w.cores()[1].spawn(move |r| async move {
            let desc = registry.open("Nvme0n1", true, Box::new(|_| {})).unwrap();
            let ch = desc.channel().unwrap();
            f(r, ch).await;
        });
        run.wait_timeout(Duration::from_secs(60)).expect("in time").unwrap();
    }
}

#[test]
fn every_operation_reaches_the_namespace() {
    let w = World::new();
    let remote = Remote::new(&w);
    assert_eq!(remote.attach("Nvme0", w.addr).unwrap(), ["Nvme0n1"]);
    let node = remote.registry.find("Nvme0n1").unwrap();
    assert_eq!((node.num_blocks(), node.geometry().block_size), (BLOCKS, 512));
    remote.on_channel(&w, |r, ch| async move {
        let ok = Status::SUCCESS;
        assert_eq!(ch.write(7, 8, filled(&r, 4096, 0x5a), IoFlags::FUA).await.0, ok);
        let (s, b) = ch.read(7, 8, filled(&r, 4096, 0)).await;
        assert!(s == ok && b.unwrap().as_slice().iter().all(|&x| x == 0x5a));
        // Larger than a command may be.
        let mut big = filled(&r, 1 << 20, 1);
        for (i, c) in big.get_mut().unwrap().chunks_mut(512).enumerate() {
            c.fill(i as u8 ^ (i >> 8) as u8);
        }
        assert_eq!(ch.write(4096, 2048, big.clone(), IoFlags::NONE).await.0, ok);
        let (s, b) = ch.read(4096, 2048, filled(&r, 1 << 20, 0)).await;
        assert!(s == ok && b.unwrap().as_slice() == big.as_slice());
        assert_eq!(ch.compare(7, 8, filled(&r, 4096, 0x5a)).await.0, ok);
        assert_eq!(ch.compare(7, 8, filled(&r, 4096, 0x5b)).await.0.code(), Status::COMPARE_FAILURE);
        let caw = |old, new| ch.compare_and_write(7, 1, filled(&r, 512, old), filled(&r, 512, new), IoFlags::NONE);
        assert_eq!(caw(0x5a, 0x11).await.0, ok);
        assert_eq!(caw(0x5a, 0x22).await.0.code(), Status::COMPARE_FAILURE);
        let (_, b) = ch.read(7, 1, filled(&r, 512, 0)).await;
        assert!(b.unwrap().as_slice().iter().all(|&x| x == 0x11));
        assert_eq!(ch.write_zeroes(7, 8, IoFlags::NONE).await.0, ok);
        let (_, b) = ch.read(7, 8, filled(&r, 4096, 9)).await;
        assert!(b.unwrap().as_slice().iter().all(|&x| x == 0));
        assert_eq!(ch.flush().await.0, ok);
        assert_eq!(ch.unmap(4096, 2048).await.0, ok);
        if ch.supports(Op::Copy) {
            assert_eq!(ch.write(100, 1, filled(&r, 512, 0x77), IoFlags::NONE).await.0, ok);
            assert_eq!(ch.copy(100, 200, 1).await.0, ok);
            let (_, b) = ch.read(200, 1, filled(&r, 512, 0)).await;
            assert!(b.unwrap().as_slice().iter().all(|&x| x == 0x77));
        }
        assert_eq!(ch.read(BLOCKS, 1, filled(&r, 512, 0)).await.0.code(), Status::LBA_OUT_OF_RANGE);
        // More at once than the queue takes.
        let all: Vec<_> = (0..700).map(|i| ch.read(i * 8, 8, filled(&r, 4096, 0))).collect();
        for f in all {
            assert_eq!(f.await.0, ok);
        }
    });
    remote.detach("Nvme0").unwrap();
    assert!(remote.registry.find("Nvme0n1").is_none());
    w.settled(0);
}

#[test]
fn attaching_twice_or_to_nobody_is_refused_and_leaves_nothing() {
    let w = World::new();
    let remote = Remote::new(&w);
    remote.attach("Nvme0", w.addr).unwrap();
    let e = remote.attach("Nvme0", w.addr).unwrap_err();
    assert_eq!(
        (e.errno(), e.to_string().as_str()),
        (114, "A controller named Nvme0 already exists with the specified network path")
    );
    let e = remote.attach("Nvme1", world::free_port("127.0.0.1")).unwrap_err();
    assert_eq!(e.errno(), 5, "{e}");
    let all = remote.controllers.list(None).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].name.as_str(), all[0].state, &all[0].trid.subnqn[..]), ("Nvme0", "enabled", NQN));
    assert!(all[0].cntlid > 0 && all[0].hostnqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"));
    assert_eq!(remote.controllers.list(Some("Nvme1")).unwrap_err().errno(), 19);
    remote.detach("Nvme0").unwrap();
    assert_eq!(remote.detach("Nvme0").unwrap_err().errno(), 19);
    remote.attach("Nvme0", w.addr).unwrap();
    remote.detach("Nvme0").unwrap();
}

#[test]
fn requests_of_a_lost_connection_end_with_a_path_error_and_a_reset_brings_it_back() {
    let w = Setup { delay: Some(Duration::from_millis(500)), ..Setup::default() }.start();
    let remote = Remote::new(&w);
    remote.attach("Nvme0", w.addr).unwrap();
    let controllers = remote.controllers.clone();
    remote.on_channel(&w, |r, ch| async move {
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
        let under_way: Vec<_> = (0..4).map(|i| ch.read(i, 8, filled(&r, 4096, 0))).collect();
        r.yield_now().await;
        controllers.reset("Nvme0").await.unwrap();
        for f in under_way {
            let s = f.await.0;
            assert!(s.is_path_error(), "{s}");
        }
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
        assert_eq!(ch.reset().await.0, Status::SUCCESS);
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
    });
    remote.detach("Nvme0").unwrap();
    w.settled(0);
}

#[test]
fn namespaces_that_go_and_come_are_followed() {
    let w = World::new();
    let remote = Remote::new(&w);
    remote.attach("Nvme0", w.addr).unwrap();
    let until = |there: bool| {
        let start = Instant::now();
        while remote.registry.find("Nvme0n1").is_some() != there {
            assert!(start.elapsed() < Duration::from_secs(20), "Nvme0n1 is not {there}");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    block_on(w.target.remove_namespace(NQN, 1)).unwrap();
    until(false);
    let ns = NamespaceOptions { bdev_name: "Malloc0".into(), ..NamespaceOptions::default() };
    block_on(w.target.add_namespace(NQN, ns)).unwrap();
    until(true);
    remote.detach("Nvme0").unwrap();
}
