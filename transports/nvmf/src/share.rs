//! Who gets what of a core's memory and requests.
//!
//! Each queue pair has a buffer of the largest size and [`OWN_REQUESTS`] requests for itself, promised when it connects, so that
//! it always makes progress. The rest is shared. A host holds at most its share of the rest, over all of its queue pairs on the
//! core (`TargetConfig::host_share`). Who finds nothing waits: hosts are served in turn, the queue pairs of a host in turn, the
//! commands of a queue pair in their order. A host that holds its share, or never gives back what it holds, holds nobody else up.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};

use longshore_bdev::{CoreState, IoRef};
use longshore_reactor::{Account, Reactor, Reserve};

use crate::control::HostShare;
use crate::promise::Promised;
use crate::qpair::Qpair;

/// Requests of the block layer that a queue pair always has.
pub(crate) const OWN_REQUESTS: u32 = 4;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// A buffer.
    Buffer = 0,
    /// A request of the block layer.
    Request = 1,
}

/// The commands of one queue pair that wait for one kind of thing.
#[derive(Default)]
pub(crate) struct Line {
    pub(crate) slots: RefCell<VecDeque<u16>>,
    /// The queue pair is in its host's line, or being served.
    queued: Cell<bool>,
    /// How often a command had to wait.
    pub(crate) waits: Cell<u64>,
}

impl Line {
    /// Room for every slot: it never grows.
    pub(crate) fn new(slots: u16) -> Line {
        Line { slots: RefCell::new(VecDeque::with_capacity(slots.into())), ..Line::default() }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.queued.get() || self.slots.borrow().is_empty()
    }

    /// `slot` waits no more. False: it did not.
    fn remove(&self, slot: u16) -> bool {
        let mut slots = self.slots.borrow_mut();
        let found = slots.iter().position(|&s| s == slot);
        found.is_some_and(|i| slots.remove(i).is_some())
    }
}

/// The queue pairs of one host that wait for one kind of thing.
#[derive(Default)]
struct HostLine {
    qpairs: RefCell<VecDeque<Rc<Qpair>>>,
    /// The host is in the core's line, or being served.
    queued: Cell<bool>,
}

/// What one host has of what a core shares. A host is an NQN, as for the list of those that are allowed: one that draws another host
/// identifier, at a restart or as it likes, has no second share.
pub(crate) struct Host {
    pub(crate) nqn: String,
    /// The host identifier that it gave last, for people.
    id: Cell<[u8; 16]>,
    pub(crate) memory: Rc<Account>,
    /// Shared requests that it has.
    pub(crate) requests: Cell<u32>,
    /// What its queue pairs have for themselves.
    pub(crate) promised: Promised,
    /// It was logged that they get no more.
    pub(crate) told: Cell<bool>,
    lines: [HostLine; 2],
}

impl Host {
    fn new(nqn: &str) -> Rc<Host> {
        let memory = Rc::new(Account::new(0));
        let (id, requests, promised, told) = Default::default();
        Rc::new(Host { nqn: nqn.to_owned(), id, memory, requests, promised, told, lines: Default::default() })
    }

    /// Whether commands of it wait.
    #[inline]
    pub(crate) fn waits(&self, want: Want) -> bool {
        self.lines[want as usize].queued.get()
    }
}

/// What one core shares out.
pub(crate) struct Shares {
    hosts: RefCell<HashMap<String, Weak<Host>>>,
    /// Connections that have not said who they are.
    pub(crate) strangers: Rc<Host>,
    /// For the data of their Connect commands.
    pub(crate) connect: RefCell<Option<Reserve>>,
    lines: [RefCell<VecDeque<Rc<Host>>>; 2],
    /// What all queue pairs have for themselves.
    pub(crate) promised: Promised,
    /// When it may next be logged that there is no more.
    pub(crate) silent_until: Cell<u64>,
    /// Percent of what is shared that one host may hold.
    pub(crate) percent: Cell<u8>,
    /// The shortest length that the pool has no buffer for, as far as is known: who wants as much or more waits in line.
    pub(crate) dry: Cell<usize>,
    /// What had returned to the pool when it was last looked at.
    pub(crate) seen: Cell<(u64, u64)>,
    /// Requests: shared ones, those a host may have of them, those in use.
    pub(crate) requests: Cell<u32>,
    pub(crate) requests_each: Cell<u32>,
    pub(crate) requests_used: Cell<u32>,
    /// Something changed: those who wait for a buffer, or for a request, are to be looked at.
    pub(crate) look: [Cell<bool>; 2],
    /// The request with which a command that waited is resumed.
    pub(crate) handed: Cell<Option<IoRef>>,
    /// The queue pair that it is for.
    pub(crate) resuming: Cell<u64>,
    /// The core waits for the block layer's own line.
    pub(crate) waits_below: Cell<bool>,
    /// Room for those that `each_waiting` calls.
    visited: RefCell<Vec<Rc<Qpair>>>,
}

/// Bytes that connections may hold, all together, before anything is known of them.
const STRANGERS: usize = 1 << 20;

/// Bytes of the data of a Connect command.
const CONNECT_DATA: usize = 1024;

