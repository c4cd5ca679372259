//! Staying awake after a request, on a CPU that nobody else wants.
//!
//! A reactor that lingers yields between its turns: on a CPU of its own that costs half a microsecond, and whoever else wants the CPU gets it.
//! Where somebody takes it for long, lingering would win nothing: the kernel lets one that slept go first, and one that yielded last. So there the
//! reactor sleeps, and looks again a second later whether it is alone.

use crate::clock;
use std::cell::Cell;
use std::time::Duration;

/// A yield that takes longer is a long one: another thread had the CPU, or another virtual machine.
const LONG: Duration = Duration::from_micros(100);
/// So many in a row were threads: another machine does not come twice within a microsecond.
const IN_A_ROW: u32 = 2;
/// How long the CPU then counts as shared.
const SHARED: Duration = Duration::from_secs(1);

/// See the module. All times are ticks.
pub(crate) struct Linger {
    /// How long to stay awake after a request; zero: no longer than after other work.
    after: u64,
    /// When somebody last waited for an answer.
    last: Cell<u64>,
    long: u64,
    row: Cell<u32>,
    shared: u64,
    shared_until: Cell<u64>,
}

impl Linger {
    pub(crate) fn new(after: Duration, now: u64) -> Linger {
        let after = clock::ticks(after);
        Linger {
            after,
            last: Cell::new(now.saturating_sub(after)),
            long: clock::ticks(LONG),
            row: Cell::new(0),
            shared: clock::ticks(SHARED),
            shared_until: Cell::new(0),
        }
    }

    /// Somebody waits for an answer.
    #[inline(always)]
    pub(crate) fn request(&self, now: u64) {
        self.last.set(now);
    }

    /// Whether to stay awake.
    #[inline]
    pub(crate) fn is_on(&self, now: u64) -> bool {
        now.saturating_sub(self.last.get()) < self.after && now >= self.shared_until.get()
    }

    /// Lets others have the CPU.
    #[inline(never)]
    pub(crate) fn give_way(&self) {
        let before = clock::rdtsc();
        std::thread::yield_now();
        let now = clock::rdtsc();
        self.yielded(now.saturating_sub(before), now);
    }

    /// A yield that took `took` is over.
    fn yielded(&self, took: u64, now: u64) {
        self.row.set(if took < self.long { 0 } else { self.row.get() + 1 });
        if self.row.get() == IN_A_ROW {
            self.row.set(0);
            self.shared_until.set(now + self.shared);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> u64 {
        clock::ticks(Duration::from_millis(n))
    }

    #[test]
    fn it_stays_awake_for_as_long_as_was_asked_after_the_last_request_and_not_before_the_first() {
        let now = ms(5000);
        let l = Linger::new(Duration::from_millis(200), now);
        assert!(!l.is_on(now));
        l.request(now);
        assert!(l.is_on(now) && l.is_on(now + ms(199)) && !l.is_on(now + ms(200)));
        l.request(now + ms(150));
        assert!(l.is_on(now + ms(349)) && !l.is_on(now + ms(350)));
        let never = Linger::new(Duration::ZERO, now);
        never.request(now);
        assert!(!never.is_on(now));
    }

    #[test]
    fn two_long_yields_in_a_row_end_it_for_a_second_and_one_does_not() {
        let now = ms(5000);
        let l = Linger::new(Duration::from_secs(10), now);
        l.request(now);
        for took in [3, 0, 3, 0, 0] {
            l.yielded(ms(took), now);
            assert!(l.is_on(now));
        }
        for again in [now, now + ms(1000)] {
            l.yielded(ms(3), again);
            assert!(l.is_on(again));
            l.yielded(ms(3), again);
            assert!(!l.is_on(again) && !l.is_on(again + ms(999)) && l.is_on(again + ms(1000)));
        }
    }
}
