//! The tick counter: TSC on x86-64 when it is invariant, `CNTVCT_EL0` on aarch64, else `CLOCK_MONOTONIC`.
//!
//! One read costs about 13 ns in a virtual machine, so the reactor reads it once per loop turn and once per reaped batch
//! and everything else uses that stamp ([`Reactor::now`](crate::Reactor::now)).
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where ticks come from, found once per process.
struct Source {
    hardware: bool,
    rate: u64,
    epoch: Instant,
}

static SOURCE: OnceLock<Source> = OnceLock::new();

thread_local! {
    /// Set on a thread that runs a simulation: (now in nanoseconds + 1), so that `rdtsc` follows the simulated clock.
    static SIMULATED: Cell<u64> = const { Cell::new(0) };
}

/// Installs (or moves) the simulated clock of this thread; `None` returns to real time.
pub(crate) fn set_simulated(now: Option<u64>) {
    SIMULATED.set(now.map_or(0, |n| n + 1));
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn counter() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor and touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn counter_is_invariant() -> bool {
    use std::arch::x86_64::__cpuid;
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
fn counter() -> u64 {
    let v: u64;
    // SAFETY: the virtual counter is readable from user space on Linux and the read touches no memory.
    unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) v, options(nomem, nostack)) };
    v
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
fn counter_is_invariant() -> bool {
    true
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn counter() -> u64 {
    0
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn counter_is_invariant() -> bool {
    false
}

/// A (counter, time) pair read as close together as `tries` attempts allow.
fn bracket(epoch: Instant, tries: usize) -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..tries {
        let a = counter();
        let t = epoch.elapsed().as_nanos() as u64;
        let b = counter();
        let width = b.wrapping_sub(a);
        if width < best.0 {
            best = (width, a.wrapping_add(width / 2), t);
        }
    }
    (best.1, best.2)
}

fn source() -> &'static Source {
    SOURCE.get_or_init(|| {
        let epoch = Instant::now();
        if !counter_is_invariant() {
            return Source { hardware: false, rate: 1_000_000_000, epoch };
        }
        // Two milliseconds bracketed to some 50 ns give 25 ppm, ample for timers and percentages.
        let (c0, t0) = bracket(epoch, 8);
        while epoch.elapsed().as_nanos() as u64 - t0 < 2_000_000 {
            std::hint::spin_loop();
        }
        let (c1, t1) = bracket(epoch, 8);
        let rate = (c1.wrapping_sub(c0) as u128 * 1_000_000_000 / (t1 - t0) as u128) as u64;
        if rate < 1_000_000 {
            return Source { hardware: false, rate: 1_000_000_000, epoch };
        }
        Source { hardware: true, rate, epoch }
    })
}

/// The counter now. On a simulation's thread: simulated nanoseconds.
#[inline]
pub fn rdtsc() -> u64 {
    let sim = SIMULATED.get();
    if sim != 0 {
        return sim - 1;
    }
    let s = source();
    if s.hardware { counter() } else { s.epoch.elapsed().as_nanos() as u64 }
}

/// Ticks per second of [`rdtsc`]. On a simulation's thread: 1,000,000,000.
#[inline]
pub fn tick_rate() -> u64 {
    if SIMULATED.get() != 0 { 1_000_000_000 } else { source().rate }
}

/// Ticks in a duration, saturating.
#[inline]
pub fn ticks(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().saturating_mul(tick_rate() as u128) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// Nanoseconds in a number of ticks.
#[inline]
pub fn nanos(t: u64) -> u64 {
    u64::try_from(t as u128 * 1_000_000_000 / tick_rate() as u128).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_as_long_as_the_rate_says() {
        let (t, c) = (Instant::now(), rdtsc());
        while t.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let counted = nanos(rdtsc() - c);
        let real = t.elapsed().as_nanos() as u64;
        assert!(counted.abs_diff(real) < real / 10 + 2_000_000, "{counted} ns counted, {real} ns real");
    }

    #[test]
    fn ticks_and_nanos_are_inverse() {
        let d = Duration::from_millis(1500);
        assert!(nanos(ticks(d)).abs_diff(1_500_000_000) < 10);
        assert_eq!(ticks(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_simulated_thread_counts_simulated_nanoseconds() {
        set_simulated(Some(42));
        assert_eq!((rdtsc(), tick_rate()), (42, 1_000_000_000));
        set_simulated(None);
        assert_ne!(rdtsc(), 42);
    }
}
