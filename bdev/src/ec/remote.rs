//! Requests of other cores: they stay where they are, their memory is described to the home core, which works on a request of its own
//! over the same memory and sends the outcome back. Nothing is allocated for a request: see `lane`.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;

use longshore_nvme::wire::Status;
use longshore_reactor::{CoreHandle, Reactor};

use super::engine::{Engine, Starved};
use super::lane::{Lane, PLACES};
use super::shared::Shared;
use super::start::engine_here;
use crate::device::Layer;
use crate::frame::Submitter;
use crate::io::{IoId, IoRef};
use crate::queue::IoQueue;

/// Requests of this core that the home core works on.
pub(super) struct Remote {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    /// By number.
    held: RefCell<Vec<Option<IoRef>>>,
    /// Numbers to give out: none before the home core listens.
    free: RefCell<Vec<u32>>,
    /// Wait for a number.
    waiting: IoQueue,
    /// Whether the home core listens; `None` if that is not known yet.
    open: Cell<Option<bool>>,
}

impl Remote {
    pub(super) fn open(shared: &Arc<Shared>, reactor: &Reactor) -> Rc<Remote> {
        let lane = Arc::new(Lane::new(shared.id));
        let r = Rc::new(Remote {
            shared: shared.clone(),
            lane: lane.clone(),
            held: RefCell::new((0..PLACES).map(|_| None).collect()),
            free: RefCell::default(),
            waiting: IoQueue::default(),
            open: Cell::new(None),
        });
        drop(reactor.spawn(take_answers(Rc::downgrade(&r), lane, shared.home.clone())));
        r
    }

    /// Lets the home core work on `io`, and tells it the layer's own word in the request; see [`Engine::arrived`].
    #[inline]
    pub(super) fn forward(&self, io: IoRef) {
        let place = if self.waiting.is_empty() { self.free.borrow_mut().pop() } else { None };
        match place {
            Some(at) => self.send(at, io),
            None if self.open.get() == Some(false) => io.complete_later(Status::NAMESPACE_NOT_READY),
            None => {
                self.shared.counters.waits.add(1);
                self.waiting.push(io);
            }
        }
    }

    #[inline]
    fn send(&self, at: u32, io: IoRef) {
        self.lane.send(at, &io, io.saved() as u32);
        self.held.borrow_mut()[at as usize] = Some(io);
    }

    /// Ends a request early that was not sent yet.
    pub(super) fn abort(&self, id: IoId) -> bool {
        self.waiting.remove(id).map(|io| io.complete_later(Status::ABORT_REQUESTED)).is_some()
    }

    /// The home core listens, or never will.
    fn opened(&self, open: bool) {
        self.open.set(Some(open));
        if open {
            self.free.borrow_mut().extend((0..PLACES).rev());
        } else {
            while let Some(io) = self.waiting.pop() {
                io.complete_later(Status::NAMESPACE_NOT_READY);
            }
        }
    }

    fn look(&self) {
        if self.open.get().is_none()
            && let Some(open) = self.lane.is_open()
        {
            self.opened(open);
        }
        for (at, status) in self.lane.answers() {
            let io = self.held.borrow_mut()[at as usize].take();
            self.free.borrow_mut().push(at);
            if let Some(io) = io {
                io.complete_later(status);
            }
        }
        while !self.waiting.is_empty() {
            let Some(at) = self.free.borrow_mut().pop() else { break };
            self.waiting.pop().into_iter().for_each(|io| self.send(at, io));
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The channel is freed when nothing of it is in flight.
        self.lane.close();
    }
}

async fn take_answers(to: Weak<Remote>, lane: Arc<Lane>, home: CoreHandle) {
    poll_fn(|cx| {
        let Some(to) = to.upgrade() else { return Poll::Ready(()) };
        if lane.listen(cx.waker()) {
            let lane = lane.clone();
            home.send(move |r| match engine_here(lane.id) {
                Some(_) => drop(r.spawn(Proxies::serve(Rc::new(Proxies { lane }), r.clone()))),
                None => lane.refuse(),
            });
        }
        to.look();
        Poll::Pending
    })
    .await;
}

/// Requests of the home core that stand for those of another core.
pub(super) struct Proxies {
    lane: Arc<Lane>,
}

impl Proxies {
    async fn serve(self: Rc<Self>, r: Reactor) {
        poll_fn(|cx| {
            if !self.lane.serve(cx.waker()) {
                return Poll::Ready(());
            }
            for at in self.lane.errands() {
                r.serving();
                match engine_here(self.lane.id) {
                    // Behind those who wait already.
                    Some(engine) if engine.is_starving() => engine.starve_other(Starved::Remote(self.clone(), at)),
                    Some(engine) => {
                        self.start(&engine, at);
                    }
                    None => self.lane.answer(at, Status::NAMESPACE_NOT_READY),
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Starts request `at`, now or when there is a request for it. False: it waits.
    pub(super) fn start(self: &Rc<Self>, engine: &Rc<Engine>, at: u32) -> bool {
        let errand = self.lane.errand(at);
        let Some(mut io) = engine.core.get_child(errand.nest) else {
            engine.starve_other(Starved::Remote(self.clone(), at));
            return false;
        };
        // Its children may use more of the reserve than it: however many have arrived, one can go on.
        io.io_mut().nest = errand.nest.saturating_add(1);
        io.prepare(errand.op, errand.flags, errand.lba, errand.nblocks);
        io.io_mut().aux = errand.aux;
        // SAFETY: the list is that of the other core's request, which lies in `Remote::held`, where nobody looks at it, until the answer;
        // so do the list and the memory that it names. The answer is sent after this core's last use, in `io_done`.
        unsafe { io.set_iov(errand.iov, errand.iovcnt) };
        io.begin(self.clone(), u64::from(at));
        engine.arrived(io, errand.hint);
        true
    }
}

impl Submitter for Proxies {
    fn io_done(self: Rc<Self>, mut io: IoRef, at: u64) {
        let status = io.status();
        // SAFETY: no memory at all.
        unsafe { io.set_iov(std::ptr::null(), 0) };
        io.release();
        self.lane.answer(at as u32, status);
    }
}