impl Shares {
    pub(crate) fn new(reactor: &Reactor, percent: u8) -> Shares {
        let s = Shares {
            hosts: RefCell::default(),
            strangers: Host::new(""),
            connect: RefCell::default(),
            lines: Default::default(),
            promised: Promised::default(),
            silent_until: Cell::new(0),
            percent: Cell::new(percent),
            dry: Cell::new(usize::MAX),
            seen: Cell::new((0, 0)),
            requests: Cell::new(0),
            requests_each: Cell::new(0),
            requests_used: Cell::new(0),
            look: Default::default(),
            handed: Cell::default(),
            resuming: Cell::new(0),
            waits_below: Cell::new(false),
            visited: RefCell::default(),
        };
        s.divide(reactor);
        s
    }

    /// The host of that NQN, on this core. `id` is shown.
    pub(crate) fn host(&self, reactor: &Reactor, nqn: &str, id: [u8; 16]) -> Rc<Host> {
        let known = self.hosts.borrow().get(nqn).and_then(Weak::upgrade);
        let host = known.unwrap_or_else(|| {
            let h = Host::new(nqn);
            {
                let mut all = self.hosts.borrow_mut();
                all.retain(|_, w| w.strong_count() > 0);
                all.insert(nqn.to_owned(), Rc::downgrade(&h));
            }
            self.divide(reactor);
            h
        });
        host.id.set(id);
        host
    }

