//! What is promised to queue pairs when they connect, and who is promised no more.
//!
//! Each queue pair has a buffer and requests for itself, used or not. They are taken off what all hosts share; so one host's queue pairs
//! may come, all together, to no more than its share of the whole core (`TargetConfig::host_share`), however many it connects. The promise
//! ends with the queue pair, or when it has [given up](crate::predecessors) because a device does not let go of its commands, which must not keep their host from
//! connecting again.

use std::cell::Cell;
use std::time::Duration;

use longshore_bdev::CoreState;
use longshore_reactor::{Reactor, ticks};

use crate::share::{Host, Shares};

/// Percent of a core that the promises to one host may come to in any case. A lower share is meant for what it floods the core with, and
/// must not keep it from connecting.
const LEAST: u8 = 10;

/// How often it is logged that a core has nothing left to promise.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What was promised, to one host or all of them.
#[derive(Default)]
pub(crate) struct Promised {
    pub(crate) requests: Cell<u32>,
    pub(crate) bytes: Cell<usize>,
}

impl Promised {
    /// A queue pair with so much for itself came (`up`) or went.
    pub(crate) fn change(&self, bytes: usize, requests: u32, up: bool) {
        let (b, n) = (self.bytes.get(), self.requests.get());
        self.bytes.set(if up { b + bytes } else { b - bytes });
        self.requests.set(if up { n + requests } else { n - requests });
    }
}

/// Why a queue pair is promised nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its host's other ones have all that the host may be promised.
    Host,
    /// All ones together have all that there is.
    Core,
}

impl Shares {
    /// Whether a queue pair of `host` may have so much for itself. That there is a buffer for it is not said.
    pub(crate) fn may_promise(
        &self,
        reactor: &Reactor,
        host: &Host,
        bytes: usize,
        requests: u32,
    ) -> Result<(), Refused> {
        let pool = CoreState::current().pool_stats();
        let all = pool.capacity - pool.child_reserve;
        let percent = u64::from(self.percent.get().max(LEAST));
        let within = |n: u64, whole: u64| n * 100 <= whole * percent;
        let of_host = &host.promised;
        let fits = within((of_host.bytes.get() + bytes) as u64, reactor.dma().limit() as u64)
            && (requests == 0 || within(u64::from(of_host.requests.get() + requests), all.into()));
        match (fits, self.promised.requests.get() + requests <= all) {
            (false, _) => Err(Refused::Host),
            (_, false) => Err(Refused::Core),
            (true, true) => Ok(()),
        }
    }

    /// Says why Connects are refused, and what to do: of each host once while it is connected, of the core now and then.
    #[cold]
    pub(crate) fn say_refused(&self, reactor: &Reactor, host: &Host, why: Refused) {
        let pool = CoreState::current().pool_stats();
        let (limit, all) = (reactor.dma().limit(), pool.capacity - pool.child_reserve);
        let now = reactor.now();
        match why {
            Refused::Host if !host.told.replace(true) => tracing::warn!(
                "host '{}': Controller Busy: its queue pairs have {} bytes of buffers and {} requests for themselves, and {} % of this \
                 core's {limit} bytes and {all} requests is the most for one host; if it needs more connections: more memory (-s), more \
                 requests (bdev_io_pool_size of bdev_set_options), or a larger share (host_share of nvmf_set_config)",
                host.nqn,
                host.promised.bytes.get(),
                host.promised.requests.get(),
                self.percent.get().max(LEAST),
            ),
            Refused::Core if self.silent_until.get() <= now => {
                self.silent_until.set(now + ticks(SAY_AGAIN));
                tracing::warn!(
                    "host '{}': Controller Busy: this core's queue pairs have {} of its {limit} bytes of buffers and {} of its {all} requests \
                     for themselves, and the rest is in use or too little for one more; more connections need more memory (-s) or more \
                     requests (bdev_io_pool_size of bdev_set_options)",
                    host.nqn,
                    self.promised.bytes.get(),
                    self.promised.requests.get(),
                );
            }
            Refused::Host | Refused::Core => {}
        }
    }
}
