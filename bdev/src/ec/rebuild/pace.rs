//! How much of the core and of the members a rebuild may take.
//!
//! While hosts ask for nothing it takes what it gets. While they do, one stripe at a time is filled, in small pieces, and after each the rebuild rests for
//! a multiple of the time for which it kept the core, and at least for as long as the stripe took: never for ever, so that it always goes on. How long a
//! stripe takes says little by itself: on a busy core nearly all of it is waiting for a turn.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::super::engine::Engine;
use super::super::signal::{Taken, Turn};
use super::strip::PIECE;

/// A host that was seen to ask for something counts as busy for so long.
const BUSY: Duration = Duration::from_millis(5);
/// Of the core's time while hosts are busy, a rebuild takes one part in so many.
const SHARE: u64 = 16;
/// It rests for so many times as long as the stripe took, at least: devices have hosts' requests to do, too.
const WAITS: u64 = 1;
/// The longest rest.
const REST: Duration = Duration::from_millis(250);
/// Bytes of a strip that are decoded at once while hosts are busy.
const SMALL: u32 = 16 << 10;
/// How long a rebuild that is paused waits before it looks again.
const NAP: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Default)]
pub(super) struct Pace {
    /// Requests of hosts when they were looked at last.
    seen: Cell<u64>,
    /// Hosts count as busy until then.
    busy_until: Cell<u64>,
    /// When the next stripe may be filled.
    due: Cell<u64>,
    /// Ticks for which the core was kept so far.
    worked: Cell<u64>,
    lane: Turn,
}

/// Leave to fill a stripe, until it is dropped.
pub(super) struct Leave<'a> {
    /// Bytes to decode at once, at most.
    pub(super) most: u32,
    engine: &'a Engine,
    began: u64,
    /// [`Pace::worked`] when it began.
    worked: u64,
    lane: Option<Taken<'a>>,
}

/// The rest after a stripe that kept the core for `worked` and was there for `took`, in ticks.
fn rest(worked: u64, took: u64) -> u64 {
    worked.saturating_mul(SHARE - 1).max(took.saturating_mul(WAITS))
}

impl Pace {
    /// Does something that keeps the core.
    pub(super) fn work<T>(&self, engine: &Engine, f: impl FnOnce() -> T) -> T {
        let r = engine.core.reactor();
        let began = r.rdtsc();
        let done = f();
        self.worked.set(self.worked.get() + r.rdtsc().saturating_sub(began));
        done
    }

    /// True if hosts have asked for something lately.
    fn is_busy(&self, engine: &Engine) -> bool {
        let (now, seen) = (engine.core.now(), engine.shared.host_requests());
        if self.seen.replace(seen) != seen {
            self.busy_until.set(now + engine.core.reactor().ticks(BUSY));
        }
        now < self.busy_until.get() || engine.is_starving()
    }

    /// Waits until a stripe may be filled. `None`: things may have changed meanwhile.
    pub(super) async fn leave<'a>(&'a self, engine: &'a Rc<Engine>) -> Option<Leave<'a>> {
        let r = engine.core.reactor();
        let qos = engine.shared.rebuild.qos();
        if qos.paused {
            r.sleep(NAP).await;
            return None;
        }
        let now = engine.core.now();
        if now < self.due.get() {
            let left = Duration::from_nanos(longshore_reactor::nanos(self.due.get() - now));
            r.sleep(left.clamp(Duration::from_micros(1), NAP)).await;
            return None;
        }
        let lane = match self.is_busy(engine) {
            true => Some(self.lane.take().await),
            // Reads that end within the turn that they begin in must not keep others from theirs.
            false => {
                r.yield_now().await;
                None
            }
        };
        let now = engine.core.now();
        if now < self.due.get() {
            // Who had the lane before rests.
            return None;
        }
        if qos.max_stripes_per_sec > 0 {
            // From when it was due, so that the rate holds; but what was missed is not made up for.
            let step = r.ticks(Duration::from_secs(1) / qos.max_stripes_per_sec);
            self.due.set(self.due.get().max(now.saturating_sub(step)) + step);
        }
        let most = if lane.is_some() { SMALL } else { PIECE };
        Some(Leave { most, engine, began: now, worked: self.worked.get(), lane })
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.lane.is_none() {
            return;
        }
        let pace = &self.engine.rebuild.pace;
        let now = self.engine.core.now();
        let (worked, took) = (pace.worked.get() - self.worked, now.saturating_sub(self.began));
        let rest = rest(worked, took).min(self.engine.core.reactor().ticks(REST));
        pace.due.set(pace.due.get().max(now + rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_hosts_a_rebuild_takes_its_share_of_the_core_and_half_of_the_time_at_most() {
        // On an idle core a stripe takes as long as it is worked on, on a busy one it waits for its turns.
        assert_eq!(rest(30, 30), 450);
        assert_eq!(rest(30, 300), 450);
        assert_eq!(rest(30, 3000), 3000);
        assert_eq!(rest(0, 0), 0);
        assert_eq!(rest(u64::MAX, u64::MAX), u64::MAX);
    }
}
