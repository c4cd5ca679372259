//! A small executor for one thread: the RPC thread's handlers, timers and closures posted by other threads.

use std::cell::{Cell, RefCell};
use std::collections::{BinaryHeap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Posted = Box<dyn FnOnce() + Send>;

/// The part that other threads touch.
struct Shared {
    state: Mutex<Inbox>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Inbox {
    ready: Vec<u64>,
    posted: Vec<Posted>,
    signalled: bool,
}

impl Shared {
    fn put(&self, add: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut inbox);
        if !std::mem::replace(&mut inbox.signalled, true) {
            drop(inbox);
            // An eventfd counter cannot overflow from one signal at a time; a failure would mean the executor is gone.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    fn take(&self) -> (Vec<u64>, Vec<Posted>) {
        let mut inbox = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut inbox.signalled, false) {
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8][..]);
        }
        (std::mem::take(&mut inbox.ready), std::mem::take(&mut inbox.posted))
    }
}

struct TaskWaker {
    id: u64,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.shared.put(|inbox| inbox.ready.push(self.id));
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.shared.put(|inbox| inbox.ready.push(self.id));
    }
}

/// Lets another thread run something on the executor's thread.
#[derive(Clone)]
pub struct Poster {
    shared: Arc<Shared>,
}

impl Poster {
    /// Runs `f` there soon. Dropped unrun if the executor has ended.
    pub fn post(&self, f: impl FnOnce() + Send + 'static) {
        self.shared.put(|inbox| inbox.posted.push(Box::new(f)));
    }
}

/// The executor; clones share it. It stays on its thread.
#[derive(Clone)]
pub struct Executor {
    inner: Rc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    tasks: RefCell<HashMap<u64, Task>>,
    fresh: RefCell<Vec<u64>>,
    next: Cell<u64>,
    timers: RefCell<BinaryHeap<Timer>>,
}

impl Executor {
    /// An executor without tasks.
    pub fn new() -> std::io::Result<Executor> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake });
        Ok(Executor {
            inner: Rc::new(Inner {
                shared,
                tasks: RefCell::default(),
                fresh: RefCell::default(),
                next: Cell::new(0),
                timers: RefCell::default(),
            }),
        })
    }

    /// The descriptor that becomes readable when a task can go on.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inner.shared.wake.as_fd()
    }

    /// A handle for other threads.
    pub fn poster(&self) -> Poster {
        Poster { shared: self.inner.shared.clone() }
    }

    /// Starts a task. Tasks first run in the order they were spawned.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let id = self.inner.next.replace(self.inner.next.get() + 1);
        self.inner.tasks.borrow_mut().insert(id, Box::pin(future));
        self.inner.fresh.borrow_mut().push(id);
    }

    /// Tasks that have not ended.
    pub fn pending(&self) -> usize {
        self.inner.tasks.borrow().len()
    }

    /// A future that is done after `wait`.
    pub fn sleep(&self, wait: Duration) -> Sleep {
        Sleep { executor: self.clone(), at: Instant::now() + wait, armed: false }
    }

    /// How long the thread may sleep.
    pub fn timeout(&self) -> Option<Duration> {
        if !self.inner.fresh.borrow().is_empty() {
            return Some(Duration::ZERO);
        }
        self.inner.timers.borrow().peek().map(|timer| timer.at.saturating_duration_since(Instant::now()))
    }

    /// Runs what is due, until nothing is (bounded, so that a task that wakes itself cannot starve the sockets).
    pub fn run_ready(&self) {
        for _ in 0..16 {
            let now = Instant::now();
            loop {
                let mut timers = self.inner.timers.borrow_mut();
                match timers.peek() {
                    Some(timer) if timer.at <= now => timers.pop().map(|timer| timer.waker.wake()),
                    _ => break,
                };
            }
            let (ready, posted) = self.inner.shared.take();
            let idle = ready.is_empty() && posted.is_empty();
            for f in posted {
                f();
            }
            let mut batch = self.inner.fresh.take();
            batch.extend(ready);
            if idle && batch.is_empty() {
                return;
            }
            for id in batch {
                // Taken out while it runs: a task may spawn or be woken meanwhile.
                let Some(mut task) = self.inner.tasks.borrow_mut().remove(&id) else { continue };
                let waker = Waker::from(Arc::new(TaskWaker { id, shared: self.inner.shared.clone() }));
                if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                    self.inner.tasks.borrow_mut().insert(id, task);
                }
            }
        }
    }
}

struct Timer {
    at: Instant,
    waker: Waker,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        self.at == other.at
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    // The heap's greatest is the earliest.
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}

/// See [`Executor::sleep`].
pub struct Sleep {
    executor: Executor,
    at: Instant,
    armed: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        if !std::mem::replace(&mut self.armed, true) {
            let timer = Timer { at: self.at, waker: cx.waker().clone() };
            self.executor.inner.timers.borrow_mut().push(timer);
        }
        Poll::Pending
    }
}

/// A gate that opens once; any number of tasks on the executor's thread may wait for it.
#[derive(Clone, Default)]
pub struct Gate {
    inner: Arc<Mutex<GateState>>,
}

#[derive(Default)]
struct GateState {
    open: bool,
    waiting: Vec<Waker>,
}

impl Gate {
    /// Opens it for good.
    pub fn open(&self) {
        let waiting = {
            let mut state = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            state.open = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until it is open.
    pub async fn wait(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if state.open {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Drives one future to its end on the calling thread (start-up code without a server, tests).
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_start_in_order_and_end_when_woken() {
        let executor = Executor::new().unwrap();
        let log = Rc::new(RefCell::new(Vec::new()));
        let gate = Gate::default();
        for n in 0..3 {
            let (log, gate) = (log.clone(), gate.clone());
            executor.spawn(async move {
                log.borrow_mut().push(n);
                gate.wait().await;
                log.borrow_mut().push(n + 10);
            });
        }
        executor.run_ready();
        assert_eq!(*log.borrow(), [0, 1, 2]);
        let poster = executor.poster();
        std::thread::spawn(move || poster.post(move || gate.open())).join().unwrap();
        executor.run_ready();
        assert_eq!(executor.pending(), 0);
        assert_eq!(log.borrow().len(), 6);
    }

    #[test]
    fn the_earliest_timer_bounds_the_sleep() {
        let executor = Executor::new().unwrap();
        for seconds in [3600, 60] {
            let sleep = executor.sleep(Duration::from_secs(seconds));
            executor.spawn(sleep);
        }
        assert_eq!(executor.timeout(), Some(Duration::ZERO));
        executor.run_ready();
        let left = executor.timeout().unwrap();
        assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(50));
    }
}
