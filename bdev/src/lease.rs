//! A rate that several cores share: a global bucket per limit, and leases of at most a millisecond that the cores take from it.
//!
//! The bucket is one number: the moment until which the rate is sold. A lease of so many units costs the time in which the limit
//! earns them, and may be used from the moment where its time begins. So a core never fails to get a lease, it only has to wait for
//! its turn: cores that all want more take turns, and one that is alone gets everything.
//!
//! A lease is as large as the core has use for: twice the last one if that was used up, half of it if some was left and given back,
//! at most a millisecond of the rate or the one request that is larger. What nobody wanted is lost; what a core wanted and could not
//! fetch, because it came late, is not.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The time that a lease is good for. What is left then is given back.
pub(crate) const TERM: Duration = Duration::from_millis(1);
/// Most that a core which comes late may catch up with.
const CATCH_UP: Duration = Duration::from_millis(100);

/// A limit: units per second.
#[derive(Default)]
pub(crate) struct Limit {
    /// 0 = none.
    rate: AtomicU64,
    /// Ticks until which the rate is sold.
    sold: AtomicU64,
}

impl Limit {
    #[inline]
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Relaxed)
    }

    pub(crate) fn set(&self, rate: u64) {
        self.rate.store(rate, Relaxed);
        self.sold.store(0, Relaxed);
    }

    /// Ticks in which the limit earns `units`.
    fn price(units: u64, rate: u64) -> u64 {
        let ticks = u128::from(units) * u128::from(longshore_reactor::tick_rate()) / u128::from(rate.max(1));
        ticks.min(u128::from(u64::MAX / 4)) as u64
    }

    /// Sells `units`, of time from `since` on; returns when they may be used.
    fn sell(&self, units: u64, since: u64) -> u64 {
        let price = Self::price(units, self.rate());
        let sold = self.sold.fetch_update(Relaxed, Relaxed, |s| Some(s.max(since).saturating_add(price)));
        sold.unwrap_or(0).max(since)
    }

    /// Has `units` back that were sold: it may sell them again.
    pub(crate) fn take_back(&self, units: u64) {
        if self.rate() == 0 {
            return;
        }
        let price = Self::price(units, self.rate());
        let _ = self.sold.fetch_update(Relaxed, Relaxed, |s| Some(s.saturating_sub(price)));
    }
}

/// What one core holds of a limit.
#[derive(Default)]
pub(crate) struct Lease {
    units: Cell<u64>,
    /// Ticks from which they may be used.
    from: Cell<u64>,
    /// Size of the last lease.
    step: Cell<u64>,
}

impl Lease {
    /// Has at least `need` units, bought by `buy` if it must; returns from when they may be used, 0 without a limit.
    #[inline]
    pub(crate) fn obtain(&self, limit: &Limit, need: u64, buy: impl FnOnce() -> u64) -> u64 {
        let rate = limit.rate();
        if rate == 0 {
            return 0;
        }
        if self.units.get() < need {
            self.buy(limit, rate, need, buy());
        }
        self.from.get()
    }

    /// Buys what is missing of `need` and a reserve, of time from `since` on.
    #[cold]
    fn buy(&self, limit: &Limit, rate: u64, need: u64, since: u64) {
        let most = (u128::from(rate) * TERM.as_nanos() / 1_000_000_000) as u64;
        let step = self.step.get().saturating_mul(2).min(most);
        let have = self.units.get();
        let bought = (need - have).max(step);
        self.step.set(bought);
        self.units.set(have + bought);
        self.from.set(limit.sell(bought, since));
    }

    /// Uses `need` units, if there is a limit.
    #[inline]
    pub(crate) fn spend(&self, need: u64) {
        self.units.set(self.units.get().saturating_sub(need));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.units.get() == 0
    }

    pub(crate) fn give_back(&self, limit: &Limit) {
        let left = self.units.take();
        if left != 0 && limit.rate() != 0 {
            limit.take_back(left);
            self.step.set(self.step.get() / 2);
        }
    }

    /// The limit is another one: what was had of it is void.
    pub(crate) fn forget(&self) {
        self.units.set(0);
        self.step.set(0);
    }
}

/// What a core missed because it came late, when it has been waiting.
#[derive(Default)]
pub(crate) struct Arrears {
    since: Cell<u64>,
    /// What is not fetched until then is lost after all.
    until: Cell<u64>,
}

impl Arrears {
    /// What waits could have gone on at `due`, and does so now.
    pub(crate) fn late(&self, due: u64, now: u64) {
        let most = longshore_reactor::ticks(CATCH_UP);
        let by = now.saturating_sub(due).min(most);
        self.since.set(now - by);
        self.until.set(now + by.max(longshore_reactor::ticks(TERM)));
    }

    /// From when on leases are sold.
    pub(crate) fn since(&self, now: u64) -> u64 {
        if now <= self.until.get() { self.since.get().min(now) } else { now }
    }
}
