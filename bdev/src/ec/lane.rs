//! What one core and the home core of an array share about requests that the home core works on: a table of descriptions, and the
//! numbers of those that are handed over and back. Made once per channel; a request takes none of it but a place in the table.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use longshore_nvme::wire::Status;
use longshore_reactor::Handoff;

use crate::io::{IoFlags, IoRef, IoVec, Op};

/// Requests of one core that the home core works on at a time; more wait on their own core.
pub(super) const PLACES: u32 = 1024;

const OPENING: u8 = 0;
const OPEN: u8 = 1;
const REFUSED: u8 = 2;
const CLOSED: u8 = 3;

/// See the module.
pub(super) struct Lane {
    /// The array.
    pub(super) id: u64,
    state: AtomicU8,
    places: Box<[Place]>,
    /// To the home core.
    errands: Handoff,
    /// Back.
    answers: Handoff,
    /// Tasks that take what is handed over.
    home: OnceLock<Waker>,
    away: OnceLock<Waker>,
}

/// A description, or an answer. Whose it is, is said by who has its number.
#[derive(Default)]
struct Place {
    /// Operation, flags, nesting, and from bit 32 on blocks. As an answer: the status.
    what: AtomicU64,
    lba: AtomicU64,
    aux: AtomicU64,
    iov: AtomicPtr<IoVec>,
    /// Pieces of memory, and from bit 32 on the hint.
    more: AtomicU64,
}

/// What the home core is to do.
pub(super) struct Errand {
    pub(super) op: Op,
    pub(super) flags: IoFlags,
    pub(super) nest: u8,
    pub(super) nblocks: u32,
    pub(super) lba: u64,
    pub(super) aux: u64,
    /// The request's own list of its memory.
    pub(super) iov: *const IoVec,
    pub(super) iovcnt: u32,
    /// What the core found out about it; see [`Engine::arrived`](super::engine::Engine::arrived).
    pub(super) hint: u32,
}

impl Lane {
    pub(super) fn new(id: u64) -> Lane {
        Lane {
            id,
            state: AtomicU8::new(OPENING),
            places: (0..PLACES).map(|_| Place::default()).collect(),
            errands: Handoff::new(PLACES),
            answers: Handoff::new(PLACES),
            home: OnceLock::new(),
            away: OnceLock::new(),
        }
    }

    fn wake(waker: &OnceLock<Waker>) {
        if let Some(w) = waker.get() {
            w.wake_by_ref();
        }
    }

    // The core whose requests these are.

    /// `waker` is told of answers. True: it is the first.
    pub(super) fn listen(&self, waker: &Waker) -> bool {
        self.away.set(waker.clone()).is_ok()
    }

    /// True if the home core listens; false if there is no array any more; `None` if that is not known yet.
    pub(super) fn is_open(&self) -> Option<bool> {
        match self.state.load(Ordering::Acquire) {
            OPENING => None,
            state => Some(state == OPEN),
        }
    }

    /// Describes `io` to the home core under the number `at`.
    #[inline]
    pub(super) fn send(&self, at: u32, io: &IoRef, hint: u32) {
        let p = &self.places[at as usize];
        let what = io.op() as u64 | u64::from(io.flags().0) << 8 | u64::from(io.io().nest) << 16;
        p.what.store(what | u64::from(io.nblocks()) << 32, Ordering::Relaxed);
        p.lba.store(io.lba(), Ordering::Relaxed);
        p.aux.store(io.io().aux, Ordering::Relaxed);
        let iov = io.iov();
        p.iov.store(iov.as_ptr().cast_mut(), Ordering::Relaxed);
        p.more.store(iov.len() as u64 | u64::from(hint) << 32, Ordering::Relaxed);
        if self.errands.push(at) {
            Lane::wake(&self.home);
        }
    }

    /// Requests that were answered.
    pub(super) fn answers(&self) -> impl Iterator<Item = (u32, Status)> {
        self.answers.take().map(|at| {
            let status = self.places[at as usize].what.load(Ordering::Relaxed);
            (at, Status::from_raw(status as u16))
        })
    }

    /// Nothing is sent any more, and nothing is being worked on.
    pub(super) fn close(&self) {
        self.state.store(CLOSED, Ordering::Release);
        Lane::wake(&self.home);
        Lane::wake(&self.away);
    }

    // The home core.

    /// `waker` is told of requests from now on. False: there will be none any more.
    pub(super) fn serve(&self, waker: &Waker) -> bool {
        if self.home.set(waker.clone()).is_ok()
            && self.state.compare_exchange(OPENING, OPEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            Lane::wake(&self.away);
        }
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// There is no array any more.
    pub(super) fn refuse(&self) {
        let _ = self.state.compare_exchange(OPENING, REFUSED, Ordering::AcqRel, Ordering::Relaxed);
        Lane::wake(&self.away);
    }

    /// Numbers of the requests that were handed over, oldest first.
    pub(super) fn errands(&self) -> impl Iterator<Item = u32> {
        self.errands.take()
    }

    /// What request `at` asks for.
    #[inline]
    pub(super) fn errand(&self, at: u32) -> Errand {
        let p = &self.places[at as usize];
        let (what, more) = (p.what.load(Ordering::Relaxed), p.more.load(Ordering::Relaxed));
        Errand {
            op: Op::ALL[(what & 0xff) as usize],
            flags: IoFlags((what >> 8) as u8),
            nest: (what >> 16) as u8,
            nblocks: (what >> 32) as u32,
            lba: p.lba.load(Ordering::Relaxed),
            aux: p.aux.load(Ordering::Relaxed),
            iov: p.iov.load(Ordering::Relaxed),
            iovcnt: more as u32,
            hint: (more >> 32) as u32,
        }
    }

    /// Request `at` has ended; its memory is not used any more.
    #[inline]
    pub(super) fn answer(&self, at: u32, status: Status) {
        self.places[at as usize].what.store(u64::from(status.raw()), Ordering::Relaxed);
        if self.answers.push(at) {
            Lane::wake(&self.away);
        }
    }
}
