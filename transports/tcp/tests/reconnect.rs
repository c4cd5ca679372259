//! A remote namespace whose target goes away: what waits, what fails, what comes back.

mod world;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore_bdev::nvme::{AttachOptions, Controllers, PathFilter, Reconnect, TransportId};
use longshore_bdev::{BdevEvent, Channel, IoFlags, Registry, Status};
use longshore_nvmf::NamespaceOptions;
use longshore_reactor::{DmaBuf, Reactor};
use world::{NQN, Setup, World, block_on};

const PATIENCE: Duration = Duration::from_secs(60);

/// A wire between host and target that can be cut.
#[derive(Clone)]
struct Wire {
    addr: SocketAddr,
    down: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// Connections asked for so far.
    asked: Arc<AtomicUsize>,
}

impl Wire {
    fn to(target: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire {
            addr: listener.local_addr().unwrap(),
            down: Arc::default(),
            open: Arc::default(),
            asked: Arc::default(),
        };
        let w = wire.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                w.asked.fetch_add(1, Ordering::SeqCst);
                let mut open = w.open.lock().unwrap();
                if w.down.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let mut buf = [0; 65536];
                        while let Ok(n @ 1..) = from.read(&mut buf) {
                            if to.write_all(&buf[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                open.extend([near, far]);
            }
        });
        wire
    }

    fn cut(&self) {
        let mut open = self.open.lock().unwrap();
        self.down.store(true, Ordering::SeqCst);
        open.drain(..).for_each(|s| drop(s.shutdown(Shutdown::Both)));
    }

    fn mend(&self) {
        self.down.store(false, Ordering::SeqCst);
    }
}

struct Remote {
    w: World,
    wire: Wire,
    registry: Arc<Registry>,
    controllers: Arc<Controllers>,
}

impl Remote {
    /// `Nvme0` over a wire; `policy`: loss timeout, delay and fast fail timeout.
    fn attach(setup: Setup, policy: (i32, u32, u32)) -> Remote {
        let w = setup.start();
        let (registry, wire) = (Registry::new(), Wire::to(w.addr));
        let controllers = Controllers::new(registry.clone(), w.cores().to_vec());
        let reconnect = Reconnect {
            ctrlr_loss_timeout_sec: policy.0,
            reconnect_delay_sec: policy.1,
            fast_io_fail_timeout_sec: policy.2,
        };
        let o = AttachOptions { reconnect, ..AttachOptions::default() };
        let names = block_on(controllers.attach("Nvme0", TransportId::tcp(wire.addr, NQN), o)).unwrap();
        assert_eq!(names, ["Nvme0n1"]);
        Remote { w, wire, registry, controllers }
    }

    /// Runs `f` with the device's channel on core 1, which is let go when the device is removed.
    fn run<Fut: Future<Output = ()> + 'static>(&self, f: impl FnOnce(Reactor, Channel) -> Fut + Send + 'static) {
        let registry = self.registry.clone();
        let run = self.w.cores()[1].spawn(move |r| async move {
            let desc = registry.open("Nvme0n1", true, Box::new(|_| {})).unwrap();
            f(r, desc.channel().unwrap()).await;
        });
        run.wait_timeout(PATIENCE).expect("in time").unwrap();
    }

    fn state(&self) -> String {
        self.controllers.list(None).unwrap().first().map_or("none", |c| c.state).to_owned()
    }

    fn done(self) {
        let _ = block_on(self.controllers.detach("Nvme0", &PathFilter::default()));
        self.w.settled(0);
    }
}

fn filled(r: &Reactor, len: usize, byte: u8) -> DmaBuf {
    let mut b = r.dma().alloc(len).unwrap();
    b.get_mut().unwrap().fill(byte);
    b
}

