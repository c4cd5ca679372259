//! The small executor: tasks live in a slab, wakers name them by index and generation and own no task memory, so a waker
//! may outlive its task, be cloned, and wake from any thread.

use crate::reactor::Reactor;
use crate::shared::{Msg, Shared};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What a task's wakers share.
pub(crate) struct TaskWaker {
    shared: Arc<Shared>,
    index: u32,
    generation: u32,
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        match Reactor::try_current() {
            Some(r) if std::ptr::eq(r.shared(), &*self.shared) => r.executor().ready.borrow_mut().push_back(self),
            _ => {
                let shared = self.shared.clone();
                shared.post(Msg::Wake(self));
            }
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.load(Ordering::Acquire) {
            self.clone().wake();
        }
    }
}

enum State {
    Vacant,
    Idle(BoxFuture, Arc<TaskWaker>),
    Running,
    /// Aborted while running: dropped when its poll returns.
    Doomed,
}

struct Slot {
    generation: u32,
    state: State,
}

/// The executor of one reactor.
pub(crate) struct Executor {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<Arc<TaskWaker>>>,
    live: Cell<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId {
    index: u32,
    generation: u32,
}

impl Executor {
    pub(crate) fn new() -> Self {
        Executor { slots: RefCell::default(), free: RefCell::default(), ready: RefCell::default(), live: Cell::new(0) }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    pub(crate) fn live(&self) -> usize {
        self.live.get()
    }

    pub(crate) fn make_ready(&self, waker: Arc<TaskWaker>) {
        self.ready.borrow_mut().push_back(waker);
    }

    pub(crate) fn spawn(&self, shared: &Arc<Shared>, future: BoxFuture) -> TaskId {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot { generation: 0, state: State::Vacant });
            slots.len() as u32 - 1
        });
        let slot = &mut slots[index as usize];
        let generation = slot.generation;
        let waker = Arc::new(TaskWaker { shared: shared.clone(), index, generation, queued: AtomicBool::new(true) });
        slot.state = State::Idle(future, waker.clone());
        self.live.set(self.live.get() + 1);
        self.ready.borrow_mut().push_back(waker);
        TaskId { index, generation }
    }

    /// Polls up to `budget` ready tasks; those woken meanwhile wait for the next turn.
    pub(crate) fn run(&self, budget: usize) -> usize {
        let n = self.ready.borrow().len().min(budget);
        for _ in 0..n {
            let Some(waker) = self.ready.borrow_mut().pop_front() else { break };
            self.poll(waker);
        }
        n
    }

    fn poll(&self, waker: Arc<TaskWaker>) {
        waker.queued.store(false, Ordering::Release);
        let (index, generation) = (waker.index as usize, waker.generation);
        let (mut future, own) = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[index];
            if slot.generation != generation || !matches!(slot.state, State::Idle(..)) {
                return;
            }
            match std::mem::replace(&mut slot.state, State::Running) {
                State::Idle(f, w) => (f, w),
                _ => return,
            }
        };
        let std_waker = Waker::from(own.clone());
        let done = future.as_mut().poll(&mut Context::from_waker(&std_waker)).is_ready();
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index];
        if done || matches!(slot.state, State::Doomed) {
            self.release(&mut slots, index);
            drop(slots);
            drop(future);
        } else {
            slot.state = State::Idle(future, own);
        }
    }

    fn release(&self, slots: &mut [Slot], index: usize) {
        slots[index].state = State::Vacant;
        slots[index].generation = slots[index].generation.wrapping_add(1);
        self.free.borrow_mut().push(index as u32);
        self.live.set(self.live.get() - 1);
    }

    pub(crate) fn abort(&self, id: TaskId) {
        let mut slots = self.slots.borrow_mut();
        let index = id.index as usize;
        let Some(slot) = slots.get_mut(index).filter(|s| s.generation == id.generation) else { return };
        match std::mem::replace(&mut slot.state, State::Doomed) {
            State::Idle(future, _) => {
                self.release(&mut slots, index);
                drop(slots);
                drop(future);
            }
            State::Vacant => slot.state = State::Vacant,
            State::Running | State::Doomed => {}
        }
    }

    /// Drops every task. Their destructors may use the reactor, and may even spawn: repeat until none is left.
    pub(crate) fn abort_all(&self) {
        loop {
            let ids: Vec<TaskId> = self
                .slots
                .borrow()
                .iter()
                .enumerate()
                .filter(|(_, s)| matches!(s.state, State::Idle(..)))
                .map(|(i, s)| TaskId { index: i as u32, generation: s.generation })
                .collect();
            if ids.is_empty() {
                break;
            }
            ids.into_iter().for_each(|id| self.abort(id));
        }
        let ready = std::mem::take(&mut *self.ready.borrow_mut());
        drop(ready);
    }
}

struct Join<R> {
    result: Option<R>,
    finished: bool,
    waker: Option<Waker>,
}

/// A spawned task's result: await it; `Err` if the task was aborted. Dropping the handle lets the task run on.
pub struct JoinHandle<R> {
    join: Rc<RefCell<Join<R>>>,
    reactor: Reactor,
    id: TaskId,
}

impl<R> JoinHandle<R> {
    /// Drops the task at its current await point. What it awaited is orphaned, not interrupted: operations in flight own
    /// their memory until they complete.
    pub fn abort(&self) {
        self.reactor.executor().abort(self.id);
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.join.borrow().finished
    }
}

impl<R> Future for JoinHandle<R> {
    type Output = Result<R, crate::oneshot::Canceled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut j = self.join.borrow_mut();
        if j.finished {
            return Poll::Ready(j.result.take().ok_or(crate::oneshot::Canceled));
        }
        j.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Marks the join finished when the task ends in whatever way.
struct Finish<R>(Rc<RefCell<Join<R>>>);

impl<R> Drop for Finish<R> {
    fn drop(&mut self) {
        let waker = {
            let mut j = self.0.borrow_mut();
            j.finished = true;
            j.waker.take()
        };
        if let Some(w) = waker {
            w.wake();
        }
    }
}

/// Spawns `future` on `reactor`.
pub(crate) fn spawn<F>(reactor: &Reactor, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    let join = Rc::new(RefCell::new(Join { result: None, finished: false, waker: None }));
    let finish = Finish(join.clone());
    let task = async move {
        let r = future.await;
        finish.0.borrow_mut().result = Some(r);
    };
    let id = reactor.executor().spawn(reactor.shared_arc(), Box::pin(task));
    JoinHandle { join, reactor: reactor.clone(), id }
}
