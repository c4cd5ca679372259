//! Listeners of one address: who is told what, who waits, and who gives up.

mod world;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use longshore_nvmf::{Address, AnaState, SubsystemOptions, TargetError};
use world::{World, block_on};

const A: &str = "nqn.2016-06.io.longshore:a";
const B: &str = "nqn.2016-06.io.longshore:b";
/// A good part of the time for which an address in use is tried again.
const SOON: Duration = Duration::from_secs(2);

type End = Result<(), TargetError>;

fn create(w: &World, nqn: &str) {
    let mut s = SubsystemOptions::new(nqn);
    s.allow_any_host = true;
    block_on(w.target.create_subsystem(s)).unwrap();
}

/// A target with subsystems `A` and `B`.
fn world() -> World {
    let w = World::new();
    create(&w, A);
    create(&w, B);
    w
}

fn has(w: &World, nqn: &str, at: SocketAddr) -> bool {
    w.target.subsystem(nqn).is_ok_and(|s| s.listener(&Address::tcp(at)).is_some())
}

/// Adds a listener in a thread of its own; it is recorded when this returns.
fn adding(w: &World, nqn: &'static str, at: SocketAddr) -> JoinHandle<End> {
    let target = w.target.clone();
    let add = std::thread::spawn(move || block_on(target.add_listener(nqn, Address::tcp(at), AnaState::Optimized)));
    w.wait("the listener is recorded", |w| has(w, nqn, at));
    add
}

fn add(w: &World, nqn: &str, at: SocketAddr) -> End {
    block_on(w.target.add_listener(nqn, Address::tcp(at), AnaState::Optimized))
}

/// An address that somebody else listens on.
fn busy() -> (TcpListener, SocketAddr) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = l.local_addr().unwrap();
    (l, at)
}

fn listens(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, Duration::from_secs(10)).is_ok()
}

fn in_use(end: &End) -> bool {
    matches!(end, Err(TargetError::ListenFailed { errno: libc::EADDRINUSE, .. }))
}

#[test]
fn all_who_add_a_busy_address_are_told_that_it_is_busy_and_it_can_be_added_later() {
    let w = world();
    let (other, at) = busy();
    // The second one comes while the first one's attempt is under way.
    let (go, wait) = mpsc::channel::<()>();
    let held = w.cores()[0].call(move |_| wait.recv());
    let adds = [adding(&w, A, at), adding(&w, B, at)];
    go.send(()).unwrap();
    held.wait().unwrap().unwrap();
    for a in adds {
        let end = a.join().unwrap();
        assert!(in_use(&end), "{end:?}");
    }
    assert!(!has(&w, A, at) && !has(&w, B, at));
    drop(other);
    assert_eq!([add(&w, A, at), add(&w, B, at)], [Ok(()), Ok(())]);
    assert!(listens(at));
    block_on(w.target.remove_listener(A, &Address::tcp(at))).unwrap();
    assert!(listens(at), "the other one still uses it");
    block_on(w.target.remove_listener(B, &Address::tcp(at))).unwrap();
    w.wait("it is closed with the last", |_| TcpListener::bind(at).is_ok());
}

#[test]
fn a_listener_waits_for_an_address_that_is_free_soon() {
    let w = world();
    let (other, at) = busy();
    let adds = [adding(&w, A, at), adding(&w, B, at)];
    std::thread::sleep(Duration::from_millis(300));
    assert!(adds.iter().all(|a| !a.is_finished()), "they do not wait");
    // Who goes does not take along who stays.
    block_on(w.target.remove_listener(A, &Address::tcp(at))).unwrap();
    drop(other);
    let [a, b] = adds.map(|a| a.join().unwrap());
    assert_eq!((a, b), (Err(TargetError::ListenerNotFound(Address::tcp(at))), Ok(())));
    assert!(listens(at));
}

#[test]
fn the_wait_for_an_address_ends_with_its_listener_with_its_subsystem_and_with_the_target() {
    let w = world();
    let (other, at) = busy();
    for delete in [false, true] {
        let add = adding(&w, A, at);
        let start = Instant::now();
        if delete {
            block_on(w.target.delete_subsystem(A)).unwrap();
        } else {
            block_on(w.target.remove_listener(A, &Address::tcp(at))).unwrap();
        }
        let end = add.join().unwrap();
        assert!(matches!(end, Err(TargetError::ListenerNotFound(_))), "{end:?}");
        assert!(start.elapsed() < SOON, "after {:?}", start.elapsed());
    }
    drop(other);
    // Nobody opens it behind the back of the control plane.
    let free = TcpListener::bind(at).expect("it is free");
    create(&w, A);
    let next = adding(&w, A, at);
    drop(free);
    assert_eq!(next.join().unwrap(), Ok(()));
    let (_other, at) = busy();
    let last = adding(&w, B, at);
    let start = Instant::now();
    block_on(w.target.shutdown());
    assert!(last.join().unwrap().is_err());
    assert!(start.elapsed() < SOON, "after {:?}", start.elapsed());
}

#[test]
fn addresses_that_come_and_go_at_random_end_as_the_last_call_said() {
    let w = world();
    let at = world::free_port("127.0.0.1");
    let mut seed = 5u64;
    for round in 0..60 {
        let calls: Vec<JoinHandle<()>> = (0..6)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let (target, nqn, up) =
                    (w.target.clone(), [A, B][(seed >> 40) as usize % 2], (seed >> 50).is_multiple_of(2));
                std::thread::spawn(move || {
                    let a = Address::tcp(at);
                    let _ = match up {
                        true => block_on(target.add_listener(nqn, a, AnaState::Optimized)),
                        false => block_on(target.remove_listener(nqn, &a)),
                    };
                })
            })
            .collect();
        calls.into_iter().for_each(|c| c.join().unwrap());
        let wanted = has(&w, A, at) || has(&w, B, at);
        w.wait("it listens if somebody wants it", |_| {
            TcpStream::connect_timeout(&at, Duration::from_secs(10)).is_ok() == wanted
        });
        assert_eq!(listens(at), wanted, "round {round}");
    }
}