fn until(what: &str, f: impl Fn() -> bool) {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits on the reactor until `f`.
async fn reached(r: &Reactor, f: impl Fn() -> bool) {
    while !f() {
        r.sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn io_waits_while_the_target_is_away_and_is_done_when_it_is_back() {
    let remote = Remote::attach(Setup { delay: Some(Duration::from_millis(50)), ..Setup::default() }, (-1, 1, 0));
    let (wire, controllers) = (remote.wire.clone(), remote.controllers.clone());
    remote.run(|r, ch| async move {
        for round in 1..4u8 {
            let write = |i: u64| ch.write(i * 8, 8, filled(&r, 4096, round ^ i as u8), IoFlags::NONE);
            let mut all: Vec<_> = (0..200).map(write).collect();
            r.sleep(Duration::from_millis(20)).await;
            let asked = wire.asked.load(Ordering::SeqCst);
            wire.cut();
            // Some come while there is no connection, before and after an attempt failed.
            all.extend((200..220).map(write));
            reached(&r, || wire.asked.load(Ordering::SeqCst) > asked).await;
            assert_ne!(controllers.list(None).unwrap()[0].state, "enabled");
            all.extend((220..240).map(write));
            wire.mend();
            for f in all {
                assert_eq!(f.await.0, Status::SUCCESS);
            }
            let all: Vec<_> = (0..240).map(|i| ch.read(i * 8, 8, filled(&r, 4096, 0xee))).collect();
            for (i, f) in all.into_iter().enumerate() {
                let (s, b) = f.await;
                assert_eq!(s, Status::SUCCESS);
                assert!(b.unwrap().as_slice().iter().all(|&x| x == round ^ i as u8), "round {round}, {i}");
            }
        }
    });
    remote.done();
}

#[test]
fn without_reconnect_io_to_a_target_that_is_gone_fails_and_a_reset_brings_it_back() {
    let remote = Remote::attach(Setup::default(), (0, 0, 0));
    let (wire, controllers) = (remote.wire.clone(), remote.controllers.clone());
    remote.run(|r, ch| async move {
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
        wire.cut();
        let s = ch.read(0, 8, filled(&r, 4096, 0)).await.0;
        assert!(s.is_path_error(), "{s}");
        reached(&r, || controllers.list(None).unwrap()[0].state == "failed").await;
        assert!(controllers.reset("Nvme0").await.is_err());
        wire.mend();
        controllers.reset("Nvme0").await.unwrap();
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
    });
    remote.done();
}

#[test]
fn after_the_fast_fail_timeout_io_fails_at_once_until_the_target_is_back() {
    let remote = Remote::attach(Setup::default(), (-1, 1, 1));
    let wire = remote.wire.clone();
    remote.run(|r, ch| async move {
        let cut = Instant::now();
        wire.cut();
        let s = ch.read(0, 8, filled(&r, 4096, 0)).await.0;
        assert!(s.is_path_error() && cut.elapsed() > Duration::from_millis(800), "{s} after {:?}", cut.elapsed());
        // It would take at least as long again if it waited for another attempt.
        let s = ch.read(0, 8, filled(&r, 4096, 0)).await.0;
        assert!(s.is_path_error(), "{s}");
        wire.mend();
        let start = Instant::now();
        while ch.read(0, 8, filled(&r, 4096, 0)).await.0 != Status::SUCCESS {
            assert!(start.elapsed() < PATIENCE);
            r.sleep(Duration::from_millis(5)).await;
        }
    });
    remote.done();
}

#[test]
fn after_the_loss_timeout_io_fails_the_device_is_removed_and_its_name_is_free() {
    let remote = Remote::attach(Setup::default(), (1, 1, 0));
    let (wire, registry) = (remote.wire.clone(), remote.registry.clone());
    let run = remote.w.cores()[1].spawn(move |r| async move {
        let removed = Arc::new(AtomicBool::new(false));
        let told = removed.clone();
        let sink = move |e| told.store(matches!(e, BdevEvent::Remove), Ordering::SeqCst);
        let desc = registry.open("Nvme0n1", true, Box::new(sink)).unwrap();
        let ch = desc.channel().unwrap();
        wire.cut();
        let all: Vec<_> = (0..50).map(|i| ch.read(i, 8, filled(&r, 4096, 0))).collect();
        for f in all {
            let s = f.await.0;
            assert!(s.is_path_error(), "{s}");
        }
        reached(&r, || removed.load(Ordering::SeqCst)).await;
    });
    run.wait_timeout(PATIENCE).expect("in time").unwrap();
    assert!(remote.registry.find("Nvme0n1").is_none());
    assert_eq!(remote.state(), "none");
    remote.wire.mend();
    let id = TransportId::tcp(remote.wire.addr, NQN);
    block_on(remote.controllers.attach("Nvme0", id, AttachOptions::default())).unwrap();
    remote.run(|r, ch| async move {
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
    });
    remote.done();
}

#[test]
fn what_waits_for_a_connection_ends_by_a_reset_of_the_device_and_by_detach() {
    let remote = Remote::attach(Setup::default(), (-1, 1, 0));
    let (wire, controllers) = (remote.wire.clone(), remote.controllers.clone());
    remote.run(|r, ch| async move {
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
        wire.cut();
        let all: Vec<_> = (0..50).map(|i| ch.read(i, 8, filled(&r, 4096, 0))).collect();
        r.yield_now().await;
        let s = ch.reset().await.0;
        assert!(s.is_path_error(), "{s}");
        for f in all {
            let s = f.await.0;
            assert!(s.is(Status::ABORT_REQUESTED) || s.is_path_error(), "{s}");
        }
        let all: Vec<_> = (0..50).map(|i| ch.read(i, 8, filled(&r, 4096, 0))).collect();
        let detach = r.spawn(async move { controllers.detach("Nvme0", &PathFilter::default()).await });
        for f in all {
            assert!(f.await.0.is_err());
        }
        drop(ch);
        drop(detach);
    });
    until("it is detached", || remote.state() == "none" && remote.registry.find("Nvme0n1").is_none());
    remote.done();
}

#[test]
fn a_write_that_waited_does_not_go_to_a_namespace_that_took_the_place_of_its_own() {
    let remote = Remote::attach(Setup::default(), (-1, 1, 0));
    let (wire, target) = (remote.wire.clone(), remote.w.target.clone());
    remote.run(|r, ch| async move {
        assert_eq!(ch.read(0, 8, filled(&r, 4096, 0)).await.0, Status::SUCCESS);
        wire.cut();
        let write = ch.write(0, 8, filled(&r, 4096, 0x66), IoFlags::NONE);
        r.yield_now().await;
        target.remove_namespace(NQN, 1).await.unwrap();
        let other = NamespaceOptions {
            bdev_name: "Malloc0".into(),
            nguid: Some(*b"another identity"),
            ..NamespaceOptions::default()
        };
        target.add_namespace(NQN, other).await.unwrap();
        wire.mend();
        let s = write.await.0;
        assert!(s.is(Status::INVALID_NAMESPACE_OR_FORMAT), "{s}");
        drop(ch);
    });
    until("the new one is there", || remote.registry.find("Nvme0n1").is_some());
    remote.run(|r, ch| async move {
        let (s, b) = ch.read(0, 8, filled(&r, 4096, 0xee)).await;
        assert!(s == Status::SUCCESS && b.unwrap().as_slice().iter().all(|&x| x == 0));
    });
    remote.done();
}
