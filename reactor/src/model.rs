//! Model checks of the inbox, of handoffs and of the sleep/wake handshake: every interleaving that the memory model allows.
//! Run: `RUSTFLAGS="--cfg loom" cargo test -p longshore-reactor --release loom`.

use crate::doorbell::Doorbell;
use crate::handoff::Handoff;
use crate::inbox::Inbox;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// The ring as the handshake sees it: a wake-up is remembered until the sleeper takes it.
struct Bed {
    rung: Mutex<bool>,
    wake: Condvar,
}

struct Core {
    inbox: Inbox<u32>,
    bell: Doorbell,
    bed: Bed,
}

impl Core {
    fn new(capacity: usize) -> Arc<Core> {
        let bed = Bed { rung: Mutex::new(false), wake: Condvar::new() };
        Arc::new(Core { inbox: Inbox::new(capacity), bell: Doorbell::new(), bed })
    }

    fn ring(&self) {
        *self.bed.rung.lock().unwrap() = true;
        self.bed.wake.notify_one();
    }

    /// As `Shared::post`.
    fn post(&self, v: u32) {
        self.inbox.push(v).expect("the models never fill the inbox");
        if self.bell.must_ring() {
            self.ring();
        }
    }

    /// As `Reactor::sleep_in_ring`. A sleep that nobody ends is a deadlock, which loom reports.
    fn sleep(&self) {
        self.bell.prepare();
        if self.inbox.is_empty() {
            let mut rung = self.bed.rung.lock().unwrap();
            while !*rung {
                rung = self.bed.wake.wait(rung).unwrap();
            }
            *rung = false;
        }
        self.bell.awake();
    }

    /// Receives `n` messages as the loop does: drain, and sleep when there is nothing.
    fn receive(&self, n: usize) -> Vec<u32> {
        let mut got = Vec::new();
        while got.len() < n {
            match self.inbox.pop() {
                Some(v) => got.push(v),
                None => self.sleep(),
            }
        }
        got
    }
}

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut b = loom::model::Builder::new();
    b.preemption_bound = Some(3);
    b.check(f);
}

#[test]
fn loom_a_message_never_leaves_the_reactor_asleep() {
    check(|| {
        let core = Core::new(2);
        let sender = core.clone();
        let t = thread::spawn(move || {
            sender.post(1);
            sender.post(2);
        });
        assert_eq!(core.receive(2), [1, 2]);
        t.join().unwrap();
    });
}

#[test]
fn loom_two_senders_wake_it_for_both_messages() {
    check(|| {
        let core = Core::new(2);
        let senders: Vec<_> = [1, 2]
            .map(|v| {
                let core = core.clone();
                thread::spawn(move || core.post(v))
            })
            .into();
        let mut got = core.receive(2);
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        senders.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
fn loom_a_full_inbox_refuses_and_serves_again() {
    check(|| {
        let inbox = Arc::new(Inbox::new(2));
        let q = inbox.clone();
        let t = thread::spawn(move || (0..3).filter(|&v| q.push(v).is_ok()).count());
        let early = [inbox.pop(), inbox.pop()].into_iter().flatten().count();
        let pushed = t.join().unwrap();
        assert!(pushed >= 2);
        let late = std::iter::from_fn(|| inbox.pop()).count();
        assert_eq!(early + late, pushed);
    });
}

#[test]
fn loom_a_message_that_races_with_closing_is_dropped_by_one_side() {
    check(|| {
        let closed = Arc::new(AtomicBool::new(false));
        let inbox = Arc::new(Inbox::new(2));
        let (c, q) = (closed.clone(), inbox.clone());
        // As `Shared::try_push`.
        let t = thread::spawn(move || {
            if c.load(Ordering::Acquire) {
                return;
            }
            q.push(7).unwrap();
            loom::sync::atomic::fence(Ordering::SeqCst);
            if c.load(Ordering::Acquire) {
                while q.pop().is_some() {}
            }
        });
        // As `Shared::close`.
        closed.store(true, Ordering::SeqCst);
        loom::sync::atomic::fence(Ordering::SeqCst);
        while inbox.pop().is_some() {}
        t.join().unwrap();
        assert!(inbox.pop().is_none(), "left behind");
    });
}

#[test]
fn loom_without_the_second_look_it_would_sleep_through_a_message() {
    // The mutant announces sleep and does not look again: some interleaving must leave a message with nobody to ring.
    // (A plain atomic: it collects over all interleavings.)
    static LOST: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    check(|| {
        let core = Core::new(2);
        let sender = core.clone();
        let t = thread::spawn(move || sender.post(1));
        let sleeps = core.inbox.pop().is_none();
        if sleeps {
            core.bell.prepare();
        }
        t.join().unwrap();
        if sleeps && !*core.bed.rung.lock().unwrap() {
            LOST.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    assert!(LOST.load(std::sync::atomic::Ordering::Relaxed), "the model does not see the race it is there for");
}

/// A task as its wakers see it: woken once per poll.
struct Task {
    handoff: Handoff,
    told: AtomicU32,
    queued: AtomicBool,
    bed: Bed,
}

#[test]
fn loom_a_number_that_is_handed_over_never_leaves_the_receiver_waiting() {
    check(|| {
        let bed = Bed { rung: Mutex::new(false), wake: Condvar::new() };
        let t =
            Arc::new(Task { handoff: Handoff::new(2), told: AtomicU32::new(0), queued: AtomicBool::new(false), bed });
        let sender = t.clone();
        let thread = thread::spawn(move || {
            for n in 0..2 {
                sender.told.store(n + 7, Ordering::Relaxed);
                // As the waker of a task.
                if sender.handoff.push(n)
                    && !sender.queued.load(Ordering::Acquire)
                    && !sender.queued.swap(true, Ordering::AcqRel)
                {
                    *sender.bed.rung.lock().unwrap() = true;
                    sender.bed.wake.notify_one();
                }
            }
        });
        let mut got = Vec::new();
        while got.len() < 2 {
            let mut rung = t.bed.rung.lock().unwrap();
            while !*rung {
                rung = t.bed.wake.wait(rung).unwrap();
            }
            *rung = false;
            drop(rung);
            t.queued.store(false, Ordering::Release);
            for n in t.handoff.take() {
                assert!(t.told.load(Ordering::Relaxed) >= n + 7);
                got.push(n);
            }
        }
        assert_eq!(got, [0, 1]);
        thread.join().unwrap();
    });
}
