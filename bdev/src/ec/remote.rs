//! Requests of other cores: they stay where they are, their memory is described to the home core, which works on a request of its own
//! over the same memory and sends the outcome back.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use longshore_nvme::wire::Status;
use longshore_reactor::{CoreHandle, Reactor};

use super::engine::{Engine, Starved};
use super::shared::Shared;
use super::start::engine_here;
use crate::frame::Submitter;
use crate::io::{IoFlags, IoRef, IoVec, Op};

thread_local! {
    static REMOTES: RefCell<HashMap<u64, Weak<Remote>>> = RefCell::default();
}

/// Requests of this core that the home core works on.
pub(super) struct Remote {
    shared: Arc<Shared>,
    me: CoreHandle,
    held: RefCell<Vec<Option<IoRef>>>,
    free: RefCell<Vec<u32>>,
}

/// The memory of a request that its own core holds until it is told the outcome.
struct Lent(Vec<IoVec>);

// SAFETY: the core that the memory belongs to does not touch it while it holds the request in `Remote::held`, which is until the home
// core's answer; and the home core sends that after its last use.
unsafe impl Send for Lent {}

/// A request that has come to the home core.
pub(super) struct Arrived {
    op: Op,
    flags: IoFlags,
    lba: u64,
    nblocks: u32,
    aux: u64,
    nest: u8,
    lent: Lent,
    ticket: Ticket,
}

/// Whom to tell the outcome.
struct Ticket {
    from: CoreHandle,
    id: u64,
    at: u32,
}

impl Ticket {
    fn answer(&self, status: Status) {
        let (id, at) = (self.id, self.at);
        self.from.send(move |_| {
            let remote = REMOTES.with_borrow(|r| r.get(&id).and_then(Weak::upgrade));
            if let Some(remote) = remote {
                remote.answered(at, status);
            }
        });
    }
}

impl Remote {
    pub(super) fn open(shared: &Arc<Shared>, reactor: &Reactor) -> Rc<Remote> {
        let r = Rc::new(Remote {
            shared: shared.clone(),
            me: reactor.handle(),
            held: RefCell::default(),
            free: RefCell::default(),
        });
        REMOTES.with_borrow_mut(|all| {
            all.retain(|_, w| w.strong_count() > 0);
            all.insert(shared.id, Rc::downgrade(&r));
        });
        r
    }

    /// Lets the home core work on `io`.
    pub(super) fn forward(&self, io: IoRef) {
        let at = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut held = self.held.borrow_mut();
            held.push(None);
            held.len() as u32 - 1
        });
        let arrived = Arrived {
            op: io.op(),
            flags: io.flags(),
            lba: io.lba(),
            nblocks: io.nblocks(),
            aux: io.io().aux,
            nest: io.io().nest,
            lent: Lent(io.iov().to_vec()),
            ticket: Ticket { from: self.me.clone(), id: self.shared.id, at },
        };
        self.held.borrow_mut()[at as usize] = Some(io);
        let id = self.shared.id;
        self.shared.home.send(move |_| match engine_here(id) {
            // Behind those who wait already.
            Some(engine) if engine.is_starving() => engine.starve_other(Starved::Remote(Box::new(arrived))),
            Some(engine) => {
                arrived.start(&engine);
            }
            None => arrived.ticket.answer(Status::NAMESPACE_NOT_READY),
        });
    }

    fn answered(&self, at: u32, status: Status) {
        let io = self.held.borrow_mut()[at as usize].take();
        self.free.borrow_mut().push(at);
        if let Some(io) = io {
            io.complete_later(status);
        }
    }
}

/// A request of the home core that stands for one of another core.
struct Proxy {
    lent: Lent,
    ticket: Ticket,
}

impl Arrived {
    /// Starts it, now or when there is a request for it. False: it waits.
    pub(super) fn start(self, engine: &Rc<Engine>) -> bool {
        let Some(mut io) = engine.core.get_child(self.nest) else {
            engine.starve_other(Starved::Remote(Box::new(self)));
            return false;
        };
        // Its children may use more of the reserve than it: however many have arrived, one can go on.
        io.io_mut().nest = self.nest.saturating_add(1);
        io.prepare(self.op, self.flags, self.lba, self.nblocks);
        io.io_mut().aux = self.aux;
        let proxy = Rc::new(Proxy { lent: self.lent, ticket: self.ticket });
        // SAFETY: the vector is the proxy's and does not change; the request holds the proxy by its completion frame until it has ended,
        // and is released right then. The memory is the other core's request's, which is held there until the answer.
        unsafe { io.set_iov(proxy.lent.0.as_ptr(), proxy.lent.0.len() as u32) };
        io.begin(proxy, 0);
        engine.submit(io);
        true
    }
}

impl Submitter for Proxy {
    fn io_done(self: Rc<Self>, mut io: IoRef, _: u64) {
        let status = io.status();
        // SAFETY: no memory at all.
        unsafe { io.set_iov(std::ptr::null(), 0) };
        io.release();
        self.ticket.answer(status);
    }
}