    /// The hosts that are connected to this core.
    pub(crate) fn hosts(&self) -> Vec<Rc<Host>> {
        self.hosts.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// What a host has, for people.
    pub(crate) fn info(&self, h: &Host) -> HostShare {
        HostShare {
            hostnqn: h.nqn.clone(),
            hostid: h.id.get(),
            buffer_bytes: h.memory.held() as u64,
            max_buffer_bytes: h.memory.limit() as u64,
            requests: h.requests.get(),
            max_requests: self.requests_each.get(),
        }
    }

    /// Connections came, or the last one went.
    pub(crate) fn expect_connects(&self, reactor: &Reactor, some: bool) {
        let mut c = self.connect.borrow_mut();
        match some {
            true if c.is_none() => *c = reactor.dma().reserve(CONNECT_DATA),
            true => {}
            false => *c = None,
        }
    }

    /// A queue pair of `host` with a buffer of its own, and with requests if it has a use for them, came or went.
    pub(crate) fn promise(&self, reactor: &Reactor, host: &Host, bytes: usize, requests: u32, up: bool) {
        self.promised.change(bytes, requests, up);
        host.promised.change(bytes, requests, up);
        self.divide(reactor);
    }

    /// Changes what part of the rest one host may hold.
    pub(crate) fn set_percent(&self, reactor: &Reactor, percent: u8) {
        if self.percent.replace(percent) != percent {
            self.divide(reactor);
        }
    }

    /// Works out what is shared, and what of it is the most for one host.
    fn divide(&self, reactor: &Reactor) {
        let part = |whole: usize| (whole as u64 * u64::from(self.percent.get()) / 100) as usize;
        let bytes = part(reactor.dma().limit().saturating_sub(self.promised.bytes.get()));
        for h in self.hosts() {
            h.memory.set_limit(bytes);
        }
        self.strangers.memory.set_limit(bytes.min(STRANGERS));
        let pool = CoreState::current().pool_stats();
        let shared = (pool.capacity - pool.child_reserve).saturating_sub(self.promised.requests.get());
        self.requests.set(shared);
        self.requests_each.set(part(shared as usize) as u32);
        self.look.iter().for_each(|l| l.set(true));
    }

    /// Whether nobody waits.
    #[inline]
    pub(crate) fn nobody(&self, want: Want) -> bool {
        self.lines[want as usize].borrow().is_empty()
    }

    /// Puts the command in `slot` at the end of its queue pair's line.
    #[cold]
    pub(crate) fn line_up(&self, want: Want, qp: &Rc<Qpair>, slot: u16) {
        let i = want as usize;
        let line = &qp.lines[i];
        line.waits.set(line.waits.get() + 1);
        line.slots.borrow_mut().push_back(slot);
        if line.queued.replace(true) {
            return;
        }
        let host = qp.host();
        host.lines[i].qpairs.borrow_mut().push_back(qp.clone());
        if !host.lines[i].queued.replace(true) {
            self.lines[i].borrow_mut().push_back(host.clone());
        }
    }

    /// A queue pair waits no more.
    pub(crate) fn forget(&self, qp: &Rc<Qpair>) {
        // It may have lined up before it said whose it is.
        let (own, strangers) = (qp.lines.iter().zip(&qp.host().lines), qp.lines.iter().zip(&self.strangers.lines));
        for (line, host) in own.chain(strangers) {
            line.slots.borrow_mut().clear();
            let mut all = host.qpairs.borrow_mut();
            let before = all.len();
            all.retain(|q| !Rc::ptr_eq(q, qp));
            if all.len() != before {
                line.queued.set(false);
            }
        }
        self.look.iter().for_each(|l| l.set(true));
    }

    /// The command in `slot` waits no more. False: it did not.
    pub(crate) fn leave(&self, want: Want, qp: &Qpair, slot: u16) -> bool {
        self.look[want as usize].set(true);
        qp.lines[want as usize].remove(slot)
    }

    /// Serves hosts in turn, until a whole round of them got nothing or `budget` commands were served; returns how many were.
    /// `one` serves the first command of a queue pair's line and takes it out of the line, or says that it cannot.
    pub(crate) fn serve(&self, want: Want, budget: usize, mut one: impl FnMut(&Rc<Qpair>) -> bool) -> usize {
        let i = want as usize;
        let (mut served, mut in_vain) = (0, 0);
        while served < budget && in_vain < self.lines[i].borrow().len() {
            let Some(host) = self.lines[i].borrow_mut().pop_front() else { break };
            let line = &host.lines[i];
            let first = line.qpairs.borrow_mut().pop_front();
            if let Some(qp) = first {
                // What `one` calls may connect, end or line up anything.
                let waits = !qp.lines[i].slots.borrow().is_empty();
                let got = waits && one(&qp);
                let more = !qp.lines[i].slots.borrow().is_empty();
                match (more, got) {
                    (true, true) => line.qpairs.borrow_mut().push_back(qp),
                    (true, false) => line.qpairs.borrow_mut().push_front(qp),
                    (false, _) => qp.lines[i].queued.set(false),
                }
                served += usize::from(got);
                // A line that has become empty is progress too.
                in_vain = if got || !more { 0 } else { in_vain + 1 };
            }
            if line.qpairs.borrow().is_empty() {
                line.queued.set(false);
            } else {
                self.lines[i].borrow_mut().push_back(host);
            }
        }
        served
    }

    /// Calls `f` once for every queue pair that waits now. It may change the lines: who has left them is called all the same.
    pub(crate) fn each_waiting(&self, want: Want, mut f: impl FnMut(&Rc<Qpair>)) {
        let i = want as usize;
        let mut all = self.visited.take();
        for host in &*self.lines[i].borrow() {
            all.extend(host.lines[i].qpairs.borrow().iter().cloned());
        }
        for qp in all.drain(..) {
            f(&qp);
        }
        // For the next time: it does not grow any more then.
        self.visited.replace(all);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longshore_bdev::Registry;
    use longshore_nvme::wire::fabrics::{ConnectCmd, ConnectData};
    use longshore_nvme::wire::{Sqe, Status};
    use longshore_reactor::{Options, Runtime};
    use zerocopy::{FromBytes, FromZeros, IntoBytes};

    use super::*;
    use crate::{Address, Disconnect, PollGroup, QpairTransport, Target, TrType, TransportOptions};

    struct NoWire(Address);

    impl QpairTransport for NoWire {
        fn respond(&self, _: u16) {}
        fn buffer_ready(&self, _: u16) {}
        fn buffer_needed(&self, _: u16) {}
        fn disconnect(&self, _: Disconnect) {}
        fn listener(&self) -> &Address {
            &self.0
        }
        fn peer(&self) -> Address {
            self.0.clone()
        }
    }

    fn qpairs(target: &Arc<Target>, n: u16) -> Vec<Rc<Qpair>> {
        let group = PollGroup::of(target).unwrap();
        let options = Arc::new(TransportOptions::new(TrType::Tcp));
        let make = |qid| {
            let sqe = Sqe::read_from_bytes(ConnectCmd::new(1, qid, 31, 0, 0).as_bytes()).unwrap();
            let cmd = ConnectCmd::of(&sqe);
            let place = target.place(cmd, &ConnectData::new_zeroed());
            let wire = Rc::new(NoWire(Address::tcp("127.0.0.1:4420".parse().unwrap())));
            Qpair::new(&group, wire, options.clone(), cmd, place)
        };
        (1..=n).map(make).collect()
    }

    #[test]
    fn whoever_waits_is_visited_once_also_when_those_before_it_leave_meanwhile() {
        let rt = Runtime::start(Options { cores: vec![0], pin: false, ..Options::default() }).unwrap();
        let cores = rt.cores().to_vec();
        let run = rt.cores()[0].spawn(move |r| async move {
            longshore_bdev::CoreState::init(&r, Default::default());
            let target = Target::start(cores, Registry::new()).await.unwrap();
            let all = qpairs(&target, 5);
            let shares = &PollGroup::of(&target).unwrap().shares;
            for want in [Want::Buffer, Want::Request] {
                all.iter().for_each(|qp| shares.line_up(want, qp, 0));
                let mut seen = Vec::new();
                shares.each_waiting(want, |qp| {
                    seen.push(qp.qid());
                    // As when serving it ends its connection.
                    shares.forget(qp);
                });
                assert_eq!(seen, [1, 2, 3, 4, 5], "{want:?}");
                assert!(all.iter().all(|qp| qp.lines[want as usize].is_empty()));
            }
            all.iter().for_each(|qp| qp.shutdown(|| {}));
            drop(all);
            target.shutdown().await;
            Status::SUCCESS
        });
        assert!(run.wait_timeout(std::time::Duration::from_secs(20)).expect("in time").unwrap().is_ok());
        rt.stop();
    }
}
