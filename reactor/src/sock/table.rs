//! The connections of a reactor: which have something to do at the end of the turn, and which are stuck.

use super::tx::Spares;
use super::{Inner, Phase, Sock};
use crate::clock;
use crate::reactor::{Reactor, Timer};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How long a finished connection waits for its peer to close.
const LINGER: Duration = Duration::from_secs(1);
/// How often stuck connections are looked for.
const SWEEP: Duration = Duration::from_millis(100);
/// What waits for so long to be sent from lent memory is copied...
const LENT: Duration = Duration::from_millis(100);
/// ...about so many bytes from one look to the next...
const LENT_BYTES: usize = 16 << 20;
/// ...or, where there is no memory for that, the connection ends once its peer has taken nothing for so long. One whose peer takes
/// little ends when it has lent memory for longer than it may send nothing at all: somebody may wait to write there.
const LENT_MOST: Duration = Duration::from_secs(2);

/// Counters of a reactor's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockStats {
    /// Connections, closing ones included.
    pub connections: usize,
    /// Receive slices committed.
    pub rx_slices: usize,
    /// Bytes of one.
    pub rx_slice_bytes: usize,
    /// Receives that found no slice and were tried again.
    pub rx_starved: u64,
}

/// Connections of a reactor.
pub(crate) struct SockTable {
    all: RefCell<Vec<Option<Rc<Inner>>>>,
    free: RefCell<Vec<usize>>,
    count: Cell<usize>,
    pub(super) dirty: RefCell<Vec<Rc<Inner>>>,
    flushing: RefCell<Vec<Rc<Inner>>>,
    pub(super) spares: RefCell<Spares>,
    sweep: RefCell<Option<Timer>>,
    /// Bytes of lent memory that may still be copied before the next look.
    pub(super) copies: Cell<usize>,
    /// When receive slices were last added.
    pub(super) grown: Cell<u64>,
    /// Receives that found no slice.
    pub(crate) starved: Cell<u64>,
}

impl SockTable {
    pub(crate) fn new() -> Self {
        SockTable {
            all: RefCell::default(),
            free: RefCell::default(),
            count: Cell::new(0),
            dirty: RefCell::default(),
            flushing: RefCell::default(),
            spares: RefCell::default(),
            sweep: RefCell::default(),
            copies: Cell::new(0),
            grown: Cell::new(0),
            starved: Cell::new(0),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    #[inline]
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.borrow().is_empty()
    }

    /// End of turn: arms receives that were put off, starts sends, ends connections that are done.
    #[inline(always)]
    pub(crate) fn flush(&self, reactor: &Reactor) {
        if self.has_dirty() {
            self.flush_dirty(reactor);
        }
    }

    #[inline(never)]
    fn flush_dirty(&self, reactor: &Reactor) {
        let mut list = std::mem::take(&mut *self.flushing.borrow_mut());
        std::mem::swap(&mut list, &mut *self.dirty.borrow_mut());
        for s in list.drain(..) {
            s.dirty.set(false);
            Sock(s).flush(reactor);
        }
        *self.flushing.borrow_mut() = list;
    }

    pub(super) fn add(&self, s: &Rc<Inner>) {
        let mut all = self.all.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            all.push(None);
            all.len() - 1
        });
        all[slot] = Some(s.clone());
        s.slot.set(slot);
        self.count.set(self.count.get() + 1);
        if self.sweep.borrow().is_none() {
            let timer = s.reactor.every(SWEEP, |r| r.0.socks.sweep());
            *self.sweep.borrow_mut() = Some(timer);
        }
    }

    pub(super) fn remove(&self, slot: usize) {
        let gone = self.all.borrow_mut()[slot].take();
        if gone.is_some() {
            self.free.borrow_mut().push(slot);
            self.count.set(self.count.get() - 1);
            if self.is_empty() {
                let timer = self.sweep.borrow_mut().take();
                drop(timer);
            }
        }
    }

    fn snapshot(&self) -> Vec<Sock> {
        self.all.borrow().iter().flatten().cloned().map(Sock).collect()
    }

    pub(crate) fn close_all(&self, _reactor: &Reactor) {
        for s in self.snapshot() {
            s.close();
        }
    }

    /// Closes connections whose peer does not take what is sent to it; before that, gives back what they send from lent memory.
    fn sweep(&self) {
        let now = clock::rdtsc();
        self.copies.set(LENT_BYTES);
        for s in self.all.borrow().iter().flatten() {
            if let Some(op) = s.tx_op.get()
                && !s.copy_lent.get()
                && s.tx.borrow().lent_since().is_some_and(|t| now.saturating_sub(t) > clock::ticks(LENT))
            {
                s.copy_lent.set(true);
                s.reactor.cancel(op);
            }
        }
        let late = |s: &Rc<Inner>| Some((Sock(s.clone()), late(s, now)?));
        let late: Vec<_> = self.all.borrow().iter().flatten().filter_map(late).collect();
        for (s, e) in late {
            s.fail(e);
        }
    }
}

/// Why a connection ends now, if its peer takes too little.
fn late(s: &Inner, now: u64) -> Option<io::Error> {
    let since = |t: u64| now.saturating_sub(t);
    let (idle, most) = (since(s.progress.get()), s.send_timeout.get());
    match s.phase.get() {
        Phase::Open | Phase::Leaving if s.tx_op.get().is_none() => return None,
        Phase::Closing | Phase::Closed => return None,
        Phase::Finishing if s.lingering.get() => {
            return (idle > clock::ticks(LINGER)).then(|| io::ErrorKind::ConnectionAborted.into());
        }
        Phase::Open | Phase::Leaving | Phase::Finishing => {}
    }
    let lent = match s.uncopied.get() && s.phase.get() != Phase::Finishing {
        true => s.tx.borrow().lent_since().map_or(0, since),
        false => 0,
    };
    let queued = s.tx.borrow().queued();
    let why = if idle > most {
        format!("the peer took none of {queued} bytes for too long")
    } else if lent.min(idle) > clock::ticks(LENT_MOST) {
        format!(
            "the peer took none of {queued} bytes for {LENT_MOST:?}, and there is no memory for copies of what a device has lent for them"
        )
    } else if lent > most {
        format!(
            "the peer takes {queued} bytes too slowly: a device has lent memory for them for too long, and there is none for copies"
        )
    } else {
        return None;
    };
    Some(io::Error::new(io::ErrorKind::TimedOut, why))
}
