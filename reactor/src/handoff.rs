//! Numbers that one thread hands to another, without allocation: what they stand for lies in a table that both know.
//!
//! A list of those that were pushed, newest first, which the receiver takes as a whole. So there is no slot that could be read while it
//! is written, and only the push that finds the list empty has to wake the receiver: one wake for as many as come meanwhile.

use crate::sync::{AtomicU32, Ordering, fence};

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Hands numbers from one thread to another. A number that was taken may be pushed again.
pub struct Handoff {
    head: AtomicU32,
    next: Box<[AtomicU32]>,
}

impl Handoff {
    /// For numbers below `n`.
    pub fn new(n: u32) -> Handoff {
        Handoff { head: AtomicU32::new(NONE), next: (0..n).map(|_| AtomicU32::new(NONE)).collect() }
    }

    /// Hands over `number`, which is not on its way already. For one thread. True: the receiver has to be woken.
    ///
    /// What was written before can be read by whoever takes the number.
    ///
    /// # Panics
    /// If `number` is too large.
    #[inline]
    pub fn push(&self, number: u32) -> bool {
        let next = &self.next[number as usize];
        let mut first = self.head.load(Ordering::Relaxed);
        loop {
            next.store(first, Ordering::Relaxed);
            match self.head.compare_exchange_weak(first, number, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        // Of a receiver that says "wake me" and then takes, and a sender that pushes and then looks whether to wake it, one sees the other.
        fence(Ordering::SeqCst);
        first == NONE
    }

    /// Takes all that was handed over, in order. For one thread, which is woken from now on by the next push.
    #[inline]
    pub fn take(&self) -> Handed<'_> {
        fence(Ordering::SeqCst);
        let mut newest = self.head.swap(NONE, Ordering::Acquire);
        let mut oldest = NONE;
        while newest != NONE {
            let link = &self.next[newest as usize];
            let older = link.load(Ordering::Relaxed);
            link.store(oldest, Ordering::Relaxed);
            (oldest, newest) = (newest, older);
        }
        Handed { of: self, at: oldest }
    }
}

/// Numbers that were taken, oldest first.
pub struct Handed<'a> {
    of: &'a Handoff,
    at: u32,
}

impl Iterator for Handed<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.at == NONE {
            return None;
        }
        // Before the number is given out: it may be pushed again.
        let number = self.at;
        self.at = self.of.next[number as usize].load(Ordering::Relaxed);
        Some(number)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn numbers_come_in_order_and_only_the_first_of_them_wakes() {
        let h = Handoff::new(4);
        assert_eq!((h.push(2), h.push(0), h.push(3)), (true, false, false));
        assert_eq!(h.take().collect::<Vec<_>>(), [2, 0, 3]);
        assert_eq!(h.take().next(), None);
        assert!(h.push(2));
        for n in h.take() {
            assert!(h.push(n), "taken, it may be pushed again");
        }
    }

    #[test]
    fn what_was_written_before_is_read_by_who_takes_the_number() {
        const ROUNDS: u64 = if cfg!(miri) { 100 } else { 20_000 };
        let (there, back) = (Arc::new((Handoff::new(4), [const { AtomicU64::new(0) }; 4])), Arc::new(Handoff::new(4)));
        let (t, b) = (there.clone(), back.clone());
        let receiver = std::thread::spawn(move || {
            let mut sum = 0;
            let mut got = 0;
            while got < ROUNDS {
                for n in t.0.take() {
                    sum += t.1[n as usize].load(Ordering::Relaxed);
                    got += 1;
                    b.push(n);
                }
                std::thread::yield_now();
            }
            sum
        });
        let mut free = vec![0, 1, 2, 3];
        for i in 1..=ROUNDS {
            while free.is_empty() {
                free.extend(back.take());
                std::thread::yield_now();
            }
            let n = free.pop().unwrap();
            there.1[n as usize].store(i, Ordering::Relaxed);
            there.0.push(n);
        }
        assert_eq!(receiver.join().unwrap(), ROUNDS * (ROUNDS + 1) / 2);
    }
}
